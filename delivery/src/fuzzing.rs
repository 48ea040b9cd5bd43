//! What reads bytes of others, each as a function of bytes: for the targets of `fuzz/`, and for the test that replays their
//! seeds. A function panics where what must always be true is not.

use crate::bulk::{BulkBuilder, BulkOutcome, parse_bulk_response};
use crate::config::{EngineConfig, RedisConfig};
use crate::engine::parse_search_replies;
use crate::error::{Error, ErrorKind};
use crate::id::{document_id, is_hashed, parse_document_id};
use crate::keyspace::RedisBatch;
use crate::template::KeyTemplate;

/// Reads the reply to a bulk request of up to seven actions; the first byte says how many, the second which delete.
pub fn bulk_reply(data: &[u8]) {
    let [count, deletes, reply @ ..] = data else { return };
    let mut builder = BulkBuilder::new("i");
    for slot in 0..u32::from(count % 8) {
        let id = format!("{}", char::from(b'a' + slot as u8));
        if deletes >> slot & 1 == 1 {
            builder.push_delete(slot, &id, 1);
        } else {
            builder.push_index(slot, &id, 1, b"{}");
        }
    }
    let body = builder.finish();
    let Ok(outcomes) = parse_bulk_response(reply, &body) else { return };
    assert!(outcomes.iter().map(|&(slot, _)| slot).eq(0..u32::from(count % 8)), "each action has its outcome");
    for (_, outcome) in outcomes {
        if let BulkOutcome::Rejected { reason, .. } | BulkOutcome::Retry { reason, .. } = outcome {
            assert!(reason.len() <= crate::error::MAX_REASON_BYTES);
        }
    }
}

/// Reads the reply to a search, and to a scan.
pub fn search_reply(data: &[u8]) {
    parse_search_replies(data);
}

/// Reads replies of Redis: to a batch of a string, a deletion and a hash, and to each command that has one.
pub fn redis_replies(data: &[u8]) {
    let mut batch = RedisBatch::new();
    batch.push_set(0, "a", b"v", Some(5));
    batch.push_delete(1, "b");
    batch.push_hash(2, "c", &[("f", "v"), ("g", "")], Some(0));
    let mut parser = redis::Parser::new();
    let mut input = std::io::Cursor::new(data);
    let next =
        || parser.parse_value(&mut input).map_err(|_| Error::new(ErrorKind::ConnectionLost, "the bytes have ended"));
    if let Ok(outcomes) = batch.read_outcomes(next) {
        assert!(outcomes.iter().map(|&(slot, _)| slot).eq(0..3), "each key has its outcome");
    }
    if let Ok(value) = redis::Parser::new().parse_value(data) {
        let _ = redis::from_redis_value::<Option<Vec<u8>>>(value.clone());
        let _ = redis::from_redis_value::<Vec<Option<Vec<u8>>>>(value.clone());
        let _ = redis::from_redis_value::<Vec<(String, String)>>(value.clone());
        let _ = redis::from_redis_value::<(u64, Vec<Vec<u8>>)>(value.clone());
        let _ = redis::from_redis_value::<i64>(value);
    }
}

/// Reads a template, and after a line feed a key and values, split at tabs; then a document's id.
pub fn key_template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let (template, key, values) = (lines.next().unwrap_or_default(), lines.next(), lines.next().unwrap_or_default());
    let values: Vec<Option<&str>> = values.split('\t').map(|value| (value != "\\N").then_some(value)).collect();
    let owned: Vec<Option<String>> = values.iter().map(|value| value.map(str::to_owned)).collect();
    let id = document_id(&values);
    if !is_hashed(&id) {
        assert_eq!(parse_document_id(&id, values.len()), Some(owned.clone()), "an id is read back");
    }
    if let Some(key) = key {
        for columns in 1..4 {
            if let Some(values) = parse_document_id(key, columns) {
                assert_eq!(document_id(&values.iter().map(Option::as_deref).collect::<Vec<_>>()), key);
            }
        }
    }
    let _ = KeyTemplate::parse_any(template);
    let Ok(template) = KeyTemplate::parse(template) else { return };
    if template.columns().len() == values.len() {
        assert_eq!(template.parse_key(&template.render(&values)), Some(owned), "a key is read back");
    }
    if let Some(values) = key.and_then(|key| template.parse_key(key)) {
        assert_eq!(Some(&*template.render(&values.iter().map(Option::as_deref).collect::<Vec<_>>())), key);
    }
}

/// Reads the URLs of servers, one a line.
pub fn server_options(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let urls: Vec<&str> = text.split('\n').collect();
    if let Ok(config) = EngineConfig::new(&urls) {
        assert_eq!(config.urls().len(), urls.len());
    }
    let _ = RedisConfig::cluster(&urls);
    for url in urls {
        let _ = RedisConfig::new(url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds of a target, and what fuzzing found that is worth keeping.
    fn replay(target: &str, run: fn(&[u8])) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
        let mut seeds = 0;
        for seed in std::fs::read_dir(folder).unwrap() {
            let bytes = std::fs::read(seed.unwrap().path()).unwrap();
            run(&bytes);
            // Cut off anywhere: that is how a lost connection looks.
            (0..bytes.len()).for_each(|end| run(&bytes[..end]));
            seeds += 1;
        }
        assert!(seeds > 0, "{target} has seeds");
    }

    #[test]
    fn the_seeds_of_fuzzing_are_read() {
        replay("bulk_reply", bulk_reply);
        replay("search_reply", search_reply);
        replay("redis_replies", redis_replies);
        replay("key_template", key_template);
        replay("server_options", server_options);
    }
}
