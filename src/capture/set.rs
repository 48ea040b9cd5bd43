//! The addresses that the running transaction changed, one buffer for each subtransaction level.
//!
//! Pure: it knows nothing of Postgres but the numbers of nesting levels. A level is merged into its parent when its
//! savepoint is released and dropped when it is rolled back; only the innermost may be spilled to the journal early, since
//! what is written then dies with *its* subtransaction.

use crate::journal::format::{Layout, Packer};
use hashbrown::HashTable;
use rustc_hash::FxHasher;
use std::hash::Hasher;

/// Up to so many addresses are compared one by one; beyond, a hash table is built.
const LINEAR: usize = 16;

/// The addresses of one sync at one level.
struct Group {
    sync: i32,
    layout: Layout,
    bytes: Vec<u8>,
    /// Where each address ends in `bytes`.
    ends: Vec<u32>,
    /// Indices into `ends`, by hash of the address; empty while there are few.
    seen: HashTable<u32>,
}

fn hash(address: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(address);
    hasher.finish()
}

impl Group {
    fn new(sync: i32, layout: Layout) -> Self {
        Self { sync, layout, bytes: Vec::new(), ends: Vec::new(), seen: HashTable::new() }
    }

    fn address<'a>(bytes: &'a [u8], ends: &[u32], index: usize) -> &'a [u8] {
        let start = if index == 0 { 0 } else { ends[index - 1] as usize };
        &bytes[start..ends[index] as usize]
    }

    fn add(&mut self, address: &[u8]) {
        let Self { bytes, ends, seen, .. } = self;
        if ends.len() < LINEAR {
            if (0..ends.len()).rev().any(|index| Self::address(bytes, ends, index) == address) {
                return;
            }
        } else {
            if seen.is_empty() {
                for index in 0..ends.len() {
                    let hashed = hash(Self::address(bytes, ends, index));
                    seen.insert_unique(hashed, index as u32, |&other| hash(Self::address(bytes, ends, other as usize)));
                }
            }
            let hashed = hash(address);
            if seen.find(hashed, |&index| Self::address(bytes, ends, index as usize) == address).is_some() {
                return;
            }
            let index = ends.len() as u32;
            seen.insert_unique(hashed, index, |&other| hash(Self::address(bytes, ends, other as usize)));
        }
        bytes.extend_from_slice(address);
        ends.push(bytes.len() as u32);
    }

    fn memory(&self) -> usize {
        self.bytes.len() + self.ends.len() * 4 + self.seen.capacity() * 5
    }
}

#[derive(Default)]
struct Level {
    nest: i32,
    groups: Vec<Group>,
    reconcile: Vec<i32>,
    memory: usize,
}

impl Level {
    fn add(&mut self, sync: i32, layout: Layout, address: &[u8]) {
        let position = self.groups.iter().position(|group| group.sync == sync && group.layout == layout);
        let position = position.unwrap_or_else(|| {
            self.groups.push(Group::new(sync, layout));
            self.groups.len() - 1
        });
        let group = &mut self.groups[position];
        let before = group.memory();
        group.add(address);
        self.memory += group.memory() - before;
    }

    fn mark(&mut self, sync: i32) {
        if !self.reconcile.contains(&sync) {
            self.reconcile.push(sync);
        }
    }

    fn pack<F: FnMut(&[u8])>(&self, packer: &mut Packer<F>) {
        for &sync in &self.reconcile {
            packer.reconcile(sync);
        }
        for group in &self.groups {
            packer.addresses(group.sync, group.layout, &group.bytes, group.ends.len());
        }
    }
}

/// All levels of the running transaction, outermost first.
#[derive(Default)]
pub struct AddressSet {
    levels: Vec<Level>,
}

impl AddressSet {
    /// Nothing captured yet.
    pub const fn new() -> Self {
        Self { levels: Vec::new() }
    }

    /// True if nothing is held.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// True if an address of that sync is held.
    pub fn holds(&self, sync: i32) -> bool {
        self.levels
            .iter()
            .any(|level| level.reconcile.contains(&sync) || level.groups.iter().any(|group| group.sync == sync))
    }

    fn level(&mut self, nest: i32) -> &mut Level {
        if self.levels.last().is_none_or(|level| level.nest < nest) {
            self.levels.push(Level { nest, ..Level::default() });
        }
        self.levels.last_mut().expect("a level was just pushed")
    }

    /// Adds an address captured at nesting level `nest`; gives the bytes that this level now holds.
    pub fn add(&mut self, nest: i32, sync: i32, layout: Layout, address: &[u8]) -> usize {
        let level = self.level(nest);
        level.add(sync, layout, address);
        level.memory
    }

    /// Notes that all of a sync must be reconciled.
    pub fn mark(&mut self, nest: i32, sync: i32) {
        self.level(nest).mark(sync);
    }

    /// The savepoint at `nest` was released: what it captured belongs to its parent now.
    pub fn release(&mut self, nest: i32) {
        if self.levels.last().is_none_or(|level| level.nest < nest) {
            return;
        }
        let mut child = self.levels.pop().expect("checked above");
        match self.levels.last_mut() {
            Some(parent) if parent.nest == nest - 1 => {
                for sync in child.reconcile {
                    parent.mark(sync);
                }
                for group in child.groups {
                    for index in 0..group.ends.len() {
                        parent.add(group.sync, group.layout, Group::address(&group.bytes, &group.ends, index));
                    }
                }
            }
            _ => {
                child.nest = nest - 1;
                self.levels.push(child);
            }
        }
    }

    /// The savepoint at `nest` was rolled back: what it captured never happened.
    pub fn roll_back(&mut self, nest: i32) {
        while self.levels.last().is_some_and(|level| level.nest >= nest) {
            self.levels.pop();
        }
    }

    /// Takes the innermost level, if it is at `nest`, as payloads: to be written within that very subtransaction.
    pub fn spill(&mut self, nest: i32, emit: impl FnMut(&[u8])) {
        if self.levels.last().is_some_and(|level| level.nest == nest)
            && let Some(level) = self.levels.pop()
        {
            let mut packer = Packer::new(emit);
            level.pack(&mut packer);
            packer.finish();
        }
    }

    /// Takes everything as payloads, at the end of the transaction.
    pub fn drain(&mut self, emit: impl FnMut(&[u8])) {
        let mut packer = Packer::new(emit);
        for level in std::mem::take(&mut self.levels) {
            level.pack(&mut packer);
        }
        packer.finish();
    }

    /// Forgets everything: the transaction ended.
    pub fn clear(&mut self) {
        self.levels = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::format::{Entry, put_column, unpack};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const LAYOUT: Layout = Layout { signature: 7, columns: 1 };

    fn image(key: u32) -> Vec<u8> {
        let mut out = Vec::new();
        put_column(&mut out, Some(&key.to_le_bytes()));
        out
    }

    fn keys(payloads: &[Vec<u8>]) -> BTreeSet<Vec<u8>> {
        let mut found = BTreeSet::new();
        for payload in payloads {
            unpack(payload, |entry| {
                if let Entry::Address { address, .. } = entry {
                    found.insert(address.to_vec());
                }
            })
            .unwrap();
        }
        found
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u32),
        Savepoint,
        Release,
        RollBack,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u32..60).prop_map(Step::Write),
            2 => Just(Step::Savepoint),
            1 => Just(Step::Release),
            1 => Just(Step::RollBack),
        ]
    }

    proptest! {
        // A model of what PostgreSQL keeps: a stack of sets, and a journal whose tuples die with the level that wrote them.
        #[test]
        fn nothing_committed_is_missing(steps in prop::collection::vec(step(), 0..200), bound in 40usize..2000) {
            let mut set = AddressSet::new();
            let mut model: Vec<BTreeSet<Vec<u8>>> = vec![BTreeSet::new()];
            let mut journal: Vec<(i32, Vec<u8>)> = Vec::new();
            for step in steps {
                let nest = model.len() as i32;
                match step {
                    Step::Write(key) => {
                        model.last_mut().unwrap().insert(image(key));
                        if set.add(nest, 1, LAYOUT, &image(key)) > bound {
                            set.spill(nest, |payload| journal.push((nest, payload.to_vec())));
                        }
                    }
                    Step::Savepoint => model.push(BTreeSet::new()),
                    Step::Release if nest > 1 => {
                        let child = model.pop().unwrap();
                        model.last_mut().unwrap().extend(child);
                        journal.iter_mut().filter(|(level, _)| *level == nest).for_each(|(level, _)| *level -= 1);
                        set.release(nest);
                    }
                    Step::RollBack if nest > 1 => {
                        model.pop();
                        journal.retain(|(level, _)| *level < nest);
                        set.roll_back(nest);
                    }
                    _ => {}
                }
            }
            while model.len() > 1 {
                let nest = model.len() as i32;
                let child = model.pop().unwrap();
                model.last_mut().unwrap().extend(child);
                set.release(nest);
            }
            let mut payloads: Vec<Vec<u8>> = journal.into_iter().map(|(_, payload)| payload).collect();
            set.drain(|payload| payloads.push(payload.to_vec()));
            prop_assert_eq!(keys(&payloads), model.pop().unwrap());
        }
    }
}
