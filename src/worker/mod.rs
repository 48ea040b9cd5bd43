//! The worker: one background process a database that delivers what the journal holds, and the launcher that starts it.

mod batch;
mod clock;
mod cycle;
mod fan_out;
mod launcher;
mod outcome;
mod pending;
mod process;
mod rotation;
mod runner;
mod scan;
pub mod shared;
mod signals;
mod store;
mod target;
mod transaction;
mod utility;

pub use process::on_relcache;
pub use utility::transaction_ended;

/// Asks for shared memory, registers the launcher and the hook on utility statements. Called while the library is preloaded.
pub fn register() {
    shared::request();
    launcher::register();
    utility::register();
}
