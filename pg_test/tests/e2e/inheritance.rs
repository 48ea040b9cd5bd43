//! Tables that inherit from a source, without being partitions of it.

use pg_test::{Engine, World, assert_in_step, eventually, on_each_engine};
use std::time::Duration;

on_each_engine!(children_are_followed_as_the_parent_is, two_rows_of_one_key_are_a_dead_letter);

/// A parent, a child with a column of its own and its columns in another order, and a child of that.
fn vehicles(world: &mut World) {
    world.db.exec(
        "CREATE TABLE vehicle (id int PRIMARY KEY, name text);
         CREATE TABLE car (doors int, spare int, PRIMARY KEY (id)) INHERITS (vehicle);
         CREATE TABLE van (name text, spare int, id int NOT NULL, doors int, load int, PRIMARY KEY (id));
         ALTER TABLE van INHERIT car;
         INSERT INTO vehicle SELECT i, 'vehicle' FROM generate_series(1, 300) AS i;
         INSERT INTO car SELECT i, 'car', 4 FROM generate_series(1001, 1300) AS i;
         INSERT INTO van (id, name, load) SELECT i, 'van', 900 FROM generate_series(2001, 2300) AS i",
    );
}

fn captures(world: &mut World, table: &str) -> String {
    world.db.value(&format!("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = '{table}'::regclass"))
}

fn children_are_followed_as_the_parent_is(world: &mut World, engine: &Engine) {
    vehicles(world);
    let index = world.index_table("vehicle", engine, "");
    let cache = world.cache_table("vehicle", "");
    for statement in [
        "SELECT 1",
        "UPDATE vehicle SET name = 'by the parent' WHERE id % 100 < 10",
        "UPDATE car SET name = 'by the child', doors = 5 WHERE id % 100 > 90",
        "INSERT INTO van (id, name) VALUES (2500, 'new'); DELETE FROM van WHERE id < 2010; DELETE FROM ONLY vehicle WHERE id = 5",
        "WITH gone AS (DELETE FROM ONLY vehicle WHERE id BETWEEN 100 AND 150 RETURNING *) INSERT INTO van (id, name) SELECT * FROM gone",
        "TRUNCATE ONLY vehicle",
        "CREATE TABLE bike (gears int) INHERITS (vehicle)",
        "INSERT INTO bike VALUES (3001, 'bike', 7), (3002, 'bike', 21)",
        "UPDATE bike SET name = 'changed' WHERE id = 3001",
        "CREATE TABLE boat (id int NOT NULL, name text, sails int); INSERT INTO boat SELECT i, 'boat', 1 FROM generate_series(4001, 4050) AS i",
        "ALTER TABLE boat INHERIT vehicle",
        "UPDATE boat SET name = 'changed' WHERE id < 4010",
        "ALTER TABLE van NO INHERIT car",
        "UPDATE van SET name = 'alone'",
        "TRUNCATE boat",
        "INSERT INTO boat VALUES (4100, 'last', 2)",
        "DROP TABLE bike",
        "ALTER TABLE van INHERIT car",
        "DELETE FROM vehicle WHERE id % 7 = 0",
        // As one transaction each: the worker sees only how it ends.
        "ALTER TABLE van NO INHERIT car; UPDATE van SET name = 'out and in'; ALTER TABLE van INHERIT car",
        "DO $$ BEGIN EXECUTE (SELECT string_agg(format('DROP TRIGGER %I ON van', tgname), ';') FROM pg_trigger
                               WHERE tgrelid = 'van'::regclass AND NOT tgisinternal);
         UPDATE van SET name = 'without triggers'; END $$",
        "ALTER TABLE vehicle ADD COLUMN wheels int DEFAULT 4",
        "TRUNCATE vehicle",
        "INSERT INTO boat (id, name) VALUES (4200, 'after it')",
    ] {
        world.db.exec(statement);
        for sync in [&index, &cache] {
            assert_in_step(world, sync);
        }
    }
    // Two for each sync, on each table.
    for table in ["vehicle", "car", "van", "boat"] {
        assert_eq!(captures(world, table), "4", "{table}");
    }
    assert_eq!(
        world.db.column("SELECT item FROM fanout.check() WHERE item = 'triggers' AND status <> 'ok'"),
        Vec::<String>::new()
    );
    world.db.exec("ALTER TABLE van NO INHERIT car");
    world.wait(&index);
    world.wait(&cache);
    eventually("its triggers are gone", Duration::from_secs(10), || captures(world, "van") == "0");
    world.db.exec(&format!("SELECT fanout.drop_sync('{index}'), fanout.drop_sync('{cache}')"));
    for table in ["vehicle", "car", "boat"] {
        assert_eq!(captures(world, table), "0", "{table}");
    }
}

fn two_rows_of_one_key_are_a_dead_letter(world: &mut World, engine: &Engine) {
    vehicles(world);
    world.db.exec("INSERT INTO car (id, name) VALUES (7, 'from the start')");
    let sync = world.index_table("vehicle", engine, "");
    world.wait(&sync);
    let letters = |world: &mut World| world.db.rows("SELECT id, reason FROM fanout.dead_letters ORDER BY id::int");
    let row = letters(world);
    assert_eq!(row.len(), 1, "{row:?}");
    assert_eq!(row[0][0].as_deref(), Some("7"));
    assert!(row[0][1].as_deref().unwrap_or_default().contains("hold a row of this key"), "{row:?}");
    world.db.exec("INSERT INTO van (id, name) VALUES (8, 'later'); UPDATE vehicle SET name = 'changed' WHERE id = 9");
    world.wait(&sync);
    assert_eq!(letters(world).len(), 2);
    assert_eq!(world.document(engine, "vehicle", "9")["name"], "changed");
    assert_eq!(world.document(engine, "vehicle", "8")["name"], "vehicle", "the old document stays");
    let verified = world.db.rows(&format!("CALL fanout.verify('{sync}')"));
    assert_eq!(verified[0][3..6].iter().flatten().collect::<Vec<_>>(), ["0", "0", "2"], "{verified:?}");
    // Whichever goes, the other is delivered.
    world.db.exec("DELETE FROM ONLY vehicle WHERE id = 7; DELETE FROM van WHERE id = 8");
    assert_in_step(world, &sync);
    assert_eq!(letters(world).len(), 0);
    assert_eq!(world.document(engine, "vehicle", "7")["name"], "from the start");
}

#[test]
fn the_parent_alone_is_chosen_by_a_predicate() {
    let mut world = World::new("only_parent");
    vehicles(&mut world);
    world.db.exec("INSERT INTO car (id, name) VALUES (7, 'twice')");
    let sync = world.cache_table("vehicle", ", predicate => $$vehicle.tableoid = 'vehicle'::regclass$$");
    assert_in_step(&mut world, &sync);
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.dead_letters"), "0");
    world.db.exec("UPDATE vehicle SET name = 'changed'; INSERT INTO van (id, name) VALUES (8, 'twice')");
    assert_in_step(&mut world, &sync);
    let key = format!("{}7", world.key_prefix("vehicle"));
    assert!(world.db.value(&format!("SELECT redis_get('cache', '{key}')")).contains("changed"));
}

/// Who may read the parent and put triggers on it needs no right to what inherits from it, as for reading.
#[test]
fn a_child_of_another_owner_is_captured_too() {
    let mut world = World::new("others_child");
    vehicles(&mut world);
    let (owner, _) = world.role("fleet");
    let (role, mut session) = world.role("reader");
    let key = format!("{}${{id}}", world.key_prefix("vehicle"));
    world.db.exec(&format!(
        "ALTER TABLE vehicle OWNER TO {owner}; ALTER TABLE car OWNER TO {owner}; ALTER TABLE van OWNER TO {owner};
         GRANT SELECT, TRIGGER ON vehicle TO {role}; GRANT USAGE ON FOREIGN SERVER cache TO {role}"
    ));
    let sync = session.value(&format!("SELECT fanout.cache_table('vehicle', server => 'cache', key => '{key}')"));
    assert_in_step(&mut world, &sync);
    world.db.exec("UPDATE van SET name = 'changed'; CREATE TABLE sled () INHERITS (vehicle); INSERT INTO sled VALUES (5000, 'sled')");
    world.db.exec(&format!("ALTER TABLE sled OWNER TO {owner}"));
    assert_in_step(&mut world, &sync);
    world.db.exec("UPDATE sled SET name = 'changed'");
    assert_in_step(&mut world, &sync);
    session.exec(&format!("SELECT fanout.drop_sync('{sync}')"));
    assert_eq!(captures(&mut world, "van"), "0");
}

/// The worker gives way to writers: it puts its trigger there when they are done, and reconciles.
#[test]
fn a_child_that_is_written_to_while_it_comes_holds_up_nothing() {
    let mut world = World::new("busy_child");
    vehicles(&mut world);
    world.db.exec("CREATE TABLE boat (id int PRIMARY KEY, name text)");
    let sync = world.cache_table("vehicle", "");
    assert_in_step(&mut world, &sync);
    let mut writer = world.connect();
    world.db.exec("BEGIN; ALTER TABLE boat INHERIT vehicle");
    let waiting = std::thread::spawn(move || {
        // Waits for the ALTER TABLE, and then comes before the worker.
        writer.exec("BEGIN; INSERT INTO boat VALUES (9001, 'unseen')");
        writer
    });
    std::thread::sleep(Duration::from_millis(300));
    world.db.exec("COMMIT");
    let mut writer = waiting.join().expect("the writer");
    world.db.exec("UPDATE vehicle SET name = 'meanwhile' WHERE id = 1");
    let key = format!("{}1", world.key_prefix("vehicle"));
    eventually("others are delivered", Duration::from_secs(10), || {
        world.db.value(&format!("SELECT redis_get('cache', '{key}')")).contains("meanwhile")
    });
    eventually("it is told", Duration::from_secs(10), || world.status(&sync, "last_error").contains("not captured"));
    writer.exec("COMMIT");
    eventually("the triggers are there", Duration::from_secs(20), || captures(&mut world, "boat") == "2");
    assert_in_step(&mut world, &sync);
}

#[test]
fn the_parent_of_a_foreign_table_is_refused() {
    let mut world = World::new("foreign_child");
    vehicles(&mut world);
    world.db.exec("CREATE FOREIGN TABLE far () INHERITS (vehicle) SERVER cache");
    let refusal = world.db.refusal("SELECT fanout.index_table('vehicle', server => 'search')");
    assert_eq!(refusal.code, "42809", "{refusal}");
    assert!(
        refusal.message.contains("the parent of a foreign table") && refusal.hint.contains("NO INHERIT"),
        "{refusal}"
    );
}
