//! Sender threads: jobs in by a bounded channel, reports out, and a file descriptor that wakes the caller.

mod wake;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

pub use self::wake::{Wake, WakeReader, wake_pair};
use crate::bulk::{BulkBody, BulkOutcome};
use crate::config::ServerConfig;
use crate::engine::{Engine, EngineInfo, IdPage, IndexState, Periods, Unfit, Visible};
use crate::error::{Error, ErrorKind, Result};
use crate::keyspace::{KeyPage, RedisBatch, RedisOutcome, RedisTarget};
use crate::ownership::{Claim, ClaimOutcome, Heartbeat, Ownership};
use crate::signals::Blocked;

/// One thing to do. A job for the other kind of target fails with [`crate::ErrorKind::TlsOrConfig`].
#[derive(Debug)]
#[non_exhaustive]
pub enum JobKind {
    /// Send a bulk request. → [`JobResult::Bulk`]
    Bulk(BulkBody),
    /// Send a pipeline. → [`JobResult::Redis`]
    Redis(RedisBatch),
    /// See [`crate::engine::Engine::ensure_index`] and, if it is there, [`crate::engine::Engine::extend_mapping`].
    /// → [`JobResult::Index`]
    EnsureIndex {
        /// Concrete index.
        concrete: String,
        /// Alias.
        alias: String,
        /// `settings`, `mappings`, `aliases`.
        body: serde_json::Value,
        /// From when on it is behind its aliases.
        visible: Visible,
    },
    /// See [`crate::engine::Engine::ensure_periods`]. → [`JobResult::Periods`]
    EnsurePeriods {
        /// What the names of the indices begin with: the alias of the generation.
        generation: String,
        /// Concrete indices.
        indices: Vec<String>,
        /// Alias.
        alias: String,
        /// `settings`, `mappings`.
        body: serde_json::Value,
        /// From when on it is behind its aliases.
        visible: Visible,
    },
    /// See [`crate::engine::Engine::swap_alias`]. → [`JobResult::Done`]
    SwapAlias {
        /// Alias.
        alias: String,
        /// Index it leaves.
        old: Option<String>,
        /// Index it goes to.
        new: String,
        /// Further aliases that go with it; null if there are none.
        further: serde_json::Value,
        /// The alias that served before this one, whose indices the further ones leave.
        former: Option<String>,
    },
    /// See [`crate::engine::Engine::delete_index`]. → [`JobResult::Done`]
    DeleteIndex {
        /// Concrete index.
        concrete: String,
    },
    /// See [`crate::engine::Engine::refresh`]. → [`JobResult::Done`]
    Refresh {
        /// Index or alias.
        index: String,
    },
    /// Number of documents. → [`JobResult::Count`]
    Count {
        /// Index or alias.
        index: String,
    },
    /// See [`crate::engine::Engine::scan_ids`]. → [`JobResult::Ids`]
    ScanIds {
        /// Concrete index.
        index: String,
        /// From the page before.
        cursor: Option<String>,
        /// Ids a page, at most 10,000.
        size: usize,
    },
    /// See [`crate::engine::Engine::close_scan`]. → [`JobResult::Done`]
    CloseScan {
        /// From the page before.
        cursor: String,
    },
    /// See [`crate::keyspace::RedisTarget::scan_keys`]. → [`JobResult::Keys`]
    ScanKeys {
        /// Pattern.
        glob: String,
        /// From the page before.
        cursor: Option<String>,
        /// `COUNT`.
        count: usize,
    },
    /// → [`JobResult::Claim`]
    Claim(Claim),
    /// Of all targets that are fed there. → [`JobResult::Heartbeat`]
    Heartbeat(Vec<Ownership>),
    /// → [`JobResult::Done`]
    Release(Ownership),
    /// → [`JobResult::Probe`]
    Probe,
    /// Panics.
    #[cfg(test)]
    Panic,
}

/// What came of a job that did not fail as a whole.
#[derive(Debug)]
#[non_exhaustive]
pub enum JobResult {
    /// One outcome for each action, in order.
    Bulk(Vec<(u32, BulkOutcome)>),
    /// One outcome for each slot, in order.
    Redis(Vec<(u32, RedisOutcome)>),
    /// Of `EnsureIndex`.
    Index(IndexState, Vec<Unfit>),
    /// Of `EnsurePeriods`.
    Periods(Periods),
    /// Of `Count`.
    Count(u64),
    /// Of `ScanIds`.
    Ids(IdPage),
    /// Of `ScanKeys`.
    Keys(KeyPage),
    /// Of `Claim`.
    Claim(ClaimOutcome),
    /// Of `Heartbeat`, one for each ownership.
    Heartbeat(Vec<Result<Heartbeat>>),
    /// Of `Probe`; for Redis without a flavor.
    Probe(EngineInfo),
    /// Of the others.
    Done,
}

/// A job and the caller's name for it.
#[derive(Debug)]
pub struct Job {
    /// Comes back in the report.
    pub tag: u64,
    /// What to do.
    pub kind: JobKind,
}

/// A batch that was sent, for its memory to be used again.
#[derive(Debug, Default)]
pub enum Spent {
    /// The job had none, or it was lost in a panic.
    #[default]
    Nothing,
    /// See [`crate::bulk::BulkBuilder::reuse`].
    Bulk(BulkBody),
    /// See [`RedisBatch::reuse`].
    Redis(RedisBatch),
}

/// What came of a job. There is exactly one for each job that [`Senders::try_send`] took, unless the process ends.
#[derive(Debug)]
pub struct Report {
    /// The job's tag.
    pub tag: u64,
    /// `Err`: it failed as a whole.
    pub result: Result<JobResult>,
    /// The batch.
    pub spent: Spent,
    /// Bytes of the batch, uncompressed; 0 for other jobs.
    pub bytes: usize,
    /// Time from taking the job up to its end.
    pub elapsed: Duration,
}

/// Sizes.
#[derive(Debug, Clone, Copy)]
pub struct SenderOptions {
    /// Threads, and so requests in flight. Redis always has one: its order is that of one connection to
    /// each node.
    pub threads: usize,
    /// Jobs that may wait beside those that are being sent.
    pub queue: usize,
}

/// The threads that talk to one server as one user. Dropped without [`Senders::stop`], they end by themselves after what
/// they are at.
#[derive(Debug)]
pub struct Senders {
    jobs: Sender<Job>,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: ServerConfig,
    reports: Sender<Report>,
    wake: Wake,
    in_flight: AtomicUsize,
    stopping: AtomicBool,
    /// One HTTP client, with its pool and its thread, serves all sender threads.
    engine: Mutex<Option<Engine>>,
}

impl Senders {
    /// Starts the threads, with all signals blocked in them. They connect when their first job comes; a configuration
    /// that can't work (bad PEM) fails the jobs. `reports` should be unbounded: what is in it is bounded by the jobs.
    pub fn start(
        server: ServerConfig,
        options: SenderOptions,
        reports: Sender<Report>,
        wake: Wake,
    ) -> io::Result<Senders> {
        let count = match server {
            ServerConfig::Engine(_) => options.threads.max(1),
            ServerConfig::Redis(_) => 1,
        };
        let (jobs, receiver) = crossbeam_channel::bounded(options.queue);
        let shared = Arc::new(Shared {
            server,
            reports,
            wake,
            in_flight: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            engine: Mutex::new(None),
        });
        let _blocked = Blocked::all()?;
        let mut threads = Vec::with_capacity(count);
        for _ in 0..count {
            let (receiver, shared) = (receiver.clone(), shared.clone());
            threads.push(thread::Builder::new().name("fanout sender".into()).spawn(move || shared.run(&receiver))?);
        }
        Ok(Senders { jobs, threads, shared })
    }

    /// Hands over a job; gives it back if the queue is full. Never blocks.
    pub fn try_send(&self, job: Job) -> std::result::Result<(), Box<Job>> {
        // Before it is sent: its report may be here before we are back.
        self.shared.in_flight.fetch_add(1, Ordering::AcqRel);
        self.jobs.try_send(job).map_err(|error| {
            self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
            Box::new(error.into_inner())
        })
    }

    /// Whether [`Self::try_send`] would give a job back: what is much work to gather need not be gathered for nothing.
    pub fn is_full(&self) -> bool {
        self.jobs.is_full()
    }

    /// Jobs taken whose report has not been sent yet.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    /// Ends the threads: jobs that were not begun are reported as [`crate::ErrorKind::Stopped`], those being sent are
    /// waited for until the deadline. True: all ended. False: some were left to themselves; their reports still come.
    pub fn stop(self, deadline: Instant) -> bool {
        let Senders { jobs, mut threads, shared } = self;
        shared.stopping.store(true, Ordering::Release);
        drop(jobs);
        loop {
            threads.retain(|thread| !thread.is_finished());
            if threads.is_empty() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            thread::sleep(left.min(Duration::from_millis(2)));
        }
    }
}

/// What a thread talks to. Made with its first job, anew after a panic.
enum Target {
    Engine(Engine),
    Redis(Box<RedisTarget>),
}

impl Shared {
    fn run(&self, jobs: &Receiver<Job>) {
        let mut target = None;
        for job in jobs {
            let report = self.perform(job, &mut target);
            // An error means that nobody waits for it any more.
            let _ = self.reports.send(report);
            self.in_flight.fetch_sub(1, Ordering::AcqRel);
            self.wake.wake();
        }
    }

    fn perform(&self, mut job: Job, target: &mut Option<Target>) -> Report {
        let started = Instant::now();
        let bytes = match &job.kind {
            JobKind::Bulk(body) => body.bytes(),
            JobKind::Redis(batch) => batch.bytes(),
            _ => 0,
        };
        let result = if self.stopping.load(Ordering::Acquire) {
            Err(Error::new(ErrorKind::Stopped, "not sent: the senders are being stopped"))
        } else {
            // What a panic leaves half done is thrown away: the target here, the batch by its next use.
            catch_unwind(AssertUnwindSafe(|| self.attempt(&mut job.kind, target))).unwrap_or_else(|panic| {
                *target = None;
                let text = panic
                    .downcast_ref::<&str>()
                    .copied()
                    .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                    .unwrap_or("no message");
                Err(Error::new(ErrorKind::Panicked, format!("a sender thread panicked: {text}")))
            })
        };
        let spent = match job.kind {
            JobKind::Bulk(body) => Spent::Bulk(body),
            JobKind::Redis(batch) => Spent::Redis(batch),
            _ => Spent::Nothing,
        };
        Report { tag: job.tag, result, spent, bytes, elapsed: started.elapsed() }
    }

    fn attempt(&self, job: &mut JobKind, target: &mut Option<Target>) -> Result<JobResult> {
        let target = match target {
            Some(target) => target,
            None => target.insert(self.target()?),
        };
        match target {
            Target::Engine(engine) => on_engine(engine, job),
            Target::Redis(redis) => on_redis(redis, job),
        }
    }

    fn target(&self) -> Result<Target> {
        match &self.server {
            ServerConfig::Engine(config) => {
                // Built here and not in `start`: each thread has connections of its own.
                let mut shared = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
                let engine = match &*shared {
                    Some(engine) => engine.for_another_thread(config)?,
                    None => shared.insert(Engine::new(config)?).clone(),
                };
                Ok(Target::Engine(engine))
            }
            ServerConfig::Redis(config) => Ok(Target::Redis(Box::new(RedisTarget::new(config)?))),
        }
    }
}

fn on_engine(engine: &Engine, job: &mut JobKind) -> Result<JobResult> {
    Ok(match job {
        JobKind::Bulk(body) => JobResult::Bulk(engine.bulk(body)?),
        JobKind::EnsureIndex { concrete, alias, body, visible } => {
            let state = engine.ensure_index(concrete, alias, body, *visible)?;
            let unfit = match state {
                IndexState::Created => Vec::new(),
                IndexState::Exists => engine.extend_mapping(concrete, &body["mappings"])?,
            };
            JobResult::Index(state, unfit)
        }
        JobKind::EnsurePeriods { generation, indices, alias, body, visible } => {
            JobResult::Periods(engine.ensure_periods(generation, indices, alias, body, *visible)?)
        }
        JobKind::SwapAlias { alias, old, new, further, former } => {
            engine.swap_alias(alias, old.as_deref(), new, further, former.as_deref())?;
            JobResult::Done
        }
        JobKind::DeleteIndex { concrete } => {
            engine.delete_index(concrete)?;
            JobResult::Done
        }
        JobKind::Refresh { index } => {
            engine.refresh(index)?;
            JobResult::Done
        }
        JobKind::Count { index } => JobResult::Count(engine.count(index)?),
        JobKind::ScanIds { index, cursor, size } => JobResult::Ids(engine.scan_ids(index, cursor.as_deref(), *size)?),
        JobKind::CloseScan { cursor } => {
            engine.close_scan(cursor)?;
            JobResult::Done
        }
        JobKind::Claim(claim) => JobResult::Claim(engine.claim(claim)?),
        JobKind::Heartbeat(ownerships) => JobResult::Heartbeat(engine.heartbeats(ownerships)?),
        JobKind::Release(ownership) => {
            engine.release(ownership)?;
            JobResult::Done
        }
        JobKind::Probe => JobResult::Probe(engine.probe()?),
        JobKind::Redis(_) | JobKind::ScanKeys { .. } => return Err(wrong_target()),
        #[cfg(test)]
        JobKind::Panic => panic!("as the test wants"),
    })
}

fn on_redis(redis: &mut RedisTarget, job: &mut JobKind) -> Result<JobResult> {
    Ok(match job {
        JobKind::Redis(batch) => JobResult::Redis(redis.send(batch)?),
        JobKind::ScanKeys { glob, cursor, count } => {
            JobResult::Keys(redis.scan_keys(glob, cursor.as_deref(), *count)?)
        }
        JobKind::Claim(claim) => JobResult::Claim(redis.claim(claim)?),
        JobKind::Heartbeat(ownerships) => JobResult::Heartbeat(redis.heartbeats(ownerships)?),
        JobKind::Release(ownership) => {
            redis.release(ownership)?;
            JobResult::Done
        }
        JobKind::Probe => JobResult::Probe(EngineInfo { flavor: None, version: redis.probe()? }),
        #[cfg(test)]
        JobKind::Panic => panic!("as the test wants"),
        _ => return Err(wrong_target()),
    })
}

fn wrong_target() -> Error {
    Error::new(ErrorKind::TlsOrConfig, "this kind of job is for another kind of target")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use crossbeam_channel::unbounded;

    use super::*;
    use crate::bulk::BulkBuilder;
    use crate::config::{EngineConfig, RedisConfig};

    fn engine_at(listener: &TcpListener) -> ServerConfig {
        let mut config = EngineConfig::new(&[format!("http://{}", listener.local_addr().unwrap())]).unwrap();
        config.request_timeout = Duration::from_millis(600);
        ServerConfig::Engine(config)
    }

    fn bulk() -> JobKind {
        let mut builder = BulkBuilder::new("i");
        builder.push_index(3, "a", 1, b"{}");
        JobKind::Bulk(builder.finish())
    }

    fn start(server: ServerConfig, threads: usize, queue: usize) -> (Senders, Receiver<Report>, WakeReader) {
        let (wake, reader) = wake_pair().unwrap();
        let (sender, reports) = unbounded();
        (Senders::start(server, SenderOptions { threads, queue }, sender, wake).unwrap(), reports, reader)
    }

    fn report(reports: &Receiver<Report>) -> Report {
        reports.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    /// Reads one request: head, then as many bytes as it announces.
    fn request(stream: &mut TcpStream) -> Option<String> {
        let mut data = Vec::new();
        loop {
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
            data.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&data);
            if let Some(end) = text.find("\r\n\r\n") {
                let length = text[..end]
                    .lines()
                    .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok())
                    .unwrap_or(0);
                if data.len() >= end + 4 + length {
                    return Some(text.into_owned());
                }
            }
        }
    }

    fn answer(stream: &mut TcpStream, status: u16, body: &str) {
        let _ = write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    }

    /// Serves every connection: answers the question whether the index is ours, then calls `on_bulk`.
    fn serve(listener: TcpListener, on_bulk: impl Fn(&mut TcpStream) -> bool + Clone + Send + 'static) {
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, on_bulk) = (stream.unwrap(), on_bulk.clone());
                thread::spawn(move || {
                    while let Some(text) = request(&mut stream) {
                        if text.starts_with("GET /i?") {
                            answer(&mut stream, 200, r#"{"i":{"mappings":{"_meta":{"pg_fanout":{}}}}}"#);
                        } else if !on_bulk(&mut stream) {
                            return;
                        }
                    }
                });
            }
        });
    }

    const REPLY: &str = r#"{"items":[{"index":{"_id":"a","status":201,"_seq_no":7}}]}"#;

    #[test]
    fn a_batch_goes_out_and_its_memory_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (senders, reports, reader) = start(engine_at(&listener), 2, 4);
        serve(listener, |stream| {
            answer(stream, 200, REPLY);
            true
        });
        for tag in 0..4 {
            senders.try_send(Job { tag, kind: bulk() }).unwrap();
        }
        let mut tags: Vec<u64> = (0..4)
            .map(|_| {
                let report = report(&reports);
                let Ok(JobResult::Bulk(outcomes)) = report.result else { panic!("{report:?}") };
                assert_eq!(outcomes, [(3, BulkOutcome::Done)]);
                let Spent::Bulk(body) = report.spent else { panic!() };
                assert_eq!(body.bytes(), report.bytes);
                report.tag
            })
            .collect();
        tags.sort_unstable();
        assert_eq!(tags, [0, 1, 2, 3]);
        reader.drain();
        assert!(senders.stop(Instant::now() + Duration::from_secs(5)));
    }

    /// The HTTP client has threads of its own: they must have inherited the mask.
    #[test]
    #[cfg(target_os = "linux")]
    fn no_thread_of_ours_takes_a_signal() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (senders, reports, _reader) = start(engine_at(&listener), 1, 1);
        serve(listener, |stream| {
            answer(stream, 200, REPLY);
            true
        });
        senders.try_send(Job { tag: 1, kind: bulk() }).unwrap();
        assert!(report(&reports).result.is_ok());
        let mut seen = 0;
        for task in std::fs::read_dir("/proc/self/task").unwrap() {
            // Threads of other tests come and go.
            let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else { continue };
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
            if !["fanout sender", "reqwest-interna", "tokio"].iter().any(|name| field("Name:").starts_with(name)) {
                continue;
            }
            seen += 1;
            let blocked = u64::from_str_radix(field("SigBlk:"), 16).unwrap();
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP, libc::SIGALRM] {
                assert!(blocked & (1 << (signal - 1)) != 0, "{signal} in {}", field("Name:"));
            }
        }
        assert!(seen >= 2);
    }

    fn kind_when(on_bulk: impl Fn(&mut TcpStream) -> bool + Clone + Send + 'static) -> ErrorKind {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (senders, reports, _reader) = start(engine_at(&listener), 1, 1);
        serve(listener, on_bulk);
        senders.try_send(Job { tag: 1, kind: bulk() }).unwrap();
        let report = report(&reports);
        let error = report.result.unwrap_err();
        assert!(matches!(report.spent, Spent::Bulk(body) if body.bytes() == report.bytes));
        error.kind()
    }

    #[test]
    fn each_way_to_fail_has_its_kind() {
        assert_eq!(kind_when(|_| false), ErrorKind::ConnectionLost);
        assert_eq!(
            kind_when(|stream| {
                let _ = stream.write_all(b"HTTP/1.1 200 x\r\ncontent-length: 100\r\n\r\n{\"items\":");
                false
            }),
            ErrorKind::ConnectionLost
        );
        assert_eq!(
            kind_when(|_| {
                thread::sleep(Duration::from_secs(3));
                false
            }),
            ErrorKind::Timeout
        );
        assert_eq!(
            kind_when(|stream| {
                let _ = stream.write_all(b"HTTP/1.1 200 x\r\ncontent-length: 100\r\n\r\n{\"items\":");
                thread::sleep(Duration::from_secs(3));
                false
            }),
            ErrorKind::Timeout
        );
        for (status, kind) in [
            (200, ErrorKind::Protocol),
            (302, ErrorKind::TlsOrConfig),
            (401, ErrorKind::Unauthorized),
            (413, ErrorKind::TooLarge),
            (429, ErrorKind::Overloaded),
            (502, ErrorKind::ServerError),
        ] {
            let found = kind_when(move |stream| {
                answer(stream, status, "{}");
                true
            });
            assert_eq!(found, kind, "{status}");
        }
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = engine_at(&closed);
        drop(closed);
        let (senders, reports, _reader) = start(server, 1, 1);
        senders.try_send(Job { tag: 1, kind: bulk() }).unwrap();
        assert_eq!(report(&reports).result.unwrap_err().kind(), ErrorKind::Unreachable);
    }

    /// What is sent, a password included, goes where the server's owner said.
    #[test]
    fn a_redirect_is_not_followed() {
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        let location = format!("http://{}/i/_bulk", elsewhere.local_addr().unwrap());
        elsewhere.set_nonblocking(true).unwrap();
        for status in [301, 302, 303, 307, 308] {
            let location = location.clone();
            let found = kind_when(move |stream| {
                let _ = write!(stream, "HTTP/1.1 {status} x\r\nlocation: {location}\r\ncontent-length: 2\r\n\r\n{{}}");
                true
            });
            assert_eq!(found, ErrorKind::TlsOrConfig, "{status}");
            let visit = elsewhere.accept().map(|_| ()).unwrap_err();
            assert_eq!(visit.kind(), std::io::ErrorKind::WouldBlock, "{status}");
        }
    }

    #[test]
    fn the_next_node_is_tried_when_one_can_t_be_reached() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let urls = [&closed, &open].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
        drop(closed);
        serve(open, |stream| {
            answer(stream, 200, REPLY);
            true
        });
        let (senders, reports, _reader) = start(ServerConfig::Engine(EngineConfig::new(&urls).unwrap()), 1, 1);
        senders.try_send(Job { tag: 1, kind: bulk() }).unwrap();
        assert!(report(&reports).result.is_ok());
    }

    #[test]
    fn a_panic_is_a_report_and_the_thread_goes_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (senders, reports, _reader) = start(engine_at(&listener), 1, 4);
        serve(listener, |stream| {
            answer(stream, 200, REPLY);
            true
        });
        senders.try_send(Job { tag: 1, kind: JobKind::Panic }).unwrap();
        senders.try_send(Job { tag: 2, kind: bulk() }).unwrap();
        let error = report(&reports).result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panicked);
        assert!(error.message().contains("as the test wants"));
        assert!(report(&reports).result.is_ok());
    }

    #[test]
    fn a_full_queue_gives_the_job_back_and_a_stop_reports_what_was_not_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (senders, reports, _reader) = start(engine_at(&listener), 1, 2);
        serve(listener, |_| {
            thread::sleep(Duration::from_secs(3));
            false
        });
        senders.try_send(Job { tag: 0, kind: bulk() }).unwrap();
        thread::sleep(Duration::from_millis(200));
        senders.try_send(Job { tag: 1, kind: bulk() }).unwrap();
        assert!(!senders.is_full());
        senders.try_send(Job { tag: 2, kind: bulk() }).unwrap();
        assert!(senders.is_full());
        assert_eq!(senders.try_send(Job { tag: 3, kind: bulk() }).unwrap_err().tag, 3);
        assert_eq!(senders.in_flight(), 3);
        assert!(!senders.stop(Instant::now() + Duration::from_millis(50)), "one is still waiting for its reply");
        assert_eq!(report(&reports).result.unwrap_err().kind(), ErrorKind::Timeout);
        for tag in [1, 2] {
            let report = report(&reports);
            assert_eq!((report.tag, report.result.unwrap_err().kind()), (tag, ErrorKind::Stopped));
        }
        assert!(reports.recv().is_err(), "all threads are gone");
    }

    #[test]
    fn a_job_for_another_target() {
        let (senders, reports, _reader) =
            start(ServerConfig::Redis(RedisConfig::new("redis://127.0.0.1:1").unwrap()), 5, 1);
        assert_eq!(senders.threads.len(), 1);
        senders.try_send(Job { tag: 1, kind: bulk() }).unwrap();
        assert_eq!(report(&reports).result.unwrap_err().kind(), ErrorKind::TlsOrConfig);
        senders.try_send(Job { tag: 2, kind: JobKind::Probe }).unwrap();
        assert_eq!(report(&reports).result.unwrap_err().kind(), ErrorKind::Unreachable);
    }
}
