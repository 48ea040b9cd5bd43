//! What the worker knows of one address, asked by a backend (`fanout.explain()`) through shared memory.
//!
//! A question is a slot that a backend takes, fills and hands over; the worker answers it in its next turn. Whoever gives up
//! waiting frees the slot, or leaves that to the worker if it is writing the answer just then.

use super::cycle::Worker;
use super::shared::{self, Database, WorkerState};
use crate::journal::format::MAX_ADDRESS;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

/// Questions that can be open in the whole cluster at a time.
pub const MAX_QUESTIONS: usize = 16;
/// How long the worker may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A slot that was asked so long ago has no owner any more, in microseconds.
const FORGOTTEN: i64 = 60_000_000;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const ASKED: u32 = 2;
const ANSWERING: u32 = 3;
const ANSWERED: u32 = 4;
const GIVEN_UP: u32 = 5;

/// A slot in shared memory. Zeroed memory is a free one.
#[repr(C)]
pub struct Question {
    state: AtomicU32,
    /// When it was asked, microseconds since 1970.
    asked: AtomicI64,
    database: AtomicU32,
    sync: AtomicI32,
    /// Commits of the database when it was asked: the answer must know of them.
    commits: AtomicU64,
    length: AtomicU32,
    place: AtomicU8,
    attempts: AtomicU32,
    since: AtomicI64,
    address: [AtomicU8; MAX_ADDRESS],
}

/// Where an address is with the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Place {
    /// Not pending: all that was captured of it is delivered.
    Settled = 0,
    /// Waits to be read.
    Queued = 1,
    /// Waits for the time of its next attempt.
    Delayed = 2,
    /// Being read or delivered.
    InFlight = 3,
    /// Being delivered, and changed once more meanwhile.
    InFlightAgain = 4,
}

/// What the worker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where the address is.
    pub place: Place,
    /// Failed attempts so far.
    pub attempts: u32,
    /// When the change was read from the journal, microseconds since 1970; 0 if it is settled.
    pub since: i64,
}

impl Place {
    fn from(byte: u8) -> Self {
        [Self::Settled, Self::Queued, Self::Delayed, Self::InFlight, Self::InFlightAgain]
            .get(byte as usize)
            .copied()
            .unwrap_or(Self::Settled)
    }
}

/// The slot that this backend has taken; given back whichever way the asking ends.
struct Held(&'static Question);

impl Drop for Held {
    fn drop(&mut self) {
        // While the worker writes the answer, it is the worker that frees the slot when it is done.
        let ends = [(ASKED, FREE), (ANSWERING, GIVEN_UP), (ANSWERED, FREE), (TAKEN, FREE)];
        while !ends.iter().any(|&(from, to)| self.0.state.compare_exchange(from, to, AcqRel, Acquire).is_ok()) {}
    }
}

/// Takes a free slot, or one that a backend left behind when it was terminated.
fn take() -> Option<Held> {
    let from = |state| {
        shared::questions().iter().find(move |slot| {
            let left = state == FREE || slot.asked.load(Relaxed) < shared::now() - FORGOTTEN;
            left && slot.state.compare_exchange(state, TAKEN, AcqRel, Acquire).is_ok()
        })
    };
    from(FREE).or_else(|| from(ANSWERED)).or_else(|| from(ASKED)).map(Held)
}

/// Asks the worker of this database for an address of a sync. None if there is no worker, or it has no time.
pub fn ask(sync: i32, address: &[u8]) -> Option<Answer> {
    let database = shared::database()?;
    if database.state() != WorkerState::Running || address.len() > MAX_ADDRESS {
        return None;
    }
    let held = take()?;
    let question = held.0;
    question.asked.store(shared::now(), Relaxed);
    question.database.store(database.oid().to_u32(), Relaxed);
    question.sync.store(sync, Relaxed);
    question.length.store(address.len() as u32, Relaxed);
    for (place, &byte) in question.address.iter().zip(address) {
        place.store(byte, Relaxed);
    }
    database.wake();
    question.commits.store(database.commits(), Relaxed);
    question.state.store(ASKED, Release);
    database.questions.fetch_add(1, SeqCst);
    let began = Instant::now();
    let mut answer = None;
    while began.elapsed() < PATIENCE && database.state() == WorkerState::Running {
        if question.state.load(Acquire) == ANSWERED {
            answer = Some(Answer {
                place: Place::from(question.place.load(Relaxed)),
                attempts: question.attempts.load(Relaxed),
                since: question.since.load(Relaxed),
            });
            break;
        }
        database.wake();
        database.sleep_as_waiter(20);
    }
    database.stop_waiting();
    answer
}

/// Answers what is asked of this worker.
pub fn answer(worker: &mut Worker) {
    let database: &Database = worker.database;
    if database.questions.swap(0, SeqCst) == 0 {
        return;
    }
    for question in shared::questions() {
        if question.database.load(Relaxed) != database.oid().to_u32() || question.state.load(Acquire) != ASKED {
            continue;
        }
        if !worker.has_polled(question.commits.load(Relaxed)) {
            // Answered once the journal is read as far as that.
            database.questions.fetch_add(1, SeqCst);
            continue;
        }
        if question.state.compare_exchange(ASKED, ANSWERING, AcqRel, Acquire).is_err() {
            continue;
        }
        let length = question.length.load(Relaxed) as usize;
        let address: Vec<u8> = question.address.iter().take(length).map(|byte| byte.load(Relaxed)).collect();
        let known = worker.runners.get(&question.sync.load(Relaxed)).and_then(|runner| runner.pending.look(&address));
        let (place, attempts, since) = known.unwrap_or((Place::Settled, 0, 0));
        question.place.store(place as u8, Relaxed);
        question.attempts.store(attempts, Relaxed);
        question.since.store(since, Relaxed);
        if question.state.compare_exchange(ANSWERING, ANSWERED, AcqRel, Acquire).is_err() {
            question.state.store(FREE, Release);
        }
    }
    database.wake_waiters();
}
