//! PostgreSQL, or only the worker, goes down and comes back.

use crate::tables::{more_products, products};
use pg_test::{Engine, Keyspace, Session, World, assert_in_step, differences, eventually, eventually_ok, stack};
use std::process::Command;
use std::thread;
use std::time::Duration;

fn syncs(world: &mut World) -> [String; 3] {
    [
        world.index_table("product", &Engine::opensearch(), ", name => 'opensearch'"),
        world.index_table("product", &Engine::elasticsearch(), ", name => 'elasticsearch'"),
        world.cache_table("product", ", name => 'redis'"),
    ]
}

fn all_in_step(world: &mut World, syncs: &[String]) {
    for sync in syncs {
        assert_in_step(world, sync);
    }
}

/// Writes until the connection breaks. `synchronous_commit = off` makes committed transactions that a crash takes back.
fn write_until_cut_off(mut session: Session, first: u32) {
    let _ = session.try_exec("SET synchronous_commit = off");
    for n in 0.. {
        let id = first + n;
        let outcome = session.try_exec(&format!(
            "INSERT INTO product (id, name) VALUES ({id}, 'n'); UPDATE product SET price = {n} WHERE id % 97 = {n} % 97"
        ));
        // A deadlock with the other writer is no end.
        if matches!(&outcome, Err(error) if error.code != "40P01") {
            return;
        }
    }
}

#[test]
fn a_restart_of_postgres_loses_nothing() {
    let mut world = World::alone("pg_restart");
    products(&mut world, 5000);
    let syncs = syncs(&mut world);
    // In the middle of the backfill.
    world.db.exec("UPDATE product SET name = 'changed' WHERE id % 2 = 0; DELETE FROM product WHERE id > 4900");
    stack::restart("postgres");
    world.reconnect();
    all_in_step(&mut world, &syncs);
    // With a backlog.
    world.db.exec("UPDATE product SET price = 7; DELETE FROM product WHERE id % 50 = 0");
    stack::restart("postgres");
    world.reconnect();
    all_in_step(&mut world, &syncs);
    more_products(&mut world, 10_000, 10_010);
    all_in_step(&mut world, &syncs);
}

#[test]
fn a_crash_of_postgres_loses_nothing_and_invents_nothing() {
    let mut world = World::alone("pg_crash");
    products(&mut world, 1000);
    let syncs = syncs(&mut world);
    all_in_step(&mut world, &syncs);
    for round in 1..=3 {
        let writers: Vec<_> = (0..2)
            .map(|n| {
                let session = world.connect();
                thread::spawn(move || write_until_cut_off(session, round * 1_000_000 + n * 100_000))
            })
            .collect();
        thread::sleep(Duration::from_millis(700));
        stack::crash("postgres");
        for writer in writers {
            writer.join().expect("a writer that stops when it is cut off");
        }
        world.reconnect();
        all_in_step(&mut world, &syncs);
    }
}

/// The crash empties what is unlogged: the source, a part of it, or what its documents are made of.
#[test]
fn what_was_in_an_unlogged_table_is_gone_after_a_crash_from_the_targets_too() {
    let mut world = World::alone("unlogged");
    world.db.exec(
        "CREATE UNLOGGED TABLE basket (id int PRIMARY KEY, n int); INSERT INTO basket SELECT i, i FROM generate_series(1, 500) AS i;
         CREATE TABLE part (id int, kind int, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
         CREATE UNLOGGED TABLE part_1 PARTITION OF part FOR VALUES IN (1); CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2);
         INSERT INTO part SELECT i, 1 + i % 2 FROM generate_series(1, 100) AS i;
         CREATE TABLE item (id int PRIMARY KEY, name text); CREATE UNLOGGED TABLE hits (item int PRIMARY KEY, n int);
         INSERT INTO item SELECT i, 'item' FROM generate_series(1, 100) AS i; INSERT INTO hits SELECT id, id FROM item; BEGIN",
    );
    let mut syncs = vec![
        world.index_table("basket", &Engine::opensearch(), ", name => 'opensearch'"),
        world.index_table("basket", &Engine::elasticsearch(), ", name => 'elasticsearch'"),
        world.cache_table("basket", ", name => 'redis'"),
        world.cache_table_by("part", &format!("{}:part:${{id}}:${{kind}}", world.tag), ""),
        world.cache_table(
            "item",
            ", document => 'SELECT i.id, i.name, h.n FROM item i LEFT JOIN hits h ON h.item = i.id'",
        ),
    ];
    world.db.exec("SELECT fanout.related('item', 'hits', columns => '{item}'); COMMIT");
    all_in_step(&mut world, &syncs);
    // Another is in the middle of its backfill.
    let key = format!("{}:slow:${{id}}", world.tag);
    world.db.exec("BEGIN");
    let slow = world.cache_table_by("basket", &key, ", name => 'slow'");
    world.db.exec(&format!("SELECT fanout.alter_sync('{slow}', backfill_rate => 20); COMMIT"));
    eventually_ok("some of it is delivered", Duration::from_secs(30), || {
        let found = Keyspace::open().keys(&key.replace("${id}", "")).len();
        if found > 20 { Ok(()) } else { Err(found.to_string()) }
    });
    stack::crash("postgres");
    world.reconnect();
    assert_eq!(world.db.value("SELECT count(*) FROM basket"), "0");
    world.db.exec(&format!("SELECT fanout.alter_sync('{slow}', reset => '{{backfill_rate}}')"));
    syncs.push(slow);
    all_in_step(&mut world, &syncs);
    world.db.exec("INSERT INTO basket VALUES (1, -1), (600, 0); INSERT INTO hits VALUES (7, 7); INSERT INTO part VALUES (1000, 1)");
    all_in_step(&mut world, &syncs);
}

#[test]
fn a_worker_that_is_ended_comes_back_and_goes_on() {
    let mut world = World::new("worker_ended");
    products(&mut world, 10_000);
    let syncs = syncs(&mut world);
    for round in 0..3 {
        let before = worker(&mut world);
        world.db.exec(&format!("UPDATE product SET price = {round}"));
        world.db.exec(&format!("SELECT pg_terminate_backend({before})"));
        eventually_ok("another worker", Duration::from_secs(30), || {
            let now = workers(&mut world);
            if now.len() == 1 && now[0] != before { Ok(()) } else { Err(format!("{now:?}, before {before}")) }
        });
    }
    all_in_step(&mut world, &syncs);
}

fn workers(world: &mut World) -> Vec<String> {
    world.db.column(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'pg_fanout%'",
    )
}

fn worker(world: &mut World) -> String {
    eventually_ok("a worker for this database", Duration::from_secs(30), || {
        let workers = workers(world);
        if workers.len() == 1 { Ok(workers[0].clone()) } else { Err(format!("{workers:?}")) }
    })
}

/// Waits until the worker is in the function that sleeps, and gives its process.
fn dozing(world: &mut World) -> String {
    eventually_ok("the worker reads the row at which it sleeps", Duration::from_secs(60), || {
        let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()
                   AND backend_type = 'pg_fanout worker' AND wait_event = 'PgSleep'";
        let dozing = world.db.column(sql);
        if dozing.len() == 1 { Ok(dozing[0].clone()) } else { Err(format!("{dozing:?}")) }
    })
}

/// The worker goes down in the middle of a reading, and PostgreSQL with it.
fn crash_while_it_dozes(world: &mut World) {
    let pid = dozing(world);
    assert!(Command::new("kill").args(["-SEGV", &pid]).status().expect("kill").success());
    eventually_ok("PostgreSQL is back", Duration::from_secs(60), || {
        let mut db = Session::try_connect(&world.database(), None).map_err(|error| error.to_string())?;
        // Not of before the crash, which takes a moment to be noticed.
        let same = db.try_rows(&format!("SELECT FROM pg_stat_activity WHERE pid = {pid}"));
        match same.map_err(|error| error.to_string())?.is_empty() {
            true => Ok(()),
            false => Err("the worker is there".into()),
        }
    });
    world.reconnect();
}

#[test]
fn a_sync_that_brings_the_worker_down_twice_is_left_alone_and_the_others_go_on() {
    let mut world = World::alone("brought_down");
    products(&mut world, 20);
    world.db.exec(
        "CREATE TABLE bed (id int PRIMARY KEY, n int); CREATE TABLE night (x int);
         CREATE FUNCTION doze(n int) RETURNS int STABLE LANGUAGE plpgsql AS $f$
         BEGIN IF EXISTS (SELECT FROM night) THEN PERFORM pg_sleep(25); END IF; RETURN n; END $f$;
         INSERT INTO bed VALUES (1, 0)",
    );
    let other = world.cache_table("product", "");
    let bed = world.cache_table("bed", ", document => 'SELECT id, doze(n) AS n FROM bed'");
    for sync in [&bed, &other] {
        assert_in_step(&mut world, sync);
    }
    let change = |world: &mut World| {
        world.db.exec("DELETE FROM night; INSERT INTO night VALUES (1); UPDATE bed SET n = n + 1; UPDATE product SET price = price + 1");
    };
    // Told to end, taken along by the others, or down once: nothing follows from that.
    for round in 0..3 {
        change(&mut world);
        match round {
            0 => {
                for _ in 0..3 {
                    let pid = dozing(&mut world);
                    world.db.exec(&format!("SELECT pg_terminate_backend({pid})"));
                    eventually_ok("it ends", Duration::from_secs(30), || {
                        if workers(&mut world).contains(&pid) { Err(pid.clone()) } else { Ok(()) }
                    });
                }
            }
            1 => {
                for _ in 0..3 {
                    dozing(&mut world);
                    stack::crash("postgres");
                    world.reconnect();
                }
            }
            _ => crash_while_it_dozes(&mut world),
        }
        dozing(&mut world);
        assert_ne!(world.status(&bed, "state"), "blocked", "round {round}");
        world.db.exec("DELETE FROM night");
        let pid = dozing(&mut world);
        world.db.exec(&format!("SELECT pg_cancel_backend({pid})"));
        for sync in [&bed, &other] {
            assert_in_step(&mut world, sync);
        }
    }
    // What was read to its end since then excuses the first time.
    change(&mut world);
    crash_while_it_dozes(&mut world);
    dozing(&mut world);
    assert_ne!(world.status(&bed, "state"), "blocked");
    crash_while_it_dozes(&mut world);
    eventually_ok("the sync is left alone", Duration::from_secs(60), || match world.status(&bed, "state").as_str() {
        "blocked" => Ok(()),
        other => Err(other.to_owned()),
    });
    let error = world.status(&bed, "last_error");
    assert!(error.contains("the worker went down") && error.contains("fanout.resume('bed')"), "{error}");
    assert_in_step(&mut world, &other);
    // That outlives the server, and the others go on.
    stack::restart("postgres");
    world.reconnect();
    world.db.exec("UPDATE product SET name = 'goes on'; UPDATE bed SET n = n + 1");
    assert_in_step(&mut world, &other);
    assert_eq!(world.status(&bed, "state"), "blocked");
    world.db.exec("DELETE FROM night");
    let hint = world.db.value("SELECT hint FROM fanout.check('bed') WHERE item = 'state'");
    assert!(hint.contains("fanout.resume('bed')"), "{hint}");
    world.db.exec("SELECT fanout.resume('bed')");
    assert_in_step(&mut world, &bed);
}

#[test]
fn the_worker_does_not_keep_anybody_from_dropping_the_database() {
    let mut world = World::new("drop_database");
    products(&mut world, 100);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    let database = world.database();
    // Without FORCE, and nobody but the worker is connected.
    world.db = Session::connect("postgres");
    world.db.exec("SET statement_timeout = '20s'");
    world.db.exec(&format!("DROP DATABASE {database}"));
}

#[test]
fn objects_of_another_version_stop_delivery_and_no_writer() {
    let mut world = World::alone("other_version");
    products(&mut world, 50);
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    let version = world.db.value("SELECT extversion FROM pg_extension WHERE extname = 'pg_fanout'");
    let becomes = |world: &mut World, version: &str| {
        world.db.exec(&format!("UPDATE pg_extension SET extversion = '{version}' WHERE extname = 'pg_fanout'"));
    };
    // As after an upgrade of the package, which ends with a restart of the server.
    becomes(&mut world, "0.0.9");
    world.end_worker();
    world.db.exec("UPDATE product SET name = 'meanwhile'; DELETE FROM product WHERE id = 7");
    eventually("status says it", Duration::from_secs(20), || {
        world.status(&sync, "state") == "library of another version"
    });
    let refusal = world.db.refusal(&format!("SELECT fanout.wait('{sync}', '20s')"));
    assert_eq!(refusal.code, "55000", "{refusal}");
    assert!(refusal.message.contains(&format!("the library is of version {version}")), "{refusal}");
    assert!(refusal.message.contains("the extension of version 0.0.9"), "{refusal}");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(differences(&mut world, &sync).len(), 50);
    becomes(&mut world, &version);
    assert_in_step(&mut world, &sync);
}
