//! `fanout.explain()`: why a row is not, or wrongly, in the target.

use crate::tables::products;
use pg_test::{Engine, Keyspace, World, assert_in_step, eventually, on_each_engine};
use serde_json::json;
use std::time::Duration;

on_each_engine!(each_reason_is_told, a_refused_document_is_told, what_is_wrong_with_the_row_is_told);

/// The state that `fanout.explain()` gives for a step.
fn state(world: &mut World, call: &str, step: &str) -> String {
    world.db.value(&format!("SELECT state FROM fanout.explain({call}) WHERE step = '{step}'"))
}

fn detail(world: &mut World, call: &str, step: &str) -> String {
    world.db.value(&format!("SELECT detail FROM fanout.explain({call}) WHERE step = '{step}'"))
}

fn each_reason_is_told(world: &mut World, engine: &Engine) {
    products(world, 20);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    let call = format!("'{sync}', '7'");
    for (step, expected) in [
        ("sync", "live"),
        ("row", "present"),
        ("capture", "ok"),
        ("name", "7"),
        ("worker", "settled"),
        ("dead letter", "no"),
        ("target", "present"),
        ("comparison", "same"),
    ] {
        assert_eq!(state(world, &call, step), expected, "{step}");
    }
    assert!(detail(world, &call, "advice").starts_with("Nothing"));
    // The version tells when the row was read.
    let year = world.db.value("SELECT to_char(now(), 'YYYY-MM')");
    assert!(detail(world, &call, "target").contains(&year), "{}", detail(world, &call, "target"));
    // Absent on both sides.
    let call = format!("'{sync}', '99'");
    assert_eq!(state(world, &call, "row"), "absent");
    assert_eq!(state(world, &call, "comparison"), "same");
    // Changed by somebody else.
    let concrete = format!("{}-fanout-1", world.index_name("product"));
    engine.ask("PUT", &format!("/{concrete}/_doc/7"), Some(json!({"id": 7, "name": "forged"})));
    let call = format!("'{sync}', '7'");
    assert_eq!(state(world, &call, "comparison"), "different");
    assert!(detail(world, &call, "comparison").contains("name"), "{}", detail(world, &call, "comparison"));
    assert!(detail(world, &call, "advice").contains("fanout.enqueue"));
    engine.ask("DELETE", &format!("/{concrete}/_doc/8"), None);
    assert_eq!(state(world, &format!("'{sync}', '8'"), "comparison"), "missing");
    engine.ask("PUT", &format!("/{concrete}/_doc/99"), Some(json!({"id": 99})));
    assert_eq!(state(world, &format!("'{sync}', '99'"), "comparison"), "extra");
    // What the advice says helps.
    world.db.exec(&format!(
        "SELECT fanout.enqueue('{sync}', '7'), fanout.enqueue('{sync}', '8'), fanout.enqueue('{sync}', '99')"
    ));
    assert_in_step(world, &sync);
    // On its way, and held up.
    world.db.exec(&format!("SELECT fanout.pause('{sync}')"));
    world.db.exec("UPDATE product SET price = 77 WHERE id = 7");
    assert_eq!(state(world, &call, "worker"), "pending");
    assert_eq!(state(world, &call, "comparison"), "different");
    assert!(detail(world, &call, "advice").contains("fanout.resume"), "{}", detail(world, &call, "advice"));
    assert_eq!(state(world, &format!("'{sync}', '8'"), "worker"), "settled");
    world.db.exec(&format!("SELECT fanout.resume('{sync}')"));
    assert_in_step(world, &sync);
    // Not captured.
    world.db.exec("ALTER TABLE product DISABLE TRIGGER ALL; UPDATE product SET price = 78 WHERE id = 7");
    assert_eq!(state(world, &call, "capture"), "broken");
    assert!(detail(world, &call, "advice").contains("fanout.adopt"));
    // Not committed.
    world.db.exec("ALTER TABLE product ENABLE TRIGGER ALL; BEGIN; UPDATE product SET price = 79 WHERE id = 7");
    assert_eq!(state(world, &call, "capture"), "in this transaction");
    world.db.exec("ROLLBACK");
}

fn a_refused_document_is_told(world: &mut World, engine: &Engine) {
    world.db.exec("CREATE TABLE part (id int PRIMARY KEY, code text); INSERT INTO part VALUES (1, '1'), (2, 'two')");
    let sync = world.index_table("part", engine, r#", mapping => '{"code": {"type": "integer"}}'"#);
    world.wait(&sync);
    let call = format!("'{sync}', '2'");
    assert_eq!(state(world, &call, "dead letter"), "yes");
    assert!(detail(world, &call, "dead letter").contains("code"));
    assert_eq!(state(world, &call, "comparison"), "missing");
    assert!(detail(world, &call, "advice").contains("fanout.retry"));
    // The key of a dead letter leads to its document.
    let code = world.db.value(&format!(
        "SELECT fanout.document(sync, VARIADIC key)->>'code' FROM fanout.dead_letters WHERE sync = '{sync}'"
    ));
    assert_eq!(code, "two");
}

fn what_is_wrong_with_the_row_is_told(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE odd (code char(5), amount numeric(10,2), PRIMARY KEY (code, amount));
         INSERT INTO odd VALUES ('ab', 1)",
    );
    let sync = world.index_table("odd", engine, "");
    world.wait(&sync);
    // Keys as a user writes them.
    let call = format!("'{sync}', 'ab', '1'");
    assert_eq!(state(world, &call, "comparison"), "same");
    assert_eq!(world.db.value(&format!("SELECT fanout.document({call})->>'amount'")), "1.00");
    assert_eq!(world.db.value(&format!("SELECT fanout.document('{sync}', 'xy', '1')")), "NULL");
    assert_eq!(world.db.refusal(&format!("SELECT * FROM fanout.explain('{sync}', 'ab')")).code, "22023");
    assert_eq!(world.db.refusal(&format!("SELECT * FROM fanout.explain('{sync}', 'ab', 'x')")).code, "22P02");
    assert_eq!(world.db.refusal("SELECT * FROM fanout.explain('nonsense', '1')").code, "42704");
    world.db.exec("DROP TABLE odd");
    assert_eq!(state(world, &call, "row"), "unreadable");
}

#[test]
fn keys_of_redis_are_explained() {
    let mut world = World::new("explain_cache");
    products(&mut world, 10);
    for (format, name) in [("json", "plain"), ("hash", "hashed")] {
        let key = format!("{}{name}:${{id}}", world.key_prefix("product"));
        let sync = world.cache_table_by(
            "product",
            &key,
            &format!(", name => '{name}', format => '{format}', ttl => '1 hour'"),
        );
        world.wait(&sync);
        let call = format!("'{sync}', '7'");
        assert_eq!(state(&mut world, &call, "comparison"), "same", "{format}");
        assert!(detail(&mut world, &call, "target").contains("expires in"), "{format}");
        world.db.exec(&format!("SELECT redis_del('cache', '{}{name}:7')", world.key_prefix("product")));
        assert_eq!(state(&mut world, &call, "comparison"), "missing", "{format}");
        assert!(detail(&mut world, &call, "advice").contains("expired"), "{format}");
        let forged = format!("{}{name}:8", world.key_prefix("product"));
        world.db.exec(&format!("SELECT redis_set('cache', '{forged}', '{{\"id\": 8}}')"));
        assert_ne!(state(&mut world, &format!("'{sync}', '8'"), "comparison"), "same", "{format}");
    }
    // A key made from more than the key: of a row that is there, the key is enough.
    let template = format!("{}named:${{tags}}:${{id}}", world.key_prefix("product"));
    world.db.exec("ALTER TABLE product DROP COLUMN tags, ADD COLUMN tags text NOT NULL DEFAULT 'a'");
    let sync = world.cache_table_by("product", &template, ", name => 'named'");
    world.wait(&sync);
    assert_eq!(state(&mut world, &format!("'{sync}', '7'"), "comparison"), "same");
    assert!(detail(&mut world, &format!("'{sync}', '99'"), "advice").contains("tags"));
    assert_eq!(state(&mut world, &format!("'{sync}', '99', 'a'"), "comparison"), "same");
    drop(Keyspace::open());
}

#[test]
fn only_the_owner_is_told() {
    let mut world = World::new("explain_rights");
    products(&mut world, 5);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    let (role, mut session) = world.role("visitor");
    world.db.exec(&format!("GRANT SELECT ON product TO {role}; GRANT pg_monitor TO {role}"));
    for call in [
        format!("SELECT * FROM fanout.explain('{sync}', '1')"),
        format!("SELECT fanout.document('{sync}', '1')"),
        format!("SELECT fanout.verify_begin('{sync}', false, '1 s', 1, false)"),
    ] {
        assert_eq!(session.refusal(&call).code, "42501", "{call}");
    }
}

/// What `explain()`, `document()` and `enqueue()` take is a value of any type, and the session's settings are nobody's business.
#[test]
fn keys_are_given_as_they_are() {
    let mut world = World::new("explain_types");
    world.db.exec(
        "CREATE TYPE pair AS (a int, b text); CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE DOMAIN number AS int;
         SET TimeZone = 'UTC'",
    );
    for (n, (of, literal, value)) in [
        ("bigint", "42", "42"),
        ("bigint", "42", "42::smallint"),
        ("bigint", "42", "(SELECT 42.0::numeric(4,0))"),
        ("int", "42", "$$42$$"),
        ("number", "42", "42"),
        ("uuid", "00000000-0000-0000-0000-00000000002a", "'00000000-0000-0000-0000-00000000002A'::uuid"),
        ("date", "2026-02-03", "date '2026-02-03'"),
        ("date", "2026-02-03", "'03.02.2026'"),
        ("timestamptz", "2026-02-03 04:05:06+00", "timestamptz '2026-02-03 04:05:06+00'"),
        ("timestamp", "2026-02-03 04:05:06", "timestamp '2026-02-03 04:05:06'"),
        ("interval", "-1 days +02:03:04", "make_interval(days => -1, hours => 2, mins => 3, secs => 4)"),
        ("float8", "0.30000000000000004", "0.1::float8 + 0.2::float8"),
        ("bytea", "\\x2a", "'\\x2a'::bytea"),
        ("mood", "sad", "'sad'::mood"),
        ("text", "it's", "'it''s'::varchar"),
        ("pair", "(1,a)", "(1, 'a')"),
        ("pair", "(1,a)", "(1, 'a')::pair"),
    ]
    .into_iter()
    .enumerate()
    {
        let table = format!("keyed_{n}");
        let literal = literal.replace('\'', "''");
        world.db.exec(&format!("CREATE TABLE {table} (id {of} PRIMARY KEY); INSERT INTO {table} VALUES ('{literal}')"));
        let sync = world.cache_table(&table, "");
        world.wait(&sync);
        world.db.exec(
            "SET DateStyle = 'SQL, DMY'; SET IntervalStyle = 'sql_standard'; SET TimeZone = 'Asia/Kolkata';
             SET extra_float_digits = -10; SET bytea_output = 'escape'",
        );
        let call = format!("'{sync}', {value}");
        assert_eq!(state(&mut world, &call, "row"), "present", "{of} {value}");
        assert_eq!(state(&mut world, &call, "comparison"), "same", "{of} {value}");
        assert_ne!(world.db.value(&format!("SELECT fanout.document({call})")), "NULL", "{of} {value}");
        world.db.exec(&format!("DELETE FROM fanout.pending; SELECT fanout.pause('{sync}')"));
        world.db.exec(&format!("SELECT fanout.enqueue({call})"));
        assert_eq!(state(&mut world, &call, "worker"), "pending", "{of} {value}");
        world.db.exec(&format!("SELECT fanout.drop_sync('{sync}', drop_target => true)"));
        world.db.exec("RESET ALL; SET TimeZone = 'UTC'");
    }
    // Several values, of several types, and as an array.
    world.db.exec("CREATE TABLE both_of (a int, b text, PRIMARY KEY (a, b)); INSERT INTO both_of VALUES (1, 'a')");
    let key = format!("{}${{a}}:${{b}}", world.key_prefix("both_of"));
    let sync = world.cache_table_by("both_of", &key, "");
    world.wait(&sync);
    for values in ["1, 'a'", "'1', 'a'", "VARIADIC ARRAY['1', 'a']", "VARIADIC '{1,a}'::text[]", "1.0::int8, 'a'::name"]
    {
        assert_eq!(state(&mut world, &format!("'{sync}', {values}"), "comparison"), "same", "{values}");
    }
    // From a query, where each row has others.
    let rows = "SELECT state FROM both_of, fanout.explain('both_of', a, b) WHERE step = 'comparison'";
    assert_eq!(world.db.value(rows), "same");
    let prepared =
        "PREPARE explained (int, text) AS SELECT state FROM fanout.explain('both_of', $1, $2) WHERE step = 'row'";
    world.db.exec(prepared);
    assert_eq!(world.db.value("EXECUTE explained (1, 'a')"), "present");
}

#[test]
fn a_column_that_goes_while_it_is_asked_for_fails_no_call() {
    let mut world = World::new("column_goes");
    world.db.exec(
        "CREATE TABLE product (id bigint PRIMARY KEY, price int, name text); INSERT INTO product VALUES (1, 10, 'a')",
    );
    let sync = world.cache_table("product", ", columns => '{id, price}'");
    world.wait(&sync);
    let (mut altering, mut asking) = (world.connect(), world.connect());
    // Nor is it empty by the snapshot with which the call began.
    altering.exec(
        "BEGIN; TRUNCATE product; INSERT INTO product VALUES (1, 10, 'a'); ALTER TABLE product DROP COLUMN price",
    );
    let waits = format!("SELECT count(*) FROM pg_locks WHERE pid = {} AND NOT granted", asking.pid());
    let call = format!("SELECT fanout.document('{sync}', 1)");
    let asked = std::thread::spawn(move || asking.try_rows(&call));
    eventually("the call to wait for the table", Duration::from_secs(10), || world.db.value(&waits) == "1");
    altering.exec("COMMIT");
    assert_eq!(asked.join().expect("no panic"), Ok(vec![vec![Some(r#"{"id":1}"#.to_owned())]]));
}
