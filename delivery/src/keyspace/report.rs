//! What an administrator wants to know: who feeds a keyspace, how the server is set up, many values at once.

use redis::Value;

use super::RedisTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::ownership::{CONTROL_KEY_PREFIX, Owner};

impl RedisTarget {
    /// Who feeds the target of that name; `None` if nobody says so.
    pub fn owner(&mut self, target: &str) -> Result<Option<Owner>> {
        let text = self.get(&format!("{CONTROL_KEY_PREFIX}{target}"))?;
        text.map(|text| {
            serde_json::from_slice(&text).map_err(|error| {
                Error::new(ErrorKind::Conflict, "the control key was not written by pg_fanout").with_source(error)
            })
        })
        .transpose()
    }

    /// A field of `INFO section`; `None` if the server does not tell.
    pub fn info(&mut self, section: &str, field: &str) -> Result<Option<String>> {
        let text: String = self.query(redis::cmd("INFO").arg(section))?;
        Ok(text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .map(|value| value.trim().to_owned()))
    }

    /// `HGETALL` of each key in one pipeline, fields in the server's order; `None` where there is no such key, no fields where
    /// it is no hash.
    #[allow(clippy::type_complexity)]
    pub fn hashes(&mut self, keys: &[&str]) -> Result<Vec<Option<Vec<(String, String)>>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("HGETALL").arg(key);
        }
        // An error of one key is that key's own: a WRONGTYPE must not hide the others.
        pipeline.ignore_errors();
        let replies: Vec<Value> = self.pipeline(&pipeline)?;
        if replies.len() != keys.len() {
            return Err(Error::new(ErrorKind::Protocol, "the replies are not as many as the commands"));
        }
        Ok(replies.iter().map(fields).collect())
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
