//! A Redis Cluster of three nodes without replicas, for one test. pg_test has it, too.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use redis::{Connection, FromRedisValue};

const SLOTS: usize = 16384;

/// Running as long as it lives. Nothing is on disk but which node has which slots: who restarts is empty.
pub struct RedisCluster {
    nodes: Vec<ClusterNode>,
    folder: PathBuf,
}

struct ClusterNode {
    port: u16,
    process: Option<Child>,
    id: String,
}

impl RedisCluster {
    /// Starts three nodes with a third of the slots each.
    pub fn start(tag: &str) -> RedisCluster {
        let folder = std::env::temp_dir().join(format!("redis_cluster_{tag}"));
        let mut cluster = RedisCluster { nodes: Vec::new(), folder };
        for number in 0..3 {
            let node = ClusterNode { port: free_port(), process: None, id: String::new() };
            std::fs::create_dir_all(cluster.folder.join(number.to_string())).expect("a folder for a node");
            cluster.nodes.push(node);
            cluster.start_node(number);
            cluster.nodes[number].id = cluster.ask(number, &["CLUSTER", "MYID"]);
            let slots: Vec<String> =
                (number * SLOTS / 3..(number + 1) * SLOTS / 3).map(|slot| slot.to_string()).collect();
            let mut command = vec!["CLUSTER", "ADDSLOTS"];
            command.extend(slots.iter().map(String::as_str));
            cluster.ask::<()>(number, &command);
            // Else all have the same, and it takes them a while to agree.
            cluster.ask::<()>(number, &["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
        }
        for other in 1..3 {
            let port = cluster.nodes[other].port.to_string();
            cluster.ask::<()>(0, &["CLUSTER", "MEET", "127.0.0.1", &port]);
        }
        cluster.wait();
        cluster
    }

    /// Until each node knows of all, and answers.
    pub fn wait(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        let ready = |number| {
            let info: String = self.ask(number, &["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok")
                && info.contains("cluster_slots_ok:16384")
                && info.contains("cluster_size:3")
        };
        while !(0..3).all(ready) {
            assert!(Instant::now() < end, "the nodes of the Redis Cluster don't find together");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The URL of a node.
    pub fn url(&self, number: usize) -> String {
        format!("redis://127.0.0.1:{}", self.nodes[number].port)
    }

    /// Starts a node again, after [`RedisCluster::kill`]: with its slots, and empty.
    pub fn start_node(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let process = Command::new("redis-server")
            .args(["--port", &node.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--dir"])
            .arg(self.folder.join(number.to_string()))
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed: stack/install");
        node.process = Some(process);
        let end = Instant::now() + Duration::from_secs(20);
        while self.try_connect(number).is_none() {
            assert!(Instant::now() < end, "a node of the Redis Cluster does not answer");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends a node as a crash would.
    pub fn kill(&mut self, number: usize) {
        if let Some(mut process) = self.nodes[number].process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn try_connect(&self, number: usize) -> Option<Connection> {
        redis::Client::open(self.url(number)).ok()?.get_connection().ok()
    }

    /// A connection to a node.
    pub fn connect(&self, number: usize) -> Connection {
        self.try_connect(number).expect("a node of the Redis Cluster")
    }

    /// Asks a node, which has to answer without an error.
    pub fn ask<T: FromRedisValue>(&self, number: usize, command: &[&str]) -> T {
        let mut asked = redis::Cmd::new();
        asked.arg(command);
        asked.query(&mut self.connect(number)).unwrap_or_else(|error| panic!("{} …: {error}", command[0]))
    }

    /// The keys on a node that match.
    pub fn keys(&self, number: usize, pattern: &str) -> Vec<String> {
        self.ask(number, &["KEYS", pattern])
    }

    /// The slot of a key, and the node that owns it.
    pub fn slot(&self, key: &str) -> (u16, usize) {
        let slot: u16 = self.ask(0, &["CLUSTER", "KEYSLOT", key]);
        let owner = |number: &usize| {
            let own: String = self.ask(*number, &["CLUSTER", "NODES"]);
            let line = own.lines().find(|line| line.contains("myself")).unwrap_or_default().to_owned();
            line.split(' ').skip(8).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let bound = |text: &str| text.parse::<u16>().ok();
                bound(first).zip(bound(last)).is_some_and(|(first, last)| (first..=last).contains(&slot))
            })
        };
        (slot, (0..3).find(owner).expect("each slot has an owner"))
    }

    /// A slot begins to move, with none of its keys yet.
    pub fn open_slot(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        self.ask::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.nodes[from].id]);
        self.ask::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.nodes[to].id]);
    }

    /// One key of a slot that moves goes over.
    pub fn move_key(&self, key: &str, from: usize, to: usize) {
        let port = self.nodes[to].port.to_string();
        let _: String = self.ask(from, &["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
    }

    /// The rest of a slot's keys go over, and the slot belongs to the other node.
    pub fn close_slot(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        loop {
            let keys: Vec<String> = self.ask(from, &["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
            if keys.is_empty() {
                break;
            }
            keys.iter().for_each(|key| self.move_key(key, from, to));
        }
        for node in [to, from] {
            self.ask::<()>(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &self.nodes[to].id]);
        }
    }
}

impl Drop for RedisCluster {
    fn drop(&mut self) {
        (0..self.nodes.len()).for_each(|number| self.kill(number));
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The nodes talk to each other ten thousand ports above.
fn free_port() -> u16 {
    let free = |port: &u16| [*port, *port + 10_000].iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    (0..1000).map(|_| fastrand::u16(20_000..32_000)).find(free).expect("a free port")
}
