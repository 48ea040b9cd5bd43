//! What somebody without privileges may not do.

use crate::tables::products;
use pg_test::{Engine, World};

#[test]
fn searching_needs_usage_on_the_server_and_select_on_the_table() {
    let mut world = World::new("search_privileges");
    products(&mut world, 10);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    let (role, mut session) = world.role("visitor");
    let search = format!("SELECT count(*) FROM es_search('{sync}', 'trail')");
    assert_eq!(session.refusal(&search).code, "42501");
    world.db.exec(&format!("GRANT USAGE ON FOREIGN SERVER search TO {role}"));
    assert_eq!(session.refusal(&search).code, "42501");
    world.db.exec(&format!("GRANT SELECT ON product TO {role}"));
    assert_eq!(session.value(&search), "10");
    world.db.exec(&format!("REVOKE USAGE ON FOREIGN SERVER search FROM {role}"));
    assert_eq!(session.refusal(&search).code, "42501");
    // Any index of the server: granted to nobody by default.
    world.db.exec(&format!("GRANT USAGE ON FOREIGN SERVER search TO {role}"));
    let index = world.index_name("product");
    assert_eq!(session.refusal(&format!("SELECT * FROM es_search_index('search', '{index}', 'trail')")).code, "42501");
    assert_eq!(
        world.db.value(&format!(
            "SELECT count(*) FROM es_search_index('search', '{index}', 'trail', fields => '{{name}}')"
        )),
        "10"
    );
}

#[test]
fn redis_functions_need_usage_on_the_server() {
    let mut world = World::new("cache_privileges");
    let (role, mut session) = world.role("visitor");
    let key = format!("{}:a", world.tag);
    for call in [
        format!("redis_get('cache', '{key}')"),
        format!("redis_set('cache', '{key}', 'v')"),
        format!("redis_del('cache', '{key}')"),
        format!("redis_ttl('cache', '{key}')"),
    ] {
        assert_eq!(session.refusal(&format!("SELECT {call}")).code, "42501", "{call}");
    }
    assert_eq!(session.refusal(&format!("SELECT * FROM redis_mget('cache', ARRAY['{key}'])")).code, "42501");
    world.db.exec(&format!("GRANT USAGE ON FOREIGN SERVER cache TO {role}"));
    assert_eq!(session.value(&format!("SELECT redis_get('cache', '{key}')")), "NULL");
}

#[test]
fn a_sync_can_be_made_and_ruled_only_by_who_may() {
    let mut world = World::new("sync_privileges");
    products(&mut world, 10);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    let (role, mut session) = world.role("visitor");
    world.db.exec(&format!(
        "GRANT USAGE ON FOREIGN SERVER search, cache TO {role}; GRANT SELECT, UPDATE ON product TO {role}"
    ));
    for call in [
        "index_table('product', server => 'search', index => 'stolen', name => 'stolen')".to_owned(),
        "cache_table('product', server => 'cache', key => 'stolen:${id}', name => 'stolen')".to_owned(),
        format!("pause('{sync}')"),
        format!("resync('{sync}')"),
        format!("reconcile('{sync}')"),
        format!("drop_sync('{sync}', true)"),
    ] {
        assert_eq!(session.refusal(&format!("SELECT fanout.{call}")).code, "42501", "{call}");
    }
    assert_eq!(session.refusal("UPDATE fanout.sync SET paused = true").code, "42501");
    assert_eq!(session.refusal("SELECT * FROM fanout.journal_1").code, "42501");
    // Writing is none of these: capture works whoever writes.
    session.exec("UPDATE product SET price = 1");
    pg_test::assert_in_step(&mut world, &sync);
}

#[test]
fn an_owner_of_a_table_without_usage_on_the_server_makes_no_sync() {
    let mut world = World::new("server_privileges");
    let (role, mut session) = world.role("maker");
    world.db.exec(&format!(
        "CREATE TABLE own (id int PRIMARY KEY); ALTER TABLE own OWNER TO {role}; INSERT INTO own VALUES (1)"
    ));
    let index = world.index_name("own");
    let call = format!("SELECT fanout.index_table('own', server => 'search', index => '{index}')");
    assert_eq!(session.refusal(&call).code, "42501");
    world.db.exec(&format!("GRANT USAGE ON FOREIGN SERVER search TO {role}"));
    let sync = session.value(&call);
    pg_test::assert_in_step(&mut world, &sync);
}

#[test]
fn a_policy_that_hides_rows_from_the_owner_blocks_the_sync_and_empties_nothing() {
    let mut world = World::new("owner_policy");
    let engine = Engine::opensearch();
    let (role, mut session) = world.role("maker");
    world.db.exec(&format!("GRANT USAGE ON FOREIGN SERVER search TO {role}; GRANT CREATE ON SCHEMA public TO {role}"));
    session.exec(
        "CREATE TABLE own (id int PRIMARY KEY, n int); INSERT INTO own SELECT i, 0 FROM generate_series(1, 20) AS i",
    );
    let index = world.index_name("own");
    let sync = session.value(&format!("SELECT fanout.index_table('own', server => 'search', index => '{index}')"));
    pg_test::assert_in_step(&mut world, &sync);
    session.exec(
        "ALTER TABLE own ENABLE ROW LEVEL SECURITY; ALTER TABLE own FORCE ROW LEVEL SECURITY;
         CREATE POLICY mine ON own USING (n = current_setting('app.tenant', true)::int)",
    );
    world.db.exec("UPDATE own SET n = 1");
    pg_test::eventually("the sync is blocked", std::time::Duration::from_secs(20), || {
        world.status(&sync, "state") == "blocked"
    });
    assert!(world.status(&sync, "last_error").contains("row-level security"), "{}", world.status(&sync, "last_error"));
    engine.refresh(&index);
    assert_eq!(engine.documents(&index).len(), 20);
    session.exec("ALTER TABLE own NO FORCE ROW LEVEL SECURITY");
    pg_test::eventually("it goes on by itself", std::time::Duration::from_secs(60), || {
        pg_test::differences(&mut world, &sync).is_empty()
    });
}
