//! The SQL that reads a sync's source. Pure.
//!
//! Every statement yields the address columns, and then either the fields of the document, or all of it as json in a column called
//! [`DOCUMENT`], where a row without a document has NULL. Names of our own begin with `__fanout`: what a user's predicate or query
//! says must not find them.

use super::source::Repeats;
use crate::catalog::Sync;
use crate::catalog::mapping::Document;
use crate::server::quoted;
use serde_json::Value;
use std::ffi::CString;

/// The column that is the document.
pub const DOCUMENT: &str = "__fanout_document";

/// How a key column is compared.
pub struct Condition {
    /// The column, quoted.
    pub column: String,
    /// `OPERATOR(schema.=)`.
    pub operator: String,
}

/// See the module.
pub struct Statements {
    /// Reads the rows with these keys: an array for each key column.
    pub by_key: CString,
    /// Reads the rows in blocks [$1, $2). None if there may be two rows for a key: they are read by key.
    pub by_block: Option<CString>,
    /// Reads the addresses of the rows in blocks [$1, $2), with NULL for the document.
    pub addresses_by_block: CString,
    /// The source as an item of FROM, and how it is called there.
    pub table: (String, String),
}

/// The statements of a sync whose source is that table. `document` tells what the document of a row is made of, by what the row is
/// called in FROM.
pub fn of(
    sync: &Sync,
    schema: &str,
    table: &str,
    key: &[Condition],
    repeats: Option<Repeats>,
    document: &dyn Fn(&Sync, &str) -> Document,
) -> Statements {
    let alias = quoted(table);
    let table = format!("{}.{alias} AS {alias}", quoted(schema));
    let blocks = format!(
        "FROM {table} WHERE {alias}.ctid OPERATOR(pg_catalog.>=) $1 AND {alias}.ctid OPERATOR(pg_catalog.<) $2"
    );
    let addresses_by_block = format!("SELECT {}, {} {blocks}", address(sync, &alias), no_document());
    let (by_key, by_block) = match sync.document_query() {
        Some(query) => {
            let select = format!("SELECT {}, {}", address(sync, "__fanout_q"), listed(&document(sync, "__fanout_q")));
            (by_key(&select, &query_by_key(query, key), "__fanout_q", key, None), None)
        }
        None => {
            let select = format!("SELECT {}, {}", address(sync, &alias), listed(&document(sync, &alias)));
            let predicate = sync.options["predicate"].as_str();
            let confined = predicate.map(|predicate| format!(" AND ({predicate}\n)")).unwrap_or_default();
            let by_block = repeats.is_none().then(|| format!("{select} {blocks}{confined}"));
            (by_key(&select, &table, &alias, key, predicate), by_block)
        }
    };
    let c = |sql: String| CString::new(sql).unwrap_or_default();
    Statements {
        by_key: c(by_key),
        by_block: by_block.map(c),
        addresses_by_block: c(addresses_by_block),
        table: (table, alias),
    }
}

/// One key column: an array to look into. Several: each row of the arrays joined.
fn by_key(select: &str, from: &str, alias: &str, key: &[Condition], predicate: Option<&str>) -> String {
    let confined = |word: &str| predicate.map(|predicate| format!(" {word} ({predicate}\n)")).unwrap_or_default();
    if let [Condition { column, operator }] = key {
        return format!("{select} FROM {from} WHERE {alias}.{column} {operator} ANY ($1){}", confined("AND"));
    }
    let keys = unnested(&numbered(key), "__fanout_k");
    format!("{select} FROM {keys} JOIN {from} ON {}{}", equal(alias, key), confined("WHERE"))
}

/// The user's query as an item of FROM. With several key columns each key is looked up by itself: a condition on a row of
/// keys does not get into a query that groups.
fn query_by_key(query: &str, key: &[Condition]) -> String {
    if key.len() == 1 {
        return format!("(\n{query}\n) AS __fanout_q");
    }
    format!("LATERAL (SELECT * FROM (\n{query}\n) AS __fanout_i WHERE {}) AS __fanout_q", equal("__fanout_i", key))
}

/// What a document is made of, as columns.
fn listed(document: &Document) -> String {
    match document {
        Document::Whole(json) => format!("{json} AS {DOCUMENT}"),
        Document::Fields(fields) => {
            let columns: Vec<String> =
                fields.iter().map(|(name, value)| format!("{value} AS {}", quoted(name))).collect();
            columns.join(", ")
        }
    }
}

/// In place of a document.
fn no_document() -> String {
    listed(&Document::Whole("NULL::pg_catalog.json".to_owned()))
}

/// The address columns of a row.
fn address(sync: &Sync, alias: &str) -> String {
    let columns: Vec<String> =
        sync.address_columns.iter().map(|column| format!("{alias}.{}", quoted(column))).collect();
    columns.join(", ")
}

/// Names for the columns of a key, as the rows of `__fanout_k` have them.
fn numbered(key: &[Condition]) -> Vec<String> {
    (1..=key.len()).map(|n| format!("__fanout_{n}")).collect()
}

/// The condition that a row has the key of a row of `__fanout_k`.
fn equal(alias: &str, key: &[Condition]) -> String {
    let columns: Vec<String> = key
        .iter()
        .zip(numbered(key))
        .map(|(Condition { column, operator }, name)| format!("{alias}.{column} {operator} __fanout_k.{name}"))
        .collect();
    columns.join(" AND ")
}

/// Parameters $1, $2 … as the columns of rows.
fn unnested(columns: &[String], alias: &str) -> String {
    let arrays: Vec<String> = (1..=columns.len()).map(|n| format!("pg_catalog.unnest(${n})")).collect();
    format!("ROWS FROM ({}) AS {alias} ({})", arrays.join(", "), columns.join(", "))
}

/// The addresses of the source's rows whose documents the changed rows of a relation belong to: `keys`, a query that reads
/// `changed`, or None if the relation's columns are the key itself. Columns that come as text are cast to these types.
pub fn related(
    sync: &Sync,
    (table, alias): &(String, String),
    key: &[Condition],
    columns: &[String],
    casts: &[Option<String>],
    keys: Option<&str>,
) -> CString {
    let columns: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
    let values: Vec<String> = columns
        .iter()
        .zip(casts)
        .map(|(column, cast)| cast.as_ref().map_or_else(|| column.clone(), |of| format!("{column}::{of}")))
        .collect();
    let sql = format!(
        "WITH changed ({columns}) AS (SELECT {values} FROM {rows}) SELECT {address}, {nothing} FROM {table} \
         WHERE EXISTS (SELECT FROM (\n{keys}\n) AS __fanout_k ({names}) WHERE {conditions})",
        columns = columns.join(", "),
        values = values.join(", "),
        rows = unnested(&columns, "__fanout_c"),
        address = address(sync, alias),
        nothing = no_document(),
        keys = keys.unwrap_or("SELECT * FROM changed"),
        names = numbered(key).join(", "),
        conditions = equal(alias, key),
    );
    CString::new(sql).unwrap_or_default()
}

/// What `keys` is prepared as when it is declared: it sees `changed` with columns of these types.
pub fn changed_with(columns: &[(String, String)], keys: &str) -> String {
    let names: Vec<String> = columns.iter().map(|(name, _)| quoted(name)).collect();
    let nulls: Vec<String> = columns.iter().map(|(_, type_name)| format!("NULL::{type_name}")).collect();
    format!(
        "WITH changed ({}) AS (SELECT {}) SELECT * FROM (\n{keys}\n) AS __fanout_k",
        names.join(", "),
        nulls.join(", ")
    )
}

/// Chosen and renamed columns as the catalog keeps them: field → column.
pub fn fields(columns: &[String], names: &serde_json::Map<String, Value>) -> Value {
    let field = |column: &String| names.get(column).and_then(Value::as_str).unwrap_or(column).to_owned();
    Value::Object(columns.iter().map(|column| (field(column), Value::from(column.as_str()))).collect())
}
