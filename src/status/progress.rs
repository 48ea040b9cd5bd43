//! `fanout.progress`: backfills and reconciles under way, in the manner of pg_stat_progress_*.

use crate::catalog::acting::privileged;
use crate::catalog::{self, Phase, ours};
use crate::worker::shared::{self, ScanState};
use pgrx::prelude::*;
use std::sync::atomic::Ordering::Relaxed;

/// The rows behind the view `fanout.progress`.
#[pg_extern(schema = "fanout", volatile, parallel_restricted, requires = ["bootstrap"])]
#[allow(clippy::type_complexity)]
fn sync_progress() -> TableIterator<
    'static,
    (
        name!(pid, Option<i32>),
        name!(sync_id, i32),
        name!(command, String),
        name!(phase, String),
        name!(rows_done, i64),
        name!(rows_total, Option<i64>),
        name!(rate, i64),
        name!(started, Option<TimestampWithTimeZone>),
    ),
> {
    let pid = shared::database().map(|database| database.pid()).filter(|pid| *pid > 0);
    let syncs = ours(privileged(catalog::all)).into_iter().filter(super::may_watch);
    let rows: Vec<_> = syncs
        .filter_map(|sync| {
            let slot = shared::sync_slot(sync.id, false)?;
            let command = match sync.phase {
                Phase::Live | Phase::Drop => return None,
                Phase::Create | Phase::Backfill if sync.generation > 1 => "resync",
                Phase::Create | Phase::Backfill => "backfill",
                Phase::Reconcile => "reconcile",
            };
            let state = slot.scan();
            let phase = if state == ScanState::None { ScanState::Preparing } else { state };
            let total = slot.rows_total.load(Relaxed);
            Some((
                pid,
                sync.id,
                command.to_owned(),
                phase.as_str().to_owned(),
                slot.rows_done.load(Relaxed),
                (total >= 0).then_some(total),
                slot.rate.load(Relaxed) as i64,
                Some(slot.scan_began.load(Relaxed)).filter(|at| *at > 0).and_then(super::timestamp),
            ))
        })
        .collect();
    TableIterator::new(rows)
}

extension_sql!(
    r#"
CREATE VIEW fanout.progress WITH (security_barrier) AS
SELECT p.pid, s.name AS sync, p.command, p.phase, p.rows_done, p.rows_total,
       CASE WHEN p.rows_total > 0 THEN least(99.9, round(100.0 * p.rows_done / p.rows_total, 1)) END AS percent,
       p.rate,
       CASE WHEN p.rows_done > 0 AND p.rows_total >= p.rows_done AND p.phase = 'reading rows'
            THEN pg_catalog.make_interval(secs => round(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - p.started)
                 * (p.rows_total - p.rows_done) / p.rows_done)) END AS eta,
       p.started
FROM fanout.sync_progress() AS p JOIN fanout.sync AS s USING (sync_id);
COMMENT ON VIEW fanout.progress IS
'one row for each backfill, resync or reconcile under way: how far it is, how fast, and how long it will take';
COMMENT ON COLUMN fanout.progress.rows_total IS 'an estimate, of the planner''s statistics';
COMMENT ON COLUMN fanout.progress.rate IS 'documents a second over the last seconds';
COMMENT ON COLUMN fanout.progress.eta IS 'at the mean pace since it started';
COMMENT ON FUNCTION fanout.sync_progress() IS 'what shared memory says of backfills and reconciles; read the view fanout.progress';
GRANT SELECT ON fanout.progress TO PUBLIC;
"#,
    name = "progress",
    requires = ["bootstrap", sync_progress]
);
