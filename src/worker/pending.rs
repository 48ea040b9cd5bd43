//! The pending set of one sync: addresses that are not yet acknowledged by its target. Pure.
//!
//! At most one delivery of an address is under way at any time; a change that comes meanwhile is noted and follows. Each
//! address belongs to the *epoch* in which it was marked, and an epoch is done when all its addresses are acknowledged:
//! that is how `fanout.wait()`, the lag and the truncation of the journal know how far the sync is.
//!
//! Addresses of rows in related tables are held beside those of the source, in a queue of their own: each stands for the
//! documents that it belongs to, until these are marked in its stead and in its epoch.

use super::question::Place;
use crate::journal::format::related;
use hashbrown::HashTable;
use rustc_hash::{FxHashMap, FxHasher};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use std::hash::Hasher;
use std::time::Instant;

/// Number of an address in the set, stable until it is acknowledged.
pub type Slot = u32;
/// Number of an epoch.
pub type Epoch = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Queued,
    /// To be queued at a time that `later` knows.
    Delayed,
    /// Being read or delivered. If it changed meanwhile, `again` knows in which epoch.
    InFlight,
}

impl State {
    fn waits(self) -> bool {
        matches!(self, Self::Queued | Self::Delayed)
    }
}

/// An address: most fit in here, those of a uuid with its length byte too.
type Address = SmallVec<[u8; 24]>;

/// There are as many as `fanout.pending_keys` allows, so what few of them have is kept beside.
struct Entry {
    address: Address,
    epoch: Epoch,
    /// The slice of a scan that this delivery belongs to, or [`NO_SLICE`].
    slice: u32,
    state: State,
    /// The address also stands in the table of stored addresses.
    stored: bool,
}

const NO_SLICE: u32 = u32::MAX;

impl Entry {
    fn slice(&self) -> Option<u32> {
        (self.slice != NO_SLICE).then_some(self.slice)
    }

    fn replace_slice(&mut self, slice: Option<u32>) -> Option<u32> {
        let before = self.slice();
        self.slice = slice.unwrap_or(NO_SLICE);
        before
    }
}

/// What an acknowledgement says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// The address has to be removed from the table of stored addresses.
    pub stored: Option<Vec<u8>>,
    /// The slice of a scan that it belonged to.
    pub slice: Option<u32>,
}

/// See the module.
pub struct Pending {
    entries: Vec<Entry>,
    free: Vec<Slot>,
    index: HashTable<Slot>,
    queue: VecDeque<Slot>,
    /// Rows of related tables, whose documents are to be found.
    related: VecDeque<Slot>,
    later: BTreeMap<Instant, Vec<Slot>>,
    /// The epoch of the change that came while an address was on its way.
    again: FxHashMap<Slot, Epoch>,
    /// How often deliveries under way were tried before, where that is so.
    attempts: FxHashMap<Slot, u32>,
    in_flight: usize,
    /// Of those held, how many also stand in the table of stored addresses.
    stored: usize,
    epoch: Epoch,
    /// Outstanding addresses of each epoch that has any, or is the current one, with the time of its beginning.
    epochs: VecDeque<(Epoch, usize, i64)>,
}

fn hash(address: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(address);
    hasher.finish()
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            queue: VecDeque::new(),
            related: VecDeque::new(),
            later: BTreeMap::new(),
            again: FxHashMap::default(),
            attempts: FxHashMap::default(),
            in_flight: 0,
            stored: 0,
            epoch: 1,
            epochs: VecDeque::from([(1, 0, 0)]),
        }
    }
}

impl Pending {
    /// Addresses held.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Those of them that are known to stand in the table of stored addresses, too.
    pub fn stored(&self) -> usize {
        self.stored
    }

    /// True if none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Addresses being delivered.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// True if some wait to be read.
    pub fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// How many wait to be read.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// True if there are rows of related tables whose documents are to be found.
    pub fn has_related(&self) -> bool {
        !self.related.is_empty()
    }

    fn enqueue(&mut self, slot: Slot) {
        self.queue_of(slot).push_back(slot);
    }

    fn queue_of(&mut self, slot: Slot) -> &mut VecDeque<Slot> {
        if self.relation(slot).is_some() { &mut self.related } else { &mut self.queue }
    }

    /// The address of a slot in use.
    pub fn address(&self, slot: Slot) -> &[u8] {
        &self.entries[slot as usize].address
    }

    /// How often the delivery under way was tried before.
    pub fn attempts(&self, slot: Slot) -> u32 {
        self.attempts.get(&slot).copied().unwrap_or(0)
    }

    fn find(&self, address: &[u8]) -> Option<Slot> {
        self.index.find(hash(address), |&slot| &*self.entries[slot as usize].address == address).copied()
    }

    fn insert(&mut self, address: &[u8], state: State) -> Slot {
        let entry = Entry { address: address.into(), epoch: self.epoch, slice: NO_SLICE, state, stored: false };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = entry;
                slot
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as Slot
            }
        };
        let entries = &self.entries;
        self.index.insert_unique(hash(address), slot, |&other| hash(&entries[other as usize].address));
        self.count(self.epoch, 1);
        slot
    }

    fn remove(&mut self, slot: Slot) {
        let entries = &self.entries;
        let hashed = hash(&entries[slot as usize].address);
        if let Ok(found) = self.index.find_entry(hashed, |&other| other == slot) {
            found.remove();
        }
        let entry = &mut self.entries[slot as usize];
        entry.address = Address::new();
        entry.state = State::Free;
        self.stored -= usize::from(entry.stored);
        self.attempts.remove(&slot);
        self.free.push(slot);
        if self.is_empty() {
            // A large set was worked off: give its memory back.
            self.entries = Vec::new();
            self.free = Vec::new();
            self.index = HashTable::new();
            self.queue = VecDeque::new();
            self.related = VecDeque::new();
            self.again = FxHashMap::default();
            self.attempts = FxHashMap::default();
        }
    }

    fn count(&mut self, epoch: Epoch, by: isize) {
        if let Ok(place) = self.epochs.binary_search_by_key(&epoch, |&(epoch, ..)| epoch) {
            self.epochs[place].1 = self.epochs[place].1.saturating_add_signed(by);
        }
        while self.epochs.len() > 1 && self.epochs[0].1 == 0 {
            self.epochs.pop_front();
        }
    }

    /// Notes that an address changed.
    pub fn mark(&mut self, address: &[u8]) {
        self.mark_as(address, false);
    }

    /// Notes an address that also stands in the table of stored addresses.
    pub fn mark_stored(&mut self, address: &[u8]) {
        self.mark_as(address, true);
    }

    fn mark_as(&mut self, address: &[u8], stored: bool) {
        let slot = match self.find(address) {
            None => {
                let slot = self.insert(address, State::Queued);
                self.enqueue(slot);
                slot
            }
            Some(slot) => {
                let epoch = self.epoch;
                if self.entries[slot as usize].state == State::InFlight && !self.again.contains_key(&slot) {
                    self.again.insert(slot, epoch);
                    self.count(epoch, 1);
                }
                slot
            }
        };
        let entry = &mut self.entries[slot as usize];
        if stored && !entry.stored {
            entry.stored = true;
            self.stored += 1;
        }
    }

    /// Notes an address as part of an epoch that is not done: the row of a related table that led to it was marked in that.
    pub fn mark_in_epoch(&mut self, address: &[u8], epoch: Epoch) {
        self.mark(address);
        let Some(slot) = self.find(address) else { return };
        let known = self.again.get_mut(&slot).unwrap_or(&mut self.entries[slot as usize].epoch);
        if *known > epoch {
            let before = std::mem::replace(known, epoch);
            self.count(epoch, 1);
            self.count(before, -1);
        }
    }

    /// The epoch that an address being delivered belongs to.
    pub fn epoch(&self, slot: Slot) -> Epoch {
        self.entries[slot as usize].epoch
    }

    /// Takes up to `limit` queued addresses to be read and delivered now.
    pub fn take(&mut self, limit: usize) -> Vec<Slot> {
        let mut taken = Vec::new();
        while taken.len() < limit {
            let Some(slot) = self.queue.pop_front() else { break };
            if self.relation(slot).is_none() {
                taken.extend(self.begin(slot));
            }
        }
        taken
    }

    /// The relation whose row is in a slot; None for a row of the source. A queue may hold a slot that is another's by now.
    fn relation(&self, slot: Slot) -> Option<i32> {
        related(&self.entries.get(slot as usize)?.address).map(|(relation, _)| relation)
    }

    /// Takes up to `limit` rows of one related table, whose documents are to be found now; gives the relation, too.
    pub fn take_related(&mut self, limit: usize) -> Option<(i32, Vec<Slot>)> {
        let mut taken = Vec::new();
        let mut of = None;
        while taken.len() < limit
            && let Some(&slot) = self.related.front()
        {
            let relation = self.relation(slot);
            if relation.is_some() && of.is_some() && of != relation {
                break;
            }
            self.related.pop_front();
            if relation.is_some()
                && let Some(slot) = self.begin(slot)
            {
                of = relation;
                taken.push(slot);
            }
        }
        Some((of?, taken))
    }

    /// A queued address is taken. None if it was claimed by a scan or spilled meanwhile: the queue is not searched for it then.
    fn begin(&mut self, slot: Slot) -> Option<Slot> {
        let entry = self.entries.get_mut(slot as usize).filter(|entry| entry.state == State::Queued)?;
        entry.state = State::InFlight;
        self.in_flight += 1;
        Some(slot)
    }

    /// A scan has read the row of this address: its delivery begins now. None if one is under way already; the address is
    /// then marked, and its row is read again when that is over.
    ///
    /// Gives the slot, and the slice of an earlier reading that this one takes over from.
    pub fn claim(&mut self, address: &[u8], slice: u32) -> Option<(Slot, Option<u32>)> {
        let slot = match self.find(address) {
            None => self.insert(address, State::Queued),
            Some(slot) if self.entries[slot as usize].state == State::InFlight => {
                self.mark(address);
                return None;
            }
            Some(slot) => slot,
        };
        let entry = &mut self.entries[slot as usize];
        entry.state = State::InFlight;
        let before = entry.replace_slice(Some(slice));
        self.in_flight += 1;
        Some((slot, before))
    }

    /// Takes a claim back: the row was not read after all. The slice is the one that [`Self::claim`] gave.
    pub fn unclaim(&mut self, slot: Slot, slice: Option<u32>) {
        self.entries[slot as usize].replace_slice(slice);
        self.put_back(&[slot]);
    }

    /// Marks an address that a scan found but could not read: it counts as part of the slice. False if it counts already.
    pub fn mark_in_slice(&mut self, address: &[u8], slice: u32) -> bool {
        self.mark(address);
        let Some(slot) = self.find(address) else { return false };
        let entry = &mut self.entries[slot as usize];
        let free = entry.slice().is_none();
        if free {
            entry.slice = slice;
        }
        free
    }

    /// Takes slots back that could not be read: they are the next to be read again, in the same order.
    pub fn put_back(&mut self, slots: &[Slot]) {
        for &slot in slots.iter().rev() {
            let entry = &mut self.entries[slot as usize];
            if entry.state != State::InFlight {
                continue;
            }
            entry.state = State::Queued;
            self.in_flight -= 1;
            self.queue_of(slot).push_front(slot);
            self.serve_both(slot);
        }
    }

    /// The next reading serves the change that came meanwhile as well: the older of the two epochs waits for it.
    fn serve_both(&mut self, slot: Slot) {
        if let Some(again) = self.again.remove(&slot) {
            let entry = &mut self.entries[slot as usize];
            let served = entry.epoch.max(again);
            entry.epoch = entry.epoch.min(again);
            self.count(served, -1);
        }
    }

    /// Marks all that is being delivered: what was read may be gone already, and a listing of the target's ids that is
    /// made before it arrives there does not know it.
    pub fn mark_in_flight(&mut self) {
        let epoch = self.epoch;
        let mut marked = 0;
        for (slot, entry) in self.entries.iter().enumerate() {
            if entry.state == State::InFlight && !self.again.contains_key(&(slot as Slot)) {
                self.again.insert(slot as Slot, epoch);
                marked += 1;
            }
        }
        self.count(epoch, marked);
    }

    /// The table of stored addresses was emptied.
    pub fn forget_stored(&mut self) {
        for entry in &mut self.entries {
            entry.stored = false;
        }
        self.stored = 0;
    }

    /// The delivery is over for good: done, or a dead letter.
    pub fn acknowledge(&mut self, slot: Slot) -> Acknowledged {
        let entry = &mut self.entries[slot as usize];
        if entry.state != State::InFlight {
            return Acknowledged::default();
        }
        let again = self.again.remove(&slot);
        let mut result = Acknowledged { stored: None, slice: entry.replace_slice(None) };
        let done = std::mem::replace(&mut entry.epoch, again.unwrap_or(0));
        if again.is_some() {
            entry.state = State::Queued;
            self.attempts.remove(&slot);
            self.enqueue(slot);
        } else {
            result.stored = entry.stored.then(|| entry.address.to_vec());
            self.remove(slot);
        }
        self.in_flight -= 1;
        self.count(done, -1);
        result
    }

    /// The delivery failed or its outcome is unknown: the row is to be read again, at once or at a time.
    pub fn retry(&mut self, slot: Slot, at: Option<Instant>) -> u32 {
        let entry = &mut self.entries[slot as usize];
        if entry.state != State::InFlight {
            return 0;
        }
        entry.state = if at.is_some() { State::Delayed } else { State::Queued };
        self.in_flight -= 1;
        match at {
            Some(at) => self.later.entry(at).or_default().push(slot),
            None => self.enqueue(slot),
        }
        self.serve_both(slot);
        let attempts = self.attempts.entry(slot).or_default();
        *attempts += 1;
        *attempts
    }

    /// Queues what was delayed until `now`; gives when the next one is due.
    pub fn wake_delayed(&mut self, now: Instant) -> Option<Instant> {
        while let Some(first) = self.later.first_entry() {
            if *first.key() > now {
                return Some(*first.key());
            }
            for slot in first.remove() {
                if let Some(entry) = self.entries.get_mut(slot as usize)
                    && entry.state == State::Delayed
                {
                    entry.state = State::Queued;
                    self.enqueue(slot);
                }
            }
        }
        None
    }

    /// Takes out all addresses that are not being delivered: they have been stored elsewhere, or are of no interest any more.
    /// Gives the slices that they belonged to.
    pub fn spill(&mut self) -> Vec<u32> {
        let mut slices = Vec::new();
        for slot in 0..self.entries.len() {
            let Some(entry) = self.entries.get(slot) else { break };
            if entry.state.waits() {
                let epoch = entry.epoch;
                slices.extend(entry.slice());
                self.remove(slot as Slot);
                self.count(epoch, -1);
            }
        }
        self.queue.clear();
        self.related.clear();
        self.later.clear();
        slices
    }

    /// The addresses that [`Self::spill`] would take out and that are not stored yet.
    pub fn unstored(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().filter(|entry| entry.state.waits() && !entry.stored).map(|entry| &*entry.address)
    }

    /// Ends the current epoch and begins the next, at time `now`; gives the one that ended.
    pub fn next_epoch(&mut self, now: i64) -> Epoch {
        let ended = self.epoch;
        self.epoch += 1;
        self.epochs.push_back((self.epoch, 0, now));
        self.count(ended, 0);
        ended
    }

    /// True if all addresses of that epoch and of those before it are acknowledged.
    pub fn is_done(&self, epoch: Epoch) -> bool {
        self.epochs.iter().take_while(|&&(number, ..)| number <= epoch).all(|&(_, count, _)| count == 0)
    }

    /// When the oldest epoch began that has unacknowledged addresses.
    pub fn oldest(&self) -> Option<i64> {
        self.epochs.iter().find(|&&(_, count, _)| count > 0).map(|&(.., began)| began)
    }

    /// Where an address is, after how many failed attempts, and when the epoch began in which it was marked. None: settled.
    pub fn look(&self, address: &[u8]) -> Option<(Place, u32, i64)> {
        let slot = self.find(address)?;
        let entry = &self.entries[slot as usize];
        let place = match entry.state {
            State::Free => return None,
            State::Queued => Place::Queued,
            State::Delayed => Place::Delayed,
            State::InFlight if self.again.contains_key(&slot) => Place::InFlightAgain,
            State::InFlight => Place::InFlight,
        };
        let began = self.epochs.iter().find(|&&(epoch, ..)| epoch >= entry.epoch).map_or(0, |&(.., began)| began);
        Some((place, self.attempts(slot), began))
    }

    /// True if the current epoch has addresses.
    pub fn epoch_in_use(&self) -> bool {
        self.epochs.back().is_some_and(|&(_, count, _)| count > 0)
    }

    /// The current epoch, in which nothing is, begins only now: it may have been there for long.
    pub fn begin_epoch(&mut self, now: i64) {
        if let Some((_, 0, began)) = self.epochs.back_mut() {
            *began = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        // Whatever happens: an address that was marked after its last reading began is read again, and an epoch is done
        // exactly when nothing marked in it or before is outstanding.
        #[test]
        fn every_mark_is_followed_by_a_reading(
            steps in prop::collection::vec((0u8..8, 0u8..12), 0..300)
        ) {
            let mut pending = Pending::default();
            let mut flying: Vec<Slot> = Vec::new();
            let mut dirty: BTreeSet<u8> = BTreeSet::new();
            let mut reading: BTreeMap<Slot, u8> = BTreeMap::new();
            let mut spilled: BTreeSet<u8> = BTreeSet::new();
            let now = Instant::now();
            for (step, key) in steps {
                match step {
                    0 | 1 => {
                        if step == 0 { pending.mark(&[key]) } else { pending.mark_stored(&[key]) }
                        dirty.insert(key);
                        spilled.remove(&key);
                    }
                    2 => for slot in pending.take(2) {
                        let key = pending.address(slot)[0];
                        prop_assert!(!reading.values().any(|&other| other == key));
                        dirty.remove(&key);
                        reading.insert(slot, key);
                        flying.push(slot);
                    },
                    3 => if let Some(slot) = flying.pop() { reading.remove(&slot); pending.acknowledge(slot); },
                    4 => if !flying.is_empty() {
                        let slot = flying.remove(0);
                        dirty.insert(reading.remove(&slot).unwrap());
                        pending.retry(slot, (key % 2 == 0).then_some(now));
                    },
                    5 => match pending.claim(&[key], 1) {
                        Some((slot, _)) => { dirty.remove(&key); reading.insert(slot, key); flying.push(slot); }
                        None => { dirty.insert(key); }
                    },
                    // Found by way of a related row that was marked in the oldest epoch that is not done.
                    6 => {
                        let oldest = pending.epochs.iter().find(|&&(_, count, _)| count > 0).map(|&(epoch, ..)| epoch);
                        if let Some(epoch) = oldest {
                            pending.mark_in_epoch(&[key], epoch);
                            dirty.insert(key);
                            spilled.remove(&key);
                            prop_assert!(!pending.is_done(epoch));
                        }
                    }
                    7 if key == 1 => {
                        pending.mark_in_flight();
                        pending.forget_stored();
                        dirty.extend(reading.values().copied());
                    }
                    _ => {
                        pending.wake_delayed(now);
                        if key == 0 {
                            // Those that are stored already go as well.
                            let waiting: Vec<u8> =
                                pending.entries.iter().filter(|it| it.state.waits()).map(|it| it.address[0]).collect();
                            for address in waiting { spilled.insert(address); dirty.remove(&address); }
                            pending.spill();
                        } else { pending.next_epoch(1); }
                    }
                }
                prop_assert_eq!(pending.in_flight(), flying.len());
                let stored = pending.entries.iter().filter(|it| it.state != State::Free && it.stored).count();
                prop_assert_eq!(pending.stored(), stored);
                let held: BTreeSet<u8> = dirty.iter().copied().chain(reading.values().copied()).collect();
                prop_assert_eq!(pending.len(), held.len());
                prop_assert_eq!(pending.is_done(pending.epoch), held.is_empty());
            }
            pending.wake_delayed(now);
            for slot in flying.drain(..) { pending.acknowledge(slot); }
            let left: BTreeSet<u8> = pending.take(100).into_iter().map(|slot| pending.address(slot)[0]).collect();
            prop_assert_eq!(left, dirty);
        }
    }
}
