//! The SQL that reads a sync's source. Pure.
//!
//! Every statement yields the address columns, and then a document in one of two [forms](Form). Names of our own begin with `__fanout`:
//! what a user's predicate or query says must not find them.

use super::source::Repeats;
use crate::catalog::Sync;
use crate::catalog::mapping::Document;
use crate::server::quoted;
use serde_json::Value;
use std::borrow::Cow;
use std::ffi::CString;

/// What the columns after the address are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One, the document as json; NULL where a row has none.
    Whole,
    /// The fields of the document, by the columns' names.
    Fields,
}

/// A statement and what it yields.
pub struct Statement {
    /// SQL.
    pub sql: CString,
    /// See there.
    pub form: Form,
}

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
    pub by_key: Statement,
    /// Reads the rows in blocks [$1, $2). None if there may be two rows for a key: they are read by key.
    pub by_block: Option<Statement>,
    /// Reads the addresses of the rows in blocks [$1, $2), with NULL for the document.
    pub addresses_by_block: Statement,
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
    let addresses_by_block = format!("{} {blocks}", select(sync, &alias, &NO_DOCUMENT));
    let row = if sync.document_query().is_some() { "__fanout_q" } else { &alias };
    let document = document(sync, row);
    let select = select(sync, row, &document);
    let (by_key, by_block) = match sync.document_query() {
        Some(query) => (by_key(&select, &query_by_key(query, key), row, key, None), None),
        None => {
            let predicate = sync.options["predicate"].as_str();
            let confined = predicate.map(|predicate| format!(" AND ({predicate}\n)")).unwrap_or_default();
            let by_block = repeats.is_none().then(|| format!("{select} {blocks}{confined}"));
            (by_key(&select, &table, row, key, predicate), by_block)
        }
    };
    let form = document.form();
    let statement = |sql: String, form| Statement { sql: CString::new(sql).unwrap_or_default(), form };
    Statements {
        by_key: statement(by_key, form),
        by_block: by_block.map(|sql| statement(sql, form)),
        addresses_by_block: statement(addresses_by_block, Form::Whole),
        table: (table, alias),
    }
}

impl Document {
    fn form(&self) -> Form {
        match self {
            Self::Whole(_) => Form::Whole,
            Self::Row | Self::Fields(_) => Form::Fields,
        }
    }
}

/// In place of a document where only addresses are read.
const NO_DOCUMENT: Document = Document::Whole(Cow::Borrowed("NULL::pg_catalog.json"));

/// The address of a row, and what its document is made of. A document may have no field.
fn select(sync: &Sync, row: &str, document: &Document) -> String {
    let mut columns: Vec<String> =
        sync.address_columns.iter().map(|column| format!("{row}.{}", quoted(column))).collect();
    match document {
        Document::Whole(json) => columns.push(json.to_string()),
        Document::Row => columns.push(format!("{row}.*")),
        Document::Fields(fields) => {
            columns.extend(fields.iter().map(|(name, value)| format!("{value} AS {}", quoted(name))));
        }
    }
    format!("SELECT {}", columns.join(", "))
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
) -> Statement {
    let columns: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
    let values: Vec<String> = columns
        .iter()
        .zip(casts)
        .map(|(column, cast)| cast.as_ref().map_or_else(|| column.clone(), |of| format!("{column}::{of}")))
        .collect();
    let sql = format!(
        "WITH changed ({columns}) AS (SELECT {values} FROM {rows}) {select} FROM {table} \
         WHERE EXISTS (SELECT FROM (\n{keys}\n) AS __fanout_k ({names}) WHERE {conditions})",
        columns = columns.join(", "),
        values = values.join(", "),
        rows = unnested(&columns, "__fanout_c"),
        select = select(sync, alias, &NO_DOCUMENT),
        keys = keys.unwrap_or("SELECT * FROM changed"),
        names = numbered(key).join(", "),
        conditions = equal(alias, key),
    );
    Statement { sql: CString::new(sql).unwrap_or_default(), form: Form::Whole }
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
