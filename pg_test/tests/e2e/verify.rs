//! `fanout.verify()`: finds what differs, and nothing else; repairs it.

use crate::tables::{more_products, products};
use pg_test::{Engine, World, assert_in_step, on_each_engine};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

on_each_engine!(differences_are_found_and_repaired, what_is_on_its_way_is_no_difference, dead_letters_are_told_apart);

/// `CALL fanout.verify()`: its row by column.
fn verify(world: &mut World, sync: &str, more: &str) -> Value {
    let row = world.db.rows(&format!("CALL fanout.verify('{sync}'{more})")).remove(0);
    let columns =
        ["rows", "documents", "missing", "extra", "different", "dead", "unsettled", "repaired", "differences"];
    let value = |text: Option<String>| serde_json::from_str(&text.unwrap_or_default()).unwrap_or(Value::Null);
    columns
        .iter()
        .zip(row)
        .map(|(column, text)| ((*column).to_owned(), value(text)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn counts(verified: &Value) -> Vec<i64> {
    ["missing", "extra", "different", "repaired"].iter().map(|column| verified[column].as_i64().unwrap_or(-1)).collect()
}

fn differences_are_found_and_repaired(world: &mut World, engine: &Engine) {
    products(world, 5000);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    let verified = verify(world, &sync, "");
    assert_eq!(counts(&verified), [0, 0, 0, 0], "{verified}");
    assert_eq!((&verified["rows"], &verified["documents"]), (&json!(5000), &json!(5000)));
    let concrete = format!("{}-fanout-1", world.index_name("product"));
    engine.ask("DELETE", &format!("/{concrete}/_doc/17"), None);
    engine.ask("DELETE", &format!("/{concrete}/_doc/4999"), None);
    engine.ask("PUT", &format!("/{concrete}/_doc/90000"), Some(json!({"id": 90000})));
    let mut document = engine.document(&concrete, "23").expect("it is there");
    document["price"] = json!(0.01);
    engine.ask("PUT", &format!("/{concrete}/_doc/23"), Some(document));
    let verified = verify(world, &sync, "");
    assert_eq!(counts(&verified), [2, 1, 1, 0], "{verified}");
    let different = json!({"id": "23", "difference": "different", "detail": "price"});
    assert!(verified["differences"].as_array().is_some_and(|found| found.contains(&different)), "{verified}");
    assert_eq!(verify(world, &sync, ", examples => 1")["differences"].as_array().map(Vec::len), Some(1));
    assert_eq!(counts(&verify(world, &sync, ", repair => true")), [2, 1, 1, 4]);
    assert_in_step(world, &sync);
    assert_eq!(counts(&verify(world, &sync, "")), [0, 0, 0, 0]);
}

fn what_is_on_its_way_is_no_difference(world: &mut World, engine: &Engine) {
    products(world, 2000);
    let sync = world.index_table("product", engine, "");
    world.wait(&sync);
    let mut writer = world.connect();
    let until = Instant::now() + Duration::from_secs(6);
    let writing = std::thread::spawn(move || {
        let mut n = 0;
        while Instant::now() < until {
            n += 1;
            let first = n * 37 % 1900;
            writer.exec(&format!(
                "UPDATE product SET price = price + 1 WHERE id BETWEEN {first} AND {first} + 50;
                 DELETE FROM product WHERE id = {}; INSERT INTO product (id, name) VALUES ({}, 'new') ON CONFLICT DO NOTHING",
                2000 - n % 50,
                2000 - n * 3 % 50
            ));
        }
    });
    let mut verified = Vec::new();
    while Instant::now() < until {
        verified.push(verify(world, &sync, ""));
    }
    writing.join().expect("the writer has no trouble");
    assert!(!verified.is_empty());
    for verified in &verified {
        assert_eq!(counts(verified), [0, 0, 0, 0], "{verified}");
    }
    assert_in_step(world, &sync);
}

fn dead_letters_are_told_apart(world: &mut World, engine: &Engine) {
    world.db.exec("CREATE TABLE part (id int PRIMARY KEY, code text); INSERT INTO part VALUES (1, '1'), (2, 'two')");
    let sync = world.index_table("part", engine, r#", mapping => '{"code": {"type": "integer"}}'"#);
    world.wait(&sync);
    let verified = verify(world, &sync, ", repair => true");
    assert_eq!(counts(&verified), [0, 0, 0, 0], "{verified}");
    assert_eq!(verified["dead"], json!(1));
}

#[test]
fn keys_of_redis_are_verified() {
    let mut world = World::new("verify_cache");
    products(&mut world, 3000);
    for (format, ttl) in [("json", ""), ("hash", ""), ("json", ", ttl => '1 hour'")] {
        let name = format!("{format}{}", ttl.len());
        let prefix = format!("{}{name}:", world.key_prefix("product"));
        let sync = world.cache_table_by(
            "product",
            &format!("{prefix}${{id}}"),
            &format!(", name => '{name}', format => '{format}'{ttl}"),
        );
        world.wait(&sync);
        let verified = verify(&mut world, &sync, "");
        assert_eq!(counts(&verified), [0, 0, 0, 0], "{verified}");
        assert!(verified["documents"].as_i64() >= Some(3000), "{verified}");
        world.db.exec(&format!("SELECT redis_del('cache', '{prefix}17'), redis_set('cache', '{prefix}90000', '1')"));
        world.db.exec(&format!("SELECT redis_set('cache', '{prefix}18', '{{\"id\": 18}}')"));
        // Not of this sync.
        world.db.exec(&format!("SELECT redis_set('cache', '{prefix}nonsense:1', '1')"));
        let missing = i64::from(ttl.is_empty());
        let verified = verify(&mut world, &sync, ", repair => true");
        // A string in the place of a hash is as good as missing.
        let found = counts(&verified);
        assert_eq!(found[0] + found[2], 1 + missing, "{format}{ttl}: {verified}");
        assert_eq!((found[1], found[3]), (1, 2 + missing), "{format}{ttl}: {verified}");
        world.wait(&sync);
        assert_eq!(counts(&verify(&mut world, &sync, "")), [0, 0, 0, 0], "{format}{ttl}");
    }
}

#[test]
fn no_snapshot_is_held_and_a_cancel_ends_it() {
    let mut world = World::new("verify_snapshots");
    products(&mut world, 1);
    more_products(&mut world, 2, 60_000);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    let mut verifier = world.connect();
    let pid = verifier.pid();
    let call = format!("CALL fanout.verify('{sync}')");
    let verifying = std::thread::spawn(move || verifier.try_rows(&call).map(|rows| rows.len()));
    let age = format!("SELECT coalesce(max(age(backend_xmin)), 0) FROM pg_stat_activity WHERE pid = {pid}");
    let mut oldest = 0;
    let begun = Instant::now();
    while !verifying.is_finished() && begun.elapsed() < Duration::from_secs(60) {
        // Each of these is a transaction that an old snapshot would be behind of.
        world.db.exec("SELECT pg_current_xact_id()");
        oldest = oldest.max(world.db.value(&age).parse::<i64>().expect("a number"));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(verifying.join().expect("no panic"), Ok(1));
    assert!(begun.elapsed() > Duration::from_millis(300), "long enough to see something");
    let begun = begun.elapsed().as_millis() as i64 / 5;
    assert!(oldest < begun / 2, "a snapshot was held for {oldest} of about {begun} transactions");
    let mut verifier = world.connect();
    verifier.exec("SET statement_timeout = '100ms'");
    let began = Instant::now();
    assert_eq!(verifier.refusal(&format!("CALL fanout.verify('{sync}')")).code, "57014");
    assert!(began.elapsed() < Duration::from_secs(2));
    verifier.exec("RESET statement_timeout; SELECT count(*) FROM product");
    // Within a transaction block nothing can be committed.
    verifier.exec("BEGIN");
    assert_eq!(verifier.refusal(&format!("CALL fanout.verify('{sync}')")).code, "2D000");
    verifier.exec("ROLLBACK");
}

#[test]
fn what_cannot_be_verified_is_said() {
    let mut world = World::new("verify_refused");
    products(&mut world, 10);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    world.db.exec(&format!("SELECT fanout.pause('{sync}')"));
    let refusal = world.db.refusal(&format!("CALL fanout.verify('{sync}')"));
    assert!(refusal.code == "55000" && refusal.message.contains("paused") && !refusal.hint.is_empty(), "{refusal}");
    assert_eq!(world.db.refusal("SELECT * FROM fanout.verify_step()").code, "55000");
    assert_eq!(world.db.refusal("CALL fanout.verify('nonsense')").code, "42704");
    assert_eq!(world.db.refusal("CALL fanout.verify(NULL)").code, "22004");
}
