//! What came of jobs: acknowledgements, retries, dead letters.

use super::batch::Called;
use super::clock::{Clock, passable};
use super::cycle::{Sent, Task, Worker, want_phase};
use super::heartbeat;
use super::pending::Slot;
use super::reading::read_as_owner;
use super::runner::{Runner, Target, shared_add};
use super::scan::{Ids, Orphans};
use super::store::{self, DeadLetter};
use super::strikes::Work;
use super::transaction::{Failed, transaction};
use crate::catalog::Phase;
use crate::journal::format::Orphan;
use crate::settings;
use delivery::bulk::BulkOutcome;
use delivery::engine::IdPage;
use delivery::error::{ErrorKind, RetryClass};
use delivery::keyspace::RedisOutcome;
use delivery::sender::{JobResult, Report};
use rustc_hash::FxHashSet;
use std::time::{Duration, Instant};

/// How long a document waits that its target asked patience for: between these, growing with the attempts.
const ITEM_RETRY: (u64, u64) = (50, 10_000);

/// The same after so many attempts, in milliseconds.
fn item_delay(attempts: u32) -> u64 {
    (ITEM_RETRY.0 << attempts.min(10)).min(ITEM_RETRY.1)
}

/// Seconds before a row is tried again that could not be read, though it may be another time.
const SLOW_RETRY: (u64, u64) = (1, 300);

/// So often is a row read alone before it is held against it that an extension fails for it: for 15 seconds.
const READINGS: u32 = 5;

/// How long, in milliseconds, other documents wait at most when all of a batch were asked for patience.
const PAUSE: u64 = 1000;

/// So often was a document tried before it is held against it that the connection breaks each time that it is sent alone.
const ALONE: u32 = 8;

/// So many documents refused one after the other, and none taken, are no fault of the documents: a mapping, or something in
/// between that answers in the target's stead.
const REFUSED_IN_A_ROW: usize = 1000;

/// What one document's outcome means, whichever the target.
enum Verdict {
    Done,
    Retry { status: Option<u16>, reason: String },
    Rejected { status: Option<u16>, reason: String },
    Conflict { current: Option<u64> },
    IndexMissing,
}

impl From<BulkOutcome> for Verdict {
    fn from(outcome: BulkOutcome) -> Self {
        match outcome {
            BulkOutcome::Done => Self::Done,
            BulkOutcome::VersionConflict { current } => Self::Conflict { current },
            BulkOutcome::Rejected { status, reason } => Self::Rejected { status: Some(status), reason },
            BulkOutcome::Retry { status, reason } => Self::Retry { status: Some(status), reason },
            BulkOutcome::IndexMissing => Self::IndexMissing,
        }
    }
}

impl From<RedisOutcome> for Verdict {
    fn from(outcome: RedisOutcome) -> Self {
        match outcome {
            RedisOutcome::Done => Self::Done,
            RedisOutcome::Retry { reason } => Self::Retry { status: None, reason },
            RedisOutcome::Rejected { reason } => Self::Rejected { status: None, reason },
        }
    }
}

/// Takes one report.
pub fn take(worker: &mut Worker, report: Report) {
    let Some(Sent { sync: id, incarnation, task, .. }) = worker.sent.remove(&report.tag) else { return };
    if let Task::Heartbeat(beats) = task {
        // Of more than this sync.
        return heartbeat::answered(worker, &beats, report.result);
    }
    let Some(runner) = worker.runners.get(&id) else { return };
    // Answers of a target that is not the present one say nothing of it. Batches and refreshes count all the same: who
    // sent them waits for them.
    if incarnation != runner.incarnation && !matches!(task, Task::Batch(_) | Task::Refresh(_)) {
        return;
    }
    match task {
        Task::Batch(slots) => {
            if let Some(runner) = worker.runners.get_mut(&id) {
                runner.batches = runner.batches.saturating_sub(1);
            }
            match report.result {
                Ok(JobResult::Bulk(outcomes)) => {
                    settle(worker, id, slots.len(), report.bytes, outcomes.into_iter().map(|(s, o)| (s, o.into())));
                }
                Ok(JobResult::Redis(outcomes)) => {
                    settle(worker, id, slots.len(), report.bytes, outcomes.into_iter().map(|(s, o)| (s, o.into())));
                }
                Ok(_) => {
                    if let Some(runner) = worker.runners.get_mut(&id) {
                        runner.retry_all(&slots);
                    }
                }
                Err(error) => batch_failed(worker, id, &slots, report.bytes, &error),
            }
        }
        Task::Ids(number) if number != runner.scan_number => {}
        Task::Ids(_) => match report.result {
            Ok(JobResult::Ids(page)) => names(worker, id, &page),
            Ok(JobResult::Keys(page)) => {
                names(worker, id, &IdPage { ids: page.keys, cursor: page.cursor, ..IdPage::default() });
            }
            other => {
                if let Some(runner) = worker.runners.get_mut(&id) {
                    if let Some(scan) = &mut runner.scan {
                        // The cursor may be gone with the connection: from the start.
                        scan.ids = Ids::Next(None);
                    }
                    if let Err(error) = other {
                        fail(runner, &error);
                    }
                }
            }
        },
        Task::Refresh(ticket) => {
            let database = worker.database;
            if let Some(runner) = worker.runners.get_mut(&id) {
                runner.refreshing = false;
                match report.result {
                    Ok(_) => {
                        runner.publish();
                        runner.slot.set_done(ticket);
                        database.wake_waiters();
                    }
                    Err(error) => {
                        if error.kind() == ErrorKind::NotFound && matches!(runner.target, Target::Ready) {
                            runner.target = Target::Claimed;
                            want_phase(runner, Phase::Reconcile);
                        }
                        let epoch = runner.pending.next_epoch(super::shared::now());
                        runner.waits.push_front((ticket, epoch));
                        fail(runner, &error);
                    }
                }
            }
        }
        Task::Farewell => {}
        Task::Release => super::target::released(worker, id, report.result),
        Task::Drop(next) => super::target::removed(worker, id, next, report.result),
        task => super::target::answered(worker, id, &task, report.result),
    }
}

/// A job failed as a whole: what that means for the sync.
pub fn fail(runner: &mut Runner, error: &delivery::Error) {
    match error.retry_class() {
        RetryClass::Blocked | RetryClass::Permanent => runner.block(&error.to_string()),
        RetryClass::Transient | RetryClass::Split => runner.back_off(&error.to_string()),
    }
}

fn batch_failed(worker: &mut Worker, id: i32, slots: &[Slot], bytes: usize, error: &delivery::Error) {
    let Some(runner) = worker.runners.get_mut(&id) else { return };
    let cut = error.kind() == ErrorKind::Cut;
    let class = match slots {
        // A document is too large when it was cut off alone, and often: nothing is lost by patience.
        [slot] if cut && runner.flow.on_cut(bytes) && runner.pending.attempts(*slot) >= ALONE => RetryClass::Split,
        [_, _, ..] if cut && runner.flow.on_cut(bytes) => RetryClass::Split,
        _ => error.retry_class(),
    };
    match class {
        RetryClass::Transient => {
            if !cut {
                runner.flow.on_overloaded();
            }
            runner.retry_all(slots);
            runner.back_off(&error.to_string());
        }
        RetryClass::Blocked => {
            runner.retry_all(slots);
            runner.block(&error.to_string());
        }
        class @ (RetryClass::Split | RetryClass::Permanent) => {
            if let [slot] = slots {
                reject(worker, id, vec![(*slot, error.status(), error.to_string())]);
                return;
            }
            if class == RetryClass::Split {
                runner.flow.on_too_large(bytes);
            }
            runner.batch_limit = (slots.len() / 2).max(1);
            runner.slot.set_error(&error.to_string());
            runner.retry_all(slots);
        }
    }
}

fn settle(
    worker: &mut Worker,
    id: i32,
    documents: usize,
    bytes: usize,
    outcomes: impl Iterator<Item = (Slot, Verdict)>,
) {
    let mut done = Vec::with_capacity(documents);
    let mut rejected = Vec::new();
    let (mut overloaded, mut denied, mut missing, mut passed, mut last_version) = (None, None, false, None, None);
    let Some(runner) = worker.runners.get_mut(&id) else { return };
    let now = Instant::now();
    let one_of_many = runner.templates.period.is_some();
    for (slot, verdict) in outcomes {
        match verdict {
            Verdict::Done => done.push(slot),
            // Success only if we issued the version that the target holds: it is of a later reading then.
            Verdict::Conflict { current: Some(current) } if worker.clock.may_have_issued(current) => done.push(slot),
            Verdict::Conflict { current } => {
                // With one that is not told, or among the last that there are, each try may conflict again.
                let at_once = current.is_some_and(passable);
                let delay = Duration::from_millis(item_delay(runner.pending.attempts(slot)));
                runner.pending.retry(slot, (!at_once).then(|| now + delay));
                let which = if at_once { &mut passed } else { &mut last_version };
                *which = current.max(*which);
                shared_add(&runner.slot.retried, 1);
            }
            Verdict::Retry { status, reason } => {
                let delay = item_delay(runner.pending.attempts(slot));
                runner.pending.retry(slot, Some(now + Duration::from_millis(delay)));
                let shortest = overloaded.as_ref().map_or(delay, |&(_, other): &(_, u64)| delay.min(other));
                overloaded = Some((format!("{}: {reason}", status.unwrap_or(0)), shortest));
                // One of several indices may be without writes for good, as those of the past are where it is so decided.
                let blocked_alone = one_of_many && reason.starts_with("cluster_block_exception");
                if matches!(status, Some(401 | 403)) && !blocked_alone {
                    denied = Some(reason);
                }
                shared_add(&runner.slot.retried, 1);
            }
            Verdict::Rejected { status, reason } => rejected.push((slot, status, reason)),
            Verdict::IndexMissing => {
                missing = true;
                runner.pending.retry(slot, None);
            }
        }
    }
    let clean = overloaded.is_none() && !missing;
    let nothing_else = clean && denied.is_none();
    if !done.is_empty() {
        runner.refused_in_a_row = 0;
    }
    acknowledge(runner, &done);
    shared_add(&runner.slot.delivered, done.len());
    if let Some(version) = passed {
        pgrx::log!(
            "pg_fanout: the target of sync \"{}\" holds version {version}, which is above ours; the clock moves past it",
            runner.sync.name
        );
        worker.clock.pass(version);
    }
    if missing && matches!(runner.target, Target::Ready) {
        runner.target = Target::Claimed;
        // Noted before it is made again: the reply to that may be lost, and then the index looks like one that is filled.
        want_phase(runner, Phase::Reconcile);
        runner.slot.set_error("the index is gone; it is made and filled again");
    }
    if let Some(reason) = denied {
        runner.block(&reason);
    } else if let Some((reason, delay)) = overloaded {
        runner.flow.on_overloaded();
        runner.slot.set_error(&reason);
        if done.is_empty() {
            // Not for as long as the sync backs off: it may be a few documents whose shard is away, and each of them waits
            // longer every time. The others shall not.
            runner.failing = true;
            runner.not_before = Some(now + Duration::from_millis(delay.min(PAUSE)));
        }
    } else if clean {
        runner.succeed();
        runner.flow.on_success(bytes);
        if runner.batch_limit != usize::MAX {
            runner.batch_limit = if runner.batch_limit > 100_000 { usize::MAX } else { runner.batch_limit * 2 };
        }
    }
    if let Some(version) = last_version.filter(|_| nothing_else) {
        runner.slot.set_error(&format!(
            "the index holds a document of version {version}, which no other can be above; fanout.resync() makes another"
        ));
    }
    if !rejected.is_empty() {
        reject(worker, id, rejected);
    }
}

/// Acknowledges deliveries, and forgets what the tables hold of them.
pub fn acknowledge(runner: &mut Runner, slots: &[Slot]) {
    let mut cured = Vec::new();
    if !runner.dead.is_empty() {
        for &slot in slots {
            let address = runner.pending.address(slot);
            // A deletion in place of a refused document does not cure it.
            if !runner.delete_instead.remove(address) && runner.dead.contains(address) {
                cured.push(address.to_vec());
            }
        }
    }
    let mut unstored = Vec::new();
    for &slot in slots {
        let acknowledged = runner.pending.acknowledge(slot);
        if let Some(address) = acknowledged.stored {
            unstored.push(address);
        }
        if let (Some(slice), Some(scan)) = (acknowledged.slice, &mut runner.scan) {
            scan.acknowledged(slice);
        }
    }
    let sync = runner.sync.id;
    if !cured.is_empty() && transaction(|| store::remove_dead_letters(sync, &cured)).is_ok() {
        for address in &cured {
            runner.dead.remove(address);
        }
    }
    if !unstored.is_empty()
        && let Ok(removed) = transaction(|| store::unstore(sync, &unstored))
    {
        runner.stored = (runner.stored - removed).max(0);
    }
}

/// Documents refused for good: noted as dead letters first, acknowledged then.
fn reject(worker: &mut Worker, id: i32, rejected: Vec<(Slot, Option<u16>, String)>) {
    let Some(runner) = worker.runners.get_mut(&id) else { return };
    let sync = runner.sync.id;
    let addresses: Vec<Vec<u8>> = rejected.iter().map(|&(slot, ..)| runner.pending.address(slot).to_vec()).collect();
    let noted = read_as_owner(runner.slot, &runner.sync, Work::Keys, || {
        addresses
            .iter()
            .map(|address| (runner.render(address).unwrap_or_default(), runner.key(address)))
            .collect::<Vec<_>>()
    })
    .or_else(|_| Ok::<_, Failed>(vec![(String::new(), None); addresses.len()]))
    .and_then(|ids| {
        transaction(|| {
            let letters: Vec<DeadLetter> = rejected
                .iter()
                .zip(&addresses)
                .zip(ids)
                .map(|(((_, status, reason), address), (id, key))| DeadLetter {
                    sync,
                    address: address.clone(),
                    id,
                    key,
                    status: status.map(i32::from),
                    reason: reason.clone(),
                })
                .collect();
            store::add_dead_letters(&letters);
        })
    });
    match noted {
        Ok(()) => {
            let delete = runner.sync.options["on_reject"] == "delete";
            if let Some((_, _, reason)) = rejected.first() {
                pgrx::warning!(
                    "pg_fanout: sync \"{}\": the target refused {} document(s) for good, see fanout.dead_letters",
                    runner.sync.name,
                    rejected.len()
                );
                runner.slot.set_error(reason);
            }
            // Those that were refused before, and that are tried again, do not tell that it refuses all.
            let new = addresses.iter().filter(|&address| runner.dead.insert(address.clone())).count();
            let mut slots = Vec::new();
            for ((slot, ..), address) in rejected.iter().zip(&addresses) {
                if delete && runner.delete_instead.insert(address.clone()) {
                    // The old document must not stay searchable: it is deleted in place of the new one.
                    runner.pending.retry(*slot, None);
                } else {
                    slots.push(*slot);
                }
            }
            let dead = std::mem::take(&mut runner.dead);
            acknowledge(runner, &slots);
            runner.dead = dead;
            bound_dead_letters(runner, new);
            runner.refused_in_a_row += new;
            if runner.refused_in_a_row >= REFUSED_IN_A_ROW {
                let (_, _, reason) = &rejected[rejected.len() - 1];
                runner.block(&format!(
                    "the target has refused the last {} documents, and taken none: {reason}; fanout.retry() tries them anew \
                     when that is put right",
                    runner.refused_in_a_row
                ));
            }
            let letters = runner.dead.len();
            runner.slot.dead_letters.store(letters as u64, std::sync::atomic::Ordering::Relaxed);
        }
        Err(failed) => {
            for (slot, ..) in rejected {
                runner.pending.retry(slot, Some(Instant::now() + Duration::from_secs(1)));
            }
            runner.back_off(&format!("cannot note dead letters: {failed}"));
        }
    }
}

/// Forgets the oldest dead letters past the bound, and says so before there are so many; `new` of them have just come.
fn bound_dead_letters(runner: &mut Runner, new: usize) {
    let (letters, bound) = (runner.dead.len(), settings::dead_letters());
    let name = &runner.sync.name;
    if letters > bound {
        let (sync, keep) = (runner.sync.id, bound as i64);
        match transaction(|| store::forget_dead_letters(sync, keep)) {
            Ok(forgotten) => {
                pgrx::warning!(
                    "pg_fanout: sync \"{name}\" has more than {bound} dead letters (fanout.dead_letters): the oldest {} are \
                     forgotten; fanout.verify() finds such rows",
                    forgotten.len()
                );
                for address in &forgotten {
                    runner.dead.remove(address);
                }
            }
            Err(failed) => runner.slot.set_error(&format!("cannot forget dead letters: {failed}")),
        }
    } else if letters > bound / 5 * 4 && letters.saturating_sub(new) <= bound / 5 * 4 {
        pgrx::warning!(
            "pg_fanout: sync \"{name}\" has {letters} dead letters; past {bound} (fanout.dead_letters) the oldest are forgotten"
        );
    }
}

/// One row cannot be read for its data: a dead letter of its own.
pub fn unreadable(worker: &mut Worker, id: i32, failed: &Failed) {
    let Some(runner) = worker.runners.get_mut(&id) else { return };
    let slots = runner.pending.take(1);
    if slots.is_empty() {
        runner.block(&format!("the source cannot be read: {failed}"));
        return;
    }
    let reason = format!("the row cannot be read: {failed}");
    reject(worker, id, slots.into_iter().map(|slot| (slot, None, reason.clone())).collect());
    if let Some(runner) = worker.runners.get_mut(&id) {
        runner.batch_limit = 2;
    }
}

/// One row alone takes longer to read than fanout.read_timeout, or cannot be read now: tried again, less and less often, and
/// the others go on. One that fails each time in a way that PostgreSQL has no code for becomes a dead letter in the end; one that
/// takes too long does not, as that may be for a lock.
pub fn set_apart(worker: &mut Worker, id: i32, failed: &Failed) {
    let Some(runner) = worker.runners.get_mut(&id) else { return };
    runner.batch_limit = usize::MAX;
    let Some(slot) = runner.pending.take(1).pop() else {
        runner.back_off("rows cannot be read now, or not within fanout.read_timeout");
        return;
    };
    let address = runner.pending.address(slot).to_vec();
    let attempts = runner.slow.entry(address.clone()).or_default();
    *attempts += 1;
    if *attempts >= READINGS && !failed.is_timeout() {
        runner.slow.remove(&address);
        reject(worker, id, vec![(slot, None, format!("the row cannot be read, as of {READINGS} attempts: {failed}"))]);
        return;
    }
    let delay = (SLOW_RETRY.0 << (*attempts - 1).min(10)).min(SLOW_RETRY.1);
    runner.pending.retry(slot, Some(Instant::now() + Duration::from_secs(delay)));
}

/// The addresses of a page of ids, or of keys, as [`Runner::parse`] tells them.
fn addresses(runner: &Runner, page: &IdPage) -> Vec<Option<Vec<u8>>> {
    told_addresses(runner, page).into_iter().map(|told| told.ok().flatten()).collect()
}

/// The same, and of what it cannot be told why. A class of 22 says that it is no text of the key's type.
pub fn told_addresses(runner: &Runner, page: &IdPage) -> Vec<Result<Option<Vec<u8>>, Failed>> {
    let places: Vec<usize> = (0..page.ids.len()).collect();
    // As the owner: an input function, or the CHECK of a domain, is the user's own code.
    let parse = |places: &[usize]| {
        let one = |&at: &usize| runner.parse(Called::on(page, at));
        read_as_owner(runner.slot, &runner.sync, Work::Keys, || places.iter().map(one).collect::<Vec<_>>())
    };
    match parse(&places) {
        Ok(all) => all.into_iter().map(Ok).collect(),
        // One of them is no text of the key's type: one by one.
        Err(_) => places.iter().map(|place| parse(&[*place]).map(|mut one| one.pop().flatten())).collect(),
    }
}

/// A page of the target's ids or keys: each is marked, so that it is written if its row is there and deleted if not.
fn names(worker: &mut Worker, id: i32, page: &IdPage) {
    let Some(runner) = worker.runners.get_mut(&id) else { return };
    runner.pace.spend(page.ids.len(), Instant::now());
    if runner.source.is_none() {
        // The table was altered while the page was on its way: from the start, once the source is known again.
        if let Some(scan) = &mut runner.scan {
            scan.ids = Ids::Next(None);
        }
        return;
    }
    let parsed = addresses(runner, page);
    let again = runner.scan.as_ref().is_some_and(|scan| matches!(scan.orphans, Orphans::Listing(_)));
    let (mut orphans, mut foreign) = (Vec::new(), 0);
    for (at, address) in parsed.into_iter().enumerate() {
        match (address, runner.orphan(page, at)) {
            // Read already, when it was listed first.
            (Some(_), _) if again => {}
            (Some(address), _) => runner.pending.mark(&address),
            (None, Some(orphan)) => orphans.push(orphan),
            (None, None) => foreign += 1,
        }
    }
    if foreign > 0 {
        pgrx::log!(
            "pg_fanout: the target of sync \"{}\" holds {foreign} entries that are none of ours",
            runner.sync.name
        );
    }
    match without_address(runner, &mut worker.clock, &orphans, page.cursor.is_none()) {
        Err(failed) => {
            if let Some(scan) = &mut runner.scan {
                scan.ids = Ids::Next(None);
            }
            return runner.back_off(&failed.to_string());
        }
        Ok(state) => {
            if let Some(scan) = &mut runner.scan {
                scan.orphans = state;
            }
        }
    }
    if let Some(scan) = &mut runner.scan {
        if page.cursor.is_some() {
            scan.ids = Ids::Next(page.cursor.clone());
        } else {
            scan.ids = Ids::Done;
            scan.ids_epoch = Some(runner.pending.next_epoch(super::shared::now()));
        }
    }
    runner.succeed();
}

/// Documents of a page whose ids tell no key. The `last` page ends the listing. Gives how far the scan is with them.
fn without_address(runner: &mut Runner, clock: &mut Clock, orphans: &[Orphan], last: bool) -> Result<Orphans, Failed> {
    let met = match runner.scan.as_ref().map_or(Orphans::None, |scan| scan.orphans) {
        Orphans::Listing(fence) => {
            mark_below(runner, orphans, fence)?;
            return Ok(if last { Orphans::None } else { Orphans::Listing(fence) });
        }
        Orphans::Met(met) => Some(met),
        _ => None,
    };
    let can_be_passed = |version: &u64| passable(*version) || clock.may_have_issued(*version);
    let met = orphans.iter().map(|orphan| orphan.version).filter(can_be_passed).chain(met).max();
    match met {
        Some(met) if last => {
            clock.pass(met);
            runner.mark_dead();
            let fence = clock.next()?;
            // Rows that came since the scan began, and were delivered before this, may be in later blocks.
            let source = runner.sync.source;
            let (blocks, ..) = transaction(|| store::extent(source))?;
            if let Some(scan) = &mut runner.scan {
                scan.extend(blocks);
            }
            Ok(Orphans::Fenced(fence))
        }
        Some(met) => Ok(Orphans::Met(met)),
        None => Ok(Orphans::None),
    }
}

/// Marks documents of lower versions than this to be deleted.
fn mark_below(runner: &mut Runner, orphans: &[Orphan], fence: u64) -> Result<(), Failed> {
    let stale: Vec<&Orphan> = orphans.iter().filter(|orphan| orphan.version < fence).collect();
    if stale.is_empty() {
        return Ok(());
    }
    let source = runner.sync.source;
    let (_, files, _) = transaction(|| store::extent(source))?;
    if runner.scan.as_ref().is_some_and(|scan| scan.files != files) {
        // Rewritten under the scan: not all rows were met, perhaps.
        want_phase(runner, Phase::Reconcile);
        return Ok(());
    }
    // A row that was refused keeps the document that it had before.
    let kept: FxHashSet<String> = read_as_owner(runner.slot, &runner.sync, Work::Keys, || {
        runner.dead.iter().filter_map(|address| runner.render(address)).collect()
    })?;
    for orphan in stale.into_iter().filter(|orphan| !kept.contains(orphan.id)) {
        runner.pending.mark(&orphan.to_address());
    }
    Ok(())
}
