//! A pipeline of commands as bytes, and the outcome of each slot from the replies.

use std::ops::Range;

use redis::{ServerError, Value};

use crate::bulk::push_decimal;
use crate::error::{Error, ErrorKind, Result, bounded};

/// Builds a pipeline, encoded as it will be sent.
#[derive(Debug, Default)]
pub struct RedisBatch {
    pub(super) bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    slot: u32,
    expects: Expects,
    /// Where its commands begin.
    begins: usize,
    /// Where its key is.
    key: Range<usize>,
}

/// The replies that a slot gets when all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// Of SET: "OK".
    Okay,
    /// Of UNLINK: a number.
    Number,
    /// Of MULTI "OK", of each of so many commands "QUEUED", of EXEC an array of as many.
    Transaction(u8),
}

impl RedisBatch {
    /// An empty batch.
    pub fn new() -> RedisBatch {
        RedisBatch::default()
    }

    /// As [`RedisBatch::new`], with the memory of a batch that came back in a report.
    pub fn reuse(spent: RedisBatch) -> RedisBatch {
        let mut batch = spent;
        batch.bytes.clear();
        batch.entries.clear();
        batch
    }

    /// `SET`, with `PX` if `ttl_ms` is given (0 counts as 1).
    pub fn push_set(&mut self, slot: u32, key: &str, value: &[u8], ttl_ms: Option<u64>) {
        self.begin(slot, Expects::Okay);
        push_array(&mut self.bytes, if ttl_ms.is_some() { 5 } else { 3 });
        push_bulk(&mut self.bytes, b"SET");
        self.push_key(key);
        let out = &mut self.bytes;
        push_bulk(out, value);
        if let Some(ttl_ms) = ttl_ms {
            push_bulk(out, b"PX");
            push_number(out, ttl_ms.max(1));
        }
    }

    /// Replaces a hash: `DEL`, `HSET`, `PEXPIRE` in one `MULTI`, so that nobody sees it half done. Without fields the
    /// key is deleted: Redis has no empty hashes.
    pub fn push_hash(&mut self, slot: u32, key: &str, fields: &[(&str, &str)], ttl_ms: Option<u64>) {
        if fields.is_empty() {
            return self.push_delete(slot, key);
        }
        let commands = if ttl_ms.is_some() { 3 } else { 2 };
        self.begin(slot, Expects::Transaction(commands));
        let out = &mut self.bytes;
        push_array(out, 1);
        push_bulk(out, b"MULTI");
        push_array(out, 2);
        push_bulk(out, b"DEL");
        self.push_key(key);
        let out = &mut self.bytes;
        push_array(out, 2 + 2 * fields.len());
        push_bulk(out, b"HSET");
        push_bulk(out, key.as_bytes());
        for (field, value) in fields {
            push_bulk(out, field.as_bytes());
            push_bulk(out, value.as_bytes());
        }
        if let Some(ttl_ms) = ttl_ms {
            push_array(out, 3);
            push_bulk(out, b"PEXPIRE");
            push_bulk(out, key.as_bytes());
            push_number(out, ttl_ms.max(1));
        }
        push_array(out, 1);
        push_bulk(out, b"EXEC");
    }

    /// `UNLINK`: a `DEL` whose memory is freed in the background.
    pub fn push_delete(&mut self, slot: u32, key: &str) {
        self.begin(slot, Expects::Number);
        push_array(&mut self.bytes, 2);
        push_bulk(&mut self.bytes, b"UNLINK");
        self.push_key(key);
    }

    fn begin(&mut self, slot: u32, expects: Expects) {
        self.entries.push(Entry { slot, expects, begins: self.bytes.len(), key: 0..0 });
    }

    /// The key of what was begun last.
    fn push_key(&mut self, key: &str) {
        push_bulk(&mut self.bytes, key.as_bytes());
        let end = self.bytes.len() - "\r\n".len();
        if let Some(entry) = self.entries.last_mut() {
            entry.key = end - key.len()..end;
        }
    }

    /// The key of an entry.
    pub(super) fn key(&self, entry: usize) -> &[u8] {
        &self.bytes[self.entries[entry].key.clone()]
    }

    /// An entry as it is sent.
    pub(super) fn command(&self, entry: usize) -> &[u8] {
        let end = self.entries.get(entry + 1).map_or(self.bytes.len(), |next| next.begins);
        &self.bytes[self.entries[entry].begins..end]
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Size so far in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Reads the outcomes, one reply after the other from `next`.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn read_outcomes(&self, next: impl FnMut() -> Result<Value>) -> Result<Vec<(u32, RedisOutcome)>> {
        self.outcomes(self.read_refusals(next)?)
    }

    /// Reads what each entry was refused with, one reply after the other from `next`.
    pub(super) fn read_refusals(&self, mut next: impl FnMut() -> Result<Value>) -> Result<Vec<Option<ServerError>>> {
        (0..self.len()).map(|entry| self.read_refusal(entry, &mut next)).collect()
    }

    /// Reads what an entry was refused with, if it was.
    pub(super) fn read_refusal(
        &self,
        entry: usize,
        next: &mut impl FnMut() -> Result<Value>,
    ) -> Result<Option<ServerError>> {
        let expects = self.entries[entry].expects;
        if let Expects::Transaction(commands) = expects {
            return transaction(commands, next);
        }
        match (next()?, expects) {
            (Value::Okay, Expects::Okay) | (Value::Int(_), Expects::Number) => Ok(None),
            (Value::ServerError(error), _) => Ok(Some(error)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// What became of each slot, from what it was refused with.
    pub(super) fn outcomes(&self, refusals: Vec<Option<ServerError>>) -> Result<Vec<(u32, RedisOutcome)>> {
        let denied = refusals.iter().flatten().find(|error| is_denied(error.code()));
        if let Some(error) = denied {
            return Err(Error::new(ErrorKind::Unauthorized, format!("Redis refused: {}", text(error))));
        }
        let outcome = |refusal: Option<ServerError>| refusal.map_or(RedisOutcome::Done, |error| refused(&error));
        Ok(self.entries.iter().zip(refusals).map(|(entry, refusal)| (entry.slot, outcome(refusal))).collect())
    }
}

/// Reads all replies of a transaction; the error that explains best why it was not done.
fn transaction(commands: u8, next: &mut impl FnMut() -> Result<Value>) -> Result<Option<ServerError>> {
    let mut refusal = None;
    for _ in 0..=commands {
        match next()? {
            Value::Okay | Value::SimpleString(_) => {}
            Value::ServerError(error) => refusal = refusal.or(Some(error)),
            other => return Err(unexpected(&other)),
        }
    }
    match next()? {
        Value::Array(replies) => {
            for reply in replies {
                if let Value::ServerError(error) = reply {
                    refusal = refusal.or(Some(error));
                }
            }
        }
        // EXECABORT says only that an earlier reply says why.
        Value::ServerError(error) => refusal = refusal.or(Some(error)),
        other => return Err(unexpected(&other)),
    }
    Ok(refusal)
}

fn unexpected(value: &Value) -> Error {
    let kind = match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) | Value::SimpleString(_) | Value::Okay => "a text",
        Value::Array(_) => "an array",
        _ => "something",
    };
    Error::new(ErrorKind::Protocol, format!("Redis answered {kind} where it should not"))
}

/// What became of one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisOutcome {
    /// Done.
    Done,
    /// Refused for a reason that is not the key's: out of memory, read only, loading, moved …
    Retry {
        /// Redis' reason, at most 2 kB.
        reason: String,
    },
    /// Refused for what it is: a dead letter.
    Rejected {
        /// Redis' reason, at most 2 kB.
        reason: String,
    },
}

pub(super) fn is_denied(code: &str) -> bool {
    matches!(code, "NOAUTH" | "NOPERM" | "WRONGPASS")
}

/// Whether a refusal says nothing of the key or value. Out of memory, read only, loading, moved, busy, and whatever code
/// another Redis or a proxy before it may have: only these two can be the document's own fault.
pub(super) fn is_passing(code: &str) -> bool {
    !matches!(code, "ERR" | "WRONGTYPE")
}

pub(super) fn text(error: &ServerError) -> String {
    bounded(format!("{} {}", error.code(), error.details().unwrap_or("")).trim_end().to_owned())
}

fn refused(error: &ServerError) -> RedisOutcome {
    let reason = text(error);
    if is_passing(error.code()) { RedisOutcome::Retry { reason } } else { RedisOutcome::Rejected { reason } }
}

// The encoding of commands: https://redis.io/docs/latest/develop/reference/protocol-spec/#sending-commands-to-a-redis-server

fn push_array(out: &mut Vec<u8>, length: usize) {
    out.push(b'*');
    push_decimal(out, length as u64);
    out.extend_from_slice(b"\r\n");
}

fn push_bulk(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'$');
    push_decimal(out, text.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// Before a command for a node that does not own the key's slot yet. It has a reply of its own.
pub(super) fn push_asking(out: &mut Vec<u8>) {
    push_array(out, 1);
    push_bulk(out, b"ASKING");
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = Vec::with_capacity(20);
    push_decimal(&mut digits, number);
    push_bulk(out, &digits);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replies(text: &str) -> impl FnMut() -> Result<Value> + use<> {
        let mut parser = redis::Parser::new();
        let mut input = std::io::Cursor::new(text.as_bytes().to_vec());
        move || parser.parse_value(&mut input).map_err(|_| Error::new(ErrorKind::ConnectionLost, "no more"))
    }

    fn three() -> RedisBatch {
        let mut batch = RedisBatch::new();
        batch.push_set(1, "a", b"v", Some(5));
        batch.push_delete(2, "b");
        batch.push_hash(3, "c", &[("f", "v"), ("g", "")], Some(0));
        batch
    }

    #[test]
    fn encoding_is_that_of_the_library() {
        let mut expected = Vec::new();
        let mut add = |words: &[&str]| {
            let mut command = redis::Cmd::new();
            for word in words {
                command.arg(*word);
            }
            expected.extend(command.get_packed_command());
        };
        add(&["SET", "a", "v", "PX", "5"]);
        add(&["UNLINK", "b"]);
        add(&["MULTI"]);
        add(&["DEL", "c"]);
        add(&["HSET", "c", "f", "v", "g", ""]);
        add(&["PEXPIRE", "c", "1"]);
        add(&["EXEC"]);
        let batch = three();
        assert_eq!(batch.bytes, expected);
        assert_eq!(batch.len(), 3);
        assert!(RedisBatch::reuse(batch).is_empty());
    }

    #[test]
    fn all_is_well() {
        let outcomes = three()
            .read_outcomes(replies("+OK\r\n:0\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n:1\r\n:2\r\n:1\r\n"))
            .unwrap();
        assert_eq!(outcomes, [(1, RedisOutcome::Done), (2, RedisOutcome::Done), (3, RedisOutcome::Done)]);
    }

    #[test]
    fn refusals() {
        let outcomes = three()
            .read_outcomes(replies(
                "-OOM command not allowed\r\n-WRONGTYPE Operation\r\n+OK\r\n+QUEUED\r\n-OOM command not allowed\r\n+QUEUED\r\n\
                 -EXECABORT Transaction discarded\r\n",
            ))
            .unwrap();
        let retry = RedisOutcome::Retry { reason: "OOM command not allowed".into() };
        assert_eq!(outcomes[0], (1, retry.clone()));
        assert_eq!(outcomes[1], (2, RedisOutcome::Rejected { reason: "WRONGTYPE Operation".into() }));
        assert_eq!(outcomes[2], (3, retry));
        let inside = three()
            .read_outcomes(replies(
                "-READONLY x\r\n-MOVED 1 h:1\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n:1\r\n-ERR no\r\n:1\r\n",
            ))
            .unwrap();
        assert_eq!(inside[0].1, RedisOutcome::Retry { reason: "READONLY x".into() });
        assert_eq!(inside[1].1, RedisOutcome::Retry { reason: "MOVED 1 h:1".into() });
        assert_eq!(inside[2].1, RedisOutcome::Rejected { reason: "ERR no".into() });
    }

    #[test]
    fn only_what_is_the_documents_own_fault_is_for_good() {
        for code in ["OOM", "READONLY", "LOADING", "MOVED", "NOSCRIPT", "MISCONF", "MASTERDOWN", "SOMETHINGNEW"] {
            let mut batch = RedisBatch::new();
            batch.push_set(0, "a", b"", None);
            let outcomes = batch.read_outcomes(replies(&format!("-{code} why\r\n"))).unwrap();
            assert!(matches!(outcomes[0].1, RedisOutcome::Retry { .. }), "{code}");
        }
    }

    #[test]
    fn a_missing_right_blocks_the_batch() {
        let mut batch = RedisBatch::new();
        batch.push_set(0, "a", b"", None);
        batch.push_set(1, "b", b"", None);
        let error = batch.read_outcomes(replies("-NOPERM no rights\r\n+OK\r\n")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized);
    }

    #[test]
    fn replies_that_do_not_fit() {
        for text in
            [":1\r\n", "$1\r\nx\r\n", "+OK\r\n+OK\r\n", "+OK\r\n:1\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n$-1\r\n"]
        {
            assert_eq!(three().read_outcomes(replies(text)).unwrap_err().kind(), ErrorKind::Protocol, "{text}");
        }
        assert_eq!(three().read_outcomes(replies("+OK\r\n:1")).unwrap_err().kind(), ErrorKind::ConnectionLost);
    }

    proptest! {
        #[test]
        fn any_bytes_are_outcomes_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..60), at in 0usize..40) {
            let well = b"+OK\r\n:0\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n:1\r\n:2\r\n:1\r\n";
            // Within good replies too: that is where a parser is in the middle of something.
            let spliced = [&well[..at], &bytes, &well[at..]].concat();
            for input in [bytes, spliced] {
                let mut parser = redis::Parser::new();
                let mut input = std::io::Cursor::new(input);
                let next = move || {
                    parser.parse_value(&mut input).map_err(|_| Error::new(ErrorKind::ConnectionLost, "no more"))
                };
                let _ = three().read_outcomes(next);
            }
        }

        #[test]
        fn any_replies_are_outcomes_or_an_error(text in "([+:$*\\-][a-zA-Z0-9]{0,3}\r\n|.){0,12}") {
            let _ = three().read_outcomes(replies(&text));
        }
    }
}
