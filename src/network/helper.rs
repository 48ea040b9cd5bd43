//! The thread that talks to targets for a backend's SQL functions.
//!
//! Nothing in this file, and nothing in a job, may touch Postgres: no setting, no log, no memory context. The thread
//! belongs to one [`Helper`]; dropping the `Helper` abandons the thread, which ends by itself after its present job.

use std::any::Any;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use delivery::config::{EngineConfig, RedisConfig};
use delivery::engine::Engine;
use delivery::keyspace::RedisTarget;
use delivery::{Error, ErrorKind};

/// Whose client: the foreign server and the role whose user mapping is used, as object identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientKey {
    /// The foreign server.
    pub server: u32,
    /// The role.
    pub user: u32,
}

/// More clients than this in one backend means that roles come and go: the old ones are closed.
const MAX_CLIENTS: usize = 32;

/// The clients of one thread, each with the configuration that it was made from.
#[derive(Default)]
pub struct Clients {
    engines: HashMap<ClientKey, (EngineConfig, Engine)>,
    caches: HashMap<ClientKey, (RedisConfig, RedisTarget)>,
}

impl Clients {
    /// The search engine's client, made anew if there is none for this very configuration.
    pub fn engine(&mut self, key: ClientKey, config: &EngineConfig) -> delivery::Result<&Engine> {
        let known = self.engines.get(&key).is_some_and(|(made_from, _)| made_from == config);
        if !known {
            let engine = Engine::new(config)?;
            if self.engines.len() >= MAX_CLIENTS {
                self.engines.clear();
            }
            self.engines.insert(key, (config.clone(), engine));
        }
        Ok(&self.engines[&key].1)
    }

    /// The connection to Redis, made anew if there is none for this very configuration.
    pub fn cache(&mut self, key: ClientKey, config: &RedisConfig) -> delivery::Result<&mut RedisTarget> {
        let known = self.caches.get(&key).is_some_and(|(made_from, _)| made_from == config);
        if !known {
            let target = RedisTarget::connect(config)?;
            if self.caches.len() >= MAX_CLIENTS {
                self.caches.clear();
            }
            self.caches.insert(key, (config.clone(), target));
        }
        match self.caches.get_mut(&key) {
            Some((_, target)) => Ok(target),
            None => Err(Error::new(ErrorKind::Panicked, "a connection just made is gone")),
        }
    }

    /// Closes the connection to Redis, so that the next request begins with a new one.
    pub fn forget_cache(&mut self, key: ClientKey) {
        self.caches.remove(&key);
    }
}

type Answer = Result<Box<dyn Any + Send>, String>;
type Job = Box<dyn FnOnce(&mut Clients) -> Box<dyn Any + Send> + Send>;

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
        with_signals_blocked(|| builder.spawn(move || serve(&job_queue, &answer_queue, waker)))?;
        Ok(Helper { jobs, answers, wake })
    }

    /// Hands over a job. False: the thread is gone.
    pub fn submit<T: Send + 'static>(&self, job: impl FnOnce(&mut Clients) -> T + Send + 'static) -> bool {
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
    let mut clients = Clients::default();
    while let Ok(job) = jobs.recv() {
        let answer = catch_unwind(AssertUnwindSafe(|| job(&mut clients)));
        let answer = answer.map_err(|payload| {
            // A client that a panic went through may be in any state.
            clients = Clients::default();
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

/// Runs `work` while every signal is blocked on this thread: a thread started by it inherits the mask.
fn with_signals_blocked<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: sigset_t is plain data that sigfillset and pthread_sigmask initialise; both sets outlive the calls.
    let before = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        before
    };
    let result = work();
    // SAFETY: restores the mask read above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    result
}
