//! Versions: later read, higher version, always.
//!
//! A hybrid clock: microseconds since 1970, but never less than one more than the last version. Versions are reserved
//! ahead in `fanout.clock`, durably, before they are used: after a crash with the clock set back the worker still starts
//! above everything it ever issued.

use super::shared;
use super::transaction::{Failed, flush_wal, transaction};
use pgrx::prelude::*;

/// The second of the day in the time zone of the server's log: the worker's own is pinned.
pub fn second_of_day() -> u32 {
    // SAFETY: log_timezone is set in every process, and the result is a static of that library, copied at once.
    unsafe {
        let now: pg_sys::pg_time_t = shared::now() / 1_000_000;
        let local = pg_sys::pg_localtime(&now, pg_sys::log_timezone);
        if local.is_null() { 0 } else { ((*local).tm_hour * 3600 + (*local).tm_min * 60 + (*local).tm_sec) as u32 }
    }
}

/// How far ahead versions are reserved, in microseconds.
const AHEAD: i64 = 60_000_000;

/// No version that we did not issue takes the clock further: it has to be able to go on, for ever so many restarts.
const LAST: i64 = i64::MAX / 2;

/// So many ranges of versions are kept that the clock was moved past; then the oldest are taken for one.
const SKIPPED: usize = 64;

/// True of a version that the clock can be moved past.
pub fn passable(version: u64) -> bool {
    version < LAST as u64
}

/// See the module.
pub struct Clock {
    last: i64,
    reserved: i64,
    /// Versions that it was moved past, from and to: none of them is ours.
    skipped: Vec<(i64, i64)>,
}

impl Clock {
    /// Starts above everything that was reserved before.
    pub fn start() -> Result<Self, Failed> {
        let reserved = transaction(|| {
            Spi::connect(|client| {
                client.select("SELECT reserved FROM fanout.clock", None, &[])?.first().get_one::<i64>()
            })
            .ok()
            .flatten()
            .unwrap_or(0)
        })?;
        let mut clock = Self { last: reserved, reserved, skipped: Vec::new() };
        clock.reserve()?;
        Ok(clock)
    }

    fn reserve(&mut self) -> Result<(), Failed> {
        let until = self.last.max(shared::now()) + AHEAD;
        transaction(|| {
            Spi::run_with_args("UPDATE fanout.clock SET reserved = greatest(reserved, $1)", &[until.into()])
                .unwrap_or_else(|error| error!("{error}"));
        })?;
        flush_wal();
        self.reserved = until;
        Ok(())
    }

    /// The version for what is read from now on.
    pub fn next(&mut self) -> Result<u64, Failed> {
        let version = (self.last + 1).max(shared::now());
        if version > self.reserved {
            self.last = self.last.max(self.reserved);
            self.reserve()?;
        }
        self.last = (self.last + 1).max(version);
        Ok(self.last as u64)
    }

    /// True of a version that may be ours.
    pub fn may_have_issued(&self, version: u64) -> bool {
        i64::try_from(version).is_ok_and(|version| {
            version <= self.last && !self.skipped.iter().any(|&(from, to)| (from..=to).contains(&version))
        })
    }

    /// A target holds this version, which we did not issue: all that comes is above it, unless it is among the very last that
    /// there are, [`passable`] says.
    pub fn pass(&mut self, version: u64) {
        let version = i64::try_from(version).unwrap_or(i64::MAX).min(LAST);
        if version <= self.last {
            return;
        }
        self.skipped.push((self.last + 1, version));
        if self.skipped.len() > SKIPPED {
            // What of ours lies between is read and sent once more if it is met.
            self.skipped[1].0 = self.skipped[0].0;
            self.skipped.remove(0);
        }
        self.last = version;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_was_moved_past_is_not_ours() {
        let mut clock = Clock { last: 100, reserved: 1000, skipped: Vec::new() };
        assert!(clock.may_have_issued(100) && !clock.may_have_issued(101));
        clock.pass(50);
        clock.pass(150);
        clock.last = 160;
        let ours = |clock: &Clock, versions: [u64; 5]| versions.map(|version| clock.may_have_issued(version));
        assert_eq!(ours(&clock, [50, 101, 150, 151, 161]), [true, false, false, true, false]);
        for version in (1..=1000).map(|n| 200 * n) {
            clock.pass(version);
            assert!(clock.skipped.len() <= SKIPPED && !clock.may_have_issued(version));
        }
        clock.pass(u64::MAX);
        assert_eq!((clock.last, passable(LAST as u64)), (LAST, false));
        assert!(!clock.may_have_issued(u64::MAX) && clock.may_have_issued(1));
    }
}
