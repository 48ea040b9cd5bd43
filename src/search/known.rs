//! What a search must know of a sync, kept until anything about a table changes.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Once;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::body::Scope;
use crate::catalog::kept::Kept;
use crate::catalog::{self, Sync, mapping};

/// A sync, and what its index' mapping says.
pub struct Known {
    pub sync: Sync,
    /// What is searched: the sync itself, unless its target is another that is not filled yet.
    pub serving: Sync,
    pub scope: Rc<Scope>,
}

/// Types whose values are equal in the index only if they are equal in the table. Not `date`, `double` and the like, which
/// round, nor `ip`, which leaves out what is a network.
const EXACT_TYPES: [&str; 7] = ["boolean", "byte", "integer", "keyword", "long", "short", "unsigned_long"];

thread_local! {
    static KNOWN: Kept<String, Known, 256> = Kept::default();
}

/// The sync of that name, or an ERROR.
pub fn sync(name: &str) -> Rc<Known> {
    static REGISTERED: Once = Once::new();
    // SAFETY: called once a backend on its main thread, with a function that lives as long as the process.
    REGISTERED.call_once(|| unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(table_changed), pg_sys::Datum::from(0_usize));
    });
    // What others have committed by now counts, as it would if the catalog were read.
    // SAFETY: within a transaction, on the main thread.
    unsafe { pg_sys::AcceptInvalidationMessages() };
    let Ok(known) = KNOWN.with(|kept| kept.get(name.to_owned(), |name| Ok::<_, Infallible>(read(name))));
    known
}

/// Reads the catalog as of now: the statement's snapshot may be older than the invalidation that was just taken in, and a search
/// goes where the index is by now. False: it is, or may be, as of that snapshot.
fn read(name: &str) -> (Known, bool) {
    let read = || {
        let sync = catalog::get(name);
        let serving = catalog::serving(&sync);
        // Fields are those of the index that is searched.
        Known { scope: Rc::new(scope(&serving)), serving, sync }
    };
    // SAFETY: reads variables of the backend; the snapshot that is pushed is popped, and an ERROR in between takes it along.
    unsafe {
        // PostgreSQL gives no other snapshot while a plan is run in parallel.
        if pg_sys::IsInParallelMode() {
            return (read(), false);
        }
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        let known = read();
        pg_sys::PopActiveSnapshot();
        // A transaction that has written reads with its own.
        let with_its_own = pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32
            && pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId;
        (known, !with_its_own)
    }
}

/// Postgres calls it for every relation that changed, those of this transaction too.
#[pg_guard]
unsafe extern "C-unwind" fn table_changed(_argument: pg_sys::Datum, _relation: pg_sys::Oid) {
    // Gone at the end of the process.
    let _ = KNOWN.try_with(Kept::invalidate);
}

fn scope(sync: &Sync) -> Scope {
    let body = mapping::index_body(sync);
    let properties = &body["mappings"]["properties"];
    let unique: Option<Vec<(String, String)>> =
        sync.key_columns.iter().map(|column| exact_field(column, properties)).collect();
    Scope { search_fields: mapping::search_fields(sync), unique: unique.unwrap_or_default(), confined: true }
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
