//! Calls that wait for a network can be ended at any time.

use pg_test::{BlackHole, World};
use std::thread;
use std::time::{Duration, Instant};

/// Far less than any timeout of a request, far more than the 100 ms that it should take: other processes run here too.
const SOON: Duration = Duration::from_secs(3);

fn with_black_holes(name: &str) -> (World, BlackHole) {
    let mut world = World::new(name);
    let hole = BlackHole::open();
    let address = hole.address();
    world.db.exec(&format!(
        "CREATE SERVER dark_index FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'http://{address}');
         CREATE SERVER dark_cache FOREIGN DATA WRAPPER fanout_redis OPTIONS (url 'redis://{address}')"
    ));
    (world, hole)
}

const CALLS: [&str; 3] = [
    "SELECT * FROM es_search_index('dark_index', 'x', 'query', fields => '{name}')",
    "SELECT redis_get('dark_cache', 'x')",
    "SELECT redis_set('dark_cache', 'x', 'y')",
];

#[test]
fn statement_timeout_ends_a_call_to_a_server_that_does_not_answer() {
    let (mut world, _hole) = with_black_holes("timeout");
    world.db.exec("SET statement_timeout = '200ms'");
    for call in CALLS {
        let begun = Instant::now();
        let refusal = world.db.refusal(call);
        assert_eq!(refusal.code, "57014", "{refusal}\nto: {call}");
        assert!(begun.elapsed() < SOON, "{:?}: {call}", begun.elapsed());
        // The session is as good as before.
        assert_eq!(world.db.value("SELECT 1"), "1");
    }
}

#[test]
fn cancel_and_terminate_end_a_call_to_a_server_that_does_not_answer() {
    let (mut world, _hole) = with_black_holes("cancel");
    for call in CALLS {
        // The client may see the end of the connection before what was said last on it.
        let ends = [("pg_cancel_backend", ["57014"; 2]), ("pg_terminate_backend", ["57P01", "08006"])];
        for (how, codes) in ends {
            let mut session = world.connect();
            let pid = session.pid();
            let waiting = thread::spawn(move || session.refusal(call).code);
            thread::sleep(Duration::from_millis(200));
            let begun = Instant::now();
            world.db.exec(&format!("SELECT {how}({pid})"));
            let code = waiting.join().expect("an error, not a panic");
            assert!(codes.contains(&code.as_str()), "{how}: {code}: {call}");
            let left = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
            pg_test::eventually("the end of the session", SOON, || world.db.value(&left) == "0");
            assert!(begun.elapsed() < SOON, "{how}: {:?}: {call}", begun.elapsed());
        }
    }
}

#[test]
fn wait_can_be_cancelled() {
    let (mut world, _hole) = with_black_holes("cancel_wait");
    world.db.exec("CREATE TABLE t (id int PRIMARY KEY); SELECT fanout.index_table('t', server => 'dark_index')");
    world.db.exec("SET statement_timeout = '200ms'");
    let begun = Instant::now();
    let refusal = world.db.refusal("SELECT fanout.wait('t', '60s')");
    assert_eq!(refusal.code, "57014", "{refusal}");
    assert!(begun.elapsed() < SOON);
}

#[test]
fn a_server_that_is_not_there_is_an_error_with_its_reason() {
    let mut world = World::new("nobody_there");
    world.db.exec(
        "CREATE SERVER gone_index FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url 'http://127.0.0.1:1');
         CREATE SERVER gone_cache FOREIGN DATA WRAPPER fanout_redis OPTIONS (url 'redis://127.0.0.1:1')",
    );
    for call in CALLS.map(|call| call.replace("dark", "gone")) {
        let begun = Instant::now();
        let refusal = world.db.refusal(&call);
        assert!(refusal.code.starts_with("08") || refusal.code.starts_with("HV"), "{refusal}");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}: {call}", begun.elapsed());
    }
}
