//! What pg_stat_activity says of a worker: its state, and what it is at in place of a query.

use super::runner::Runner;
use crate::catalog::Phase;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::ffi::CString;

thread_local! {
    /// What was reported last: reporting it anew for each batch would cost more than it says.
    static LAST: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// The worker is at this sync.
pub fn at_work(runner: &Runner) {
    let doing = match runner.sync.phase {
        Phase::Create => "making the target of",
        Phase::Backfill => "filling the target of",
        Phase::Reconcile => "reconciling",
        Phase::Live => "delivering changes of",
        Phase::Drop => "removing the target of",
    };
    report(pg_sys::BackendState::STATE_RUNNING, &format!("{doing} sync \"{}\"", runner.sync.name));
}

/// The worker waits for something to do.
pub fn idle() {
    if LAST.take().is_some() {
        // SAFETY: on the main thread; no text leaves the last one, as in any idle backend.
        unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null()) };
    }
}

fn report(state: pg_sys::BackendState::Type, text: &str) {
    let Ok(text) = CString::new(text) else { return };
    LAST.with_borrow_mut(|last| {
        if last.as_ref() != Some(&text) {
            // SAFETY: on the main thread; the text is copied.
            unsafe { pg_sys::pgstat_report_activity(state, text.as_ptr()) };
            *last = Some(text);
        }
    });
}
