//! PostgreSQL and its worker killed in every way, and transactions in every order.

use crate::proxied::{Proxies, in_step_again};
use crate::tables::products;
use crate::watch::Watch;
use pg_test::oracle::{self, Oracle};
use pg_test::proxy::Fault;
use pg_test::{Dice, Engine, Session, World, assert_in_step, eventually, stack};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

on_each_engine!(
    the_last_committed_state_wins_whatever_the_order_of_the_transactions,
    writers_that_wait_for_a_row_commit_in_turns,
);

/// The process that serves this database.
pub fn worker(world: &mut World) -> String {
    let sql = "SELECT pid FROM pg_stat_activity
               WHERE datname = current_database() AND backend_type LIKE 'pg_fanout%'";
    eventually("a worker", Duration::from_secs(30), || world.db.column(sql).len() == 1);
    world.db.value(sql)
}

fn kill_9(pid: &str) {
    assert!(Command::new("kill").args(["-KILL", pid]).status().expect("kill").success());
}

/// An oracle writes to two engines and Redis while something happens; afterwards the table is what was acknowledged.
fn under_load(name: &str, happens: impl Fn(&mut World, &Proxies)) {
    let mut world = World::alone(name);
    let proxies = Proxies::before(&mut world);
    oracle::tables(&mut world);
    let syncs = [
        world.index_table("item", &Engine::opensearch(), ", name => 'os'"),
        world.index_table("item", &Engine::elasticsearch(), ", name => 'es'"),
        world.cache_table("item", ", name => 'redis'"),
    ];
    let mut dice = Dice::new();
    let mut oracle = Oracle::new(3);
    for _ in 0..if crate::minutes().is_some() { 3 } else { 1 } {
        oracle.start(&world, &mut dice);
        // Requests take a while: whatever happens finds some on their way.
        for proxy in proxies.all() {
            proxy
                .plan(|request| if request.is_bulk() { Fault::Delay(Duration::from_millis(200)) } else { Fault::Pass });
        }
        thread::sleep(Duration::from_millis(1500));
        happens(&mut world, &proxies);
        let commits = oracle.stop();
        assert!(commits > 10, "{commits} commits");
        proxies.calm();
        eventually("PostgreSQL is back", Duration::from_secs(60), || {
            Session::try_connect(&world.database(), None).is_ok_and(|mut db| db.try_rows("SELECT 1").is_ok())
        });
        world.reconnect();
        for name in world.db.column("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") {
            world.db.exec(&format!("COMMIT PREPARED '{name}'"));
        }
        oracle.check(&mut world);
        for sync in &syncs {
            in_step_again(&mut world, sync);
        }
    }
}

#[test]
fn a_worker_that_is_ended_in_mid_bulk_goes_on() {
    under_load("worker_term", |world, _| {
        for _ in 0..3 {
            let pid = worker(world);
            world.db.exec(&format!("SELECT pg_terminate_backend({pid})"));
            thread::sleep(Duration::from_millis(300));
        }
    });
}

#[test]
fn a_worker_that_is_killed_loses_nothing() {
    under_load("worker_kill", |world, _| kill_9(&worker(world)));
}

#[test]
fn an_immediate_shutdown_loses_nothing() {
    under_load("immediate", |_, _| stack::crash("postgres"));
}

#[test]
fn a_postmaster_that_is_killed_loses_nothing() {
    under_load("postmaster", |_, _| stack::kill("postgres"));
}

/// Whoever waited for a row lock commits later, though its transaction began earlier.
fn the_last_committed_state_wins_whatever_the_order_of_the_transactions(world: &mut World, engine: &Engine) {
    products(world, 30);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    let (mut first, mut second) = (world.connect(), world.connect());
    for round in 0..30 {
        let id = 1 + round % 10;
        first.exec("BEGIN; SELECT pg_current_xact_id()");
        second.exec("BEGIN; SELECT pg_current_xact_id()");
        let (early, late) = if round % 2 == 0 { (&mut second, &mut first) } else { (&mut first, &mut second) };
        early.exec(&format!("UPDATE product SET name = 'early {round}' WHERE id = {id}"));
        late.exec("UPDATE product SET price = price + 1 WHERE id = 30");
        early.exec("COMMIT");
        late.exec(&format!("UPDATE product SET name = 'late {round}' WHERE id = {id}"));
        if round % 3 == 0 {
            world.wait(&sync);
        }
        late.exec("COMMIT");
    }
    assert_in_step(world, &sync);
}

/// Writers that wait for one row get it in turns, each within a transaction that was there before the one it waited for.
fn writers_that_wait_for_a_row_commit_in_turns(world: &mut World, engine: &Engine) {
    products(world, 10);
    let syncs = [world.index_table("product", engine, ""), world.cache_table("product", "")];
    let mut holder = world.connect();
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND backend_type = 'client backend'";
    for round in 0..6 {
        // The first to have a transaction id is the last to have the row.
        let mut writers: Vec<Session> = (0..6).map(|_| world.connect()).collect();
        for writer in &mut writers {
            writer.exec("BEGIN; SELECT pg_current_xact_id()");
        }
        // Nobody waits for a row that is not there: the last of the round before may have deleted it.
        holder.exec("INSERT INTO product (id, name) VALUES (1, 'there') ON CONFLICT DO NOTHING");
        holder.exec(&format!("BEGIN; UPDATE product SET name = 'holder {round}' WHERE id = 1"));
        let writers: Vec<_> = (writers.into_iter().enumerate().rev())
            .map(|(n, mut writer)| {
                let queued = world.db.value(waiting);
                let thread = thread::spawn(move || {
                    // What it does when the row is its own: some delete it, the next one makes it again.
                    writer.exec(&match (n + round) % 3 {
                        0 => "DELETE FROM product WHERE id = 1".to_owned(),
                        _ => format!(
                            "INSERT INTO product (id, name) VALUES (1, 'made by {n} in {round}')
                             ON CONFLICT (id) DO UPDATE SET name = 'changed by {n} in {round}'"
                        ),
                    });
                    thread::sleep(Duration::from_millis(10 * (n as u64 % 3)));
                    writer.exec("COMMIT");
                });
                eventually("it waits", Duration::from_secs(10), || world.db.value(waiting) != queued);
                thread
            })
            .collect();
        holder.exec("COMMIT");
        for writer in writers {
            writer.join().expect("no writer fails");
            if round % 2 == 0 {
                world.wait(&syncs[0]);
            }
        }
        for sync in &syncs {
            assert_in_step(world, sync);
        }
    }
}

#[test]
fn a_prepared_transaction_outlives_a_crash() {
    let mut world = World::alone("prepared");
    products(&mut world, 20);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    let name = format!("{}_p", world.tag);
    world.db.exec("BEGIN; UPDATE product SET name = 'prepared' WHERE id <= 5; DELETE FROM product WHERE id = 6");
    world.db.exec(&format!("PREPARE TRANSACTION '{name}'"));
    world.db.exec("UPDATE product SET name = 'other' WHERE id = 10");
    assert_in_step(&mut world, &sync);
    stack::crash("postgres");
    world.reconnect();
    // It holds back neither the others nor the journal.
    for round in 0..300 {
        world.db.exec(&format!("UPDATE product SET price = {round} WHERE id > 10"));
    }
    assert_in_step(&mut world, &sync);
    world.db.exec(&format!("COMMIT PREPARED '{name}'"));
    assert_in_step(&mut world, &sync);
    assert_eq!(world.db.value("SELECT count(*) FROM product WHERE name = 'prepared'"), "5");
}

#[test]
fn triggers_that_write_and_roll_back_are_followed() {
    let mut world = World::new("chains");
    products(&mut world, 50);
    world.db.exec(
        "CREATE TABLE ledger (id int PRIMARY KEY, n int NOT NULL);
         INSERT INTO ledger SELECT i, 0 FROM generate_series(1, 60) AS i;
         CREATE FUNCTION chain() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             UPDATE ledger SET n = n + 1 WHERE id = NEW.id;
             BEGIN
                 UPDATE ledger SET n = 1000 WHERE id BETWEEN NEW.id AND NEW.id + 5;
                 IF NEW.id % 3 > 0 THEN RAISE EXCEPTION 'undo'; END IF;
             EXCEPTION WHEN raise_exception THEN
                 INSERT INTO ledger VALUES (1000 + NEW.id, NEW.id) ON CONFLICT DO NOTHING;
             END;
             IF NEW.name = 'never' THEN RAISE EXCEPTION 'refused'; END IF;
             RETURN NULL;
         END $$;
         CREATE TRIGGER zz_chain AFTER UPDATE ON product FOR EACH ROW EXECUTE FUNCTION chain();
         CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN UPDATE ledger SET n = n - 1 WHERE id = 60 - NEW.id % 50; RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER zz_late AFTER UPDATE ON product DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION late()",
    );
    let product = world.cache_table("product", "");
    let ledger = world.cache_table("ledger", "");
    for round in 0..10 {
        world.db.exec(&format!("UPDATE product SET price = {round} WHERE id % 5 = {round} % 5"));
        let refused = world.db.refusal("UPDATE product SET name = 'never' WHERE id = 7");
        assert_eq!(refused.code, "P0001");
        for sync in [&product, &ledger] {
            assert_in_step(&mut world, sync);
        }
    }
}

/// What is delivered is counted: whoever began from the start would deliver the first half of the table anew.
#[test]
fn a_backfill_that_is_killed_twice_goes_on_and_ends_equal() {
    let mut world = World::alone("backfill_killed");
    let proxies = Proxies::before(&mut world);
    world.db.exec(
        "CREATE TABLE reading (id int PRIMARY KEY, n int NOT NULL, filler text);
         INSERT INTO reading SELECT i, 0, repeat('x', 100) FROM generate_series(1, 60000) AS i",
    );
    let delivered = Arc::new(Mutex::new(BTreeMap::<u64, u32>::new()));
    let seen = Arc::clone(&delivered);
    proxies.opensearch.plan(move |request| {
        if !request.is_bulk() {
            return Fault::Pass;
        }
        let mut seen = seen.lock().expect("what was delivered");
        request.ids().iter().filter_map(|id| id.parse().ok()).for_each(|id| *seen.entry(id).or_default() += 1);
        Fault::Delay(Duration::from_millis(150))
    });
    let sync = world.index_table("reading", &Engine::opensearch(), "");
    let ids: Vec<String> = (1..=60_000).step_by(600).map(|id| id.to_string()).collect();
    let watch = Watch::start(world.index_name("reading"), ids, vec![Engine::opensearch()]);
    // In the last third only: what is delivered of the others, the backfill delivers.
    let writer = {
        let mut session = world.connect();
        thread::spawn(move || {
            for round in 1.. {
                let id = 40_001 + round * 7919 % 19_970;
                let sql = format!(
                    "UPDATE reading SET n = {round} WHERE id BETWEEN {id} AND {id} + 20;
                     DELETE FROM reading WHERE id = {id} + 7; INSERT INTO reading VALUES (100000 + {round}, {round}, 'new')"
                );
                if session.try_exec(&sql).is_err() {
                    return round;
                }
            }
            0
        })
    };
    // Rows that nobody changes, in the blocks before the saved position: its last four bytes are a block's number.
    let acknowledged = |world: &mut World| -> u64 {
        let block = "get_byte(position, length(position) - 4) + 256 * get_byte(position, length(position) - 3)";
        let sql = format!(
            "SELECT coalesce(max(id), 0) FROM fanout.sync, reading
             WHERE name = '{sync}' AND id <= 40000 AND reading.ctid < format('(%s,0)', {block})::tid"
        );
        world.db.value(&sql).parse().expect("a number")
    };
    // How often these were delivered, all together.
    let often = |last: u64| -> u32 {
        delivered.lock().expect("what was delivered").range(1..=last).map(|(_, times)| times).sum()
    };
    eventually("it has begun", Duration::from_secs(60), || acknowledged(&mut world) > 10_000);
    let first = acknowledged(&mut world);
    let times = often(first);
    let pid = worker(&mut world);
    world.db.exec(&format!("SELECT pg_terminate_backend({pid})"));
    eventually("it goes on", Duration::from_secs(60), || acknowledged(&mut world) > first + 10_000);
    assert_eq!(often(first), times, "it began from the start after its end");
    let second = acknowledged(&mut world);
    let times = often(second);
    kill_9(&worker(&mut world));
    assert!(writer.join().expect("a writer") > 10);
    eventually("PostgreSQL is back", Duration::from_secs(60), || {
        Session::try_connect(&world.database(), None).is_ok_and(|mut db| db.try_rows("SELECT 1").is_ok())
    });
    world.reconnect();
    eventually("it ends", Duration::from_secs(60), || world.status(&sync, "state") == "live");
    assert_eq!(often(second), times, "it began from the start after it was killed");
    proxies.calm();
    world.db.exec("UPDATE reading SET n = -1 WHERE id % 100 = 0; DELETE FROM reading WHERE id % 101 = 0");
    in_step_again(&mut world, &sync);
    assert!(watch.stop() > 100);
}
