//! A client for Elasticsearch and OpenSearch, one call one request (a few need more).
//!
//! Blocking, on the thread that asks; a thread that must not be held gives a function to be called meanwhile ([`LookUp`]).

mod control;
mod host;
mod http;
mod index;
mod mapping;
mod periods;
mod report;
mod search;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::host::LookUp;
use self::http::{Http, NDJSON, Request, parsed, refusal, segment};
use self::index::check_name;
pub use self::periods::Periods;
pub use self::report::{IndexReport, Which};
use crate::bulk::{BulkBody, BulkOutcome, RESPONSE_FILTER};
use crate::config::{EngineConfig, Flavor};
use crate::error::{Error, ErrorKind, Result};

/// What is known of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineInfo {
    /// Elasticsearch or OpenSearch; `None` if it can't be told.
    pub flavor: Option<Flavor>,
    /// Its version; `None` if we may not see it.
    pub version: Option<String>,
}

/// From when on a new index is behind its aliases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// From the start, if the alias is free.
    AtOnce,
    /// Once it is filled: after [`Engine::swap_alias`].
    AfterSwap,
}

/// Outcome of [`Engine::ensure_index`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexState {
    /// Made by this call.
    Created,
    /// Was there already, made by us.
    Exists,
}

/// A field that an index can't have as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// Its path.
    pub field: String,
    /// Why: what it is and what it would be, or the engine's own words.
    pub reason: String,
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
    /// Of each id, the concrete index.
    pub indices: Vec<String>,
    /// Of each id, what decided on its shard instead of it.
    pub routings: Vec<Option<String>>,
    /// Of each id, the document's version.
    pub versions: Vec<Option<u64>>,
    /// Ids, in no particular order.
    pub ids: Vec<String>,
    /// For the next page; `None` after the last one.
    pub cursor: Option<String>,
}

impl IdPage {
    /// Leaves the first so many ids.
    fn truncate(&mut self, ids: usize) {
        self.indices.truncate(ids);
        self.routings.truncate(ids);
        self.versions.truncate(ids);
        self.ids.truncate(ids);
    }
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
#[derive(Debug, Clone, Deserialize)]
pub struct Hit<'a> {
    /// The concrete index.
    #[serde(rename = "_index", borrow, default)]
    pub index: Cow<'a, str>,
    /// `_id`.
    #[serde(rename = "_id", borrow, default)]
    pub id: Cow<'a, str>,
    /// `_score`; `None` when sorted by something else.
    #[serde(rename = "_score")]
    pub score: Option<f64>,
    /// `_source` as JSON text.
    #[serde(rename = "_source", borrow)]
    pub source: Option<&'a RawValue>,
    /// `highlight` as JSON text.
    #[serde(borrow)]
    pub highlight: Option<&'a RawValue>,
    /// `sort` as JSON text: the cursor for `search_after`.
    #[serde(borrow)]
    pub sort: Option<&'a RawValue>,
}

/// A reply to a search, as it came.
#[derive(Debug, Clone)]
pub struct SearchReply(Vec<u8>);

/// What a [`SearchReply`] says.
#[derive(Debug, Clone, Default)]
pub struct SearchResponse<'a> {
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
    pub hits: Vec<Hit<'a>>,
    /// `aggregations` as JSON text.
    pub aggregations: Option<&'a RawValue>,
    /// The point in time to go on with.
    pub pit_id: Option<Cow<'a, str>>,
}

/// A client. Cheap to clone; threads that use one together take turns.
#[derive(Debug, Clone)]
pub struct Engine {
    http: Arc<Http>,
    /// When an index was last found to be ours.
    checks: Arc<Mutex<HashMap<String, Instant>>>,
}

/// How old the knowledge that an index is ours may be, for a batch with deletions and for one without.
const CHECK_BEFORE_DELETES: Duration = Duration::from_secs(1);
const CHECK_BEFORE_WRITES: Duration = Duration::from_secs(10);

/// How long a batch without a document may take.
const SMALL_BATCH: Duration = Duration::from_secs(5);

impl Engine {
    /// Builds the HTTP client; connects to nothing yet. [`crate::ErrorKind::TlsOrConfig`] if the PEM texts or
    /// credentials can't be used.
    pub fn new(config: &EngineConfig) -> Result<Engine> {
        Ok(Engine { http: Arc::new(Http::new(config, None)?), checks: Arc::default() })
    }

    /// As [`Engine::new`], for a thread that has more to do than wait.
    pub fn looking_up(config: &EngineConfig, look_up: LookUp) -> Result<Engine> {
        Ok(Engine { http: Arc::new(Http::new(config, Some(look_up))?), checks: Arc::default() })
    }

    /// A client with connections of its own for another thread, which shares what is known of indices.
    pub fn for_another_thread(&self, config: &EngineConfig) -> Result<Engine> {
        Ok(Engine { http: Arc::new(Http::new(config, None)?), checks: Arc::clone(&self.checks) })
    }

    /// Asks who is there. Works with narrow rights: then less is known, but an answer proves that the engine is up and
    /// knows us. `GET /` is refused to narrow API keys (403) and by Elasticsearch's server core (405).
    pub fn probe(&self) -> Result<EngineInfo> {
        #[derive(Deserialize)]
        struct Root {
            version: Option<RootVersion>,
        }
        #[derive(Deserialize)]
        struct RootVersion {
            number: Option<String>,
            distribution: Option<String>,
        }
        #[derive(Deserialize)]
        struct Nodes {
            #[serde(default)]
            nodes: HashMap<String, Node>,
        }
        #[derive(Deserialize)]
        struct Node {
            version: Option<String>,
        }
        let reply = self.http.send(&Request::new(Method::GET, "/"))?;
        let mut version = reply.version_header.clone();
        match reply.status {
            200 => {
                let root: Root = parsed(&reply)?;
                if let Some(found) = root.version {
                    let flavor = match found.distribution.as_deref() {
                        Some("opensearch") => Flavor::OpenSearch,
                        // Elasticsearch has no "distribution".
                        _ => Flavor::Elasticsearch,
                    };
                    let _ = self.http.flavor.set(flavor);
                    version = found.number.or(version);
                }
            }
            403 | 405 => {
                let path = "/_nodes/_local?filter_path=nodes.*.version";
                let reply = self.http.send(&Request::new(Method::GET, path))?;
                if reply.status == 200 {
                    let nodes: Nodes = parsed(&reply)?;
                    version = nodes.nodes.into_values().find_map(|node| node.version).or(version);
                }
            }
            _ => return Err(refusal(&reply)),
        }
        Ok(EngineInfo { flavor: self.http.flavor.get().copied(), version })
    }

    /// Sends a batch, once. `Err`: it failed as a whole; see [`crate::Error::outcome_unknown`]. The body's memory is
    /// lent to the connection and back in `body` afterwards. See [`crate::bulk`] for what guards the index.
    pub fn bulk(&self, body: &mut BulkBody) -> Result<Vec<(u32, BulkOutcome)>> {
        body.indices().iter().try_for_each(|index| check_name(index))?;
        if body.bytes() == 0 {
            return Ok(body.all(&BulkOutcome::Done));
        }
        let max_age = if body.has_deletes() { CHECK_BEFORE_DELETES } else { CHECK_BEFORE_WRITES };
        for index in body.indices() {
            if !self.index_is_ours(index, max_age)? {
                return Ok(body.all(&BulkOutcome::IndexMissing));
            }
        }
        // The engine's own limit on waiting for a shard (1 min by default) must end before ours: else all we get is a
        // time-out, and know nothing of any document.
        let mut path = format!(
            "/{}/_bulk?timeout={}ms&filter_path={RESPONSE_FILTER}",
            segment(body.index()),
            (self.http.request_timeout / 2).as_millis().max(1),
        );
        if let Some(pipeline) = body.pipeline() {
            path.push_str("&pipeline=");
            path.push_str(&segment(pipeline));
        }
        let request = Request {
            method: Method::POST,
            path: &path,
            content_type: NDJSON,
            body: Bytes::from(std::mem::take(&mut body.bytes)),
            timeout: None,
        };
        let reply = self.http.ask(&request);
        // No copy unless the connection still holds on to it.
        body.bytes = Vec::from(request.body);
        let reply = reply.map_err(|error| {
            let kind = match error.kind() {
                // A refused body may cost us the connection before the refusal is read (Elasticsearch closes it).
                ErrorKind::ConnectionLost if body.bytes() > CONTENT_LIMIT => ErrorKind::TooLarge,
                ErrorKind::ConnectionLost if self.takes_small_batches(body.index()) => ErrorKind::Cut,
                _ => return error,
            };
            Error::new(kind, error.message().to_owned()).with_source(error)
        })?;
        let parsed = crate::bulk::parse(&reply.body, body)?;
        for &index in &parsed.first_of_shard {
            let index = &body.indices()[index];
            self.forget_check(index);
            let ours = self.index_is_ours(index, Duration::ZERO).map_err(|error| {
                // Not that error's own kind: it might say that nothing was sent.
                Error::new(ErrorKind::ConnectionLost, error.message().to_owned()).with_source(error)
            })?;
            if !ours {
                return Ok(body.all(&BulkOutcome::IndexMissing));
            }
        }
        if parsed.outcomes.iter().any(|(_, outcome)| *outcome == BulkOutcome::IndexMissing) {
            body.indices().iter().for_each(|index| self.forget_check(index));
        }
        Ok(parsed.outcomes)
    }

    /// Whether a batch without a document gets a reply.
    fn takes_small_batches(&self, index: &str) -> bool {
        let request = Request {
            method: Method::POST,
            path: &format!("/{}/_bulk?filter_path={RESPONSE_FILTER}", segment(index)),
            content_type: NDJSON,
            body: Bytes::from(crate::bulk::nothing()),
            timeout: Some(self.http.request_timeout.min(SMALL_BATCH)),
        };
        self.http.ask(&request).is_ok()
    }

    /// Which engine this is: as configured, as told by any reply so far, or by a probe.
    pub fn flavor(&self) -> Result<Flavor> {
        if let Some(flavor) = self.http.flavor.get() {
            return Ok(*flavor);
        }
        self.probe()?.flavor.ok_or_else(|| {
            Error::new(
                ErrorKind::TlsOrConfig,
                "can't tell whether this is Elasticsearch or OpenSearch: set the server's option \"flavor\"",
            )
        })
    }
}

/// Reads a reply as one to a search, and as one to a scan.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse_search_replies(reply: &[u8]) {
    let _ = search::search_response(reply);
    let _ = search::id_page(reply);
}

/// The engines' default for `http.max_content_length`, 100 MB, counted uncompressed.
const CONTENT_LIMIT: usize = 100 << 20;
