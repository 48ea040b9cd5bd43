//! Where a search goes: the index behind a sync or a name, and whether the caller may.

use std::rc::Rc;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::body::Scope;
use super::known::{self, Known};
use crate::catalog::{Kind, Sync};
use crate::error::{failure, not_null};
use crate::network::{EngineTarget, engine_target};

/// An index that the caller may search.
pub struct Place {
    /// The engine.
    pub target: Rc<EngineTarget>,
    /// The index' name there.
    pub index: String,
    /// What is known of it.
    pub scope: Rc<Scope>,
}

/// The sync named by the argument `index`, whose source the caller may read.
pub fn sync_named(index: Option<&str>) -> Rc<Known> {
    let known = known::sync(not_null("index", index));
    let sync = &known.sync;
    if sync.kind != Kind::Index {
        failure(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, format!("sync \"{}\" feeds no index", sync.name))
            .hint("fanout.index_table() makes a sync that does; redis_get() reads what this one feeds.")
            .raise();
    }
    // SAFETY: catalog look-ups by OID on the main thread; the name is null for a relation that is gone.
    let permitted = unsafe {
        let name = pg_sys::get_rel_name(sync.source);
        if name.is_null() {
            failure(
                PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                format!("the table that sync \"{}\" is fed from no longer exists", sync.name),
            )
            .hint("fanout.drop_sync() ends the sync; es_search_index() searches an index without one.")
            .raise();
        }
        let right = pg_sys::ACL_SELECT as pg_sys::AclMode;
        let answer = pg_sys::pg_class_aclcheck(sync.source, pg_sys::GetUserId(), right);
        if answer == pg_sys::AclResult::ACLCHECK_OK {
            Ok(())
        } else {
            Err(std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned())
        }
    };
    if let Err(table) = permitted {
        failure(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("permission denied for table {table}"))
            .detail(format!("A search in \"{}\" needs SELECT on the table that it is fed from.", sync.name))
            .raise();
    }
    known
}

/// Refuses if row-level security hides rows of the source from the caller: the index holds them all.
pub fn refuse_row_security(sync: &Sync) {
    // SAFETY: a catalog look-up for the current user, which with noError raises nothing but on a missing relation.
    let active = unsafe { pg_sys::check_enable_rls(sync.source, pg_sys::InvalidOid, true) };
    if active == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32 {
        failure(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("row-level security applies to the table of sync \"{}\", and an index can't enforce it", sync.name),
        )
        .hint("es_rows() returns those of the found rows that you may see.")
        .raise();
    }
}

/// The index that serves for a sync.
pub fn place_of(known: &Known) -> Place {
    let serving = &known.serving;
    Place { target: engine_target(&serving.server), index: serving.target.clone(), scope: Rc::clone(&known.scope) }
}

/// An index that no sync needs to feed.
pub fn place_named(server: Option<&str>, index: Option<&str>) -> Place {
    let target = engine_target(not_null("server", server));
    let index = not_null("index", index);
    // What the engine would take for something else than an index in the path of a request.
    let not_a_name = index.is_empty() || index.starts_with('_') || index.contains('/') || matches!(index, "." | "..");
    if not_a_name {
        failure(
            PgSqlErrorCode::ERRCODE_INVALID_NAME,
            "argument \"index\" must be the name of an index, an alias, or a pattern of such names",
        )
        .hint("It begins with no underscore and has no slash, as 'product' or 'log-*'.")
        .raise();
    }
    Place { target, index: index.to_owned(), scope: Rc::default() }
}
