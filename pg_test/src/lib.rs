//! End-to-end tests of pg_fanout from a client's side, on real servers: what the tests in `tests/` are written with.
//!
//! Each test has a [`World`] of its own: a database with the extension, the three foreign servers, and a tag that the
//! names of its indices and Redis keys contain. [`assert_in_step`] is the check that nearly every test ends with.
//!
//! `make test` starts the servers and runs everything. By hand, and for a single test:
//!
//! ```text
//! stack/up && eval "$(stack/env)"
//! cargo test -p pg_test --test e2e backfill -- --test-threads=1
//! ```
//!
//! `tests/e2e` is what the extension does, `tests/faults` what it does while its targets, or PostgreSQL, fail: with a
//! [`proxy`] before each target and an [`oracle`] that writes at random.
//!
//! `PG_TEST_SEED=N` repeats a run of the random tests, `PG_TEST_KEEP=1` leaves database, indices and keys in place.

mod database;
mod engine;
mod environment;
mod invariant;
mod keyspace;
mod log;
pub mod oracle;
mod peers;
pub mod proxy;
mod random;
pub mod readme;
#[path = "../../delivery/tests/common/redis_cluster.rs"]
mod redis_cluster;
mod second;
mod setting;
pub mod stack;
mod waiting;
mod world;

pub use database::{Refusal, Session};
pub use engine::{Document, Engine};
pub use invariant::{assert_in_step, differences};
pub use keyspace::Keyspace;
pub use log::ServerLog;
pub use peers::{BlackHole, OldEngine};
pub use random::Dice;
pub use redis_cluster::RedisCluster;
pub use second::Second;
pub use setting::Setting;
pub use waiting::{eventually, eventually_ok};
pub use world::World;

/// Runs a test function on OpenSearch and on Elasticsearch: `on_each_engine!(name);` beside
/// `fn name(world: &mut World, engine: &Engine)` makes the tests `name::opensearch` and `name::elasticsearch`.
#[macro_export]
macro_rules! on_each_engine {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn opensearch() {
                let mut world = $crate::World::new(concat!(stringify!($name), "_os"));
                super::$name(&mut world, &$crate::Engine::opensearch());
            }

            #[test]
            fn elasticsearch() {
                let mut world = $crate::World::new(concat!(stringify!($name), "_es"));
                super::$name(&mut world, &$crate::Engine::elasticsearch());
            }
        }
    )+};
}
