//! The `cursor` column: where a page ended, as opaque text for the argument `after`.

use serde_json::value::RawValue;

/// Makes the cursors of the rows that a search gives, each from its sort values (a JSON array).
pub struct Encoder {
    mark: String,
}

impl Encoder {
    /// For rows in this order.
    pub fn new(order: &str) -> Encoder {
        Encoder { mark: format!("{:08x}", fingerprint(order)) }
    }

    /// The cursor of a row.
    pub fn encode(&self, values: &str) -> String {
        let plain = [self.mark.as_bytes(), values.as_bytes()].concat();
        let mut text = vec![0; 4 * plain.len().div_ceil(3)];
        for (chunk, letters) in plain.chunks(3).zip(text.chunks_exact_mut(4)) {
            let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
            let word = byte(0) << 16 | byte(1) << 8 | byte(2);
            for (at, letter) in letters.iter_mut().enumerate() {
                *letter = ALPHABET[(word >> (18 - 6 * at)) as usize & 63];
            }
        }
        // Of the last bytes only as many letters as they fill.
        text.truncate((4 * plain.len()).div_ceil(3));
        // All of it is of ALPHABET.
        String::from_utf8(text).unwrap_or_default()
    }
}

/// The sort values in a cursor, as a JSON array; the error says what is wrong.
pub fn decode(order: &str, cursor: &str) -> Result<String, &'static str> {
    const FOREIGN: &str = "it is not a value of the column \"cursor\"";
    let mut plain = Vec::with_capacity(cursor.len());
    for chunk in cursor.as_bytes().chunks(4) {
        let mut word = 0_u32;
        for (at, letter) in chunk.iter().enumerate() {
            let digit = ALPHABET.iter().position(|known| known == letter).ok_or(FOREIGN)?;
            word |= (digit as u32) << (18 - 6 * at);
        }
        plain.extend((1..chunk.len()).map(|at| (word >> (24 - 8 * at)) as u8));
    }
    let plain = String::from_utf8(plain).map_err(|_| FOREIGN)?;
    let (mark, values) = plain.split_at_checked(8).ok_or(FOREIGN)?;
    let mark = u32::from_str_radix(mark, 16).map_err(|_| FOREIGN)?;
    if serde_json::from_str::<Vec<&RawValue>>(values).map_or(0, |values| values.len()) == 0 {
        return Err(FOREIGN);
    }
    if mark != fingerprint(order) {
        return Err("it comes from a search with another sort order");
    }
    Ok(values.to_owned())
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// FNV-1a: tells one sort order from another, across versions and machines.
fn fingerprint(order: &str) -> u32 {
    order.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(order: &str, values: &str) -> String {
        Encoder::new(order).encode(values)
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for values in ["[1.5,42]", "[\"é\"]", "[null]", "[9223372036854775807,\"x\",0.1]", "[ 12 ]"] {
            let cursor = encode("order", values);
            assert!(cursor.bytes().all(|letter| ALPHABET.contains(&letter)));
            assert_eq!(decode("order", &cursor).as_deref(), Ok(values));
        }
    }

    #[test]
    fn another_order_and_other_texts_are_refused() {
        assert!(decode("other", &encode("order", "[1]")).is_err());
        for text in
            ["", "x", "!!!!", "AAAA", "0123456789abcdef", "日本", &encode("order", "{}"), &encode("order", "[]")]
        {
            assert!(decode("order", text).is_err(), "{text}");
        }
    }
}
