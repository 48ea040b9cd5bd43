//! Who feeds a target is written in the target: one control document (or key) for each target name.
//!
//! Clocks are not compared. Whether another owner is alive is found by watching: a claim that finds another owner
//! returns a [`Sighting`], the caller hands it back with its next claim, and if the control document did not change
//! for `stale_after` by the caller's own monotonic clock, the owner counts as gone.

use std::time::{Duration, Instant};

/// The index in a search engine that holds the control documents.
pub const CONTROL_INDEX: &str = "pg_fanout_control";

/// What the control keys in Redis begin with; the target's name follows.
pub const CONTROL_KEY_PREFIX: &str = "pg_fanout:control:";

/// A wish to own a target.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Name of the target: the alias, or the key template.
    pub target: String,
    /// Which database this is: `<system identifier>/<database oid>`. The same identity takes over at once.
    pub identity: String,
    /// Which run of the worker this is; random, new at every start.
    pub nonce: String,
    /// For people: host and database.
    pub by: String,
    /// How often the owner will renew.
    pub heartbeat_every: Duration,
    /// How long an unchanged control document counts as a living owner. At least three of *its* heartbeat intervals
    /// are waited for in any case.
    pub stale_after: Duration,
    /// Take it whoever owns it (`fanout.adopt()`).
    pub force: bool,
    /// What the previous claim of this target saw.
    pub sighting: Option<Sighting>,
}

/// Another owner's control document as it was first seen in this state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    pub(crate) state: String,
    pub(crate) first_seen: Instant,
}

/// Proof of ownership, good for the next heartbeat or release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    /// Name of the target.
    pub target: String,
    /// Our identity.
    pub identity: String,
    /// Our nonce.
    pub nonce: String,
    /// Text for people.
    pub by: String,
    /// Goes up by one with every change of owner or worker.
    pub epoch: u64,
    /// How often we said that we would renew.
    pub heartbeat_every: Duration,
    pub(crate) fence: Fence,
}

/// What a compare-and-swap compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fence {
    /// Search engines: sequence number and primary term.
    SeqNo(u64, u64),
    /// Redis: the text of the control key.
    Text(String),
}

/// Outcome of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The target is ours.
    Owned(Ownership),
    /// Another feeds it.
    OwnedBy {
        /// Its identity.
        identity: String,
        /// Its text for people.
        by: String,
        /// For how long we have seen no sign of life of it.
        silent_for: Duration,
        /// For the next claim.
        sighting: Sighting,
    },
}

/// Outcome of a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heartbeat {
    /// Still ours; use this for the next one.
    Kept(Ownership),
    /// Another took it: stop.
    Superseded {
        /// Its text for people; empty if the control document is gone.
        by: String,
    },
}
