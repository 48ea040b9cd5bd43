//! Logical replication: what a publisher's subscribers see of the extension, and a subscriber that has it.

use crate::tables::{more_products, products};
use pg_test::{Engine, Second, World, assert_in_step, eventually};
use std::time::Duration;

/// A server that may publish.
fn publisher() -> Second {
    Second::new(&["wal_level=logical"], &[])
}

/// A subscription of this world to a database of the publisher; the table must be there.
fn subscribe(world: &mut World, publisher: &Second, database: &str, publication: &str) {
    world.db.exec(&format!(
        "CREATE SUBSCRIPTION {} CONNECTION 'host=127.0.0.1 port={} dbname={database} user=postgres' PUBLICATION {publication}",
        world.tag,
        publisher.port()
    ));
}

/// Before the database goes: a subscription holds a slot at the publisher.
fn unsubscribe(world: &mut World) {
    world.db.exec(&format!("DROP SUBSCRIPTION {}", world.tag));
}

const ROWS: &str = "SELECT md5(string_agg(p::text, ';' ORDER BY id)) FROM product p";

/// Waits until the subscriber has the rows of the publisher.
fn assert_replicated(from: &mut World, to: &mut World) {
    let rows = from.db.value(ROWS);
    eventually("the subscriber has the publisher's rows", Duration::from_secs(30), || to.db.value(ROWS) == rows);
}

#[test]
fn a_subscriber_without_the_extension_goes_on() {
    let server = publisher();
    let mut from = World::on(&server, "publisher");
    let mut to = World::bare("subscriber");
    products(&mut from, 500);
    products(&mut to, 0);
    let sync = from.cache_table("product", "");
    assert_in_step(&mut from, &sync);
    from.db.exec("CREATE PUBLICATION shop FOR TABLES IN SCHEMA public");
    subscribe(&mut to, &server, &from.database(), "shop");
    assert_replicated(&mut from, &mut to);
    // What the worker keeps in its tables, and what is captured, is in the same WAL.
    from.db.exec("UPDATE product SET price = 1; DELETE FROM product WHERE id % 7 = 0");
    from.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    from.db.exec("UPDATE product SET name = 'later' WHERE id < 50");
    assert_in_step(&mut from, &sync);
    assert_replicated(&mut from, &mut to);
    assert!(!server.log().contains("ERROR:"), "{}", server.log());
    unsubscribe(&mut to);
}

#[test]
fn a_journal_is_not_published_though_all_tables_are() {
    let server = publisher();
    let mut world = World::on(&server, "all_tables");
    products(&mut world, 10);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    world.db.exec("CREATE PUBLICATION everything FOR ALL TABLES");
    world.db.exec("SELECT pg_create_logical_replication_slot('s', 'test_decoding')");
    world.db.exec("UPDATE product SET price = 1; DELETE FROM product WHERE id = 7");
    assert_in_step(&mut world, &sync);
    println!("{:#?}", world.db.column("SELECT data FROM pg_logical_slot_get_changes('s', NULL, NULL)"));
    println!("{:#?}", world.db.column("SELECT tablename FROM pg_publication_tables"));
    let mut to = World::bare("subscriber");
    products(&mut to, 0);
    println!(
        "{:?}",
        to.db.try_exec(&format!(
            "CREATE SUBSCRIPTION {} CONNECTION 'host=127.0.0.1 port={} dbname={} user=postgres' PUBLICATION everything",
            to.tag,
            server.port(),
            world.database()
        ))
    );
    to.db.exec("CREATE SCHEMA fanout; CREATE TABLE fanout.sync (sync_id int primary key)");
    panic!("look");
}

#[test]
fn what_an_apply_worker_writes_is_captured() {
    let server = publisher();
    let mut from = World::on(&server, "published");
    let mut to = World::new("applied");
    for world in [&mut from, &mut to] {
        products(world, 0);
        world.db.exec("ALTER TABLE product DROP CONSTRAINT product_pkey, ADD PRIMARY KEY (id, active)");
        world.db.exec("ALTER TABLE product REPLICA IDENTITY FULL");
    }
    // The first rows come by the COPY of a worker of its own, which has no replica role.
    more_products(&mut from, 1, 300);
    from.db.exec("CREATE PUBLICATION shop FOR TABLE product");
    let key = format!("{}${{id}}:${{active}}", to.key_prefix("product"));
    let syncs = [
        to.index_table("product", &Engine::opensearch(), ", name => 'os'"),
        to.index_table("product", &Engine::elasticsearch(), ", name => 'es'"),
        to.cache_table_by("product", &key, ", name => 'redis'"),
    ];
    subscribe(&mut to, &server, &from.database(), "shop");
    assert_replicated(&mut from, &mut to);
    for sync in &syncs {
        assert_in_step(&mut to, sync);
    }
    let copied = to.db.value("SELECT count(*) FROM product");
    assert_eq!(copied, "300");
    for round in 1..=3 {
        more_products(&mut from, 1000 * round, 1000 * round + 50);
        from.db.exec(&format!(
            "UPDATE product SET name = 'round {round}', price = {round} WHERE id % 3 = 0;
             UPDATE product SET active = NOT active WHERE id % 10 = {round};
             UPDATE product SET id = -id WHERE id = {round};
             DELETE FROM product WHERE id % 11 = {round}"
        ));
        assert_replicated(&mut from, &mut to);
        for sync in &syncs {
            assert_in_step(&mut to, sync);
        }
    }
    from.db.exec("TRUNCATE product");
    more_products(&mut from, 1, 5);
    assert_replicated(&mut from, &mut to);
    for sync in &syncs {
        assert_in_step(&mut to, sync);
        assert_eq!(to.status(sync, "dead_letters"), "0");
    }
    unsubscribe(&mut to);
}
