//! The thread that talks to Redis for a backend's SQL functions.
//!
//! Nothing in this file, and nothing in a job, may touch Postgres: no setting, no log, no memory context. The thread
//! belongs to one [`Helper`]; dropping the `Helper` abandons the thread, which ends by itself after its present job.

use std::any::Any;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use delivery::keyspace::RedisTarget;
use delivery::signals::Blocked;

use super::clients::Clients;

/// The connections of the thread.
pub type Caches = Clients<delivery::config::RedisConfig, RedisTarget>;

type Answer = Result<Box<dyn Any + Send>, String>;
type Job = Box<dyn FnOnce(&mut Caches) -> Box<dyn Any + Send> + Send>;

/// A running thread and the ends of its channels. One job at a time.
pub struct Helper {
    jobs: Sender<Job>,
    answers: Receiver<Answer>,
    wake: UnixStream,
}

impl Helper {
    /// Starts a thread that no signal is ever delivered to: Postgres' handlers must run on the main thread only.
    pub fn start() -> io::Result<Helper> {
        let (jobs, job_queue) = bounded::<Job>(1);
        let (answer_queue, answers) = bounded::<Answer>(1);
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let builder = std::thread::Builder::new().name("fanout-request".to_owned());
        let _blocked = Blocked::all()?;
        builder.spawn(move || serve(&job_queue, &answer_queue, waker))?;
        Ok(Helper { jobs, answers, wake })
    }

    /// Hands over a job. False: the thread is gone.
    pub fn submit<T: Send + 'static>(&self, job: impl FnOnce(&mut Caches) -> T + Send + 'static) -> bool {
        self.jobs.send(Box::new(move |clients| Box::new(job(clients)))).is_ok()
    }

    /// The descriptor that becomes readable when there is an answer.
    pub fn fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// The answer, if it is there. To be called after the descriptor became readable.
    pub fn answer<T: 'static>(&self) -> Option<Result<T, String>> {
        let mut scratch = [0; 16];
        while matches!((&self.wake).read(&mut scratch), Ok(1..)) {}
        match self.answers.try_recv() {
            Ok(Ok(answer)) => match answer.downcast::<T>() {
                Ok(answer) => Some(Ok(*answer)),
                Err(_) => Some(Err("an answer to another question".to_owned())),
            },
            Ok(Err(panic)) => Some(Err(panic)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err("the request thread ended".to_owned())),
        }
    }
}

fn serve(jobs: &Receiver<Job>, answers: &Sender<Answer>, mut waker: UnixStream) {
    let mut clients = Caches::default();
    while let Ok(job) = jobs.recv() {
        let answer = catch_unwind(AssertUnwindSafe(|| job(&mut clients)));
        let answer = answer.map_err(|payload| {
            // A client that a panic went through may be in any state.
            clients = Caches::default();
            let text = payload.downcast_ref::<&str>().map(ToString::to_string);
            text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".to_owned())
        });
        if answers.send(answer).is_err() {
            return;
        }
        // Full means that a wake-up is already on its way; closed shows at the next recv.
        let _ = waker.write(&[1]);
    }
}
