//! Batches: rows as they are now, read and encoded for the target.

use super::clock::Clock;
use super::pending::{Pending, Slot};
use super::reading::read_as_owner;
use super::runner::Runner;
use super::transaction::{Class, Failed, transaction};
use crate::capture::image;
use crate::catalog::{Kind, Phase, Sync, Templates};
use crate::document::Source;
use crate::settings;
use delivery::bulk::BulkBuilder;
use delivery::keyspace::RedisBatch;
use delivery::sender::JobKind;
use delivery::template::KeyTemplate;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;

/// Jobs with the slots whose documents are in them.
pub type Batches = Vec<(JobKind, Vec<Slot>)>;

/// Rows of the first reading of a sync.
const FIRST_ROWS: usize = 50;
/// A reading ends at so many times the bytes of a batch, where rows are larger than those before them were.
const ENOUGH: usize = 2;

/// A document's id and what decides on its shard instead of that; or a key.
pub type Named = (String, Option<String>);

/// How an address is called in the target.
pub struct Naming<'a> {
    pub sync: &'a Sync,
    pub source: &'a Source,
    pub templates: &'a Templates,
}

impl Naming<'_> {
    /// Document id or key of an address. None if it is not of the source's layout.
    pub fn render(&self, address: &[u8]) -> Option<String> {
        self.name(address).map(|(name, _)| name)
    }

    /// As [`Naming::render`], with the routing.
    pub fn name(&self, address: &[u8]) -> Option<Named> {
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
        Some((name, routing))
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

    /// Image of the address that an id (with its routing) or a key of the target stands for; None if it is none of this sync's.
    /// Raises where the text is none of the key's type.
    pub fn parse(&self, name: &str, routing: Option<&str>) -> Option<Vec<u8>> {
        let (mut texts, template, filled) = match (&self.templates.key, &self.templates.routing) {
            (Some(template), _) => (Vec::new(), template, name),
            (None, None) => return self.source.parse(&delivery::id::parse_document_id(name, self.source.keys)?),
            (None, Some(template)) => (delivery::id::parse_document_id(name, self.source.keys)?, template, routing?),
        };
        let values = template.parse_key(filled)?;
        for column in &self.sync.address_columns[texts.len()..] {
            let place = template.columns().iter().position(|known| known == column)?;
            texts.push(values.get(place)?.clone());
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

    fn builder(&mut self) -> &mut Builder {
        let (kind, index, pipeline) = (self.sync.kind, &self.index, self.sync.options["pipeline"].as_str());
        self.builder.get_or_insert_with(|| match kind {
            Kind::Index => {
                let mut bulk = BulkBuilder::new(index);
                bulk.set_pipeline(pipeline);
                Builder::Bulk(bulk)
            }
            Kind::Cache => Builder::Redis(RedisBatch::new()),
        })
    }

    fn ttl(&self) -> Option<u64> {
        // Keys that were filled together must not expire together.
        self.ttl_ms.map(|ttl| ((ttl as f64 * (1.0 - self.jitter * fastrand::f64())) as u64).max(1))
    }

    fn put(&mut self, slot: Slot, (name, routing): Named, document: &[u8]) {
        let (version, ttl, hash) = (self.version, self.ttl(), self.hash);
        let name = name.as_str();
        match self.builder() {
            Builder::Bulk(bulk) => {
                bulk.set_routing(routing);
                bulk.push_index(slot, name, version, document);
            }
            Builder::Redis(redis) if hash => {
                let fields = hash_fields(document);
                let fields: Vec<(&str, &str)> =
                    fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                redis.push_hash(slot, name, &fields, ttl);
            }
            Builder::Redis(redis) => redis.push_set(slot, name, document, ttl),
        }
        self.bytes += document.len();
        self.documents += 1;
        self.added(slot);
    }

    fn delete(&mut self, slot: Slot, (name, routing): Named) {
        let version = self.version;
        let name = name.as_str();
        match self.builder() {
            Builder::Bulk(bulk) => {
                bulk.set_routing(routing);
                bulk.push_delete(slot, name, version);
            }
            Builder::Redis(redis) => redis.push_delete(slot, name),
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
fn limit(runner: &Runner) -> usize {
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

/// Whether two addresses differ in routing only: they are the same document's, and if their shard is the same too, deleting it
/// by one deletes what was written by the other, which has to be written again.
fn same_key(source: &Source, one: &[u8], other: &[u8]) -> bool {
    let key = |address| {
        image::columns(address, source.storages.len()).map(|mut images| {
            images.truncate(source.keys);
            images
        })
    };
    one != other && key(one) == key(other)
}

/// The addresses to read next. One that is known to be slow waits for all others, and is read alone.
fn apart(pending: &mut Pending, slow: &FxHashSet<Vec<u8>>, limit: usize) -> Vec<Slot> {
    let slots = pending.take(limit);
    if slow.is_empty() {
        return slots;
    }
    let (mut late, mut prompt): (Vec<Slot>, Vec<Slot>) =
        slots.into_iter().partition(|&slot| slow.contains(pending.address(slot)));
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
    let (pending, delete_instead) = (&runner.pending, &runner.delete_instead);
    let read = read_as_owner(runner.slot, &runner.sync, || {
        let mut encoder = Encoder::new(naming.sync, version, bound);
        let mut wanted: FxHashMap<&[u8], Slot> = slots.iter().map(|&slot| (pending.address(slot), slot)).collect();
        let mut unknown = Vec::new();
        let mut late = Vec::new();
        let enough = bound.saturating_mul(ENOUGH);
        let by_query = naming.sync.document_query().is_some();
        let mut written: FxHashSet<Vec<u8>> = FxHashSet::default();
        let asked: Vec<(Slot, &[u8])> = wanted
            .iter()
            .filter(|&(&address, _)| !delete_instead.contains(address))
            .map(|(&address, &slot)| (slot, address))
            .collect();
        let routed = naming.templates.routing.is_some();
        let (mut elsewhere, mut again) = (Vec::new(), Vec::new());
        let known = plans.read_keys(source, &asked, |address, document| {
            if routed {
                elsewhere.push(address.to_vec());
            }
            // A row is present at an address only if its own image is the same, byte for byte.
            match wanted.remove(address) {
                // One more would not be in this batch.
                Some(slot) if encoder.bytes >= enough => {
                    late.push(slot);
                    return false;
                }
                Some(slot) => {
                    if by_query {
                        written.insert(address.to_vec());
                    }
                    if let Some(name) = naming.name(address) {
                        encoder.put(slot, name, document);
                    }
                }
                None if by_query && written.contains(address) => crate::document::twice(),
                None => {}
            }
            true
        });
        if !late.is_empty() {
            // What was not looked at is not absent.
            let (malformed, unseen): (Vec<Slot>, Vec<Slot>) =
                wanted.drain().map(|(_, slot)| slot).partition(|slot| known.contains(slot));
            unknown.extend(malformed);
            late.extend(unseen);
        }
        for (address, slot) in wanted {
            match naming.name(address) {
                Some(name) if !known.contains(&slot) => {
                    let same = |other: &&Vec<u8>| same_key(source, address, other);
                    again.extend(elsewhere.iter().filter(same).cloned());
                    encoder.delete(slot, name);
                }
                _ => unknown.push(slot),
            }
        }
        (encoder.finish(), unknown, late, again)
    });
    match read {
        Ok(((batches, mean), unknown, late, again)) => {
            runner.pending.put_back(&late);
            for address in again {
                runner.pending.mark(&address);
            }
            if !unknown.is_empty() {
                // Of types that the key no longer has: whatever it stood for, a reconcile finds it. Acknowledged first: what
                // is being delivered when that begins is read once more.
                for slot in unknown {
                    runner.pending.acknowledge(slot);
                }
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
    let read = read_as_owner(runner.slot, &runner.sync, || {
        let mut encoder = Encoder::new(naming.sync, version, bound);
        let rows = plans.read_blocks(source, from, to, |address, document| {
            // Inherited tables may hold one key twice: the second row would be a second action for one document.
            if !seen.insert(address.to_vec()) {
                return;
            }
            if encoder.bytes >= enough {
                late.push(address.to_vec());
            } else if let Some(name) = naming.name(address)
                && let Some((slot, before)) = pending.claim(address, slice)
            {
                claimed.push((slot, before));
                encoder.put(slot, name, document);
            }
        });
        (encoder.finish(), rows)
    });
    match read {
        Ok(((batches, mean), rows)) => {
            let late = late.iter().filter(|address| runner.pending.mark_in_slice(address, slice)).count();
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
            if (failed.class() == Class::Data || failed.timed_out()) && to - from == 1 {
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
    let read = read_as_owner(runner.slot, &runner.sync, || {
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
