//! Who feeds a target is written in the target: one control document (or key) for each target name.
//!
//! | the control document is | a claim |
//! | --- | --- |
//! | missing | takes the target, with an epoch that no earlier life of it had |
//! | ours: of our identity, place and sync (a restart) | takes it at once, epoch + 1 |
//! | of our identity and another place (a copy of the files, or the same server moved) | waits as for another identity; then takes it with a new epoch |
//! | of another identity (another database, another timeline) | is refused, until that owner has shown no sign of life for `stale_after`, or with `force` |
//! | of another sync of our database that feeds it | is refused, however silent that one is, unless with `force` |
//! | of a sync of our database that is no more | takes it at once, with a new epoch |
//!
//! A copy of a server's files has its identity and remembers what it remembered; only where it runs tells them apart. The
//! heartbeats of the one that feeds the target are what keeps the other out.
//!
//! Clocks are not compared. Whether another owner is alive is found by watching: a claim that finds another owner
//! returns a [`Sighting`], the caller hands it back with its next claim, and if the control document did not change
//! for `stale_after` (at least three of the owner's own heartbeat intervals) by the caller's monotonic clock, the owner
//! counts as gone. So a claim against a dead owner takes that long, however old its last heartbeat is.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// The index in a search engine that holds the control documents.
pub const CONTROL_INDEX: &str = "pg_fanout_control";

/// What the control keys in Redis begin with; the target's name follows.
pub const CONTROL_KEY_PREFIX: &str = "pg_fanout:control:";

/// Attempts against others that change a control document at the same time.
const ATTEMPTS: usize = 5;

/// Control documents that are renewed together.
const BEATS: usize = 500;

/// A wish to own a target.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Name of the target: the alias, or the key template.
    pub target: String,
    /// Which database this is: `<system identifier>/<database oid>/<timeline>`.
    pub identity: String,
    /// Where the server runs: no two that run at the same time have the same. None if that is not known; then all places are
    /// alike.
    pub place: Option<String>,
    /// Which sync this is, on whatever timeline: no other in the world has the same, but in copies of the database.
    pub sync: String,
    /// Other syncs of this database that are to feed a target of this name.
    pub rivals: Vec<Rival>,
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

/// A sync that may have claimed the same target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rival {
    /// As [`Claim::sync`].
    pub sync: String,
    /// The epoch of its last claim; of another target, if it was moved elsewhere.
    pub epoch: Option<u64>,
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
    /// Our place.
    pub place: Option<String>,
    /// Our sync.
    pub sync: String,
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
        /// One of the rivals, if it is one.
        rival: Option<Rival>,
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

impl Ownership {
    pub(crate) fn new(claim: &Claim, epoch: u64, fence: Fence) -> Ownership {
        Ownership {
            target: claim.target.clone(),
            identity: claim.identity.clone(),
            place: claim.place.clone(),
            sync: claim.sync.clone(),
            nonce: claim.nonce.clone(),
            by: claim.by.clone(),
            epoch,
            heartbeat_every: claim.heartbeat_every,
            fence,
        }
    }

    pub(crate) fn with_fence(&self, fence: Fence) -> Ownership {
        Ownership { fence, ..self.clone() }
    }
}

/// Renews ownerships, many together where nothing has changed behind our back. One outcome for each. `together` gives the
/// new fences of those that could be written; why another could not, `alone` tells.
pub(crate) fn heartbeats<T>(
    target: &mut T,
    ownerships: &[Ownership],
    together: impl Fn(&mut T, &[Ownership]) -> Result<Vec<Option<Fence>>>,
    alone: impl Fn(&mut T, &Ownership) -> Result<Heartbeat>,
) -> Result<Vec<Result<Heartbeat>>> {
    let mut outcomes = Vec::with_capacity(ownerships.len());
    for some in ownerships.chunks(BEATS) {
        let renewed = together(target, some)?;
        outcomes.extend(some.iter().zip(renewed).map(|(ownership, fence)| match fence {
            Some(fence) => Ok(Heartbeat::Kept(ownership.with_fence(fence))),
            None => alone(target, ownership),
        }));
    }
    Ok(outcomes)
}

/// Who feeds a target, for people to read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Owner {
    /// Its identity and timeline.
    pub identity: String,
    /// Where it runs, if it says so.
    #[serde(default)]
    pub place: Option<String>,
    /// Which sync of it, if it says so.
    #[serde(default)]
    pub sync: Option<String>,
    /// Its text for people.
    pub by: String,
    /// When it last said that it is alive, milliseconds since 1970 by its own clock.
    pub heartbeat_ms: u64,
}

/// What is stored in the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Control {
    pub(crate) identity: String,
    /// Not in those that were written before there was such a thing.
    #[serde(default)]
    pub(crate) place: Option<String>,
    /// Not in those that were written before there was such a thing.
    #[serde(default)]
    pub(crate) sync: Option<String>,
    pub(crate) nonce: String,
    pub(crate) epoch: u64,
    /// For people: milliseconds since 1970 by the owner's clock. We look only at whether it changes.
    pub(crate) heartbeat_ms: u64,
    pub(crate) heartbeat_every_ms: u64,
    pub(crate) by: String,
    /// Redis: the run of the server that this was written to, or those of all nodes of a cluster, between commas. One that
    /// started again may have lost what it acknowledged, and so may one that took the place of another.
    #[serde(default)]
    pub(crate) server: Option<String>,
}

impl Control {
    pub(crate) fn renewed(ownership: &Ownership) -> Control {
        Control {
            identity: ownership.identity.clone(),
            place: ownership.place.clone(),
            sync: Some(ownership.sync.clone()),
            nonce: ownership.nonce.clone(),
            epoch: ownership.epoch,
            heartbeat_ms: now_ms(),
            heartbeat_every_ms: millis(ownership.heartbeat_every),
            by: ownership.by.clone(),
            server: None,
        }
    }

    /// As one that goes on from nothing that was before.
    pub(crate) fn begin_anew(&mut self) {
        self.epoch = first_epoch();
    }

    /// Whether this was written to [another run](is_another_run) of the server, as far as both are known.
    pub(crate) fn is_of_another_run(&self, server: Option<&str>) -> bool {
        self.server.as_deref().zip(server).is_some_and(|(known, present)| is_another_run(known, present))
    }

    /// Whether this was written by the very run that holds this ownership.
    pub(crate) fn is_of(&self, ownership: &Ownership) -> bool {
        self.identity == ownership.identity && self.nonce == ownership.nonce && self.epoch == ownership.epoch
    }

    /// Changes with every write: what a sighting remembers. `revision` is the target's own mark of a change.
    pub(crate) fn state(&self, revision: &str) -> String {
        format!("{revision} {} {} {}", self.nonce, self.epoch, self.heartbeat_ms)
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::json!({
            "identity": self.identity, "nonce": self.nonce, "epoch": self.epoch,
            "heartbeat_ms": self.heartbeat_ms, "heartbeat_every_ms": self.heartbeat_every_ms, "by": self.by,
        });
        for (name, value) in [("place", &self.place), ("sync", &self.sync), ("server", &self.server)] {
            if let Some(value) = value {
                json[name] = value.as_str().into();
            }
        }
        json
    }
}

/// Whether both are the same as far as both are known.
pub fn alike(one: Option<&str>, other: Option<&str>) -> bool {
    one.zip(other).is_none_or(|(one, other)| one == other)
}

/// Whether what was a run of a server of Redis, or the runs of all nodes of a cluster between commas, is there no more. A node that
/// has come to a cluster is no loss.
pub fn is_another_run(known: &str, present: &str) -> bool {
    known.split(',').any(|run| present.split(',').all(|other| other != run))
}

/// What a claim does with what it finds.
pub(crate) enum Decision {
    /// Write this, if nothing changed since.
    Take(Control),
    Leave(ClaimOutcome),
}

impl Claim {
    /// `found` is the control document and its [`Control::state`].
    pub(crate) fn decide(&self, found: Option<(&Control, String)>) -> Decision {
        let Some((control, state)) = found else {
            return Decision::Take(self.control(first_epoch()));
        };
        let ours = control.identity == self.identity;
        let here = ours && alike(control.place.as_deref(), self.place.as_deref());
        let same_sync = alike(control.sync.as_deref(), Some(&self.sync));
        let next = control.epoch.saturating_add(1);
        let take = || {
            // Our identity remembers the epochs of both: one that goes on from nothing that either remembers.
            let goes_on = !ours || here && same_sync;
            Decision::Take(self.control(if goes_on { next } else { first_epoch().max(next + 1) }))
        };
        let rival = self.rivals.iter().find(|rival| control.sync.as_ref() == Some(&rival.sync));
        if self.force || here && rival.is_none() {
            return take();
        }
        let now = Instant::now();
        let first_seen = match &self.sighting {
            Some(sighting) if sighting.state == state => sighting.first_seen,
            _ => now,
        };
        let silent_for = now.duration_since(first_seen);
        let its_interval = Duration::from_millis(control.heartbeat_every_ms);
        // It is silent while it is paused, too. But if it has claimed another target since, it has left this one.
        let feeds_it = rival.is_some_and(|rival| rival.epoch == Some(control.epoch));
        if !feeds_it && silent_for >= self.stale_after.max(its_interval.saturating_mul(3)) && first_seen < now {
            return take();
        }
        Decision::Leave(ClaimOutcome::OwnedBy {
            identity: control.identity.clone(),
            by: control.by.clone(),
            rival: rival.cloned(),
            silent_for,
            sighting: Sighting { state, first_seen },
        })
    }

    fn control(&self, epoch: u64) -> Control {
        Control {
            identity: self.identity.clone(),
            place: self.place.clone(),
            sync: Some(self.sync.clone()),
            nonce: self.nonce.clone(),
            epoch,
            heartbeat_ms: now_ms(),
            heartbeat_every_ms: millis(self.heartbeat_every),
            by: self.by.clone(),
            server: None,
        }
    }
}

/// Has `attempt` look at a control document and write it until nobody else wrote in between, a few times at most. None: somebody
/// did.
pub(crate) fn attempts<T>(mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..ATTEMPTS {
        if let Some(done) = attempt()? {
            return Ok(done);
        }
    }
    Err(Error::new(ErrorKind::Conflict, "the target's control document changes all the time"))
}

/// Not 1: whoever remembers the epoch of an earlier life must not take this one for its continuation, however many claims
/// it takes until one is answered.
fn first_epoch() -> u64 {
    now_ms()
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(identity: &str) -> Claim {
        Claim {
            target: "product".into(),
            identity: identity.into(),
            place: Some("here".into()),
            sync: "1".into(),
            rivals: Vec::new(),
            nonce: "n".into(),
            by: format!("database {identity}"),
            heartbeat_every: Duration::from_millis(1),
            stale_after: Duration::from_millis(20),
            force: false,
            sighting: None,
        }
    }

    fn taken(decision: Decision) -> Option<Control> {
        match decision {
            Decision::Take(control) => Some(control),
            Decision::Leave(_) => None,
        }
    }

    #[test]
    fn free_and_our_own() {
        let first = taken(claim("a").decide(None)).unwrap();
        assert_eq!(first.identity, "a");
        let again = taken(claim("a").decide(Some((&first, "1".into())))).unwrap();
        assert_eq!(again.epoch, first.epoch + 1);
        let forced = Claim { force: true, ..claim("b") };
        assert_eq!(taken(forced.decide(Some((&again, "2".into())))).unwrap().epoch, first.epoch + 2);
    }

    #[test]
    fn another_life_of_a_target_is_no_continuation() {
        let first = taken(claim("a").decide(None)).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        // Lost, and claimed anew; the answer is lost, and it is claimed once more.
        let second = taken(claim("a").decide(None)).unwrap();
        let third = taken(claim("a").decide(Some((&second, "1".into())))).unwrap();
        assert!(third.epoch > first.epoch + 1, "{} {}", first.epoch, third.epoch);
    }

    #[test]
    fn another_owner_is_watched_until_it_is_silent() {
        let theirs = taken(claim("a").decide(None)).unwrap();
        let mut ours = claim("b");
        let watch = |ours: &mut Claim, state: &str| match ours.decide(Some((&theirs, state.into()))) {
            Decision::Take(control) => Some(control),
            Decision::Leave(ClaimOutcome::OwnedBy { by, sighting, .. }) => {
                assert_eq!(by, "database a");
                ours.sighting = Some(sighting);
                None
            }
            Decision::Leave(other) => panic!("{other:?}"),
        };
        assert!(watch(&mut ours, "1").is_none());
        std::thread::sleep(Duration::from_millis(25));
        assert!(watch(&mut ours, "2").is_none(), "a sign of life starts the wait anew");
        assert!(watch(&mut ours, "2").is_none());
        std::thread::sleep(Duration::from_millis(25));
        assert_eq!(watch(&mut ours, "2").unwrap().epoch, theirs.epoch + 1);
    }

    #[test]
    fn a_copy_of_the_files_waits_for_the_original_and_is_no_continuation() {
        let theirs = taken(claim("a").decide(None)).unwrap();
        let mut copy = Claim { place: Some("elsewhere".into()), ..claim("a") };
        let Decision::Leave(ClaimOutcome::OwnedBy { sighting, .. }) = copy.decide(Some((&theirs, "1".into()))) else {
            panic!("taken from a living original")
        };
        copy.sighting = Some(sighting);
        std::thread::sleep(Duration::from_millis(25));
        let moved = taken(copy.decide(Some((&theirs, "1".into())))).unwrap();
        assert!(moved.epoch > theirs.epoch + 1, "{} {}", theirs.epoch, moved.epoch);
        let forced = Claim { force: true, sighting: None, ..copy };
        assert!(taken(forced.decide(Some((&theirs, "1".into())))).unwrap().epoch > theirs.epoch + 1);
    }

    #[test]
    fn a_run_that_is_gone_is_noticed() {
        let mut control = taken(claim("a").decide(None)).unwrap();
        assert!(!control.is_of_another_run(Some("a")), "it is not known which it was");
        control.server = Some("a,b".into());
        for (present, another) in
            [(None, false), (Some("a,b"), false), (Some("c,b,a"), false), (Some("a"), true), (Some("a,c"), true)]
        {
            assert_eq!(control.is_of_another_run(present), another, "{present:?}");
        }
    }

    #[test]
    fn where_a_place_is_not_known_the_identity_decides() {
        let theirs = taken(claim("a").decide(None)).unwrap();
        let nowhere = Claim { place: None, ..claim("a") };
        assert_eq!(taken(nowhere.decide(Some((&theirs, "1".into())))).unwrap().epoch, theirs.epoch + 1);
        // As a control document was before it said place and sync.
        let text =
            r#"{"identity": "a", "nonce": "n", "epoch": 7, "heartbeat_ms": 1, "heartbeat_every_ms": 1, "by": ""}"#;
        let old: Control = serde_json::from_str(text).unwrap();
        assert_eq!(taken(claim("a").decide(Some((&old, "1".into())))).unwrap().epoch, 8);
    }

    #[test]
    fn another_sync_of_the_database_keeps_what_it_feeds() {
        let theirs = taken(claim("a").decide(None)).unwrap();
        let two = |epoch| Claim {
            sync: "2".into(),
            rivals: vec![Rival { sync: "1".into(), epoch: Some(epoch) }],
            ..claim("a")
        };
        let mut second = two(theirs.epoch);
        for _ in 0..3 {
            let Decision::Leave(ClaimOutcome::OwnedBy { rival, sighting, .. }) =
                second.decide(Some((&theirs, "1".into())))
            else {
                panic!("taken from another sync")
            };
            assert_eq!(rival.unwrap().sync, "1");
            second.sighting = Some(sighting);
            std::thread::sleep(Duration::from_millis(25));
        }
        // On another timeline as well.
        second.identity = "b".into();
        assert!(taken(second.decide(Some((&theirs, "1".into())))).is_none());
        // It feeds another target by now: as soon as it is known to be silent here.
        let mut left = two(theirs.epoch + 5);
        assert!(taken(left.decide(Some((&theirs, "1".into())))).is_none());
        left.sighting = second.sighting;
        assert!(taken(left.decide(Some((&theirs, "1".into())))).is_some());
        // It is no more: at once, and from the start.
        let alone = Claim { rivals: Vec::new(), ..two(0) };
        assert!(taken(alone.decide(Some((&theirs, "1".into())))).unwrap().epoch > theirs.epoch + 1);
    }

    #[test]
    fn an_owner_with_a_slow_heart_gets_three_beats() {
        let theirs = Control { heartbeat_every_ms: 60_000, ..taken(claim("a").decide(None)).unwrap() };
        let mut ours = claim("b");
        if let Decision::Leave(ClaimOutcome::OwnedBy { sighting, .. }) = ours.decide(Some((&theirs, "1".into()))) {
            ours.sighting = Some(sighting);
        }
        std::thread::sleep(Duration::from_millis(25));
        assert!(taken(ours.decide(Some((&theirs, "1".into())))).is_none());
    }
}
