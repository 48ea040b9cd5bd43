//! Segments: the tables of the journal, and how a backend writes to them.
//!
//! A tuple goes only into the last block of the current segment, or into a new one (HEAP_INSERT_SKIP_FSM and no target
//! block: RelationGetBufferForTuple in hio.c then tries the last block and extends). Together with the fence this is what
//! lets the reader forget a block for good once it is behind the tail and all in it is decided: see `journal::reader`.

use crate::catalog;
use crate::error::failure;
use crate::worker::shared;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::{Cell, RefCell};
use std::ffi::CString;

/// How often a writer follows the current segment before it takes the one it has: any segment is read.
const FOLLOW: usize = 4;

thread_local! {
    static KNOWN: RefCell<Vec<(u32, pg_sys::Oid)>> = const { RefCell::new(Vec::new()) };
    /// This session has been told that nothing is delivered.
    static WARNED: Cell<bool> = const { Cell::new(false) };
}

/// Called for each relcache invalidation.
pub fn forget(relation: pg_sys::Oid) {
    KNOWN.with_borrow_mut(|known| {
        if relation == pg_sys::InvalidOid || known.iter().any(|&(_, oid)| oid == relation) {
            known.clear();
        }
    });
}

/// The OID of a segment's table, or InvalidOid if there is none (any more).
pub fn oid(number: u32) -> pg_sys::Oid {
    let known = KNOWN.with_borrow(|known| known.iter().find(|entry| entry.0 == number).map(|entry| entry.1));
    known.unwrap_or_else(|| {
        let name = CString::new(format!("journal_{number}")).unwrap_or_default();
        let oid = catalog::own_relation(&name);
        if oid != pg_sys::InvalidOid {
            KNOWN.with_borrow_mut(|known| known.push((number, oid)));
        }
        oid
    })
}

/// Writes payloads as tuples of the current (sub)transaction.
///
/// Without shared memory (library not preloaded) they go to the first segment unfenced: no worker runs then, and the next
/// one reads everything. A journal that is gone (DROP EXTENSION) takes its payloads with it: the writer must not fail.
pub fn write(payloads: &[Vec<u8>]) {
    let database = shared::database();
    if !shared::preloaded() && !WARNED.replace(true) {
        failure(PgSqlErrorCode::ERRCODE_WARNING, "pg_fanout is not in shared_preload_libraries")
            .detail("Changes are captured, and nothing is delivered.")
            .hint(shared::PRELOAD_HINT)
            .warn();
    }
    // SAFETY: the relation is open and locked from here to the last use; each tuple is formed for its descriptor; the
    // fence is released on the way out, and by the abort (LWLockReleaseAll) if heap_insert raises.
    unsafe {
        // The top-level xid first: the reader tells new from old by it, so it must be older than the tuple's place.
        let xid = pg_sys::GetTopFullTransactionId();
        let mut relation = std::ptr::null_mut();
        for attempt in 0..FOLLOW {
            let current = || database.map_or(1, |database| database.segment());
            let number = current();
            let oid = oid(number);
            if oid == pg_sys::InvalidOid {
                return;
            }
            relation = pg_sys::try_relation_open(oid, pg_sys::RowExclusiveLock as i32);
            if relation.is_null() {
                return;
            }
            // The lock keeps the segment from being truncated until we commit. If the worker has moved on meanwhile,
            // follow it: a segment that nobody writes to can be truncated.
            if current() == number || attempt + 1 == FOLLOW {
                break;
            }
            pg_sys::relation_close(relation, pg_sys::RowExclusiveLock as i32);
        }
        let options = (pg_sys::HEAP_INSERT_SKIP_FSM | pg_sys::HEAP_INSERT_NO_LOGICAL) as i32;
        let command = pg_sys::GetCurrentCommandId(true);
        for payload in payloads {
            let datum: *mut u8 = pg_sys::palloc(payload.len() + 4).cast();
            std::ptr::copy_nonoverlapping(payload.as_ptr(), datum.add(4), payload.len());
            pgrx::set_varsize_4b(datum.cast(), payload.len() as i32 + 4);
            let mut values = [pg_sys::Datum::from(xid.value), pg_sys::Datum::from(datum)];
            let mut nulls = [false, false];
            let tuple = pg_sys::heap_form_tuple((*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            if let Some(database) = database {
                database.fence_shared();
            }
            (*pg_sys::RelationGetSmgr(relation)).smgr_targblock = pg_sys::InvalidBlockNumber;
            pg_sys::heap_insert(relation, tuple, command, options, std::ptr::null_mut());
            if let Some(database) = database {
                database.fence_release();
            }
            pg_sys::heap_freetuple(tuple);
            pg_sys::pfree(datum.cast());
        }
        pg_sys::relation_close(relation, pg_sys::NoLock as i32);
    }
}
