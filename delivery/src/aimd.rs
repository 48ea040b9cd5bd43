//! How much to send at once: additive increase, multiplicative decrease.

/// Bounds for [`Aimd`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Fewest requests in flight, at least 1.
    pub min_concurrency: usize,
    /// Most requests in flight.
    pub max_concurrency: usize,
    /// Smallest batch in bytes.
    pub min_bytes: usize,
    /// Largest batch in bytes.
    pub max_bytes: usize,
}

/// Requests in flight and bytes a batch for one target.
#[derive(Debug, Clone)]
pub struct Aimd {
    bounds: Bounds,
    concurrency: f64,
    bytes: usize,
}

impl Aimd {
    /// Starts at the maximum: most targets bear it, and one that does not says so.
    pub fn new(bounds: Bounds) -> Aimd {
        let _ = bounds;
        todo!()
    }

    /// Requests that may be in flight.
    pub fn concurrency(&self) -> usize {
        todo!()
    }

    /// Bytes that a batch may have.
    pub fn batch_bytes(&self) -> usize {
        todo!()
    }

    /// A batch of `bytes` went through.
    pub fn on_success(&mut self, bytes: usize) {
        let _ = bytes;
        todo!()
    }

    /// The target is overloaded or timed out.
    pub fn on_overloaded(&mut self) {
        todo!()
    }

    /// A batch of `bytes` was too large.
    pub fn on_too_large(&mut self, bytes: usize) {
        let _ = bytes;
        todo!()
    }
}
