//! Transactions of the worker: an ERROR inside ends the transaction, not the process.

use pgrx::pg_sys;
use pgrx::pg_sys::panic::{CaughtError, ErrorReportWithLevel};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// An ERROR that a transaction of the worker ended with.
#[derive(Debug, Clone)]
pub struct Failed {
    /// SQLSTATE, five characters.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
}

/// What an ERROR says of the sync that it happened to (DESIGN, decision 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It will pass: conflict, resources, cancelled, I/O. Try again.
    Transient,
    /// Somebody has to change something: privileges, a missing object, a policy.
    Blocked,
    /// The data of a row: bisect to it.
    Data,
}

impl Failed {
    /// True if one row is enough for it, though it need not be the row's fault: the time for a statement was over, or code
    /// of an extension failed in a way that PostgreSQL has no code for (XX000, as PostGIS says of whatever it cannot do).
    pub fn may_be_a_row(&self) -> bool {
        self.is_timeout() || self.sqlstate == "XX000"
    }

    /// True if the statement was cancelled: here, for its time was over.
    pub fn is_timeout(&self) -> bool {
        self.sqlstate == "57014"
    }

    /// See [`Class`]. Errors are not absence: what is not known to be the data's fault is never held against a row.
    pub fn class(&self) -> Class {
        match &self.sqlstate[..2] {
            "42" | "28" | "0A" | "3D" | "3F" | "2B" => Class::Blocked,
            "22" | "21" | "23" | "P0" | "38" | "39" => Class::Data,
            // A limit of PostgreSQL or of ours: a value of more than a gigabyte, a stack too deep. Fewer rows may fit.
            "54" => Class::Data,
            _ => Class::Transient,
        }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} (SQLSTATE {})", self.message, self.sqlstate)
    }
}

/// The five characters of an SQLSTATE packed as MAKE_SQLSTATE does (elog.h).
fn unpack_sqlstate(code: i32) -> String {
    (0..5).map(|place| char::from(((code >> (6 * place)) & 0x3f) as u8 + b'0')).collect()
}

thread_local! {
    /// Where the WAL ended when a snapshot had just been taken, the last one by which rows were read for a target.
    static READ_UP_TO: Cell<pg_sys::XLogRecPtr> = const { Cell::new(0) };
}

/// Runs `work` in a transaction of its own and commits it. On an ERROR or a panic the transaction is aborted and the error
/// given back; a FATAL (SIGTERM) ends the process as ever.
pub fn transaction<T>(work: impl FnOnce() -> T) -> Result<T, Failed> {
    run(false, work)
}

/// As [`transaction`], with one snapshot for all that `work` reads, whatever functions it calls: so it is known at the beginning
/// which commits it can see, and [`flush_what_was_read`] need not wait for those that come meanwhile.
pub fn with_one_snapshot<T>(work: impl FnOnce() -> T) -> Result<T, Failed> {
    run(true, work)
}

fn run<T>(one_snapshot: bool, work: impl FnOnce() -> T) -> Result<T, Failed> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the worker is not in a transaction; whatever is raised in here is caught below and aborted. The isolation level is
        // the transaction's, reset with the next one (StartTransaction), and set before there is any snapshot.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            if one_snapshot {
                pg_sys::XactIsoLevel = pg_sys::XACT_REPEATABLE_READ as i32;
            }
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            if one_snapshot {
                // Later than the record of each commit that the snapshot sees.
                READ_UP_TO.set(pg_sys::GetXLogInsertRecPtr());
            }
            let result = work();
            if pg_sys::ActiveSnapshotSet() {
                pg_sys::PopActiveSnapshot();
            }
            pg_sys::CommitTransactionCommand();
            result
        }
    }));
    outcome.map_err(|payload| {
        // SAFETY: cleans up whatever state the error left the transaction in (postgres.c does the same in its main loop).
        unsafe {
            super::reading::forget_timeouts();
            pg_sys::AbortCurrentTransaction();
        }
        describe(payload)
    })
}

/// What a caught ERROR or panic says.
pub fn describe(payload: Box<dyn std::any::Any + Send>) -> Failed {
    match payload.downcast::<CaughtError>() {
        Ok(caught) => {
            let (CaughtError::PostgresError(report)
            | CaughtError::ErrorReport(report)
            | CaughtError::RustPanic { ereport: report, .. }) = &*caught;
            Failed { sqlstate: unpack_sqlstate(report.sql_error_code() as i32), message: report.message().to_owned() }
        }
        Err(payload) => {
            // Raised by our own code, and caught before Postgres saw it.
            if let Some(report) = payload.downcast_ref::<ErrorReportWithLevel>() {
                let sqlstate = unpack_sqlstate(report.sql_error_code() as i32);
                return Failed { sqlstate, message: report.message().to_owned() };
            }
            let message = payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "unknown panic".into());
            Failed { sqlstate: "XX000".into(), message }
        }
    }
}

/// Makes all that was written so far durable.
pub fn flush_wal() {
    // SAFETY: reads a position of the WAL.
    flush_up_to(unsafe { pg_sys::GetXLogInsertRecPtr() });
}

/// Makes all commits durable that were visible to the last reading: what is sent must survive a crash. Beside writers it is rarely
/// left to do, as theirs are flushed before they are visible.
///
/// With synchronous_commit off a row is visible before its commit record is on disk (RecordTransactionCommit in xact.c).
pub fn flush_what_was_read() {
    flush_up_to(READ_UP_TO.get());
}

fn flush_up_to(mut inserted: pg_sys::XLogRecPtr) {
    // At a page boundary the position lies behind the header of a page that does not exist yet, and XLogFlush would
    // complain; the records end where that page begins. Headers are 24 and, at the start of a file, 40 bytes long.
    let offset = inserted % u64::from(pg_sys::XLOG_BLCKSZ);
    // SAFETY: a constant of the server, a power of two.
    let in_file = inserted % u64::from(unsafe { pg_sys::wal_segment_size } as u32);
    if offset == 24 || in_file == 40 {
        inserted -= offset;
    }
    // SAFETY: asks for a position of the WAL, and flushes up to one that has been inserted.
    unsafe {
        if pg_sys::GetFlushRecPtr(std::ptr::null_mut()) < inserted {
            pg_sys::XLogFlush(inserted);
        }
    }
}
