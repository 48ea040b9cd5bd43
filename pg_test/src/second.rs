//! A second PostgreSQL server: with the files of the first, or with a cluster of its own.

use crate::database::Session;
use crate::waiting::eventually;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server made by initdb, or by pg_basebackup from the one that the environment names. Stopped and removed when dropped.
pub struct Second {
    port: u16,
    folder: PathBuf,
    process: Option<Child>,
    /// `name=value`.
    settings: Vec<String>,
    environment: Vec<String>,
}

impl Second {
    /// An empty cluster with these settings, running with these environment variables: each `name=value`.
    pub fn new(tag: &str, settings: &[&str], environment: &[&str]) -> Self {
        let mut server = Self::in_folder(tag);
        let mut initdb = as_server(&program("initdb"));
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-D"]);
        run(initdb.arg(&server.folder));
        server.settings =
            [&["shared_preload_libraries=pg_fanout"], settings].concat().iter().map(|&it| it.into()).collect();
        server.environment = environment.iter().map(|&it| it.into()).collect();
        server.start();
        server
    }

    /// A standby of the first, running.
    pub fn standby(tag: &str) -> Self {
        let mut standby = Self::of(tag, &["--write-recovery-conf"]);
        standby.start();
        standby
    }

    /// A copy of the files, not started yet. It knows of no primary, so it will go on as if it were the first itself, on the
    /// same timeline.
    pub fn copy(tag: &str) -> Self {
        Self::of(tag, &[])
    }

    fn of(tag: &str, options: &[&str]) -> Self {
        let server = Self::in_folder(tag);
        let mut backup = as_server(&program("pg_basebackup"));
        run(backup.arg("--checkpoint=fast").args(options).arg("--pgdata").arg(&server.folder));
        server
    }

    fn in_folder(tag: &str) -> Self {
        // Of this run alone: another may be at the same test.
        let folder = std::env::temp_dir().join(format!("second_{tag}_{}", std::process::id()));
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
        Self { port, folder, process: None, settings: vec!["fanout.owner_stale=5s".into()], environment: Vec::new() }
    }

    /// Starts it and waits until it answers.
    pub fn start(&mut self) {
        let port = format!("port={}", self.port);
        let log = File::create(self.log_file()).expect("a file for the server's log");
        // The command that changes the user is not to read these variables.
        let mut command = as_server(Path::new("env"));
        command.args(&self.environment).arg(program("postgres")).args(["-c", &port, "-c", "unix_socket_directories="]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        command.arg("-D").arg(&self.folder).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().expect("postgres");
        self.process = Some(process);
        eventually("the second server answers", Duration::from_secs(60), || self.try_connect("postgres").is_some());
    }

    /// Stops it in order.
    pub fn stop(&mut self) {
        self.end("fast");
    }

    /// Makes what tells where it runs another, as a restart of the machine does. It must be stopped.
    pub fn leave_place(&self) {
        let control = self.folder.join("global/pg_control");
        let other = control.with_extension("other");
        run(as_server(Path::new("cp")).arg("--preserve").arg(&control).arg(&other));
        std::fs::rename(other, control).expect("its pg_control");
    }

    /// Puts it, which must be stopped, through pg_upgrade: to the same release, so that the system identifier is all that changes.
    pub fn upgrade(&mut self, first: &mut Session) {
        let (old, new) = (self.folder.clone(), self.folder.with_extension("upgraded"));
        let of_template0 = |column: &str| format!("SELECT {column} FROM pg_database WHERE datname = 'template0'");
        let encoding = first.value(&of_template0("pg_encoding_to_char(encoding)"));
        let locale = first.value(&of_template0("datcollate"));
        let user = first.value("SELECT rolname FROM pg_roles WHERE oid = 10");
        let mut initdb = as_server(&program("initdb"));
        initdb.args(["--no-sync", "--encoding", &encoding, "--locale", &locale, "--username", &user, "--pgdata"]);
        if first.value("SHOW data_checksums") == "on" {
            initdb.arg("--data-checksums");
        }
        run(initdb.arg(&new));
        let settings = std::fs::read_dir(&old).expect("its folder").flatten().map(|file| file.path());
        run(as_server(Path::new("cp"))
            .args(settings.filter(|file| file.extension().is_some_and(|it| it == "conf")))
            .arg(&new));
        let bin = program("");
        let mut upgrade = as_server(&program("pg_upgrade"));
        upgrade.args(["--username", &user, "--old-port", &self.port.to_string(), "--new-port", &self.port.to_string()]);
        upgrade.arg("--old-bindir").arg(&bin).arg("--new-bindir").arg(&bin);
        // It writes into the folder where it runs.
        run(upgrade.arg("--old-datadir").arg(&old).arg("--new-datadir").arg(&new).current_dir(&old));
        let _ = std::fs::remove_dir_all(&old);
        self.folder = new;
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it wrote to its log since its start.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_file()).expect("the server's log")).into_owned()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.with_extension("log")
    }

    fn end(&mut self, mode: &str) {
        let Some(mut process) = self.process.take() else { return };
        let _ = as_server(&program("pg_ctl")).args(["stop", "-m", mode, "-D"]).arg(&self.folder).output();
        let _ = process.wait();
    }

    /// A connection to one of its databases.
    pub fn connect(&self, database: &str) -> Session {
        self.try_connect(database).unwrap_or_else(|| panic!("cannot connect to {database} of the second server"))
    }

    fn try_connect(&self, database: &str) -> Option<Session> {
        Session::try_connect_at(self.port, database, None).ok()
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.end("immediate");
        let _ = std::fs::remove_file(self.log_file());
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A command that runs as the user of the servers: PostgreSQL refuses to run as root.
fn as_server(program: &Path) -> Command {
    let is_root = std::env::var("USER").is_ok_and(|user| user == "root")
        || std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
    let mut command = if is_root {
        let user = std::env::var("STACK_USER").unwrap_or_else(|_| "postgres".into());
        let mut command = Command::new("runuser");
        command.args(["-u", &user, "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/tmp");
    command
}

fn program(name: &str) -> PathBuf {
    let pg_config = std::env::var("PG_CONFIG").unwrap_or_else(|_| "pg_config".into());
    let output =
        Command::new(&pg_config).arg("--bindir").output().unwrap_or_else(|error| panic!("{pg_config}: {error}"));
    Path::new(String::from_utf8_lossy(&output.stdout).trim()).join(name)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{said}");
}
