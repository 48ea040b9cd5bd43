//! Shared memory: one slot a database (its worker, its fence, its current segment) and one a sync (what its status says).
//!
//! All fields are atomics, so a slot may be read at any time without a lock; only finding a free slot and an error's text
//! take the main lock. Zeroed memory is a valid, empty state.

use super::question::{MAX_QUESTIONS, Question};
use crate::waits::{Wait, event};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering::*};

/// Databases of one cluster that can have syncs.
pub const MAX_DATABASES: usize = 128;
/// Syncs of one cluster that can have a status.
pub const MAX_SYNCS: usize = 2048;
/// Bytes of an error's text that are kept.
const ERROR_BYTES: usize = 512;
const TRANCHE: &std::ffi::CStr = c"pg_fanout";

/// How far the worker of a database is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WorkerState {
    /// No worker, and none is wanted.
    None = 0,
    /// A worker is wanted: the launcher will start it.
    Wanted = 1,
    /// No slot of max_worker_processes or fanout.max_workers is free.
    WaitingForSlot = 2,
    /// Started by the launcher, not yet connected.
    Starting = 3,
    /// At work.
    Running = 4,
}

impl WorkerState {
    fn from(byte: u8) -> Self {
        match byte {
            1 => Self::Wanted,
            2 => Self::WaitingForSlot,
            3 => Self::Starting,
            4 => Self::Running,
            _ => Self::None,
        }
    }
}

/// One database.
#[repr(C)]
pub struct Database {
    oid: AtomicU32,
    segment: AtomicU32,
    state: AtomicU8,
    /// DDL on the whole database is running: no worker may be there.
    pub holds: AtomicI32,
    pid: AtomicI32,
    /// Workers that gave up in a row.
    pub failures: AtomicU32,
    latch: AtomicPtr<pg_sys::Latch>,
    sleeping: AtomicBool,
    /// Bumped at each commit that has something for the worker.
    commits: AtomicU64,
    /// Questions asked since the worker looked last.
    pub questions: AtomicU32,
    waiters: pg_sys::ConditionVariable,
}

/// What a sync is doing, as fanout.status says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SyncState {
    /// No worker has looked at it yet.
    Waiting = 0,
    /// The target is being made or claimed.
    Creating = 1,
    /// All rows are on their way.
    Backfill = 2,
    /// All ids and rows are on their way.
    Reconcile = 3,
    /// Changes are delivered as they come.
    Live = 4,
    /// Stopped by fanout.pause().
    Paused = 5,
    /// Made in another cluster: stopped until fanout.adopt().
    Parked = 6,
    /// Something must be put right by a person; it is tried again slowly.
    Blocked = 7,
    /// The target does not answer; it is tried again.
    Retrying = 8,
    /// The target is being removed, and then the sync.
    Dropping = 9,
}

impl SyncState {
    fn from(byte: u8) -> Self {
        use SyncState::*;
        [Waiting, Creating, Backfill, Reconcile, Live, Paused, Parked, Blocked, Retrying, Dropping]
            .get(byte as usize)
            .copied()
            .unwrap_or(Waiting)
    }

    /// The word in fanout.status.
    pub fn as_str(self) -> &'static str {
        use SyncState::*;
        match self {
            Waiting => "waiting",
            Creating => "creating",
            Backfill => "backfill",
            Reconcile => "reconcile",
            Live => "live",
            Paused => "paused",
            Parked => "parked",
            Blocked => "blocked",
            Retrying => "retrying",
            Dropping => "dropping",
        }
    }
}

/// What a backfill or reconcile is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ScanState {
    /// There is none.
    None = 0,
    /// It has not begun to read.
    Preparing = 1,
    /// The target's ids are enumerated.
    Names = 2,
    /// The table's rows are read.
    Rows = 3,
    /// All is read, not all is acknowledged.
    Finishing = 4,
    /// The time of day is outside of the sync's window.
    OutsideWindow = 5,
}

impl ScanState {
    fn from(byte: u8) -> Self {
        use ScanState::*;
        [None, Preparing, Names, Rows, Finishing, OutsideWindow].get(byte as usize).copied().unwrap_or(None)
    }

    /// The phase in fanout.progress.
    pub fn as_str(self) -> &'static str {
        match self {
            ScanState::None => "none",
            ScanState::Preparing => "preparing the target",
            ScanState::Names => "reading ids of the target",
            ScanState::Rows => "reading rows",
            ScanState::Finishing => "waiting for acknowledgements",
            ScanState::OutsideWindow => "waiting for its window",
        }
    }
}

/// One sync.
#[repr(C)]
pub struct SyncSlot {
    database: AtomicU32,
    sync: AtomicI32,
    state: AtomicU8,
    pub pending: AtomicU64,
    pub in_flight: AtomicU64,
    /// When the oldest unacknowledged change was read, microseconds since 1970; 0 if there is none.
    pub oldest: AtomicI64,
    pub delivered: AtomicU64,
    pub retried: AtomicU64,
    pub dead_letters: AtomicU64,
    pub rows_done: AtomicI64,
    pub rows_total: AtomicI64,
    scan: AtomicU8,
    /// When the backfill or reconcile began that is under way, microseconds since 1970.
    pub scan_began: AtomicI64,
    /// Documents a second, over the last seconds.
    pub rate: AtomicU64,
    /// When its owner's code had to be ended with the worker, microseconds since 1970; 0 if never.
    overdue: AtomicI64,
    /// It is not tried again before somebody says so.
    pub left_alone: AtomicBool,
    /// Somebody said so: fanout.resume().
    pub resumed: AtomicBool,
    error_at: AtomicI64,
    error_length: AtomicU32,
    error: [AtomicU8; ERROR_BYTES],
    wait_wanted: AtomicU64,
    wait_done: AtomicU64,
}

#[repr(C)]
struct Control {
    launcher: AtomicPtr<pg_sys::Latch>,
    /// The last ticket given out by [`ticket`].
    tickets: AtomicU64,
    databases: [Database; MAX_DATABASES],
    syncs: [SyncSlot; MAX_SYNCS],
    questions: [Question; MAX_QUESTIONS],
}

thread_local! {
    // Per process in truth: Postgres is single-threaded, and no other thread calls this module.
    static CONTROL: Cell<*const Control> = const { Cell::new(std::ptr::null()) };
    static LOCKS: Cell<*mut pg_sys::LWLockPadded> = const { Cell::new(std::ptr::null_mut()) };
    static MINE: Cell<Option<&'static Database>> = const { Cell::new(None) };
}

static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Asks for the shared memory. Called while the library is preloaded.
pub fn request() {
    // SAFETY: hooks are chained as every extension does it, in the postmaster, before any other process exists.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(on_request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(on_startup);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_request() {
    // SAFETY: called by the postmaster at the only time when this is allowed.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            previous();
        }
        pg_sys::RequestAddinShmemSpace(size_of::<Control>());
        pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1 + MAX_DATABASES as i32);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn on_startup() {
    // SAFETY: called once in the postmaster, and again after a crash; zeroed memory is a valid Control, condition
    // variables are initialised before anybody can see them.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            previous();
        }
        let mut found = false;
        let control: *mut Control = pg_sys::ShmemInitStruct(TRANCHE.as_ptr(), size_of::<Control>(), &mut found).cast();
        if !found {
            control.write_bytes(0, 1);
            for database in &mut (*control).databases {
                pg_sys::ConditionVariableInit(&mut database.waiters);
            }
        }
        CONTROL.set(control);
        LOCKS.set(pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr()));
    }
}

fn control() -> Option<&'static Control> {
    // SAFETY: null until on_startup; afterwards shared memory that lives as long as the process.
    unsafe { CONTROL.get().as_ref() }
}

/// What to do where it was not preloaded.
pub const PRELOAD_HINT: &str = "Add pg_fanout to shared_preload_libraries in postgresql.conf and restart the server.";

/// True if the library was preloaded, so that there is shared memory.
pub fn preloaded() -> bool {
    control().is_some()
}

fn with_main_lock<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: LOCKS was set with CONTROL; work() does not raise, and if it did the abort would release the lock.
    unsafe {
        let lock = &raw mut (*LOCKS.get()).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let result = work();
        pg_sys::LWLockRelease(lock);
        result
    }
}

/// The slot of a database, taken if it has none; None without shared memory or when all slots are taken.
pub fn database_of(oid: pg_sys::Oid) -> Option<&'static Database> {
    let control = control()?;
    let wanted = oid.to_u32();
    let find = || control.databases.iter().find(|database| database.oid.load(Acquire) == wanted);
    find().or_else(|| {
        with_main_lock(|| {
            find().or_else(|| {
                let free = control.databases.iter().find(|database| database.oid.load(Acquire) == 0)?;
                free.segment.store(1, Relaxed);
                free.oid.store(wanted, Release);
                Some(free)
            })
        })
    })
}

/// The slot of the database that this backend is connected to.
pub fn database() -> Option<&'static Database> {
    // SAFETY: constant in a connected backend.
    let oid = unsafe { pg_sys::MyDatabaseId };
    // The one that we know was given away if no connections were allowed for a while, but ours.
    MINE.get().filter(|known| known.oid() == oid).or_else(|| {
        let found = database_of(oid);
        MINE.set(found);
        found
    })
}

/// True if there are more databases with something to do than workers.
pub fn is_one_waiting_for_a_slot() -> bool {
    databases().any(|database| database.state() == WorkerState::WaitingForSlot)
}

/// The slots for questions to workers.
pub fn questions() -> &'static [Question] {
    control().map_or(&[], |control| &control.questions)
}

/// All databases that have a slot.
pub fn databases() -> impl Iterator<Item = &'static Database> {
    control().into_iter().flat_map(|control| control.databases.iter()).filter(|database| database.oid().to_u32() != 0)
}

impl Database {
    /// True if a backend waits for the worker to tell what it knows of an address.
    pub fn is_asked(&self) -> bool {
        self.questions.load(SeqCst) > 0
    }

    /// The database's OID.
    pub fn oid(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.oid.load(Acquire))
    }

    /// Frees the slot and those of its syncs: the database is gone.
    pub fn release(&self) {
        if let Some(control) = control() {
            let gone = self.oid.load(Acquire);
            let of_it = |slot: &&SyncSlot| gone != 0 && slot.database.load(Acquire) == gone;
            for slot in control.syncs.iter().filter(of_it) {
                slot.database.store(0, Release);
            }
        }
        super::strikes::remove(self.oid());
        self.state.store(0, Relaxed);
        self.oid.store(0, Release);
    }

    /// The segment that writers write to.
    pub fn segment(&self) -> u32 {
        self.segment.load(SeqCst).max(1)
    }

    /// Moves writers to another segment.
    pub fn set_segment(&self, number: u32) {
        self.segment.store(number, SeqCst);
    }

    fn fence(&self) -> *mut pg_sys::LWLock {
        let control = CONTROL.get();
        // SAFETY: self is an element of the array, and the tranche has one lock more than the array has elements.
        unsafe {
            let index = std::ptr::from_ref(self).offset_from((*control).databases.as_ptr()) as usize;
            &raw mut (*LOCKS.get().add(1 + index)).lock
        }
    }

    /// Passes the fence as a writer does: while it is held, the reader notes no block number.
    pub fn fence_shared(&self) {
        // SAFETY: a valid lock of our tranche.
        unsafe { pg_sys::LWLockAcquire(self.fence(), pg_sys::LWLockMode::LW_SHARED) };
    }

    /// Holds all writers off for the moment in which the reader notes where the tails are.
    pub fn fence_exclusive(&self) {
        // SAFETY: a valid lock of our tranche.
        unsafe { pg_sys::LWLockAcquire(self.fence(), pg_sys::LWLockMode::LW_EXCLUSIVE) };
    }

    /// Lets go of the fence.
    pub fn fence_release(&self) {
        // SAFETY: acquired by the caller.
        unsafe { pg_sys::LWLockRelease(self.fence()) };
    }

    /// How far the worker is.
    pub fn state(&self) -> WorkerState {
        WorkerState::from(self.state.load(Acquire))
    }

    /// Notes how far the worker is.
    pub fn set_state(&self, state: WorkerState) {
        self.state.store(state as u8, Release);
    }

    /// The worker's process, 0 if there is none.
    pub fn pid(&self) -> i32 {
        self.pid.load(Acquire)
    }

    /// The worker is there: its latch can be set from now on.
    pub fn attach(&self) {
        // SAFETY: MyLatch and MyProcPid are set in every process; a latch in shared memory outlives its process, so a stale
        // pointer wakes somebody for nothing, no more.
        unsafe {
            self.pid.store(pg_sys::MyProcPid, Release);
            self.latch.store(pg_sys::MyLatch, Release);
        }
        self.set_state(WorkerState::Running);
    }

    /// The worker is gone; true if the slot was still its own.
    pub fn detach(&self, state: WorkerState) {
        // SAFETY: as in attach().
        if self.pid.load(Acquire) == unsafe { pg_sys::MyProcPid } {
            self.latch.store(std::ptr::null_mut(), Release);
            self.pid.store(0, Release);
            self.set_state(state);
        }
    }

    /// Commits so far that had something for the worker.
    pub fn commits(&self) -> u64 {
        self.commits.load(SeqCst)
    }

    /// The worker says that it is going to sleep; it must look at [`Self::commits`] once more before it does.
    pub fn set_sleeping(&self, sleeping: bool) {
        self.sleeping.store(sleeping, SeqCst);
    }

    /// Wakes the worker if it sleeps.
    pub fn wake(&self) {
        self.commits.fetch_add(1, SeqCst);
        if self.sleeping.load(SeqCst) {
            let latch = self.latch.load(Acquire);
            if !latch.is_null() {
                // SAFETY: see attach().
                unsafe { pg_sys::SetLatch(latch) };
            }
        }
    }

    /// Wakes all backends in [`SyncSlot::wait`].
    pub fn wake_waiters(&self) {
        // SAFETY: the condition variable was initialised at startup; Postgres synchronises access to it.
        unsafe { pg_sys::ConditionVariableBroadcast((&raw const self.waiters).cast_mut()) };
    }

    /// Ends the waiting; an error does the same.
    pub fn stop_waiting(&self) {
        // SAFETY: takes this process off whatever condition variable it is on.
        unsafe {
            pg_sys::ConditionVariableCancelSleep();
        }
    }

    /// Sleeps until [`Self::wake_waiters`], an interrupt (which raises) or `milliseconds` have passed.
    pub fn sleep_as_waiter(&self, milliseconds: i64) {
        // SAFETY: as above.
        unsafe {
            pg_sys::ConditionVariableTimedSleep(
                (&raw const self.waiters).cast_mut(),
                milliseconds.max(1),
                event(Wait::Delivery),
            );
        }
    }
}

/// Tells the worker of this database that there is something to do; asks for one if there is none. Never raises.
pub fn wake_worker() {
    if let Some(database) = database() {
        database.wake();
        if database.state() == WorkerState::None {
            database.set_state(WorkerState::Wanted);
            wake_launcher();
        }
    }
}

/// The launcher's latch is this process's.
pub fn attach_launcher() {
    if let Some(control) = control() {
        // SAFETY: see Database::attach.
        control.launcher.store(unsafe { pg_sys::MyLatch }, Release);
    }
}

/// Wakes the launcher.
pub fn wake_launcher() {
    if let Some(control) = control() {
        let latch = control.launcher.load(Acquire);
        if !latch.is_null() {
            // SAFETY: see Database::attach.
            unsafe { pg_sys::SetLatch(latch as *mut c_void as *mut pg_sys::Latch) };
        }
    }
}

/// The slot of a sync of this database; with `take`, one is taken if it has none.
pub fn sync_slot(sync: i32, take: bool) -> Option<&'static SyncSlot> {
    let control = control()?;
    // SAFETY: constant in a connected backend.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    let find =
        || control.syncs.iter().find(|slot| slot.database.load(Acquire) == database && slot.sync.load(Acquire) == sync);
    find().or_else(|| {
        if !take {
            return None;
        }
        with_main_lock(|| {
            find().or_else(|| {
                let free = control.syncs.iter().find(|slot| slot.database.load(Acquire) == 0)?;
                free.reset();
                free.sync.store(sync, Release);
                free.database.store(database, Release);
                Some(free)
            })
        })
    })
}

/// Draws a ticket for [`SyncSlot::want`]. Tickets grow over the whole cluster, so that who fulfils one has fulfilled all
/// that were drawn before it.
pub fn ticket() -> u64 {
    control().map_or(0, |control| control.tickets.fetch_add(1, SeqCst) + 1)
}

/// Frees the slots of this database whose sync is not among `living`.
pub fn free_sync_slots(living: &[i32]) {
    if let Some(control) = control() {
        // SAFETY: constant in a connected backend.
        let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
        for slot in &control.syncs {
            if slot.database.load(Acquire) == database && !living.contains(&slot.sync.load(Acquire)) {
                slot.database.store(0, Release);
            }
        }
    }
}

impl SyncSlot {
    /// A slot of this process alone, where all are taken.
    pub fn apart() -> &'static Self {
        // SAFETY: all fields are atomics, for which zeroed memory is valid, as it is for those of shared memory.
        Box::leak(Box::new(unsafe { std::mem::zeroed() }))
    }

    fn reset(&self) {
        for counter in [&self.pending, &self.in_flight, &self.delivered, &self.retried, &self.dead_letters, &self.rate]
        {
            counter.store(0, Relaxed);
        }
        self.scan.store(0, Relaxed);
        for counter in
            [&self.oldest, &self.rows_done, &self.rows_total, &self.scan_began, &self.error_at, &self.overdue]
        {
            counter.store(0, Relaxed);
        }
        for flag in [&self.left_alone, &self.resumed] {
            flag.store(false, Relaxed);
        }
        self.error_length.store(0, Relaxed);
        self.wait_wanted.store(0, Relaxed);
        self.wait_done.store(0, Relaxed);
        self.set_state(SyncState::Waiting);
    }

    /// Notes that the code of its owner did not end.
    pub fn set_overdue(&self, at: i64) {
        self.overdue.store(at, Release);
    }

    /// When that was noted; forgets it.
    pub fn take_overdue(&self) -> Option<i64> {
        Some(self.overdue.swap(0, AcqRel)).filter(|&at| at > 0)
    }

    /// What the sync is doing.
    pub fn state(&self) -> SyncState {
        SyncState::from(self.state.load(Acquire))
    }

    /// Notes what the sync is doing.
    pub fn set_state(&self, state: SyncState) {
        self.state.store(state as u8, Release);
    }

    /// What its backfill or reconcile is at.
    pub fn scan(&self) -> ScanState {
        ScanState::from(self.scan.load(Acquire))
    }

    /// Notes what its backfill or reconcile is at.
    pub fn set_scan(&self, state: ScanState) {
        let before = self.scan();
        if state == ScanState::None {
            self.scan_began.store(0, Relaxed);
        } else if before == ScanState::None {
            self.scan_began.store(now(), Relaxed);
        }
        self.scan.store(state as u8, Release);
    }

    /// Notes an error; a new text replaces the old one.
    pub fn set_error(&self, text: &str) {
        let mut end = text.len().min(ERROR_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        with_main_lock(|| {
            for (place, byte) in self.error.iter().zip(text[..end].bytes()) {
                place.store(byte, Relaxed);
            }
            self.error_length.store(end as u32, Relaxed);
            self.error_at.store(now(), Release);
        });
    }

    /// The last error and when it was, microseconds since 1970.
    pub fn error(&self) -> Option<(String, i64)> {
        with_main_lock(|| {
            let length = self.error_length.load(Relaxed) as usize;
            let bytes: Vec<u8> = self.error.iter().take(length).map(|byte| byte.load(Relaxed)).collect();
            (length > 0).then(|| (String::from_utf8_lossy(&bytes).into_owned(), self.error_at.load(Relaxed)))
        })
    }

    /// True if all that a ticket stands for is delivered; else the worker is asked for it.
    pub fn reached(&self, ticket: u64) -> bool {
        let done = self.done() >= ticket;
        if !done && self.wanted() < ticket {
            self.want(ticket);
            wake_worker();
        }
        done
    }

    /// Asks that all that was committed before the ticket was drawn be delivered and searchable. May be said again: a slot
    /// that was freed and taken anew meanwhile has forgotten it.
    pub fn want(&self, ticket: u64) {
        self.wait_wanted.fetch_max(ticket, SeqCst);
    }

    /// The last ticket that was asked for.
    pub fn wanted(&self) -> u64 {
        self.wait_wanted.load(SeqCst)
    }

    /// Tickets up to this one are fulfilled.
    pub fn done(&self) -> u64 {
        self.wait_done.load(SeqCst)
    }

    /// Fulfils tickets up to this one.
    pub fn set_done(&self, ticket: u64) {
        self.wait_done.store(ticket, SeqCst);
    }
}

/// Microseconds since 1970.
pub fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
