//! A client for Elasticsearch and OpenSearch, one call one request (a few need more).
//!
//! Blocking. Build it on a thread that has all signals blocked: the HTTP client starts a thread of its own, which
//! inherits the mask.

use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::bulk::{BulkBody, BulkOutcome};
use crate::config::{EngineConfig, Flavor};
use crate::error::Result;
use crate::ownership::{Claim, ClaimOutcome, Heartbeat, Ownership};

/// What is known of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineInfo {
    /// Elasticsearch or OpenSearch; `None` if it can't be told.
    pub flavor: Option<Flavor>,
    /// Its version; `None` if we may not see it.
    pub version: Option<String>,
}

/// Outcome of [`Engine::ensure_index`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexState {
    /// Made by this call.
    Created,
    /// Was there already, made by us.
    Exists,
}

/// A document as stored.
#[derive(Debug, Clone)]
pub struct StoredDocument {
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: Option<u64>,
    /// The JSON that was indexed.
    pub source: Option<Box<RawValue>>,
}

/// A page of ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdPage {
    /// Ids, in no particular order.
    pub ids: Vec<String>,
    /// For the next page; `None` after the last one.
    pub cursor: Option<String>,
}

/// Whether a total is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TotalRelation {
    /// Exactly so many.
    Equal,
    /// At least so many.
    AtLeast,
}

/// A hit.
#[derive(Debug, Clone)]
pub struct Hit {
    /// The concrete index.
    pub index: String,
    /// `_id`.
    pub id: String,
    /// `_score`; `None` when sorted by something else.
    pub score: Option<f64>,
    /// `_source` as JSON text.
    pub source: Option<Box<RawValue>>,
    /// `highlight` as JSON text.
    pub highlight: Option<Box<RawValue>>,
    /// `sort` as JSON text: the cursor for `search_after`.
    pub sort: Option<Box<RawValue>>,
}

/// Answer to a search.
#[derive(Debug, Clone, Default)]
pub struct SearchResponse {
    /// Milliseconds that the engine says it took.
    pub took_ms: u64,
    /// The search hit its own time limit: hits are missing.
    pub timed_out: bool,
    /// Shards asked; 0 when nothing matched the index name.
    pub shards_total: u64,
    /// Shards that failed.
    pub shards_failed: u64,
    /// How many match, if counted.
    pub total: Option<(u64, TotalRelation)>,
    /// The hits.
    pub hits: Vec<Hit>,
    /// `aggregations` as JSON text.
    pub aggregations: Option<Box<RawValue>>,
    /// The point in time to go on with.
    pub pit_id: Option<String>,
}

/// A client. Cheap to clone, may be used from several threads.
#[derive(Debug, Clone)]
pub struct Engine {}

impl Engine {
    /// Builds the HTTP client; connects to nothing yet.
    pub fn new(config: &EngineConfig) -> Result<Engine> {
        let _ = config;
        todo!()
    }

    /// Asks who is there. Works with narrow rights: then less is known, but an answer proves that the engine is up and
    /// knows us.
    pub fn probe(&self) -> Result<EngineInfo> {
        todo!()
    }

    /// Makes the concrete index with `body` (`settings`, `mappings`), `index.gc_deletes` 1 h and our mark, and, if the
    /// alias does not exist yet, points it there. An alias that points to another index of ours is left alone (see
    /// [`Engine::swap_alias`]). [`crate::ErrorKind::Conflict`] if the alias' name is that of an index or data stream,
    /// or either name belongs to an index without our mark.
    pub fn ensure_index(&self, concrete: &str, alias: &str, body: &Value) -> Result<IndexState> {
        let _ = (concrete, alias, body);
        todo!()
    }

    /// Points the alias at `new` and no longer at `old`, in one step.
    pub fn swap_alias(&self, alias: &str, old: Option<&str>, new: &str) -> Result<()> {
        let _ = (alias, old, new);
        todo!()
    }

    /// Deletes a concrete index if it exists and has our mark. False: there was none.
    pub fn delete_index(&self, concrete: &str) -> Result<bool> {
        let _ = concrete;
        todo!()
    }

    /// Makes everything written so far visible to searches.
    pub fn refresh(&self, index: &str) -> Result<()> {
        let _ = index;
        todo!()
    }

    /// Sends a batch, once. `Err`: it failed as a whole; see [`crate::Error::outcome_unknown`].
    pub fn bulk(&self, body: &mut BulkBody) -> Result<Vec<(u32, BulkOutcome)>> {
        let _ = body;
        todo!()
    }

    /// A document, as of now (also if no refresh made it visible to searches). `None` if there is none.
    pub fn get(&self, index: &str, id: &str) -> Result<Option<StoredDocument>> {
        let _ = (index, id);
        todo!()
    }

    /// How many documents searches see.
    pub fn count(&self, index: &str) -> Result<u64> {
        let _ = index;
        todo!()
    }

    /// All ids of an index, page by page; `cursor` is `None` for the first. A snapshot taken with the first page, kept
    /// for five minutes after each. [`crate::ErrorKind::NotFound`] if the cursor expired.
    pub fn scan_ids(&self, index: &str, cursor: Option<&str>, size: usize) -> Result<IdPage> {
        let _ = (index, cursor, size);
        todo!()
    }

    /// Ends a scan before its last page.
    pub fn close_scan(&self, cursor: &str) -> Result<()> {
        let _ = cursor;
        todo!()
    }

    /// Runs a search. `index` is `None` with a point in time. `body` is JSON. A failed shard or a missing index is an
    /// error, never a shorter answer. `timeout` bounds the request in place of the configured one.
    pub fn search(&self, index: Option<&str>, body: &[u8], timeout: Option<Duration>) -> Result<SearchResponse> {
        let _ = (index, body, timeout);
        todo!()
    }

    /// Opens a point in time for `keep_alive` (whole seconds).
    pub fn open_pit(&self, index: &str, keep_alive: Duration) -> Result<String> {
        let _ = (index, keep_alive);
        todo!()
    }

    /// Closes a point in time; one that is closed already is no error.
    pub fn close_pit(&self, pit_id: &str) -> Result<()> {
        let _ = pit_id;
        todo!()
    }

    /// Claims a target; see [`crate::ownership`].
    pub fn claim(&self, claim: &Claim) -> Result<ClaimOutcome> {
        let _ = claim;
        todo!()
    }

    /// Renews an ownership.
    pub fn heartbeat(&self, ownership: &Ownership) -> Result<Heartbeat> {
        let _ = ownership;
        todo!()
    }

    /// Gives an ownership up, if it is still ours.
    pub fn release(&self, ownership: &Ownership) -> Result<()> {
        let _ = ownership;
        todo!()
    }
}
