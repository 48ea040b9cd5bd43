//! Getting a target ready: claim it, make the index.

use super::cycle::{PAGE, Task, Worker, want_phase};
use super::outcome::{fail, told_addresses};
use super::runner::{Runner, Target};
use super::transaction::{Failed, transaction};
use crate::catalog::{Kind, Phase, Sync};
use crate::settings;
use delivery::engine::{IdPage, IndexState, Unfit, Visible};
use delivery::keyspace::{RedisBatch, RedisOutcome};
use delivery::ownership::{ClaimOutcome, Rival};
use delivery::period::NONE;
use delivery::sender::{JobKind, JobResult};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What serves no longer is left for so long: searches may be on their way that began before.
const LAST_SEARCHES: Duration = Duration::from_secs(2);

/// Asks the next thing of a target that is not ready. True if a job was sent.
pub fn tend(worker: &mut Worker, id: i32) -> bool {
    let Some(runner) = worker.runners.get_mut(&id) else { return false };
    if matches!(runner.target, Target::Ready) && mapping_is_old(runner) {
        runner.target = Target::Claimed;
    }
    let (unready, claimed) = (!matches!(runner.target, Target::Ready), matches!(runner.target, Target::Claimed));
    if unready && worker.is_shaped(id) {
        return false;
    }
    let hidden = claimed && former(worker, id).is_some();
    let visible = if hidden { Visible::AfterSwap } else { Visible::AtOnce };
    let Some(runner) = worker.runners.get_mut(&id) else { return false };
    let (task, kind) = match runner.target {
        Target::Asked => return false,
        Target::Ready => {
            let Some(concrete) = runner.outdated.pop() else { return false };
            let kind = JobKind::DeleteIndex { concrete: concrete.clone() };
            let sent = worker.send(id, Task::Farewell, kind).is_ok();
            if !sent && let Some(runner) = worker.runners.get_mut(&id) {
                runner.outdated.push(concrete);
            }
            return sent;
        }
        Target::Unknown => {
            let Some(runner) = worker.runners.get(&id) else { return false };
            (Task::Claim, JobKind::Claim(worker.claim(runner)))
        }
        Target::Claimed => match runner.sync.kind {
            Kind::Cache => {
                // What is under way to keys of before comes first: they may be removed when these here are filled.
                if runner.batches > 0 {
                    return false;
                }
                ready(runner);
                return true;
            }
            Kind::Index => {
                let sync = runner.sync.clone();
                // Requests under way to an index that is to be made would be answered with its absence again.
                if runner.batches > 0 {
                    return false;
                }
                match transaction(|| crate::catalog::mapping::index_body(&sync)) {
                    Ok(body) => {
                        runner.index_body = Some(body.clone());
                        match ensure(runner, body, visible) {
                            Some(kind) => (Task::EnsureIndex, kind),
                            None => return false,
                        }
                    }
                    Err(failed) => {
                        runner.block(&format!("cannot derive the mapping: {failed}"));
                        return false;
                    }
                }
            }
        },
    };
    if worker.send(id, task, kind).is_err() {
        return false;
    }
    if let Some(runner) = worker.runners.get_mut(&id) {
        runner.target = Target::Asked;
    }
    true
}

/// What makes the index, or those that there are to be with one a period. None if it cannot be asked for now.
fn ensure(runner: &mut Runner, body: serde_json::Value, visible: Visible) -> Option<JobKind> {
    let (concrete, alias) = (runner.sync.concrete_index(), runner.sync.target.clone());
    if runner.templates.period.is_none() {
        return Some(JobKind::EnsureIndex { concrete, alias, body, visible });
    }
    let noted = noted(&runner.sync);
    let mut wanted = &noted | &runner.unmade;
    // There before any row is: aliases, and all that is asked by them, need one to lead to.
    wanted.insert(format!("{concrete}-{NONE}"));
    let bound = settings::period_indices();
    if !runner.unmade.is_subset(&noted) && wanted.len() > bound {
        runner.unmade.clear();
        // What needs no other index goes on; the mapping is compared once more.
        runner.index_body = None;
        runner.source_changed = true;
        runner.target = Target::Ready;
        runner.block(&format!(
            "its rows belong to {} indices at least, more than the {bound} that fanout.period_indices allows; raise that, or have \
             longer periods: fanout.alter_sync(…, period => …)",
            wanted.len()
        ));
        return None;
    }
    let mut indices: Vec<String> = wanted.into_iter().collect();
    if indices != runner.sync.indices {
        // Before they are made: one that is noted and not there was deleted by somebody, with what was in it.
        let sync = runner.sync.clone();
        match transaction(|| super::store::set_indices(&sync, &indices)) {
            Ok(true) => runner.sync.indices.clone_from(&indices),
            Ok(false) => {
                super::process::catalog_is_stale();
                return None;
            }
            Err(failed) => {
                runner.back_off(&failed.to_string());
                return None;
            }
        }
    }
    if runner.sync.phase != Phase::Create {
        // Those that were made before are there, or were deleted: then they are not made here, but see answered().
        indices = runner.unmade.iter().cloned().collect();
    }
    Some(JobKind::EnsurePeriods { generation: concrete, indices, alias, body, visible })
}

/// The indices of the present generation that are noted.
fn noted(sync: &Sync) -> BTreeSet<String> {
    sync.indices.iter().filter(|index| sync.suffix(index).is_some()).cloned().collect()
}

/// Whether the name of an index is that of a period.
fn is_of_period(runner: &Runner, index: &str) -> bool {
    let suffix = runner.sync.suffix(index);
    runner.templates.period.as_ref().zip(suffix).is_some_and(|(period, suffix)| period.first(suffix).is_some())
}

/// Whether the mapping would be another now: then the index is to be asked for again, and gets what it lacks before any document
/// goes there.
fn mapping_is_old(runner: &mut Runner) -> bool {
    if !std::mem::take(&mut runner.source_changed) || runner.sync.kind != Kind::Index {
        return false;
    }
    let sync = runner.sync.clone();
    let body = transaction(|| crate::catalog::mapping::index_body(&sync));
    body.is_ok_and(|body| runner.index_body.as_ref() != Some(&body))
}

/// The target answered.
pub fn answered(worker: &mut Worker, id: i32, task: &Task, result: delivery::Result<JobResult>) {
    let Some(runner) = worker.runners.get_mut(&id) else { return };
    let result = match result {
        Ok(result) => result,
        Err(error) => {
            match task {
                Task::EnsureIndex | Task::SwapAlias(_) => {
                    runner.target = Target::Claimed;
                    if matches!(task, Task::EnsureIndex) && error.outcome_unknown() {
                        // If this made it, it is empty, and will look like one that is filled.
                        want_phase(runner, Phase::Reconcile);
                    }
                }
                _ => runner.target = Target::Unknown,
            }
            fail(runner, &error);
            return;
        }
    };
    match result {
        JobResult::Claim(ClaimOutcome::Owned(ownership)) => {
            let incarnation = super::process::incarnation();
            let claimed = format!("{incarnation}#{}", ownership.epoch);
            // The epoch grows by one with each claim. If ours is not the next after the one that we remember, somebody else
            // fed the target meanwhile, or it is not the one that we knew, or lost what it held.
            let expected = format!("{incarnation}#{}", ownership.epoch.wrapping_sub(1));
            let before = runner.sync.claimed.replace(claimed.clone());
            let same = before.as_deref() == Some(expected.as_str());
            runner.ownership = Some(ownership);
            match transaction(|| super::store::set_claimed(&runner.sync, &claimed)) {
                Ok(true) => {}
                Ok(false) => {
                    runner.target = Target::Unknown;
                    return super::process::catalog_is_stale();
                }
                Err(failed) => {
                    runner.sync.claimed = before;
                    runner.target = Target::Unknown;
                    runner.back_off(&failed.to_string());
                    return;
                }
            }
            runner.sync.adopt = false;
            if !same {
                want_phase(runner, Phase::Reconcile);
            }
            runner.sighting = None;
            runner.target = Target::Claimed;
            runner.succeed();
        }
        JobResult::Claim(ClaimOutcome::OwnedBy { identity, by, rival, silent_for, sighting }) => {
            runner.sighting = Some(sighting);
            runner.target = Target::Unknown;
            if runner.sync.phase == Phase::Drop {
                return left_to(worker, id, &identity, &by, rival.as_ref());
            }
            let why = match rival {
                Some(rival) => fed_by_rival(worker, id, &rival),
                None => format!(
                    "the target is fed by another owner ({by}), silent for {} s; fanout.adopt() takes it over",
                    silent_for.as_secs()
                ),
            };
            let Some(runner) = worker.runners.get_mut(&id) else { return };
            runner.block(&why);
        }
        JobResult::Index(state, unfit) => {
            runner.succeed();
            note_unfit(runner, &unfit);
            match (state, runner.sync.phase) {
                (IndexState::Exists, Phase::Live | Phase::Backfill | Phase::Reconcile | Phase::Drop) => {}
                // Left behind by an earlier life of the same name: what is in it has to be compared.
                (IndexState::Exists, Phase::Create) => fill(runner, Phase::Reconcile),
                // Empty: deleted behind our back, or new.
                (IndexState::Created, _) => fill(runner, Phase::Backfill),
            }
            serve(worker, id);
        }
        JobResult::Periods(found) => {
            runner.succeed();
            note_unfit(runner, &found.unfit);
            runner.unmade.clear();
            if let Some(stray) = found.present.iter().find(|index| !is_of_period(runner, index)) {
                // What is in it would be found twice, and by its name no row would be asked for it.
                let why = format!(
                    "the index \"{stray}\" was made for other periods: delete it, or fanout.resync() makes all indices anew"
                );
                runner.target = Target::Claimed;
                runner.block(&why);
                return;
            }
            let gone = &noted(&runner.sync) - &found.present;
            match runner.sync.phase {
                Phase::Create if found.present == found.made => fill(runner, Phase::Backfill),
                // Left behind by an earlier life of the same name: what is in it has to be compared.
                Phase::Create => fill(runner, Phase::Reconcile),
                Phase::Drop => {}
                _ if !gone.is_empty() => {
                    // Deleted behind our back. Noted before they are made again: then they look like those that are filled.
                    want_phase(runner, Phase::Reconcile);
                    runner.wait_for_indices(gone);
                    return;
                }
                _ => {}
            }
            runner.made = found.present;
            serve(worker, id);
        }
        JobResult::Done => {
            ready(runner);
            if let Task::SwapAlias(generation) = *task {
                // Those before are of no use any more; more than one if a resync was asked for during another.
                runner.outdated = (1..generation).map(|old| runner.sync.index_of(old)).collect();
            }
        }
        _ => {}
    }
}

/// Why a sync is blocked whose target another sync of this database feeds.
fn fed_by_rival(worker: &Worker, id: i32, rival: &Rival) -> String {
    let other = worker.runners.values().find(|other| other.sync.mark() == rival.sync);
    let (name, server) = other.map(|other| (&*other.sync.name, &*other.sync.server)).unwrap_or_default();
    let what = match worker.runners.get(&id).map(|runner| runner.sync.kind) {
        Some(Kind::Cache) => "key template",
        _ => "index",
    };
    format!(
        "the target is fed by sync \"{name}\" of this database, over server \"{server}\"; end one of the two, \
         fanout.drop_sync(), and make it anew with another {what} if both are wanted"
    )
}

/// The index is there. One of a later generation, once it is filled, takes the place of the one before it behind the alias.
fn serve(worker: &mut Worker, id: i32) {
    let Some(runner) = worker.runners.get_mut(&id) else { return };
    let generation = runner.sync.generation;
    if generation == 1 || runner.sync.phase != Phase::Live {
        return ready(runner);
    }
    let (alias, new) = (runner.sync.target.clone(), runner.sync.concrete_index());
    let old = runner.sync.index_of(generation - 1);
    let further = runner.sync.options["aliases"].clone();
    let (server, former) = (runner.sync.server.clone(), former(worker, id));
    let former = former.filter(|former| former.sync.server == server).map(|former| former.sync.target.clone());
    let kind = JobKind::SwapAlias { alias, old: Some(old), new, further, former };
    if worker.send(id, Task::SwapAlias(generation), kind).is_err()
        && let Some(runner) = worker.runners.get_mut(&id)
    {
        runner.target = Target::Claimed;
    }
}

/// The target that a sync had before, where that serves until the present one is filled.
fn former(worker: &Worker, id: i32) -> Option<&Runner> {
    worker.runners.values().find(|runner| runner.sync.successor == Some(id))
}

/// A target that waits for that of another sync to be filled waits no longer when it is: searches go there from now on. Noted
/// before anything is removed, for until then the sync may take it back; and whether this one can be removed or not.
pub fn end_waiting(worker: &mut Worker, id: i32) {
    let Some(waiting) = worker.runners.get(&id) else { return };
    let Some(successor) = waiting.sync.successor else { return };
    if waiting.not_before.is_some_and(|at| at > Instant::now()) {
        return;
    }
    let (former, successor) = (waiting.sync.clone(), worker.runners.get(&successor));
    let noted = match successor {
        Some(filled) if !filled.serves() => return,
        Some(filled) => transaction(|| super::store::release_former(&former, &filled.sync)),
        // Gone without a word.
        None => transaction(|| super::store::release_orphan(&former)),
    };
    let Some(waiting) = worker.runners.get_mut(&id) else { return };
    match noted {
        Ok(true) => {
            waiting.sync.successor = None;
            claim_again(waiting);
            waiting.not_before = Some(Instant::now() + LAST_SEARCHES);
        }
        Ok(false) => super::process::catalog_is_stale(),
        Err(failed) => waiting.back_off(&failed.to_string()),
    }
}

/// Removes the target of a sync that is to end: the index, or the keys of the template page by page. True if a job was sent.
pub fn remove(worker: &mut Worker, id: i32) -> bool {
    let Some(runner) = worker.runners.get(&id) else { return false };
    // What is on its way to the target could make it anew.
    if runner.batches > 0 || matches!(runner.target, Target::Asked) || worker.is_shaped(id) {
        return false;
    }
    let (task, kind) = if runner.ownership.is_none() {
        // It may be another's by now.
        (Task::Claim, JobKind::Claim(worker.claim(runner)))
    } else if runner.sync.successor.is_some() {
        // Until then it gives signs of life: nobody else is to take it for one that was left.
        if let Some(runner) = worker.runners.get_mut(&id) {
            runner.target = Target::Ready;
        }
        return false;
    } else {
        let (next, kind) = match runner.sync.kind {
            Kind::Index => generation(&runner.sync, runner.sync.generation),
            Kind::Cache => {
                let glob = runner.templates.glob();
                (None, JobKind::ScanKeys { glob, cursor: None, count: PAGE })
            }
        };
        (Task::Drop(next), kind)
    };
    if worker.send(id, task, kind).is_err() {
        return false;
    }
    if let Some(runner) = worker.runners.get_mut(&id) {
        runner.target = Target::Asked;
    }
    true
}

/// A target that is to be removed is another's: it is left to that.
fn left_to(worker: &mut Worker, id: i32, identity: &str, by: &str, rival: Option<&Rival>) {
    let why = match rival {
        Some(rival) => fed_by_rival(worker, id, rival),
        // Our own, from another place.
        None if identity == super::process::incarnation() => {
            format!(
                "the target was claimed by this database before its machine was started anew, or by a copy of its files ({by})"
            )
        }
        None => format!("the target is fed by another owner ({by})"),
    };
    let Some(runner) = worker.runners.get_mut(&id) else { return };
    let literal = pgrx::spi::quote_literal(&runner.sync.name);
    runner.block(&format!("{why}, and not removed; SELECT fanout.drop_sync({literal}); leaves it to that, SELECT fanout.adopt({literal}); has it removed"));
}

/// Those of the keys that are the target's own, and no other sync's whose template they match as well.
fn own_keys(worker: &Worker, runner: &Runner, keys: &[String]) -> Vec<String> {
    let matching = |known: &Runner, key: &String| {
        known.templates.key.as_ref().is_some_and(|template| template.parse_key(key).is_some())
    };
    let mut own: Vec<String> = keys.iter().filter(|key| matching(runner, key)).cloned().collect();
    let others = worker.runners.values().filter(|other| {
        let stays = other.sync.phase != Phase::Drop || other.sync.successor.is_some();
        other.sync.server == runner.sync.server && stays && !other.is_parked()
    });
    for other in others {
        let (theirs, rest): (Vec<String>, Vec<String>) = own.into_iter().partition(|key| matching(other, key));
        own = rest;
        if theirs.is_empty() || other.source.is_none() {
            // Of which types its key is, is not known now: they are left.
            continue;
        }
        let page = IdPage { ids: theirs, ..IdPage::default() };
        let told = told_addresses(other, &page);
        // Where it cannot be told they are left, too.
        let not_theirs = |told: &Result<Option<Vec<u8>>, Failed>| match told {
            Ok(address) => address.is_none(),
            Err(failed) => failed.sqlstate.starts_with("22"),
        };
        own.extend(page.ids.into_iter().zip(told).filter(|(_, told)| not_theirs(told)).map(|(key, _)| key));
    }
    own
}

/// What removes the index of a generation, and which is to be removed after it: in the middle of a resync it is an older one
/// that is searched.
fn generation(sync: &Sync, generation: i32) -> (Option<String>, JobKind) {
    let older = (generation > 1).then(|| (generation - 1).to_string());
    (older, JobKind::DeleteIndex { concrete: sync.index_of(generation) })
}

/// The control document of a target that was removed is gone, too.
pub fn released(worker: &mut Worker, id: i32, result: delivery::Result<JobResult>) {
    match result {
        Ok(_) => end(worker, id),
        Err(error) => {
            if let Some(runner) = worker.runners.get_mut(&id) {
                claim_again(runner);
                fail(runner, &error);
            }
        }
    }
}

/// Nothing is left of the target: the sync ends.
fn end(worker: &mut Worker, id: i32) {
    if let Err(failed) = transaction(|| super::store::remove_sync(id)) {
        if let Some(runner) = worker.runners.get_mut(&id) {
            claim_again(runner);
            runner.back_off(&failed.to_string());
        }
        return;
    }
    worker.runners.remove(&id);
}

/// A step of the removal is done: the next page, or the end.
pub fn removed(worker: &mut Worker, id: i32, next: Option<String>, result: delivery::Result<JobResult>) {
    let Some(runner) = worker.runners.get_mut(&id) else { return };
    let Some(ownership) = runner.ownership.clone() else {
        // Another has taken it meanwhile.
        runner.target = Target::Unknown;
        return;
    };
    let (task, kind) = match result {
        Err(error) => {
            claim_again(runner);
            fail(runner, &error);
            return;
        }
        Ok(JobResult::Keys(page)) => {
            let mut batch = RedisBatch::new();
            let Some(runner) = worker.runners.get(&id) else { return };
            for (slot, key) in own_keys(worker, runner, &page.keys).iter().enumerate() {
                batch.push_delete(slot as u32, key);
            }
            (Task::Drop(Some(page.cursor.unwrap_or_default())), JobKind::Redis(batch))
        }
        Ok(JobResult::Redis(outcomes)) if outcomes.iter().any(|(_, outcome)| *outcome != RedisOutcome::Done) => {
            // From the start, a little later.
            let refused = outcomes.into_iter().find_map(|(_, outcome)| match outcome {
                RedisOutcome::Done => None,
                RedisOutcome::Retry { reason } | RedisOutcome::Rejected { reason } => Some(reason),
            });
            claim_again(runner);
            runner.back_off(&format!("keys could not be deleted: {}", refused.unwrap_or_default()));
            return;
        }
        Ok(JobResult::Redis(_)) if next.as_deref().is_some_and(|cursor| !cursor.is_empty()) => {
            let glob = runner.templates.glob();
            (Task::Drop(None), JobKind::ScanKeys { glob, cursor: next, count: PAGE })
        }
        Ok(JobResult::Done) if let Some(older) = next.as_deref().and_then(|older| older.parse().ok()) => {
            let (next, kind) = generation(&runner.sync, older);
            (Task::Drop(next), kind)
        }
        // The control document goes last: until it is gone the target counts as ours, and so does what is left of it.
        Ok(_) => (Task::Release, JobKind::Release(ownership)),
    };
    if worker.send(id, task, kind).is_err()
        && let Some(runner) = worker.runners.get_mut(&id)
    {
        // The queue is full: from the start, a little later.
        claim_again(runner);
    }
}

/// What is removed from the start a little later may be another's by then.
fn claim_again(runner: &mut Runner) {
    runner.ownership = None;
    runner.target = Target::Unknown;
}

/// Notes which fields the index does not have as the source's columns are by now, for `fanout.status`.
fn note_unfit(runner: &mut Runner, unfit: &[Unfit]) {
    let list: Vec<String> = unfit.iter().map(|unfit| format!("\"{}\": {}", unfit.field, unfit.reason)).collect();
    let note = (!list.is_empty())
        .then(|| format!("fields that the index can't have until fanout.resync() makes it anew: {}", list.join("; ")));
    if note == runner.sync.note {
        return;
    }
    if let Some(note) = &note {
        pgrx::warning!("pg_fanout: sync \"{}\": {note}", runner.sync.name);
    }
    let id = runner.sync.id;
    // If that fails, the next time that the index is asked for is soon enough.
    if transaction(|| super::store::set_note(id, note.as_deref())).is_ok() {
        runner.sync.note = note;
    }
}

/// The target is there but was not filled by us: this is how its filling begins.
fn fill(runner: &mut Runner, phase: Phase) {
    runner.sync.phase = Phase::Reconcile;
    want_phase(runner, phase);
}

fn ready(runner: &mut Runner) {
    if runner.sync.phase == Phase::Create && runner.wanted.is_none() {
        // Redis may hold keys of the template from an earlier life.
        fill(runner, Phase::Reconcile);
    }
    runner.target = Target::Ready;
    runner.publish();
}
