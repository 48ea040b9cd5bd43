//! What the worker keeps in tables: progress, dead letters, stored addresses. Each call runs within a transaction.

use crate::catalog::{Phase, Sync};
use pgrx::prelude::*;

/// Runs a statement; gives the rows that it touched.
fn run(sql: &str, args: &[pgrx::datum::DatumWithOid]) -> usize {
    Spi::connect_mut(|client| client.update(sql, None, args).map(|table| table.len()))
        .unwrap_or_else(|error| error!("cannot keep the state of a sync: {error}"))
}

/// Notes the phase of a sync. False if somebody asked for something else meanwhile: the catalog is to be read anew.
pub fn set_phase(sync: &Sync, phase: Phase, rows: Option<i64>) -> bool {
    let sql = "UPDATE fanout.sync SET phase = $2, position = NULL, rows_done = coalesce($3, 0), \
        rows_total = $3 WHERE sync_id = $1 AND request = $4 AND phase <> 'drop'";
    let noted = run(sql, &[sync.id.into(), phase.as_str().into(), rows.into(), sync.request.into()]) == 1;
    // All is delivered anew, or was: what was compared is not so any more.
    run("DELETE FROM fanout.verification WHERE sync_id = $1", &[sync.id.into()]);
    noted
}

/// Notes of what types the addresses are that may be pending, and what the source looks like.
pub fn set_source(sync: i32, layout: i64, shape: serde_json::Value) {
    let sql = "UPDATE fanout.sync SET layout = $2, shape = $3 WHERE sync_id = $1";
    run(sql, &[sync.into(), layout.into(), pgrx::JsonB(shape).into()]);
}

/// Notes of what types the captured columns of a relation are.
pub fn set_relation_layout(relation: i32, layout: i64) {
    run("UPDATE fanout.relation SET layout = $2 WHERE relation_id = $1", &[relation.into(), layout.into()]);
}

/// Rows of a relation are looked up from now on: its columns are not of the types of the source's key any more.
pub fn set_indirect(relation: i32) {
    run("UPDATE fanout.relation SET direct = false WHERE relation_id = $1", &[relation.into()]);
    crate::catalog::changed();
}

/// Notes as whom the target was claimed; whoever it was taken from. False if the sync has another target by now.
pub fn set_claimed(sync: &Sync, claimed: &str) -> bool {
    let sql = "UPDATE fanout.sync SET claimed = $2, adopt = false WHERE sync_id = $1 AND target = $3 AND server = $4";
    run(sql, &[sync.id.into(), claimed.into(), (&*sync.target).into(), (&*sync.server).into()]) == 1
}

/// The target that a sync had before is to be removed from now on, for the present one is filled. False if it is not, as far as
/// the catalog knows: that is to be read anew.
pub fn release_former(former: &Sync, successor: &Sync) -> bool {
    // Locked: the sync may be given its old target back, or yet another, at this moment.
    let filled =
        "SELECT FROM fanout.sync WHERE sync_id = $1 AND target = $2 AND generation = $3 AND phase = 'live' FOR SHARE";
    if run(filled, &[successor.id.into(), (&*successor.target).into(), successor.generation.into()]) == 0 {
        return false;
    }
    end_wait(former)
}

/// A target is to be removed from now on, as what it waited for is gone. False if that is not so, or it is not to be removed.
pub fn release_orphan(former: &Sync) -> bool {
    let waits = "SELECT FROM fanout.sync AS s JOIN fanout.sync AS f ON s.sync_id = f.successor WHERE f.sync_id = $1";
    run(waits, &[former.id.into()]) == 0 && end_wait(former)
}

fn end_wait(former: &Sync) -> bool {
    let released =
        run("UPDATE fanout.sync SET successor = NULL, note = NULL WHERE sync_id = $1", &[former.id.into()]) == 1;
    // Searches go to the new one from now on.
    crate::catalog::changed();
    released
}

/// Notes what somebody should know though the sync works.
pub fn set_note(sync: i32, note: Option<&str>) {
    run("UPDATE fanout.sync SET note = $2 WHERE sync_id = $1", &[sync.into(), note.into()]);
}

/// Notes the indices of a sync that has one a period. False if it is of another generation by now.
pub fn set_indices(sync: &Sync, indices: &[String]) -> bool {
    let sql = "UPDATE fanout.sync SET indices = $2 WHERE sync_id = $1 AND generation = $3";
    run(sql, &[sync.id.into(), indices.to_vec().into(), sync.generation.into()]) == 1
}

/// Ends a sync whose target is gone.
pub fn remove_sync(sync: i32) {
    run("DELETE FROM fanout.sync WHERE sync_id = $1", &[sync.into()]);
    crate::catalog::changed();
}

/// Notes how far a scan is.
pub fn set_position(sync: i32, position: &[u8], rows_done: i64, rows_total: Option<i64>) {
    run(
        // A sync whose row is locked by an open transaction is passed over: progress can be noted later.
        "UPDATE fanout.sync SET position = $2, rows_done = $3, rows_total = $4 WHERE sync_id = \
         (SELECT sync_id FROM fanout.sync WHERE sync_id = $1 FOR UPDATE SKIP LOCKED)",
        &[sync.into(), position.into(), rows_done.into(), rows_total.into()],
    );
}

/// A document that the target refused for good.
pub struct DeadLetter {
    /// The sync.
    pub sync: i32,
    /// Image of the address.
    pub address: Vec<u8>,
    /// Document id or key, for people.
    pub id: String,
    /// The values of the key columns.
    pub key: Option<Vec<Option<String>>>,
    /// The target's status, if it has such.
    pub status: Option<i32>,
    /// The target's own words.
    pub reason: String,
}

/// Notes dead letters.
pub fn add_dead_letters(letters: &[DeadLetter]) {
    for letter in letters {
        run(
            "INSERT INTO fanout.dead_letter AS d (sync_id, address, whole, document_id, status, reason, key) \
             SELECT $1, fanout.place($2), nullif($2, fanout.place($2)), $3, $4, $5, $6 WHERE EXISTS (SELECT FROM fanout.sync WHERE sync_id = $1) \
             ON CONFLICT (sync_id, address) DO UPDATE SET status = excluded.status, reason = excluded.reason, \
                attempts = d.attempts + 1, last_at = pg_catalog.clock_timestamp()",
            &[
                letter.sync.into(),
                letter.address.as_slice().into(),
                letter.id.as_str().into(),
                letter.status.into(),
                letter.reason.replace('\0', "").into(),
                letter.key.clone().into(),
            ],
        );
    }
}

/// Forgets the oldest dead letters of a sync beyond so many; gives their addresses.
pub fn forget_dead_letters(sync: i32, keep: i64) -> Vec<Vec<u8>> {
    let oldest = bytes(
        "SELECT coalesce(whole, address) FROM fanout.dead_letter WHERE sync_id = $1 ORDER BY last_at DESC, address OFFSET $2",
        &[sync.into(), keep.into()],
    );
    remove_dead_letters(sync, &oldest);
    oldest
}

/// The addresses of a sync that have dead letters.
pub fn dead_letters(sync: i32) -> Vec<Vec<u8>> {
    bytes("SELECT coalesce(whole, address) FROM fanout.dead_letter WHERE sync_id = $1", &[sync.into()])
}

/// Forgets dead letters whose documents were delivered after all.
pub fn remove_dead_letters(sync: i32, addresses: &[Vec<u8>]) {
    let addresses: Vec<&[u8]> = addresses.iter().map(Vec::as_slice).collect();
    run(
        "DELETE FROM fanout.dead_letter WHERE sync_id = $1 AND address = ANY (ARRAY(\
            SELECT fanout.place(a) FROM pg_catalog.unnest($2) AS a))",
        &[sync.into(), addresses.into()],
    );
}

/// Stores addresses outside the journal and the worker's memory.
pub fn store<'a>(sync: i32, mut addresses: impl Iterator<Item = &'a [u8]>) {
    const SQL: &str = "INSERT INTO fanout.pending (sync_id, address, whole) \
        SELECT $1, fanout.place(a), nullif(a, fanout.place(a)) FROM pg_catalog.unnest($2) AS a \
        WHERE EXISTS (SELECT FROM fanout.sync WHERE sync_id = $1) ON CONFLICT DO NOTHING";
    loop {
        // A statement takes several hundred bytes for each of them.
        let slice: Vec<&[u8]> = addresses.by_ref().take(1000).collect();
        if slice.is_empty() {
            return;
        }
        // Made in here, the array is freed with the connection; else it would stay until the transaction ends.
        Spi::connect_mut(|_| run(SQL, &[sync.into(), slice.into()]));
    }
}

/// Stored addresses of a sync, in order, after one of them.
pub fn stored_after(sync: i32, after: &[u8], limit: i64) -> Vec<Vec<u8>> {
    bytes(
        "SELECT coalesce(whole, address) FROM fanout.pending WHERE sync_id = $1 AND address > fanout.place($2) \
         ORDER BY address LIMIT $3",
        &[sync.into(), after.into(), limit.into()],
    )
}

/// How many addresses of a sync are stored.
pub fn stored(sync: i32) -> i64 {
    Spi::connect(|client| {
        client
            .select("SELECT count(*) FROM fanout.pending WHERE sync_id = $1", None, &[sync.into()])?
            .first()
            .get_one::<i64>()
    })
    .unwrap_or_else(|error| error!("{error}"))
    .unwrap_or(0)
}

/// True if one of the tables, or what stands below it, is unlogged.
pub fn any_unlogged(tables: Vec<pg_sys::Oid>) -> bool {
    let sql = "WITH RECURSIVE tree(relid) AS (\
            SELECT pg_catalog.unnest($1) \
            UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i, tree WHERE i.inhparent = tree.relid) \
        SELECT EXISTS (SELECT FROM tree JOIN pg_catalog.pg_class AS c ON c.oid = tree.relid WHERE c.relpersistence = 'u')";
    Spi::connect(|client| client.select(sql, None, &[tables.into()])?.first().get_one::<bool>())
        .unwrap_or_else(|error| error!("{error}"))
        .unwrap_or(false)
}

/// Removes stored addresses that are acknowledged; gives how many there were.
pub fn unstore(sync: i32, addresses: &[Vec<u8>]) -> i64 {
    let addresses: Vec<&[u8]> = addresses.iter().map(Vec::as_slice).collect();
    run(
        "DELETE FROM fanout.pending WHERE sync_id = $1 AND address = ANY (ARRAY(\
            SELECT fanout.place(a) FROM pg_catalog.unnest($2) AS a))",
        &[sync.into(), addresses.into()],
    ) as i64
}

/// Drops all stored addresses of a sync: it will be reconciled.
pub fn drop_stored(sync: i32) {
    run("DELETE FROM fanout.pending WHERE sync_id = $1", &[sync.into()]);
}

fn bytes(sql: &str, args: &[pgrx::datum::DatumWithOid]) -> Vec<Vec<u8>> {
    Spi::connect(|client| {
        client
            .select(sql, None, args)?
            .map(|row| Ok(row.get::<Vec<u8>>(1)?.unwrap_or_default()))
            .collect::<Result<_, _>>()
    })
    .unwrap_or_else(|error: pgrx::spi::Error| error!("{error}"))
}

/// Size and identity of a source's files: the blocks of the largest one, a number that changes when one is rewritten, and
/// an estimate of the rows.
pub fn extent(source: pg_sys::Oid) -> (u32, i64, Option<i64>) {
    let sql = "WITH RECURSIVE tree(relid) AS (\
            SELECT $1::pg_catalog.oid \
            UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i, tree WHERE i.inhparent = tree.relid) \
        SELECT coalesce(max(pg_catalog.pg_relation_size(c.oid, 'main')), 0), \
            coalesce(sum(pg_catalog.pg_relation_filenode(c.oid)::bigint), 0)::bigint, \
            sum(nullif(c.reltuples, -1))::bigint \
        FROM tree JOIN pg_catalog.pg_class AS c ON c.oid = tree.relid WHERE c.relkind IN ('r', 'm')";
    let (bytes, files, rows) = Spi::connect(|client| {
        let row = client.select(sql, None, &[source.into()])?.first();
        row.get_three::<i64, i64, i64>()
    })
    .unwrap_or_else(|error| error!("{error}"));
    let blocks = bytes.unwrap_or(0) / i64::from(pg_sys::BLCKSZ);
    (u32::try_from(blocks).unwrap_or(u32::MAX), files.unwrap_or(0), rows)
}
