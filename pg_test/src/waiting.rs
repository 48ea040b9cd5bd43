//! Waiting for a condition instead of sleeping and hoping.

use std::time::{Duration, Instant};

/// Polls until `check` succeeds; panics with its last complaint when `limit` has passed.
pub fn eventually_ok<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match check() {
            Ok(value) => return value,
            Err(complaint) if begun.elapsed() >= limit => {
                panic!("not within {limit:?}: {what}; the last answer: {complaint}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Polls until `condition` holds; panics when `limit` has passed.
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    eventually_ok(what, limit, || if condition() { Ok(()) } else { Err("not yet".into()) });
}
