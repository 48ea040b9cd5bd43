//! The fault bench: what must be true while targets fail, PostgreSQL crashes, and tables change under the worker.
//! docs/reliability.md has the scenarios.

#[path = "../e2e/tables.rs"]
#[allow(dead_code)]
mod tables;

/// As `pg_test::on_each_engine!`; Elasticsearch in the long form only, for the short one is to be short.
macro_rules! on_each_engine {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn opensearch() {
                let mut world = pg_test::World::new(concat!(stringify!($name), "_os"));
                super::$name(&mut world, &pg_test::Engine::opensearch());
            }

            #[test]
            #[ignore = "the long form: make faults"]
            fn elasticsearch() {
                let mut world = pg_test::World::new(concat!(stringify!($name), "_es"));
                super::$name(&mut world, &pg_test::Engine::elasticsearch());
            }
        }
    )+};
}

mod alterations;
mod backlog;
mod clock;
mod disk;
mod explained;
mod keyspace;
mod moved;
mod postgres;
mod proxied;
mod reading;
mod replies;
mod servers;
mod standby;
mod storm;
mod subscriber;
mod watch;

/// Minutes for all storms together, if the long form is asked for: `make faults`.
fn minutes() -> Option<f64> {
    let text = std::env::var("FAULTS_MINUTES").ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("FAULTS_MINUTES is not a number: {text}")))
}
