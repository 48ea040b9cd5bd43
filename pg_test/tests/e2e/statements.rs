//! Each kind of statement that changes rows.

use crate::tables::products;
use pg_test::{Engine, World, assert_in_step, eventually_ok, on_each_engine};

on_each_engine!(
    copy_and_merge_and_on_conflict_are_followed,
    a_changed_key_moves_the_document,
    cascades_are_followed,
    truncate_empties_the_index,
    prepared_transactions_count_when_they_commit,
    asynchronous_commits_are_followed
);

fn copy_and_merge_and_on_conflict_are_followed(world: &mut World, engine: &Engine) {
    products(world, 50);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);

    let lines: String = (100..1100).map(|id| format!("{id}\tcopied {id}\t{}.50\n", id % 90)).collect();
    world.db.copy_in("COPY product (id, name, price) FROM STDIN", &lines);
    assert_in_step(world, &sync);

    world.db.exec(
        "INSERT INTO product (id, name, price) SELECT i, 'upsert', i FROM generate_series(40, 60) AS i
         ON CONFLICT (id) DO UPDATE SET name = product.name || ' again', price = excluded.price;
         INSERT INTO product (id, name) VALUES (1, 'not this'), (70, 'this') ON CONFLICT DO NOTHING",
    );
    assert_in_step(world, &sync);

    // MERGE came with PostgreSQL 15.
    if world.db.value("SELECT current_setting('server_version_num')::int >= 150000") == "t" {
        world.db.exec(
            "MERGE INTO product AS p
             USING (SELECT i, i % 3 AS what FROM generate_series(1, 90) AS i) AS s ON p.id = s.i
             WHEN MATCHED AND s.what = 0 THEN DELETE
             WHEN MATCHED AND s.what = 1 THEN UPDATE SET price = -1
             WHEN NOT MATCHED THEN INSERT (id, name) VALUES (s.i, 'merged')",
        );
        assert_in_step(world, &sync);
    }
    world.db.exec(
        "WITH gone AS (DELETE FROM product WHERE id > 1000 RETURNING *) UPDATE product SET price = 0 WHERE id < 5",
    );
    assert_in_step(world, &sync);
}

fn a_changed_key_moves_the_document(world: &mut World, engine: &Engine) {
    products(world, 100);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    world.db.exec("UPDATE product SET id = id + 1000 WHERE id <= 50");
    assert_in_step(world, &sync);
    // Twice in one transaction.
    world.db.exec("BEGIN; UPDATE product SET id = -id; UPDATE product SET id = 2000 + id; COMMIT");
    assert_in_step(world, &sync);
    // A key is given up and taken again within a transaction.
    world.db.exec(
        "BEGIN; DELETE FROM product WHERE id = 1940; INSERT INTO product (id, name) VALUES (1940, 'heir'); COMMIT",
    );
    assert_in_step(world, &sync);
}

fn cascades_are_followed(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE brand (id int PRIMARY KEY);
         CREATE TABLE article (
             id int PRIMARY KEY,
             brand int REFERENCES brand ON DELETE CASCADE ON UPDATE CASCADE,
             heir int REFERENCES brand ON DELETE SET NULL ON UPDATE CASCADE
         );
         INSERT INTO brand SELECT generate_series(1, 20);
         INSERT INTO article SELECT i, 1 + i % 20, 1 + i % 7 FROM generate_series(1, 400) AS i",
    );
    let sync = world.index_table("article", engine, "");
    assert_in_step(world, &sync);
    world.db.exec("DELETE FROM brand WHERE id % 4 = 0");
    assert_in_step(world, &sync);
    world.db.exec("UPDATE brand SET id = id + 100 WHERE id % 4 = 1");
    assert_in_step(world, &sync);
}

fn truncate_empties_the_index(world: &mut World, engine: &Engine) {
    products(world, 1000);
    let sync = world.index_table("product", engine, "");
    let cache = world.cache_table("product", "");
    assert_in_step(world, &sync);
    world.db.exec("BEGIN; TRUNCATE product; INSERT INTO product (id, name) VALUES (7, 'after'), (5000, 'new'); COMMIT");
    assert_in_step(world, &sync);
    assert_in_step(world, &cache);
    world.db.exec("TRUNCATE product");
    assert_in_step(world, &sync);
    assert_in_step(world, &cache);
    // Rolled back, it must not empty anything.
    world.db.exec("INSERT INTO product (id, name) VALUES (1, 'stays')");
    world.db.exec("BEGIN; TRUNCATE product; ROLLBACK");
    assert_in_step(world, &sync);
    assert_eq!(engine.documents(&world.index_name("product")).len(), 1);
}

fn prepared_transactions_count_when_they_commit(world: &mut World, engine: &Engine) {
    products(world, 20);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    let (kept, dropped) = (format!("{}_kept", world.tag), format!("{}_dropped", world.tag));
    world.db.exec("BEGIN");
    world
        .db
        .exec("UPDATE product SET name = 'prepared' WHERE id <= 5; INSERT INTO product (id, name) VALUES (100, 'p')");
    world.db.exec("SAVEPOINT s; DELETE FROM product WHERE id = 6; RELEASE s; DELETE FROM product WHERE id = 7");
    world.db.exec(&format!("PREPARE TRANSACTION '{kept}'"));
    world.db.exec("BEGIN");
    world.db.exec("UPDATE product SET name = 'never' WHERE id BETWEEN 10 AND 15");
    world.db.exec(&format!("PREPARE TRANSACTION '{dropped}'"));

    // Nobody waits for what is not committed, and the next transaction of the session has nothing of it.
    world.db.exec("UPDATE product SET name = 'meanwhile' WHERE id = 20");
    assert_in_step(world, &sync);
    world.db.exec(&format!("ROLLBACK PREPARED '{dropped}'"));
    assert_in_step(world, &sync);
    world.connect().exec(&format!("COMMIT PREPARED '{kept}'"));
    assert_in_step(world, &sync);
    assert_eq!(world.db.value("SELECT count(*) FROM product WHERE name IN ('prepared', 'p')"), "6");

    // Found without a wait as well: nothing wakes the worker, its heartbeat finds it.
    let late = format!("{}_late", world.tag);
    world.db.exec("BEGIN");
    world.db.exec("UPDATE product SET name = 'late' WHERE id = 1");
    world.db.exec(&format!("PREPARE TRANSACTION '{late}'"));
    world.db.exec(&format!("COMMIT PREPARED '{late}'"));
    let index = world.index_name("product");
    eventually_ok("the document follows COMMIT PREPARED", std::time::Duration::from_secs(15), || {
        let name = engine.document(&index, "1").map(|source| source["name"].clone());
        if name == Some("late".into()) { Ok(()) } else { Err(format!("{name:?}")) }
    });
}

fn asynchronous_commits_are_followed(world: &mut World, engine: &Engine) {
    products(world, 200);
    let sync = world.index_table("product", engine, "");
    world.db.exec("SET synchronous_commit = off");
    for round in 0..100 {
        world.db.exec(&format!("UPDATE product SET price = {round} WHERE id % 10 = {round} % 10"));
    }
    assert_in_step(world, &sync);
}

#[test]
fn two_hundred_thousand_rows_in_a_statement_are_followed() {
    let mut world = World::new("many_rows");
    world.db.exec(
        "CREATE TABLE reading (id int PRIMARY KEY, n int NOT NULL);
         INSERT INTO reading SELECT i, i FROM generate_series(1, 200000) AS i",
    );
    let syncs = [
        world.index_table("reading", &Engine::opensearch(), ", name => 'opensearch'"),
        world.index_table("reading", &Engine::elasticsearch(), ", name => 'elasticsearch'"),
        world.cache_table("reading", ", name => 'redis'"),
    ];
    world.db.exec("UPDATE reading SET n = n + 1");
    for sync in &syncs {
        assert_in_step(&mut world, sync);
    }
    world.db.exec("DELETE FROM reading WHERE id % 2 = 0");
    for sync in &syncs {
        assert_in_step(&mut world, sync);
    }
}

#[test]
fn a_waiter_waits_for_all_of_a_journal_that_is_read_in_parts() {
    let mut world = World::new("long_journal");
    // 60 MB of keys: several readings.
    world.db.exec(
        "CREATE TABLE wide (id text PRIMARY KEY, n int);
         INSERT INTO wide SELECT repeat(md5(i::text), 20) || i, 0 FROM generate_series(1, 90000) AS i",
    );
    let sync = world.cache_table("wide", "");
    world.wait(&sync);
    for round in 1..=2 {
        world.db.exec(&format!("UPDATE wide SET n = {round}"));
        world.wait(&sync);
        let last = format!("{}' || repeat(md5('90000'), 20) || '90000", world.key_prefix("wide"));
        let held = world.db.value(&format!("SELECT redis_get('cache', '{last}')::json ->> 'n'"));
        assert_eq!(held, round.to_string());
    }
}
