//! The argument `types` of `fanout.index_table()`: another field for all columns of a type.

use super::field::{self, Element};
use crate::catalog::acting::privileged;
use crate::catalog::{first, ours};
use crate::error::failure;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::{Map, Value, json};

/// Type → what its columns are to be.
pub struct Choices<'a>(Option<&'a Map<String, Value>>);

impl<'a> Choices<'a> {
    /// Those that a sync's options hold.
    pub fn new(options: &'a Value) -> Self {
        Self(options.get("types").and_then(Value::as_object).filter(|types| !types.is_empty()))
    }

    /// What columns of this type are to be, if somebody chose.
    pub fn of(&self, type_oid: pg_sys::Oid) -> Option<&'a Value> {
        self.0?.get(&internal_name(type_oid)?)
    }
}

/// The argument as the catalog keeps it: each type by its internal name (`int4`, whether somebody wrote `int` or `integer`).
pub fn check(types: Map<String, Value>) -> Map<String, Value> {
    types
        .into_iter()
        .map(|(name, choice)| {
            let Some(internal) = resolve(&name) else {
                failure(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, format!("type \"{name}\" named in types does not exist"))
                    .hint("Columns are chosen by type: '{\"numeric\": \"keyword\"}'; for one column there is the argument mapping.")
                    .raise()
            };
            let fits = match &choice {
                Value::String(kind) => !kind.is_empty(),
                Value::Object(definition) => definition.get("type").is_some_and(Value::is_string),
                _ => false,
            };
            if !fits {
                failure(
                    PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                    format!("\"types\" must say for \"{name}\" what its columns are to be"),
                )
                .hint("The name of a field type, or a field: '{\"numeric\": \"keyword\", \"float8\": {\"type\": \"half_float\"}}'.")
                .raise();
            }
            (internal, choice)
        })
        .collect()
}

fn resolve(name: &str) -> Option<String> {
    let sql = "SELECT t.typname::text FROM pg_catalog.pg_type t WHERE t.oid = pg_catalog.to_regtype($1)";
    ours(first::<String>(sql, &[name.into()]))
}

fn internal_name(type_oid: pg_sys::Oid) -> Option<String> {
    let sql = "SELECT t.typname::text FROM pg_catalog.pg_type t WHERE t.oid = $1";
    privileged(|| first::<String>(sql, &[type_oid.into()])).ok().flatten()
}

/// The field for values of a type of which somebody chose what they are to be. A field type alone gets the parameters
/// that the rules give it; what it needs to know of the column, it takes from there.
pub fn expand(choice: &Value, element: Element, by_rule: impl FnOnce() -> Value) -> Value {
    let Some(kind) = choice.as_str() else { return choice.clone() };
    match kind {
        "keyword" => field::keyword(),
        "text" => field::full_text(),
        "object" => field::open_object(),
        "disabled" => field::closed_object(),
        "date" | "date_nanos" => field::date(kind),
        "byte" | "short" | "integer" | "long" | "unsigned_long" | "half_float" | "float" | "double" | "ip"
        | "geo_point" | "geo_shape" => field::lenient(kind),
        "scaled_float" => match scale(element) {
            Some(scale) => {
                json!({ "type": kind, "scaling_factor": 10f64.powi(scale), "ignore_malformed": true })
            }
            // Any factor would cut off digits of some value.
            None => by_rule(),
        },
        "date_range" => json!({ "type": kind, "format": "strict_date_optional_time" }),
        "nested" => {
            let mut object = by_rule();
            object["type"] = json!(kind);
            object
        }
        "dense_vector" if element.modifier > 0 => json!({ "type": kind, "dims": element.modifier }),
        "knn_vector" if element.modifier > 0 => json!({ "type": kind, "dimension": element.modifier }),
        _ => json!({ "type": kind }),
    }
}

/// Digits after the decimal point, where a type has a fixed number of them.
fn scale(element: Element) -> Option<i32> {
    match element.type_oid {
        pg_sys::MONEYOID => Some(2),
        pg_sys::NUMERICOID => field::precision_and_scale(element.modifier)
            .map(|(_, scale)| scale)
            .filter(|scale| (0..=15).contains(scale)),
        _ => None,
    }
}
