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
        Backoff {
            min,
            max: max.max(min),
            attempts: 0,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// How long to wait before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        // 2^20 times a millisecond is past any sensible maximum.
        let ceiling = self
            .min
            .saturating_mul(1 << self.attempts.min(20))
            .min(self.max);
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
