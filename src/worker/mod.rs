//! The worker: one background process a database that delivers what the journal holds, and the launcher that starts it.

mod batch;
mod clock;
mod cycle;
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

pub use launcher::register;
pub use process::on_relcache;
