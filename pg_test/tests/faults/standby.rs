//! A second server with the files of the first: a standby, a copy, an upgraded one, and what it does beside the first and alone.

use crate::tables::products;
use pg_test::{Engine, Keyspace, Second, Session, World, assert_in_step, eventually, eventually_ok, stack};
use std::collections::BTreeMap;
use std::time::Duration;

/// Longer than a sync that is blocked waits until it tries again, and than the owner of a target until it beats.
const TRIED_AGAIN: Duration = Duration::from_secs(20);

/// Longer than a target's owner must be silent, after the last try that found it alive.
const SILENT: Duration = Duration::from_secs(90);

/// A world with an index and a cache of 50 products, both in step.
fn fed(name: &str) -> (World, [String; 2]) {
    let mut world = World::alone(name);
    products(&mut world, 50);
    let syncs = [world.index_table("product", &Engine::opensearch(), ""), world.cache_table("product", "")];
    for sync in &syncs {
        assert_in_step(&mut world, sync);
    }
    (world, syncs)
}

/// Waits until a server that was just started says that another feeds the targets; it must not have sent anything.
fn wait_until_blocked(db: &mut Session, syncs: &[String]) {
    for sync in syncs {
        eventually_ok(&format!("sync \"{sync}\" says who feeds its target"), Duration::from_secs(40), || {
            let sql = "SELECT state || ': ' || coalesce(last_error, '') FROM fanout.status";
            let said = db.value(&format!("{sql} WHERE sync = '{sync}'"));
            if said.starts_with("blocked: the target") && said.contains("another") { Ok(()) } else { Err(said) }
        });
    }
    assert_eq!(delivered(db), "0");
}

fn delivered(db: &mut Session) -> String {
    db.value("SELECT sum(delivered) FROM fanout.status")
}

/// In what the targets differ from the products of one of the two servers: id and name, in the table and there.
fn differences(world: &World, db: &mut Session) -> Vec<String> {
    let rows = db.rows("SELECT id, name FROM product");
    let rows: BTreeMap<String, String> =
        rows.into_iter().map(|row| (row[0].clone().unwrap_or_default(), row[1].clone().unwrap_or_default())).collect();
    let (engine, index) = (Engine::opensearch(), world.index_name("product"));
    engine.refresh(&index);
    let documents = engine.documents(&index).into_iter().map(|it| it.source).collect();
    let values = Keyspace::open().json(&world.key_prefix("product")).into_iter().map(|it| it.1).collect();
    let mut found = Vec::new();
    for (target, held) in [("index", documents), ("cache", values)] {
        let held: Vec<serde_json::Value> = held;
        let text = |it: &serde_json::Value| it.as_str().map_or_else(|| it.to_string(), str::to_owned);
        let held: BTreeMap<String, String> = held.iter().map(|it| (text(&it["id"]), text(&it["name"]))).collect();
        let ids = rows.keys().chain(held.keys().filter(|id| !rows.contains_key(*id)));
        let differ = ids.filter(|id| rows.get(*id) != held.get(*id));
        found.extend(differ.map(|id| format!("{id} in {target}: {:?}, {:?}", rows.get(id), held.get(id))));
    }
    found
}

/// Waits until the targets hold what that server holds.
fn wait_until_fed_by(world: &World, db: &mut Session) {
    eventually_ok("the targets hold what it holds", SILENT, || {
        let found = differences(world, db);
        if found.is_empty() {
            return Ok(());
        }
        let status = db.rows("SELECT sync, state, last_error FROM fanout.status");
        Err(format!("{}\nfanout.status: {status:?}", found[..found.len().min(5)].join("\n")))
    });
}

/// Changes that only this server knows of: one of each kind, in both targets.
fn go_ahead(world: &mut World, syncs: &[String]) {
    world.db.exec(
        "UPDATE product SET name = 'lost' WHERE id = 1; INSERT INTO product (id, name) VALUES (1000, 'lost');
         DELETE FROM product WHERE id = 2",
    );
    for sync in syncs {
        assert_in_step(world, sync);
    }
}

#[test]
#[ignore = "the long form: make faults"]
fn a_standby_sends_nothing_and_goes_on_once_it_is_promoted_and_alone() {
    let (mut world, syncs) = fed("standby");
    let standby = Second::standby(&world.tag);
    let mut db = standby.connect(&world.database());
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_fanout worker'";
    assert_eq!(db.value(workers), "0");
    assert_eq!(db.value("SELECT count(*) FROM fanout.sync"), "2");
    assert_eq!(db.value("SELECT count(*) FROM fanout.status"), "2");
    assert_eq!(db.value("SELECT count(*) FROM es_search('product', size => 1)"), "1");
    // Promoted beside its living primary it touches nothing.
    db.exec("SELECT pg_promote()");
    wait_until_blocked(&mut db, &syncs);
    db.exec("UPDATE product SET name = 'promoted'; DELETE FROM product WHERE id > 40");
    world.db.exec("UPDATE product SET name = 'primary'");
    for sync in &syncs {
        assert_in_step(&mut world, sync);
    }
    // Alone it goes on, and the targets have what it has.
    let primary = stack::stop("postgres");
    wait_until_fed_by(&world, &mut db);
    drop(db);
    drop(standby);
    primary.start();
    world.reconnect();
}

#[test]
#[ignore = "the long form: make faults"]
fn what_only_the_old_primary_knew_is_taken_back_and_it_feeds_nothing_any_more() {
    let (mut world, syncs) = fed("superseded");
    let standby = Second::standby(&world.tag);
    let mut db = standby.connect(&world.database());
    db.exec("ALTER SYSTEM SET primary_conninfo = ''");
    db.exec("SELECT pg_reload_conf()");
    eventually("the standby hears no more of its primary", Duration::from_secs(30), || {
        db.value("SELECT count(*) FROM pg_stat_wal_receiver") == "0"
    });
    go_ahead(&mut world, &syncs);
    let primary = stack::stop("postgres");
    db.exec("SELECT pg_promote()");
    assert_eq!(db.value("SELECT count(*) FROM product WHERE name = 'lost'"), "0");
    wait_until_fed_by(&world, &mut db);
    // The old primary comes back beside it.
    primary.start();
    world.reconnect();
    wait_until_blocked(&mut world.db, &syncs);
    world.db.exec("UPDATE product SET name = 'old primary' WHERE id > 3");
    db.exec("UPDATE product SET name = 'new primary' WHERE id < 6");
    std::thread::sleep(TRIED_AGAIN);
    wait_until_blocked(&mut world.db, &syncs);
    assert_eq!(differences(&world, &mut db), Vec::<String>::new());
}

#[test]
#[ignore = "the long form: make faults"]
fn a_copy_of_the_files_goes_on_once_it_is_alone_and_takes_back_what_it_lacks() {
    let (mut world, syncs) = fed("alone");
    let mut second = Second::copy(&world.tag);
    go_ahead(&mut world, &syncs);
    let first = stack::stop("postgres");
    second.start();
    let mut db = second.connect(&world.database());
    wait_until_blocked(&mut db, &syncs);
    wait_until_fed_by(&world, &mut db);
    drop(second);
    first.start();
    world.reconnect();
}

#[test]
#[ignore = "the long form: make faults"]
fn an_upgraded_server_goes_on_once_the_old_one_is_silent() {
    let (mut world, syncs) = fed("upgraded");
    let mut second = Second::copy(&world.tag);
    second.start();
    wait_until_blocked(&mut second.connect(&world.database()), &syncs);
    second.stop();
    second.upgrade(&mut world.db);
    second.start();
    let mut db = second.connect(&world.database());
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    assert_ne!(db.value(identifier), world.db.value(identifier));
    // Beside the one that it was it touches nothing.
    wait_until_blocked(&mut db, &syncs);
    db.exec("UPDATE product SET name = 'upgraded' WHERE id > 10; DELETE FROM product WHERE id > 40");
    go_ahead(&mut world, &syncs);
    std::thread::sleep(TRIED_AGAIN);
    assert_eq!(delivered(&mut db), "0");
    let first = stack::stop("postgres");
    wait_until_fed_by(&world, &mut db);
    db.exec("UPDATE product SET name = 'goes on' WHERE id > 20");
    for sync in &syncs {
        db.exec(&format!("SELECT fanout.wait('{sync}', '60s')"));
    }
    assert_eq!(differences(&world, &mut db), Vec::<String>::new());
    drop(second);
    first.start();
    world.reconnect();
}

#[test]
#[ignore = "the long form: make faults"]
fn a_server_that_was_upgraded_elsewhere_waits_to_be_told() {
    let (mut world, syncs) = fed("rehearsed");
    let mut second = Second::copy(&world.tag);
    second.start();
    // As if that had been on another machine.
    second.connect(&world.database()).exec("UPDATE fanout.home SET boot = 'of another'");
    second.stop();
    second.upgrade(&mut world.db);
    second.start();
    let mut db = second.connect(&world.database());
    for sync in &syncs {
        let row = db.rows(&format!("SELECT state, last_error FROM fanout.status WHERE sync = '{sync}'")).remove(0);
        let why = row[1].as_deref().unwrap_or_default();
        assert_eq!(row[0].as_deref(), Some("parked"));
        assert!(why.contains("pg_upgrade") && why.contains(&format!("fanout.adopt('{sync}')")), "{why}");
    }
    db.exec("UPDATE product SET name = 'upgraded'; DELETE FROM product WHERE id > 40");
    std::thread::sleep(TRIED_AGAIN);
    for sync in &syncs {
        assert_in_step(&mut world, sync);
    }
    assert_eq!(db.value("SELECT fanout.adopt()"), "2");
    wait_until_fed_by(&world, &mut db);
}
