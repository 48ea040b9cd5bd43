//! A table that has rows when its sync is made, and what changes from then on.

use crate::tables::{more_products, products};
use pg_test::{Engine, Keyspace, World, assert_in_step, on_each_engine};

on_each_engine!(
    rows_that_exist_arrive_and_then_every_change,
    an_empty_table_makes_an_empty_index,
    writes_during_a_backfill_are_not_lost
);

fn change(world: &mut World) {
    world.db.exec("INSERT INTO product (id, name, price) VALUES (5001, 'new', 1), (5002, 'gone soon', 2)");
    world.db.exec("UPDATE product SET price = price + 1, name = upper(name) WHERE id % 10 = 0");
    world.db.exec("DELETE FROM product WHERE id % 10 = 1 OR id = 5002");
}

fn rows_that_exist_arrive_and_then_every_change(world: &mut World, engine: &Engine) {
    products(world, 3000);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    assert_eq!(engine.documents(&world.index_name("product")).len(), 3000);
    change(world);
    assert_in_step(world, &sync);
    world.db.exec("DELETE FROM product");
    assert_in_step(world, &sync);
}

fn an_empty_table_makes_an_empty_index(world: &mut World, engine: &Engine) {
    products(world, 0);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    assert!(engine.exists(&world.index_name("product")));
    more_products(world, 1, 1);
    assert_in_step(world, &sync);
}

fn writes_during_a_backfill_are_not_lost(world: &mut World, engine: &Engine) {
    products(world, 20_000);
    let sync = world.index_table("product", engine, "");
    // No wait: the backfill is on its way while these are committed, at both ends of the table.
    for round in 0..20 {
        world.db.exec(&format!("UPDATE product SET price = {round} WHERE id % 500 = {round}"));
        world.db.exec(&format!("DELETE FROM product WHERE id % 500 = {round} + 100"));
        world.db.exec(&format!("INSERT INTO product (id, name) VALUES ({}, 'late')", 30_000 + round));
    }
    assert_in_step(world, &sync);
}

#[test]
fn rows_become_json_in_redis_and_follow_every_change() {
    let mut world = World::new("cache_json");
    products(&mut world, 3000);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    assert_eq!(Keyspace::open().keys(&world.key_prefix("product")).len(), 3000);
    change(&mut world);
    assert_in_step(&mut world, &sync);
    let key = format!("{}2", world.key_prefix("product"));
    assert_eq!(Keyspace::open().ttl_ms(&key), -1, "without ttl a key never expires");
}

#[test]
fn rows_become_hashes_in_redis_and_follow_every_change() {
    let mut world = World::new("cache_hash");
    products(&mut world, 500);
    let sync = world.cache_table("product", ", format => 'hash'");
    assert_in_step(&mut world, &sync);
    change(&mut world);
    // A field that became NULL has to go from the hash.
    world.db.exec("UPDATE product SET price = NULL, tags = NULL WHERE id % 5 = 2");
    assert_in_step(&mut world, &sync);
}

#[test]
fn keys_with_a_ttl_expire_within_the_jitter() {
    let mut world = World::new("cache_ttl");
    products(&mut world, 200);
    let sync = world.cache_table("product", ", ttl => '1 hour', jitter => 0.2");
    assert_in_step(&mut world, &sync);
    let mut redis = Keyspace::open();
    let keys = redis.keys(&world.key_prefix("product"));
    let ttls: Vec<i64> = keys.iter().map(|key| redis.ttl_ms(key)).collect();
    let hour = 3_600_000;
    assert!(ttls.iter().all(|ttl| (hour * 7 / 10..=hour * 12 / 10).contains(ttl)), "{ttls:?}");
    let spread = ttls.iter().max().unwrap_or(&0) - ttls.iter().min().unwrap_or(&0);
    assert!(spread > hour / 20, "keys that were set together must not expire together: {ttls:?}");
    // A change starts the time anew, for hashes as well.
    world.db.exec("UPDATE product SET name = 'x'");
    assert_in_step(&mut world, &sync);
    let other = world.cache_table_by(
        "product",
        &format!("{}hash:${{id}}", world.tag),
        ", name => 'hashes', format => 'hash', ttl => '10 seconds'",
    );
    world.wait(&other);
    let ttl = redis.ttl_ms(&format!("{}hash:7", world.tag));
    assert!((1..=11_000).contains(&ttl), "{ttl}");
}

#[test]
fn one_table_feeds_an_index_and_a_cache_under_default_names() {
    let mut world = World::new("two_syncs");
    products(&mut world, 100);
    let index = world.index_table("product", &Engine::opensearch(), "");
    let cache = world.cache_table("product", "");
    assert_ne!(index, cache);
    change(&mut world);
    assert_in_step(&mut world, &index);
    assert_in_step(&mut world, &cache);
}

/// The first rows of a table say nothing of the size of the next.
#[test]
fn rows_of_many_megabytes_are_read_one_at_a_time() {
    let mut world = World::new("huge_rows");
    world.db.exec(
        "CREATE TABLE blob (id int PRIMARY KEY, body text);
         INSERT INTO blob SELECT i, CASE WHEN i % 3 = 0 THEN 'small' ELSE repeat(chr(64 + i), 20000000) END FROM generate_series(1, 24) AS i",
    );
    let sync = world.cache_table("blob", "");
    assert_in_step(&mut world, &sync);
    world.db.exec("UPDATE blob SET body = body || 'x'");
    assert_in_step(&mut world, &sync);
    let pid = world.db.value(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_fanout worker' AND datname = current_database()",
    );
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the worker's status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak of memory");
    let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse().expect("kilobytes");
    // All of them would be 320 MB, once as rows and once as batches.
    assert!(kilobytes < 300_000, "the worker took {kilobytes} kB");
}
