//! The worker's loop: reports in, journal polled, rows read, batches out; then sleep.

use super::activity;
use super::batch;
use super::clock::Clock;
use super::heartbeat::{self, Beat, HEARTBEAT};
use super::outcome;
use super::pace::{Hold, Pace};
use super::reading::at_risk;
use super::rhythm::{self, Rate};
use super::rotation::Rotation;
use super::runner::Runner;
use super::scan::{Ids, Scan};
use super::shape::Shape;
use super::shared::{self, Database, SyncSlot};
use super::store;
use super::strikes::{self, Work};
use super::transaction::{Class, Failed, flush_wal, flush_what_was_read, transaction};
use crate::catalog::acting::acting_for;
use crate::catalog::{self, Kind, Phase, Sync, triggers};
use crate::document::{Plans, Related, Source, Unreadable};
use crate::journal::format::{Entry, Orphan, of_relation, unpack};
use crate::journal::reader::{Payloads, Reader};
use crate::waits::{Wait as Waiting, event};
use crate::{server, settings};
use crossbeam_channel::{Receiver, Sender, unbounded};
use delivery::config::ServerConfig;
use delivery::ownership::{Claim, Rival};
use delivery::sender::{Job, JobKind, Report, SenderOptions, Senders, Wake, WakeReader, wake_pair};
use pgrx::pg_sys;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Sender threads for a search engine, unless the server says otherwise.
const SENDERS: usize = 2;
/// Ids or keys of a target asked for at a time.
pub const PAGE: usize = 2000;
/// How long a worker stays at least, and how long at most, while another database waits for its slot.
const SHORT_TURN: Duration = Duration::from_secs(5);
const LONG_TURN: Duration = Duration::from_secs(30);
/// How often the status is written while there is something to do.
const PUBLISH: Duration = Duration::from_millis(250);
/// Addresses that a scan leaves pending at most, so that changes do not wait behind it.
const SCAN_PENDING: usize = 20_000;

/// Batches of changes between two of a scan, as long as there are changes.
const CHANGES_FIRST: u32 = 3;

/// When triggers are tried again that could not be put on tables that inherit from the source.
const HEIRS_AGAIN: Duration = Duration::from_secs(1);

/// How long what is left of a large journal waits for memory, at most, before more of it is read; where there are other syncs, in all.
const HOLD: Duration = Duration::from_secs(10);
/// It does so as long as the journal has no more than so many segments' blocks.
const HOLD_SEGMENTS: u32 = 4;
/// How often the worker looks up meanwhile: a commit does not wake it.
const HOLD_PAUSE: Duration = Duration::from_millis(100);

/// Polls between two looks at the syncs, at most, where the journal is larger than one poll takes.
const POLLS: usize = 32;

/// Pending addresses whose memory is given back when they are worked off.
const WORTH_GIVING_BACK: usize = 20_000;

/// What a job was sent for.
pub enum Task {
    /// Documents: the slots in the batch.
    Batch(Vec<super::pending::Slot>),
    /// The target's control document.
    Claim,
    /// A sign of life, of several syncs of a server.
    Heartbeat(Vec<Beat>),
    /// The concrete index.
    EnsureIndex,
    /// The alias now points to the index of this generation.
    SwapAlias(i32),
    /// Nothing depends on its outcome.
    Farewell,
    /// The target, or a part of it, is being removed; what comes next: the cursor of a page, or the generation of an index.
    Drop(Option<String>),
    /// The control document of a target that was removed.
    Release,
    /// A refresh that fulfils this ticket.
    Refresh(u64),
    /// A page of ids or keys, for the scan of this number.
    Ids(u32),
}

impl Task {
    /// True of what says whose a target is, makes it or removes it.
    fn shapes_target(&self) -> bool {
        matches!(
            self,
            Self::Claim | Self::EnsureIndex | Self::SwapAlias(_) | Self::Farewell | Self::Drop(_) | Self::Release
        )
    }
}

/// A job under way.
pub struct Sent {
    pub sync: i32,
    /// That of the sync.
    pub incarnation: u32,
    /// The server and the target that it shapes.
    shapes: Option<(String, String)>,
    /// What it was sent for.
    pub task: Task,
}

/// The senders of one server as one user.
pub struct Channel {
    server: String,
    owner: pg_sys::Oid,
    pub senders: Rc<Senders>,
    capacity: usize,
    /// It is time for a sign of life.
    pub owes_beat: bool,
}

/// A journal that is larger than one poll takes.
struct Unread {
    /// When the first of the polls was that did not reach its end, in microseconds since 1970.
    since: i64,
    /// The same by a clock that nobody sets.
    at: Instant,
    /// The blocks of all segments.
    blocks: u32,
}

/// Everything that the worker of a database holds.
pub struct Worker {
    pub database: &'static Database,
    pub clock: Clock,
    pub runners: BTreeMap<i32, Runner>,
    /// Jobs under way, by their tags.
    pub sent: FxHashMap<u64, Sent>,
    pub next_tag: u64,
    /// The syncs of relations.
    relations: FxHashMap<i32, i32>,
    reader: Reader,
    payloads: Payloads,
    rotation: Rotation,
    pub channels: Vec<Channel>,
    /// When the next sign of life is due.
    pub beat_due: Instant,
    reports: Receiver<Report>,
    report_sender: Sender<Report>,
    wake: Wake,
    wake_reader: WakeReader,
    nonce: String,
    polled_commits: Option<u64>,
    /// What the last poll left of the journal to the next.
    unread: Option<Unread>,
    poll_due: Instant,
    polled_at: Instant,
    /// Of the payloads that polls find: a transaction mostly writes one.
    commit_rate: Rate,
    /// Least time between that poll and the next.
    poll_pause: Duration,
    /// Addresses that were pending at a time, at most, since memory was given back.
    peak: usize,
    /// The journal could not be read just now: not again before it is due.
    poll_failed: bool,
    /// Which sync is served first: another one in each turn.
    turn: usize,
    started: Instant,
    busy: Instant,
    /// When the status was written last.
    published: Instant,
}

impl Worker {
    /// Starts: reads the catalog, reserves versions.
    pub fn start(database: &'static Database) -> Result<Self, Failed> {
        let (report_sender, reports) = unbounded();
        let (wake, wake_reader) =
            wake_pair().map_err(|error| Failed { sqlstate: "58000".into(), message: error.to_string() })?;
        let mut worker = Self {
            database,
            clock: Clock::start()?,
            runners: BTreeMap::new(),
            sent: FxHashMap::default(),
            next_tag: 1,
            relations: FxHashMap::default(),
            reader: Reader::default(),
            payloads: Payloads::default(),
            rotation: Rotation::default(),
            channels: Vec::new(),
            beat_due: Instant::now() + HEARTBEAT,
            reports,
            report_sender,
            wake,
            wake_reader,
            nonce: format!("{:016x}", fastrand::u64(..)),
            polled_commits: None,
            unread: None,
            poll_due: Instant::now(),
            polled_at: Instant::now(),
            commit_rate: Rate::default(),
            poll_pause: Duration::ZERO,
            peak: 0,
            poll_failed: false,
            turn: 0,
            started: Instant::now(),
            busy: Instant::now(),
            published: Instant::now(),
        };
        super::home::settle()?;
        worker.reload()?;
        if let Some((sync, work)) = strikes::new()
            && let Some(runner) = worker.runners.get(&sync).filter(|runner| !runner.left_alone)
        {
            pgrx::warning!(
                "pg_fanout: the worker before this one went down while it {} of sync \"{}\"; if that happens again, the sync is \
                 left alone",
                work.doing(),
                runner.sync.name
            );
        }
        Ok(worker)
    }

    /// True if nothing is captured for any sync of this database: the worker is not needed. A paused sync needs it, for
    /// somebody has to keep the journal small.
    pub fn is_idle_for_good(&self) -> bool {
        self.runners.values().all(Runner::is_parked)
    }

    /// Reads the catalog anew: new syncs get a runner, gone ones lose theirs, changed ones start over where they must.
    pub fn reload(&mut self) -> Result<(), Failed> {
        let syncs = transaction(|| catalog::all().unwrap_or_else(|error| pgrx::error!("{error}")))?;
        let living: Vec<i32> = syncs.iter().map(|sync| sync.id).collect();
        self.runners.retain(|id, _| living.contains(id));
        shared::free_sync_slots(&living);
        strikes::retain(&living);
        let related =
            syncs.iter().flat_map(|sync| sync.relations.iter().map(|relation| (relation.source, relation.id, sync.id)));
        self.relations = related.clone().map(|(_, relation, sync)| (relation, sync)).collect();
        super::process::watch(syncs.iter().map(|sync| sync.source).chain(related.map(|(source, ..)| source)));
        super::process::watch_also(self.runners.values().flat_map(|runner| runner.tables.iter().copied()));
        for sync in syncs {
            match self.runners.get_mut(&sync.id) {
                Some(runner) => adapt(runner, sync),
                None => {
                    let slot = match shared::sync_slot(sync.id, true) {
                        Some(slot) => slot,
                        // A target that goes is waited for by nobody: it goes without a status.
                        None if sync.phase == Phase::Drop => SyncSlot::apart(),
                        None => {
                            let name = &sync.name;
                            pgrx::warning!("pg_fanout: no room for the status of sync \"{name}\"; it is not served");
                            continue;
                        }
                    };
                    let mut runner = Runner::new(sync, slot);
                    let (dead, stored, unlogged) = transaction(|| {
                        let sync = &runner.sync;
                        let tables = sync.captured().map(|(table, _)| table).collect();
                        (store::dead_letters(sync.id), store::stored(sync.id), store::any_unlogged(tables))
                    })?;
                    if runner.slot.take_overdue().is_some() {
                        runner.quarantine();
                    }
                    if runner.sync.paused {
                        runner.forgive();
                    } else if let Some(verdict) = strikes::verdict(runner.sync.id) {
                        runner.leave_alone(verdict);
                    }
                    runner.dead = dead.into_iter().collect();
                    runner.stored = stored;
                    let filled = matches!(runner.sync.phase, Phase::Live | Phase::Backfill | Phase::Reconcile);
                    if unlogged && filled && !runner.is_parked() {
                        // A crash empties such a table, and nothing tells: what was delivered before may have no row any more,
                        // also where not all of it had been.
                        want_phase(&mut runner, Phase::Reconcile);
                    }
                    self.runners.insert(runner.sync.id, runner);
                }
            }
        }
        Ok(())
    }

    /// True if the journal was read after so many commits.
    pub fn has_polled(&self, commits: u64) -> bool {
        self.polled_commits.is_some_and(|polled| polled >= commits)
    }

    /// Runs until the process is told to end; returns when there is nothing to do for good.
    pub fn run(&mut self) -> Result<(), Failed> {
        loop {
            // SAFETY: MyLatch is this process's.
            unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
            super::process::serve_interrupts();
            self.wake_reader.drain();
            let mut worked = self.take_reports();
            if super::process::catalog_changed() {
                self.reload()?;
                if self.is_idle_for_good() {
                    return Ok(());
                }
            }
            if super::process::servers_changed() {
                // It may be another server now: whether it holds what we delivered, its control document tells.
                for runner in self.runners.values_mut() {
                    runner.restart();
                }
                self.channels.clear();
            }
            worked |= self.poll();
            for _ in 1..POLLS {
                if self.unread.is_none() || !self.poll() {
                    break;
                }
            }
            // After the poll: what it found may have been written with the columns of now, and it takes the tickets of
            // waiters, to whom what was altered before must be known.
            if super::process::sources_changed() {
                for runner in self.runners.values_mut() {
                    runner.source = None;
                    // It may have been the table that had to be put right.
                    runner.try_now();
                }
            }
            super::question::answer(self);
            heartbeat::tend(self);
            let looked = Instant::now();
            let mut ids: Vec<i32> = self.runners.keys().copied().collect();
            self.turn = (self.turn + 1) % ids.len().max(1);
            ids.rotate_left(self.turn);
            for id in ids {
                worked |= self.tend(id);
            }
            // Also where there is always something to do, the status must not stand still.
            if !worked || self.published.elapsed() > PUBLISH {
                self.published = Instant::now();
                self.runners.values_mut().for_each(Runner::publish);
            }
            if worked {
                self.busy = Instant::now();
                if self.may_leave() {
                    return Ok(());
                }
                continue;
            }
            self.give_memory_back();
            self.database.failures.store(0, Relaxed);
            if self.may_leave() {
                return Ok(());
            }
            self.sleep(looked);
        }
    }

    /// Databases take turns when there are more of them than slots: an idle worker gives way soon, and one that always has
    /// something to do, or a target that does not answer, after a while. What is not acknowledged is read again in its next turn;
    /// what would begin from the start in each turn is let finish.
    fn may_leave(&self) -> bool {
        let turn = self.started.elapsed();
        let idle = || {
            self.busy.elapsed() > Duration::from_secs(1)
                && self.runners.values().all(|runner| runner.pending.is_empty() && runner.scan.is_none())
        };
        turn > SHORT_TURN
            && shared::is_one_waiting_for_a_slot()
            && (idle() || turn > LONG_TURN && !self.runners.values().any(Runner::would_lose_its_place))
    }

    /// Sleeps until something is due that was not yet when the syncs were `looked` at, or until somebody wakes the worker.
    fn sleep(&mut self, looked: Instant) {
        let now = Instant::now();
        let mut until = now + Duration::from_millis(settings::heartbeat_ms() as u64);
        for runner in self.runners.values_mut() {
            let delayed = runner.pending.wake_delayed(looked);
            let blocked = if runner.is_active() { runner.not_before } else { None };
            let wanted = runner.wanted.map(|_| runner.wanted_at);
            let rested = runner.pending.has_queued().then(|| runner.rests_until());
            for at in [delayed, blocked, wanted, rested, runner.scan_at, runner.heirs_at]
                .into_iter()
                .flatten()
                .filter(|&at| at > looked)
            {
                until = until.min(at);
            }
        }
        let rest = if self.holds(now) { HOLD } else { self.poll_pause };
        let rest = rest.saturating_sub(self.polled_at.elapsed()).min(HOLD_PAUSE);
        let pausing = !rest.is_zero() && self.polled_commits != Some(self.database.commits());
        if pausing {
            until = until.min(now + rest);
        } else if self.poll_failed {
            until = until.min(self.poll_due);
        }
        // Not a moment too early: it would be for nothing.
        let timeout = (until.saturating_duration_since(now).as_micros().div_ceil(1000) as i64).max(1);
        // In the pause between two polls no commit has to wake us.
        self.database.set_sleeping(!pausing);
        // A commit between the last poll and this point has seen "not sleeping" and set no latch.
        if pausing || self.poll_failed || self.polled_commits == Some(self.database.commits()) {
            let events =
                pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_SOCKET_READABLE | pg_sys::WL_EXIT_ON_PM_DEATH;
            activity::idle();
            // SAFETY: MyLatch is ours, the descriptor belongs to wake_reader, which lives as long as the worker.
            unsafe {
                pg_sys::pgstat_report_stat(true);
                pg_sys::WaitLatchOrSocket(
                    pg_sys::MyLatch,
                    events as i32,
                    self.wake_reader.fd(),
                    timeout,
                    event(Waiting::Worker),
                );
            }
        }
        self.database.set_sleeping(false);
    }

    /// True while what is left of the journal stays there until there is room for it, which costs less than to move it to the
    /// table. Only where the syncs that lack room get on: a target that is away for long is to hold back keys, not the journal. For
    /// some time each, so that also a slow one does not; and for the same time in all where other syncs may have changes in there,
    /// unless somebody waits for these.
    fn holds(&self, now: Instant) -> bool {
        let Some(unread) = &self.unread else { return false };
        let room = settings::pending_keys() / 2;
        let served = self.runners.values().filter(|runner| !runner.is_parked());
        let (full, others): (Vec<_>, Vec<_>) = served.partition(|runner| runner.pending.len() > room);
        let held = match (full.len(), others.len()) {
            (0, _) => return false,
            (1, 0) => self.polled_at.elapsed(),
            _ => unread.at.elapsed(),
        };
        held < HOLD
            && unread.blocks <= HOLD_SEGMENTS * settings::segment_blocks()
            && full.iter().all(|runner| runner.may_try(now) && matches!(runner.target, super::runner::Target::Ready))
            && others.iter().all(|runner| runner.slot.wanted() <= runner.wait_seen)
            && !self.database.is_asked()
            // The next worker would read it from the start.
            && !shared::is_one_waiting_for_a_slot()
    }

    /// Reads the journal if somebody committed, or if it is time.
    fn poll(&mut self) -> bool {
        if self.holds(Instant::now()) {
            return false;
        }
        let commits = self.database.commits();
        if Instant::now() < self.poll_due && (self.poll_failed || self.polled_commits == Some(commits)) {
            return false;
        }
        let since = self.polled_at.elapsed();
        if self.polled_commits.is_some() && since < self.poll_pause {
            return false;
        }
        self.polled_at = Instant::now();
        if self.unread.is_some() {
            // What comes next may be nearly as much again.
            self.spill_above(settings::pending_keys() / 2);
        }
        let wanted: Vec<(i32, u64)> = self
            .runners
            .iter()
            .map(|(&id, runner)| (id, runner.slot.wanted()))
            .filter(|(id, wanted)| *wanted > self.runners[id].wait_seen)
            .collect();
        let (began, at) = match &self.unread {
            Some(unread) => (unread.since, unread.at),
            None => (shared::now(), self.polled_at),
        };
        for runner in self.runners.values_mut() {
            runner.end_epoch(began);
        }
        self.payloads.clear();
        let (reader, payloads, database) = (&mut self.reader, &mut self.payloads, self.database);
        let extents = match transaction(|| reader.poll(database, payloads)) {
            Ok(Some(extents)) => extents,
            Ok(None) => {
                self.poll_failed = true;
                self.poll_due = Instant::now() + Duration::from_millis(10);
                return false;
            }
            Err(failed) => {
                // Positions may have moved without their payloads: read everything again.
                pgrx::warning!("pg_fanout: cannot read the journal: {failed}");
                self.reader = Reader::default();
                self.poll_failed = true;
                self.poll_due = Instant::now() + Duration::from_secs(1);
                return false;
            }
        };
        // What is left to be read of a large journal is read next.
        let whole = extents.iter().all(|extent| extent.read);
        self.polled_commits = whole.then_some(commits);
        let blocks = extents.iter().map(|extent| extent.blocks).sum();
        self.unread = (!whole).then_some(Unread { since: began, at, blocks });
        self.poll_failed = false;
        self.poll_due = Instant::now() + Duration::from_millis(settings::heartbeat_ms() as u64);
        let found = !self.payloads.is_empty();
        self.commit_rate.note(self.payloads.len(), since);
        self.poll_pause = rhythm::pause(self.commit_rate);
        self.mark_payloads();
        if whole {
            for Runner { pending, scan, .. } in self.runners.values_mut() {
                if let Some(scan) = scan {
                    scan.was_polled(|| pending.next_epoch(shared::now()));
                }
            }
        }
        // Who waits, waits for what is left of it, too.
        for (id, ticket) in wanted.into_iter().filter(|_| whole) {
            if let Some(runner) = self.runners.get_mut(&id) {
                let epoch = runner.pending.next_epoch(shared::now());
                runner.waits.push_back((ticket, epoch));
                runner.wait_seen = ticket;
            }
        }
        let quiet = self.runners.values().all(|runner| runner.pending.is_empty() && runner.scan.is_none())
            || shared::is_one_waiting_for_a_slot();
        if self.rotation.turn(&mut self.reader, self.database, &extents, &mut self.runners, quiet) {
            self.polled_commits = None;
        }
        found
    }

    fn mark_payloads(&mut self) {
        let payloads = std::mem::take(&mut self.payloads);
        let unknown = |worker: &Self, id: i32| !worker.runners.contains_key(&id) && !worker.relations.contains_key(&id);
        let mut missing = false;
        for payload in payloads.iter() {
            let _ = unpack(payload, |entry| {
                let (Entry::Address { sync, .. } | Entry::Reconcile { sync }) = entry;
                missing |= unknown(self, sync);
            });
        }
        // A sync whose first changes were committed with it: its row is visible by now.
        if missing && let Err(failed) = self.reload() {
            pgrx::warning!("pg_fanout: cannot read the catalog of syncs: {failed}");
        }
        let mut reconcile = Vec::new();
        for payload in payloads.iter() {
            let read = unpack(payload, |entry| match entry {
                Entry::Reconcile { sync } => reconcile.push(sync),
                Entry::Address { sync: relation, layout, address } if self.relations.contains_key(&relation) => {
                    let sync = self.relations[&relation];
                    let Some(runner) = self.runners.get_mut(&sync) else { return };
                    let known = runner.sync.relations.iter().find(|known| known.id == relation);
                    match known.and_then(|known| known.layout) {
                        Some(known) if known != i64::from(layout.signature) => reconcile.push(sync),
                        _ => runner.pending.mark(&of_relation(relation, address)),
                    }
                }
                Entry::Address { sync, layout, address } => {
                    if let Some(runner) = self.runners.get_mut(&sync) {
                        match runner.sync.layout {
                            Some(known) if known != i64::from(layout.signature) && Orphan::of(address).is_none() => {
                                reconcile.push(sync);
                            }
                            _ => {
                                // A later change of a refused row tries it anew.
                                if !runner.delete_instead.is_empty() {
                                    runner.delete_instead.remove(address);
                                }
                                runner.pending.mark(address);
                            }
                        }
                    }
                }
            });
            if read.is_err() {
                pgrx::warning!(
                    "pg_fanout: the journal holds a payload that this version cannot read; all syncs are reconciled"
                );
                reconcile.extend(self.runners.keys());
            }
        }
        self.payloads = payloads;
        reconcile.sort_unstable();
        reconcile.dedup();
        for sync in reconcile {
            if let Some(runner) = self.runners.get_mut(&sync) {
                want_phase(runner, Phase::Reconcile);
            }
        }
        self.bound_backlogs();
    }

    /// What a large backlog took is given back to the system when it is worked off: the allocator would keep it.
    fn give_memory_back(&mut self) {
        if self.peak > WORTH_GIVING_BACK && self.runners.values().all(|runner| runner.pending.is_empty()) {
            self.peak = 0;
            // SAFETY: only hands free pages of the heap back (malloc_trim(3)).
            #[cfg(target_env = "gnu")]
            unsafe {
                libc::malloc_trim(0);
            }
        }
    }

    /// Moves the addresses of each sync that has more than so many in memory to the table.
    fn spill_above(&mut self, bound: usize) {
        for runner in self.runners.values_mut().filter(|runner| runner.pending.len() > bound) {
            spill(runner);
        }
    }

    /// Moves what is too much for memory to the table, and drops what is too much for that.
    fn bound_backlogs(&mut self) {
        self.peak = self.peak.max(self.runners.values().map(|runner| runner.pending.len()).sum());
        self.spill_above(settings::pending_keys());
        let in_all = settings::backlog_keys();
        for runner in self.runners.values_mut() {
            // Rows that a scan has just read are no backlog: it would begin anew for them, and read as many again.
            let scanned = runner.scan.as_ref().map_or(0, Scan::outstanding);
            let backlog = runner.backlog().saturating_sub(scanned);
            if backlog > in_all && runner.wanted.is_none() {
                // A target that was never reached is filled as a whole when it is.
                let (phase, again) = match runner.sync.phase {
                    Phase::Create => (Phase::Create, "filled"),
                    _ => (Phase::Reconcile, "reconciled"),
                };
                pgrx::warning!(
                    "pg_fanout: sync \"{}\" has more than {in_all} unacknowledged keys (fanout.backlog_keys); \
                     they are dropped, and it will be {again}",
                    runner.sync.name
                );
                want_phase(runner, phase);
            } else if backlog > in_all / 5 * 4 {
                if !runner.alarmed {
                    runner.alarmed = true;
                    pgrx::warning!(
                        "pg_fanout: sync \"{}\" has {backlog} unacknowledged keys; \
                         past {in_all} (fanout.backlog_keys) they are dropped, and it must be reconciled",
                        runner.sync.name
                    );
                }
            } else if backlog < in_all / 2 {
                runner.alarmed = false;
            }
        }
    }

    /// Does the next thing for one sync. True if it did something.
    fn tend(&mut self, id: i32) -> bool {
        let now = Instant::now();
        super::target::end_waiting(self, id);
        let Some(runner) = self.runners.get_mut(&id) else { return false };
        runner.pending.wake_delayed(now);
        if runner.wanted.is_some() && !begin_wanted(runner, now) {
            return false;
        }
        if !runner.may_try(now) {
            return false;
        }
        if runner.senders.is_none() {
            activity::at_work(runner);
            if !self.connect(id) {
                return false;
            }
        }
        let Some(runner) = self.runners.get_mut(&id) else { return false };
        if runner.sync.phase == Phase::Drop {
            return super::target::remove(self, id);
        }
        if runner.heirs_at.is_some_and(|at| at <= now) {
            runner.source = None;
        }
        if runner.source.is_none() {
            activity::at_work(runner);
            if !resolve(runner) {
                return false;
            }
        }
        let worked = super::target::tend(self, id);
        let Some(runner) = self.runners.get_mut(&id) else { return worked };
        if !matches!(runner.target, super::runner::Target::Ready) {
            return worked;
        }
        if runner.sync.phase == Phase::Create && runner.wanted.is_none() {
            // How its filling begins could not be noted: ask the target again.
            runner.target = super::runner::Target::Claimed;
            return worked;
        }
        begin_scan(runner);
        let worked = super::fan_out::step(runner) | worked;
        let worked = self.deliver(id) | worked;
        worked | self.fulfil(id)
    }

    /// Gives a sync its senders: one set a server and owner.
    fn connect(&mut self, id: i32) -> bool {
        let Some(runner) = self.runners.get_mut(&id) else { return false };
        let (name, owner) = (runner.sync.server.clone(), runner.sync.owner);
        let known = self.channels.iter().find(|channel| channel.server == name && channel.owner == owner);
        if let Some(channel) = known {
            runner.senders = Some(Rc::clone(&channel.senders));
            runner.capacity = channel.capacity;
            return true;
        }
        let read = transaction(|| {
            let threads = server::senders(&name).ok().flatten();
            (
                server::config(&name, owner).map(|(_, config)| config).map_err(|failure| failure.message().to_owned()),
                threads,
            )
        });
        let (config, threads) = match read {
            Ok((Ok(config), threads)) => (config, threads),
            Ok((Err(why), _)) => {
                runner.block(&why);
                return false;
            }
            Err(failed) => {
                runner.block(&failed.message);
                return false;
            }
        };
        let threads = if matches!(config, ServerConfig::Redis(_)) { 1 } else { threads.unwrap_or(SENDERS) };
        let options = SenderOptions { threads, queue: threads };
        match Senders::start(config, options, self.report_sender.clone(), self.wake.clone()) {
            Ok(senders) => {
                let senders = Rc::new(senders);
                runner.senders = Some(Rc::clone(&senders));
                runner.capacity = threads * 2 + 1;
                self.channels.push(Channel {
                    server: name,
                    owner,
                    senders,
                    capacity: threads * 2 + 1,
                    owes_beat: false,
                });
                true
            }
            Err(error) => {
                runner.back_off(&format!("cannot start sender threads: {error}"));
                false
            }
        }
    }

    /// Hands a job to the sync's senders. False if their queue is full.
    pub fn send(&mut self, id: i32, task: Task, kind: JobKind) -> Result<(), Task> {
        let Some(runner) = self.runners.get(&id) else { return Err(task) };
        let Some(senders) = &runner.senders else { return Err(task) };
        let tag = self.next_tag;
        match senders.try_send(Job { tag, kind }) {
            Ok(()) => {
                activity::at_work(runner);
                self.next_tag += 1;
                let (sync, incarnation) = (&runner.sync, runner.incarnation);
                let shapes = task.shapes_target().then(|| (sync.server.clone(), sync.target.clone()));
                self.sent.insert(tag, Sent { sync: id, incarnation, shapes, task });
                Ok(())
            }
            Err(_) => Err(task),
        }
    }

    /// True while something is under way that shapes a sync's target, whoever sent it: an earlier incarnation, or another sync that
    /// had the target before. What is asked now could be done before it.
    pub fn is_shaped(&self, id: i32) -> bool {
        let Some(Runner { sync, .. }) = self.runners.get(&id) else { return false };
        let shapes = |sent: &Sent| {
            sent.shapes.as_ref().is_some_and(|(server, target)| *server == sync.server && *target == sync.target)
        };
        self.sent.values().any(shapes)
    }

    /// A claim for the target of a sync.
    pub fn claim(&self, runner: &Runner) -> Claim {
        let sync = &runner.sync;
        let others = self.runners.values().filter(|other| other.sync.id != sync.id && !other.is_parked());
        let rivals = others.filter(|other| other.sync.kind == sync.kind && other.sync.target == sync.target);
        Claim {
            target: sync.target.clone(),
            identity: super::process::incarnation(),
            place: super::process::place(),
            sync: sync.mark(),
            rivals: rivals.map(|other| Rival { sync: other.sync.mark(), epoch: other.sync.claimed_epoch() }).collect(),
            nonce: self.nonce.clone(),
            by: format!("{}, sync {}", super::process::called(), sync.name),
            heartbeat_every: HEARTBEAT,
            // What another has been feeding is not removed, however silent it is.
            stale_after: if sync.phase == Phase::Drop { Duration::MAX } else { settings::owner_stale() },
            force: runner.sync.adopt,
            sighting: runner.sighting.clone(),
        }
    }

    /// Reads rows and sends them: changes first, then the scan.
    fn deliver(&mut self, id: i32) -> bool {
        let mut worked = false;
        loop {
            let Some(runner) = self.runners.get_mut(&id) else { return worked };
            let Some(senders) = runner.senders.clone() else { return worked };
            if !runner.may_try(Instant::now()) || !matches!(runner.target, super::runner::Target::Ready) {
                return worked;
            }
            // One place is left for the other syncs of this server.
            let share = runner.capacity.saturating_sub(1).max(1);
            let allowed = if runner.failing { 1 } else { runner.flow.concurrency().min(share) };
            if runner.batches >= allowed || senders.in_flight() >= runner.capacity {
                return worked;
            }
            // Rows of related tables that wait to be looked up are worked off first: else all that is stored would pile up here.
            if !runner.pending.has_queued() && !runner.pending.has_related() && runner.stored > 0 {
                refill(runner);
            }
            let queued = runner.pending.has_queued() && !runner.rests(Instant::now());
            // With the page of ids that may come below the alarm for what is kept.
            let has_room = runner.pending.len() < scan_room() && runner.backlog() < settings::backlog_keys() / 2;
            let scanning = runner.scan.is_some() && has_room;
            // Changes first; but where they never end, the scan must end all the same.
            let mut from_scan = scanning && (!queued || runner.since_scan >= CHANGES_FIRST);
            if from_scan && !self.scan_may_read(id) {
                from_scan = false;
            }
            if !from_scan && !queued {
                return worked;
            }
            let Some(runner) = self.runners.get_mut(&id) else { return worked };
            activity::at_work(runner);
            runner.since_scan = if from_scan { 0 } else { runner.since_scan.saturating_add(1) };
            let built = if from_scan {
                batch::from_scan(runner, &mut self.clock)
            } else {
                let built = batch::from_pending(runner, &mut self.clock);
                runner.note_batch(Instant::now());
                built
            };
            if super::process::sources_altered() {
                // Altered while it was read: the statements, and the index, are to know its columns first.
                if let (Ok(batches), Some(runner)) = (built, self.runners.get_mut(&id)) {
                    batches.iter().for_each(|(_, slots)| runner.pending.put_back(slots));
                }
                return true;
            }
            match built {
                Ok(batches) => {
                    if batches.is_empty() {
                        // Blocks without rows, or rows that are all on their way already.
                        return true;
                    }
                    flush_what_was_read();
                    for (kind, slots) in batches {
                        if let Some(runner) = self.runners.get_mut(&id) {
                            runner.batches += 1;
                        }
                        if let Err(Task::Batch(slots)) = self.send(id, Task::Batch(slots), kind)
                            && let Some(runner) = self.runners.get_mut(&id)
                        {
                            // The queue is full after all: the rows are read again when there is room.
                            runner.batches -= 1;
                            runner.pending.put_back(&slots);
                        }
                    }
                    worked = true;
                }
                Err(failed) => {
                    self.reading_failed(id, &failed);
                    return worked;
                }
            }
        }
    }

    /// Rows could not be read: by class (DESIGN, decision 10).
    fn reading_failed(&mut self, id: i32, failed: &Failed) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        // Of a scan, whose next slice has fewer blocks, down to one whose rows are then read one by one.
        let scanned = runner.last_read == usize::MAX;
        match failed.class() {
            Class::Blocked => {
                runner.source = None;
                runner.block(&format!("the source cannot be read: {failed}"));
            }
            // Which row it is that takes so long is found as one is that fails.
            Class::Transient if failed.may_be_a_row() => {
                runner.slot.set_error(&format!("rows cannot be read now: {failed}"));
                if runner.last_read > 1 && runner.batch_limit > 1 {
                    let limit = runner.batch_limit.min(settings::batch_documents()).min(runner.last_read);
                    runner.batch_limit = (limit / 2).max(1);
                } else if scanned {
                    runner.back_off(&format!("rows cannot be read now: {failed}"));
                } else {
                    outcome::set_apart(self, id, failed);
                }
            }
            Class::Transient => {
                // What it reads may be of other types by now.
                runner.source = None;
                runner.back_off(&format!("the source cannot be read now: {failed}"));
            }
            Class::Data => {
                if runner.batch_limit > 1 {
                    let limit = runner.batch_limit.min(settings::batch_documents()).min(runner.last_read);
                    runner.batch_limit = (limit / 2).max(1);
                    runner.slot.set_error(&format!("a row cannot be read: {failed}"));
                } else if scanned {
                    runner.back_off(&format!("a row cannot be read: {failed}"));
                } else {
                    outcome::unreadable(self, id, failed);
                }
            }
        }
    }

    /// The scan goes on when the target's ids are enumerated.
    fn scan_may_read(&mut self, id: i32) -> bool {
        let Some(runner) = self.runners.get_mut(&id) else { return false };
        let Some(scan) = &mut runner.scan else { return false };
        let held = if scan.has_more() { runner.pace.hold(Instant::now(), super::clock::second_of_day()) } else { None };
        runner.outside_window = matches!(held, Some(Hold::Window(_)));
        runner.scan_at = held.map(|(Hold::Rate(wait) | Hold::Window(wait))| Instant::now() + wait);
        if held.is_some() {
            return false;
        }
        match &scan.ids {
            Ids::Done => {
                if scan.is_done() {
                    self.finish_scan(id);
                    return false;
                }
                scan.has_more()
            }
            Ids::Asked => false,
            Ids::Next(cursor) => {
                let page = PAGE.min(scan_room());
                let kind = match runner.sync.kind {
                    Kind::Index => {
                        JobKind::ScanIds { index: runner.sync.concrete_index(), cursor: cursor.clone(), size: page }
                    }
                    Kind::Cache => {
                        JobKind::ScanKeys { glob: runner.templates.glob(), cursor: cursor.clone(), count: page }
                    }
                };
                let number = runner.scan_number;
                if self.send(id, Task::Ids(number), kind).is_ok()
                    && let Some(scan) = self.runners.get_mut(&id).and_then(|runner| runner.scan.as_mut())
                {
                    scan.ids = Ids::Asked;
                }
                false
            }
        }
    }

    fn finish_scan(&mut self, id: i32) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let rows = runner.scan.as_ref().map_or(0, |scan| scan.rows);
        let sync = runner.sync.clone();
        match transaction(|| store::set_phase(&sync, Phase::Live, Some(rows))) {
            Ok(false) => {
                // Somebody asked for something else meanwhile.
                runner.scan = None;
                super::process::catalog_is_stale();
            }
            Ok(true) => {
                pgrx::log!("pg_fanout: sync \"{}\" is live: {rows} rows delivered", runner.sync.name);
                runner.scan = None;
                runner.sync.phase = Phase::Live;
                runner.sync.position = None;
                runner.sync.rows_done = rows;
                runner.sync.rows_total = Some(rows);
                runner.publish();
                if runner.sync.generation > 1 && runner.sync.kind == Kind::Index {
                    // A resync: the alias moves now that the new index has all rows.
                    runner.target = super::runner::Target::Claimed;
                }
            }
            Err(failed) => runner.back_off(&failed.to_string()),
        }
    }

    /// Fulfils tickets of fanout.wait(): all delivered, and for an index refreshed. Also finishes and saves scans.
    fn fulfil(&mut self, id: i32) -> bool {
        let Some(runner) = self.runners.get_mut(&id) else { return false };
        if !matches!(runner.target, super::runner::Target::Ready) {
            return false;
        }
        if let Some(scan) = &mut runner.scan {
            if scan.ids_epoch.is_some_and(|epoch| runner.stored == 0 && runner.pending.is_done(epoch)) {
                scan.ids_epoch = None;
            }
            scan.list_again(|epoch| runner.stored == 0 && runner.pending.is_done(epoch));
            if scan.is_done() {
                self.finish_scan(id);
                return true;
            }
            save_position(runner);
        }
        let Some(runner) = self.runners.get_mut(&id) else { return false };
        if !runner.waits.is_empty() && (!super::process::catalog_is_known() || super::process::sources_altered()) {
            // The poll that took the ticket has seen that the catalog or a table changed: perhaps all is to be delivered anew.
            return true;
        }
        let mut ticket = None;
        while let Some(&(front, epoch)) = runner.waits.front()
            && runner.is_done(epoch)
        {
            ticket = Some(front);
            if runner.sync.kind == Kind::Index && runner.refreshing {
                return false;
            }
            runner.waits.pop_front();
        }
        let Some(ticket) = ticket else { return false };
        if runner.sync.kind == Kind::Cache {
            runner.publish();
            runner.slot.set_done(ticket);
            self.database.wake_waiters();
            return true;
        }
        runner.refreshing = true;
        let index = runner.sync.concrete_index();
        if self.send(id, Task::Refresh(ticket), JobKind::Refresh { index }).is_err()
            && let Some(runner) = self.runners.get_mut(&id)
        {
            runner.refreshing = false;
            let epoch = runner.pending.next_epoch(shared::now());
            runner.waits.push_front((ticket, epoch));
            return false;
        }
        true
    }

    /// Takes what the senders report.
    fn take_reports(&mut self) -> bool {
        let reports: Vec<Report> = self.reports.try_iter().collect();
        let any = !reports.is_empty();
        for report in reports {
            outcome::take(self, report);
        }
        any
    }
}

/// Addresses up to which a scan goes on; and ids that it asks for at a time, at most.
fn scan_room() -> usize {
    SCAN_PENDING.min(settings::backlog_keys() / 4)
}

/// Asks for a phase that begins from the start. It is begun as soon as that can be noted durably; until then no epoch counts
/// as done, so that neither the journal nor a waiter takes the sync for being in step.
pub fn want_phase(runner: &mut Runner, phase: Phase) {
    // A target that is not made yet is filled anyway; one that is to be removed needs nothing.
    if matches!(runner.sync.phase, Phase::Create | Phase::Drop) && phase == Phase::Reconcile {
        return;
    }
    if runner.wanted != Some(Phase::Reconcile) {
        runner.wanted = Some(phase);
        runner.wanted_at = Instant::now();
    }
    begin_wanted(runner, Instant::now());
}

/// Begins the phase that is wanted. False if that could not be noted: it is tried again.
fn begin_wanted(runner: &mut Runner, now: Instant) -> bool {
    let Some(phase) = runner.wanted else { return true };
    if runner.wanted_at > now {
        return false;
    }
    let sync = runner.sync.clone();
    let noted = transaction(|| {
        let current = store::set_phase(&sync, phase, None);
        if current {
            store::drop_stored(sync.id);
        }
        current
    });
    match noted {
        Ok(true) => {}
        Ok(false) => {
            // Somebody asked for something else meanwhile, which begins from the start as well.
            runner.wanted = None;
            super::process::catalog_is_stale();
            return false;
        }
        Err(failed) => {
            runner.wanted_at = Instant::now() + Duration::from_millis(200);
            runner.slot.set_error(&format!("cannot note that all has to be delivered again: {failed}"));
            return false;
        }
    }
    runner.wanted = None;
    runner.pending.spill();
    runner.pending.forget_stored();
    runner.pending.mark_in_flight();
    runner.stored = 0;
    runner.stored_after.clear();
    runner.alarmed = false;
    runner.sync.phase = phase;
    runner.sync.position = None;
    runner.sync.rows_done = 0;
    runner.sync.rows_total = None;
    runner.forget_scan();
    true
}

/// Begins, or goes on with, the scan that the sync's phase asks for.
pub fn begin_scan(runner: &mut Runner) {
    let due = matches!(runner.sync.phase, Phase::Backfill | Phase::Reconcile);
    if runner.scan.is_some() || runner.wanted.is_some() || !due {
        return;
    }
    let source = runner.sync.source;
    match transaction(|| store::extent(source)) {
        Ok((blocks, files, rows)) => {
            let mut scan = Scan::new(files, blocks, rows, runner.sync.phase == Phase::Reconcile);
            if let Some(position) = &runner.sync.position {
                scan.resume(position, runner.sync.rows_done);
            }
            runner.scan = Some(scan);
            runner.mark_dead();
        }
        Err(failed) => runner.back_off(&failed.to_string()),
    }
}

/// Saves how far a scan is, now and then.
fn save_position(runner: &mut Runner) {
    let Some(scan) = &runner.scan else { return };
    if runner.saved_at.elapsed() < Duration::from_secs(2) {
        return;
    }
    let position = scan.position();
    if position != runner.saved_position
        && let Some(bytes) = &position
    {
        let (sync, rows, total) = (runner.sync.id, scan.rows, scan.rows_total);
        if transaction(|| store::set_position(sync, bytes, rows, total)).is_ok() {
            runner.saved_position = position;
        }
    }
    runner.saved_at = Instant::now();
}

/// Takes over what changed in the catalog.
fn adapt(runner: &mut Runner, sync: Sync) {
    let old = &runner.sync;
    let restart = sync.generation != old.generation
        || sync.server != old.server
        || sync.target != old.target
        || sync.owner != old.owner
        || sync.identity != old.identity
        || sync.adopt != old.adopt
        || sync.source != old.source
        || sync.address_columns != old.address_columns
        || sync.options != old.options;
    let related = sync.relations != old.relations;
    let readdressed = sync.address_columns != old.address_columns;
    let again = sync.request != old.request || sync.phase != old.phase;
    let resumed = runner.slot.resumed.load(Relaxed) || sync.paused != old.paused || sync.identity != old.identity;
    if related {
        runner.source = None;
    }
    if resumed {
        runner.forgive();
    }
    if restart {
        runner.restart();
        // Another query, perhaps.
        runner.forgive();
        runner.source = None;
    }
    if readdressed {
        // Dead letters of before went when it was altered.
        runner.dead.clear();
        runner.delete_instead.clear();
        runner.slow.clear();
    }
    if again {
        // What was wanted of our own accord begins from the start as well, and so does this.
        runner.wanted = None;
        runner.forget_scan();
    }
    runner.pace = Pace::of(&sync.options);
    runner.templates = sync.templates();
    runner.scan_at = None;
    runner.sync = sync;
    runner.publish();
    runner.slot.resumed.store(false, Relaxed);
}

/// Resolves the source of a sync and prepares its statements, as its owner.
fn resolve(runner: &mut Runner) -> bool {
    let sync = runner.sync.clone();
    // Writers may hold up a trigger for as long as they like: the sync goes on meanwhile.
    let lacked = transaction(|| {
        let given = triggers::follow_heirs(&sync);
        // What was written there without a trigger nobody has seen. Noted together with the trigger.
        let lacked = sync.shape.as_ref().is_some_and(|before| Shape::knew(before, &given));
        if lacked && !matches!(sync.phase, Phase::Create | Phase::Drop) {
            store::set_phase(&sync, Phase::Reconcile, None);
        }
        lacked
    });
    runner.heirs_at = lacked.is_err().then(|| Instant::now() + HEIRS_AGAIN);
    let lacked = lacked.unwrap_or(false);
    let resolved = at_risk(sync.id, Work::Planning, || {
        transaction(|| {
            // Columns must not go between being listed and being asked for.
            // SAFETY: a plain lock request, held until the transaction ends; a table that is gone is noticed after it. The snapshot
            // of the transaction is replaced by one that is later than the lock.
            unsafe {
                pg_sys::LockRelationOid(sync.source, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
                pg_sys::PopActiveSnapshot();
                pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            }
            let source = Source::resolve(&sync)?;
            acting_for(&sync, || {
                let plans = Plans::prepare(&source);
                let related = sync.relations.iter().filter(|relation| !relation.columns.is_empty());
                let related = related.map(|relation| Ok((relation.id, Related::prepare(&sync, &source, relation)?)));
                let related = related.collect::<Result<_, Unreadable>>()?;
                Ok::<_, Unreadable>((source, plans, related))
            })
            .map(|resolved| (resolved, Shape::read(&sync)))
        })
    });
    match resolved {
        Ok(Ok(((source, plans, related), shape))) => {
            runner.related = related;
            runner.source_changed = true;
            // A table that is truncated or rewritten looks empty by a snapshot of before.
            let looked_at = runner.related.values().flat_map(Related::reads).chain(plans.reads());
            runner.tables = shape.tables().chain(looked_at.copied()).collect();
            super::process::watch_also(runner.tables.iter().copied());
            if !super::fan_out::check_direct(runner, &source) {
                return false;
            }
            if !super::fan_out::check_layouts(runner) {
                return false;
            }
            let layout = i64::from(source.layout.signature);
            if shape.is_uncaptured() {
                let why = "changes of the source, or of a related table, are not captured: a trigger that belongs to the sync is disabled or missing";
                pgrx::warning!("pg_fanout: sync \"{}\": {why}", sync.name);
                runner.slot.set_error(why);
            }
            let retyped = sync.layout.is_some_and(|known| known != layout).then_some("its key has other types");
            let altered = sync.shape.as_ref().and_then(|before| shape.change(before));
            let lacked = lacked.then_some("a table that inherits from it had lost its trigger");
            if let Some(why) = retyped.or(altered).or(lacked) {
                pgrx::log!("pg_fanout: the source of sync \"{}\" was altered ({why}); it is reconciled", sync.name);
                want_phase(runner, Phase::Reconcile);
                if runner.wanted.is_some() {
                    // Not noted yet; what it follows from must not be noted before.
                    return false;
                }
            }
            let shape = Some(shape.to_json());
            if sync.layout != Some(layout) || sync.shape != shape {
                let (id, noted) = (sync.id, shape.clone().unwrap_or_default());
                let of_other_types = || {
                    if retyped.is_some() {
                        store::forget_dead_letters(id, 0);
                    }
                };
                if let Err(failed) = transaction(|| (store::set_source(id, layout, noted), of_other_types())) {
                    runner.back_off(&failed.to_string());
                    return false;
                }
                if retyped.is_some() {
                    runner.dead.clear();
                    runner.delete_instead.clear();
                }
                runner.sync.layout = Some(layout);
                runner.sync.shape = shape;
            }
            runner.source = Some((source, Some(plans)));
            true
        }
        Ok(Err(unreadable)) => {
            runner.block(&unreadable.to_string());
            false
        }
        Err(failed) => {
            match failed.class() {
                Class::Transient => runner.back_off(&format!("the source cannot be read now: {failed}")),
                _ => runner.block(&format!("the source cannot be read: {failed}")),
            }
            false
        }
    }
}

/// Moves all that is not on its way from memory to the table.
pub fn spill(runner: &mut Runner) -> bool {
    let sync = runner.sync.id;
    if let Err(failed) = transaction(|| store::store(sync, runner.pending.unstored())) {
        pgrx::warning!("pg_fanout: cannot store the backlog of sync \"{}\": {failed}", runner.sync.name);
        return false;
    }
    flush_wal();
    let slices = runner.pending.spill();
    if let Some(scan) = &mut runner.scan {
        // What is stored in the table is as good as acknowledged: a restart finds it there.
        for slice in slices {
            scan.acknowledged(slice);
        }
    }
    runner.stored_after.clear();
    match transaction(|| store::stored(sync)) {
        Ok(stored) => runner.stored = stored,
        Err(_) => runner.stored += 1,
    }
    true
}

/// Brings stored addresses back into memory.
fn refill(runner: &mut Runner) {
    let (sync, after) = (runner.sync.id, runner.stored_after.clone());
    let limit = (settings::pending_keys() / 2).min(50_000) as i64;
    match transaction(|| (store::stored_after(sync, &after, limit), store::stored(sync))) {
        Ok((addresses, stored)) => {
            runner.stored = stored;
            match addresses.last() {
                Some(last) => runner.stored_after = last.clone(),
                // The end: what is left is on its way, or was stored behind us.
                None if runner.pending.is_empty() => runner.stored_after.clear(),
                None => {}
            }
            for address in addresses {
                runner.pending.mark_stored(&address);
            }
        }
        Err(failed) => runner.back_off(&failed.to_string()),
    }
}
