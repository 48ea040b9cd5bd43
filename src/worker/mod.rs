//! The worker: one background process a database that delivers what the journal holds, and the launcher that starts it.

mod activity;
mod batch;
mod clock;
mod cycle;
mod fan_out;
mod heartbeat;
mod home;
mod launcher;
mod outcome;
pub mod pace;
mod pending;
mod process;
mod question;
mod reading;
mod rhythm;
mod rotation;
mod runner;
pub mod scan;
pub mod shape;
pub mod shared;
mod signals;
pub mod store;
mod strikes;
mod target;
pub mod transaction;
mod utility;

pub use batch::{Called, Named, Naming, hash_fields};
pub use process::{incarnation, on_relcache, place};
pub use question::{Answer, Place, ask};
pub use utility::transaction_ended;

/// Asks for shared memory, registers the launcher and the hook on utility statements. Called while the library is preloaded.
pub fn register() {
    shared::request();
    launcher::register();
    utility::register();
}
