//! Batches: rows as they are now, read and encoded for the target.

use super::clock::Clock;
use super::pending::{Pending, Slot};
use super::reading::read_as_owner;
use super::runner::Runner;
use super::strikes::Work;
use super::transaction::{Class, Failed, transaction};
use crate::capture::image;
use crate::catalog::{Kind, Phase, Sync, Templates};
use crate::document::Source;
use crate::journal::format::Orphan;
use crate::settings;
use delivery::bulk::BulkBuilder;
use delivery::engine::{IdPage, Which};
use delivery::keyspace::RedisBatch;
use delivery::sender::JobKind;
use delivery::template::KeyTemplate;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, BTreeSet};

/// Jobs with the slots whose documents are in them.
pub type Batches = Vec<(JobKind, Vec<Slot>)>;

/// Rows of the first reading of a sync.
const FIRST_ROWS: usize = 50;
/// A reading ends at so many times the bytes of a batch, where rows are larger than those before them were.
const ENOUGH: usize = 2;

/// Versions of ours are microseconds since 1970, and this is one of 2001. Those that an engine gives count from 1.
const FIRST_VERSION: u64 = 1_000_000_000_000_000;

/// What a document is called in the target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Named {
    /// Its id, or its key.
    pub name: String,
    /// What decides on its shard instead of the id.
    pub routing: Option<String>,
    /// Its concrete index, where there is one a period.
    pub index: Option<String>,
}

impl Named {
    /// As an engine is asked for it.
    pub fn which(&self) -> Which<'_> {
        Which { id: &self.name, routing: self.routing.as_deref(), index: self.index.as_deref() }
    }
}

impl From<Orphan<'_>> for Named {
    fn from(orphan: Orphan) -> Self {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Self { name: orphan.id.to_owned(), routing: owned(orphan.routing), index: owned(orphan.index) }
    }
}

/// What the target calls a document.
#[derive(Clone, Copy, Debug)]
pub struct Called<'a> {
    /// Its id, or its key.
    pub name: &'a str,
    /// What decides on its shard instead of the id.
    pub routing: Option<&'a str>,
    /// The concrete index that it is in.
    pub index: Option<&'a str>,
}

impl<'a> Called<'a> {
    /// A document of a page of ids, or of keys, which have neither routings nor indices.
    pub fn on(page: &'a IdPage, at: usize) -> Self {
        Self {
            name: &page.ids[at],
            routing: page.routings.get(at).and_then(Option::as_deref),
            index: page.indices.get(at).map(String::as_str),
        }
    }
}

/// How an address is called in the target.
pub struct Naming<'a> {
    pub sync: &'a Sync,
    pub source: &'a Source,
    pub templates: &'a Templates,
}

impl Naming<'_> {
    /// Document id or key of an address. None if it is not of the source's layout.
    pub fn render(&self, address: &[u8]) -> Option<String> {
        self.name(address).map(|named| named.name)
    }

    /// As [`Naming::render`], with the routing and the index.
    pub fn name(&self, address: &[u8]) -> Option<Named> {
        if let Some(orphan) = Orphan::of(address) {
            return Some(orphan.into());
        }
        let texts = self.source.render(address)?;
        let values: Vec<Option<&str>> = texts.iter().map(Option::as_deref).collect();
        let name = match &self.templates.key {
            Some(template) => self.fill(template, &values)?,
            None => delivery::id::document_id(&values[..self.source.keys]),
        };
        let routing = match &self.templates.routing {
            Some(routing) => Some(self.fill(routing, &values)?),
            None => None,
        };
        let index = match &self.templates.period {
            Some(period) => {
                let place = self.sync.address_columns.iter().position(|known| known == period.column())?;
                let suffix = period.suffix(values.get(place).copied().flatten());
                Some(format!("{}-{suffix}", self.sync.concrete_index()))
            }
            None => None,
        };
        Some(Named { name, routing, index })
    }

    fn fill(&self, template: &KeyTemplate, values: &[Option<&str>]) -> Option<String> {
        let ordered: Option<Vec<Option<&str>>> = template
            .columns()
            .iter()
            .map(|column| {
                let place = self.sync.address_columns.iter().position(|known| known == column)?;
                values.get(place).copied()
            })
            .collect();
        Some(template.render(&ordered?))
    }

    /// What stands, among addresses, for a document of which [`Self::parse`] can't tell the address: its id is a hash, or it is ours
    /// by its version, of a time when the key had other types. None if it is neither.
    pub fn orphan<'a>(&self, page: &'a IdPage, at: usize) -> Option<Orphan<'a>> {
        let called = Called::on(page, at);
        let version = page.versions.get(at).copied().flatten()?;
        let index = self.templates.period.is_some().then_some(called.index).flatten();
        let ours = version >= FIRST_VERSION || delivery::id::is_hashed(called.name);
        ours.then_some(Orphan { id: called.name, routing: called.routing, index, version })
    }

    /// Image of an address that what the target holds stands for; None if it is none of this sync's. Raises where the text is
    /// none of the key's type. An index tells a period and no more: the address has its first date, and is that of no row
    /// then, but has the same name.
    pub fn parse(&self, called: Called) -> Option<Vec<u8>> {
        let (mut texts, template, filled) = match (&self.templates.key, &self.templates.routing) {
            (Some(template), _) => (Vec::new(), Some(template), called.name),
            (None, routing) => {
                let filled = if routing.is_some() { called.routing? } else { "" };
                (delivery::id::parse_document_id(called.name, self.source.keys)?, routing.as_ref(), filled)
            }
        };
        let values = template.map_or_else(|| Some(Vec::new()), |template| template.parse_key(filled))?;
        for column in &self.sync.address_columns[texts.len()..] {
            let place = template.and_then(|template| template.columns().iter().position(|known| known == column));
            texts.push(match (place, &self.templates.period) {
                (Some(place), _) => values.get(place)?.clone(),
                (None, Some(period)) if period.column() == column => period.first(self.sync.suffix(called.index?)?)?,
                (None, _) => return None,
            });
        }
        self.source.parse(&texts)
    }
}

/// A batch for either kind of target.
enum Builder {
    Bulk(BulkBuilder),
    Redis(RedisBatch),
}

/// Encodes documents into batches below the byte bound.
struct Encoder<'a> {
    sync: &'a Sync,
    version: u64,
    bound: usize,
    hash: bool,
    ttl_ms: Option<u64>,
    jitter: f64,
    index: String,
    builder: Option<Builder>,
    slots: Vec<Slot>,
    done: Batches,
    bytes: usize,
    documents: usize,
}

impl<'a> Encoder<'a> {
    fn new(sync: &'a Sync, version: u64, bound: usize) -> Self {
        Self {
            version,
            bound,
            hash: sync.options["format"] == "hash",
            ttl_ms: sync.options["ttl_ms"].as_u64(),
            jitter: sync.options["jitter"].as_f64().unwrap_or(0.0),
            index: sync.concrete_index(),
            builder: None,
            slots: Vec::new(),
            done: Vec::new(),
            bytes: 0,
            documents: 0,
            sync,
        }
    }

    /// What an action for a document of that name is added to.
    fn builder(&mut self, named: &Named) -> &mut Builder {
        let (kind, pipeline) = (self.sync.kind, self.sync.options["pipeline"].as_str());
        let index = named.index.as_ref().unwrap_or(&self.index);
        let builder = self.builder.get_or_insert_with(|| match kind {
            Kind::Index => {
                let mut bulk = BulkBuilder::new(index);
                bulk.set_pipeline(pipeline);
                Builder::Bulk(bulk)
            }
            Kind::Cache => Builder::Redis(RedisBatch::new()),
        });
        if let Builder::Bulk(bulk) = builder {
            bulk.set_index(index);
            bulk.set_routing(named.routing.clone());
        }
        builder
    }

    fn ttl(&self) -> Option<u64> {
        // Keys that were filled together must not expire together.
        self.ttl_ms.map(|ttl| ((ttl as f64 * (1.0 - self.jitter * fastrand::f64())) as u64).max(1))
    }

    fn put(&mut self, slot: Slot, named: &Named, document: &[u8]) {
        let (version, ttl, hash) = (self.version, self.ttl(), self.hash);
        let name = named.name.as_str();
        match self.builder(named) {
            Builder::Bulk(bulk) => bulk.push_index(slot, name, version, document),
            Builder::Redis(redis) if hash => {
                let fields = hash_fields(document);
                let fields: Vec<(&str, &str)> =
                    fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                redis.push_hash(slot, name, &fields, ttl);
            }
            Builder::Redis(redis) => redis.push_set(slot, name, document, ttl),
        }
        self.measure(document);
        self.added(slot);
    }

    /// Counts a document that was read, whether it is in a batch or not.
    fn measure(&mut self, document: &[u8]) {
        self.bytes += document.len();
        self.documents += 1;
    }

    /// A version below that of the batch deletes what was not written since.
    fn delete(&mut self, slot: Slot, named: &Named, version: u64) {
        match self.builder(named) {
            Builder::Bulk(bulk) => bulk.push_delete(slot, &named.name, version),
            Builder::Redis(redis) => redis.push_delete(slot, &named.name),
        }
        self.added(slot);
    }

    fn added(&mut self, slot: Slot) {
        self.slots.push(slot);
        let bytes = match &self.builder {
            Some(Builder::Bulk(bulk)) => bulk.bytes(),
            Some(Builder::Redis(redis)) => redis.bytes(),
            None => 0,
        };
        if bytes >= self.bound {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let slots = std::mem::take(&mut self.slots);
        match self.builder.take() {
            Some(Builder::Bulk(bulk)) => self.done.push((JobKind::Bulk(bulk.finish()), slots)),
            Some(Builder::Redis(redis)) => self.done.push((JobKind::Redis(redis), slots)),
            None => {}
        }
    }

    /// The batches, and the mean size of a document if there was any.
    fn finish(mut self) -> (Batches, Option<usize>) {
        self.cut();
        (self.done, (self.documents > 0).then(|| self.bytes / self.documents))
    }
}

/// A document's fields as a Redis hash has them: strings bare, NULL left out, everything else as JSON.
pub fn hash_fields(document: &[u8]) -> Vec<(String, String)> {
    let parsed: BTreeMap<String, &serde_json::value::RawValue> = match serde_json::from_slice(document) {
        Ok(parsed) => parsed,
        Err(_) => return Vec::new(),
    };
    parsed
        .into_iter()
        .filter(|(_, value)| value.get() != "null")
        .map(|(name, value)| {
            let text = serde_json::from_str::<String>(value.get()).unwrap_or_else(|_| value.get().to_owned());
            (name, text)
        })
        .collect()
}

/// How many documents the next batch should have.
pub fn limit(runner: &Runner) -> usize {
    if runner.mean_bytes == 0 {
        // Rows may be of any size: look at a few first.
        return FIRST_ROWS.min(runner.batch_limit);
    }
    let by_bytes = settings::batch_bytes().min(runner.flow.batch_bytes()) / runner.mean_bytes.max(1);
    by_bytes.clamp(1, settings::batch_documents()).min(runner.batch_limit).max(1)
}

fn learn(runner: &mut Runner, mean: Option<usize>) {
    if let Some(mean) = mean {
        // Upwards at once, downwards slowly: one huge document more is worse than a small batch.
        let before = if runner.mean_bytes == 0 { mean } else { runner.mean_bytes };
        runner.mean_bytes = mean.max((before * 3 + mean) / 4).max(64);
    }
}

/// The images of the key columns of an address. Where two addresses have the same, they are the same document's.
fn key<'a>(source: &Source, address: &'a [u8]) -> Option<Vec<Option<&'a [u8]>>> {
    let mut images = image::columns(address, source.storages.len())?;
    images.truncate(source.keys);
    Some(images)
}

/// Whether a document can be sent there now: where there is one index a period, to one that is there.
fn is_there(made: &BTreeSet<String>, named: &Named) -> bool {
    named.index.as_ref().is_none_or(|index| made.contains(index))
}

/// What becomes of addresses that are in no batch.
#[derive(Default)]
struct Left {
    /// Of types that the key no longer has.
    unknown: Vec<Slot>,
    /// To be read again.
    late: Vec<Slot>,
    /// Their row is at another address by which the document has the same name.
    moved: Vec<(Slot, Vec<u8>)>,
    /// Nothing is to be deleted: there never was an index.
    gone: Vec<Slot>,
    /// Deletions in the batch, and the addresses of rows whose documents they may take along.
    again: Vec<(Slot, Vec<u8>)>,
    /// Their documents wait for indices,
    waiting: Vec<Slot>,
    /// which are these.
    unmade: BTreeSet<String>,
}

/// The addresses to read next. One that is known to be slow waits for all others, and is read alone.
fn apart(pending: &mut Pending, slow: &FxHashMap<Vec<u8>, u32>, limit: usize) -> Vec<Slot> {
    let slots = pending.take(limit);
    if slow.is_empty() {
        return slots;
    }
    let (mut late, mut prompt): (Vec<Slot>, Vec<Slot>) =
        slots.into_iter().partition(|&slot| slow.contains_key(pending.address(slot)));
    if prompt.is_empty() && !late.is_empty() {
        prompt.push(late.remove(0));
    }
    pending.put_back(&late);
    prompt
}

/// Reads the rows of pending addresses: present → written, absent → deleted.
pub fn from_pending(runner: &mut Runner, clock: &mut Clock) -> Result<Batches, Failed> {
    let version = clock.next()?;
    let bound = settings::batch_bytes().min(runner.flow.batch_bytes());
    let limit = limit(runner);
    let Some((source, Some(plans))) = &runner.source else { return Ok(Vec::new()) };
    let slots = apart(&mut runner.pending, &runner.slow, limit);
    runner.last_read = slots.len();
    let naming = runner.naming(source);
    let (pending, delete_instead, made) = (&runner.pending, &runner.delete_instead, &runner.made);
    let read = read_as_owner(runner.slot, &runner.sync, Work::Changes, || {
        let mut encoder = Encoder::new(naming.sync, version, bound);
        let mut wanted: FxHashMap<&[u8], Slot> = slots.iter().map(|&slot| (pending.address(slot), slot)).collect();
        let mut left = Left::default();
        let mut late = Vec::new();
        let enough = bound.saturating_mul(ENOUGH);
        let repeats = source.repeats.is_some();
        let mut written: FxHashSet<Vec<u8>> = FxHashSet::default();
        let asked: Vec<(Slot, &[u8])> = wanted
            .iter()
            .filter(|&(&address, _)| !delete_instead.contains(address) && Orphan::of(address).is_none())
            .map(|(&address, &slot)| (slot, address))
            .collect();
        let may_move = naming.templates.move_documents();
        let mut present = Vec::new();
        let known = plans.read_keys(source, &asked, |address, document| {
            if delete_instead.contains(address) {
                return true;
            }
            if may_move {
                present.push(address.to_vec());
            }
            // A row is present at an address only if its own image is the same, byte for byte.
            match wanted.remove(address) {
                // One more would not be in this batch.
                Some(slot) if encoder.bytes >= enough => {
                    late.push(slot);
                    return false;
                }
                Some(slot) => {
                    if repeats {
                        written.insert(address.to_vec());
                    }
                    match naming.name(address) {
                        Some(name) if is_there(made, &name) => encoder.put(slot, &name, document),
                        Some(name) => {
                            encoder.measure(document);
                            left.waiting.push(slot);
                            left.unmade.extend(name.index);
                        }
                        None => {}
                    }
                }
                None if repeats && written.contains(address) => crate::document::twice(source),
                None => {}
            }
            true
        });
        if !late.is_empty() {
            // What was not looked at is not absent.
            let (malformed, unseen): (Vec<Slot>, Vec<Slot>) =
                wanted.drain().map(|(_, slot)| slot).partition(|slot| known.contains(slot));
            left.unknown.extend(malformed);
            late.extend(unseen);
        }
        left.late.extend(late);
        let mut of_key: FxHashMap<_, Vec<&Vec<u8>>> = FxHashMap::default();
        // Empty unless documents may move.
        for address in &present {
            of_key.entry(key(source, address)).or_default().push(address);
        }
        for (address, slot) in wanted {
            let name = match naming.name(address) {
                Some(name) if !known.contains(&slot) => name,
                _ => {
                    left.unknown.push(slot);
                    continue;
                }
            };
            let (mut heir, mut beside) = (None, Vec::new());
            for &other in of_key.get(&key(source, address)).into_iter().flatten() {
                match naming.name(other) {
                    Some(same) if same == name => heir = Some(other.clone()),
                    // By another routing, but perhaps in the same shard: deleting the one deletes the other.
                    Some(same) if same.index == name.index => beside.push(other.clone()),
                    _ => {}
                }
            }
            if let Some(heir) = heir {
                left.moved.push((slot, heir));
            } else if !is_there(made, &name) {
                left.gone.push(slot);
            } else {
                left.again.extend(beside.into_iter().map(|address| (slot, address)));
                encoder.delete(slot, &name, Orphan::of(address).map_or(version, |orphan| orphan.version));
            }
        }
        (encoder.finish(), left)
    });
    match read {
        // What was truncated and filled again may have looked empty: nothing is taken for gone.
        Ok(_) if super::process::sources_altered() => {
            runner.pending.put_back(&slots);
            Ok(Vec::new())
        }
        Ok(((batches, mean), left)) => {
            runner.pending.put_back(&left.late);
            for slot in left.waiting {
                // Behind all others: if the index can't be made, these do not come before them each time.
                runner.pending.retry(slot, None);
            }
            for (slot, address) in left.again.iter().chain(&left.moved) {
                // Whoever waits for the one waits for the other.
                let epoch = runner.pending.epoch(*slot);
                runner.pending.mark_in_epoch(address, epoch);
            }
            let mut settled = left.gone;
            settled.extend(left.moved.iter().map(|(slot, _)| *slot));
            if !settled.is_empty() {
                super::outcome::acknowledge(runner, &settled);
            }
            runner.wait_for_indices(left.unmade);
            if !left.unknown.is_empty() {
                // Of types that the key no longer has: whatever it stood for, a reconcile finds it. Acknowledged first: what
                // is being delivered when that begins is read once more. A dead letter of it goes, too.
                super::outcome::acknowledge(runner, &left.unknown);
                super::cycle::want_phase(runner, Phase::Reconcile);
            }
            if let [slot] = slots[..]
                && !runner.slow.is_empty()
            {
                runner.slow.remove(runner.pending.address(slot));
            }
            learn(runner, mean);
            Ok(batches)
        }
        Err(failed) => {
            runner.pending.put_back(&slots);
            Err(failed)
        }
    }
}

/// Reads the next blocks of a scan. Rows whose address is being delivered are left out: they are marked to be read again.
pub fn from_scan(runner: &mut Runner, clock: &mut Clock) -> Result<Batches, Failed> {
    let version = clock.next()?;
    let bound = settings::batch_bytes().min(runner.flow.batch_bytes());
    let limit = limit(runner).min(runner.pace.rows());
    let source_oid = runner.sync.source;
    let files = transaction(|| super::store::extent(source_oid).1)?;
    let Some(scan) = &mut runner.scan else { return Ok(Vec::new()) };
    if scan.files != files {
        // The table was rewritten (VACUUM FULL, CLUSTER, a retyped column): its rows have other places now.
        pgrx::log!("pg_fanout: the source of sync \"{}\" was rewritten, its scan begins anew", runner.sync.name);
        // Reconciled, not only filled: a deletion that is pending is forgotten with the rest.
        super::cycle::want_phase(runner, Phase::Reconcile);
        return Ok(Vec::new());
    }
    runner.last_read = usize::MAX;
    let Some((slice, from, to)) = scan.next_slice(limit) else { return Ok(Vec::new()) };
    let Some((source, Some(plans))) = &runner.source else { return Ok(Vec::new()) };
    let naming = Naming { sync: &runner.sync, source, templates: &runner.templates };
    let pending: &mut Pending = &mut runner.pending;
    let mut claimed = Vec::new();
    // Rows that are more than batches should hold: they are read again, by their keys.
    let mut late = Vec::new();
    let enough = bound.saturating_mul(ENOUGH);
    let mut seen: FxHashSet<Vec<u8>> = FxHashSet::default();
    let (made, mut unmade) = (&runner.made, BTreeSet::new());
    let read = read_as_owner(runner.slot, &runner.sync, Work::Scan, || {
        let mut encoder = Encoder::new(naming.sync, version, bound);
        let rows = plans.read_blocks(source, from, to, |address, document| {
            // A row that moved meanwhile may be met twice: that would be a second action for one document.
            if !seen.insert(address.to_vec()) {
                return;
            }
            if encoder.bytes >= enough {
                return late.push(address.to_vec());
            }
            let Some(name) = naming.name(address) else { return };
            if !is_there(made, &name) {
                encoder.measure(document);
                late.push(address.to_vec());
                unmade.extend(name.index);
            } else if let Some((slot, before)) = pending.claim(address, slice) {
                claimed.push((slot, before));
                encoder.put(slot, &name, document);
            }
        });
        (encoder.finish(), rows)
    });
    match read {
        Ok(_) if super::process::sources_altered() => {
            for &(slot, before) in claimed.iter().rev() {
                runner.pending.unclaim(slot, before);
            }
            if let Some(scan) = &mut runner.scan {
                scan.was_not_read(slice);
            }
            Ok(Vec::new())
        }
        Ok(((batches, mean), rows)) => {
            let late = late.iter().filter(|address| runner.pending.mark_in_slice(address, slice)).count();
            runner.wait_for_indices(unmade);
            runner.pace.spend(rows, std::time::Instant::now());
            if let Some(scan) = &mut runner.scan {
                scan.was_read(slice, to - from, rows, claimed.len() + late);
                for before in claimed.iter().filter_map(|&(_, before)| before) {
                    scan.acknowledged(before);
                }
            }
            learn(runner, mean);
            Ok(batches)
        }
        Err(failed) => {
            for &(slot, before) in claimed.iter().rev() {
                runner.pending.unclaim(slot, before);
            }
            if (failed.class() == Class::Data || failed.may_be_a_row()) && to - from == 1 {
                return mark_block(runner, slice, from).map(|()| Vec::new());
            }
            if let Some(scan) = &mut runner.scan {
                scan.was_not_read(slice);
            }
            Err(failed)
        }
    }
}

/// A row of this block cannot be read as a document: its rows are marked by their addresses, to be read one by one.
fn mark_block(runner: &mut Runner, slice: u32, block: u32) -> Result<(), Failed> {
    let Some((source, Some(plans))) = &runner.source else { return Ok(()) };
    let mut addresses = Vec::new();
    let read = read_as_owner(runner.slot, &runner.sync, Work::Scan, || {
        plans.read_addresses(source, block, |address| addresses.push(address.to_vec()))
    });
    let Some(scan) = &mut runner.scan else { return Ok(()) };
    match read {
        Ok(rows) => {
            let marked = addresses.iter().filter(|address| runner.pending.mark_in_slice(address, slice)).count();
            scan.was_read(slice, 1, rows, marked);
            Ok(())
        }
        Err(failed) => {
            scan.was_not_read(slice);
            Err(failed)
        }
    }
}
