//! Document ids: readable, and never the same for two different keys.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::escape;

/// Engines refuse ids over 512 bytes, and with them the whole bulk request.
pub const MAX_ID_BYTES: usize = 512;

/// The id of the document whose key columns have these values (as text; `None` is NULL). Never empty, at most
/// [`MAX_ID_BYTES`] long, and different for any two different keys of the same number of columns.
///
/// | key | id |
/// | --- | --- |
/// | one column | the text itself, `%` as `%25`: `h.id = p.sku` holds wherever there is no `%` |
/// | several | each escaped, joined by `:` |
/// | NULL, the empty text | `%N`, `%E` |
/// | over 512 bytes | `%H` and the SHA-256 of what it would be |
///
/// ```
/// use delivery::id::document_id;
/// assert_eq!(document_id(&[Some("a:b")]), "a:b");
/// assert_eq!(document_id(&[Some("a:b"), Some("7"), None]), "a%3Ab:7:%N");
/// ```
pub fn document_id(values: &[Option<&str>]) -> String {
    let id = match values {
        [] => escape::EMPTY.to_owned(),
        [None] => escape::NULL.to_owned(),
        [Some("")] => escape::EMPTY.to_owned(),
        [Some(text)] => text.replace('%', "%25"),
        _ => {
            let mut id = String::with_capacity(values.len() * 16);
            for (n, value) in values.iter().enumerate() {
                if n > 0 {
                    id.push(':');
                }
                escape::push(&mut id, *value);
            }
            id
        }
    };
    if id.len() <= MAX_ID_BYTES { id } else { hashed(&id) }
}

/// `%H` begins no other id: a `%` of ours is followed by a digit, `E` (then nothing, or a digit) or `N`.
fn hashed(id: &str) -> String {
    let mut text = String::with_capacity(2 + 64);
    text.push_str("%H");
    for byte in Sha256::digest(id.as_bytes()) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Whether an id is the hash of a longer one: of whose key it tells nothing.
pub fn is_hashed(id: &str) -> bool {
    id.strip_prefix("%H")
        .is_some_and(|hash| hash.len() == 64 && hash.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f')))
}

/// The values that [`document_id`] made `id` from; `None` if it can't have been made from `columns` values, or is a hash.
pub fn parse_document_id(id: &str, columns: usize) -> Option<Vec<Option<String>>> {
    if id.is_empty() || id.len() > MAX_ID_BYTES {
        return None;
    }
    if columns == 1 {
        let value = match id {
            escape::NULL => None,
            escape::EMPTY => Some(String::new()),
            _ => {
                // Every % must be the one of "%25".
                if id.matches('%').count() != id.matches("%25").count() {
                    return None;
                }
                Some(id.replace("%25", "%"))
            }
        };
        return Some(vec![value]);
    }
    let values: Vec<Option<String>> = id.split(':').map(escape::parse).collect::<Option<_>>()?;
    (values.len() == columns).then_some(values)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(columns: usize) -> impl Strategy<Value = Vec<Option<String>>> {
        // Few characters, all of them awkward, so that collisions have a chance.
        let text = prop_oneof!["[%:ENH25a{}é\\\\\u{2028}\n ]{0,4}", any::<String>(), "[a%é]{250,520}",];
        proptest::collection::vec(proptest::option::weighted(0.9, text), columns)
    }

    fn id_of(values: &[Option<String>]) -> String {
        document_id(&values.iter().map(Option::as_deref).collect::<Vec<_>>())
    }

    #[test]
    fn ids_are_readable() {
        assert_eq!(document_id(&[Some("SKU 1/2")]), "SKU 1/2");
        assert_eq!(document_id(&[Some("100%")]), "100%25");
        assert_eq!(document_id(&[Some("")]), "%E");
        assert_eq!(document_id(&[None]), "%N");
        assert_eq!(document_id(&[Some("E"), Some("%E")]), "E:%25E");
        assert_eq!(document_id(&[Some("Zürich"), Some("a b")]), "Zürich:a%20b");
    }

    #[test]
    fn long_ids_are_hashed() {
        let long = "x".repeat(513);
        let id = document_id(&[Some(&long)]);
        assert_eq!(id.len(), 66);
        assert!(is_hashed(&id));
        for other in ["", "%H", &id[..65], &format!("{id}0"), &id.to_uppercase(), &id[2..], "%25H", "%Hérable"] {
            assert!(!is_hashed(other), "{other}");
        }
        assert_eq!(parse_document_id(&id, 1), None);
        assert_eq!(document_id(&[Some(&long[1..])]).len(), 512);
    }

    proptest! {
        #[test]
        fn different_keys_have_different_ids(
            (a, b) in (1usize..4).prop_flat_map(|columns| (key(columns), key(columns)))
        ) {
            prop_assert_eq!(a == b, id_of(&a) == id_of(&b));
        }

        #[test]
        fn an_id_is_parsed_back(values in (1usize..4).prop_flat_map(key)) {
            let id = id_of(&values);
            prop_assert!(!id.is_empty() && id.len() <= MAX_ID_BYTES);
            if !is_hashed(&id) {
                prop_assert_eq!(parse_document_id(&id, values.len()), Some(values));
            }
        }

        #[test]
        fn what_is_parsed_was_written_so(id in "[%:ENH25a ]{0,12}", columns in 1usize..4) {
            if let Some(values) = parse_document_id(&id, columns) {
                prop_assert_eq!(id_of(&values), id);
            }
        }
    }
}
