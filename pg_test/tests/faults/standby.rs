//! A standby, and what it does when it is promoted beside its primary.

use crate::tables::products;
use pg_test::{Engine, Session, World, assert_in_step, eventually, stack};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A second server, made by pg_basebackup.
struct Standby {
    port: u16,
    folder: PathBuf,
    process: Child,
}

/// PostgreSQL refuses to run as root.
fn as_server(program: &str) -> Command {
    let is_root = std::env::var("USER").is_ok_and(|user| user == "root")
        || std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
    if !is_root {
        return Command::new(program);
    }
    let user = std::env::var("STACK_USER").unwrap_or_else(|_| "postgres".into());
    let mut command = Command::new("runuser");
    command.args(["-u", &user, "--", program]);
    command
}

fn program(name: &str) -> String {
    let output = Command::new("pg_config").arg("--bindir").output();
    let from_variable = std::env::var("PG_CONFIG").map(|path| Command::new(path).arg("--bindir").output());
    let output = from_variable.unwrap_or(output).expect("pg_config");
    format!("{}/{name}", String::from_utf8_lossy(&output.stdout).trim())
}

impl Standby {
    fn make(tag: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
        let folder = std::env::temp_dir().join(format!("standby_{tag}"));
        let output = as_server(&program("pg_basebackup"))
            .args(["--write-recovery-conf", "--checkpoint=fast", "--pgdata"])
            .arg(&folder)
            .current_dir("/tmp")
            .output()
            .expect("pg_basebackup");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let process = as_server(&program("postgres"))
            .args([
                "-c",
                &format!("port={port}"),
                "-c",
                "unix_socket_directories=",
                "-c",
                "fanout.owner_stale=5s",
                "-D",
            ])
            .arg(&folder)
            .current_dir("/tmp")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres");
        let standby = Self { port, folder, process };
        eventually("the standby answers", Duration::from_secs(60), || standby.try_connect("postgres").is_some());
        standby
    }

    fn try_connect(&self, database: &str) -> Option<Session> {
        Session::try_connect_at(self.port, database, None).ok()
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        let _ = as_server(&program("pg_ctl")).args(["stop", "-m", "immediate", "-D"]).arg(&self.folder).output();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
#[ignore = "the long form: make faults"]
fn a_standby_sends_nothing_and_goes_on_once_it_is_promoted_and_alone() {
    let mut world = World::alone("standby");
    products(&mut world, 50);
    let engine = Engine::opensearch();
    let sync = world.index_table("product", &engine, "");
    assert_in_step(&mut world, &sync);
    let standby = Standby::make(&world.tag);
    let mut db = standby.try_connect(&world.database()).expect("a connection to the standby");
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_fanout worker'";
    assert_eq!(db.value(workers), "0");
    assert_eq!(db.value("SELECT count(*) FROM fanout.sync"), "1");
    // Promoted beside its living primary it touches nothing.
    db.exec("SELECT pg_promote()");
    eventually("its sync says who feeds the index", Duration::from_secs(30), || {
        db.value(&format!("SELECT coalesce(last_error, '') FROM fanout.status WHERE sync = '{sync}'"))
            .contains("fed by another")
    });
    db.exec("UPDATE product SET name = 'promoted'; DELETE FROM product WHERE id > 40");
    world.db.exec("UPDATE product SET name = 'primary'");
    assert_in_step(&mut world, &sync);
    // Alone it goes on, and the index has what it has.
    let index = world.index_name("product");
    let primary = stack::stop("postgres");
    eventually("the promoted one feeds the index", Duration::from_secs(120), || {
        engine.refresh(&index);
        let documents = engine.documents(&index);
        documents.len() == 40 && documents.iter().all(|it| it.source["name"] == "promoted")
    });
    drop(db);
    drop(standby);
    primary.start();
    world.reconnect();
}
