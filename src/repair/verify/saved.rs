//! How far a verification is, noted now and then in `fanout.verification`, so that another call can go on there.
//!
//! Each run has a row of its own and writes all of it each time: two of one sync never share one. Who goes on with
//! another's makes its row his own; if that other is alive after all, it notes itself anew. A row is of the sync as it was
//! when the verification began, and goes when the worker delivers all anew: what was compared is not so any more then.

use super::{Stage, Verification};
use crate::capture::image;
use crate::catalog::acting::privileged;
use crate::catalog::enqueue::layout;
use crate::catalog::{Kind, Sync, first, ours};
use crate::repair::suspect::Suspect;
use crate::worker::scan::Scan;
use crate::worker::store;
use pgrx::prelude::*;
use pgrx::{JsonB, Spi, Uuid, pg_sys};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How often it is noted how far a verification is.
const NOTE_EVERY: Duration = Duration::from_secs(3);
/// So many digests, which are noted along, make that rarer by as much again.
const NOTE_DIGESTS: u32 = 100_000;

/// The row of a verification.
pub(super) struct Note {
    run: Uuid,
    called: Instant,
    written: Instant,
    exists: bool,
    /// Something was repaired: that is done and counted in one transaction.
    pub(super) is_due: bool,
}

impl Note {
    pub(super) fn new() -> Self {
        let run = privileged(|| ours(first::<Uuid>("SELECT pg_catalog.gen_random_uuid()", &[])));
        let now = Instant::now();
        let run = run.unwrap_or_else(|| error!("gen_random_uuid() gave NULL"));
        Self { run, called: now, written: now, exists: false, is_due: false }
    }
}

/// What a verification is of: where it is not the same, one cannot go on with another.
pub(super) fn definition(sync: &Sync, repair: bool) -> Value {
    json!({
        "library": env!("CARGO_PKG_VERSION"),
        "source": sync.source.to_u32(),
        "server": sync.server,
        "target": sync.target,
        "key": sync.key_columns,
        "address": sync.address_columns,
        "layout": image::layout(layout(sync)).signature,
        "owner": sync.owner.to_u32(),
        "options": sync.options,
        "generation": sync.generation,
        "request": sync.request,
        "repair": repair,
    })
}

/// True if a verification of the sync was noted that could be gone on with.
pub(super) fn is_left(sync: &Sync, definition: &Value) -> bool {
    let sql = "SELECT EXISTS (SELECT FROM fanout.verification WHERE sync_id = $1 AND definition = $2 \
        AND saved_at > pg_catalog.clock_timestamp() - interval '1 day')";
    let args = [sync.id.into(), JsonB(definition.clone()).into()];
    privileged(|| ours(first(sql, &args))).unwrap_or(false)
}

/// True where nothing can be noted.
fn is_read_only() -> bool {
    // SAFETY: reads a variable of the backend.
    unsafe { pg_sys::XactReadOnly }
}

impl Verification {
    /// Notes how far this is, if it is time to.
    pub(super) fn note(&mut self, sync: &Sync) {
        let every = NOTE_EVERY * (1 + self.digests.len() as u32 / NOTE_DIGESTS);
        if (!self.note.is_due && self.note.written.elapsed() < every) || is_read_only() {
            return;
        }
        let (stage, position, cursor, server_run) = match &self.stage {
            Stage::Beginning => return,
            Stage::Rows(scan) => ("rows", scan.position(), None, None),
            // A cursor of which is not known whether it is of the same run of Redis is of no use to anybody.
            Stage::Names { cursor: Some(_), run: None } if sync.kind == Kind::Cache => return,
            Stage::Names { cursor, run } => ("ids", None, cursor.as_deref(), run.as_deref()),
            Stage::Done => ("suspects", None, None, None),
        };
        let suspects: Vec<&[u8]> = self.suspects.iter().map(|suspect| suspect.address.as_slice()).collect();
        let digests: Vec<u8> = self.digests.iter().flat_map(|digest| digest.to_le_bytes()).collect();
        // Nothing where a reconcile has begun meanwhile: the worker, which has to lock the sync's row for it, deletes ours.
        let sql = "INSERT INTO fanout.verification \
                (sync_id, run, definition, stage, position, cursor, server_run, suspects, digests, incomplete, begun, \
                 rows, documents, missing, extra, different, dead, unsettled, repaired, differences) \
            SELECT s.sync_id, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20 \
            FROM fanout.sync AS s WHERE s.sync_id = $1 AND s.phase = 'live' FOR SHARE \
            ON CONFLICT (sync_id, run) DO UPDATE SET saved_at = excluded.saved_at, stage = excluded.stage, \
                position = excluded.position, cursor = excluded.cursor, server_run = excluded.server_run, \
                suspects = excluded.suspects, digests = excluded.digests, incomplete = excluded.incomplete, \
                definition = excluded.definition, begun = excluded.begun, \
                rows = excluded.rows, documents = excluded.documents, missing = excluded.missing, \
                extra = excluded.extra, different = excluded.different, dead = excluded.dead, \
                unsettled = excluded.unsettled, repaired = excluded.repaired, differences = excluded.differences";
        let args = [
            sync.id.into(),
            self.note.run.into(),
            JsonB(self.definition.clone()).into(),
            stage.into(),
            position.into(),
            cursor.into(),
            server_run.into(),
            suspects.into(),
            digests.into(),
            self.incomplete.into(),
            (self.begun as i64).into(),
            self.rows.into(),
            self.documents.into(),
            self.missing.into(),
            self.extra.into(),
            self.different.into(),
            self.dead.into(),
            self.unsettled.into(),
            self.repaired.into(),
            JsonB(json!(self.found)).into(),
        ];
        privileged(|| ours(Spi::run_with_args(sql, &args)));
        if !self.note.exists {
            self.forget_earlier(sync);
        }
        self.note.exists = true;
        self.note.written = Instant::now();
        self.note.is_due = false;
    }

    /// Nobody is to go on with what was noted before this verification was called.
    fn forget_earlier(&self, sync: &Sync) {
        let sql = "DELETE FROM fanout.verification WHERE sync_id = $1 AND run <> $2 \
            AND saved_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $3)";
        let args = [sync.id.into(), self.note.run.into(), self.note.called.elapsed().as_secs_f64().into()];
        privileged(|| ours(Spi::run_with_args(sql, &args)));
    }

    /// It is done.
    pub(super) fn forget(&self, sync: &Sync) {
        if !is_read_only() {
            self.forget_earlier(sync);
            let sql = "DELETE FROM fanout.verification WHERE sync_id = $1 AND run = $2";
            privileged(|| ours(Spi::run_with_args(sql, &[sync.id.into(), self.note.run.into()])));
        }
    }

    /// Goes on where the latest verification of the sync was that was not finished. `Err`: why this one begins anew.
    pub(super) fn go_on(&mut self, sync: &Sync) -> Result<(), &'static str> {
        let sql = "UPDATE fanout.verification SET run = $2 WHERE sync_id = $1 AND run = \
                (SELECT run FROM fanout.verification WHERE sync_id = $1 ORDER BY saved_at DESC LIMIT 1 FOR UPDATE) \
            RETURNING definition, saved_at > pg_catalog.clock_timestamp() - interval '1 day' AS recent, \
                stage, position, cursor, server_run, digests, incomplete, begun, \
                rows, documents, missing, extra, different, dead, unsettled, repaired, differences";
        let suspects = "SELECT pg_catalog.unnest(suspects) FROM fanout.verification WHERE sync_id = $1 AND run = $2";
        let noted = privileged(|| {
            ours(Spi::connect_mut(|client| {
                let args = [sync.id.into(), self.note.run.into()];
                let found = client.update(sql, None, &args)?;
                let Some(row) = found.into_iter().next() else { return Ok(None) };
                let taken = self.take(sync, &row)?;
                if taken.is_ok() {
                    for row in client.select(suspects, None, &args)? {
                        self.suspects.extend(row.get::<Vec<u8>>(1)?.map(Suspect::new));
                    }
                }
                Ok(Some(taken))
            }))
        });
        noted.unwrap_or(Err("no earlier one was ended before it was done"))
    }

    fn take(
        &mut self,
        sync: &Sync,
        row: &pgrx::spi::SpiHeapTupleData,
    ) -> Result<Result<(), &'static str>, pgrx::spi::Error> {
        let definition = row["definition"].value::<JsonB>()?.map_or(Value::Null, |it| it.0);
        if definition != self.definition {
            return Ok(Err(if definition["repair"] != self.definition["repair"] {
                "the earlier one was called with another value of repair"
            } else {
                "the sync was altered, or delivered anew, since the earlier one"
            }));
        }
        if row["recent"].value::<bool>()? != Some(true) {
            return Ok(Err("the earlier one was ended more than a day ago"));
        }
        let number = |name: &str| -> Result<i64, pgrx::spi::Error> { Ok(row[name].value()?.unwrap_or_default()) };
        let rows = number("rows")?;
        let stage = match row["stage"].value::<String>()?.as_deref() {
            Some("rows") => {
                let position: Vec<u8> = row["position"].value()?.unwrap_or_default();
                let (blocks, files, total) = store::extent(sync.source);
                let mut scan = Scan::new(files, blocks, total, false);
                if !scan.resume(&position, rows) {
                    return Ok(Err("the table was rewritten since the earlier one"));
                }
                Stage::Rows(scan)
            }
            Some("ids") => Stage::Names { cursor: row["cursor"].value()?, run: row["server_run"].value()? },
            _ => Stage::Done,
        };
        let digests: Vec<u8> = row["digests"].value()?.unwrap_or_default();
        let differences = row["differences"].value::<JsonB>()?.map(|it| it.0);
        self.stage = stage;
        self.digests = digests.chunks_exact(8).filter_map(|it| it.try_into().ok().map(u64::from_le_bytes)).collect();
        self.incomplete = row["incomplete"].value()?.unwrap_or(true);
        self.begun = number("begun")? as u64;
        self.rows = rows;
        self.documents = number("documents")?;
        self.missing = number("missing")?;
        self.extra = number("extra")?;
        self.different = number("different")?;
        self.dead = number("dead")?;
        self.unsettled = number("unsettled")?;
        self.repaired = number("repaired")?;
        self.found = match differences {
            Some(Value::Array(found)) => found,
            _ => Vec::new(),
        };
        self.note.exists = true;
        Ok(Ok(()))
    }
}
