//! Reading what became visible in the journal since the last poll.
//!
//! What is new is the difference of two snapshots: a tuple counts as new if it is visible now and its transaction was not
//! yet seen to be committed by the previous snapshot. Unlike a "last id read" this misses no transaction, in whatever order
//! they commit. Where to look: the *open* blocks only. Writers insert into the last block or beyond it, under the shared
//! fence; the poll holds the fence exclusively while it notes where the tails are, and takes its snapshot *after* that. So a
//! block before the noted tail gets no more tuples, and once each of its tuples is decided (visible or aborted) it is
//! closed for good. The order fence → snapshot → number of blocks matters: all that the snapshot sees lies below.
//!
//! A poll finds only so much and leaves the rest to the next, and with it to the memory that there is by then. It may leave
//! blocks in which nothing was found yet: all that is visible there is new, whatever a previous snapshot saw.
//!
//! Belt and braces: before a segment is truncated it is read whole under an exclusive lock and its tuples are counted
//! against those that the polls found ([`Reader::audit`]).

use super::segment;
use crate::worker::shared::Database;
use pgrx::pg_sys;
use std::collections::BTreeMap;

/// A snapshot as the next poll needs it: which transactions it saw as committed, by their 64-bit numbers.
struct Seen {
    xmin: u64,
    xmax: u64,
    running: Vec<u64>,
}

impl Seen {
    /// # Safety
    /// `snapshot` must be a valid MVCC snapshot.
    unsafe fn of(snapshot: pg_sys::Snapshot) -> Self {
        // SAFETY: xip has xcnt elements (snapshot.h).
        unsafe {
            let next = pg_sys::ReadNextFullTransactionId().value;
            // The 64-bit number of a transaction id that is not newer than the next one to be assigned.
            let widen = |xid: pg_sys::TransactionId| {
                let xid = u64::from(xid.into_inner());
                let epoch = next >> 32;
                if xid > next & 0xffff_ffff { (epoch.saturating_sub(1) << 32) | xid } else { (epoch << 32) | xid }
            };
            let snapshot = &*snapshot;
            let xip =
                if snapshot.xcnt == 0 { &[] } else { std::slice::from_raw_parts(snapshot.xip, snapshot.xcnt as usize) };
            let mut running: Vec<u64> = xip.iter().map(|&xid| widen(xid)).collect();
            running.sort_unstable();
            Self { xmin: widen(snapshot.xmin), xmax: widen(snapshot.xmax), running }
        }
    }

    fn saw(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }
}

/// What is known of one segment.
struct Segment {
    number: u32,
    oid: pg_sys::Oid,
    file: pg_sys::Oid,
    /// Blocks from here on have not been read.
    next: u32,
    /// Blocks before `next` that may still get tuples, or hold undecided ones; true of those in which something was found.
    open: BTreeMap<u32, bool>,
    /// Tuples found since the segment was last empty.
    found: u64,
}

/// A poll stops before a block once it has found so many bytes, which is 90,000 keys at most; the next one goes on there. What is too
/// much for memory is moved to the table in between.
const POLL_BYTES: usize = 256 << 10;

/// What a poll says of one segment.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The segment.
    pub number: u32,
    /// Its blocks.
    pub blocks: u32,
    /// All of them have been read.
    pub read: bool,
}

/// Payloads, one after the other in one buffer.
#[derive(Default)]
pub struct Payloads {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Payloads {
    fn push(&mut self, payload: &[u8]) {
        self.bytes.extend_from_slice(payload);
        self.ends.push(self.bytes.len());
    }

    /// Forgets all of them but keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Each payload.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.ends.iter().scan(0, |start, &end| {
            let payload = &self.bytes[*start..end];
            *start = end;
            Some(payload)
        })
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }
}

/// What came of the attempt to empty a segment.
pub enum Audit {
    /// It is empty now.
    Truncated,
    /// A transaction that wrote to it is still running or prepared.
    Locked,
    /// It held tuples that no poll had found: it was not truncated, and the next poll reads all of it again.
    Again,
}

/// The one reader of a database's journal.
#[derive(Default)]
pub struct Reader {
    segments: Vec<Segment>,
    previous: Option<Seen>,
}

/// An open segment; closed when dropped outside of an error.
struct Open(pg_sys::Relation);

impl Open {
    fn conditionally(oid: pg_sys::Oid, mode: u32) -> Option<Self> {
        // SAFETY: a conditional lock, then opening a relation that may be gone; both on the main thread.
        unsafe {
            if !pg_sys::ConditionalLockRelationOid(oid, mode as i32) {
                return None;
            }
            let relation = pg_sys::try_relation_open(oid, pg_sys::NoLock as i32);
            if relation.is_null() {
                pg_sys::UnlockRelationOid(oid, mode as i32);
                return None;
            }
            Some(Self(relation))
        }
    }

    fn blocks(&self) -> u32 {
        // SAFETY: the relation is open and locked.
        unsafe { pg_sys::RelationGetNumberOfBlocksInFork(self.0, pg_sys::ForkNumber::MAIN_FORKNUM) }
    }

    fn file(&self) -> pg_sys::Oid {
        // SAFETY: the relation is open.
        #[cfg(feature = "pg15")]
        unsafe {
            (*self.0).rd_node.relNode
        }
        #[cfg(not(feature = "pg15"))]
        unsafe {
            (*self.0).rd_locator.relNumber
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // While an error unwinds, the abort closes what is open; calling Postgres then could panic twice.
        if !std::thread::panicking() {
            // SAFETY: opened in conditionally(); the lock stays until the transaction ends.
            unsafe { pg_sys::relation_close(self.0, pg_sys::NoLock as i32) };
        }
    }
}

impl Reader {
    /// Finds all that became visible since the last poll, and appends its payloads to `found`. At the first poll that is
    /// everything. Gives how large each segment is. None if a segment could not be locked: poll again later.
    pub fn poll(&mut self, database: &Database, found: &mut Payloads) -> Option<Vec<Extent>> {
        let numbers: Vec<u32> = (1..).take_while(|&number| segment::oid(number) != pg_sys::InvalidOid).collect();
        let mut open = Vec::with_capacity(numbers.len());
        for &number in &numbers {
            open.push(Open::conditionally(segment::oid(number), pg_sys::AccessShareLock)?);
        }
        database.fence_exclusive();
        let tails: Vec<u32> = open.iter().map(Open::blocks).collect();
        database.fence_release();
        // SAFETY: within a transaction; registered until the blocks have been read.
        unsafe {
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
            let mut extents = Vec::with_capacity(open.len());
            for ((relation, &number), &tail) in open.iter().zip(&numbers).zip(&tails) {
                let blocks = relation.blocks();
                let read = self.read(relation, number, tail, blocks, snapshot, found);
                extents.push(Extent { number, blocks, read });
            }
            self.previous = Some(Seen::of(snapshot));
            pg_sys::UnregisterSnapshot(snapshot);
            Some(extents)
        }
    }

    /// Tuples found in a segment since it was last empty.
    pub fn found(&self, number: u32) -> u64 {
        self.segments.iter().find(|segment| segment.number == number).map_or(0, |segment| segment.found)
    }

    unsafe fn read(
        &mut self,
        relation: &Open,
        number: u32,
        tail: u32,
        blocks: u32,
        snapshot: pg_sys::Snapshot,
        found: &mut Payloads,
    ) -> bool {
        let oid = segment::oid(number);
        let file = relation.file();
        let index = self.segments.iter().position(|segment| segment.number == number).unwrap_or_else(|| {
            self.segments.push(Segment { number, oid, file, next: 0, open: BTreeMap::new(), found: 0 });
            self.segments.len() - 1
        });
        let segment = &mut self.segments[index];
        // A segment that was rewritten or shrank behind our back (VACUUM FULL, CLUSTER, VACUUM (TRUNCATE)): all of it again.
        let doubt = segment.oid != oid || segment.file != file || blocks < segment.next;
        if doubt {
            *segment = Segment { number, oid, file, next: 0, open: BTreeMap::new(), found: 0 };
        }
        // What was found in a block before, only the snapshot of the last poll tells: each poll reads all of these. Where nothing
        // was found, as in those that were never read, all that is visible is new, whenever they are read.
        let (known, blank): (Vec<_>, Vec<_>) = segment.open.iter().partition(|&(_, &known)| known);
        let blank: Vec<u32> = blank.into_iter().map(|(&block, _)| block).collect();
        let known = known.into_iter().map(|(&block, _)| (block, self.previous.as_ref())).collect::<Vec<_>>();
        let new = blank.into_iter().chain(segment.next..blocks).map(|block| (block, None));
        for (block, previous) in known.into_iter().chain(new) {
            if previous.is_none() && found.bytes.len() > POLL_BYTES {
                return false;
            }
            segment.next = segment.next.max(block + 1);
            let before = segment.found;
            // SAFETY: block < blocks, the relation is open and the snapshot registered.
            let undecided = unsafe {
                read_block(relation.0, block, snapshot, |xid, payload| {
                    if previous.is_none_or(|previous| !previous.saw(xid)) {
                        segment.found += 1;
                        found.push(payload);
                    }
                })
            };
            if undecided || block + 1 >= tail {
                *segment.open.entry(block).or_default() |= segment.found > before;
            } else {
                segment.open.remove(&block);
            }
        }
        true
    }

    /// Empties a segment that writers no longer write to and whose found payloads are all acknowledged or stored.
    /// Reads it whole first: if there is something that no poll had found, the segment stays as it is.
    ///
    /// The file is cut in place (RelationTruncate) under an exclusive lock that is never queued for: no new relfilenode, no
    /// catalog row, nothing that logical decoding sees. It is not undone by an abort, which is right: its content is stored.
    pub fn audit(&mut self, number: u32) -> Audit {
        let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == number) else {
            return Audit::Locked;
        };
        let Some(relation) = Open::conditionally(segment.oid, pg_sys::AccessExclusiveLock) else {
            return Audit::Locked;
        };
        // SAFETY: within a transaction, the relation locked exclusively; the snapshot is registered while it is used.
        unsafe {
            if relation.blocks() > segment.next {
                return Audit::Locked;
            }
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
            let (mut count, mut unseen) = (0_u64, 0_u64);
            for block in 0..relation.blocks() {
                read_block(relation.0, block, snapshot, |xid, _| {
                    count += 1;
                    unseen += u64::from(self.previous.as_ref().is_none_or(|previous| !previous.saw(xid)));
                });
            }
            pg_sys::UnregisterSnapshot(snapshot);
            if unseen > 0 || count != segment.found || relation.file() != segment.file {
                if unseen == 0 {
                    pgrx::log!(
                        "pg_fanout: journal segment {number} holds {count} tuples of which {} were read; \
                         all of it is delivered again",
                        segment.found
                    );
                }
                // Both kinds of doubt are settled in the same way: everything again, which is harmless.
                segment.found = 0;
                segment.next = 0;
                segment.open.clear();
                segment.file = pg_sys::InvalidOid;
                return Audit::Again;
            }
            pg_sys::RelationTruncate(relation.0, 0);
        }
        segment.found = 0;
        segment.next = 0;
        segment.open.clear();
        Audit::Truncated
    }
}

/// Calls `visit` with transaction and payload of each visible tuple of a block. True if it holds a tuple that is neither
/// visible nor aborted, or is new.
///
/// # Safety
/// The relation must be a journal segment, open and locked; the block must exist; the snapshot must be valid.
unsafe fn read_block(
    relation: pg_sys::Relation,
    block: u32,
    snapshot: pg_sys::Snapshot,
    mut visit: impl FnMut(u64, &[u8]),
) -> bool {
    // SAFETY: the buffer is pinned and share-locked while its page is read. A segment's tuple is an xid8 at the start of
    // its data, followed by a bytea with STORAGE PLAIN, whose header therefore always has four bytes. `visit` copies and
    // calls nothing of Postgres.
    unsafe {
        let mut undecided = false;
        let buffer = pg_sys::ReadBufferExtended(
            relation,
            pg_sys::ForkNumber::MAIN_FORKNUM,
            block,
            pg_sys::ReadBufferMode::RBM_NORMAL,
            std::ptr::null_mut(),
        );
        pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
        let page = pg_sys::BufferGetPage(buffer);
        if pg_sys::PageIsNew(page) {
            undecided = true;
        } else {
            for offset in 1..=pg_sys::PageGetMaxOffsetNumber(page) {
                let item = pg_sys::PageGetItemId(page, offset);
                // LP_NORMAL is 1 (itemid.h).
                if (*item).lp_flags() != 1 {
                    continue;
                }
                let header: pg_sys::HeapTupleHeader = pg_sys::PageGetItem(page, item).cast();
                let mut tuple = pg_sys::HeapTupleData { t_len: (*item).lp_len(), t_data: header, ..Default::default() };
                tuple.t_tableOid = (*relation).rd_id;
                pgrx::itemptr::item_pointer_set_all(&mut tuple.t_self, block, offset);
                if pg_sys::HeapTupleSatisfiesVisibility(&mut tuple, snapshot, buffer) {
                    let data = header.cast::<u8>().add(usize::from((*header).t_hoff));
                    let xid = data.cast::<u64>().read_unaligned();
                    let payload = data.add(8).cast::<pg_sys::varlena>();
                    let bytes = std::slice::from_raw_parts(
                        pgrx::varlena::vardata_any(payload).cast::<u8>(),
                        pgrx::varlena::varsize_any_exhdr(payload),
                    );
                    visit(xid, bytes);
                } else {
                    let frozen = (pg_sys::HEAP_XMIN_COMMITTED | pg_sys::HEAP_XMIN_INVALID) as u16;
                    let aborted = (*header).t_infomask & frozen == pg_sys::HEAP_XMIN_INVALID as u16;
                    undecided |= !aborted;
                }
            }
        }
        pg_sys::UnlockReleaseBuffer(buffer);
        undecided
    }
}
