//! What an administrator wants to know: how an index really is, who feeds a target, many documents at once.

use std::collections::BTreeMap;

use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::control::document_path;
use super::http::{Reply, Request, parsed, refusal, refusal_type, segment};
use super::index::{MARK, pattern};
use super::{Engine, StoredDocument};
use crate::error::{Error, ErrorKind, Result};
use crate::ownership::Owner;

/// A document that is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Which<'a> {
    /// Its id.
    pub id: &'a str,
    /// What decided on its shard instead of the id.
    pub routing: Option<&'a str>,
    /// Its concrete index, where there are several.
    pub index: Option<&'a str>,
}

/// A concrete index as it is.
#[derive(Debug, Clone, Default)]
pub struct IndexReport {
    /// It has our mark.
    pub ours: bool,
    /// The aliases that point to it.
    pub aliases: Vec<String>,
    /// Settings by their full names, such as `index.gc_deletes`.
    pub settings: BTreeMap<String, Value>,
    /// The fields and their definitions.
    pub properties: Map<String, Value>,
}

#[derive(Deserialize)]
struct Described {
    #[serde(default)]
    aliases: BTreeMap<String, Value>,
    #[serde(default)]
    settings: BTreeMap<String, Value>,
    #[serde(default)]
    mappings: Map<String, Value>,
}

impl Described {
    fn report(self) -> IndexReport {
        let ours = self.mappings.get("_meta").is_some_and(|meta| !meta[MARK].is_null());
        let properties = match self.mappings.get("properties") {
            Some(Value::Object(properties)) => properties.clone(),
            _ => Map::new(),
        };
        IndexReport { ours, aliases: self.aliases.into_keys().collect(), settings: self.settings, properties }
    }
}

impl Engine {
    /// How the index of that name is, or each of those behind an alias; by name, empty if there is none.
    pub fn index_reports(&self, index: &str) -> Result<BTreeMap<String, IndexReport>> {
        let path = format!("/{}?flat_settings=true", pattern(index)?);
        let reply = self.http.send(&Request::new(Method::GET, &path))?;
        if reply.status == 404 && refusal_type(&reply) == "index_not_found_exception" {
            return Ok(BTreeMap::new());
        }
        if reply.status != 200 {
            return Err(refusal(&reply));
        }
        let indices: BTreeMap<String, Described> = parsed(&reply)?;
        Ok(indices.into_iter().map(|(name, found)| (name, found.report())).collect())
    }

    /// Who feeds the target of that name; `None` if nobody says so.
    pub fn owner(&self, target: &str) -> Result<Option<Owner>> {
        #[derive(Deserialize)]
        struct Got {
            #[serde(rename = "_source")]
            source: Owner,
        }
        let reply = self.http.send(&Request::new(Method::GET, &document_path(target)))?;
        match reply.status {
            200 => Ok(Some(parsed::<Got>(&reply)?.source)),
            404 => Ok(None),
            _ => Err(refusal(&reply)),
        }
    }

    /// Documents as of now (also if no refresh made them visible to searches), in the order of `ids`. In an index that is named
    /// with the document and does not exist, it is not there either.
    pub fn get_many(&self, index: &str, ids: &[Which<'_>]) -> Result<Vec<Option<StoredDocument>>> {
        #[derive(Deserialize)]
        struct Many {
            docs: Vec<One>,
        }
        #[derive(Deserialize)]
        struct One {
            #[serde(rename = "_id", default)]
            id: String,
            #[serde(default)]
            found: bool,
            #[serde(rename = "_version")]
            version: Option<u64>,
            #[serde(rename = "_source")]
            source: Option<Box<RawValue>>,
            error: Option<Box<RawValue>>,
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let docs: Vec<Value> = ids
            .iter()
            .map(|which| {
                let mut doc = json!({ "_id": which.id });
                for (member, value) in [("routing", which.routing), ("_index", which.index)] {
                    if let Some(value) = value {
                        doc[member] = json!(value);
                    }
                }
                doc
            })
            .collect();
        // An alias of several indices is refused in the path.
        let index = ids.iter().find_map(|which| which.index).unwrap_or(index);
        let path = format!("/{}/_mget", pattern(index)?);
        let reply = self.http.ask(&Request::new(Method::POST, &path).json(&json!({ "docs": docs })))?;
        let many: Many = parsed(&reply)?;
        if many.docs.len() != ids.len() || many.docs.iter().zip(ids).any(|(one, which)| one.id != which.id) {
            return Err(Error::new(
                ErrorKind::Protocol,
                "the documents in the reply are not those that were asked for",
            ));
        }
        many.docs
            .into_iter()
            .zip(ids)
            .map(|(one, which)| {
                if let Some(error) = one.error {
                    if which.index.is_some() && error.get().contains("index_not_found_exception") {
                        return Ok(None);
                    }
                    let body = format!("{{\"error\":{error}}}").into_bytes();
                    return Err(refusal(&Reply { status: 404, version_header: None, body }));
                }
                Ok(one.found.then_some(StoredDocument { id: one.id, version: one.version, source: one.source }))
            })
            .collect()
    }

    /// The indices that an alias points to; empty if there is no such alias.
    pub fn alias_holders(&self, alias: &str) -> Result<Vec<String>> {
        let reply = self.http.send(&Request::new(Method::GET, &format!("/_alias/{}", segment(alias))))?;
        match reply.status {
            200 => Ok(parsed::<BTreeMap<String, Value>>(&reply)?.into_keys().collect()),
            404 => Ok(Vec::new()),
            _ => Err(refusal(&reply)),
        }
    }
}
