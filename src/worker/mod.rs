//! The worker.

pub mod pending;
pub mod shared;

pub fn on_relcache(_relation: pgrx::pg_sys::Oid) {}
