//! `fanout.verify()`: are both sides the same?
//!
//! Neither side is read in the order of its keys: engines and Redis have no such order to give. The rows are read block by
//! block and their documents asked of the target by id; then the target's ids are enumerated and their rows asked of the
//! table. That takes no sort, and memory for a page only.
//!
//! An id that is the hash of a long key tells no row. The names of rows that have such an id are kept instead, a digest each:
//! a document that was there before the rows were read, and is none of these, has no row. Nor has one whose id is no key, and
//! that is ours by its version.
//!
//! What differs is a suspect: it may be on its way. When a page of suspects is together, all that was committed until then is
//! waited for, and they are looked at again: [`super::suspect`] says when that proves something.
//!
//! A step reads one page in a statement of its own, and the procedure commits after it: no snapshot is older than a page.
//! How far it is, [`saved`] keeps: a row that changes after its block was read is delivered anew, and a document that is
//! written after its id was listed was written by its row, so neither need be looked at again when another call goes on.

mod saved;

use super::attempt::attempt;
use super::subject::{Held, Subject, held};
use super::suspect::{Difference, Sight, Suspect, Verdict};
use crate::capture::{self, image};
use crate::catalog::acting::privileged;
use crate::catalog::admin::not_parked;
use crate::catalog::{self, Kind, Phase, Sync, ours};
use crate::document::{as_of_now, as_worker};
use crate::error::{failure, not_null};
use crate::journal::format::Orphan;
use crate::network::{AnyTarget, Asked, raise};
use crate::status;
use crate::worker::scan::Scan;
use crate::worker::shared::{self, SyncState};
use crate::worker::store;
use crate::worker::transaction::Class;
use crate::worker::{Called, Named};
use delivery::engine::IdPage;
use delivery::id::is_hashed;
use delivery::keyspace::RedisTarget;
use delivery::ownership::is_another_run;
use pgrx::prelude::*;
use pgrx::{JsonB, Spi};
use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::json;
use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

/// Bytes of documents that a page should have.
const PAGE_BYTES: usize = 4 << 20;
/// Rows, or ids, that a page has at most.
const PAGE_ROWS: usize = 1000;
/// Rows of the first page: they may be of any size.
const FIRST_ROWS: usize = 50;
/// Suspects that are compared again together.
const SUSPECTS: usize = 1000;
/// Digests of names that are kept at most; past that, what is none of them is not known to have no row.
const DIGESTS: usize = 1_000_000;
/// How long a wait takes at most while another step looks.
const LOOK: Duration = Duration::from_millis(100);

extension_sql!(
    r#"
CREATE PROCEDURE fanout.verify(
    sync            text,
    repair          boolean DEFAULT false,
    timeout         interval DEFAULT '1 minute',
    examples        integer DEFAULT 10,
    resume          boolean DEFAULT false,
    INOUT rows      bigint DEFAULT NULL,
    INOUT documents bigint DEFAULT NULL,
    INOUT missing   bigint DEFAULT NULL,
    INOUT extra     bigint DEFAULT NULL,
    INOUT different bigint DEFAULT NULL,
    INOUT dead      bigint DEFAULT NULL,
    INOUT unsettled bigint DEFAULT NULL,
    INOUT repaired  bigint DEFAULT NULL,
    INOUT differences jsonb DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
    step record;
BEGIN
    PERFORM fanout.verify_begin(sync, repair, timeout, examples, resume);
    -- A commit after each page: no snapshot is held for long, and what is to be repaired is on its way at once.
    COMMIT;
    LOOP
        SELECT * INTO step FROM fanout.verify_step() AS s;
        COMMIT;
        EXIT WHEN step.finished;
    END LOOP;
    rows := step.rows;
    documents := step.documents;
    missing := step.missing;
    extra := step.extra;
    different := step.different;
    dead := step.dead;
    unsettled := step.unsettled;
    repaired := step.repaired;
    differences := step.differences;
END
$$;
COMMENT ON PROCEDURE fanout.verify IS
'compares all rows of a sync with all documents of its target, and with repair => true delivers those that differ; with resume => true goes on with one that was ended before it was done; CALL it outside of a transaction block';
COMMENT ON FUNCTION fanout.verify_begin IS 'begins what CALL fanout.verify() does page by page';
COMMENT ON FUNCTION fanout.verify_step IS 'one page of CALL fanout.verify()';
"#,
    name = "verify",
    requires = ["bootstrap", verify_begin, verify_step]
);

/// Both sides of an address where they differ.
struct Differing {
    address: Vec<u8>,
    row: Option<Vec<u8>>,
    held: Option<Held>,
    difference: Difference,
}

/// What the next step does.
enum Stage {
    /// What is being delivered is waited for: whatever has a lower version than [`Verification::begun`] was read by then.
    Beginning,
    /// Rows of the table, asked of the target.
    Rows(Scan),
    /// Ids of the target, asked of the table.
    Names {
        /// Of the next page.
        cursor: Option<String>,
        /// Of Redis, whose cursors are good for one run of it.
        run: Option<String>,
    },
    /// All is compared.
    Done,
}

/// A verification under way.
struct Verification {
    sync: String,
    repair: bool,
    timeout: Duration,
    examples: usize,
    definition: serde_json::Value,
    note: saved::Note,
    stage: Stage,
    suspects: Vec<Suspect>,
    /// Of rows whose ids are hashes, the digests of their names.
    digests: FxHashSet<u64>,
    /// Some rows may be missing among these.
    incomplete: bool,
    /// When it began, microseconds since 1970. Versions that are issued later are higher.
    begun: u64,
    /// The ticket that is waited for before suspects are compared again, and since when.
    ticket: Option<(u64, Instant)>,
    mean_bytes: usize,
    rows: i64,
    documents: i64,
    missing: i64,
    extra: i64,
    different: i64,
    dead: i64,
    unsettled: i64,
    repaired: i64,
    found: Vec<serde_json::Value>,
}

thread_local! {
    static CURRENT: RefCell<Option<Verification>> = const { RefCell::new(None) };
}

/// Begins a verification of the caller's sync in this session.
#[pg_extern(schema = "fanout", volatile, parallel_unsafe)]
fn verify_begin(
    sync: Option<&str>,
    repair: Option<bool>,
    timeout: Option<Interval>,
    examples: Option<i32>,
    resume: Option<bool>,
) {
    catalog::require_preloaded();
    let (sync, subject) = Subject::of(not_null("sync", sync));
    let sync = not_parked(sync);
    subject.unwrap_or_else(|why| unready(&sync, &why));
    check_phase(&sync);
    let timeout = timeout.map_or(Duration::MAX, |timeout| {
        Duration::from_micros(u64::try_from(timeout.as_micros().max(0)).unwrap_or(u64::MAX))
    });
    let examples = examples.unwrap_or(10).max(0) as usize;
    let mut this = Verification::new(&sync, repair.unwrap_or(false), timeout, examples);
    let name = &sync.name;
    if resume.unwrap_or(false) {
        match this.go_on(&sync) {
            Ok(()) => notice!(
                "the verification of sync \"{name}\" goes on where an earlier one was, after {} rows and {} documents",
                this.rows,
                this.documents
            ),
            Err(why) => notice!("the verification of sync \"{name}\" begins anew: {why}"),
        }
    } else if saved::is_left(&sync, &this.definition) {
        notice!(
            "an earlier verification of sync \"{name}\" is not done: resume => true goes on with it, this one begins anew"
        );
    }
    CURRENT.replace(Some(this));
}

/// Does the next page of this session's verification.
#[pg_extern(schema = "fanout", volatile, parallel_unsafe)]
#[allow(clippy::type_complexity)]
fn verify_step() -> TableIterator<
    'static,
    (
        name!(finished, bool),
        name!(rows, i64),
        name!(documents, i64),
        name!(missing, i64),
        name!(extra, i64),
        name!(different, i64),
        name!(dead, i64),
        name!(unsettled, i64),
        name!(repaired, i64),
        name!(differences, JsonB),
    ),
> {
    // Taken out: an ERROR ends the verification.
    let Some(mut this) = CURRENT.take() else {
        failure(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "no verification is under way in this session",
        )
        .hint("CALL fanout.verify('sync');")
        .raise()
    };
    let finished = this.step();
    let row = (
        finished,
        this.rows,
        this.documents,
        this.missing,
        this.extra,
        this.different,
        this.dead,
        this.unsettled,
        this.repaired,
        JsonB(json!(this.found)),
    );
    if !finished {
        CURRENT.replace(Some(this));
    }
    TableIterator::once(row)
}

fn unready(sync: &Sync, why: &str) -> ! {
    failure(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("sync \"{}\" can't be verified: {why}", sync.name),
    )
    .hint("See fanout.status and fanout.check().")
    .raise()
}

/// The target failed.
fn unanswered(sync: &Sync, error: &delivery::Error) -> ! {
    let index = sync.concrete_index();
    let index = (sync.kind == Kind::Index).then_some(index.as_str());
    raise(&Asked { server: &sync.server, index }, error)
}

/// A target that is not filled, or that nothing is delivered to, differs for reasons that are known.
fn check_phase(sync: &Sync) {
    if sync.paused {
        unready(sync, "it is paused");
    }
    if sync.phase != Phase::Live {
        unready(sync, &format!("its phase is {}; wait until it is live", sync.phase.as_str()));
    }
    if shared::sync_slot(sync.id, false).is_some_and(|slot| slot.state() == SyncState::Blocked) {
        unready(sync, &format!("it is blocked: {}", status::last_error(sync).unwrap_or_default()));
    }
}

impl Verification {
    fn new(sync: &Sync, repair: bool, timeout: Duration, examples: usize) -> Self {
        Self {
            sync: sync.name.clone(),
            repair,
            timeout,
            examples,
            definition: saved::definition(sync, repair),
            note: saved::Note::new(),
            stage: Stage::Beginning,
            suspects: Vec::new(),
            digests: FxHashSet::default(),
            incomplete: false,
            begun: shared::now() as u64,
            ticket: None,
            mean_bytes: 0,
            rows: 0,
            documents: 0,
            missing: 0,
            extra: 0,
            different: 0,
            dead: 0,
            unsettled: 0,
            repaired: 0,
            found: Vec::new(),
        }
    }

    /// Does the next page. True if all is compared.
    fn step(&mut self) -> bool {
        // Anew in each step: the sync may have been altered, or the caller lost the right to it.
        let (sync, subject) = Subject::of(&self.sync);
        let subject = subject.unwrap_or_else(|why| unready(&sync, &why));
        check_phase(&sync);
        let target = subject.target().unwrap_or_else(|failure| failure.raise());
        if self.suspects.len() >= SUSPECTS || matches!(self.stage, Stage::Done) {
            self.settle(&subject, &target);
        } else {
            self.stage = match std::mem::replace(&mut self.stage, Stage::Done) {
                Stage::Beginning if !self.waited(&sync) => Stage::Beginning,
                Stage::Beginning => {
                    let (blocks, files, total) = privileged(|| store::extent(sync.source));
                    Stage::Rows(Scan::new(files, blocks, total, false))
                }
                Stage::Rows(scan) => self.rows(&subject, &target, scan),
                Stage::Names { cursor, run } => self.names(&subject, &target, cursor, run),
                Stage::Done => Stage::Done,
            };
        }
        let done = matches!(self.stage, Stage::Done) && self.suspects.is_empty();
        if done {
            self.forget(&sync)
        } else {
            self.note(&sync)
        }
        done
    }

    fn page_rows(&self) -> usize {
        PAGE_BYTES.checked_div(self.mean_bytes).map_or(FIRST_ROWS, |rows| rows.clamp(1, PAGE_ROWS))
    }

    /// Compares the rows of some blocks.
    fn rows(&mut self, subject: &Subject, target: &AnyTarget, mut scan: Scan) -> Stage {
        let sync = &subject.sync;
        let Some((slice, from, to)) = scan.next_slice(self.page_rows()) else {
            // Rewritten: its rows have other places now.
            self.incomplete |= privileged(|| store::extent(sync.source)).1 != scan.files;
            return Stage::Names { cursor: None, run: None };
        };
        let (plans, source) = subject.reading();
        let read = attempt(|| {
            let mut rows = Vec::new();
            let visit = |address: &[u8], document: &[u8]| rows.push((address.to_vec(), document.to_vec()));
            let count = as_worker(sync, || plans.read_blocks(source, from, to, visit));
            (rows, count)
        });
        let (rows, count) = match read {
            Ok(rows) => rows,
            Err(failed) if failed.class() != Class::Data => unready(&subject.sync, &failed.to_string()),
            Err(_) if to - from > 1 => {
                scan.was_not_read(slice);
                return Stage::Rows(scan);
            }
            // One of the rows of this block cannot be read as a document: those that can, one by one.
            Err(_) => {
                let rows = self.one_by_one(subject, from);
                let count = rows.len();
                (rows, count)
            }
        };
        let bytes: usize = rows.iter().map(|(_, document)| document.len()).sum();
        if !rows.is_empty() {
            self.mean_bytes = (bytes / rows.len()).max(64);
        }
        scan.was_read(slice, to - from, count, 0);
        self.rows += rows.len() as i64;
        for page in rows.chunks(PAGE_ROWS) {
            let names: Vec<Named> =
                as_worker(sync, || page.iter().map(|(address, _)| name(subject, address)).collect());
            self.keep(sync, &names);
            let held = self.held(subject, target, names);
            for ((address, row), held) in page.iter().zip(held) {
                if difference(subject, Some(row), held.as_ref()).is_some() {
                    self.suspects.push(Suspect::new(address.clone()));
                }
            }
        }
        Stage::Rows(scan)
    }

    fn one_by_one(&mut self, subject: &Subject, block: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (plans, source) = subject.reading();
        let sync = &subject.sync;
        let mut addresses = Vec::new();
        as_worker(sync, || plans.read_addresses(source, block, |address| addresses.push(address.to_vec())));
        let mut rows = Vec::new();
        for address in addresses {
            match attempt(|| as_worker(sync, || subject.documents(&[&address]))) {
                Ok(found) => rows.extend(found),
                Err(_) => {
                    self.dead += 1;
                    let name = as_worker(sync, || name(subject, &address));
                    self.keep(sync, &[name]);
                }
            }
        }
        rows
    }

    /// Keeps the names of rows whose ids do not tell them.
    fn keep(&mut self, sync: &Sync, names: &[Named]) {
        for name in names.iter().filter(|name| sync.kind == Kind::Index && is_hashed(&name.name)) {
            if self.digests.len() < DIGESTS {
                self.digests.insert(digest(name));
            } else {
                self.incomplete = true;
            }
        }
    }

    fn held(&self, subject: &Subject, target: &AnyTarget, names: Vec<Named>) -> Vec<Option<Held>> {
        held(&subject.sync, target, names).unwrap_or_else(|error| unanswered(&subject.sync, &error))
    }

    /// Compares both sides of these addresses, the target's first; gives those that differ.
    fn compare(&self, subject: &Subject, target: &AnyTarget, addresses: &[&[u8]]) -> Vec<Differing> {
        let sync = &subject.sync;
        let names = as_worker(sync, || addresses.iter().map(|address| name(subject, address)).collect());
        let held = self.held(subject, target, names);
        let keyed: Vec<&[u8]> = addresses.iter().copied().filter(|address| Orphan::of(address).is_none()).collect();
        // Row by row if one of them cannot be read: that one is of no use. The rows as they are after the documents were read: the
        // step may have waited since it began, and a row of then can be older than its document.
        let read = |asked: &[&[u8]]| attempt(|| as_of_now(|| as_worker(sync, || subject.documents(asked))));
        let mut unreadable = Vec::new();
        let mut rows = read(&keyed).unwrap_or_else(|_| {
            let mut rows = std::collections::HashMap::new();
            for &address in &keyed {
                match read(&[address]) {
                    Ok(found) => rows.extend(found),
                    Err(_) => unreadable.push(address),
                }
            }
            rows
        });
        addresses
            .iter()
            .zip(held)
            .filter(|(address, _)| !unreadable.contains(address))
            .filter_map(|(&address, held)| {
                // Written since it was listed, so it has a row.
                let version = held.as_ref().and_then(|held| held.version);
                if Orphan::of(address).is_some_and(|orphan| version > Some(orphan.version)) {
                    return None;
                }
                let row = rows.remove(address);
                let difference = difference(subject, row.as_deref(), held.as_ref())?;
                Some(Differing { address: address.to_vec(), row, held, difference })
            })
            .collect()
    }

    /// Looks for the rows of a page of the target's ids.
    fn names(
        &mut self,
        subject: &Subject,
        target: &AnyTarget,
        cursor: Option<String>,
        before: Option<String>,
    ) -> Stage {
        let sync = &subject.sync;
        let is_first = cursor.is_none();
        let page = match target {
            AnyTarget::Engine(engine) => {
                let (index, cursor) = (sync.concrete_index(), cursor);
                engine.try_run(move |engine| engine.list_ids(&index, cursor.as_deref(), PAGE_ROWS)).map(|it| (it, None))
            }
            AnyTarget::Cache(cache) => {
                let glob = subject.glob();
                let scan = move |redis: &mut RedisTarget| {
                    Ok((redis.scan_keys(&glob, cursor.as_deref(), PAGE_ROWS)?, redis.run_id()?))
                };
                cache
                    .try_run(true, scan)
                    .map(|(page, run)| (IdPage { ids: page.keys, cursor: page.cursor, ..IdPage::default() }, run))
            }
        };
        let (page, run) = page.unwrap_or_else(|error| unanswered(sync, &error));
        if !is_first && was_started_anew(before.as_deref(), run.as_deref()) {
            notice!("the verification of sync \"{}\" begins anew: Redis was started anew meanwhile", sync.name);
            *self = Self::new(sync, self.repair, self.timeout, self.examples);
            return Stage::Beginning;
        }
        let places: Vec<usize> = (0..page.ids.len()).collect();
        let parse = |places: &[usize]| {
            let one = |&at: &usize| subject.parse(Called::on(&page, at));
            attempt(|| as_worker(sync, || places.iter().map(one).collect::<Vec<_>>()))
        };
        let parsed = parse(&places).unwrap_or_else(|_| {
            // One of them is no text of the key's type.
            places.iter().map(|&place| parse(&[place]).ok()?.pop()?).collect()
        });
        let mut addresses = Vec::new();
        for (at, (name, address)) in page.ids.iter().zip(parsed).enumerate() {
            match (address, subject.orphan(&page, at)) {
                (Some(address), _) => addresses.push(address),
                (None, Some(orphan)) => {
                    self.documents += 1;
                    // What was written later has a row that may be later, too.
                    if orphan.version < self.begun && !self.digests.contains(&digest(&orphan.into())) {
                        if self.incomplete {
                            self.unsettled += 1;
                        } else {
                            self.suspects.push(Suspect::new(orphan.to_address()));
                        }
                    }
                }
                // Other keys of Redis are not ours.
                (None, None) if sync.kind == Kind::Cache => {}
                (None, None) => {
                    self.extra += 1;
                    self.example(name, Difference::Extra, "not an id that the sync writes");
                }
            }
        }
        self.documents += addresses.len() as i64;
        let asked: Vec<&[u8]> = addresses.iter().map(Vec::as_slice).collect();
        // A row that cannot be read is not absent.
        if let Ok(rows) = attempt(|| as_worker(sync, || subject.documents(&asked))) {
            let absent = addresses.into_iter().filter(|address| !rows.contains_key(address));
            self.suspects.extend(absent.map(Suspect::new));
        }
        match page.cursor {
            Some(cursor) => Stage::Names { cursor: Some(cursor), run },
            None => Stage::Done,
        }
    }

    /// True if all is delivered that was committed when this was asked first. Waits a moment for it.
    fn waited(&mut self, sync: &Sync) -> bool {
        let (ticket, since) = *self.ticket.get_or_insert_with(|| (shared::ticket(), Instant::now()));
        let reached = reached(sync.id, ticket);
        if reached {
            self.ticket = None;
        } else if since.elapsed() > self.timeout {
            unready(sync, "what was committed before did not arrive in time");
        }
        reached
    }

    /// Waits until all that was committed is delivered, then compares the suspects again.
    fn settle(&mut self, subject: &Subject, target: &AnyTarget) {
        let sync = &subject.sync;
        if self.suspects.is_empty() || !self.waited(sync) {
            return;
        }
        let mut before: FxHashMap<Vec<u8>, Suspect> =
            self.suspects.drain(..).map(|suspect| (suspect.address.clone(), suspect)).collect();
        let addresses: Vec<Vec<u8>> = before.keys().cloned().collect();
        let mut differing = Vec::new();
        for page in addresses.chunks(PAGE_ROWS) {
            let page: Vec<&[u8]> = page.iter().map(Vec::as_slice).collect();
            differing.extend(self.compare(subject, target, &page));
        }
        let dead = dead_letters(sync.id, differing.iter().map(|found| found.address.as_slice()).collect());
        let mut wrong = Vec::new();
        for found in differing {
            let Some(mut suspect) = before.remove(&found.address) else { continue };
            if dead.contains(&found.address) {
                self.dead += 1;
                continue;
            }
            let document = found.held.as_ref().map(|held| (held.document.as_slice(), held.version));
            match suspect.look(Sight::of(document, found.row.as_deref())) {
                Verdict::Wrong => {}
                Verdict::Again => {
                    self.suspects.push(suspect);
                    continue;
                }
                Verdict::Unsettled => {
                    self.unsettled += 1;
                    continue;
                }
            }
            match found.difference {
                Difference::Missing => self.missing += 1,
                Difference::Extra => self.extra += 1,
                Difference::Different => self.different += 1,
            }
            if self.found.len() < self.examples {
                let name = as_worker(sync, || name(subject, &found.address)).name;
                let members = match (&found.row, &found.held) {
                    (Some(row), Some(held)) => subject.different_members(row, held).join(", "),
                    _ => String::new(),
                };
                self.example(&name, found.difference, &members);
            }
            wrong.push(found.address);
        }
        if self.repair {
            let layout = image::layout(catalog::enqueue::layout(sync));
            for address in &wrong {
                let layout = if Orphan::of(address).is_some() { Orphan::LAYOUT } else { layout };
                capture::enqueue_image(sync.id, layout, address);
            }
            self.repaired += wrong.len() as i64;
            self.note.is_due |= !wrong.is_empty();
        }
    }

    fn example(&mut self, name: &str, difference: Difference, detail: &str) {
        if self.found.len() < self.examples {
            let mut example = json!({ "id": name, "difference": difference.as_str() });
            if !detail.is_empty() {
                example["detail"] = json!(detail);
            }
            self.found.push(example);
        }
    }
}

fn name(subject: &Subject, address: &[u8]) -> Named {
    subject.name(address).unwrap_or_default()
}

/// Whether a cursor of the one run of Redis is of no use in the other. Of a cluster it names the node, and whether slots have moved
/// since is told by the listing itself.
fn was_started_anew(before: Option<&str>, present: Option<&str>) -> bool {
    match (before, present) {
        (Some(before), Some(present)) => is_another_run(before, present),
        (before, present) => before != present,
    }
}

fn digest(name: &Named) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// How row and document differ, if they do.
fn difference(subject: &Subject, row: Option<&[u8]>, held: Option<&Held>) -> Option<Difference> {
    let expires = subject.sync.kind == Kind::Cache && subject.sync.options.get("ttl_ms").is_some();
    match (row, held) {
        (None, None) => None,
        // Expired, as it was meant to.
        (Some(_), None) if expires => None,
        (Some(_), None) => Some(Difference::Missing),
        (None, Some(_)) => Some(Difference::Extra),
        (Some(row), Some(held)) => (!subject.same(row, held)).then_some(Difference::Different),
    }
}

/// True if the sync has delivered all that was committed before the ticket was drawn; waits a moment for it.
fn reached(sync: i32, ticket: u64) -> bool {
    let Some(database) = shared::database() else { return false };
    let began = Instant::now();
    loop {
        if shared::sync_slot(sync, true).is_some_and(|slot| slot.reached(ticket)) {
            database.stop_waiting();
            return true;
        }
        let Some(left) = LOOK.checked_sub(began.elapsed()) else { break };
        database.sleep_as_waiter(left.as_millis() as i64);
    }
    database.stop_waiting();
    false
}

/// Those of the addresses that have dead letters.
fn dead_letters(sync: i32, addresses: Vec<&[u8]>) -> Vec<Vec<u8>> {
    privileged(|| {
        ours(Spi::connect(|client| {
            client
                .select(
                    "SELECT coalesce(whole, address) FROM fanout.dead_letter WHERE sync_id = $1 AND address = ANY (ARRAY(
                        SELECT fanout.place(a) FROM pg_catalog.unnest($2) AS a))",
                    None,
                    &[sync.into(), addresses.into()],
                )?
                .map(|row| Ok(row.get::<Vec<u8>>(1)?.unwrap_or_default()))
                .collect::<Result<Vec<_>, pgrx::spi::Error>>()
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::was_started_anew;

    #[test]
    fn a_node_that_was_added_is_no_restart_of_redis() {
        for (before, present, anew) in [
            (Some("a,b"), Some("a,b"), false),
            (Some("a,b"), Some("c,a,b"), false),
            (Some("a,b"), Some("a"), true),
            (Some("a"), Some("b"), true),
            (Some("a"), None, true),
            (None, Some("a"), true),
            (None, None, false),
        ] {
            assert_eq!(was_started_anew(before, present), anew, "{before:?} {present:?}");
        }
    }
}
