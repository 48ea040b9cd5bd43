//! `es_search()`.

use crate::tables::products;
use pg_test::{Engine, World, on_each_engine};
use std::collections::BTreeSet;

on_each_engine!(
    hits_join_with_their_rows,
    filter_and_sort_and_source_do_what_they_say,
    the_cursor_visits_every_row_once,
    nothing_that_a_visitor_types_throws,
    what_cannot_be_done_is_refused,
    a_server_is_found_by_its_name,
    what_is_found_is_the_jsonb_that_postgresql_makes,
    a_transaction_that_only_looks_gets_no_number
);

/// 300 products, searchable. Returns the sync, which is what es_search() takes.
fn catalogue(world: &mut World, engine: &Engine) -> String {
    products(world, 300);
    world.db.exec(
        "UPDATE product SET name = 'walking boot ' || id WHERE id % 3 = 0;
         UPDATE product SET name = 'Österreichischer Bergschuh' WHERE id = 100",
    );
    let sync = world.index_table("product", engine, ", search_fields => '{name}'");
    world.wait(&sync);
    sync
}

/// A standby could not give it one, nor could a query with parallel workers.
fn a_transaction_that_only_looks_gets_no_number(world: &mut World, engine: &Engine) {
    let sync = catalogue(world, engine);
    let looks = [
        "SELECT count(*) FROM fanout.status".to_owned(),
        format!("SELECT count(*) FROM es_search('{sync}', 'boot')"),
        format!("SELECT count(*) FROM es_rows(NULL::product, '{sync}', 'boot')"),
        format!("SELECT es_count('{sync}', 'boot')"),
    ];
    world.db.exec(
        "BEGIN; SET LOCAL parallel_setup_cost = 0; SET LOCAL parallel_tuple_cost = 0;
         SET LOCAL min_parallel_table_scan_size = 0",
    );
    let beside = "(SELECT count(*) FROM product)";
    assert!(world.db.column(&format!("EXPLAIN SELECT {beside}")).concat().contains("Gather"));
    for look in looks {
        assert_ne!(world.db.value(&look), "0", "{look}");
        assert_ne!(world.db.value(&format!("SELECT ({look}) + {beside}")), "0", "{look}");
        assert_eq!(world.db.value("SELECT pg_current_xact_id_if_assigned() IS NULL"), "t", "{look}");
    }
    world.db.exec("COMMIT");
}

fn hits_join_with_their_rows(world: &mut World, engine: &Engine) {
    let sync = catalogue(world, engine);
    let rows = world.db.rows(&format!(
        "SELECT p.name, h.rank, h.score, h.total, h.total_exact
         FROM es_search('{sync}', 'boot', size => 20) AS h JOIN product AS p ON p.id = h.id::bigint
         ORDER BY h.rank"
    ));
    assert_eq!(rows.len(), 20);
    assert!(rows.iter().all(|row| row[0].as_deref().is_some_and(|name| name.starts_with("walking boot"))), "{rows:?}");
    assert_eq!(rows[0][1].as_deref(), Some("1"));
    assert!(
        rows.iter().all(|row| row[2].is_some() && row[3].as_deref() == Some("100") && row[4].as_deref() == Some("t"))
    );
    let found = world.db.column(&format!("SELECT id FROM es_search('{sync}', 'österreichischer')"));
    assert_eq!(found, ["100"]);
    let found = world.db.column(&format!("SELECT id FROM es_search('{sync}', 'nothing of the kind')"));
    assert!(found.is_empty(), "{found:?}");
    // A change is found as soon as wait() returns.
    world.db.exec("UPDATE product SET name = 'xylophone' WHERE id = 42");
    world.wait(&sync);
    assert_eq!(world.db.column(&format!("SELECT id FROM es_search('{sync}', 'xylophone')")), ["42"]);
}

fn filter_and_sort_and_source_do_what_they_say(world: &mut World, engine: &Engine) {
    let sync = catalogue(world, engine);
    let prices = world.db.column(&format!(
        r#"SELECT (source->>'price')::numeric
           FROM es_search('{sync}', 'boot', filter => '{{"range": {{"price": {{"lte": 50}}}}}}',
                          sort => '[{{"price": "desc"}}]', source => true, size => 50)
           ORDER BY rank"#
    ));
    let expected = world.db.column("SELECT price FROM product WHERE price <= 50 AND id % 3 = 0 ORDER BY price DESC");
    let number = |text: &String| text.parse::<f64>().expect("a number");
    assert_eq!(prices.iter().map(number).collect::<Vec<_>>(), expected.iter().map(number).collect::<Vec<_>>());
    let ids = world.db.column(&format!(
        r#"SELECT id FROM es_search('{sync}', dsl => '{{"terms": {{"id": [5, 6, 7]}}}}', sort => '[{{"id": "asc"}}]') ORDER BY rank"#
    ));
    assert_eq!(ids, ["5", "6", "7"]);
    let highlight = world
        .db
        .value(&format!("SELECT highlight::text FROM es_search('{sync}', 'bergschuh', highlight => '{{name}}')"));
    assert!(highlight.contains("<em>Bergschuh</em>"), "{highlight}");
    assert_eq!(world.db.value(&format!("SELECT count(*) FROM es_search('{sync}', 'boot', min_score => 1e9)")), "0");
}

fn the_cursor_visits_every_row_once(world: &mut World, engine: &Engine) {
    let sync = catalogue(world, engine);
    let mut seen = Vec::new();
    let mut after = String::new();
    for _page in 0..20 {
        let rows = world.db.rows(&format!(
            r#"SELECT id, cursor FROM es_search('{sync}', 'trail boot bergschuh', size => 37,
                      sort => '[{{"active": "asc"}}, {{"id": "asc"}}]'{after}) ORDER BY rank"#
        ));
        let Some(last) = rows.last() else { break };
        let cursor = last[1].clone().unwrap_or_default();
        seen.extend(rows.into_iter().filter_map(|row| row[0].clone()));
        if cursor.is_empty() {
            break;
        }
        after = format!(", after => '{}'", cursor.replace('\'', "''"));
    }
    assert_eq!(seen.len(), 300, "rows twice, or missing");
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 300);
}

fn nothing_that_a_visitor_types_throws(world: &mut World, engine: &Engine) {
    let sync = catalogue(world, engine);
    world.db.exec("SET statement_timeout = '20s'");
    let mut queries: Vec<String> = [
        "",
        " ",
        "((((",
        "))))",
        "\"",
        "\"\"\"",
        "'",
        "*",
        "?",
        "~",
        "a~",
        "a~9",
        "-",
        "+",
        "|",
        "-boot",
        "+-|",
        "\\",
        "a\\",
        "name:boot",
        "price:[1 TO",
        "[1 TO 2]",
        "{",
        "/a(b/",
        "AND OR NOT",
        "boot AND",
        "🚲",
        "🚲 boot",
        "a\nb\tc",
        "null",
        "\u{200b}",
        "\u{202e}tfel",
        "<script>",
        "2024-99-99",
        "١٢٣",
        "boot^99999",
        "a^",
        "_exists_:x",
        "%",
        "..",
        "#",
    ]
    .map(str::to_owned)
    .to_vec();
    queries.push((0..10_000).map(|n| format!("word{n} ")).collect());
    queries.push("a* ".repeat(2000));
    queries.push("a~ ".repeat(2000));
    queries.push("(".repeat(5000));
    queries.push(format!("{}boot{}", "(".repeat(2000), ")".repeat(2000)));
    queries.push("x".repeat(200_000));
    queries.push("\"boot ".repeat(3000));
    for query in queries {
        let sql = format!("SELECT count(*) FROM es_search('{sync}', '{}')", query.replace('\'', "''"));
        if let Err(error) = world.db.try_rows(&sql) {
            let beginning: String = query.chars().take(40).collect();
            panic!("{error}\nfor a query of {} characters that begins with {beginning:?}", query.chars().count());
        }
    }
    // The engine is still well.
    assert_eq!(world.db.value(&format!("SELECT count(*) FROM es_search('{sync}', 'boot', size => 100)")), "100");
}

fn what_cannot_be_done_is_refused(world: &mut World, engine: &Engine) {
    let sync = catalogue(world, engine);
    for call in [
        "'nonsense', 'boot'".to_owned(),
        format!("'{sync}', 'boot', size => -1"),
        format!("'{sync}', 'boot', size => 1000000"),
        format!(r#"'{sync}', dsl => '{{"nonsense": {{}}}}'"#),
        format!("'{sync}', 'boot', fields => '{{}}'"),
        format!("'{sync}', 'boot', after => '[\"nonsense\"]'"),
    ] {
        let refusal = world.db.refusal(&format!("SELECT * FROM es_search({call})"));
        assert!(!refusal.code.starts_with("XX"), "{refusal}\nto: {call}");
    }
    // An index that somebody removed is an error, not an empty answer.
    let index = world.index_name("product");
    world.db.exec(&format!("SELECT fanout.pause('{sync}')"));
    for concrete in engine.indices(&index) {
        engine.ask("DELETE", &format!("/{concrete}"), None);
    }
    world.db.refusal(&format!("SELECT * FROM es_search('{sync}', 'boot')"));
}

/// Names are resolved on a thread of its own, which must not get the signals of the session.
fn a_server_is_found_by_its_name(world: &mut World, engine: &Engine) {
    let sync = catalogue(world, engine);
    let index = world.db.value(&format!("SELECT target FROM fanout.sync WHERE name = '{sync}'"));
    let url = engine.url.replace("127.0.0.1", "localhost");
    assert!(url.contains("localhost"), "{url}");
    world.db.exec(&format!(
        "CREATE SERVER named FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url '{url}');
         CREATE SERVER nowhere FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'http://host.invalid:9200')"
    ));
    let search = |server: &str| {
        format!("SELECT count(*) FROM es_search_index('{server}', '{index}', 'boot', fields => '{{name}}')")
    };
    assert_eq!(world.db.value(&search("named")), "10");
    let refusal = world.db.refusal(&search("nowhere"));
    assert_eq!(refusal.code, "08001", "{refusal}");
    assert!(refusal.message.contains("nowhere"), "{refusal}");
}

/// Sources are written as jsonb without jsonb_in(): each must be what it would have made.
fn what_is_found_is_the_jsonb_that_postgresql_makes(world: &mut World, engine: &Engine) {
    world.db.exec(
        r#"CREATE TABLE shapes (id int PRIMARY KEY, doc jsonb);
         INSERT INTO shapes SELECT ordinality, doc::jsonb FROM unnest(ARRAY[
             '{}', '[]', '{"a": {}, "b": []}', '{"ä": "ö\n\"\\", "e": "", "u": "\ud83d\ude00"}', '[true, false, null]',
             '{"n": [0, -0, 1, -1.50, 1e3, 1E-7, 12345678901234567890.123, 9007199254740993]}',
             '{"long name": 1, "b": 2, "aa": 3, "a": 4, "ab": [[1], [[2, "x"]], {"y": {"z": [null]}}]}'])
         WITH ORDINALITY AS made (doc, ordinality);
         -- More entries than one offset covers; odd lengths before what is aligned.
         INSERT INTO shapes SELECT 100 + n, jsonb_build_object(
             'wide', (SELECT jsonb_object_agg('key' || k, repeat('x', k % 7)) FROM generate_series(1, n) AS k),
             'long', (SELECT jsonb_agg(CASE k % 3 WHEN 0 THEN to_jsonb(k * 1.5) WHEN 1 THEN to_jsonb(repeat('é', k % 5))
                                       ELSE jsonb_build_object('k', k) END) FROM generate_series(1, n) AS k))
         FROM unnest(ARRAY[1, 2, 31, 32, 33, 64, 65, 200]) AS n;
         -- Numbers: signs, groups of four digits on both sides of the point, and more digits than are written without numeric_in().
         INSERT INTO shapes SELECT 500, jsonb_agg((sign || whole || fraction)::numeric)
         FROM unnest('{"",-}'::text[]) AS sign,
              unnest(ARRAY['0', '1', '9', '10', '120', '9999', '10000', '100000', '12345678', '100000000', '1' || repeat('0', 31),
                           repeat('9', 32), repeat('9', 33)]) AS whole,
              unnest(ARRAY['', '.0', '.00', '.5', '.05', '.0001', '.00001', '.000000000001', '.12345', '.1234567890',
                           '.' || repeat('0', 31) || '1', '.' || repeat('9', 32), '.' || repeat('9', 33)]) AS fraction;
         -- Long enough to be left to jsonb_in().
         INSERT INTO shapes SELECT 1000, jsonb_build_object('text', repeat('0123456789', 500000))"#,
    );
    let sync = world.index_table("shapes", engine, r#", types => '{"jsonb": "disabled"}'"#);
    world.wait(&sync);
    // Stored each in a row of its own: then what has the same bytes has the same size.
    world.db.exec(&format!(
        "CREATE TABLE found AS SELECT id::int, source FROM es_search('{sync}', size => 50);
         CREATE TABLE again AS SELECT id, source::text::jsonb AS again FROM found"
    ));
    let wrong = world.db.column(
        "SELECT id FROM shapes LEFT JOIN found USING (id) LEFT JOIN again USING (id)
         WHERE (source->'doc' = doc AND (source->'doc')::text = doc::text AND source = again AND again = source
                AND pg_column_size(source) = pg_column_size(again)
                AND (SELECT count(*) FROM jsonb_each(source)) = 2) IS NOT TRUE",
    );
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A session keeps what it read of servers and mappings: only until they change.
#[test]
fn what_a_server_and_its_mappings_say_counts_from_the_next_call_on() {
    let mut world = World::new("server_changes");
    let engine = Engine::opensearch();
    let sync = catalogue(&mut world, &engine);
    let mut session = world.connect();
    let search = format!("SELECT es_count('{sync}')");
    let get = "SELECT redis_get('cache', 'none')";
    assert_eq!((session.value(&search), session.value(get)), ("300".to_owned(), "NULL".to_owned()));

    world.db.exec("ALTER SERVER search OPTIONS (SET url 'http://127.0.0.1:1')");
    assert_eq!(session.refusal(&search).code, "08001");
    world.db.exec(&format!("ALTER SERVER search OPTIONS (SET url '{}')", engine.url));
    assert_eq!(session.value(&search), "300");

    // As the transaction itself sees it, and no longer once it is undone.
    session.exec("BEGIN; ALTER SERVER search OPTIONS (SET url 'http://127.0.0.1:1')");
    assert_eq!(session.refusal(&search).code, "08001");
    session.exec("ROLLBACK");
    assert_eq!(session.value(&search), "300");

    // This Redis has no password: it refuses one.
    world.db.exec("CREATE USER MAPPING FOR PUBLIC SERVER cache OPTIONS (password 'x')");
    let refusal = session.refusal(get);
    assert!(refusal.code.starts_with("28"), "{refusal}");
    world.db.exec("DROP USER MAPPING FOR PUBLIC SERVER cache");
    assert_eq!(session.value(get), "NULL");

    world.db.exec("ALTER SERVER cache RENAME TO renamed");
    assert_eq!(session.refusal(get).code, "42704");
    assert_eq!(session.value("SELECT redis_get('renamed', 'none')"), "NULL");
}
