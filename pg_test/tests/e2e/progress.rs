//! What one sees of work under way, and how it is held back: progress, activity, rate, window, bulk loads.

use crate::tables::{more_products, products};
use pg_test::{Engine, World, assert_in_step, eventually, on_each_engine};
use std::time::{Duration, Instant};

on_each_engine!(
    a_backfill_keeps_its_rate_and_shows_its_progress,
    a_first_backfill_is_held_back_from_its_first_row,
    a_bulk_load_is_reconciled
);

/// A window that is not now, in the time zone of the log.
fn later_today(world: &mut World) -> String {
    world.db.value(
        "SELECT to_char(t, 'HH24:MI') || '-' || to_char(t + interval '1 hour', 'HH24:MI')
         FROM (SELECT now() AT TIME ZONE current_setting('log_timezone') + interval '3 hours') AS n (t)",
    )
}

fn a_backfill_keeps_its_rate_and_shows_its_progress(world: &mut World, engine: &Engine) {
    products(world, 3000);
    world.db.exec("ANALYZE product");
    let sync = world.index_table("product", engine, "");
    world.db.exec(&format!("SELECT fanout.alter_sync('{sync}', backfill_rate => 1000)"));
    world.wait(&sync);
    let begun = Instant::now();
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    let mut seen = Vec::new();
    eventually("it is live again", Duration::from_secs(90), || {
        seen.extend(world.db.rows(&format!(
            "SELECT command, phase, rows_done, rows_total, percent, eta IS NOT NULL, pid FROM fanout.progress WHERE sync = '{sync}'"
        )));
        world.db.value("SELECT phase FROM fanout.sync") == "live"
    });
    let took = begun.elapsed();
    // How long at most is a matter of what else the machine does.
    assert!(took > Duration::from_millis(2500), "3000 ids and 3000 rows, at 1000 a second, in {took:?}");
    let text = |row: &Vec<Option<String>>, column: usize| row[column].clone().unwrap_or_default();
    let reading: Vec<_> = seen.iter().filter(|row| text(row, 1) == "reading rows").collect();
    assert!(reading.iter().all(|row| text(row, 0) == "reconcile"), "{seen:?}");
    assert!(reading.iter().any(|row| text(row, 5) == "t"), "{seen:?}");
    let done: Vec<i64> = reading.iter().filter_map(|row| text(row, 2).parse().ok()).collect();
    assert!(done.is_sorted() && done.last() > done.first(), "{done:?}");
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.progress"), "0");
    assert_in_step(world, &sync);
}

/// The worker knows nothing of a sync before its transaction commits, so what is altered in it holds for all of the backfill.
fn a_first_backfill_is_held_back_from_its_first_row(world: &mut World, engine: &Engine) {
    products(world, 2000);
    let window = later_today(world);
    world.db.exec("BEGIN");
    let sync = world.index_table("product", engine, "");
    world.db.exec(&format!(
        "SELECT fanout.alter_sync('{sync}', backfill_rate => 1000, backfill_window => '{window}'); COMMIT"
    ));
    eventually("it waits", Duration::from_secs(20), || {
        world.db.column("SELECT phase FROM fanout.progress") == ["waiting for its window"]
    });
    world.db.exec("UPDATE product SET price = 55 WHERE id = 7");
    let index = world.index_name("product");
    eventually("a change arrives", Duration::from_secs(10), || engine.document(&index, "7").is_some());
    std::thread::sleep(Duration::from_millis(500));
    engine.refresh(&index);
    assert_eq!(engine.documents(&index).len(), 1, "and no other row");
    let begun = Instant::now();
    world.db.exec(&format!("SELECT fanout.alter_sync('{sync}', reset => '{{backfill_window}}')"));
    assert_in_step(world, &sync);
    assert!(begun.elapsed() > Duration::from_millis(900), "2000 rows at 1000 a second in {:?}", begun.elapsed());
}

fn a_bulk_load_is_reconciled(world: &mut World, engine: &Engine) {
    products(world, 500);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    world.db.exec("BEGIN; SET LOCAL fanout.bulk_load = on");
    more_products(world, 501, 3000);
    world
        .db
        .exec("DELETE FROM product WHERE id <= 100; UPDATE product SET price = 1 WHERE id BETWEEN 101 AND 200; COMMIT");
    assert_in_step(world, &sync);
    // Rolled back: nothing happens.
    let before = world.db.value("SELECT request FROM fanout.sync");
    world.db.exec("BEGIN; SET LOCAL fanout.bulk_load = on; DELETE FROM product; ROLLBACK");
    assert_in_step(world, &sync);
    assert_eq!(world.db.value("SELECT request FROM fanout.sync"), before);
    // The journal has one note a transaction, not one a row.
    let size = "SELECT sum(pg_relation_size(c.oid)) FROM pg_class c WHERE relname ~ '^journal_[0-9]'";
    world.db.exec(&format!("SELECT fanout.pause('{sync}')"));
    let before: i64 = world.db.value(size).parse().expect("a number");
    world.db.exec("BEGIN; SET LOCAL fanout.bulk_load = on; UPDATE product SET price = 2; COMMIT");
    let after: i64 = world.db.value(size).parse().expect("a number");
    assert!(after - before <= 8192, "{before} {after}");
    world.db.exec(&format!("SELECT fanout.resume('{sync}')"));
    assert_in_step(world, &sync);
}

#[test]
fn a_bulk_load_is_for_whom_it_is_granted_to() {
    let mut world = World::new("bulk_load_rights");
    let (role, mut session) = world.role("loader");
    assert_eq!(session.refusal("SET fanout.bulk_load = on").code, "42501");
    world.db.exec(&format!("GRANT SET ON PARAMETER fanout.bulk_load TO {role}"));
    session.exec("SET fanout.bulk_load = on");
    world.db.exec(&format!("REVOKE SET ON PARAMETER fanout.bulk_load FROM {role}"));
}

#[test]
fn a_backfill_waits_for_its_window() {
    let mut world = World::new("window");
    products(&mut world, 100);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    assert_in_step(&mut world, &sync);
    let window = later_today(&mut world);
    world.db.exec(&format!("SELECT fanout.alter_sync('{sync}', backfill_window => '{window}')"));
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    eventually("it waits", Duration::from_secs(10), || {
        world.db.column("SELECT phase FROM fanout.progress") == ["waiting for its window"]
    });
    // Changes are delivered all the same.
    let index = world.index_name("product");
    world.db.exec("UPDATE product SET price = 55 WHERE id = 7");
    let engine = Engine::opensearch();
    eventually("the change arrives", Duration::from_secs(10), || {
        engine.document(&index, "7").is_some_and(|document| document["price"] == 55.0)
    });
    assert_eq!(world.status(&sync, "state"), "reconcile");
    world.db.exec(&format!("SELECT fanout.alter_sync('{sync}', reset => '{{backfill_window}}')"));
    assert_in_step(&mut world, &sync);
}

#[test]
fn the_worker_tells_what_it_does() {
    let mut world = World::new("activity");
    products(&mut world, 10);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    let sql = "SELECT state, query, application_name, backend_type, wait_event_type FROM pg_stat_activity
               WHERE datname = current_database() AND backend_type = 'pg_fanout worker'";
    eventually("the worker is idle", Duration::from_secs(10), || {
        let row = world.db.rows(sql).remove(0);
        let text = |column: usize| row[column].clone().unwrap_or_default();
        text(0) == "idle"
            && text(1).contains(&format!("\"{sync}\""))
            && text(2) == "pg_fanout worker"
            && text(4) == "Extension"
    });
    world.db.exec(&format!("SELECT fanout.alter_sync('{sync}', backfill_rate => 5)"));
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    eventually("it says that it reconciles", Duration::from_secs(10), || {
        world.db.rows(sql)[0][1].as_deref() == Some(&format!("reconciling sync \"{sync}\""))
    });
}
