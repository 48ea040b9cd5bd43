//! Against a real Redis: `REDIS_URL`, as `stack/env` sets it. Unset: skipped. Set but not answering: failed.

mod common;

use std::collections::BTreeSet;
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
    let mut cursor = None;
    loop {
        let page = target.scan_keys(&template.glob(), cursor, 100).unwrap();
        found.extend(page.keys);
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found, keys);
    target.del(&keys.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
}

#[test]
fn a_new_connection_ends_the_old_one() {
    let Some(mut config) = config() else { return };
    config.request_timeout = Duration::from_millis(300);
    let mut target = RedisTarget::connect(&config).unwrap();
    let first = target.client_id().unwrap();
    let mut admin = admin();
    // Redis accepts the commands but does not get to them: the outcome is unknown.
    let key = unique("late");
    let () = redis::cmd("CLIENT").arg("PAUSE").arg(1200).arg("WRITE").query(&mut admin).unwrap();
    let mut batch = RedisBatch::new();
    batch.push_set(0, &key, b"late", Some(60_000));
    let error = target.send(&batch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.outcome_unknown());
    // INFO and CLIENT are not paused: the next call connects and kills before it sends.
    assert_eq!(target.get(&key).unwrap(), None);
    assert_ne!(target.client_id(), Some(first));
    let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut admin).unwrap();
    assert!(!clients.lines().any(|line| line.starts_with(&format!("id={first} "))), "{clients}");
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!(target.get(&key).unwrap(), None, "the late command was never done");
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
    assert_eq!(target.send(&batch).unwrap_err().kind(), ErrorKind::ConnectionLost);
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
    assert_eq!(second.epoch, 2);
    assert_eq!(target.heartbeat(&first).unwrap(), Heartbeat::Superseded { by: "b 1".into() });
    target.release(&first).unwrap();

    // Evicted or flushed: written again.
    let key = format!("{CONTROL_KEY_PREFIX}{name}");
    assert_eq!(target.del(&[&key]).unwrap(), 1);
    let Heartbeat::Kept(second) = target.heartbeat(&second).unwrap() else { panic!() };
    assert!(target.get(&key).unwrap().is_some());
    target.release(&second).unwrap();
    assert!(target.get(&key).unwrap().is_none());

    let key = format!("{CONTROL_KEY_PREFIX}{name}");
    target.set(&key, b"somebody's", None).unwrap();
    assert_eq!(target.claim(&claim(&name, "a", "1")).unwrap_err().kind(), ErrorKind::Conflict);
    target.del(&[&key]).unwrap();
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
