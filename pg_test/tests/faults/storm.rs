//! Faults at random while an oracle writes; in the end everything must be in step.

use crate::proxied::{Proxies, in_step_again};
use crate::watch::Watch;
use pg_test::oracle::{self, Oracle};
use pg_test::proxy::{Fault, Item, Request};
use pg_test::{Dice, Engine, World, stack};
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

/// The seed of the first storm.
fn seed() -> u64 {
    std::env::var("FAULTS_SEED")
        .map_or_else(|_| fastrand::u64(..1 << 40), |text| text.parse().expect("FAULTS_SEED is a number"))
}

/// One seed after the other until the time is over; each prints a line.
#[test]
fn random_faults_end_in_step() {
    let (first, begun) = (seed(), Instant::now());
    let limit = Duration::from_secs_f64(crate::minutes().unwrap_or(0.0) * 60.0);
    for number in 0.. {
        storm(first + number);
        if begun.elapsed() > limit {
            break;
        }
    }
}

fn storm(seed: u64) {
    let begun = Instant::now();
    eprintln!("storm: repeat with FAULTS_SEED={seed}");
    let mut dice = Dice::with_seed(seed);
    let mut world = World::alone(&format!("storm_{seed}"));
    let proxies = Proxies::before(&mut world);
    oracle::tables(&mut world);
    let mut syncs = Vec::new();
    for table in ["item", "shared"] {
        syncs.push(world.index_table(table, &Engine::opensearch(), &format!(", name => '{table}_os'")));
        syncs.push(world.index_table(table, &Engine::elasticsearch(), &format!(", name => '{table}_es'")));
        syncs.push(world.cache_table(table, &format!(", name => '{table}_redis'")));
    }
    let ids = (0..4).flat_map(|n| (0..50).map(move |id| (n * 1_000_000 + id).to_string()));
    let watch =
        Watch::start(world.index_name("item"), ids.collect(), vec![Engine::opensearch(), Engine::elasticsearch()]);
    let mut oracle = Oracle::new(4);
    let mut commits = 0;
    for _ in 0..2 {
        for proxy in proxies.all() {
            let mut dice = dice.fork();
            // Some storms are worse than others.
            let one_in = [3, 10, 40][dice.below(3) as usize];
            proxy.plan(move |request| if dice.once_in(one_in) { fault(request, &mut dice) } else { Fault::Pass });
        }
        oracle.start(&world, &mut dice);
        thread::sleep(Duration::from_secs(3));
        match dice.below(6) {
            0 => {
                stack::crash("postgres");
                oracle.stop();
                world.reconnect();
                // What was prepared and not committed.
                for name in world.db.column("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") {
                    world.db.exec(&format!("COMMIT PREPARED '{name}'"));
                }
                oracle.check(&mut world);
                oracle.start(&world, &mut dice);
            }
            1 | 2 => world.end_worker(),
            // A target is not there at all for a while.
            3 => proxies.all()[dice.below(3) as usize].refuse(true),
            _ => {}
        }
        thread::sleep(Duration::from_secs(3));
        commits = oracle.stop();
        proxies.calm();
        oracle.check(&mut world);
        for sync in &syncs {
            world.db.exec(&format!("SELECT fanout.retry('{sync}')"));
            in_step_again(&mut world, sync);
            assert_eq!(world.status(sync, "dead_letters"), "0", "{sync}");
        }
    }
    let samples = watch.stop();
    let faults: u64 = proxies.all().iter().map(|proxy| proxy.faults()).sum();
    assert!(commits > 50 && faults > 0 && samples > 0, "{commits} commits, {faults} faults, {samples} samples");
    eprintln!(
        "storm: seed {seed}: in step after {commits} commits, {faults} faults, {samples} versions seen, {:.0} s",
        begun.elapsed().as_secs_f64()
    );
}

/// A fault that a target could show at this request and that says nothing for good about a document.
fn fault(request: &Request, dice: &mut Dice) -> Fault {
    let common = [
        Fault::Delay(Duration::from_millis(dice.below(400))),
        Fault::Hang,
        Fault::Reset,
        Fault::Mute,
        Fault::LostReply,
        Fault::HalfReply,
    ];
    if dice.once_in(2) {
        return common[dice.below(6) as usize].clone();
    }
    if !request.path.starts_with('/') {
        let errors = [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
            "LOADING Redis is loading the dataset in memory",
            "MOVED 3999 127.0.0.1:1",
            "NOSCRIPT No matching script. Please use EVAL.",
        ];
        return if request.is_write() { Fault::Error(errors[dice.below(5) as usize]) } else { Fault::Reset };
    }
    let ids = request.ids().len() as u64;
    if request.is_bulk() && ids > 0 && dice.once_in(2) {
        // A version that another clock could have given: a little ahead of ours.
        let ahead = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_micros() as u64) + 1_000_000;
        let kinds = [Item::Malformed, Item::NoIndex, Item::Conflict(ahead), Item::Busy, Item::Unavailable];
        let places = (0..1 + dice.below(ids)).map(|_| dice.below(ids) as usize);
        let places: Vec<usize> = places.collect();
        return Fault::Items(
            places.into_iter().map(|place| (place, kinds[dice.below(5) as usize])).collect::<BTreeMap<_, _>>(),
        );
    }
    match dice.below(4) {
        0 => Fault::Answer(429, r#"{"error":{"type":"es_rejected_execution_exception","reason":"busy"},"status":429}"#),
        1 => Fault::Answer(503, "{}"),
        2 => Fault::Answer(502, "<html>bad gateway</html>"),
        // A single document that is too large would be a dead letter, and rightly so.
        _ if ids > 1 => Fault::Answer(413, ""),
        _ => Fault::Reset,
    }
}
