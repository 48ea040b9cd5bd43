//! Which columns identify a row of a source.

use crate::catalog::acting::privileged;
use crate::catalog::ours;
use crate::catalog::source::Table;
use crate::error::failure;
use crate::server::options::text;
use pgrx::prelude::*;
use pgrx::{Spi, pg_sys};

/// The key columns: those of the primary key, else of the replica identity index, else of the narrowest unique index
/// over columns that are NOT NULL. An ERROR if the table has none of these.
///
/// An index that is partial, over expressions, still being built, or of another kind than btree says nothing about all rows.
pub fn key_columns(table: &Table) -> Vec<String> {
    let columns = privileged(|| {
        ours(Spi::connect(|client| -> Result<Option<Vec<String>>, pgrx::spi::Error> {
            let found = client.select(
                "SELECT k.columns
                 FROM pg_catalog.pg_index i
                 JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
                 JOIN pg_catalog.pg_am m ON m.oid = c.relam
                 CROSS JOIN LATERAL (
                     SELECT pg_catalog.array_agg(a.attname::text ORDER BY n.place) AS columns,
                            -- No column of a materialized view is declared NOT NULL. From 18 on, NOT NULL may be NOT VALID.
                            pg_catalog.bool_and($2 OR a.attnotnull AND NOT EXISTS (
                                SELECT FROM pg_catalog.pg_constraint v
                                WHERE v.conrelid = i.indrelid AND v.contype = 'n' AND NOT v.convalidated
                                  AND v.conkey = ARRAY[a.attnum])) AS complete
                     FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS n (number, place)
                     JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = n.number
                     WHERE n.place <= i.indnkeyatts
                 ) k
                 WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
                   AND m.amname = 'btree' AND k.complete
                 ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indnkeyatts, i.indexrelid",
                Some(1),
                &[table.oid.into(), table.is_refreshed().into()],
            )?;
            if found.is_empty() { Ok(None) } else { found.first().get(1) }
        }))
    });
    columns.unwrap_or_else(|| {
        failure(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("table \"{}\" has no key that a sync could tell its rows apart by", table.name),
        )
        .detail(if has_primary_key(table) {
            "Its primary key, WITHOUT OVERLAPS, is not a btree index, and no unique index is over columns that are NOT NULL."
        } else {
            "There is neither a primary key nor a unique index over columns that are NOT NULL."
        })
        .hint(if table.is_refreshed() || has_primary_key(table) {
            format!("CREATE UNIQUE INDEX ON {} (…);", table.quoted())
        } else {
            format!("ALTER TABLE {} ADD PRIMARY KEY (…);", table.quoted())
        })
        .raise()
    })
}

/// Also true for one WITHOUT OVERLAPS (from 18 on), which is not a btree.
fn has_primary_key(table: &Table) -> bool {
    privileged(|| {
        let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = $1 AND i.indisprimary)";
        ours(Spi::connect(|client| client.select(sql, Some(1), &[table.oid.into()])?.first().get_one::<bool>()))
    })
    .unwrap_or_default()
}

/// Raises unless the column can be part of an address: compared, and seen by a trigger.
pub fn check_address_column(table: &Table, name: &str) {
    let Some(column) = table.column(name) else {
        failure(
            PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            format!("column \"{name}\" of table \"{}\" does not exist", table.name),
        )
        .detail(format!("The columns are: {}.", table.column_names()))
        .hint("Name one of these, as it is written there.")
        .raise()
    };
    if column.computed {
        failure(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("column \"{name}\" can't be part of a key: it is a virtual generated column"),
        )
        .hint("A trigger doesn't see its values; use a stored generated column.")
        .raise();
    }
    // SAFETY: a look-up in the type cache, whose entries are never freed.
    let comparable = unsafe {
        let entry =
            pg_sys::lookup_type_cache(column.type_oid, (pg_sys::TYPECACHE_EQ_OPR | pg_sys::TYPECACHE_LT_OPR) as i32);
        (*entry).eq_opr != pg_sys::InvalidOid && (*entry).lt_opr != pg_sys::InvalidOid
    };
    if !comparable {
        failure(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            format!(
                "column \"{name}\" can't be part of a key: type {} has no btree equality",
                type_name(column.type_oid)
            ),
        )
        .hint("Use columns of types such as bigint, uuid or text.")
        .raise();
    }
}

/// Raises unless the columns can be the key of a sync: the worker asks for many rows at a time, by arrays of their keys.
pub fn check_key(table: &Table, key: &[String]) {
    for name in key {
        check_address_column(table, name);
        let Some(column) = table.column(name) else { continue };
        // SAFETY: a catalog look-up on the main thread.
        if unsafe { pg_sys::get_array_type(column.type_oid) } == pg_sys::InvalidOid {
            failure(
                PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                format!(
                    "column \"{name}\" can't be part of the key of a sync: there are no arrays of type {}",
                    type_name(column.type_oid)
                ),
            )
            .detail(format!(
                "The key of table \"{}\" is ({}); rows are asked for by arrays of keys.",
                table.name,
                key.join(", ")
            ))
            .hint("Make a primary key of columns of types such as bigint, uuid or text.")
            .raise();
        }
    }
}

/// The name of a type, as messages show it.
pub fn type_name(oid: pg_sys::Oid) -> String {
    // SAFETY: a catalog look-up on the main thread; the C string is palloc'd and copied at once.
    unsafe { text(pg_sys::format_type_be(oid)) }
}
