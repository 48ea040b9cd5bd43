//! One index a period: each document is in that of its row's date, and in no other, whatever becomes of the row.

use pg_test::{Dice, Engine, World, assert_in_step, eventually, on_each_engine};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

on_each_engine!(
    documents_follow_their_rows_from_period_to_period,
    what_was_missed_is_found_in_whichever_index_it_is,
    every_unit_and_type_has_its_names,
    a_deleted_index_is_made_and_filled_again,
    the_number_of_indices_is_bounded,
    a_sync_gets_periods_later_and_others_and_none,
    refused_documents_move_too,
    rows_of_related_tables_find_their_documents,
    an_index_that_is_gone_is_filled_again_though_another_cannot_be_made,
    an_index_that_left_the_alias_comes_back,
    what_is_left_of_other_periods_is_told,
    rows_that_need_too_many_indices_keep_no_others_waiting,
    an_index_without_writes_keeps_no_others_waiting,
);

/// What the name of the index of a row ends in, as SQL says it.
const MONTH: &str = "CASE WHEN isfinite(placed_at) AND placed_at >= '0001-01-01+00' AND placed_at < '10000-01-01+00'
    THEN to_char(placed_at AT TIME ZONE 'UTC', 'YYYY-MM') ELSE 'none' END";

const ORDERS: &str = "CREATE TABLE orders (id int PRIMARY KEY, placed_at timestamptz, total int)";

/// Of each document that searches by the alias find: its id and its index. A document in two indices is an error.
fn found(world: &World, engine: &Engine) -> BTreeMap<String, String> {
    let alias = world.index_name("orders");
    let body = json!({"size": 10_000, "_source": false});
    let answer = engine.ask("POST", &format!("/{alias}/_search"), Some(body));
    let mut found = BTreeMap::new();
    for hit in answer["hits"]["hits"].as_array().expect("hits") {
        let (id, index) = (hit["_id"].as_str().unwrap().to_owned(), hit["_index"].as_str().unwrap().to_owned());
        let twice = found.insert(id.clone(), index.clone());
        assert_eq!(twice, None, "document {id} is in {index}, too");
    }
    found
}

/// Each row's document is in the index of its period and in no other, and nothing else is in any.
fn assert_in_place(world: &mut World, engine: &Engine, sync: &str, suffix: &str) {
    assert_in_step(world, sync);
    let prefix = format!("{}-fanout-{}", world.index_name("orders"), generation(world));
    let rows = world.db.rows(&format!("SELECT id::text, {suffix} FROM orders"));
    let expected: BTreeMap<String, String> = rows
        .into_iter()
        .map(|row| (row[0].clone().unwrap(), format!("{prefix}-{}", row[1].clone().unwrap())))
        .collect();
    assert_eq!(found(world, engine), expected);
}

fn generation(world: &mut World) -> String {
    world.db.value("SELECT generation FROM fanout.sync")
}

fn indices(world: &World, engine: &Engine) -> BTreeSet<String> {
    let prefix = format!("{}-fanout-", world.index_name("orders"));
    engine.indices(&prefix).into_iter().map(|index| index.replace(&prefix, "")).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

fn documents_follow_their_rows_from_period_to_period(world: &mut World, engine: &Engine) {
    let mut dice = Dice::new();
    world.db.exec(ORDERS);
    world.db.exec(
        "INSERT INTO orders SELECT n, timestamptz '2024-01-15 12:00+00' + n % 5 * interval '1 month', n
         FROM generate_series(1, 300) n;
         INSERT INTO orders VALUES (1001, NULL, 0), (1002, 'infinity', 0), (1003, '-infinity', 0),
             (1004, '0044-03-15 00:00+00 BC', 0), (1005, '12024-01-01 00:00+00', 0),
             (1006, '2024-02-01 00:30+02', 0), (1007, '2024-02-01 00:00+00', 0)",
    );
    let sync = world.index_table("orders", engine, ", period => '${placed_at:month}'");
    assert_in_place(world, engine, &sync, MONTH);
    let months = set(["1-2024-01", "1-2024-02", "1-2024-03", "1-2024-04", "1-2024-05", "1-none"]);
    assert_eq!(indices(world, engine), months);
    // Each has the mapping, and all are behind the alias.
    let alias = world.index_name("orders");
    let mappings = engine.ask("GET", &format!("/{alias}/_mapping"), None);
    assert_eq!(mappings.as_object().unwrap().len(), 6);
    for mapping in mappings.as_object().unwrap().values() {
        assert_eq!(mapping["mappings"]["properties"]["placed_at"]["type"], "date");
    }
    // A column that comes later is in all mappings, also where no document has it.
    world.db.exec("ALTER TABLE orders ADD address inet; UPDATE orders SET address = '10.0.0.1' WHERE id = 1");
    assert_in_place(world, engine, &sync, MONTH);
    let mappings = engine.ask("GET", &format!("/{alias}/_mapping"), None);
    for (index, mapping) in mappings.as_object().unwrap() {
        assert_eq!(mapping["mappings"]["properties"]["address"]["type"], "ip", "{index}");
    }
    for round in 0..12 {
        if round % 5 == 4 {
            world.end_worker();
        }
        for _ in 0..dice.below(25) + 1 {
            let (id, month, seconds) = (dice.below(400), dice.below(9), dice.below(31 * 86_400));
            let date = match dice.below(12) {
                0 => "NULL".to_owned(),
                1 => "'infinity'".to_owned(),
                _ => format!("timestamptz '2024-01-01+00' + interval '{month} months {seconds} s'"),
            };
            world.db.exec(&match dice.below(6) {
                0 => format!("DELETE FROM orders WHERE id = {id}"),
                1 => format!("UPDATE orders SET total = total + 1 WHERE id = {id}"),
                2 => format!("UPDATE orders SET placed_at = {date} WHERE id = {id}"),
                3 => format!("UPDATE orders SET placed_at = placed_at + interval '20 days' WHERE id % 50 = {id} % 50"),
                4 => format!("BEGIN; DELETE FROM orders WHERE id = {id}; INSERT INTO orders VALUES ({id}, {date}, 7); COMMIT"),
                _ => format!("INSERT INTO orders VALUES ({id}, {date}, 1) ON CONFLICT (id) DO UPDATE SET placed_at = excluded.placed_at"),
            });
        }
        assert_in_place(world, engine, &sync, MONTH);
    }
    assert_eq!(world.status(&sync, "dead_letters"), "0");
    // Searches through the extension, and from one document to its row.
    let counted = world.db.value(&format!("SELECT es_count('{sync}')"));
    assert_eq!(counted, world.db.value("SELECT count(*) FROM orders"));
    // All anew, behind the same alias, and searches find all of it at any time.
    let count = world.db.value("SELECT count(*) FROM orders");
    world.db.exec(&format!("SELECT fanout.resync('{sync}')"));
    eventually("the resync is over", Duration::from_secs(30), || {
        let now = engine.ask("GET", &format!("/{alias}/_count"), None)["count"].to_string();
        assert_eq!(now, count, "searches always see all");
        indices(world, engine).iter().all(|index| index.starts_with("2-"))
    });
    assert_in_place(world, engine, &sync, MONTH);
    // A month that comes after the resync is served as well.
    world.db.exec("INSERT INTO orders VALUES (2000, '2031-07-01', 1)");
    assert_in_place(world, engine, &sync, MONTH);
    world.db.exec("TRUNCATE orders");
    assert_in_place(world, engine, &sync, MONTH);
    world.db.exec("INSERT INTO orders VALUES (1, '2030-07-01', 1)");
    assert_in_place(world, engine, &sync, MONTH);
    let wrong = world.db.column("SELECT item || ' ' || detail FROM fanout.check() WHERE status <> 'ok'");
    assert_eq!(wrong, Vec::<String>::new());
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}', drop_target => true)"));
    eventually("the indices are gone", Duration::from_secs(20), || {
        indices(world, engine).is_empty() && world.db.value("SELECT count(*) FROM fanout.sync") == "0"
    });
    assert!(!engine.exists(&alias));
}

/// Writes without the sync's triggers.
fn unseen(world: &mut World, sql: &str) {
    world.db.exec("ALTER TABLE orders DISABLE TRIGGER USER");
    world.db.exec(sql);
    world.db.exec(
        "DO $$ DECLARE t name; BEGIN
             FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'orders'::regclass LOOP
                 EXECUTE format('ALTER TABLE orders ENABLE ALWAYS TRIGGER %I', t);
             END LOOP;
         END $$",
    );
}

fn what_was_missed_is_found_in_whichever_index_it_is(world: &mut World, engine: &Engine) {
    world.db.exec(ORDERS);
    world.db.exec("INSERT INTO orders SELECT n, date '2024-01-03' + n % 100, n FROM generate_series(1, 200) n");
    let sync = world.index_table("orders", engine, ", period => '${placed_at:month}'");
    assert_in_place(world, engine, &sync, MONTH);
    let verify = |world: &mut World, more: &str| -> Vec<String> {
        let row = world.db.rows(&format!("CALL fanout.verify('{sync}'{more})")).remove(0);
        row.into_iter().take(5).map(Option::unwrap_or_default).collect()
    };
    assert_eq!(verify(world, ""), ["200", "200", "0", "0", "0"], "rows, documents, missing, extra, different");
    world.db.exec("SELECT fanout.pause('orders')");
    unseen(world, "UPDATE orders SET placed_at = '2024-09-09' WHERE id <= 10; DELETE FROM orders WHERE id > 190");
    // A shape that changed is reconciled: not yet, and then by hand.
    let explained = |world: &mut World, id: i32| -> Value {
        let rows = world.db.rows(&format!("SELECT step, state, detail FROM fanout.explain('{sync}', '{id}')"));
        rows.into_iter().map(|row| (row[0].clone().unwrap(), json!([row[1], row[2]]))).collect()
    };
    let moved = explained(world, 5);
    assert_eq!(moved["comparison"][0], "missing", "{moved}");
    assert!(moved["name"][1].as_str().unwrap().ends_with("-fanout-1-2024-09"), "{moved}");
    world.db.exec("SELECT fanout.resume('orders')");
    assert_in_place(world, engine, &sync, MONTH);
    // What somebody else did to the indices: a document taken away, one put where it does not belong.
    let alias = world.index_name("orders");
    let concrete = |month: &str| format!("{alias}-fanout-1-{month}");
    let of_five = engine.ask("GET", &format!("/{}/_doc/5", concrete("2024-09")), None)["_source"].clone();
    engine.ask("DELETE", &format!("/{}/_doc/6", concrete("2024-09")), None);
    engine.ask("PUT", &format!("/{}/_doc/5", concrete("2024-02")), Some(of_five));
    engine.ask("PUT", &format!("/{}/_doc/777", concrete("none")), Some(json!({"id": 777})));
    engine.refresh(&alias);
    assert_eq!(verify(world, ""), ["190", "191", "1", "2", "0"]);
    assert_eq!(verify(world, ", repair => true")[2..], ["1", "2", "0"]);
    assert_in_place(world, engine, &sync, MONTH);
    assert_eq!(verify(world, ""), ["190", "190", "0", "0", "0"]);
    engine.ask("PUT", &format!("/{}/_doc/778", concrete("2024-03")), Some(json!({"id": 778})));
    engine.ask("DELETE", &format!("/{}/_doc/6", concrete("2024-09")), None);
    engine.refresh(&alias);
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    assert_in_place(world, engine, &sync, MONTH);
    // One row by hand, by its key alone.
    engine.ask("DELETE", &format!("/{}/_doc/7", concrete("2024-09")), None);
    world.db.exec(&format!("SELECT fanout.enqueue('{sync}', '7')"));
    assert_in_place(world, engine, &sync, MONTH);
}

fn every_unit_and_type_has_its_names(world: &mut World, engine: &Engine) {
    // The period is of a column of the key: partitioned tables have such.
    world.db.exec(
        "CREATE TABLE orders (id int, at date, moment timestamp, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE orders_early PARTITION OF orders FOR VALUES FROM (MINVALUE) TO ('2025-01-01');
         CREATE TABLE orders_late PARTITION OF orders DEFAULT;
         INSERT INTO orders VALUES (1, '2024-12-31', '2024-12-30 23:59:59.9'), (2, '2025-01-01', 'infinity'), (3, '2021-01-03', NULL)",
    );
    let of = |world: &World| -> BTreeMap<String, String> {
        let prefix = format!("{}-fanout-", world.index_name("orders"));
        found(world, engine).into_iter().map(|(id, index)| (id, index.replace(&prefix, "")[2..].to_owned())).collect()
    };
    let expected = |names: [&str; 3]| -> BTreeMap<String, String> {
        ["1:2024-12-31", "2:2025-01-01", "3:2021-01-03"]
            .map(str::to_owned)
            .into_iter()
            .zip(names.map(str::to_owned))
            .collect()
    };
    let mut sync = String::new();
    for (period, names) in [
        ("${at:year}", ["2024", "2025", "2021"]),
        ("${at:month}", ["2024-12", "2025-01", "2021-01"]),
        ("${at:week}", ["2025-w01", "2025-w01", "2020-w53"]),
        ("${at:day}", ["2024-12-31", "2025-01-01", "2021-01-03"]),
        ("${moment:day}", ["2024-12-30", "none", "none"]),
    ] {
        if sync.is_empty() {
            sync = world.index_table("orders", engine, &format!(", period => '{period}', routing => '${{id}}'"));
        } else {
            let cost = world.db.value(&format!("SELECT fanout.alter_sync('{sync}', period => '{period}')"));
            assert_eq!(cost, "resync");
        }
        assert_in_step(world, &sync);
        eventually("the alias leads to the new indices", Duration::from_secs(20), || of(world) == expected(names));
    }
    world.db.exec(
        "UPDATE orders SET at = '2030-01-01', moment = '2030-05-05' WHERE id = 1; DELETE FROM orders WHERE id = 2",
    );
    assert_in_step(world, &sync);
    let after = [("1:2030-01-01", "2030-05-05"), ("3:2021-01-03", "none")].map(|(id, index)| (id.into(), index.into()));
    assert_eq!(of(world), BTreeMap::from(after));
}

fn a_deleted_index_is_made_and_filled_again(world: &mut World, engine: &Engine) {
    world.db.exec(ORDERS);
    world.db.exec("INSERT INTO orders SELECT n, date '2024-01-03' + n % 100, n FROM generate_series(1, 200) n");
    let sync = world.index_table("orders", engine, ", period => '${placed_at:month}'");
    assert_in_place(world, engine, &sync, MONTH);
    // Nothing is made for what was never there: a row of a period without an index goes.
    world.db.exec("BEGIN; INSERT INTO orders VALUES (900, '1999-01-01', 1); DELETE FROM orders WHERE id = 900; COMMIT");
    assert_in_place(world, engine, &sync, MONTH);
    assert!(!indices(world, engine).contains("1-1999-01"));
    assert_eq!(world.status(&sync, "last_error"), "NULL", "and the target is not asked");
    let february = format!("/{}-fanout-1-2024-02", world.index_name("orders"));
    engine.ask("DELETE", &february, None);
    // Whether it is ours is known for a second, where there are deletions.
    std::thread::sleep(Duration::from_millis(1200));
    world.db.exec("DELETE FROM orders WHERE placed_at = '2024-02-02'");
    assert_in_place(world, engine, &sync, MONTH);
    // Nothing writes there, and the worker learns of it when it begins anew.
    engine.ask("DELETE", &february, None);
    world.end_worker();
    eventually("the index is filled again", Duration::from_secs(40), || {
        engine.exists(&february[1..]) && world.status(&sync, "state") == "live"
    });
    assert_in_place(world, engine, &sync, MONTH);
    let gone = |world: &mut World| world.db.column("SELECT detail FROM fanout.check() WHERE status <> 'ok'").join("; ");
    assert_eq!(gone(world), "");
    engine.ask("DELETE", &february, None);
    assert!(gone(world).contains("2024-02\" is gone"), "{}", gone(world));
    std::thread::sleep(Duration::from_millis(1200));
    world.db.exec("DELETE FROM orders WHERE placed_at = '2024-02-04'");
    assert_in_place(world, engine, &sync, MONTH);
}

fn the_number_of_indices_is_bounded(world: &mut World, engine: &Engine) {
    world.db.exec("ALTER SYSTEM SET fanout.period_indices = 3");
    world.db.exec("SELECT pg_reload_conf()");
    let bounded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.db.exec(ORDERS);
        world.db.exec("INSERT INTO orders VALUES (1, '2024-01-01', 1), (2, '2024-02-01', 1)");
        let sync = world.index_table("orders", engine, ", period => '${placed_at:month}'");
        assert_in_place(world, engine, &sync, MONTH);
        world.db.exec("INSERT INTO orders VALUES (3, '2024-03-01', 1)");
        eventually("the sync is blocked", Duration::from_secs(20), || world.status(&sync, "state") == "blocked");
        let told = world.status(&sync, "last_error");
        assert!(told.contains("belong to 4 indices") && told.contains("fanout.period_indices"), "{told}");
        assert_eq!(indices(world, engine), set(["1-2024-01", "1-2024-02", "1-none"]));
        // The others are delivered all the same, when it is tried again; and the row may be put right.
        world.db.exec("UPDATE orders SET placed_at = '2024-02-02' WHERE id = 3");
        eventually("it is tried again", Duration::from_secs(30), || world.status(&sync, "state") == "live");
        assert_in_place(world, engine, &sync, MONTH);
    }));
    world.db.exec("ALTER SYSTEM RESET fanout.period_indices");
    world.db.exec("SELECT pg_reload_conf()");
    if let Err(panic) = bounded {
        std::panic::resume_unwind(panic);
    }
}

fn a_sync_gets_periods_later_and_others_and_none(world: &mut World, engine: &Engine) {
    world.db.exec(ORDERS);
    world.db.exec("INSERT INTO orders SELECT n, date '2024-01-03' + n % 100, n FROM generate_series(1, 200) n");
    let sync = world.index_table("orders", engine, "");
    assert_in_step(world, &sync);
    let alter = |world: &mut World, more: &str| world.db.value(&format!("SELECT fanout.alter_sync('{sync}', {more})"));
    let address = "SELECT address_columns FROM fanout.sync";
    let steps: [(&str, &str, Option<&str>); 5] = [
        ("period => '${placed_at:month}'", "{id,placed_at}", Some(MONTH)),
        ("routing => '${total}'", "{id,total,placed_at}", Some(MONTH)),
        (
            "routing => '${id}', period => '${placed_at:year}'",
            "{id,placed_at}",
            Some("to_char(placed_at AT TIME ZONE 'UTC', 'YYYY')"),
        ),
        ("reset => '{period}', routing => '${total}'", "{id,total}", None),
        ("reset => '{routing}'", "{id}", None),
    ];
    for (change, columns, suffix) in steps {
        let before = world.db.value(address);
        assert_eq!(alter(world, &format!("{change}, dry_run => true")), "resync");
        assert_eq!(world.db.value(address), before, "a dry run changes nothing");
        // Others write all the time; one of them holds the old columns when the change begins.
        let mut other = world.connect();
        other.exec(
            "BEGIN; UPDATE orders SET placed_at = placed_at + interval '1 month', total = total + 1 WHERE id = 17",
        );
        let database = world.database();
        let altering = std::thread::spawn({
            let sql = format!("SELECT fanout.alter_sync('{sync}', {change})");
            move || pg_test::Session::connect(&database).value(&sql)
        });
        std::thread::sleep(Duration::from_millis(500));
        if before != columns {
            assert!(!altering.is_finished(), "{change} waits for who has captured by other columns");
        }
        other.exec("COMMIT");
        assert_eq!(altering.join().unwrap(), "resync");
        assert_eq!(world.db.value(address), columns);
        world.db.exec(
            "UPDATE orders SET placed_at = placed_at + interval '40 days', total = total + 1 WHERE id % 9 = 0;
             DELETE FROM orders WHERE id IN (SELECT id FROM orders ORDER BY random() LIMIT 5)",
        );
        assert_in_step(world, &sync);
        let current = format!("{}-", generation(world));
        eventually("the old generation is gone", Duration::from_secs(20), || {
            indices(world, engine).iter().all(|index| index.starts_with(&current) || *index == current[..1])
        });
        match suffix {
            Some(suffix) => assert_in_place(world, engine, &sync, suffix),
            None => assert_in_step(world, &sync),
        }
        // And it goes on by the columns of now.
        world.db.exec("UPDATE orders SET placed_at = placed_at - interval '70 days', total = total * 2 WHERE id % 7 = 0; DELETE FROM orders WHERE id = 1");
        assert_in_step(world, &sync);
        assert_eq!(alter(world, change.split(", period").next().unwrap()), "nothing");
    }
}

fn refused_documents_move_too(world: &mut World, engine: &Engine) {
    world.db.exec(ORDERS);
    let mapping = r#"{"total": {"type": "byte"}}"#;
    let sync =
        world.index_table("orders", engine, &format!(", period => '${{placed_at:month}}', mapping => '{mapping}'"));
    let concrete = |world: &World, month: &str| format!("{}-fanout-1-{month}", world.index_name("orders"));
    let letters = |world: &mut World| {
        world.wait("orders");
        world.db.value("SELECT count(*) FROM fanout.dead_letters")
    };
    world.db.exec("INSERT INTO orders VALUES (1, '2024-01-05', 1000), (2, '2024-01-06', 2)");
    assert_eq!(letters(world), "1");
    world.db.exec("UPDATE orders SET placed_at = '2024-01-15' WHERE id = 1");
    assert_eq!(letters(world), "1");
    world.db.exec("UPDATE orders SET placed_at = '2024-02-15' WHERE id = 1");
    assert_eq!(letters(world), "1");
    world.db.exec("UPDATE orders SET placed_at = '2024-02-16', total = 1 WHERE id = 1");
    assert_eq!(letters(world), "0");
    assert_in_place(world, engine, &sync, MONTH);
    // The document of before is deleted, and stays so while the row moves within the month.
    assert_eq!(world.db.value("SELECT fanout.alter_sync('orders', on_reject => 'delete')"), "nothing");
    world.db.exec("UPDATE orders SET total = 1000 WHERE id = 2");
    assert_eq!(letters(world), "1");
    assert_eq!(engine.document(&concrete(world, "2024-01"), "2"), None);
    world.db.exec("UPDATE orders SET placed_at = '2024-01-20' WHERE id = 2");
    assert_eq!(letters(world), "1");
    assert_eq!(engine.document(&concrete(world, "2024-01"), "2"), None);
    world.db.exec("UPDATE orders SET placed_at = '2024-01-21', total = 2 WHERE id = 2");
    assert_eq!(letters(world), "0");
    assert_in_place(world, engine, &sync, MONTH);
}

fn rows_of_related_tables_find_their_documents(world: &mut World, engine: &Engine) {
    world.db.exec(ORDERS);
    world.db.exec(
        "CREATE TABLE note (id int PRIMARY KEY, order_id int REFERENCES orders ON DELETE CASCADE, words text);
         INSERT INTO orders SELECT n, date '2024-01-03' + n, n FROM generate_series(1, 100) n;
         INSERT INTO note SELECT n, n, 'note ' || n FROM generate_series(1, 100) n",
    );
    let query = "SELECT o.id, o.total, (SELECT string_agg(n.words, '; ' ORDER BY n.id) FROM note n WHERE n.order_id = o.id) AS notes";
    let period = "period => '${placed_at:month}'";
    let sync = world.index_table("orders", engine, &format!(", document => $${query} FROM orders o$$"));
    world.db.exec("SELECT fanout.related('orders', 'note')");
    assert_in_step(world, &sync);
    let direct = "SELECT bool_or(direct) FROM fanout.relation";
    assert_eq!(world.db.value(direct), "t");
    // The query has to yield what the address is made from.
    let refusal = world.db.refusal(&format!("SELECT fanout.alter_sync('{sync}', {period})"));
    assert_eq!(refusal.code, "42703", "{refusal}");
    assert!(refusal.message.contains("does not yield column \"placed_at\""), "{refusal}");
    let changed = format!("document => $${query}, o.placed_at FROM orders o$$, {period}");
    assert_eq!(world.db.value(&format!("SELECT fanout.alter_sync('{sync}', {changed})")), "resync");
    assert_eq!(world.db.value(direct), "f", "what is captured there is the key, and no address any more");
    assert_in_place(world, engine, &sync, MONTH);
    for round in 0..5 {
        world.db.exec(&format!(
            "UPDATE note SET words = words || {round}, order_id = 1 + (order_id + 31) % 90 WHERE id % 5 = {round};
             UPDATE orders SET placed_at = placed_at + interval '17 days' WHERE id % 3 = {round} % 3 AND id <> {round};
             DELETE FROM orders WHERE id = 95 + {round}; DELETE FROM note WHERE id = 90 + {round}"
        ));
        assert_in_place(world, engine, &sync, MONTH);
    }
}

fn an_index_that_is_gone_is_filled_again_though_another_cannot_be_made(world: &mut World, engine: &Engine) {
    world.db.exec(ORDERS);
    world.db.exec("INSERT INTO orders SELECT n, date '2024-01-03' + n % 50, n FROM generate_series(1, 100) n");
    let sync = world.index_table("orders", engine, ", period => '${placed_at:month}'");
    assert_in_place(world, engine, &sync, MONTH);
    let concrete = |month: &str| format!("/{}-fanout-1-{month}", world.index_name("orders"));
    let (gone, taken) = (concrete("2024-01"), concrete("2024-09"));
    // Nothing is written to the one for which that would be noticed; the name of the other is somebody's.
    engine.ask("DELETE", &gone, None);
    engine.ask("PUT", &taken, Some(json!({})));
    world.db.exec("INSERT INTO orders VALUES (900, '2024-09-01', 1)");
    eventually("the sync is blocked", Duration::from_secs(20), || world.status(&sync, "state") == "blocked");
    engine.ask("DELETE", &taken, None);
    eventually("it is tried again", Duration::from_secs(30), || world.status(&sync, "state") == "live");
    assert_in_place(world, engine, &sync, MONTH);
}

fn an_index_that_left_the_alias_comes_back(world: &mut World, engine: &Engine) {
    world.db.exec(ORDERS);
    let sync = world.index_table("orders", engine, ", period => '${placed_at:month}'");
    assert_in_place(world, engine, &sync, MONTH);
    // The alias moves to the one index that there is.
    world.db.exec(&format!("SELECT fanout.resync('{sync}')"));
    eventually("the resync is over", Duration::from_secs(20), || indices(world, engine) == set(["2-none"]));
    world.db.exec("INSERT INTO orders SELECT n, date '2024-01-03' + n % 50, n FROM generate_series(1, 100) n");
    assert_in_place(world, engine, &sync, MONTH);
    let alias = world.index_name("orders");
    for month in ["2024-01", "2024-02"] {
        for alias in [alias.clone(), format!("{alias}-fanout-2")] {
            let remove = json!({"index": format!("{}-fanout-2-{month}", world.index_name("orders")), "alias": alias});
            engine.ask("POST", "/_aliases", Some(json!({"actions": [{ "remove": remove }]})));
        }
        world.end_worker();
        eventually("it is behind the alias again", Duration::from_secs(30), || {
            found(world, engine).len() == 100 && world.status(&sync, "state") == "live"
        });
    }
    assert_in_place(world, engine, &sync, MONTH);
    let aliases = engine.ask("GET", &format!("/{alias}/_alias"), None);
    assert!(!aliases.to_string().contains("is_write_index"), "{aliases}");
    // By the alias of a generation nothing else is served.
    let (server, taken) = (engine.server, format!("{alias}-fanout-2"));
    let refusal =
        world.db.refusal(&format!("SELECT fanout.index_table('orders', '{server}', name => 'b', index => '{taken}')"));
    assert_eq!(refusal.code, "42602", "{refusal}");
}

fn what_is_left_of_other_periods_is_told(world: &mut World, engine: &Engine) {
    world.db.exec(ORDERS);
    world.db.exec("INSERT INTO orders SELECT n, date '2024-01-03' + n % 50, n FROM generate_series(1, 100) n");
    let sync = world.index_table("orders", engine, ", period => '${placed_at:month}'");
    assert_in_place(world, engine, &sync, MONTH);
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}')"));
    let year = "to_char(placed_at AT TIME ZONE 'UTC', 'YYYY')";
    let sync = world.index_table("orders", engine, ", period => '${placed_at:year}'");
    eventually("the sync is blocked", Duration::from_secs(20), || world.status(&sync, "state") == "blocked");
    let told = world.status(&sync, "last_error");
    assert!(told.contains("-fanout-1-2024-01\"") && told.contains("fanout.resync()"), "{told}");
    world.db.exec(&format!("SELECT fanout.resync('{sync}')"));
    eventually("the others are gone", Duration::from_secs(20), || indices(world, engine) == set(["2-2024", "2-none"]));
    assert_in_place(world, engine, &sync, year);
}

fn rows_that_need_too_many_indices_keep_no_others_waiting(world: &mut World, engine: &Engine) {
    world.db.exec("ALTER SYSTEM SET fanout.period_indices = 2");
    world.db.exec("SELECT pg_reload_conf()");
    let bounded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.db.exec(ORDERS);
        world.db.exec("INSERT INTO orders VALUES (1, '2024-01-01', 1)");
        let sync = world.index_table("orders", engine, ", period => '${placed_at:month}'");
        assert_in_place(world, engine, &sync, MONTH);
        world.end_worker();
        world.db.exec("INSERT INTO orders SELECT n, '2024-03-01', 1 FROM generate_series(1001, 1200) n");
        eventually("the sync is blocked", Duration::from_secs(20), || world.status(&sync, "state") == "blocked");
        world.db.exec("UPDATE orders SET total = 2 WHERE id = 1");
        let concrete = format!("{}-fanout-1-2024-01", world.index_name("orders"));
        eventually("the other is delivered", Duration::from_secs(50), || {
            engine.document(&concrete, "1").is_some_and(|document| document["total"] == 2)
        });
        // Tried again, and live, for a moment each time.
        eventually("it is blocked still", Duration::from_secs(20), || world.status(&sync, "state") == "blocked");
    }));
    world.db.exec("ALTER SYSTEM RESET fanout.period_indices");
    world.db.exec("SELECT pg_reload_conf()");
    if let Err(panic) = bounded {
        std::panic::resume_unwind(panic);
    }
}

fn an_index_without_writes_keeps_no_others_waiting(world: &mut World, engine: &Engine) {
    world.db.exec(ORDERS);
    world.db.exec("INSERT INTO orders VALUES (1, '2024-01-01', 1), (2, '2024-02-01', 1)");
    let sync = world.index_table("orders", engine, ", period => '${placed_at:month}'");
    assert_in_place(world, engine, &sync, MONTH);
    let alias = world.index_name("orders");
    let concrete = |month: &str| format!("{alias}-fanout-1-{month}");
    let block = json!({"index.blocks.write": true});
    engine.ask("PUT", &format!("/{}/_settings", concrete("2024-01")), Some(block));
    world.db.exec("UPDATE orders SET total = 2 WHERE id = 1");
    eventually("it is refused", Duration::from_secs(20), || {
        world.status(&sync, "last_error").contains("cluster_block_exception")
    });
    for total in 2..5 {
        world.db.exec(&format!("UPDATE orders SET total = {total} WHERE id = 2"));
        eventually("the other is delivered", Duration::from_secs(5), || {
            engine.document(&concrete("2024-02"), "2").is_some_and(|document| document["total"] == total)
        });
    }
    eventually("the one waits", Duration::from_secs(5), || world.status(&sync, "pending") == "1");
    let block = json!({"index.blocks.write": null});
    engine.ask("PUT", &format!("/{}/_settings", concrete("2024-01")), Some(block));
    assert_in_place(world, engine, &sync, MONTH);
}
