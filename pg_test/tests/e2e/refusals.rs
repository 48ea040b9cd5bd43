//! Bad input: each mistake gets its SQLSTATE, a message that names the argument, and a DETAIL or a HINT that says what to do.

use crate::tables::products;
use pg_test::{Engine, World, assert_in_step};

/// What is wrong with how a statement is refused, if anything: `words` must be in the message.
fn flaw(world: &mut World, sql: &str, code: &str, words: &str) -> Option<String> {
    let refusal = match world.db.try_rows(sql) {
        Ok(rows) => return Some(format!("not refused, but {rows:?}\nto: {sql}")),
        Err(refusal) => refusal,
    };
    let told = refusal.code == code
        && refusal.message.contains(words)
        && !(refusal.detail.is_empty() && refusal.hint.is_empty());
    (!told).then(|| format!("{refusal}\nexpected: {code} {words}\nto: {sql}"))
}

/// Asserts that a statement is refused so.
pub fn refused(world: &mut World, sql: &str, code: &str, words: &str) {
    if let Some(flaw) = flaw(world, sql, code, words) {
        panic!("{flaw}");
    }
}

/// Asserts it of each, and tells all that are refused otherwise.
fn all_refused(world: &mut World, cases: &[(String, &str, &str)]) {
    let flaws: Vec<String> = cases.iter().filter_map(|(sql, code, words)| flaw(world, sql, code, words)).collect();
    assert!(flaws.is_empty(), "{}", flaws.join("\n\n"));
}

fn calls<'a>(call: impl Fn(&str) -> String, cases: &[(&str, &'a str, &'a str)]) -> Vec<(String, &'a str, &'a str)> {
    cases.iter().map(|&(arguments, code, words)| (call(arguments), code, words)).collect()
}

#[test]
fn what_cannot_be_a_source_is_refused() {
    let mut world = World::new("refused_sources");
    products(&mut world, 1);
    world.db.exec(
        "CREATE VIEW cheap AS SELECT * FROM product WHERE price < 5;
         CREATE MATERIALIZED VIEW dear AS SELECT * FROM product;
         CREATE TABLE keyless (a int);
         CREATE TABLE nothing ();
         CREATE SEQUENCE numbers;
         CREATE TEMPORARY TABLE passing (id int PRIMARY KEY);
         CREATE FOREIGN TABLE far (id int) SERVER cache",
    );
    let of = |source: &str| format!("SELECT fanout.index_table({source}, server => 'search')");
    let cases = calls(
        of,
        &[
            ("'cheap'", "42809", "\"cheap\" can't be the source of a sync: it is a view"),
            ("'dear'", "55000", "\"dear\" has no key"),
            ("'keyless'", "55000", "\"keyless\" has no key"),
            ("'nothing'", "55000", "\"nothing\" has no key"),
            ("'numbers'", "42809", "\"numbers\" can't be the source of a sync: it is a sequence"),
            ("'product_pkey'", "42809", "\"product_pkey\" can't be the source of a sync: it is an index"),
            ("'far'", "42809", "\"far\" can't be the source of a sync: it is a foreign table"),
            ("'passing'", "42809", "\"passing\" can't be the source of a sync: it is a temporary table"),
            ("'pg_catalog.pg_class'", "42809", "\"pg_class\" can't be the source of a sync: it is a system catalog"),
            ("'fanout.sync'", "42809", "\"sync\" can't be the source of a sync: it is a table of pg_fanout itself"),
            ("1::oid::regclass", "42P01", "relation with OID 1 does not exist"),
        ],
    );
    all_refused(&mut world, &cases);
    refused(
        &mut world,
        "SELECT fanout.cache_table('keyless', server => 'cache', key => 'k:${a}')",
        "55000",
        "\"keyless\" has no key",
    );
    // There are no arrays of arrays, by which many keys would be asked for.
    world.db.exec("CREATE TABLE listed (path int[], n int, PRIMARY KEY (n, path))");
    for call in [
        "index_table('listed', server => 'search')",
        "cache_table('listed', server => 'cache', key => 'k:${n}:${path}')",
    ] {
        let refusal = world.db.refusal(&format!("SELECT fanout.{call}"));
        assert_eq!(refusal.code, "42804", "{refusal}");
        assert!(refusal.message.contains("column \"path\"") && refusal.message.contains("type integer[]"), "{refusal}");
        assert!(refusal.detail.contains("(n, path)") && !refusal.hint.is_empty(), "{refusal}");
    }
    refused(&mut world, "SELECT fanout.mapping('nothing')", "42809", "\"nothing\" has no columns");
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.sync"), "0");
    assert_eq!(world.db.value("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"), "0");
}

#[test]
fn mistakes_in_arguments_are_refused() {
    let mut world = World::new("refused_arguments");
    products(&mut world, 1);
    world.db.exec("CREATE TABLE \"Upper Case\" (id int PRIMARY KEY)");
    let long = "n".repeat(64);
    let index = |arguments: &str| format!("SELECT fanout.index_table('product', server => 'search', {arguments})");
    let mut cases = calls(
        index,
        &[
            ("index => 'Upper'", "42602", "invalid index name \"Upper\": it must be in lower case"),
            ("index => ''", "42602", "invalid index name \"\": it is empty"),
            ("index => 'a b'", "42602", "invalid index name \"a b\""),
            ("index => '_a'", "42602", "invalid index name \"_a\""),
            ("index => 'a/b'", "42602", "invalid index name \"a/b\": it must not contain /"),
            ("name => ''", "42602", "invalid sync name: it is empty"),
            ("name => E'a\\nb'", "42602", "invalid sync name: it contains a control character"),
            ("on_reject => 'shrug'", "22023", "invalid value for \"on_reject\": \"shrug\""),
            ("search_fields => '{nonsense}'", "42703", "column \"nonsense\" named in search_fields"),
            ("search_fields => '{}'", "22023", "\"search_fields\" names no column"),
            ("search_fields => '{name,NULL}'", "22004", "\"search_fields\" must not hold NULL"),
            ("search_fields => '{name^x}'", "22023", "invalid boost in search field \"name^x\""),
            ("mapping => '[]'", "22023", "\"mapping\" must be a JSON object"),
            ("mapping => '{\"name\": 1}'", "22023", "\"mapping\" must have a JSON object for each field: \"name\""),
            ("mapping => '{\"mappings\": {}}'", "22023", "\"mapping\" must hold the fields"),
            ("settings => '3'", "22023", "\"settings\" must be a JSON object"),
            ("types => '[]'", "22023", "\"types\" must be a JSON object"),
            ("types => '{\"nonsense\": \"keyword\"}'", "42704", "type \"nonsense\" named in types does not exist"),
            ("types => '{\"text\": 3}'", "22023", "\"types\" must say for \"text\""),
            ("aliases => '3'", "22023", "\"aliases\" must be a JSON object, or an array of names"),
            ("aliases => '[3]'", "22023", "\"aliases\" must be a JSON object, or an array of names"),
            ("aliases => '[\"A\"]'", "22023", "\"A\" in \"aliases\" can't be the name of an alias"),
            ("aliases => '[\"product\"]'", "22023", "\"aliases\" names \"product\", which is the index itself"),
            ("routing => '${nonsense}'", "42703", "column \"nonsense\" of table \"product\" does not exist"),
            ("routing => '${'", "22023", "invalid template in \"routing\""),
            ("period => '${made}'", "22023", "invalid template in \"period\""),
            ("period => '${name:month}'", "42804", "column \"name\" can't tell a period: it is text"),
            ("pipeline => ''", "22023", "\"pipeline\" must not be empty"),
        ],
    );
    cases.push((index(&format!("name => '{long}'")), "42602", "invalid sync name: it is longer than 63 bytes"));
    let cache = |arguments: &str| format!("SELECT fanout.cache_table('product', server => 'cache', {arguments})");
    cases.extend(calls(
        cache,
        &[
            ("key => 'constant'", "22023", "invalid key template"),
            ("key => 'p:${nonsense}'", "42703", "column \"nonsense\" of table \"product\" does not exist"),
            ("key => 'p:${name}'", "22023", "the key template doesn't name key column \"id\""),
            ("key => 'p:${id'", "22023", "invalid key template"),
            ("key => 'p:${attributes}'", "22023", "the key template doesn't name key column \"id\""),
            ("key => 'p:${id}', format => 'xml'", "22023", "invalid value for \"format\": \"xml\""),
            ("key => 'p:${id}', ttl => '-1 hour'", "22023", "\"ttl\" must be at least a millisecond"),
            ("key => 'p:${id}', ttl => '200 years'", "22023", "\"ttl\" must be at least a millisecond"),
            ("key => 'p:${id}', jitter => 2", "22023", "\"jitter\" must be between 0 and 1"),
            ("key => 'p:${id}', jitter => 'NaN'", "22023", "\"jitter\" must be between 0 and 1"),
        ],
    ));
    let whole = |sql: &str| sql.to_owned();
    cases.extend(calls(
        whole,
        &[
            ("SELECT fanout.index_table('product', server => 'nowhere')", "42704", "server \"nowhere\" does not exist"),
            (
                "SELECT fanout.index_table('product', server => 'cache')",
                "42809",
                "server \"cache\" can't hold an index",
            ),
            (
                "SELECT fanout.cache_table('product', server => 'search', key => 'p:${id}')",
                "42809",
                "server \"search\" can't hold a cache",
            ),
            (
                "SELECT fanout.index_table('\"Upper Case\"', server => 'search')",
                "42602",
                "an index can't be named after table \"Upper Case\"",
            ),
            ("SELECT fanout.wait('nonsense')", "42704", "sync \"nonsense\" does not exist"),
            ("SELECT fanout.pause('nonsense')", "42704", "sync \"nonsense\" does not exist"),
            ("SELECT fanout.check('nonsense')", "42704", "sync \"nonsense\" does not exist"),
            ("SELECT fanout.retry('nonsense')", "42704", "sync \"nonsense\" does not exist"),
            ("SELECT fanout.alter_sync('nonsense')", "42704", "sync \"nonsense\" does not exist"),
            ("SELECT fanout.drop_sync('nonsense')", "42704", "sync \"nonsense\" does not exist"),
            ("SELECT es_search('nonsense', 'x')", "42704", "sync \"nonsense\" does not exist"),
            ("SELECT es_search_index('search', '_all')", "42602", "argument \"index\" must be the name of an index"),
            ("SELECT redis_get('search', 'x')", "42809", "server \"search\" is not a Redis"),
            ("SELECT redis_del('cache', 'x', NULL)", "22004", "\"keys\" must not hold NULL"),
            ("SELECT * FROM redis_mget('cache', '{x,NULL}')", "22004", "\"keys\" must not hold NULL"),
            (
                "SELECT redis_set('cache', 'x', 'y', '-1 s')",
                "22023",
                "argument \"ttl\" must be at least one millisecond",
            ),
        ],
    ));
    all_refused(&mut world, &cases);
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.sync"), "0");
}

#[test]
fn mistakes_in_options_are_refused() {
    let mut world = World::new("refused_options");
    let engine = |options: &str| {
        format!(
            "CREATE SERVER s FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'http://localhost:1', {options})"
        )
    };
    let mut cases = calls(
        engine,
        &[
            ("colour 'red'", "HV00D", "invalid option \"colour\""),
            ("password 'p'", "HV00D", "option \"password\" belongs in a user mapping"),
            ("senders '0'", "HV024", "invalid value for option \"senders\": expected a whole number"),
            ("senders 'many'", "HV024", "invalid value for option \"senders\": expected a whole number"),
            ("compress 'perhaps'", "HV024", "invalid value for option \"compress\": expected true or false"),
            ("verify '2'", "HV024", "invalid value for option \"verify\": expected true or false"),
            ("flavor 'solr'", "HV024", "invalid value for option \"flavor\""),
            ("connect_timeout '-1s'", "HV024", "invalid value for option \"connect_timeout\""),
            ("request_timeout 'soon'", "HV024", "invalid value for option \"request_timeout\""),
            ("ca '/etc/ssl/ca.pem'", "HV024", "invalid value for option \"ca\": expected PEM text"),
        ],
    );
    let mapping = |options: &str| format!("CREATE USER MAPPING FOR PUBLIC SERVER search OPTIONS ({options})");
    cases.extend(calls(
        mapping,
        &[
            ("username ''", "HV024", "invalid value for option \"username\": it is empty"),
            ("api_key ''", "HV024", "invalid value for option \"api_key\": it is empty"),
            ("api_key E'a\\nb'", "HV024", "invalid value for option \"api_key\": it contains a control character"),
            ("username 'a'", "HV024", "option \"username\" needs option \"password\""),
            ("username 'a', password 'b', api_key 'c'", "HV024", "more than one way to log in"),
            ("client_cert 'x', client_key 'y'", "HV024", "invalid value for option \"client_cert\""),
            ("url 'http://localhost:1'", "HV00D", "option \"url\" belongs in the server"),
        ],
    ));
    let whole = |sql: &str| sql.to_owned();
    cases.extend(calls(
        whole,
        &[
            ("CREATE SERVER s FOREIGN DATA WRAPPER fanout_elasticsearch", "HV002", "option \"url\" is required"),
            (
                "CREATE SERVER s FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'nonsense')",
                "HV024",
                "invalid value for option \"url\"",
            ),
            (
                "CREATE SERVER s FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'http://localhost:1,')",
                "HV024",
                "invalid value for option \"url\": one of the URLs is empty",
            ),
            (
                "CREATE SERVER s FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'http://me:secret@localhost:1')",
                "HV024",
                "invalid value for option \"url\"",
            ),
            (
                "CREATE SERVER s FOREIGN DATA WRAPPER fanout_redis OPTIONS (url 'http://localhost:1')",
                "HV024",
                "invalid value for option \"url\"",
            ),
        ],
    ));
    all_refused(&mut world, &cases);
}

#[test]
fn mistakes_in_what_is_altered_are_refused() {
    let mut world = World::new("refused_alterations");
    products(&mut world, 5);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    let cache = world.cache_table("product", "");
    world.db.exec(
        "ALTER TABLE product ADD COLUMN place point;
         BEGIN; SELECT fanout.index_table('product', server => 'search', index => 'refused_taken', name => 'other'),
                       fanout.cache_table('product', server => 'cache', key => 'refused_taken:${id}', name => 'third');
         SELECT fanout.pause('other'), fanout.pause('third'); COMMIT",
    );
    let of_index = |arguments: &str| format!("SELECT fanout.alter_sync('{sync}', {arguments})");
    let mut cases = calls(
        of_index,
        &[
            ("ttl => '1 hour'", "22023", "\"ttl\" is for a cache"),
            ("format => 'hash'", "22023", "\"format\" is for a cache"),
            ("key => 'p:${id}'", "22023", "\"key\" is for a cache"),
            ("index => 'Upper'", "42602", "invalid index name \"Upper\": it must be in lower case"),
            ("index => 'all', aliases => '[\"all\"]'", "22023", "\"aliases\" names \"all\", which is the index itself"),
            (
                "index => 'refused_taken'",
                "42710",
                "index \"refused_taken\" on server \"search\" is fed by sync \"other\" already",
            ),
            ("name => ''", "42602", "invalid sync name: it is empty"),
            ("name => 'product_cache'", "42710", "sync \"product_cache\" already exists"),
            ("on_reject => 'shrug'", "22023", "invalid value for \"on_reject\""),
            ("search_fields => '{nonsense}'", "42703", "column \"nonsense\" named in search_fields"),
            ("columns => '{nonsense}'", "42703", "column \"nonsense\" named in columns"),
            ("predicate => 'nonsense > 1'", "42703", "\"predicate\" can't be used: column \"nonsense\" does not exist"),
            ("backfill_rate => 0", "22023", "\"backfill_rate\" must be above zero"),
            ("backfill_window => 'at night'", "22023", "invalid value for \"backfill_window\""),
            ("reset => '{nonsense}'", "22023", "\"nonsense\" can't be reset"),
            ("reset => '{NULL}'", "22004", "\"reset\" must not hold NULL"),
            ("server => 'cache'", "42809", "server \"cache\" can't hold an index"),
            ("server => 'nowhere'", "42704", "server \"nowhere\" does not exist"),
            ("owner => 'nobody_at_all'", "42704", "role \"nobody_at_all\" does not exist"),
        ],
    );
    let of_cache = |arguments: &str| format!("SELECT fanout.alter_sync('{cache}', {arguments})");
    cases.extend(calls(
        of_cache,
        &[
            (r#"mapping => '{"name": {"type": "keyword"}}'"#, "22023", "\"mapping\" is for an index"),
            ("index => 'another'", "22023", "\"index\" is for an index"),
            ("key => 'constant'", "22023", "invalid key template"),
            ("key => 'p:${nonsense}:${id}'", "42703", "column \"nonsense\" of table \"product\" does not exist"),
            ("key => 'p:${name}'", "22023", "the key template doesn't name key column \"id\""),
            ("key => 'p:${id}:${attributes}:${place}'", "42804", "column \"place\" can't be part of a key"),
            (
                "key => 'refused_taken:${id}'",
                "42710",
                "this key template on server \"cache\" is fed by sync \"third\" already",
            ),
        ],
    ));
    all_refused(&mut world, &cases);
    let target = world.index_name("product");
    assert_eq!(world.db.value(&of_index(&format!("index => '{target}'"))), "nothing", "the one that it has");
    let (_, mut session) = world.role("visitor");
    assert_eq!(session.refusal(&of_index("on_reject => 'keep'")).code, "42501");
}

#[test]
fn values_that_cannot_be_a_key_are_refused() {
    let mut world = World::new("refused_keys");
    world.db.exec("CREATE TABLE part (kind text, number int, name text, PRIMARY KEY (kind, number))");
    let key = format!("{}${{kind}}:${{number}}", world.key_prefix("part"));
    let sync = world.cache_table_by("part", &key, "");
    let mut cases = Vec::new();
    for function in ["explain", "document", "enqueue"] {
        let of = |arguments: &str| format!("SELECT fanout.{function}('{sync}', {arguments})");
        cases.extend(calls(
            of,
            &[
                ("'a'", "22023", "\"key\" of sync \"part\" can't be 1 value(s)"),
                ("'a', 1, 2", "22023", "\"key\" of sync \"part\" can't be 3 value(s)"),
                ("VARIADIC ARRAY[]::text[]", "22023", "\"key\" of sync \"part\" can't be 0 value(s)"),
                ("VARIADIC NULL::text[]", "22004", "argument \"key\" must not be NULL"),
                ("'a', NULL", "22004", "\"key\" must not hold NULL: it is given for key column \"number\""),
                ("VARIADIC ARRAY['a', NULL]", "22004", "\"key\" must not hold NULL"),
                ("'a', 'x'", "22P02", "\"key\" can't be used: invalid input syntax for type integer"),
                ("'a', 1.5", "22P02", "\"key\" can't be used: invalid input syntax for type integer"),
                ("'a', '99999999999'", "22003", "\"key\" can't be used: value \"99999999999\" is out of range"),
            ],
        ));
    }
    cases.push((
        format!("SELECT fanout.enqueue_keys('{sync}', '{{a}}')"),
        "42809",
        "the key of sync \"part\" is more than one column",
    ));
    all_refused(&mut world, &cases);
}

/// What an argument must be for the others to be tried.
fn valid(function: &str, argument: &str, sync: &str, cache: &str) -> String {
    match (function, argument) {
        ("index_table" | "cache_table" | "mapping", "source") => "'owner'".to_owned(),
        (_, "source") => "'product'".to_owned(),
        ("cache_table", "server") => "'cache'".to_owned(),
        ("cache_table", "key") => "'nulls:${id}'".to_owned(),
        ("index_table" | "es_search_index", "server") => "'search'".to_owned(),
        (_, "server") => "'cache'".to_owned(),
        ("explain" | "document" | "enqueue", "key") => "'1'".to_owned(),
        ("enqueue_keys", "keys") => "'{1}'".to_owned(),
        (_, "keys") if function == "redis_del" => "'nulls:1'".to_owned(),
        (_, "keys") => "'{nulls:1}'".to_owned(),
        (_, "key" | "value") => "'nulls:1'".to_owned(),
        ("es_search_index", "index") => "'product*'".to_owned(),
        ("es_rows", "base") => "NULL::product".to_owned(),
        (_, "index") => format!("'{sync}'"),
        ("drop_related" | "related" | "propose_relations", "sync") => "'made'".to_owned(),
        ("place", "address") => r"'\x00'".to_owned(),
        _ => format!("'{cache}'"),
    }
}

/// Arguments with a default that is not NULL, for which NULL stands for something that is documented.
const MEANINGS: &[(&str, &str)] = &[
    // As long as it takes.
    ("wait", "timeout"),
    // As if left out.
    ("es_search", "source"),
    ("es_search_index", "source"),
    // The type is what counts.
    ("es_rows", "base"),
    // Of nothing there is nothing.
    ("place", "address"),
];

/// Each argument of each function, one at a time: NULL is what it is by default, or an error that names the argument.
#[test]
fn null_for_each_argument() {
    let mut world = World::new("nulls");
    products(&mut world, 1);
    let cache = world.cache_table("product", "");
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.db.exec(
        "CREATE TABLE owner (id int PRIMARY KEY); CREATE TABLE made (id int PRIMARY KEY, product int REFERENCES product);
         SELECT fanout.cache_table('made', server => 'cache', key => 'nulls_made:${id}', document =>
             'SELECT m.id, p.name FROM made m JOIN product p ON p.id = m.product')",
    );
    world.wait(&sync);
    world.wait(&cache);
    let arguments = world.db.rows(
        "SELECT p.oid::regproc::text, p.proname, a.name, a.place, format_type(t.type, NULL), p.provariadic <> 0,
             a.place > p.pronargs - p.pronargdefaults,
             coalesce(pg_get_function_arg_default(p.oid, a.place::int), 'none')
         FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
         JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_fanout'
         CROSS JOIN LATERAL unnest(p.proargtypes::oid[]) WITH ORDINALITY AS t (type, place)
         CROSS JOIN LATERAL (SELECT p.proargnames[t.place] AS name, t.place) AS a
         WHERE p.prokind = 'f' AND p.proname NOT IN ('search_support', 'verify_begin') AND p.proname NOT LIKE '%validator'
         ORDER BY p.oid, a.place",
    );
    let field = |row: &[Option<String>], n: usize| row[n].clone().unwrap_or_default();
    let mut flaws = Vec::new();
    let mut tried = 0;
    for row in &arguments {
        let (function, name, argument) = (field(row, 0), field(row, 1), field(row, 2));
        let of_it = |other: &&Vec<Option<String>>| field(other, 0) == function;
        // Variadic ones take no names.
        let by_place = arguments.iter().filter(of_it).any(|other| field(other, 5) == "t");
        let others: Vec<String> = arguments
            .iter()
            .filter(of_it)
            .filter_map(|other| {
                let called = field(other, 2);
                let given = if called == argument {
                    match field(row, 4).as_str() {
                        "anyelement" => "NULL::product".to_owned(),
                        "\"any\"" => "NULL".to_owned(),
                        "text[]" if by_place => "VARIADIC NULL::text[]".to_owned(),
                        of => format!("NULL::{of}"),
                    }
                } else if field(other, 6) == "t" {
                    return None;
                } else {
                    valid(&name, &called, &sync, &cache)
                };
                Some(if by_place { given } else { format!("{called} => {given}") })
            })
            .collect();
        let call = format!("SELECT * FROM {function}({})", others.join(", "));
        world.db.exec("BEGIN");
        let outcome = world.db.try_rows(&call);
        world.db.exec("ROLLBACK");
        tried += 1;
        let by_default = field(row, 7).starts_with("NULL") || MEANINGS.contains(&(name.as_str(), argument.as_str()));
        match outcome {
            Ok(_) if by_default => {}
            Ok(rows) => flaws.push(format!("{argument} is NULL, and nothing is said of it: {rows:?}\nto: {call}")),
            Err(refusal) if by_default => flaws.push(format!("NULL is the default: {refusal}\nto: {call}")),
            Err(refusal) => {
                let named = refusal.message.contains(&format!("\"{argument}\"")) && !refusal.hint.is_empty();
                if refusal.code != "22004" || !named {
                    flaws.push(format!("{argument}: {refusal}\nto: {call}"));
                }
            }
        }
    }
    assert!(flaws.is_empty(), "{}", flaws.join("\n\n"));
    assert!(tried > 100, "{tried} arguments");
    refused(&mut world, "CALL fanout.verify(NULL)", "22004", "argument \"sync\" must not be NULL");
    assert_in_step(&mut world, &cache);
}
