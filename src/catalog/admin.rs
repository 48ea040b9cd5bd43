//! `fanout.pause()`, `resume()`, `resync()`, `reconcile()`, `adopt()`, `drop_sync()`: by the sync's owner only.

use crate::catalog::acting::privileged;
use crate::catalog::source::Table;
use crate::catalog::{self, Kind, Phase, Sync, identity, ours, require_preloaded, triggers};
use crate::error::{failure, not_null};
use crate::server::role_name;
use crate::worker::shared;
use pgrx::prelude::*;
use pgrx::{JsonB, Spi, default, pg_sys};
use std::sync::atomic::Ordering::Relaxed;

/// What all deliveries of a sync begin anew with.
pub const ANEW: &str = "request = request + 1, position = NULL, rows_done = 0, rows_total = NULL";

/// The phase in which the target is compared with the source. One that is yet to be made has nothing to be compared with: it
/// is filled anyhow. One that is to be removed stays so.
pub const COMPARED: &str = "phase = CASE WHEN phase IN ('create', 'drop') THEN phase ELSE 'reconcile' END";

/// The phase in which the next index is made behind the alias.
pub const NEXT_INDEX: &str = "phase = 'create', generation = generation + 1";

/// Stops the deliveries of a sync; what changes meanwhile is delivered after fanout.resume().
#[pg_extern(schema = "fanout")]
fn pause(sync: Option<&str>) {
    let sync = owned(not_null("sync", sync));
    update(&sync, "paused = true");
}

/// Goes on with the deliveries of a paused sync, and of one that is left alone because it brought the worker down.
#[pg_extern(schema = "fanout")]
fn resume(sync: Option<&str>) {
    let sync = owned(not_null("sync", sync));
    expect_new_try(&sync);
    update(&sync, "paused = false");
}

/// Until the worker has read the sync anew, that it is blocked says nothing to a waiter.
pub fn expect_new_try(sync: &Sync) {
    if let Some(slot) = shared::sync_slot(sync.id, false) {
        slot.resumed.store(true, Relaxed);
    }
}

/// Delivers everything anew: an index is rebuilt behind its alias; for a cache it is the same as fanout.reconcile().
#[pg_extern(schema = "fanout")]
fn resync(sync: Option<&str>) {
    let sync = not_ending(not_parked(owned(not_null("sync", sync))));
    match sync.kind {
        Kind::Index => {
            // One that is dropped meanwhile is not to come back.
            lock(&sync);
            update(&sync, &format!("{ANEW}, {NEXT_INDEX}"));
        }
        Kind::Cache => start_reconcile(&sync),
    }
}

/// Delivers all keys of the table and all ids of the target.
#[pg_extern(schema = "fanout")]
fn reconcile(sync: Option<&str>) {
    start_reconcile(&not_ending(not_parked(owned(not_null("sync", sync)))));
}

pub fn start_reconcile(sync: &Sync) {
    update(sync, &format!("{ANEW}, {COMPARED}"));
}

/// Makes a sync (NULL: all syncs of the caller) that came here with a dump or a copy one of this database, whoever fed
/// its target before. Returns how many.
#[pg_extern(schema = "fanout")]
fn adopt(sync: default!(Option<&str>, "NULL")) -> i64 {
    require_preloaded();
    let syncs = match sync {
        Some(name) => vec![owned(name)],
        None => ours(privileged(catalog::all)).into_iter().filter(owns).collect(),
    };
    let (ending, living): (Vec<Sync>, Vec<Sync>) = syncs.into_iter().partition(|sync| sync.phase == Phase::Drop);
    let mut tables = Vec::new();
    for (table, sync, relation) in captured(&living) {
        let Some(table) = table else {
            let what = if relation.is_some() { "a related table" } else { "the source" };
            failure(
                PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                format!("{what} of sync \"{}\" does not exist", sync.name),
            )
            .hint("fanout.drop_sync() ends the sync, fanout.drop_related() a relation.")
            .raise();
        };
        table.check_rights(catalog::caller());
        table.lock();
        tables.push((table, sync, relation));
    }
    // One that is dropped meanwhile gets no triggers again.
    for sync in living.iter().chain(&ending) {
        lock(sync);
    }
    for (table, sync, relation) in tables {
        triggers::create(&table, &sync.name, relation);
    }
    // What is to be removed may be fed by who made the dump: only by its name it is taken from that.
    let by_name = sync.is_some();
    let sql = format!(
        "UPDATE fanout.sync SET identity = $2, adopt = $3 OR phase <> 'drop', {ANEW}, {COMPARED} WHERE sync_id = $1"
    );
    for sync in living.iter().chain(&ending) {
        expect_new_try(sync);
        privileged(|| {
            ours(Spi::connect_mut(|client| -> Result<(), pgrx::spi::Error> {
                client.update(&sql, None, &[sync.id.into(), identity().into(), by_name.into()])?;
                Ok(())
            }));
        });
    }
    catalog::changed();
    (living.len() + ending.len()) as i64
}

/// All tables that syncs capture: their sources and those of their relations. In the order of their OIDs, as everybody locks
/// them who locks several, and before the first row of ours.
pub fn captured(syncs: &[Sync]) -> Vec<(Option<Table>, &Sync, Option<i32>)> {
    let mut tables: Vec<(pg_sys::Oid, &Sync, Option<i32>)> =
        syncs.iter().flat_map(|sync| sync.captured().map(move |(table, relation)| (table, sync, relation))).collect();
    tables.sort_by_key(|&(table, _, relation)| (table.to_u32(), relation));
    tables.into_iter().map(|(table, sync, relation)| (Table::find(table), sync, relation)).collect()
}

/// Ends a sync: its triggers, its row, its dead letters. The target stays, unless `drop_target`: then the worker removes
/// the index, or the keys of the template, and the sync goes with it once that is done.
#[pg_extern(schema = "fanout")]
fn drop_sync(sync: Option<&str>, drop_target: default!(Option<bool>, "false")) {
    let drop_target = not_null("drop_target", drop_target);
    let sync = owned(not_null("sync", sync));
    for (table, sync, relation) in captured(std::slice::from_ref(&sync)) {
        // DROP TRIGGER takes ACCESS EXCLUSIVE on the table; only then our own tables are touched.
        if let Some(table) = table {
            triggers::drop_all(&table, &sync.name, relation);
        }
    }
    // Parked: the target is another cluster's, and no worker of ours may touch it.
    let drop_target = drop_target && sync.identity == catalog::identity();
    let mut syncs: Vec<&Sync> = vec![&sync];
    // No other target for it, nor another name for its triggers, from here on.
    lock(&sync);
    // A target that the sync had before and that waits for the present one to be filled has the same lot.
    let former = catalog::serving(&sync);
    if former.id != sync.id {
        syncs.push(&former);
    }
    let sql = if drop_target {
        "UPDATE fanout.sync SET request = request + 1, phase = 'drop', position = NULL, paused = false, successor = NULL \
         WHERE sync_id = $1"
    } else {
        "DELETE FROM fanout.sync WHERE sync_id = $1"
    };
    privileged(|| {
        ours(Spi::connect_mut(|client| -> Result<(), pgrx::spi::Error> {
            for sync in &syncs {
                client.update(sql, None, &[sync.id.into()])?;
            }
            Ok(())
        }));
    });
    catalog::changed();
    if !drop_target {
        syncs.into_iter().for_each(say_what_stays);
    }
}

fn say_what_stays(sync: &Sync) {
    match sync.kind {
        Kind::Index => {
            let behind = if sync.templates().period.is_some() { "the indices behind alias" } else { "index" };
            notice!("{behind} \"{}\" on server \"{}\" stays as it is", sync.concrete_index(), sync.server);
        }
        Kind::Cache => notice!("the keys of sync \"{}\" on server \"{}\" stay as they are", sync.name, sync.server),
    }
}

/// The sync of that name; an ERROR if it isn't the caller's.
pub fn owned(name: &str) -> Sync {
    let sync = catalog::get(name);
    if !owns(&sync) {
        failure(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be owner of sync {name}"))
            .detail(format!("Its owner is role \"{}\".", role_name(sync.owner)))
            .hint("That role, its members and superusers may.")
            .raise();
    }
    sync
}

/// Whether the caller is the sync's owner, a member of that role, or a superuser.
pub fn owns(sync: &Sync) -> bool {
    // SAFETY: a role look-up on the main thread.
    unsafe { pg_sys::has_privs_of_role(catalog::caller(), sync.owner) }
}

/// The sync, unless it is being dropped: its triggers are gone, and its target goes.
pub fn not_ending(sync: Sync) -> Sync {
    if sync.phase == Phase::Drop {
        failure(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("sync \"{}\" is being dropped", sync.name),
        )
        .hint("Its target is removed, and then it is gone from fanout.status; make another sync if one is wanted.")
        .raise();
    }
    sync
}

/// The sync, unless it was made in another cluster or database: then nothing is delivered, and an ERROR says so.
pub fn not_parked(sync: Sync) -> Sync {
    if let Some(why) = sync.parked() {
        failure(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("sync \"{}\" is parked: {why}", sync.name),
        )
        .hint(format!(
            "SELECT fanout.adopt({}) makes it one of this database, if no other is to feed its target.",
            pgrx::spi::quote_literal(&sync.name)
        ))
        .raise();
    }
    sync
}

/// Locks the row of the sync, after the tables that it captures; what the worker stores of the sync, which refers to the row, needs
/// not wait. Whether its target was claimed by now. An ERROR if somebody has
/// altered or dropped the sync, or a relation of it, since it was read: what was made of that would take the other back.
pub fn lock(sync: &Sync) -> bool {
    let sql = "SELECT claimed IS NOT NULL FROM fanout.sync
               WHERE sync_id = $1 AND name = $2 AND target = $3 AND server = $4 AND options = $5 AND (phase = 'drop') = $6 FOR NO KEY UPDATE";
    let claimed = privileged(|| {
        ours(Spi::connect_mut(|client| -> Result<Option<bool>, pgrx::spi::Error> {
            let found = client.update(
                sql,
                None,
                &[
                    sync.id.into(),
                    sync.name.clone().into(),
                    sync.target.clone().into(),
                    sync.server.clone().into(),
                    JsonB(sync.options.clone()).into(),
                    (sync.phase == Phase::Drop).into(),
                ],
            )?;
            if found.is_empty() { Ok(None) } else { found.first().get(1) }
        }))
    });
    // As of now: what came meanwhile has locked the row, too.
    let related = |sync: &Sync| sync.relations.iter().map(|relation| relation.id).collect::<Vec<_>>();
    let is_related = || catalog::find(&sync.name).is_some_and(|now| related(&now) == related(sync));
    claimed.filter(|_| is_related()).unwrap_or_else(|| {
        failure(
            PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            format!("sync \"{}\" was altered, or dropped, at the same time", sync.name),
        )
        .hint("Look at it again, and repeat the call if it is still wanted.")
        .raise()
    })
}

fn update(sync: &Sync, assignments: &str) {
    let sql = format!("UPDATE fanout.sync SET {assignments} WHERE sync_id = $1");
    privileged(|| {
        ours(Spi::connect_mut(|client| -> Result<(), pgrx::spi::Error> {
            client.update(&sql, None, &[sync.id.into()])?;
            Ok(())
        }));
    });
    catalog::changed();
}
