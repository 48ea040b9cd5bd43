//! Requests that a backend waits for: on a helper thread, so that the wait obeys statement_timeout, Ctrl-C and
//! pg_terminate_backend at once.

mod failure;
mod helper;
mod target;

use std::cell::Cell;

use pgrx::prelude::*;
use pgrx::{check_for_interrupts, pg_sys};

pub use failure::{Asked, raise};
pub use helper::{ClientKey, Clients};
pub use target::{EngineTarget, OwnersTarget, cache_target, engine_target, owners_target};

use crate::error::failure as error;
use crate::waits::{Wait, event};
use helper::Helper;

thread_local! {
    /// The backend's idle helper. It is taken out while a request is on its way: whoever leaves early, by an ERROR out of
    /// the wait, drops it, and the next request starts with a thread and connections that nobody else waits for.
    static IDLE: Cell<Option<Helper>> = const { Cell::new(None) };
}

/// Runs `job` on the helper thread and waits for what it returns. `job` must not touch Postgres.
pub fn request<T: Send + 'static>(job: impl FnOnce(&mut Clients) -> T + Send + 'static) -> T {
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
