//! What pg_stat_activity says of a worker: its state, and what it is at in place of a query.

use super::runner::Runner;
use crate::catalog::Phase;
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::CString;

thread_local! {
    /// What was reported last, a sync and its phase: reporting it anew for each batch would cost more than it says.
    static LAST: Cell<Option<(i32, Phase)>> = const { Cell::new(None) };
}

/// The worker does something for this sync. To be called where that is so, and not for each sync that is looked at.
pub fn at_work(runner: &Runner) {
    let now = Some((runner.sync.id, runner.sync.phase));
    if LAST.replace(now) == now {
        return;
    }
    let doing = match runner.sync.phase {
        Phase::Create => "making the target of",
        Phase::Backfill => "filling the target of",
        Phase::Reconcile => "reconciling",
        Phase::Live => "delivering changes of",
        Phase::Drop => "removing the target of",
    };
    let Ok(text) = CString::new(format!("{doing} sync \"{}\"", runner.sync.name)) else { return };
    // SAFETY: on the main thread; the text is copied.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, text.as_ptr()) };
}

/// The worker waits for something to do.
pub fn idle() {
    if LAST.take().is_some() {
        // SAFETY: on the main thread; no text leaves the last one, as in any idle backend.
        unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null()) };
    }
}
