//! Something that may fail without ending the statement: in a subtransaction of its own.

use crate::error::failure;
use crate::worker::transaction::{Failed, describe};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work`; an ERROR in it is rolled back and given back. A cancel goes on its way.
pub fn attempt<T>(work: impl FnOnce() -> T) -> Result<T, Failed> {
    // SAFETY: the usual frame of an internal subtransaction (plpgsql's exec_stmt_block): context and resource owner are put
    // back, for they are those of the subtransaction until it ends.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let outcome = catch_unwind(AssertUnwindSafe(work));
        match outcome {
            Ok(_) => pg_sys::ReleaseCurrentSubTransaction(),
            Err(_) => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        let failed = match outcome {
            Ok(value) => return Ok(value),
            Err(payload) => describe(payload),
        };
        if failed.sqlstate == "57014" {
            failure(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, failed.message).raise();
        }
        Err(failed)
    }
}
