//! Capture: which addresses a transaction changed.

/// Wakes the worker when this transaction commits.
pub fn wake_at_commit() {}
