//! Rows that are hard to read: slow, failing, forbidden, large, or equal and yet not the same.

use crate::proxied::in_step_again;
use crate::tables::products;
use pg_test::{Engine, Setting, World, assert_in_step, differences, eventually};
use std::time::Duration;

/// A table of 100 rows, of which some may take longer to read than the worker is willing to wait.
fn slow_rows(world: &mut World) {
    world.db.exec(
        "CREATE TYPE odd AS ENUM ('fine', 'slow', 'endless', 'broken', 'odd');
         CREATE FUNCTION odd_json(o odd) RETURNS json LANGUAGE plpgsql AS $$
         BEGIN
             IF o = 'slow' THEN PERFORM pg_sleep(600); END IF;
             WHILE o = 'endless' LOOP PERFORM 1; END LOOP;
             IF o = 'broken' THEN RAISE division_by_zero; END IF;
             IF o = 'odd' THEN RAISE 'not supported by this library' USING ERRCODE = 'XX000'; END IF;
             RETURN to_json(1);
         END $$;
         CREATE CAST (odd AS json) WITH FUNCTION odd_json(odd);
         CREATE TABLE part (id int PRIMARY KEY, o odd, n int);
         INSERT INTO part SELECT i, 'fine', 0 FROM generate_series(1, 100) AS i",
    );
}

#[test]
fn a_slow_row_holds_up_neither_its_neighbours_nor_other_syncs() {
    let mut world = World::alone("slow_row");
    let _timeout = Setting::set(&mut world, "fanout.read_timeout", "300ms");
    slow_rows(&mut world);
    products(&mut world, 50);
    let part = world.cache_table("part", "");
    let product = world.cache_table("product", "");
    assert_in_step(&mut world, &part);
    assert_in_step(&mut world, &product);
    world.db.exec("UPDATE part SET o = 'slow' WHERE id = 7; UPDATE part SET o = 'endless' WHERE id = 70");
    for round in 1..=5 {
        world
            .db
            .exec(&format!("UPDATE part SET n = {round} WHERE id NOT IN (7, 70); UPDATE product SET price = {round}"));
        eventually("the other sync is in step", Duration::from_secs(15), || {
            world.try_wait(&product, "15s").is_ok() && differences_quickly(&mut world, "product", "price", round) == 0
        });
        eventually("the neighbours are in step", Duration::from_secs(30), || {
            differences_quickly(&mut world, "part", "n", round) <= 2
        });
    }
    assert!(world.status(&part, "last_error") != "NULL");
    world.db.exec("UPDATE part SET o = 'fine' WHERE id IN (7, 70)");
    in_step_again(&mut world, &part);
}

/// How many keys of a table lack this value; without reading the table, which may take for ever.
fn differences_quickly(world: &mut World, table: &str, column: &str, value: i32) -> usize {
    let prefix = world.key_prefix(table);
    let held = pg_test::Keyspace::open().json(&prefix);
    held.iter().filter(|(_, document)| document[column].as_f64() != Some(f64::from(value))).count()
}

#[test]
fn a_failing_row_is_a_dead_letter_and_other_syncs_go_on() {
    let mut world = World::new("failing_row");
    slow_rows(&mut world);
    products(&mut world, 50);
    let part = world.cache_table("part", "");
    let product = world.cache_table("product", "");
    world.wait(&part);
    world
        .db
        .exec("UPDATE part SET o = 'broken', n = 1 WHERE id IN (7, 50); UPDATE part SET n = 1 WHERE id NOT IN (7, 50)");
    world.db.exec("UPDATE product SET price = 1");
    assert_in_step(&mut world, &product);
    eventually("both are dead letters", Duration::from_secs(30), || world.status(&part, "dead_letters") == "2");
    world.wait(&part);
    assert_eq!(differences_quickly(&mut world, "part", "n", 1), 2);
    world.db.exec("UPDATE part SET o = 'fine' WHERE id = 7; DELETE FROM part WHERE id = 50");
    assert_in_step(&mut world, &part);
    assert_eq!(world.status(&part, "dead_letters"), "0");
}

#[test]
fn a_row_that_fails_without_a_code_is_a_dead_letter_in_the_end() {
    let mut world = World::new("odd_row");
    slow_rows(&mut world);
    let part = world.cache_table("part", "");
    assert_in_step(&mut world, &part);
    world
        .db
        .exec("UPDATE part SET o = 'odd', n = 1 WHERE id IN (7, 50); UPDATE part SET n = 1 WHERE id NOT IN (7, 50)");
    eventually("the others are in step", Duration::from_secs(30), || {
        differences_quickly(&mut world, "part", "n", 1) == 2
    });
    // Not at once: it may be of the moment, and no fault of theirs.
    assert_eq!(world.status(&part, "dead_letters"), "0");
    assert!(world.status(&part, "last_error").contains("not supported by this library"));
    world.db.exec("UPDATE part SET o = 'fine' WHERE id = 50");
    eventually("one is a dead letter", Duration::from_secs(60), || world.status(&part, "dead_letters") == "1");
    world.wait(&part);
    let reason = world.db.value("SELECT reason FROM fanout.dead_letters WHERE key = '{7}'");
    assert!(reason.contains("not supported by this library (SQLSTATE XX000)"), "{reason}");
    world.db.exec("UPDATE part SET o = 'fine'");
    assert_in_step(&mut world, &part);
    assert_eq!(world.status(&part, "dead_letters"), "0");
}

#[test]
fn a_row_that_takes_too_much_memory_is_a_dead_letter_and_the_others_go_on() {
    let mut world = World::alone("memory");
    let _memory = Setting::set(&mut world, "fanout.read_memory", "64MB");
    let worker =
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'pg_fanout worker'";
    products(&mut world, 50);
    let product = world.cache_table("product", "");
    world.wait(&product);
    let pid = world.db.value(worker);
    world.db.exec(
        "CREATE FUNCTION hog(megabytes int) RETURNS bigint STABLE LANGUAGE sql AS
         $$ SELECT length(string_agg(repeat('x', 1048576), '')) FROM generate_series(1, megabytes) $$;
         CREATE TABLE part (id int PRIMARY KEY, megabytes int, n int);
         INSERT INTO part SELECT i, CASE i WHEN 7 THEN 400 ELSE 1 END, 0 FROM generate_series(1, 60) AS i",
    );
    let part = world.cache_table("part", ", document => 'SELECT id, n, hog(megabytes) AS size FROM part'");
    for round in 1..=2 {
        eventually("it is a dead letter", Duration::from_secs(60), || world.status(&part, "dead_letters") == "1");
        world.wait(&part);
        let (key, reason) = {
            let row = world.db.rows("SELECT key::text, reason FROM fanout.dead_letters WHERE sync = 'part'");
            (row[0][0].clone().unwrap_or_default(), row[0][1].clone().unwrap_or_default())
        };
        assert!(
            key.contains('7') && reason.contains("more memory than fanout.read_memory allows (64 MB)"),
            "{key} {reason}"
        );
        let others = pg_test::Keyspace::open().json(&world.key_prefix("part"));
        assert_eq!(others.iter().filter(|(_, document)| document["n"] == round - 1).count(), 59);
        world.db.exec(&format!("UPDATE product SET price = {round}"));
        assert_in_step(&mut world, &product);
        assert_eq!(world.db.value(worker), pid);
        // As a change, beside others.
        world.db.exec(&format!("UPDATE part SET n = {round}"));
    }
    world.db.exec("UPDATE part SET megabytes = 2");
    assert_in_step(&mut world, &part);
    assert_eq!(world.status(&part, "dead_letters"), "0");
}

#[test]
fn a_right_that_is_revoked_blocks_the_sync_and_costs_no_document() {
    let mut world = World::new("revoked");
    let (role, mut session) = world.role("maker");
    products(&mut world, 20);
    world
        .db
        .exec(&format!("GRANT USAGE ON FOREIGN SERVER cache TO {role}; GRANT SELECT, TRIGGER ON product TO {role}"));
    let key = format!("{}${{id}}", world.key_prefix("product"));
    // Whoever may not own the table may still be let in by its owner.
    world.db.exec(&format!("ALTER TABLE product OWNER TO {role}"));
    let sync = session.value(&format!("SELECT fanout.cache_table('product', server => 'cache', key => '{key}')"));
    assert_in_step(&mut world, &sync);
    for (take, give) in [
        (format!("REVOKE SELECT ON product FROM {role}"), format!("GRANT SELECT ON product TO {role}")),
        (format!("REVOKE USAGE ON SCHEMA public FROM PUBLIC, {role}"), "GRANT USAGE ON SCHEMA public TO PUBLIC".into()),
        (
            format!("REVOKE USAGE ON FOREIGN SERVER cache FROM {role}"),
            format!("GRANT USAGE ON FOREIGN SERVER cache TO {role}"),
        ),
    ] {
        world.db.exec(&take);
        world.db.exec("UPDATE product SET price = price + 1");
        eventually("the sync is blocked", Duration::from_secs(30), || world.status(&sync, "state") == "blocked");
        assert!(
            world.status(&sync, "last_error").contains("permission denied"),
            "{}",
            world.status(&sync, "last_error")
        );
        assert_eq!(world.status(&sync, "dead_letters"), "0");
        assert_eq!(pg_test::Keyspace::open().keys(&world.key_prefix("product")).len(), 20);
        world.db.exec(&give);
        eventually("it goes on by itself", Duration::from_secs(60), || differences(&mut world, &sync).is_empty());
    }
}

/// Each by itself, and each of a thousand rows that are on their way: a column is no row's fault.
#[test]
fn a_column_that_is_missing_blocks_the_sync_and_costs_no_document() {
    let mut world = World::new("undefined_column");
    world.db.exec(
        "CREATE TABLE part (id int PRIMARY KEY, n int NOT NULL, shown boolean NOT NULL DEFAULT true);
         CREATE TABLE label (part int PRIMARY KEY, words text);
         INSERT INTO part SELECT i, 0 FROM generate_series(1, 2000) AS i;
         INSERT INTO label SELECT i, 'label ' || i FROM generate_series(1, 2000) AS i",
    );
    let key = |world: &World, name: &str| format!("{}${{id}}", world.key_prefix(name));
    let by_predicate = key(&world, "predicate");
    let by_query = key(&world, "query");
    let predicate = world.cache_table_by("part", &by_predicate, ", name => 'predicate', predicate => 'shown'");
    let query = world.cache_table_by(
        "part",
        &by_query,
        ", name => 'query', document => 'SELECT id, n, (SELECT words FROM label WHERE part = p.id) AS words FROM part p'",
    );
    for (sync, gone, back, column) in [
        (
            &predicate,
            "ALTER TABLE part RENAME COLUMN shown TO hidden",
            "ALTER TABLE part RENAME COLUMN hidden TO shown",
            "shown",
        ),
        (
            &query,
            "ALTER TABLE label DROP COLUMN words",
            "ALTER TABLE label ADD COLUMN words text; UPDATE label SET words = 'again ' || part",
            "words",
        ),
        (
            &predicate,
            "ALTER TABLE part DROP COLUMN shown",
            "ALTER TABLE part ADD COLUMN shown boolean NOT NULL DEFAULT true",
            "shown",
        ),
    ] {
        assert_in_step(&mut world, sync);
        world.db.exec(gone);
        world.db.exec("UPDATE part SET n = n + 1; INSERT INTO part (id, n) SELECT max(id) + 1, 0 FROM part");
        eventually("the sync is blocked", Duration::from_secs(30), || world.status(sync, "state") == "blocked");
        let error = world.status(sync, "last_error");
        assert!(
            error.contains(&format!("\"{column}\" does not exist"))
                || error.contains(&format!("{column} does not exist")),
            "{error}"
        );
        // It goes on asking meanwhile, and counts none as refused.
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(world.db.value("SELECT count(*) FROM fanout.dead_letters"), "0");
        let held = pg_test::Keyspace::open().keys(&world.key_prefix(sync));
        assert!(held.len() >= 2000, "{} of 2000 are left", held.len());
        world.db.exec(back);
        in_step_again(&mut world, sync);
        assert_eq!(world.status(sync, "dead_letters"), "0");
    }
}

#[test]
fn keys_that_are_equal_to_an_operator_are_not_the_same() {
    let mut world = World::new("equal_keys");
    world.db.exec("CREATE EXTENSION citext");
    world.db.exec("CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false)");
    for (table, kind, values) in [
        ("c", "citext", ["abc", "ABC", "aBc"]),
        ("s", "numeric", ["1", "1.0", "1.00"]),
        ("p", "char(5)", ["ab", "ab ", "ab   "]),
        ("f", "text COLLATE folded", ["abc", "ABC", "Abc"]),
        ("z", "double precision", ["0", "-0", "0"]),
        ("i", "interval", ["1 day", "24 hours", "1440 minutes"]),
        ("b", "bytea", ["\\x61", "\\x62", "\\x61"]),
    ] {
        world.db.exec(&format!(
            "CREATE TABLE {table} (id {kind} PRIMARY KEY, n int); INSERT INTO {table} VALUES ('{}', 0)",
            values[0]
        ));
        let index = world.index_table(table, &Engine::opensearch(), &format!(", name => '{table}_index'"));
        let cache = world.cache_table(table, "");
        for round in 0..6 {
            let value = values[(round + 1) % 3];
            world.db.exec(&match round % 3 {
                0 => format!("UPDATE {table} SET id = '{value}'"),
                1 => format!("BEGIN; DELETE FROM {table}; INSERT INTO {table} VALUES ('{value}', {round}); COMMIT"),
                _ => format!("INSERT INTO {table} VALUES ('{value}', 1) ON CONFLICT (id) DO UPDATE SET id = excluded.id, n = {round}"),
            });
            for sync in [&index, &cache] {
                assert_in_step(&mut world, sync);
            }
        }
    }
}

#[test]
fn rows_of_a_byte_and_of_twenty_megabytes_arrive() {
    let mut world = World::new("sizes");
    world.db.exec("CREATE TABLE blob (id int PRIMARY KEY, body text)");
    let index = world.index_table(
        "blob",
        &Engine::elasticsearch(),
        r#", mapping => '{"body": {"type": "text", "index": false}}'"#,
    );
    let cache = world.cache_table("blob", "");
    world.db.exec(
        "INSERT INTO blob SELECT i, 'x' FROM generate_series(1, 500) AS i;
         INSERT INTO blob SELECT 1000 + i, repeat('0123456789', 2000000) FROM generate_series(1, 3) AS i;
         INSERT INTO blob SELECT 2000 + i, 'y' FROM generate_series(1, 500) AS i",
    );
    for sync in [&index, &cache] {
        assert_in_step(&mut world, sync);
        assert_eq!(world.status(sync, "dead_letters"), "0");
    }
    world.db.exec("UPDATE blob SET body = body || '!'; DELETE FROM blob WHERE id = 1002");
    for sync in [&index, &cache] {
        assert_in_step(&mut world, sync);
    }
}

#[test]
fn two_hundred_columns_and_two_keys_arrive() {
    let mut world = World::new("wide");
    let columns: Vec<String> = (0..198).map(|n| format!("c{n} int DEFAULT {n}")).collect();
    world.db.exec(&format!("CREATE TABLE wide (a int, b text, {}, PRIMARY KEY (a, b))", columns.join(", ")));
    world.db.exec("INSERT INTO wide (a, b) SELECT i % 7, 'k' || i FROM generate_series(1, 1000) AS i");
    let index = world.index_table("wide", &Engine::elasticsearch(), "");
    let cache =
        world.cache_table_by("wide", &format!("{}${{a}}:${{b}}", world.key_prefix("wide")), ", format => 'hash'");
    for sync in [&index, &cache] {
        assert_in_step(&mut world, sync);
    }
    world.db.exec("UPDATE wide SET c100 = -1, a = a + 10 WHERE a < 3; DELETE FROM wide WHERE b LIKE '%9'");
    for sync in [&index, &cache] {
        assert_in_step(&mut world, sync);
    }
}
