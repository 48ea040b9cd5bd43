//! Redis that refuses, loses what it held, or answers too late.

use crate::proxied::{Proxies, in_step_again};
use crate::tables::products;
use pg_test::proxy::Fault;
use pg_test::{Keyspace, Setting, World, assert_in_step, differences, eventually, eventually_ok, stack};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What Redis says when it cannot do for now what it can do at other times.
const PASSING: [&str; 8] = [
    "OOM command not allowed when used memory > 'maxmemory'.",
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "MOVED 3999 127.0.0.1:1",
    "NOSCRIPT No matching script. Please use EVAL.",
    "CLUSTERDOWN The cluster is down",
    "BUSY Redis is busy running a script.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
];

#[test]
fn every_refusal_of_a_command_is_noticed_and_passes() {
    let mut world = World::new("redis_refusals");
    let proxies = Proxies::before(&mut world);
    products(&mut world, 100);
    let json = world.cache_table("product", "");
    let hashes = format!("{}:hash:${{id}}", world.tag);
    let hashes = world.cache_table_by("product", &hashes, ", name => 'hashes', format => 'hash', ttl => '1 hour'");
    for sync in [&json, &hashes] {
        assert_in_step(&mut world, sync);
    }
    for refusal in PASSING {
        let mut count = 0;
        let before = proxies.redis.faults();
        proxies.redis.plan(move |request| {
            count += usize::from(request.is_write());
            if request.is_write() && count % 7 == 1 && count < 200 { Fault::Error(refusal) } else { Fault::Pass }
        });
        world
            .db
            .exec("UPDATE product SET price = price + 1; DELETE FROM product WHERE id = (SELECT max(id) FROM product)");
        for sync in [&json, &hashes] {
            in_step_again(&mut world, sync);
            assert_eq!(world.status(sync, "dead_letters"), "0", "{refusal}");
        }
        assert!(proxies.redis.faults() > before + 5, "{refusal}");
    }
}

#[test]
fn an_answer_that_is_lost_is_asked_for_again() {
    let mut world = World::new("redis_replies");
    let proxies = Proxies::before(&mut world);
    products(&mut world, 100);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    let late = Fault::Delay(Duration::from_secs(4));
    for fault in [Fault::LostReply, Fault::HalfReply, Fault::Reset, Fault::Mute, Fault::Hang, late] {
        let mut count = 0;
        let planned = fault.clone();
        proxies.redis.plan(move |request| {
            count += usize::from(request.is_write());
            if request.is_write() && count == 10 { planned.clone() } else { Fault::Pass }
        });
        let before = proxies.redis.faults();
        world.db.exec("UPDATE product SET price = price + 1");
        eventually("the fault happened", Duration::from_secs(30), || proxies.redis.faults() > before);
        // What is late must not overwrite this.
        world.db.exec(
            "UPDATE product SET name = name || '!'; DELETE FROM product WHERE id = (SELECT max(id) FROM product)",
        );
        in_step_again(&mut world, &sync);
        if matches!(fault, Fault::Delay(_)) {
            std::thread::sleep(Duration::from_secs(4));
            assert_in_step(&mut world, &sync);
        }
        proxies.calm();
    }
}

#[test]
fn a_redis_that_restarts_empty_is_filled_again_by_itself() {
    let mut world = World::alone("redis_restart");
    products(&mut world, 300);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    stack::restart("redis");
    eventually("the keys are back", Duration::from_secs(60), || differences(&mut world, &sync).is_empty());
    assert_in_step(&mut world, &sync);
}

/// An emptied Redis is claimed anew; nobody may take that for going on, though the reply to the claim was lost.
#[test]
fn a_reply_to_a_claim_may_be_lost() {
    let mut world = World::new("redis_claim");
    let proxies = Proxies::before(&mut world);
    products(&mut world, 50);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    let mut claims = 0;
    proxies.redis.plan(move |request| {
        claims += usize::from(request.name == "EXEC");
        if request.name == "EXEC" && claims == 1 { Fault::LostReply } else { Fault::Pass }
    });
    let mut redis = Keyspace::open();
    let target = world.status(&sync, "target");
    redis.remove(&format!("pg_fanout:control:{target}"));
    redis.remove(&world.key_prefix("product"));
    eventually("the keys are back", Duration::from_secs(60), || differences(&mut world, &sync).is_empty());
    assert_eq!(proxies.redis.faults(), 1);
    assert_in_step(&mut world, &sync);
}

/// A Redis of the test's own, that writes a snapshot when it is told to.
struct Own {
    port: u16,
    folder: PathBuf,
    process: Child,
}

impl Own {
    fn start(port: u16, folder: PathBuf) -> Self {
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"])
            .arg(&folder)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server");
        let own = Self { port, folder, process };
        eventually("Redis answers", Duration::from_secs(20), || own.ask(&["PING"]));
        own
    }

    fn ask(&self, command: &[&str]) -> bool {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(command).output().expect("redis-cli");
        output.status.success() && !String::from_utf8_lossy(&output.stdout).starts_with("Could not")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_redis_that_restarts_with_an_older_snapshot_is_filled_again_by_itself() {
    let mut world = World::new("redis_snapshot");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
    let folder = std::env::temp_dir().join(&world.tag);
    std::fs::create_dir(&folder).expect("a folder");
    let redis = Own::start(port, folder.clone());
    world.db.exec(&format!("ALTER SERVER cache OPTIONS (SET url 'redis://127.0.0.1:{port}')"));
    products(&mut world, 100);
    let sync = world.cache_table("product", "");
    world.wait(&sync);
    let prefix = world.key_prefix("product");
    let stale = format!(
        "SELECT count(*) FROM product WHERE redis_get('cache', '{prefix}' || id)::jsonb->>'name' IS DISTINCT FROM name"
    );
    assert_eq!(world.db.value(&stale), "0");
    // The last heartbeat before the snapshot is the last one there is.
    assert!(redis.ask(&["SAVE"]));
    world.db.exec("UPDATE product SET name = 'after the snapshot' WHERE id < 50");
    world.wait(&sync);
    assert_eq!(world.db.value(&stale), "0");
    drop(redis);
    let redis = Own::start(port, folder);
    assert_eq!(world.db.value(&stale), "49", "the snapshot is older");
    eventually("what it had acknowledged is there again", Duration::from_secs(60), || {
        world.db.try_rows(&stale).is_ok_and(|rows| rows[0][0].as_deref() == Some("0"))
    });
    std::fs::remove_dir_all(&redis.folder).expect("the folder");
}

/// Else the keys stay for ever, and nobody knows whose they are.
#[test]
fn a_removal_whose_deletions_are_refused_is_tried_again() {
    let mut world = World::new("redis_removal");
    let proxies = Proxies::before(&mut world);
    products(&mut world, 100);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    let mut refused = 0;
    proxies.redis.plan(move |request| {
        refused += usize::from(request.name == "UNLINK");
        if request.name == "UNLINK" && refused <= 40 { Fault::Error(PASSING[1]) } else { Fault::Pass }
    });
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}', drop_target => true)"));
    eventually("the sync is gone", Duration::from_secs(60), || {
        world.db.value("SELECT count(*) FROM fanout.status") == "0"
    });
    assert_eq!(proxies.redis.faults(), 40);
    assert_eq!(Keyspace::open().keys(&world.key_prefix("product")).len(), 0);
}

/// For longer than three signs of life, while another database waits for the silence of its owner.
#[test]
fn a_template_whose_keys_are_removed_slowly_is_not_taken_over() {
    let mut world = World::alone("slow_removal");
    let _stale = Setting::set(&mut world, "fanout.owner_stale", "5s");
    let proxies = Proxies::before(&mut world);
    world.db.exec("CREATE TABLE thing (id int PRIMARY KEY); INSERT INTO thing SELECT generate_series(1, 80000)");
    let sync = world.cache_table("thing", "");
    world.wait(&sync);
    let key = format!("{}${{id}}", world.key_prefix("thing"));
    let mut other = world.another();
    other.exec(&format!(
        "CREATE TABLE thing (id int PRIMARY KEY); INSERT INTO thing VALUES (1), (2);
         SELECT fanout.cache_table('thing', server => 'cache', key => '{key}')"
    ));
    let state = "SELECT state || ': ' || coalesce(last_error, '') FROM fanout.status";
    let is_blocked = |state: &str| state.starts_with("blocked: ") && state.contains("another owner");
    eventually("it is fed by another", Duration::from_secs(30), || is_blocked(&other.value(state)));
    // 40 pages.
    proxies.redis.plan(|request| match request.name.as_str() {
        "SCAN" => Fault::Delay(Duration::from_millis(1200)),
        _ => Fault::Pass,
    });
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}', drop_target => true)"));
    let begun = Instant::now();
    while world.db.value("SELECT count(*) FROM fanout.sync") == "1" {
        // As of before that look: when all is removed it may be taken.
        let said = other.value(state);
        if world.db.value("SELECT count(*) FROM fanout.sync") == "1" {
            assert!(is_blocked(&said), "after {:?}: {said}", begun.elapsed());
        }
        other.exec("SELECT fanout.resume('thing')");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(begun.elapsed() > Duration::from_secs(40), "removed within {:?}", begun.elapsed());
    // What nobody feeds is free.
    eventually_ok("it is taken", Duration::from_secs(40), || {
        other.exec("SELECT fanout.resume('thing')");
        other.try_exec("SELECT fanout.wait('thing', '20s')").map_err(|refusal| refusal.to_string())
    });
    assert_eq!(Keyspace::open().keys(&world.key_prefix("thing")).len(), 2);
}
