//! Which sync's code is at work, and how often the worker went down in it: kept where a crash does not reach.
//!
//! Code of a sync's owner runs in the worker. If it brings the process down, PostgreSQL makes shared memory anew, the worker
//! comes back, and runs the same code again, for ever. So before such code runs, a file says whose it is. A worker that finds
//! it so written at its start counts a strike; a sync with too many is left alone until somebody says otherwise.
//!
//! The file is never flushed: it has to outlive the process, not the machine. It lies in pg_stat_tmp, which base backups leave
//! out. What cannot be written is not missed: then nothing is counted.

use super::shared;
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::fs::OpenOptions;
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

/// So many in a row are too many: nothing of the kind was read to its end in between.
const IN_A_ROW: u32 = 2;
/// So many within [`RECENT`] are too many, whatever worked in between: the row at fault may come late in the reading.
const IN_ALL: u32 = 4;
/// Ten minutes, in microseconds.
const RECENT: i64 = 600_000_000;
/// Bytes of the file's first line.
const MARK: usize = 14;
/// The first line when nothing is at work.
const NOTHING: &[u8; MARK] = b"          0 -\n";

/// What a sync's code is at work for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Its statements are planned: immutable functions run then.
    Planning,
    /// Rows of changed keys are read.
    Changes,
    /// All rows are read, block by block.
    Scan,
    /// Keys are printed, or parsed from what the target holds.
    Keys,
    /// The documents that rows of a related table belong to are looked for.
    Related,
}

impl Work {
    const ALL: [(Self, u8); 5] =
        [(Self::Planning, b'p'), (Self::Changes, b'c'), (Self::Scan, b's'), (Self::Keys, b'k'), (Self::Related, b'r')];

    fn letter(self) -> u8 {
        Self::ALL.iter().find(|(work, _)| *work == self).map_or(b'-', |&(_, letter)| letter)
    }

    fn of(letter: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| letter.as_bytes() == [*known]).map(|&(work, _)| work)
    }

    /// What the worker did, after "while it".
    pub fn doing(self) -> &'static str {
        match self {
            Self::Planning => "prepared its statements",
            Self::Changes => "read rows that had changed",
            Self::Scan => "read all its rows",
            Self::Keys => "read its keys",
            Self::Related => "looked for the documents that related rows belong to",
        }
    }
}

/// What is held against a sync in one kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Strike {
    sync: i32,
    work: Work,
    in_a_row: u32,
    recent: u32,
    /// The last one, microseconds since 1970.
    at: i64,
}

/// Too much is held against a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What the worker went down in.
    pub work: Work,
    /// How often.
    pub times: u32,
}

/// All that is held against syncs of a database. Pure.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ledger(Vec<Strike>);

impl Ledger {
    fn strike(&mut self, sync: i32, work: Work, now: i64) {
        match self.0.iter_mut().find(|known| known.sync == sync && known.work == work) {
            Some(known) => {
                known.in_a_row += 1;
                known.recent = if now - known.at < RECENT { known.recent + 1 } else { 1 };
                known.at = now;
            }
            None => self.0.push(Strike { sync, work, in_a_row: 1, recent: 1, at: now }),
        }
    }

    /// Work of this kind was done to its end. True if that changes anything.
    fn completed(&mut self, sync: i32, work: Work) -> bool {
        let struck = |known: &&mut Strike| known.sync == sync && known.work == work && known.in_a_row > 0;
        self.0.iter_mut().find(struck).map(|known| known.in_a_row = 0).is_some()
    }

    /// Keeps what is held against these. True if there was more.
    fn retain(&mut self, wanted: impl Fn(i32) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|known| wanted(known.sync));
        self.0.len() < before
    }

    fn verdict(&self, sync: i32) -> Option<Verdict> {
        let too_many = |known: &&Strike| known.sync == sync && (known.in_a_row >= IN_A_ROW || known.recent >= IN_ALL);
        self.0.iter().find(too_many).map(|known| Verdict { work: known.work, times: known.recent.max(known.in_a_row) })
    }

    fn to_text(&self) -> String {
        let line = |it: &Strike| {
            let letter = char::from(it.work.letter());
            format!("{} {letter} {} {} {}\n", it.sync, it.in_a_row, it.recent, it.at)
        };
        self.0.iter().map(line).collect()
    }

    /// The mark and the ledger in a file's text; what is not of this form counts for nothing.
    fn of_text(text: &str) -> (Option<(i32, Work)>, Self) {
        let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mark = match lines.next().as_deref() {
            Some([sync, work]) => sync.parse().ok().filter(|&sync| sync > 0).zip(Work::of(work)),
            _ => None,
        };
        let strike = |words: Vec<&str>| match words[..] {
            [sync, work, in_a_row, recent, at] => Some(Strike {
                sync: sync.parse().ok()?,
                work: Work::of(work)?,
                in_a_row: in_a_row.parse().ok()?,
                recent: recent.parse().ok()?,
                at: at.parse().ok()?,
            }),
            _ => None,
        };
        (mark, Self(lines.filter_map(strike).collect()))
    }
}

/// The file's descriptor; -1 if there is none.
static FILE: AtomicI32 = AtomicI32::new(-1);

thread_local! {
    static LEDGER: RefCell<Ledger> = RefCell::default();
    /// What the predecessor went down in, until somebody asks.
    static NEW: Cell<Option<(i32, Work)>> = const { Cell::new(None) };
}

/// Relative to the data directory, in which every process of the server is.
fn path(database: pg_sys::Oid) -> String {
    format!("pg_stat_tmp/pg_fanout_{}", database.to_u32())
}

/// Opens the file of a database and counts what the worker before this one went down in. Once, at the start of a worker.
pub fn open(database: pg_sys::Oid) {
    let path = path(database);
    let (mark, mut ledger) = Ledger::of_text(&std::fs::read_to_string(&path).unwrap_or_default());
    match OpenOptions::new().write(true).create(true).truncate(false).open(&path) {
        Ok(file) => FILE.store(file.into_raw_fd(), Relaxed),
        Err(error) => {
            pgrx::warning!(
                "pg_fanout: cannot open \"{path}\": {error}; a sync that brings the worker down will not be found"
            );
        }
    }
    if let Some((sync, work)) = mark {
        ledger.strike(sync, work, shared::now());
    }
    NEW.set(mark);
    LEDGER.replace(ledger);
    save();
}

/// Writes all of the file, with nothing at work.
fn save() {
    let mut text = NOTHING.to_vec();
    text.extend(LEDGER.with_borrow(Ledger::to_text).into_bytes());
    write(&text);
    let file = FILE.load(Relaxed);
    if file >= 0 {
        // SAFETY: a descriptor that open() keeps for as long as the process lives.
        unsafe { libc::ftruncate(file, text.len() as libc::off_t) };
    }
}

/// Safe in a signal handler.
fn write(bytes: &[u8]) {
    let file = FILE.load(Relaxed);
    if file >= 0 {
        // SAFETY: as in save(); the bytes are there, and as many as is said. That it failed is of no consequence: see the module.
        unsafe { libc::pwrite(file, bytes.as_ptr().cast(), bytes.len(), 0) };
    }
}

/// From here on the process may go down for the sake of this sync.
pub fn begin(sync: i32, work: Work) {
    let mut mark = *NOTHING;
    let (mut rest, mut place) = (sync.unsigned_abs(), 10);
    while rest > 0 && place > 0 {
        mark[place] = b'0' + (rest % 10) as u8;
        rest /= 10;
        place -= 1;
    }
    mark[12] = work.letter();
    write(&mark);
}

/// It did not; `completed` if it did what it should.
pub fn end(sync: i32, work: Work, completed: bool) {
    write(NOTHING);
    if completed && LEDGER.with_borrow_mut(|ledger| ledger.completed(sync, work)) {
        save();
    }
}

/// The process ends in order, whatever is at work. Safe in a signal handler.
pub fn end_process() {
    write(NOTHING);
}

/// What the worker before this one went down in; None if in nothing, or once that was asked.
pub fn new() -> Option<(i32, Work)> {
    NEW.take()
}

/// Whether a sync is to be left alone.
pub fn verdict(sync: i32) -> Option<Verdict> {
    LEDGER.with_borrow(|ledger| ledger.verdict(sync))
}

/// Nothing is held against a sync any more.
pub fn forgive(sync: i32) {
    if LEDGER.with_borrow_mut(|ledger| ledger.retain(|known| known != sync)) {
        save();
    }
}

/// Forgets what is held against syncs that are gone: their numbers may come again when the extension is made anew.
pub fn retain(living: &[i32]) {
    if LEDGER.with_borrow_mut(|ledger| ledger.retain(|known| living.contains(&known))) {
        save();
    }
}

/// Removes the file of a database that is gone, or has no syncs.
pub fn remove(database: pg_sys::Oid) {
    // That there was none is no error.
    let _ = std::fs::remove_file(path(database));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_in_a_row_are_too_many() {
        let mut ledger = Ledger::default();
        ledger.strike(7, Work::Scan, 0);
        assert_eq!(ledger.verdict(7), None);
        ledger.strike(8, Work::Scan, 1);
        ledger.strike(7, Work::Changes, 2);
        assert_eq!((ledger.verdict(7), ledger.verdict(8)), (None, None));
        ledger.strike(7, Work::Scan, 3 * RECENT);
        assert_eq!(ledger.verdict(7), Some(Verdict { work: Work::Scan, times: 2 }));
        assert_eq!(ledger.verdict(8), None);
    }

    #[test]
    fn what_is_completed_in_between_excuses_but_not_for_ever() {
        let mut ledger = Ledger::default();
        for minute in 0..3 {
            ledger.strike(7, Work::Scan, minute * RECENT / 10);
            assert_eq!(ledger.verdict(7), None);
            assert!(!ledger.completed(7, Work::Changes));
            assert!(ledger.completed(7, Work::Scan));
            assert!(!ledger.completed(7, Work::Scan));
        }
        ledger.strike(7, Work::Scan, 3 * RECENT / 10);
        assert_eq!(ledger.verdict(7), Some(Verdict { work: Work::Scan, times: 4 }));
        assert!(ledger.retain(|sync| sync != 7));
        assert_eq!(ledger.verdict(7), None);
        // Now and then is no reason.
        for hour in 0..10 {
            ledger.strike(7, Work::Scan, hour * 6 * RECENT);
            ledger.completed(7, Work::Scan);
            assert_eq!(ledger.verdict(7), None);
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut ledger = Ledger::default();
        ledger.strike(7, Work::Scan, 12);
        ledger.strike(i32::MAX, Work::Related, 13);
        let text = ledger.to_text();
        assert_eq!(Ledger::of_text(&format!("{}{text}", str::from_utf8(NOTHING).unwrap())), (None, ledger));
        assert_eq!(Ledger::of_text("         42 c\n"), (Some((42, Work::Changes)), Ledger::default()));
        for garbage in ["", "\n", "x y\n1 2 3\n", "42\n", "42 c c\n-1 - 1 1 1\n", "1 c 1 1 1"] {
            assert_eq!(Ledger::of_text(garbage), (None, Ledger::default()), "{garbage}");
        }
    }
}
