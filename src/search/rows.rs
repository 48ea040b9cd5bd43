//! `es_rows()`: the rows that a search found, from the table itself, in rank order.

use std::collections::BTreeMap;

use delivery::engine::Hit;
use delivery::id::{document_id, is_hashed, parse_document_id};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::{AnyElement, FromDatum, PgMemoryContexts, Spi, pg_sys};
use serde_json::Value;
use serde_json::value::RawValue;

use super::json::JsonText;
use super::scope::{place_of, sync_named};
use super::{body, gather, read, refuse, send};
use crate::catalog::Sync;
use crate::error::{failure, not_null};

#[allow(clippy::too_many_arguments)]
#[pg_extern(volatile, parallel_restricted, cost = 10000, support = planner::search_support)]
fn es_rows(
    base: Option<AnyElement>,
    index: Option<&str>,
    query: default!(Option<String>, "NULL"),
    dsl: default!(Option<JsonText>, "NULL"),
    filter: default!(Option<JsonText>, "NULL"),
    fields: default!(Option<Vec<Option<String>>>, "NULL"),
    size: default!(Option<i32>, 10),
    after: default!(Option<String>, "NULL"),
    sort: default!(Option<JsonText>, "NULL"),
    min_score: default!(Option<f64>, "NULL"),
    options: default!(Option<JsonText>, "NULL"),
    fcinfo: pg_sys::FunctionCallInfo,
) -> SetOfIterator<'static, AnyElement> {
    let _ = base;
    let known = sync_named(index);
    let sync = &known.sync;
    // SAFETY: Postgres fills in flinfo before the call; both functions only look up types.
    let (given, wanted) =
        unsafe { (pg_sys::get_fn_expr_argtype((*fcinfo).flinfo, 0), pg_sys::get_rel_type_id(sync.source)) };
    let table = qualified_name(sync.source);
    if given != wanted {
        failure(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            format!("argument \"base\" must be of the row type of {table}, which sync \"{}\" is fed from", sync.name),
        )
        .hint(format!("es_rows(NULL::{table}, '{}', …)", sync.name))
        .raise();
    }
    let mut arguments =
        gather(query, dsl, filter, fields, not_null("size", size), after, sort, None, None, min_score, options);
    arguments.source_fields = sync.key_columns.iter().map(|column| field_of(sync, column).to_owned()).collect();
    let place = place_of(&known);
    let search = body::compose(&arguments, &place.scope).unwrap_or_else(|refusal| refuse(refusal));
    let reply = send(&place, search);
    let rows = fetch(sync, &table, &read(&place, &reply).hits);
    SetOfIterator::new(rows.into_iter().filter_map(move |row| {
        // SAFETY: a non-null datum of the type that it is said to be of.
        unsafe { AnyElement::from_polymorphic_datum(row, false, wanted) }
    }))
}

/// Reads the rows of these documents as the caller, whose rights and row-level security PostgreSQL applies. A row that is
/// gone or hidden is left out.
fn fetch(sync: &Sync, table: &str, hits: &[Hit]) -> Vec<pg_sys::Datum> {
    let mut keys: Vec<Vec<Option<String>>> = vec![Vec::with_capacity(hits.len()); sync.key_columns.len()];
    let mut untold = 0;
    for hit in hits {
        // An id that is too long is a hash: then the document tells. One that is not made of a key belongs to no row.
        let values = if is_hashed(&hit.id) {
            key_in_document(sync, hit)
        } else {
            parse_document_id(&hit.id, sync.key_columns.len())
        };
        untold += usize::from(values.is_none() && is_hashed(&hit.id));
        for (key, value) in keys.iter_mut().zip(values.into_iter().flatten()) {
            key.push(value);
        }
    }
    if untold > 0 {
        failure(
            PgSqlErrorCode::ERRCODE_NO_DATA_FOUND,
            format!("{untold} of the documents that were found are not among these rows: their ids are hashes, and they lack the key"),
        )
        .detail("An id of more than 512 bytes is a hash, from which the key can't be told.")
        .hint(format!("Have the key ({}) among the fields of the documents, as text.", sync.key_columns.join(", ")))
        .warn();
    }
    let sql = row_query(sync, table);
    let arguments: Vec<DatumWithOid> = keys.into_iter().map(DatumWithOid::from).collect();
    // SAFETY: the context that this function was called in; the rows must outlive the SPI connection, whose memory goes
    // when it ends.
    let mut outer = PgMemoryContexts::For(unsafe { pg_sys::CurrentMemoryContext });
    let rows = Spi::connect(|client| {
        let mut found = client.select(&sql, None, &arguments)?;
        let mut rows = Vec::with_capacity(found.len());
        while found.next().is_some() {
            if let Some(row) = found.get_datum_by_ordinal(1)? {
                // SAFETY: a composite datum: a varlena that lives until the connection ends.
                rows.push(unsafe {
                    outer.switch_to(|_| pg_sys::Datum::from(pg_sys::pg_detoast_datum_copy(row.cast_mut_ptr())))
                });
            }
        }
        Ok::<_, pgrx::spi::Error>(rows)
    });
    rows.unwrap_or_else(|error| failure(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()).raise())
}

/// The field of the documents that has a column of the key.
fn field_of<'a>(sync: &'a Sync, column: &'a str) -> &'a str {
    let renamed = sync.options["fields"].as_object().into_iter().flatten().find(|(_, of)| of.as_str() == Some(column));
    renamed.map_or(column, |(field, _)| field)
}

/// The key's values as the document has them; None unless the id is made of them.
fn key_in_document(sync: &Sync, hit: &Hit) -> Option<Vec<Option<String>>> {
    let document: BTreeMap<String, &RawValue> = serde_json::from_str(hit.source.as_ref()?.get()).ok()?;
    let values = sync.key_columns.iter().map(|column| {
        let value = document.get(field_of(sync, column))?.get();
        match serde_json::from_str(value) {
            Ok(Value::String(text)) => Some(Some(text)),
            Ok(Value::Null) => Some(None),
            // As the document has it: no digit is lost.
            _ => Some(Some(value.to_owned())),
        }
    });
    let values: Vec<Option<String>> = values.collect::<Option<_>>()?;
    let texts: Vec<Option<&str>> = values.iter().map(Option::as_deref).collect();
    (document_id(&texts) == hit.id).then_some(values)
}

/// A query for the rows of the keys in its array parameters, in their order.
fn row_query(sync: &Sync, table: &str) -> String {
    let mut arrays = Vec::new();
    let mut names = Vec::new();
    let mut casts = Vec::new();
    let mut conditions = Vec::new();
    for (at, column) in sync.key_columns.iter().enumerate() {
        let (data_type, equals) = type_and_equality(sync, column);
        let column = quoted_identifier(column);
        arrays.push(format!("pg_catalog.unnest(${}::pg_catalog.text[])", at + 1));
        names.push(format!("k{at}"));
        casts.push(format!("k{at}::{data_type} AS k{at}"));
        conditions.push(format!("t.{column} {equals} k.k{at}"));
    }
    // SAFETY: a catalog look-up by OID.
    let plain = unsafe { pg_sys::get_rel_relkind(sync.source) } == pg_sys::RELKIND_RELATION as std::ffi::c_char;
    let only = if plain { "ONLY " } else { "" };
    format!(
        "SELECT t FROM (SELECT {casts}, rank FROM ROWS FROM ({arrays}) WITH ORDINALITY AS u({names}, rank)) k \
         JOIN {only}{table} t ON {conditions} ORDER BY k.rank",
        casts = casts.join(", "),
        arrays = arrays.join(", "),
        names = names.join(", "),
        conditions = conditions.join(" AND "),
    )
}

/// A key column's type, and the operator that its primary key compares with, both qualified.
fn type_and_equality(sync: &Sync, column: &str) -> (String, String) {
    let name = std::ffi::CString::new(column).unwrap_or_default();
    // SAFETY: catalog look-ups on the main thread; the strings are palloc'd and copied at once. A column that is gone has
    // attribute number 0.
    unsafe {
        let number = pg_sys::get_attnum(sync.source, name.as_ptr());
        if number == 0 {
            failure(
                PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                format!("the table of sync \"{}\" no longer has its key column \"{column}\"", sync.name),
            )
            .raise();
        }
        let mut type_oid = pg_sys::InvalidOid;
        let mut modifier = -1;
        let mut collation = pg_sys::InvalidOid;
        pg_sys::get_atttypetypmodcoll(sync.source, number, &mut type_oid, &mut modifier, &mut collation);
        let flags = (pg_sys::FORMAT_TYPE_TYPEMOD_GIVEN | pg_sys::FORMAT_TYPE_FORCE_QUALIFY) as pg_sys::bits16;
        let type_name = copied(pg_sys::format_type_extended(type_oid, modifier, flags));
        let equality = (*pg_sys::lookup_type_cache(type_oid, pg_sys::TYPECACHE_EQ_OPR as i32)).eq_opr;
        let operator = pg_sys::get_opname(equality);
        if operator.is_null() {
            failure(
                PgSqlErrorCode::ERRCODE_UNDEFINED_FUNCTION,
                format!("key column \"{column}\" of sync \"{}\" is of a type without equality", sync.name),
            )
            .raise();
        }
        let operator = copied(operator);
        (type_name, format!("OPERATOR({}.{operator})", operator_schema(equality)))
    }
}

/// The schema of an operator, quoted.
fn operator_schema(operator: pg_sys::Oid) -> String {
    let schema = Spi::connect(|client| {
        let sql = "SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_operator o \
             JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace \
             WHERE o.oid OPERATOR(pg_catalog.=) $1";
        client.select(sql, Some(1), &[operator.into()])?.first().get_one::<String>()
    });
    schema.ok().flatten().unwrap_or_else(|| "pg_catalog".to_owned())
}

fn qualified_name(relation: pg_sys::Oid) -> String {
    // SAFETY: the relation exists: its name was looked up in this statement; the results are palloc'd and copied.
    unsafe {
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation));
        copied(pg_sys::quote_qualified_identifier(schema, pg_sys::get_rel_name(relation)))
    }
}

fn quoted_identifier(name: &str) -> String {
    pgrx::spi::quote_identifier(name)
}

/// # Safety
///
/// `text` is a NUL-terminated string.
unsafe fn copied(text: *const std::ffi::c_char) -> String {
    // SAFETY: as the caller promises.
    unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
