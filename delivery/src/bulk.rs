//! Bulk requests: NDJSON out, one outcome for each document back.
//!
//! # Actions never reach an index that we did not make
//!
//! Two things in the engines make an index by accident: an `index` action, and a *versioned* `delete` action, which
//! answers 404 `not_found` and creates the index all the same, whatever its own `require_alias` says. But engines decide
//! on that once for all actions of a request that name the same index: if one of them requires an alias, the index is not
//! made for any (TransportBulkAction; seen on OpenSearch 2.19 and 3.8, Elasticsearch 7.10, 8.19 and 9.5). So each batch
//! ends with a guard for each of its indices, an action that requires an alias, and always fails since the concrete index is
//! none: where the index is gone all its actions answer `index_not_found_exception`, and nothing is made.
//!
//! An index that somebody else made under the name is none of ours either. So [`crate::engine::Engine::bulk`]
//!
//! 1. asks before a batch whether the index exists and has our mark (remembered for a second for a batch with
//!    deletions, for ten seconds for one without): if not, nothing is sent and each outcome is
//!    [`BulkOutcome::IndexMissing`];
//! 2. asks again after a batch in which an action got sequence number 0, the first of its shard: an index that was made
//!    anew in between is noticed at once. Nothing is deleted then: the index stands there without our mark,
//!    `ensure_index` refuses it, and a person or a new generation has to solve it.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::{Error, ErrorKind, Result, bounded};
use crate::id::MAX_ID_BYTES;

/// Builds the body of one `POST /{index}/_bulk`. Every action carries a version of type `external_gte`, and its index if that
/// is not the one in the path.
#[derive(Debug)]
pub struct BulkBuilder {
    body: BulkBody,
    routing: Option<String>,
    /// Which of the body's indices actions are added for.
    index: usize,
}

impl BulkBuilder {
    /// An empty batch for a concrete index.
    pub fn new(index: &str) -> BulkBuilder {
        BulkBuilder {
            routing: None,
            index: 0,
            body: BulkBody {
                indices: vec![index.to_owned()],
                pipeline: None,
                bytes: Vec::new(),
                ids: String::new(),
                entries: Vec::new(),
                deletes: 0,
                refused: 0,
            },
        }
    }

    /// As [`BulkBuilder::new`], with the memory of a batch that came back in a report.
    pub fn reuse(index: &str, spent: BulkBody) -> BulkBuilder {
        let mut body = spent;
        body.indices.clear();
        body.indices.push(index.to_owned());
        body.bytes.clear();
        body.ids.clear();
        body.entries.clear();
        body.deletes = 0;
        body.refused = 0;
        body.pipeline = None;
        BulkBuilder { body, routing: None, index: 0 }
    }

    /// The ingest pipeline that documents go through.
    pub fn set_pipeline(&mut self, pipeline: Option<&str>) {
        self.body.pipeline = pipeline.map(str::to_owned);
    }

    /// The concrete index of the actions that are added from now on.
    pub fn set_index(&mut self, index: &str) {
        let indices = &mut self.body.indices;
        self.index = indices.iter().position(|known| known == index).unwrap_or_else(|| {
            indices.push(index.to_owned());
            indices.len() - 1
        });
    }

    /// What decides on the shard of the actions that are added from now on, instead of their ids.
    pub fn set_routing(&mut self, routing: Option<String>) {
        self.routing = routing;
    }

    /// Adds a document. `slot` is the caller's name for it and comes back with the outcome; `document` is a JSON object.
    ///
    /// Raw CR and LF in it are replaced by spaces (legal JSON has them only between tokens), so that no part of it is
    /// read as an action. What would make the engine refuse the whole request (an id that is empty or over 512 bytes, a
    /// version of 2^63 or more, a document that is no object) is not sent but comes back as [`BulkOutcome::Rejected`].
    pub fn push_index(&mut self, slot: u32, id: &str, version: u64, document: &[u8]) {
        let trimmed = document.trim_ascii();
        let reason = refusal(id, version).or_else(|| {
            (trimmed.first() != Some(&b'{') || trimmed.last() != Some(&b'}'))
                .then_some("the document is not a JSON object")
        });
        if self.push_entry(slot, id, false, reason) {
            self.push_action(b"{\"index\":{\"_id\":", id, version);
            push_line(&mut self.body.bytes, trimmed);
        }
    }

    /// Adds a deletion.
    pub fn push_delete(&mut self, slot: u32, id: &str, version: u64) {
        if self.push_entry(slot, id, true, refusal(id, version)) {
            self.push_action(b"{\"delete\":{\"_id\":", id, version);
        }
    }

    /// Number of actions.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the body so far, in bytes, uncompressed (the engines' limit counts these).
    pub fn bytes(&self) -> usize {
        self.body.bytes()
    }

    /// The batch, ready to be sent.
    pub fn finish(self) -> BulkBody {
        let mut body = self.body;
        if body.sent() > 0 {
            for (number, index) in body.indices.iter().enumerate() {
                push_guard(&mut body.bytes, (number > 0).then_some(index));
            }
        }
        body
    }

    fn push_entry(&mut self, slot: u32, id: &str, delete: bool, refused: Option<&'static str>) -> bool {
        let body = &mut self.body;
        body.ids.push_str(id);
        body.entries.push(Entry { slot, index: self.index, id_end: body.ids.len(), delete, refused });
        body.deletes += usize::from(delete && refused.is_none());
        body.refused += usize::from(refused.is_some());
        refused.is_none()
    }

    fn push_action(&mut self, head: &[u8], id: &str, version: u64) {
        let out = &mut self.body.bytes;
        out.extend_from_slice(head);
        push_json_string(out, id);
        if self.index > 0 {
            out.extend_from_slice(b",\"_index\":");
            push_json_string(out, &self.body.indices[self.index]);
        }
        if let Some(routing) = &self.routing {
            out.extend_from_slice(b",\"routing\":");
            push_json_string(out, routing);
        }
        out.extend_from_slice(b",\"version\":");
        push_decimal(out, version);
        out.extend_from_slice(b",\"version_type\":\"external_gte\"}}\n");
    }
}

/// Appends an action that never does anything, and keeps the engine from making the index; see the module. An update of a
/// document that is not there, so that even where the name is an alias nothing comes of it. `None`: the index in the path.
fn push_guard(out: &mut Vec<u8>, index: Option<&String>) {
    out.extend_from_slice(b"{\"update\":{\"_id\":\"pg_fanout\"");
    if let Some(index) = index {
        out.extend_from_slice(b",\"_index\":");
        push_json_string(out, index);
    }
    out.extend_from_slice(b",\"require_alias\":true}}\n{\"doc\":{}}\n");
}

/// The body of a bulk request for no document: a guard alone.
pub(crate) fn nothing() -> Vec<u8> {
    let mut body = Vec::new();
    push_guard(&mut body, None);
    body
}

/// Why an engine would refuse the whole request for this action.
fn refusal(id: &str, version: u64) -> Option<&'static str> {
    if id.is_empty() {
        Some("the document id is empty")
    } else if id.len() > MAX_ID_BYTES {
        Some("the document id is longer than 512 bytes")
    } else if version > i64::MAX as u64 {
        Some("the version is 2^63 or more")
    } else {
        None
    }
}

/// Appends `document` as one line.
fn push_line(out: &mut Vec<u8>, document: &[u8]) {
    let start = out.len();
    out.extend_from_slice(document);
    let mut from = start;
    while let Some(at) = memchr::memchr2(b'\n', b'\r', &out[from..]) {
        out[from + at] = b' ';
        from += at + 1;
    }
    out.push(b'\n');
}

fn push_json_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    for &byte in text.as_bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..0x20 => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

pub(crate) fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[derive(Debug)]
struct Entry {
    slot: u32,
    /// Which of the body's indices it is for.
    index: usize,
    /// Where its id ends in `ids`; it begins where the one before ends.
    id_end: usize,
    delete: bool,
    /// Why it is not sent.
    refused: Option<&'static str>,
}

/// A batch that is ready to be sent.
#[derive(Debug)]
pub struct BulkBody {
    /// The first is the one in the path.
    indices: Vec<String>,
    pipeline: Option<String>,
    pub(crate) bytes: Vec<u8>,
    ids: String,
    entries: Vec<Entry>,
    deletes: usize,
    refused: usize,
}

impl BulkBody {
    /// The index it is for: the first, if there are several.
    pub fn index(&self) -> &str {
        self.indices.first().map_or("", String::as_str)
    }

    /// All the indices that it is for.
    pub fn indices(&self) -> &[String] {
        &self.indices
    }

    /// The ingest pipeline that its documents go through.
    pub fn pipeline(&self) -> Option<&str> {
        self.pipeline.as_deref()
    }

    /// Number of actions.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Size of the body in bytes, uncompressed.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The body itself: NDJSON.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of actions that are not refused here. The reply has an item for each of them, and one for each guard.
    fn sent(&self) -> usize {
        self.entries.len() - self.refused
    }

    /// Whether any action is a deletion.
    pub fn has_deletes(&self) -> bool {
        self.deletes > 0
    }

    /// The same outcome for all that would be sent.
    pub(crate) fn all(&self, outcome: &BulkOutcome) -> Vec<(u32, BulkOutcome)> {
        self.entries
            .iter()
            .map(|entry| (entry.slot, entry.refused.map_or_else(|| outcome.clone(), refused_here)))
            .collect()
    }
}

fn refused_here(reason: &'static str) -> BulkOutcome {
    BulkOutcome::Rejected { status: 400, reason: reason.to_owned() }
}

/// What became of one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BulkOutcome {
    /// Written, or deleted, or was not there to delete.
    Done,
    /// The engine holds a higher version. Success only if that version is one that the caller issued.
    VersionConflict {
        /// The version that the engine holds, if it said so.
        current: Option<u64>,
    },
    /// Refused for what it is (mapping, parse, an id that is too long): a dead letter.
    Rejected {
        /// HTTP status of the item.
        status: u16,
        /// The engine's reason, at most 2 kB. May quote the document.
        reason: String,
    },
    /// Refused for a reason that is not the document's: overload, a closed or blocked index, 5xx. With status 401 or
    /// 403 somebody has to change something: the sync counts as blocked.
    Retry {
        /// HTTP status of the item.
        status: u16,
        /// The engine's reason, at most 2 kB.
        reason: String,
    },
    /// The index does not exist, or is not the one that we made: nothing may be sent to it before it is ensured.
    IndexMissing,
}

/// What we ask to see of a bulk response: everything that [`parse_bulk_response`] looks at, and no more.
pub(crate) const RESPONSE_FILTER: &str =
    "items.*._id,items.*.status,items.*._seq_no,items.*.error.type,items.*.error.reason,items.*.error.caused_by";

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    items: Vec<Item<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Item<'a> {
    #[serde(borrow)]
    Index(Action<'a>),
    #[serde(borrow)]
    Delete(Action<'a>),
    /// A guard: what became of it says nothing.
    Update(IgnoredAny),
}

#[derive(Deserialize)]
struct Action<'a> {
    #[serde(rename = "_id", borrow)]
    id: Option<Cow<'a, str>>,
    status: u16,
    #[serde(rename = "_seq_no")]
    seq_no: Option<i64>,
    #[serde(borrow)]
    error: Option<Reason<'a>>,
}

#[derive(Deserialize)]
struct Reason<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    caused_by: Option<Box<Reason<'a>>>,
}

impl Reason<'_> {
    fn text(&self) -> String {
        let mut text = match (&self.kind, &self.reason) {
            (Some(kind), Some(reason)) => format!("{kind}: {reason}"),
            (kind, reason) => kind.as_ref().or(reason.as_ref()).map_or(String::new(), |text| text.to_string()),
        };
        // "failed to parse field [price] …" alone does not say why.
        if let Some(cause) = &self.caused_by
            && text.len() < crate::error::MAX_REASON_BYTES
        {
            text.push_str("; caused by ");
            text.push_str(&cause.text());
        }
        bounded(text)
    }
}

pub(crate) struct Parsed {
    pub(crate) outcomes: Vec<(u32, BulkOutcome)>,
    /// Which of the body's indices had an action that was the first of its shard: it may have created the index.
    pub(crate) first_of_shard: BTreeSet<usize>,
}

/// Parses a bulk response. `body` is the request: outcomes are matched by count, action and id, and come in its order.
/// Any mismatch is [`crate::ErrorKind::Protocol`]: the outcome of every document is unknown.
pub fn parse_bulk_response(response: &[u8], body: &BulkBody) -> Result<Vec<(u32, BulkOutcome)>> {
    parse(response, body).map(|parsed| parsed.outcomes)
}

pub(crate) fn parse(response: &[u8], body: &BulkBody) -> Result<Parsed> {
    let response: Response<'_> = serde_json::from_slice(response).map_err(|error| {
        Error::new(ErrorKind::Protocol, "the reply to a bulk request is not understood").with_source(error)
    })?;
    let mut items = response.items;
    for _ in &body.indices {
        if matches!(items.last(), Some(Item::Update(_))) {
            items.pop();
        }
    }
    if items.len() != body.sent() {
        return Err(Error::new(
            ErrorKind::Protocol,
            format!("the reply to a bulk request of {} actions has {} items", body.sent(), items.len()),
        ));
    }
    let mut items = items.into_iter();
    let mut outcomes = Vec::with_capacity(body.entries.len());
    let mut first_of_shard = BTreeSet::new();
    let mut id_start = 0;
    for entry in &body.entries {
        let id = &body.ids[id_start..entry.id_end];
        id_start = entry.id_end;
        if let Some(reason) = entry.refused {
            outcomes.push((entry.slot, refused_here(reason)));
            continue;
        }
        let (delete, action) = match items.next() {
            Some(Item::Index(action)) => (false, action),
            Some(Item::Delete(action)) => (true, action),
            Some(Item::Update(_)) | None => {
                return Err(Error::new(ErrorKind::Protocol, "the reply to a bulk request has an item too many"));
            }
        };
        if delete != entry.delete || action.id.as_deref() != Some(id) {
            return Err(Error::new(
                ErrorKind::Protocol,
                "the items in the reply to a bulk request are not those that were sent",
            ));
        }
        if action.seq_no == Some(0) {
            first_of_shard.insert(entry.index);
        }
        outcomes.push((entry.slot, classify(&action, delete, body.sent() == 1)));
    }
    Ok(Parsed { outcomes, first_of_shard })
}

/// `alone`: nothing else was in the request.
fn classify(action: &Action<'_>, delete: bool, alone: bool) -> BulkOutcome {
    let status = action.status;
    let Some(error) = &action.error else {
        return match status {
            200..300 => BulkOutcome::Done,
            404 if delete => BulkOutcome::Done,
            _ => BulkOutcome::Retry { status, reason: format!("status {status} without a reason") },
        };
    };
    let kind = error.kind.as_deref().unwrap_or("");
    match (status, kind) {
        // The same for every document, until somebody makes the pipeline.
        (400, "illegal_argument_exception") if names_missing_pipeline(error) => {
            BulkOutcome::Retry { status, reason: error.text() }
        }
        (429, _) if alone && error.reason.as_deref().is_some_and(outgrows_engine) => {
            BulkOutcome::Rejected { status, reason: error.text() }
        }
        // A pipeline refuses the document on purpose.
        (_, "fail_processor_exception") => BulkOutcome::Rejected { status, reason: error.text() },
        (409, _) => BulkOutcome::VersionConflict { current: error.reason.as_deref().and_then(current_version) },
        (_, "index_not_found_exception") => BulkOutcome::IndexMissing,
        // Not the document's fault, though some of them come with a 4xx status.
        (400, "index_closed_exception")
        | (_, "cluster_block_exception" | "circuit_breaking_exception" | "es_rejected_execution_exception")
        | (401 | 403 | 404 | 408 | 429, _)
        | (500.., _) => BulkOutcome::Retry { status, reason: error.text() },
        _ => BulkOutcome::Rejected { status, reason: error.text() },
    }
}

fn names_missing_pipeline(error: &Reason<'_>) -> bool {
    let reason = error.reason.as_deref().unwrap_or_default();
    reason.starts_with("pipeline with id [") && reason.ends_with("] does not exist")
}

/// True if an operation was refused that is larger by itself than what the engine has room for at a time, a tenth of its heap
/// by default: "rejected execution of primary operation […, primary_operation_bytes=209715276, max_primary_bytes=107374182]".
/// That does not pass.
pub(crate) fn outgrows_engine(reason: &str) -> bool {
    let number = |text: &str| -> Option<u64> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().ok()
    };
    let sizes = || {
        let (_, rest) = reason.split_once("_operation_bytes=")?;
        let (_, most) = rest.split_once(", max_")?.1.split_once("_bytes=")?;
        Some((number(rest)?, number(most)?))
    };
    sizes().is_some_and(|(size, most)| size > most)
}

/// Out of "[id]: version conflict, current version [7] is higher than the one provided [6]". The id comes first and may
/// hold anything, therefore the last occurrence.
fn current_version(reason: &str) -> Option<u64> {
    const BEFORE: &str = "current version [";
    let rest = &reason[reason.rfind(BEFORE)? + BEFORE.len()..];
    rest[..rest.find(']')?].parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn lines(body: &BulkBody) -> Vec<Value> {
        let text = body.as_bytes();
        assert!(text.is_empty() || text.ends_with(b"\"require_alias\":true}}\n{\"doc\":{}}\n"));
        text.split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            // The guards come last.
            .take_while(|line: &Value| line.get("update").is_none())
            .collect()
    }

    #[test]
    fn framing() {
        let mut builder = BulkBuilder::new("product-fanout-1");
        builder.push_index(7, "a\"b\n", 12, br#" {"a":1} "#);
        builder.push_delete(8, "é", i64::MAX as u64);
        assert_eq!(builder.len(), 2);
        let body = builder.finish();
        assert_eq!(
            std::str::from_utf8(body.as_bytes()).unwrap(),
            concat!(
                r#"{"index":{"_id":"a\"b\u000a","version":12,"version_type":"external_gte"}}"#,
                "\n{\"a\":1}\n",
                r#"{"delete":{"_id":"é","version":9223372036854775807,"version_type":"external_gte"}}"#,
                "\n{\"update\":{\"_id\":\"pg_fanout\",\"require_alias\":true}}\n{\"doc\":{}}\n"
            )
        );
        assert!(body.has_deletes());
        let body = BulkBuilder::reuse("other", body).finish();
        assert_eq!((body.index(), body.len(), body.bytes(), body.has_deletes()), ("other", 0, 0, false));
    }

    #[test]
    fn actions_for_other_indices_name_them() {
        let mut builder = BulkBuilder::new("orders-2024");
        builder.push_index(1, "a", 7, b"{}");
        builder.set_index("orders-2025");
        builder.push_delete(2, "b", 7);
        builder.push_delete(3, "c", 7);
        builder.set_index("orders-2024");
        builder.push_delete(4, "d", 7);
        let body = builder.finish();
        assert_eq!((body.index(), body.indices()), ("orders-2024", &["orders-2024".into(), "orders-2025".into()][..]));
        let indices: Vec<Value> = lines(&body)
            .iter()
            .filter_map(|line| Some(line.get("index").or(line.get("delete"))?["_index"].clone()))
            .collect();
        assert_eq!(indices, [json!(null), json!("orders-2025"), json!("orders-2025"), json!(null)]);
        let items: Vec<Value> = [("index", "a", 3), ("delete", "b", 4), ("delete", "c", 0), ("delete", "d", 5)]
            .map(|(action, id, seq)| json!({action: {"_id": id, "status": 200, "_seq_no": seq}}))
            .into();
        let parsed = parse(json!({ "items": items }).to_string().as_bytes(), &body).unwrap();
        assert_eq!(parsed.first_of_shard.into_iter().collect::<Vec<_>>(), [1]);
        let reused = BulkBuilder::reuse("other", body).finish();
        assert_eq!(reused.indices(), ["other"]);
    }

    #[test]
    fn a_crafted_document_is_no_action() {
        // A json column with newlines, as to_json copies it.
        let crafted = b"{\"v\":[1,\n{\"delete\":{\"_index\":\"victim\",\"_id\":\"1\"}},\r\n{\"a\":{}}\n]}";
        let mut builder = BulkBuilder::new("i");
        builder.push_index(0, "1", 1, crafted);
        let lines = lines(&builder.finish());
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["v"][1]["delete"]["_index"], "victim");
    }

    #[test]
    fn what_would_fail_the_whole_request_is_not_sent() {
        let mut builder = BulkBuilder::new("i");
        builder.push_index(0, "", 1, b"{}");
        builder.push_index(1, &"x".repeat(513), 1, b"{}");
        builder.push_delete(2, "x", 1 << 63);
        builder.push_index(3, "x", 1, b"\n");
        builder.push_index(4, "x", 1, b"{\"delete\":{}}\n[]");
        builder.push_index(5, "ok", 1, b"{}");
        let body = builder.finish();
        assert_eq!(lines(&body).len(), 2);
        let reply = br#"{"items":[{"index":{"_id":"ok","status":201}}]}"#;
        let outcomes = parse_bulk_response(reply, &body).unwrap();
        assert_eq!(outcomes.len(), 6);
        for (slot, outcome) in outcomes {
            assert_eq!(outcome == BulkOutcome::Done, slot == 5, "{slot} {outcome:?}");
            assert_eq!(matches!(outcome, BulkOutcome::Rejected { status: 400, .. }), slot != 5);
        }
    }

    fn body_of(actions: &[(&str, bool)]) -> BulkBody {
        let mut builder = BulkBuilder::new("i");
        for (slot, (id, delete)) in actions.iter().enumerate() {
            if *delete {
                builder.push_delete(slot as u32, id, 1);
            } else {
                builder.push_index(slot as u32, id, 1, b"{}");
            }
        }
        builder.finish()
    }

    #[test]
    fn a_document_that_the_engine_never_has_room_for_is_refused_for_good() {
        let reply = |size: u64, items: usize| {
            let reason = format!(
                "rejected execution of primary operation [coordinating_and_primary_bytes=52429341, replica_bytes=0, \
                 all_bytes=52429341, primary_operation_bytes={size}, max_primary_bytes=107374182]"
            );
            let item = |id: &str| json!({"index": {"_id": id, "status": 429, "error": {"type": "es_rejected_execution_exception", "reason": reason}}});
            let all: Vec<_> = ["a", "b"][..items].iter().map(|id| item(id)).collect();
            json!({"took": 1, "errors": true, "items": all}).to_string()
        };
        let outcome = |size: u64, items: usize| {
            let body = body_of(&[("a", false), ("b", false)][..items]);
            parse_bulk_response(reply(size, items).as_bytes(), &body).unwrap().remove(0).1
        };
        assert!(matches!(outcome(209_715_276, 1), BulkOutcome::Rejected { status: 429, .. }));
        // Beside others it may be their fault, and below the limit it was others' that the engine had at that time.
        assert!(matches!(outcome(209_715_276, 2), BulkOutcome::Retry { status: 429, .. }));
        assert!(matches!(outcome(52_429_341, 1), BulkOutcome::Retry { status: 429, .. }));
        assert!(!outgrows_engine(
            "rejected execution of primary operation [primary_operation_bytes=, max_primary_bytes=]"
        ));
    }

    #[test]
    fn mixed_items() {
        let body = body_of(&[
            ("a", false),
            ("b", false),
            ("c", false),
            ("d", true),
            ("e", true),
            ("f", false),
            ("g", false),
            ("h", false),
            ("i", false),
            ("j", false),
            ("k", false),
        ]);
        let reply = json!({"took": 1, "errors": true, "items": [
            {"index": {"_index": "i", "_id": "a", "status": 201, "_seq_no": 4}},
            {"index": {"_id": "b", "status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "queue"}}},
            {"index": {"_id": "c", "status": 400, "error": {"type": "mapper_parsing_exception", "reason": "failed to parse",
                "caused_by": {"type": "number_format_exception", "reason": "For input string: \"x\""}}}},
            {"delete": {"_id": "d", "status": 404, "result": "not_found"}},
            {"delete": {"_id": "e", "status": 409, "error": {"type": "version_conflict_engine_exception",
                "reason": "[current version [99]]: version conflict, current version [17] is higher than the one provided [1]"}}},
            {"index": {"_id": "f", "status": 503, "error": {"type": "unavailable_shards_exception", "reason": "no primary"}}},
            {"index": {"_id": "g", "status": 404, "error": {"type": "index_not_found_exception", "reason": "no such index [i]"}}},
            {"index": {"_id": "h", "status": 400, "error": {"type": "index_closed_exception", "reason": "closed"}}},
            {"index": {"_id": "i", "status": 403, "error": {"type": "cluster_block_exception", "reason": "read-only"}}},
            {"index": {"_id": "j", "status": 413, "error": {"reason": "large", "status": 9}}},
            {"index": {"_id": "k", "status": 500, "error": {"type": "fail_processor_exception", "reason": "no such name"}}},
        ]});
        let outcomes = parse_bulk_response(reply.to_string().as_bytes(), &body).unwrap();
        let expected = [
            BulkOutcome::Done,
            BulkOutcome::Retry { status: 429, reason: "es_rejected_execution_exception: queue".into() },
            BulkOutcome::Rejected {
                status: 400,
                reason: "mapper_parsing_exception: failed to parse; caused by number_format_exception: For input string: \"x\""
                    .into(),
            },
            BulkOutcome::Done,
            BulkOutcome::VersionConflict { current: Some(17) },
            BulkOutcome::Retry { status: 503, reason: "unavailable_shards_exception: no primary".into() },
            BulkOutcome::IndexMissing,
            BulkOutcome::Retry { status: 400, reason: "index_closed_exception: closed".into() },
            BulkOutcome::Retry { status: 403, reason: "cluster_block_exception: read-only".into() },
            BulkOutcome::Rejected { status: 413, reason: "large".into() },
            BulkOutcome::Rejected { status: 500, reason: "fail_processor_exception: no such name".into() },
        ];
        for (slot, expected) in expected.into_iter().enumerate() {
            assert_eq!(outcomes[slot], (slot as u32, expected));
        }
    }

    #[test]
    fn a_reply_that_does_not_fit_says_nothing_of_any_document() {
        let body = body_of(&[("a", false), ("b", false)]);
        for reply in [
            json!({"items": [{"index": {"_id": "a", "status": 201}}]}),
            json!({"items": [{"index": {"_id": "b", "status": 201}}, {"index": {"_id": "a", "status": 201}}]}),
            json!({"items": [{"index": {"_id": "a", "status": 201}}, {"delete": {"_id": "b", "status": 200}}]}),
            json!({"items": [{"index": {"_id": "a", "status": 201}}, {"index": {"status": 201}}]}),
            json!({"items": [{"index": {"_id": "a", "status": 201}}, {"create": {"_id": "b", "status": 201}}]}),
            json!({"items": {}}),
            json!({}),
            json!([]),
        ] {
            let error = parse_bulk_response(reply.to_string().as_bytes(), &body).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{reply}");
            assert!(error.outcome_unknown());
        }
    }

    #[test]
    fn the_guard_is_no_document() {
        let body = body_of(&[("a", true)]);
        let deleted = r#"{"delete":{"_id":"a","status":404}}"#;
        let guard = r#"{"update":{"_id":"pg_fanout","status":404,"error":{"type":"index_not_found_exception"}}}"#;
        let reply =
            |items: &[&str]| parse_bulk_response(format!("{{\"items\":[{}]}}", items.join(",")).as_bytes(), &body);
        assert_eq!(reply(&[deleted, guard]).unwrap(), [(0, BulkOutcome::Done)]);
        for items in [&[guard, deleted][..], &[guard], &[deleted, guard, guard], &[guard, guard]] {
            assert_eq!(reply(items).unwrap_err().kind(), ErrorKind::Protocol, "{items:?}");
        }
        assert!(BulkBuilder::new("i").finish().as_bytes().is_empty());
        // One for each index, since an engine decides for each of them.
        let mut builder = BulkBuilder::new("i");
        builder.push_delete(0, "a", 1);
        builder.set_index("j");
        builder.push_delete(1, "b", 1);
        let body = builder.finish();
        let text = std::str::from_utf8(body.as_bytes()).unwrap();
        assert!(text.contains(r#"{"update":{"_id":"pg_fanout","require_alias":true}}"#), "{text}");
        assert!(text.contains(r#"{"update":{"_id":"pg_fanout","_index":"j","require_alias":true}}"#), "{text}");
        let items = [deleted, r#"{"delete":{"_id":"b","status":404}}"#, guard, guard].join(",");
        assert_eq!(parse_bulk_response(format!("{{\"items\":[{items}]}}").as_bytes(), &body).unwrap().len(), 2);
    }

    #[test]
    fn the_first_action_of_a_shard_is_noticed() {
        let body = body_of(&[("a", true)]);
        let reply = br#"{"items":[{"delete":{"_id":"a","status":404,"_seq_no":0}}]}"#;
        assert!(!parse(reply, &body).unwrap().first_of_shard.is_empty());
        let reply = br#"{"items":[{"delete":{"_id":"a","status":404,"_seq_no":10}}]}"#;
        assert!(parse(reply, &body).unwrap().first_of_shard.is_empty());
    }

    #[test]
    fn reasons_are_bounded() {
        let body = body_of(&[("a", false)]);
        let reply = json!({"items": [{"index": {"_id": "a", "status": 400, "error": {"type": "t", "reason": "é".repeat(9000)}}}]});
        let outcomes = parse_bulk_response(reply.to_string().as_bytes(), &body).unwrap();
        let BulkOutcome::Rejected { reason, .. } = &outcomes[0].1 else { panic!("{outcomes:?}") };
        assert!(reason.len() <= crate::error::MAX_REASON_BYTES && reason.ends_with('…'));
    }

    #[test]
    fn routing_is_said_of_each_action() {
        let mut builder = BulkBuilder::new("i");
        builder.set_routing(Some("a\"b".to_owned()));
        builder.push_index(0, "1", 5, b"{}");
        builder.push_delete(1, "1", 5);
        builder.set_routing(None);
        builder.push_delete(2, "2", 5);
        let body = builder.finish();
        let lines: Vec<serde_json::Value> =
            body.as_bytes().split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        assert_eq!(lines[0]["index"]["routing"], "a\"b");
        assert_eq!(lines[2]["delete"]["routing"], "a\"b");
        assert!(lines[3]["delete"]["routing"].is_null());
    }

    #[test]
    fn a_missing_pipeline_is_no_documents_fault() {
        let body = body_of(&[("a", false), ("b", false)]);
        let refused = |reason: &str| json!({"type": "illegal_argument_exception", "reason": reason});
        let reply = json!({"items": [
            {"index": {"_id": "a", "status": 400, "error": refused("pipeline with id [x] does not exist")}},
            {"index": {"_id": "b", "status": 400, "error": refused("the pipeline says that this field does not exist")}},
        ]});
        let outcomes = parse_bulk_response(reply.to_string().as_bytes(), &body).unwrap();
        assert!(matches!(outcomes[0].1, BulkOutcome::Retry { status: 400, .. }));
        assert!(matches!(outcomes[1].1, BulkOutcome::Rejected { status: 400, .. }));
    }

    proptest! {
        #[test]
        fn two_lines_a_document_one_a_deletion(
            actions in proptest::collection::vec((any::<String>(), any::<u64>(), any::<bool>(), ".{0,20}|[\\s\"\\\\{}]{0,9}"), 0..20)
        ) {
            let mut builder = BulkBuilder::new("i");
            let mut expected = Vec::new();
            for (slot, (id, version, delete, text)) in actions.iter().enumerate() {
                let version = version >> 1;
                let refused = id.is_empty() || id.len() > MAX_ID_BYTES;
                let head = json!({"_id": id, "version": version, "version_type": "external_gte"});
                if *delete {
                    builder.push_delete(slot as u32, id, version);
                    if !refused {
                        expected.push(json!({"delete": head}));
                    }
                } else {
                    let document = json!({"text": text});
                    builder.push_index(slot as u32, id, version, serde_json::to_string_pretty(&document).unwrap().as_bytes());
                    if !refused {
                        expected.push(json!({"index": head}));
                        expected.push(document);
                    }
                }
            }
            prop_assert_eq!(builder.len(), actions.len());
            prop_assert_eq!(lines(&builder.finish()), expected);
        }

        #[test]
        fn any_reply_is_an_outcome_or_an_error(reply in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_bulk_response(&reply, &body_of(&[("a", false)]));
        }

        #[test]
        fn a_damaged_reply_says_nothing_wrong(
            damages in proptest::collection::vec((0usize..300, any::<u8>(), 0u8..3), 0..4)
        ) {
            let items = json!({"items": [
                {"index": {"_id": "a", "status": 201, "_seq_no": 4}},
                {"delete": {"_id": "b", "status": 404, "_seq_no": 5}},
                {"index": {"_id": "c", "status": 400, "error": {"type": "mapper_parsing_exception", "reason": "no"}}},
            ]});
            let mut reply = items.to_string().into_bytes();
            for (at, byte, kind) in damages {
                let at = at % reply.len();
                match kind {
                    0 => reply[at] = byte,
                    1 => reply.insert(at, byte),
                    _ => drop(reply.remove(at)),
                }
            }
            let body = body_of(&[("a", false), ("b", true), ("c", false)]);
            if let Ok(outcomes) = parse_bulk_response(&reply, &body) {
                // Whatever it says, it says it of these three, in this order.
                prop_assert_eq!(outcomes.iter().map(|it| it.0).collect::<Vec<_>>(), [0, 1, 2]);
            }
        }

        #[test]
        fn any_item_is_an_outcome_or_an_error(
            status in 0u32..100_000, reason in any::<String>(), kind in "[a-z_]{0,12}", seq in any::<i64>()
        ) {
            let reply = json!({"items": [{"delete": {"_id": "a", "status": status, "_seq_no": seq,
                "error": {"type": kind, "reason": format!("{reason} current version [{reason}]")}}}]});
            let _ = parse_bulk_response(reply.to_string().as_bytes(), &body_of(&[("a", true)]));
        }
    }
}
