//! A thread that asks by itself although it has more to do than wait: the main thread of a PostgreSQL backend.
//!
//! A thread of its own for requests would cost two switches of context each, a good part of a fast search.

use std::future::Future;
use std::net::ToSocketAddrs;
use std::pin::pin;
use std::thread;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::signals::Blocked;

/// Called again and again while a reply is waited for. It may unwind: the request is then given up, its connection closed.
pub type LookUp = fn();

/// How long such a thread waits before it looks up from the request.
const EVERY: Duration = Duration::from_millis(10);

/// Runs `work` to its end, looking up in between.
pub(super) fn run<T>(runtime: &Runtime, look_up: Option<LookUp>, work: impl Future<Output = T>) -> T {
    let Some(look_up) = look_up else { return runtime.block_on(work) };
    let mut work = pin!(work);
    loop {
        match runtime.block_on(async { tokio::time::timeout(EVERY, &mut work).await }) {
            Ok(done) => return done,
            Err(_) => look_up(),
        }
    }
}

/// The system's resolver, on a thread that gets none of the process' signals: the runtime's own would get them all.
pub(super) struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (answer, answered) = oneshot::channel();
        let resolve = move || {
            // Nobody waits any more if the request was given up.
            let _ = answer.send((name.as_str(), 0).to_socket_addrs());
        };
        let started = Blocked::all()
            .and_then(|_blocked| thread::Builder::new().name("fanout-resolver".to_owned()).spawn(resolve));
        Box::pin(async move {
            started?;
            let addresses: Addrs = Box::new(answered.await??);
            Ok(addresses)
        })
    }
}
