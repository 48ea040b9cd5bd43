//! How fast, and at what times of day, a backfill or reconcile may read. Pure.
//!
//! A debt is paid in time: what was read beyond the rate is waited for before more is read.

use serde_json::Value;
use std::time::{Duration, Instant};

const DAY: u32 = 24 * 3600;
/// A slice has at most so much of a second's rows, so that a slow pace is an even one.
const SLICES_A_SECOND: f64 = 4.0;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Pace {
    /// Rows a second.
    rate: Option<f64>,
    /// Seconds of the day at which the window opens and closes.
    window: Option<(u32, u32)>,
    /// When all that was read is paid for.
    paid_at: Option<Instant>,
}

/// Why the scan has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Its rate.
    Rate(Duration),
    /// The time of day.
    Window(Duration),
}

impl Pace {
    /// The pace that a sync's options ask for.
    pub fn of(options: &Value) -> Self {
        Self {
            rate: options["backfill_rate"].as_f64().filter(|rate| *rate > 0.0),
            window: options["backfill_window"].as_str().and_then(parse_window),
            paid_at: None,
        }
    }

    /// None if the scan may read now; `second` is that of the day.
    pub fn hold(&self, now: Instant, second: u32) -> Option<Hold> {
        if let Some((opens, closes)) = self.window {
            let inside =
                if opens < closes { (opens..closes).contains(&second) } else { second >= opens || second < closes };
            if !inside {
                return Some(Hold::Window(Duration::from_secs(u64::from((opens + DAY - second) % DAY))));
            }
        }
        let left = self.paid_at?.saturating_duration_since(now);
        (left > Duration::ZERO).then_some(Hold::Rate(left))
    }

    /// So many rows were read.
    pub fn spend(&mut self, rows: usize, now: Instant) {
        if let Some(rate) = self.rate {
            let from = self.paid_at.map_or(now, |at| at.max(now));
            self.paid_at = Some(from + Duration::from_secs_f64((rows as f64 / rate).min(3600.0)));
        }
    }

    /// Rows that should be read at a time.
    pub fn rows(&self) -> usize {
        self.rate.map_or(usize::MAX, |rate| ((rate / SLICES_A_SECOND) as usize).max(1))
    }
}

/// Seconds of the day out of "22:00-06:00". None if it is no such text; the same time twice is no window.
pub fn parse_window(text: &str) -> Option<(u32, u32)> {
    let time = |text: &str| {
        let (hours, minutes) = text.trim().split_once(':')?;
        let number = |text: &str, bound: u32| {
            let digits = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|number| digits && *number < bound)
        };
        Some(number(hours, 24)? * 3600 + number(minutes, 60)? * 60)
    };
    let (opens, closes) = text.split_once('-')?;
    let window = (time(opens)?, time(closes)?);
    (window.0 != window.1).then_some(window)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn windows() {
        assert_eq!(parse_window("22:00-06:30"), Some((79_200, 23_400)));
        assert_eq!(parse_window(" 1:05 - 2:00 "), Some((3_900, 7_200)));
        for text in ["", "22:00", "24:00-01:00", "1:60-2:00", "1:00-1:00", "a:b-c:d", "1:000-2:00", "+1:00-2:00"] {
            assert_eq!(parse_window(text), None, "{text}");
        }
    }

    #[test]
    fn a_window_over_midnight() {
        let pace = Pace::of(&json!({"backfill_window": "22:00-06:00"}));
        let now = Instant::now();
        for hour in [22, 23, 0, 5] {
            assert_eq!(pace.hold(now, hour * 3600), None, "{hour}");
        }
        assert_eq!(pace.hold(now, 6 * 3600), Some(Hold::Window(Duration::from_secs(16 * 3600))));
        assert_eq!(pace.hold(now, 21 * 3600), Some(Hold::Window(Duration::from_secs(3600))));
    }

    #[test]
    fn a_rate_is_kept_over_time() {
        let mut pace = Pace::of(&json!({"backfill_rate": 100}));
        assert_eq!(pace.rows(), 25);
        let begin = Instant::now();
        let (mut now, mut rows) = (begin, 0);
        while now < begin + Duration::from_secs(10) {
            match pace.hold(now, 0) {
                Some(Hold::Rate(wait)) => now += wait,
                _ => {
                    rows += 25;
                    pace.spend(25, now);
                }
            }
        }
        assert!((975..=1025).contains(&rows), "{rows}");
    }
}
