//! PostgreSQL, or only the worker, goes down and comes back.

use crate::tables::{more_products, products};
use pg_test::{Engine, Session, World, assert_in_step, eventually_ok, stack};
use std::thread;
use std::time::Duration;

fn syncs(world: &mut World) -> [String; 3] {
    [
        world.index_table("product", &Engine::opensearch(), ", name => 'opensearch'"),
        world.index_table("product", &Engine::elasticsearch(), ", name => 'elasticsearch'"),
        world.cache_table("product", ", name => 'redis'"),
    ]
}

fn all_in_step(world: &mut World, syncs: &[String]) {
    for sync in syncs {
        assert_in_step(world, sync);
    }
}

/// Writes until the connection breaks. `synchronous_commit = off` makes committed transactions that a crash takes back.
fn write_until_cut_off(mut session: Session, first: u32) {
    let _ = session.try_exec("SET synchronous_commit = off");
    for n in 0.. {
        let id = first + n;
        let outcome = session.try_exec(&format!(
            "INSERT INTO product (id, name) VALUES ({id}, 'n'); UPDATE product SET price = {n} WHERE id % 97 = {n} % 97"
        ));
        // A deadlock with the other writer is no end.
        if matches!(&outcome, Err(error) if error.code != "40P01") {
            return;
        }
    }
}

#[test]
fn a_restart_of_postgres_loses_nothing() {
    let mut world = World::alone("pg_restart");
    products(&mut world, 5000);
    let syncs = syncs(&mut world);
    // In the middle of the backfill.
    world.db.exec("UPDATE product SET name = 'changed' WHERE id % 2 = 0; DELETE FROM product WHERE id > 4900");
    stack::restart("postgres");
    world.reconnect();
    all_in_step(&mut world, &syncs);
    // With a backlog.
    world.db.exec("UPDATE product SET price = 7; DELETE FROM product WHERE id % 50 = 0");
    stack::restart("postgres");
    world.reconnect();
    all_in_step(&mut world, &syncs);
    more_products(&mut world, 10_000, 10_010);
    all_in_step(&mut world, &syncs);
}

#[test]
fn a_crash_of_postgres_loses_nothing_and_invents_nothing() {
    let mut world = World::alone("pg_crash");
    products(&mut world, 1000);
    let syncs = syncs(&mut world);
    all_in_step(&mut world, &syncs);
    for round in 1..=3 {
        let writers: Vec<_> = (0..2)
            .map(|n| {
                let session = world.connect();
                thread::spawn(move || write_until_cut_off(session, round * 1_000_000 + n * 100_000))
            })
            .collect();
        thread::sleep(Duration::from_millis(700));
        stack::crash("postgres");
        for writer in writers {
            writer.join().expect("a writer that stops when it is cut off");
        }
        world.reconnect();
        all_in_step(&mut world, &syncs);
    }
}

#[test]
fn a_worker_that_is_ended_comes_back_and_goes_on() {
    let mut world = World::new("worker_ended");
    products(&mut world, 10_000);
    let syncs = syncs(&mut world);
    for round in 0..3 {
        let before = worker(&mut world);
        world.db.exec(&format!("UPDATE product SET price = {round}"));
        world.db.exec(&format!("SELECT pg_terminate_backend({before})"));
        eventually_ok("another worker", Duration::from_secs(30), || {
            let now = workers(&mut world);
            if now.len() == 1 && now[0] != before { Ok(()) } else { Err(format!("{now:?}, before {before}")) }
        });
    }
    all_in_step(&mut world, &syncs);
}

fn workers(world: &mut World) -> Vec<String> {
    world.db.column(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'pg_fanout%'",
    )
}

fn worker(world: &mut World) -> String {
    eventually_ok("a worker for this database", Duration::from_secs(30), || {
        let workers = workers(world);
        if workers.len() == 1 { Ok(workers[0].clone()) } else { Err(format!("{workers:?}")) }
    })
}

#[test]
fn the_worker_does_not_keep_anybody_from_dropping_the_database() {
    let mut world = World::new("drop_database");
    products(&mut world, 100);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    let database = world.database();
    // Without FORCE, and nobody but the worker is connected.
    world.db = Session::connect("postgres");
    world.db.exec("SET statement_timeout = '20s'");
    world.db.exec(&format!("DROP DATABASE {database}"));
}
