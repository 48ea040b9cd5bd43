//! A scan: all rows of a source, in the order of their blocks, beside the changes that go on. Pure.
//!
//! No order of keys is needed and no snapshot is held: what moves while the scan is under way was captured by the trigger.
//! What was acknowledged in full is remembered, so that a scan goes on after a restart where it was.

use super::pending::Epoch;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The last number given to a slice: no two have the same, so that a late acknowledgement cannot hit another scan's.
static LAST_SLICE: AtomicU32 = AtomicU32::new(0);

/// The target's side of a reconcile: its ids are enumerated before the rows.
#[derive(Debug, PartialEq, Eq)]
pub enum Ids {
    /// Nothing to enumerate (any more).
    Done,
    /// The next page is to be asked for.
    Next(Option<String>),
    /// A page is on its way.
    Asked,
}

/// How far a reconcile is with documents whose ids tell no key: hashes, and those of a key that had other types. A document
/// that has a row is written anew, with a higher version than any that was issued before the first row was read; once that is
/// done, those of lower versions have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphans {
    /// There are none, or they are dealt with.
    None,
    /// Some were listed, before any row is read; the highest of their versions.
    Met(u64),
    /// The rows are being written, with versions above this one.
    Fenced(u64),
    /// All were; and so are changes that came meanwhile when this epoch is done.
    Settling(u64, Epoch),
    /// The ids are listed again, those below this version to be deleted.
    Listing(u64),
}

/// A part of the scan that was read.
struct Slice {
    number: u32,
    from: u32,
    outstanding: usize,
}

/// See the module.
pub struct Scan {
    /// Enumeration of the target's ids.
    pub ids: Ids,
    /// The epoch in which the last of those ids was marked, until it is done: ids stand in no journal, so nothing may be
    /// forgotten of the scan before.
    pub ids_epoch: Option<Epoch>,
    /// Documents whose ids tell no key.
    pub orphans: Orphans,
    /// Identity of the source's files when the scan began.
    pub files: i64,
    next: u32,
    end: u32,
    slices: VecDeque<Slice>,
    rows_per_block: f64,
    /// Rows handed out.
    pub rows: i64,
    /// Rows that there may be.
    pub rows_total: Option<i64>,
}

impl Scan {
    /// A scan of blocks up to `end`.
    pub fn new(files: i64, end: u32, rows_total: Option<i64>, with_ids: bool) -> Self {
        Self {
            ids_epoch: None,
            orphans: Orphans::None,
            ids: if with_ids { Ids::Next(None) } else { Ids::Done },
            files,
            next: 0,
            end,
            slices: VecDeque::new(),
            rows_per_block: 40.0,
            rows: 0,
            rows_total,
        }
    }

    /// Goes on from a saved position, if it is of the same files; true if so.
    pub fn resume(&mut self, position: &[u8], rows: i64) -> bool {
        if let (Some(files), Some(block)) = (position.first_chunk::<8>(), position.last_chunk::<4>())
            && let Some(fence) = position.get(8..16).and_then(|fence| fence.try_into().ok()).map(u64::from_le_bytes)
            && position.len() == 20
            && i64::from_le_bytes(*files) == self.files
        {
            self.next = u32::from_le_bytes(*block).min(self.end);
            self.orphans = if fence == 0 { Orphans::None } else { Orphans::Fenced(fence) };
            self.rows = rows;
            self.ids = Ids::Done;
            return true;
        }
        false
    }

    /// The source has so many blocks by now.
    pub fn extend(&mut self, end: u32) {
        self.end = self.end.max(end);
    }

    /// The position to save: all before it is acknowledged. None while the target's ids are being enumerated.
    pub fn position(&self) -> Option<Vec<u8>> {
        if self.ids != Ids::Done || self.ids_epoch.is_some() {
            return None;
        }
        let block = self.slices.front().map_or(self.next, |slice| slice.from);
        let fence = match self.orphans {
            Orphans::Fenced(fence) | Orphans::Settling(fence, _) | Orphans::Listing(fence) => fence,
            Orphans::None | Orphans::Met(_) => 0,
        };
        Some([&self.files.to_le_bytes()[..], &fence.to_le_bytes(), &block.to_le_bytes()].concat())
    }

    /// The journal was read as of now, and what it held belongs to epochs up to this one.
    pub fn was_polled(&mut self, epoch: impl FnOnce() -> Epoch) {
        if let Orphans::Fenced(fence) = self.orphans
            && self.rows_are_done()
        {
            self.orphans = Orphans::Settling(fence, epoch());
        }
    }

    /// Lists the ids once more, if what that waited for is done.
    pub fn list_again(&mut self, is_done: impl FnOnce(Epoch) -> bool) {
        if let Orphans::Settling(fence, epoch) = self.orphans
            && is_done(epoch)
        {
            self.orphans = Orphans::Listing(fence);
            self.ids = Ids::Next(None);
        }
    }

    /// The next blocks to read, about `rows` rows of them: number of the slice, from, to.
    pub fn next_slice(&mut self, rows: usize) -> Option<(u32, u32, u32)> {
        if self.ids != Ids::Done || self.next >= self.end {
            return None;
        }
        let blocks = (rows as f64 / self.rows_per_block.max(0.01)).clamp(1.0, 100_000.0) as u32;
        let (from, to) = (self.next, self.next.saturating_add(blocks).min(self.end));
        let number = LAST_SLICE.fetch_add(1, Relaxed) + 1;
        self.next = to;
        self.slices.push_back(Slice { number, from, outstanding: 1 });
        Some((number, from, to))
    }

    /// The slice was read: so many rows were in its blocks, and so many of them are on their way.
    pub fn was_read(&mut self, slice: u32, blocks: u32, rows: usize, outstanding: usize) {
        let density = rows as f64 / f64::from(blocks.max(1));
        self.rows_per_block = if rows == 0 { (self.rows_per_block / 4.0).max(0.01) } else { density };
        self.rows += rows as i64;
        if let Some(slice) = self.find(slice) {
            slice.outstanding += outstanding;
        }
        self.acknowledged(slice);
    }

    /// The slice could not be read: its blocks come again, fewer at a time.
    pub fn was_not_read(&mut self, slice: u32) {
        if let Some(place) = self.slices.iter().position(|known| known.number == slice) {
            // Only the last slice handed out can be unread: reading is not done in parallel.
            self.next = self.slices[place].from;
            self.slices.truncate(place);
            self.rows_per_block *= 4.0;
        }
    }

    fn find(&mut self, number: u32) -> Option<&mut Slice> {
        let place = self.slices.binary_search_by_key(&number, |slice| slice.number).ok()?;
        self.slices.get_mut(place)
    }

    /// One delivery of a slice was acknowledged.
    pub fn acknowledged(&mut self, slice: u32) {
        if let Some(slice) = self.find(slice) {
            slice.outstanding = slice.outstanding.saturating_sub(1);
        }
        while self.slices.front().is_some_and(|slice| slice.outstanding == 0) {
            self.slices.pop_front();
        }
    }

    /// Rows that were read and are not acknowledged.
    pub fn outstanding(&self) -> usize {
        self.slices.iter().map(|slice| slice.outstanding).sum()
    }

    /// True if there is more to read.
    pub fn has_more(&self) -> bool {
        self.ids != Ids::Done || self.next < self.end
    }

    fn rows_are_done(&self) -> bool {
        !self.has_more() && self.slices.is_empty() && self.ids_epoch.is_none()
    }

    /// True if all was read and acknowledged.
    pub fn is_done(&self) -> bool {
        self.rows_are_done() && self.orphans == Orphans::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_saved_position_is_behind_all_that_is_not_acknowledged() {
        let mut scan = Scan::new(7, 100, None, false);
        let (first, from, to) = scan.next_slice(400).unwrap();
        assert_eq!((from, to), (0, 10));
        scan.was_read(first, to - from, 400, 400);
        let (second, from, to) = scan.next_slice(400).unwrap();
        scan.was_read(second, to - from, 400, 1);
        scan.acknowledged(second);
        let mut resumed = Scan::new(7, 100, None, true);
        resumed.resume(&scan.position().unwrap(), 0);
        assert_eq!(resumed.next_slice(1).unwrap().1, 0, "the first slice is outstanding");
        for _ in 0..400 {
            scan.acknowledged(first);
        }
        let mut resumed = Scan::new(7, 100, None, true);
        resumed.resume(&scan.position().unwrap(), 0);
        assert_eq!(resumed.next_slice(1).unwrap().1, to, "both slices are acknowledged");
        let mut rewritten = Scan::new(8, 100, None, true);
        rewritten.resume(&scan.position().unwrap(), 0);
        assert!(matches!(rewritten.ids, Ids::Next(None)), "other files: from the start");
    }

    #[test]
    fn ids_that_tell_no_key_are_listed_again_when_all_that_has_a_row_was_written() {
        let mut scan = Scan::new(7, 1, None, true);
        (scan.ids, scan.orphans) = (Ids::Done, Orphans::Fenced(9));
        let (slice, from, to) = scan.next_slice(10).unwrap();
        scan.was_read(slice, to - from, 1, 1);
        scan.was_polled(|| 3);
        assert_eq!(scan.orphans, Orphans::Fenced(9), "a row is on its way");
        let mut resumed = Scan::new(7, 1, None, true);
        resumed.resume(&scan.position().unwrap(), 0);
        assert_eq!((resumed.orphans, &resumed.ids), (Orphans::Fenced(9), &Ids::Done));
        scan.acknowledged(slice);
        scan.list_again(|_| true);
        assert!(!scan.is_done() && scan.orphans == Orphans::Fenced(9), "the journal may hold changes");
        scan.was_polled(|| 3);
        scan.list_again(|epoch| epoch < 3);
        assert_eq!((scan.orphans, scan.has_more()), (Orphans::Settling(9, 3), false));
        scan.list_again(|epoch| epoch == 3);
        assert_eq!((scan.orphans, &scan.ids, scan.position()), (Orphans::Listing(9), &Ids::Next(None), None));
    }
}
