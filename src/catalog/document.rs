//! What the documents of a sync are: whole rows, some columns of them, or what a query makes of them.

use crate::catalog::acting::acting_for;
use crate::catalog::key::type_name;
use crate::catalog::mapping::choice::Choices;
use crate::catalog::source::{Column, Table};
use crate::catalog::{Sync, ours};
use crate::document::{query, statements};
use crate::error::{failure, no_nulls};
use crate::server::quoted;
use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};
use serde_json::{Map, Value, json};

/// The name of a query's column that is the document itself.
const DOCUMENT: &str = "document";

/// What the caller of `fanout.index_table()` wants the documents to be.
pub struct Wanted {
    pub columns: Option<Vec<Option<String>>>,
    pub rename: Option<JsonB>,
    pub predicate: Option<String>,
    pub document: Option<String>,
}

impl Wanted {
    /// Checks it and puts it into the sync's options. Gives the columns that documents have as fields.
    pub fn check(self, table: &Table, address: &[String], options: &mut Map<String, Value>) -> Vec<Column> {
        if self.predicate.is_some() || self.document.is_some() {
            options.insert("search_path".to_owned(), json!(search_path()));
        }
        match self.document {
            Some(document) => {
                for (argument, given) in [
                    ("columns", self.columns.is_some()),
                    ("rename", self.rename.is_some()),
                    ("predicate", self.predicate.is_some()),
                ] {
                    if given {
                        failure(
                            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                            format!("\"{argument}\" can't be given together with \"document\""),
                        )
                        .hint("The query says all that: which columns, under which names, and WHERE.")
                        .raise();
                    }
                }
                check_query(&document, table, address, options)
            }
            None => {
                let fields = check_columns(table, self.columns, self.rename, options);
                if let Some(predicate) = self.predicate {
                    check_predicate(&predicate, table, options);
                }
                fields
            }
        }
    }
}

/// Where names are looked up in this session, as text for the worker. Temporary tables come last: the worker has none.
fn search_path() -> String {
    let path = ours(super::first::<String>(
        "SELECT pg_catalog.string_agg(pg_catalog.quote_ident(s), ', ') FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) AS s \
         WHERE s NOT LIKE 'pg\\_temp%'",
        &[],
    ));
    path.into_iter().chain([String::from("pg_temp")]).collect::<Vec<_>>().join(", ")
}

fn check_columns(
    table: &Table,
    columns: Option<Vec<Option<String>>>,
    rename: Option<JsonB>,
    options: &mut Map<String, Value>,
) -> Vec<Column> {
    if columns.is_none() && rename.is_none() {
        return table.columns.clone();
    }
    let invalid = |message: String| failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message);
    let column = |argument: &str, name: &str| -> Column {
        table.column(name).cloned().unwrap_or_else(|| {
            failure(
                PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                format!("column \"{name}\" named in {argument} does not exist in table \"{}\"", table.name),
            )
            .detail(format!("The columns are: {}.", table.column_names()))
            .hint("Name one of these, as it is written there.")
            .raise()
        })
    };
    let chosen: Vec<Column> = match columns {
        None => table.columns.clone(),
        Some(columns) if columns.is_empty() => {
            invalid("\"columns\" names no column".to_owned()).hint("Leave it out for all columns.").raise()
        }
        Some(columns) => no_nulls("columns", columns).into_iter().map(|name| column("columns", &name)).collect(),
    };
    let rename = match rename.map(|rename| rename.0) {
        None => Map::new(),
        Some(Value::Object(rename)) => rename,
        Some(_) => invalid("\"rename\" must be a JSON object".to_owned())
            .hint("For example '{\"price\": \"list_price\"}': the column, then the field.")
            .raise(),
    };
    for (name, field) in &rename {
        column("rename", name);
        if !chosen.iter().any(|column| column.name == *name) {
            invalid(format!("column \"{name}\" named in rename is not one of \"columns\""))
                .hint("Name it in \"columns\", too, or leave it out of \"rename\".")
                .raise();
        }
        if !field.is_string() {
            invalid(format!("\"rename\" must give column \"{name}\" a name"))
                .hint("For example '{\"price\": \"list_price\"}': the column, then the field.")
                .raise();
        }
    }
    let names: Vec<String> = chosen.iter().map(|column| column.name.clone()).collect();
    let fields = statements::fields(&names, &rename);
    let count = fields.as_object().map_or(0, Map::len);
    if count != chosen.len() {
        failure(PgSqlErrorCode::ERRCODE_DUPLICATE_COLUMN, "two columns would be the same field")
            .detail(format!("The columns are: {}.", names.join(", ")))
            .hint("Give each another name in \"rename\", or name it once in \"columns\".")
            .raise();
    }
    options.insert("fields".to_owned(), fields);
    let field = |mut column: Column| {
        if let Some(name) = rename.get(&column.name).and_then(Value::as_str) {
            column.name = name.to_owned();
        }
        column
    };
    chosen.into_iter().map(field).collect()
}

fn check_predicate(predicate: &str, table: &Table, options: &mut Map<String, Value>) {
    let alias = quoted(&table.name);
    let sql = format!("SELECT true FROM {} AS {alias} WHERE ({predicate}\n)", table.quoted());
    // Between brackets as well as between parentheses: it cannot end what it is put into.
    query::only_select("predicate", &format!("SELECT ARRAY[{predicate}\n]"));
    let described =
        query::named("predicate", "It is a condition on the columns of the source, as after WHERE.", || {
            query::describe(&query::only_select("predicate", &sql), &[])
        });
    check_stable("predicate", &described);
    if described.reads.iter().filter(|&&oid| oid == table.oid).count() > 1 {
        failure(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, "\"predicate\" reads other rows of the source")
            .detail("Whether a row has a document must depend on that row alone: a change of another one would not be noticed.")
            .hint("Give a whole query as \"document\", and say with fanout.related() to which documents a row belongs.")
            .raise();
    }
    if let Some(&other) = beside(&described.reads, table.oid).first() {
        failure(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("\"predicate\" reads another table: {}", Table::get(other).quoted()),
        )
        .hint("A change there would not be noticed. Give a whole query as \"document\", and declare the table with fanout.related().")
        .raise();
    }
    options.insert("predicate".to_owned(), json!(predicate));
}

fn is_json(column: &Column) -> bool {
    matches!(column.type_oid, pg_sys::JSONOID | pg_sys::JSONBOID)
}

fn check_query(document: &str, table: &Table, address: &[String], options: &mut Map<String, Value>) -> Vec<Column> {
    let document = query::only_select("document", document);
    // As the worker reads it: as part of another query, where nothing can write.
    let wrapped = format!("SELECT * FROM (\n{document}\n) AS __fanout_q");
    let described = query::named("document", query::TRY_IT, || query::describe(&wrapped, &[]));
    check_stable("document", &described);
    let yields = || {
        format!("It yields: {}.", described.columns.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", "))
    };
    for name in address {
        let wanted = table.column(name).map_or(pg_sys::InvalidOid, |column| column.type_oid);
        let Some(found) = described.columns.iter().find(|column| column.name == *name) else {
            failure(
                PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                format!("the document query does not yield column \"{name}\" of \"{}\"", table.name),
            )
            .detail(format!(
                "Each document belongs to a row of \"{}\", told by ({}). {}",
                table.name,
                address.join(", "),
                yields()
            ))
            .hint(format!("Begin it with SELECT {}.{}, …", quoted(&table.name), quoted(name)))
            .raise()
        };
        if found.type_oid != wanted {
            failure(
                PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                format!(
                    "the document query yields \"{name}\" as {}, but in \"{}\" it is {}",
                    type_name(found.type_oid),
                    table.name,
                    type_name(wanted)
                ),
            )
            .hint(format!("Cast it: {}::{}.", quoted(name), type_name(wanted)))
            .raise();
        }
    }
    let mut names: Vec<&str> = described.columns.iter().map(|column| column.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        failure(
            PgSqlErrorCode::ERRCODE_DUPLICATE_COLUMN,
            format!("the document query yields two columns called \"{}\"", twice[0]),
        )
        .hint("Name each of them: … AS name.")
        .raise();
    }
    let others: Vec<&Column> = described.columns.iter().filter(|column| !address.contains(&column.name)).collect();
    let whole = matches!(others.as_slice(), [one] if one.name == DOCUMENT && is_json(one));
    if others.is_empty() {
        failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, "the document query yields the key and nothing else")
            .hint("Further columns become fields; or one column of type json called \"document\" is the document.")
            .raise();
    }
    options.insert("document".to_owned(), json!(document));
    options.insert("document_column".to_owned(), json!(whole));
    // Refuses what the worker cannot read.
    tables(&described.reads);
    if whole { Vec::new() } else { described.columns }
}

/// Raises for a query whose result changes without any row being changed.
pub fn check_stable(argument: &str, described: &query::Described) {
    if described.locks {
        failure(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("\"{argument}\" locks rows: FOR UPDATE and its kin can't be used"),
        )
        .hint("Leave the locking clause out: the worker only reads.")
        .raise();
    }
    if described.volatile {
        failure(
            PgSqlErrorCode::ERRCODE_INVALID_FUNCTION_DEFINITION,
            format!("\"{argument}\" calls a volatile function"),
        )
        .detail("It is evaluated as often as the worker likes, and must not do or depend on anything else.")
        .hint("If the function only reads, declare it STABLE: ALTER FUNCTION … STABLE.")
        .raise();
    }
    if let Some(clock) = described.clock {
        failure(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("\"{argument}\" depends on the clock: it uses {clock}"),
        )
        .detail("Time passes without any row being changed: nothing would tell the sync that a document is another now.")
        .hint("Put the times into the document and compare when searching, as filter => '{\"range\": {\"valid_from\": {\"lte\": \"now\"}}}'.")
        .raise();
    }
}

/// What is read beside the row of the source itself: other tables, and the source where it is read once more.
fn beside(reads: &[pg_sys::Oid], source: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    let again = reads.iter().filter(|&&oid| oid == source).count() > 1;
    tables(reads).into_iter().filter(|&oid| oid != source || again).collect()
}

/// Those of the relations whose rows can change: no views (what they read is listed itself), no system catalogs. A temporary
/// table is an ERROR.
pub fn tables(reads: &[pg_sys::Oid]) -> Vec<pg_sys::Oid> {
    let reads: Vec<pg_sys::Oid> = reads.to_vec();
    let rows = ours(Spi::connect(|client| -> Result<Vec<(pg_sys::Oid, String, String)>, pgrx::spi::Error> {
        client
            .select(
                "SELECT DISTINCT c.oid, c.relpersistence::text, c.relname::text FROM pg_catalog.pg_class AS c
                 JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                 WHERE c.oid = ANY ($1) AND c.relkind IN ('r', 'p', 'm', 'f')
                   AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY c.oid",
                None,
                &[reads.into()],
            )?
            .map(|row| {
                Ok((
                    row.get(1)?.unwrap_or(pg_sys::InvalidOid),
                    row.get(2)?.unwrap_or_default(),
                    row.get(3)?.unwrap_or_default(),
                ))
            })
            .collect()
    }));
    if let Some((_, _, name)) = rows.iter().find(|(_, persistence, _)| persistence == "t") {
        failure(
            PgSqlErrorCode::ERRCODE_INVALID_TABLE_DEFINITION,
            format!("the query reads temporary table \"{name}\""),
        )
        .detail("Only the session that made it can read it.")
        .hint("Read an ordinary table instead.")
        .raise();
    }
    rows.into_iter().map(|(oid, ..)| oid).collect()
}

/// What a sync's documents are made of: each field, and the column that it comes from. Within a transaction.
pub fn fields(sync: &Sync, table: &Table) -> Vec<(String, Column)> {
    let same = |column: Column| (column.name.clone(), column);
    if let Some(document) = sync.document_query() {
        return acting_for(sync, || query::describe(document, &[])).columns.into_iter().map(same).collect();
    }
    let Some(fields) = sync.options["fields"].as_object() else {
        return table.columns.iter().cloned().map(same).collect();
    };
    let field = |(name, column): (&String, &Value)| Some((name.clone(), table.column(column.as_str()?)?.clone()));
    fields.iter().filter_map(field).collect()
}

/// Whether a column is a field of a known type: not one of type json that a query yields, unless somebody chose what it is to be.
pub fn is_mapped(column: &Column, by_query: bool, choices: &Choices) -> bool {
    !by_query || !is_json(column) || choices.of(column.type_oid).is_some()
}

/// The columns that a sync's documents have as fields of known types, by the fields' names: not those of type json that a query
/// yields, which may hold objects, lists or values, unless somebody chose what they are to be. Within a transaction.
pub fn columns(sync: &Sync, table: &Table) -> Vec<Column> {
    if sync.options["document_column"] == Value::Bool(true) {
        return Vec::new();
    }
    let (by_query, choices) = (sync.document_query().is_some(), Choices::new(&sync.options));
    let known = |(_, column): &(String, Column)| is_mapped(column, by_query, &choices);
    fields(sync, table).into_iter().filter(known).map(|(name, column)| Column { name, ..column }).collect()
}

/// Which tables a query joins.
pub struct Readings {
    /// Each as often as rows of it can be joined at a time.
    pub tables: Vec<pg_sys::Oid>,
    /// It is recursive: some of them any number of times.
    pub recursive: bool,
}

/// What a sync's query reads, its source too. Within a transaction.
pub fn readings(sync: &Sync) -> Readings {
    let Some(document) = sync.document_query() else { return Readings { tables: Vec::new(), recursive: false } };
    let described = acting_for(sync, || query::describe(document, &[]));
    let known = tables(&described.reads);
    let mut tables: Vec<pg_sys::Oid> = described.reads.into_iter().filter(|oid| known.contains(oid)).collect();
    // What stands in a CTE once can be read by each mention of that.
    for _ in 0..described.mentions {
        tables.extend(&known);
    }
    Readings { tables, recursive: described.recursive }
}

/// The tables that a sync's query reads beside its source. Within a transaction.
pub fn reads(sync: &Sync) -> Vec<pg_sys::Oid> {
    let Some(document) = sync.document_query() else { return Vec::new() };
    let reads = acting_for(sync, || query::describe(document, &[])).reads;
    beside(&reads, sync.source)
}
