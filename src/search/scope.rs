//! Where a search goes: the index behind a sync or a name, and whether the caller may.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::body::Scope;
use crate::catalog::{self, Kind, Sync, mapping};
use crate::error::failure;
use crate::network::{EngineTarget, engine_target};

/// An index that the caller may search.
pub struct Place {
    /// The engine.
    pub target: EngineTarget,
    /// The index' name there.
    pub index: String,
    /// What is known of it.
    pub scope: Scope,
}

/// Types whose values are equal in the index only if they are equal in the table. Not `date`, `double` and the like, which
/// round, nor `ip`, which leaves out what is a network.
const EXACT_TYPES: [&str; 7] = ["boolean", "byte", "integer", "keyword", "long", "short", "unsigned_long"];

/// The sync named by the argument `index`, whose source the caller may read.
pub fn sync_named(index: Option<&str>) -> Sync {
    let sync = catalog::get(present("index", index));
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
    sync
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

/// The index that a sync feeds.
pub fn place_of(sync: &Sync) -> Place {
    let search_fields = mapping::search_fields(sync);
    let body = mapping::index_body(sync);
    let properties = &body["mappings"]["properties"];
    let unique: Option<Vec<(String, String)>> =
        sync.key_columns.iter().map(|column| exact_field(column, properties)).collect();
    Place {
        target: engine_target(&sync.server),
        index: sync.target.clone(),
        scope: Scope { search_fields, unique: unique.unwrap_or_default(), confined: true },
    }
}

/// The field that holds a key column's exact value, and its type.
fn exact_field(column: &str, properties: &serde_json::Value) -> Option<(String, String)> {
    let property = &properties[column];
    let exact = |field: &serde_json::Value| {
        let sortable = field["doc_values"] != serde_json::Value::Bool(false);
        field["type"].as_str().filter(|kind| sortable && EXACT_TYPES.contains(kind)).map(str::to_owned)
    };
    if let Some(kind) = exact(property) {
        return Some((column.to_owned(), kind));
    }
    let (name, kind) = property["fields"]
        .as_object()?
        .iter()
        .find_map(|(name, field)| exact(field).map(|kind| (name.clone(), kind)))?;
    Some((format!("{column}.{name}"), kind))
}

/// An index that no sync needs to feed.
pub fn place_named(server: Option<&str>, index: Option<&str>) -> Place {
    let target = engine_target(present("server", server));
    let index = present("index", index);
    // What the engine would take for something else than an index in the path of a request.
    let not_a_name = index.is_empty() || index.starts_with('_') || index.contains('/') || matches!(index, "." | "..");
    if not_a_name {
        failure(
            PgSqlErrorCode::ERRCODE_INVALID_NAME,
            "argument \"index\" must be the name of an index, an alias, or a pattern of such names",
        )
        .raise();
    }
    Place { target, index: index.to_owned(), scope: Scope::default() }
}

/// An argument that must not be null.
pub fn present<'a>(name: &str, value: Option<&'a str>) -> &'a str {
    value.unwrap_or_else(|| {
        failure(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, format!("argument \"{name}\" must not be null")).raise()
    })
}
