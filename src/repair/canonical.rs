//! Whether two JSON texts say the same: the order of members, and how numbers and strings are written, do not matter. Pure.
//!
//! Numbers are compared as decimal texts, not as floating point: 17 digits that differ in the last are a difference.

use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// True if both texts say the same.
pub fn same(left: &[u8], right: &[u8]) -> bool {
    left == right
        || match (serde_json::from_slice(left), serde_json::from_slice(right)) {
            (Ok(left), Ok(right)) => same_value(left, right),
            _ => false,
        }
}

/// The members of two objects that are not the same, in order. Empty if the texts are not objects.
pub fn different_members(left: &[u8], right: &[u8]) -> Vec<String> {
    let parse = |text| serde_json::from_slice::<BTreeMap<String, &RawValue>>(text).ok();
    let (Some(left), Some(right)) = (parse(left), parse(right)) else { return Vec::new() };
    let differs = |name: &&String| match (left.get(*name), right.get(*name)) {
        (Some(left), Some(right)) => !same_value(left, right),
        _ => true,
    };
    let mut names: Vec<&String> = left.keys().chain(right.keys()).filter(differs).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().cloned().collect()
}

fn same_value(left: &RawValue, right: &RawValue) -> bool {
    let (left, right) = (left.get(), right.get());
    if left == right {
        return true;
    }
    match (left.as_bytes().first(), right.as_bytes().first()) {
        (Some(b'{'), Some(b'{')) => {
            let parse = |text| serde_json::from_str::<BTreeMap<String, &RawValue>>(text).ok();
            let (Some(left), Some(right)) = (parse(left), parse(right)) else { return false };
            left.len() == right.len()
                && left.iter().zip(&right).all(|(left, right)| left.0 == right.0 && same_value(left.1, right.1))
        }
        (Some(b'['), Some(b'[')) => {
            let parse = |text| serde_json::from_str::<Vec<&RawValue>>(text).ok();
            let (Some(left), Some(right)) = (parse(left), parse(right)) else { return false };
            left.len() == right.len() && left.iter().zip(&right).all(|(left, right)| same_value(left, right))
        }
        (Some(b'"'), Some(b'"')) => {
            let parse = |text| serde_json::from_str::<String>(text).ok();
            parse(left).is_some_and(|left| parse(right) == Some(left))
        }
        (Some(b'-' | b'0'..=b'9'), Some(b'-' | b'0'..=b'9')) => decimal(left) == decimal(right),
        _ => false,
    }
}

/// A number as sign, digits without zeros at either end, and the power of ten of the last digit.
fn decimal(text: &str) -> (bool, String, i64) {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let trimmed = digits.trim_end_matches('0');
    let significant = trimmed.trim_start_matches('0');
    if significant.is_empty() {
        return (false, String::new(), 0);
    }
    let exponent = exponent.parse::<i64>().unwrap_or(i64::MAX / 2);
    let power = exponent - fraction.len() as i64 + (digits.len() - trimmed.len()) as i64;
    (negative, significant.to_owned(), power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_the_same() {
        for (left, right) in [
            (r#"{"a":1,"b":[1.50,"é"]}"#, r#"{ "b" : [15e-1, "\u00e9"], "a" : 1.0 }"#),
            ("0", "-0.00"),
            ("1200", "12E2"),
            ("123456789012345678901234567890.10", "123456789012345678901234567890.1"),
        ] {
            assert!(same(left.as_bytes(), right.as_bytes()), "{left} {right}");
        }
    }

    #[test]
    fn what_does_not() {
        for (left, right) in [
            (r#"{"a":1}"#, r#"{"a":1,"b":null}"#),
            ("12345678901234567", "12345678901234568"),
            ("0.1", "0.10000000000000001"),
            ("1", "-1"),
            ("1", "\"1\""),
            ("[1,2]", "[2,1]"),
            ("true", "false"),
        ] {
            assert!(!same(left.as_bytes(), right.as_bytes()), "{left} {right}");
        }
    }

    #[test]
    fn members_that_differ() {
        let (left, right) = (br#"{"a":1,"b":2,"c":3}"#, br#"{"a":1.0,"b":3,"d":4}"#);
        assert_eq!(different_members(left, right), ["b", "c", "d"]);
    }
}
