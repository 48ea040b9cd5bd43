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
