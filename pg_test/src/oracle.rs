//! Random transactions from several connections, and what must be in the table afterwards.
//!
//! Each writer changes rows of its own in the table `item` and remembers those of the transactions whose commit was
//! acknowledged; beside that all of them change the few rows of the table `shared`, which they truncate now and then.
//! What a run does depends on its seed alone, but for what the writers wait on each other.

use crate::database::{Refusal, Session};
use crate::random::Dice;
use crate::world::World;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Keys that a writer has for itself.
const KEYS: u64 = 200;

/// Rows of one writer: key → number, length of the note.
type Rows = BTreeMap<u64, Row>;
type Row = (u64, u64);

/// What a writer knows of its rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    rows: Rows,
    /// The connection broke at a commit: these rows may be there instead.
    perhaps: Option<Rows>,
    /// Commits that were acknowledged.
    pub commits: u64,
}

/// Writers at work.
pub struct Oracle {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Known>>,
    known: Vec<Known>,
}

/// Makes the tables `item` and `shared`.
pub fn tables(world: &mut World) {
    world.db.exec(
        "CREATE TABLE item (id bigint PRIMARY KEY, writer int NOT NULL, n bigint NOT NULL, note text NOT NULL);
         CREATE TABLE shared (id int PRIMARY KEY, n bigint NOT NULL, tag text);
         INSERT INTO shared SELECT i, 0, 'first' FROM generate_series(1, 50) AS i",
    );
}

impl Oracle {
    /// Nobody has written yet.
    pub fn new(writers: usize) -> Self {
        Self { stop: Arc::default(), writers: Vec::new(), known: vec![Known::default(); writers] }
    }

    /// The writers begin, or go on after [`Oracle::stop`].
    pub fn start(&mut self, world: &World, dice: &mut Dice) {
        self.stop = Arc::default();
        for (number, known) in self.known.drain(..).enumerate() {
            let (stop, session, dice) = (Arc::clone(&self.stop), world.connect(), dice.fork());
            let tag = world.tag.clone();
            let mut writer = Writer { number: number as u64, session, dice, known, tag, prepared: 0 };
            self.writers.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) && writer.turn() {}
                writer.known
            }));
        }
    }

    /// Ends the writers, or finds that a crash did; gives the commits that were acknowledged so far.
    pub fn stop(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.known = self.writers.drain(..).map(|writer| writer.join().expect("a writer that met no error")).collect();
        self.known.iter().map(|known| known.commits).sum()
    }

    /// Panics unless `item` holds what was acknowledged, and nothing else.
    pub fn check(&mut self, world: &mut World) {
        for (number, known) in self.known.iter_mut().enumerate() {
            let rows = world.db.rows(&format!("SELECT id, n, length(note) FROM item WHERE writer = {number}"));
            let value = |text: &Option<String>| text.as_deref().unwrap_or_default().parse::<u64>().expect("a number");
            let rows: Rows = rows.iter().map(|row| (value(&row[0]), (value(&row[1]), value(&row[2])))).collect();
            let perhaps = known.perhaps.take();
            if perhaps.as_ref() == Some(&rows) {
                known.rows = rows.clone();
            }
            assert!(
                rows == known.rows,
                "the table is not what writer {number} was told: {:?}; nor what its last commit may have made: {:?}",
                first(&rows, &known.rows),
                perhaps.as_ref().map(|perhaps| first(&rows, perhaps))
            );
        }
    }
}

/// The first key at which two states differ.
fn first(one: &Rows, other: &Rows) -> Option<(u64, Option<Row>, Option<Row>)> {
    let keys = one.keys().chain(other.keys());
    let mut differing = keys.filter(|key| one.get(key) != other.get(key));
    differing.next().map(|&key| (key, one.get(&key).copied(), other.get(&key).copied()))
}

struct Writer {
    number: u64,
    session: Session,
    dice: Dice,
    known: Known,
    tag: String,
    prepared: u64,
}

impl Writer {
    /// One transaction. False if the connection is gone.
    fn turn(&mut self) -> bool {
        let outcome = match self.dice.below(12) {
            0 => self.copy(),
            1..=3 => self.contended(),
            _ => self.transaction(),
        };
        match outcome {
            Ok(()) => true,
            // Deadlocks and serialization failures are the application's affair.
            Err(error) if matches!(error.code.as_str(), "40P01" | "40001" | "55P03") => {
                self.session.try_exec("ROLLBACK").is_ok()
            }
            // The server went away, or is on its way.
            Err(error) if matches!(error.code.as_str(), "57P01" | "57P02" | "57P03" | "08006" | "08003") => false,
            Err(error) => panic!("a writer met: {error}"),
        }
    }

    fn key(&mut self) -> u64 {
        self.number * 1_000_000 + self.dice.below(KEYS)
    }

    /// A few changes of own rows, with savepoints, committed, prepared or rolled back.
    fn transaction(&mut self) -> Result<(), Refusal> {
        let mut rows = self.known.rows.clone();
        let mut saved: Vec<Rows> = Vec::new();
        self.session.try_exec("BEGIN")?;
        for _ in 0..1 + self.dice.below(6) {
            match self.dice.below(8) {
                0 => {
                    saved.push(rows.clone());
                    self.session.try_exec(&format!("SAVEPOINT s{}", saved.len()))?;
                }
                1 if !saved.is_empty() => {
                    self.session.try_exec(&format!("ROLLBACK TO s{}", saved.len()))?;
                    rows.clone_from(&saved[saved.len() - 1]);
                }
                2 if !saved.is_empty() => {
                    self.session.try_exec(&format!("RELEASE s{}", saved.len()))?;
                    saved.pop();
                }
                _ => self.change(&mut rows)?,
            }
        }
        match self.dice.below(10) {
            0 => return self.session.try_exec("ROLLBACK"),
            1 => {
                self.prepared += 1;
                let name = format!("{}_{}_{}", self.tag, self.number, self.prepared);
                self.known.perhaps = Some(rows.clone());
                self.session.try_exec(&format!("PREPARE TRANSACTION '{name}'"))?;
                self.session.try_exec(&format!("COMMIT PREPARED '{name}'"))?;
            }
            _ => {
                self.known.perhaps = Some(rows.clone());
                self.session.try_exec("COMMIT")?;
            }
        }
        self.committed(rows);
        Ok(())
    }

    fn committed(&mut self, rows: Rows) {
        self.known.rows = rows;
        self.known.perhaps = None;
        self.known.commits += 1;
    }

    /// One change of own rows.
    fn change(&mut self, rows: &mut Rows) -> Result<(), Refusal> {
        let (id, n, length) = (self.key(), self.dice.below(1 << 30), self.dice.below(60));
        let writer = self.number;
        match self.dice.below(8) {
            0 => {
                self.session.try_exec(&format!("DELETE FROM item WHERE id = {id}"))?;
                rows.remove(&id);
            }
            1 => {
                // Another key, free or not.
                let to = self.key();
                self.session.try_exec(&format!(
                    "DELETE FROM item WHERE id = {to} AND id <> {id}; UPDATE item SET id = {to} WHERE id = {id}"
                ))?;
                let moved = rows.remove(&id);
                if id != to {
                    rows.remove(&to);
                }
                rows.extend(moved.map(|row| (to, row)));
            }
            2 => {
                let to = id + self.dice.below(40);
                self.session.try_exec(&format!(
                    "UPDATE item SET n = {n} WHERE id BETWEEN {id} AND {to} AND writer = {writer}"
                ))?;
                rows.range_mut(id..=to).for_each(|(_, row)| row.0 = n);
            }
            _ => {
                self.session.try_exec(&format!(
                    "INSERT INTO item VALUES ({id}, {writer}, {n}, repeat('x', {length}))
                     ON CONFLICT (id) DO UPDATE SET n = excluded.n, note = excluded.note"
                ))?;
                rows.insert(id, (n, length));
            }
        }
        Ok(())
    }

    /// COPY of rows that are not there.
    fn copy(&mut self) -> Result<(), Refusal> {
        let (n, length) = (self.dice.below(1 << 30), self.dice.below(60));
        let mut rows = self.known.rows.clone();
        let first = self.key();
        let free: Vec<u64> = (first..first + 20).filter(|id| !rows.contains_key(id)).collect();
        rows.extend(free.iter().map(|&id| (id, (n, length))));
        let note = "x".repeat(length as usize);
        let lines: String = free.iter().map(|id| format!("{id}\t{}\t{n}\t{note}\n", self.number)).collect();
        self.known.perhaps = Some(rows.clone());
        self.session.try_copy_in("COPY item FROM STDIN", &lines)?;
        self.committed(rows);
        Ok(())
    }

    /// Rows that others change too.
    fn contended(&mut self) -> Result<(), Refusal> {
        let (id, to, n) = (1 + self.dice.below(60), 1 + self.dice.below(60), self.dice.below(1 << 30));
        let sql = match self.dice.below(60) {
            0 => "TRUNCATE shared".to_owned(),
            1..=5 => format!("BEGIN; TRUNCATE shared; INSERT INTO shared VALUES ({id}, {n}, 'after'); ROLLBACK"),
            6..=20 => format!("DELETE FROM shared WHERE id = {id}"),
            21..=30 => format!(
                "BEGIN; DELETE FROM shared WHERE id = {to} AND {to} <> {id}; UPDATE shared SET id = {to} WHERE id = {id}; COMMIT"
            ),
            31..=35 => format!("UPDATE shared SET n = n + 1, tag = 'many {n}'"),
            _ => format!(
                "INSERT INTO shared VALUES ({id}, {n}, 'one') ON CONFLICT (id) DO UPDATE SET n = excluded.n, tag = 'again'"
            ),
        };
        match self.session.try_exec(&sql) {
            // Another was faster.
            Err(error) if error.code == "23505" => self.session.try_exec("ROLLBACK"),
            other => other,
        }
    }
}
