//! The launcher: one process that starts a worker in each database that needs one.
//!
//! It is connected to no database, so it cannot see where syncs are: at server start each database that allows
//! connections gets a worker, which leaves at once if it has nothing to do. Later on a backend that makes a sync asks.

use super::shared::{self, WorkerState};
use super::signals;
use crate::settings;
use crate::waits::{Wait, event};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Least time between two starts of a worker in the same database; doubled with each failure in a row, up to a minute.
const RESTART: Duration = Duration::from_secs(1);
const LONGEST_RESTART: Duration = Duration::from_secs(60);
/// How often it is tried again while no slot is free.
const SLOT_RETRY_MS: i64 = 2000;

fn fill(field: &mut [c_char], text: &CStr) {
    for (place, &byte) in field.iter_mut().zip(text.to_bytes_with_nul()) {
        *place = byte as c_char;
    }
}

fn describe(name: &CStr, function: &CStr) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker::default();
    fill(&mut worker.bgw_name, name);
    fill(&mut worker.bgw_type, name);
    fill(&mut worker.bgw_library_name, c"pg_fanout");
    fill(&mut worker.bgw_function_name, function);
    worker.bgw_flags = (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32;
    // Not on a standby: there is nothing to write there, and its targets are the primary's.
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished;
    worker
}

/// Registers the launcher. Called while the library is preloaded.
pub fn register() {
    let mut worker = describe(c"pg_fanout launcher", c"fanout_launcher_main");
    worker.bgw_restart_time = 5;
    // SAFETY: called by the postmaster at the only time when this is allowed.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

struct Launched {
    handle: *mut pg_sys::BackgroundWorkerHandle,
    at: Instant,
}

/// Main function of the launcher.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn fanout_launcher_main(_arg: pg_sys::Datum) {
    // SAFETY: the usual start of a background worker; handlers are Postgres' own. Without the SIGUSR1 handler the notice
    // that a worker ended would be ignored: only workers connected to a database get it by default.
    unsafe {
        signals::pqsignal(libc::SIGTERM, Some(signals::SignalHandlerForShutdownRequest));
        signals::pqsignal(libc::SIGHUP, Some(signals::SignalHandlerForConfigReload));
        signals::pqsignal(libc::SIGUSR1, Some(signals::procsignal_sigusr1_handler));
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
        shared::attach_launcher();
        for (oid, wanted) in databases() {
            if wanted
                && let Some(database) = shared::database_of(oid)
                && database.state() == WorkerState::None
            {
                database.set_state(WorkerState::Wanted);
            }
        }
        let mut launched: HashMap<pg_sys::Oid, Launched> = HashMap::new();
        loop {
            pg_sys::ResetLatch(pg_sys::MyLatch);
            if pg_sys::ShutdownRequestPending != 0 {
                // Not 0, which would mean that no launcher is needed ever again.
                signals::exit(1);
            }
            pgrx::check_for_interrupts!();
            if pg_sys::ConfigReloadPending != 0 {
                pg_sys::ConfigReloadPending = 0;
                pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
            }
            let wait = tend(&mut launched);
            let events = (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32;
            pg_sys::WaitLatch(pg_sys::MyLatch, events, wait, event(Wait::Launcher));
        }
    }
}

/// Starts what is to be started; gives how long to sleep, in milliseconds.
unsafe fn tend(launched: &mut HashMap<pg_sys::Oid, Launched>) -> i64 {
    let mut wait = 3_600_000;
    let mut running = 0;
    let mut candidates = Vec::new();
    for database in shared::databases() {
        match database.state() {
            WorkerState::None => {}
            WorkerState::Running => running += 1,
            WorkerState::Starting => {
                running += 1;
                // SAFETY: a handle that Postgres gave us.
                if let Some(known) = launched.get(&database.oid()) {
                    let mut pid = 0;
                    let status = unsafe { pg_sys::GetBackgroundWorkerPid(known.handle, &mut pid) };
                    if status == pg_sys::BgwHandleStatus::BGWH_STOPPED {
                        // It ended before it was connected: the database is gone, or does not let us in.
                        if databases().iter().any(|&(oid, wanted)| oid == database.oid() && wanted) {
                            database.set_state(WorkerState::Wanted);
                        } else {
                            database.release();
                            continue;
                        }
                    }
                    wait = wait.min(1000);
                }
            }
            WorkerState::Wanted | WorkerState::WaitingForSlot => candidates.push(database),
        }
    }
    // Who was served longest ago comes first: databases beyond the limit take turns.
    candidates.sort_by_key(|database| launched.get(&database.oid()).map(|known| known.at));
    for database in candidates {
        if database.holds.load(std::sync::atomic::Ordering::SeqCst) > 0 {
            wait = wait.min(1000);
            continue;
        }
        if let Some(known) = launched.get(&database.oid()) {
            let since = known.at.elapsed();
            let pause = (RESTART * (1 << database.failures.load(Relaxed).min(6))).min(LONGEST_RESTART);
            if since < pause {
                wait = wait.min((pause - since).as_millis() as i64 + 1);
                continue;
            }
        }
        let mut handle = std::ptr::null_mut();
        let mut started = false;
        if running < settings::max_workers() {
            database.set_state(WorkerState::Starting);
            let mut worker = describe(c"pg_fanout worker", c"fanout_worker_main");
            worker.bgw_restart_time = pg_sys::BGW_NEVER_RESTART;
            worker.bgw_main_arg = pg_sys::Datum::from(database.oid().to_u32() as usize);
            // SAFETY: a complete description; the handle is palloc'd in a context that lives as long as we do.
            unsafe {
                worker.bgw_notify_pid = pg_sys::MyProcPid;
                let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
                started = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
                pg_sys::MemoryContextSwitchTo(before);
            }
        }
        if started {
            running += 1;
            if let Some(old) = launched.insert(database.oid(), Launched { handle, at: Instant::now() }) {
                // SAFETY: palloc'd above, at an earlier start.
                unsafe { pg_sys::pfree(old.handle.cast()) };
            }
            wait = wait.min(1000);
        } else {
            if database.state() != WorkerState::WaitingForSlot {
                log!("pg_fanout: no slot is free for the worker of database {}", database.oid().to_u32());
            }
            database.set_state(WorkerState::WaitingForSlot);
            wait = wait.min(SLOT_RETRY_MS);
        }
    }
    wait
}

/// DATCONNLIMIT_INVALID_DB of catalog/pg_database.h: DROP DATABASE was interrupted.
const INVALID_DATABASE: i32 = -2;

/// All databases, and whether a worker may connect to them: not to templates, which must stay copyable, nor to the remains of one.
fn databases() -> Vec<(pg_sys::Oid, bool)> {
    // SAFETY: a scan of a shared catalog in a transaction, which needs no database (autovacuum.c does the same).
    unsafe {
        let mut found = Vec::new();
        pg_sys::StartTransactionCommand();
        pg_sys::GetTransactionSnapshot();
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let form: *const pg_sys::FormData_pg_database = pg_sys::GETSTRUCT(tuple).cast();
            let is_whole = (*form).datconnlimit != INVALID_DATABASE;
            found.push(((*form).oid, (*form).datallowconn && !(*form).datistemplate && is_whole));
        }
        pg_sys::table_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        pg_sys::CommitTransactionCommand();
        found
    }
}
