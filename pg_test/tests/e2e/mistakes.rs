//! Mistakes that show only later, or elsewhere: what is said of them, and that nothing is lost.

use crate::tables::products;
use pg_test::{Engine, World, assert_in_step, differences, eventually, on_each_engine};
use std::time::Duration;

on_each_engine!(
    an_index_of_somebody_else_is_left_alone,
    a_mapping_that_conflicts_with_the_data_is_told_row_by_row,
    a_key_column_that_is_dropped_blocks_and_says_so,
    a_document_over_the_limit_of_the_target_is_a_dead_letter,
    a_row_of_50_megabytes_arrives_beside_small_ones,
    hundreds_of_syncs_in_a_database,
    a_target_that_refuses_everything_stops_the_sync,
);

/// Waits until the status of a sync says all of that.
fn says(world: &mut World, sync: &str, states: &[&str], words: &str) {
    eventually(&format!("\"{sync}\" says \"{words}\""), Duration::from_secs(40), || {
        let (state, error) = (world.status(sync, "state"), world.status(sync, "last_error"));
        states.contains(&state.as_str()) && error.to_lowercase().contains(&words.to_lowercase())
    });
}

#[test]
fn servers_that_are_not_what_they_seem_are_told_and_tried_again() {
    let mut world = World::new("wrong_servers");
    products(&mut world, 3);
    let redis = std::env::var("REDIS_URL").expect("REDIS_URL").replace("redis://", "http://");
    let engine = std::env::var("OPENSEARCH_URL").expect("OPENSEARCH_URL").replace("http://", "redis://");
    world.db.exec(&format!(
        "CREATE SERVER nobody FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'http://127.0.0.1:1', connect_timeout '1s');
         CREATE SERVER is_redis FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url '{redis}', request_timeout '2s');
         CREATE SERVER is_engine FOREIGN DATA WRAPPER fanout_redis OPTIONS (url '{engine}', request_timeout '2s');
         CREATE SERVER no_name FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'http://no-such-host.invalid:9200')"
    ));
    let (index, prefix) = (world.index_name("product"), world.key_prefix("product"));
    for server in ["nobody", "is_redis", "no_name"] {
        world.db.exec(&format!(
            "SELECT fanout.index_table('product', server => '{server}', name => '{server}', index => '{index}_{server}')"
        ));
    }
    world.db.exec(&format!(
        "SELECT fanout.cache_table('product', server => 'is_engine', name => 'is_engine', key => '{prefix}${{id}}')"
    ));
    for sync in ["nobody", "is_redis", "no_name", "is_engine"] {
        eventually(&format!("{sync} is said not to work"), Duration::from_secs(40), || {
            let state = world.status(sync, "state");
            ["retrying", "blocked"].contains(&state.as_str()) && world.status(sync, "last_error") != "NULL"
        });
    }
    says(&mut world, "nobody", &["retrying"], "connect");
    // Writers notice nothing, and what they write arrives when the server is put right.
    world.db.exec("UPDATE product SET price = 5");
    let url = std::env::var("OPENSEARCH_URL").expect("OPENSEARCH_URL");
    world.db.exec(&format!("ALTER SERVER nobody OPTIONS (SET url '{url}')"));
    world.wait("nobody");
    assert_eq!(Engine::opensearch().documents(&format!("{index}_nobody")).len(), 3);
}

fn an_index_of_somebody_else_is_left_alone(world: &mut World, engine: &Engine) {
    products(world, 3);
    let index = world.index_name("product");
    engine.ask("PUT", &format!("/{index}/_doc/1?refresh=true"), Some(serde_json::json!({"theirs": true})));
    let sync = world.index_table("product", engine, "");
    says(world, &sync, &["blocked"], &index);
    engine.refresh(&index);
    let documents = engine.documents(&index);
    assert_eq!(documents.len(), 1);
    assert_eq!(documents[0].source["theirs"], true);
}

fn a_mapping_that_conflicts_with_the_data_is_told_row_by_row(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE part (id int PRIMARY KEY, code text); INSERT INTO part VALUES (1, '17'), (2, 'x'), (3, '19')",
    );
    let sync = world.index_table("part", engine, r#", mapping => '{"code": {"type": "integer"}}'"#);
    world.wait(&sync);
    let letters = world.db.rows("SELECT id, status, reason FROM fanout.dead_letters");
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0][0].as_deref(), Some("2"));
    assert_eq!(engine.documents(&world.index_name("part")).len(), 2);
    // A mapping that the engine itself refuses blocks the sync, with the engine's words.
    world.db.exec("CREATE TABLE other (id int PRIMARY KEY)");
    let other = world.index_table("other", engine, r#", mapping => '{"id": {"type": "no_such_type"}}'"#);
    says(world, &other, &["blocked", "retrying"], "no_such_type");
}

fn a_target_that_refuses_everything_stops_the_sync(world: &mut World, engine: &Engine) {
    world.db.exec("CREATE TABLE part (id int PRIMARY KEY, code text); INSERT INTO part SELECT i, 'x' FROM generate_series(1, 20000) AS i");
    let sync = world.index_table("part", engine, r#", mapping => '{"code": {"type": "integer"}}'"#);
    says(world, &sync, &["blocked"], "documents, and taken none");
    let letters: u32 = world.db.value("SELECT count(*) FROM fanout.dead_letters").parse().expect("a number");
    assert!((1000..20_000).contains(&letters), "{letters}");
    world.db.exec(&format!(r#"SELECT fanout.alter_sync('{sync}', mapping => '{{"code": {{"type": "keyword"}}}}')"#));
    eventually("the sync goes on", Duration::from_secs(60), || world.status(&sync, "state") == "live");
    assert_in_step(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
}

fn a_key_column_that_is_dropped_blocks_and_says_so(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE part (id int PRIMARY KEY, code text UNIQUE NOT NULL); INSERT INTO part VALUES (1, 'a'), (2, 'b')",
    );
    let sync = world.index_table("part", engine, "");
    assert_in_step(world, &sync);
    world.db.exec("ALTER TABLE part DROP COLUMN id");
    world.db.exec("INSERT INTO part VALUES ('c'); DELETE FROM part WHERE code = 'a'");
    says(world, &sync, &["blocked"], "column \"id\"");
    engine.refresh(&world.index_name("part"));
    assert_eq!(engine.documents(&world.index_name("part")).len(), 2, "nothing was deleted for want of a key");
    // Given back, the sync goes on.
    world.db.exec("ALTER TABLE part ADD COLUMN id serial PRIMARY KEY");
    eventually("the sync goes on", Duration::from_secs(30), || world.status(&sync, "state") == "live");
    assert_in_step(world, &sync);
}

fn a_document_over_the_limit_of_the_target_is_a_dead_letter(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE blob (id int PRIMARY KEY, body text);
         INSERT INTO blob SELECT i, CASE WHEN i = 3 THEN repeat('x', 110 * 1024 * 1024) ELSE 'small' END FROM generate_series(1, 5) AS i",
    );
    let sync = world.index_table(
        "blob",
        engine,
        r#", mapping => '{"body": {"type": "keyword", "index": false, "doc_values": false}}'"#,
    );
    world.wait(&sync);
    assert_eq!(world.db.value("SELECT string_agg(id, ',') FROM fanout.dead_letters"), "3");
    assert_eq!(engine.documents(&world.index_name("blob")).len(), 4);
    world.db.exec("UPDATE blob SET body = 'small enough' WHERE id = 3");
    assert_in_step(world, &sync);
}

/// An engine takes it or says why not: by default, a tenth of its heap must hold several times the document.
fn a_row_of_50_megabytes_arrives_beside_small_ones(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE blob (id int PRIMARY KEY, body text, more text);
         INSERT INTO blob SELECT i, 'small', 'small' FROM generate_series(1, 60) AS i;
         UPDATE blob SET body = repeat('word ', 5000000), more = repeat('more ', 5000000) WHERE id = 30",
    );
    let index = world.index_table("blob", engine, "");
    let cache = world.cache_table("blob", "");
    let hashes =
        world.cache_table_by("blob", &format!("{}:hash:${{id}}", world.tag), ", name => 'hashes', format => 'hash'");
    for change in ["SELECT 1", "UPDATE blob SET more = more || 'x'", "DELETE FROM blob WHERE id < 20"] {
        world.db.exec(change);
        for sync in [&cache, &hashes] {
            assert_in_step(world, sync);
            assert_eq!(world.status(sync, "dead_letters"), "0", "{change}");
        }
        world.wait(&index);
        let missing = differences(world, &index);
        let refused = world.db.rows("SELECT id, reason FROM fanout.dead_letters");
        assert_eq!(missing.len(), refused.len(), "{change}: {} documents are missing", missing.len());
        let reason = |row: &Vec<Option<String>>| row[1].clone().unwrap_or_default();
        assert!(
            refused.iter().all(|row| row[0].as_deref() == Some("30") && reason(row).contains("_operation_bytes=")),
            "{refused:?}"
        );
    }
    // All of it one string: more than some engines read as one.
    world.db.exec("UPDATE blob SET body = repeat('word ', 10500000), more = NULL WHERE id = 30");
    world.wait(&index);
    let refused = world.db.column("SELECT id FROM fanout.dead_letters");
    assert_eq!(differences(world, &index).len(), refused.len(), "{refused:?}");
    assert_in_step(world, &cache);
    world.db.exec("UPDATE blob SET body = 'small enough' WHERE id = 30");
    for sync in [&index, &cache, &hashes] {
        assert_in_step(world, sync);
    }
}

fn hundreds_of_syncs_in_a_database(world: &mut World, engine: &Engine) {
    let (index, server) = (world.index_name("many"), engine.server);
    let prefix = world.key_prefix("many");
    world.db.exec(&format!(
        "DO $$ BEGIN
             FOR n IN 1..300 LOOP
                 EXECUTE format('CREATE TABLE many_%s (id int PRIMARY KEY, v int); INSERT INTO many_%s SELECT i, i FROM generate_series(1, 3) AS i', n, n);
                 IF n % 100 = 0 THEN
                     PERFORM fanout.index_table(('many_' || n)::regclass, server => '{server}', index => '{index}_' || n);
                 ELSE
                     PERFORM fanout.cache_table(('many_' || n)::regclass, server => 'cache', key => '{prefix}' || n || ':${{id}}');
                 END IF;
             END LOOP;
         END $$"
    ));
    world.db.exec("DO $$ BEGIN FOR n IN 1..300 LOOP EXECUTE format('UPDATE many_%s SET v = -id', n); END LOOP; END $$");
    for n in [1, 50, 100, 199, 200, 300] {
        assert_in_step(world, &format!("many_{n}"));
    }
    eventually("all are live", Duration::from_secs(120), || {
        world.db.value("SELECT count(*) FROM fanout.status WHERE state = 'live' AND pending = 0") == "300"
    });
}

#[test]
fn several_syncs_of_one_table_and_names_of_any_kind() {
    let mut world = World::new("names");
    world.db.exec(
        "CREATE SCHEMA \"Sch-éma; --\";
         CREATE TABLE \"Sch-éma; --\".\"Ta\"\"ble $x\" (\"the key\" int, \"Ké'y2\" text, \"va\\lue\" text, PRIMARY KEY (\"the key\", \"Ké'y2\"));
         INSERT INTO \"Sch-éma; --\".\"Ta\"\"ble $x\" SELECT i, 'k' || i, 'v' FROM generate_series(1, 20) AS i",
    );
    let source = "'\"Sch-éma; --\".\"Ta\"\"ble $x\"'";
    let (index, prefix) = (world.index_name("odd"), world.key_prefix("odd"));
    let longest = "n".repeat(62) + "1";
    for n in 1..=4 {
        world.db.exec(&format!(
            "SELECT fanout.index_table({source}, server => 'search', name => 'sync {n}', index => '{index}_{n}')"
        ));
    }
    world.db.exec(&format!(
        "SELECT fanout.index_table({source}, server => 'es', name => '{longest}', index => '{index}_5')"
    ));
    world.db.exec(&format!(
        "SELECT fanout.cache_table({source}, server => 'cache', name => 'it''s \"odd\"', key => '{prefix}${{the key}}:${{Ké''y2}}')"
    ));
    world.db.exec(
        "UPDATE \"Sch-éma; --\".\"Ta\"\"ble $x\" SET \"va\\lue\" = 'w' WHERE \"the key\" > 5;
         DELETE FROM \"Sch-éma; --\".\"Ta\"\"ble $x\" WHERE \"the key\" = 20",
    );
    for sync in ["sync 1", "sync 2", "sync 3", "sync 4", &longest] {
        assert_in_step(&mut world, sync);
    }
    world.db.exec("SELECT fanout.wait('it''s \"odd\"')");
    assert_eq!(pg_test::Keyspace::open().json(&prefix).len(), 19);
    let too_long = "n".repeat(64);
    let refusal = world.db.refusal(&format!(
        "SELECT fanout.index_table({source}, server => 'search', name => '{too_long}', index => '{index}_6')"
    ));
    assert_eq!(refusal.code, "42602", "{refusal}");
    world.db.exec("SELECT fanout.drop_sync(sync) FROM fanout.status");
    assert_eq!(world.db.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'fanout%'"), "0");
}
