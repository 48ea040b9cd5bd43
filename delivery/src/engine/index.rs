//! Indices and aliases: made, found, swapped, deleted; never one that is not ours.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::http::{Reply, Request, parsed, refusal, refusal_type, segment};
use super::periods::is_of;
use super::{Engine, IndexState, Visible};
use crate::error::{Error, ErrorKind, Result};

/// Where our mark is in a mapping: `_meta.pg_fanout`.
pub(super) const MARK: &str = "pg_fanout";

/// How long deletions are remembered, so that a late write does not bring a document back. The engines' default is 60 s.
const GC_DELETES: &str = "1h";

/// What a name stands for in the engine.
pub(super) enum Named {
    Nothing,
    /// A concrete index of that name.
    Index {
        marked: bool,
    },
    /// An alias for these indices; whether each has our mark.
    Alias(BTreeMap<String, bool>),
    DataStream,
}

/// Where that goes which others write by an alias.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Writes {
    /// To the index that the alias is pointed at.
    Here,
    /// It is refused: of several indices none is more than another, also while there is but one of them.
    Nowhere,
}

#[derive(Deserialize)]
struct Described {
    data_stream: Option<String>,
    mappings: Option<Value>,
}

impl Engine {
    /// Looks a name up. One request, and a short reply however large the mapping is.
    pub(super) fn describe(&self, name: &str) -> Result<Named> {
        let path = format!(
            "/{}?filter_path=*.settings.index.uuid,*.data_stream,*.mappings._meta.{MARK},error,status",
            segment(name)
        );
        let reply = self.http.send(&Request::new(Method::GET, &path))?;
        if reply.status == 404 && refusal_type(&reply) == "index_not_found_exception" {
            return Ok(Named::Nothing);
        }
        if reply.status != 200 {
            return Err(refusal(&reply));
        }
        let indices: BTreeMap<String, Described> = parsed(&reply)?;
        let marked =
            |index: &Described| index.mappings.as_ref().is_some_and(|mappings| !mappings["_meta"][MARK].is_null());
        if let Some(index) = indices.get(name) {
            return Ok(Named::Index { marked: marked(index) });
        }
        if indices.iter().any(|(name, index)| index.data_stream.is_some() || name.starts_with(".ds-")) {
            return Ok(Named::DataStream);
        }
        if indices.is_empty() {
            return Ok(Named::Nothing);
        }
        Ok(Named::Alias(indices.iter().map(|(name, index)| (name.clone(), marked(index))).collect()))
    }

    /// Makes the concrete index with `body` (`settings`, `mappings`, `aliases`), `index.gc_deletes` 1 h and our mark, and, if
    /// the alias does not exist yet and the index is to be `visible`, points it there, and the further `aliases` with it. An alias that points to another index of ours is left alone (see
    /// [`Engine::swap_alias`]). [`crate::ErrorKind::Conflict`] if the alias' name is that of an index or data stream,
    /// or either name belongs to an index without our mark. `concrete` and `alias` must differ.
    pub fn ensure_index(&self, concrete: &str, alias: &str, body: &Value, visible: Visible) -> Result<IndexState> {
        check_name(concrete)?;
        check_name(alias)?;
        self.forget_check(concrete);
        let holders = self.holders(alias)?;
        let alias_is_free = visible == Visible::AtOnce && holders.is_empty();
        let alias_is_here = holders.iter().any(|holder| holder == concrete);
        let path = format!("/{}", segment(concrete));
        let request = Request::new(Method::PUT, &path).json(&index_body(body, alias, alias_is_free));
        let reply = self.http.send(&request)?;
        if (200..300).contains(&reply.status) {
            return Ok(IndexState::Created);
        }
        if !already_exists(&reply) {
            return Err(refusal(&reply));
        }
        self.must_be_ours(concrete)?;
        let further = &body["aliases"];
        if alias_is_free || (alias_is_here && further.is_object()) {
            self.point_alias(alias, &[], &[concrete], Writes::Here, (further, &[]))?;
        }
        Ok(IndexState::Exists)
    }

    /// The indices that an alias points to, all of them ours; empty if nothing has the name.
    pub(super) fn holders(&self, alias: &str) -> Result<Vec<String>> {
        match self.describe(alias)? {
            Named::Nothing => Ok(Vec::new()),
            Named::Alias(indices) => {
                if let Some((index, _)) = indices.iter().find(|(_, marked)| !**marked) {
                    return Err(conflict(format!(
                        "the alias \"{alias}\" points to index \"{index}\", which was not made by pg_fanout"
                    )));
                }
                Ok(indices.into_keys().collect())
            }
            Named::Index { .. } => Err(conflict(format!("\"{alias}\" is an index, so it can't be an alias"))),
            Named::DataStream => Err(conflict(format!("\"{alias}\" is a data stream, so it can't be an alias"))),
        }
    }

    /// [`ErrorKind::Conflict`] if an index that exists has not our mark.
    pub(super) fn must_be_ours(&self, index: &str) -> Result<()> {
        match self.describe(index)? {
            Named::Index { marked: true } => Ok(()),
            _ => Err(conflict(format!(
                "the index \"{index}\" exists but was not made by pg_fanout; delete or rename it"
            ))),
        }
    }

    /// Points the alias at `new` and no longer at `old`, nor at any other index of ours (of a rebuild that was overtaken), in
    /// one step, once all that `new` holds can be searched, and the `further` aliases (name → what engines take for one) with it.
    /// `new` may be the alias of a generation: then it is all indices of that. The further aliases leave the indices of alias `former`,
    /// too, which served before this one.
    /// Harmless if it is so already. [`crate::ErrorKind::Conflict`] if it points to an index without our mark.
    pub fn swap_alias(
        &self,
        alias: &str,
        old: Option<&str>,
        new: &str,
        further: &Value,
        former: Option<&str>,
    ) -> Result<()> {
        for name in [Some(alias), old, Some(new), former].into_iter().flatten() {
            check_name(name)?;
        }
        let holders: Vec<String> = match self.describe(alias)? {
            Named::Nothing => Vec::new(),
            Named::Alias(indices) => {
                let foreign = indices.iter().find(|(index, marked)| !**marked && Some(index.as_str()) != old);
                if let Some((third, _)) = foreign {
                    return Err(conflict(format!(
                        "the alias \"{alias}\" points to index \"{third}\", which was not made by pg_fanout"
                    )));
                }
                indices.into_keys().collect()
            }
            _ => return Err(conflict(format!("\"{alias}\" is not an alias"))),
        };
        let (coming, writes) = match self.describe(new)? {
            Named::Alias(indices) => (indices.into_keys().collect(), Writes::Nowhere),
            _ => (vec![new.to_owned()], Writes::Here),
        };
        if holders == coming && !further.is_object() {
            return Ok(());
        }
        let former: Vec<String> = match former.map(|former| self.describe(former)).transpose()? {
            Some(Named::Alias(indices)) => {
                indices.into_iter().filter(|(_, marked)| *marked).map(|(it, _)| it).collect()
            }
            _ => Vec::new(),
        };
        let former: Vec<&str> = former.iter().filter(|it| !coming.contains(it)).map(String::as_str).collect();
        // What is not refreshed yet would be missing from searches from one moment to the next.
        self.refresh(new)?;
        let leaving: Vec<&str> = holders.iter().filter(|it| !coming.contains(it)).map(String::as_str).collect();
        let coming: Vec<&str> = coming.iter().map(String::as_str).collect();
        self.point_alias(alias, &leaving, &coming, writes, (further, &former))
    }

    /// Points an alias at other indices, and the further ones with it, which leave some more.
    pub(super) fn point_alias(
        &self,
        alias: &str,
        leaving: &[&str],
        coming: &[&str],
        writes: Writes,
        (further, former): (&Value, &[&str]),
    ) -> Result<()> {
        let mut actions: Vec<Value> =
            leaving.iter().map(|index| json!({"remove": {"index": index, "alias": alias}})).collect();
        for index in coming {
            let mut add = json!({"index": index, "alias": alias});
            if writes == Writes::Here {
                add["is_write_index"] = json!(true);
            }
            actions.push(json!({ "add": add }));
        }
        for (name, definition) in further.as_object().into_iter().flatten() {
            let left = |index: &&str| json!({"remove": {"index": index, "alias": name, "must_exist": false}});
            actions.extend(leaving.iter().chain(former).map(left));
            actions.extend(coming.iter().map(|index| {
                let mut add = definition.clone();
                add["index"] = json!(index);
                add["alias"] = json!(name);
                json!({ "add": add })
            }));
        }
        self.http.ask(&Request::new(Method::POST, "/_aliases").json(&json!({"actions": actions})))?;
        Ok(())
    }

    /// Deletes a concrete index, or all of a generation by its alias, which must have our mark. False: there was none.
    pub fn delete_index(&self, concrete: &str) -> Result<bool> {
        check_name(concrete)?;
        self.forget_check(concrete);
        match self.describe(concrete)? {
            Named::Nothing => return Ok(false),
            Named::Index { marked: true } => {}
            Named::Alias(indices) if indices.iter().all(|(index, marked)| *marked && is_of(concrete, index)) => {
                for index in indices.keys() {
                    self.delete_index(index)?;
                }
                return Ok(true);
            }
            _ => return Err(conflict(format!("\"{concrete}\" is not an index that pg_fanout made: not deleted"))),
        }
        let path = format!("/{}", segment(concrete));
        match self.http.ask(&Request::new(Method::DELETE, &path)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes everything written so far visible to searches. An error if any shard could not.
    pub fn refresh(&self, index: &str) -> Result<()> {
        #[derive(Deserialize)]
        struct Refreshed {
            #[serde(rename = "_shards")]
            shards: Shards,
        }
        #[derive(Deserialize)]
        struct Shards {
            failed: u64,
        }
        let path = format!("/{}/_refresh?ignore_unavailable=false&allow_no_indices=false", pattern(index)?);
        let reply = self.http.ask(&Request::new(Method::POST, &path))?;
        match parsed::<Refreshed>(&reply)?.shards.failed {
            0 => Ok(()),
            failed => Err(Error::new(ErrorKind::Incomplete, format!("{failed} shards could not be refreshed"))),
        }
    }

    /// Whether the index stands and is ours, as of at most `max_age` ago; see [`crate::bulk`].
    pub(super) fn index_is_ours(&self, index: &str, max_age: Duration) -> Result<bool> {
        let known = {
            let checks = self.checks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            checks.get(index).is_some_and(|checked| checked.elapsed() < max_age)
        };
        if known {
            return Ok(true);
        }
        let ours = match self.describe(index) {
            Ok(Named::Index { marked }) => marked,
            Ok(_) => false,
            // Rights that allow writing but not looking: all that is left is to trust.
            Err(error) if error.status() == Some(403) => true,
            Err(error) => return Err(error),
        };
        let mut checks = self.checks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if ours {
            checks.insert(index.to_owned(), Instant::now());
        } else {
            checks.remove(index);
        }
        Ok(ours)
    }

    pub(super) fn forget_check(&self, index: &str) {
        self.checks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(index);
    }
}

/// Whether a request to make an index was refused because it is there. Elasticsearch before 6 said
/// index_already_exists_exception; both engines of today agree on this one.
pub(super) fn already_exists(reply: &Reply) -> bool {
    reply.status == 400 && refusal_type(reply) == "resource_already_exists_exception"
}

pub(super) fn conflict(message: String) -> Error {
    Error::new(ErrorKind::Conflict, message)
}

/// Refuses what would mean several indices, or something else than an index, in a path.
pub(super) fn check_name(name: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.len() > 255
        || name.starts_with(['-', '_', '+', '.', '<'])
        || name.contains(|c: char| {
            matches!(c, '\\' | '/' | '*' | '?' | '"' | '<' | '>' | '|' | ',' | '#' | ':')
                || c.is_whitespace()
                || c.is_control()
                || c.is_uppercase()
        });
    if bad {
        return Err(Error::new(ErrorKind::BadRequest, format!("\"{name}\" can't be the name of an index")));
    }
    Ok(())
}

/// An index, an alias or a pattern, as a segment of a path.
pub(super) fn pattern(name: &str) -> Result<String> {
    if name.is_empty() {
        return Err(Error::new(ErrorKind::BadRequest, "the name of the index is empty"));
    }
    Ok(segment(name))
}

pub(super) fn index_body(body: &Value, alias: &str, with_alias: bool) -> Value {
    let mut body = body.as_object().cloned().unwrap_or_default();
    let settings = object(&mut body, "settings");
    let given = settings.contains_key("index.gc_deletes")
        || settings.contains_key("gc_deletes")
        || settings.get("index").is_some_and(|index| !index["gc_deletes"].is_null());
    if !given {
        settings.insert("index.gc_deletes".into(), GC_DELETES.into());
    }
    let meta = object(object(&mut body, "mappings"), "_meta");
    meta.insert(MARK.into(), json!({"alias": alias}));
    if with_alias {
        object(&mut body, "aliases").insert(alias.into(), json!({"is_write_index": true}));
    } else {
        // They are where the alias is: beside the index that is being filled, their searches would find everything twice.
        body.remove("aliases");
    }
    Value::Object(body)
}

fn object<'a>(parent: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = parent.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("just made an object"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_mark_and_settings_are_added() {
        let body = index_body(&json!({"mappings": {"properties": {"a": {}}}}), "product", true);
        assert_eq!(
            body,
            json!({
                "settings": {"index.gc_deletes": "1h"},
                "mappings": {"properties": {"a": {}}, "_meta": {"pg_fanout": {"alias": "product"}}},
                "aliases": {"product": {"is_write_index": true}},
            })
        );
        for settings in
            [json!({"index.gc_deletes": "2h"}), json!({"index": {"gc_deletes": "2h"}}), json!({"gc_deletes": "2h"})]
        {
            let body = index_body(&json!({"settings": settings}), "product", false);
            assert_eq!(body["settings"], settings);
            assert!(body["aliases"].is_null());
        }
    }

    #[test]
    fn names_that_are_several() {
        for name in ["", "a,b", "a*", "_all", "-a", "<a-{now}>", "A", "a b", "a/b", ".kibana"] {
            assert_eq!(check_name(name).unwrap_err().kind(), ErrorKind::BadRequest, "{name}");
        }
        for name in ["product-fanout-1", "é", "a.b_c", "日本"] {
            check_name(name).unwrap();
        }
    }
}
