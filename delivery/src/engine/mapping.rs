//! The mapping of an index that is there: what it lacks is put into it; what can't be changed is told.

use reqwest::Method;
use serde_json::{Map, Value, json};

use super::http::{Request, parsed, segment};
use super::index::check_name;
use super::{Engine, Unfit};
use crate::error::{ErrorKind, Result};

impl Engine {
    /// Puts the fields of `mappings` that the index, or one of those behind an alias, does not have into its mapping. Gives those that it has as something else,
    /// or that the engine refuses: they stay as they are until there is a new index.
    pub fn extend_mapping(&self, index: &str, mappings: &Value) -> Result<Vec<Unfit>> {
        check_name(index)?;
        let path = format!("/{}/_mapping", segment(index));
        let reply = match self.http.ask(&Request::new(Method::GET, &path)) {
            Ok(reply) => reply,
            // Rights that allow writing but not looking.
            Err(error) if error.status() == Some(403) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let present: Value = parsed(&reply)?;
        let mut unfit = Vec::new();
        for (index, present) in present.as_object().into_iter().flatten() {
            for found in self.extend_one(index, mappings, &present["mappings"])? {
                if !unfit.contains(&found) {
                    unfit.push(found);
                }
            }
        }
        Ok(unfit)
    }

    fn extend_one(&self, index: &str, mappings: &Value, present: &Value) -> Result<Vec<Unfit>> {
        let path = format!("/{}/_mapping", segment(index));
        let (mut missing, mut unfit) = (Map::new(), Vec::new());
        let fields = |mappings: &Value| mappings["properties"].as_object().cloned().unwrap_or_default();
        compare("", &fields(mappings), &fields(present), &mut missing, &mut unfit);
        if missing.is_empty() {
            return Ok(unfit);
        }
        let put = |fields: &Map<String, Value>| -> Result<()> {
            let mut body = json!({ "properties": fields });
            if !mappings["dynamic_templates"].is_null() {
                body["dynamic_templates"] = mappings["dynamic_templates"].clone();
            }
            self.http.ask(&Request::new(Method::PUT, &path).json(&body)).map(|_| ())
        };
        match put(&missing) {
            Err(error) if is_refusal(error.kind()) => {}
            other => return other.map(|()| unfit),
        }
        // One of them it is, at least.
        for (name, definition) in missing {
            match put(&Map::from_iter([(name.clone(), definition)])) {
                Ok(()) => {}
                Err(error) if is_refusal(error.kind()) => {
                    unfit.push(Unfit { field: name, reason: error.message().to_owned() });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(unfit)
    }
}

fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::BadRequest | ErrorKind::Unauthorized)
}

/// What `wanted` has and `present` has not, or has as something else.
fn compare(
    prefix: &str,
    wanted: &Map<String, Value>,
    present: &Map<String, Value>,
    missing: &mut Map<String, Value>,
    unfit: &mut Vec<Unfit>,
) {
    for (name, definition) in wanted {
        let path = format!("{prefix}{name}");
        let Some(existing) = find(present, name) else {
            missing.insert(name.clone(), definition.clone());
            continue;
        };
        let (is, to_be) = (kind(existing), kind(definition));
        let factor = |field: &Value| field["scaling_factor"].as_f64();
        if is != to_be {
            unfit.push(Unfit { field: path, reason: format!("the index has it as {is}, it would be {to_be} now") });
            continue;
        }
        if factor(existing) != factor(definition) {
            unfit.push(Unfit { field: path, reason: "the index has it with another scaling_factor".to_owned() });
            continue;
        }
        let part = |field: &Value, of: &str| field[of].as_object().cloned().unwrap_or_default();
        let mut inner = Map::new();
        let of = "properties";
        compare(&format!("{path}."), &part(definition, of), &part(existing, of), &mut inner, unfit);
        if !inner.is_empty() {
            missing.insert(name.clone(), json!({ "type": is, of: inner }));
        }
        let (subfields, known) = (part(definition, "fields"), part(existing, "fields"));
        if subfields.keys().any(|name| !known.contains_key(name)) {
            missing.insert(name.clone(), definition.clone());
        }
    }
}

/// A field by its name; engines take dots in it for a path of objects.
fn find<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(field) = fields.get(name) {
        return Some(field);
    }
    let (head, rest) = name.split_once('.')?;
    find(fields.get(head)?["properties"].as_object()?, rest)
}

fn kind(field: &Value) -> &str {
    field["type"].as_str().unwrap_or("object")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_does_not_fit() {
        let present = json!({
            "same": {"type": "keyword", "ignore_above": 5}, "other": {"type": "long"}, "object": {"properties": {"a": {"type": "long"}}},
            "nested": {"type": "nested", "properties": {"x": {"properties": {}}}}, "path": {"properties": {"to": {"type": "date"}}},
            "words": {"type": "text"}, "scaled": {"type": "scaled_float", "scaling_factor": 100.0}
        });
        let wanted = json!({
            "same": {"type": "keyword"}, "other": {"type": "double"}, "new": {"type": "ip"},
            "object": {"type": "object", "properties": {"a": {"type": "text"}, "b": {"type": "date"}}},
            "nested": {"type": "nested", "properties": {"x": {"type": "object", "properties": {"y": {"type": "long"}}}}},
            "path.to": {"type": "date"}, "path.from": {"type": "date"},
            "words": {"type": "text", "fields": {"keyword": {"type": "keyword"}}},
            "scaled": {"type": "scaled_float", "scaling_factor": 10}
        });
        let (mut missing, mut unfit) = (Map::new(), Vec::new());
        compare("", wanted.as_object().unwrap(), present.as_object().unwrap(), &mut missing, &mut unfit);
        let expected = json!({
            "new": {"type": "ip"},
            "object": {"type": "object", "properties": {"b": {"type": "date"}}},
            "nested": {"type": "nested", "properties": {"x": {"type": "object", "properties": {"y": {"type": "long"}}}}},
            "path.from": {"type": "date"},
            "words": {"type": "text", "fields": {"keyword": {"type": "keyword"}}},
        });
        assert_eq!(Value::Object(missing), expected);
        let unfit: Vec<&str> = unfit.iter().map(|unfit| unfit.field.as_str()).collect();
        assert_eq!(unfit, ["object.a", "other", "scaled"]);
    }
}
