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

/// Requests in flight and bytes a batch for one target. Pure: no clock, no lock.
#[derive(Debug, Clone)]
pub struct Aimd {
    bounds: Bounds,
    concurrency: f64,
    bytes: usize,
    /// A batch of this size was refused as too large; growth stays a sixteenth below it.
    refused: Option<usize>,
    /// Size of the smallest batch that was cut off, and how many were, since one of that size went through.
    cut: Option<(usize, u32)>,
}

/// After an overload this share of the concurrency is left.
const DECREASE: f64 = 0.5;

/// So many batches on end that cost the connection are no accidents.
const CUTS: u32 = 5;

impl Aimd {
    /// Starts at the maximum: most targets bear it, and one that does not says so. Bounds that cross are made to meet at
    /// the larger.
    pub fn new(bounds: Bounds) -> Aimd {
        let min_concurrency = bounds.min_concurrency.max(1);
        let bounds = Bounds {
            min_concurrency,
            max_concurrency: bounds.max_concurrency.max(min_concurrency),
            min_bytes: bounds.min_bytes,
            max_bytes: bounds.max_bytes.max(bounds.min_bytes),
        };
        Aimd { bounds, concurrency: bounds.max_concurrency as f64, bytes: bounds.max_bytes, refused: None, cut: None }
    }

    /// Requests that may be in flight.
    pub fn concurrency(&self) -> usize {
        self.concurrency as usize
    }

    /// Bytes that a batch may have.
    pub fn batch_bytes(&self) -> usize {
        self.bytes
    }

    /// A batch of `bytes` went through. One whole round of them adds one request; a batch of about the allowed size
    /// adds a sixteenth to it, up to what was last refused.
    pub fn on_success(&mut self, bytes: usize) {
        let most = self.bounds.max_concurrency as f64;
        self.concurrency = (self.concurrency + 1.0 / self.concurrency).min(most);
        self.cut = self.cut.filter(|&(smallest, _)| bytes < smallest);
        // A small batch proves nothing about large ones.
        if bytes >= self.bytes / 2 {
            // Well below: the last document of a batch is what takes it past its size.
            let ceiling = self.refused.map_or(self.bounds.max_bytes, |refused| {
                (refused - refused / 16).clamp(self.bounds.min_bytes, self.bounds.max_bytes)
            });
            self.bytes = (self.bytes + (self.bytes / 16).max(1)).min(ceiling).max(self.bytes.min(ceiling));
        }
    }

    /// The target is overloaded or timed out: half as many requests, half as large.
    pub fn on_overloaded(&mut self) {
        self.concurrency = (self.concurrency * DECREASE).max(self.bounds.min_concurrency as f64);
        self.bytes = (self.bytes / 2).max(self.bounds.min_bytes);
    }

    /// A batch of `bytes` cost the connection, though a small request went through right after. True if that was so too often to be
    /// an accident: then the batch was too large. Never so of a batch that no target would call large.
    pub fn on_cut(&mut self, bytes: usize) -> bool {
        self.concurrency = (self.concurrency * DECREASE).max(self.bounds.min_concurrency as f64);
        self.bytes = (self.bytes.min(bytes) / 2).max(self.bounds.min_bytes);
        if bytes < self.bounds.min_bytes {
            return false;
        }
        let (smallest, times) = self.cut.map_or((bytes, 1), |(smallest, times)| (smallest.min(bytes), times + 1));
        self.cut = Some((smallest, times));
        times >= CUTS
    }

    /// A batch of `bytes` was too large. Sizes from it on are not tried again.
    pub fn on_too_large(&mut self, bytes: usize) {
        self.refused = Some(self.refused.map_or(bytes, |refused| refused.min(bytes)));
        self.bytes = self.bytes.min(bytes / 2).max(self.bounds.min_bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { min_concurrency: 1, max_concurrency: 8, min_bytes: 1000, max_bytes: 1_000_000 };

    #[test]
    fn overload_halves_and_success_adds_one_a_round() {
        let mut aimd = Aimd::new(BOUNDS);
        assert_eq!((aimd.concurrency(), aimd.batch_bytes()), (8, 1_000_000));
        aimd.on_overloaded();
        assert_eq!((aimd.concurrency(), aimd.batch_bytes()), (4, 500_000));
        for _ in 0..4 {
            aimd.on_success(400_000);
        }
        assert!((4.9..5.1).contains(&aimd.concurrency));
        assert!(aimd.batch_bytes() > 600_000);
        for _ in 0..10 {
            aimd.on_overloaded();
        }
        assert_eq!(aimd.concurrency(), 1);
        for _ in 0..200 {
            aimd.on_success(usize::MAX);
        }
        assert_eq!((aimd.concurrency(), aimd.batch_bytes()), (8, 1_000_000));
    }

    #[test]
    fn a_size_that_was_refused_is_not_tried_again() {
        let mut aimd = Aimd::new(BOUNDS);
        aimd.on_too_large(600_000);
        assert_eq!(aimd.batch_bytes(), 300_000);
        for _ in 0..100 {
            aimd.on_success(aimd.batch_bytes());
        }
        assert_eq!(aimd.batch_bytes(), 562_500);
    }

    #[test]
    fn what_is_cut_off_time_and_again_was_too_large() {
        let mut aimd = Aimd::new(BOUNDS);
        // Larger ones go through in between: it was not the size.
        for _ in 0..20 {
            assert!(!aimd.on_cut(200_000));
            aimd.on_success(50_000);
            aimd.on_success(200_000);
        }
        // Only smaller ones do.
        let verdicts = [200_000, 100_000, 60_000, 61_000, 60_500, 60_400].map(|bytes| {
            aimd.on_success(50_000);
            aimd.on_cut(bytes)
        });
        assert_eq!(verdicts, [false, false, false, false, true, true]);
        assert!(aimd.batch_bytes() <= 60_400 / 2);
        // No target calls these large.
        assert!((0..20).all(|_| !aimd.on_cut(999)));
    }

    #[test]
    fn small_batches_prove_nothing() {
        let mut aimd = Aimd::new(BOUNDS);
        aimd.on_overloaded();
        aimd.on_success(10);
        assert_eq!(aimd.batch_bytes(), 500_000);
    }

    proptest! {
        #[test]
        fn bounds_hold(
            (a, b, c, d) in (0usize..20, 0usize..20, 0usize..5000, 0usize..5000),
            events in proptest::collection::vec((0u8..4, 0usize..6000), 0..200),
        ) {
            let mut aimd = Aimd::new(Bounds { min_concurrency: a, max_concurrency: b, min_bytes: c, max_bytes: d });
            for (event, bytes) in events {
                match event {
                    0 => aimd.on_success(bytes),
                    1 => aimd.on_overloaded(),
                    2 => drop(aimd.on_cut(bytes)),
                    _ => aimd.on_too_large(bytes),
                }
                prop_assert!(aimd.concurrency() >= a.max(1) && aimd.concurrency() <= b.max(a).max(1));
                prop_assert!(aimd.batch_bytes() >= c && aimd.batch_bytes() <= d.max(c));
            }
        }
    }
}
