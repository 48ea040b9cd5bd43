//! Documents that a target refuses for good.

use pg_test::{Engine, World, assert_in_step, differences, on_each_engine};
use serde_json::json;

on_each_engine!(
    a_refused_document_holds_up_no_other,
    a_later_change_of_the_row_tries_it_anew,
    retry_delivers_once_the_index_takes_it,
    on_reject_delete_removes_the_old_document,
    a_reconcile_settles_those_of_rows_that_are_gone,
    those_of_a_key_that_gets_another_type_are_found_anew
);

/// A table whose `code` is text, indexed as a number.
fn coded(world: &mut World, engine: &Engine, more: &str) -> String {
    world.db.exec(
        "CREATE TABLE part (id int PRIMARY KEY, code text);
         INSERT INTO part SELECT i, i::text FROM generate_series(1, 50) AS i",
    );
    let sync = world.index_table("part", engine, &format!(r#", mapping => '{{"code": {{"type": "integer"}}}}'{more}"#));
    assert_in_step(world, &sync);
    sync
}

/// Waits until everything is delivered or refused: `fanout.wait()` may say which.
fn settle(world: &mut World, sync: &str) {
    if let Err(refusal) = world.try_wait(sync, "60s") {
        assert!(refusal.message.contains("dead letter"), "{refusal}");
    }
}

fn a_refused_document_holds_up_no_other(world: &mut World, engine: &Engine) {
    let sync = coded(world, engine, "");
    world.db.exec("UPDATE part SET code = CASE WHEN id = 7 THEN 'seven' ELSE (id + 1000)::text END");
    world
        .db
        .exec("INSERT INTO part SELECT i, i::text FROM generate_series(60, 70) AS i; DELETE FROM part WHERE id = 50");
    settle(world, &sync);
    let letters =
        world.db.rows(&format!("SELECT id, status, reason, attempts FROM fanout.dead_letters WHERE sync = '{sync}'"));
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0][0].as_deref(), Some("7"));
    assert_eq!(letters[0][1].as_deref(), Some("400"));
    assert!(letters[0][2].as_deref().is_some_and(|reason| reason.contains("code")), "{letters:?}");
    assert_eq!(world.status(&sync, "dead_letters"), "1");
    let differences = differences(world, &sync);
    assert_eq!(differences.len(), 1, "{differences:#?}");
    assert!(differences[0].contains("seven"), "{differences:?}");
    // The old document stays where it is.
    assert_eq!(engine.document(&world.index_name("part"), "7").map(|it| it["code"].clone()), Some(json!("7")));
}

fn a_later_change_of_the_row_tries_it_anew(world: &mut World, engine: &Engine) {
    let sync = coded(world, engine, "");
    world.db.exec("UPDATE part SET code = 'wrong' WHERE id IN (7, 8, 9)");
    settle(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "3");
    world.db.exec("UPDATE part SET code = '77' WHERE id = 7; DELETE FROM part WHERE id = 8");
    world.db.exec("UPDATE part SET id = 900, code = '9' WHERE id = 9");
    assert_in_step(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
}

fn retry_delivers_once_the_index_takes_it(world: &mut World, engine: &Engine) {
    let sync = coded(world, engine, "");
    world.db.exec("UPDATE part SET code = 'wrong' WHERE id IN (7, 8)");
    settle(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "2");
    // Retried in vain, it is a dead letter still.
    world.db.exec(&format!("SELECT fanout.retry('{sync}', '7')"));
    settle(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "2");
    let mapping = json!({"properties": {"code": {"type": "integer", "ignore_malformed": true}}});
    engine.ask("PUT", &format!("/{}/_mapping", world.index_name("part")), Some(mapping));
    world.db.exec(&format!("SELECT fanout.retry('{sync}')"));
    assert_in_step(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
}

fn on_reject_delete_removes_the_old_document(world: &mut World, engine: &Engine) {
    let sync = coded(world, engine, ", on_reject => 'delete'");
    world.db.exec("UPDATE part SET code = 'seven' WHERE id = 7");
    settle(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "1");
    assert_eq!(engine.document(&world.index_name("part"), "7"), None);
}

#[test]
fn the_oldest_dead_letters_are_forgotten_past_the_bound() {
    let mut world = World::alone("dead_letter_bound");
    world.db.exec("ALTER SYSTEM SET fanout.dead_letters = 100");
    world.db.exec("SELECT pg_reload_conf()");
    let engine = Engine::opensearch();
    let sync = coded(&mut world, &engine, "");
    world.db.exec("INSERT INTO part SELECT i, 'no number' FROM generate_series(1000, 1249) AS i");
    settle(&mut world, &sync);
    world.db.exec("INSERT INTO part VALUES (2000, 'none either')");
    settle(&mut world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "100");
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.dead_letters"), "100");
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.dead_letters WHERE id = '2000'"), "1");
    // Those that are forgotten are found all the same.
    let found = world.db.rows(&format!("CALL fanout.verify('{sync}')"));
    assert_eq!((found[0][2].as_deref(), found[0][5].as_deref()), (Some("151"), Some("100")), "{found:?}");
    world.db.exec("ALTER SYSTEM RESET fanout.dead_letters");
    world.db.exec("SELECT pg_reload_conf()");
}

/// Of a row that never came to the target, neither side tells that it is gone.
fn a_reconcile_settles_those_of_rows_that_are_gone(world: &mut World, engine: &Engine) {
    let sync = coded(world, engine, "");
    world.db.exec("UPDATE part SET code = 'wrong' WHERE id = 7; INSERT INTO part VALUES (99, 'wrong'), (100, 'wrong')");
    settle(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "3");
    // Noted by nobody.
    world.db.exec("BEGIN; SET LOCAL fanout.bulk_load = on; DELETE FROM part WHERE id IN (7, 99); COMMIT");
    settle(world, &sync);
    let left = world.db.column(&format!("SELECT id FROM fanout.dead_letters WHERE sync = '{sync}'"));
    assert_eq!(left, ["100"]);
    world.db.exec("DELETE FROM part WHERE id = 100");
    assert_in_step(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
}

/// What was noted of them is a value of the old type.
fn those_of_a_key_that_gets_another_type_are_found_anew(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE part (id text PRIMARY KEY, code text);
         INSERT INTO part SELECT i, i::text FROM generate_series(1, 50) AS i",
    );
    let sync = world.index_table("part", engine, r#", mapping => '{"code": {"type": "integer"}}'"#);
    assert_in_step(world, &sync);
    world.db.exec("UPDATE part SET code = 'wrong' WHERE id IN ('7', '8')");
    settle(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "2");
    world.db.exec("ALTER TABLE part ALTER id TYPE numeric USING id::numeric");
    settle(world, &sync);
    let left = format!("SELECT id FROM fanout.dead_letters WHERE sync = '{sync}' ORDER BY id");
    assert_eq!(world.db.column(&left), ["7", "8"]);
    world.db.exec("UPDATE part SET code = id WHERE id < 9");
    assert_in_step(world, &sync);
    assert!(world.db.column(&left).is_empty());
}
