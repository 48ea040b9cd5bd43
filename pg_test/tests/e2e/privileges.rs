//! What somebody without privileges may not do.

use crate::tables::products;
use pg_test::{Engine, ServerLog, World};

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

/// Each of them, with how it went put into the variable `report`.
fn attempted(role: &str) -> String {
    ATTEMPTS
        .iter()
        .map(|attempt| {
            let attempt = attempt.replace("current_role", role);
            let label = attempt.replace("''", "");
            format!(
                "BEGIN EXECUTE '{attempt}'; report := report || jsonb_build_object('{label}', 'done');
                 EXCEPTION WHEN OTHERS THEN report := report || jsonb_build_object('{label}', SQLSTATE); END;"
            )
        })
        .collect()
}

#[test]
fn code_in_a_document_query_gains_nothing() {
    let mut world = World::new("hostile_query");
    products(&mut world, 5);
    let victim = world.cache_table("product", ", name => 'victim'");
    pg_test::assert_in_step(&mut world, &victim);
    let (role, mut session) = world.role("mallory");
    world.db.exec(&format!("GRANT USAGE ON FOREIGN SERVER cache TO {role}; GRANT CREATE ON SCHEMA public TO {role}"));
    let attempts = attempted(&role);
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
         END $f$"
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
    // A volatile function is refused where it can be seen.
    let refusal = session.refusal(&format!(
        "SELECT fanout.cache_table('lure', server => 'cache', name => 'by_predicate', key => '{key}:p', predicate => 'fanout.drop_sync(''victim'') IS NULL')"
    ));
    assert_eq!(refusal.code, "42P13", "{refusal}");
}

/// Code that nobody calls by name: casts, operators, the query of a related table, defaults and the expressions of indices.
/// Each says in the server's log as whom it ran and how its attempts went.
#[test]
fn code_behind_a_cast_an_operator_a_default_or_an_index_gains_nothing() {
    let mut world = World::alone("hostile_code");
    let (role, mut session) = world.role("mallory");
    world.db.exec(&format!("GRANT USAGE ON FOREIGN SERVER cache TO {role}; GRANT CREATE ON SCHEMA public TO {role}"));
    let tag = world.tag.clone();
    let attempts = attempted(&role);
    let wrappers: String = [
        ("from_cast(x odd) RETURNS json", "cast", "to_json(1)"),
        ("from_operator(x int, y int) RETURNS boolean", "operator", "x >= y"),
        ("from_relation(x int) RETURNS int", "relation", "x"),
        ("from_default() RETURNS int", "default", "1"),
        ("from_index(x int) RETURNS int", "index", "x"),
    ]
    .iter()
    .map(|(signature, place, result)| {
        format!(
            "CREATE FUNCTION {signature} IMMUTABLE LANGUAGE plpgsql AS $f$
             BEGIN PERFORM public.tries('{place}'); RETURN {result}; END $f$;"
        )
    })
    .collect();
    session.exec(&format!(
        "CREATE FUNCTION tries(place text) RETURNS void IMMUTABLE LANGUAGE plpgsql AS $f$
         DECLARE report jsonb := '{{}}';
         BEGIN
             -- Who made it may try what they like.
             IF current_setting('application_name') = 'pg_test' THEN RETURN; END IF;
             {attempts}
             RAISE LOG 'tried {tag} % as % superuser %: %', place, current_user,
                 (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
                 -- Anybody may notify, from anywhere.
                 (SELECT coalesce(string_agg(key, '; '), 'nothing') FROM jsonb_each_text(report) WHERE value = 'done' AND key <> 'NOTIFY planted');
         END $f$;
         CREATE TYPE odd AS ENUM ('fine');
         {wrappers}
         CREATE CAST (odd AS json) WITH FUNCTION from_cast(odd);
         CREATE OPERATOR public.>== (LEFTARG = int, RIGHTARG = int, FUNCTION = from_operator);
         CREATE TABLE lure (id int PRIMARY KEY, n int DEFAULT from_default(), o odd DEFAULT 'fine');
         CREATE INDEX ON lure (from_index(n));
         CREATE TABLE bait (id int PRIMARY KEY, lure int);
         INSERT INTO lure (id) VALUES (1), (2);
         INSERT INTO bait VALUES (1, 1)"
    ));
    let key = |name: &str| format!("{}${{id}}", world.key_prefix(name));
    let by_cast =
        format!("SELECT fanout.cache_table('lure', server => 'cache', name => 'by_cast', key => '{}')", key("a"));
    let by_operator = format!(
        "SELECT fanout.cache_table('lure', server => 'cache', name => 'by_operator', key => '{}', predicate => 'id >== 0')",
        key("b")
    );
    let by_relation = format!(
        "SELECT fanout.cache_table('lure', server => 'cache', name => 'by_relation', key => '{}',
             document => 'SELECT l.id, b.id AS bait FROM lure l LEFT JOIN bait b ON b.lure = l.id')",
        key("c")
    );
    for make in [by_cast, by_operator, by_relation] {
        session.exec(&make);
    }
    session.exec(
        "SELECT fanout.related('by_relation', 'bait', '{lure}', 'SELECT from_relation(lure) AS id FROM changed')",
    );
    // What was harmless when it was looked at.
    session.exec("ALTER FUNCTION tries VOLATILE");
    for sync in ["by_cast", "by_operator", "by_relation"] {
        world.wait(sync);
    }
    let log = ServerLog::here();
    session.exec("UPDATE lure SET n = n + 1; UPDATE bait SET lure = 2");
    for sync in ["by_cast", "by_operator", "by_relation"] {
        world.wait(sync);
        session.exec(&format!("SELECT fanout.reconcile('{sync}')"));
        world.wait(sync);
        assert_eq!(world.status(sync, "dead_letters"), "0");
        assert_eq!(world.status(sync, "last_error"), "NULL");
    }
    let lines: Vec<String> =
        log.text().lines().filter(|it| it.contains(&format!("tried {tag} "))).map(str::to_owned).collect();
    for place in ["cast", "operator", "relation"] {
        assert!(
            lines.iter().any(|it| it.contains(&format!("tried {tag} {place} as "))),
            "{place} did not run: {lines:#?}"
        );
    }
    // A default and the expression of an index belong to writing, which the worker does not do.
    for line in &lines {
        assert!(!line.contains(" default as ") && !line.contains(" index as "), "{line}");
        assert!(line.ends_with(&format!(" as {role} superuser f: nothing")), "{line}");
    }
    assert_eq!(world.db.value(&format!("SELECT rolsuper FROM pg_roles WHERE rolname = '{role}'")), "f");
    assert_eq!(world.db.value("SELECT DISTINCT owner::text FROM fanout.sync"), role);
    assert_eq!(world.db.value("SELECT to_regclass('public.planted')"), "NULL");
}

/// What everybody may do is what is in these lists; everything else is granted to somebody by name.
#[test]
fn nothing_is_granted_to_everybody_but_this() {
    let mut world = World::new("granted");
    let ours = |kind: &str| {
        format!(
            "SELECT objid FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
                AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fanout') AND classid = '{kind}'::regclass"
        )
    };
    // Each checks itself: the owner of the sync, USAGE on the server, SELECT on the table.
    let functions = world.db.column(&format!(
        "SELECT DISTINCT pronamespace::regnamespace || '.' || proname FROM pg_proc WHERE oid IN ({})
            AND has_function_privilege('public', oid, 'EXECUTE') ORDER BY 1",
        ours("pg_proc")
    ));
    let expected = [
        "fanout.adopt",
        "fanout.alter_sync",
        "fanout.cache_table",
        "fanout.capture",
        "fanout.check",
        "fanout.document",
        "fanout.drop_related",
        "fanout.drop_sync",
        "fanout.elasticsearch_validator",
        "fanout.enqueue",
        "fanout.enqueue_keys",
        "fanout.explain",
        "fanout.index_table",
        "fanout.mapping",
        "fanout.pause",
        "fanout.place",
        "fanout.propose_relations",
        "fanout.reconcile",
        "fanout.redis_validator",
        "fanout.related",
        "fanout.resume",
        "fanout.resync",
        "fanout.retry",
        "fanout.search_support",
        "fanout.sync_activity",
        "fanout.sync_progress",
        "fanout.verify",
        "fanout.verify_begin",
        "fanout.verify_step",
        "fanout.wait",
        "public.es_count",
        "public.es_rows",
        "public.es_search",
        "public.redis_del",
        "public.redis_get",
        "public.redis_mget",
        "public.redis_set",
        "public.redis_ttl",
    ];
    assert_eq!(functions, expected);
    let relations =
        "SELECT format('%s %s', c.oid::regclass, a.privilege_type) FROM pg_class c, aclexplode(c.relacl) AS a";
    let to_all =
        world.db.column(&format!("{relations} WHERE c.oid IN ({}) AND a.grantee = 0 ORDER BY 1", ours("pg_class")));
    let views = ["dead_letters", "progress", "relations", "status"].map(|view| format!("fanout.{view} SELECT"));
    assert_eq!(to_all, views);
    // They show to each what is theirs; a condition of the caller's must not see the rest.
    let open = "SELECT oid::regclass FROM pg_class WHERE relnamespace = 'fanout'::regnamespace AND relkind = 'v'
                AND reloptions @> '{security_barrier=true}' IS NOT TRUE AND pg_get_viewdef(oid) ~ 'fanout[.](dead_letter|sync|relation) '";
    assert_eq!(world.db.column(open), Vec::<String>::new());
    let unpinned = format!(
        "SELECT oid::regprocedure FROM pg_proc WHERE oid IN ({}) AND prosecdef
            AND NOT EXISTS (SELECT FROM unnest(proconfig) AS c WHERE c LIKE 'search_path=%')",
        ours("pg_proc")
    );
    assert_eq!(world.db.column(&unpinned), Vec::<String>::new());
    let schemas = "SELECT a.privilege_type FROM pg_namespace n, aclexplode(nspacl) AS a WHERE nspname = 'fanout' AND a.grantee = 0";
    assert_eq!(world.db.column(schemas), ["USAGE"]);
    assert_eq!(
        world.db.value("SELECT (rolsuper, rolcanlogin, rolcreaterole, rolcreatedb, rolbypassrls)::text FROM pg_roles WHERE rolname = 'fanout_worker'"),
        "(f,f,f,f,f)"
    );
}

#[test]
fn dead_letters_are_seen_by_the_owner_of_their_sync_alone() {
    let mut world = World::new("others_letters");
    let make = |world: &mut World, name: &str| {
        let (role, mut session) = world.role(name);
        world
            .db
            .exec(&format!("GRANT USAGE ON FOREIGN SERVER cache TO {role}; GRANT CREATE ON SCHEMA public TO {role}"));
        session.exec(&format!(
            "CREATE TABLE {name}_part (id int PRIMARY KEY, n int); INSERT INTO {name}_part VALUES (1, 1), (2, 0)"
        ));
        let key = format!("{}${{id}}", world.key_prefix(name));
        let sync = session.value(&format!(
            "SELECT fanout.cache_table('{name}_part', server => 'cache', key => '{key}', predicate => '10 / n > 0')"
        ));
        pg_test::eventually("it is a dead letter", std::time::Duration::from_secs(30), || {
            world.status(&sync, "dead_letters") == "1"
        });
        (sync, session)
    };
    let (ann, mut as_ann) = make(&mut world, "ann");
    let (bob, mut as_bob) = make(&mut world, "bob");
    let letters = "SELECT sync, attempts, first_at <= last_at AND last_at <= now() FROM fanout.dead_letters";
    for (session, sync) in [(&mut as_ann, &ann), (&mut as_bob, &bob)] {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(session.rows(letters), [[text(sync), text("1"), text("t")]]);
        // A condition that shows what it is given is given no more than that.
        session.exec(
            "CREATE FUNCTION pg_temp.shows(t text) RETURNS boolean COST 0.0001 LANGUAGE plpgsql AS
             $$ BEGIN IF t <> current_setting('app.own') THEN RAISE 'it saw %', t; END IF; RETURN true; END $$",
        );
        session.exec(&format!("SET app.own = '{sync}'"));
        assert_eq!(session.value("SELECT count(*) FROM fanout.dead_letters WHERE pg_temp.shows(sync)"), "1");
        assert_eq!(session.refusal("SELECT * FROM fanout.dead_letter").code, "42501");
        assert_eq!(session.refusal("SELECT * FROM fanout.pending").code, "42501");
    }
    // In vain once more: one more attempt of the same letter.
    let first = as_bob.value("SELECT first_at FROM fanout.dead_letters");
    as_bob.exec(&format!("SELECT fanout.retry('{bob}')"));
    pg_test::eventually("it was tried again", std::time::Duration::from_secs(30), || {
        as_bob.column("SELECT attempts FROM fanout.dead_letters") == ["2"]
    });
    assert_eq!(as_bob.value("SELECT first_at FROM fanout.dead_letters"), first);
    assert_eq!(as_bob.value("SELECT last_at > first_at FROM fanout.dead_letters"), "t");
    assert_eq!(as_ann.refusal(&format!("SELECT fanout.retry('{bob}')")).code, "42501");
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
