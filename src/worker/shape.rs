//! The shape of a source: which tables its rows stand in, in which files, and with which columns.
//!
//! Some statements change what a source holds, or what its documents look like, without any trigger seeing a row: ATTACH,
//! DETACH, DROP and TRUNCATE of a partition, INHERIT and NO INHERIT, a rewrite by ALTER TABLE, columns that come, go or get
//! another name. All of them change the shape and send a relcache invalidation. The shape is kept with the sync, so that what happened while
//! no worker was there is noticed too.

use crate::catalog::Sync;
use crate::catalog::acting::{acting_for, privileged};
use crate::catalog::source::Column;
use crate::document::query;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// See the module.
pub struct Shape {
    /// The source and its related tables, each with what stands below it.
    roots: Vec<Root>,
    /// What the catalog says of the capture triggers on the source and on each related table, hashed, by what they capture for.
    triggers: BTreeMap<String, i64>,
    /// Tables of these whose rows no enabled trigger captures.
    uncaptured: Vec<u32>,
    /// Names and types of the columns that documents are made of, hashed.
    columns: i64,
}

struct Root {
    oid: u32,
    members: Vec<Member>,
}

struct Member {
    oid: u32,
    /// Number of its file; another one after TRUNCATE or a rewrite. A partitioned table has none.
    file: u32,
    /// When it was put in: another number after it was taken out and put in again, unseen by us.
    link: i64,
    /// Without a row: what comes into it later is captured.
    empty: bool,
}

impl Member {
    fn identity(&self) -> Value {
        json!([self.file, self.link])
    }
}

impl Shape {
    /// The shape of a sync's source as it is now. Within a transaction.
    pub fn read(sync: &Sync) -> Self {
        let mut roots: Vec<pg_sys::Oid> = sync.relations.iter().map(|relation| relation.source).collect();
        roots.push(sync.source);
        roots.sort_unstable_by_key(|root| root.to_u32());
        roots.dedup();
        let columns = columns(sync, &roots);
        let roots = roots.into_iter().map(|root| Root { oid: root.to_u32(), members: members(root) }).collect();
        let mut known = BTreeMap::new();
        let mut uncaptured = Vec::new();
        for (root, relation) in sync.captured() {
            let (hash, tables) = triggers(root, &sync.name, relation);
            known.insert(relation.map_or_else(|| String::from("source"), |relation| relation.to_string()), hash);
            uncaptured.extend(tables);
        }
        uncaptured.sort_unstable();
        uncaptured.dedup();
        Self { roots, triggers: known, uncaptured, columns }
    }

    /// True if some rows of the source are not captured: the trigger was dropped or disabled.
    pub fn is_uncaptured(&self) -> bool {
        !self.uncaptured.is_empty()
    }

    /// All tables that belong to it.
    pub fn tables(&self) -> impl Iterator<Item = pg_sys::Oid> {
        let each = self.roots.iter().flat_map(|root| root.members.iter().map(|member| member.oid).chain([root.oid]));
        each.map(pg_sys::Oid::from)
    }

    /// True if one of the tables was a part of it before.
    pub fn knew(before: &Value, tables: &[pg_sys::Oid]) -> bool {
        let roots = before["tables"].as_object();
        roots
            .into_iter()
            .flat_map(Map::values)
            .any(|root| tables.iter().any(|table| !root[table.to_u32().to_string()].is_null()))
    }

    /// What changed since `before` that no trigger has seen.
    pub fn change(&self, before: &Value) -> Option<&'static str> {
        if before["columns"] != self.columns {
            return Some("columns were added, dropped, renamed or retyped");
        }
        // Whoever disabled one may have enabled it again since.
        let was_captured = |oid: &Value| self.uncaptured.iter().any(|&known| *oid == known);
        // Those of a relation that is new are new, too.
        let altered = |(of, &now): (&String, &i64)| before["triggers"].get(of).is_some_and(|known| *known != now);
        if self.triggers.iter().any(altered)
            || !before["uncaptured"].as_array().is_some_and(|before| before.iter().all(was_captured))
        {
            return Some("its triggers were altered");
        }
        for root in &self.roots {
            // A relation that is new was delivered when it was made.
            let Some(known) = before["tables"][root.oid.to_string()].as_object() else { continue };
            let now: Map<String, Value> =
                root.members.iter().map(|member| (member.oid.to_string(), member.identity())).collect();
            if known.keys().any(|oid| !now.contains_key(oid)) {
                return Some("a partition, or a table that inherited, was taken out or dropped");
            }
            if known.iter().any(|(oid, file)| now[oid] != *file) {
                return Some("it, or a part of it, was truncated, rewritten, or taken out and put in again");
            }
            let attached = |member: &&Member| !member.empty && !known.contains_key(&member.oid.to_string());
            if root.members.iter().any(|member| attached(&member)) {
                return Some("a partition, or a table that inherits, was put in");
            }
        }
        None
    }

    /// What is kept of a sync whose triggers are about to be made anew: `before`, without what it says of these. As it is where
    /// something has changed that the worker has yet to look at. Within a transaction.
    pub fn without_triggers(sync: &Sync, mut before: Value) -> Value {
        let now = privileged(|| Self::read(sync));
        if now.change(&before).is_none() {
            before["triggers"] = json!({});
        }
        before
    }

    /// What is kept of it.
    pub fn to_json(&self) -> Value {
        let files = |root: &Root| -> Map<String, Value> {
            root.members.iter().map(|member| (member.oid.to_string(), member.identity())).collect()
        };
        let tables: Map<String, Value> =
            self.roots.iter().map(|root| (root.oid.to_string(), files(root).into())).collect();
        json!({"columns": self.columns, "triggers": self.triggers, "uncaptured": self.uncaptured, "tables": tables})
    }
}

/// The tables with rows at and below one.
fn members(root: pg_sys::Oid) -> Vec<Member> {
    // What is being detached is not read any more, though its row of pg_inherits is still there.
    let sql = "WITH RECURSIVE tree(relid, link) AS (\
            SELECT $1::pg_catalog.oid, 0::bigint \
            UNION SELECT i.inhrelid, i.xmin::text::bigint FROM pg_catalog.pg_inherits AS i, tree \
                WHERE i.inhparent = tree.relid AND NOT i.inhdetachpending) \
        SELECT c.oid, pg_catalog.pg_relation_filenode(c.oid), pg_catalog.pg_relation_size(c.oid, 'main'), \
            sum(tree.link)::bigint \
        FROM tree JOIN pg_catalog.pg_class AS c ON c.oid = tree.relid WHERE c.relkind IN ('r', 'm', 'p') GROUP BY c.oid";
    Spi::connect(|client| {
        client
            .select(sql, None, &[root.into()])?
            .map(|row| {
                Ok(Member {
                    oid: row.get::<pg_sys::Oid>(1)?.unwrap_or(pg_sys::InvalidOid).to_u32(),
                    file: row.get::<pg_sys::Oid>(2)?.unwrap_or(pg_sys::InvalidOid).to_u32(),
                    empty: row.get::<i64>(3)?.unwrap_or(0) == 0,
                    link: row.get(4)?.unwrap_or(0),
                })
            })
            .collect::<Result<Vec<_>, pgrx::spi::Error>>()
    })
    .unwrap_or_else(|error| error!("cannot look at the source of a sync: {error}"))
}

/// See the fields of [`Shape`].
fn triggers(root: pg_sys::Oid, sync: &str, relation: Option<i32>) -> (i64, Vec<u32>) {
    let sql = "WITH RECURSIVE tree(relid) AS (\
            SELECT $1::pg_catalog.oid \
            UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i, tree \
                WHERE i.inhparent = tree.relid AND NOT i.inhdetachpending), \
        captures AS (SELECT t.oid, t.tgrelid, t.tgenabled, t.tgtype, t.xmin FROM pg_catalog.pg_trigger AS t \
            JOIN tree ON tree.relid = t.tgrelid \
            JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid \
            JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace \
            WHERE n.nspname = 'fanout' AND p.proname = 'capture' \
                AND t.tgargs = pg_catalog.convert_to($2, pg_catalog.getdatabaseencoding()) || '\\x00'::pg_catalog.bytea \
                    || coalesce(pg_catalog.convert_to($3, 'UTF8') || '\\x00'::pg_catalog.bytea, '')) \
        SELECT (SELECT pg_catalog.hashtextextended(coalesce(pg_catalog.string_agg(\
                pg_catalog.concat_ws(' ', t.oid, t.tgenabled, t.xmin), ', ' ORDER BY t.oid), ''), 0) \
                FROM captures AS t WHERE t.tgrelid = $1), \
            ARRAY(SELECT c.oid FROM tree JOIN pg_catalog.pg_class AS c ON c.oid = tree.relid \
                WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't' AND NOT EXISTS (\
                    SELECT FROM captures AS t WHERE t.tgrelid = c.oid AND t.tgenabled IN ('A', 'O') AND t.tgtype & 1 = 1) \
                ORDER BY c.oid)";
    let (hash, tables) = Spi::connect(|client| {
        let number = relation.map(|relation| relation.to_string());
        let row = client.select(sql, None, &[root.into(), sync.into(), number.into()])?.first();
        row.get_two::<i64, Vec<pg_sys::Oid>>()
    })
    .unwrap_or_else(|error| error!("cannot look at the triggers of a source: {error}"));
    (hash.unwrap_or(0), tables.unwrap_or_default().into_iter().map(pg_sys::Oid::to_u32).collect())
}

/// The columns of the source; of a query those that it yields, and where it uses rows as a whole those of all its tables.
fn columns(sync: &Sync, roots: &[pg_sys::Oid]) -> i64 {
    let (yielded, tables) = match sync.document_query() {
        None => (String::new(), vec![sync.source]),
        Some(document) => {
            let described = acting_for(sync, || query::describe(document, &[]));
            let text =
                |column: &Column| format!("{} {} {}", column.name, column.type_oid.to_u32(), column.type_modifier);
            let yielded: Vec<String> = described.columns.iter().map(text).collect();
            (yielded.join(", "), if described.whole_rows { roots.to_vec() } else { Vec::new() })
        }
    };
    let sql = "SELECT pg_catalog.hashtextextended($2 || coalesce(pg_catalog.string_agg(\
            pg_catalog.concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod), ', ' ORDER BY a.attrelid, a.attnum), ''), 0) \
        FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped";
    Spi::connect(|client| client.select(sql, None, &[tables.into(), yielded.into()])?.first().get_one::<i64>())
        .unwrap_or_else(|error| error!("cannot look at the columns of a source: {error}"))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(columns: i64, members: &[(u32, u32, bool)]) -> Shape {
        let members = members.iter().map(|&(oid, file, empty)| Member { oid, file, link: 5, empty }).collect();
        let triggers = BTreeMap::from([("source".to_owned(), 3)]);
        Shape { roots: vec![Root { oid: 7, members }], triggers, uncaptured: Vec::new(), columns }
    }

    #[test]
    fn what_no_trigger_sees_is_a_change() {
        let before = shape(1, &[(10, 10, false), (11, 11, true)]).to_json();
        let changed = |now: Shape| now.change(&before).is_some();
        assert!(!changed(shape(1, &[(10, 10, false), (11, 11, false)])), "rows that came in");
        assert!(!changed(shape(1, &[(10, 10, false), (11, 11, true), (12, 12, true)])), "a new partition, empty");
        let same = || shape(1, &[(10, 10, false), (11, 11, true)]);
        let with = |of: &str, hash: i64| {
            let mut shape = same();
            shape.triggers.insert(of.to_owned(), hash);
            shape
        };
        assert!(changed(Shape { uncaptured: vec![7], ..with("source", 4) }), "a trigger");
        assert!(!changed(with("12", 5)), "a relation more");
        let related = with("12", 5).to_json();
        assert!(with("12", 6).change(&related).is_some(), "a trigger of a related table");
        assert!(same().change(&related).is_none(), "a relation less");
        let more = Shape { uncaptured: vec![7], ..shape(1, &[(10, 10, false), (11, 11, true)]) };
        assert!(!changed(more), "from now on nothing is captured: there is nothing to find yet");
        assert!(changed(shape(2, &[(10, 10, false), (11, 11, true)])), "columns");
        assert!(changed(shape(1, &[(10, 10, false)])), "detached");
        assert!(changed(shape(1, &[(10, 13, true), (11, 11, true)])), "truncated");
        assert!(changed(shape(1, &[(10, 10, false), (11, 11, true), (12, 12, false)])), "attached");
    }
}
