//! Random choices that can be repeated.

/// A random generator that says how to repeat its run.
pub struct Dice {
    random: fastrand::Rng,
}

impl Dice {
    /// Takes the seed from `PG_TEST_SEED`, or a new one, and prints it: a failing test shows its output.
    pub fn new() -> Self {
        let seed = match std::env::var("PG_TEST_SEED") {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("PG_TEST_SEED is not a number: {text}")),
            Err(_) => fastrand::u64(..),
        };
        println!("repeat this run with PG_TEST_SEED={seed}");
        Self { random: fastrand::Rng::with_seed(seed) }
    }

    /// One that repeats the run of this seed.
    pub fn with_seed(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed) }
    }

    /// Another generator, for another thread, that depends on the same seed.
    pub fn fork(&mut self) -> Self {
        Self { random: self.random.fork() }
    }

    /// A number from 0 to `below` - 1.
    pub fn below(&mut self, below: u64) -> u64 {
        self.random.u64(..below)
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}
