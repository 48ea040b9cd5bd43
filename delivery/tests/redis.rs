//! Against a real Redis: `REDIS_URL`, as `stack/env` sets it. Unset: skipped. Set but not answering: failed.

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{claim, server, unique};
use delivery::ErrorKind;
use delivery::config::RedisConfig;
use delivery::keyspace::{RedisBatch, RedisOutcome, RedisTarget};
use delivery::ownership::{CONTROL_KEY_PREFIX, ClaimOutcome, Heartbeat};

fn config() -> Option<RedisConfig> {
    Some(RedisConfig::new(&server("REDIS_URL")?).unwrap())
}

/// A connection beside the crate's own.
fn admin() -> redis::Connection {
    redis::Client::open(std::env::var("REDIS_URL").unwrap()).unwrap().get_connection().unwrap()
}

fn done(outcomes: &[(u32, RedisOutcome)]) -> bool {
    outcomes.iter().all(|(_, outcome)| *outcome == RedisOutcome::Done)
}

#[test]
fn values_hashes_and_deletions() {
    let Some(config) = config() else { return };
    let mut target = RedisTarget::connect(&config).unwrap();
    assert!(target.probe().unwrap().is_some());
    let key = unique("key");
    let (value, hash, gone) = (format!("{key}:v"), format!("{key}:h"), format!("{key}:g"));
    target.set(&gone, b"x", None).unwrap();
    let mut batch = RedisBatch::new();
    batch.push_set(1, &value, b"a\r\n\0b", None);
    batch.push_hash(2, &hash, &[("f", "1"), ("é", "")], Some(60_000));
    batch.push_delete(3, &gone);
    batch.push_set(4, &hash, b"x", Some(30_000));
    batch.push_hash(5, &hash, &[("g", "2")], None);
    let outcomes = target.send(&batch).unwrap();
    assert_eq!(outcomes.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(done(&outcomes));
    assert_eq!(target.get(&value).unwrap().as_deref(), Some(&b"a\r\n\0b"[..]));
    assert_eq!(target.ttl_ms(&value).unwrap(), Some(None));
    assert_eq!(target.ttl_ms(&hash).unwrap(), Some(None));
    assert_eq!(target.ttl_ms(&gone).unwrap(), None);
    let fields: Vec<String> = redis::cmd("HGETALL").arg(&hash).query(&mut admin()).unwrap();
    assert_eq!(fields, ["g", "2"]);
    assert_eq!(target.mget(&[&value, &gone]).unwrap(), [Some(b"a\r\n\0b".to_vec()), None]);

    let mut batch = RedisBatch::reuse(batch);
    batch.push_hash(1, &hash, &[("f", "1")], Some(60_000));
    assert!(done(&target.send(&batch).unwrap()));
    let ttl = target.ttl_ms(&hash).unwrap().unwrap().unwrap();
    assert!((50_000..=60_000).contains(&ttl));
    // A plain read of what is no text is an error of that one command.
    assert_eq!(target.get(&hash).unwrap_err().kind(), ErrorKind::BadRequest);
    assert_eq!(target.del(&[&value, &hash, &gone]).unwrap(), 2);
}

#[test]
fn all_keys_are_found() {
    let Some(config) = config() else { return };
    let mut target = RedisTarget::connect(&config).unwrap();
    let prefix = unique("scan*");
    let keys: BTreeSet<String> = (0..500).map(|n| format!("{prefix}:{n}")).collect();
    let mut batch = RedisBatch::new();
    for key in &keys {
        batch.push_set(0, key, b"", Some(60_000));
    }
    assert!(done(&target.send(&batch).unwrap()));
    let template = delivery::template::KeyTemplate::parse(&format!("{prefix}:${{id}}")).unwrap();
    let mut found = BTreeSet::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = target.scan_keys(&template.glob(), cursor.as_deref(), 100).unwrap();
        found.extend(page.keys);
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found, keys);
    target.del(&keys.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
}

/// A network that can hold back what is sent through it and deliver it later, whether or not the sender is still there.
struct SlowNetwork {
    port: u16,
    holding: Arc<AtomicBool>,
}

impl SlowNetwork {
    fn before(server: String) -> SlowNetwork {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let network =
            SlowNetwork { port: listener.local_addr().unwrap().port(), holding: Arc::new(AtomicBool::new(false)) };
        let holding = network.holding.clone();
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                let (mut from_client, mut server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
                let (mut to_client, mut from_server) = (from_client.try_clone().unwrap(), server.try_clone().unwrap());
                let holding = holding.clone();
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = from_client.read(&mut buffer) {
                        // The first connection only: the others take another way.
                        while number == 0 && holding.load(Ordering::SeqCst) {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        let _ = server.write_all(&buffer[..read]);
                    }
                    // The server does not learn that the client is gone.
                    std::thread::sleep(Duration::from_secs(5));
                });
                std::thread::spawn(move || std::io::copy(&mut from_server, &mut to_client));
            }
        });
        network
    }
}

#[test]
fn a_new_connection_ends_the_old_one() {
    let Some(config) = config() else { return };
    let server = format!("{}:{}", config.urls()[0].host_str().unwrap(), config.urls()[0].port().unwrap_or(6379));
    let network = SlowNetwork::before(server);
    let mut config = RedisConfig::new(&format!("redis://127.0.0.1:{}", network.port)).unwrap();
    config.request_timeout = Duration::from_millis(300);
    let mut target = RedisTarget::connect(&config).unwrap();
    let key = unique("late");
    let set = |target: &mut RedisTarget, value: &[u8]| {
        let mut batch = RedisBatch::new();
        batch.push_set(0, &key, value, Some(60_000));
        target.send(&batch)
    };
    assert!(done(&set(&mut target, b"first").unwrap()));
    network.holding.store(true, Ordering::SeqCst);
    let error = set(&mut target, b"late").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.outcome_unknown());
    assert!(done(&set(&mut target, b"second").unwrap()));
    network.holding.store(false, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(target.get(&key).unwrap().as_deref(), Some(&b"second"[..]), "what was late came too late");
    target.del(&[&key]).unwrap();
}

#[test]
fn a_killed_connection_is_made_anew() {
    let Some(config) = config() else { return };
    let mut target = RedisTarget::connect(&config).unwrap();
    let mut batch = RedisBatch::new();
    batch.push_delete(0, &unique("nothing"));
    let id = target.client_id().unwrap();
    let killed: i64 = redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).query(&mut admin()).unwrap();
    assert_eq!(killed, 1);
    // Cut: the next connection is made at once.
    assert_eq!(target.send(&batch).unwrap_err().kind(), ErrorKind::Cut);
    assert!(done(&target.send(&batch).unwrap()));
}

#[test]
fn rights_and_refusals() {
    let Some(config) = config() else { return };
    let mut admin = admin();
    let user = unique("user");
    let prefix = unique("acl");
    let () = redis::cmd("ACL")
        .arg("SETUSER")
        .arg(&user)
        .arg("on")
        .arg(">secret-of-test")
        .arg(format!("~{prefix}:*"))
        .arg("+set")
        .arg("+unlink")
        .arg("+ping")
        .query(&mut admin)
        .unwrap();
    let mut narrow = config.clone();
    narrow.username = Some(user.clone());
    narrow.password = Some("wrong".into());
    let error = RedisTarget::connect(&narrow).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    narrow.password = Some("secret-of-test".into());
    let mut target = RedisTarget::connect(&narrow).unwrap();
    assert_eq!(target.client_id(), None, "neither INFO nor CLIENT is allowed");
    let mut batch = RedisBatch::new();
    batch.push_set(0, &format!("{prefix}:a"), b"", Some(1000));
    assert!(done(&target.send(&batch).unwrap()));
    batch.push_set(1, "elsewhere", b"", Some(1000));
    let error = target.send(&batch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(!format!("{error:?} {target:?}").contains("secret-of-test"));
    let () = redis::cmd("ACL").arg("DELUSER").arg(&user).query(&mut admin).unwrap();
}

#[test]
fn one_owner_at_a_time() {
    let Some(config) = config() else { return };
    let name = format!("{}:${{id}}", unique("target"));
    let mut target = RedisTarget::connect(&config).unwrap();
    let owned = |outcome: ClaimOutcome| match outcome {
        ClaimOutcome::Owned(ownership) => ownership,
        other => panic!("{other:?}"),
    };
    let first = owned(target.claim(&claim(&name, "a", "1")).unwrap());
    let Heartbeat::Kept(first) = target.heartbeat(&first).unwrap() else { panic!() };
    let mut other = claim(&name, "b", "1");
    let ClaimOutcome::OwnedBy { identity, sighting, .. } = target.claim(&other).unwrap() else { panic!() };
    assert_eq!(identity, "a");
    other.sighting = Some(sighting);
    std::thread::sleep(Duration::from_millis(320));
    let second = owned(target.claim(&other).unwrap());
    assert_eq!(second.epoch, first.epoch + 1);
    assert_eq!(target.heartbeat(&first).unwrap(), Heartbeat::Superseded { by: "b 1".into() });
    target.release(&first).unwrap();

    // Evicted or flushed: superseded by nobody, and a new claim begins with another epoch, which tells what happened.
    let key = format!("{CONTROL_KEY_PREFIX}{name}");
    assert_eq!(target.del(&[&key]).unwrap(), 1);
    assert_eq!(target.heartbeat(&second).unwrap(), Heartbeat::Superseded { by: String::new() });
    assert!(target.get(&key).unwrap().is_none());
    let again = owned(target.claim(&other).unwrap());
    assert_ne!(again.epoch, second.epoch + 1);
    target.release(&again).unwrap();
    assert!(target.get(&key).unwrap().is_none());

    let key = format!("{CONTROL_KEY_PREFIX}{name}");
    target.set(&key, b"somebody's", None).unwrap();
    assert_eq!(target.claim(&claim(&name, "a", "1")).unwrap_err().kind(), ErrorKind::Conflict);
    target.del(&[&key]).unwrap();
}

#[test]
fn what_is_given_up_while_a_sign_of_life_is_given_is_gone() {
    let Some(config) = config() else { return };
    let name = unique("given_up");
    let [mut target, mut beating] = [(); 2].map(|()| RedisTarget::connect(&config).unwrap());
    for _ in 0..200 {
        let ClaimOutcome::Owned(ownership) = target.claim(&claim(&name, "a", "1")).unwrap() else { panic!() };
        std::thread::scope(|scope| {
            scope.spawn(|| beating.heartbeats(std::slice::from_ref(&ownership)).unwrap());
            target.release(&ownership).unwrap();
        });
        assert!(target.get(&format!("{CONTROL_KEY_PREFIX}{name}")).unwrap().is_none());
    }
}

#[test]
fn signs_of_life_of_many_targets_are_given_together() {
    let Some(config) = config() else { return };
    let name = unique("many");
    let mut target = RedisTarget::connect(&config).unwrap();
    let mut owned: Vec<_> = (0..1200)
        .map(|n| match target.claim(&claim(&format!("{name} {n}"), "a", "1")).unwrap() {
            ClaimOutcome::Owned(ownership) => ownership,
            other => panic!("{other:?}"),
        })
        .collect();
    let key = |n: usize| format!("{CONTROL_KEY_PREFIX}{name} {n}");
    // One was taken over, one is gone, one is another's text.
    let mut forced = claim(&format!("{name} 7"), "b", "1");
    forced.force = true;
    assert!(matches!(target.claim(&forced).unwrap(), ClaimOutcome::Owned(_)));
    target.release(&owned[9]).unwrap();
    target.set(&key(11), b"somebody's", None).unwrap();
    for _ in 0..2 {
        let before = [0, 8, 1199].map(|n| target.get(&key(n)).unwrap().unwrap());
        std::thread::sleep(Duration::from_millis(3));
        let outcomes = target.heartbeats(&owned).unwrap();
        assert_eq!(outcomes.len(), owned.len());
        for (n, outcome) in outcomes.into_iter().enumerate() {
            match (n, outcome) {
                (7, outcome) => assert_eq!(outcome.unwrap(), Heartbeat::Superseded { by: "b 1".into() }),
                (9, outcome) => assert_eq!(outcome.unwrap(), Heartbeat::Superseded { by: String::new() }),
                (11, outcome) => assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Conflict),
                (_, Ok(Heartbeat::Kept(kept))) => owned[n] = kept,
                (_, other) => panic!("{n}: {other:?}"),
            }
        }
        assert!(before.iter().zip([0, 8, 1199]).all(|(before, n)| *before != target.get(&key(n)).unwrap().unwrap()));
    }
    assert_eq!(target.get(&key(11)).unwrap().unwrap(), b"somebody's");
    target.del(&(0..1200).map(key).collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
}

#[test]
fn of_many_that_claim_at_once_one_wins() {
    let Some(config) = config() else { return };
    let name = unique("race");
    let threads: Vec<_> = (0..6)
        .map(|n| {
            let mut target = RedisTarget::connect(&config).unwrap();
            let claim = claim(&name, &format!("identity {n}"), "1");
            std::thread::spawn(move || matches!(target.claim(&claim).unwrap(), ClaimOutcome::Owned(_)))
        })
        .collect();
    let winners = threads.into_iter().map(|thread| thread.join().unwrap()).filter(|won| *won).count();
    assert_eq!(winners, 1);
    RedisTarget::connect(&config).unwrap().del(&[&format!("{CONTROL_KEY_PREFIX}{name}")]).unwrap();
}
