//! Partitioned tables.

use pg_test::{Engine, World, assert_in_step, on_each_engine};

on_each_engine!(writes_by_way_of_the_parent_and_of_a_partition_are_followed);

fn writes_by_way_of_the_parent_and_of_a_partition_are_followed(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE event (id int, month int, note text, PRIMARY KEY (id, month)) PARTITION BY LIST (month);
         CREATE TABLE event_1 PARTITION OF event FOR VALUES IN (1);
         CREATE TABLE event_2 (note text, month int NOT NULL, spare int, id int NOT NULL);
         ALTER TABLE event_2 DROP COLUMN spare, ADD PRIMARY KEY (id, month);
         ALTER TABLE event ATTACH PARTITION event_2 FOR VALUES IN (2);
         INSERT INTO event SELECT i, 1 + i % 2, 'n' FROM generate_series(1, 1000) AS i",
    );
    let sync = world.index_table("event", engine, "");
    assert_in_step(world, &sync);
    world.db.exec("UPDATE event SET note = 'parent' WHERE id < 100; DELETE FROM event WHERE id = 500");
    world
        .db
        .exec("UPDATE event_2 SET note = 'directly' WHERE id > 900; INSERT INTO event_1 VALUES (5000, 1, 'directly')");
    assert_in_step(world, &sync);
    // A row that moves to another partition is deleted there and inserted here.
    world.db.exec("UPDATE event SET month = 3 - month WHERE id BETWEEN 200 AND 300");
    assert_in_step(world, &sync);
    // A partition that is made later has the trigger as well.
    world
        .db
        .exec("CREATE TABLE event_3 PARTITION OF event FOR VALUES IN (3); INSERT INTO event_3 VALUES (7, 3, 'new')");
    world.db.exec("INSERT INTO event VALUES (8, 3, 'new')");
    assert_in_step(world, &sync);
}
