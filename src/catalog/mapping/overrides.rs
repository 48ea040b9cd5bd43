//! What a caller of `fanout.index_table()` says about the index, checked, and laid over what we would have made.

use crate::catalog::naming::index_name_problem;
use crate::error::failure;
use pgrx::prelude::*;
use serde_json::{Map, Value, json};

/// Engines refuse an index with more fields unless told otherwise (index.mapping.total_fields.limit).
const FIELD_LIMIT: usize = 1000;

/// The setting with which an index may have more fields.
const FIELD_LIMIT_SETTING: &str = "index.mapping.total_fields.limit";

/// What a whole mapping may say of `dynamic`.
const DYNAMIC: &[&str] = &["true", "false", "strict", "runtime", "strict_allow_templates", "false_allow_templates"];

/// A value that must be an object.
pub fn json_object(argument: &str, value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, format!("\"{argument}\" must be a JSON object"))
            .hint(match argument {
                "settings" => "For example '{\"number_of_replicas\": 0}'.",
                "types" => "For example '{\"numeric\": \"keyword\"}': the type of columns, then the field.",
                _ => "For example '{\"title\": {\"type\": \"text\"}}': the field, then what it is.",
            })
            .raise(),
    }
}

/// The user's mapping: an object for each field, or a whole mapping with `properties`, `dynamic_templates`, `dynamic` …
pub fn check_mapping(value: Value) -> Map<String, Value> {
    let mapping = json_object("mapping", value);
    if mapping.len() == 1 && mapping.get("mappings").is_some_and(|inner| !is_field(inner)) {
        refuse("\"mapping\" must hold the fields, or \"properties\" and what goes beside them, not \"mappings\"");
    }
    if !is_whole(&mapping) {
        check_properties(&mapping);
        return mapping;
    }
    for (name, value) in &mapping {
        let fits = match name.as_str() {
            "properties" => value.as_object().map(check_properties).is_some(),
            "dynamic_templates" => value.as_array().is_some_and(|templates| templates.iter().all(Value::is_object)),
            "dynamic" => value.is_boolean() || value.as_str().is_some_and(|word| DYNAMIC.contains(&word)),
            // Our mark is there.
            "_meta" => value.as_object().is_some_and(|meta| !meta.contains_key("pg_fanout")),
            _ => true,
        };
        if !fits {
            refuse(&format!("\"mapping\" has a value for \"{name}\" that engines don't understand"));
        }
    }
    mapping
}

fn check_properties(properties: &Map<String, Value>) {
    if let Some((field, _)) = properties.iter().find(|(_, definition)| !definition.is_object()) {
        refuse(&format!("\"mapping\" must have a JSON object for each field: \"{field}\" has none"));
    }
}

fn refuse(message: &str) -> ! {
    failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
        .hint(
            "For example '{\"title\": {\"type\": \"text\", \"analyzer\": \"english\"}}', or \
             '{\"properties\": {…}, \"dynamic_templates\": […], \"dynamic\": true}'.",
        )
        .raise()
}

/// Whether it is the definition of a field rather than something that holds some.
fn is_field(value: &Value) -> bool {
    value.get("type").is_some_and(Value::is_string)
}

/// Whether a mapping is a whole one, and not the fields alone. A column may be called "properties".
fn is_whole(mapping: &Map<String, Value>) -> bool {
    let holds_fields = mapping.get("properties").is_some_and(|inner| inner.is_object() && !is_field(inner));
    let has = |name: &str, like: fn(&Value) -> bool| mapping.get(name).is_some_and(like);
    holds_fields
        || has("dynamic_templates", Value::is_array)
        || has("dynamic", |value| value.is_boolean() || value.is_string())
}

/// The user's mapping as fields, and what goes beside them.
pub fn split(options: &Value) -> (Map<String, Value>, Map<String, Value>) {
    let Some(mapping) = options.get("mapping").and_then(Value::as_object) else { return Default::default() };
    if !is_whole(mapping) {
        return (mapping.clone(), Map::new());
    }
    let mut beside = mapping.clone();
    let properties = beside.remove("properties").and_then(|inner| inner.as_object().cloned()).unwrap_or_default();
    (properties, beside)
}

/// Further aliases of the index: an object of what engines take for each, or a list of names.
pub fn check_aliases(value: Value, index: &str) -> Map<String, Value> {
    let example =
        "For example '{\"shop\": {}, \"shop_open\": {\"filter\": {\"term\": {\"open\": true}}}}', or '[\"shop\"]'.";
    let bad = |message: String| -> ! {
        failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message).hint(example).raise()
    };
    let aliases = match value {
        Value::Object(aliases) => aliases,
        Value::Array(names) => names
            .into_iter()
            .map(|name| match name {
                Value::String(name) => (name, json!({})),
                _ => bad("\"aliases\" must be a JSON object, or an array of names".to_owned()),
            })
            .collect(),
        _ => bad("\"aliases\" must be a JSON object, or an array of names".to_owned()),
    };
    for (name, definition) in &aliases {
        if !definition.is_object() {
            bad(format!("\"aliases\" must have a JSON object for each alias: \"{name}\" has none"));
        }
        if name == index {
            bad(format!("\"aliases\" names \"{name}\", which is the index itself"));
        }
        if let Some(problem) = index_name_problem(name) {
            bad(format!("\"{name}\" in \"aliases\" can't be the name of an alias: {problem}"));
        }
    }
    aliases
}

/// The settings of an index: ours, and over them the user's.
pub fn settings(options: &Value, fields: usize, delete_versions_kept: &str) -> Map<String, Value> {
    let mut settings = Map::new();
    settings.insert("index.gc_deletes".to_owned(), json!(delete_versions_kept));
    if fields > FIELD_LIMIT / 2 {
        // What appears in json columns needs room beside what is declared.
        settings.insert(FIELD_LIMIT_SETTING.to_owned(), json!(2 * FIELD_LIMIT));
    }
    if let Some(wanted) = options.get("settings").and_then(Value::as_object) {
        flatten("", wanted, &mut settings);
    }
    settings
}

/// Raises if a mapping has more fields than the index would take.
pub fn check_field_limit(source: &str, fields: usize, options: &Value) {
    let mut given = Map::new();
    if let Some(wanted) = options.get("settings").and_then(Value::as_object) {
        flatten("", wanted, &mut given);
    }
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    let limit = given.get(FIELD_LIMIT_SETTING).and_then(number).map_or(FIELD_LIMIT, |limit| limit as usize);
    if fields > limit {
        failure(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("an index of \"{source}\" would have {fields} fields, more than its limit of {limit}"),
        )
        .hint(format!(
            "Raise the limit: settings => '{{\"mapping.total_fields.limit\": {}}}'; or give columns of text no subfield: \
             types => '{{\"text\": \"keyword\"}}'.",
            fields + limit
        ))
        .raise();
    }
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

/// How many fields an engine counts for a definition: itself, and those below it.
pub fn count_fields(field: &Value) -> usize {
    let inner = |name: &str| {
        field.get(name).and_then(Value::as_object).map_or(0, |fields| fields.values().map(count_fields).sum())
    };
    1 + inner("fields") + inner("properties")
}
