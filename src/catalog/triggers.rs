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
/// own name: PostgreSQL doesn't clone statement triggers. Of tables that inherit without being partitions it clones none:
/// these get triggers of their own, [`follow_heirs`].
pub fn create(table: &Table, sync: &str, relation: Option<i32>) {
    if !table.has_triggers() {
        return;
    }
    let placed = placed(sync, relation);
    put(table, sync, relation, &placed, None);
    take_along(table, sync, relation, &placed);
}

/// Creates the triggers that the table lacks, as the current role or as another.
fn put(table: &Table, sync: &str, relation: Option<i32>, placed: &[Placed], creator: Option<pg_sys::Oid>) {
    let (row, truncate) = trigger_names(sync, relation);
    let arguments = relation
        .map_or_else(|| literal(sync), |relation| format!("{}, {}", literal(sync), literal(&relation.to_string())));
    let has = |name: &str| placed.iter().any(|trigger| trigger.table == table.oid && trigger.name == name);
    let relation = table.quoted();
    let mut create = Vec::new();
    if !has(&row) {
        create.push(format!(
            "CREATE TRIGGER {} AFTER INSERT OR UPDATE OR DELETE ON {relation} FOR EACH ROW EXECUTE FUNCTION fanout.capture({})",
            quoted(&row),
            arguments
        ));
    }
    if !has(&truncate) {
        create.push(format!(
            "CREATE TRIGGER {} AFTER TRUNCATE ON {relation} FOR EACH STATEMENT EXECUTE FUNCTION fanout.capture({})",
            quoted(&truncate),
            arguments
        ));
    }
    match creator {
        None => run(&create),
        Some(role) => acting_as(role, || run(&create)),
    }
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

/// Puts triggers on what inherits from the table, and takes them from what does no more: as the owners of those tables, one
/// of whom has made it so. A trigger of ours tells nothing that whoever reads the parent cannot read.
fn take_along(table: &Table, sync: &str, relation: Option<i32>, placed: &[Placed]) -> Vec<pg_sys::Oid> {
    let mut given = Vec::new();
    for heir in table.heirs.iter().filter_map(|&heir| Table::find(heir)) {
        if placed.iter().filter(|trigger| trigger.table == heir.oid).count() < 2 {
            put(&heir, sync, relation, placed, Some(heir.owner));
            given.push(heir.oid);
        }
    }
    if !table.is_partitioned() {
        let (row, truncate) = trigger_names(sync, relation);
        let left = |trigger: &Placed| trigger.table != table.oid && !table.heirs.contains(&trigger.table);
        // What was put elsewhere by hand has another name.
        drop_where(placed, |trigger| left(trigger) && (trigger.name == row || trigger.name == truncate));
    }
    given
}

/// What [`create`] does for the tables that inherit from those of a sync, once more: some may have come, and some gone. Gives
/// those that lacked a trigger.
pub fn follow_heirs(sync: &Sync) -> Vec<pg_sys::Oid> {
    let mut given = Vec::new();
    for (root, relation) in sync.captured() {
        let placed = placed(&sync.name, relation);
        let Some(table) = Table::find(root) else { continue };
        // Where the root itself has lost its trigger, that is for its owner to put right.
        if table.has_triggers() && placed.iter().any(|trigger| trigger.table == root) {
            given.extend(take_along(&table, &sync.name, relation, &placed));
        }
    }
    given
}

/// Drops every trigger that captures for the sync, or for the relation of it, on `table` and what inherits from it, those put
/// there by hand too.
pub fn drop_all(table: &Table, sync: &str, relation: Option<i32>) {
    if table.has_triggers() {
        drop_where(&placed(sync, relation), |_| true);
    }
}

/// The triggers that capture for the sync, or for the relation of it, and were put on some table by hand: their names, and
/// of what they are.
pub fn by_hand(sync: &str, relation: Option<i32>) -> Vec<(String, String)> {
    let (row, truncate) = trigger_names(sync, relation);
    let other = |trigger: &Placed| trigger.name != row && trigger.name != truncate;
    let table = |oid| Table::find(oid).map(|table| table.quoted()).unwrap_or_default();
    let placed = placed(sync, relation).into_iter().filter(other);
    placed.map(|trigger| (trigger.name, table(trigger.table))).collect()
}

fn drop_where(placed: &[Placed], which: impl Fn(&Placed) -> bool) {
    for trigger in placed.iter().filter(|trigger| which(trigger)) {
        let Some(table) = Table::find(trigger.table) else { continue };
        let command = format!("DROP TRIGGER IF EXISTS {} ON {}", quoted(&trigger.name), table.quoted());
        acting_as(table.owner, || run(&[command]));
    }
}

/// What is wrong with all triggers of a sync, those on related tables too; empty if nothing is.
pub fn wrong(sync: &Sync) -> Vec<String> {
    sync.captured()
        .flat_map(|(table, relation)| match Table::find(table) {
            Some(table) => health(&table, &sync.name, relation),
            None => vec![format!("a table with OID {} was dropped", table.to_u32())],
        })
        .collect()
}

/// What is wrong with the triggers of a sync on a table, its source or that of a relation; empty if nothing is.
fn health(table: &Table, sync: &str, relation: Option<i32>) -> Vec<String> {
    /// A trigger, on the table or a part of it.
    struct Found {
        table: pg_sys::Oid,
        of: String,
        name: String,
        enabled: String,
        of_rows: bool,
    }
    let (row, truncate) = trigger_names(sync, relation);
    // Row triggers are cloned to partitions, where they can be disabled one by one.
    let found = privileged(|| {
        ours(Spi::connect(|client| -> Result<Vec<Found>, pgrx::spi::Error> {
            client
                .select(
                    &format!(
                        "WITH RECURSIVE tree(relid) AS (
                         SELECT $3::pg_catalog.oid
                         UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.relid)
                     SELECT t.tgrelid, t.tgrelid::pg_catalog.regclass::text, t.tgname::text, t.tgenabled::text,
                         (t.tgtype & 1) = 1
                     FROM tree JOIN pg_catalog.pg_trigger t ON t.tgrelid = tree.relid WHERE {CAPTURES}"
                    ),
                    None,
                    &[sync.into(), relation.map(|relation| relation.to_string()).into(), table.oid.into()],
                )?
                .map(|known| {
                    Ok(Found {
                        table: known.get(1)?.unwrap_or(pg_sys::InvalidOid),
                        of: known.get(2)?.unwrap_or_default(),
                        name: known.get(3)?.unwrap_or_default(),
                        enabled: known.get(4)?.unwrap_or_default(),
                        of_rows: known.get(5)?.unwrap_or_default(),
                    })
                })
                .collect()
        }))
    });
    let mut wrong = Vec::new();
    for (name, of_rows) in [(&row, true), (&truncate, false)] {
        let lacks = |oid: pg_sys::Oid| !found.iter().any(|trigger| trigger.of_rows == of_rows && trigger.table == oid);
        if lacks(table.oid) {
            wrong.push(format!("trigger {name} is missing"));
        }
        for heir in table.heirs.iter().filter(|&&heir| lacks(heir)).filter_map(|&heir| Table::find(heir)) {
            wrong.push(format!("trigger {name} of {} is missing", heir.quoted()));
        }
    }
    for Found { of, name, enabled, .. } in &found {
        match enabled.as_str() {
            "A" => {}
            "D" => wrong.push(format!("trigger {name} of {of} is disabled")),
            "R" => wrong.push(format!("trigger {name} of {of} fires for replicas only")),
            _ => wrong.push(format!("trigger {name} of {of} does not fire where session_replication_role is replica")),
        }
    }
    wrong
}

/// Condition on a trigger `t`: it calls `fanout.capture` with the name of the sync $1, and the number of the relation $2.
const CAPTURES: &str = "t.tgfoid IN (
        SELECT p.oid FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname = 'fanout' AND p.proname = 'capture')
    AND t.tgargs = pg_catalog.convert_to($1, pg_catalog.getdatabaseencoding()) || '\\x00'::pg_catalog.bytea
        || coalesce(pg_catalog.convert_to($2, 'UTF8') || '\\x00'::pg_catalog.bytea, '')";

/// A trigger of a sync, or of a relation of it, that is no clone of another.
struct Placed {
    table: pg_sys::Oid,
    name: String,
}

/// The triggers that call `fanout.capture` with the sync's name, and the relation's number, on whichever tables; in the order
/// of these.
fn placed(sync: &str, relation: Option<i32>) -> Vec<Placed> {
    privileged(|| {
        ours(Spi::connect(|client| -> Result<Vec<Placed>, pgrx::spi::Error> {
            client
                .select(
                    &format!(
                        "SELECT t.tgrelid, t.tgname::text FROM pg_catalog.pg_trigger t
                         WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND {CAPTURES} ORDER BY t.tgrelid"
                    ),
                    None,
                    &[sync.into(), relation.map(|relation| relation.to_string()).into()],
                )?
                .map(|row| {
                    Ok(Placed {
                        table: row.get(1)?.unwrap_or(pg_sys::InvalidOid),
                        name: row.get(2)?.unwrap_or_default(),
                    })
                })
                .collect()
        }))
    })
}
