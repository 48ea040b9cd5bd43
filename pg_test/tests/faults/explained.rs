//! `fanout.explain()` of a row that is under way: the rest of what it says is in `e2e explain`.

use crate::proxied::{Proxies, in_step_again};
use crate::tables::products;
use pg_test::proxy::{Fault, Item};
use pg_test::{Engine, World, assert_in_step, eventually_ok};
use std::collections::BTreeMap;
use std::time::Duration;

on_each_engine!(a_document_under_way_is_told, a_document_that_is_tried_again_later_is_told);

/// Waits for what `fanout.explain()` says of a row's way through the worker.
fn told(world: &mut World, sync: &str, id: &str, expected: &str) {
    let sql = format!("SELECT state FROM fanout.explain('{sync}', '{id}') WHERE step = 'worker'");
    eventually_ok(expected, Duration::from_secs(20), || {
        let state = world.db.value(&sql);
        if state == expected { Ok(()) } else { Err(state) }
    });
}

fn a_document_under_way_is_told(world: &mut World, engine: &Engine) {
    let proxies = Proxies::before(world);
    // What hangs is to be given up by the test.
    world.db.exec(&format!("ALTER SERVER {} OPTIONS (SET request_timeout '60s')", engine.server));
    products(world, 20);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    proxies.of(engine).plan(|request| if request.is_bulk() { Fault::Hang } else { Fault::Pass });
    world.db.exec("UPDATE product SET price = 1 WHERE id = 7");
    told(world, &sync, "7", "in flight");
    told(world, &sync, "8", "settled");
    let advice = world.db.value(&format!("SELECT detail FROM fanout.explain('{sync}', '7') WHERE step = 'advice'"));
    assert!(advice.contains("fanout.wait"), "{advice}");
    world.db.exec("UPDATE product SET price = 2 WHERE id = 7");
    told(world, &sync, "7", "in flight, changed again");
    proxies.calm();
    in_step_again(world, &sync);
    told(world, &sync, "7", "settled");
}

fn a_document_that_is_tried_again_later_is_told(world: &mut World, engine: &Engine) {
    let proxies = Proxies::before(world);
    products(world, 20);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    proxies.of(engine).plan(|request| {
        let places = request.ids().iter().position(|id| id == "7").map(|place| (place, Item::Unavailable));
        if places.is_some() { Fault::Items(BTreeMap::from_iter(places)) } else { Fault::Pass }
    });
    world.db.exec("UPDATE product SET price = 1");
    told(world, &sync, "7", "delayed");
    told(world, &sync, "8", "settled");
    proxies.calm();
    in_step_again(world, &sync);
    told(world, &sync, "7", "settled");
}
