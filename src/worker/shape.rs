//! The shape of a source: which tables its rows stand in, in which files, and with which columns.
//!
//! Some statements change what a source holds, or what its documents look like, without any trigger seeing a row: ATTACH,
//! DETACH, DROP and TRUNCATE of a partition, a rewrite by ALTER TABLE, columns that come, go or get another name. All of
//! them change the shape and send a relcache invalidation. The shape is kept with the sync, so that what happened while
//! no worker was there is noticed too.

use crate::catalog::Sync;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::{Map, Value, json};

/// See the module.
pub struct Shape {
    /// The source and its related tables, each with what stands below it.
    roots: Vec<Root>,
    /// What the catalog says of the capture triggers on the source, hashed.
    triggers: i64,
    /// Tables of the source whose rows no enabled trigger captures.
    uncaptured: Vec<u32>,
    /// Names and types of the source's columns, hashed; None if a query makes the documents, which names its columns.
    columns: Option<i64>,
}

struct Root {
    oid: u32,
    members: Vec<Member>,
}

struct Member {
    oid: u32,
    /// Number of its file; another one after TRUNCATE or a rewrite. A partitioned table has none.
    file: u32,
    /// Without a row: what comes into it later is captured.
    empty: bool,
}

impl Shape {
    /// The shape of a sync's source as it is now. Within a transaction.
    pub fn read(sync: &Sync) -> Self {
        let mut roots: Vec<pg_sys::Oid> = sync.relations.iter().map(|relation| relation.source).collect();
        roots.push(sync.source);
        roots.sort_unstable_by_key(|root| root.to_u32());
        roots.dedup();
        let columns = sync.document_query().is_none().then(|| columns(sync.source));
        let roots = roots.into_iter().map(|root| Root { oid: root.to_u32(), members: members(root) }).collect();
        let (triggers, uncaptured) = triggers(sync);
        Self { roots, triggers, uncaptured, columns }
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

    /// What changed since `before` that no trigger has seen.
    pub fn change(&self, before: &Value) -> Option<&'static str> {
        if self.columns.is_some() && before["columns"] != json!(self.columns) {
            return Some("columns were added, dropped, renamed or retyped");
        }
        // Whoever disabled one may have enabled it again since.
        let was_captured = |oid: &Value| self.uncaptured.iter().any(|&known| *oid == known);
        if before["triggers"] != self.triggers
            || !before["uncaptured"].as_array().is_some_and(|before| before.iter().all(was_captured))
        {
            return Some("its triggers were altered");
        }
        for root in &self.roots {
            // A relation that is new was delivered when it was made.
            let Some(known) = before["tables"][root.oid.to_string()].as_object() else { continue };
            let now: Map<String, Value> =
                root.members.iter().map(|member| (member.oid.to_string(), member.file.into())).collect();
            if known.keys().any(|oid| !now.contains_key(oid)) {
                return Some("a partition was detached or dropped");
            }
            if known.iter().any(|(oid, file)| now[oid] != *file) {
                return Some("it, or a part of it, was truncated or rewritten");
            }
            let attached = |member: &&Member| !member.empty && !known.contains_key(&member.oid.to_string());
            if root.members.iter().any(|member| attached(&member)) {
                return Some("a partition was attached");
            }
        }
        None
    }

    /// What is kept of it.
    pub fn to_json(&self) -> Value {
        let files = |root: &Root| -> Map<String, Value> {
            root.members.iter().map(|member| (member.oid.to_string(), member.file.into())).collect()
        };
        let tables: Map<String, Value> =
            self.roots.iter().map(|root| (root.oid.to_string(), files(root).into())).collect();
        json!({"columns": self.columns, "triggers": self.triggers, "uncaptured": self.uncaptured, "tables": tables})
    }
}

/// The tables with rows at and below one.
fn members(root: pg_sys::Oid) -> Vec<Member> {
    // What is being detached is not read any more, though its row of pg_inherits is still there.
    let sql = "WITH RECURSIVE tree(relid) AS (\
            SELECT $1::pg_catalog.oid \
            UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i, tree \
                WHERE i.inhparent = tree.relid AND NOT i.inhdetachpending) \
        SELECT c.oid, pg_catalog.pg_relation_filenode(c.oid), pg_catalog.pg_relation_size(c.oid, 'main') \
        FROM tree JOIN pg_catalog.pg_class AS c ON c.oid = tree.relid WHERE c.relkind IN ('r', 'm', 'p')";
    Spi::connect(|client| {
        client
            .select(sql, None, &[root.into()])?
            .map(|row| {
                Ok(Member {
                    oid: row.get::<pg_sys::Oid>(1)?.unwrap_or(pg_sys::InvalidOid).to_u32(),
                    file: row.get::<pg_sys::Oid>(2)?.unwrap_or(pg_sys::InvalidOid).to_u32(),
                    empty: row.get::<i64>(3)?.unwrap_or(0) == 0,
                })
            })
            .collect::<Result<Vec<_>, pgrx::spi::Error>>()
    })
    .unwrap_or_else(|error| error!("cannot look at the source of a sync: {error}"))
}

/// See the fields of [`Shape`]. A table that inherits without being a partition has no trigger, by design of PostgreSQL.
fn triggers(sync: &Sync) -> (i64, Vec<u32>) {
    let sql = "WITH RECURSIVE tree(relid) AS (            SELECT $1::pg_catalog.oid             UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i, tree                 WHERE i.inhparent = tree.relid AND NOT i.inhdetachpending),         captures AS (SELECT t.oid, t.tgrelid, t.tgenabled, t.tgtype, t.xmin FROM pg_catalog.pg_trigger AS t             JOIN tree ON tree.relid = t.tgrelid             JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid \
            JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace \
            WHERE n.nspname = 'fanout' AND p.proname = 'capture' \
                AND t.tgargs = pg_catalog.convert_to($2, pg_catalog.getdatabaseencoding()) || '\\x00'::pg_catalog.bytea) \
        SELECT (SELECT pg_catalog.hashtextextended(coalesce(pg_catalog.string_agg(\
                pg_catalog.concat_ws(' ', t.oid, t.tgenabled, t.xmin), ', ' ORDER BY t.oid), ''), 0) \
                FROM captures AS t WHERE t.tgrelid = $1), \
            ARRAY(SELECT c.oid FROM tree JOIN pg_catalog.pg_class AS c ON c.oid = tree.relid \
                WHERE c.relkind IN ('r', 'p') AND (c.oid = $1 OR c.relispartition) AND NOT EXISTS (\
                    SELECT FROM captures AS t WHERE t.tgrelid = c.oid AND t.tgenabled IN ('A', 'O') AND t.tgtype & 1 = 1) \
                ORDER BY c.oid)";
    let (hash, tables) = Spi::connect(|client| {
        let row = client.select(sql, None, &[sync.source.into(), sync.name.as_str().into()])?.first();
        row.get_two::<i64, Vec<pg_sys::Oid>>()
    })
    .unwrap_or_else(|error| error!("cannot look at the triggers of a source: {error}"));
    (hash.unwrap_or(0), tables.unwrap_or_default().into_iter().map(pg_sys::Oid::to_u32).collect())
}

fn columns(source: pg_sys::Oid) -> i64 {
    let sql = "SELECT pg_catalog.hashtextextended(coalesce(pg_catalog.string_agg(\
            pg_catalog.concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum), ''), 0) \
        FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped";
    Spi::connect(|client| client.select(sql, None, &[source.into()])?.first().get_one::<i64>())
        .unwrap_or_else(|error| error!("cannot look at the columns of a source: {error}"))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(columns: i64, members: &[(u32, u32, bool)]) -> Shape {
        let members = members.iter().map(|&(oid, file, empty)| Member { oid, file, empty }).collect();
        Shape { roots: vec![Root { oid: 7, members }], triggers: 3, uncaptured: Vec::new(), columns: Some(columns) }
    }

    #[test]
    fn what_no_trigger_sees_is_a_change() {
        let before = shape(1, &[(10, 10, false), (11, 11, true)]).to_json();
        let changed = |now: Shape| now.change(&before).is_some();
        assert!(!changed(shape(1, &[(10, 10, false), (11, 11, false)])), "rows that came in");
        assert!(!changed(shape(1, &[(10, 10, false), (11, 11, true), (12, 12, true)])), "a new partition, empty");
        let disabled = Shape { triggers: 4, uncaptured: vec![7], ..shape(1, &[(10, 10, false), (11, 11, true)]) };
        assert!(changed(disabled), "a trigger");
        let more = Shape { uncaptured: vec![7], ..shape(1, &[(10, 10, false), (11, 11, true)]) };
        assert!(!changed(more), "from now on nothing is captured: there is nothing to find yet");
        assert!(changed(shape(2, &[(10, 10, false), (11, 11, true)])), "columns");
        assert!(changed(shape(1, &[(10, 10, false)])), "detached");
        assert!(changed(shape(1, &[(10, 13, true), (11, 11, true)])), "truncated");
        assert!(changed(shape(1, &[(10, 10, false), (11, 11, true), (12, 12, false)])), "attached");
    }
}
