//! Search engines that refuse, answer in part, too late or not at all.

use crate::proxied::{Proxies, in_step_again};
use crate::tables::products;
use pg_test::proxy::{Fault, Item, Request};
use pg_test::{Engine, World, assert_in_step, differences, eventually};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

on_each_engine!(
    items_of_one_reply_are_told_apart,
    a_batch_that_is_too_large_is_halved_and_the_limit_remembered,
    a_connection_that_breaks_above_a_size_is_no_end,
    a_busy_target_is_left_in_peace_and_writers_feel_nothing,
    a_document_that_is_always_refused_for_now_is_asked_for_less_and_less,
    a_row_deleted_after_a_lost_reply_stays_deleted,
    a_write_that_comes_too_late_brings_nothing_back,
    an_index_made_again_is_filled_though_the_reply_was_lost,
    a_reply_to_a_claim_may_be_lost,
    a_claim_that_comes_late_leaves_nothing_behind,
    a_truncate_takes_away_what_was_on_its_way,
);

/// A sync of 20 products behind proxies.
fn twenty(world: &mut World, engine: &Engine) -> (Proxies, String) {
    let proxies = Proxies::before(world);
    products(world, 20);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    (proxies, sync)
}

fn now_us() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_micros() as u64)
}

/// A plan that acts on the first bulk request, and passes on the others.
fn on_first_bulk(fault: impl Fn(&Request) -> Fault + Send + 'static) -> impl FnMut(&Request) -> Fault + Send + 'static {
    let mut done = false;
    move |request| {
        if done || !request.is_bulk() {
            return Fault::Pass;
        }
        done = true;
        fault(request)
    }
}

fn items_of_one_reply_are_told_apart(world: &mut World, engine: &Engine) {
    let (proxies, sync) = twenty(world, engine);
    let kinds = [Item::Busy, Item::Malformed, Item::Conflict(now_us() + 3_600_000_000), Item::Unavailable];
    let refused: BTreeMap<usize, Item> =
        kinds.into_iter().enumerate().map(|(place, item)| (2 * place + 1, item)).collect();
    proxies.of(engine).plan(on_first_bulk(move |_| Fault::Items(refused.clone())));
    world.db.exec("UPDATE product SET name = 'mixed'");
    eventually("the malformed one is a dead letter", Duration::from_secs(60), || {
        world.status(&sync, "dead_letters") == "1"
    });
    let letter = world.db.rows(&format!("SELECT id, status, reason FROM fanout.dead_letters WHERE sync = '{sync}'"));
    assert_eq!(letter[0][1].as_deref(), Some("400"));
    eventually("all others arrive", Duration::from_secs(60), || differences(world, &sync).len() <= 1);
    world.db.exec(&format!("SELECT fanout.retry('{sync}')"));
    assert_in_step(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
    // An index that is said to be missing is filled again: by itself, for that would bring the malformed one, too.
    proxies.of(engine).plan(on_first_bulk(|_| Fault::Items(BTreeMap::from([(5, Item::NoIndex)]))));
    world.db.exec("UPDATE product SET name = 'missing'");
    in_step_again(world, &sync);
    // What came from a version ahead of ours: later changes are above it.
    world.db.exec("UPDATE product SET name = 'later'");
    assert_in_step(world, &sync);
}

fn a_batch_that_is_too_large_is_halved_and_the_limit_remembered(world: &mut World, engine: &Engine) {
    let proxies = Proxies::before(world);
    proxies.of(engine).plan(|request| if request.bytes > 100_000 { Fault::Answer(413, "") } else { Fault::Pass });
    products(world, 5000);
    let sync = world.index_table("product", engine, "");
    in_step_again(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
    let before = proxies.of(engine).faults();
    assert!(before > 0, "no batch was too large");
    world.db.exec("UPDATE product SET name = 'again'");
    in_step_again(world, &sync);
    let after = proxies.of(engine).faults() - before;
    assert!(after <= 4, "the limit was forgotten: {after} refusals");
    one_too_large_holds_up_no_other(world, &sync);
}

/// One document that is too large alone is a dead letter, until it is short again.
fn one_too_large_holds_up_no_other(world: &mut World, sync: &str) {
    world.db.exec("UPDATE product SET name = CASE WHEN id = 77 THEN repeat('long ', 30000) ELSE 'third' END");
    eventually("the large one is a dead letter", Duration::from_secs(90), || {
        world.status(sync, "dead_letters") == "1" && differences(world, sync).len() == 1
    });
    world.db.exec("UPDATE product SET name = 'short' WHERE id = 77");
    in_step_again(world, sync);
    assert_eq!(world.status(sync, "dead_letters"), "0");
}

/// What a gateway does that gives its 413 to nobody.
fn a_connection_that_breaks_above_a_size_is_no_end(world: &mut World, engine: &Engine) {
    let proxies = Proxies::before(world);
    proxies.of(engine).plan(|request| if request.bytes > 60_000 { Fault::Reset } else { Fault::Pass });
    products(world, 3000);
    let sync = world.index_table("product", engine, "");
    in_step_again(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
    // The limit is found, then remembered.
    world.db.exec("UPDATE product SET name = 'again'");
    in_step_again(world, &sync);
    let before = proxies.of(engine).faults();
    for n in 0..5 {
        world.db.exec(&format!("UPDATE product SET name = 'more than {n}'"));
        in_step_again(world, &sync);
    }
    let after = proxies.of(engine).faults() - before;
    assert!(after <= 5, "the limit was forgotten: {after} connections broke");
    one_too_large_holds_up_no_other(world, &sync);
    // All alone, too.
    world.db.exec("UPDATE product SET name = repeat('long ', 30000) WHERE id = 78");
    eventually("it is a dead letter", Duration::from_secs(90), || world.status(&sync, "dead_letters") == "1");
    let reason = world.db.value(&format!("SELECT reason FROM fanout.dead_letters WHERE sync = '{sync}'"));
    assert!(reason.contains("lost the connection"), "{reason}");
    // Where no request goes through, no document is to blame.
    proxies.of(engine).plan(|request| if request.is_bulk() { Fault::Reset } else { Fault::Pass });
    world.db.exec("UPDATE product SET name = repeat('large ', 5000) WHERE id BETWEEN 1 AND 3");
    thread::sleep(Duration::from_secs(30));
    assert_eq!(world.status(&sync, "dead_letters"), "1");
    proxies.of(engine).calm();
    world.db.exec("UPDATE product SET name = 'short' WHERE id = 78");
    in_step_again(world, &sync);
}

#[test]
fn a_value_that_breaks_the_connection_to_redis_is_a_dead_letter() {
    let mut world = World::alone("redis_cut");
    let proxies = Proxies::before(&mut world);
    products(&mut world, 100);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    proxies.redis.plan(|request| if request.bytes > 60_000 { Fault::Reset } else { Fault::Pass });
    world.db.exec("UPDATE product SET name = CASE WHEN id = 77 THEN repeat('long ', 30000) ELSE 'third' END");
    eventually("the large one is a dead letter", Duration::from_secs(90), || {
        world.status(&sync, "dead_letters") == "1" && differences(&mut world, &sync).len() == 1
    });
    proxies.calm();
    world.db.exec(&format!("SELECT fanout.retry('{sync}')"));
    assert_in_step(&mut world, &sync);
}

fn a_busy_target_is_left_in_peace_and_writers_feel_nothing(world: &mut World, engine: &Engine) {
    let (proxies, sync) = twenty(world, engine);
    let proxy = proxies.of(engine);
    proxy.plan(|request| if request.is_bulk() { Fault::Answer(429, "{}") } else { Fault::Pass });
    let (before, begun) = (proxy.requests(), Instant::now());
    let mut slowest = Duration::ZERO;
    let mut written = 0;
    while begun.elapsed() < Duration::from_secs(6) {
        let at = Instant::now();
        world.db.exec(&format!("UPDATE product SET price = {written} WHERE id = {}", 1 + written % 20));
        slowest = slowest.max(at.elapsed());
        written += 1;
        thread::sleep(Duration::from_millis(2));
    }
    let asked = proxy.requests() - before;
    assert!(asked < 60, "{asked} requests in six seconds to a target that is busy");
    assert!(slowest < Duration::from_secs(2), "a writer waited {slowest:?}");
    assert_eq!(world.status(&sync, "state"), "retrying");
    // Slow for a while, then well.
    proxy.plan(|_| Fault::Delay(Duration::from_millis(150)));
    world.db.exec("UPDATE product SET name = 'slow'");
    in_step_again(world, &sync);
    proxies.calm();
    world.db.exec("UPDATE product SET name = 'well'");
    in_step_again(world, &sync);
    assert_eq!(world.status(&sync, "state"), "live");
}

fn a_document_that_is_always_refused_for_now_is_asked_for_less_and_less(world: &mut World, engine: &Engine) {
    let (proxies, sync) = twenty(world, engine);
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    proxies.of(engine).plan(move |request| {
        let place = request.is_bulk().then(|| request.ids().iter().position(|id| id == "7")).flatten();
        place.map_or(Fault::Pass, |place| {
            counter.fetch_add(1, Ordering::Relaxed);
            Fault::Items(BTreeMap::from([(place, Item::Unavailable)]))
        })
    });
    world.db.exec("UPDATE product SET name = 'unlucky' WHERE id = 7");
    let begun = Instant::now();
    let mut round = 0;
    while begun.elapsed() < Duration::from_secs(8) {
        // The others are not held up by it.
        world.db.exec(&format!("UPDATE product SET price = {round} WHERE id = 8"));
        eventually("another document arrives", Duration::from_secs(5), || {
            engine.document(&world.index_name("product"), "8").is_some_and(|it| it["price"] == json!(f64::from(round)))
        });
        round += 1;
    }
    let times = asked.load(Ordering::Relaxed);
    assert!((2..=20).contains(&times), "it was asked for {times} times in eight seconds");
    proxies.calm();
    in_step_again(world, &sync);
}

fn a_row_deleted_after_a_lost_reply_stays_deleted(world: &mut World, engine: &Engine) {
    let (proxies, sync) = twenty(world, engine);
    // As if it were long ago: the engine remembers no deletion.
    let index = world.index_name("product");
    engine.ask("PUT", &format!("/{index}/_settings"), Some(json!({"index.gc_deletes": "0s"})));
    for round in 0..5 {
        proxies.of(engine).plan(on_first_bulk(|_| Fault::LostReply));
        world.db.exec(&format!("UPDATE product SET price = {round} WHERE id = 5"));
        world.db.exec("DELETE FROM product WHERE id = 5");
        in_step_again(world, &sync);
        assert_eq!(engine.document(&index, "5"), None);
        world.db.exec("INSERT INTO product (id, name) VALUES (5, 'back')");
        in_step_again(world, &sync);
    }
}

fn a_write_that_comes_too_late_brings_nothing_back(world: &mut World, engine: &Engine) {
    let (proxies, sync) = twenty(world, engine);
    // Past the request's time limit; it arrives when its row is gone.
    proxies.of(engine).plan(on_first_bulk(|_| Fault::Delay(Duration::from_secs(5))));
    world.db.exec("UPDATE product SET name = 'late' WHERE id IN (5, 6)");
    let begun = Instant::now();
    eventually("the worker waits for the reply", Duration::from_secs(10), || proxies.of(engine).faults() == 1);
    world.db.exec("DELETE FROM product WHERE id = 5; UPDATE product SET name = 'in time' WHERE id = 6");
    in_step_again(world, &sync);
    assert!(begun.elapsed() < Duration::from_secs(60));
    thread::sleep(Duration::from_secs(6).saturating_sub(begun.elapsed()));
    engine.refresh(&world.index_name("product"));
    assert_in_step(world, &sync);
    assert_eq!(engine.document(&world.index_name("product"), "5"), None);
}

fn an_index_made_again_is_filled_though_the_reply_was_lost(world: &mut World, engine: &Engine) {
    let (proxies, sync) = twenty(world, engine);
    let index = world.index_name("product");
    let concrete = format!("/{index}-fanout-1");
    let mut done = false;
    proxies.of(engine).plan(move |request| {
        let makes = request.name == "PUT" && request.path.starts_with(&concrete);
        if makes && !std::mem::replace(&mut done, true) { Fault::LostReply } else { Fault::Pass }
    });
    engine.ask("DELETE", &format!("/{index}-fanout-1"), None);
    // Before a batch with deletions the engine is asked whether the index is there, once a second: else a write could make it.
    thread::sleep(Duration::from_millis(1500));
    world.db.exec("DELETE FROM product WHERE id = 1");
    in_step_again(world, &sync);
    assert_eq!(proxies.of(engine).faults(), 1);
    assert_eq!(engine.documents(&index).len(), 19);
}

/// An engine that lost everything, the control document too, is claimed anew; nobody may take that for going on.
fn a_reply_to_a_claim_may_be_lost(world: &mut World, engine: &Engine) {
    let (proxies, sync) = twenty(world, engine);
    let index = world.index_name("product");
    let control = format!("/pg_fanout_control/_doc/{index}?op_type=create");
    let mut done = false;
    proxies.of(engine).plan(move |request| {
        let claims = request.name == "PUT" && request.path == control;
        if claims && !std::mem::replace(&mut done, true) { Fault::LostReply } else { Fault::Pass }
    });
    engine.ask("DELETE", &format!("/pg_fanout_control/_doc/{index}"), None);
    for id in [3, 4] {
        engine.ask("DELETE", &format!("/{index}/_doc/{id}?refresh=true"), None);
    }
    eventually("what was lost is there again", Duration::from_secs(60), || differences(world, &sync).is_empty());
    assert_eq!(proxies.of(engine).faults(), 1);
    assert_in_step(world, &sync);
}

/// What a sync asked before it was altered is answered before its target is removed, and before another asks for it.
fn a_claim_that_comes_late_leaves_nothing_behind(world: &mut World, engine: &Engine) {
    const LATE: Duration = Duration::from_millis(1500);
    let proxies = Proxies::before(world);
    products(world, 20);
    // Else the worker would end with what is under way.
    world.cache_table("product", "");
    let (old, new) = (world.index_name("product"), world.index_name("article"));
    let control = |index: &str| format!("/pg_fanout_control/_doc/{index}");
    for dropped_after in [LATE + Duration::from_millis(500), Duration::ZERO] {
        let sync = world.index_table("product", engine, ", name => 'moving'");
        assert_in_step(world, &sync);
        let (claimed, mut done, faults) = (control(&old), false, proxies.of(engine).faults());
        proxies.of(engine).plan(move |request| {
            let claims = request.name == "PUT" && request.path.starts_with(&claimed);
            if claims && !std::mem::replace(&mut done, true) { Fault::Delay(LATE) } else { Fault::Pass }
        });
        world.db.exec(&format!("SELECT fanout.alter_sync('{sync}', backfill_rate => 1)"));
        eventually("it is claimed anew", Duration::from_secs(10), || proxies.of(engine).faults() > faults);
        world.db.exec(&format!("SELECT fanout.alter_sync('{sync}', index => '{new}')"));
        std::thread::sleep(dropped_after);
        world.db.exec(&format!("SELECT fanout.drop_sync('{sync}', drop_target => true)"));
        let syncs = "SELECT count(*) FROM fanout.sync";
        eventually("both targets are removed", Duration::from_secs(60), || world.db.value(syncs) == "1");
        std::thread::sleep(LATE);
        for index in [&old, &new] {
            assert!(!engine.exists(index), "{index}");
            assert_eq!(engine.request("GET", &control(index), None).0, 404, "{index}, dropped after {dropped_after:?}");
        }
    }
}

/// The row was read before the TRUNCATE, and is written after the ids of the index were listed.
fn a_truncate_takes_away_what_was_on_its_way(world: &mut World, engine: &Engine) {
    let (proxies, sync) = twenty(world, engine);
    proxies.of(engine).plan(on_first_bulk(|_| Fault::Delay(Duration::from_millis(1500))));
    world.db.exec("INSERT INTO product (id, name) VALUES (100, 'on its way')");
    eventually("it is on its way", Duration::from_secs(10), || proxies.of(engine).faults() == 1);
    world.db.exec("TRUNCATE product");
    in_step_again(world, &sync);
    assert_eq!(engine.document(&world.index_name("product"), "100"), None);
}
