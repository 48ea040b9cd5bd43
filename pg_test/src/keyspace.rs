//! Redis, looked at from behind the extension's back.

use crate::environment::variable;
use redis::{Commands, Connection};
use serde_json::{Map, Value};

/// A connection to the Redis of the stack.
pub struct Keyspace {
    connection: Connection,
}

impl Keyspace {
    /// Connects.
    pub fn open() -> Self {
        let url = variable("REDIS_URL");
        let connection = redis::Client::open(url.as_str())
            .and_then(|client| client.get_connection())
            .unwrap_or_else(|error| panic!("cannot connect to {url}: {error}; are the servers of stack/ up?"));
        Self { connection }
    }

    /// All keys that begin with `prefix`, sorted.
    pub fn keys(&mut self, prefix: &str) -> Vec<String> {
        let mut keys = self.matching(&format!("{}*", literal(prefix)));
        keys.sort();
        keys
    }

    fn matching(&mut self, pattern: &str) -> Vec<String> {
        let found = self.connection.scan_match::<_, String>(pattern).expect("SCAN");
        let mut keys: Vec<String> = found.map(|key| key.expect("a key in UTF-8")).collect();
        // SCAN may return a key twice.
        keys.sort();
        keys.dedup();
        keys
    }

    /// The text of a key.
    pub fn get(&mut self, key: &str) -> Option<String> {
        self.connection.get(key).unwrap_or_else(|error| panic!("GET {key}: {error}"))
    }

    /// The fields of a hash; empty if there is no such key.
    pub fn hash(&mut self, key: &str) -> Map<String, Value> {
        let fields: Vec<(String, String)> =
            self.connection.hgetall(key).unwrap_or_else(|error| panic!("HGETALL {key}: {error}"));
        fields.into_iter().map(|(name, value)| (name, Value::String(value))).collect()
    }

    /// Milliseconds until the key expires; negative as Redis' PTTL says it: -1 never, -2 no such key.
    pub fn ttl_ms(&mut self, key: &str) -> i64 {
        self.connection.pttl(key).unwrap_or_else(|error| panic!("PTTL {key}: {error}"))
    }

    /// Sets a key.
    pub fn set(&mut self, key: &str, value: &str) {
        self.connection.set::<_, _, ()>(key, value).unwrap_or_else(|error| panic!("SET {key}: {error}"));
    }

    /// All keys that begin with `prefix`, with the JSON that each holds.
    pub fn json(&mut self, prefix: &str) -> Vec<(String, Value)> {
        let mut found = Vec::new();
        let keys = self.keys(prefix);
        for chunk in keys.chunks(1000) {
            let values: Vec<Option<String>> = self.connection.mget(chunk).expect("MGET");
            for (key, value) in chunk.iter().zip(values) {
                // A key may have expired or gone since it was listed.
                let Some(text) = value else { continue };
                let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
                found.push((key.clone(), value));
            }
        }
        found
    }

    /// All keys that begin with `prefix`, with the hash that each holds.
    pub fn hashes(&mut self, prefix: &str) -> Vec<(String, Value)> {
        let keys = self.keys(prefix);
        keys.into_iter().map(|key| (key.clone(), Value::Object(self.hash(&key)))).collect()
    }

    /// Removes every key that begins with `prefix`.
    pub fn remove(&mut self, prefix: &str) {
        for key in self.keys(prefix) {
            self.connection.del::<_, ()>(&key).expect("DEL");
        }
    }

    /// Removes every key whose name contains `part`: the tests' own and the control keys that name them.
    pub fn clean(&mut self, part: &str) {
        for key in self.matching(&format!("*{}*", literal(part))) {
            self.connection.del::<_, ()>(&key).expect("DEL");
        }
    }
}

/// Text as a pattern that matches only it.
fn literal(text: &str) -> String {
    let escaped = text.chars().map(|c| if "*?[]\\^".contains(c) { format!("\\{c}") } else { c.to_string() });
    escaped.collect()
}
