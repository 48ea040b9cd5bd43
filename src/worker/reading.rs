//! Code of a sync's owner at work in the worker: bounded in time, and without a trace afterwards.

use super::shared::{self, SyncSlot};
use super::transaction::{Failed, transaction};
use crate::catalog::Sync;
use crate::catalog::acting::acting_for;
use crate::settings;
use pgrx::pg_sys;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};
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
    fn disable_timeout(id: i32, keep_indicator: bool);
}

/// The timeout that ends the process; -1 until it is registered.
static LAST_RESORT: AtomicI32 = AtomicI32::new(-1);
/// It fired.
static OVERDUE: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The sync whose code is at work.
    static READING: Cell<Option<&'static SyncSlot>> = const { Cell::new(None) };
}

/// Registers the timeout. Called once, at the start of a worker.
pub fn register() {
    // SAFETY: called on the main thread after InitPostgres; the handler only sets flags.
    LAST_RESORT.store(unsafe { RegisterTimeout(USER_TIMEOUT, overdue) }, Relaxed);
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
        let last_resort = LAST_RESORT.load(Relaxed);
        if last_resort >= 0 {
            disable_timeout(last_resort, false);
        }
    }
}

/// Runs `read` as the sync's owner in a read-only transaction with a statement timeout: nothing else arms it here.
pub fn read_as_owner<T>(slot: &'static SyncSlot, sync: &Sync, read: impl FnOnce() -> T) -> Result<T, Failed> {
    let bound = settings::read_timeout_ms();
    READING.set(Some(slot));
    let result = transaction(|| {
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
                let result = read();
                disarm();
                // Advisory locks of the session outlive the transaction, and this session lives long.
                pg_sys::LockReleaseAll(USER_LOCKS, true);
                result
            }
        })
    });
    READING.set(None);
    result
}
