//! How long the worker leaves the journal alone between two looks, and a target between two batches.
//!
//! A look costs much the same however much it finds, and so does each batch that follows from it: a transaction, a flush of
//! WAL, a round trip, and for a search engine a flush of its own, mostly to the disk that writers flush their WAL to. While few
//! changes come, a pause would only add to their lag. From some thousands a second on the work takes from the writers what they
//! need themselves, and the lag is that of a queue anyway: changes then gather to batches that are worth it.

use std::time::Duration;

/// Up to this rate a change is on its way at once, or nearly so.
const CALM: f64 = 2_200.0;
/// From this rate on the pauses grow no further: batches do, up to `fanout.batch_documents`, which ends a pause.
const BUSY: f64 = 4_000.0;
/// The rate is one of about so many seconds: a burst alone is none.
const MEMORY: f64 = 0.25;

/// Between two looks at the journal.
const LOOK: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(10)];
/// Between two batches for a search engine, below which there is some pause for each change a second.
const ENGINE: [Duration; 2] = [Duration::from_millis(11), Duration::from_millis(150)];
/// Between two batches for Redis.
const REDIS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(25)];

/// How long a batch may be on its way, at most, while the next one gathers.
pub const ARRIVAL: Duration = Duration::from_secs(1);

/// How many a second there are of something, lately.
#[derive(Clone, Copy, Default)]
pub struct Rate(f64);

impl Rate {
    /// So many came, `since` was said last how many.
    pub fn note(&mut self, count: usize, since: Duration) {
        let seconds = since.max(Duration::from_micros(1)).as_secs_f64();
        self.0 += (count as f64 / seconds - self.0) * (1.0 - (-seconds / MEMORY).exp());
    }

    /// True if a pause is worth more than what it adds to the lag.
    pub fn is_high(self) -> bool {
        self.0 > CALM
    }

    fn between(self, [calm, busy]: [Duration; 2]) -> Duration {
        calm + (busy - calm).mul_f64(((self.0 - CALM) / (BUSY - CALM)).clamp(0.0, 1.0))
    }
}

/// The pause between two looks at such a rate of transactions.
pub fn pause(transactions: Rate) -> Duration {
    transactions.between(LOOK)
}

/// The pause between two batches for a search engine at such a rate of changes.
pub fn pause_of_engine(changes: Rate) -> Duration {
    changes.between(ENGINE).mul_f64((changes.0 / CALM).clamp(0.0, 1.0))
}

/// The pause between two batches for Redis at such a rate of changes.
pub fn pause_of_redis(changes: Rate) -> Duration {
    changes.between(REDIS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it is after a second of so many, noted so often.
    fn of(per_second: f64, every: Duration) -> Rate {
        let mut rate = Rate::default();
        let (mut noted, seconds) = (0, every.as_secs_f64());
        for time in 1..=(2.0 / seconds) as usize {
            let until_now = (per_second * seconds * time as f64) as usize;
            rate.note(until_now - noted, every);
            noted = until_now;
        }
        rate
    }

    #[test]
    fn few_changes_are_looked_for_often_and_many_seldom() {
        for every in [1, 3, 10, 100].map(Duration::from_millis) {
            assert_eq!(pause(of(0.0, every)), LOOK[0]);
            assert_eq!(pause(of(2_000.0, every)), LOOK[0]);
            assert_eq!(pause(of(20_000.0, every)), LOOK[1]);
            let between = pause(of(3_000.0, every));
            assert!(LOOK[0] < between && between < LOOK[1], "{between:?}");
        }
    }

    #[test]
    fn up_to_some_thousands_a_second_hardly_anything_gathers() {
        let every = Duration::from_millis(10);
        let mut alone = Rate::default();
        alone.note(1, Duration::from_secs(1));
        assert!(pause_of_engine(alone) < Duration::from_millis(1), "alone");
        let some = of(2_000.0, every);
        assert!(pause_of_engine(some) < Duration::from_millis(11) && pause_of_redis(some).is_zero() && !some.is_high());
        let many = of(10_000.0, every);
        assert!(pause_of_engine(many) == ENGINE[1] && pause_of_redis(many) == REDIS[1] && many.is_high());
        // Without a step between the two.
        let (below, above) = (of(2_150.0, every), of(2_250.0, every));
        assert!(pause_of_engine(above) - pause_of_engine(below) < Duration::from_millis(8));
    }

    #[test]
    fn a_burst_is_no_rate() {
        let mut rate = of(100.0, Duration::from_millis(10));
        rate.note(20, Duration::from_millis(1));
        // A look right after another.
        rate.note(3, Duration::ZERO);
        assert!(!rate.is_high() && pause(rate) == LOOK[0]);
    }
}
