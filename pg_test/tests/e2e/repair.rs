//! Targets that somebody else changed, and the ways to put them right.

use crate::tables::products;
use pg_test::{Engine, Keyspace, World, assert_in_step, differences, eventually, on_each_engine};
use serde_json::json;
use std::time::Duration;

on_each_engine!(
    enqueue_delivers_what_was_lost,
    reconcile_repairs_all_that_differs,
    resync_rebuilds_the_index,
    a_hand_made_trigger_feeds_a_sync,
    a_document_of_a_later_version_is_no_obstacle,
    a_reconcile_that_is_interrupted_forgets_nothing
);

fn enqueue_delivers_what_was_lost(world: &mut World, engine: &Engine) {
    products(world, 20);
    let index = world.index_name("product");
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    for id in [3, 4, 5] {
        engine.ask("DELETE", &format!("/{index}/_doc/{id}"), None);
    }
    engine.refresh(&index);
    assert_eq!(differences(world, &sync).len(), 3);
    world.db.exec(&format!("SELECT fanout.enqueue('{sync}', '3')"));
    world.db.exec(&format!("SELECT fanout.enqueue_keys('{sync}', ARRAY['4', '5', '777'])"));
    assert_in_step(world, &sync);
}

fn reconcile_repairs_all_that_differs(world: &mut World, engine: &Engine) {
    products(world, 2000);
    let index = world.index_name("product");
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    engine.ask("DELETE", &format!("/{index}/_doc/3"), None);
    engine.ask("PUT", &format!("/{index}/_doc/77777"), Some(json!({"id": 77777, "name": "planted"})));
    // What a lost change leaves behind.
    engine.ask("PUT", &format!("/{index}/_doc/10"), Some(json!({"id": 10, "name": "stale"})));
    engine.ask("PUT", &format!("/{index}/_doc/88888"), Some(json!({"id": 88888, "name": "of a row that is gone"})));
    engine.refresh(&index);
    assert_eq!(differences(world, &sync).len(), 4);
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    in_step_soon(world, &sync);
}

/// For what goes on after the statement that asked for it, whatever `fanout.wait()` promises about it.
fn in_step_soon(world: &mut World, sync: &str) {
    eventually("everything is in step", Duration::from_secs(60), || {
        world.try_wait(sync, "60s").is_ok() && differences(world, sync).is_empty()
    });
    assert_in_step(world, sync);
}

fn resync_rebuilds_the_index(world: &mut World, engine: &Engine) {
    products(world, 500);
    let index = world.index_name("product");
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    let before = engine.indices(&index);
    engine.ask("PUT", &format!("/{index}/_doc/77777"), Some(json!({"id": 77777, "name": "planted"})));
    world.db.exec(&format!("SELECT fanout.resync('{sync}')"));
    world.db.exec("UPDATE product SET name = 'during' WHERE id < 100; DELETE FROM product WHERE id > 450");
    in_step_soon(world, &sync);
    eventually("only the new index is left", Duration::from_secs(30), || {
        let now = engine.indices(&index);
        now.len() == 1 && now != before
    });
    assert_in_step(world, &sync);
}

fn a_hand_made_trigger_feeds_a_sync(world: &mut World, engine: &Engine) {
    products(world, 20);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    world.db.exec(
        "DO $$ DECLARE t name; BEGIN
             FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'product'::regclass LOOP
                 EXECUTE format('DROP TRIGGER %I ON product', t);
             END LOOP;
         END $$",
    );
    world.db.exec(&format!(
        "CREATE TRIGGER by_hand AFTER INSERT OR UPDATE OR DELETE ON product
         FOR EACH ROW EXECUTE FUNCTION fanout.capture('{sync}')"
    ));
    world.db.exec("UPDATE product SET name = 'by hand' WHERE id < 5; DELETE FROM product WHERE id = 6");
    assert_in_step(world, &sync);
}

/// What a clock that was set back leaves behind: the target says 409, and 409 is no success.
fn a_document_of_a_later_version_is_no_obstacle(world: &mut World, engine: &Engine) {
    products(world, 20);
    let index = world.index_name("product");
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    // A year ahead of microseconds since 1970.
    let version: u64 = world
        .db
        .value("SELECT (extract(epoch FROM now() + interval '1 year') * 1e6)::bigint")
        .parse()
        .expect("a number");
    for id in [3, 4] {
        let path = format!("/{index}/_doc/{id}?version={version}&version_type=external_gte");
        engine.ask("PUT", &path, Some(json!({"id": id, "name": "from the future"})));
    }
    world.db.exec("UPDATE product SET name = 'now' WHERE id = 3; DELETE FROM product WHERE id = 4");
    assert_in_step(world, &sync);
    world.db.exec("UPDATE product SET name = 'later' WHERE id = 3; INSERT INTO product (id, name) VALUES (4, 'again')");
    assert_in_step(world, &sync);
}

/// What has to go is known only from the target's ids. A worker that ends between having listed and having deleted them
/// must list them again.
fn a_reconcile_that_is_interrupted_forgets_nothing(world: &mut World, engine: &Engine) {
    products(world, 100);
    let index = world.index_name("product");
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    // The ids can be listed, but nothing can be deleted.
    let block = |on: bool| engine.ask("PUT", &format!("/{index}/_settings"), Some(json!({"index.blocks.write": on})));
    for id in 90_000..90_020 {
        engine.ask("PUT", &format!("/{index}/_doc/{id}"), Some(json!({"id": id, "name": "planted"})));
    }
    block(true);
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    eventually("the engine has refused a deletion", Duration::from_secs(20), || {
        world.status(&sync, "last_error") != "NULL"
    });
    // However long one looks: what is not deleted is not done.
    let phase = format!("SELECT phase FROM fanout.sync WHERE name = '{sync}'");
    for _ in 0..50 {
        assert_eq!(world.db.value(&phase), "reconcile");
        std::thread::sleep(Duration::from_millis(20));
    }
    world.end_worker();
    block(false);
    in_step_soon(world, &sync);
}

#[test]
fn reconcile_repairs_a_cache() {
    let mut world = World::new("reconcile_cache");
    products(&mut world, 500);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    let prefix = world.key_prefix("product");
    let mut redis = Keyspace::open();
    redis.set(&format!("{prefix}77777"), r#"{"id":77777}"#);
    redis.set(&format!("{prefix}3"), r#"{"id":3,"name":"stale"}"#);
    redis.clean(&format!("{prefix}44"));
    assert!(!differences(&mut world, &sync).is_empty());
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    in_step_soon(&mut world, &sync);
}
