//! The running transaction: what it captured, and the callbacks that journal it.
//!
//! One raw callback of each kind, registered once a backend: pgrx's closures survive PREPARE TRANSACTION and would fire in
//! the next, unrelated transaction.

use super::set::AddressSet;
use super::trigger;
use crate::journal::format::Layout;
use crate::journal::segment;
use crate::settings;
use crate::worker::shared;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};

thread_local! {
    static SET: RefCell<AddressSet> = const { RefCell::new(AddressSet::new()) };
    /// The set was journalled at pre-commit: what another extension's callback still changes is written through.
    static FLUSHED: Cell<bool> = const { Cell::new(false) };
    /// The worker has something to do once this transaction has committed.
    static WAKE: Cell<bool> = const { Cell::new(false) };
}

/// Registers the callbacks. Called once, when the library is loaded.
pub fn register() {
    // SAFETY: the functions are static and have the signatures that Postgres expects.
    unsafe {
        pg_sys::RegisterXactCallback(Some(on_transaction), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(on_subtransaction), std::ptr::null_mut());
        pg_sys::CacheRegisterRelcacheCallback(Some(on_relcache), pg_sys::Datum::from(0));
    }
}

fn nest() -> i32 {
    // SAFETY: reads the transaction state of this backend.
    unsafe { pg_sys::GetCurrentTransactionNestLevel() }
}

/// Adds an address to what this transaction changed.
pub fn add(sync: i32, layout: Layout, address: &[u8]) {
    let nest = nest();
    let bytes = SET.with_borrow_mut(|set| set.add(nest, sync, layout, address));
    if FLUSHED.get() {
        flush();
    } else if bytes > settings::capture_memory() {
        let mut payloads = Vec::new();
        SET.with_borrow_mut(|set| set.spill(nest, |payload| payloads.push(payload.to_vec())));
        segment::write(&payloads);
        WAKE.set(true);
    }
}

/// Notes that all of a sync must be reconciled once this transaction has committed.
pub fn mark(sync: i32) {
    SET.with_borrow_mut(|set| set.mark(nest(), sync));
    if FLUSHED.get() {
        flush();
    }
}

/// True if this transaction has captured something of that sync, or has journalled anything early.
pub fn has_captured(sync: i32) -> bool {
    WAKE.get() || SET.with_borrow(|set| set.holds(sync))
}

/// Wakes the worker when this transaction commits.
pub fn wake_at_commit() {
    WAKE.set(true);
}

fn flush() {
    let mut payloads = Vec::new();
    SET.with_borrow_mut(|set| set.drain(|payload| payloads.push(payload.to_vec())));
    if !payloads.is_empty() {
        segment::write(&payloads);
        WAKE.set(true);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_transaction(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => {
            if !SET.with_borrow(AddressSet::is_empty) {
                flush();
            }
            FLUSHED.set(true);
        }
        XACT_EVENT_COMMIT => {
            crate::worker::transaction_ended(true);
            end();
            if WAKE.replace(false) {
                shared::wake_worker();
            }
        }
        // Nobody calls us at COMMIT PREPARED: the worker's heartbeat finds what it made visible.
        XACT_EVENT_PREPARE | XACT_EVENT_ABORT => {
            crate::worker::transaction_ended(false);
            end();
            WAKE.set(false);
        }
        _ => {}
    }
}

fn end() {
    FLUSHED.set(false);
    SET.with_borrow_mut(|set| {
        if !set.is_empty() {
            set.clear();
        }
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn on_subtransaction(
    event: pg_sys::SubXactEvent::Type,
    _subtransaction: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut std::ffi::c_void,
) {
    use pg_sys::SubXactEvent::*;
    SET.with_borrow_mut(|set| {
        if !set.is_empty() {
            match event {
                SUBXACT_EVENT_COMMIT_SUB => set.release(nest()),
                SUBXACT_EVENT_ABORT_SUB => set.roll_back(nest()),
                _ => {}
            }
        }
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn on_relcache(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    trigger::forget_plans();
    segment::forget(relation);
    crate::worker::on_relcache(relation);
}
