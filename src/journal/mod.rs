//! The journal: the durable list of addresses that changed.

pub mod format;
pub mod reader;
pub mod segment;
