//! A clock that is set back, and one that leaps to the future and back.

use crate::postgres::worker;
use crate::tables::products;
use crate::watch::{Watch, processor_time, versions};
use pg_test::{Engine, Second, World, assert_in_step, eventually};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The clock of a server that runs with Debian's `faketime`, which reads how far it is off from a file.
struct Clock {
    file: PathBuf,
}

impl Clock {
    fn right() -> Self {
        let clock = Self { file: std::env::temp_dir().join(format!("pg_fanout_clock_{}", std::process::id())) };
        clock.set(0);
        clock
    }

    fn set(&self, seconds: i64) {
        // Whole at each moment: the server reads it all the time.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}")).expect("the file of the clock");
        std::fs::rename(&new, &self.file).expect("the file of the clock");
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// The library that makes a process believe in another time.
fn library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    folders.map(|it| it.path().join("faketime/libfaketime.so.1")).find(|path| path.exists())
}

#[test]
fn a_clock_that_leaps_takes_no_version_back_and_stops_nothing() {
    let Some(library) = library() else {
        println!("skipped: the package faketime is not installed; stack/install servers installs it");
        return;
    };
    let clock = Clock::right();
    let server = Second::new(
        &format!("clock_{}", std::process::id()),
        &[],
        &[
            &format!("LD_PRELOAD={}", library.display()),
            &format!("FAKETIME_TIMESTAMP_FILE={}", clock.file.display()),
            "FAKETIME_NO_CACHE=1",
            // Nobody sets this one back.
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        ],
    );
    let mut world = World::on(&server, "clock");
    let engine = Engine::opensearch();
    products(&mut world, 200);
    let syncs = [world.index_table("product", &engine, ""), world.cache_table("product", ", name => 'cache'")];
    for sync in &syncs {
        assert_in_step(&mut world, sync);
    }
    let index = world.index_name("product");
    let ids: Vec<String> = (1..=200).map(|id: u32| id.to_string()).collect();
    let watch = Watch::start(index.clone(), ids.clone(), vec![Engine::opensearch()]);
    let mut before = versions(&engine, &index, &ids);
    for (round, (offset, restart)) in
        [(86_400, false), (0, false), (-3600, false), (-3600, true), (7200, true), (0, true), (-3600, false)]
            .into_iter()
            .enumerate()
    {
        clock.set(offset);
        eventually("the server believes it", Duration::from_secs(10), || {
            let off: f64 = world.db.value("SELECT extract(epoch FROM clock_timestamp())").parse().expect("seconds");
            let now = std::time::UNIX_EPOCH.elapsed().expect("a time").as_secs_f64();
            (off - now - offset as f64).abs() < 5.0
        });
        if restart {
            let pid = worker(&mut world);
            world.db.exec(&format!("SELECT pg_terminate_backend({pid})"));
        }
        let begun = Instant::now();
        for half in 0..2 {
            world.db.exec(&format!("UPDATE product SET name = 'round {round}', price = {half}"));
            for sync in &syncs {
                assert_in_step(&mut world, sync);
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?} with the clock off by {offset} s", begun.elapsed());
        let now = versions(&engine, &index, &ids);
        assert_eq!(now.len(), 200);
        assert!(ids.iter().all(|id| now[id] > before[id]), "versions did not grow with the clock off by {offset} s");
        before = now;
        // Idle it does as little as ever, and says what is true.
        let spent = processor_time(&mut world);
        std::thread::sleep(Duration::from_secs(3));
        let spent = processor_time(&mut world) - spent;
        assert!(spent < 50, "{spent} hundredths of 3 s with the clock off by {offset} s");
        for sync in &syncs {
            assert_eq!(world.status(sync, "state"), "live");
            assert_eq!(world.status(sync, "last_error"), "NULL");
            let lag = world.status(sync, "coalesce(extract(epoch FROM lag), 0)").parse::<f64>().expect("seconds");
            assert!((0.0..10.0).contains(&lag), "lag {lag} with the clock off by {offset} s");
        }
    }
    assert!(watch.stop() > 1000);
}
