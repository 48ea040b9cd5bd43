//! `fanout.verify()`: finds what differs, and nothing else; repairs it.

use crate::tables::{more_products, products};
use pg_test::{Engine, Refusal, Session, World, assert_in_step, eventually_ok, on_each_engine, stack};
use serde_json::{Value, json};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

on_each_engine!(differences_are_found_and_repaired, what_is_on_its_way_is_no_difference, dead_letters_are_told_apart);

/// `CALL fanout.verify()`: its row by column.
fn verify(world: &mut World, sync: &str, more: &str) -> Value {
    let row = world.db.rows(&format!("CALL fanout.verify('{sync}'{more})")).remove(0);
    let columns =
        ["rows", "documents", "missing", "extra", "different", "dead", "unsettled", "repaired", "differences"];
    let value = |text: Option<String>| serde_json::from_str(&text.unwrap_or_default()).unwrap_or(Value::Null);
    columns
        .iter()
        .zip(row)
        .map(|(column, text)| ((*column).to_owned(), value(text)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn counts(verified: &Value) -> Vec<i64> {
    ["missing", "extra", "different", "repaired"].iter().map(|column| verified[column].as_i64().unwrap_or(-1)).collect()
}

fn differences_are_found_and_repaired(world: &mut World, engine: &Engine) {
    products(world, 5000);
    let sync = world.index_table("product", engine, "");
    assert_in_step(world, &sync);
    let verified = verify(world, &sync, "");
    assert_eq!(counts(&verified), [0, 0, 0, 0], "{verified}");
    assert_eq!((&verified["rows"], &verified["documents"]), (&json!(5000), &json!(5000)));
    let concrete = format!("{}-fanout-1", world.index_name("product"));
    engine.ask("DELETE", &format!("/{concrete}/_doc/17"), None);
    engine.ask("DELETE", &format!("/{concrete}/_doc/4999"), None);
    engine.ask("PUT", &format!("/{concrete}/_doc/90000"), Some(json!({"id": 90000})));
    let mut document = engine.document(&concrete, "23").expect("it is there");
    document["price"] = json!(0.01);
    engine.ask("PUT", &format!("/{concrete}/_doc/23"), Some(document));
    let verified = verify(world, &sync, "");
    assert_eq!(counts(&verified), [2, 1, 1, 0], "{verified}");
    let different = json!({"id": "23", "difference": "different", "detail": "price"});
    assert!(verified["differences"].as_array().is_some_and(|found| found.contains(&different)), "{verified}");
    assert_eq!(verify(world, &sync, ", examples => 1")["differences"].as_array().map(Vec::len), Some(1));
    assert_eq!(counts(&verify(world, &sync, ", repair => true")), [2, 1, 1, 4]);
    assert_in_step(world, &sync);
    assert_eq!(counts(&verify(world, &sync, "")), [0, 0, 0, 0]);
}

fn what_is_on_its_way_is_no_difference(world: &mut World, engine: &Engine) {
    products(world, 2000);
    let sync = world.index_table("product", engine, "");
    world.wait(&sync);
    let mut writer = world.connect();
    let until = Instant::now() + Duration::from_secs(6);
    let writing = std::thread::spawn(move || {
        let mut n = 0;
        while Instant::now() < until {
            n += 1;
            let first = n * 37 % 1900;
            writer.exec(&format!(
                "UPDATE product SET price = price + 1 WHERE id BETWEEN {first} AND {first} + 50;
                 DELETE FROM product WHERE id = {}; INSERT INTO product (id, name) VALUES ({}, 'new') ON CONFLICT DO NOTHING",
                2000 - n % 50,
                2000 - n * 3 % 50
            ));
        }
    });
    let mut verified = Vec::new();
    while Instant::now() < until {
        verified.push(verify(world, &sync, ""));
    }
    writing.join().expect("the writer has no trouble");
    assert!(!verified.is_empty());
    for verified in &verified {
        assert_eq!(counts(verified), [0, 0, 0, 0], "{verified}");
    }
    assert_in_step(world, &sync);
}

fn dead_letters_are_told_apart(world: &mut World, engine: &Engine) {
    world.db.exec("CREATE TABLE part (id int PRIMARY KEY, code text); INSERT INTO part VALUES (1, '1'), (2, 'two')");
    let sync = world.index_table("part", engine, r#", mapping => '{"code": {"type": "integer"}}'"#);
    world.wait(&sync);
    let verified = verify(world, &sync, ", repair => true");
    assert_eq!(counts(&verified), [0, 0, 0, 0], "{verified}");
    assert_eq!(verified["dead"], json!(1));
}

#[test]
fn keys_of_redis_are_verified() {
    let mut world = World::new("verify_cache");
    products(&mut world, 3000);
    for (format, ttl) in [("json", ""), ("hash", ""), ("json", ", ttl => '1 hour'")] {
        let name = format!("{format}{}", ttl.len());
        let prefix = format!("{}{name}:", world.key_prefix("product"));
        let sync = world.cache_table_by(
            "product",
            &format!("{prefix}${{id}}"),
            &format!(", name => '{name}', format => '{format}'{ttl}"),
        );
        world.wait(&sync);
        let verified = verify(&mut world, &sync, "");
        assert_eq!(counts(&verified), [0, 0, 0, 0], "{verified}");
        assert!(verified["documents"].as_i64() >= Some(3000), "{verified}");
        world.db.exec(&format!("SELECT redis_del('cache', '{prefix}17'), redis_set('cache', '{prefix}90000', '1')"));
        world.db.exec(&format!("SELECT redis_set('cache', '{prefix}18', '{{\"id\": 18}}')"));
        // Not of this sync.
        world.db.exec(&format!("SELECT redis_set('cache', '{prefix}nonsense:1', '1')"));
        let missing = i64::from(ttl.is_empty());
        let verified = verify(&mut world, &sync, ", repair => true");
        // A string in the place of a hash is as good as missing.
        let found = counts(&verified);
        assert_eq!(found[0] + found[2], 1 + missing, "{format}{ttl}: {verified}");
        assert_eq!((found[1], found[3]), (1, 2 + missing), "{format}{ttl}: {verified}");
        world.wait(&sync);
        assert_eq!(counts(&verify(&mut world, &sync, "")), [0, 0, 0, 0], "{format}{ttl}");
    }
}

#[test]
fn no_snapshot_is_held_and_a_cancel_ends_it() {
    let mut world = World::new("verify_snapshots");
    products(&mut world, 1);
    more_products(&mut world, 2, 60_000);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    let mut verifier = world.connect();
    let pid = verifier.pid();
    let call = format!("CALL fanout.verify('{sync}')");
    let verifying = std::thread::spawn(move || verifier.try_rows(&call).map(|rows| rows.len()));
    let age = format!("SELECT coalesce(max(age(backend_xmin)), 0) FROM pg_stat_activity WHERE pid = {pid}");
    let mut oldest = 0;
    let begun = Instant::now();
    while !verifying.is_finished() && begun.elapsed() < Duration::from_secs(60) {
        // Each of these is a transaction that an old snapshot would be behind of.
        world.db.exec("SELECT pg_current_xact_id()");
        oldest = oldest.max(world.db.value(&age).parse::<i64>().expect("a number"));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(verifying.join().expect("no panic"), Ok(1));
    assert!(begun.elapsed() > Duration::from_millis(300), "long enough to see something");
    let begun = begun.elapsed().as_millis() as i64 / 5;
    assert!(oldest < begun / 2, "a snapshot was held for {oldest} of about {begun} transactions");
    let mut verifier = world.connect();
    verifier.exec("SET statement_timeout = '100ms'");
    let began = Instant::now();
    assert_eq!(verifier.refusal(&format!("CALL fanout.verify('{sync}')")).code, "57014");
    assert!(began.elapsed() < Duration::from_secs(2));
    verifier.exec("RESET statement_timeout; SELECT count(*) FROM product");
    // Within a transaction block nothing can be committed.
    verifier.exec("BEGIN");
    assert_eq!(verifier.refusal(&format!("CALL fanout.verify('{sync}')")).code, "2D000");
    verifier.exec("ROLLBACK");
}

#[test]
fn what_cannot_be_verified_is_said() {
    let mut world = World::new("verify_refused");
    products(&mut world, 10);
    let sync = world.index_table("product", &Engine::opensearch(), "");
    world.wait(&sync);
    world.db.exec(&format!("SELECT fanout.pause('{sync}')"));
    let refusal = world.db.refusal(&format!("CALL fanout.verify('{sync}')"));
    assert!(refusal.code == "55000" && refusal.message.contains("paused") && !refusal.hint.is_empty(), "{refusal}");
    assert_eq!(world.db.refusal("SELECT * FROM fanout.verify_step()").code, "55000");
    assert_eq!(world.db.refusal("CALL fanout.verify('nonsense')").code, "42704");
    assert_eq!(world.db.refusal("CALL fanout.verify(NULL)").code, "22004");
}

/// Rows of the table whose documents take their time.
const ROWS: i64 = 3500;

/// A table `thing` and what makes documents of it slowly: each takes as many seconds as the table `pace` says.
fn slow_things(world: &mut World) {
    world.db.exec(&format!(
        "CREATE TABLE pace (seconds float8); INSERT INTO pace VALUES (0);
         CREATE FUNCTION nap(n int) RETURNS int STABLE LANGUAGE plpgsql AS $f$
         DECLARE s float8 := (SELECT seconds FROM pace);
         BEGIN IF s > 0 THEN PERFORM pg_sleep(s); END IF; RETURN n; END $f$;
         CREATE TABLE thing (id int PRIMARY KEY, n int);
         INSERT INTO thing SELECT i, i FROM generate_series(1, {ROWS}) AS i"
    ));
}

const SLOW_THINGS: &str = ", document => 'SELECT id, nap(n) AS n FROM thing'";

fn pace(world: &mut World, seconds: f64) {
    world.db.exec(&format!("UPDATE pace SET seconds = {seconds}"));
}

/// What a call gave.
type Outcome = Result<Vec<Option<String>>, Refusal>;

/// A call in a session of its own, in which the documents that are made are counted; and the number of its process.
fn calling(world: &World, sync: &str, more: &str) -> (JoinHandle<Outcome>, String) {
    let mut session = world.connect();
    let pid = session.pid();
    session.exec("SET track_functions = 'all'");
    let call = format!("CALL fanout.verify('{sync}'{more})");
    (thread::spawn(move || session.try_rows(&call).map(|mut rows| rows.remove(0))), pid)
}

/// How many documents were made by such calls that have ended.
fn documents_made(world: &mut World) -> i64 {
    // A session counts its own when it ends at the latest.
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                  AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    eventually_ok("other sessions have ended", Duration::from_secs(10), || {
        let left = world.db.value(others);
        if left == "0" { Ok(()) } else { Err(left) }
    });
    let made = "SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions WHERE funcname = 'nap'";
    world.db.value(made).parse().expect("a number")
}

/// What the latest note says of rows and documents, once there is one of which the condition holds.
fn noted(world: &mut World, condition: &str) -> [i64; 2] {
    let sql =
        format!("SELECT rows, documents FROM fanout.verification WHERE {condition} ORDER BY saved_at DESC LIMIT 1");
    let row = eventually_ok(&format!("noted: {condition}"), Duration::from_secs(60), || {
        let all = "SELECT * FROM fanout.verification";
        world.db.rows(&sql).pop().ok_or_else(|| format!("{:?}", world.db.rows(all)))
    });
    [0, 1].map(|at| row[at].as_deref().unwrap_or_default().parse().expect("a number"))
}

/// The columns from `rows` to `repaired` of what a call gave.
fn numbers(row: Outcome) -> Vec<i64> {
    let row = row.unwrap_or_else(|error| panic!("{error}"));
    row[..8].iter().map(|text| text.as_deref().unwrap_or_default().parse().expect("a number")).collect()
}

fn notice(db: &mut Session, call: &str) -> String {
    let heard: Vec<String> = db.notices(call).into_iter().map(|notice| notice.message).collect();
    heard.join("; ")
}

/// Ended by a crash among the rows: what it had compared by then is not read again, and what it had found is told.
#[test]
fn one_that_a_crash_ended_goes_on_among_the_rows() {
    let mut world = World::alone("verify_crash");
    let engine = Engine::opensearch();
    slow_things(&mut world);
    let sync = world.index_table("thing", &engine, SLOW_THINGS);
    world.wait(&sync);
    let concrete = format!("{}-fanout-1", world.index_name("thing"));
    engine.ask("DELETE", &format!("/{concrete}/_doc/2"), None);
    engine.ask("PUT", &format!("/{concrete}/_doc/{ROWS}"), Some(json!({"id": ROWS, "n": 0})));
    engine.ask("PUT", &format!("/{concrete}/_doc/90000"), Some(json!({"id": 90000})));
    pace(&mut world, 0.002);
    let (call, _) = calling(&world, &sync, "");
    let [rows, _] = noted(&mut world, "stage = 'rows' AND rows > 0");
    stack::crash("postgres");
    assert_eq!(call.join().expect("no panic").map_err(|error| error.code), Err("08006".into()));
    world.reconnect();
    pace(&mut world, 0.0);
    world.wait(&sync);
    let (call, _) = calling(&world, &sync, ", resume => true");
    assert_eq!(numbers(call.join().expect("no panic")), [ROWS, ROWS, 1, 1, 1, 0, 0, 0]);
    // Each of the other rows, and each document of the target, and now and then what differs.
    let (made, most) = (documents_made(&mut world), ROWS - rows + ROWS + 50);
    assert!(rows > 500 && made >= ROWS && made < most, "{rows} rows were compared before, {made} documents made since");
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.verification"), "0");
}

/// Ended among the ids of the target: the rows of those that were compared are not read again.
fn goes_on_among_the_ids(world: &mut World, sync: &str, end: &str) {
    pace(world, 0.002);
    let (call, pid) = calling(world, sync, "");
    let [rows, listed] = noted(world, "stage = 'ids' AND documents > 0");
    world.db.exec(&format!("SELECT {end}({pid})"));
    assert!(call.join().expect("no panic").is_err());
    assert_eq!(rows, ROWS);
    pace(world, 0.0);
    world.db.exec("CREATE TABLE kept AS TABLE fanout.verification");
    let before = documents_made(world);
    assert!(before > 0);
    let (call, _) = calling(world, sync, ", resume => true");
    assert_eq!(numbers(call.join().expect("no panic")), [ROWS, ROWS, 1, 1, 0, 0, 0, 0]);
    let (made, most) = (documents_made(world) - before, ROWS - listed + 50);
    assert!(made > 0 && made < most, "{listed} ids were compared before, {made} documents made since");
}

#[test]
fn one_that_was_terminated_goes_on_among_the_ids_of_an_index() {
    let mut world = World::new("verify_ids");
    let engine = Engine::opensearch();
    slow_things(&mut world);
    let sync = world.index_table("thing", &engine, SLOW_THINGS);
    world.wait(&sync);
    let concrete = format!("{}-fanout-1", world.index_name("thing"));
    engine.ask("PUT", &format!("/{concrete}/_doc/90000"), Some(json!({"id": 90000})));
    engine.ask("DELETE", &format!("/{concrete}/_doc/{ROWS}"), None);
    goes_on_among_the_ids(&mut world, &sync, "pg_terminate_backend");
}

#[test]
fn one_that_was_cancelled_goes_on_among_the_keys_of_redis() {
    let mut world = World::new("verify_keys");
    slow_things(&mut world);
    let sync = world.cache_table("thing", SLOW_THINGS);
    world.wait(&sync);
    let prefix = world.key_prefix("thing");
    world.db.exec(&format!("SELECT redis_del('cache', '{prefix}7'), redis_set('cache', '{prefix}90000', '1')"));
    goes_on_among_the_ids(&mut world, &sync, "pg_cancel_backend");
    // A cursor of another run of Redis leads anywhere.
    world.db.exec("INSERT INTO fanout.verification TABLE kept; UPDATE fanout.verification SET server_run = 'another'");
    let call = format!("CALL fanout.verify('{sync}', resume => true)");
    let heard = notice(&mut world.db, &call);
    assert!(heard.contains("goes on") && heard.contains("begins anew: Redis was started anew"), "{heard}");
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.verification"), "0");
}

#[test]
fn one_goes_on_only_with_what_is_still_so() {
    let mut world = World::new("verify_anew");
    slow_things(&mut world);
    let sync = world.index_table("thing", &Engine::opensearch(), SLOW_THINGS);
    world.wait(&sync);
    pace(&mut world, 0.002);
    let (call, pid) = calling(&world, &sync, "");
    noted(&mut world, "rows > 0");
    world.db.exec(&format!("SELECT pg_cancel_backend({pid})"));
    assert_eq!(call.join().expect("no panic").map_err(|error| error.code), Err("57014".into()));
    pace(&mut world, 0.0);
    world.db.exec("CREATE TABLE kept AS TABLE fanout.verification");
    let resume = format!("CALL fanout.verify('{sync}', resume => true)");
    let again = "INSERT INTO fanout.verification TABLE kept";
    for (change, call, said) in [
        ("SELECT", resume.clone(), "goes on where an earlier one was"),
        (again, format!("CALL fanout.verify('{sync}')"), "resume => true goes on with it"),
        ("SELECT", resume.clone(), "no earlier one"),
        (again, format!("CALL fanout.verify('{sync}', repair => true, resume => true)"), "another value of repair"),
        ("UPDATE kept SET saved_at = now() - interval '25 hours'", resume.clone(), "no earlier one"),
        (again, resume.clone(), "more than a day ago"),
        (
            "UPDATE kept SET saved_at = now(), position = set_byte(position, 0, get_byte(position, 0) # 1)",
            resume.clone(),
            "no earlier",
        ),
        (again, resume.clone(), "the table was rewritten"),
    ] {
        world.db.exec(change);
        let heard = notice(&mut world.db, &call);
        assert!(heard.contains(said), "{change}; {call}: {heard}");
        assert_eq!(world.db.value("SELECT count(*) FROM fanout.verification"), "0", "{change}; {call}");
    }
    // What the worker delivers anew is not as it was compared.
    world.db.exec(again);
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    world.wait(&sync);
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.verification"), "0");
    world.db.exec(again);
    let heard = notice(&mut world.db, &resume);
    assert!(heard.contains("altered, or delivered anew"), "{heard}");
    world.db.exec(&format!("UPDATE kept SET definition = definition || '{{\"request\": 1}}'; {again}"));
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}')"));
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.verification"), "0");
}

/// One that begins anew, since the sync was altered, notes what it is of itself, so that the next can go on with it.
#[test]
fn one_of_an_altered_sync_begins_anew_and_is_gone_on_with() {
    let mut world = World::new("verify_altered");
    slow_things(&mut world);
    let sync = world.index_table("thing", &Engine::opensearch(), SLOW_THINGS);
    world.wait(&sync);
    let ended = |world: &mut World, more: &str| {
        let begun = world.db.value("SELECT clock_timestamp()");
        pace(world, 0.002);
        let (call, pid) = calling(world, &sync, more);
        noted(world, &format!("rows > 0 AND saved_at > '{begun}'"));
        world.db.exec(&format!("SELECT pg_cancel_backend({pid})"));
        assert_eq!(call.join().expect("no panic").map_err(|error| error.code), Err("57014".into()));
        pace(world, 0.0);
    };
    ended(&mut world, "");
    world.db.exec("CREATE TABLE kept AS TABLE fanout.verification");
    // No document changes, so the worker delivers nothing anew.
    let altered = world.db.value(&format!("SELECT fanout.alter_sync('{sync}', on_reject => 'delete')"));
    assert_eq!(altered, "nothing");
    world.wait(&sync);
    let resume = format!("CALL fanout.verify('{sync}', resume => true)");
    let heard = notice(&mut world.db, &resume);
    assert!(heard.contains("begins anew: the sync was altered"), "{heard}");
    world.db.exec("INSERT INTO fanout.verification TABLE kept");
    ended(&mut world, ", resume => true");
    let heard = notice(&mut world.db, &resume);
    assert!(heard.contains("goes on where an earlier one was"), "{heard}");
}

/// Whoever goes on with one that is still alive has one of his own then.
#[test]
fn two_of_one_sync_do_not_disturb_each_other() {
    let mut world = World::new("verify_two");
    slow_things(&mut world);
    let sync = world.cache_table("thing", SLOW_THINGS);
    world.wait(&sync);
    let prefix = world.key_prefix("thing");
    world.db.exec(&format!("SELECT redis_del('cache', '{prefix}7'), redis_set('cache', '{prefix}90000', '1')"));
    pace(&mut world, 0.002);
    let (first, _) = calling(&world, &sync, ", repair => true");
    noted(&mut world, "stage = 'rows' AND rows > 0");
    let (second, _) = calling(&world, &sync, ", repair => true, resume => true");
    // Both note how far they are.
    eventually_ok("two notes", Duration::from_secs(30), || {
        let notes = world.db.column("SELECT stage || ' ' || rows FROM fanout.verification");
        if notes.len() == 2 { Ok(()) } else { Err(format!("{notes:?}")) }
    });
    pace(&mut world, 0.0);
    for call in [first, second] {
        let [rows, _, missing, extra, ..] = numbers(call.join().expect("no panic"))[..] else {
            panic!("eight numbers")
        };
        // What one of them has repaired, the other may not find any more.
        assert!(rows == ROWS && missing <= 1 && extra <= 1, "{rows} {missing} {extra}");
    }
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.verification"), "0");
    assert_eq!(counts(&verify(&mut world, &sync, "")), [0, 0, 0, 0]);
}

#[test]
fn a_session_that_may_only_read_verifies() {
    let mut world = World::new("verify_read_only");
    slow_things(&mut world);
    let sync = world.cache_table("thing", SLOW_THINGS);
    world.wait(&sync);
    pace(&mut world, 0.0005);
    world.db.exec("SET default_transaction_read_only = on");
    let verified = verify(&mut world, &sync, "");
    assert_eq!((counts(&verified), &verified["rows"]), (vec![0; 4], &json!(ROWS)));
}
