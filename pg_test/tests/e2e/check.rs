//! `fanout.check()`: says what is wrong, and what to do.

use crate::tables::products;
use pg_test::{Engine, World, on_each_engine};
use serde_json::json;

on_each_engine!(nothing_is_wrong_with_a_sync_that_works, what_is_wrong_with_an_index_is_found);

/// Findings that are not ok, as "item status detail".
fn findings(world: &mut World) -> Vec<String> {
    let sql = "SELECT item || ' ' || status || ' ' || detail FROM fanout.check() WHERE status <> 'ok' ORDER BY 1";
    world.db.column(sql)
}

/// Asserts that there is a finding that begins so and has a hint.
fn found(world: &mut World, beginning: &str) {
    let findings = findings(world);
    assert!(findings.iter().any(|finding| finding.starts_with(beginning)), "{beginning} is not in {findings:#?}");
    let hints = world.db.value("SELECT count(*) FROM fanout.check() WHERE status <> 'ok' AND hint IS NULL");
    assert_eq!(hints, "0", "{findings:#?}");
}

fn nothing_is_wrong_with_a_sync_that_works(world: &mut World, engine: &Engine) {
    products(world, 20);
    let sync = world.index_table("product", engine, "");
    let cache = world.cache_table("product", "");
    world.wait(&sync);
    world.wait(&cache);
    assert_eq!(findings(world), Vec::<String>::new());
    let items = world.db.column(&format!("SELECT DISTINCT item FROM fanout.check('{sync}')"));
    for item in
        ["library", "worker", "journal", "source", "triggers", "reading", "server", "control", "index", "mapping"]
    {
        assert!(items.iter().any(|found| found == item), "{item} is not in {items:?}");
    }
}

fn what_is_wrong_with_an_index_is_found(world: &mut World, engine: &Engine) {
    products(world, 20);
    let sync = world.index_table("product", engine, "");
    world.wait(&sync);
    let index = world.index_name("product");
    let concrete = format!("{index}-fanout-1");
    world.db.exec("ALTER TABLE product ADD COLUMN colour text");
    found(world, "mapping warning the index has other fields than the source: colour is missing");
    let set = |name: &str, value: serde_json::Value| {
        engine.ask("PUT", &format!("/{concrete}/_settings"), Some(json!({ name: value })));
    };
    set("index.refresh_interval", json!("-1"));
    found(world, "refresh warning");
    set("index.blocks.write", json!(true));
    found(world, "index error");
    set("index.blocks.write", json!(null));
    engine.ask("POST", "/_aliases", Some(json!({"actions": [{"remove": {"index": concrete, "alias": index}}]})));
    found(world, "index error the alias");
    engine.ask("DELETE", &format!("/{concrete}"), None);
    found(world, "index error");
}

#[test]
fn what_is_wrong_within_the_database_is_found() {
    let mut world = World::new("check_database");
    products(&mut world, 20);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    let trigger =
        world.db.value("SELECT tgname FROM pg_trigger WHERE tgrelid = 'product'::regclass AND tgtype & 1 = 1");
    world.db.exec(&format!("ALTER TABLE product DISABLE TRIGGER {trigger}"));
    found(&mut world, "triggers error");
    world.db.exec(&format!("ALTER TABLE product ENABLE TRIGGER {trigger}"));
    found(&mut world, "triggers error");
    world.db.exec(&format!("DROP TRIGGER {trigger} ON product"));
    found(&mut world, "triggers error");
    // What the hint says puts it right.
    world.db.exec(&format!("UPDATE product SET price = 77; SELECT fanout.adopt('{sync}')"));
    pg_test::assert_in_step(&mut world, &sync);
    assert_eq!(findings(&mut world), Vec::<String>::new());
    world.db.exec(&format!("SELECT fanout.pause('{sync}')"));
    found(&mut world, "state warning paused");
    world.db.exec(&format!("SELECT fanout.resume('{sync}')"));
    world.db.exec("DROP TABLE product");
    found(&mut world, "source error the table was dropped");
}

#[test]
fn an_owner_that_cannot_read_any_more_is_found() {
    let mut world = World::new("check_rights");
    let (role, mut session) = world.role("maker");
    products(&mut world, 5);
    world
        .db
        .exec(&format!("GRANT SELECT, TRIGGER ON product TO {role}; GRANT USAGE ON FOREIGN SERVER search TO {role}"));
    let index = world.index_name("product");
    let sync = session.value(&format!("SELECT fanout.index_table('product', server => 'search', index => '{index}')"));
    world.wait(&sync);
    assert_eq!(findings(&mut world), Vec::<String>::new());
    world.db.exec(&format!("REVOKE SELECT ON product FROM {role}"));
    found(&mut world, "reading error");
    world.db.exec(&format!("REVOKE USAGE ON FOREIGN SERVER search FROM {role}"));
    found(&mut world, "server error");
    // Another role sees nothing of it, pg_monitor what concerns PostgreSQL.
    let (visitor, mut other) = world.role("visitor");
    assert_eq!(other.refusal(&format!("SELECT * FROM fanout.check('{sync}')")).code, "42501");
    assert_eq!(other.value("SELECT count(*) FROM fanout.check() WHERE object LIKE 'sync %'"), "0");
    world.db.exec(&format!("GRANT pg_monitor TO {visitor}"));
    let items = other.column(&format!("SELECT item FROM fanout.check('{sync}') WHERE object LIKE 'sync %'"));
    assert_eq!(other.value("SELECT count(*) FROM fanout.sync"), "1");
    assert_eq!(other.value("SELECT count(*) FROM fanout.status"), "1");
    assert!(items.contains(&"triggers".to_owned()) && !items.contains(&"reading".to_owned()), "{items:?}");
}

#[test]
fn a_target_that_is_not_there_is_found() {
    let mut world = World::new("check_target");
    products(&mut world, 5);
    world.db.exec(
        "CREATE SERVER gone FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'http://127.0.0.1:1');
         CREATE SERVER nowhere FOREIGN DATA WRAPPER fanout_redis OPTIONS (url 'redis://127.0.0.1:1')",
    );
    world.db.exec("SELECT fanout.index_table('product', server => 'gone', name => 'a')");
    world.db.exec("SELECT fanout.cache_table('product', server => 'nowhere', key => 'p:${id}', name => 'b')");
    for sync in ["a", "b"] {
        let found = world.db.column(&format!("SELECT status FROM fanout.check('{sync}') WHERE item = 'server'"));
        assert_eq!(found, ["error"], "{sync}");
    }
}
