//! What happens at the same time, and what an older state must not spoil.

use crate::tables::{more_products, products};
use crate::targets::{at_the_same_time, is_refused};
use pg_test::{Engine, Keyspace, World, assert_in_step, on_each_engine};
use serde_json::json;
use std::time::Duration;

on_each_engine!(
    truncates_in_a_row_leave_nothing_behind,
    a_resync_during_another_ends_with_the_last,
    a_version_that_no_other_can_be_above_is_told
);

fn truncates_in_a_row_leave_nothing_behind(world: &mut World, engine: &Engine) {
    products(world, 20_000);
    let sync = world.index_table("product", engine, "");
    world.wait(&sync);
    for round in 0..5 {
        world.db.exec("TRUNCATE product");
        more_products(world, 1, 100 * round);
        std::thread::sleep(Duration::from_millis(150));
    }
    assert_in_step(world, &sync);
}

fn a_resync_during_another_ends_with_the_last(world: &mut World, engine: &Engine) {
    products(world, 5000);
    let index = world.index_name("product");
    let sync = world.index_table("product", engine, "");
    world.wait(&sync);
    for _ in 0..3 {
        world.db.exec(&format!("SELECT fanout.resync('{sync}')"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_in_step(world, &sync);
    assert!(engine.exists(&format!("{index}-fanout-4")));
    pg_test::eventually("the older indices are gone", Duration::from_secs(20), || {
        engine.indices(&format!("{index}-fanout-")).len() == 1
    });
}

fn a_version_that_no_other_can_be_above_is_told(world: &mut World, engine: &Engine) {
    products(world, 5);
    let index = world.index_name("product");
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    let path = format!("/{index}/_doc/3?version={}&version_type=external", i64::MAX);
    engine.ask("PUT", &path, Some(json!({"id": 3})));
    world.db.exec("UPDATE product SET price = price + 1");
    pg_test::eventually("it is told", Duration::from_secs(10), || {
        world.status(&sync, "last_error").contains("fanout.resync() makes another")
    });
    // It is tried now and then, and not as fast as it can be.
    std::thread::sleep(Duration::from_secs(2));
    let tried: u32 = world.status(&sync, "retried").parse().expect("a number");
    assert!(tried < 20, "{tried} times in two seconds");
    world.db.exec(&format!("SELECT fanout.resync('{sync}')"));
    assert_in_step(world, &sync);
}

#[test]
fn a_transaction_older_than_the_sync_is_captured_and_so_is_what_follows() {
    let mut world = World::new("older");
    products(&mut world, 10);
    let mut old = world.connect();
    old.exec("BEGIN ISOLATION LEVEL REPEATABLE READ");
    old.value("SELECT count(*) FROM product");
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    old.exec("UPDATE product SET name = 'in an old snapshot' WHERE id = 1");
    old.exec("COMMIT");
    old.exec("UPDATE product SET name = 'afterwards' WHERE id = 2");
    assert_in_step(&mut world, &sync);
}

#[test]
fn a_truncate_while_the_catalog_is_locked_is_not_forgotten() {
    let mut world = World::new("locked");
    products(&mut world, 10);
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    let mut holder = world.connect();
    holder.exec(&format!("BEGIN; SELECT fanout.resume('{sync}')"));
    world.db.exec("TRUNCATE product");
    std::thread::sleep(Duration::from_millis(1500));
    holder.exec("COMMIT");
    assert_in_step(&mut world, &sync);
    assert!(Keyspace::open().keys(&world.key_prefix("product")).is_empty());
}

#[test]
fn a_reconcile_waits_for_a_locked_table() {
    let mut world = World::new("locked_table");
    products(&mut world, 10);
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    let mut holder = world.connect();
    holder.exec("BEGIN; LOCK TABLE product IN ACCESS EXCLUSIVE MODE");
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    std::thread::sleep(Duration::from_millis(1500));
    holder.exec("COMMIT");
    assert_in_step(&mut world, &sync);
}

#[test]
fn a_truncate_does_not_revive_a_sync_that_is_dropped() {
    let mut world = World::new("dropped");
    products(&mut world, 10);
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    world.db.exec(&format!("BEGIN; TRUNCATE product; SELECT fanout.drop_sync('{sync}', drop_target => true); COMMIT"));
    pg_test::eventually("the sync is gone", Duration::from_secs(20), || {
        world.db.value(&format!("SELECT count(*) FROM fanout.status WHERE sync = '{sync}'")) == "0"
    });
    assert!(Keyspace::open().keys(&world.key_prefix("product")).is_empty());
}

#[test]
fn a_key_of_another_type_is_reconciled() {
    let mut world = World::new("retyped");
    world.db.exec(
        "CREATE TABLE product (id uuid PRIMARY KEY, name text);
         INSERT INTO product SELECT md5(i::text)::uuid, 'name ' || i FROM generate_series(1, 50) AS i",
    );
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    world.db.exec(&format!("SELECT fanout.pause('{sync}')"));
    world.db.exec("UPDATE product SET name = 'changed while paused'");
    world.db.exec("ALTER TABLE product ALTER COLUMN id TYPE text");
    world.db.exec(&format!("SELECT fanout.resume('{sync}')"));
    assert_in_step(&mut world, &sync);
}

/// WAL is flushed only up to the snapshot by which a document was read, so nothing in it may be younger: not even what the code
/// of a type reads by itself, long after the row.
#[test]
fn a_document_is_of_one_moment() {
    let mut world = World::new("one_moment");
    world.db.exec(
        "CREATE TABLE aside (n int); INSERT INTO aside VALUES (1);
         CREATE TYPE pace AS ENUM ('quick', 'slow');
         CREATE FUNCTION pace_json(p pace) RETURNS json LANGUAGE plpgsql AS $$
         BEGIN
             IF p = 'slow' THEN PERFORM pg_sleep(2); END IF;
             RETURN (SELECT to_json(n) FROM public.aside);
         END $$;
         CREATE CAST (pace AS json) WITH FUNCTION pace_json(pace);
         CREATE TABLE part (id int PRIMARY KEY, p pace); INSERT INTO part VALUES (1, 'quick')",
    );
    let sync = world.cache_table("part", "");
    world.wait(&sync);
    world.db.exec("UPDATE part SET p = 'slow'");
    let reading = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_fanout worker' AND wait_event = 'PgSleep' \
                   AND datname = current_database()";
    pg_test::eventually("it is being read", Duration::from_secs(10), || world.db.value(reading) == "1");
    world.db.exec("UPDATE aside SET n = 2");
    world.wait(&sync);
    let key = format!("{}1", world.key_prefix("part"));
    assert_eq!(Keyspace::open().get(&key).as_deref(), Some("{\"id\":1,\"p\":1}"));
}

#[test]
fn a_flushed_redis_is_filled_again() {
    let mut world = World::new("flushed");
    products(&mut world, 100);
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    // What a restart without persistence takes away: the keys and the control key.
    let mut redis = Keyspace::open();
    redis.remove(&world.key_prefix("product"));
    let target = world.status(&sync, "target");
    redis.remove(&format!("pg_fanout:control:{target}"));
    pg_test::eventually("the keys are back", Duration::from_secs(40), || {
        redis.keys(&world.key_prefix("product")).len() == 100
    });
    assert_in_step(&mut world, &sync);
}

#[test]
fn a_hostile_domain_runs_as_nobody_but_the_owner() {
    let mut world = World::new("hostile");
    let (role, mut mallory) = world.role("mallory");
    world.db.exec(&format!("GRANT USAGE ON FOREIGN SERVER cache TO {role}; GRANT CREATE ON SCHEMA public TO {role}"));
    mallory.exec(
        "CREATE FUNCTION public.trap(v text) RETURNS boolean LANGUAGE plpgsql AS $$
         BEGIN
             BEGIN
                 PERFORM set_config('role', 'postgres', false);
                 EXECUTE format('ALTER ROLE %I SUPERUSER', current_setting('trap.role', true));
             EXCEPTION WHEN OTHERS THEN NULL; END;
             BEGIN
                 EXECUTE 'UPDATE fanout.sync SET owner = 10';
             EXCEPTION WHEN OTHERS THEN NULL; END;
             RETURN true;
         END $$;
         CREATE DOMAIN public.code AS text CHECK (public.trap(VALUE));
         CREATE TABLE public.gift (id public.code PRIMARY KEY, name text);
         INSERT INTO public.gift VALUES ('a', 'x')",
    );
    world.db.exec(&format!("ALTER DATABASE {} SET trap.role = '{role}'", world.database()));
    let key = format!("{}${{id}}", world.key_prefix("gift"));
    mallory.exec(&format!("SELECT fanout.cache_table('gift', server => 'cache', key => '{key}')"));
    mallory.exec("SELECT fanout.wait('gift', '30s')");
    mallory.exec("SELECT fanout.reconcile('gift')");
    mallory.exec("SELECT fanout.wait('gift', '30s')");
    assert_eq!(world.db.value(&format!("SELECT rolsuper FROM pg_roles WHERE rolname = '{role}'")), "f");
    assert_eq!(world.db.value("SELECT owner::text FROM fanout.sync"), role);
    mallory.exec("SELECT state, lag FROM fanout.status");
}

#[test]
fn a_row_that_cannot_be_read_is_a_dead_letter_and_its_neighbours_arrive() {
    let mut world = World::new("unreadable");
    // A cast to json is the user's own code that runs while a row is read.
    world.db.exec(
        "CREATE TYPE odd AS ENUM ('fine', 'broken');
         CREATE FUNCTION odd_json(o odd) RETURNS json LANGUAGE plpgsql AS $$
         BEGIN IF o = 'broken' THEN RAISE division_by_zero; END IF; RETURN to_json(1); END $$;
         CREATE CAST (odd AS json) WITH FUNCTION odd_json(odd);
         CREATE TABLE product (id int PRIMARY KEY, o odd);
         INSERT INTO product SELECT i, CASE i WHEN 77 THEN 'broken' ELSE 'fine' END::odd FROM generate_series(1, 300) AS i",
    );
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    let prefix = world.key_prefix("product");
    let keys = Keyspace::open().keys(&prefix);
    assert_eq!(keys.len(), 299, "all but the unreadable row");
    assert_eq!(world.db.value("SELECT id FROM fanout.dead_letters"), format!("{prefix}77"));
    world.db.exec("UPDATE product SET o = 'fine' WHERE id = 77");
    world.wait(&sync);
    assert_eq!(Keyspace::open().keys(&prefix).len(), 300);
}

#[test]
fn a_worker_starts_beside_a_sync_whose_table_is_gone() {
    let mut world = World::new("gone");
    products(&mut world, 10);
    let gone = world.cache_table("product", "");
    world.wait(&gone);
    world.db.exec("CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1); DROP TABLE product");
    world.end_worker();
    let sync = world.cache_table("other", "");
    assert_in_step(&mut world, &sync);
    assert_eq!(world.status(&gone, "state"), "blocked");
}

/// Else a trigger would capture for a name that is no sync's: what is written there would be missed, or the trigger left behind.
#[test]
fn of_a_relation_and_what_comes_at_the_same_time_neither_is_undone() {
    let mut world = World::new("race_related");
    products(&mut world, 30);
    world.db.exec(
        "CREATE TABLE review (id int PRIMARY KEY, product_id bigint REFERENCES product, stars int);
         INSERT INTO review SELECT i, i, 3 FROM generate_series(1, 30) AS i",
    );
    let query = "SELECT p.id, (SELECT sum(stars) FROM review WHERE product_id = p.id) AS stars FROM product p";
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'fanout%'";
    let make = |world: &mut World| {
        let sync = world.cache_table("product", &format!(", name => 'product', document => '{query}'"));
        world.wait(&sync);
    };
    let (relate, end) = ("SELECT fanout.related('product', 'review')", "SELECT fanout.drop_sync('product')");
    let rename = "SELECT fanout.alter_sync('product', name => 'other')";
    make(&mut world);
    is_refused(at_the_same_time(&mut world, relate, end));
    is_refused(at_the_same_time(&mut world, "SELECT fanout.drop_related('product', 'review')", rename));
    is_refused(at_the_same_time(&mut world, rename, relate));
    world.db.exec("SELECT fanout.related('other', 'review')");
    world.db.exec("UPDATE review SET stars = 5 WHERE id = 7");
    assert_in_step(&mut world, "other");
    world.db.exec("SELECT fanout.drop_sync('other')");
    assert_eq!(world.db.value(triggers), "0");
    make(&mut world);
    is_refused(at_the_same_time(&mut world, end, relate));
    assert_eq!(world.db.value(triggers), "0");
}

/// What the worker notes of a sync refers to its row, which whoever alters the sync has locked.
#[test]
fn what_is_stored_of_a_sync_waits_for_nobody_who_alters_it() {
    let mut world = World::new("stored_beside");
    world.db.exec("CREATE TABLE part (id int PRIMARY KEY, code text); INSERT INTO part VALUES (1, '1')");
    let sync = world.index_table("part", &Engine::opensearch(), r#", mapping => '{"code": {"type": "integer"}}'"#);
    assert_in_step(&mut world, &sync);
    let mut other = world.connect();
    other.exec(&format!("BEGIN; SELECT fanout.alter_sync('{sync}', backfill_rate => 100)"));
    world.db.exec("INSERT INTO part VALUES (2, 'none')");
    let letters = "SELECT count(*) FROM fanout.dead_letter";
    pg_test::eventually("it is a dead letter", Duration::from_secs(10), || world.db.value(letters) == "1");
    other.exec("ROLLBACK");
}
