//! Who feeds a target when more than one would.

use crate::tables::products;
use pg_test::{Engine, Keyspace, Second, Session, Setting, World, assert_in_step, eventually, eventually_ok};
use std::time::{Duration, Instant};

/// Longer than a sync that is blocked waits until it tries again, and than the owner of a target until it beats.
const TRIED_AGAIN: Duration = Duration::from_secs(20);

/// The names that the products in both targets have: all the same.
fn name_in_targets(world: &World, rows: usize) -> Option<String> {
    let engine = Engine::opensearch();
    let index = world.index_name("product");
    engine.refresh(&index);
    let documents = engine.documents(&index).into_iter().map(|it| it.source);
    let values = Keyspace::open().json(&world.key_prefix("product")).into_iter().map(|it| it.1);
    let names: Vec<String> = documents.chain(values).map(|it| it["name"].as_str().unwrap_or_default().into()).collect();
    let first = names.first()?;
    (names.len() == 2 * rows && names.iter().all(|name| name == first)).then(|| first.clone())
}

fn wait_until_blocked(db: &mut Session, sync: &str, by: &str) {
    eventually_ok(&format!("sync \"{sync}\" is blocked, by {by}"), Duration::from_secs(40), || {
        let sql = format!("SELECT state || ': ' || coalesce(last_error, '') FROM fanout.status WHERE sync = '{sync}'");
        let said = db.value(&sql);
        if said.starts_with("blocked") && said.contains(by) { Ok(()) } else { Err(said) }
    });
}

#[test]
fn a_copy_of_the_database_writes_nothing_until_it_adopts_the_target() {
    let mut world = World::new("copied");
    products(&mut world, 20);
    let index = world.index_table("product", &Engine::opensearch(), "");
    let cache = world.cache_table("product", "");
    world.wait(&index);
    world.wait(&cache);
    let mut copy = world.copy();
    for sync in [&index, &cache] {
        let row = copy.rows(&format!("SELECT state, last_error FROM fanout.status WHERE sync = '{sync}'")).remove(0);
        assert_eq!(row[0].as_deref(), Some("parked"));
        let why = row[1].as_deref().unwrap_or_default();
        assert!(why.contains("another database of this cluster") && why.contains("fanout.adopt("), "{why}");
    }
    // Also where the source was altered, so that the sync is to be reconciled for that, too.
    copy.exec("ALTER TABLE product ADD COLUMN further int");
    copy.exec("DELETE FROM product WHERE id > 10; UPDATE product SET name = 'copy'");
    let refusal = copy.refusal(&format!("SELECT fanout.wait('{index}', '30s')"));
    assert_eq!(refusal.code, "55000", "{refusal}");
    // The original goes on, and its target is its own.
    world.db.exec("UPDATE product SET price = 3 WHERE id = 5");
    assert_in_step(&mut world, &index);
    assert_in_step(&mut world, &cache);
    // The copy takes over; the original notices, and stops.
    assert_eq!(copy.value("SELECT fanout.adopt()"), "2");
    for sync in [&index, &cache] {
        copy.exec(&format!("SELECT fanout.wait('{sync}', '60s')"));
        wait_until_blocked(&mut world.db, sync, "another owner");
    }
    world.db.exec("UPDATE product SET name = 'original'");
    std::thread::sleep(TRIED_AGAIN);
    assert_eq!(name_in_targets(&world, 10).as_deref(), Some("copy"));
}

#[test]
fn a_copy_of_the_servers_files_writes_nothing_until_it_adopts_the_target() {
    let mut world = World::alone("cloned");
    products(&mut world, 20);
    let index = world.index_table("product", &Engine::opensearch(), "");
    let cache = world.cache_table("product", "");
    assert_in_step(&mut world, &index);
    assert_in_step(&mut world, &cache);
    let mut second = Second::copy(&world.tag);
    second.start();
    let mut copy = second.connect(&world.database());
    for sync in [&index, &cache] {
        wait_until_blocked(&mut copy, sync, "another owner");
    }
    copy.exec("DELETE FROM product WHERE id > 10; UPDATE product SET name = 'copy'");
    // The original goes on, its next worker too, and that at once.
    world.db.exec("UPDATE product SET name = 'original'");
    world.end_worker();
    let began = Instant::now();
    assert_in_step(&mut world, &index);
    assert_in_step(&mut world, &cache);
    assert!(began.elapsed() < Duration::from_secs(12), "a restart took {:?}", began.elapsed());
    std::thread::sleep(TRIED_AGAIN);
    assert_eq!(name_in_targets(&world, 20).as_deref(), Some("original"));
    assert_eq!(copy.value("SELECT sum(delivered) FROM fanout.status"), "0");
    // The copy takes over; the original notices, and stops.
    assert_eq!(copy.value("SELECT fanout.adopt()"), "2");
    for sync in [&index, &cache] {
        copy.exec(&format!("SELECT fanout.wait('{sync}', '60s')"));
        wait_until_blocked(&mut world.db, sync, "another owner");
    }
    world.db.exec("UPDATE product SET name = 'late'");
    std::thread::sleep(TRIED_AGAIN);
    assert_eq!(name_in_targets(&world, 10).as_deref(), Some("copy"));
}

#[test]
fn targets_that_another_database_feeds_are_not_taken_over() {
    let mut world = World::new("rival");
    products(&mut world, 10);
    let index = world.index_table("product", &Engine::opensearch(), "");
    let cache = world.cache_table("product", "");
    assert_in_step(&mut world, &index);
    assert_in_step(&mut world, &cache);
    let mut rival = World::new("rival_two");
    products(&mut rival, 3);
    let (target, key) = (world.index_name("product"), format!("{}${{id}}", world.key_prefix("product")));
    rival.db.exec(&format!("SELECT fanout.index_table('product', server => 'search', index => '{target}')"));
    let rivals_cache = rival.cache_table_by("product", &key, "");
    for sync in ["product", &rivals_cache] {
        wait_until_blocked(&mut rival.db, sync, "another owner");
    }
    rival.db.exec("UPDATE product SET name = 'rival'");
    world.db.exec("UPDATE product SET price = 3 WHERE id = 5");
    std::thread::sleep(TRIED_AGAIN);
    for sync in [&index, &cache] {
        assert_in_step(&mut world, sync);
    }
    for sync in ["product", &rivals_cache] {
        assert_eq!(rival.status(sync, "state"), "blocked");
    }
}

/// An owner that is silent for so long is gone: three of its signs of life, however low `fanout.owner_stale` is, and more.
const GONE: Duration = Duration::from_secs(32);

/// Other names of servers of the world, by another name of their host: `same_…` of the same URL, `twin_…` of one that does
/// not show that it leads to the same place.
fn twins(world: &mut World, server: &str) {
    let sql = format!(
        "SELECT fdwname, split_part(srvoptions[1], '=', 2) FROM pg_foreign_server JOIN pg_foreign_data_wrapper AS w
         ON w.oid = srvfdw WHERE srvname = '{server}'"
    );
    let row = world.db.rows(&sql).remove(0);
    let (wrapper, url) = (row[0].clone().unwrap_or_default(), row[1].clone().unwrap_or_default());
    let elsewhere = url.replace("127.0.0.1", "localhost");
    assert_ne!(url, elsewhere);
    world.db.exec(&format!(
        "CREATE SERVER same_{server} FOREIGN DATA WRAPPER {wrapper} OPTIONS (url '{url}/');
         CREATE SERVER twin_{server} FOREIGN DATA WRAPPER {wrapper} OPTIONS (url '{elsewhere}')"
    ));
}

#[test]
fn two_syncs_do_not_take_a_target_from_each_other() {
    let mut world = World::alone("twins");
    let _stale = Setting::set(&mut world, "fanout.owner_stale", "5s");
    products(&mut world, 10);
    let (index, key) = (world.index_name("product"), format!("{}${{id}}", world.key_prefix("product")));
    // A sync of that target by another server and name.
    let make = |kind: &str, server: &str, name: &str| match kind {
        "search" => {
            format!("fanout.index_table('product', server => '{server}', index => '{index}', name => '{name}')")
        }
        _ => format!("fanout.cache_table('product', server => '{server}', key => '{key}', name => '{name}')"),
    };
    let mut delivered = Vec::new();
    for kind in ["search", "cache"] {
        twins(&mut world, kind);
        let (first, second) = (format!("{kind}_first"), format!("{kind}_second"));
        world.db.exec(&format!("SELECT {}", make(kind, &format!("twin_{kind}"), &first)));
        world.wait(&first);
        world.db.exec(&format!("SELECT {}", make(kind, kind, &second)));
        wait_until_blocked(&mut world.db, &second, &format!("fed by sync \"{first}\""));
        delivered.push(world.status(&first, "delivered").parse::<u32>().expect("a number"));
        world.db.exec(&format!("SELECT fanout.pause('{first}')"));
    }
    // It may be silent for as long as it likes.
    std::thread::sleep(GONE + TRIED_AGAIN);
    for kind in ["search", "cache"] {
        assert_eq!(world.status(&format!("{kind}_second"), "state"), "blocked");
    }
    world.db.exec(
        "SELECT fanout.resume('search_first'), fanout.resume('cache_first'); UPDATE product SET price = 3 WHERE id = 5",
    );
    for (kind, delivered) in ["search", "cache"].into_iter().zip(delivered) {
        let (first, second) = (format!("{kind}_first"), format!("{kind}_second"));
        world.wait(&first);
        assert_eq!(world.status(&first, "delivered"), (delivered + 1).to_string());
        // Where it can be seen, it is refused.
        let same = format!("same_{kind}");
        let refusal = world.db.refusal(&format!("SELECT {}", make(kind, &same, "third")));
        assert_eq!(refusal.code, "42710", "{refusal}");
        let fed = format!("is fed by sync \"{second}\"");
        assert!(refusal.message.contains(&fed) && !refusal.hint.is_empty(), "{refusal}");
        let refusal = world.db.refusal(&format!("SELECT fanout.alter_sync('{first}', server => '{same}')"));
        assert_eq!(refusal.code, "42710", "{refusal}");
        // Whoever has gone is no hindrance, whatever its control document says.
        world.db.exec(&format!("SELECT fanout.drop_sync('{first}')"));
    }
    for kind in ["search", "cache"] {
        let second = format!("{kind}_second");
        eventually("it goes on", TRIED_AGAIN, || world.status(&second, "state") == "live");
        assert_in_step(&mut world, &second);
    }
    for (kind, rows) in [("search", 5), ("cache", 3)] {
        let second = format!("{kind}_second");
        let again = make(kind, kind, &second);
        world.db.exec(&format!(
            "SELECT fanout.drop_sync('{second}'); DELETE FROM product WHERE id > {rows}; SELECT {again}"
        ));
        assert_in_step(&mut world, &second);
    }
}

#[test]
fn the_target_that_a_sync_has_left_is_free_for_another() {
    let mut world = World::alone("left");
    let _stale = Setting::set(&mut world, "fanout.owner_stale", "5s");
    products(&mut world, 10);
    twins(&mut world, "search");
    let index = world.index_name("product");
    let make = |server: &str, name: &str| {
        format!("SELECT fanout.index_table('product', server => '{server}', index => '{index}', name => '{name}')")
    };
    world.db.exec(&make("search", "first"));
    world.wait("first");
    world.db.exec("SELECT fanout.alter_sync('first', server => 'es')");
    assert_in_step(&mut world, "first");
    world.db.exec(&make("search", "second"));
    eventually("it goes on once the first is known to be silent there", GONE + TRIED_AGAIN * 2, || {
        world.status("second", "state") == "live"
    });
    assert_in_step(&mut world, "second");
    assert_in_step(&mut world, "first");
}

/// The place that a control document names is another then, as that of a copy of the files is.
#[test]
fn a_removal_that_the_machine_was_restarted_in_waits_to_be_told() {
    let mut server = Second::new("restarted", &["fanout.owner_stale=5s"], &[]);
    let mut world = World::on(&server, "restarted");
    products(&mut world, 20);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    let redis = std::env::var("REDIS_URL").expect("REDIS_URL is set");
    world.db.exec("ALTER SERVER cache OPTIONS (SET url 'redis://127.0.0.1:1')");
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}', drop_target => true)"));
    server.stop();
    server.leave_place();
    server.start();
    world.reconnect();
    world.db.exec(&format!("ALTER SERVER cache OPTIONS (SET url '{redis}')"));
    let why = "by this database before its machine was started anew, or by a copy of its files";
    wait_until_blocked(&mut world.db, &sync, why);
    // However silent that one is, and whoever adopts all syncs: a copy may be what feeds it.
    assert_eq!(world.db.value("SELECT fanout.adopt()"), "1");
    let begun = Instant::now();
    while begun.elapsed() < GONE + Duration::from_secs(3) {
        world.db.exec(&format!("SELECT fanout.resume('{sync}')"));
        std::thread::sleep(Duration::from_secs(1));
        wait_until_blocked(&mut world.db, &sync, why);
    }
    let said = world.status(&sync, "last_error");
    for hint in ["drop_sync('product'); leaves it to that", "SELECT fanout.adopt('product'); has it removed"] {
        assert!(said.contains(hint), "{said}");
    }
    let mut keyspace = Keyspace::open();
    assert_eq!(keyspace.keys(&world.key_prefix("product")).len(), 20);
    world.db.exec(&format!("SELECT fanout.adopt('{sync}')"));
    eventually("it is removed", TRIED_AGAIN, || world.db.value("SELECT count(*) FROM fanout.sync") == "0");
    assert_eq!(keyspace.keys(&world.key_prefix("product")).len(), 0);
    assert!(keyspace.keys("pg_fanout:control:").iter().all(|key| !key.contains(&world.tag)));
}

/// How long ago, in seconds, each of these control documents was last renewed.
fn ages(documents: impl Iterator<Item = serde_json::Value>) -> Vec<f64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as f64;
    documents.map(|document| (now - document["heartbeat_ms"].as_f64().unwrap()) / 1000.0).collect()
}

#[test]
fn every_sync_of_a_server_gives_signs_of_life() {
    let mut world = World::new("alive");
    let engine = Engine::opensearch();
    let mut syncs = Vec::new();
    for number in 0..40 {
        world.db.exec(&format!("CREATE TABLE t{number} (id int PRIMARY KEY); INSERT INTO t{number} VALUES (1)"));
        syncs.push(world.cache_table(&format!("t{number}"), ""));
        if number < 15 {
            syncs.push(world.index_table(&format!("t{number}"), &engine, &format!(", name => 'i{number}'")));
        }
    }
    syncs.iter().for_each(|sync| world.wait(sync));
    // A beat and a half: each sync, and not one in turn, has given its own since it claimed its target.
    std::thread::sleep(Duration::from_secs(16));
    let mut keyspace = pg_test::Keyspace::open();
    let targets = |world: &mut World, kind: &str| -> Vec<String> {
        let rows = world.db.rows(&format!("SELECT target FROM fanout.sync WHERE kind = '{kind}'"));
        rows.into_iter().flatten().flatten().collect()
    };
    let keys = targets(&mut world, "cache");
    let ages_of_keys = ages(keys.iter().map(|target| {
        let text = keyspace.get(&format!("pg_fanout:control:{target}"));
        serde_json::from_str(&text.unwrap_or_else(|| panic!("no control key of {target}"))).unwrap()
    }));
    let indices = targets(&mut world, "index");
    let ages_of_documents = ages(indices.iter().map(|target| {
        engine.document("pg_fanout_control", target).unwrap_or_else(|| panic!("no control document of {target}"))
    }));
    assert_eq!((ages_of_keys.len(), ages_of_documents.len()), (40, 15));
    // A beat is due each ten seconds.
    for age in ages_of_keys.iter().chain(&ages_of_documents) {
        assert!(*age < 15.0, "{ages_of_keys:?} {ages_of_documents:?}");
    }
}
