//! Names and waits that the tests against real servers share.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use delivery::ownership::Claim;

/// The value of a variable that `stack/env` sets; without it the test is skipped, and says so.
pub fn server(variable: &str) -> Option<String> {
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        println!("skipped: {variable} is not set (eval \"$(stack/env)\")");
    }
    value
}

/// A name of this run's own.
pub fn unique(name: &str) -> String {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("deliv-{name}-{}-{}", std::process::id(), nanos % 1_000_000_000)
}

pub fn claim(target: &str, identity: &str, nonce: &str) -> Claim {
    Claim {
        target: target.into(),
        identity: identity.into(),
        place: Some("here".into()),
        sync: format!("{identity}/1"),
        rivals: Vec::new(),
        nonce: nonce.into(),
        by: format!("{identity} {nonce}"),
        heartbeat_every: Duration::from_millis(10),
        stale_after: Duration::from_millis(300),
        force: false,
        sighting: None,
    }
}
