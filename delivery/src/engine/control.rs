//! Ownership in a search engine: one control document a target, changed by compare-and-swap on its sequence number.

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::Engine;
use super::http::{NDJSON, Request, parsed, refusal, refusal_type, segment};
use crate::error::{Error, ErrorKind, Result};
use crate::ownership::{self, CONTROL_INDEX, Claim, ClaimOutcome, Control, Decision, Fence, Heartbeat, Ownership};

struct Read {
    control: Control,
    seq_no: u64,
    primary_term: u64,
}

impl Engine {
    /// Claims a target; see [`crate::ownership`]. Makes the control index if there is none.
    pub fn claim(&self, claim: &Claim) -> Result<ClaimOutcome> {
        ownership::attempts(|| {
            let read = self.read_control(&claim.target)?;
            let state = read.as_ref().map(|read| read.control.state(&format!("{}/{}", read.seq_no, read.primary_term)));
            let control = match claim.decide(read.as_ref().map(|read| &read.control).zip(state)) {
                Decision::Take(control) => control,
                Decision::Leave(outcome) => return Ok(Some(outcome)),
            };
            let expected = read.map(|read| (read.seq_no, read.primary_term));
            let written = self.write_control(&claim.target, &control, expected)?;
            Ok(written.map(|fence| ClaimOutcome::Owned(Ownership::new(claim, control.epoch, fence))))
        })
    }

    /// Renews ownerships, in bulk requests where nothing has changed behind our back. One outcome for each.
    pub fn heartbeats(&self, ownerships: &[Ownership]) -> Result<Vec<Result<Heartbeat>>> {
        ownership::heartbeats(
            &mut &*self,
            ownerships,
            |engine, some| engine.renew(some),
            |engine, one| engine.heartbeat(one),
        )
    }

    /// The new fences of those control documents that could be written.
    fn renew(&self, ownerships: &[Ownership]) -> Result<Vec<Option<Fence>>> {
        #[derive(Deserialize)]
        struct Reply {
            items: Vec<Item>,
        }
        #[derive(Deserialize)]
        struct Item {
            index: Written,
        }
        #[derive(Deserialize)]
        struct Written {
            status: u16,
            #[serde(rename = "_seq_no")]
            seq_no: Option<u64>,
            #[serde(rename = "_primary_term")]
            primary_term: Option<u64>,
        }
        let mut body = String::new();
        for ownership in ownerships {
            let Fence::SeqNo(seq_no, primary_term) = ownership.fence else { return Err(another_kind()) };
            let action =
                json!({"index": {"_id": ownership.target, "if_seq_no": seq_no, "if_primary_term": primary_term}});
            body.push_str(&format!("{action}\n{}\n", Control::renewed(ownership).to_json()));
        }
        let path = format!("/{CONTROL_INDEX}/_bulk");
        let request = Request { content_type: NDJSON, body: body.into(), ..Request::new(Method::POST, &path) };
        let reply = self.http.ask(&request)?;
        let reply: Reply = parsed(&reply)?;
        if reply.items.len() != ownerships.len() {
            return Err(Error::new(ErrorKind::Protocol, "the reply has not one item for each control document"));
        }
        let fence = |Item { index }| match index {
            Written { status: 200..300, seq_no: Some(seq_no), primary_term: Some(term) } => {
                Some(Fence::SeqNo(seq_no, term))
            }
            _ => None,
        };
        Ok(reply.items.into_iter().map(fence).collect())
    }

    /// Renews an ownership.
    pub fn heartbeat(&self, ownership: &Ownership) -> Result<Heartbeat> {
        let Fence::SeqNo(seq_no, primary_term) = ownership.fence else {
            return Err(another_kind());
        };
        let control = Control::renewed(ownership);
        let mut expected = (seq_no, primary_term);
        ownership::attempts(|| {
            if let Some(fence) = self.write_control(&ownership.target, &control, Some(expected))? {
                return Ok(Some(Heartbeat::Kept(ownership.with_fence(fence))));
            }
            let by = match self.read_control(&ownership.target)? {
                // Our own write, whose reply was lost.
                Some(read) if read.control.is_of(ownership) => {
                    expected = (read.seq_no, read.primary_term);
                    return Ok(None);
                }
                Some(read) => read.control.by,
                None => String::new(),
            };
            Ok(Some(Heartbeat::Superseded { by }))
        })
    }

    /// Gives an ownership up, if it is still ours. A sign of life of ours may come in between.
    pub fn release(&self, ownership: &Ownership) -> Result<()> {
        ownership::attempts(|| {
            let Some(Read { control, seq_no, primary_term }) = self.read_control(&ownership.target)? else {
                return Ok(Some(()));
            };
            if !control.is_of(ownership) {
                return Ok(Some(()));
            }
            let path =
                format!("{}?if_seq_no={seq_no}&if_primary_term={primary_term}", document_path(&ownership.target));
            match self.http.ask(&Request::new(Method::DELETE, &path)) {
                Ok(_) => Ok(Some(())),
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn read_control(&self, target: &str) -> Result<Option<Read>> {
        #[derive(Deserialize)]
        struct Got {
            #[serde(rename = "_seq_no")]
            seq_no: u64,
            #[serde(rename = "_primary_term")]
            primary_term: u64,
            #[serde(rename = "_source")]
            source: Control,
        }
        let path = document_path(target);
        let reply = self.http.send(&Request::new(Method::GET, &path))?;
        match reply.status {
            200 => {
                let got: Got = parsed(&reply)?;
                Ok(Some(Read { control: got.source, seq_no: got.seq_no, primary_term: got.primary_term }))
            }
            404 if refusal_type(&reply) == "index_not_found_exception" => {
                self.make_control_index()?;
                Ok(None)
            }
            404 if refusal_type(&reply).is_empty() => Ok(None),
            _ => Err(refusal(&reply)),
        }
    }

    /// None: another was faster.
    fn write_control(&self, target: &str, control: &Control, expected: Option<(u64, u64)>) -> Result<Option<Fence>> {
        #[derive(Deserialize)]
        struct Put {
            #[serde(rename = "_seq_no")]
            seq_no: u64,
            #[serde(rename = "_primary_term")]
            primary_term: u64,
        }
        let path = match expected {
            Some((seq_no, primary_term)) => {
                format!("{}?if_seq_no={seq_no}&if_primary_term={primary_term}", document_path(target))
            }
            None => format!("{}?op_type=create", document_path(target)),
        };
        let reply = self.http.send(&Request::new(Method::PUT, &path).json(&control.to_json()))?;
        match reply.status {
            200..300 => {
                let put: Put = parsed(&reply)?;
                Ok(Some(Fence::SeqNo(put.seq_no, put.primary_term)))
            }
            409 => Ok(None),
            _ => Err(refusal(&reply)),
        }
    }

    fn make_control_index(&self) -> Result<()> {
        let body = json!({
            "settings": {"number_of_shards": 1, "auto_expand_replicas": "0-1", "index.hidden": true},
            "mappings": {"dynamic": false, "properties": {}},
        });
        let path = format!("/{CONTROL_INDEX}");
        let reply = self.http.send(&Request::new(Method::PUT, &path).json(&body))?;
        let there = reply.status == 400 && refusal_type(&reply) == "resource_already_exists_exception";
        if (200..300).contains(&reply.status) || there { Ok(()) } else { Err(refusal(&reply)) }
    }
}

fn another_kind() -> Error {
    Error::new(ErrorKind::TlsOrConfig, "the ownership is that of another kind of target")
}

pub(super) fn document_path(target: &str) -> String {
    format!("/{CONTROL_INDEX}/_doc/{}", segment(target))
}
