//! Sender threads: jobs in by a bounded channel, reports out, and a file descriptor that wakes the caller.

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::bulk::{BulkBody, BulkOutcome};
use crate::config::ServerConfig;
use crate::engine::{EngineInfo, IdPage, IndexState};
use crate::error::Result;
use crate::keyspace::{KeyPage, RedisBatch, RedisOutcome};
use crate::ownership::{Claim, ClaimOutcome, Heartbeat, Ownership};

/// Wakes the caller. Never blocks.
#[derive(Debug, Clone)]
pub struct Wake {}

impl Wake {
    /// Makes the reader's descriptor readable.
    pub fn wake(&self) {
        todo!()
    }
}

/// The caller's end of a [`Wake`].
#[derive(Debug)]
pub struct WakeReader {}

impl WakeReader {
    /// The descriptor to wait on for reading. It belongs to this reader: don't close it.
    pub fn fd(&self) -> RawFd {
        todo!()
    }

    /// Takes back all wake-ups so far. Call it before looking at the reports. Never blocks.
    pub fn drain(&self) {
        todo!()
    }
}

/// Makes a pair. One reader serves any number of [`Senders`].
pub fn wake_pair() -> io::Result<(Wake, WakeReader)> {
    todo!()
}

/// One thing to do. A job for the other kind of target fails with [`crate::ErrorKind::TlsOrConfig`].
#[derive(Debug)]
#[non_exhaustive]
pub enum JobKind {
    /// Send a bulk request. → [`JobResult::Bulk`]
    Bulk(BulkBody),
    /// Send a pipeline. → [`JobResult::Redis`]
    Redis(RedisBatch),
    /// See [`crate::engine::Engine::ensure_index`]. → [`JobResult::Index`]
    EnsureIndex {
        /// Concrete index.
        concrete: String,
        /// Alias.
        alias: String,
        /// `settings` and `mappings`.
        body: serde_json::Value,
    },
    /// See [`crate::engine::Engine::swap_alias`]. → [`JobResult::Done`]
    SwapAlias {
        /// Alias.
        alias: String,
        /// Index it leaves.
        old: Option<String>,
        /// Index it goes to.
        new: String,
    },
    /// See [`crate::engine::Engine::delete_index`]. → [`JobResult::Done`]
    DeleteIndex {
        /// Concrete index.
        concrete: String,
    },
    /// See [`crate::engine::Engine::refresh`]. → [`JobResult::Done`]
    Refresh {
        /// Index or alias.
        index: String,
    },
    /// Number of documents. → [`JobResult::Count`]
    Count {
        /// Index or alias.
        index: String,
    },
    /// See [`crate::engine::Engine::scan_ids`]. → [`JobResult::Ids`]
    ScanIds {
        /// Concrete index.
        index: String,
        /// From the page before.
        cursor: Option<String>,
        /// Ids a page, at most 10,000.
        size: usize,
    },
    /// See [`crate::engine::Engine::close_scan`]. → [`JobResult::Done`]
    CloseScan {
        /// From the page before.
        cursor: String,
    },
    /// See [`crate::keyspace::RedisTarget::scan_keys`]. → [`JobResult::Keys`]
    ScanKeys {
        /// Pattern.
        glob: String,
        /// From the page before.
        cursor: Option<u64>,
        /// `COUNT`.
        count: usize,
    },
    /// → [`JobResult::Claim`]
    Claim(Claim),
    /// → [`JobResult::Heartbeat`]
    Heartbeat(Ownership),
    /// → [`JobResult::Done`]
    Release(Ownership),
    /// → [`JobResult::Probe`]
    Probe,
}

/// What came of a job that did not fail as a whole.
#[derive(Debug)]
#[non_exhaustive]
pub enum JobResult {
    /// One outcome for each action, in order.
    Bulk(Vec<(u32, BulkOutcome)>),
    /// One outcome for each slot, in order.
    Redis(Vec<(u32, RedisOutcome)>),
    /// Of `EnsureIndex`.
    Index(IndexState),
    /// Of `Count`.
    Count(u64),
    /// Of `ScanIds`.
    Ids(IdPage),
    /// Of `ScanKeys`.
    Keys(KeyPage),
    /// Of `Claim`.
    Claim(ClaimOutcome),
    /// Of `Heartbeat`.
    Heartbeat(Heartbeat),
    /// Of `Probe`; for Redis without a flavor.
    Probe(EngineInfo),
    /// Of the others.
    Done,
}

/// A job and the caller's name for it.
#[derive(Debug)]
pub struct Job {
    /// Comes back in the report.
    pub tag: u64,
    /// What to do.
    pub kind: JobKind,
}

/// A batch that was sent, for its memory to be used again.
#[derive(Debug, Default)]
pub enum Spent {
    /// The job had none, or it was lost in a panic.
    #[default]
    Nothing,
    /// See [`crate::bulk::BulkBuilder::reuse`].
    Bulk(BulkBody),
    /// See [`RedisBatch::reuse`].
    Redis(RedisBatch),
}

/// What came of a job. There is exactly one for each job that [`Senders::try_send`] took, unless the process ends.
#[derive(Debug)]
pub struct Report {
    /// The job's tag.
    pub tag: u64,
    /// `Err`: it failed as a whole.
    pub result: Result<JobResult>,
    /// The batch.
    pub spent: Spent,
    /// Bytes of the batch, uncompressed; 0 for other jobs.
    pub bytes: usize,
    /// Time from taking the job up to its end.
    pub elapsed: Duration,
}

/// Sizes.
#[derive(Debug, Clone, Copy)]
pub struct SenderOptions {
    /// Threads, and so requests in flight. Redis always has one: its order is that of one connection.
    pub threads: usize,
    /// Jobs that may wait beside those that are being sent.
    pub queue: usize,
}

/// The threads that talk to one server as one user.
#[derive(Debug)]
pub struct Senders {}

impl Senders {
    /// Starts the threads, with all signals blocked in them. They connect when their first job comes; a configuration
    /// that can't work (bad PEM) fails the jobs. `reports` should be unbounded: what is in it is bounded by the jobs.
    pub fn start(
        server: ServerConfig,
        options: SenderOptions,
        reports: Sender<Report>,
        wake: Wake,
    ) -> io::Result<Senders> {
        let _ = (server, options, reports, wake);
        todo!()
    }

    /// Hands over a job; gives it back if the queue is full. Never blocks.
    pub fn try_send(&self, job: Job) -> std::result::Result<(), Box<Job>> {
        let _ = job;
        todo!()
    }

    /// Jobs taken whose report has not been sent yet.
    pub fn in_flight(&self) -> usize {
        todo!()
    }

    /// Ends the threads: jobs that were not begun are reported as [`crate::ErrorKind::Stopped`], those being sent are
    /// waited for until the deadline. True: all ended. False: some were left to themselves; their reports still come.
    pub fn stop(self, deadline: Instant) -> bool {
        let _ = deadline;
        todo!()
    }
}
