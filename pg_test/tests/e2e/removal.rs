//! DDL beside writers.

use crate::tables::products;
use pg_test::{Engine, World, assert_in_step, eventually, on_each_engine};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

on_each_engine!(columns_that_come_and_go_are_followed, a_renamed_table_is_followed);

#[test]
fn drop_extension_beside_writers_hurts_none_of_them() {
    let mut world = World::new("drop_extension");
    products(&mut world, 1000);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.cache_table("product", "");
    world.wait(&sync);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let (stop, mut session) = (Arc::clone(&stop), world.connect());
            thread::spawn(move || {
                let mut written = 0;
                while !stop.load(Ordering::Relaxed) {
                    // Rows of its own: a deadlock would be ours.
                    session.exec(&format!(
                        "BEGIN; UPDATE product SET price = {written} WHERE id % 4 = {n} AND id < 100;
                         INSERT INTO product (id, name) VALUES ({}, 'n'); COMMIT",
                        10_000 * (n + 1) + written
                    ));
                    written += 1;
                }
                written
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(300));
    world.db.exec("SET statement_timeout = '60s'");
    world.db.exec("DROP EXTENSION pg_fanout CASCADE");
    thread::sleep(Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.join().expect("a writer without errors") > 0);
    }
    assert_eq!(world.db.value("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'product'::regclass"), "0");
    let workers = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND backend_type LIKE 'pg_fanout%'";
    eventually("the worker is gone", Duration::from_secs(20), || world.db.value(workers) == "0");
    // And it can be made again.
    world.db.exec("CREATE EXTENSION pg_fanout");
}

#[test]
fn drop_table_is_not_held_up() {
    let mut world = World::new("drop_table");
    products(&mut world, 5000);
    world.index_table("product", &Engine::opensearch(), "");
    let other = "CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)";
    world.db.exec(other);
    // In the middle of the backfill.
    world.db.exec("SET statement_timeout = '40s'");
    world.db.exec("DROP TABLE product");
    let sync = world.cache_table("other", "");
    assert_in_step(&mut world, &sync);
}

fn columns_that_come_and_go_are_followed(world: &mut World, engine: &Engine) {
    products(world, 100);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    world.db.exec("BEGIN; ALTER TABLE product ADD COLUMN colour text; UPDATE product SET colour = 'red'; COMMIT");
    assert_in_step(world, &sync);
    world.db.exec("BEGIN; ALTER TABLE product DROP COLUMN tags; UPDATE product SET colour = 'blue'; COMMIT");
    assert_in_step(world, &sync);
}

fn a_renamed_table_is_followed(world: &mut World, engine: &Engine) {
    products(world, 100);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    world.db.exec("CREATE SCHEMA shop; ALTER TABLE product RENAME TO article; ALTER TABLE article SET SCHEMA shop");
    world.db.exec("UPDATE shop.article SET price = 5 WHERE id < 50; DELETE FROM shop.article WHERE id = 60");
    assert_in_step(world, &sync);
}
