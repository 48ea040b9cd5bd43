//! What concerns all syncs: the library, the worker, the journal and who holds it, the clock.

use super::Findings;
use crate::catalog::acting::privileged;
use crate::catalog::{Sync, ours, version};
use crate::settings;
use crate::worker::shared::{self, WorkerState};
use pgrx::prelude::*;
use pgrx::{Spi, datum::DatumWithOid};

/// Versions so far ahead of the clock tell that it was set back, in microseconds.
const CLOCK_TOLERANCE: i64 = 5 * 60_000_000;
/// Segments that a journal needs when nothing holds it up.
const USUAL_SEGMENTS: i64 = 4;

pub fn check(findings: &mut Findings, syncs: &[Sync]) {
    if !shared::preloaded() {
        findings.error(
            "library",
            "pg_fanout is not in shared_preload_libraries: changes are captured, and nothing is delivered",
            shared::PRELOAD_HINT,
        );
        return;
    }
    library(findings);
    worker(findings, syncs);
    journal(findings);
    clock(findings);
    settings(findings);
}

/// Whether the objects of this database are of the library that runs.
fn library(findings: &mut Findings) {
    match version::difference() {
        None => findings.ok("library", format!("pg_fanout {}", version::LIBRARY)),
        Some(why) => findings.error("library", format!("{why}: nothing is delivered"), version::HINT),
    }
}

fn worker(findings: &mut Findings, syncs: &[Sync]) {
    // SAFETY: reads a flag of shared memory.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return findings.warning(
            "worker",
            "this server is a standby: the primary delivers",
            "Nothing has to be done. After a promotion the worker starts by itself.",
        );
    }
    let wanted = syncs.iter().any(|sync| sync.identity == crate::catalog::identity());
    let state = shared::database().map(|database| (database.state(), database.pid()));
    match state {
        None => findings.error(
            "worker",
            format!("no worker can serve this database: {} others have syncs", shared::MAX_DATABASES),
            "Drop the extension where syncs are no longer needed.",
        ),
        Some((WorkerState::Running, pid)) => findings.ok("worker", format!("process {pid}")),
        Some((WorkerState::WaitingForSlot, _)) => findings.error(
            "worker",
            format!(
                "no slot is free: fanout.max_workers is {}, and max_worker_processes is shared with parallel queries and replication",
                settings::max_workers()
            ),
            "Raise max_worker_processes (needs a restart) or fanout.max_workers.",
        ),
        Some((WorkerState::None, _)) if !wanted => findings.ok("worker", "none is needed"),
        Some(_) => findings.warning(
            "worker",
            "no worker is there; the launcher starts it",
            "Look again in a few seconds. If it stays so, the server's log says why the worker ends.",
        ),
    }
}

/// The first row of a query with our own rights: numbers, NULL for 0.
fn numbers<const N: usize>(sql: &str, args: &[DatumWithOid]) -> [i64; N] {
    privileged(|| {
        ours(Spi::connect(|client| {
            let row = client.select(sql, Some(1), args)?.first();
            let mut found = [0; N];
            for (place, number) in found.iter_mut().enumerate() {
                *number = row.get::<i64>(place + 1)?.unwrap_or(0);
            }
            Ok::<_, pgrx::spi::Error>(found)
        }))
    })
}

fn journal(findings: &mut Findings) {
    let segment = i64::from(settings::segment_blocks()) * i64::from(pg_sys::BLCKSZ);
    let [bytes, segments] = numbers(
        "SELECT sum(size)::bigint, count(*) FILTER (WHERE size > 0)
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace,
             pg_catalog.pg_relation_size(c.oid) AS size
         WHERE n.nspname = 'fanout' AND c.relname ~ '^journal_[0-9]+$'",
        &[],
    );
    let size = format!("{} MB in {segments} segments", bytes >> 20);
    if bytes > USUAL_SEGMENTS * segment {
        findings.warning(
            "journal",
            format!("{size}: something keeps segments from being emptied"),
            "End the transactions named by the checks \"prepared transactions\" and \"long transactions\". A target that is down does not hold up the journal.",
        );
    } else {
        findings.ok("journal", size);
    }
    let [count, age] = numbers(
        "SELECT count(*), max(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - prepared))::bigint
         FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database()
           AND prepared <= pg_catalog.clock_timestamp() - $1 * interval '1 second'",
        &[settings::check_age().into()],
    );
    if count > 0 {
        findings.warning(
            "prepared transactions",
            format!("{count} prepared transaction(s), the oldest for {age} s"),
            "Nothing of them is delivered, and the journal grows: COMMIT PREPARED or ROLLBACK PREPARED, see pg_prepared_xacts.",
        );
    }
    let [count, age] = numbers(
        "SELECT count(DISTINCT l.pid), max(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - a.xact_start))::bigint
         FROM pg_catalog.pg_locks l
         JOIN pg_catalog.pg_class c ON c.oid = l.relation
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
         WHERE n.nspname = 'fanout' AND c.relname ~ '^journal_[0-9]+$' AND l.granted
           AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
           AND a.xact_start <= pg_catalog.clock_timestamp() - $1 * interval '1 second'",
        &[settings::check_age().into()],
    );
    if count > 0 {
        findings.warning(
            "long transactions",
            format!("{count} transaction(s) hold the journal, the longest for {age} s"),
            "They have written more than fanout.capture_memory holds; until they end no segment that they wrote to is emptied.",
        );
    }
}

fn clock(findings: &mut Findings) {
    let [reserved] = numbers("SELECT reserved FROM fanout.clock", &[]);
    let ahead = reserved - shared::now();
    if ahead > CLOCK_TOLERANCE {
        findings.warning(
            "clock",
            format!(
                "versions are {} s ahead of the clock: it was set back, or a target held higher versions",
                ahead / 1_000_000
            ),
            "Documents are delivered all the same, in order. Only the time that a version stands for is not true.",
        );
    } else {
        findings.ok("clock", "versions follow the clock");
    }
}

fn settings(findings: &mut Findings) {
    if settings::pending_keys() > settings::backlog_keys() {
        findings.warning(
            "settings",
            format!(
                "fanout.pending_keys ({}) is above fanout.backlog_keys ({}): the backlog is dropped before it goes to disk",
                settings::pending_keys(),
                settings::backlog_keys()
            ),
            "Raise fanout.backlog_keys.",
        );
    }
    // SAFETY: reads a setting of the server.
    if unsafe { !pg_sys::enableFsync } {
        findings.warning(
            "settings",
            "fsync is off: after a crash of the machine targets may hold what the database lost",
            "Turn fsync on; after such a crash call fanout.reconcile() for each sync.",
        );
    }
}
