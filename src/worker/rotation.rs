//! Rotation: writers move to an empty segment, and the one they left is emptied once all in it is acknowledged or stored.

use super::cycle::spill;
use super::pending::Epoch;
use super::runner::Runner;
use super::shared::{self, Database};
use super::transaction::transaction;
use crate::journal::reader::{Audit, Extent, Reader};
use crate::settings;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// While nothing is pending, a segment of so many blocks is left behind: what is in the journal is read again at start.
const QUIET_BLOCKS: u32 = 32;
/// Least time between two attempts to empty segments.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a sync may hold a segment back before its backlog is stored in the table.
const PATIENCE: Duration = Duration::from_secs(10);

/// A segment that was left, and what must be acknowledged before it is emptied.
struct Sealed {
    number: u32,
    found: u64,
    epochs: Vec<(i32, Epoch)>,
    since: Instant,
}

/// See the module.
#[derive(Default)]
pub struct Rotation {
    sealed: Vec<Sealed>,
    tried: Option<Instant>,
}

impl Rotation {
    /// Called after each poll with the sizes of the segments. True if one of them is to be read again.
    pub fn turn(
        &mut self,
        reader: &mut Reader,
        database: &Database,
        extents: &[Extent],
        runners: &mut BTreeMap<i32, Runner>,
        quiet: bool,
    ) -> bool {
        let current = database.segment();
        let size = extents.iter().find(|extent| extent.number == current).map_or(0, |extent| extent.blocks);
        if size >= settings::segment_blocks() || (quiet && size >= QUIET_BLOCKS) {
            // If none is free, transactions that are open have written to all: the current one grows until one of them ends.
            if let Some(free) = extents.iter().find(|extent| extent.number != current && extent.blocks == 0) {
                database.set_segment(free.number);
            }
        }
        if self.tried.is_some_and(|tried| tried.elapsed() < PAUSE) {
            return false;
        }
        self.tried = Some(Instant::now());
        let mut again = false;
        for extent in extents {
            if extent.number != database.segment() && extent.blocks > 0 && extent.read {
                again |= self.empty(reader, extent.number, runners);
            }
        }
        again
    }

    /// Empties a segment if all in it is settled. True if it is to be read again instead.
    fn empty(&mut self, reader: &mut Reader, number: u32, runners: &mut BTreeMap<i32, Runner>) -> bool {
        let found = reader.found(number);
        let known = self.sealed.iter().position(|sealed| sealed.number == number);
        let place = match known {
            Some(place) if self.sealed[place].found == found => place,
            other => {
                // Left just now, or a writer that chose it before was late: what was found until now has to be settled.
                let epochs =
                    runners.iter_mut().map(|(&id, runner)| (id, runner.pending.next_epoch(shared::now()))).collect();
                let since = other.map_or_else(Instant::now, |place| self.sealed[place].since);
                self.sealed.retain(|sealed| sealed.number != number);
                self.sealed.push(Sealed { number, found, epochs, since });
                self.sealed.len() - 1
            }
        };
        // What is to be noted durably of these addresses is not noted yet.
        if runners.values().any(|runner| runner.wanted.is_some()) {
            return false;
        }
        let sealed = &self.sealed[place];
        for &(id, epoch) in &sealed.epochs {
            let Some(runner) = runners.get_mut(&id) else { continue };
            if runner.pending.is_done(epoch) {
                continue;
            }
            // A sync that is behind must hold back neither the journal nor the others.
            if sealed.since.elapsed() < PATIENCE || !spill(runner) || !runner.pending.is_done(epoch) {
                return false;
            }
        }
        let again = match transaction(|| reader.audit(number)) {
            Ok(Audit::Truncated) => false,
            Ok(Audit::Again) => true,
            Ok(Audit::Locked) => return false,
            Err(failed) => {
                pgrx::warning!("pg_fanout: cannot empty journal segment {number}: {failed}");
                return false;
            }
        };
        self.sealed.retain(|sealed| sealed.number != number);
        again
    }
}
