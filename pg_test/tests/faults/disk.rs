//! A disk that is full.

use crate::proxied::{Proxies, in_step_again};
use pg_test::{ServerLog, Session, Setting, World, assert_in_step, eventually};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A small disk with a tablespace on it.
struct SmallDisk {
    folder: PathBuf,
    tablespace: String,
}

impl SmallDisk {
    /// None where mounting is not allowed.
    fn mount() -> Option<Self> {
        let tablespace = format!("small_{}", std::process::id());
        let folder = std::env::temp_dir().join(format!("pg_fanout_{tablespace}"));
        std::fs::create_dir_all(&folder).expect("a folder to mount at");
        let user = std::env::var("STACK_USER").unwrap_or_else(|_| "postgres".into());
        let owner = |flag: &str| {
            let output = Command::new("id").args([flag, &user]).output().expect("id");
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        let options = format!("size=48m,mode=700,uid={},gid={}", owner("-u"), owner("-g"));
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&folder).output();
        if !mounted.is_ok_and(|it| it.status.success()) {
            let _ = std::fs::remove_dir(&folder);
            println!("skipped: a small disk cannot be mounted here");
            return None;
        }
        let disk = Self { folder, tablespace };
        Session::connect("postgres").exec(&format!(
            "CREATE TABLESPACE {} LOCATION '{}'",
            disk.tablespace,
            disk.folder.display()
        ));
        Some(disk)
    }

    /// Takes all space but so many bytes.
    fn fill(&self, but: u64) {
        let mut ballast = File::create(self.folder.join("ballast")).expect("a file on the small disk");
        let block = vec![0u8; 4096];
        let mut size = 0;
        while ballast.write_all(&block).is_ok() {
            size += block.len() as u64;
        }
        ballast.set_len(size.checked_sub(but).expect("that much space")).expect("a file that can be cut");
    }

    fn free(&self) {
        let _ = std::fs::remove_file(self.folder.join("ballast"));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.free();
        if std::env::var_os("PG_TEST_KEEP").is_some() {
            return;
        }
        let dropped = Session::try_connect("postgres", None)
            .and_then(|mut db| db.try_exec(&format!("DROP TABLESPACE {}", self.tablespace)));
        let _ = Command::new("umount").arg(&self.folder).status();
        let _ = std::fs::remove_dir(&self.folder);
        if !std::thread::panicking() {
            dropped.expect("the tablespace is empty");
        }
    }
}

/// A table with rows 1 to 1000 whose own file is not on the small disk: only what is noted of its changes is. And one without a sync.
fn items(world: &mut World) {
    world.db.exec(
        "CREATE TABLE item (id int, n int NOT NULL, PRIMARY KEY (id) USING INDEX TABLESPACE pg_default) TABLESPACE pg_default;
         INSERT INTO item SELECT i, 0 FROM generate_series(1, 1000) AS i;
         CREATE TABLE other (id int) TABLESPACE pg_default",
    );
}

#[test]
fn a_full_disk_under_the_journal_is_an_error_of_the_writer_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut world = World::alone_in(&disk.tablespace, "disk_full");
    let proxies = Proxies::before(&mut world);
    items(&mut world);
    let sync = world.cache_table("item", "");
    assert_in_step(&mut world, &sync);
    let started = world.db.value("SELECT pg_postmaster_start_time()");
    proxies.redis.plan(|_| pg_test::proxy::Fault::Reset);
    proxies.redis.refuse(true);
    disk.fill(0);
    let mut committed = 0;
    let refused = loop {
        match world.db.try_exec(&format!("UPDATE item SET n = {} WHERE id <= 500", committed + 1)) {
            Ok(()) => committed += 1,
            Err(refusal) => break refusal,
        }
        assert!(committed < 5000, "the disk is not full");
    };
    assert_eq!(refused.code, "53100", "{refused}");
    // All or nothing, as of any error; who reads, and who writes what no sync has, feels nothing.
    assert_eq!(
        world.db.value("SELECT string_agg(DISTINCT n::text, ',') FROM item WHERE id <= 500"),
        committed.to_string()
    );
    for _ in 0..20 {
        assert_eq!(world.db.refusal("UPDATE item SET n = -1 WHERE id > 500").code, "53100");
    }
    world.db.exec("INSERT INTO other SELECT generate_series(1, 1000)");
    disk.free();
    world.db.exec("UPDATE item SET n = 7 WHERE id > 900; DELETE FROM item WHERE id % 10 = 0");
    proxies.calm();
    in_step_again(&mut world, &sync);
    assert_eq!(world.db.value("SELECT pg_postmaster_start_time()"), started, "PostgreSQL went down");
    assert_eq!(world.status(&sync, "dead_letters"), "0");
}

#[test]
fn a_full_disk_under_the_pending_keys_loses_nothing() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut world = World::alone_in(&disk.tablespace, "pending_full");
    let _pending = Setting::set(&mut world, "fanout.pending_keys", "1000");
    let _size = Setting::set(&mut world, "fanout.segment_size", "128kB");
    let proxies = Proxies::before(&mut world);
    items(&mut world);
    let sync = world.cache_table("item", "");
    assert_in_step(&mut world, &sync);
    let started = world.db.value("SELECT pg_postmaster_start_time()");
    let log = ServerLog::here();
    proxies.redis.plan(|_| pg_test::proxy::Fault::Reset);
    proxies.redis.refuse(true);
    disk.fill(512 * 1024);
    let files = "SELECT pg_relation_filepath(c) FROM unnest('{fanout.pending, fanout.pending_pkey}'::regclass[]) AS c";
    let files = world.db.column(files);
    let mut rows = 1000;
    eventually("the worker has no room for a key", Duration::from_secs(60), || {
        let insert = format!("INSERT INTO item SELECT i, 1 FROM generate_series({}, {}) AS i", rows + 1, rows + 500);
        match world.db.try_exec(&insert) {
            Ok(()) => rows += 500,
            Err(refusal) => assert_eq!(refusal.code, "53100", "{refusal}"),
        }
        files.iter().any(|file| log.has("could not extend file", file))
    });
    // It has not given up, and holds no writer: those have an error or go on.
    for _ in 0..20 {
        if let Err(refusal) = world.db.try_exec("UPDATE item SET n = n + 1 WHERE id <= 500") {
            assert_eq!(refusal.code, "53100", "{refusal}");
        }
    }
    disk.free();
    world.db.exec("DELETE FROM item WHERE id % 10 = 0");
    proxies.calm();
    in_step_again(&mut world, &sync);
    assert!(rows > 1000);
    assert_eq!(world.db.value("SELECT pg_postmaster_start_time()"), started, "PostgreSQL went down");
    assert_eq!(world.status(&sync, "dead_letters"), "0");
    eventually("nothing is kept", Duration::from_secs(30), || {
        world.db.value("SELECT count(*) FROM fanout.pending") == "0"
    });
}
