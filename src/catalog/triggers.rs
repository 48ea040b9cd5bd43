//! The triggers of a sync on its source.
//!
//! The caller creates them with the caller's own rights. What needs the table's owner beyond that (ENABLE ALWAYS, DEPENDS
//! ON EXTENSION, and dropping them again) is done as the owner: it concerns our own triggers only.

use crate::catalog::acting::{acting_as, privileged};
use crate::catalog::naming::trigger_names;
use crate::catalog::source::Table;
use crate::catalog::{Sync, ours};
use crate::server::quoted;
use pgrx::{Spi, pg_sys};

/// A string as SQL text needs it.
fn literal(text: &str) -> String {
    pgrx::spi::quote_literal(text)
}

fn run(commands: &[String]) {
    ours(Spi::connect_mut(|client| -> Result<(), pgrx::spi::Error> {
        for command in commands {
            client.update(command, None, &[])?;
        }
        Ok(())
    }));
}

/// Creates those of the two triggers that `table` lacks, as the current role: for the sync itself or for a relation of it.
///
/// The TRUNCATE trigger of a partitioned table fires for TRUNCATE of the table as a whole, not of a partition by its
/// own name: PostgreSQL doesn't clone statement triggers.
pub fn create(table: &Table, sync: &str, relation: Option<i32>) {
    if !table.has_triggers() {
        return;
    }
    let (row, truncate) = trigger_names(sync, relation);
    let existing = existing(table.oid, sync, relation);
    let arguments = relation
        .map_or_else(|| literal(sync), |relation| format!("{}, {}", literal(sync), literal(&relation.to_string())));
    let has = |name: &str| existing.iter().any(|trigger| trigger == name);
    let relation = table.quoted();
    let mut as_caller = Vec::new();
    if !has(&row) {
        as_caller.push(format!(
            "CREATE TRIGGER {} AFTER INSERT OR UPDATE OR DELETE ON {relation} FOR EACH ROW EXECUTE FUNCTION fanout.capture({})",
            quoted(&row),
            arguments
        ));
    }
    if !has(&truncate) {
        as_caller.push(format!(
            "CREATE TRIGGER {} AFTER TRUNCATE ON {relation} FOR EACH STATEMENT EXECUTE FUNCTION fanout.capture({})",
            quoted(&truncate),
            arguments
        ));
    }
    run(&as_caller);
    // ALWAYS: changes that an apply worker or a session with session_replication_role = replica makes are changes too.
    let as_owner: Vec<String> = [row, truncate]
        .iter()
        .flat_map(|trigger| {
            let trigger = quoted(trigger);
            [
                format!("ALTER TABLE {relation} ENABLE ALWAYS TRIGGER {trigger}"),
                format!("ALTER TRIGGER {trigger} ON {relation} DEPENDS ON EXTENSION pg_fanout"),
            ]
        })
        .collect();
    acting_as(table.owner, || run(&as_owner));
}

/// Drops every trigger on `table` that captures for the sync, or for the relation of it, those put there by hand too.
pub fn drop_all(table: &Table, sync: &str, relation: Option<i32>) {
    if !table.has_triggers() {
        return;
    }
    let name = table.quoted();
    let commands: Vec<String> = existing(table.oid, sync, relation)
        .iter()
        .map(|trigger| format!("DROP TRIGGER IF EXISTS {} ON {name}", quoted(trigger)))
        .collect();
    acting_as(table.owner, || run(&commands));
}

/// What is wrong with all triggers of a sync, those on related tables too; empty if nothing is.
pub fn wrong(sync: &Sync) -> Vec<String> {
    let related = sync.relations.iter().map(|relation| (relation.source, Some(relation.id)));
    std::iter::once((sync.source, None))
        .chain(related)
        .flat_map(|(table, relation)| match Table::find(table) {
            Some(table) => health(&table, &sync.name, relation),
            None => vec![format!("a table with OID {} was dropped", table.to_u32())],
        })
        .collect()
}

/// What is wrong with the triggers of a sync on a table, its source or that of a relation; empty if nothing is.
fn health(table: &Table, sync: &str, relation: Option<i32>) -> Vec<String> {
    let (row, truncate) = trigger_names(sync, relation);
    // Row triggers are cloned to partitions, where they can be disabled one by one.
    let states = privileged(|| {
        ours(Spi::connect(|client| -> Result<Vec<(String, String, String, bool)>, pgrx::spi::Error> {
            let mut found = Vec::new();
            for known in client.select(
                "WITH RECURSIVE tree(relid) AS (
                     SELECT $1::pg_catalog.oid
                     UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.relid)
                 SELECT t.tgrelid::pg_catalog.regclass::text, t.tgname::text, t.tgenabled::text, (t.tgtype & 1) = 1
                 FROM tree JOIN pg_catalog.pg_trigger t ON t.tgrelid = tree.relid
                 JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
                 JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
                 WHERE n.nspname = 'fanout' AND p.proname = 'capture'
                   AND t.tgargs = pg_catalog.convert_to($2, pg_catalog.getdatabaseencoding()) || '\\x00'::pg_catalog.bytea
                       || coalesce(pg_catalog.convert_to($3, 'UTF8') || '\\x00'::pg_catalog.bytea, '')",
                None,
                &[table.oid.into(), sync.into(), relation.map(|relation| relation.to_string()).into()],
            )? {
                found.push((
                    known.get(1)?.unwrap_or_default(),
                    known.get(2)?.unwrap_or_default(),
                    known.get(3)?.unwrap_or_default(),
                    known.get(4)?.unwrap_or_default(),
                ));
            }
            Ok(found)
        }))
    });
    let mut wrong = Vec::new();
    for (name, of_rows) in [(&row, true), (&truncate, false)] {
        if !states.iter().any(|state| state.3 == of_rows) {
            wrong.push(format!("trigger {name} is missing"));
        }
    }
    for (relation, name, enabled, _) in &states {
        match enabled.as_str() {
            "A" => {}
            "D" => wrong.push(format!("trigger {name} of {relation} is disabled")),
            "R" => wrong.push(format!("trigger {name} of {relation} fires for replicas only")),
            _ => wrong
                .push(format!("trigger {name} of {relation} does not fire where session_replication_role is replica")),
        }
    }
    wrong
}

/// The triggers on a table that call `fanout.capture` with the sync's name, and the relation's number.
fn existing(table: pg_sys::Oid, sync: &str, relation: Option<i32>) -> Vec<String> {
    privileged(|| {
        ours(Spi::connect(|client| -> Result<Vec<String>, pgrx::spi::Error> {
            let mut names = Vec::new();
            for row in client.select(
                "SELECT t.tgname::text FROM pg_catalog.pg_trigger t
                 JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
                 JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
                 WHERE t.tgrelid = $1 AND NOT t.tgisinternal AND t.tgparentid = 0
                   AND n.nspname = 'fanout' AND p.proname = 'capture'
                   AND t.tgargs = pg_catalog.convert_to($2, pg_catalog.getdatabaseencoding()) || '\\x00'::pg_catalog.bytea
                       || coalesce(pg_catalog.convert_to($3, 'UTF8') || '\\x00'::pg_catalog.bytea, '')",
                None,
                &[table.into(), sync.into(), relation.map(|relation| relation.to_string()).into()],
            )? {
                names.extend(row.get::<String>(1)?);
            }
            Ok(names)
        }))
    })
}
