//! JSON text → the bytes of a `jsonb`, as `JsonbValueToJsonb()` makes them (jsonb_util.c; the format is that of jsonb.h).
//!
//! What a search returns is turned into jsonb row by row, and jsonb_in() was more than a third of what a fast search cost: its
//! lexer takes a character at a time, and its tree is one of small allocations.

use serde_json::value::RawValue;
use std::borrow::Cow;

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

/// Longer texts are left to jsonb_in(), as offsets have 28 bits.
const MAX_TEXT: usize = 4 << 20;
/// So are deeper ones, whose recursion it bounds.
const MAX_DEPTH: usize = 64;

/// The jsonb, its length word left zero. None if jsonb_in() is to decide, or if [`tamed`] has something to replace.
/// `numeric` appends the bytes of a `numeric` with their length word, for what [`plain_numeric`] leaves.
pub fn encode(json: &RawValue, numeric: &mut dyn FnMut(&str, &mut Vec<u8>)) -> Option<Vec<u8>> {
    let text = json.get();
    if text.len() > MAX_TEXT {
        return None;
    }
    let mut reader = Reader { text, at: 0, tokens: Vec::with_capacity(text.len() / 8 + 4) };
    reader.value(0)?;
    let mut writer =
        Writer { tokens: &reader.tokens, out: Vec::with_capacity(text.len() + text.len() / 2 + 16), numeric };
    writer.out.extend_from_slice(&[0; 4]);
    if matches!(writer.tokens[0], Token::Container { .. }) {
        writer.value(0)?;
    } else {
        writer.container(ARRAY | SCALAR | 1, &[], &[0])?;
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
    let of_number = |byte: u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    let length = rest.bytes().position(|byte| !of_number(byte)).unwrap_or(rest.len());
    let number = &rest[..length];
    (at + length, overflows(number).then(|| Cow::Owned(format!("\"{number}\""))))
}

/// True of a number with more digits before or after the point than `numeric` has (numeric.h).
fn overflows(number: &str) -> bool {
    const BEFORE: i64 = 131_072;
    const AFTER: i64 = 16_383;
    if number.len() as i64 <= AFTER && !number.contains(['e', 'E']) {
        return false;
    }
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    // numeric_in() takes no others, whatever they stand behind.
    let within = |exponent: &i32| exponent.unsigned_abs() < i32::MAX as u32 / 2;
    let Some(exponent) = exponent.parse::<i32>().ok().filter(within).map(i64::from) else { return true };
    let mantissa = mantissa.trim_start_matches('-');
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // Zeros in front are no digits; of a zero nothing is before the point.
    let first = whole.bytes().chain(fraction.bytes()).position(|digit| digit != b'0');
    let before = first.map_or(0, |first| whole.len() as i64 - first as i64 + exponent);
    before > BEFORE || fraction.len() as i64 - exponent > AFTER
}

/// Appends what numeric_in() makes of a number of up to 32 digits before and after its point: the short form of numeric.c, whose
/// digits are groups of four from the point on. None: left to numeric_in(), which takes ten times as long.
fn plain_numeric(number: &str, out: &mut Vec<u8>) -> Option<()> {
    const MOST: usize = 32;
    const SHORT: u16 = 0x8000;
    const NEGATIVE: u16 = 0x2000;
    const SCALE_SHIFT: u32 = 7;
    /// Of the weight: its sign and six bits.
    const WEIGHT: u16 = 0x007F;

    let number = number.as_bytes();
    let (negative, digits) = number.strip_prefix(b"-").map_or((false, number), |digits| (true, digits));
    let point = digits.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = point.map_or((digits, &[][..]), |at| (&digits[..at], &digits[at + 1..]));
    let plain = |digits: &[u8]| digits.len() <= MOST && digits.iter().all(u8::is_ascii_digit);
    if !plain(whole) || !plain(fraction) {
        return None;
    }
    let value = |group: &[u8]| group.iter().fold(0, |value, digit| 10 * value + u16::from(digit - b'0'));
    let mut groups = [0_u16; 2 * MOST / 4];
    let before = whole.len().div_ceil(4);
    for (at, group) in whole.rchunks(4).enumerate() {
        groups[before - 1 - at] = value(group);
    }
    for (at, group) in fraction.chunks(4).enumerate() {
        groups[before + at] = value(group) * [1000, 100, 10, 1][group.len() - 1];
    }
    // Without zeros at either end; 0 itself has no digits, no sign and no weight.
    let mut header = SHORT | ((fraction.len() as u16) << SCALE_SHIFT);
    let mut digits: &[u16] = &[];
    if let Some(first) = groups.iter().position(|group| *group != 0) {
        let last = groups.iter().rposition(|group| *group != 0).unwrap_or(first);
        digits = &groups[first..=last];
        let weight = before as i16 - 1 - first as i16;
        header |= (u16::from(negative) * NEGATIVE) | (weight as u16 & WEIGHT);
    }
    let length = (4 + 2 + 2 * digits.len()) as u32;
    // A length word of four bytes (varatt.h).
    let word = if cfg!(target_endian = "little") { length << 2 } else { length };
    out.extend_from_slice(&word.to_ne_bytes());
    out.extend_from_slice(&header.to_ne_bytes());
    for group in digits {
        out.extend_from_slice(&group.to_ne_bytes());
    }
    Some(())
}

/// A piece of a JSON text. Of an object each member is its name, then its value.
enum Token<'a> {
    Null,
    True,
    False,
    /// Without its quotes.
    String(Cow<'a, str>),
    Number(&'a str),
    /// So many values or members, the last of which ends before the token of this number.
    Container {
        kind: u32,
        count: u32,
        end: usize,
    },
}

/// Takes apart a text that is known to be JSON, in one go.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    tokens: Vec<Token<'a>>,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Option<()> {
        match self.next()? {
            b'n' => self.word(4, Token::Null),
            b't' => self.word(4, Token::True),
            b'f' => self.word(5, Token::False),
            b'"' => self.string(),
            b'[' => self.container(ARRAY, depth + 1),
            b'{' => self.container(OBJECT, depth + 1),
            _ => {
                let (end, beyond) = number(self.text, self.at);
                let number = &self.text[self.at..end];
                self.at = end;
                self.tokens.push(Token::Number(number));
                (beyond.is_none() && !number.is_empty()).then_some(())
            }
        }
    }

    fn container(&mut self, kind: u32, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        let (index, mut count) = (self.tokens.len(), 0);
        self.word(1, Token::Null)?;
        loop {
            match self.next()? {
                b']' | b'}' => break,
                b',' => {
                    self.at += 1;
                    self.next()?;
                }
                _ => {}
            }
            if kind == OBJECT {
                self.string()?;
                self.next()?;
                // The colon.
                self.at += 1;
            }
            self.value(depth)?;
            count += 1;
        }
        self.at += 1;
        self.tokens[index] = Token::Container { kind, count, end: self.tokens.len() };
        Some(())
    }

    /// A string without its quotes. None if it has what PostgreSQL refuses.
    fn string(&mut self) -> Option<()> {
        let (begin, bytes) = (self.at, self.text.as_bytes());
        let mut end = begin + 1;
        let mut escaped = false;
        loop {
            end += memchr::memchr2(b'"', b'\\', bytes.get(end..)?)?;
            if bytes[end] == b'"' {
                break;
            }
            escaped = true;
            end += 2;
        }
        self.at = end + 1;
        let string = if escaped {
            let string: String = serde_json::from_str(&self.text[begin..self.at]).ok()?;
            (!string.contains('\0')).then_some(Cow::Owned(string))?
        } else {
            Cow::Borrowed(&self.text[begin + 1..end])
        };
        self.tokens.push(Token::String(string));
        Some(())
    }

    fn word(&mut self, length: usize, token: Token<'static>) -> Option<()> {
        self.at += length;
        self.tokens.push(token);
        Some(())
    }

    /// The first byte of what comes next.
    fn next(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while matches!(bytes.get(self.at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }
}

struct Writer<'a> {
    tokens: &'a [Token<'a>],
    out: Vec<u8>,
    numeric: &'a mut dyn FnMut(&str, &mut Vec<u8>),
}

impl<'a> Writer<'a> {
    /// Appends the value that begins with a token; gives the type of its entry.
    fn value(&mut self, index: usize) -> Option<u32> {
        Some(match &self.tokens[index] {
            Token::Null => NULL,
            Token::True => TRUE,
            Token::False => FALSE,
            Token::String(string) => {
                self.out.extend_from_slice(string.as_bytes());
                0
            }
            Token::Number(number) => {
                self.align();
                if plain_numeric(number, &mut self.out).is_none() {
                    (self.numeric)(number, &mut self.out);
                }
                NUMERIC
            }
            &Token::Container { kind: ARRAY, count, .. } => {
                let first = index + 1;
                let values: Vec<usize> =
                    std::iter::successors(Some(first), |&at| Some(self.after(at))).take(count as usize).collect();
                self.container(ARRAY | count, &[], &values)?;
                CONTAINER
            }
            &Token::Container { count, .. } => {
                let mut at = index + 1;
                let mut pairs = Vec::with_capacity(count as usize);
                for _ in 0..count {
                    let Token::String(name) = &self.tokens[at] else { return None };
                    pairs.push((name.as_ref(), at + 1));
                    at = self.after(at + 1);
                }
                // By length, then by bytes. Of equal names the last one counts.
                pairs.reverse();
                pairs.sort_by(|(one, _), (other, _)| {
                    one.len().cmp(&other.len()).then_with(|| one.as_bytes().cmp(other.as_bytes()))
                });
                pairs.dedup_by(|(later, _), (kept, _)| later == kept);
                let (names, values): (Vec<&str>, Vec<usize>) = pairs.into_iter().unzip();
                self.container(OBJECT | u32::try_from(names.len()).ok()?, &names, &values)?;
                CONTAINER
            }
        })
    }

    /// The token behind the value that begins with this one.
    fn after(&self, index: usize) -> usize {
        match self.tokens[index] {
            Token::Container { end, .. } => end,
            _ => index + 1,
        }
    }

    fn container(&mut self, header: u32, names: &[&str], values: &[usize]) -> Option<()> {
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
        for (index, &value) in values.iter().enumerate() {
            let begun = self.out.len();
            let kind = self.value(value)?;
            entry(&mut self.out, names.len() + index, begun, kind);
        }
        Some(())
    }

    /// Numbers and containers begin at multiples of four; what is skipped counts as theirs.
    fn align(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str) -> Option<Vec<u8>> {
        let json: &RawValue = serde_json::from_str(text).unwrap();
        // Stands for a numeric of five bytes, of what is not plain.
        encode(json, &mut |number, out| out.extend(number.bytes().chain(*b"#####").take(5)))
    }

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn what_only_jsonb_in_can_judge_is_left_to_it() {
        let deep = "[".repeat(MAX_DEPTH + 1) + &"]".repeat(MAX_DEPTH + 1);
        for text in [r#""\u0000""#, r#"{"\u0000":1}"#, r#"[{"a": "\ud800"}]"#, r#"{"a": [1e131072]}"#, &deep] {
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
            (r#"[0.5e131073, 0e-16384, 0e1073741823]"#, r#"["0.5e131073", "0e-16384", "0e1073741823"]"#),
        ] {
            assert_eq!(tamed(text).as_deref(), Some(expected), "{text}");
        }
        let long = "9".repeat(131_072);
        for text in [
            r#"{"a": "\\u0000", "b": "\ud83d\udeb2", "1e999999": "1e999999"}"#,
            "[1e131071, 1e-16383, -0.5, 12E3]",
            "[0e200000, -0.0e200000, 0.5e131072, 0.05e131073, 0e1073741822, 0e-16383]",
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
        let bytes = encoded(r#"{"bb": [true, null], "a": 1, "a": "x\n", "cc": 2e0}"#).unwrap();
        let word = words(&bytes);
        // a, bb, cc; then their values: a string of 2, padded to an array of two entries, a number that is padded.
        assert_eq!(word[1], OBJECT | 3);
        assert_eq!(&word[2..8], [HAS_OFFSET | 1, 2, 2, 2, CONTAINER | (1 + 12), NUMERIC | 5]);
        assert_eq!(&bytes[32..39], b"abbccx\n");
        assert_eq!(words(&bytes[40..52]), [ARRAY | 2, HAS_OFFSET | TRUE, NULL]);
        assert_eq!(&bytes[52..], b"2e0##");
    }

    /// The header and the digits; that numeric_in() makes the same is seen by a test on a server.
    #[test]
    fn plain_numbers_are_numerics_of_the_short_form() {
        let parts = |number: &str| {
            let mut out = Vec::new();
            plain_numeric(number, &mut out)?;
            Some(out[4..].chunks(2).map(|word| u16::from_ne_bytes([word[0], word[1]])).collect::<Vec<u16>>())
        };
        assert_eq!(parts("0"), Some(vec![0x8000]));
        assert_eq!(parts("-0.00"), Some(vec![0x8100]));
        assert_eq!(parts("-12345.6"), Some(vec![0xA081, 1, 2345, 6000]));
        assert_eq!(parts("10000"), Some(vec![0x8001, 1]));
        assert_eq!(parts("0.00001"), Some(vec![0x82FE, 1000]));
        for left in ["1e3", "1E-7", &"1".repeat(33), &format!("0.{}", "1".repeat(33))] {
            assert_eq!(parts(left), None, "{left}");
        }
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
