//! `fanout.alter_sync()`: what is changed, and what that takes.

use crate::tables::products;
use pg_test::{Engine, World, assert_in_step, eventually, on_each_engine};
use serde_json::json;
use std::time::Duration;

on_each_engine!(each_change_takes_what_it_must, the_old_index_serves_until_the_new_one_is_full);

fn alter(world: &mut World, sync: &str, more: &str) -> String {
    world.db.value(&format!("SELECT fanout.alter_sync('{sync}', {more})"))
}

fn each_change_takes_what_it_must(world: &mut World, engine: &Engine) {
    products(world, 50);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    let request = |world: &mut World| world.db.value("SELECT request || ' ' || generation FROM fanout.sync");
    assert_eq!(request(world), "0 1");
    for (more, expected) in [
        ("mapping => NULL", "nothing"),
        ("search_fields => '{name^3}'", "nothing"),
        ("on_reject => 'delete'", "nothing"),
        ("backfill_rate => 5000, backfill_window => '00:00-23:59'", "nothing"),
        ("predicate => 'id > 10'", "reconcile"),
        ("columns => '{id,name}'", "resync"),
        (r#"mapping => '{"name": {"type": "keyword"}}'"#, "resync"),
        (r#"settings => '{"number_of_replicas": 0}'"#, "resync"),
    ] {
        assert_eq!(alter(world, &sync, &format!("{more}, dry_run => true")), expected, "{more}");
    }
    assert_eq!(request(world), "0 1", "a dry run changes nothing");
    assert_eq!(alter(world, &sync, "on_reject => 'delete', search_fields => '{name^3}'"), "nothing");
    assert_eq!(request(world), "0 1");
    assert_eq!(alter(world, &sync, "on_reject => 'delete'"), "nothing");
    // Fewer rows.
    assert_eq!(alter(world, &sync, "predicate => 'id > 10'"), "reconcile");
    world.wait(&sync);
    let index = world.index_name("product");
    engine.refresh(&index);
    assert_eq!(engine.documents(&index).len(), 40);
    // Fewer columns, of the same rows.
    assert_eq!(alter(world, &sync, r#"columns => '{id,name}', rename => '{"name": "title"}'"#), "resync");
    world.wait(&sync);
    eventually("the alias moves", Duration::from_secs(20), || {
        engine.refresh(&index);
        let documents = engine.documents(&index);
        documents.len() == 40 && documents[0].source.get("title").is_some()
    });
    assert_eq!(engine.document(&index, "11"), Some(json!({"id": 11, "title": "trail shoe 11"})));
    // A further alias, and none again.
    let further = format!("{index}_further");
    assert_eq!(alter(world, &sync, "pipeline => 'any', dry_run => true"), "reconcile");
    assert_eq!(alter(world, &sync, &format!("aliases => '[\"{further}\"]'")), "resync");
    world.wait(&sync);
    eventually("the further alias leads there", Duration::from_secs(20), || {
        engine.exists(&further) && engine.documents(&further).len() == 40
    });
    assert_eq!(alter(world, &sync, "reset => '{aliases}'"), "resync");
    world.wait(&sync);
    eventually("the further alias is gone", Duration::from_secs(20), || !engine.exists(&further));
    // All rows again, the columns as they are.
    assert_eq!(alter(world, &sync, "reset => '{predicate}'"), "reconcile");
    world.wait(&sync);
    assert_eq!(engine.document(&index, "7"), Some(json!({"id": 7, "title": "trail shoe 7"})));
    assert_eq!(alter(world, &sync, "reset => '{columns}'"), "resync");
    assert_in_step(world, &sync);
}

fn the_old_index_serves_until_the_new_one_is_full(world: &mut World, engine: &Engine) {
    products(world, 2000);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    let index = world.index_name("product");
    alter(world, &sync, "backfill_rate => 800");
    assert_eq!(alter(world, &sync, r#"mapping => '{"name": {"type": "keyword"}}'"#), "resync");
    eventually("it is resynced", Duration::from_secs(30), || {
        let count = engine.ask("GET", &format!("/{index}/_count"), None)["count"].as_i64();
        assert_eq!(count, Some(2000), "searches always see all");
        let mapping = engine.ask("GET", &format!("/{index}/_mapping"), None);
        let new = &mapping[format!("{index}-fanout-2")]["mappings"]["properties"]["name"]["type"];
        *new == json!("keyword")
    });
    assert_in_step(world, &sync);
}

#[test]
fn a_cache_is_altered() {
    let mut world = World::new("alter_cache");
    products(&mut world, 20);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    let key = format!("{}7", world.key_prefix("product"));
    assert_eq!(alter(&mut world, &sync, "jitter => 0"), "nothing");
    assert_eq!(alter(&mut world, &sync, "ttl => '1 hour'"), "reconcile");
    world.wait(&sync);
    assert_eq!(world.db.value(&format!("SELECT redis_ttl('cache', '{key}') IS NOT NULL")), "t");
    assert_eq!(alter(&mut world, &sync, "reset => '{ttl}'"), "reconcile");
    world.wait(&sync);
    assert_eq!(world.db.value(&format!("SELECT redis_ttl('cache', '{key}') IS NULL")), "t");
    assert_eq!(alter(&mut world, &sync, "format => 'hash'"), "reconcile");
    assert_in_step(&mut world, &sync);
}

#[test]
fn a_sync_moves_to_another_server_and_owner() {
    let mut world = World::new("alter_server");
    products(&mut world, 30);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    assert_in_step(&mut world, &sync);
    let index = world.index_name("product");
    assert_eq!(alter(&mut world, &sync, "server => 'es'"), "resync");
    assert_in_step(&mut world, &sync);
    assert!(Engine::elasticsearch().exists(&index) && Engine::opensearch().exists(&index));
    let (role, mut session) = world.role("reader");
    let owner = format!("owner => '{role}'");
    let lacking = format!("SELECT fanout.alter_sync('{sync}', {owner})");
    assert_eq!(world.db.refusal(&lacking).code, "42501");
    world.db.exec(&format!("GRANT SELECT, TRIGGER ON product TO {role}; GRANT USAGE ON FOREIGN SERVER es TO {role}"));
    assert_eq!(alter(&mut world, &sync, &owner), "nothing");
    world.db.exec("UPDATE product SET price = 3");
    assert_in_step(&mut world, &sync);
    // The sync is the new owner's now.
    session.exec(&format!("SELECT fanout.pause('{sync}'), fanout.resume('{sync}')"));
    assert_eq!(session.refusal(&format!("SELECT fanout.alter_sync('{sync}', owner => 'postgres')")).code, "42501");
    assert_eq!(session.refusal(&format!("SELECT fanout.alter_sync('{sync}', server => 'search')")).code, "42501");
}

#[test]
fn names_in_a_predicate_keep_their_meaning() {
    let mut world = World::new("alter_path");
    products(&mut world, 20);
    world.db.exec(
        "CREATE SCHEMA other;
         CREATE FUNCTION other.cheap(numeric) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 < 10';
         CREATE FUNCTION public.cheap(numeric) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT false';
         SET search_path = other, public",
    );
    let engine = Engine::opensearch();
    let sync = world.index_table("product", &engine, ", predicate => 'cheap(price)'");
    world.wait(&sync);
    let index = world.index_name("product");
    assert_eq!(engine.documents(&index).len(), 7);
    world.db.exec("SET search_path = public");
    assert_eq!(alter(&mut world, &sync, "columns => '{id,price}'"), "resync");
    world.wait(&sync);
    eventually("the new index has the same rows", Duration::from_secs(20), || {
        let documents = engine.documents(&index);
        documents.len() == 7 && documents[0].source.get("name").is_none()
    });
}

#[test]
fn a_sync_gets_another_name() {
    let mut world = World::new("alter_name");
    products(&mut world, 30);
    world.db.exec(
        "CREATE TABLE review (id int PRIMARY KEY, product_id bigint REFERENCES product, stars int);
         INSERT INTO review SELECT i, i, 3 FROM generate_series(1, 30) AS i; BEGIN",
    );
    let sync = world.cache_table(
        "product",
        ", document => 'SELECT p.id, p.price, (SELECT sum(stars) FROM review WHERE product_id = p.id) AS stars FROM product p'",
    );
    world.db.exec(&format!("SELECT fanout.related('{sync}', 'review'); COMMIT"));
    let other = world.index_table("product", &Engine::opensearch(), ", name => 'other'");
    assert_in_step(&mut world, &sync);
    assert_in_step(&mut world, &other);
    // What was captured under the name of before is delivered.
    world.db.exec(&format!("SELECT fanout.pause('{sync}')"));
    world.db.exec("UPDATE product SET price = 1 WHERE id = 1; DELETE FROM review WHERE id = 2");
    let delivered = world.status(&sync, "delivered");
    let name = "it's \"new\"";
    assert_eq!(alter(&mut world, &sync, "name => 'it''s \"new\"', dry_run => true"), "nothing");
    assert_eq!(world.db.value(&format!("SELECT count(*) FROM fanout.status WHERE sync = '{sync}'")), "1");
    let said = world.db.notices(&format!("SELECT fanout.alter_sync('{sync}', name => 'it''s \"new\"')"));
    assert!(said.iter().any(|notice| notice.message.contains("is called \"it's \"new\"\" from now on")), "{said:?}");
    assert_eq!(world.db.refusal(&format!("SELECT fanout.pause('{sync}')")).code, "42704", "the old name is free");
    let quoted = name.replace('\'', "''");
    world.db.exec(&format!("SELECT fanout.resume('{quoted}')"));
    world.wait(&quoted);
    let after = world.status(&quoted, "delivered");
    let few = |text: &str| text.parse::<i64>().expect("a number");
    assert!(few(&after) - few(&delivered) <= 2, "nothing is delivered anew: {delivered}, {after}");
    assert_eq!(world.status(&quoted, "last_error"), "NULL");
    // And so is what is captured under the new one; no trigger has the old one.
    world.db.exec("UPDATE product SET price = 2 WHERE id = 3; UPDATE review SET stars = 5 WHERE id = 4; DELETE FROM product WHERE id = 2");
    assert_in_step(&mut world, &quoted);
    assert_in_step(&mut world, &other);
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'fanout%' AND tgenabled = 'A'";
    assert_eq!(world.db.value(triggers), "6");
    let wrong = format!("SELECT count(*) FROM fanout.check('{quoted}') WHERE status <> 'ok'");
    assert_eq!(world.db.value(&wrong), "0");
    // What was put somewhere by hand has to be renamed by hand.
    world.db.exec("CREATE TRIGGER mine AFTER TRUNCATE ON product EXECUTE FUNCTION fanout.capture('other')");
    let refusal = world.db.refusal("SELECT fanout.alter_sync('other', name => 'another')");
    assert_eq!(refusal.code, "55006", "{refusal}");
    assert!(refusal.message.contains("trigger \"mine\" on public.product") && !refusal.hint.is_empty(), "{refusal}");
    world.db.exec(&format!("SELECT fanout.drop_sync('{quoted}')"));
}

#[test]
fn what_a_change_costs_is_said_first() {
    let mut world = World::new("alter_notices");
    products(&mut world, 50);
    world.db.exec("ANALYZE product");
    let sync = world.index_table("product", &Engine::opensearch(), "");
    assert_in_step(&mut world, &sync);
    for (change, words) in [
        ("on_reject => 'keep'", "nothing of sync \"product\" changes"),
        ("on_reject => 'delete'", "no document of sync \"product\" changes: nothing is delivered anew"),
        (
            "predicate => 'id > 10'",
            "the documents of sync \"product\" change: about 50 documents are delivered anew (reconcile)",
        ),
        (
            "columns => '{id,name}'",
            "the index of sync \"product\" is built anew with about 50 documents (resync); the old one serves until then",
        ),
        (
            "server => 'es'",
            "sync \"product\" moves to server \"es\": about 50 documents are delivered there; what is on server \"search\" stays",
        ),
    ] {
        let said = world.db.notices(&format!("SELECT fanout.alter_sync('{sync}', {change}, dry_run => true)"));
        let said: Vec<&str> = said.iter().map(|notice| notice.message.as_str()).collect();
        assert_eq!(said, [words], "{change}");
    }
}
