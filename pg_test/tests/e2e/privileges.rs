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

/// What a document query's functions try, each under an EXCEPTION block; their document reports how that went.
const ATTEMPTS: &[&str] = &[
    "ALTER ROLE current_role SUPERUSER",
    "ALTER ROLE postgres PASSWORD ''owned''",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION postgres",
    "SET SESSION AUTHORIZATION DEFAULT",
    "RESET SESSION AUTHORIZATION",
    "SET ROLE NONE",
    "RESET ROLE",
    "SELECT set_config(''role'', ''postgres'', false)",
    "SELECT set_config(''session_authorization'', ''postgres'', false)",
    "SELECT set_config(''session_replication_role'', ''replica'', false)",
    "CREATE TABLE public.planted (a int)",
    "CREATE TEMP TABLE planted (a int)",
    "UPDATE fanout.sync SET owner = ''postgres''",
    "DELETE FROM fanout.pending",
    "SELECT * FROM fanout.journal_1",
    "SELECT * FROM fanout.dead_letter",
    "SELECT fanout.drop_sync(''victim'')",
    "COPY (SELECT 1) TO PROGRAM ''true''",
    "SELECT pg_read_file(''/etc/passwd'')",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IS DISTINCT FROM current_user",
    "NOTIFY planted",
    "LISTEN planted",
    "PREPARE planted AS SELECT 1",
    "DECLARE planted CURSOR WITH HOLD FOR SELECT 1",
];

#[test]
fn code_in_a_document_query_gains_nothing() {
    let mut world = World::new("hostile_query");
    products(&mut world, 5);
    let victim = world.cache_table("product", ", name => 'victim'");
    pg_test::assert_in_step(&mut world, &victim);
    let (role, mut session) = world.role("mallory");
    world.db.exec(&format!("GRANT USAGE ON FOREIGN SERVER cache TO {role}; GRANT CREATE ON SCHEMA public TO {role}"));
    let attempts: String = ATTEMPTS
        .iter()
        .map(|attempt| {
            let attempt = attempt.replace("current_role", &role);
            let label = attempt.replace("''", "");
            format!(
                "BEGIN EXECUTE '{attempt}'; report := report || jsonb_build_object('{label}', 'done');
                 EXCEPTION WHEN OTHERS THEN report := report || jsonb_build_object('{label}', SQLSTATE); END;"
            )
        })
        .collect();
    session.exec(&format!(
        "CREATE TABLE lure (id int PRIMARY KEY, n int);
         INSERT INTO lure VALUES (1, 1);
         CREATE FUNCTION attempts() RETURNS jsonb STABLE LANGUAGE plpgsql AS $f$
         DECLARE report jsonb := jsonb_build_object('is_superuser', (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), 'user', current_user::text);
         BEGIN
             {attempts}
             -- Allowed, and of no consequence for anybody else.
             PERFORM set_config('DateStyle', 'German, DMY', false), set_config('TimeZone', 'Asia/Tokyo', false),
                 set_config('search_path', 'mallory', false), set_config('statement_timeout', '1', false);
             PERFORM pg_advisory_lock(4711);
             RETURN report;
         END $f$;
         CREATE FUNCTION loops() RETURNS int STABLE LANGUAGE plpgsql AS $f$ BEGIN LOOP PERFORM 1; END LOOP; END $f$"
    ));
    let key = format!("{}${{id}}", world.key_prefix("lure"));
    let sync = session.value(&format!(
        "SELECT fanout.cache_table('lure', server => 'cache', key => '{key}', document => 'SELECT id, attempts() AS document FROM lure')"
    ));
    world.wait(&sync);
    let stored = pg_test::Keyspace::open().json(&world.key_prefix("lure"));
    let (_, report) = stored.first().expect("a report");
    assert_eq!(report["user"], role.as_str());
    assert_eq!(report["is_superuser"], false);
    let done: Vec<_> = report.as_object().into_iter().flatten().filter(|(_, outcome)| **outcome == "done").collect();
    assert!(done.is_empty(), "these were not refused: {done:?}");
    assert_eq!(world.db.value(&format!("SELECT rolsuper FROM pg_roles WHERE rolname = '{role}'")), "f");
    assert_eq!(world.db.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), "0");
    // Another sync, by the same worker: its documents are what they would have been.
    world.db.exec("UPDATE product SET made = '2026-03-04 05:06:07+00'");
    pg_test::assert_in_step(&mut world, &victim);
    // The same by a predicate, and by a query that finds the documents of a related row.
    let refusal = session.refusal(&format!(
        "SELECT fanout.cache_table('lure', server => 'cache', name => 'by_predicate', key => '{key}:p', predicate => 'fanout.drop_sync(''victim'') IS NULL')"
    ));
    assert_eq!(refusal.code, "42P13", "{refusal}");
}

/// A function may swallow the cancellation of its statement, but not the end of the process.
#[test]
fn a_reading_that_does_not_end_is_ended_and_the_others_go_on() {
    let mut world = World::alone("endless_reading");
    products(&mut world, 5);
    let other = world.cache_table("product", ", name => 'other'");
    pg_test::assert_in_step(&mut world, &other);
    world.db.exec("ALTER SYSTEM SET fanout.read_timeout = '500ms'");
    world.db.exec("SELECT pg_reload_conf()");
    world.db.exec(
        "CREATE TABLE lure (id int PRIMARY KEY, n text); INSERT INTO lure VALUES (1, 'x');
         CREATE FUNCTION hang(x text) RETURNS text STABLE LANGUAGE plpgsql AS $f$
         BEGIN LOOP BEGIN PERFORM pg_sleep(1000); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $f$",
    );
    let key = format!("{}${{id}}", world.key_prefix("lure"));
    let sync = world.cache_table_by("lure", &key, ", document => 'SELECT id, hang(n) AS n FROM lure'");
    pg_test::eventually("the sync is left alone", std::time::Duration::from_secs(60), || {
        world.status(&sync, "state") == "blocked"
    });
    assert!(world.status(&sync, "last_error").contains("did not end when it was cancelled"));
    world.db.exec("ALTER SYSTEM RESET fanout.read_timeout");
    world.db.exec("SELECT pg_reload_conf()");
    world.db.exec("UPDATE product SET price = 1");
    pg_test::assert_in_step(&mut world, &other);
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}')"));
}
