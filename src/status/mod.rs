//! What the worker is doing: `fanout.status`, `fanout.progress`, `fanout.wait()`, `fanout.check()`.

mod check;
mod progress;
mod wait;

use crate::catalog::acting::privileged;
use crate::catalog::{self, Sync, version};
use crate::error::failure;
use crate::worker::shared::{self, SyncState, WorkerState};
use pgrx::prelude::*;
use std::sync::atomic::Ordering::Relaxed;

/// Microseconds between 1970 and 2000, where timestamps of PostgreSQL begin.
const EPOCH_SHIFT: i64 = 946_684_800_000_000;

/// A time of shared memory as SQL has it.
pub fn timestamp(microseconds: i64) -> Option<TimestampWithTimeZone> {
    // SAFETY of the conversion is the type's own: an out-of-range value is an Err.
    TimestampWithTimeZone::try_from(microseconds - EPOCH_SHIFT).ok()
}

/// What a sync is doing, in one word: the worker's own account, unless it cannot give one.
pub fn state(sync: &Sync) -> String {
    if sync.parked().is_some() {
        return SyncState::Parked.as_str().into();
    }
    if sync.paused {
        return SyncState::Paused.as_str().into();
    }
    let Some(database) = shared::database() else {
        return "library not preloaded".into();
    };
    match database.state() {
        WorkerState::WaitingForSlot => "waiting for a worker slot".into(),
        WorkerState::None | WorkerState::Wanted | WorkerState::Starting => "waiting for the worker".into(),
        WorkerState::Running => {
            shared::sync_slot(sync.id, false).map_or(SyncState::Waiting, |slot| slot.state()).as_str().into()
        }
    }
}

/// The last error of a sync.
pub fn last_error(sync: &Sync) -> Option<String> {
    error(sync).map(|error| error.0)
}

/// The last error of a sync and when it was. Of one that is parked no worker may know: what must be done, at no time.
fn error(sync: &Sync) -> Option<(String, Option<i64>)> {
    if let Some(why) = sync.parked() {
        let literal = pgrx::spi::quote_literal(&sync.name);
        return Some((
            format!("{why}; fanout.adopt({literal}) goes on here, if no other database is to feed its target"),
            None,
        ));
    }
    shared::sync_slot(sync.id, false)?.error().map(|(text, at)| (text, Some(at)))
}

/// True if the caller may see what a sync is doing: its owner, and members of pg_monitor.
pub fn may_watch(sync: &Sync) -> bool {
    // SAFETY: membership look-ups on the main thread.
    unsafe {
        let caller = pg_sys::GetUserId();
        let monitor = pg_sys::get_role_oid(c"pg_monitor".as_ptr(), true);
        pg_sys::has_privs_of_role(caller, sync.owner) || pg_sys::has_privs_of_role(caller, monitor)
    }
}

/// The rows behind the view `fanout.status`: what shared memory says of each sync of this database that is the caller's
/// (of a member of pg_monitor: of all).
#[pg_extern(schema = "fanout", volatile, parallel_restricted, requires = ["bootstrap"])]
#[allow(clippy::type_complexity)]
fn sync_activity() -> TableIterator<
    'static,
    (
        name!(sync_id, i32),
        name!(state, String),
        name!(lag_us, Option<i64>),
        name!(pending, i64),
        name!(in_flight, i64),
        name!(delivered, i64),
        name!(retried, i64),
        name!(dead_letters, i64),
        name!(rows_done, i64),
        name!(rows_total, Option<i64>),
        name!(rate, i64),
        name!(last_error, Option<String>),
        name!(last_error_at, Option<TimestampWithTimeZone>),
    ),
> {
    let syncs = privileged(catalog::all)
        .unwrap_or_else(|error| failure(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()).raise());
    let other_version = version::difference().map(|_| "library of another version".to_owned());
    let rows: Vec<_> = syncs
        .into_iter()
        .filter(may_watch)
        .map(|sync| {
            let word = other_version.clone().unwrap_or_else(|| state(&sync));
            let (error, error_at) = error(&sync).unzip();
            let error_at = error_at.flatten().and_then(timestamp);
            match shared::sync_slot(sync.id, false) {
                None => (sync.id, word, None, 0, 0, 0, 0, 0, sync.rows_done, sync.rows_total, 0, error, error_at),
                Some(slot) => {
                    let oldest = slot.oldest.load(Relaxed);
                    let total = slot.rows_total.load(Relaxed);
                    (
                        sync.id,
                        word,
                        Some(if oldest > 0 { (shared::now() - oldest).max(0) } else { 0 }),
                        slot.pending.load(Relaxed) as i64,
                        slot.in_flight.load(Relaxed) as i64,
                        slot.delivered.load(Relaxed) as i64,
                        slot.retried.load(Relaxed) as i64,
                        slot.dead_letters.load(Relaxed) as i64,
                        slot.rows_done.load(Relaxed),
                        (total >= 0).then_some(total),
                        slot.rate.load(Relaxed) as i64,
                        error,
                        error_at,
                    )
                }
            }
        })
        .collect();
    TableIterator::new(rows)
}

extension_sql!(
    r#"
CREATE VIEW fanout.status WITH (security_barrier) AS
SELECT s.name AS sync, s.kind, s.source, s.server, s.target, a.state,
       a.lag_us * interval '1 microsecond' AS lag,
       a.pending, a.in_flight, a.delivered, a.retried, a.dead_letters,
       a.rows_done, a.rows_total,
       CASE WHEN s.phase = 'live' THEN 100
            WHEN a.rows_total > 0 THEN least(99.9, round(100.0 * a.rows_done / a.rows_total, 1)) END AS percent,
       a.rate, a.last_error, a.last_error_at, s.note
FROM fanout.sync AS s JOIN fanout.sync_activity() AS a USING (sync_id);
COMMENT ON VIEW fanout.status IS
'one row a sync: what it is doing, how far behind it is (lag, pending keys), what it has delivered, and its last error';
COMMENT ON FUNCTION fanout.sync_activity() IS 'what shared memory says of each sync; read the view fanout.status';
GRANT SELECT ON fanout.status TO PUBLIC;
"#,
    name = "status",
    requires = ["bootstrap", sync_activity]
);
