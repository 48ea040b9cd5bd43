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

    /// Goes on from a saved position, if it is of the same files.
    pub fn resume(&mut self, position: &[u8], rows: i64) {
        if let (Some(files), Some(block)) = (position.first_chunk::<8>(), position.last_chunk::<4>())
            && position.len() == 12
            && i64::from_le_bytes(*files) == self.files
        {
            self.next = u32::from_le_bytes(*block).min(self.end);
            self.rows = rows;
            self.ids = Ids::Done;
        }
    }

    /// The position to save: all before it is acknowledged. None while the target's ids are being enumerated.
    pub fn position(&self) -> Option<Vec<u8>> {
        if self.ids != Ids::Done || self.ids_epoch.is_some() {
            return None;
        }
        let block = self.slices.front().map_or(self.next, |slice| slice.from);
        Some([&self.files.to_le_bytes()[..], &block.to_le_bytes()[..]].concat())
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

    /// True if there is more to read.
    pub fn has_more(&self) -> bool {
        self.ids != Ids::Done || self.next < self.end
    }

    /// True if all was read and acknowledged.
    pub fn is_done(&self) -> bool {
        !self.has_more() && self.slices.is_empty() && self.ids_epoch.is_none()
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
}
