//! Two databases and one target.

use crate::tables::products;
use pg_test::{Engine, World, assert_in_step, eventually_ok};
use std::time::Duration;

#[test]
fn a_copy_of_the_database_writes_nothing_until_it_adopts_the_target() {
    let mut world = World::new("copied");
    products(&mut world, 100);
    let index = world.index_table("product", &Engine::opensearch(), "");
    let cache = world.cache_table("product", "");
    world.wait(&index);
    world.wait(&cache);
    let mut copy = world.copy();
    for sync in [&index, &cache] {
        let state = copy.value(&format!("SELECT state FROM fanout.status WHERE sync = '{sync}'"));
        assert_eq!(state, "parked");
    }
    copy.exec("DELETE FROM product WHERE id > 10; UPDATE product SET name = 'copy'");
    let refusal = copy.refusal(&format!("SELECT fanout.wait('{index}', '30s')"));
    assert_eq!(refusal.code, "55000", "{refusal}");
    // The original goes on, and its target is its own.
    world.db.exec("UPDATE product SET price = 3 WHERE id = 5");
    assert_in_step(&mut world, &index);
    assert_in_step(&mut world, &cache);
}

#[test]
fn an_index_that_another_database_feeds_is_not_taken_over() {
    let mut world = World::new("rival");
    products(&mut world, 10);
    let engine = Engine::opensearch();
    let sync = world.index_table("product", &engine, "");
    assert_in_step(&mut world, &sync);
    let mut rival = World::new("rival_two");
    products(&mut rival, 3);
    let index = world.index_name("product");
    rival.db.exec(&format!("SELECT fanout.index_table('product', server => 'search', index => '{index}')"));
    eventually_ok("the rival's sync says who owns the index", Duration::from_secs(30), || {
        let (state, error) = (rival.status("product", "state"), rival.status("product", "last_error"));
        if state == "live" || error == "NULL" { Err(format!("{state}: {error}")) } else { Ok(()) }
    });
    rival.db.exec("UPDATE product SET name = 'rival'");
    world.db.exec("UPDATE product SET price = 3 WHERE id = 5");
    assert_in_step(&mut world, &sync);
    assert_ne!(rival.status("product", "state"), "live");
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
    // Two beats and a half: each sync, and not one in turn, has given its own.
    std::thread::sleep(Duration::from_secs(25));
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
