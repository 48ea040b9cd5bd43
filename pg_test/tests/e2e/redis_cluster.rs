//! A Redis Cluster of three nodes.

use crate::tables::products;
use pg_test::oracle::{self, Oracle};
use pg_test::{Dice, RedisCluster, World, assert_in_step, differences, eventually};
use std::time::Duration;

/// A world whose server `cache` is the cluster, by the URLs of some of its nodes.
fn world(name: &str, cluster: &RedisCluster, nodes: &[usize]) -> World {
    let mut world = World::new(name);
    let urls: Vec<String> = nodes.iter().map(|&node| cluster.url(node)).collect();
    let urls = urls.join(", ");
    world.db.exec(&format!("ALTER SERVER cache OPTIONS (SET url '{urls}', ADD cluster 'true')"));
    world
}

fn keys(cluster: &RedisCluster, pattern: &str) -> Vec<usize> {
    (0..3).map(|node| cluster.keys(node, pattern).len()).collect()
}

#[test]
fn a_cluster_holds_what_the_tables_hold_on_all_nodes_and_nothing_after_a_drop() {
    let cluster = RedisCluster::start("holds");
    let mut world = world("cluster_holds", &cluster, &[2]);
    products(&mut world, 3000);
    let json = world.cache_table("product", "");
    let hashes = format!("{}:hash:{{${{id}}}}", world.tag);
    let hashes = world.cache_table_by("product", &hashes, ", name => 'hashes', format => 'hash', ttl => '1 hour'");
    for sync in [&json, &hashes] {
        assert_in_step(&mut world, sync);
    }
    let prefix = world.key_prefix("product");
    let spread = keys(&cluster, &format!("{prefix}*"));
    assert!(spread.iter().sum::<usize>() == 3000 && spread.iter().all(|keys| *keys > 800), "{spread:?}");
    world.db.exec(
        "UPDATE product SET price = price + 1 WHERE id % 3 = 0; DELETE FROM product WHERE id % 5 = 0;
         UPDATE product SET id = id + 10000 WHERE id % 7 = 0",
    );
    for sync in [&json, &hashes] {
        assert_in_step(&mut world, sync);
    }
    // What only the listing of all nodes finds.
    for node in 0..3 {
        let extra = (1..).map(|n| format!("{prefix}9{n:06}")).find(|key| cluster.slot(key).1 == node);
        let _: String = cluster.ask(node, &["SET", &extra.expect("a key of each node"), "{}"]);
    }
    world.db.exec(&format!("SELECT fanout.reconcile('{json}')"));
    assert_in_step(&mut world, &json);

    // The functions ask the node that has the key.
    let names = (0..40).map(|n| format!("'{}:f:{n}'", world.tag)).collect::<Vec<_>>().join(", ");
    world.db.exec(&format!("SELECT redis_set('cache', key, key) FROM unnest(ARRAY[{names}]) AS key"));
    let same = format!("SELECT count(*) FROM redis_mget('cache', ARRAY[{names}]) WHERE key = value");
    assert_eq!(world.db.value(&same), "40");
    assert_eq!(world.db.value(&format!("SELECT redis_del('cache', {names}, 'none')")), "40");
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.check() WHERE status <> 'ok'"), "0");
    assert_eq!(
        world.db.value(&format!("SELECT state FROM fanout.explain('{json}', 1) WHERE step = 'comparison'")),
        "same"
    );

    for sync in [&json, &hashes] {
        world.db.exec(&format!("SELECT fanout.drop_sync('{sync}', drop_target => true)"));
    }
    eventually("no key is left", Duration::from_secs(60), || keys(&cluster, "*") == [0, 0, 0]);
}

#[test]
fn slots_move_under_writers() {
    let cluster = RedisCluster::start("moves");
    let mut world = world("cluster_moves", &cluster, &[0, 1, 2]);
    let mut dice = Dice::new();
    oracle::tables(&mut world);
    world.db.exec("INSERT INTO item SELECT i, 99, 0, 'old' FROM generate_series(100001, 103000) AS i");
    let syncs = [
        world.cache_table("item", ""),
        world.cache_table("shared", ", format => 'hash', ttl => '1 hour', jitter => 0"),
    ];
    for sync in &syncs {
        world.wait(sync);
    }
    let mut oracle = Oracle::new(3);
    oracle.start(&world, &mut dice);
    let control = format!("pg_fanout:control:{}", world.status(&syncs[0], "target"));
    for round in 0..30 {
        // That of the control key among them, and those of rows that are there.
        let key =
            if round == 10 { control.clone() } else { format!("{}{}", world.key_prefix("item"), 100_001 + round) };
        let (slot, from) = cluster.slot(&key);
        let to = (from + 1 + round % 2) % 3;
        cluster.open_slot(slot, from, to);
        cluster.move_key(&key, from, to);
        world.db.exec(&format!("UPDATE item SET n = n + 1 WHERE id = {}", 100_001 + round));
        std::thread::sleep(Duration::from_millis(30));
        cluster.close_slot(slot, from, to);
    }
    let commits = oracle.stop();
    oracle.check(&mut world);
    assert!(commits > 50, "{commits}");
    for sync in &syncs {
        assert_in_step(&mut world, sync);
        assert_eq!(world.status(sync, "dead_letters"), "0");
    }
}

#[test]
fn a_reconcile_waits_for_a_slot_that_is_being_moved() {
    let cluster = RedisCluster::start("waits");
    let mut world = world("cluster_waits", &cluster, &[0, 1]);
    products(&mut world, 100);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    let extra = format!("{}777", world.key_prefix("product"));
    let (slot, from) = cluster.slot(&extra);
    let to = (from + 1) % 3;
    let _: String = cluster.ask(from, &["SET", &extra, "{\"id\": 777}"]);
    cluster.open_slot(slot, from, to);
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    eventually("it says why", Duration::from_secs(30), || world.status(&sync, "last_error").contains("being moved"));
    // What changes is delivered all the same, and where the key is.
    cluster.move_key(&extra, from, to);
    world.db.exec("UPDATE product SET price = 3");
    let prefix = world.key_prefix("product");
    let there =
        format!("SELECT count(*) FROM product WHERE redis_get('cache', '{prefix}' || id)::jsonb->>'price' = '3.00'");
    eventually("the changes are there", Duration::from_secs(30), || world.db.value(&there) == "100");
    assert_eq!(world.db.value(&format!("SELECT redis_get('cache', '{extra}') IS NOT NULL")), "t");
    cluster.close_slot(slot, from, to);
    assert_in_step(&mut world, &sync);
}

#[test]
fn a_node_that_restarts_empty_is_filled_again() {
    let mut cluster = RedisCluster::start("restarts");
    let mut world = world("cluster_restarts", &cluster, &[0, 1, 2]);
    products(&mut world, 1000);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    let control = format!("pg_fanout:control:{}", world.status(&sync, "target"));
    let (_, owner) = cluster.slot(&control);
    // Not the one that has the control key.
    let lost = (owner + 1) % 3;
    cluster.kill(lost);
    world.db.exec("UPDATE product SET price = 5 WHERE id < 100");
    cluster.start_node(lost);
    assert_eq!(cluster.keys(lost, "*").len(), 0);
    cluster.wait();
    eventually("the keys are back", Duration::from_secs(60), || differences(&mut world, &sync).is_empty());
    assert_in_step(&mut world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
}

#[test]
fn the_option_is_needed_for_a_cluster_and_for_nothing_else() {
    let cluster = RedisCluster::start("option");
    let mut world = world("cluster_option", &cluster, &[0]);
    products(&mut world, 10);
    let sync = world.cache_table("product", "");
    assert_in_step(&mut world, &sync);
    world.db.exec("ALTER SERVER cache OPTIONS (DROP cluster)");
    let refusal = world.db.refusal("SELECT redis_get('cache', 'x')");
    assert!(refusal.code == "08001" && refusal.to_string().contains("node of a Redis Cluster"), "{refusal}");
    world.db.exec("UPDATE product SET price = 1");
    eventually("it is blocked and says why", Duration::from_secs(30), || {
        world.status(&sync, "state") == "blocked" && world.status(&sync, "last_error").contains("option \"cluster\"")
    });
    world.db.exec("ALTER SERVER cache OPTIONS (ADD cluster 'on')");
    eventually("it goes on", Duration::from_secs(60), || differences(&mut world, &sync).is_empty());
    assert_in_step(&mut world, &sync);

    let alone = std::env::var("REDIS_URL").expect("REDIS_URL is set");
    world.db.exec(&format!(
        "CREATE SERVER alone FOREIGN DATA WRAPPER fanout_redis OPTIONS (url '{alone}', cluster 'true')"
    ));
    let refusal = world.db.refusal("SELECT redis_get('alone', 'x')");
    assert!(refusal.code == "08001" && refusal.to_string().contains("not part of a Redis Cluster"), "{refusal}");
    for (options, word) in [
        ("url 'redis://a,redis://b'", "cluster"),
        ("url 'redis://a/1', cluster 'true'", "database 0"),
        ("url 'redis://a,', cluster 'true'", "not valid"),
        ("url 'redis://a,rediss://b', cluster 'true'", "scheme"),
        ("url 'redis://a', cluster 'perhaps'", "true or false"),
    ] {
        let refusal =
            world.db.refusal(&format!("CREATE SERVER no FOREIGN DATA WRAPPER fanout_redis OPTIONS ({options})"));
        assert!(refusal.code == "HV024" && refusal.to_string().contains(word), "{options}: {refusal}");
    }
    let refusal = world
        .db
        .refusal("CREATE SERVER no FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'http://a', cluster 'true')");
    assert_eq!(refusal.code, "HV00D");
}
