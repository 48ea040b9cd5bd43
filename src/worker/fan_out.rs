//! From changed rows of related tables to the documents that they belong to: here and not in the writer's transaction.
//!
//! A step looks up a bounded number of changed rows. What it finds is marked in the epoch of the row that led to it, so that
//! whoever waits for that row waits for its documents.

use super::activity;
use super::cycle::want_phase;
use super::outcome;
use super::reading::read_as_owner;
use super::runner::Runner;
use super::store;
use super::strikes::Work;
use super::transaction::{Class, transaction};
use crate::catalog::Phase;
use crate::document::Source;
use crate::journal::format::related;
use crate::settings;
use std::collections::HashSet;

/// Changed rows that are looked up at a time.
const STEP: usize = 500;

/// Looks some changed rows up. True if there were any.
pub fn step(runner: &mut Runner) -> bool {
    let room = settings::pending_keys();
    if !runner.pending.has_related() || runner.pending.len() > room {
        // What is found beyond would only be stored: first what is known is delivered.
        return false;
    }
    let Some((relation, slots)) = runner.pending.take_related(STEP.min(runner.related_limit)) else { return false };
    let (Some((source, _)), Some(plan)) = (&runner.source, runner.related.get(&relation)) else {
        // Declared no more: nothing of it belongs to any document.
        outcome::acknowledge(runner, &slots);
        return true;
    };
    activity::at_work(runner);
    let pending = &runner.pending;
    let changed: Vec<&[u8]> = slots.iter().filter_map(|&slot| Some(related(pending.address(slot))?.1)).collect();
    let mut found: HashSet<Vec<u8>> = HashSet::new();
    let read = read_as_owner(runner.slot, &runner.sync, Work::Related, || {
        plan.read(source, &changed, |address| {
            found.insert(address.to_vec());
            found.len() <= room
        })
    });
    if super::process::sources_altered() {
        // Altered while it was read: what was truncated and filled again may have looked empty.
        runner.pending.put_back(&slots);
        return true;
    }
    match read {
        Ok(true) if found.len() <= room => {
            // The oldest of them stands for all: a document may be waited for a little longer than it had to be.
            let epoch = slots.iter().map(|&slot| runner.pending.epoch(slot)).min().unwrap_or_default();
            for address in &found {
                // A document that was refused is tried anew.
                runner.delete_instead.remove(address);
                runner.pending.mark_in_epoch(address, epoch);
            }
            outcome::acknowledge(runner, &slots);
            runner.related_limit = runner.related_limit.saturating_mul(2);
        }
        Ok(true) if slots.len() > 1 => {
            runner.related_limit = slots.len() / 2;
            runner.pending.put_back(&slots);
        }
        Ok(true) => {
            everything(runner, &slots, &format!("a row of a related table belongs to more than {room} documents"));
        }
        Ok(false) => everything(runner, &slots, "the columns of a related table have other types now"),
        Err(failed) => {
            let class = failed.class();
            let why = format!("cannot find the documents that rows of a related table belong to: {failed}");
            // Too many at a time, or one of them that the query fails for: whoever writes such a row must not stop the sync.
            let divisible = failed.may_be_a_row() || class == Class::Data;
            if divisible && slots.len() == 1 {
                runner.slot.set_error(&why);
                everything(runner, &slots, &why);
                return true;
            }
            runner.pending.put_back(&slots);
            if divisible {
                runner.related_limit = slots.len() / 2;
            }
            match class {
                Class::Data => {}
                Class::Transient => runner.back_off(&why),
                Class::Blocked => {
                    runner.source = None;
                    runner.block(&why);
                }
            }
        }
    }
    true
}

/// All documents are delivered anew, since it is not known which.
fn everything(runner: &mut Runner, slots: &[super::pending::Slot], why: &str) {
    pgrx::log!("pg_fanout: sync \"{}\" is reconciled: {why}", runner.sync.name);
    // Acknowledged first: what is being delivered when a reconcile begins is looked up once more.
    outcome::acknowledge(runner, slots);
    want_phase(runner, Phase::Reconcile);
}

/// A relation whose columns were captured as addresses of the sync, and that are of other types than its key by now, is one
/// that is looked up. False if that could not be noted.
pub fn check_direct(runner: &mut Runner, source: &Source) -> bool {
    for relation in &mut runner.sync.relations {
        let of_key = runner.related.get(&relation.id).is_none_or(|plan| plan.layout == source.layout);
        if !relation.direct || of_key {
            continue;
        }
        let id = relation.id;
        if let Err(failed) = transaction(|| store::set_indirect(id)) {
            runner.back_off(&failed.to_string());
            return false;
        }
        relation.direct = false;
    }
    true
}

/// Notes of what types the captured columns of relations are; of other types than before, what is pending says nothing.
/// False if that could not be noted.
pub fn check_layouts(runner: &mut Runner) -> bool {
    let altered: Vec<(usize, i32, i64, bool)> = runner
        .sync
        .relations
        .iter()
        .enumerate()
        .filter_map(|(number, relation)| {
            let layout = i64::from(runner.related.get(&relation.id)?.layout.signature);
            (relation.layout != Some(layout)).then_some((number, relation.id, layout, relation.layout.is_some()))
        })
        .collect();
    if altered.iter().any(|&(.., was_known)| was_known) {
        pgrx::log!(
            "pg_fanout: columns that relate rows to documents of sync \"{}\" have other types now; it is reconciled",
            runner.sync.name
        );
        want_phase(runner, Phase::Reconcile);
        if runner.wanted.is_some() {
            return false;
        }
    }
    // Only now: what comes after a crash must see the difference, unless it is reconciled anyway.
    for (number, id, layout, _) in altered {
        if let Err(failed) = transaction(|| store::set_relation_layout(id, layout)) {
            runner.back_off(&failed.to_string());
            return false;
        }
        runner.sync.relations[number].layout = Some(layout);
    }
    true
}
