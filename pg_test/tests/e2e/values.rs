//! Values that JSON, or the bulk format, could trip over.

use pg_test::{Engine, World, assert_in_step, on_each_engine};
use serde_json::json;

on_each_engine!(
    values_of_every_common_type_arrive,
    raw_newlines_in_json_forge_nothing,
    settings_of_the_writer_change_no_document,
    what_jsonb_cannot_hold_fails_no_search
);

fn types(world: &mut World) {
    world.db.exec(
        "CREATE TYPE mood AS ENUM ('sad', 'happy');
         CREATE DOMAIN sku AS text CHECK (value <> '');
         CREATE TABLE thing (
             id int PRIMARY KEY, small smallint, large bigint, amount numeric, ratio double precision, single real,
             yes boolean, words text, fixed char(5), day date, moment timestamp, instant timestamptz, clock time,
             span interval, bytes bytea, u uuid, numbers int[], strings text[], mood mood, code sku, doc jsonb,
             address inet, doubled int GENERATED ALWAYS AS (small * 2) STORED
         );
         INSERT INTO thing (id, small, large, amount, ratio, single, yes, words, fixed, day, moment, instant, clock, span,
                            bytes, u, numbers, strings, mood, code, doc, address) VALUES
         (1, 1, 9007199254740993, 12345.6789, 0.1, 0.1, true, E'tab\\t \"quotes\" \\\\ é 🚲 \\u2028', 'ab', '2024-02-29',
          '2024-02-29 23:59:59.999999', '2024-02-29 23:59:59.999999+05:30', '23:59:59.5', '1 year 2 days 03:04:05',
          '\\x00ff10', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{1,2,3}', '{a,\"b c\",\"\"}', 'happy', 'x', '{\"a\": {\"b\": 1}}',
          '192.168.0.1'),
         (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
         (3, -32768, -9223372036854775808, -0.5, 1e300, 1e30, false, '', '', '1970-01-01', '1970-01-01', '1970-01-01 00:00+00',
          '00:00', '-1 day', '', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12', '{}', '{}', 'sad', 'y', '{}', '::1')",
    );
}

fn values_of_every_common_type_arrive(world: &mut World, engine: &Engine) {
    types(world);
    let index = world.index_table("thing", engine, "");
    let cache = world.cache_table("thing", "");
    let hashes =
        world.cache_table_by("thing", &format!("{}:hash:${{id}}", world.tag), ", name => 'hashes', format => 'hash'");
    for _ in 0..2 {
        for sync in [&index, &cache, &hashes] {
            assert_in_step(world, sync);
            assert_eq!(world.status(sync, "dead_letters"), "0");
        }
        world.db.exec("UPDATE thing SET words = words || '!', doc = '{\"a\": {\"b\": 2}, \"c\": null}' WHERE id <> 2");
    }
}

fn raw_newlines_in_json_forge_nothing(world: &mut World, engine: &Engine) {
    let (victim, planted) = (format!("victim_{}", world.tag), format!("planted_{}", world.tag));
    engine.ask("PUT", &format!("/{victim}/_doc/1"), Some(json!({"here": true})));
    world.db.exec("CREATE TABLE note (id int PRIMARY KEY, body json)");
    let index = world.index_table("note", engine, "");
    let cache = world.cache_table("note", "");
    world.db.exec(&format!(
        "INSERT INTO note VALUES
         (1, '{{\"a\": 1}}'),
         (2, E'{{\"a\":\\n\\r\\n2}}'),
         (3, E'[{{\"x\":1}},\\n{{\"delete\":{{\"_index\":\"{victim}\",\"_id\":\"1\"}}}},\\n{{\"index\":{{\"_index\":\"{planted}\",\"_id\":\"x\"}}}}\\n]'),
         (4, E'{{\"a\": 4}}\\n'),
         (5, '{{\"a\": 5}}')"
    ));
    world.wait(&index);
    assert!(engine.document(&victim, "1").is_some(), "a value deleted a document of another index");
    assert!(!engine.exists(&planted), "a value made an index");
    assert_in_step(world, &index);
    assert_in_step(world, &cache);
}

fn settings_of_the_writer_change_no_document(world: &mut World, engine: &Engine) {
    types(world);
    let index = world.index_table("thing", engine, "");
    let database = world.database();
    world.db.exec(&format!(
        "ALTER DATABASE {database} SET DateStyle = 'SQL, DMY'; ALTER DATABASE {database} SET TimeZone = 'Asia/Kolkata';
         ALTER DATABASE {database} SET bytea_output = 'escape'; ALTER DATABASE {database} SET IntervalStyle = 'sql_standard';
         ALTER DATABASE {database} SET extra_float_digits = -10; ALTER DATABASE {database} SET search_path = pg_catalog;
         ALTER DATABASE {database} SET default_transaction_isolation = serializable"
    ));
    world.reconnect();
    world.db.exec("UPDATE public.thing SET words = 'again'");
    assert_in_step(world, &index);
    // The worker's session too, when it starts with these settings.
    world.end_worker();
    world.db.exec("UPDATE public.thing SET words = 'and again'");
    assert_in_step(world, &index);
}

/// A `json` column holds what `jsonb` refuses, and search results are `jsonb`.
fn what_jsonb_cannot_hold_fails_no_search(world: &mut World, engine: &Engine) {
    world.db.exec(
        r#"CREATE TABLE note (id int PRIMARY KEY, body json);
           INSERT INTO note VALUES (1, '{"a": "x\u0000y"}'), (2, '{"a": "plain"}'), (3, '{"a": "\ud800-"}'), (4, '{"n": 1e200000}'),
               (5, '{"k\u0000": "both \\u0000 and \u0000"}')"#,
    );
    let index = world.index_table("note", engine, "");
    let closed = format!("closed_{}", world.tag);
    let closed = world.db.value(&format!(
        "SELECT fanout.index_table('note', server => '{}', name => 'closed', index => '{closed}', types => '{{\"json\": \"disabled\"}}')",
        engine.server
    ));
    let cache = world.cache_table("note", "");
    let hashes =
        world.cache_table_by("note", &format!("{}:hash:${{id}}", world.tag), ", name => 'hashes', format => 'hash'");
    for sync in [&index, &closed, &cache, &hashes] {
        world.wait(sync);
        assert_eq!(world.status(sync, "dead_letters"), "0");
        let verified = world.db.rows(&format!("CALL fanout.verify('{sync}')")).remove(0);
        let numbers = ["5", "5", "0", "0", "0"].map(|number| Some(number.to_owned()));
        assert_eq!(verified[..5], numbers, "{sync}: rows, documents, missing, extra, different");
    }
    for sync in [&index, &closed] {
        let found = world
            .db
            .column(&format!("SELECT source->>'body' FROM es_search('{sync}', sort => '[{{\"id\": \"asc\"}}]')"));
        let expected = [
            "{\"a\": \"x\u{FFFD}y\"}",
            "{\"a\": \"plain\"}",
            "{\"a\": \"\u{FFFD}-\"}",
            "{\"n\": \"1e200000\"}",
            "{\"k\u{FFFD}\": \"both \\\\u0000 and \u{FFFD}\"}",
        ];
        assert_eq!(found, expected, "{sync}");
        let rows = world.db.column(&format!("SELECT body FROM es_rows(NULL::note, '{sync}') ORDER BY id"));
        assert_eq!(rows.first().map(String::as_str), Some(r#"{"a": "x\u0000y"}"#), "rows are as they are");
    }
    // What a visitor types is text of the server, which has no zero byte.
    assert_eq!(world.db.refusal(&format!("SELECT id FROM es_search('{index}', E'x\\000')")).code, "22021");
    assert_eq!(world.db.refusal("SELECT '\"\\u0000\"'::jsonb").code, "22P05");
    let text = world.db.value(&format!("SELECT redis_get('cache', '{}1')", world.key_prefix("note")));
    assert!(text.contains(r"x\u0000y"), "{text}");
}

#[test]
fn numbers_keep_all_their_digits() {
    let mut world = World::new("digits");
    world.db.exec("CREATE TABLE amount (id int PRIMARY KEY, n numeric); INSERT INTO amount VALUES (1, 12345678901234567890.123456789012345678900)");
    let sync = world.cache_table("amount", "");
    world.wait(&sync);
    let text = pg_test::Keyspace::open().get(&format!("{}1", world.key_prefix("amount")));
    // Compared as text: a JSON parser of doubles would see no difference.
    assert!(
        text.as_deref().is_some_and(|text| text.contains("12345678901234567890.123456789012345678900")),
        "{text:?}"
    );
}
