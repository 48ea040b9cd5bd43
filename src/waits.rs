//! What pg_stat_activity calls our waits. Extensions have names of their own for them since PostgreSQL 17; before, all are
//! `Extension`.

/// Something that is waited for.
#[derive(Clone, Copy, Debug)]
pub enum Wait {
    /// A worker waits for something to do.
    Worker,
    /// The launcher does.
    Launcher,
    /// A backend waits for the reply of a target.
    Target,
    /// A backend waits for the worker to deliver or to answer.
    Delivery,
    /// A backend waits for a worker to be gone.
    WorkerEnd,
}

/// The number under which a wait is reported.
#[cfg(any(feature = "pg17", feature = "pg18"))]
pub fn event(wait: Wait) -> u32 {
    use std::cell::Cell;
    thread_local! {
        // Per process in truth: Postgres is single-threaded. Zero until the name is known to the server.
        static EVENTS: [Cell<u32>; 5] = const { [const { Cell::new(0) }; 5] };
    }
    let name = match wait {
        Wait::Worker => c"FanoutWorkerMain",
        Wait::Launcher => c"FanoutLauncherMain",
        Wait::Target => c"FanoutTarget",
        Wait::Delivery => c"FanoutDelivery",
        Wait::WorkerEnd => c"FanoutWorkerEnd",
    };
    EVENTS.with(|events| {
        let known = &events[wait as usize];
        if known.get() == 0 {
            // SAFETY: a C string, on the main thread; the same name gives the same number in every process.
            known.set(unsafe { pgrx::pg_sys::WaitEventExtensionNew(name.as_ptr()) });
        }
        known.get()
    })
}

/// The number under which a wait is reported.
#[cfg(not(any(feature = "pg17", feature = "pg18")))]
pub fn event(_: Wait) -> u32 {
    pgrx::pg_sys::PG_WAIT_EXTENSION
}
