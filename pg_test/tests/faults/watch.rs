//! What must never go back, versions of documents, and what must not grow, the worker's processor time.

use pg_test::{Engine, World};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Looks at the versions of documents all the time.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Watch {
    /// Of the documents with these ids.
    pub fn start(index: String, ids: Vec<String>, engines: Vec<Engine>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut highest: BTreeMap<(&str, String), u64> = BTreeMap::new();
            let mut samples = 0;
            while !told.load(Ordering::Relaxed) {
                for engine in &engines {
                    for (id, version) in versions(engine, &index, &ids) {
                        samples += 1;
                        let before = highest.insert((engine.name, id.clone()), version).unwrap_or(0);
                        assert!(version >= before, "{}: {id} went from version {before} to {version}", engine.name);
                    }
                }
                thread::sleep(Duration::from_millis(50));
            }
            samples
        });
        Self { stop, thread }
    }

    /// Panics if a version went back; else tells how many were looked at.
    pub fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("versions that never went back")
    }
}

/// The versions of those of these documents that are there.
pub fn versions(engine: &Engine, index: &str, ids: &[String]) -> BTreeMap<String, u64> {
    let (status, page) = engine.request("POST", &format!("/{index}/_mget?_source=false"), Some(json!({"ids": ids})));
    let documents = page["docs"].as_array().filter(|_| status == 200).into_iter().flatten();
    documents.filter_map(|it| Some((it["_id"].as_str()?.to_owned(), it["_version"].as_u64()?))).collect()
}

/// Hundredths of a second that the worker has spent so far.
pub fn processor_time(world: &mut World) -> u64 {
    let pid = world.db.value(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'pg_fanout worker'",
    );
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let words: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    words[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}
