//! Logical replication: what a publisher's subscribers see of the extension, and a subscriber that has it.

use crate::tables::{more_products, products};
use pg_test::{Engine, Second, Session, World, assert_in_step, eventually};
use std::time::Duration;

/// A server that may publish.
fn publisher() -> Second {
    Second::new(&format!("publisher_{:08x}", fastrand::u32(..)), &["wal_level=logical"], &[])
}

/// A subscription, gone with this: neither database can be dropped before. So it is made after both worlds.
struct Subscription {
    name: String,
    session: Session,
}

impl Subscription {
    /// To a database of the publisher. The tables must be there.
    fn make(world: &World, publisher: &Second, database: &str, publication: &str) -> Self {
        let mut session = world.connect();
        session.exec(&create(&world.tag, publisher, database, publication));
        Self { name: world.tag.clone(), session }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let _ = self.session.try_exec(&format!("DROP SUBSCRIPTION {}", self.name));
    }
}

fn create(name: &str, publisher: &Second, database: &str, publication: &str) -> String {
    let port = publisher.port();
    format!(
        "CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1 port={port} dbname={database} user=postgres'
         PUBLICATION {publication}"
    )
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
    let _subscription = Subscription::make(&to, &server, &from.database(), "shop");
    assert_replicated(&mut from, &mut to);
    // What the worker keeps in its tables, and what is captured, is in the same WAL.
    from.db.exec("UPDATE product SET price = 1; DELETE FROM product WHERE id % 7 = 0");
    from.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    from.db.exec("UPDATE product SET name = 'later' WHERE id < 50");
    assert_in_step(&mut from, &sync);
    assert_replicated(&mut from, &mut to);
    assert!(!server.log().contains("ERROR:"), "{}", server.log());
}

/// A subscription has these tables, copied and ready, thus none of ours.
fn assert_none_of_ours(to: &mut World, tables: &str) {
    let sql = "SELECT string_agg(concat_ws(' ', srrelid::regclass, srsubstate), ', ' ORDER BY srrelid::regclass::text)
               FROM pg_subscription_rel";
    eventually("the first copies are made", Duration::from_secs(30), || to.db.value(sql) == tables);
}

/// PostgreSQL publishes the tables of every extension then: the subscriber leaves them out.
#[test]
fn all_tables_are_for_subscribers_that_have_the_extension() {
    let server = publisher();
    let mut from = World::on(&server, "all_tables");
    let mut to = World::new("all_tables_subscriber");
    products(&mut from, 50);
    let sync = from.cache_table("product", "");
    assert_in_step(&mut from, &sync);
    products(&mut to, 0);
    let own = to.cache_table("product", "");
    assert_in_step(&mut to, &own);
    from.db.exec("CREATE PUBLICATION everything FOR ALL TABLES");
    from.db.exec("SELECT pg_create_logical_replication_slot('seen', 'test_decoding')");
    let mut without = World::bare("all_tables_without");
    products(&mut without, 0);
    let refused = without.db.refusal(&create(&without.tag, &server, &from.database(), "everything"));
    assert_eq!(refused.message, "schema \"fanout\" does not exist");
    // Rows with the keys of rows over there: what comes from there must neither meet nor change nor remove them.
    let letter = |reason: &str, address: u32| {
        format!(
            "INSERT INTO fanout.dead_letter (sync_id, address, document_id, reason)
             SELECT sync_id, '\\x0{address}', 'by hand', '{reason}' FROM fanout.sync"
        )
    };
    for address in 1..=3 {
        to.db.exec(&letter("own", address));
    }
    from.db.exec(&letter("of the publisher", 1));
    let letters = "SELECT string_agg(reason || encode(address, 'hex'), ' ' ORDER BY address) FROM fanout.dead_letter";
    let numbers = "SELECT array_agg(sync_id ORDER BY sync_id) FROM fanout.sync";
    assert_eq!(from.db.value(numbers), to.db.value(numbers), "both have the same number");
    let subscription = Subscription::make(&to, &server, &from.database(), "everything");
    for round in 0..3 {
        from.db.exec(&format!("UPDATE product SET price = {round}; DELETE FROM product WHERE id = {round} + 7"));
        from.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
        assert_in_step(&mut from, &sync);
        assert_replicated(&mut from, &mut to);
        assert_in_step(&mut to, &own);
    }
    assert_none_of_ours(&mut to, "product r");
    // All that can become of a row, and of a table.
    from.db.exec(&letter("of the publisher", 2));
    from.db.exec("UPDATE fanout.dead_letter SET reason = 'of the publisher, changed'");
    from.db.exec("DELETE FROM fanout.dead_letter WHERE address = '\\x02'");
    from.db.exec("UPDATE fanout.sync SET note = 'of the publisher'; UPDATE fanout.clock SET reserved = reserved + 1");
    from.db.exec("TRUNCATE fanout.dead_letter");
    from.db.exec(&letter("of the publisher", 4));
    // A table that comes later is taken up, and ours are not.
    for world in [&mut from, &mut to] {
        world.db.exec("CREATE TABLE shelf (id int PRIMARY KEY)");
    }
    from.db.exec("INSERT INTO shelf SELECT generate_series(1, 10)");
    // As it is where the library was not preloaded, or another version, when the subscription was made.
    to.db.exec(&format!(
        "INSERT INTO pg_subscription_rel SELECT oid, 'fanout.dead_letter'::regclass, 'r' FROM pg_subscription
         WHERE subname = '{}'",
        subscription.name
    ));
    for step in ["REFRESH PUBLICATION", "DISABLE", "ENABLE"] {
        to.db.exec(&format!("ALTER SUBSCRIPTION {} {step}", subscription.name));
    }
    from.db.exec("INSERT INTO shelf VALUES (11); UPDATE product SET price = 77");
    assert_none_of_ours(&mut to, "product r, shelf r");
    assert_replicated(&mut from, &mut to);
    assert_eq!(to.db.value("SELECT count(*) FROM shelf"), "11");
    assert_in_step(&mut to, &own);
    assert_eq!(to.db.value(letters), "own01 own02 own03");
    assert_eq!(to.db.value("SELECT count(*) FROM fanout.sync WHERE note IS NULL"), "1");
    assert_eq!(to.db.value("SELECT count(*) FROM fanout.pending"), "0");
    let reserved = "SELECT reserved FROM fanout.clock";
    assert_ne!(to.db.value(reserved), from.db.value(reserved));
    let failed = format!(
        "SELECT apply_error_count + sync_error_count FROM pg_stat_subscription_stats WHERE subname = '{}'",
        to.tag
    );
    assert_eq!(to.db.value(&failed), "0");
    // Captured keys are in nobody's stream.
    let seen = from.db.column("SELECT data FROM pg_logical_slot_get_changes('seen', NULL, NULL)");
    assert!(seen.iter().any(|it| it.contains("table public.product: DELETE")));
    assert!(seen.iter().any(|it| it.contains("table fanout.dead_letter: TRUNCATE")), "{seen:?}");
    assert!(!seen.iter().any(|it| it.contains("fanout.journal")), "{seen:?}");
}

/// As with any table that the subscriber lacks; docs/operations.md says so, and what to do.
#[test]
fn an_extension_made_on_a_publisher_of_all_tables_is_made_on_the_subscriber_first() {
    let server = publisher();
    let mut from = World::on(&server, "made_later");
    from.db.exec("DROP EXTENSION pg_fanout CASCADE; CREATE PUBLICATION everything FOR ALL TABLES");
    let mut to = World::bare("made_first");
    products(&mut from, 10);
    products(&mut to, 0);
    let subscription = Subscription::make(&to, &server, &from.database(), "everything");
    assert_replicated(&mut from, &mut to);
    from.db.exec("CREATE EXTENSION pg_fanout; UPDATE product SET price = 1");
    let complaints = format!(
        "SELECT apply_error_count FROM pg_stat_subscription_stats WHERE subname = '{}' AND apply_error_count > 0",
        to.tag
    );
    eventually("the subscriber misses a table", Duration::from_secs(30), || to.db.rows(&complaints).len() == 1);
    assert_ne!(to.db.value(ROWS), from.db.value(ROWS));
    // Made there too it goes on where it stopped, and keeps its own.
    to.db.exec("CREATE EXTENSION pg_fanout");
    assert_replicated(&mut from, &mut to);
    to.db.exec(&format!("ALTER SUBSCRIPTION {} REFRESH PUBLICATION", subscription.name));
    assert_none_of_ours(&mut to, "product r");
    assert_eq!(to.db.value("SELECT count(*) FROM fanout.sync"), "0");
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
    let _subscription = Subscription::make(&to, &server, &from.database(), "shop");
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
}
