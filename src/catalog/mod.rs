//! The catalog of syncs: table `fanout.sync`, read into Rust.

pub mod acting;
pub mod admin;
mod alter;
mod dead_letters;
pub mod declare;
pub mod document;
pub mod enqueue;
mod foreign_keys;
pub mod kept;
pub mod key;
pub mod key_values;
pub mod mapping;
mod naming;
mod regclass;
pub mod relation;
pub mod source;
pub mod subscription;
pub mod triggers;
pub mod version;

use crate::error::failure;
use acting::privileged;
use delivery::period::Period;
use delivery::template::KeyTemplate;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::{FromDatum, IntoDatum, JsonB, Spi, pg_sys};
use source::Table;

/// What kind of target a sync has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An index of Elasticsearch or OpenSearch.
    Index,
    /// Keys of Redis.
    Cache,
}

/// Where a sync is on its way (`fanout.sync.phase`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The target is to be made or claimed.
    Create,
    /// All rows of the source are being delivered to an empty target.
    Backfill,
    /// All ids of the target, then all rows of the source, are being delivered.
    Reconcile,
    /// Only changes are delivered.
    Live,
    /// The target is to be removed, and then the sync.
    Drop,
}

impl Phase {
    /// The word that the catalog holds.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Create => "create",
            Phase::Backfill => "backfill",
            Phase::Reconcile => "reconcile",
            Phase::Live => "live",
            Phase::Drop => "drop",
        }
    }

    fn parse(word: &str) -> Self {
        match word {
            "backfill" => Phase::Backfill,
            "reconcile" => Phase::Reconcile,
            "live" => Phase::Live,
            "drop" => Phase::Drop,
            _ => Phase::Create,
        }
    }
}

/// One row of `fanout.sync`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sync {
    pub id: i32,
    pub name: String,
    pub kind: Kind,
    pub source: pg_sys::Oid,
    pub server: String,
    pub target: String,
    pub key_columns: Vec<String>,
    pub address_columns: Vec<String>,
    pub owner: pg_sys::Oid,
    pub options: serde_json::Value,
    pub identity: String,
    pub paused: bool,
    pub generation: i32,
    pub phase: Phase,
    pub position: Option<Vec<u8>>,
    pub rows_done: i64,
    pub rows_total: Option<i64>,
    pub adopt: bool,
    pub request: i32,
    pub layout: Option<i64>,
    pub claimed: Option<String>,
    /// What somebody should know though the sync works.
    pub note: Option<String>,
    /// What was known of the source when the worker looked last.
    pub shape: Option<serde_json::Value>,
    /// With one index a period: the indices that were made, of this generation and perhaps of earlier ones.
    pub indices: Vec<String>,
    /// Of a target to be removed: the sync that fed it, and has another that is to be filled first. Until then this one serves.
    pub successor: Option<i32>,
    pub relations: Vec<Relation>,
}

/// One row of `fanout.relation`: a table whose rows belong to documents of the sync.
#[derive(Clone, Debug, PartialEq)]
pub struct Relation {
    pub id: i32,
    pub source: pg_sys::Oid,
    /// The captured columns.
    pub columns: Vec<String>,
    /// The query from `changed` to keys of the sync's source; None if the columns are that key.
    pub keys: Option<String>,
    /// The columns are captured as addresses of the sync itself: the worker has nothing to look up.
    pub direct: bool,
    pub layout: Option<i64>,
}

/// What the names of documents are made with, where it is not the key of the row alone.
pub struct Templates {
    /// Of a cache: its keys.
    pub key: Option<KeyTemplate>,
    /// What decides on a document's shard instead of its id.
    pub routing: Option<KeyTemplate>,
    /// What decides on a document's index, where there is one a period.
    pub period: Option<Period>,
}

impl Templates {
    /// Whether documents have another name, or are elsewhere, when columns beside their key change.
    pub fn move_documents(&self) -> bool {
        self.routing.is_some() || self.period.is_some()
    }

    /// A pattern that all keys of a cache match.
    pub fn glob(&self) -> String {
        self.key.as_ref().map(KeyTemplate::glob).unwrap_or_default()
    }
}

impl Relation {
    /// The name of the related table, as messages show it. Within a transaction.
    pub fn source_name(&self) -> String {
        Table::find(self.source).map_or_else(|| self.source.to_u32().to_string(), |table| table.quoted())
    }
}

impl Sync {
    /// The tables that are captured for it: its source, and those of its relations with the relation's number.
    pub fn captured(&self) -> impl Iterator<Item = (pg_sys::Oid, Option<i32>)> {
        let related = self.relations.iter().map(|relation| (relation.source, Some(relation.id)));
        std::iter::once((self.source, None)).chain(related)
    }

    /// The query that makes the documents, if it is not the rows themselves.
    pub fn document_query(&self) -> Option<&str> {
        self.options["document"].as_str()
    }

    /// Where the names in the sync's query and predicate are looked up.
    pub fn search_path(&self) -> Option<&str> {
        self.options["search_path"].as_str()
    }

    /// What the names of its documents are made with.
    pub fn templates(&self) -> Templates {
        Templates {
            key: (self.kind == Kind::Cache).then(|| KeyTemplate::parse(&self.target).ok()).flatten(),
            routing: self.options["routing"].as_str().and_then(|routing| KeyTemplate::parse_any(routing).ok()),
            period: self.options["period"].as_str().and_then(|period| Period::parse(period).ok()),
        }
    }

    /// The concrete index behind the alias `target`; with one index a period an alias of its own for all of them.
    pub fn concrete_index(&self) -> String {
        self.index_of(self.generation)
    }

    /// The concrete index of a generation.
    pub fn index_of(&self, generation: i32) -> String {
        format!("{}-fanout-{generation}", self.target)
    }

    /// Why the sync is inert here, until fanout.adopt() makes it one of this database; None if it is one.
    pub fn parked(&self) -> Option<String> {
        let here = identity();
        if self.identity == here {
            return None;
        }
        let cluster = |identity: &str| identity.split('/').next().map(str::to_owned);
        Some(if cluster(&self.identity) == cluster(&here) {
            "it was made in another database of this cluster, of which this one is a copy".to_owned()
        } else {
            "it was made in another cluster, and came with a dump or pg_upgrade".to_owned()
        })
    }

    /// Which sync this is to a target: unlike its name not used again, and the same on every timeline.
    pub fn mark(&self) -> String {
        format!("{}/{}", self.identity, self.id)
    }

    /// The epoch with which the target was claimed last.
    pub fn claimed_epoch(&self) -> Option<u64> {
        self.claimed.as_deref()?.rsplit_once('#')?.1.parse().ok()
    }

    /// What the name of an index ends in, where there is one a period. None if it is none of this generation.
    pub fn suffix<'a>(&self, index: &'a str) -> Option<&'a str> {
        index.strip_prefix(&self.concrete_index())?.strip_prefix('-')
    }
}

const COLUMNS: &str = "sync_id, name, kind, source::pg_catalog.oid, server, target, key_columns, address_columns, \
    owner::pg_catalog.oid, options, identity, paused, generation, phase, position, rows_done, rows_total, adopt, request, layout, claimed, note, shape, \
    indices, successor";

fn query(filter: &str, args: &[pgrx::datum::DatumWithOid]) -> Result<Vec<Sync>, pgrx::spi::Error> {
    let sql = format!("SELECT {COLUMNS} FROM fanout.sync WHERE {filter} ORDER BY sync_id");
    Spi::connect(|client| {
        let mut syncs = Vec::new();
        for row in client.select(&sql, None, args)? {
            syncs.push(Sync {
                id: row.get(1)?.unwrap_or_default(),
                name: row.get(2)?.unwrap_or_default(),
                kind: if row.get::<&str>(3)? == Some("cache") { Kind::Cache } else { Kind::Index },
                source: row.get(4)?.unwrap_or(pg_sys::InvalidOid),
                server: row.get(5)?.unwrap_or_default(),
                target: row.get(6)?.unwrap_or_default(),
                key_columns: row.get(7)?.unwrap_or_default(),
                address_columns: row.get(8)?.unwrap_or_default(),
                owner: row.get(9)?.unwrap_or(pg_sys::InvalidOid),
                options: row.get::<JsonB>(10)?.map(|json| json.0).unwrap_or_default(),
                identity: row.get(11)?.unwrap_or_default(),
                paused: row.get(12)?.unwrap_or_default(),
                generation: row.get(13)?.unwrap_or_default(),
                phase: Phase::parse(row.get::<&str>(14)?.unwrap_or_default()),
                position: row.get(15)?,
                rows_done: row.get(16)?.unwrap_or_default(),
                rows_total: row.get(17)?,
                adopt: row.get(18)?.unwrap_or_default(),
                request: row.get(19)?.unwrap_or_default(),
                layout: row.get(20)?,
                claimed: row.get(21)?,
                note: row.get(22)?,
                shape: row.get::<JsonB>(23)?.map(|json| json.0),
                indices: row.get(24)?.unwrap_or_default(),
                successor: row.get(25)?,
                relations: Vec::new(),
            });
        }
        let relations = "SELECT r.sync_id, r.relation_id, r.source::pg_catalog.oid, r.columns, r.keys, r.direct, r.layout \
            FROM fanout.relation AS r ORDER BY r.relation_id";
        for row in client.select(relations, None, &[])? {
            let of = row.get::<i32>(1)?.unwrap_or_default();
            if let Some(sync) = syncs.iter_mut().find(|sync| sync.id == of) {
                sync.relations.push(Relation {
                    id: row.get(2)?.unwrap_or_default(),
                    source: row.get(3)?.unwrap_or(pg_sys::InvalidOid),
                    columns: row.get(4)?.unwrap_or_default(),
                    keys: row.get(5)?,
                    direct: row.get(6)?.unwrap_or_default(),
                    layout: row.get(7)?,
                });
            }
        }
        Ok(syncs)
    })
}

/// The first value that a query gives; None also if there is no row. Unlike `Spi::get_one()` it gives the transaction no XID, which
/// a standby and a parallel query would refuse.
pub fn first<T: FromDatum + IntoDatum>(sql: &str, args: &[DatumWithOid]) -> Result<Option<T>, pgrx::spi::Error> {
    Spi::connect(|client| {
        let rows = client.select(sql, Some(1), args)?.first();
        if rows.is_empty() { Ok(None) } else { rows.get_one() }
    })
}

/// What a statement of our own gave; its failure is a bug of ours or a damaged catalog.
pub fn ours<T>(result: Result<T, pgrx::spi::Error>) -> T {
    result.unwrap_or_else(|error| failure(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()).raise())
}

/// The role whose rights count: the current one, so that SECURITY DEFINER functions act for their owners.
pub fn caller() -> pg_sys::Oid {
    // SAFETY: reads a variable of the backend.
    unsafe { pg_sys::GetUserId() }
}

/// Raises unless the library is preloaded: without the worker a sync would never be delivered.
pub fn require_preloaded() {
    if !crate::worker::shared::preloaded() {
        failure(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "pg_fanout is not in shared_preload_libraries",
        )
        .detail("Without it there is no worker that would deliver anything.")
        .hint(crate::worker::shared::PRELOAD_HINT)
        .raise();
    }
}

/// Every sync of this database. Reads as the caller's current role: the worker has the right to.
pub fn all() -> Result<Vec<Sync>, pgrx::spi::Error> {
    query("true", &[])
}

/// The sync of that name, read with our own rights; None if there is none.
pub fn find(name: &str) -> Option<Sync> {
    ours(privileged(|| query("name OPERATOR(pg_catalog.=) $1", &[name.into()]))).pop()
}

/// What is searched for a sync: itself, or the target that it had before, as long as the present one is not filled.
pub fn serving(sync: &Sync) -> Sync {
    let filter = "$1 OPERATOR(pg_catalog.=) ANY (ARRAY[sync_id, successor])";
    // Both as of one moment: it may get another target, or its old one back, just now.
    let both = ours(privileged(|| query(filter, &[sync.id.into()])));
    let former = both.iter().find(|it| it.successor == Some(sync.id));
    former.or(both.first()).unwrap_or(sync).clone()
}

/// What a trigger has to know of its sync, or of its relation.
pub struct Captured {
    /// By what the journal calls it.
    pub id: i32,
    /// What is reconciled where rows cannot be told.
    pub sync: i32,
    pub source: pg_sys::Oid,
    pub columns: Vec<String>,
    pub identity: String,
}

/// The sync of that name as of now, or one of its relations; whatever snapshot the transaction has: what a trigger notes
/// must not depend on it.
pub fn captured_now(name: &str, relation: Option<i32>) -> Option<Captured> {
    let sync = now(c"sync", |row| {
        (row.get::<String>(c"name").as_deref() == Some(name)).then(|| {
            let id = row.get(c"sync_id").unwrap_or_default();
            Captured {
                id,
                sync: id,
                source: row.get(c"source").unwrap_or(pg_sys::InvalidOid),
                columns: row.get(c"address_columns").unwrap_or_default(),
                identity: row.get(c"identity").unwrap_or_default(),
            }
        })
    })?;
    let Some(relation) = relation else { return Some(sync) };
    now(c"relation", |row| {
        let of = (row.get::<i32>(c"relation_id"), row.get::<i32>(c"sync_id"));
        (of == (Some(relation), Some(sync.id))).then(|| Captured {
            id: if row.get(c"direct").unwrap_or(false) { sync.id } else { relation },
            sync: sync.id,
            source: row.get(c"source").unwrap_or(pg_sys::InvalidOid),
            columns: row.get(c"columns").unwrap_or_default(),
            identity: sync.identity.clone(),
        })
    })
}

/// The syncs that a table is a source of, or a related table, as of now.
pub fn fed_by(table: pg_sys::Oid) -> Vec<i32> {
    let mut syncs = Vec::new();
    for of in [c"sync", c"relation"] {
        now(of, |row| {
            if row.get(c"source") == Some(table) {
                syncs.extend(row.get::<i32>(c"sync_id"));
            }
            None::<()>
        });
    }
    syncs.sort_unstable();
    syncs.dedup();
    syncs
}

/// A row of a table of ours.
struct Row {
    table: pg_sys::Oid,
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Row {
    fn get<T: pgrx::FromDatum>(&self, column: &std::ffi::CStr) -> Option<T> {
        // SAFETY: the tuple is of the table's descriptor, and lives as long as now() visits it; the column is read by its
        // number as the type that bootstrap.sql gives it, and copied.
        unsafe {
            let number = pg_sys::get_attnum(self.table, column.as_ptr());
            if number <= 0 {
                return None;
            }
            let mut null = false;
            let datum = pg_sys::heap_getattr(self.tuple, number.into(), self.descriptor, &mut null);
            T::from_datum(datum, null)
        }
    }
}

/// The first row of a table of ours, as of now, that `find` makes something of. A scan of the table itself, since SPI reads
/// with the transaction's snapshot where that is repeatable.
fn now<T>(table: &std::ffi::CStr, mut find: impl FnMut(&Row) -> Option<T>) -> Option<T> {
    let oid = own_relation(table);
    if oid == pg_sys::InvalidOid {
        return None;
    }
    // SAFETY: the relation is open and locked while it is scanned, the snapshot registered.
    unsafe {
        let relation = pg_sys::try_relation_open(oid, pg_sys::AccessShareLock as i32);
        if relation.is_null() {
            return None;
        }
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let scan = pg_sys::systable_beginscan(relation, pg_sys::InvalidOid, false, snapshot, 0, std::ptr::null_mut());
        let mut found = None;
        while found.is_none() {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            found = find(&Row { table: oid, tuple, descriptor: (*relation).rd_att });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::UnregisterSnapshot(snapshot);
        pg_sys::relation_close(relation, pg_sys::AccessShareLock as i32);
        found
    }
}

/// The sync, other than `but`, that feeds that target of that server, by whatever name it calls the server. Read with our own
/// rights.
fn feeding(server: &str, target: &str, but: Option<i32>) -> Option<Sync> {
    let syncs = ours(privileged(|| query("target OPERATOR(pg_catalog.=) $1", &[target.into()])));
    let mut others = syncs.into_iter().filter(|sync| Some(sync.id) != but);
    others.find(|sync| sync.server == server || crate::server::lead_to_one_place(&sync.server, server))
}

/// The sync of that name, or an ERROR that names it.
pub fn get(name: &str) -> Sync {
    find(name).unwrap_or_else(|| {
        failure(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, format!("sync \"{name}\" does not exist"))
            .hint("SELECT sync FROM fanout.status lists the syncs of this database.")
            .raise()
    })
}

/// The OID of a relation of schema `fanout`, or InvalidOid.
pub fn own_relation(name: &std::ffi::CStr) -> pg_sys::Oid {
    // SAFETY: catalog look-ups by name on the main thread; both answer InvalidOid for what is missing.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"fanout".as_ptr(), true);
        if schema == pg_sys::InvalidOid {
            return pg_sys::InvalidOid;
        }
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    }
}

/// To be called by whoever changes `fanout.sync`: at commit every backend and the worker read it anew, and the worker wakes.
pub fn changed() {
    let sync = own_relation(c"sync");
    if sync != pg_sys::InvalidOid {
        // SAFETY: registers a transactional invalidation message for an existing relation.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(sync) };
    }
    crate::capture::wake_at_commit();
}

/// This cluster and database, as `fanout.sync.identity` holds it.
pub fn identity() -> String {
    // SAFETY: reads values that are constant in a backend connected to a database.
    unsafe { format!("{}/{}", pg_sys::GetSystemIdentifier(), pg_sys::MyDatabaseId.to_u32()) }
}
