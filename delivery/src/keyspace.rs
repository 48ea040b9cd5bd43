//! Redis: pipelined batches over one connection, and the few commands that the SQL functions need.

use crate::config::RedisConfig;
use crate::error::Result;
use crate::ownership::{Claim, ClaimOutcome, Heartbeat, Ownership};

/// Builds a pipeline.
#[derive(Debug, Default)]
pub struct RedisBatch {}

impl RedisBatch {
    /// An empty batch.
    pub fn new() -> RedisBatch {
        todo!()
    }

    /// As [`RedisBatch::new`], with the memory of a batch that came back in a report.
    pub fn reuse(spent: RedisBatch) -> RedisBatch {
        let _ = spent;
        todo!()
    }

    /// `SET`, with `PX` if `ttl_ms` (1 or more) is given.
    pub fn push_set(&mut self, slot: u32, key: &str, value: &[u8], ttl_ms: Option<u64>) {
        let _ = (slot, key, value, ttl_ms);
        todo!()
    }

    /// Replaces a hash: `DEL`, `HSET`, `PEXPIRE` in one `MULTI`. Without fields the key is deleted.
    pub fn push_hash(&mut self, slot: u32, key: &str, fields: &[(&str, &str)], ttl_ms: Option<u64>) {
        let _ = (slot, key, fields, ttl_ms);
        todo!()
    }

    /// `UNLINK`.
    pub fn push_delete(&mut self, slot: u32, key: &str) {
        let _ = (slot, key);
        todo!()
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size so far in bytes.
    pub fn bytes(&self) -> usize {
        todo!()
    }
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

/// A page of keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyPage {
    /// Keys; one may come twice, as with `SCAN`. Keys that are not UTF-8 are left out: none of ours.
    pub keys: Vec<String>,
    /// For the next page; `None` after the last one.
    pub cursor: Option<u64>,
}

/// A connection to Redis, made anew when it broke.
pub struct RedisTarget {}

impl RedisTarget {
    /// Connects.
    pub fn connect(config: &RedisConfig) -> Result<RedisTarget> {
        let _ = config;
        todo!()
    }

    /// `PING`; the answer is the server's version if we may see it.
    pub fn probe(&mut self) -> Result<Option<String>> {
        todo!()
    }

    /// Sends a batch, once, and reads every reply.
    pub fn send(&mut self, batch: &RedisBatch) -> Result<Vec<(u32, RedisOutcome)>> {
        let _ = batch;
        todo!()
    }

    /// A page of keys that match `glob`; `cursor` is `None` for the first.
    pub fn scan_keys(&mut self, glob: &str, cursor: Option<u64>, count: usize) -> Result<KeyPage> {
        let _ = (glob, cursor, count);
        todo!()
    }

    /// `GET`.
    pub fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        let _ = key;
        todo!()
    }

    /// `MGET`.
    pub fn mget(&mut self, keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>> {
        let _ = keys;
        todo!()
    }

    /// `SET`, with `PX` if a ttl is given.
    pub fn set(&mut self, key: &str, value: &[u8], ttl_ms: Option<u64>) -> Result<()> {
        let _ = (key, value, ttl_ms);
        todo!()
    }

    /// `DEL`; how many there were.
    pub fn del(&mut self, keys: &[&str]) -> Result<u64> {
        let _ = keys;
        todo!()
    }

    /// `PTTL` in milliseconds; `None`: no such key; `Some(None)`: no expiry.
    pub fn ttl_ms(&mut self, key: &str) -> Result<Option<Option<u64>>> {
        let _ = key;
        todo!()
    }

    /// Claims a target; see [`crate::ownership`].
    pub fn claim(&mut self, claim: &Claim) -> Result<ClaimOutcome> {
        let _ = claim;
        todo!()
    }

    /// Renews an ownership.
    pub fn heartbeat(&mut self, ownership: &Ownership) -> Result<Heartbeat> {
        let _ = ownership;
        todo!()
    }

    /// Gives an ownership up, if it is still ours.
    pub fn release(&mut self, ownership: &Ownership) -> Result<()> {
        let _ = ownership;
        todo!()
    }
}
