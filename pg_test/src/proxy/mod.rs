//! A proxy before a target that fails on purpose.
//!
//! It understands as much of HTTP/1.1 and of Redis' protocol as is needed to see one request after the other. For each a
//! *plan*, a closure of the test, says what happens to it: see [`Fault`]. After [`Proxy::calm`] it only passes on.

mod http;
mod resp;
mod tls;

pub use tls::{Certificate, TlsFront};

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// A request on its way to the target.
#[derive(Debug, Clone)]
pub struct Request {
    /// HTTP method, or Redis command in upper case.
    pub name: String,
    /// HTTP path with query, or the command's first argument: for most the key.
    pub path: String,
    /// HTTP body; empty for Redis.
    pub body: Vec<u8>,
    /// Bytes of all of it.
    pub bytes: usize,
}

impl Request {
    /// True for a bulk request of a search engine.
    pub fn is_bulk(&self) -> bool {
        self.name == "POST" && self.path.contains("/_bulk")
    }

    /// Whether this command of Redis changes a key of a sync (not a control key).
    pub fn is_write(&self) -> bool {
        matches!(self.name.as_str(), "SET" | "UNLINK" | "DEL" | "HSET" | "PEXPIRE")
            && !self.path.starts_with("pg_fanout")
    }

    /// Ids of the actions of a bulk request, in order.
    pub fn ids(&self) -> Vec<String> {
        http::actions(&self.body).into_iter().map(|action| action.id).collect()
    }
}

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Nothing: it is passed on.
    Pass,
    /// It is passed on a little later.
    Delay(Duration),
    /// The target never sees it, and the client never gets an answer.
    Hang,
    /// The target never sees it, and the connection is closed.
    Reset,
    /// The target does it, and the client never gets an answer.
    Mute,
    /// The target does it, and the connection is closed before the answer.
    LostReply,
    /// The target does it, and the connection is closed in the middle of the answer.
    HalfReply,
    /// The target never sees it: the proxy answers with this status and JSON body.
    Answer(u16, &'static str),
    /// Of a bulk request, the target never sees the actions at these places: the proxy answers for them.
    Items(BTreeMap<usize, Item>),
    /// Redis: the target never sees it, the proxy answers with this error.
    Error(&'static str),
}

/// How a bulk request's action is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// A mapping error: 400.
    Malformed,
    /// The index is not there: 404.
    NoIndex,
    /// The engine holds this version: 409.
    Conflict(u64),
    /// Overload: 429.
    Busy,
    /// A shard is away: 503.
    Unavailable,
}

type Plan = Box<dyn FnMut(&Request) -> Fault + Send>;

struct Shared {
    plan: Mutex<Plan>,
    /// New connections are closed at once.
    refusing: AtomicBool,
    /// Goes up with each [`Proxy::calm`]: what hangs since before is let go.
    calms: AtomicU64,
    requests: AtomicU64,
    faults: AtomicU64,
    stopped: AtomicBool,
}

impl Shared {
    /// What the plan says about a request.
    fn decide(&self, request: &Request) -> Fault {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let fault = (self.plan.lock().unwrap_or_else(PoisonError::into_inner))(request);
        if !matches!(fault, Fault::Pass) {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        fault
    }

    /// Waits until the proxy is calm again, or gone.
    fn hang(&self) {
        let since = self.calms.load(Ordering::Relaxed);
        while self.calms.load(Ordering::Relaxed) == since && !self.stopped.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// See the module.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// A proxy before a search engine at this URL, calm.
    pub fn http(target: &str) -> Self {
        Self::start(target, http::serve)
    }

    /// A proxy before the Redis at this URL, calm.
    pub fn redis(target: &str) -> Self {
        Self::start(target, resp::serve)
    }

    fn start(target: &str, serve: fn(TcpStream, TcpStream, &Shared) -> io::Result<()>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            plan: Mutex::new(Box::new(|_| Fault::Pass)),
            refusing: AtomicBool::new(false),
            calms: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let target = authority(target);
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(client) = client else { continue };
                // A target that is down: closed without a word.
                let Ok(upstream) = TcpStream::connect(&target) else { continue };
                if accepting.refusing.load(Ordering::Relaxed) {
                    continue;
                }
                let shared = Arc::clone(&accepting);
                thread::spawn(move || {
                    let (ours, theirs) = (client.try_clone(), upstream.try_clone());
                    // Whichever way it ends, both connections are over.
                    let _ = serve(client, upstream, &shared);
                    for connection in [ours, theirs].into_iter().flatten() {
                        let _ = connection.shutdown(Shutdown::Both);
                    }
                });
            }
        });
        Self { address, shared }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What happens from now on.
    pub fn plan(&self, plan: impl FnMut(&Request) -> Fault + Send + 'static) {
        *self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(plan);
    }

    /// New connections are closed at once, or no longer.
    pub fn refuse(&self, refusing: bool) {
        self.shared.refusing.store(refusing, Ordering::Relaxed);
    }

    /// No more faults; what hangs is let go.
    pub fn calm(&self) {
        self.plan(|_| Fault::Pass);
        self.refuse(false);
        self.shared.calms.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests seen so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Requests so far to which something was done.
    pub fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

/// `host:port` of a URL.
fn authority(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest).to_owned()
}
