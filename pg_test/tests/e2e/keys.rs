//! Keys that are not plain numbers, and keys made from columns that change.

use pg_test::{Engine, Keyspace, World, assert_in_step, on_each_engine};
use serde_json::Value;

on_each_engine!(
    text_keys_with_odd_characters_stay_apart,
    composite_keys_stay_apart,
    keys_that_are_equal_but_not_the_same_are_told_apart,
    a_table_without_a_primary_key_is_told_apart_by_the_best_of_its_indexes,
    keys_of_many_types_follow_their_rows
);

const ODD: [&str; 22] = [
    "plain", "a'b", "a\"b", "a%b", "a%25b", "a/b", "a:b", "a b", " a", "a ", "", "%E", "%N", "🚲", "é", "a\nb", "a\\b",
    "..", "_id", "#?&=", "{x}", "*",
];

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn text_keys_with_odd_characters_stay_apart(world: &mut World, engine: &Engine) {
    world.db.exec("CREATE TABLE item (sku text PRIMARY KEY, n int)");
    for sku in &ODD[..11] {
        world.db.exec(&format!("INSERT INTO item VALUES ({}, 1)", literal(sku)));
    }
    let index = world.index_table("item", engine, "");
    let key = format!("{}{{${{sku}}}}", world.key_prefix("item"));
    let cache = world.cache_table_by("item", &key, "");
    for sku in &ODD[11..] {
        world.db.exec(&format!("INSERT INTO item VALUES ({}, 2)", literal(sku)));
    }
    world.db.exec("INSERT INTO item SELECT repeat('long', 500), 3");
    assert_in_step(world, &index);
    assert_in_step(world, &cache);
    for (sku, id) in [("a:b", "a:b"), ("a%b", "a%25b"), ("", "%E"), ("🚲", "🚲"), ("a b", "a b")] {
        let source = engine.document(&world.index_name("item"), id);
        assert_eq!(source.map(|it| it["sku"].clone()), Some(Value::from(sku)), "id {id:?}");
    }
    for sku in ODD.iter().step_by(2) {
        world.db.exec(&format!("UPDATE item SET n = n + 1 WHERE sku = {}", literal(sku)));
    }
    for sku in ODD.iter().skip(1).step_by(4) {
        world.db.exec(&format!("DELETE FROM item WHERE sku = {}", literal(sku)));
    }
    world.db.exec("UPDATE item SET sku = 'renamed' WHERE length(sku) > 1000");
    assert_in_step(world, &index);
    assert_in_step(world, &cache);
}

fn composite_keys_stay_apart(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE line (shop text, day date, n int, quantity int NOT NULL, PRIMARY KEY (shop, day, n));
         INSERT INTO line VALUES
             ('a', '2024-01-01', 1, 1), ('a:2024-01-01', '2024-01-01', 1, 2), ('', '2024-01-01', 1, 3),
             ('%3A', '2024-01-01', 1, 4), (':', '2024-01-01', 1, 5), ('a b/c', '2024-02-29', -7, 6)",
    );
    let index = world.index_table("line", engine, "");
    let key = format!("{}{{${{shop}}}}:${{day}}:${{n}}", world.key_prefix("line"));
    let cache = world.cache_table_by("line", &key, "");
    assert_in_step(world, &index);
    assert_in_step(world, &cache);
    let source = engine.document(&world.index_name("line"), "a%3A2024-01-01:2024-01-01:1");
    assert_eq!(source.map(|it| it["quantity"].clone()), Some(Value::from(2)));
    // Dates in ids must not depend on how the writer likes to see them.
    world.db.exec("SET DateStyle = 'German'");
    world.db.exec("UPDATE line SET quantity = quantity * 10; UPDATE line SET n = n + 1 WHERE shop = ':'");
    world.db.exec("DELETE FROM line WHERE shop = '%3A'; INSERT INTO line SELECT 'many', '2024-01-01', i, 0 FROM generate_series(1, 500) AS i");
    assert_in_step(world, &index);
    assert_in_step(world, &cache);
}

fn keys_that_are_equal_but_not_the_same_are_told_apart(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE scale (id numeric PRIMARY KEY, n int); INSERT INTO scale VALUES (1.0, 1), (2, 2), (3.10, 3)",
    );
    let index = world.index_table("scale", engine, "");
    assert_in_step(world, &index);
    // Equal to the operator: the row is found by its old key, but its id is another.
    world.db.exec("UPDATE scale SET id = 1.00 WHERE id = 1; UPDATE scale SET id = 2.0 WHERE id = 2");
    assert_in_step(world, &index);
    let mut ids: Vec<String> = engine.documents(&world.index_name("scale")).into_iter().map(|it| it.id).collect();
    ids.sort();
    assert_eq!(ids, ["1.00", "2.0", "3.10"]);
}

/// The primary key, else the replica identity, else the narrowest unique index, and of two equally narrow ones the older.
fn a_table_without_a_primary_key_is_told_apart_by_the_best_of_its_indexes(world: &mut World, engine: &Engine) {
    let tables = [
        ("CREATE TABLE {} (a int NOT NULL, b text NOT NULL UNIQUE, c int, d int); ALTER TABLE {} ADD PRIMARY KEY (c); CREATE UNIQUE INDEX {}_r ON {} (a, b);
          ALTER TABLE {} REPLICA IDENTITY USING INDEX {}_r", "{c}"),
        ("CREATE TABLE {} (a int NOT NULL, b text NOT NULL, c int NOT NULL UNIQUE, d int); CREATE UNIQUE INDEX {}_r ON {} (a, b);
          ALTER TABLE {} REPLICA IDENTITY USING INDEX {}_r", "{a,b}"),
        ("CREATE TABLE {} (a int NOT NULL, b text NOT NULL, c int NOT NULL, d int UNIQUE, UNIQUE (c, a)); CREATE UNIQUE INDEX ON {} (b);
          CREATE UNIQUE INDEX ON {} (c); CREATE UNIQUE INDEX ON {} ((a + 1)); CREATE UNIQUE INDEX ON {} (a) WHERE d > 0", "{b}"),
        ("CREATE TABLE {} (a int NOT NULL, b text NOT NULL, c int NOT NULL, d int); CREATE UNIQUE INDEX ON {} (c) INCLUDE (d)", "{c}"),
    ];
    for (number, (definition, expected)) in tables.into_iter().enumerate() {
        let table = format!("thing{number}");
        world.db.exec(&definition.replace("{}", &table));
        world.db.exec(&format!("INSERT INTO {table} SELECT i, 'k' || i, 1000 + i, i FROM generate_series(1, 50) AS i"));
        let index = world.index_table(&table, engine, &format!(", name => '{table}_index'"));
        let columns = world.db.value(&format!("SELECT key_columns FROM fanout.sync WHERE name = '{index}'"));
        assert_eq!(columns, expected, "{definition}");
        let names = expected.trim_matches(['{', '}']).split(',');
        let template: Vec<String> = names.map(|name| format!("${{{name}}}")).collect();
        let key = format!("{}:{table}:{}", world.tag, template.join(":"));
        let cache = world.cache_table_by(&table, &key, &format!(", name => '{table}_cache'"));
        for statement in [
            "SELECT 1",
            "UPDATE {} SET d = d + 1000 WHERE a < 20; DELETE FROM {} WHERE a = 20",
            "UPDATE {} SET a = a + 500, b = b || 'x', c = c + 5000 WHERE a BETWEEN 21 AND 30",
            "INSERT INTO {} VALUES (20, 'k20', 1020, 0)",
        ] {
            world.db.exec(&statement.replace("{}", &table));
            assert_in_step(world, &index);
            assert_in_step(world, &cache);
        }
    }
}

fn keys_of_many_types_follow_their_rows(world: &mut World, engine: &Engine) {
    world.db.exec("CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy', ''); CREATE DOMAIN sku AS text; CREATE DOMAIN number AS int");
    // Two keys, what each becomes in an id, and what the first is changed to.
    let keys = [
        ("mood", "sad", "so so", "sad", "happy"),
        ("timestamp", "2024-02-29 23:59:59.999999", "infinity", "2024-02-29 23:59:59.999999", "0044-03-15 12:00:00 BC"),
        ("timestamptz", "2024-02-29 23:00+05:30", "-infinity", "2024-02-29 17:30:00+00", "2024-02-29 23:00+00"),
        ("date", "2024-02-29", "infinity", "2024-02-29", "0044-03-15 BC"),
        ("sku", "a/b:c", "", "a/b:c", "é 🚲"),
        ("number", "-7", "0", "-7", "8"),
        (
            "uuid",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "{00000000000000000000000000000000}",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ),
        // A zero byte, and bytes that are no UTF-8.
        ("bytea", "\\x00", "\\x", "\\x00", "\\xff00fe"),
    ];
    for (number, (kind, one, two, id, changed)) in keys.into_iter().enumerate() {
        let table = format!("keyed{number}");
        world.db.exec(&format!(
            "CREATE TABLE {table} (id {kind} PRIMARY KEY, n int); INSERT INTO {table} VALUES ({}, 1)",
            literal(one)
        ));
        let index = world.index_table(&table, engine, &format!(", name => '{table}_index'"));
        let cache = world.cache_table(&table, &format!(", name => '{table}_cache'"));
        world.db.exec(&format!("INSERT INTO {table} VALUES ({}, 2)", literal(two)));
        let in_step = |world: &mut World| {
            assert_in_step(world, &index);
            assert_in_step(world, &cache);
        };
        in_step(world);
        let document = engine.document(&world.index_name(&table), id);
        assert_eq!(document.map(|it| it["n"].clone()), Some(Value::from(1)), "{kind} {one}");
        world.db.exec(&format!("UPDATE {table} SET n = n + 10"));
        in_step(world);
        world.db.exec(&format!("UPDATE {table} SET id = {} WHERE n = 11", literal(changed)));
        in_step(world);
        assert_eq!(engine.document(&world.index_name(&table), id), None, "{kind} {one}");
        // Back, and taken by the other in the same transaction.
        world.db.exec(&format!(
            "BEGIN; UPDATE {table} SET id = {} WHERE n = 11; DELETE FROM {table} WHERE n = 12;
             INSERT INTO {table} VALUES ({}, 3); COMMIT",
            literal(one),
            literal(changed)
        ));
        in_step(world);
        world.db.exec(&format!("DELETE FROM {table}"));
        in_step(world);
    }
}

#[test]
fn a_column_of_the_key_template_that_changes_moves_the_key() {
    let mut world = World::new("tenant_moves");
    world.db.exec(
        "CREATE TABLE product (id int PRIMARY KEY, tenant text, name text);
         INSERT INTO product SELECT i, 'acme', 'n' || i FROM generate_series(1, 100) AS i",
    );
    let key = format!("{}:{{${{tenant}}}}:product:${{id}}", world.tag);
    let sync = world.cache_table_by("product", &key, "");
    assert_in_step(&mut world, &sync);
    world.db.exec("UPDATE product SET tenant = 'globex' WHERE id % 2 = 0");
    world.db.exec("UPDATE product SET tenant = NULL WHERE id % 10 = 1");
    assert_in_step(&mut world, &sync);
    let keys = Keyspace::open().keys(&format!("{}:", world.tag));
    assert!(keys.contains(&format!("{}:{{globex}}:product:2", world.tag)), "{keys:?}");
    assert_eq!(keys.len(), 100);
    // There and back in one transaction; moved and deleted in one transaction.
    world.db.exec("BEGIN; UPDATE product SET tenant = 'x' WHERE id < 20; UPDATE product SET tenant = 'acme' WHERE id < 10; COMMIT");
    world.db.exec("BEGIN; UPDATE product SET tenant = 'y' WHERE id > 80; DELETE FROM product WHERE id > 90; COMMIT");
    assert_in_step(&mut world, &sync);
    world.db.exec("DELETE FROM product");
    assert_in_step(&mut world, &sync);
    assert!(Keyspace::open().keys(&format!("{}:", world.tag)).is_empty());
}
