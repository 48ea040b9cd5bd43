//! `redis_get()` and its kin.

use crate::tables::products;
use pg_test::{Keyspace, World};
use serde_json::Value;

#[test]
fn keys_are_set_read_and_removed() {
    let mut world = World::new("redis_functions");
    let prefix = world.key_prefix("f");
    let mut redis = Keyspace::open();
    assert_eq!(world.db.value(&format!("SELECT redis_get('cache', '{prefix}a')")), "NULL");
    world
        .db
        .exec(&format!("SELECT redis_set('cache', '{prefix}a', E'é 🚲\\n\"'), redis_set('cache', '{prefix}b', '')"));
    assert_eq!(redis.get(&format!("{prefix}a")).as_deref(), Some("é 🚲\n\""));
    assert_eq!(redis.ttl_ms(&format!("{prefix}a")), -1);
    assert_eq!(world.db.value(&format!("SELECT redis_get('cache', '{prefix}a')")), "é 🚲\n\"");
    assert_eq!(world.db.value(&format!("SELECT redis_get('cache', '{prefix}b') = ''")), "t");

    world.db.exec(&format!("SELECT redis_set('cache', '{prefix}c', 'x', ttl => '90 seconds')"));
    let ttl = redis.ttl_ms(&format!("{prefix}c"));
    assert!((60_000..=90_000).contains(&ttl), "{ttl}");
    let between = "BETWEEN interval '60 seconds' AND interval '90 seconds'";
    assert_eq!(world.db.value(&format!("SELECT redis_ttl('cache', '{prefix}c') {between}")), "t");
    assert_eq!(world.db.value(&format!("SELECT redis_ttl('cache', '{prefix}none')")), "NULL");

    let found =
        world.db.rows(&format!("SELECT * FROM redis_mget('cache', ARRAY['{prefix}c', '{prefix}none', '{prefix}a'])"));
    let text = format!("{found:?}");
    assert!(text.contains("🚲") && text.contains("\"x\""), "{text}");

    world.db.exec(&format!("SELECT redis_del('cache', '{prefix}a')"));
    assert_eq!(redis.get(&format!("{prefix}a")), None);
}

#[test]
fn a_cached_row_is_read_back_as_json() {
    let mut world = World::new("redis_row");
    products(&mut world, 3);
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    let key = format!("{}2", world.key_prefix("product"));
    let cached = world.db.value(&format!("SELECT redis_get('cache', '{key}')::jsonb->>'name'"));
    assert_eq!(cached, "trail shoe 2");
    let row: Value = serde_json::from_str(&Keyspace::open().get(&key).expect("a value")).expect("JSON");
    assert_eq!(row["id"], 2);
}

#[test]
fn a_key_of_another_type_is_an_error_and_not_an_empty_answer() {
    let mut world = World::new("redis_types");
    products(&mut world, 1);
    let sync = world.cache_table("product", ", format => 'hash'");
    world.wait(&sync);
    let refusal = world.db.refusal(&format!("SELECT redis_get('cache', '{}1')", world.key_prefix("product")));
    assert!(!refusal.code.starts_with("XX"), "{refusal}");
    assert!(refusal.message.contains("WRONGTYPE") || refusal.hint.contains("hash"), "{refusal}");
}
