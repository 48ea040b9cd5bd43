//! One sync at work: what is known of its source and target, what is pending, and how far its scan is.

use super::batch::{self, Called, Naming};
use super::pace::Pace;
use super::pending::{Epoch, Pending, Slot};
use super::reading::QUARANTINE;
use super::rhythm::{self, Rate};
use super::scan::{Ids, Scan};
use super::shared::{ScanState, SyncSlot, SyncState};
use super::strikes::{self, Verdict};
use crate::catalog::{Kind, Phase, Sync, Templates};
use crate::document::{Plans, Related, Source};
use crate::error::failure;
use crate::journal::format::Orphan;
use crate::settings;
use delivery::aimd::{Aimd, Bounds};
use delivery::backoff::Backoff;
use delivery::engine::IdPage;
use delivery::ownership::{Ownership, Sighting};
use delivery::sender::Senders;
use pgrx::PgSqlErrorCode;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a sync waits before it tries again what a person has to put right.
pub const BLOCKED_RETRY: Duration = Duration::from_secs(15);

/// How far the sync is with its target.
pub enum Target {
    /// Nothing was asked of it yet, or all has to be asked again.
    Unknown,
    /// A job is on its way.
    Asked,
    /// Ours, but the index is not known to be there.
    Claimed,
    /// Ours, and there: documents may be sent.
    Ready,
}

/// One sync at work.
pub struct Runner {
    pub sync: Sync,
    pub slot: &'static SyncSlot,
    pub source: Option<(Source, Option<Plans>)>,
    /// What finds the documents that rows of related tables belong to, by relation; resolved with the source.
    pub related: FxHashMap<i32, Related>,
    /// Rows of a related table that are looked up at a time: falls when that takes too long.
    pub related_limit: usize,
    /// The tables that the source consists of: what alters them matters.
    pub tables: Vec<pgrx::pg_sys::Oid>,
    pub templates: Templates,
    pub senders: Option<Rc<Senders>>,
    /// Jobs that the senders take at a time: those in flight and as many waiting.
    pub capacity: usize,
    pub pending: Pending,
    pub target: Target,
    pub ownership: Option<Ownership>,
    /// Indices of generations that are served no longer, to be deleted.
    pub outdated: Vec<String>,
    /// The source was looked up anew: the index' mapping may lack something.
    pub source_changed: bool,
    /// With one index a period: those that are there.
    pub made: BTreeSet<String>,
    /// Those that documents wait for.
    pub unmade: BTreeSet<String>,
    /// The body that the index was asked for with.
    pub index_body: Option<serde_json::Value>,
    pub sighting: Option<Sighting>,
    pub scan: Option<Scan>,
    /// Number of the scan: what was asked for an earlier one is of no interest to it.
    pub scan_number: u32,
    /// How fast the scan may read.
    pub pace: Pace,
    /// The scan goes on at this time.
    pub scan_at: Option<Instant>,
    /// When triggers are tried again that could not be put on what inherits from the source.
    pub heirs_at: Option<Instant>,
    /// The scan waits for its time of day.
    pub outside_window: bool,
    /// A phase that is to begin, until that is noted durably.
    pub wanted: Option<Phase>,
    /// Not before is it tried again to note that.
    pub wanted_at: Instant,
    /// Goes up when all has to be asked of the target anew: what was asked before is of no interest then.
    pub incarnation: u32,
    /// Batches on their way.
    pub batches: usize,
    pub flow: Aimd,
    pub backoff: Backoff,
    /// Nothing is sent before.
    pub not_before: Option<Instant>,
    /// The last attempt failed: one batch at a time, as a probe.
    pub failing: bool,
    /// Somebody has to put something right.
    pub blocked: bool,
    /// See [`Self::quarantine`].
    pub quarantined: bool,
    /// See [`Self::leave_alone`].
    pub left_alone: bool,
    /// Documents that a batch may have: falls when the target says that a batch is too large, or a row cannot be read.
    pub batch_limit: usize,
    /// Bytes of a document, a moving mean; 0 if none was seen.
    pub mean_bytes: usize,
    /// Batches of changes since the last one of a scan.
    pub since_scan: u32,
    /// When changes were last read for a batch, how fast they come, and until when the target then rests.
    pub batched_at: Instant,
    change_rate: Rate,
    rests_until: Instant,
    /// Rows asked for in the last reading of pending addresses; all of a scan's count as many.
    pub last_read: usize,
    /// Addresses whose row alone took longer than fanout.read_timeout, or failed, and how often: read apart, when nothing else is
    /// to be read.
    pub slow: FxHashMap<Vec<u8>, u32>,
    /// Documents that the target refused for good since it took one last.
    pub refused_in_a_row: usize,
    /// Addresses with a dead letter.
    pub dead: FxHashSet<Vec<u8>>,
    /// Rejected, and the old document is to go: on_reject = delete.
    pub delete_instead: FxHashSet<Vec<u8>>,
    /// Addresses in fanout.pending, beside those in memory.
    pub stored: i64,
    /// Stored addresses up to this one are in memory.
    pub stored_after: Vec<u8>,
    /// The alarm at 80 % of fanout.backlog_keys was given.
    pub alarmed: bool,
    /// Tickets of fanout.wait() and the epochs that fulfil them.
    pub waits: VecDeque<(u64, Epoch)>,
    pub wait_seen: u64,
    /// A refresh for this ticket is on its way.
    pub refreshing: bool,
    pub saved_at: Instant,
    pub saved_position: Option<Vec<u8>>,
    rate_since: Instant,
    rate_base: u64,
}

impl Runner {
    /// Nothing is known yet but the catalog's row.
    pub fn new(sync: Sync, slot: &'static SyncSlot) -> Self {
        Self {
            templates: sync.templates(),
            slot,
            source: None,
            tables: Vec::new(),
            related: FxHashMap::default(),
            related_limit: usize::MAX,
            senders: None,
            capacity: 0,
            pending: Pending::default(),
            target: Target::Unknown,
            ownership: None,
            outdated: Vec::new(),
            source_changed: false,
            made: BTreeSet::new(),
            unmade: BTreeSet::new(),
            index_body: None,
            sighting: None,
            scan: None,
            scan_number: 0,
            pace: Pace::of(&sync.options),
            scan_at: None,
            heirs_at: None,
            outside_window: false,
            wanted: None,
            wanted_at: Instant::now(),
            incarnation: 0,
            batches: 0,
            flow: Aimd::new(Bounds {
                min_concurrency: 1,
                max_concurrency: 4,
                min_bytes: 16 * 1024,
                max_bytes: 64 * 1024 * 1024,
            }),
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(30)),
            not_before: None,
            failing: false,
            blocked: false,
            quarantined: false,
            left_alone: false,
            batch_limit: usize::MAX,
            mean_bytes: 0,
            since_scan: 0,
            batched_at: Instant::now(),
            change_rate: Rate::default(),
            rests_until: Instant::now(),
            last_read: usize::MAX,
            slow: FxHashMap::default(),
            refused_in_a_row: 0,
            dead: FxHashSet::default(),
            delete_instead: FxHashSet::default(),
            stored: 0,
            stored_after: Vec::new(),
            alarmed: false,
            waits: VecDeque::new(),
            wait_seen: slot.done(),
            refreshing: false,
            saved_at: Instant::now(),
            saved_position: None,
            rate_since: Instant::now(),
            rate_base: slot.delivered.load(std::sync::atomic::Ordering::Relaxed),
            sync,
        }
    }

    /// True if the sync may do anything at all.
    pub fn is_active(&self) -> bool {
        !self.sync.paused && !self.is_parked()
    }

    /// True if the sync was made in another cluster or database.
    pub fn is_parked(&self) -> bool {
        self.sync.parked().is_some()
    }

    /// Document id or key of an address.
    pub fn render(&self, address: &[u8]) -> Option<String> {
        let (source, _) = self.source.as_ref()?;
        self.naming(source).render(address)
    }

    /// Until when the next changes are left to gather, unless they fill a batch or somebody waits for them. Where many come, also
    /// until those before them have arrived.
    pub fn rests_until(&self) -> Instant {
        if self.batches > 0 && self.scan.is_none() && self.change_rate.is_high() {
            self.batched_at + rhythm::ARRIVAL
        } else {
            self.rests_until
        }
    }

    /// True if the next changes are left to gather for a moment.
    pub fn rests(&self, now: Instant) -> bool {
        now < self.rests_until() && self.waits.is_empty() && self.pending.queued() < batch::limit(self)
    }

    /// Changes were read for a batch.
    pub fn note_batch(&mut self, now: Instant) {
        if self.last_read != usize::MAX {
            self.change_rate.note(self.last_read, now - self.batched_at);
        }
        self.rests_until = now
            + match self.sync.kind {
                Kind::Index => rhythm::pause_of_engine(self.change_rate),
                Kind::Cache => rhythm::pause_of_redis(self.change_rate),
            };
        self.batched_at = now;
    }

    /// How addresses are called in the target.
    pub fn naming<'a>(&'a self, source: &'a Source) -> Naming<'a> {
        Naming { sync: &self.sync, source, templates: &self.templates }
    }

    /// The values of the key columns of an address.
    pub fn key(&self, address: &[u8]) -> Option<Vec<Option<String>>> {
        let (source, _) = self.source.as_ref()?;
        let mut values = source.render(address)?;
        values.truncate(source.keys);
        Some(values)
    }

    /// Image of the address that an id or key of the target stands for; None if it is none of this sync's.
    pub fn parse(&self, name: Called) -> Option<Vec<u8>> {
        let (source, _) = self.source.as_ref()?;
        self.naming(source).parse(name)
    }

    /// A document of the target's listing of which [`Self::parse`] can't tell the address, if it is ours.
    pub fn orphan<'a>(&self, page: &'a IdPage, at: usize) -> Option<Orphan<'a>> {
        let (source, _) = self.source.as_ref()?;
        self.naming(source).orphan(page, at)
    }

    /// Documents wait for indices that are not there: these are made before anything else goes to the target.
    pub fn wait_for_indices(&mut self, indices: BTreeSet<String>) {
        if !indices.is_empty() {
            self.unmade.extend(indices);
            self.target = Target::Claimed;
        }
    }

    /// All has to be asked of the target anew: it may be another one.
    pub fn restart(&mut self) {
        self.senders = None;
        self.ownership = None;
        self.target = Target::Unknown;
        self.unmade.clear();
        self.not_before = None;
        self.blocked = false;
        self.incarnation += 1;
    }

    /// The scan is over, or begins from the start.
    pub fn forget_scan(&mut self) {
        self.scan = None;
        self.saved_position = None;
        self.scan_number += 1;
    }

    /// The target did not answer or asked for patience: wait longer each time.
    pub fn back_off(&mut self, why: &str) {
        let delay = self.backoff.next_delay();
        self.failing = true;
        self.not_before = Some(Instant::now() + delay);
        self.slot.set_error(why);
    }

    /// Somebody has to put something right; it is tried again slowly, nothing is dropped.
    pub fn block(&mut self, why: &str) {
        if !self.blocked {
            pgrx::warning!("pg_fanout: sync \"{}\" is blocked: {why}", self.sync.name);
        }
        self.blocked = true;
        self.not_before = Some(Instant::now() + BLOCKED_RETRY);
        self.slot.set_error(why);
    }

    /// The code of its owner had to be ended with the worker: the other syncs come first for a while.
    pub fn quarantine(&mut self) {
        self.block(&format!(
            "its reading did not end when it was cancelled, and the worker was ended with it; it is tried again in {} minutes, \
             or after fanout.resume()",
            QUARANTINE.as_secs() / 60
        ));
        self.not_before = Some(Instant::now() + QUARANTINE);
        self.quarantined = true;
    }

    /// Its code brought the process down, more than once: not again before somebody says so.
    pub fn leave_alone(&mut self, verdict: Verdict) {
        let why = format!(
            "the worker went down {} times while it {}, so it is left alone, and the others go on; the server's log says how \
             the process ended",
            verdict.times,
            verdict.work.doing()
        );
        let hint = format!(
            "Put right what its query, or a function behind a type or a predicate, does; then SELECT fanout.resume({});",
            pgrx::spi::quote_literal(&self.sync.name)
        );
        self.slot.set_error(&format!("{why}. {hint}"));
        failure(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("pg_fanout: sync \"{}\" is blocked: {why}", self.sync.name),
        )
        .hint(hint)
        .warn();
        self.left_alone = true;
    }

    /// Somebody put something right, or wants it tried again.
    pub fn forgive(&mut self) {
        strikes::forgive(self.sync.id);
        self.left_alone = false;
        self.not_before = None;
    }

    /// What it is blocked for may have been put right.
    pub fn try_now(&mut self) {
        if self.blocked && !self.quarantined {
            self.not_before = None;
        }
    }

    /// Something worked: no more caution.
    pub fn succeed(&mut self) {
        self.backoff.reset();
        self.failing = false;
        self.blocked = false;
        self.quarantined = false;
        self.not_before = None;
    }

    /// True if the time has come to talk to the target.
    pub fn may_try(&self, now: Instant) -> bool {
        // What is to be removed needs none of its code.
        let alone = self.left_alone && self.sync.phase != Phase::Drop;
        self.is_active() && !alone && self.not_before.is_none_or(|at| at <= now)
    }

    /// True if it gets on with a scan of which nothing is saved yet: ids of the target stand in no journal.
    pub fn would_lose_its_place(&self) -> bool {
        let stuck = self.failing || self.blocked || self.left_alone || self.outside_window;
        self.is_active() && !stuck && self.scan.is_some() && self.saved_position.is_none()
    }

    /// What was refused is read again for a scan: its rows may be gone, which neither the source nor the target tells. A bound that
    /// is lower than what is kept of it would have the scan begin again and again.
    pub fn mark_dead(&mut self) {
        if self.dead.len() < settings::backlog_keys() / 2 {
            for address in &self.dead {
                self.pending.mark(address);
            }
        }
    }

    /// Addresses that are not acknowledged, in memory or stored. One that is stored and has changed since counts twice: memory
    /// does not know of it.
    pub fn backlog(&self) -> usize {
        self.pending.len() - self.pending.stored() + usize::try_from(self.stored).unwrap_or(0)
    }

    /// Puts slots of a batch back: their rows are to be read again.
    pub fn retry_all(&mut self, slots: &[Slot]) {
        for &slot in slots {
            self.pending.retry(slot, None);
        }
        shared_add(&self.slot.retried, slots.len());
    }

    /// True if nothing that was committed before that epoch ended is missing in the target.
    pub fn is_done(&self, epoch: Epoch) -> bool {
        self.wanted.is_none() && self.sync.phase == Phase::Live && self.stored == 0 && self.pending.is_done(epoch)
    }

    /// True if the target has all that the source has, but for changes that come.
    pub fn serves(&self) -> bool {
        matches!(self.target, Target::Ready) && self.sync.phase == Phase::Live && self.wanted.is_none()
    }

    /// Writes to shared memory what fanout.status shows.
    pub fn publish(&mut self) {
        use std::sync::atomic::Ordering::Relaxed;
        let slot = self.slot;
        slot.set_state(if self.is_parked() {
            SyncState::Parked
        } else if self.sync.paused {
            SyncState::Paused
        } else if self.blocked || self.left_alone {
            SyncState::Blocked
        } else if self.failing {
            SyncState::Retrying
        } else {
            match self.sync.phase {
                Phase::Create => SyncState::Creating,
                Phase::Backfill => SyncState::Backfill,
                Phase::Reconcile => SyncState::Reconcile,
                Phase::Live => SyncState::Live,
                Phase::Drop => SyncState::Dropping,
            }
        });
        slot.left_alone.store(self.left_alone, Relaxed);
        slot.pending.store(self.backlog() as u64, Relaxed);
        slot.in_flight.store(self.pending.in_flight() as u64, Relaxed);
        slot.oldest.store(self.pending.oldest().unwrap_or(0), Relaxed);
        slot.dead_letters.store(self.dead.len() as u64, Relaxed);
        let (done, total) = match &self.scan {
            Some(scan) => (scan.rows, scan.rows_total),
            None => (self.sync.rows_done, self.sync.rows_total),
        };
        slot.rows_done.store(done, Relaxed);
        slot.rows_total.store(total.unwrap_or(-1), Relaxed);
        slot.set_scan(match (&self.scan, self.sync.phase) {
            (_, Phase::Live | Phase::Drop) => ScanState::None,
            (None, _) => ScanState::Preparing,
            (Some(scan), _) if !scan.has_more() => ScanState::Finishing,
            (Some(_), _) if self.outside_window => ScanState::OutsideWindow,
            (Some(scan), _) if scan.ids != Ids::Done => ScanState::Names,
            (Some(_), _) => ScanState::Rows,
        });
        let elapsed = self.rate_since.elapsed();
        if elapsed > Duration::from_secs(2) {
            let delivered = slot.delivered.load(Relaxed);
            let rate = (delivered - self.rate_base.min(delivered)) as f64 / elapsed.as_secs_f64();
            slot.rate.store(rate.round() as u64, Relaxed);
            self.rate_base = delivered;
            self.rate_since = Instant::now();
        }
    }

    /// The epoch of all that is marked until now ends, if there is anything in it. What comes from here on was committed after
    /// `began` (microseconds since 1970), as far as is known.
    pub fn end_epoch(&mut self, began: i64) {
        if self.pending.epoch_in_use() {
            self.pending.next_epoch(began);
        } else {
            self.pending.begin_epoch(began);
        }
    }
}

/// Adds to a counter of shared memory.
pub fn shared_add(counter: &std::sync::atomic::AtomicU64, by: usize) {
    counter.fetch_add(by as u64, std::sync::atomic::Ordering::Relaxed);
}
