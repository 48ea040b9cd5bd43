//! Signal handlers of Postgres itself, as the functions that they are: pgrx's bindings of the same names are wrappers with
//! a sigsetjmp and a thread check, which have no place in a signal handler.

unsafe extern "C-unwind" {
    /// Ends the process at the next CHECK_FOR_INTERRUPTS (tcop/postgres.c).
    pub fn die(signal: i32);
    /// Asks for ProcessConfigFile (postmaster/interrupt.c).
    pub fn SignalHandlerForConfigReload(signal: i32);
    /// Ends the process at once, without any callback (postmaster/interrupt.c).
    pub fn SignalHandlerForCrashExit(signal: i32);
    /// Sets ShutdownRequestPending and the latch (postmaster/interrupt.c).
    pub fn SignalHandlerForShutdownRequest(signal: i32);
    /// Serves what other backends signal (storage/ipc/procsignal.c).
    pub fn procsignal_sigusr1_handler(signal: i32);
}

/// Installs a handler (libpq/pqsignal.h).
#[cfg(feature = "pg18")]
pub use pgrx::pg_sys::pqsignal_be as pqsignal;

/// Installs a handler (libpq/pqsignal.h).
#[cfg(not(feature = "pg18"))]
pub use pgrx::pg_sys::pqsignal;

/// Ends this process, after the callbacks that were registered for that.
pub fn exit(code: i32) -> ! {
    // SAFETY: a background worker may end whenever it likes. The binding of 18 does not say that this never returns.
    #[allow(unreachable_code)]
    unsafe {
        pgrx::pg_sys::proc_exit(code);
        std::process::abort()
    }
}
