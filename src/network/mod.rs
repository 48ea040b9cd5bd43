//! Requests that a backend waits for; the wait obeys statement_timeout, Ctrl-C and pg_terminate_backend.
//!
//! A search engine is asked on the main thread, which looks up every few milliseconds; Redis on a thread of its own, whose
//! client cannot be interrupted.

mod clients;
mod failure;
mod helper;
mod target;

use std::cell::Cell;
use std::mem::ManuallyDrop;

use delivery::config::EngineConfig;
use delivery::engine::Engine;
use pgrx::prelude::*;
use pgrx::{check_for_interrupts, pg_sys};

pub use failure::{Asked, raise};
pub use target::{AnyTarget, EngineTarget, cache_target, engine_target, owners_target};

use crate::error::failure as error;
use crate::waits::{Wait, event};
use clients::Clients;
use helper::{Caches, Helper};

thread_local! {
    /// The backend's idle helper. It is taken out while a request is on its way: whoever leaves early, by an ERROR out of
    /// the wait, drops it, and the next request starts with a thread and connections that nobody else waits for.
    static IDLE: Cell<Option<Helper>> = const { Cell::new(None) };
}

/// The clients of search engines.
type Engines = Clients<EngineConfig, Engine>;

thread_local! {
    /// Taken out while a request is on its way, as [`IDLE`]. Not dropped at the end of the process: the runtimes in it need
    /// variables of the thread that may be gone by then.
    static ENGINES: Cell<ManuallyDrop<Option<Engines>>> = const { Cell::new(ManuallyDrop::new(None)) };
}

/// Asks a search engine.
fn ask<T>(target: &EngineTarget, job: impl FnOnce(&Engine) -> delivery::Result<T>) -> delivery::Result<T> {
    let none = ManuallyDrop::new(None);
    let mut engines = ManuallyDrop::into_inner(ENGINES.replace(none)).unwrap_or_default();
    // SAFETY: tells pg_stat_activity, on the main thread; an ERROR ends what is reported, too (AbortTransaction).
    unsafe { pg_sys::pgstat_report_wait_start(event(Wait::Target)) };
    let outcome = engines
        .get(target.key, &target.config, |config| Engine::looking_up(config, look_up))
        .and_then(|engine| job(engine));
    // SAFETY: as above.
    unsafe { pg_sys::pgstat_report_wait_end() };
    ENGINES.set(ManuallyDrop::new(Some(engines)));
    outcome
}

/// Serves what came in for this backend while it waits for a search engine. A cancel unwinds as a panic.
fn look_up() {
    // SAFETY: on the main thread, which runs nothing of the request now. Ends the process if the postmaster is gone.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
            0,
            event(Wait::Target),
        );
        pg_sys::pgstat_report_wait_start(event(Wait::Target));
    }
    check_for_interrupts!();
}

/// Runs `job` on the helper thread and waits for what it returns. `job` must not touch Postgres.
fn request<T: Send + 'static>(job: impl FnOnce(&mut Caches) -> T + Send + 'static) -> T {
    let helper = IDLE.take().unwrap_or_else(start);
    if !helper.submit(job) {
        broken("the request thread ended");
    }
    let answer = loop {
        if let Some(answer) = helper.answer::<T>() {
            break answer;
        }
        // SAFETY: the backend's own latch, and a descriptor that `helper` keeps open. An ERROR or a cancel unwinds as a
        // panic and drops `helper`.
        let events = unsafe {
            pg_sys::WaitLatchOrSocket(
                pg_sys::MyLatch,
                (pg_sys::WL_LATCH_SET | pg_sys::WL_SOCKET_READABLE | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
                helper.fd(),
                -1,
                event(Wait::Target),
            )
        };
        if events as u32 & pg_sys::WL_LATCH_SET != 0 {
            // SAFETY: the backend's own latch.
            unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
        }
        check_for_interrupts!();
    };
    IDLE.set(Some(helper));
    answer.unwrap_or_else(|panic| broken(&panic))
}

fn start() -> Helper {
    Helper::start().unwrap_or_else(|cause| {
        error(PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES, "could not start a thread for the request")
            .detail(cause.to_string())
            .raise()
    })
}

fn broken(what: &str) -> ! {
    error(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "the request could not be made").detail(what).raise()
}
