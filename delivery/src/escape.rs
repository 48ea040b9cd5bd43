//! Escaping of values that stand beside separators, in ids of several columns and in Redis keys.

use std::fmt::Write;

/// Stands for NULL. No escaped value contains it: after a `%` they have two hexadecimal digits, and `N` is none.
pub(crate) const NULL: &str = "%N";

/// Stands for the empty text, for which there would be nothing to see. (`E` is a digit, but one alone is no escape.)
pub(crate) const EMPTY: &str = "%E";

/// Whether a value never shows this character, so that it may separate values. `%` is escaped too but does appear, as
/// the beginning of an escape.
pub(crate) fn separates(character: char) -> bool {
    character != '%' && is_escaped(character)
}

/// `{`, `}` make Redis Cluster hash tags, `*?[]\` are special in `SCAN … MATCH`, the others separate or can't be seen.
fn is_escaped(character: char) -> bool {
    matches!(character, '%' | ':' | '/' | '{' | '}' | '"' | '\'' | '\\' | '*' | '?' | '[' | ']' | ',' | '|')
        || character.is_whitespace()
        || character.is_control()
}

/// Appends a value.
pub(crate) fn push(out: &mut String, value: Option<&str>) {
    match value {
        None => out.push_str(NULL),
        Some("") => out.push_str(EMPTY),
        Some(text) => {
            let mut rest = text;
            while let Some(at) = rest.find(is_escaped) {
                out.push_str(&rest[..at]);
                let length = rest[at..].chars().next().map_or(1, char::len_utf8);
                for byte in rest[at..at + length].bytes() {
                    // Writing to a String can't fail.
                    let _ = write!(out, "%{byte:02X}");
                }
                rest = &rest[at + length..];
            }
            out.push_str(rest);
        }
    }
}

/// The value that [`push`] wrote as `text`; `None` if it wrote no such text.
pub(crate) fn parse(text: &str) -> Option<Option<String>> {
    match text {
        "" => return None,
        NULL => return Some(None),
        EMPTY => return Some(Some(String::new())),
        _ => {}
    }
    let value = percent_encoding::percent_decode_str(text).decode_utf8().ok()?.into_owned();
    // Decoding is lenient (lower-case digits, a lone %); only the one spelling that we write is ours.
    let mut again = String::with_capacity(text.len());
    push(&mut again, Some(&value));
    (again == text).then_some(Some(value))
}
