//! What PostgreSQL learnt after version 15, where the server is new enough.

use pg_test::{Engine, World, assert_in_step, on_each_engine};

on_each_engine!(
    virtual_generated_columns_are_in_documents,
    rows_with_temporal_keys_are_told_apart_by_a_unique_index,
    temporal_foreign_keys_are_followed,
    foreign_keys_that_are_not_enforced_are_followed,
    time_ordered_uuids_are_keys,
    merge_that_returns_rows_is_followed,
);

/// False, with a word about it, on a server that is older.
fn has(world: &mut World, version: u32) -> bool {
    let there: u32 =
        world.db.value("SELECT current_setting('server_version_num')::int / 10000").parse().expect("a number");
    if there < version {
        println!("not tested: this is PostgreSQL {there}, and it takes {version}");
    }
    there >= version
}

fn virtual_generated_columns_are_in_documents(world: &mut World, engine: &Engine) {
    if !has(world, 18) {
        return;
    }
    world.db.exec(
        "CREATE TABLE box (id int PRIMARY KEY, width int, height int, area int GENERATED ALWAYS AS (width * height),
            half int GENERATED ALWAYS AS (width / 2) STORED);
         INSERT INTO box SELECT i, i, i % 7 FROM generate_series(1, 200) AS i",
    );
    let sync = world.index_table("box", engine, "");
    let large = world.cache_table("box", ", predicate => 'area > 100'");
    assert_in_step(world, &sync);
    assert_in_step(world, &large);
    world.db.exec("UPDATE box SET height = 9 WHERE id % 3 = 0; DELETE FROM box WHERE area = 0");
    world.db.exec("ALTER TABLE box ALTER COLUMN area SET EXPRESSION AS (width + height)");
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}'), fanout.reconcile('{large}')"));
    assert_in_step(world, &sync);
    assert_in_step(world, &large);
    assert_eq!(world.document(engine, "box", "3")["area"], 12);
    let key = format!("{}${{area}}", world.key_prefix("area"));
    let refusal = world.db.refusal(&format!("SELECT fanout.cache_table('box', server => 'cache', key => '{key}')"));
    assert!(refusal.message.contains("virtual generated column"), "{refusal:?}");
}

const ROOMS: &str = "CREATE EXTENSION btree_gist;
    CREATE TABLE room (id int, open daterange, name text, PRIMARY KEY (id, open WITHOUT OVERLAPS));
    INSERT INTO room SELECT i, daterange(date '2026-01-01' + 100 * j, date '2026-01-01' + 100 * j + 100), 'room ' || i || j
        FROM generate_series(1, 20) AS i, generate_series(0, 2) AS j;";

fn rows_with_temporal_keys_are_told_apart_by_a_unique_index(world: &mut World, engine: &Engine) {
    if !has(world, 18) {
        return;
    }
    world.db.exec(ROOMS);
    let refusal = world.db.refusal(&format!("SELECT fanout.index_table('room', server => '{}')", engine.server));
    assert!(refusal.hint.contains("CREATE UNIQUE INDEX"), "{refusal:?}");
    // NULLs could be there, whatever the column's constraint says of later rows.
    world.db.exec(
        "ALTER TABLE room ADD badge int; CREATE UNIQUE INDEX ON room (badge);
         ALTER TABLE room ADD CONSTRAINT badge_there NOT NULL badge NOT VALID",
    );
    world.db.refusal(&format!("SELECT fanout.index_table('room', server => '{}')", engine.server));
    world.db.exec("ALTER TABLE room DROP COLUMN badge; CREATE UNIQUE INDEX ON room (id, open)");
    let sync = world.index_table("room", engine, ", types => '{\"daterange\": \"keyword\"}'");
    assert_in_step(world, &sync);
    world.db.exec("UPDATE room SET open = daterange(lower(open) + 1, upper(open)) WHERE id % 2 = 0");
    world.db.exec("DELETE FROM room WHERE id = 3; UPDATE room SET name = 'closed' WHERE open @> date '2026-06-01'");
    assert_in_step(world, &sync);
}

/// A booking may lie in several rows of its room, so the ranges are not equal.
fn temporal_foreign_keys_are_followed(world: &mut World, engine: &Engine) {
    if !has(world, 18) {
        return;
    }
    world.db.exec(ROOMS);
    world.db.exec(
        "CREATE TABLE booking (id int PRIMARY KEY, room int, during daterange,
            FOREIGN KEY (room, PERIOD during) REFERENCES room (id, PERIOD open));
         INSERT INTO booking SELECT i, 1 + i % 20, daterange(date '2026-01-01' + i, date '2026-01-01' + i + 60)
            FROM generate_series(1, 200) AS i; BEGIN",
    );
    let sync = world.index_table(
        "booking",
        engine,
        ", document => 'SELECT b.id, b.during::text, (SELECT string_agg(r.name, '','' ORDER BY r.open) FROM room r
                WHERE r.id = b.room AND r.open && b.during) AS rooms FROM booking b'",
    );
    world.db.exec(&format!("SELECT fanout.related('{sync}', 'room'); COMMIT"));
    assert_in_step(world, &sync);
    world.db.exec("UPDATE room SET name = upper(name) WHERE id % 3 = 0");
    assert_in_step(world, &sync);
}

fn foreign_keys_that_are_not_enforced_are_followed(world: &mut World, engine: &Engine) {
    if !has(world, 18) {
        return;
    }
    world.db.exec(
        "CREATE TABLE author (id int PRIMARY KEY, name text);
         CREATE TABLE book (id int PRIMARY KEY, author int REFERENCES author NOT ENFORCED);
         INSERT INTO author SELECT i, 'author ' || i FROM generate_series(1, 9) AS i;
         INSERT INTO book SELECT i, i % 12 FROM generate_series(1, 100) AS i; BEGIN",
    );
    let sync = world.index_table(
        "book",
        engine,
        ", document => 'SELECT b.id, a.name AS author FROM book b LEFT JOIN author a ON a.id = b.author'",
    );
    world.db.exec(&format!("SELECT fanout.related('{sync}', 'author'); COMMIT"));
    assert_in_step(world, &sync);
    world.db.exec("UPDATE author SET name = 'nobody' WHERE id < 4; DELETE FROM author WHERE id = 5");
    world.db.exec("INSERT INTO author VALUES (11, 'late')");
    assert_in_step(world, &sync);
}

fn time_ordered_uuids_are_keys(world: &mut World, engine: &Engine) {
    if !has(world, 18) {
        return;
    }
    world.db.exec(
        "CREATE TABLE event (id uuid PRIMARY KEY DEFAULT uuidv7(), n int); INSERT INTO event (n) SELECT generate_series(1, 300)",
    );
    let sync = world.index_table("event", engine, "");
    world.db.exec("UPDATE event SET n = -n WHERE n % 3 = 0; DELETE FROM event WHERE n % 10 = 0");
    world.db.exec("UPDATE event SET id = uuidv7() WHERE n < 0 RETURNING old.id, new.id");
    assert_in_step(world, &sync);
}

fn merge_that_returns_rows_is_followed(world: &mut World, engine: &Engine) {
    if !has(world, 17) {
        return;
    }
    crate::tables::products(world, 60);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    let merged = world.db.column(
        "MERGE INTO product AS p USING (SELECT i FROM generate_series(1, 90) AS i WHERE i % 2 = 0) AS s ON p.id = s.i
         WHEN MATCHED AND s.i % 4 = 0 THEN DELETE
         WHEN MATCHED THEN UPDATE SET price = -1
         WHEN NOT MATCHED THEN INSERT (id, name) VALUES (s.i, 'merged')
         WHEN NOT MATCHED BY SOURCE AND p.id > 50 THEN DELETE
         RETURNING merge_action()",
    );
    assert_eq!(merged.len(), 50);
    assert_in_step(world, &sync);
}
