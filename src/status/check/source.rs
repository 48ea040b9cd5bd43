//! What concerns a sync within PostgreSQL: its state, its source and triggers, what is behind.

use super::Findings;
use crate::catalog::source::Table;
use crate::catalog::{Sync, triggers};
use crate::settings;
use crate::worker::shared;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::Relaxed;

/// True if source and target can be looked at as well.
pub fn check(findings: &mut Findings, sync: &Sync) -> bool {
    let name = pgrx::spi::quote_literal(&sync.name);
    let Some(table) = Table::find(sync.source) else {
        findings.error(
            "source",
            "the table was dropped; the target stays as it is",
            format!("SELECT fanout.drop_sync({name}); ends the sync; with drop_target => true the target goes too."),
        );
        return false;
    };
    if let Some(gone) = sync.address_columns.iter().find(|column| table.column(column).is_none()) {
        findings.error(
            "source",
            format!("column \"{gone}\", by which the sync knows its rows, does not exist any more"),
            format!("Rename it back, or make the sync anew: SELECT fanout.drop_sync({name});"),
        );
        return false;
    }
    // SAFETY: catalog look-ups by OID on the main thread.
    let (owner_gone, persistence) = unsafe {
        let role = pg_sys::GetUserNameFromId(sync.owner, true);
        (role.is_null(), pg_sys::get_rel_persistence(sync.source) as u8)
    };
    if owner_gone {
        findings.error(
            "owner",
            "the role that the worker reads as was dropped",
            format!("As a superuser: SELECT fanout.drop_sync({name}); and make the sync anew."),
        );
        return false;
    }
    if persistence == b'u' {
        findings.warning(
            "source",
            format!(
                "{} is unlogged: a crash empties it, so the sync is reconciled at each start of the worker",
                table.quoted()
            ),
            format!("ALTER TABLE {} SET LOGGED;", table.quoted()),
        );
    } else {
        findings.ok("source", table.quoted());
    }
    let wrong = triggers::wrong(sync);
    if wrong.is_empty() {
        findings.ok("triggers", "there, and fire always");
    } else {
        findings.error(
            "triggers",
            format!("{}: changes may not have been captured", wrong.join("; ")),
            format!("SELECT fanout.adopt({name}); puts them back and reconciles."),
        );
    }
    behind(findings, sync, &name);
    true
}

/// What the sync is doing.
pub fn state(findings: &mut Findings, sync: &Sync) {
    let name = pgrx::spi::quote_literal(&sync.name);
    let state = crate::status::state(sync);
    let error = crate::status::last_error(sync).unwrap_or_default();
    match state.as_str() {
        "blocked" => findings.error(
            "state",
            format!("blocked: {error}"),
            match shared::sync_slot(sync.id, false) {
                Some(slot) if slot.left_alone.load(Relaxed) => {
                    format!("Put right what the text says, then SELECT fanout.resume({name});")
                }
                _ => "Put right what the text says: it is tried again every 15 seconds.".to_owned(),
            },
        ),
        "parked" => findings.error(
            "state",
            format!("parked: {}", sync.parked().unwrap_or_default()),
            format!("SELECT fanout.adopt({name}); if this database is to feed the target and no other does."),
        ),
        "retrying" => findings.warning(
            "state",
            format!("the target does not answer: {error}"),
            "It is tried again by itself; writers notice nothing.",
        ),
        "paused" => findings.warning(
            "state",
            "paused: changes are captured, and not delivered",
            format!("SELECT fanout.resume({name});"),
        ),
        _ => findings.ok("state", state),
    }
}

fn behind(findings: &mut Findings, sync: &Sync, name: &str) {
    let Some(slot) = shared::sync_slot(sync.id, false) else { return };
    let (pending, letters) = (slot.pending.load(Relaxed), slot.dead_letters.load(Relaxed));
    let bound = settings::backlog_keys() as u64;
    let oldest = slot.oldest.load(Relaxed);
    let lag = if oldest > 0 { (shared::now() - oldest).max(0) } else { 0 };
    if pending > bound / 5 * 4 {
        findings.error(
            "backlog",
            format!(
                "{pending} keys are pending; past {bound} (fanout.backlog_keys) they are dropped, and all is reconciled"
            ),
            "Put the target right, or raise fanout.backlog_keys.",
        );
    } else if lag > settings::check_age() * 1_000_000 {
        findings.warning(
            "backlog",
            format!("{pending} keys are pending, the oldest for {} s", lag / 1_000_000),
            "See last_error and retried in fanout.status: the target is slow, or does not answer.",
        );
    } else {
        findings.ok("backlog", format!("{pending} keys are pending"));
    }
    if letters > 0 {
        findings.warning(
            "dead letters",
            format!("the target refused {letters} document(s) for good"),
            format!("See fanout.dead_letters; after a change of the rows or the index: SELECT fanout.retry({name});"),
        );
    }
}
