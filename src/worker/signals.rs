//! Signal handlers of Postgres itself, as the functions that they are: pgrx's bindings of the same names are wrappers with
//! a sigsetjmp and a thread check, which have no place in a signal handler.

unsafe extern "C-unwind" {
    /// Ends the process at the next CHECK_FOR_INTERRUPTS (tcop/postgres.c).
    pub fn die(signal: i32);
    /// Asks for ProcessConfigFile (postmaster/interrupt.c).
    pub fn SignalHandlerForConfigReload(signal: i32);
    /// Sets ShutdownRequestPending and the latch (postmaster/interrupt.c).
    pub fn SignalHandlerForShutdownRequest(signal: i32);
    /// Serves what other backends signal (storage/ipc/procsignal.c).
    pub fn procsignal_sigusr1_handler(signal: i32);
}
