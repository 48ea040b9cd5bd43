//! JSON text → the bytes of a `jsonb`, as `JsonbValueToJsonb()` makes them (jsonb_util.c; the format is that of jsonb.h).
//!
//! What a search returns is turned into jsonb row by row, and jsonb_in() was more than a third of what a fast search cost: its
//! lexer takes a character at a time, and its tree is one of small allocations.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

const OBJECT: u32 = 0x2000_0000;
const ARRAY: u32 = 0x4000_0000;
const SCALAR: u32 = 0x1000_0000;

const NUMERIC: u32 = 0x1000_0000;
const FALSE: u32 = 0x2000_0000;
const TRUE: u32 = 0x3000_0000;
const NULL: u32 = 0x4000_0000;
const CONTAINER: u32 = 0x5000_0000;
/// This entry has the offset of its end, not its length: each 32nd has (JB_OFFSET_STRIDE).
const HAS_OFFSET: u32 = 0x8000_0000;
const STRIDE: usize = 32;

/// Longer texts are left to jsonb_in(): nested values are scanned once a level here, and offsets have 28 bits.
const MAX_TEXT: usize = 4 << 20;
/// So are deeper ones, whose recursion it bounds.
const MAX_DEPTH: usize = 64;

/// The jsonb, its length word left zero. None if jsonb_in() is to decide: the text is no JSON, or has what only it can judge.
/// `numeric` appends the bytes of a `numeric` with their length word.
pub fn encode(text: &str, numeric: &mut dyn FnMut(&str, &mut Vec<u8>)) -> Option<Vec<u8>> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let mut writer = Writer { out: Vec::with_capacity(text.len() + text.len() / 2 + 16), numeric };
    writer.out.extend_from_slice(&[0; 4]);
    let value: &RawValue = serde_json::from_str(text).ok()?;
    if value.get().starts_with(['{', '[']) {
        writer.value(value, 0)?;
    } else {
        writer.container(ARRAY | SCALAR | 1, &[], &[value], 0)?;
    }
    Some(writer.out)
}

/// The text with what no jsonb can hold replaced: U+0000 and halves of surrogate pairs by U+FFFD, numbers beyond `numeric` by
/// strings. None if it has nothing of that: a `json` column may, and so may documents of others.
pub fn tamed(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = String::new();
    let (mut copied, mut at, mut in_string) = (0, 0, false);
    while let Some(&byte) = bytes.get(at) {
        let (end, instead) = match byte {
            b'"' => {
                in_string = !in_string;
                (at + 1, None)
            }
            b'\\' => escape(bytes, at),
            b'-' | b'0'..=b'9' if !in_string => number(text, at),
            _ => (at + 1, None),
        };
        if let Some(instead) = instead {
            out.push_str(&text[copied..at]);
            out.push_str(&instead);
            copied = end;
        }
        at = end;
    }
    (copied > 0).then(|| out + &text[copied..])
}

/// Where an escape ends, and what stands for it if it must not stay.
fn escape(bytes: &[u8], at: usize) -> (usize, Option<Cow<'static, str>>) {
    // Not as an escape again: where the database is not UTF-8, jsonb_in() takes none beyond ASCII.
    const REPLACEMENT: Option<Cow<str>> = Some(Cow::Borrowed("\u{FFFD}"));
    match unit(bytes, at) {
        None => (at + 2, None),
        Some(0 | 0xDC00..=0xDFFF) => (at + 6, REPLACEMENT),
        Some(0xD800..=0xDBFF) => match unit(bytes, at + 6) {
            Some(0xDC00..=0xDFFF) => (at + 12, None),
            _ => (at + 6, REPLACEMENT),
        },
        Some(_) => (at + 6, None),
    }
}

/// The UTF-16 unit that an escape stands for, if one begins there.
fn unit(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Where a number ends, and what stands for it if `numeric` cannot hold it.
fn number(text: &str, at: usize) -> (usize, Option<Cow<'_, str>>) {
    let rest = &text[at..];
    let length = rest.find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E')).unwrap_or(rest.len());
    let number = &rest[..length];
    (at + length, overflows(number).then(|| Cow::Owned(format!("\"{number}\""))))
}

/// True of a number with more digits before or after the point than `numeric` has (numeric.h).
fn overflows(number: &str) -> bool {
    const BEFORE: i64 = 131_072;
    const AFTER: i64 = 16_383;
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let Ok(exponent) = exponent.parse::<i32>() else { return true };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (whole, exponent) = (whole.trim_start_matches('-').len() as i64, i64::from(exponent));
    whole + exponent > BEFORE || fraction.len() as i64 - exponent > AFTER
}

struct Writer<'a> {
    out: Vec<u8>,
    numeric: &'a mut dyn FnMut(&str, &mut Vec<u8>),
}

impl Writer<'_> {
    /// Appends a value; gives the type of its entry.
    fn value(&mut self, value: &RawValue, depth: usize) -> Option<u32> {
        let text = value.get();
        Some(match text.as_bytes().first()? {
            b'n' => NULL,
            b't' => TRUE,
            b'f' => FALSE,
            b'"' => {
                let string = string(text)?;
                self.out.extend_from_slice(string.as_bytes());
                0
            }
            b'[' => {
                let values: Vec<&RawValue> = serde_json::from_str(text).ok()?;
                self.container(ARRAY | u32::try_from(values.len()).ok()?, &[], &values, depth + 1)?;
                CONTAINER
            }
            b'{' => {
                let Pairs(mut pairs) = serde_json::from_str(text).ok()?;
                // By length, then by bytes. Of equal names the last one counts.
                pairs.reverse();
                pairs.sort_by(|(one, _), (other, _)| {
                    one.len().cmp(&other.len()).then_with(|| one.as_bytes().cmp(other.as_bytes()))
                });
                pairs.dedup_by(|(later, _), (kept, _)| later == kept);
                let (names, values): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
                self.container(OBJECT | u32::try_from(names.len()).ok()?, &names, &values, depth + 1)?;
                CONTAINER
            }
            _ => {
                self.align();
                (self.numeric)(text, &mut self.out);
                NUMERIC
            }
        })
    }

    fn container(&mut self, header: u32, names: &[Cow<str>], values: &[&RawValue], depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.align();
        self.out.extend_from_slice(&header.to_ne_bytes());
        let entries = self.out.len();
        let data = entries + 4 * (names.len() + values.len());
        self.out.resize(data, 0);
        let entry = |out: &mut Vec<u8>, index: usize, begun: usize, kind: u32| {
            let extent = if index.is_multiple_of(STRIDE) {
                (out.len() - data) as u32 | HAS_OFFSET
            } else {
                (out.len() - begun) as u32
            };
            out[entries + 4 * index..][..4].copy_from_slice(&(kind | extent).to_ne_bytes());
        };
        for (index, name) in names.iter().enumerate() {
            let begun = self.out.len();
            self.out.extend_from_slice(name.as_bytes());
            entry(&mut self.out, index, begun, 0);
        }
        for (index, value) in values.iter().enumerate() {
            let begun = self.out.len();
            let kind = self.value(value, depth)?;
            entry(&mut self.out, names.len() + index, begun, kind);
        }
        Some(())
    }

    /// Numbers and containers begin at multiples of four; what is skipped counts as theirs.
    fn align(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

/// A string without its quotes. None if it has what PostgreSQL refuses.
fn string(text: &str) -> Option<Cow<'_, str>> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    let string: String = serde_json::from_str(text).ok()?;
    (!string.contains('\0')).then_some(Cow::Owned(string))
}

/// The members of an object in their order, names as often as they occur.
struct Pairs<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Pairs<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    if name.contains('\0') {
                        return Err(A::Error::custom("a name with a zero byte"));
                    }
                    pairs.push((name, map.next_value()?));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A name, copied only if it has escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a name")
            }

            fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str) -> Option<Vec<u8>> {
        // Stands for a numeric of five bytes.
        encode(text, &mut |number, out| out.extend(number.bytes().chain(*b"#####").take(5)))
    }

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn what_only_jsonb_in_can_judge_is_left_to_it() {
        let deep = "[".repeat(MAX_DEPTH + 1) + &"]".repeat(MAX_DEPTH + 1);
        for text in
            ["", "{", "nul", "[1,]", "{\"a\":1}}", r#""\u0000""#, r#"{"\u0000":1}"#, r#""\ud800""#, "\"\t\"", &deep]
        {
            assert_eq!(encoded(text), None, "{text}");
        }
    }

    #[test]
    fn what_no_jsonb_can_hold_is_replaced() {
        for (text, expected) in [
            (r#"{"a\u0000b": "\u0000"}"#, "{\"a\u{FFFD}b\": \"\u{FFFD}\"}"),
            (r#"["\\\u0000"]"#, "[\"\\\\\u{FFFD}\"]"),
            (r#""\ud800x""#, "\"\u{FFFD}x\""),
            (r#""\ud800\ud83d\uDEB2""#, "\"\u{FFFD}\\ud83d\\uDEB2\""),
            (r#""\udeb2é""#, "\"\u{FFFD}é\""),
            (r#"[1e131072, -1e-16384, 5E+999999999999]"#, r#"["1e131072", "-1e-16384", "5E+999999999999"]"#),
        ] {
            assert_eq!(tamed(text).as_deref(), Some(expected), "{text}");
        }
        let long = "9".repeat(131_072);
        for text in [
            r#"{"a": "\\u0000", "b": "\ud83d\udeb2", "1e999999": "1e999999"}"#,
            "[1e131071, 1e-16383, -0.5, 12E3]",
            &long,
            "\"é\\\"\"",
            "",
        ] {
            assert_eq!(tamed(text), None, "{text}");
        }
        assert_eq!(tamed(&format!("{long}9")), Some(format!("\"{long}9\"")));
    }

    #[test]
    fn entries_are_sorted_and_aligned() {
        let bytes = encoded(r#"{"bb": [true, null], "a": 1, "a": "x\n", "cc": 2}"#).unwrap();
        let word = words(&bytes);
        // a, bb, cc; then their values: a string of 2, padded to an array of two entries, a number that is padded.
        assert_eq!(word[1], OBJECT | 3);
        assert_eq!(&word[2..8], [HAS_OFFSET | 1, 2, 2, 2, CONTAINER | (1 + 12), NUMERIC | 5]);
        assert_eq!(&bytes[32..39], b"abbccx\n");
        assert_eq!(words(&bytes[40..52]), [ARRAY | 2, HAS_OFFSET | TRUE, NULL]);
        assert_eq!(&bytes[52..], b"2####");
    }

    #[test]
    fn a_scalar_is_an_array_of_one() {
        assert_eq!(words(&encoded(" false ").unwrap())[1..], [ARRAY | SCALAR | 1, HAS_OFFSET | FALSE]);
    }

    #[test]
    fn each_thirty_second_entry_has_an_offset() {
        let list: Vec<String> = (0..70).map(|_| "\"ab\"".to_owned()).collect();
        let word = words(&encoded(&format!("[{}]", list.join(","))).unwrap());
        for index in 0..70_usize {
            let expected = if index % STRIDE == 0 { HAS_OFFSET | (2 * (index as u32 + 1)) } else { 2 };
            assert_eq!(word[2 + index], expected, "{index}");
        }
    }
}
