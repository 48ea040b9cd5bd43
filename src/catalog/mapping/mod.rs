//! Column types → the mapping of an index, and the JSON form that fits it.

pub mod choice;
mod field;
mod form;
pub mod overrides;

use crate::catalog::source::{Column, Table};
use crate::catalog::{Kind, Sync, document};
use crate::server::quoted;
use choice::Choices;
use field::Element;
use pgrx::JsonB;
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// Deleted documents' versions must outlive any request that is still on its way.
const DELETE_VERSIONS_KEPT: &str = "1h";

/// The columns of a sync's documents, by the names of their fields.
fn document_columns(sync: &Sync) -> Vec<Column> {
    Table::find(sync.source).map(|table| document::columns(sync, &table)).unwrap_or_default()
}

/// What the document of a row is made of, in SQL.
pub enum Document {
    /// This, all of it as json.
    Whole(Cow<'static, str>),
    /// Each column of the row, whichever it has by then.
    Row,
    /// Fields: the name, and a value that goes in as `to_json` has it.
    Fields(Vec<(String, String)>),
}

/// The document of a row; `row` is what it is called in FROM. Within a transaction.
pub fn document(sync: &Sync, row: &str) -> Document {
    if sync.options["document_column"] == Value::Bool(true) {
        return Document::Whole(format!("pg_catalog.to_json({row}.\"document\")").into());
    }
    let Some(table) = Table::find(sync.source) else { return Document::Whole("NULL::pg_catalog.json".into()) };
    let fields = document::fields(sync, &table);
    let columns: Vec<Column> =
        fields.iter().map(|(name, column)| Column { name: name.clone(), ..column.clone() }).collect();
    let mapped = properties(&columns, &sync.options);
    let mut whole = sync.options["fields"].is_null();
    let mut values = Vec::new();
    for (name, column) in &fields {
        let value = format!("{row}.{}", quoted(&column.name));
        let element = Element { type_oid: column.type_oid, modifier: column.type_modifier };
        // What is cached is the row as PostgreSQL prints it.
        let form = match sync.kind {
            Kind::Index => mapped.get(name).and_then(|field| form::json_expression(&value, element, field)),
            Kind::Cache => None,
        };
        whole &= form.is_none() && *name == column.name;
        values.push((name.clone(), form.unwrap_or(value)));
    }
    if whole { Document::Row } else { Document::Fields(values) }
}

/// The body of the request that creates a sync's index: settings, mappings, aliases; the user's laid over ours. Within a
/// transaction.
pub fn index_body(sync: &Sync) -> Value {
    body(&document_columns(sync), &sync.options)
}

/// The fields that a search looks at unless it names some: those declared, else all of type text, else all of type keyword.
/// Within a transaction.
pub fn search_fields(sync: &Sync) -> Vec<String> {
    if let Some(declared) = sync.options.get("search_fields").and_then(Value::as_array) {
        return declared.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    }
    let fields = properties(&document_columns(sync), &sync.options);
    let of_type = |wanted: &str| -> Vec<String> {
        let has = |field: &Value| {
            field.get("type").and_then(Value::as_str) == Some(wanted) && field.get("index") != Some(&Value::Bool(false))
        };
        fields.iter().filter(|(_, field)| has(field)).map(|(name, _)| name.clone()).collect()
    };
    let texts = of_type("text");
    if texts.is_empty() { of_type("keyword") } else { texts }
}

/// Checks what a caller says about the index, and puts it into the sync's options.
pub fn declare(
    options: &mut Map<String, Value>,
    mapping: Option<JsonB>,
    settings: Option<JsonB>,
    types: Option<JsonB>,
) {
    if let Some(mapping) = mapping {
        options.insert("mapping".to_owned(), Value::Object(overrides::check_mapping(mapping.0)));
    }
    if let Some(settings) = settings {
        options.insert("settings".to_owned(), Value::Object(overrides::json_object("settings", settings.0)));
    }
    if let Some(types) = types {
        options.insert("types".to_owned(), Value::Object(choice::check(overrides::json_object("types", types.0))));
    }
}

/// Raises if an index of these columns would have too many fields.
pub fn check_field_count(source: &str, columns: &[Column], options: &Value) {
    let fields = properties(columns, options).values().map(overrides::count_fields).sum();
    overrides::check_field_limit(source, fields, options);
}

/// The field of each column, and the user's.
fn properties(columns: &[Column], options: &Value) -> Map<String, Value> {
    let choices = Choices::new(options);
    let mut properties: Map<String, Value> =
        columns.iter().map(|column| (column.name.clone(), field::field(column, &choices))).collect();
    // A field's definition is replaced as a whole: half of ours under half of the user's may be no valid one.
    properties.extend(overrides::split(options).0);
    properties
}

/// The body of the request that creates an index of these columns.
pub fn body(columns: &[Column], options: &Value) -> Value {
    let properties = properties(columns, options);
    let fields = properties.values().map(overrides::count_fields).sum::<usize>();
    let mut templates = Vec::new();
    let (_, mut mappings) = overrides::split(options);
    if let Some(Value::Array(given)) = mappings.remove("dynamic_templates") {
        templates.extend(given);
    }
    open_objects("", &properties, &mut |path| templates.extend(templates_of(Some(path))));
    // What is no column is not searched unless somebody says so. Nor are dates guessed in the strings of json columns: the
    // next string may be none.
    // Only what a query makes up has fields that nobody declared.
    let open = options["document"].is_string();
    if open {
        templates.extend(templates_of(None));
    }
    mappings.entry("dynamic").or_insert(Value::Bool(open));
    mappings.entry("date_detection").or_insert(Value::Bool(false));
    mappings.insert("properties".to_owned(), Value::Object(properties));
    if !templates.is_empty() {
        mappings.insert("dynamic_templates".to_owned(), Value::Array(templates));
    }
    let mut body = json!({
        "settings": overrides::settings(options, fields, DELETE_VERSIONS_KEPT),
        "mappings": mappings,
    });
    if let Some(aliases) = options.get("aliases") {
        body["aliases"] = aliases.clone();
    }
    body
}

/// Visits the paths of the objects whose fields appear as documents bring them.
fn open_objects(prefix: &str, properties: &Map<String, Value>, visit: &mut impl FnMut(&str)) {
    for (name, definition) in properties {
        let path = format!("{prefix}{name}");
        if definition.get("dynamic") == Some(&Value::Bool(true)) {
            visit(&path);
        }
        if let Some(inner) = definition.get("properties").and_then(Value::as_object) {
            open_objects(&format!("{path}."), inner, visit);
        }
    }
}

/// What appears in a json column (without a path: anywhere) becomes fields that take as much as they can: the next document may
/// have a number with a fraction, or a word, where the first had an integer.
fn templates_of(path: Option<&str>) -> Vec<Value> {
    let template = |of: &str, field: Value| {
        let mut template = json!({ "match_mapping_type": of, "mapping": field });
        if let Some(path) = path {
            template["path_match"] = json!(format!("{path}.*"));
        }
        json!({ format!("{}: {of}", path.unwrap_or("any")): template })
    };
    vec![
        template("long", field::lenient("double")),
        template("double", field::lenient("double")),
        template("boolean", field::keyword()),
        template("string", field::full_text()),
    ]
}
