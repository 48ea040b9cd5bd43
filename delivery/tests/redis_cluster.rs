//! Against a real Redis Cluster of three nodes, started here where `REDIS_URL` says that there are servers. Unset: skipped.

mod common;
#[path = "common/redis_cluster.rs"]
#[allow(dead_code)]
mod redis_cluster;

use std::collections::BTreeSet;

use common::{claim, server, unique};
use delivery::ErrorKind;
use delivery::config::RedisConfig;
use delivery::keyspace::{RedisBatch, RedisOutcome, RedisTarget};
use delivery::ownership::{CONTROL_KEY_PREFIX, Claim, ClaimOutcome, Heartbeat, Ownership};
use redis_cluster::RedisCluster;

fn cluster(name: &str) -> Option<(RedisCluster, RedisTarget)> {
    server("REDIS_URL")?;
    let cluster = RedisCluster::start(&unique(name));
    // One node tells of the others.
    let target = RedisTarget::connect(&RedisConfig::cluster(&[cluster.url(1)]).unwrap()).unwrap();
    Some((cluster, target))
}

fn all_done(target: &mut RedisTarget, batch: &RedisBatch) {
    let outcomes = target.send(batch).unwrap();
    assert_eq!(outcomes.len(), batch.len());
    for (at, (slot, outcome)) in outcomes.into_iter().enumerate() {
        assert_eq!((slot as usize, outcome), (at, RedisOutcome::Done));
    }
}

#[test]
fn each_command_reaches_the_node_that_has_the_key() {
    let Some((cluster, mut target)) = cluster("commands") else { return };
    let keys: Vec<String> = (0..300).map(|n| format!("k:{n}")).collect();
    let mut batch = RedisBatch::new();
    for (slot, key) in keys.iter().enumerate() {
        match slot % 3 {
            0 => batch.push_set(slot as u32, key, slot.to_string().as_bytes(), Some(60_000)),
            1 => batch.push_hash(slot as u32, key, &[("n", &slot.to_string())], None),
            _ => batch.push_delete(slot as u32, key),
        }
    }
    all_done(&mut target, &batch);
    assert!((0..3).all(|node| cluster.keys(node, "k:*").len() > 20), "keys on all nodes");
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let hashes = target.hashes(&names).unwrap();
    let values = target.mget(&names).unwrap();
    for (n, (value, hash)) in values.iter().zip(&hashes).enumerate() {
        let text = n.to_string();
        assert_eq!(value.as_deref(), (n % 3 == 0).then_some(text.as_bytes()));
        let fields = hash.clone().unwrap_or_default();
        assert_eq!(fields, if n % 3 == 1 { vec![("n".to_owned(), text)] } else { Vec::new() });
    }
    target.set("lone", b"1", None).unwrap();
    assert_eq!(target.get("lone").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(target.ttl_ms("lone").unwrap(), Some(None));
    assert_eq!(target.get(names[1]).unwrap_err().kind(), ErrorKind::BadRequest);
    assert_eq!(target.info("memory", "maxmemory_policy").unwrap(), ["noeviction"; 3]);
    assert_eq!(target.del(&names).unwrap(), 200);
    assert_eq!((0..3).map(|node| cluster.keys(node, "k:*").len()).sum::<usize>(), 0);
}

#[test]
fn the_option_has_to_fit_the_server() {
    let Some((cluster, _)) = cluster("option") else { return };
    let error = RedisTarget::connect(&RedisConfig::new(&cluster.url(0)).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TlsOrConfig);
    assert!(error.message().contains("is a node of a Redis Cluster"), "{error}");
    let alone = std::env::var("REDIS_URL").unwrap();
    let error = RedisTarget::connect(&RedisConfig::cluster(&[alone]).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TlsOrConfig);
    assert!(error.message().contains("is not part of a Redis Cluster"), "{error}");
}

fn owned(target: &mut RedisTarget, wish: &Claim) -> Ownership {
    match target.claim(wish).unwrap() {
        ClaimOutcome::Owned(ownership) => ownership,
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_of_a_slot_that_moves_are_written_where_they_are() {
    let Some((cluster, mut target)) = cluster("moves") else { return };
    let wish = claim("t:{moving}", "a", "1");
    let control = format!("{CONTROL_KEY_PREFIX}{}", wish.target);
    let (slot, from) = cluster.slot("{moving}");
    let to = (from + 1) % 3;
    let there = |node: usize| cluster.keys(node, "*{moving}*").into_iter().collect::<BTreeSet<_>>();
    let ownership = owned(&mut target, &wish);
    let mut batch = RedisBatch::new();
    for (slot, key) in ["stays:{moving}", "goes:{moving}", "ends:{moving}", "other"].iter().enumerate() {
        batch.push_set(slot as u32, key, b"1", None);
    }
    all_done(&mut target, &batch);
    cluster.open_slot(slot, from, to);
    for key in ["goes:{moving}", "ends:{moving}", &control] {
        cluster.move_key(key, from, to);
    }
    let mut batch = RedisBatch::reuse(batch);
    batch.push_set(0, "stays:{moving}", b"2", None);
    batch.push_set(1, "goes:{moving}", b"2", None);
    batch.push_hash(2, "new:{moving}", &[("f", "2")], Some(60_000));
    batch.push_delete(3, "ends:{moving}");
    batch.push_set(4, "other", b"2", None);
    all_done(&mut target, &batch);
    assert_eq!(there(from), ["stays:{moving}".to_owned()].into());
    assert_eq!(there(to), ["goes:{moving}".to_owned(), "new:{moving}".to_owned(), control.clone()].into());
    assert_eq!(target.mget(&["goes:{moving}", "stays:{moving}"]).unwrap(), [Some(b"2".to_vec()), Some(b"2".to_vec())]);
    // The control key has gone over, too.
    let Heartbeat::Kept(ownership) = target.heartbeat(&ownership).unwrap() else { panic!("kept") };
    let Ok(Heartbeat::Kept(ownership)) = target.heartbeats(&[ownership]).unwrap().remove(0) else { panic!("kept") };
    assert_eq!(owned(&mut target, &wish).epoch, ownership.epoch + 1);
    // And is nobody's reason to list keys that may be on either side.
    let error = target.scan_keys("*", None, 100).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    cluster.close_slot(slot, from, to);
    let mut batch = RedisBatch::reuse(batch);
    batch.push_set(0, "stays:{moving}", b"3", None);
    batch.push_hash(1, "new:{moving}", &[("f", "3")], None);
    all_done(&mut target, &batch);
    assert_eq!(target.get("stays:{moving}").unwrap().as_deref(), Some(&b"3"[..]));
    assert!(there(from).is_empty() && there(to).len() == 4);
}

#[test]
fn a_listing_misses_no_key_that_moved_meanwhile() {
    let Some((cluster, mut target)) = cluster("listing") else { return };
    let keys: BTreeSet<String> = (0..600).map(|n| format!("k:{n}")).collect();
    let mut batch = RedisBatch::new();
    for (slot, key) in keys.iter().enumerate() {
        batch.push_set(slot as u32, key, b"", None);
    }
    all_done(&mut target, &batch);
    // Whichever is listed first, keys go there from each of the others.
    for to in 0..3 {
        let mut found = BTreeSet::new();
        let (mut cursor, mut pages) = (None, 0);
        loop {
            let page = target.scan_keys("k:*", cursor.as_deref(), 50).unwrap();
            found.extend(page.keys);
            pages += 1;
            if pages == 8 {
                for from in (0..3).filter(|from| *from != to) {
                    let key = cluster.keys(from, "k:*").into_iter().find(|key| !found.contains(key));
                    if let Some(key) = key {
                        let (slot, _) = cluster.slot(&key);
                        cluster.open_slot(slot, from, to);
                        cluster.close_slot(slot, from, to);
                    }
                }
                cluster.wait();
            }
            cursor = page.cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(keys.difference(&found).collect::<Vec<_>>(), Vec::<&String>::new());
    }
}

#[test]
fn a_node_that_lost_what_it_held_is_noticed_by_the_key_on_another() {
    let Some((mut cluster, mut target)) = cluster("lost") else { return };
    let wish = claim("t:{control}", "a", "1");
    let first = owned(&mut target, &wish);
    let Heartbeat::Kept(kept) = target.heartbeat(&first).unwrap() else { panic!("kept") };
    let (_, owner) = cluster.slot("{control}");
    let lost = (owner + 1) % 3;
    cluster.kill(lost);
    cluster.start_node(lost);
    cluster.wait();
    // If it is this that finds that the connection has ended, it fails; the next connection leads to another run.
    let beat = target.heartbeat(&kept).or_else(|_| target.heartbeat(&kept)).unwrap();
    assert_eq!(beat, Heartbeat::Superseded { by: String::new() });
    let second = owned(&mut target, &wish);
    assert!(second.epoch > kept.epoch + 1, "no going on: {} {}", kept.epoch, second.epoch);
    // And where nobody noticed before the claim, as after a restart of ours.
    cluster.kill(lost);
    cluster.start_node(lost);
    cluster.wait();
    let mut target = RedisTarget::connect(&RedisConfig::cluster(&[cluster.url(owner)]).unwrap()).unwrap();
    assert!(owned(&mut target, &wish).epoch > second.epoch + 1);
}
