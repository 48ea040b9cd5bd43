//! How long the worker leaves the journal alone between two looks, and a search engine between two batches.
//!
//! A look costs much the same however much it finds, and so does each batch that follows from it: a transaction, a flush of
//! WAL, a round trip. At 20,000 commits a second a look a millisecond would take from the writers what they need themselves.
//! What such a pause adds to the lag is less than what the work it saves would. A search engine flushes each bulk request to disk,
//! mostly the one that writers flush their WAL to: so it gets longer pauses.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(10);
/// Up to this many a second are looked for each millisecond; from ten times as many on, each ten milliseconds.
const OFTEN: f64 = 2_000.0;

/// The longest pause between two batches for a search engine.
const ENGINE_LONGEST: Duration = Duration::from_millis(25);
/// So much of a pause for each change a second.
const ENGINE_EACH: Duration = Duration::from_micros(5);

fn rate(found: usize, since: Duration) -> f64 {
    found as f64 / since.max(SHORTEST).as_secs_f64()
}

/// The pause that follows a look which found so many payloads, a payload being what a transaction wrote, `since` the look before.
pub fn pause(found: usize, since: Duration) -> Duration {
    SHORTEST.mul_f64(rate(found, since) / OFTEN).clamp(SHORTEST, LONGEST)
}

/// The pause that follows a batch of so many changes for a search engine, `since` the batch before.
pub fn pause_of_engine(changes: usize, since: Duration) -> Duration {
    ENGINE_EACH.mul_f64(rate(changes, since)).min(ENGINE_LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_changes_are_looked_for_often_and_many_seldom() {
        let after = |rate: f64, since: Duration| pause((rate * since.as_secs_f64()) as usize, since);
        for since in [1, 3, 10].map(Duration::from_millis) {
            assert_eq!(after(0.0, since), SHORTEST);
            assert_eq!(after(2_000.0, since), SHORTEST);
            assert_eq!(after(20_000.0, since), LONGEST);
            assert_eq!(after(1e9, since), LONGEST);
        }
        let between = after(10_000.0, LONGEST);
        assert!(SHORTEST < between && between < LONGEST);
        assert!(pause_of_engine(1, Duration::from_secs(1)) < SHORTEST, "alone");
        assert_eq!(pause_of_engine(20, LONGEST), LONGEST);
        assert_eq!(pause_of_engine(1_000, LONGEST), ENGINE_LONGEST);
        // A look right after another.
        assert_eq!(pause(3, Duration::ZERO), Duration::from_micros(1_500));
    }
}
