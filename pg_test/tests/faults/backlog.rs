//! More changes than a worker keeps for a target that is away, and transactions that are open for long.

use crate::proxied::{Proxies, in_step_again};
use crate::tables::{more_products, products};
use crate::watch::processor_time;
use pg_test::proxy::Fault;
use pg_test::{Engine, ServerLog, Setting, World, assert_in_step, eventually, eventually_ok};
use std::time::{Duration, Instant};

/// Bytes of the journal.
const JOURNAL: &str = "SELECT sum(pg_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                       WHERE nspname = 'fanout' AND relname ~ '^journal_[0-9]'";

#[test]
fn a_backlog_past_its_bound_is_reconciled_by_itself() {
    let mut world = World::alone("backlog");
    let proxies = Proxies::before(&mut world);
    let _pending = Setting::set(&mut world, "fanout.pending_keys", "1000");
    let _backlog = Setting::set(&mut world, "fanout.backlog_keys", "5000");
    products(&mut world, 2000);
    let away = world.index_table("product", &Engine::opensearch(), "");
    let cache = world.cache_table("product", "");
    assert_in_step(&mut world, &away);
    assert_in_step(&mut world, &cache);
    let log = ServerLog::here();
    proxies.opensearch.plan(|_| Fault::Reset);
    proxies.opensearch.refuse(true);
    let begun = Instant::now();
    world.db.exec("UPDATE product SET price = 1 WHERE id <= 1500");
    world.db.exec("INSERT INTO product (id, name) SELECT i, 'n' FROM generate_series(10001, 12600) AS i");
    eventually("the alarm is given before the bound", Duration::from_secs(30), || {
        log.has(&format!("sync \"{away}\" has "), "fanout.backlog_keys")
    });
    assert!(!log.has(&format!("sync \"{away}\" has more than"), ""), "the alarm came too late");
    world.db.exec("DELETE FROM product WHERE id % 3 = 0");
    for n in 0..20 {
        world.db.exec(&format!(
            "INSERT INTO product (id, name) SELECT i, 'n' FROM generate_series({}, {}) AS i",
            20_000 + n * 500,
            20_499 + n * 500
        ));
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "writers waited");
    // Said, and noted durably; the other sync goes on.
    eventually("past the bound it is said", Duration::from_secs(30), || {
        log.has(&format!("sync \"{away}\" has more than 5000"), "it will be reconciled")
    });
    let phase = format!("SELECT phase FROM fanout.sync WHERE name = '{away}'");
    eventually("it is noted", Duration::from_secs(30), || world.db.value(&phase) == "reconcile");
    assert_in_step(&mut world, &cache);
    proxies.calm();
    in_step_again(&mut world, &away);
    assert_eq!(world.db.value(&phase), "live");
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.pending"), "0");
}

/// So it is where the target was never reached: all of the table is on its way then, whatever changed meanwhile.
#[test]
fn the_backlog_of_a_target_that_was_never_reached_is_bounded() {
    let mut world = World::alone("never_reached");
    let proxies = Proxies::before(&mut world);
    let _pending = Setting::set(&mut world, "fanout.pending_keys", "1000");
    let _backlog = Setting::set(&mut world, "fanout.backlog_keys", "5000");
    products(&mut world, 10);
    proxies.opensearch.refuse(true);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    let log = ServerLog::here();
    for n in 0..40 {
        world.db.exec(&format!(
            "INSERT INTO product (id, name) SELECT i, 'n' FROM generate_series({}, {}) AS i",
            20_000 + n * 500,
            20_499 + n * 500
        ));
    }
    eventually("past the bound it is said", Duration::from_secs(30), || {
        log.has(&format!("sync \"{sync}\" has more than 5000"), "it will be filled")
    });
    world.db.exec("DELETE FROM product WHERE id % 3 = 0");
    let pending = format!("SELECT pending FROM fanout.status WHERE sync = '{sync}'");
    eventually("what is too much is dropped", Duration::from_secs(30), || {
        world.db.value(&pending).parse::<u64>().expect("a number") <= 5000
    });
    let said = log.text().matches("it will be filled").count();
    assert!(said <= 6, "said {said} times");
    proxies.calm();
    in_step_again(&mut world, &sync);
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.pending"), "0");
}

/// What is too much for memory stays in the journal while the only sync gets on: it is not written a second time, and does not
/// look younger than it is.
#[test]
fn more_keys_than_memory_holds_wait_in_the_journal() {
    let mut world = World::alone("wait_in_journal");
    let _pending = Setting::set(&mut world, "fanout.pending_keys", "400000");
    world.db.exec(
        "CREATE TABLE tick (id bigint PRIMARY KEY, n int) WITH (fillfactor = 50);
         INSERT INTO tick SELECT i, 0 FROM generate_series(1, 600000) AS i",
    );
    let sync = world.cache_table("tick", "");
    assert_in_step(&mut world, &sync);
    // Nor older: nothing happened for a while.
    std::thread::sleep(Duration::from_secs(3));
    let begun = Instant::now();
    world.db.exec("UPDATE tick SET n = 1");
    let committed = Instant::now();
    let behind = format!("SELECT extract(epoch FROM lag) FROM fanout.status WHERE sync = '{sync}' AND pending > 0");
    let (mut stored, mut seen) = (0, 0);
    while world.try_wait(&sync, "100ms").is_err() {
        stored = stored.max(world.db.value("SELECT count(*) FROM fanout.pending").parse().expect("a number"));
        let (early, lags) = (committed.elapsed().as_secs_f64(), world.db.column(&behind));
        let late = begun.elapsed().as_secs_f64();
        for lag in lags.iter().map(|lag| lag.parse::<f64>().expect("a number")) {
            // The status is written four times a second, or less where the worker is busy.
            assert!(lag > early - 3.0 && lag < late + 0.1, "{lag} s, committed {early} to {late} s ago");
            seen += 1;
        }
    }
    assert!(seen > 3, "{seen} samples");
    assert_eq!(stored, 0);
    assert_in_step(&mut world, &sync);
}

/// What a reconcile itself has read is bounded otherwise: were it dropped, the reconcile would begin anew for ever.
#[test]
fn a_reconcile_gets_on_however_few_keys_are_kept() {
    let mut world = World::alone("few_keys");
    let proxies = Proxies::before(&mut world);
    products(&mut world, 6000);
    let index = world.index_table("product", &Engine::opensearch(), "");
    let cache = world.cache_table("product", "");
    assert_in_step(&mut world, &index);
    assert_in_step(&mut world, &cache);
    let _backlog = Setting::set(&mut world, "fanout.backlog_keys", "1000");
    let log = ServerLog::here();
    // Slow enough for the worker to look at what is pending in between.
    proxies
        .opensearch
        .plan(|request| if request.is_bulk() { Fault::Delay(Duration::from_millis(700)) } else { Fault::Pass });
    let mut writes = 0;
    proxies.redis.plan(move |request| {
        writes += u32::from(request.is_write());
        if request.is_write() && writes % 500 == 0 { Fault::Delay(Duration::from_millis(350)) } else { Fault::Pass }
    });
    world.db.exec(&format!("SELECT fanout.reconcile('{index}'), fanout.reconcile('{cache}')"));
    let phases = "SELECT string_agg(phase, ' ') FROM fanout.sync";
    eventually_ok("both are live", Duration::from_secs(90), || {
        assert!(!log.has("has more than 1000", "unacknowledged keys"), "{}", log.text());
        // A commit each time.
        world.db.exec("UPDATE product SET price = price + 1 WHERE id = 5");
        std::thread::sleep(Duration::from_millis(100));
        let phases = world.db.value(phases);
        if phases == "live live" { Ok(()) } else { Err(phases) }
    });
    proxies.calm();
    in_step_again(&mut world, &index);
    in_step_again(&mut world, &cache);
}

#[test]
fn stored_keys_that_are_tried_again_count_once() {
    let mut world = World::alone("counted_once");
    let _pending = Setting::set(&mut world, "fanout.pending_keys", "1000");
    let proxies = Proxies::before(&mut world);
    products(&mut world, 3000);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    proxies.redis.plan(|_| Fault::Reset);
    proxies.redis.refuse(true);
    world.db.exec("UPDATE product SET price = 1");
    let few = |text: String| text.parse::<u64>().expect("a number");
    eventually("they are stored", Duration::from_secs(30), || {
        few(world.db.value("SELECT count(*) FROM fanout.pending")) > 1000
    });
    let before = few(world.status(&sync, "retried"));
    eventually("some are tried again", Duration::from_secs(30), || {
        assert!(few(world.status(&sync, "pending")) <= 3000, "{:?}", world.db.rows("SELECT * FROM fanout.status"));
        few(world.status(&sync, "retried")) > before + 2000
    });
    assert_eq!(world.status(&sync, "pending"), "3000");
    proxies.calm();
    in_step_again(&mut world, &sync);
    assert_eq!(world.status(&sync, "pending"), "0");
}

/// So it does beside syncs that nobody waits for.
#[test]
fn more_keys_than_memory_holds_wait_in_the_journal_beside_another_sync() {
    let mut world = World::alone("wait_beside");
    let _pending = Setting::set(&mut world, "fanout.pending_keys", "200000");
    products(&mut world, 10);
    world.db.exec(
        "CREATE TABLE tick (id bigint PRIMARY KEY, n int) WITH (fillfactor = 50);
         INSERT INTO tick SELECT i, 0 FROM generate_series(1, 300000) AS i",
    );
    let other = world.cache_table("product", "");
    let sync = world.cache_table("tick", "");
    assert_in_step(&mut world, &sync);
    assert_in_step(&mut world, &other);
    let pending = "SELECT count(*) FROM fanout.pending";
    world.db.exec("UPDATE tick SET n = 1");
    let mut stored = 0;
    while world.try_wait(&sync, "100ms").is_err() {
        stored = stored.max(world.db.value(pending).parse::<u64>().expect("a number"));
    }
    assert_eq!(stored, 0);
    assert_in_step(&mut world, &sync);
    // Nor is a change of the other left there.
    world.db.exec("UPDATE tick SET n = 2; UPDATE product SET price = 17");
    assert_in_step(&mut world, &other);
    assert_in_step(&mut world, &sync);
}

#[test]
fn an_old_transaction_holds_up_neither_others_nor_the_journal() {
    let mut world = World::alone("old_transaction");
    let _size = Setting::set(&mut world, "fanout.segment_size", "128kB");
    products(&mut world, 1000);
    more_products(&mut world, 100_001, 110_000);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    let mut old = world.connect();
    // Its xid is there first, and so is a part of its changes: these are more than it may hold in memory, so they are
    // in the journal before its end, where they keep a segment from being emptied.
    old.exec("SET fanout.capture_memory = '64kB'");
    let before = world.db.value(JOURNAL).parse::<u64>().expect("a number");
    old.exec("BEGIN; UPDATE product SET name = 'of the old transaction' WHERE id = 1 OR id > 100000");
    let spilled = world.db.value(JOURNAL).parse::<u64>().expect("a number") - before;
    assert!(spilled > 8192, "nothing of the open transaction is in the journal");
    // A reader holds a snapshot beside it.
    let mut reader = world.connect();
    reader.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM product");
    let mut largest = 0u64;
    let mut session = world.connect();
    let rounds = if crate::minutes().is_some() { 20 } else { 4 };
    let mut costs = Vec::new();
    for round in 0..rounds {
        let before = processor_time(&mut world);
        session.exec(&format!(
            "DO $$ BEGIN FOR i IN 1..5000 LOOP
                 UPDATE product SET price = {round} + i WHERE id = 2 + (i * 7 + {round}) % 990; COMMIT;
             END LOOP; END $$"
        ));
        world.wait(&sync);
        costs.push(processor_time(&mut world) - before);
        largest = largest.max(world.db.value(JOURNAL).parse().expect("a number"));
    }
    // 100,000 transactions in the long form, of 48 bytes at least, in segments of 128 kB.
    assert!(largest < 3_000_000, "the journal grew to {largest} bytes");
    // What the worker does for a round does not grow with the rounds before; the first and the last few, for one alone is
    // at the mercy of the machine.
    let few = |costs: &[u64]| costs.iter().take(rounds / 2).copied().min().unwrap_or_default();
    let last: Vec<u64> = costs.iter().rev().copied().collect();
    assert!(few(&last) * 2 < few(&costs) * 3 + 20, "hundredths of a second of each round: {costs:?}");
    let key = format!("{}1", world.key_prefix("product"));
    let name = |key: &str| pg_test::Keyspace::open().get(key).unwrap_or_default();
    assert!(!name(&key).contains("of the old transaction"));
    old.exec("COMMIT");
    eventually_ok("its own change arrives", Duration::from_secs(20), || {
        let now = name(&key);
        if now.contains("of the old transaction") { Ok(()) } else { Err(now) }
    });
    reader.exec("COMMIT");
    assert_in_step(&mut world, &sync);
    eventually("the journal is small again", Duration::from_secs(30), || {
        world.db.exec("UPDATE product SET price = price WHERE id = 5");
        world.db.value(JOURNAL).parse::<u64>().expect("a number") < 1_000_000
    });
}

/// What is kept while a target is away depends on how many keys changed, not on how often.
#[test]
fn the_same_keys_again_and_again_take_no_more_room() {
    let mut world = World::alone("same_keys");
    let _size = Setting::set(&mut world, "fanout.segment_size", "128kB");
    let proxies = Proxies::before(&mut world);
    products(&mut world, 60);
    let away = world.index_table("product", &Engine::opensearch(), "");
    let cache = world.cache_table("product", "");
    assert_in_step(&mut world, &away);
    assert_in_step(&mut world, &cache);
    proxies.opensearch.plan(|_| Fault::Reset);
    proxies.opensearch.refuse(true);
    let mut session = world.connect();
    let mut number = |sql: &str| world.db.value(sql).parse::<u64>().expect("a number");
    let mut sizes = Vec::new();
    // Longer than a segment waits for a sync before what it holds is stored. At most 360 kB of the journal a second, also where
    // commits cost nothing.
    let (begun, patience, round) = (Instant::now(), Duration::from_secs(10), Duration::from_secs(1));
    while begun.elapsed() < patience * if crate::minutes().is_some() { 6 } else { 3 } {
        let written = Instant::now();
        session.exec(
            "DO $$ BEGIN FOR i IN 1..5000 LOOP
                 UPDATE product SET price = i WHERE id = 1 + i % 50; COMMIT;
             END LOOP; END $$",
        );
        std::thread::sleep(round.saturating_sub(written.elapsed()));
        // One that is stored and changed again counts twice.
        assert!(number(&format!("SELECT pending FROM fanout.status WHERE sync = '{away}'")) <= 100);
        assert!(number("SELECT count(*) FROM fanout.pending") <= 50);
        if begun.elapsed() > patience {
            sizes.push((number(JOURNAL), number("SELECT pg_total_relation_size('fanout.pending')")));
        }
    }
    let journal = sizes.iter().map(|&(journal, _)| journal).max().expect("a size");
    assert!(journal < 8 << 20, "bytes of journal and pending: {sizes:?}");
    eventually("the journal is emptied though the target is away", Duration::from_secs(30), || {
        session.exec("UPDATE product SET price = 0 WHERE id = 1");
        number(JOURNAL) < 1 << 20
    });
    assert!(number("SELECT count(*) FROM fanout.pending") > 0, "it is stored");
    let pending = sizes.iter().map(|&(_, pending)| pending);
    assert!(pending.clone().all(|size| size < 256 << 10), "bytes of journal and pending: {sizes:?}");
    // Those of the sync that is not away were delivered meanwhile.
    assert_in_step(&mut world, &cache);
    proxies.calm();
    in_step_again(&mut world, &away);
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.pending"), "0");
}

#[test]
fn dead_letters_are_announced_before_the_oldest_are_forgotten() {
    let mut world = World::alone("letters_alarm");
    let _bound = Setting::set(&mut world, "fanout.dead_letters", "100");
    world.db.exec("CREATE TABLE part (id int PRIMARY KEY, code text); INSERT INTO part VALUES (1, '1')");
    let sync = world.index_table("part", &Engine::opensearch(), r#", mapping => '{"code": {"type": "integer"}}'"#);
    assert_in_step(&mut world, &sync);
    let log = ServerLog::here();
    let said = |log: &ServerLog, words: &str| log.has(&format!("sync \"{sync}\" has "), words);
    let mut refuse = |from: u32, to: u32, letters: &str| {
        world.db.exec(&format!("INSERT INTO part SELECT i, 'none' FROM generate_series({from}, {to}) AS i"));
        let _ = world.try_wait(&sync, "30s");
        assert_eq!(world.status(&sync, "dead_letters"), letters);
    };
    refuse(101, 180, "80");
    assert!(!said(&log, "dead letters"), "80 are four fifths: {}", log.text());
    refuse(181, 181, "81");
    assert!(said(&log, "81 dead letters; past 100 (fanout.dead_letters) the oldest are forgotten"), "{}", log.text());
    let log = ServerLog::here();
    refuse(182, 200, "100");
    assert!(!said(&log, "dead letters"), "it is said once: {}", log.text());
    refuse(201, 205, "100");
    assert!(said(&log, "more than 100 dead letters"), "{}", log.text());
    assert!(log.has("the oldest 5 are", "fanout.verify()"), "{}", log.text());
}

/// Changed rows of a related table that belong to more documents than are held at once: found a few at a time, and what is too
/// much even for one row is a reconcile.
#[test]
fn rows_that_many_documents_depend_on_are_looked_up_a_few_at_a_time() {
    let mut world = World::alone("many_documents");
    let _pending = Setting::set(&mut world, "fanout.pending_keys", "1000");
    world.db.exec(
        "CREATE TABLE brand (id int PRIMARY KEY, name text);
         CREATE TABLE item (id int PRIMARY KEY, brand int REFERENCES brand); CREATE INDEX ON item (brand);
         INSERT INTO brand SELECT i, 'brand ' || i FROM generate_series(1, 100) AS i;
         INSERT INTO item SELECT i, CASE WHEN i <= 1500 THEN 1 ELSE 2 + i % 99 END FROM generate_series(1, 6000) AS i; BEGIN",
    );
    let sync =
        world.cache_table("item", ", document => 'SELECT i.id, b.name FROM item i JOIN brand b ON b.id = i.brand'");
    world.db.exec(&format!("SELECT fanout.related('{sync}', 'brand'); COMMIT"));
    assert_in_step(&mut world, &sync);
    let log = ServerLog::here();
    let reconciled =
        format!("sync \"{sync}\" is reconciled: a row of a related table belongs to more than 1000 documents");
    // 4500 documents in all, 45 or 46 a row.
    let delivered = |world: &mut World| world.status(&sync, "delivered").parse::<u64>().expect("a number");
    let before = delivered(&mut world);
    world.db.exec("UPDATE brand SET name = name || '!' WHERE id > 1");
    assert_in_step(&mut world, &sync);
    assert!(!log.has(&reconciled, ""), "{}", log.text());
    let marked = delivered(&mut world) - before;
    assert!((4500..5500).contains(&marked), "{marked} of 6000 documents were delivered anew");
    world.db.exec("UPDATE brand SET name = name || '?'");
    assert_in_step(&mut world, &sync);
    assert!(log.has(&reconciled, ""), "{}", log.text());
    assert_eq!(world.db.value("SELECT phase FROM fanout.sync"), "live");
}

/// A column of a key template may be longer than an entry of a btree.
#[test]
fn long_keys_are_stored_and_refused_as_others_are() {
    let mut world = World::alone("long_keys");
    let _pending = Setting::set(&mut world, "fanout.pending_keys", "1000");
    world.db.exec(
        "CREATE FUNCTION long(i int) RETURNS text IMMUTABLE LANGUAGE sql AS
             $$SELECT string_agg(md5(i || ':' || n), '') FROM generate_series(1, 150) AS n$$;
         CREATE TABLE file (id int PRIMARY KEY, path text NOT NULL, n int NOT NULL DEFAULT 1)",
    );
    let key = format!("{}${{path}}:${{id}}", world.key_prefix("file"));
    let sync = world.cache_table_by("file", &key, ", predicate => '10 / n > 0'");
    assert_in_step(&mut world, &sync);
    world.db.exec(&format!("SELECT fanout.pause('{sync}')"));
    world.db.exec("INSERT INTO file SELECT i, long(i) FROM generate_series(1, 1500) AS i");
    let stored = "SELECT count(*) FROM fanout.pending WHERE octet_length(whole) > 4000";
    eventually("they are stored", Duration::from_secs(30), || world.db.value(stored) != "0");
    world.db.exec("UPDATE file SET path = long(-id) WHERE id <= 100; DELETE FROM file WHERE id > 1450");
    world.db.exec(&format!("SELECT fanout.resume('{sync}')"));
    assert_in_step(&mut world, &sync);
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.pending"), "0");
    // A row that cannot be read.
    world.db.exec("UPDATE file SET n = 0 WHERE id IN (7, 8)");
    eventually("they are dead letters", Duration::from_secs(30), || world.status(&sync, "dead_letters") == "2");
    assert_eq!(world.db.value(&format!("SELECT fanout.retry('{sync}')")), "2");
    world.db.exec("UPDATE file SET n = 1 WHERE id = 7; DELETE FROM file WHERE id = 8");
    assert_in_step(&mut world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
}
