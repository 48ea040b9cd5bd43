//! Stopping and starting servers, by the scripts in `stack/`.

use std::path::Path;
use std::process::Command;

fn script(name: &str, arguments: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../stack").join(name);
    let output = Command::new(&path)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", path.display()));
    assert!(
        output.status.success(),
        "stack/{name} {} failed:\n{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Stops a server in order, starts it again and waits until it answers.
pub fn restart(server: &str) {
    script("restart", &[server]);
}

/// As [`restart`], but the server goes down as in a crash.
pub fn crash(server: &str) {
    script("restart", &[server, "immediate"]);
}

/// As [`restart`], but the server's first process is killed as by the system, without a chance to do anything.
pub fn kill(server: &str) {
    let folder = std::env::var("STACK_DIR").expect("STACK_DIR is set, as stack/env prints it");
    let file = Path::new(&folder).join("pid").join(server);
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let pid = text.split(' ').next().unwrap_or_default();
    let killed = Command::new("kill").args(["-KILL", pid]).status().expect("kill can be run");
    assert!(killed.success(), "cannot kill {server}, process {pid}");
    script("restart", &[server]);
}

/// A server that is down for as long as this lives.
///
/// Dropping it starts the server, so that a test which fails in between does not take the others with it.
pub struct Stopped {
    server: &'static str,
}

/// Stops a server.
pub fn stop(server: &'static str) -> Stopped {
    script("stop", &[server]);
    Stopped { server }
}

impl Stopped {
    /// Starts it again and waits until it answers.
    pub fn start(self) {}
}

impl Drop for Stopped {
    fn drop(&mut self) {
        script("start", &[self.server]);
    }
}
