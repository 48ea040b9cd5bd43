//! Column types → the fields of an index.
//!
//! Only field types that every engine's core knows, without modules or plug-ins. Whatever `row_to_json` can print for a
//! column must not make an engine refuse the document: hence `ignore_malformed` (infinity, NaN, years BC) and
//! `ignore_above` (a keyword over 32,766 bytes).

use crate::catalog::regclass::Regclass;
use crate::catalog::source::Table;
use crate::catalog::{Sync, document};
use crate::error::failure;
use crate::server::options::text;
use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};
use serde_json::{Map, Value, json};

/// Characters; times four bytes it stays under Lucene's bound of 32,766 bytes.
const KEYWORD_CHARACTERS: u32 = 8191;

const DATE_FORMAT: &str = "strict_date_optional_time||strict_date_optional_time_nanos||epoch_millis";

/// Engines refuse an index with more fields unless told otherwise (index.mapping.total_fields.limit).
const DEFAULT_FIELD_LIMIT: usize = 1000;

/// Deleted documents' versions must outlive any request that is still on its way.
const DELETE_VERSIONS_KEPT: &str = "1h";

/// The body of the request that creates a sync's index: settings and mappings, the user's laid over ours. Within a
/// transaction.
pub fn index_body(sync: &Sync) -> Value {
    match Table::find(sync.source) {
        Some(mut table) => {
            table.columns = document::columns(sync, &table);
            body(&table, &sync.options)
        }
        None => body_of(Map::new(), &sync.options),
    }
}

/// The fields that a search looks at unless it names some: those declared, else all of type text, else all of type keyword.
/// Within a transaction.
pub fn search_fields(sync: &Sync) -> Vec<String> {
    if let Some(declared) = sync.options.get("search_fields").and_then(Value::as_array) {
        return declared.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    }
    let body = index_body(sync);
    let Some(fields) = body.pointer("/mappings/properties").and_then(Value::as_object) else { return Vec::new() };
    let of_type = |wanted: &str| -> Vec<String> {
        let has = |field: &Value| {
            field.get("type").and_then(Value::as_str) == Some(wanted) && field.get("index") != Some(&Value::Bool(false))
        };
        fields.iter().filter(|(_, field)| has(field)).map(|(name, _)| name.clone()).collect()
    };
    let texts = of_type("text");
    if texts.is_empty() { of_type("keyword") } else { texts }
}

/// Shows the settings and mappings with which a table's index would be created.
#[pg_extern(schema = "fanout", strict)]
fn mapping(source: Regclass) -> JsonB {
    let table = Table::get(source.0);
    if table.columns.is_empty() {
        failure(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, format!("\"{}\" has no columns", table.name)).raise();
    }
    JsonB(body(&table, &Value::Null))
}

fn body(table: &Table, options: &Value) -> Value {
    body_of(table.columns.iter().map(|column| (column.name.clone(), field(column.type_oid))).collect(), options)
}

fn body_of(mut properties: Map<String, Value>, options: &Value) -> Value {
    if let Some(mapping) = options.get("mapping").and_then(Value::as_object) {
        // A field's definition is replaced as a whole: half of ours under half of the user's may be no valid one.
        for (name, definition) in mapping {
            properties.insert(name.clone(), definition.clone());
        }
    }
    let fields = properties.values().map(count_fields).sum::<usize>();
    let mut settings = Map::new();
    settings.insert("index.gc_deletes".to_owned(), json!(DELETE_VERSIONS_KEPT));
    if fields > DEFAULT_FIELD_LIMIT / 2 {
        settings.insert("index.mapping.total_fields.limit".to_owned(), json!(DEFAULT_FIELD_LIMIT + 2 * fields));
    }
    if let Some(wanted) = options.get("settings").and_then(Value::as_object) {
        flatten("", wanted, &mut settings);
    }
    // Columns that are added later are not searched until fanout.resync(); guessing their types could get documents refused.
    // Only what a query makes up has fields that nobody declared. Nor are dates guessed in strings: the next may be none.
    let open = options["document"].is_string();
    let mut mappings = json!({ "dynamic": open, "date_detection": false, "properties": properties });
    if open {
        // A whole number may be followed by one that is not: as long that would be cut off, and not found.
        mappings["dynamic_templates"] =
            json!([{ "numbers": { "match_mapping_type": "long", "mapping": { "type": "double" } } }]);
    }
    json!({ "settings": settings, "mappings": mappings })
}

/// Writes settings with one full name each, so that `{"index": {"gc_deletes": …}}`, `{"index.gc_deletes": …}` and
/// `{"gc_deletes": …}` are the same setting.
fn flatten(prefix: &str, settings: &Map<String, Value>, into: &mut Map<String, Value>) {
    for (name, value) in settings {
        let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Object(inner) if !inner.is_empty() => flatten(&name, inner, into),
            _ if name == "index" || name.starts_with("index.") => {
                into.insert(name, value.clone());
            }
            _ => {
                into.insert(format!("index.{name}"), value.clone());
            }
        }
    }
}

fn count_fields(field: &Value) -> usize {
    let inner = |name: &str| {
        field.get(name).and_then(Value::as_object).map_or(0, |fields| fields.values().map(count_fields).sum())
    };
    1 + inner("fields") + inner("properties")
}

fn keyword() -> Value {
    json!({ "type": "keyword", "ignore_above": KEYWORD_CHARACTERS })
}

fn full_text() -> Value {
    json!({ "type": "text", "fields": { "keyword": keyword() } })
}

fn date() -> Value {
    json!({ "type": "date", "format": DATE_FORMAT, "ignore_malformed": true })
}

fn floating(name: &str) -> Value {
    json!({ "type": name, "ignore_malformed": true })
}

/// The field for values of a type, as `row_to_json` prints them.
fn field(type_oid: pg_sys::Oid) -> Value {
    let type_oid = element_of(type_oid);
    match type_oid {
        pg_sys::INT2OID => json!({ "type": "short" }),
        pg_sys::INT4OID => json!({ "type": "integer" }),
        pg_sys::INT8OID => json!({ "type": "long" }),
        pg_sys::FLOAT4OID => floating("float"),
        pg_sys::FLOAT8OID | pg_sys::NUMERICOID => floating("double"),
        pg_sys::BOOLOID => json!({ "type": "boolean" }),
        pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID | pg_sys::NAMEOID => full_text(),
        pg_sys::XMLOID | pg_sys::TSVECTOROID => json!({ "type": "text" }),
        pg_sys::DATEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => date(),
        pg_sys::INETOID => json!({ "type": "ip", "ignore_malformed": true }),
        pg_sys::JSONOID | pg_sys::JSONBOID => json!({ "type": "object", "dynamic": true }),
        pg_sys::BYTEAOID => json!({ "type": "keyword", "index": false, "doc_values": false }),
        _ => other(type_oid),
    }
}

/// Types of extensions and of users.
fn other(type_oid: pg_sys::Oid) -> Value {
    // SAFETY: a catalog look-up on the main thread.
    let kind = unsafe { pg_sys::get_typtype(type_oid) } as u8;
    if kind == pg_sys::TYPTYPE_COMPOSITE {
        return json!({ "type": "object", "properties": composite(type_oid) });
    }
    // Types of extensions have no fixed OID; by name they are recognised in whatever schema they are.
    // SAFETY: a catalog look-up on the main thread; the C string is palloc'd and copied at once.
    let name = unsafe { text(pg_sys::format_type_extended(type_oid, -1, 0)) };
    match name.rsplit('.').next().unwrap_or_default() {
        "citext" => full_text(),
        "hstore" => json!({ "type": "object", "dynamic": true }),
        _ => keyword(),
    }
}

/// The fields of a composite type.
fn composite(type_oid: pg_sys::Oid) -> Value {
    // SAFETY: the type is composite, so it has a relation; a type that is being dropped has none.
    let relation = unsafe { pg_sys::get_typ_typrelid(type_oid) };
    let fields: Map<String, Value> = Table::find(relation)
        .map(|table| table.columns.iter().map(|column| (column.name.clone(), field(column.type_oid))).collect())
        .unwrap_or_default();
    Value::Object(fields)
}

/// Strips domains and arrays: an engine's field holds one value or several alike.
fn element_of(mut type_oid: pg_sys::Oid) -> pg_sys::Oid {
    loop {
        // SAFETY: catalog look-ups on the main thread.
        let (base, element) = unsafe {
            let base = pg_sys::getBaseType(type_oid);
            (base, pg_sys::get_element_type(base))
        };
        // int2vector and oidvector are arrays by storage but have no array's output for json; they end here too.
        if element == pg_sys::InvalidOid {
            return base;
        }
        type_oid = element;
    }
}
