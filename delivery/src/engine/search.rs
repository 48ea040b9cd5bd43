//! Reading: searches, points in time, documents, ids.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::http::{JSON, Reply, Request, parsed, refusal, segment};
use super::index::pattern;
use super::{Engine, Hit, IdPage, SearchReply, SearchResponse, StoredDocument, TotalRelation};
use crate::config::Flavor;
use crate::error::{Error, ErrorKind, Result};

/// How long a scan survives between two pages.
const SCROLL: &str = "5m";

/// What a page of ids has of the reply.
const ID_FILTER: &str = "filter_path=_scroll_id,timed_out,_shards.total,_shards.failed,hits.hits._index,hits.hits._id,\
    hits.hits._routing,hits.hits._version";

/// Hits that engines give at once, at most.
const MOST_HITS: usize = 10_000;

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(default)]
    took: u64,
    #[serde(default)]
    timed_out: bool,
    // Every answer to a search has it: without it this is something else, and no empty result.
    #[serde(rename = "_shards")]
    shards: Shards,
    #[serde(borrow, default)]
    hits: Hits<'a>,
    #[serde(borrow)]
    aggregations: Option<&'a RawValue>,
    #[serde(borrow)]
    pit_id: Option<Cow<'a, str>>,
}

#[derive(Deserialize, Default)]
struct Shards {
    #[serde(default)]
    total: u64,
    #[serde(default)]
    failed: u64,
}

#[derive(Deserialize, Default)]
struct Hits<'a> {
    #[serde(borrow)]
    total: Option<Total<'a>>,
    #[serde(borrow, default)]
    hits: Vec<Hit<'a>>,
}

#[derive(Deserialize)]
struct Total<'a> {
    value: u64,
    #[serde(borrow)]
    relation: Cow<'a, str>,
}

impl SearchReply {
    /// What it says. A failed shard or a time-out within the engine is an error, never a shorter answer.
    pub fn read(&self) -> Result<SearchResponse<'_>> {
        search_response(&self.0)
    }
}

pub(super) fn search_response(body: &[u8]) -> Result<SearchResponse<'_>> {
    let not_understood = || Error::new(ErrorKind::Protocol, "the search engine's reply is not understood");
    // In one go, which takes less than for each text of it.
    let body = std::str::from_utf8(body).map_err(|error| not_understood().with_source(error))?;
    let answer: Answer<'_> = serde_json::from_str(body).map_err(|error| not_understood().with_source(error))?;
    if answer.shards.failed > 0 {
        return Err(Error::new(
            ErrorKind::Incomplete,
            format!("{} of {} shards failed to answer the search", answer.shards.failed, answer.shards.total),
        ));
    }
    if answer.timed_out {
        return Err(Error::new(ErrorKind::Incomplete, "the search ran into its own time limit"));
    }
    Ok(SearchResponse {
        took_ms: answer.took,
        timed_out: answer.timed_out,
        shards_total: answer.shards.total,
        shards_failed: answer.shards.failed,
        total: answer.hits.total.map(|total| {
            let relation = if total.relation == "eq" { TotalRelation::Equal } else { TotalRelation::AtLeast };
            (total.value, relation)
        }),
        hits: answer.hits.hits,
        aggregations: answer.aggregations,
        pit_id: answer.pit_id,
    })
}

/// What a page of [`Engine::scan_ids`] holds, with the cursor that it came with.
pub(super) fn id_page(body: &[u8]) -> Result<IdPage> {
    #[derive(Deserialize)]
    struct Page<'a> {
        #[serde(rename = "_scroll_id")]
        scroll_id: Option<String>,
        #[serde(default)]
        timed_out: bool,
        #[serde(rename = "_shards")]
        shards: Shards,
        #[serde(borrow, default)]
        hits: PageHits<'a>,
    }
    #[derive(Deserialize, Default)]
    struct PageHits<'a> {
        #[serde(borrow, default)]
        hits: Vec<IdHit<'a>>,
    }
    #[derive(Deserialize)]
    struct IdHit<'a> {
        #[serde(rename = "_index", borrow)]
        index: Cow<'a, str>,
        #[serde(rename = "_id", borrow)]
        id: Cow<'a, str>,
        #[serde(rename = "_routing", borrow)]
        routing: Option<Cow<'a, str>>,
        #[serde(rename = "_version")]
        version: Option<u64>,
    }
    let page: Page<'_> = serde_json::from_slice(body).map_err(|error| {
        Error::new(ErrorKind::Protocol, "the search engine's page of ids is not understood").with_source(error)
    })?;
    // A list with holes would look as if documents were gone, and one that is no list as if there were none.
    if page.timed_out || page.shards.failed > 0 || page.shards.total == 0 {
        return Err(Error::new(ErrorKind::Incomplete, "not all shards gave their ids"));
    }
    let mut ids = IdPage { cursor: page.scroll_id, ..IdPage::default() };
    for hit in page.hits.hits {
        ids.indices.push(hit.index.into_owned());
        ids.routings.push(hit.routing.map(Cow::into_owned));
        ids.versions.push(hit.version);
        ids.ids.push(hit.id.into_owned());
    }
    Ok(ids)
}

impl Engine {
    /// Runs a search. `index` is `None` with a point in time. `body` is JSON. A missing index is an error. `timeout` bounds
    /// the request in place of the configured one.
    pub fn search(&self, index: Option<&str>, body: &[u8], timeout: Option<Duration>) -> Result<SearchReply> {
        let path = match index {
            Some(index) => format!(
                "/{}/_search?allow_partial_search_results=false&ignore_unavailable=false&allow_no_indices=false",
                pattern(index)?
            ),
            // What is searched was settled when the point in time was opened; saying it again is refused.
            None => "/_search?allow_partial_search_results=false".to_owned(),
        };
        let request = Request {
            method: Method::POST,
            path: &path,
            content_type: JSON,
            body: Bytes::copy_from_slice(body),
            timeout,
        };
        Ok(SearchReply(self.http.ask(&request)?.body))
    }

    /// A document, as of now (also if no refresh made it visible to searches). `None` if there is none.
    pub fn get(&self, index: &str, id: &str) -> Result<Option<StoredDocument>> {
        #[derive(Deserialize)]
        struct Many {
            docs: Vec<One>,
        }
        #[derive(Deserialize)]
        struct One {
            #[serde(default)]
            found: bool,
            #[serde(rename = "_version")]
            version: Option<u64>,
            #[serde(rename = "_source")]
            source: Option<Box<RawValue>>,
            error: Option<Box<RawValue>>,
        }
        // Not GET /index/_doc/id: an id of "." or ".." would be taken for a part of the path.
        let path = format!("/{}/_mget", pattern(index)?);
        let reply = self.http.ask(&Request::new(Method::POST, &path).json(&json!({"ids": [id]})))?;
        let many: Many = parsed(&reply)?;
        let [one] = <[One; 1]>::try_from(many.docs)
            .map_err(|_| Error::new(ErrorKind::Protocol, "asked for one document, got another number of them"))?;
        if let Some(error) = one.error {
            let body = format!("{{\"error\":{error}}}").into_bytes();
            let error = refusal(&Reply { status: 404, version_header: None, body });
            return Err(error);
        }
        Ok(one.found.then(|| StoredDocument { id: id.to_owned(), version: one.version, source: one.source }))
    }

    /// How many documents searches see.
    pub fn count(&self, index: &str) -> Result<u64> {
        #[derive(Deserialize)]
        struct Counted {
            count: u64,
            #[serde(rename = "_shards", default)]
            shards: Shards,
        }
        let path = format!("/{}/_count?ignore_unavailable=false&allow_no_indices=false", pattern(index)?);
        let reply = self.http.ask(&Request::new(Method::GET, &path))?;
        let counted: Counted = parsed(&reply)?;
        if counted.shards.failed > 0 {
            return Err(Error::new(ErrorKind::Incomplete, format!("{} shards failed to count", counted.shards.failed)));
        }
        Ok(counted.count)
    }

    /// All ids of an index, page by page; `cursor` is `None` for the first, which refreshes the index and takes a
    /// snapshot of it: a document that was written but is not searchable yet must not be missed. It is kept for five minutes after each page: [`crate::ErrorKind::NotFound`] if it expired.
    /// `size` is at most 10,000.
    pub fn scan_ids(&self, index: &str, cursor: Option<&str>, size: usize) -> Result<IdPage> {
        let reply = match cursor {
            None => {
                self.refresh(index)?;
                let path = format!(
                    "/{}/_search?scroll={SCROLL}&allow_partial_search_results=false&ignore_unavailable=false\
                     &allow_no_indices=false&{ID_FILTER}",
                    pattern(index)?
                );
                let body = json!({
                    "size": size, "sort": ["_doc"], "_source": false, "version": true, "track_total_hits": true
                });
                self.http.ask(&Request::new(Method::POST, &path).json(&body))?
            }
            Some(cursor) => {
                let path = format!("/_search/scroll?{ID_FILTER}");
                let body = json!({"scroll": SCROLL, "scroll_id": cursor});
                self.http.ask(&Request::new(Method::POST, &path).json(&body))?
            }
        };
        let mut page = id_page(&reply.body)?;
        page.cursor = page.cursor.or_else(|| cursor.map(str::to_owned));
        if page.ids.is_empty() {
            if let Some(cursor) = page.cursor.take() {
                // It would expire by itself: not worth failing a complete scan for.
                let _ = self.close_scan(&cursor);
            }
            return Ok(page);
        }
        if page.cursor.is_none() {
            return Err(Error::new(ErrorKind::Protocol, "a page of ids came without a scroll id"));
        }
        Ok(page)
    }

    /// All ids of an index in the order in which their documents were written, page by page, up to what was written when
    /// the first page was asked for. The engine keeps nothing meanwhile: a cursor says itself how far the listing is, and is
    /// good for as long as the index is. A document that is written while it is listed may be left out. It costs more than
    /// [`Engine::scan_ids`].
    ///
    /// Each shard counts what is written there, and a document that is written again comes last: so none is missed that
    /// stays as it is, as long as one copy of the shard is asked. A page ends before the number of its last hit: other shards
    /// may have more documents with that one.
    pub fn list_ids(&self, index: &str, cursor: Option<&str>, size: usize) -> Result<IdPage> {
        let (from, to) = match cursor {
            None => {
                self.refresh(index)?;
                match self.written(index, &json!({"match_all": {}}), "desc", 1)?.1.first() {
                    Some(last) => (0, *last),
                    None => return Ok(IdPage::default()),
                }
            }
            Some(cursor) => cursor
                .split_once('-')
                .and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)))
                .ok_or_else(|| Error::new(ErrorKind::BadRequest, "this is no cursor of a listing"))?,
        };
        let between = json!({"range": {"_seq_no": {"gte": from, "lte": to}}});
        // As many shards may have a document with the same number as a page has ids.
        for size in [size, MOST_HITS] {
            let (mut page, numbers) = self.written(index, &between, "asc", size)?;
            let Some(last) = numbers.last().copied().filter(|_| numbers.len() >= size) else { return Ok(page) };
            let before = numbers.partition_point(|number| *number < last);
            if before > 0 {
                page.truncate(before);
                page.cursor = Some(format!("{last}-{to}"));
                return Ok(page);
            }
        }
        Err(Error::new(ErrorKind::Protocol, format!("more than {MOST_HITS} documents were written as number {from}")))
    }

    /// A page of ids by sequence number, and those numbers.
    fn written(&self, index: &str, query: &Value, order: &str, size: usize) -> Result<(IdPage, Vec<u64>)> {
        #[derive(Deserialize)]
        struct Numbered {
            #[serde(default)]
            hits: NumberedHits,
        }
        #[derive(Deserialize, Default)]
        struct NumberedHits {
            #[serde(default)]
            hits: Vec<NumberedHit>,
        }
        #[derive(Deserialize)]
        struct NumberedHit {
            sort: [u64; 1],
        }
        let path = format!(
            "/{}/_search?preference=pg_fanout&allow_partial_search_results=false&ignore_unavailable=false\
             &allow_no_indices=false&{ID_FILTER},hits.hits.sort",
            pattern(index)?
        );
        let body = json!({
            "size": size, "sort": [{"_seq_no": order}], "query": query, "_source": false, "version": true,
            "track_total_hits": false
        });
        let reply = self.http.ask(&Request::new(Method::POST, &path).json(&body))?;
        let page = id_page(&reply.body)?;
        let numbered: Numbered = parsed(&reply)?;
        Ok((page, numbered.hits.hits.into_iter().map(|NumberedHit { sort: [number] }| number).collect()))
    }

    /// Ends a scan before its last page; one that ended already is no error.
    pub fn close_scan(&self, cursor: &str) -> Result<()> {
        let body = json!({"scroll_id": [cursor]});
        closed(self.http.ask(&Request::new(Method::DELETE, "/_search/scroll").json(&body)))
    }

    /// Opens a point in time for `keep_alive` (whole seconds, at least 1).
    pub fn open_pit(&self, index: &str, keep_alive: Duration) -> Result<String> {
        #[derive(Deserialize)]
        struct Opened {
            // OpenSearch, Elasticsearch.
            #[serde(alias = "id")]
            pit_id: String,
        }
        let form = match self.flavor()? {
            Flavor::Elasticsearch => "_pit",
            Flavor::OpenSearch => "_search/point_in_time",
        };
        let path = format!("/{}/{form}?keep_alive={}s", pattern(index)?, keep_alive.as_secs().max(1));
        let reply = self.http.ask(&Request::new(Method::POST, &path))?;
        Ok(parsed::<Opened>(&reply)?.pit_id)
    }

    /// Closes a point in time; one that is closed already is no error.
    pub fn close_pit(&self, pit_id: &str) -> Result<()> {
        let (path, body) = match self.flavor()? {
            Flavor::Elasticsearch => ("/_pit", json!({"id": pit_id})),
            Flavor::OpenSearch => ("/_search/point_in_time", json!({"pit_id": [pit_id]})),
        };
        closed(self.http.ask(&Request::new(Method::DELETE, path).json(&body)))
    }

    /// Any other request, for what this crate has no call for: `path` begins with a slash, is encoded and may have a
    /// query. The reply's body; a status of 400 or more is an `Err`.
    pub fn post(&self, path: &str, body: &[u8], timeout: Option<Duration>) -> Result<Vec<u8>> {
        let request =
            Request { method: Method::POST, path, content_type: JSON, body: Bytes::copy_from_slice(body), timeout };
        Ok(self.http.ask(&request)?.body)
    }

    /// The path of an index for [`Engine::post`].
    pub fn index_path(index: &str) -> String {
        format!("/{}", segment(index))
    }
}

fn closed(result: Result<Reply>) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_search_response() {
        let body = br#"{"took":3,"timed_out":false,"_shards":{"total":1,"successful":1,"failed":0},"pit_id":"p",
            "hits":{"total":{"value":10000,"relation":"gte"},"max_score":null,"hits":[
            {"_index":"i","_id":"a\"","_score":1.5,"_source":{"n": 1.0},"highlight":{"t":["<em>x</em>"]},"sort":[1,"a"]},
            {"_index":"i","_id":"b","_score":null}]},"aggregations":{"x":{"value":1}}}"#;
        let response = search_response(body).unwrap();
        assert_eq!((response.took_ms, response.total), (3, Some((10000, TotalRelation::AtLeast))));
        assert_eq!(response.hits[0].id, "a\"");
        assert_eq!(response.hits[0].source.as_ref().unwrap().get(), r#"{"n": 1.0}"#);
        assert_eq!(response.hits[0].sort.as_ref().unwrap().get(), r#"[1,"a"]"#);
        assert!(response.hits[1].source.is_none() && response.hits[1].score.is_none());
        assert_eq!(response.pit_id.as_deref(), Some("p"));
    }

    #[test]
    fn a_page_of_ids() {
        let body = br#"{"_scroll_id":"s","timed_out":false,"_shards":{"total":1,"failed":0},"hits":{"hits":[
            {"_index":"i","_id":"a","_version":7,"_routing":"r","sort":[0]},{"_index":"i","_id":"b\u00e9","sort":[1]}]}}"#;
        let page = id_page(body).unwrap();
        assert_eq!((page.ids, page.versions), (vec!["a".into(), "bé".into()], vec![Some(7), None]));
        assert_eq!((page.indices, page.routings), (vec!["i".into(), "i".into()], vec![Some("r".into()), None]));
    }

    #[test]
    fn a_part_of_an_answer_is_an_error() {
        for body in [
            r#"{"took":1,"timed_out":true,"_shards":{"total":1,"failed":0},"hits":{"hits":[]}}"#,
            r#"{"took":1,"timed_out":false,"_shards":{"total":2,"failed":1},"hits":{"hits":[]}}"#,
        ] {
            assert_eq!(search_response(body.as_bytes()).unwrap_err().kind(), ErrorKind::Incomplete);
        }
        for body in ["[]x", "{}", r#"{"took":1,"hits":{"hits":[]}}"#, r#"{"error":"x"}"#] {
            assert_eq!(search_response(body.as_bytes()).unwrap_err().kind(), ErrorKind::Protocol, "{body}");
            assert_eq!(id_page(body.as_bytes()).unwrap_err().kind(), ErrorKind::Protocol, "{body}");
        }
        let no_shard = br#"{"_scroll_id":"s","_shards":{"total":0,"failed":0}}"#;
        assert_eq!(id_page(no_shard).unwrap_err().kind(), ErrorKind::Incomplete);
        let last = br#"{"_scroll_id":"s","timed_out":false,"_shards":{"total":1,"failed":0}}"#;
        assert_eq!(id_page(last).unwrap(), IdPage { cursor: Some("s".into()), ..IdPage::default() });
    }

    /// A reply as the engines give it, with a few bytes changed, left out or doubled.
    fn damaged(reply: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec((0..reply.len(), 0u8..4, any::<u8>()), 0..5).prop_map(move |damages| {
            let mut bytes = reply.to_vec();
            for (at, kind, byte) in damages {
                let at = at.min(bytes.len() - 1);
                match kind {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, b"{}[]\",:0"[usize::from(byte) % 8]),
                    2 if bytes.len() > 1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at + 1),
                }
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn any_reply_is_an_answer_or_an_error(reply in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = search_response(&reply);
            let _ = id_page(&reply);
        }

        #[test]
        fn a_damaged_reply_is_an_answer_or_an_error(
            reply in damaged(br#"{"took":3,"timed_out":false,"_shards":{"total":1,"failed":0},"_scroll_id":"p",
                "hits":{"total":{"value":10,"relation":"eq"},"hits":[{"_index":"i","_id":"a","_score":1.5,"sort":[1]}]}}"#)
        ) {
            let _ = search_response(&reply);
            let _ = id_page(&reply);
        }
    }
}
