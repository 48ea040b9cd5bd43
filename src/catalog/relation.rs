//! `fanout.related()`: which other tables feed the documents of a sync, and how a row there is told its documents.

use crate::capture::image;
use crate::catalog::acting::{acting_for, privileged};
use crate::catalog::admin::{lock, not_parked, owned, start_reconcile};
use crate::catalog::declare::one_of;
use crate::catalog::foreign_keys::{Path, Ways, ways};
use crate::catalog::regclass::Regclass;
use crate::catalog::source::Table;
use crate::catalog::{self, Relation, Sync, document, ours, triggers};
use crate::document::{query, statements};
use crate::error::{failure, no_nulls, not_null};
use pgrx::prelude::*;
use pgrx::{Spi, default, pg_sys};

/// Declares that rows of another table belong to documents of a sync: a change there delivers these documents anew. Returns
/// how many relations were declared.
///
/// Without columns and keys the foreign keys say which rows belong to which documents. Where they do by ways of several lengths,
/// `ways` says which to follow: `all`, or the `shortest`. With columns alone these hold the key of the sync's source. `keys` is a
/// query from `changed`, which has the columns of the changed rows, old and new, to keys.
#[pg_extern(schema = "fanout")]
fn related(
    sync: Option<&str>,
    source: Option<Regclass>,
    columns: default!(Option<Vec<Option<String>>>, "NULL"),
    keys: default!(Option<String>, "NULL"),
    ways: default!(Option<String>, "NULL"),
) -> i64 {
    let ways = ways.map(|ways| one_of("ways", Some(ways), &["all", "shortest"]));
    if ways.is_some() && (columns.is_some() || keys.is_some()) {
        failure(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "\"ways\" can't be given together with \"columns\" or \"keys\"",
        )
        .hint("It says which foreign keys to follow, where these two don't say all.")
        .raise();
    }
    let (name, source) = (not_null("sync", sync), not_null("source", source));
    let sync = not_parked(owned(name));
    let table = Table::get(source.0);
    table.check_kind();
    table.check_rights(catalog::caller());
    if sync.document_query().is_none() {
        failure(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("the documents of sync \"{name}\" are rows of its source: no other table feeds them"),
        )
        .hint("Give it a query that reads other tables: fanout.index_table(…, document => 'SELECT …').")
        .raise();
    }
    let root = Table::get(sync.source);
    let wanted = match (columns, keys) {
        // A refresh has the whole sync reconciled: which rows changed is not known.
        (None, None) if table.is_refreshed() => vec![Wanted { columns: Vec::new(), keys: None }],
        (Some(_), _) | (_, Some(_)) if table.is_refreshed() => failure(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!(
                "\"{}\" is a materialized view: a refresh tells no rows, and has the whole sync reconciled",
                table.name
            ),
        )
        .hint("Leave out columns and keys.")
        .raise(),
        (None, None) => derived(&sync, &root, &table, ways.as_deref()),
        (None, Some(_)) => failure(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "\"keys\" needs \"columns\": those of the changed rows that it uses",
        )
        .hint("For example columns => '{variant_id}', keys => 'SELECT … FROM changed …'.")
        .raise(),
        (Some(columns), keys) => vec![explicit(&sync, &root, &table, columns, keys)],
    };
    table.lock();
    // Its triggers are given the name that the sync has from here on.
    lock(&sync);
    for wanted in &wanted {
        declare(&sync, &table, wanted);
    }
    // What changed there until now was captured by nobody.
    if !made_in_this_transaction(&sync) {
        start_reconcile(&sync);
        notice!("sync \"{name}\" is reconciled: earlier changes of \"{}\" were not captured", table.name);
    }
    wanted.len() as i64
}

/// Declares no more that rows of that table belong to documents of the sync. Returns how many relations there were.
#[pg_extern(schema = "fanout")]
fn drop_related(sync: Option<&str>, source: Option<Regclass>) -> i64 {
    let (sync, source) = (owned(not_null("sync", sync)), not_null("source", source));
    let relations: Vec<&Relation> = sync.relations.iter().filter(|relation| relation.source == source.0).collect();
    if relations.is_empty() {
        failure(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("sync \"{}\" has no relation to that table", sync.name),
        )
        .hint("SELECT * FROM fanout.relations lists the relations of this database.")
        .raise();
    }
    for relation in &relations {
        if let Some(table) = Table::find(relation.source) {
            triggers::drop_all(&table, &sync.name, Some(relation.id));
        }
    }
    lock(&sync);
    let ids: Vec<i32> = relations.iter().map(|relation| relation.id).collect();
    privileged(|| {
        ours(Spi::connect_mut(|client| -> Result<(), pgrx::spi::Error> {
            client.update("DELETE FROM fanout.relation WHERE relation_id = ANY ($1)", None, &[ids.into()])?;
            Ok(())
        }));
    });
    catalog::changed();
    relations.len() as i64
}

/// The relations that foreign keys suggest for the tables that a sync's query reads, and how to declare them; without
/// columns for a table to which no foreign key leads. Tables that are declared already are left out.
#[pg_extern(schema = "fanout")]
#[allow(clippy::type_complexity)]
fn propose_relations(
    sync: Option<&str>,
) -> TableIterator<
    'static,
    (name!(source, String), name!(columns, Option<Vec<String>>), name!(keys, Option<String>), name!(statement, String)),
> {
    let sync = owned(not_null("sync", sync));
    let root = Table::get(sync.source);
    let readings = document::readings(&sync);
    let mut rows = Vec::new();
    for oid in undeclared(&sync) {
        let table = Table::get(oid);
        let found = ways_of(&table, &root, &readings);
        let statement = statement(&sync, &table, &found);
        if found.paths.is_empty() {
            rows.push((table.quoted(), None, None, statement));
            continue;
        }
        for path in found.paths {
            let columns = path.columns().to_vec();
            rows.push((table.quoted(), Some(columns), path.keys(&sync.key_columns), statement.clone()));
        }
    }
    TableIterator::new(rows)
}

/// The tables that a sync's query reads beside the row of its source, and that are not declared.
fn undeclared(sync: &Sync) -> Vec<pg_sys::Oid> {
    let declared = |oid: &pg_sys::Oid| sync.relations.iter().any(|relation| relation.source == *oid);
    document::reads(sync).into_iter().filter(|oid| !declared(oid)).collect()
}

/// The ways from a related table to the source; none from what is only ever refreshed as a whole, nor from the source itself.
fn ways_of(table: &Table, root: &Table, readings: &document::Readings) -> Ways {
    if table.is_refreshed() || table.oid == root.oid {
        return Ways { paths: Vec::new(), more: false, endless: false };
    }
    ways(table, root, readings)
}

fn statement(sync: &Sync, table: &Table, ways: &Ways) -> String {
    let (sync, table) = (pgrx::spi::quote_literal(&sync.name), pgrx::spi::quote_literal(table.quoted()));
    let which = if ways.differ() { ", ways => 'all'" } else { "" };
    format!("SELECT fanout.related({sync}, {table}{which});")
}

/// A table whose changes do not reach the documents.
pub struct Unheard {
    pub table: String,
    pub why: &'static str,
    /// What to do.
    pub hint: String,
}

/// The tables that the query of a sync reads and whose changes nobody captures.
pub fn unheard(sync: &Sync) -> Vec<Unheard> {
    let found = undeclared(sync);
    if found.is_empty() {
        return Vec::new();
    }
    let (root, readings) = (Table::get(sync.source), document::readings(sync));
    let unheard = |oid: pg_sys::Oid| {
        let table = Table::get(oid);
        let ways = ways_of(&table, &root, &readings);
        let hint = if !table.has_triggers() && !table.is_refreshed() {
            "Its changes fire no triggers: call fanout.reconcile() after each.".to_owned()
        } else if ways.endless || (!table.is_refreshed() && ways.paths.is_empty()) {
            format!(
                "Foreign keys do not tell which rows belong to which documents; say it: \
                 fanout.related({}, {}, columns => …, keys => 'SELECT … FROM changed …').",
                pgrx::spi::quote_literal(&sync.name),
                pgrx::spi::quote_literal(table.quoted())
            )
        } else {
            statement(sync, &table, &ways)
        };
        let why = if oid == sync.source {
            "It is the source itself, which the query reads twice: a row may belong to documents of other rows."
        } else {
            "The document query reads it, but it is not declared."
        };
        Unheard { table: table.quoted(), why, hint }
    };
    found.into_iter().map(unheard).collect()
}

/// Says which tables the query of a sync reads whose changes nobody captures.
pub fn warn_of_undeclared(name: &str) {
    let Some(sync) = catalog::find(name) else { return };
    for Unheard { table, why, hint } in unheard(&sync) {
        failure(
            PgSqlErrorCode::ERRCODE_WARNING,
            format!("changes of table {table} do not reach the documents of sync \"{name}\" yet"),
        )
        .detail(why)
        .hint(hint)
        .warn();
    }
}

/// A relation as it will be noted.
struct Wanted {
    columns: Vec<String>,
    keys: Option<String>,
}

fn derived(sync: &Sync, root: &Table, table: &Table, which: Option<&str>) -> Vec<Wanted> {
    let say = "Say it: columns => the columns of the changed rows that matter, keys => 'SELECT … FROM changed …'.";
    let refused = |message: String| failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message);
    if table.oid == root.oid {
        refused(format!("\"{}\" is the source of the sync itself", table.name))
            .detail("A change of a row delivers its own document anyway; to which others it belongs has to be said.")
            .hint(say)
            .raise();
    }
    let readings = document::readings(sync);
    if !readings.tables.contains(&table.oid) {
        notice!("the document query of sync \"{}\" does not read \"{}\", as far as can be seen", sync.name, table.name);
    }
    let found = ways(table, root, &readings);
    if found.paths.is_empty() {
        refused(format!("no foreign key leads from \"{}\" to \"{}\"", table.name, root.name))
            .detail("Only ways by tables that the document query reads were looked for.")
            .hint(say)
            .raise();
    }
    if which.is_none() && !found.differ() || which == Some("shortest") {
        return wanted(sync, found.shortest());
    }
    let list: Vec<String> =
        (1..).zip(&found.paths).map(|(n, path)| format!("{n}: {}", path.conditions(&table.quoted()))).collect();
    if found.endless {
        refused(format!(
            "foreign keys do not tell how far a change of \"{}\" reaches: the query is recursive",
            table.name
        ))
        .detail(format!("They lead to \"{}\" by a table that refers to itself; for example {}.", root.name, list[0]))
        .hint("Say it: columns => '{…}', keys => 'WITH RECURSIVE … FROM changed …'.")
        .raise();
    }
    if found.more {
        refused(format!("too many ways lead from \"{}\" to \"{}\" by foreign keys", table.name, root.name))
            .detail(format!("The first are {}.", list.join("; ")))
            .hint(format!("{say} Or follow only the shortest: ways => 'shortest'."))
            .raise();
    }
    if which.is_none() {
        refused(format!("several ways lead from \"{}\" to \"{}\" by foreign keys", table.name, root.name))
            .detail(format!("They are {}.", list.join("; ")))
            .hint(format!(
                "ways => 'all' follows each of them; ways => 'shortest' only the first {}, if the query joins by no other. \
                 Or say it by columns and keys: fanout.propose_relations() shows them.",
                found.shortest().len()
            ))
            .raise();
    }
    wanted(sync, &found.paths)
}

fn wanted(sync: &Sync, paths: &[Path]) -> Vec<Wanted> {
    paths.iter().map(|path| Wanted { columns: path.columns().to_vec(), keys: path.keys(&sync.key_columns) }).collect()
}

fn explicit(sync: &Sync, root: &Table, table: &Table, columns: Vec<Option<String>>, keys: Option<String>) -> Wanted {
    let invalid = |message: String| failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message);
    let columns = no_nulls("columns", columns);
    if columns.is_empty() {
        invalid("\"columns\" names no column".to_owned())
            .hint("Name those of the changed rows that matter, or leave it out to follow foreign keys.")
            .raise();
    }
    for name in &columns {
        catalog::key::check_address_column(table, name);
    }
    let Some(keys) = keys else {
        if columns.len() != sync.key_columns.len() {
            invalid(format!("\"columns\" must hold the key of \"{}\": ({})", root.name, sync.key_columns.join(", ")))
                .hint("Or say by a query to which keys they lead: keys => 'SELECT … FROM changed …'.")
                .raise();
        }
        check_types(
            sync,
            root,
            &columns.iter().filter_map(|name| table.column(name)).map(|it| it.type_oid).collect::<Vec<_>>(),
        );
        return Wanted { columns, keys: None };
    };
    let keys = query::only_select("keys", &keys);
    let typed: Vec<(String, String)> = columns
        .iter()
        .filter_map(|name| table.column(name))
        .map(|column| (column.name.clone(), catalog::key::type_name(column.type_oid)))
        .collect();
    let described = acting_for(sync, || {
        query::named(
            "keys",
            "It is a SELECT from \"changed\", a table with the columns that \"columns\" names.",
            std::panic::AssertUnwindSafe(|| query::describe(&statements::changed_with(&typed, &keys), &[])),
        )
    });
    if described.volatile || described.locks {
        document::check_stable("keys", &described);
    }
    if described.columns.len() != sync.key_columns.len() {
        invalid(format!(
            "\"keys\" must yield the key of \"{}\", ({}), but yields {} column(s)",
            root.name,
            sync.key_columns.join(", "),
            described.columns.len()
        ))
        .hint("Select these columns and no others, in that order.")
        .raise();
    }
    check_types(sync, root, &described.columns.iter().map(|column| column.type_oid).collect::<Vec<_>>());
    Wanted { columns, keys: Some(keys) }
}

/// Raises unless values of these types can be compared with the key.
fn check_types(sync: &Sync, root: &Table, types: &[pg_sys::Oid]) {
    for (name, &found) in sync.key_columns.iter().zip(types) {
        let Some(column) = root.column(name) else { continue };
        // SAFETY: look-ups of the type cache and of a btree family's operators on the main thread.
        let comparable = unsafe {
            let wanted = pg_sys::getBaseType(column.type_oid);
            let found = pg_sys::getBaseType(found);
            let entry = pg_sys::lookup_type_cache(wanted, pg_sys::TYPECACHE_BTREE_OPFAMILY as i32);
            let input = (*entry).btree_opintype;
            found == wanted
                || pg_sys::get_opfamily_member((*entry).btree_opf, input, found, pg_sys::BTEqualStrategyNumber as i16)
                    != pg_sys::InvalidOid
                || pg_sys::IsBinaryCoercible(found, input)
        };
        if !comparable {
            failure(
                PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                format!(
                    "key column \"{name}\" of \"{}\" is {}, but the relation gives {}",
                    root.name,
                    catalog::key::type_name(column.type_oid),
                    catalog::key::type_name(found)
                ),
            )
            .hint(format!("Cast it in \"keys\": SELECT …::{} FROM changed.", catalog::key::type_name(column.type_oid)))
            .raise();
        }
    }
}

/// Types whose equal values have one image: an address taken from a referring column is that of the row itself.
const EXACT: &[pg_sys::Oid] = &[
    pg_sys::INT2OID,
    pg_sys::INT4OID,
    pg_sys::INT8OID,
    pg_sys::OIDOID,
    pg_sys::UUIDOID,
    pg_sys::DATEOID,
    pg_sys::TIMESTAMPOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::BYTEAOID,
];

/// True if the columns can be captured as addresses of the sync itself.
fn is_direct(sync: &Sync, table: &Table, wanted: &Wanted) -> bool {
    let root = Table::get(sync.source);
    wanted.keys.is_none()
        && !table.is_refreshed()
        && sync.address_columns == sync.key_columns
        && wanted.columns.iter().zip(&sync.key_columns).all(|(column, key)| {
            let types = (table.column(column).map(|it| it.type_oid), root.column(key).map(|it| it.type_oid));
            types.0 == types.1 && types.0.is_some_and(|known| EXACT.contains(&known))
        })
}

fn declare(sync: &Sync, table: &Table, wanted: &Wanted) {
    let known = sync.relations.iter().any(|relation| {
        relation.source == table.oid && relation.columns == wanted.columns && relation.keys == wanted.keys
    });
    if known {
        failure(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!(
                "\"{}\" is related to sync \"{}\" by ({}) already",
                table.name,
                sync.name,
                wanted.columns.join(", ")
            ),
        )
        .hint("fanout.drop_related() ends a relation.")
        .raise();
    }
    let direct = is_direct(sync, table, wanted);
    // As of now, and not when the worker comes to it: what is captured until then may be of types that it would not know of.
    let columns = wanted.columns.iter().filter_map(|name| table.column(name));
    let layout = image::layout(columns.map(|column| image::Storage::of(column.type_oid)));
    let id = privileged(|| {
        ours(Spi::connect_mut(|client| {
            client
                .update(
                    "INSERT INTO fanout.relation (sync_id, source, columns, keys, direct, layout)
                     VALUES ($1, $2::pg_catalog.oid::pg_catalog.regclass, $3, $4, $5, $6) RETURNING relation_id",
                    None,
                    &[
                        sync.id.into(),
                        table.oid.into(),
                        wanted.columns.clone().into(),
                        wanted.keys.clone().into(),
                        direct.into(),
                        i64::from(layout.signature).into(),
                    ],
                )?
                .first()
                .get_one::<i32>()
        }))
    });
    triggers::create(table, &sync.name, id);
    catalog::changed();
}

/// True if nobody else has seen the sync yet. By the transaction's time: in a savepoint its number is another.
fn made_in_this_transaction(sync: &Sync) -> bool {
    privileged(|| {
        ours(Spi::connect(|client| {
            client
                .select(
                    "SELECT created_at OPERATOR(pg_catalog.=) pg_catalog.now() FROM fanout.sync WHERE sync_id = $1",
                    None,
                    &[sync.id.into()],
                )?
                .first()
                .get_one::<bool>()
        }))
    })
    .unwrap_or(false)
}
