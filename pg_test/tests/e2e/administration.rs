//! The functions of schema `fanout`: what they refuse, and what they tell.

use crate::tables::{more_products, products};
use pg_test::{Engine, World, assert_in_step, differences, eventually, on_each_engine};
use std::time::{Duration, Instant};

on_each_engine!(
    pause_holds_back_and_resume_delivers,
    drop_sync_leaves_the_index_where_it_is,
    drop_sync_takes_the_index_along_if_told_to
);

#[test]
fn a_second_sync_of_the_same_name_or_target_is_refused() {
    let mut world = World::new("duplicates");
    products(&mut world, 1);
    let index = world.index_name("product");
    let sync = world.index_table("product", &Engine::opensearch(), "");
    let again =
        format!("SELECT fanout.index_table('product', server => 'search', index => '{index}', name => 'other')");
    assert_eq!(world.db.refusal(&again).code, "42710");
    let again =
        format!("SELECT fanout.index_table('product', server => 'search', index => '{index}2', name => '{sync}')");
    assert_eq!(world.db.refusal(&again).code, "42710");
}

#[test]
fn a_sync_that_is_rolled_back_leaves_nothing() {
    let mut world = World::new("rolled_back_sync");
    products(&mut world, 10);
    let engine = Engine::opensearch();
    world.db.exec("BEGIN");
    world.index_table("product", &engine, ", name => 'never'");
    world.db.exec("UPDATE product SET price = 1; ROLLBACK");
    // Another sync has come all the way: the worker would have seen the first one by now.
    let cache = world.cache_table("product", "");
    assert_in_step(&mut world, &cache);
    assert!(!engine.exists(&world.index_name("product")));
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.status"), "1");
}

#[test]
fn a_sync_and_writes_in_one_transaction_work() {
    let mut world = World::new("one_transaction");
    products(&mut world, 10);
    world.db.exec("BEGIN");
    world.db.exec("INSERT INTO product (id, name) VALUES (100, 'before')");
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.db.exec("INSERT INTO product (id, name) VALUES (101, 'after'); DELETE FROM product WHERE id = 1; COMMIT");
    assert_in_step(&mut world, &sync);
}

#[test]
fn wait_is_refused_where_it_would_wait_for_itself() {
    let mut world = World::new("wait_in_transaction");
    products(&mut world, 10);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    world.db.exec("BEGIN; UPDATE product SET price = 1");
    let begun = Instant::now();
    let refusal = world.db.refusal(&format!("SELECT fanout.wait('{sync}', '60s')"));
    assert!(begun.elapsed() < Duration::from_secs(5), "at once, not after a timeout");
    assert!(!refusal.hint.is_empty() && !refusal.code.starts_with("XX"), "{refusal}");
    world.db.exec("ROLLBACK");
    // Reading before it is no harm.
    world.db.exec("BEGIN; SELECT count(*) FROM product");
    world.wait(&sync);
    world.db.exec("COMMIT");
}

#[test]
fn wait_gives_up_after_its_timeout() {
    let mut world = World::new("wait_timeout");
    products(&mut world, 10);
    world.db.exec("CREATE SERVER gone FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'http://127.0.0.1:1')");
    world.db.exec("SELECT fanout.index_table('product', server => 'gone')");
    let begun = Instant::now();
    let refusal = world.try_wait("product", "500ms").expect_err("nobody listens there");
    assert!(begun.elapsed() >= Duration::from_millis(500) || refusal.code != "57014", "{refusal}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(!refusal.code.starts_with("XX"), "{refusal}");
}

fn pause_holds_back_and_resume_delivers(world: &mut World, engine: &Engine) {
    products(world, 100);
    let sync = world.index_table("product", engine, "");
    let cache = world.cache_table("product", "");
    assert_in_step(world, &sync);
    world.db.exec(&format!("SELECT fanout.pause('{sync}')"));
    world.db.exec(
        "UPDATE product SET price = 99; DELETE FROM product WHERE id > 90; UPDATE product SET id = 1000 WHERE id = 1",
    );
    // The other sync of the table goes on, and shows that the worker has read the changes.
    assert_in_step(world, &cache);
    assert_eq!(differences(world, &sync).len(), 101, "a paused sync delivers nothing");
    assert!(world.try_wait(&sync, "2s").is_err(), "a paused sync can't be waited for");
    world.db.exec(&format!("SELECT fanout.resume('{sync}')"));
    assert_in_step(world, &sync);
}

fn drop_sync_leaves_the_index_where_it_is(world: &mut World, engine: &Engine) {
    products(world, 10);
    let index = world.index_name("product");
    let sync = world.index_table("product", engine, "");
    world.wait(&sync);
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}')"));
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.status"), "0");
    assert_eq!(world.db.value("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'product'::regclass"), "0");
    more_products(world, 11, 20);
    // Another sync comes all the way, so the worker has read these rows, and the index is as it was.
    let cache = world.cache_table("product", "");
    assert_in_step(world, &cache);
    engine.refresh(&index);
    assert_eq!(engine.documents(&index).len(), 10);
}

fn drop_sync_takes_the_index_along_if_told_to(world: &mut World, engine: &Engine) {
    products(world, 10);
    let index = world.index_name("product");
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}', drop_target => true)"));
    eventually("the index is removed", Duration::from_secs(20), || !engine.exists(&index));
    eventually("the sync is gone", Duration::from_secs(20), || {
        world.db.value("SELECT count(*) FROM fanout.sync") == "0"
    });
    // In the middle of a resync there are two, and it is the old one that is searched.
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    let drop = format!("SELECT fanout.drop_sync('{sync}', drop_target => true)");
    world.db.exec(&format!("BEGIN; SELECT fanout.resync('{sync}'); SELECT fanout.resync('{sync}'); {drop}; COMMIT"));
    eventually("the sync is gone", Duration::from_secs(20), || {
        world.db.value("SELECT count(*) FROM fanout.sync") == "0"
    });
    assert_eq!(engine.indices(&format!("{index}-fanout-")), Vec::<String>::new());
    assert!(!engine.exists(&index));
}

#[test]
fn status_tells_how_a_sync_stands() {
    let mut world = World::new("status");
    products(&mut world, 1234);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    for (column, expected) in [
        ("kind", "index"),
        ("source::text", "product"),
        ("server", "search"),
        ("state", "live"),
        ("pending", "0"),
        ("dead_letters", "0"),
        ("last_error", "NULL"),
    ] {
        assert_eq!(world.status(&sync, column), expected, "{column}");
    }
    let delivered: i64 = world.status(&sync, "delivered").parse().expect("a number");
    assert!(delivered >= 1234, "{delivered}");
    assert_eq!(world.db.value(&format!("SELECT lag < '10 seconds' FROM fanout.status WHERE sync = '{sync}'")), "t");
}

#[test]
fn a_publication_of_all_tables_is_no_hindrance() {
    let mut world = World::new("publication");
    products(&mut world, 50);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    assert_in_step(&mut world, &sync);
    // From now on an UPDATE or DELETE of a table without a key is an error, ours as well.
    world.db.exec("CREATE PUBLICATION everything FOR ALL TABLES");
    world.db.exec("UPDATE product SET price = 1; DELETE FROM product WHERE id = 7");
    assert_in_step(&mut world, &sync);
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    assert_in_step(&mut world, &sync);
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}')"));
}

#[test]
fn every_object_has_a_comment() {
    let mut world = World::new("comments");
    let missing = world.db.column(
        "SELECT pg_describe_object(classid, objid, 0)
         FROM pg_depend
         WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
           AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fanout')
           AND classid IN ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_foreign_data_wrapper'::regclass)
           AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = objid AND c.relkind IN ('S', 'i', 't'))
           AND obj_description(objid, classid::regclass::text) IS NULL
         ORDER BY 1",
    );
    assert!(missing.is_empty(), "{missing:#?}");
}

/// What says whose a target is goes with it: another database may have the name at once.
#[test]
fn a_target_that_is_dropped_is_free_for_others() {
    let mut world = World::new("free_again");
    products(&mut world, 5);
    let index = world.index_name("product");
    for engine in [Engine::opensearch(), Engine::elasticsearch()] {
        let sync = world.index_table("product", &engine, "");
        world.wait(&sync);
        world.db.exec(&format!("SELECT fanout.drop_sync('{sync}', drop_target => true)"));
        pg_test::eventually("the sync is gone", std::time::Duration::from_secs(30), || {
            world.db.value("SELECT count(*) FROM fanout.sync") == "0"
        });
        assert!(!engine.exists(&index));
        let (status, _) = engine.request("GET", &format!("/pg_fanout_control/_doc/{index}"), None);
        assert_eq!(status, 404, "the control document is gone");
    }
}
