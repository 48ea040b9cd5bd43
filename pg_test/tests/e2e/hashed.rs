//! Documents whose ids tell no key: hashes, which keys of more than 512 bytes have, and those of a key that had another type.

use pg_test::{Engine, World, assert_in_step, eventually, on_each_engine};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

on_each_engine!(
    what_was_missed_is_found_though_no_id_tells_it,
    a_predicate_and_a_truncate_take_hashed_documents_along,
    verify_finds_documents_that_no_id_tells,
    with_routing_and_periods_only_what_is_stale_goes,
    a_refused_row_keeps_its_document_until_it_is_gone,
    reconciles_beside_writers_lose_nothing,
    rows_of_hashed_ids_are_found,
    documents_of_a_key_that_had_another_type_go
);

/// Rows with keys of about 700 bytes, and ten short ones; their documents don't have the key.
const PAGES: &str =
    "CREATE TABLE page (url text PRIMARY KEY, n int NOT NULL, at date NOT NULL DEFAULT '2024-01-31', tenant text);
     CREATE FUNCTION url(n int) RETURNS text LANGUAGE sql IMMUTABLE AS
         $$SELECT 'https://example.com/' || n || repeat('/a/path', 100)$$;
     INSERT INTO page SELECT url(n), n FROM generate_series(1, 300) AS n;
     INSERT INTO page SELECT 'short-' || n, 1000 + n FROM generate_series(1, 10) AS n;";

/// By id, the numbers in the documents.
fn held(world: &World, engine: &Engine) -> BTreeMap<String, i64> {
    let documents = engine.documents(&world.index_name("page"));
    documents.into_iter().map(|it| (it.id, it.source["n"].as_i64().unwrap_or(-1))).collect()
}

/// Waits, and compares the numbers in the documents with those in the rows.
fn assert_same(world: &mut World, engine: &Engine, sync: &str, rows: &str) {
    world.wait(sync);
    let mut numbers: Vec<String> = held(world, engine).into_values().map(|n| n.to_string()).collect();
    numbers.sort();
    let mut expected = world.db.column(&format!("SELECT n FROM page WHERE {rows}"));
    expected.sort();
    assert!(numbers == expected, "{} documents of {} rows: {numbers:?}", numbers.len(), expected.len());
}

/// Writes without the sync's triggers.
fn unseen(world: &mut World, sql: &str) {
    world.db.exec("ALTER TABLE page DISABLE TRIGGER USER");
    world.db.exec(sql);
    world.db.exec(
        "DO $do$ DECLARE t name; BEGIN
             FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'page'::regclass LOOP
                 EXECUTE format('ALTER TABLE page ENABLE ALWAYS TRIGGER %I', t);
             END LOOP;
         END $do$",
    );
}

/// The path of a document that no row of ours has.
fn planted(index: &str, number: u8) -> String {
    format!("/{index}/_doc/%25H{}", format!("{number:02x}").repeat(32))
}

fn what_was_missed_is_found_though_no_id_tells_it(world: &mut World, engine: &Engine) {
    world.db.exec(PAGES);
    let sync = world.index_table("page", engine, ", columns => '{n}'");
    assert_same(world, engine, &sync, "true");
    let hashed = held(world, engine).into_keys().filter(|id| id.starts_with("%H") && id.len() == 66).count();
    assert_eq!(hashed, 300);
    unseen(
        world,
        "DELETE FROM page WHERE n <= 50; UPDATE page SET url = url || '/moved' WHERE n BETWEEN 51 AND 60;
         UPDATE page SET n = n + 5000 WHERE n BETWEEN 61 AND 70; INSERT INTO page VALUES (url(2), 2)",
    );
    assert_same(world, engine, &sync, "true");
    // What is none of ours by its form stays; what has that form does not.
    let concrete = format!("{}-fanout-1", world.index_name("page"));
    engine.ask("PUT", &planted(&concrete, 1), Some(json!({"n": -7})));
    engine.ask("PUT", &format!("/{concrete}/_doc/%25Hello"), Some(json!({"n": 9999})));
    engine.refresh(&concrete);
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    world.wait(&sync);
    let mut left = held(world, engine);
    assert_eq!(left.remove("%Hello"), Some(9999));
    engine.ask("DELETE", &format!("/{concrete}/_doc/%25Hello"), None);
    engine.refresh(&concrete);
    assert_same(world, engine, &sync, "true");
}

fn a_predicate_and_a_truncate_take_hashed_documents_along(world: &mut World, engine: &Engine) {
    world.db.exec(PAGES);
    let sync = world.index_table("page", engine, ", columns => '{n}'");
    assert_same(world, engine, &sync, "true");
    world.db.exec(&format!("SELECT fanout.alter_sync('{sync}', predicate => 'n > 100')"));
    assert_same(world, engine, &sync, "n > 100");
    world.db.exec(&format!("SELECT fanout.pause('{sync}')"));
    world.db.exec("TRUNCATE page; INSERT INTO page VALUES (url(200), 200), (url(301), 301)");
    world.db.exec(&format!("SELECT fanout.resume('{sync}')"));
    assert_same(world, engine, &sync, "true");
    world.db.exec("TRUNCATE page");
    assert_same(world, engine, &sync, "true");
    assert!(held(world, engine).is_empty());
}

fn verify_finds_documents_that_no_id_tells(world: &mut World, engine: &Engine) {
    world.db.exec(PAGES);
    let sync = world.index_table("page", engine, ", columns => '{n}'");
    assert_same(world, engine, &sync, "true");
    let verify = |world: &mut World, more: &str| -> Vec<String> {
        let row = world.db.rows(&format!("CALL fanout.verify('{sync}'{more})")).remove(0);
        row.into_iter().map(Option::unwrap_or_default).collect()
    };
    assert_eq!(verify(world, "")[..8], ["310", "310", "0", "0", "0", "0", "0", "0"]);
    let concrete = format!("{}-fanout-1", world.index_name("page"));
    let ids: BTreeMap<i64, String> = held(world, engine).into_iter().map(|(id, n)| (n, id)).collect();
    let of = |n: i64| format!("/{concrete}/_doc/{}", ids[&n].replace('%', "%25"));
    engine.ask("DELETE", &of(1), None);
    engine.ask("PUT", &of(2), Some(json!({"n": 22})));
    engine.ask("PUT", &planted(&concrete, 3), Some(json!({"n": -1})));
    engine.ask("PUT", &planted(&concrete, 4), Some(json!({"n": -1})));
    engine.refresh(&concrete);
    let found = verify(world, "");
    assert_eq!(found[..8], ["310", "311", "1", "2", "1", "0", "0", "0"]);
    assert!(found[8].contains(&format!("%H{}", "04".repeat(32))), "{}", found[8]);
    assert_eq!(verify(world, ", repair => true")[2..8], ["1", "2", "1", "0", "0", "4"]);
    assert_same(world, engine, &sync, "true");
    assert_eq!(verify(world, "")[..8], ["310", "310", "0", "0", "0", "0", "0", "0"]);
    // Rows that come and go meanwhile are no difference.
    let mut writer = world.connect();
    let until = Instant::now() + Duration::from_secs(4);
    let writing = std::thread::spawn(move || {
        let mut n = 1;
        while Instant::now() < until {
            n += 1;
            writer.exec(&format!(
                "INSERT INTO page VALUES (url({n} + 10000), {n} + 10000); DELETE FROM page WHERE n = {n} + 9990;
                 UPDATE page SET n = n WHERE n BETWEEN {n} % 300 AND {n} % 300 + 9"
            ));
        }
    });
    while Instant::now() < until {
        assert_eq!(verify(world, ", repair => true")[2..], ["0", "0", "0", "0", "0", "0", "[]"]);
    }
    writing.join().expect("the writer has no trouble");
    assert_same(world, engine, &sync, "true");
}

fn with_routing_and_periods_only_what_is_stale_goes(world: &mut World, engine: &Engine) {
    world.db.exec(PAGES);
    world.db.exec("UPDATE page SET tenant = 't' || n % 7, at = at + n % 60");
    let sync = world.index_table(
        "page",
        engine,
        ", columns => '{n}', routing => '${tenant}', period => '${at:month}', settings => '{\"number_of_shards\": 3}'",
    );
    assert_same(world, engine, &sync, "true");
    // Into other shards and months, and away.
    unseen(
        world,
        "UPDATE page SET tenant = 'other' || n % 3 WHERE n % 4 = 0; UPDATE page SET at = '2024-03-01' WHERE n % 5 = 0;
         DELETE FROM page WHERE n % 6 = 0",
    );
    assert_same(world, engine, &sync, "true");
    let verified = world.db.rows(&format!("CALL fanout.verify('{sync}')")).remove(0);
    assert_eq!(verified[1], verified[0]);
    assert!(verified[2..8].iter().all(|count| count.as_deref() == Some("0")), "{verified:?}");
    world.db.exec("TRUNCATE page");
    assert_same(world, engine, &sync, "true");
}

fn a_refused_row_keeps_its_document_until_it_is_gone(world: &mut World, engine: &Engine) {
    world.db.exec(PAGES);
    world.db.exec("ALTER TABLE page ADD code text; UPDATE page SET code = '1'");
    let sync =
        world.index_table("page", engine, r#", columns => '{n,code}', mapping => '{"code": {"type": "integer"}}'"#);
    assert_same(world, engine, &sync, "true");
    world.db.exec("UPDATE page SET code = 'none' WHERE n IN (7, 8, 1001)");
    eventually("they are dead letters", Duration::from_secs(30), || world.status(&sync, "dead_letters") == "3");
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    assert_same(world, engine, &sync, "true");
    assert_eq!(world.status(&sync, "dead_letters"), "3");
    unseen(world, "DELETE FROM page WHERE n IN (7, 9)");
    assert_same(world, engine, &sync, "true");
    assert_eq!(world.status(&sync, "dead_letters"), "2");
}

fn reconciles_beside_writers_lose_nothing(world: &mut World, engine: &Engine) {
    world.db.exec(PAGES);
    let sync = world.index_table("page", engine, "");
    assert_in_step(world, &sync);
    let until = Instant::now() + Duration::from_secs(8);
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let mut db = world.connect();
            std::thread::spawn(move || {
                let mut n = writer;
                while Instant::now() < until {
                    n += 2;
                    // Of one writer the even ones, of the other the odd ones. Padding moves rows to other blocks.
                    let (one, two) = (n % 300, (n * 7 + writer * 2) / 2 * 2 % 300 + writer);
                    db.exec(&format!(
                        "INSERT INTO page VALUES (url({one}), {one}, '2024-02-02', repeat('pad', {n} % 500))
                             ON CONFLICT (url) DO UPDATE SET tenant = EXCLUDED.tenant;
                         DELETE FROM page WHERE url = url({two})"
                    ));
                }
            })
        })
        .collect();
    while Instant::now() < until {
        world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
        std::thread::sleep(Duration::from_millis(1200));
        // It goes on where it was.
        world.end_worker();
        std::thread::sleep(Duration::from_millis(500));
    }
    for writer in writers {
        writer.join().expect("the writer has no trouble");
    }
    assert_in_step(world, &sync);
}

fn rows_of_hashed_ids_are_found(world: &mut World, engine: &Engine) {
    world.db.exec(PAGES);
    let with = ", rename => '{\"url\": \"address\"}', columns => '{url,n}', search_fields => '{address}'";
    let sync = world.index_table("page", engine, with);
    world.wait(&sync);
    let query = r#", dsl => '{"terms": {"n": [3, 4, 1001]}}') ORDER BY n"#;
    let rows = world.db.column(&format!("SELECT n FROM es_rows(NULL::page, '{sync}'{query}"));
    assert_eq!(rows, ["3", "4", "1001"]);
    // Documents without the key can't tell their rows: a warning says so.
    let server = engine.server;
    world.db.exec(&format!(
        "SELECT fanout.index_table('page', server => '{server}', name => 'bare', index => '{}', columns => '{{n}}')",
        world.index_name("page_bare")
    ));
    world.wait("bare");
    let rows = world.db.column(&format!("SELECT n FROM es_rows(NULL::page, 'bare'{query}"));
    assert_eq!(rows, ["1001"]);
}

fn documents_of_a_key_that_had_another_type_go(world: &mut World, engine: &Engine) {
    world.db.exec("CREATE TABLE page (id text PRIMARY KEY, n int NOT NULL)");
    world.db.exec(
        "INSERT INTO page SELECT CASE WHEN n % 2 = 0 THEN 'key ' ELSE '' END || n, n FROM generate_series(1, 40) AS n",
    );
    let sync = world.index_table("page", engine, "");
    assert_in_step(world, &sync);
    let concrete = format!("{}-fanout-1", world.index_name("page"));
    engine.ask("PUT", &format!("/{concrete}/_doc/guest"), Some(json!({"n": -1})));
    engine.refresh(&concrete);
    world.db.exec("ALTER TABLE page ALTER id TYPE int USING n + 1000");
    world.wait(&sync);
    let mut documents = held(world, engine);
    assert_eq!(documents.remove("guest"), Some(-1), "somebody else's");
    let numbers: Vec<i64> = documents.into_values().collect();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
    // Verified, too: here is one that only its version says to be ours.
    let path = format!("/{concrete}/_doc/key%205?version=1600000000000000&version_type=external");
    engine.ask("PUT", &path, Some(json!({"n": 5})));
    engine.refresh(&concrete);
    let verified = world.db.rows(&format!("CALL fanout.verify('{sync}', repair => true)")).remove(0);
    assert_eq!((verified[3].as_deref(), verified[7].as_deref()), (Some("2"), Some("1")), "{verified:?}");
    world.wait(&sync);
    assert_eq!(held(world, engine).len(), 41);
}
