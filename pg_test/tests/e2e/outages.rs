//! Targets that are down, and come back.

use crate::tables::{more_products, products};
use pg_test::{Engine, World, assert_in_step, eventually, on_each_engine, stack};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

#[test]
fn opensearch_may_be_down_at_the_start() {
    an_engine_may_be_down_at_the_start(Engine::opensearch());
}

#[test]
fn elasticsearch_may_be_down_at_the_start() {
    an_engine_may_be_down_at_the_start(Engine::elasticsearch());
}

fn an_engine_may_be_down_at_the_start(engine: Engine) {
    let mut world = World::alone(&format!("{}_down", engine.name));
    products(&mut world, 500);
    let stopped = stack::stop(engine.name);
    let begun = Instant::now();
    let sync = world.index_table("product", &engine, "");
    world.db.exec("UPDATE product SET price = 1 WHERE id <= 100; DELETE FROM product WHERE id > 490");
    assert!(begun.elapsed() < Duration::from_secs(5), "making a sync and writing must not wait for the target");
    eventually("fanout.status tells what is wrong", Duration::from_secs(30), || {
        world.status(&sync, "last_error") != "NULL"
    });
    // Another sync of the same table is not held up.
    let cache = world.cache_table("product", "");
    assert_in_step(&mut world, &cache);
    more_products(&mut world, 1000, 1100);
    stopped.start();
    assert_in_step(&mut world, &sync);
    assert_in_step(&mut world, &cache);
}

on_each_engine!(an_index_deleted_under_a_busy_worker_is_made_and_filled_again);

fn an_index_deleted_under_a_busy_worker_is_made_and_filled_again(world: &mut World, engine: &Engine) {
    products(world, 2000);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    let stop = Arc::new(AtomicBool::new(false));
    let (mut writer, stopped) = (world.connect(), Arc::clone(&stop));
    let writing = thread::spawn(move || {
        for n in 0.. {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            // Deletions alone, writes alone, and both.
            writer.exec(&format!("DELETE FROM product WHERE id % 1000 = {}", n % 1000));
            writer.exec(&format!("UPDATE product SET price = {n} WHERE id % 100 = {}", n % 100));
            writer.exec(&format!(
                "INSERT INTO product (id, name) SELECT i, 'again' FROM generate_series(1, 2000) AS i WHERE i % 50 = {}
                 ON CONFLICT (id) DO NOTHING",
                n % 50
            ));
        }
    });
    let concrete = format!("{}-fanout-1", world.index_name("product"));
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(500));
        eventually("it is made again", Duration::from_secs(20), || engine.exists(&concrete));
        engine.ask("DELETE", &format!("/{concrete}"), None);
    }
    thread::sleep(Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    writing.join().expect("the writer");
    assert_in_step(world, &sync);
    let mapping = engine.ask("GET", &format!("/{}/_mapping", world.index_name("product")), None);
    assert!(mapping.to_string().contains("pg_fanout"), "the engine made it: {mapping}");
}

#[test]
fn redis_may_be_down_at_the_start() {
    let mut world = World::alone("redis_down");
    products(&mut world, 500);
    let stopped = stack::stop("redis");
    let sync = world.cache_table("product", "");
    world.db.exec("UPDATE product SET price = 1 WHERE id <= 100; DELETE FROM product WHERE id > 490");
    eventually("fanout.status tells what is wrong", Duration::from_secs(30), || {
        world.status(&sync, "last_error") != "NULL"
    });
    stopped.start();
    assert_in_step(&mut world, &sync);
}

#[test]
fn opensearch_may_crash_while_writers_go_on() {
    an_engine_may_crash_while_writers_go_on(Engine::opensearch());
}

#[test]
fn elasticsearch_may_crash_while_writers_go_on() {
    an_engine_may_crash_while_writers_go_on(Engine::elasticsearch());
}

fn an_engine_may_crash_while_writers_go_on(engine: Engine) {
    let mut world = World::alone(&format!("{}_crash", engine.name));
    products(&mut world, 1000);
    let sync = world.index_table("product", &engine, "");
    assert_in_step(&mut world, &sync);
    let writer = Writer::start(&world);
    stack::crash(engine.name);
    let written = writer.stop();
    assert!(written > 20, "the writer was held up: {written} transactions");
    assert_in_step(&mut world, &sync);
}

#[test]
fn redis_may_be_away_while_writers_go_on() {
    let mut world = World::alone("redis_away");
    products(&mut world, 1000);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    let writer = Writer::start(&world);
    stack::restart("redis");
    thread::sleep(Duration::from_millis(300));
    writer.stop();
    world.wait(&sync);
    // This Redis keeps nothing over a restart: what was cached before is gone until it is asked for again.
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    eventually("the cache is whole again", Duration::from_secs(60), || {
        pg_test::differences(&mut world, &sync).is_empty()
    });
    assert_in_step(&mut world, &sync);
}

/// A connection that changes products until it is told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Writer {
    fn start(world: &World) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, mut session) = (Arc::clone(&stop), world.connect());
        let thread = thread::spawn(move || {
            let mut written = 0;
            while !told.load(Ordering::Relaxed) {
                let id = 1 + written * 37 % 1000;
                session.exec(&format!("UPDATE product SET price = {written} WHERE id BETWEEN {id} AND {id} + 5"));
                session.exec(&format!("INSERT INTO product (id, name) VALUES ({}, 'during')", 10_000 + written));
                if written % 3 == 0 {
                    session.exec(&format!("DELETE FROM product WHERE id IN ({id}, {})", 10_000 + written / 2));
                }
                written += 1;
                thread::sleep(Duration::from_millis(5));
            }
            written
        });
        Self { stop, thread }
    }

    /// How many rounds it made, none of which met an error.
    fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a writer without errors")
    }
}
