//! A sync that gets another index, or other keys: the old ones serve until the new ones are filled, and then they go.

use crate::tables::products;
use pg_test::{
    Engine, Keyspace, Refusal, ServerLog, Session, Setting, World, assert_in_step, eventually, eventually_ok,
    on_each_engine,
};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

on_each_engine!(
    a_sync_moves_to_another_index,
    indices_of_periods_move,
    a_sync_takes_its_old_index_back,
    an_index_that_is_anothers_is_left_alone,
);

const ENOUGH: Duration = Duration::from_secs(60);

fn alter(world: &mut World, sync: &str, more: &str) -> String {
    world.db.value(&format!("SELECT fanout.alter_sync('{sync}', {more})"))
}

/// All syncs that there are, with those that are to be removed.
fn syncs(world: &mut World) -> Vec<String> {
    world.db.column("SELECT sync || ' ' || state FROM fanout.status ORDER BY 1")
}

/// Nothing is left to be removed.
fn settled(world: &mut World) {
    eventually_ok("what served before is removed", ENOUGH, || {
        let left = world.db.value("SELECT count(*) FROM fanout.sync WHERE phase = 'drop'");
        if left == "0" { Ok(()) } else { Err(format!("{:?}", world.db.rows("SELECT * FROM fanout.status"))) }
    });
}

/// Who feeds an index is written in the engine.
fn is_claimed(engine: &Engine, index: &str) -> bool {
    engine.request("GET", &format!("/pg_fanout_control/_doc/{index}"), None).0 == 200
}

fn kill_worker(world: &mut World) {
    world.db.exec(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND backend_type = 'pg_fanout worker'",
    );
}

/// Counts by the sync, in another session, until it is told to stop; every answer must be this.
fn searches(world: &World, sync: &str, rows: i64) -> impl FnOnce() -> usize + use<> {
    let stop = Arc::new(AtomicBool::new(false));
    let (mut session, sync, told) = (world.connect(), sync.to_owned(), Arc::clone(&stop));
    let searcher = thread::spawn(move || {
        let mut searched = 0;
        while !told.load(Ordering::Relaxed) {
            assert_eq!(session.value(&format!("SELECT es_count('{sync}')")), rows.to_string());
            searched += 1;
        }
        searched
    });
    move || {
        stop.store(true, Ordering::Relaxed);
        searcher.join().expect("searches without errors")
    }
}

fn a_sync_moves_to_another_index(world: &mut World, engine: &Engine) {
    products(world, 2000);
    let (old, new) = (world.index_name("product"), world.index_name("article"));
    let further = world.index_name("all");
    let sync = world.index_table("product", engine, &format!(", aliases => '[\"{further}\"]'"));
    assert_in_step(world, &sync);
    alter(world, &sync, "backfill_rate => 700");
    let change = format!("index => '{new}'");
    let said = world.db.notices(&format!("SELECT fanout.alter_sync('{sync}', {change}, dry_run => true)"));
    let expected = format!(
        "sync \"product\" moves to index \"{new}\": all documents are delivered there; until then index \"{old}\" serves, and after \
         that it is removed"
    );
    assert_eq!(said.iter().map(|notice| notice.message.as_str()).collect::<Vec<_>>(), [expected.as_str()]);
    assert_eq!(syncs(world), ["product live"]);
    let searched = searches(world, &sync, 2000);
    // A search goes where the index is, not where it was for this snapshot.
    let mut reader = world.connect();
    reader.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM product");
    assert_eq!(alter(world, &sync, &change), "resync");
    // The old one is a sync that is to go, and nobody else may have its name before.
    let former = "SELECT sync || ': ' || note FROM fanout.status WHERE state = 'dropping'";
    eventually("the old one is said to go", ENOUGH, || {
        world.db.column(former) == ["product_former_1: removed when sync \"product\" is filled anew"]
    });
    let taken = format!(
        "SELECT fanout.index_table('product', server => '{}', index => '{old}', name => 'other')",
        engine.server
    );
    let refusal = world.db.refusal(&taken);
    assert_eq!((refusal.code.as_str(), refusal.hint.contains("being dropped")), ("42710", true), "{refusal}");
    let wrong = "SELECT object || ' ' || item || ' ' || detail FROM fanout.check() WHERE status <> 'ok'";
    assert_eq!(world.db.column(wrong), Vec::<String>::new());
    let count = |index: &str| engine.ask("GET", &format!("/{index}/_count"), None)["count"].as_i64();
    let mut halfway = false;
    eventually("the new one serves", ENOUGH, || {
        assert_eq!(count(&further), Some(2000), "a further alias leads to the one, then to the other");
        let filling = engine.exists(&format!("{new}-fanout-2")) && !engine.exists(&new);
        halfway |= filling && engine.exists(&old);
        engine.exists(&new)
    });
    assert!(halfway, "the new index is filled before it has the name");
    assert_eq!(count(&new), Some(2000));
    world.db.exec("UPDATE product SET price = 1 WHERE id = 7");
    assert_in_step(world, &sync);
    settled(world);
    assert!(searched() > 10);
    assert_eq!(reader.value(&format!("SELECT es_count('{sync}')")), "2000");
    assert_eq!(engine.indices(&format!("{old}-fanout-")), Vec::<String>::new());
    assert!(!engine.exists(&old) && !is_claimed(engine, &old) && is_claimed(engine, &new));
    assert_eq!(count(&further), Some(2000));
    assert_eq!(syncs(world), ["product live"]);
    // The name is free.
    assert_eq!(world.db.value(&taken), "other");
    assert_in_step(world, "other");
    assert_in_step(world, &sync);
}

fn indices_of_periods_move(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE purchase (id int PRIMARY KEY, at date, shop int);
         INSERT INTO purchase SELECT i, '2024-01-01'::date + i * 40, i % 3 FROM generate_series(1, 40) AS i",
    );
    let (old, new) = (world.index_name("purchase"), world.index_name("bought"));
    let sync = world.index_table("purchase", engine, ", period => '${at:year}', routing => '${shop}'");
    assert_in_step(world, &sync);
    let indices = engine.indices(&format!("{old}-fanout-1-")).len();
    assert!(indices >= 5, "{indices}");
    assert_eq!(alter(world, &sync, &format!("index => '{new}', period => '${{at:month}}'")), "resync");
    world.db.exec("UPDATE purchase SET at = '2031-05-05' WHERE id = 3; DELETE FROM purchase WHERE id = 4");
    assert_in_step(world, &sync);
    settled(world);
    assert_eq!(engine.indices(&format!("{old}-fanout-")), Vec::<String>::new());
    assert!(!engine.exists(&old) && !is_claimed(engine, &old));
    assert!(engine.indices(&format!("{new}-fanout-2-2024-")).len() > 5);
    assert_in_step(world, &sync);
}

/// Through names that were never filled, and with a worker that is ended again and again.
fn a_sync_takes_its_old_index_back(world: &mut World, engine: &Engine) {
    products(world, 2000);
    let first = world.index_name("product");
    let [second, third] = ["second", "third"].map(|name| world.index_name(name));
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    alter(world, &sync, "backfill_rate => 400");
    let searched = searches(world, &sync, 2000);
    assert_eq!(alter(world, &sync, &format!("index => '{second}'")), "resync");
    eventually("the second is being filled", ENOUGH, || engine.exists(&format!("{second}-fanout-2")));
    assert_eq!(alter(world, &sync, &format!("index => '{third}'")), "resync");
    // What was never filled goes at once, the first still serves.
    eventually("the second is removed", ENOUGH, || !is_claimed(engine, &second) && engine.indices(&second).is_empty());
    eventually("the third is being filled", ENOUGH, || engine.exists(&format!("{third}-fanout-3")));
    kill_worker(world);
    assert!(engine.exists(&first) && !engine.exists(&third));
    assert_eq!(alter(world, &sync, &format!("index => '{first}'")), "resync");
    alter(world, &sync, "reset => '{backfill_rate}'");
    assert_in_step(world, &sync);
    settled(world);
    eventually("only the last of its indices is left", ENOUGH, || {
        engine.indices(&format!("{first}-fanout-")) == [format!("{first}-fanout-4")]
    });
    eventually("the third is removed", ENOUGH, || !is_claimed(engine, &third) && engine.indices(&third).is_empty());
    assert!(is_claimed(engine, &first));
    // A worker that does not live long gets there, too.
    assert_eq!(alter(world, &sync, &format!("index => '{second}'")), "resync");
    eventually("the second serves", ENOUGH, || {
        kill_worker(world);
        thread::sleep(Duration::from_millis(3000));
        engine.exists(&second)
    });
    eventually("the first is gone", ENOUGH, || {
        kill_worker(world);
        thread::sleep(Duration::from_millis(3500));
        world.db.value("SELECT count(*) FROM fanout.sync") == "1"
    });
    assert!(searched() > 10);
    assert_in_step(world, &sync);
    assert!(engine.indices(&first).is_empty() && !is_claimed(engine, &first));
}

fn an_index_that_is_anothers_is_left_alone(world: &mut World, engine: &Engine) {
    products(world, 20);
    let (own, foreign, rival) = (world.index_name("product"), world.index_name("foreign"), world.index_name("rival"));
    engine.ask("PUT", &format!("/{foreign}"), Some(json!({})));
    let mut other = world.another();
    other.exec(&format!(
        "CREATE TABLE product (id int PRIMARY KEY); INSERT INTO product VALUES (1);
         SELECT fanout.index_table('product', server => '{}', index => '{rival}')",
        engine.server
    ));
    other.exec("SELECT fanout.wait('product', '60s')");
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    for (taken, why) in [(&foreign, "is an index"), (&rival, "another owner")] {
        assert_eq!(alter(world, &sync, &format!("index => '{taken}'")), "resync");
        eventually_ok("it is blocked", ENOUGH, || {
            let error = world.status(&sync, "last_error");
            if error.contains(why) { Ok(()) } else { Err(error) }
        });
        assert_eq!(world.db.value(&format!("SELECT es_count('{sync}')")), "20", "the old one serves");
    }
    assert_eq!(alter(world, &sync, &format!("index => '{own}'")), "resync");
    assert_in_step(world, &sync);
    settled(world);
    assert!(engine.exists(&foreign) && !is_claimed(engine, &foreign));
    assert!(is_claimed(engine, &rival));
    other.exec("INSERT INTO product VALUES (2)");
    other.exec("SELECT fanout.wait('product', '60s')");
    assert_eq!(other.value("SELECT es_count('product')"), "2");
    // A target that another feeds is not removed with a sync that never had it.
    other.exec(&format!(
        "CREATE TABLE thing (id int PRIMARY KEY);
         SELECT fanout.index_table('thing', server => '{}', index => '{own}')",
        engine.server
    ));
    let why = "SELECT last_error FROM fanout.status WHERE sync = 'thing'";
    eventually("it is blocked", ENOUGH, || other.value(why).contains("another owner"));
    other.exec("SELECT fanout.drop_sync('thing', drop_target => true)");
    eventually("that is said", ENOUGH, || {
        other.value(why).contains("and not removed; SELECT fanout.drop_sync('thing');")
    });
    assert_in_step(world, &sync);
    other.exec("SELECT fanout.drop_sync('thing')");
    assert_eq!(other.value("SELECT count(*) FROM fanout.sync"), "1");
}

/// A sync whose old index waits for the new one, which is filled slowly, and a sync of another database that has taken over the
/// old one; that one's session, and the names of the indices.
fn taken_over(world: &mut World) -> (Session, String, [String; 2]) {
    products(world, 400);
    let (old, new) = (world.index_name("product"), world.index_name("article"));
    let sync = world.index_table("product", &Engine::opensearch(), "");
    assert_in_step(world, &sync);
    alter(world, &sync, "backfill_rate => 5");
    alter(world, &sync, &format!("index => '{new}'"));
    let mut other = world.another();
    other.exec("CREATE TABLE product (id int PRIMARY KEY); INSERT INTO product VALUES (1)");
    other.exec(&format!("SELECT fanout.index_table('product', server => 'search', index => '{old}')"));
    let error = "SELECT last_error FROM fanout.status WHERE sync = 'product'";
    eventually("that is not for the taking", ENOUGH, || other.value(error).contains("another owner"));
    other.exec("SELECT fanout.adopt('product')");
    other.exec("SELECT fanout.wait('product', '60s')");
    eventually("the old one is blocked", ENOUGH, || is_left(world));
    (other, sync, [old, new])
}

/// The old index is left to whoever feeds it.
fn is_left(world: &mut World) -> bool {
    let why = "SELECT state || ': ' || last_error FROM fanout.status WHERE sync = 'product_former_1'";
    world.db.column(why).iter().any(|why| why.starts_with("blocked: ") && why.contains("and not removed; "))
}

/// The old index stays left for so long, in which its removal is tried again and again.
fn stays_left(world: &mut World, time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        world.db.exec("SELECT fanout.resume('product_former_1')");
        thread::sleep(Duration::from_millis(500));
        assert!(is_left(world), "{:?}", world.db.rows("SELECT * FROM fanout.status"));
    }
}

#[test]
fn an_old_index_that_another_takes_over_is_left_to_that() {
    let mut world = World::alone("target_taken");
    let engine = Engine::opensearch();
    let _stale = Setting::set(&mut world, "fanout.owner_stale", "5s");
    let (mut other, sync, [old, _]) = taken_over(&mut world);
    alter(&mut world, &sync, "reset => '{backfill_rate}'");
    assert_in_step(&mut world, &sync);
    eventually("searches go to the new one", ENOUGH, || world.db.value(&format!("SELECT es_count('{sync}')")) == "400");
    // Nor is it removed when that one is silent for longer than three of its signs of life.
    other.exec("SELECT fanout.pause('product')");
    stays_left(&mut world, Duration::from_secs(40));
    world.db.exec("SELECT fanout.drop_sync('product_former_1')");
    assert_eq!(other.value("SELECT es_count('product')"), "1");
    assert!(is_claimed(&engine, &old));
}

#[test]
fn who_adopts_all_syncs_leaves_an_old_index_to_whoever_feeds_it() {
    let mut world = World::new("target_adopted");
    let (mut other, sync, [old, new]) = taken_over(&mut world);
    assert_eq!(world.db.value("SELECT fanout.adopt()"), "2");
    stays_left(&mut world, Duration::from_secs(5));
    alter(&mut world, &sync, "reset => '{backfill_rate}'");
    assert_in_step(&mut world, &sync);
    // It waits for nothing any more.
    eventually("searches go to the new one", ENOUGH, || world.db.value(&format!("SELECT es_count('{sync}')")) == "400");
    stays_left(&mut world, Duration::from_secs(5));
    other.exec("INSERT INTO product VALUES (2)");
    other.exec("SELECT fanout.wait('product', '60s')");
    assert_eq!(other.value("SELECT es_count('product')"), "2");
    // By its name it is taken from that.
    world.db.exec("SELECT fanout.adopt('product_former_1')");
    settled(&mut world);
    let engine = Engine::opensearch();
    assert!(!engine.exists(&old) && engine.exists(&new));
}

/// Runs the second statement in a session of its own while the first is in an open transaction, which it has to wait for; gives
/// what came of it after the commit.
pub fn at_the_same_time(world: &mut World, first: &str, second: &str) -> Result<(), Refusal> {
    world.db.exec(&format!("BEGIN; {first}"));
    let (mut other, second) = (world.connect(), second.to_owned());
    let waiting = thread::spawn(move || other.try_exec(&second));
    // A transaction sees who waits as it was when it looked first.
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                 AND application_name = 'pg_test'";
    let mut watcher = world.connect();
    eventually("it waits", ENOUGH, || watcher.value(waits) == "1");
    world.db.exec("COMMIT");
    waiting.join().expect("no panic")
}

/// The second of two is refused for what the first has done.
pub fn is_refused(outcome: Result<(), Refusal>) {
    let refusal = outcome.expect_err("this should have been refused");
    assert_eq!(refusal.code, "40001", "{refusal}");
    assert!(refusal.message.contains("was altered") && !refusal.hint.is_empty(), "{refusal}");
}

#[test]
fn of_two_alterations_at_the_same_time_one_is_refused() {
    let mut world = World::new("target_twice");
    products(&mut world, 5);
    let engine = Engine::opensearch();
    let (second, third) = (world.index_name("second"), world.index_name("third"));
    let sync = world.index_table("product", &engine, "");
    assert_in_step(&mut world, &sync);
    for change in ["on_reject => 'delete'".to_owned(), format!("index => '{second}'")] {
        let first = format!("SELECT fanout.alter_sync('{sync}', {change})");
        let late = format!("SELECT fanout.alter_sync('{sync}', index => '{third}')");
        is_refused(at_the_same_time(&mut world, &first, &late));
    }
    assert_in_step(&mut world, &sync);
    settled(&mut world);
    assert_eq!(
        world.db.value("SELECT target || ' ' || (options ->> 'on_reject') FROM fanout.sync"),
        format!("{second} delete")
    );
    assert!(engine.exists(&second) && engine.indices(&third).is_empty());
}

#[test]
fn of_a_drop_and_what_comes_at_the_same_time_neither_is_undone() {
    let mut world = World::new("target_race");
    products(&mut world, 5);
    let engine = Engine::opensearch();
    let (first, second) = (world.index_name("product"), world.index_name("second"));
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'product'::regclass";
    let gone = |world: &mut World, sync: &str| {
        eventually_ok(&format!("{sync} is gone"), ENOUGH, || {
            let left = world.db.rows("SELECT sync, state, last_error FROM fanout.status");
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        assert_eq!(world.db.value(triggers), "0");
        assert!(engine.indices(&first).is_empty() && engine.indices(&second).is_empty());
    };
    for (change, name) in [("name => 'other'".to_owned(), "other"), (format!("index => '{second}'"), "product")] {
        let sync = world.index_table("product", &engine, "");
        assert_in_step(&mut world, &sync);
        let alter = format!("SELECT fanout.alter_sync('{sync}', {change})");
        is_refused(at_the_same_time(&mut world, &alter, &format!("SELECT fanout.drop_sync('{sync}')")));
        world.db.exec("UPDATE product SET price = price + 1");
        assert_in_step(&mut world, name);
        settled(&mut world);
        world.db.exec(&format!("SELECT fanout.drop_sync('{name}', drop_target => true)"));
        gone(&mut world, name);
    }
    let move_away = format!("alter_sync('product', index => '{second}')");
    for late in [&move_away, "resync('product')", "adopt('product')", "adopt()"] {
        let sync = world.index_table("product", &engine, "");
        assert_in_step(&mut world, &sync);
        let drop = format!("SELECT fanout.drop_sync('{sync}', drop_target => true)");
        let outcome = at_the_same_time(&mut world, &drop, &format!("SELECT fanout.{late}"));
        is_refused(outcome);
        gone(&mut world, &sync);
    }
}

/// Whose keys match the template of another sync as text, and not as values of its key's type.
#[test]
fn the_keys_of_a_cache_get_another_template() {
    let mut world = World::new("target_keys");
    products(&mut world, 300);
    let prefix = world.key_prefix("product");
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    let beside = world.cache_table_by("product", &format!("{prefix}${{id}}:beside"), ", name => 'beside'");
    let key = |template: &str| format!("key => '{prefix}{template}'");
    // How many keys there are, and how many of them end so.
    let keys = |part: &str| {
        let keys = Keyspace::open().keys(&prefix);
        (keys.len(), keys.iter().filter(|key| key.ends_with(part)).count())
    };
    let settle = |world: &mut World| {
        world.wait(&sync);
        world.wait(&beside);
        settled(world);
    };
    settle(&mut world);
    assert_eq!(keys(":beside"), (600, 300));
    let said = world.db.notices(&format!("SELECT fanout.alter_sync('{sync}', {}, dry_run => true)", key("${id}:v2")));
    let expected = format!(
        "the keys of sync \"product\" become \"{prefix}${{id}}:v2\": all documents are delivered anew; until then those of \
         \"{prefix}${{id}}\" stay as they are, and after that they are removed"
    );
    assert_eq!(said.iter().map(|notice| notice.message.as_str()).collect::<Vec<_>>(), [expected.as_str()]);
    world.db.exec("UPDATE product SET price = 5 WHERE id < 10");
    assert_eq!(alter(&mut world, &sync, &key("${id}:v2")), "resync");
    world.db.exec("DELETE FROM product WHERE id > 290");
    settle(&mut world);
    assert_eq!((keys(":v2"), keys(":beside")), ((580, 290), (580, 290)));
    // A column more: what is captured changes as well.
    assert_eq!(alter(&mut world, &sync, &key("${active}:${id}")), "resync");
    world.db.exec("UPDATE product SET active = false WHERE id <= 100");
    settle(&mut world);
    let all = Keyspace::open().keys(&prefix);
    assert_eq!((all.len(), all.iter().filter(|key| key.starts_with(&format!("{prefix}f:"))).count()), (580, 100));
    // And back, with a document query, which has to yield the columns.
    assert_eq!(alter(&mut world, &sync, "document => 'SELECT id, active, price FROM product'"), "reconcile");
    let refusal = world.db.refusal(&format!("SELECT fanout.alter_sync('{sync}', {})", key("${name}:${id}")));
    assert!(refusal.message.contains("the document query does not yield column \"name\""), "{refusal}");
    assert_eq!(alter(&mut world, &sync, &key("${id}")), "resync");
    world.db.exec("UPDATE product SET price = 8 WHERE id = 8");
    settle(&mut world);
    assert_eq!(keys(":beside"), (580, 290));
    world.db.exec("SELECT fanout.drop_sync('beside', drop_target => true)");
    settled(&mut world);
    assert_eq!(keys(""), (290, 290));
    assert_in_step(&mut world, &sync);
    let controls = Keyspace::open().keys("pg_fanout:control:");
    assert_eq!(controls.iter().filter(|key| key.contains(&prefix)).count(), 1);
}

/// The url of a server that does not answer, and back.
fn reachable(db: &mut Session, server: &str, url: &str) {
    db.exec(&format!("ALTER SERVER {server} OPTIONS (SET url '{url}')"));
}

#[test]
fn a_target_that_is_away_is_removed_when_it_is_back() {
    let mut world = World::new("target_away");
    products(&mut world, 20);
    let engine = Engine::opensearch();
    let (old, new) = (world.index_name("product"), world.index_name("article"));
    let sync = world.index_table("product", &engine, "");
    assert_in_step(&mut world, &sync);
    reachable(&mut world.db, "search", "http://127.0.0.1:1");
    assert_eq!(alter(&mut world, &sync, &format!("index => '{new}'")), "resync");
    eventually("nobody answers", ENOUGH, || world.status(&sync, "last_error") != "NULL");
    kill_worker(&mut world);
    world.db.exec("DELETE FROM product WHERE id = 3");
    thread::sleep(Duration::from_secs(1));
    reachable(&mut world.db, "search", &engine.url);
    assert_in_step(&mut world, &sync);
    settled(&mut world);
    assert!(!engine.exists(&old) && !is_claimed(&engine, &old));
    // What says whose it is goes as well where the worker that had claimed it is another's predecessor.
    reachable(&mut world.db, "search", "http://127.0.0.1:1");
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}', drop_target => true)"));
    kill_worker(&mut world);
    thread::sleep(Duration::from_secs(1));
    reachable(&mut world.db, "search", &engine.url);
    settled(&mut world);
    assert!(engine.indices(&new).is_empty() && !is_claimed(&engine, &new));
}

#[test]
fn a_sync_that_is_dropped_while_it_moves_takes_both_along_or_none() {
    let mut world = World::new("target_dropped");
    products(&mut world, 500);
    let engine = Engine::elasticsearch();
    let (old, new) = (world.index_name("product"), world.index_name("article"));
    for drop_target in [true, false] {
        let sync = world.index_table("product", &engine, "");
        assert_in_step(&mut world, &sync);
        alter(&mut world, &sync, "backfill_rate => 50");
        alter(&mut world, &sync, &format!("index => '{new}'"));
        eventually("the new one is being filled", ENOUGH, || engine.exists(&format!("{new}-fanout-2")));
        // What is to go can't be changed.
        for call in [
            "resync('product_former_1')",
            "reconcile('product_former_1')",
            "alter_sync('product_former_1', name => 'x')",
        ] {
            let refusal = world.db.refusal(&format!("SELECT fanout.{call}"));
            assert_eq!(refusal.code, "55000", "{refusal}");
            assert!(refusal.message.contains("is being dropped") && !refusal.hint.is_empty(), "{refusal}");
        }
        let said = world.db.notices(&format!("SELECT fanout.drop_sync('{sync}', drop_target => {drop_target})"));
        let said: Vec<String> = said.into_iter().map(|notice| notice.message).collect();
        if drop_target {
            eventually("all is gone", ENOUGH, || world.db.value("SELECT count(*) FROM fanout.sync") == "0");
            assert!(engine.indices(&old).is_empty() && engine.indices(&new).is_empty());
            assert!(!is_claimed(&engine, &old) && !is_claimed(&engine, &new));
        } else {
            assert_eq!(world.db.value("SELECT count(*) FROM fanout.sync"), "0");
            assert!(said.iter().any(|it| it.contains(&format!("{old}-fanout-1\" on server \"es\" stays"))), "{said:?}");
            assert!(said.iter().any(|it| it.contains(&format!("{new}-fanout-2\" on server \"es\" stays"))), "{said:?}");
            assert!(engine.exists(&old) && engine.exists(&format!("{new}-fanout-2")));
        }
    }
}

/// Keys that match the template of another sync as text, while that one's key type fails for some of them.
#[test]
fn keys_of_which_it_cannot_be_told_whose_they_are_stay() {
    let mut world = World::new("target_untold");
    products(&mut world, 300);
    let fits = |body: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION fits(n int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN {body} RETURN true; END'"
        )
    };
    world.db.exec(&fits(""));
    world.db.exec(
        "CREATE DOMAIN code AS int CHECK (fits(VALUE)); CREATE TABLE part (id code PRIMARY KEY, name text);
         INSERT INTO part SELECT i, 'n' FROM generate_series(1, 300) AS i",
    );
    let prefix = world.key_prefix("product");
    let sync = world.cache_table_by("product", &format!("{prefix}${{active}}:${{id}}"), "");
    let beside = world.cache_table_by("part", &format!("{prefix}${{id}}:part"), "");
    world.wait(&sync);
    world.wait(&beside);
    // None of the other's: its key is a number.
    Keyspace::open().set(&format!("{prefix}x:part"), "1");
    assert_eq!(Keyspace::open().keys(&prefix).len(), 601);
    world.db.exec(&fits("IF n % 3 = 0 THEN RAISE EXCEPTION ''not now''; END IF;"));
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}', drop_target => true)"));
    settled(&mut world);
    let keys = Keyspace::open().keys(&prefix);
    assert_eq!((keys.len(), keys.iter().filter(|key| key.ends_with(":part")).count()), (300, 300));
    assert!(!keys.contains(&format!("{prefix}x:part")));
    world.db.exec(&fits(""));
    assert_in_step(&mut world, &beside);
}

/// With as many syncs as the server has slots, none of which is left for the old index.
#[test]
fn an_old_index_is_removed_where_no_slot_is_left() {
    let mut world = World::alone("target_slots");
    products(&mut world, 300);
    let engine = Engine::opensearch();
    let (old, new) = (world.index_name("product"), world.index_name("article"));
    let sync = world.index_table("product", &engine, "");
    assert_in_step(&mut world, &sync);
    let mut other = world.another();
    let key = format!("{}${{id}}", world.key_prefix("thing"));
    other.exec(&format!(
        "CREATE TABLE thing (id int PRIMARY KEY);
         SELECT fanout.cache_table('thing', server => 'cache', key => '{key}')"
    ));
    other.exec("SELECT fanout.wait('thing', '60s')");
    let log = ServerLog::here();
    // Of another cluster, so that nothing is done for them.
    other.exec(
        "INSERT INTO fanout.sync (name, kind, source, server, target, key_columns, address_columns, owner, identity, phase)
         SELECT 'thing' || i, kind, source, server, target || i, key_columns, address_columns, owner, 'elsewhere', 'live'
         FROM fanout.sync, generate_series(1, 2048) AS i;
         SELECT fanout.resume('thing')",
    );
    eventually("no slot is left", ENOUGH, || log.has("no room for the status of sync", "thing"));
    assert_eq!(alter(&mut world, &sync, &format!("index => '{new}'")), "resync");
    world.db.exec("UPDATE product SET price = 7 WHERE id = 7");
    assert_in_step(&mut world, &sync);
    settled(&mut world);
    assert!(!engine.exists(&old) && !is_claimed(&engine, &old) && engine.exists(&new));
    assert_eq!(world.db.value(&format!("SELECT es_count('{sync}')")), "300");
    assert_eq!(syncs(&mut world), ["product live"]);
}
