//! Bulk requests: NDJSON out, one outcome for each document back.

use crate::error::Result;

/// Builds the body of one `POST /{index}/_bulk`. Every action carries a version of type `external_gte`.
#[derive(Debug)]
pub struct BulkBuilder {}

impl BulkBuilder {
    /// An empty batch for a concrete index.
    pub fn new(index: &str) -> BulkBuilder {
        let _ = index;
        todo!()
    }

    /// As [`BulkBuilder::new`], with the memory of a batch that came back in a report.
    pub fn reuse(index: &str, spent: BulkBody) -> BulkBuilder {
        let _ = (index, spent);
        todo!()
    }

    /// Adds a document. `slot` is the caller's name for it and comes back with the outcome; `id` must have 1 to 512
    /// bytes and `version` be below 2^63 (else the engines refuse the whole request); `document` is a JSON object.
    /// Raw CR and LF in it are replaced by spaces, so it can't become an action of its own.
    pub fn push_index(&mut self, slot: u32, id: &str, version: u64, document: &[u8]) {
        let _ = (slot, id, version, document);
        todo!()
    }

    /// Adds a deletion.
    pub fn push_delete(&mut self, slot: u32, id: &str, version: u64) {
        let _ = (slot, id, version);
        todo!()
    }

    /// Number of actions.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the body so far, in bytes, uncompressed (the engines' limit counts these).
    pub fn bytes(&self) -> usize {
        todo!()
    }

    /// The batch, ready to be sent.
    pub fn finish(self) -> BulkBody {
        todo!()
    }
}

/// A batch that is ready to be sent.
#[derive(Debug)]
pub struct BulkBody {}

impl BulkBody {
    /// The index it is for.
    pub fn index(&self) -> &str {
        todo!()
    }

    /// Number of actions.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the body in bytes, uncompressed.
    pub fn bytes(&self) -> usize {
        todo!()
    }

    /// Whether any action is a deletion.
    pub fn has_deletes(&self) -> bool {
        todo!()
    }
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
    /// The index does not exist (or is not the one that we made): nothing may be sent to it before it is ensured.
    IndexMissing,
}

/// Parses a bulk response. `body` is the request: outcomes are matched by count and id.
/// Any mismatch is [`crate::ErrorKind::Protocol`]: the outcome of every document is unknown.
pub fn parse_bulk_response(response: &[u8], body: &BulkBody) -> Result<Vec<(u32, BulkOutcome)>> {
    let _ = (response, body);
    todo!()
}
