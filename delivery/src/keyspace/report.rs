//! What an administrator wants to know: who feeds a keyspace, how the server is set up, many values at once.

use redis::Value;

use super::RedisTarget;
use super::control::control_key;
use crate::error::{Error, ErrorKind, Result};
use crate::ownership::Owner;

impl RedisTarget {
    /// Who feeds the target of that name; `None` if nobody says so.
    pub fn owner(&mut self, target: &str) -> Result<Option<Owner>> {
        let text = self.get(&control_key(target))?;
        text.map(|text| {
            serde_json::from_slice(&text).map_err(|error| {
                Error::new(ErrorKind::Conflict, "the control key was not written by pg_fanout").with_source(error)
            })
        })
        .transpose()
    }

    /// A field of `INFO section`, of each node of a cluster; none of a server that does not tell.
    pub fn info(&mut self, section: &str, field: &str) -> Result<Vec<String>> {
        self.probe()?;
        let mut values = Vec::new();
        for (_, node) in &mut self.nodes {
            let text: String = node.query(redis::cmd("INFO").arg(section))?;
            let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            values.extend(value.map(|value| value.trim().to_owned()));
        }
        Ok(values)
    }

    /// `HGETALL` of each key in one pipeline, fields in the server's order; `None` where there is no such key, no fields where
    /// it is no hash.
    #[allow(clippy::type_complexity)]
    pub fn hashes(&mut self, keys: &[&str]) -> Result<Vec<Option<Vec<(String, String)>>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.each("HGETALL", keys)?.iter().map(fields).collect())
    }
}

fn fields(reply: &Value) -> Option<Vec<(String, String)>> {
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    };
    let fields: Vec<(String, String)> = match reply {
        Value::Array(items) => {
            items.chunks_exact(2).map(|pair| Some((text(&pair[0])?, text(&pair[1])?))).collect::<Option<_>>()?
        }
        Value::Map(pairs) => {
            pairs.iter().map(|(name, value)| Some((text(name)?, text(value)?))).collect::<Option<_>>()?
        }
        // Something else than a hash is there.
        _ => return Some(Vec::new()),
    };
    (!fields.is_empty()).then_some(fields)
}
