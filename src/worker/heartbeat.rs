//! Signs of life: the control documents of all targets that the worker feeds, renewed together, server by server. One by one
//! they would be a wake-up each, and more than the queue of a server's senders holds.

use super::cycle::{Task, Worker};
use super::outcome::fail;
use super::runner::{Runner, Target};
use crate::catalog::Phase;
use delivery::ownership::{Heartbeat, Ownership};
use delivery::sender::{JobKind, JobResult};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often a worker says that it is alive.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// Whose sign of life it is: of a sync, as the owner of that epoch.
#[derive(Clone, Copy)]
pub struct Beat {
    sync: i32,
    epoch: u64,
}

/// Gives a sign of life to each server when it is time: to all at the same moment, so that one wake-up is enough. One whose
/// queue is full gets it in the next turn.
pub fn tend(worker: &mut Worker) {
    let now = Instant::now();
    if worker.beat_due <= now {
        worker.beat_due = now + HEARTBEAT;
        worker.channels.iter_mut().for_each(|channel| channel.owes_beat = true);
    }
    for place in 0..worker.channels.len() {
        // A full queue may last for many turns: the ownerships are gathered when there is room for them.
        if !worker.channels[place].owes_beat || worker.channels[place].senders.is_full() {
            continue;
        }
        let senders = Rc::clone(&worker.channels[place].senders);
        let is_fed = |runner: &&Runner| {
            runner.senders.as_ref().is_some_and(|known| Rc::ptr_eq(known, &senders))
                && is_held(runner)
                && runner.may_try(now)
        };
        let (beats, ownerships): (Vec<Beat>, Vec<Ownership>) = worker
            .runners
            .values()
            .filter(is_fed)
            .filter_map(|runner| {
                let owned = runner.ownership.clone()?;
                Some((Beat { sync: runner.sync.id, epoch: owned.epoch }, owned))
            })
            .unzip();
        let sent = match beats.first() {
            Some(&Beat { sync, .. }) => {
                worker.send(sync, Task::Heartbeat(beats), JobKind::Heartbeat(ownerships)).is_ok()
            }
            None => true,
        };
        worker.channels[place].owes_beat = !sent;
    }
}

/// A server has answered, or could not be asked.
pub fn answered(worker: &mut Worker, beats: &[Beat], result: delivery::Result<JobResult>) {
    match result {
        Ok(JobResult::Heartbeat(outcomes)) => {
            for (beat, outcome) in beats.iter().zip(outcomes) {
                match (still(worker, beat), outcome) {
                    (Some(runner), Ok(outcome)) => take(runner, outcome),
                    (Some(runner), Err(error)) => lost(runner, &error),
                    (None, _) => {}
                }
            }
        }
        Ok(_) => {}
        Err(error) => {
            for beat in beats {
                if let Some(runner) = still(worker, beat) {
                    lost(runner, &error);
                }
            }
        }
    }
}

/// The sync, if it still feeds its target as it did then: one that has claimed it anew meanwhile knows better.
fn still<'a>(worker: &'a mut Worker, beat: &Beat) -> Option<&'a mut Runner> {
    let runner = worker.runners.get_mut(&beat.sync)?;
    let same = runner.ownership.as_ref().is_some_and(|owned| owned.epoch == beat.epoch);
    (same && is_held(runner)).then_some(runner)
}

fn is_held(runner: &Runner) -> bool {
    matches!(runner.target, Target::Ready) || is_removed(runner)
}

/// True if the target is being removed, page by page: it must not look abandoned meanwhile.
fn is_removed(runner: &Runner) -> bool {
    runner.sync.phase == Phase::Drop && matches!(runner.target, Target::Asked)
}

/// No reason to stop: a claim tells. Of a removal its own steps do.
fn lost(runner: &mut Runner, error: &delivery::Error) {
    if !is_removed(runner) {
        runner.target = Target::Unknown;
        fail(runner, error);
    }
}

fn take(runner: &mut Runner, outcome: Heartbeat) {
    match outcome {
        Heartbeat::Kept(ownership) => runner.ownership = Some(ownership),
        Heartbeat::Superseded { by } => {
            runner.ownership = None;
            if !is_removed(runner) {
                runner.target = Target::Unknown;
            }
            // Taken by nobody: the control document is gone, and maybe all the rest with it. It is claimed anew.
            if !by.is_empty() {
                runner
                    .block(&format!("the target was taken over by another owner ({by}); fanout.adopt() takes it back"));
            }
        }
    }
}
