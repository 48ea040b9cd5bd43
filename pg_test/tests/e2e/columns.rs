//! Columns that change under a sync: new ones go into the mapping by themselves, retyped ones say what they need.

use pg_test::{Engine, World, assert_in_step, eventually, on_each_engine};
use serde_json::{Value, json};
use std::time::Duration;

on_each_engine!(
    a_later_column_is_searched_from_its_first_row_on,
    a_retyped_column_says_that_it_needs_a_resync,
    a_later_column_that_the_engine_refuses_is_told,
    columns_come_and_go_while_rows_are_written,
    a_later_column_is_in_all_documents_of_a_query_that_takes_it,
);

fn products(world: &mut World, engine: &Engine, more: &str) -> String {
    world.db.exec("CREATE TABLE product (id int PRIMARY KEY, name text); INSERT INTO product VALUES (1, 'shoe')");
    let sync = world.index_table("product", engine, more);
    assert_in_step(world, &sync);
    sync
}

fn field(world: &World, engine: &Engine, path: &str) -> Value {
    let index = world.index_name("product");
    let mapping = engine.ask("GET", &format!("/{index}/_mapping"), None);
    let properties = &mapping[format!("{index}-fanout-1")]["mappings"]["properties"];
    properties.pointer(path).cloned().unwrap_or_default()
}

fn a_later_column_is_searched_from_its_first_row_on(world: &mut World, engine: &Engine) {
    let sync = products(world, engine, "");
    world.db.exec(
        "CREATE TYPE size AS (width int, unit text);
         BEGIN; ALTER TABLE product ADD COLUMN price numeric(8,2), ADD COLUMN size size, ADD COLUMN details jsonb;
         INSERT INTO product VALUES (2, 'boot', 99.5, (3, 'cm'), '{\"color\": \"red\"}'); COMMIT;
         UPDATE product SET name = name",
    );
    assert_in_step(world, &sync);
    for query in [
        json!({"range": {"price": {"gt": 99, "lt": 100}}}),
        json!({"term": {"size.width": 3}}),
        json!({"match": {"details.color": "red"}}),
    ] {
        assert_eq!(world.hits(engine, "product", &query), ["2"], "{query}");
    }
    assert_eq!(field(world, engine, "/price"), json!({"type": "double", "ignore_malformed": true}));
    assert_eq!(world.status(&sync, "note"), "NULL");
    // Text columns are searched by es_search() at once.
    world.db.exec("ALTER TABLE product ADD COLUMN blurb text; UPDATE product SET blurb = 'waterproof' WHERE id = 1");
    world.wait(&sync);
    assert_eq!(world.db.column(&format!("SELECT id FROM es_search('{sync}', 'waterproof')")), ["1"]);
}

fn a_retyped_column_says_that_it_needs_a_resync(world: &mut World, engine: &Engine) {
    let sync = products(world, engine, "");
    world.db.exec("ALTER TABLE product ADD COLUMN code int; UPDATE product SET code = 7");
    world.wait(&sync);
    world.db.exec("ALTER TABLE product ALTER COLUMN code TYPE text; UPDATE product SET code = '8'");
    world.wait(&sync);
    eventually("the note is there", Duration::from_secs(10), || world.status(&sync, "note") != "NULL");
    let note = world.status(&sync, "note");
    assert!(
        note.contains("fanout.resync()")
            && note.contains("\"code\": the index has it as integer, it would be text now"),
        "{note}"
    );
    world.db.exec(&format!("SELECT fanout.resync('{sync}')"));
    assert_in_step(world, &sync);
    assert_eq!(world.status(&sync, "note"), "NULL");
    assert_eq!(world.hits(engine, "product", &json!({"match": {"code": "8"}})), ["1"]);
}

fn a_later_column_that_the_engine_refuses_is_told(world: &mut World, engine: &Engine) {
    let sync = products(world, engine, ", types => '{\"bytea\": \"nonsense\", \"int8\": \"long\"}'");
    world.db.exec(
        "ALTER TABLE product ADD COLUMN raw bytea, ADD COLUMN big int8; UPDATE product SET raw = '\\x00', big = 5",
    );
    // All the rest goes on.
    assert_in_step(world, &sync);
    let note = world.status(&sync, "note");
    assert!(note.contains("\"raw\": ") && note.contains("nonsense") && !note.contains("\"big\""), "{note}");
    assert_eq!(world.hits(engine, "product", &json!({"term": {"big": 5}})), ["1"]);
}

fn columns_come_and_go_while_rows_are_written(world: &mut World, engine: &Engine) {
    // A range needs SQL of its own, which names each column.
    let sync = products(world, engine, "");
    world.db.exec("ALTER TABLE product ADD COLUMN span int4range");
    let mut other = world.connect();
    let writer = std::thread::spawn(move || {
        for id in 10..400 {
            other.exec(&format!("INSERT INTO product (id, name, span) VALUES ({id}, 'x', '[{id},{id}]')"));
        }
    });
    for n in 0..15 {
        world.db.exec(&format!("ALTER TABLE product ADD COLUMN c{n} int"));
        world.db.exec(&format!("INSERT INTO product (id, c{n}) VALUES ({}, {n})", 1000 + n));
        if n > 0 {
            world.db.exec(&format!("ALTER TABLE product DROP COLUMN c{}", n - 1));
        }
    }
    writer.join().expect("the writer");
    world.wait(&sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
    assert_eq!(world.hits(engine, "product", &json!({"term": {"span": 17}})), ["17"]);
    // Each was searchable as soon as it was there, unless it went before its row was delivered.
    assert_eq!(world.hits(engine, "product", &json!({"term": {"c14": 14}})), ["1014"]);
    let count = engine.ask("GET", &format!("/{}/_count", world.index_name("product")), None)["count"].to_string();
    assert_eq!(count, world.db.value("SELECT count(*) FROM product"));
}

fn a_later_column_is_in_all_documents_of_a_query_that_takes_it(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE brand (id int PRIMARY KEY, name text);
         CREATE TABLE product (id int PRIMARY KEY, name text, brand_id int REFERENCES brand);
         INSERT INTO brand VALUES (1, 'a'), (2, 'b');
         INSERT INTO product SELECT i, 'n', 1 + i % 2 FROM generate_series(1, 50) AS i",
    );
    let stars = world.index_table("product", engine, ", document => 'SELECT p.* FROM product p'");
    let rows = "SELECT p.id, row_to_json(b) AS brand FROM product p JOIN brand b ON b.id = p.brand_id";
    let whole = world.cache_table("product", &format!(", name => 'whole', document => '{rows}'"));
    let named = "SELECT p.id, b.name FROM product p JOIN brand b ON b.id = p.brand_id";
    let named = world.cache_table_by(
        "product",
        &format!("{}:named:${{id}}", world.tag),
        &format!(", name => 'named', document => '{named}'"),
    );
    for sync in [&whole, &named] {
        world.db.exec(&format!("SELECT fanout.related('{sync}', 'brand')"));
    }
    for sync in [&stars, &whole, &named] {
        assert_in_step(world, sync);
    }
    let before = world.status(&named, "delivered");
    for statement in [
        "ALTER TABLE product ADD COLUMN colour text DEFAULT 'red'",
        "ALTER TABLE brand ADD COLUMN country text DEFAULT 'FR'",
    ] {
        world.db.exec(statement);
        for sync in [&stars, &whole, &named] {
            assert_in_step(world, sync);
        }
    }
    assert_eq!(world.status(&named, "delivered"), before, "a query that names its columns has them as before");
}
