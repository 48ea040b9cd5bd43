//! Redis, looked at from behind the extension's back.

use crate::environment::variable;
use redis::{Commands, Connection};
use serde_json::{Map, Value};

/// The Redis of the stack, or a Redis Cluster.
pub struct Keyspace {
    connection: Connection,
    /// Of a cluster: the other nodes. What asks for one key asks the first alone.
    others: Vec<Connection>,
}

impl Keyspace {
    /// Connects.
    pub fn open() -> Self {
        let url = variable("REDIS_URL");
        let connection = redis::Client::open(url.as_str())
            .and_then(|client| client.get_connection())
            .unwrap_or_else(|error| panic!("cannot connect to {url}: {error}; are the servers of stack/ up?"));
        Self { connection, others: Vec::new() }
    }

    /// Connects to each primary of the cluster that a node at one of these URLs, between commas, belongs to.
    pub fn of_cluster(urls: &str) -> Self {
        let connect = |url: &str| redis::Client::open(url).and_then(|client| client.get_connection());
        let mut first = urls.split(',').find_map(|url| connect(url.trim()).ok()).expect("a node that answers");
        // From a slot to a slot, and the node: host, port, id, in later versions more.
        type Range = (u16, u16, Vec<redis::Value>);
        let slots: Vec<Range> = redis::cmd("CLUSTER").arg("SLOTS").query(&mut first).expect("CLUSTER SLOTS");
        let url = |(_, _, node): Range| {
            let text = |value: &redis::Value| redis::from_redis_value::<String>(value.clone()).expect("a host, a port");
            format!("redis://{}:{}", text(&node[0]), text(&node[1]))
        };
        let mut nodes: Vec<String> = slots.into_iter().map(url).collect();
        nodes.sort();
        nodes.dedup();
        let mut nodes = nodes.iter().map(|url| connect(url).unwrap_or_else(|error| panic!("{url}: {error}")));
        Self { connection: nodes.next().expect("a node with slots"), others: nodes.collect() }
    }

    fn nodes(&mut self) -> impl Iterator<Item = &mut Connection> {
        std::iter::once(&mut self.connection).chain(&mut self.others)
    }

    /// All keys that begin with `prefix`, sorted.
    pub fn keys(&mut self, prefix: &str) -> Vec<String> {
        let mut keys = self.matching(&format!("{}*", literal(prefix)));
        keys.sort();
        keys
    }

    fn matching(&mut self, pattern: &str) -> Vec<String> {
        let mut keys: Vec<String> = self.nodes().flat_map(|node| matching(node, pattern)).collect();
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
        object(fields)
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
        for (key, text) in self.held::<Option<String>>(prefix, "GET") {
            // A key may have expired or gone since it was listed.
            let Some(text) = text else { continue };
            found.push((key, serde_json::from_str(&text).unwrap_or(Value::String(text))));
        }
        found
    }

    /// All keys that begin with `prefix`, with the hash that each holds.
    pub fn hashes(&mut self, prefix: &str) -> Vec<(String, Value)> {
        let hashes = self.held::<Vec<(String, String)>>(prefix, "HGETALL").into_iter();
        hashes.map(|(key, fields)| (key, Value::Object(object(fields)))).collect()
    }

    /// What a command says of each key that begins with `prefix`, asked where the key is.
    fn held<T: redis::FromRedisValue>(&mut self, prefix: &str, command: &str) -> Vec<(String, T)> {
        let pattern = format!("{}*", literal(prefix));
        let mut found = Vec::new();
        for node in self.nodes() {
            for chunk in matching(node, &pattern).chunks(1000) {
                let mut pipeline = redis::pipe();
                chunk.iter().for_each(|key| {
                    pipeline.cmd(command).arg(key);
                });
                let values: Vec<T> = pipeline.query(node).unwrap_or_else(|error| panic!("{command}: {error}"));
                found.extend(chunk.iter().cloned().zip(values));
            }
        }
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        found
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

fn object(fields: Vec<(String, String)>) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name, Value::String(value))).collect()
}

/// The keys of a node, sorted, each once.
fn matching(node: &mut Connection, pattern: &str) -> Vec<String> {
    let found = node.scan_match::<_, String>(pattern).expect("SCAN");
    let mut keys: Vec<String> = found.map(|key| key.expect("a key in UTF-8")).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Text as a pattern that matches only it.
fn literal(text: &str) -> String {
    let escaped = text.chars().map(|c| if "*?[]\\^".contains(c) { format!("\\{c}") } else { c.to_string() });
    escaped.collect()
}
