//! Capture: which addresses a transaction changed.

pub mod image;
pub mod set;
mod transaction;
mod trigger;

pub use transaction::{has_captured, mark, register, wake_at_commit};

use crate::journal::format::Layout;

/// Puts an address of a sync into the running transaction's set, as a changed row would.
pub fn enqueue_image(sync: i32, layout: Layout, address: &[u8]) {
    trigger::note(sync, sync, layout, address);
}
