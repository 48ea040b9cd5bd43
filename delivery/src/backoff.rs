//! Exponential backoff with full jitter.

use std::time::Duration;

/// Delays that double from `min` to `max`, each drawn evenly from `[min, current]`.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    attempts: u32,
    random: fastrand::Rng,
}

impl Backoff {
    /// Starts at `min` (at least 1 ms), never exceeds `max`.
    pub fn new(min: Duration, max: Duration) -> Backoff {
        Backoff::with_seed(min, max, fastrand::u64(..))
    }

    /// As [`Backoff::new`], repeatable.
    pub fn with_seed(min: Duration, max: Duration, seed: u64) -> Backoff {
        let min = min.max(Duration::from_millis(1));
        Backoff { min, max: max.max(min), attempts: 0, random: fastrand::Rng::with_seed(seed) }
    }

    /// How long to wait before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        // 2^20 times a millisecond is past any sensible maximum.
        let ceiling = self.min.saturating_mul(1 << self.attempts.min(20)).min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        let spread = u64::try_from((ceiling - self.min).as_micros()).unwrap_or(u64::MAX - 1);
        self.min + Duration::from_micros(self.random.u64(0..=spread))
    }

    /// Attempts since the last success.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// After a success: the next delay is short again.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ceilings_double_up_to_the_maximum() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut highest = vec![Duration::ZERO; 10];
        for seed in 0..2000 {
            let mut backoff = Backoff::with_seed(min, max, seed);
            for high in &mut highest {
                *high = (*high).max(backoff.next_delay());
            }
        }
        for (n, high) in highest.iter().enumerate() {
            let ceiling = (min * (1 << n)).min(max);
            assert!(*high <= ceiling && *high >= ceiling.mul_f64(0.95), "{n}: {high:?} {ceiling:?}");
        }
    }

    #[test]
    fn reset_begins_anew() {
        let mut backoff = Backoff::with_seed(Duration::from_millis(10), Duration::from_secs(60), 1);
        for _ in 0..12 {
            backoff.next_delay();
        }
        assert_eq!(backoff.attempts(), 12);
        backoff.reset();
        assert_eq!(backoff.next_delay(), Duration::from_millis(10));
    }

    proptest! {
        #[test]
        fn bounds_hold(min in 0u64..10_000, max in 0u64..10_000_000, seed: u64) {
            let mut backoff = Backoff::with_seed(Duration::from_millis(min), Duration::from_millis(max), seed);
            for _ in 0..70 {
                let delay = backoff.next_delay();
                prop_assert!(delay >= Duration::from_millis(min.max(1)));
                prop_assert!(delay <= Duration::from_millis(max.max(min).max(1)));
            }
        }
    }
}
