//! What changes a table without a row trigger seeing it, and DDL beside a busy worker.

use crate::postgres::worker;
use crate::proxied::{Proxies, in_step_again};
use crate::tables::products;
use pg_test::proxy::Fault;
use pg_test::{Engine, Setting, World, assert_in_step, eventually};
use std::time::{Duration, Instant};

on_each_engine!(partitions_that_come_and_go_are_followed);

/// Two partitions with rows, and two tables that could be others.
fn events(world: &mut World) {
    world.db.exec(
        "CREATE TABLE event (id int, month int, note text, PRIMARY KEY (id, month)) PARTITION BY LIST (month);
         CREATE TABLE event_1 PARTITION OF event FOR VALUES IN (1);
         CREATE TABLE event_2 PARTITION OF event FOR VALUES IN (2);
         CREATE TABLE event_3 (LIKE event INCLUDING ALL);
         CREATE TABLE event_4 (LIKE event INCLUDING ALL);
         INSERT INTO event SELECT i, 1 + i % 2, 'n' FROM generate_series(1, 400) AS i;
         INSERT INTO event_3 SELECT i, 3, 'n' FROM generate_series(1, 50) AS i;
         INSERT INTO event_4 SELECT i, 4, 'n' FROM generate_series(1, 50) AS i",
    );
}

fn partitions_that_come_and_go_are_followed(world: &mut World, engine: &Engine) {
    events(world);
    let index = world.index_table("event", engine, "");
    let cache = world.cache_table_by("event", &format!("{}${{id}}:${{month}}", world.key_prefix("event")), "");
    for statement in [
        "ALTER TABLE event ATTACH PARTITION event_3 FOR VALUES IN (3)",
        "ALTER TABLE event DETACH PARTITION event_1",
        "TRUNCATE event_2",
        "INSERT INTO event VALUES (7, 2, 'again'), (800, 3, 'again')",
        "ALTER TABLE event DETACH PARTITION event_3 CONCURRENTLY",
        "ALTER TABLE event ATTACH PARTITION event_4 FOR VALUES IN (4)",
        "DROP TABLE event_4",
        "CREATE TABLE event_5 PARTITION OF event FOR VALUES IN (5) PARTITION BY RANGE (id)",
        "CREATE TABLE event_5_1 PARTITION OF event_5 FOR VALUES FROM (1) TO (100)",
        "INSERT INTO event SELECT i, 5, 'deep' FROM generate_series(1, 50) AS i",
        "TRUNCATE event_5_1",
        "TRUNCATE event",
    ] {
        world.db.exec(statement);
        for sync in [&index, &cache] {
            assert_in_step(world, sync);
        }
    }
}

#[test]
fn an_empty_partition_more_delivers_nothing_again() {
    let mut world = World::new("new_partition");
    events(&mut world);
    let sync = world.cache_table_by("event", &format!("{}${{id}}:${{month}}", world.key_prefix("event")), "");
    assert_in_step(&mut world, &sync);
    let before = world.status(&sync, "delivered");
    world.db.exec("CREATE TABLE event_9 PARTITION OF event FOR VALUES IN (9)");
    world.wait(&sync);
    assert_eq!(world.status(&sync, "delivered"), before);
    world.db.exec("INSERT INTO event VALUES (1, 9, 'n')");
    assert_in_step(&mut world, &sync);
}

/// What a key is of now is not noted before what follows from it.
#[test]
fn a_key_of_another_type_is_not_forgotten_by_a_worker_that_ends() {
    let mut world = World::alone("retyped");
    products(&mut world, 100);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    world.db.exec(
        "CREATE FUNCTION not_now() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;
         CREATE TRIGGER not_now BEFORE UPDATE ON fanout.sync FOR EACH ROW WHEN (NEW.phase = 'reconcile')
         EXECUTE FUNCTION not_now();
         ALTER TABLE product ALTER id TYPE text",
    );
    eventually("the worker cannot note that it has to reconcile", Duration::from_secs(30), || {
        world.status(&sync, "last_error").contains("not now")
    });
    let pid = worker(&mut world);
    world.db.exec(&format!("SELECT pg_terminate_backend({pid}, 10000)"));
    world.db.exec("DROP TRIGGER not_now ON fanout.sync");
    in_step_again(&mut world, &sync);
}

#[test]
fn altered_columns_are_followed_though_no_row_was_touched() {
    let mut world = World::new("columns");
    products(&mut world, 200);
    let json = world.cache_table("product", "");
    let hashes = format!("{}:hash:${{id}}", world.tag);
    let hashes = world.cache_table_by("product", &hashes, ", name => 'hashes', format => 'hash'");
    for statement in [
        "ALTER TABLE product ADD COLUMN colour text DEFAULT 'red'",
        "ALTER TABLE product RENAME COLUMN colour TO color",
        "ALTER TABLE product ALTER COLUMN price TYPE bigint USING (price * 100)::bigint",
        "ALTER TABLE product ALTER COLUMN price TYPE bigint USING -price",
        "ALTER TABLE product DROP COLUMN tags",
        "ALTER TABLE product ADD COLUMN doubled bigint GENERATED ALWAYS AS (price * 2) STORED",
        "ALTER TABLE product ALTER COLUMN name TYPE varchar(200)",
        "VACUUM FULL product",
        "CREATE SCHEMA shop",
        "ALTER TABLE product SET SCHEMA shop",
        "ALTER SCHEMA shop RENAME TO store",
        "ALTER TABLE store.product RENAME TO article",
        "UPDATE store.article SET name = 'moved' WHERE id < 50",
    ] {
        world.db.exec(statement);
        for sync in [&json, &hashes] {
            assert_in_step(&mut world, sync);
        }
    }
}

#[test]
fn what_was_altered_while_the_target_was_away_is_not_forgotten() {
    let mut world = World::new("altered_away");
    let proxies = Proxies::before(&mut world);
    events(&mut world);
    let index = world.index_table("event", &Engine::opensearch(), "");
    assert_in_step(&mut world, &index);
    for statement in [
        "ALTER TABLE event DETACH PARTITION event_1",
        "ALTER TABLE event ATTACH PARTITION event_3 FOR VALUES IN (3)",
        "TRUNCATE event_2",
        "ALTER TABLE event ADD COLUMN more int DEFAULT 7",
    ] {
        proxies.opensearch.plan(|_| Fault::Reset);
        world.db.exec("INSERT INTO event VALUES (5000, 2, 'n') ON CONFLICT (id, month) DO UPDATE SET note = 'm'");
        eventually("the target is missed", Duration::from_secs(20), || world.status(&index, "state") == "retrying");
        world.db.exec(statement);
        world.end_worker();
        proxies.calm();
        in_step_again(&mut world, &index);
    }
}

/// While the worker reads a row that takes for ever.
#[test]
fn ddl_waits_for_the_worker_no_longer_than_its_read_timeout() {
    let mut world = World::alone("ddl_waits");
    let _timeout = Setting::set(&mut world, "fanout.read_timeout", "1s");
    world.db.exec(
        "CREATE TYPE odd AS ENUM ('fine', 'slow');
         CREATE FUNCTION odd_json(o odd) RETURNS json LANGUAGE plpgsql AS $$
         BEGIN IF o = 'slow' THEN PERFORM pg_sleep(600); END IF; RETURN to_json(1); END $$;
         CREATE CAST (odd AS json) WITH FUNCTION odd_json(odd);
         CREATE TABLE slow (id int PRIMARY KEY, o odd); INSERT INTO slow VALUES (1, 'fine')",
    );
    let sync = world.cache_table("slow", "");
    assert_in_step(&mut world, &sync);
    world.db.exec("SET statement_timeout = '30s'");
    for n in 0..5 {
        world.db.exec(&format!("INSERT INTO slow VALUES (100 + {n}, 'slow')"));
        std::thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        world.db.exec(&format!("ALTER TABLE slow ADD COLUMN c{n} int"));
        assert!(begun.elapsed() < Duration::from_secs(10), "ALTER TABLE waited {:?}", begun.elapsed());
    }
    world.db.exec("DROP TABLE slow");
}

#[test]
fn a_trigger_that_was_disabled_is_told_and_what_it_missed_is_found() {
    let mut world = World::new("disabled");
    products(&mut world, 50);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    // These capture all the same.
    world
        .db
        .exec("SET session_replication_role = replica; UPDATE product SET price = 1; RESET session_replication_role");
    assert_in_step(&mut world, &sync);
    world.db.exec("ALTER TABLE product DISABLE TRIGGER ALL");
    eventually("it is told", Duration::from_secs(20), || world.status(&sync, "last_error").contains("trigger"));
    world.db.exec("UPDATE product SET name = 'unseen' WHERE id < 10; DELETE FROM product WHERE id = 20");
    let enable = world.db.value(
        "SELECT string_agg(format('ALTER TABLE product ENABLE ALWAYS TRIGGER %I', tgname), ';') FROM pg_trigger
         WHERE tgrelid = 'product'::regclass",
    );
    world.db.exec(&enable);
    assert_in_step(&mut world, &sync);
}
