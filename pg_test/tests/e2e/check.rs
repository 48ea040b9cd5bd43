//! `fanout.check()`: says what is wrong, and what to do.

use crate::refusals::refused;
use crate::tables::products;
use pg_test::{Engine, OldEngine, Setting, World, assert_in_step, eventually, on_each_engine};
use serde_json::{Value, json};
use std::time::Duration;

on_each_engine!(
    nothing_is_wrong_with_a_sync_that_works,
    what_is_wrong_with_an_index_is_found,
    each_argument_shows_in_the_mapping,
);

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
    // Paused: the worker would add it before anybody looks.
    world.db.exec(&format!("SELECT fanout.pause('{sync}'); ALTER TABLE product ADD COLUMN colour text"));
    found(world, "mapping warning the index has other fields than the source: colour is missing");
    // The worker adds it by itself.
    let hint = "SELECT hint FROM fanout.check() WHERE item = 'mapping' AND status <> 'ok'";
    assert!(world.db.column(hint).iter().all(|hint| !hint.contains("resync")));
    world.db.exec(&format!("SELECT fanout.resume('{sync}')"));
    world.db.exec("INSERT INTO product (id, name, colour) VALUES (99, 'n', 'red')");
    assert_in_step(world, &sync);
    assert_eq!(findings(world), Vec::<String>::new());
    // What it has as something else, it cannot.
    world.db.exec("ALTER TABLE product ALTER COLUMN colour TYPE int USING 1");
    found(world, "mapping warning the index has other fields than the source: colour is text instead of integer");
    assert!(world.db.value(hint).contains("fanout.resync"));
    world.db.exec("ALTER TABLE product DROP COLUMN colour");
    assert_in_step(world, &sync);
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

#[test]
fn a_backlog_and_settings_that_do_not_fit_are_found() {
    let mut world = World::alone("check_backlog");
    products(&mut world, 2000);
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    let backlog = Setting::set(&mut world, "fanout.backlog_keys", "1000");
    found(&mut world, "settings warning fanout.pending_keys (250000) is above fanout.backlog_keys (1000)");
    world.db.exec(&format!("SELECT fanout.pause('{sync}')"));
    world.db.exec("UPDATE product SET price = 1 WHERE id <= 900");
    eventually("the worker has read the changes", Duration::from_secs(10), || world.status(&sync, "pending") == "900");
    found(&mut world, "backlog error 900 keys are pending; past 1000 (fanout.backlog_keys) they are dropped");
    drop(backlog);
    eventually("the bound is the default again", Duration::from_secs(10), || {
        findings(&mut world).iter().all(|finding| !finding.starts_with("settings"))
    });
    // As long as it is young it is no finding.
    assert!(findings(&mut world).iter().all(|finding| !finding.starts_with("backlog")));
    world.db.exec("SET fanout.check_age = 0");
    found(&mut world, "backlog warning 900 keys are pending, the oldest for");
    world.db.exec(&format!("SELECT fanout.resume('{sync}')"));
    assert_in_step(&mut world, &sync);
    assert_eq!(findings(&mut world), Vec::<String>::new());
}

#[test]
fn what_holds_up_the_journal_is_found() {
    let mut world = World::alone("check_journal");
    products(&mut world, 20_000);
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    let segment = Setting::set(&mut world, "fanout.segment_size", "64kB");
    let mut other = world.connect();
    other.exec("BEGIN; SET LOCAL fanout.capture_memory = '64kB'; UPDATE product SET price = 1");
    for price in 2..8 {
        let mut writer = world.connect();
        writer.exec(&format!("INSERT INTO product (id, name, price) SELECT i, 'n', {price} FROM generate_series({price} * 100000, {price} * 100000 + 9999) AS i"));
    }
    found(&mut world, "journal warning");
    assert!(findings(&mut world).iter().all(|finding| !finding.starts_with("long transactions")), "it is young");
    world.db.exec("SET fanout.check_age = 0");
    found(&mut world, "long transactions warning 1 transaction(s) hold the journal");
    other.exec("ROLLBACK");
    let prepared = format!("check_{}", world.tag);
    other.exec(&format!("BEGIN; UPDATE product SET price = 9 WHERE id = 1; PREPARE TRANSACTION '{prepared}'"));
    found(&mut world, "prepared transactions warning 1 prepared transaction(s), the oldest for");
    world.db.exec("SET fanout.check_age = '1min'");
    assert!(findings(&mut world).iter().all(|finding| !finding.starts_with("prepared")), "it is young");
    other.exec(&format!("COMMIT PREPARED '{prepared}'"));
    assert_in_step(&mut world, &sync);
    drop(segment);
    eventually("the journal is small again", Duration::from_secs(30), || findings(&mut world).is_empty());
}

#[test]
fn dead_letters_are_found() {
    let mut world = World::new("check_letters");
    world.db.exec("CREATE TABLE part (id int PRIMARY KEY, code text); INSERT INTO part VALUES (1, '1'), (2, 'two')");
    let sync = world.index_table("part", &Engine::opensearch(), r#", mapping => '{"code": {"type": "integer"}}'"#);
    world.wait(&sync);
    found(&mut world, "dead letters warning the target refused 1 document(s) for good");
    world.db.exec("UPDATE part SET code = '2'");
    assert_in_step(&mut world, &sync);
    assert_eq!(findings(&mut world), Vec::<String>::new());
}

#[test]
fn an_owner_that_was_dropped_is_found() {
    let mut world = World::new("check_owner");
    products(&mut world, 5);
    let role = format!("gone_{}", world.tag);
    let (index, prefix) = (world.index_name("product"), world.key_prefix("product"));
    world.db.exec(&format!(
        "CREATE ROLE {role};
         GRANT SELECT, TRIGGER ON product TO {role}; GRANT USAGE ON FOREIGN SERVER search, cache TO {role};
         SET ROLE {role};
         SELECT fanout.index_table('product', server => 'search', index => '{index}', name => 'left');
         RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}"
    ));
    found(&mut world, "owner error the role that the worker reads as was dropped");
    // What the hint says puts it right.
    world.db.exec("SELECT fanout.drop_sync('left')");
    world.db.exec(&format!("SELECT fanout.cache_table('product', server => 'cache', key => '{prefix}${{id}}')"));
    assert_in_step(&mut world, "product");
}

#[test]
fn versions_that_nobody_tested_are_found() {
    let mut world = World::new("check_versions");
    products(&mut world, 5);
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    // The library of another release.
    let installed = world.db.value("SELECT extversion FROM pg_extension WHERE extname = 'pg_fanout'");
    let say = |world: &mut World, version: &str| {
        world.db.exec(&format!(
            "BEGIN; SET LOCAL allow_system_table_mods = on;
             UPDATE pg_extension SET extversion = '{version}' WHERE extname = 'pg_fanout'; COMMIT"
        ));
    };
    say(&mut world, "0.0.9");
    let difference = format!("library error the library is of version {installed}, the extension of version 0.0.9");
    found(&mut world, &difference);
    say(&mut world, &installed);
    assert_eq!(findings(&mut world), Vec::<String>::new());
    // An engine that says that it is an old one.
    let peer = OldEngine::open("6.8.23");
    world.db.exec(&format!(
        "CREATE SERVER old FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'http://{}');
         SELECT fanout.index_table('product', server => 'old', name => 'old')",
        peer.address()
    ));
    found(&mut world, "server warning old: Elasticsearch 6.8.23, older than any that pg_fanout was tested with");
}

fn each_argument_shows_in_the_mapping(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE brand (id int PRIMARY KEY, name text);
         CREATE TABLE product (id int PRIMARY KEY, name text, price numeric(10,2), brand_id int REFERENCES brand, at date);
         CREATE TABLE keyless (a int, b text)",
    );
    let alias = world.index_name("alias");
    for (n, arguments) in [
        String::new(),
        r#", mapping => '{"name": {"type": "keyword"}}', settings => '{"number_of_replicas": 0}'"#.to_owned(),
        r#", columns => '{id,name,price}', rename => '{"price": "cost"}', predicate => 'price > 3'"#.to_owned(),
        r#", columns => '{id,price}', types => '{"numeric": "keyword"}'"#.to_owned(),
        format!(r#", aliases => '["{alias}"]', routing => '${{brand_id}}', period => '${{at:month}}'"#),
        ", document => 'SELECT p.id, p.name AS title, b.name AS brand, to_json(b) AS whole FROM product p JOIN brand b ON b.id = p.brand_id'"
            .to_owned(),
        ", document => 'SELECT id, to_jsonb(p) AS document FROM product p'".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let shown = world.db.value(&format!("SELECT fanout.mapping('product'{arguments})"));
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        let (index, server) = (format!("{}_{n}", world.index_name("product")), engine.server);
        let sync = world.db.value(&format!(
            "SELECT fanout.index_table('product', server => '{server}', name => 'made_{n}', index => '{index}'{arguments})"
        ));
        world.db.exec("INSERT INTO brand VALUES (1, 'b') ON CONFLICT DO NOTHING");
        world.db.exec(&format!("INSERT INTO product VALUES ({n}, 'n', 5, 1, '2026-01-01')"));
        world.wait(&sync);
        let made = engine.ask("GET", &format!("/{index}"), None);
        let made = made.as_object().and_then(|all| all.values().next()).cloned().unwrap_or_default();
        let names = |fields: &Value| -> Vec<(String, Value)> {
            fields.as_object().into_iter().flatten().map(|(name, field)| (name.clone(), field["type"].clone())).collect()
        };
        let (expected, actual) = (&shown["mappings"]["properties"], &made["mappings"]["properties"]);
        for field in names(expected) {
            assert!(names(actual).contains(&field), "{arguments}: {field:?} of {expected} is not in {actual}");
        }
        let open = shown["mappings"]["dynamic"] == json!(true);
        assert!(open || names(expected).len() == names(actual).len(), "{arguments}: {expected} {actual}");
        for alias in shown["aliases"].as_object().into_iter().flatten().map(|(alias, _)| alias) {
            assert!(made["aliases"].get(alias).is_some(), "{alias}: {made}");
        }
        world.db.exec(&format!("SELECT fanout.drop_sync('{sync}', drop_target => true)"));
    }
    assert_eq!(world.db.value("SELECT fanout.mapping('keyless')->'mappings'->'properties'->'a'->>'type'"), "integer");
    // What index_table() would refuse.
    refused(world, "SELECT fanout.mapping('product', columns => '{nonsense}')", "42703", "named in columns");
    refused(
        world,
        "SELECT fanout.mapping('product', document => 'SELECT name FROM product')",
        "42703",
        "column \"id\"",
    );
    refused(world, "SELECT fanout.mapping('keyless', document => 'SELECT a FROM keyless')", "55000", "has no key");
}
