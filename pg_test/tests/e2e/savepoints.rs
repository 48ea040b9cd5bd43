//! Rollback of a part of a transaction, and of all of it.

use crate::tables::products;
use pg_test::{Engine, World, assert_in_step, on_each_engine};

on_each_engine!(
    what_was_rolled_back_leaves_the_rest_alone,
    outer_changes_survive_a_spill_inside_a_rolled_back_savepoint
);

fn what_was_rolled_back_leaves_the_rest_alone(world: &mut World, engine: &Engine) {
    products(world, 100);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);

    world.db.exec("BEGIN; UPDATE product SET name = 'never'; DELETE FROM product WHERE id < 10; ROLLBACK");
    assert_in_step(world, &sync);

    // The same row is changed outside and inside what is rolled back: the outer change has to be delivered.
    world.db.exec(
        "BEGIN;
         UPDATE product SET name = 'outer' WHERE id <= 3;
         SAVEPOINT a;
         UPDATE product SET name = 'inner' WHERE id <= 6;
         SAVEPOINT b;
         DELETE FROM product WHERE id <= 9;
         RELEASE b;
         ROLLBACK TO a;
         UPDATE product SET price = 3 WHERE id = 12;
         SAVEPOINT c;
         INSERT INTO product (id, name) VALUES (500, 'kept');
         RELEASE c;
         COMMIT",
    );
    assert_in_step(world, &sync);

    // Every EXCEPTION block is a savepoint.
    world.db.exec(
        "DO $$
         BEGIN
             FOR i IN 1..100 LOOP
                 UPDATE product SET price = -i WHERE id = i;
                 BEGIN
                     UPDATE product SET name = 'undone' WHERE id IN (i, i + 1);
                     INSERT INTO product (id, name) VALUES (i + 600, 'undone');
                     IF i % 3 > 0 THEN PERFORM 1 / 0; END IF;
                 EXCEPTION WHEN division_by_zero THEN
                     UPDATE product SET active = false WHERE id = i + 2;
                 END;
             END LOOP;
         END $$",
    );
    assert_in_step(world, &sync);

    // A transaction that failed.
    world.db.exec("BEGIN; UPDATE product SET name = 'never' WHERE id > 50");
    assert_eq!(world.db.refusal("SELECT 1 / 0").code, "22012");
    world.db.exec("COMMIT");
    assert_in_step(world, &sync);
}

fn outer_changes_survive_a_spill_inside_a_rolled_back_savepoint(world: &mut World, engine: &Engine) {
    world.db.exec("CREATE TABLE reading (id bigint PRIMARY KEY, n int); INSERT INTO reading SELECT i, 0 FROM generate_series(1, 30000) AS i");
    let sync = world.index_table("reading", engine, "");
    assert_in_step(world, &sync);
    world.db.exec("SET fanout.capture_memory = '64kB'");
    world.db.exec("BEGIN; UPDATE reading SET n = 1 WHERE id <= 3000; SAVEPOINT a");
    // Past the bound inside the savepoint; whatever goes to the journal now dies with it.
    world.db.exec("UPDATE reading SET n = 2; UPDATE reading SET n = 3; ROLLBACK TO a");
    // The set must have forgotten what it spilled: these keys were in it.
    world.db.exec("UPDATE reading SET n = 4 WHERE id BETWEEN 20000 AND 20100");
    world.db.exec("SAVEPOINT b; UPDATE reading SET n = 5 WHERE id BETWEEN 20050 AND 28000; RELEASE b; COMMIT");
    assert_in_step(world, &sync);
    world.db.exec("BEGIN; UPDATE reading SET n = 6; ROLLBACK");
    assert_in_step(world, &sync);
    world.db.exec(
        "DO $$
         BEGIN
             UPDATE reading SET n = 7 WHERE id <= 10000;
             BEGIN
                 UPDATE reading SET n = 8;
                 RAISE EXCEPTION 'undo';
             EXCEPTION WHEN raise_exception THEN NULL;
             END;
             DELETE FROM reading WHERE id > 29900;
         END $$",
    );
    assert_in_step(world, &sync);
}
