//! Code of a sync's owner at work in the worker: bounded in time and memory, and without a trace afterwards.

use super::shared::{self, SyncSlot};
use super::strikes::{self, Work};
use super::transaction::{Failed, with_one_snapshot};
use crate::catalog::Sync;
use crate::catalog::acting::acting_for;
use crate::settings;
use pgrx::pg_sys;
use std::cell::Cell;
use std::fs::File;
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, Ordering::Relaxed};
use std::time::Duration;

/// How long a sync is left alone whose code did not end when it was told to.
pub const QUARANTINE: Duration = Duration::from_secs(600);

/// USER_LOCKMETHOD of storage/lock.h.
const USER_LOCKS: u16 = 2;
/// STATEMENT_TIMEOUT of utils/timeout.h, the same in all versions that we build for.
const STATEMENT_TIMEOUT: i32 = 3;
/// USER_TIMEOUT of utils/timeout.h: one more since transaction_timeout.
const USER_TIMEOUT: i32 = if cfg!(any(feature = "pg17", feature = "pg18")) { 13 } else { 12 };

unsafe extern "C-unwind" {
    // Not in pgrx's bindings; utils/timeout.h.
    fn RegisterTimeout(id: i32, handler: unsafe extern "C-unwind" fn()) -> i32;
    fn enable_timeout_after(id: i32, delay_ms: i32);
    fn enable_timeout_every(id: i32, first: pg_sys::TimestampTz, delay_ms: i32);
    fn disable_timeout(id: i32, keep_indicator: bool);
}

/// The timeout that ends the process; -1 until it is registered.
static LAST_RESORT: AtomicI32 = AtomicI32::new(-1);
/// It fired.
static OVERDUE: AtomicBool = AtomicBool::new(false);

/// How often the memory of the process is looked at, in milliseconds: most readings are over before.
const SAMPLE: i32 = 50;
/// The timeout that does so; -1 until it is registered.
static SAMPLER: AtomicI32 = AtomicI32::new(-1);
/// An open descriptor of /proc/self/statm; -1 where there is none.
static STATM: AtomicI32 = AtomicI32::new(-1);
/// Pages of its own that the process may have while it reads.
static ALLOWED: AtomicI64 = AtomicI64::new(i64::MAX);
/// It had more.
static EXCESS: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The sync whose code is at work.
    static READING: Cell<Option<&'static SyncSlot>> = const { Cell::new(None) };
}

/// Registers the timeouts. Called once, at the start of a worker.
pub fn register() {
    // SAFETY: called on the main thread after InitPostgres; the handlers set flags, and one reads from a descriptor.
    unsafe {
        LAST_RESORT.store(RegisterTimeout(USER_TIMEOUT, overdue), Relaxed);
        SAMPLER.store(RegisterTimeout(USER_TIMEOUT, sample), Relaxed);
    }
    match File::open("/proc/self/statm") {
        Ok(file) => STATM.store(file.into_raw_fd(), Relaxed),
        Err(error) => {
            pgrx::warning!("pg_fanout: cannot open /proc/self/statm: {error}; fanout.read_memory is not in force")
        }
    }
}

/// Bytes of a page of memory.
fn page_size() -> u64 {
    // SAFETY: asks for a constant of the system.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Pages of memory that the process has for itself: resident, and not shared. None if that cannot be known.
fn own_pages() -> Option<i64> {
    let mut text = [0u8; 128];
    // SAFETY: a descriptor that register() keeps for as long as the process lives, or -1; a buffer of that length.
    let read = unsafe { libc::pread(STATM.load(Relaxed), text.as_mut_ptr().cast(), text.len(), 0) };
    let digits = |value: i64, byte: &u8| value * 10 + i64::from(byte.wrapping_sub(b'0') % 10);
    let mut numbers = text.get(..usize::try_from(read).ok()?)?.split(|&byte| byte == b' ');
    let mut next = move || numbers.next().map(|number| number.iter().fold(0, digits));
    let (_size, resident, shared) = (next()?, next()?, next()?);
    Some(resident - shared)
}

/// Cancels a reading that takes too much memory. What it allocates next comes on top: this is no hard bound.
unsafe extern "C-unwind" fn sample() {
    // In a signal handler: nothing of this allocates or raises.
    if own_pages().is_some_and(|pages| pages > ALLOWED.load(Relaxed)) {
        EXCESS.store(true, Relaxed);
        // SAFETY: flags and the latch of this process, as StatementCancelHandler() of postgres.c sets them.
        unsafe {
            pg_sys::QueryCancelPending = 1;
            pg_sys::InterruptPending = 1;
            pg_sys::SetLatch(pg_sys::MyLatch);
        }
    }
}

/// A function that swallows the cancellation of its statement (EXCEPTION WHEN query_canceled) can hold the worker for ever, and
/// with it a snapshot and all other syncs. What it cannot swallow is the end of the process.
unsafe extern "C-unwind" fn overdue() {
    OVERDUE.store(true, Relaxed);
    // SAFETY: a signal handler: flags and the latch of this process, as die() of postgres.c sets them.
    unsafe {
        pg_sys::ProcDiePending = 1;
        pg_sys::InterruptPending = 1;
        pg_sys::SetLatch(pg_sys::MyLatch);
    }
}

/// Called when the process ends: notes whose code had to be ended with it.
pub fn note_overdue() {
    if OVERDUE.load(Relaxed)
        && let Some(slot) = READING.get()
    {
        slot.set_overdue(shared::now());
    }
}

/// After an error: no timeout is left running, and none that already fired cancels what comes next.
pub fn forget_timeouts() {
    // SAFETY: plain calls and a flag of this process' main thread (postgres.c does the same after an error).
    unsafe {
        disarm();
        pg_sys::QueryCancelPending = 0;
    }
    READING.set(None);
}

unsafe fn disarm() {
    // SAFETY: called on the main thread; an id that is not registered is not passed.
    unsafe {
        disable_timeout(STATEMENT_TIMEOUT, false);
        for timeout in [LAST_RESORT.load(Relaxed), SAMPLER.load(Relaxed)] {
            if timeout >= 0 {
                disable_timeout(timeout, false);
            }
        }
    }
}

/// Runs what may bring the process down for the sake of a sync: if it does, that is known afterwards.
pub fn at_risk<T>(sync: i32, work: Work, run: impl FnOnce() -> Result<T, Failed>) -> Result<T, Failed> {
    strikes::begin(sync, work);
    let result = run();
    strikes::end(sync, work, result.is_ok());
    result
}

/// Runs `read` as the sync's owner in a read-only transaction with a statement timeout, which nothing else arms here, and an
/// eye on the memory that it takes.
pub fn read_as_owner<T>(
    slot: &'static SyncSlot,
    sync: &Sync,
    work: Work,
    read: impl FnOnce() -> T,
) -> Result<T, Failed> {
    let (bound, memory) = (settings::read_timeout_ms(), settings::read_memory());
    let pages = i64::try_from(memory / page_size()).unwrap_or(i64::MAX);
    READING.set(Some(slot));
    EXCESS.store(false, Relaxed);
    let sampled = own_pages();
    ALLOWED.store(sampled.map_or(i64::MAX, |now| now.saturating_add(pages)), Relaxed);
    let result = at_risk(sync.id, work, || {
        with_one_snapshot(|| {
            acting_for(sync, || {
                // SAFETY: a flag of this transaction, reset at its end (StartTransaction); the timeouts' handlers are registered by
                // InitPostgres and by register(), and transaction() disables them after an error.
                unsafe {
                    pg_sys::XactReadOnly = true;
                    enable_timeout_after(STATEMENT_TIMEOUT, bound);
                    let last_resort = LAST_RESORT.load(Relaxed);
                    if last_resort >= 0 {
                        enable_timeout_after(last_resort, bound.saturating_mul(2));
                    }
                    let sampler = SAMPLER.load(Relaxed);
                    if sampler >= 0 && sampled.is_some() {
                        enable_timeout_every(sampler, pg_sys::GetCurrentTimestamp() + i64::from(SAMPLE) * 1000, SAMPLE);
                    }
                    let result = read();
                    disarm();
                    // Advisory locks of the session outlive the transaction, and this session lives long.
                    pg_sys::LockReleaseAll(USER_LOCKS, true);
                    result
                }
            })
        })
    });
    READING.set(None);
    if EXCESS.swap(false, Relaxed) {
        // SAFETY: a flag of this process' main thread. The reading may have ended before it was seen.
        unsafe { pg_sys::QueryCancelPending = 0 };
        // Not of class 57: a reading that takes too much does so each time, unless it is of fewer rows.
        return result.map_err(|_| Failed {
            sqlstate: "54000".into(),
            message: format!("reading takes more memory than fanout.read_memory allows ({} MB)", memory >> 20),
        });
    }
    result
}
