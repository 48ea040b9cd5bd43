//! Names: of syncs, of indices, of the triggers on a source.

use crate::error::{Failure, failure};
use pgrx::PgSqlErrorCode;

/// What PostgreSQL leaves of an identifier (NAMEDATALEN - 1).
const IDENTIFIER_BYTES: usize = 63;

/// Engines allow 255 bytes; the concrete index behind the name ends in `-fanout-<generation>`.
const INDEX_BYTES: usize = 200;

/// Fails unless a sync may be called that.
pub fn check_sync_name(name: &str) -> Result<(), Failure> {
    let problem = if name.is_empty() {
        "it is empty"
    } else if name.len() > IDENTIFIER_BYTES {
        "it is longer than 63 bytes"
    } else if name.chars().any(char::is_control) {
        "it contains a control character"
    } else {
        return Ok(());
    };
    Err(failure(PgSqlErrorCode::ERRCODE_INVALID_NAME, format!("invalid sync name: {problem}"))
        .hint("Give another: name => '…', of 1 to 63 bytes without control characters."))
}

/// What a target is called in fanout.status that the sync of that name had before.
pub fn former_name(sync: &str, number: u32) -> String {
    let suffix = format!("_former_{number}");
    let room = IDENTIFIER_BYTES - suffix.len();
    let end = (0..=room.min(sync.len())).rev().find(|&end| sync.is_char_boundary(end)).unwrap_or_default();
    format!("{}{suffix}", &sync[..end])
}

/// Why engines would refuse an index of that name, if they would.
pub fn index_name_problem(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("it is empty".to_owned());
    }
    if name.len() > INDEX_BYTES {
        return Some(format!("it is longer than {INDEX_BYTES} bytes"));
    }
    if name == "." || name == ".." {
        return Some("it must not be \".\" or \"..\"".to_owned());
    }
    if name == delivery::ownership::CONTROL_INDEX {
        return Some("pg_fanout keeps its own notes in the index of that name".to_owned());
    }
    if ends_as_ours(name) {
        return Some("pg_fanout itself calls what is behind an alias so".to_owned());
    }
    if name.starts_with(['-', '_', '+']) {
        return Some("it must not begin with \"-\", \"_\" or \"+\"".to_owned());
    }
    if let Some(character) = name.chars().find(|character| r#"\/*?"<>|,#:"#.contains(*character)) {
        return Some(format!("it must not contain {character}"));
    }
    if name.chars().any(|character| character.is_whitespace() || character.is_control()) {
        return Some("it must not contain spaces or control characters".to_owned());
    }
    if name.to_lowercase() != name {
        return Some("it must be in lower case".to_owned());
    }
    None
}

/// Whether it ends as the concrete index, or the alias of all those of a generation, does.
fn ends_as_ours(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.rsplit_once("-fanout-").is_some_and(|(_, generation)| digits(generation))
}

/// Fails unless engines allow an index of that name.
pub fn check_index_name(name: &str) -> Result<(), Failure> {
    match index_name_problem(name) {
        None => Ok(()),
        Some(problem) => {
            Err(failure(PgSqlErrorCode::ERRCODE_INVALID_NAME, format!("invalid index name \"{name}\": {problem}"))
                .hint("Give another: index => '…', for example 'shop-products'."))
        }
    }
}

/// Why a column of that name can't be a field of a document, if it can't: engines refuse each document with it.
pub fn field_name_problem(name: &str) -> Option<&'static str> {
    /// Fields that engines keep for themselves.
    const METADATA: &[&str] = &[
        "_id",
        "_index",
        "_source",
        "_routing",
        "_ignored",
        "_field_names",
        "_seq_no",
        "_version",
        "_primary_term",
        "_nested_path",
        "_type",
        "_tier",
        "_size",
    ];
    if METADATA.contains(&name) {
        Some("engines use that name for themselves")
    } else if name.trim().is_empty() || name.split('.').any(|part| part.trim().is_empty()) {
        Some("engines take dots for a path, and one of its parts is empty")
    } else {
        None
    }
}

/// The names of the row trigger and the TRUNCATE trigger of a sync, or of one of its relations.
pub fn trigger_names(sync: &str, relation: Option<i32>) -> (String, String) {
    let suffix = relation.map(|relation| format!("_{relation}")).unwrap_or_default();
    let longest = "fanout__truncate".len() + suffix.len();
    let stem = if sync.len() + longest <= IDENTIFIER_BYTES {
        sync.to_owned()
    } else {
        // Shortened names stay different by a hash of the whole.
        let mut end = IDENTIFIER_BYTES - longest - 9;
        while !sync.is_char_boundary(end) {
            end -= 1;
        }
        format!("{}_{:08x}", &sync[..end], fnv1a(sync))
    };
    (format!("fanout_{stem}{suffix}"), format!("fanout_{stem}{suffix}_truncate"))
}

/// FNV-1a: a hash that stays the same in every version, since names made with it are kept in databases.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
