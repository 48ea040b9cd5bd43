//! A target that has one index a period. An alias of its own, named as the one index would be, holds those of a generation
//! together from the moment when they are made: by it they are listed, refreshed and deleted, whether they are served or not.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use super::http::{Request, refusal, segment};
use super::index::{Named, Writes, already_exists, check_name, conflict, index_body};
use super::{Engine, Unfit, Visible};
use crate::error::Result;

/// Outcome of [`Engine::ensure_periods`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Periods {
    /// All indices of the generation, by their whole names.
    pub present: BTreeSet<String>,
    /// Those that this call made.
    pub made: BTreeSet<String>,
    /// Fields that some of the others can't have.
    pub unfit: Vec<Unfit>,
}

impl Engine {
    /// Makes those of the `wanted` indices that there are not, behind the alias `generation`, and puts what they lack into the
    /// mappings of all. Their names begin with `generation` and a dash. If `alias` is free and they are to be `visible`, or it serves this generation, they are
    /// behind it too, and behind the further aliases of `body`; else only after [`Engine::swap_alias`].
    /// [`crate::ErrorKind::Conflict`] as for [`Engine::ensure_index`].
    pub fn ensure_periods(
        &self,
        generation: &str,
        wanted: &[String],
        alias: &str,
        body: &Value,
        visible: Visible,
    ) -> Result<Periods> {
        wanted.iter().map(String::as_str).chain([generation, alias]).try_for_each(check_name)?;
        let served = self.holders(alias)?;
        let is_free = visible == Visible::AtOnce && served.is_empty();
        let is_served = is_free || served.iter().any(|index| is_of(generation, index));
        let mut present: BTreeSet<String> = match self.describe(generation)? {
            Named::Nothing => BTreeSet::new(),
            Named::Alias(indices) => {
                if let Some((index, _)) = indices.iter().find(|(index, ours)| !**ours || !is_of(generation, index)) {
                    return Err(conflict(format!(
                        "the alias \"{generation}\" points to index \"{index}\", which is none that pg_fanout made for it"
                    )));
                }
                indices.into_keys().collect()
            }
            Named::Index { .. } | Named::DataStream => {
                return Err(conflict(format!("\"{generation}\" is an index, so it can't be an alias")));
            }
        };
        let mut unfit = Vec::new();
        if !present.is_empty() {
            unfit = self.extend_mapping(generation, &body["mappings"])?;
        }
        let further = &body["aliases"];
        let mut body = index_body(body, alias, is_served);
        if is_served {
            // There is not one that writes by the alias would go to.
            body["aliases"][alias] = json!({});
        }
        body["aliases"][generation] = json!({});
        let mut made = BTreeSet::new();
        for index in wanted.iter().filter(|index| !present.contains(*index)) {
            self.forget_check(index);
            let reply = self.http.send(&Request::new(Method::PUT, &format!("/{}", segment(index))).json(&body))?;
            if (200..300).contains(&reply.status) {
                made.insert(index.clone());
            } else if already_exists(&reply) {
                // Made by us, but somebody took it out of the alias, or put another in its place.
                self.must_be_ours(index)?;
                self.point_alias(generation, &[], &[index], Writes::Nowhere, (&Value::Null, &[]))?;
            } else {
                return Err(refusal(&reply));
            }
        }
        present.extend(wanted.iter().cloned());
        let left_out: Vec<&str> = present
            .iter()
            .filter(|index| !made.contains(*index) && !served.contains(index))
            .map(String::as_str)
            .collect();
        if is_served && !left_out.is_empty() {
            self.point_alias(alias, &[], &left_out, Writes::Nowhere, (further, &[]))?;
        }
        Ok(Periods { present, made, unfit })
    }
}

/// Whether an index is one of a generation's, by its name.
pub(super) fn is_of(generation: &str, index: &str) -> bool {
    index.strip_prefix(generation).is_some_and(|rest| rest.starts_with('-'))
}
