//! `fanout.wait()`: until all that was committed before the call is in the target.

use crate::capture;
use crate::catalog::{self, version};
use crate::error::{failure, not_null};
use crate::worker::shared::{self, SyncState, WorkerState};
use pgrx::prelude::*;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How often a waiter looks whether the sync can still get there.
const LOOK_MS: i64 = 500;

/// Returns when all that was committed before the call is searchable (index) or cached (Redis). Raises 57014 after
/// `timeout`, and 55000 if the sync cannot get there: paused, parked, blocked, or no worker.
#[pg_extern(schema = "fanout", volatile, parallel_unsafe)]
fn wait(sync: Option<&str>, timeout: default!(Option<Interval>, "'30 seconds'")) {
    let name = not_null("sync", sync);
    let limit =
        timeout.map(|interval| Duration::from_micros(u64::try_from(interval.as_micros().max(0)).unwrap_or(u64::MAX)));
    let sync = catalog::get(name);
    // SAFETY: privilege look-up by OID on the main thread.
    let readable = unsafe {
        let right = pg_sys::ACL_SELECT as pg_sys::AclMode;
        pg_sys::pg_class_aclcheck(sync.source, pg_sys::GetUserId(), right) == pg_sys::AclResult::ACLCHECK_OK
    };
    if !readable && !super::may_watch(&sync) {
        failure(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("permission denied for sync {name}"))
            .detail("To wait for a sync takes SELECT on its source, or to be its owner.")
            .raise();
    }
    if std::iter::once(sync.id).chain(sync.relations.iter().map(|relation| relation.id)).any(capture::has_captured) {
        failure(
            PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            format!("fanout.wait() cannot wait for what this transaction itself has written for sync \"{name}\""),
        )
        .detail("A change is delivered after its commit.")
        .hint("Commit first, then call fanout.wait() in a transaction of its own.")
        .raise();
    }
    catalog::require_preloaded();
    let Some(database) = shared::database() else { no_slot() };
    // The worker makes the slot; a sync that was committed a moment ago has none yet.
    let began = Instant::now();
    let left = |began: Instant| limit.map(|limit| limit.saturating_sub(began.elapsed()));
    let ticket = shared::ticket();
    loop {
        let slot = shared::sync_slot(sync.id, true);
        if slot.is_some_and(|slot| slot.reached(ticket)) {
            break;
        }
        let now = catalog::get(name);
        let stuck = if let Some(why) = now.parked() {
            Some(why)
        } else if now.paused {
            Some("it is paused".to_owned())
        } else if let Some(why) = version::difference() {
            Some(why)
        } else {
            // Resumed: it is about to be tried again.
            slot.filter(|slot| slot.state() == SyncState::Blocked && !slot.resumed.load(Relaxed))
                .map(|slot| format!("it is blocked: {}", slot.error().map_or_else(String::new, |error| error.0)))
        };
        if let Some(why) = stuck {
            failure(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("sync \"{name}\" does not get there: {why}"),
            )
            .hint("See fanout.status.")
            .raise();
        }
        let left = left(began);
        if left == Some(Duration::ZERO) {
            let waiting = database.state() == WorkerState::WaitingForSlot;
            let state = slot.map_or("waiting", |slot| slot.state().as_str());
            failure(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, format!("fanout.wait() timed out for sync \"{name}\""))
                .detail(if waiting {
                    "The database waits for a worker slot (max_worker_processes, fanout.max_workers).".into()
                } else {
                    let error = slot.and_then(|slot| slot.error()).map_or_else(|| "none".into(), |error| error.0);
                    format!("The sync is {state}; its last error: {error}.")
                })
                .hint("Give a longer timeout, or see fanout.status.")
                .raise();
        }
        let sleep = left.map_or(LOOK_MS, |left| (left.as_millis() as i64).clamp(1, LOOK_MS));
        database.sleep_as_waiter(sleep);
    }
    database.stop_waiting();
    if let Some(slot) = shared::sync_slot(sync.id, false) {
        let letters = slot.dead_letters.load(std::sync::atomic::Ordering::Relaxed);
        if letters > 0 {
            failure(PgSqlErrorCode::ERRCODE_WARNING, format!("sync \"{name}\" has {letters} dead letter(s)"))
                .detail("These rows are not in the target as they are in the table.")
                .hint("See fanout.dead_letters, and fanout.retry().")
                .warn();
        }
    }
}

fn no_slot() -> ! {
    failure(PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, "no worker can serve this database")
        .detail(format!(
            "There are syncs in {} databases of this server, and no more can have some.",
            shared::MAX_DATABASES
        ))
        .hint("Drop the extension, or the database, where syncs are no longer needed.")
        .raise()
}
