//! The process of a worker: start, signals, settings, end.

use super::cycle::Worker;
use super::shared::{self, Database, WorkerState};
use super::signals;
use super::strikes;
use super::transaction::transaction;
use crate::catalog::{self, version};
use crate::error::failure;
use crate::settings;
use crate::waits::{Wait, event};
use pgrx::pg_sys;
use pgrx::prelude::*;
use rustc_hash::FxHashSet;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString};
use std::os::unix::fs::MetadataExt;

/// Settings that change what our statements do to others, beside those that change what rows look like
/// ([`crate::document::OUTPUT`]); `ALTER DATABASE … SET` must not reach them.
const PINNED: &[(&CStr, &CStr)] = &[
    (c"application_name", c"pg_fanout worker"),
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"default_transaction_deferrable", c"off"),
    (c"session_replication_role", c"origin"),
    (c"synchronous_commit", c"local"),
    (c"statement_timeout", c"0"),
    (c"idle_in_transaction_session_timeout", c"0"),
    // Below deadlock_timeout: where we and a migration wait for each other, we are the one to give way.
    (c"lock_timeout", c"500ms"),
    (c"jit", c"off"),
    (c"max_parallel_workers_per_gather", c"0"),
    // A key list has another length each time; planning for its elements would cost more than the reading.
    (c"plan_cache_mode", c"force_generic_plan"),
    (c"enable_hashjoin", c"off"),
    (c"enable_mergejoin", c"off"),
];

/// Blocks of memory from this size on are given back when they are freed, and grow without being copied; so is what is free at the end
/// of the heap. Batches are used again.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK: i32 = 2 << 20;

thread_local! {
    static CATALOG_CHANGED: Cell<bool> = const { Cell::new(false) };
    static SOURCES_CHANGED: Cell<bool> = const { Cell::new(false) };
    static SERVERS_CHANGED: Cell<bool> = const { Cell::new(false) };
    static CATALOG: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
    /// The tables whose alterations matter to us.
    static WATCHED: RefCell<FxHashSet<pg_sys::Oid>> = RefCell::default();
    static MINE: Cell<Option<&'static Database>> = const { Cell::new(None) };
    /// What the slot says when the process has ended: wanted again, unless it left of its own accord.
    static AFTER: Cell<WorkerState> = const { Cell::new(WorkerState::Wanted) };
}

/// Called for each relcache invalidation, in every process.
pub fn on_relcache(relation: pg_sys::Oid) {
    if MINE.get().is_none() {
        return;
    }
    if relation == pg_sys::InvalidOid || relation == CATALOG.get() {
        CATALOG_CHANGED.set(true);
    }
    if relation == pg_sys::InvalidOid || WATCHED.with_borrow(|watched| watched.contains(&relation)) {
        SOURCES_CHANGED.set(true);
    }
}

/// True, once, if the catalog of syncs changed.
pub fn catalog_changed() -> bool {
    CATALOG_CHANGED.replace(false)
}

/// The catalog is not what we took it for.
pub fn catalog_is_stale() {
    CATALOG_CHANGED.set(true);
}

/// True if nothing is known to have changed that [`catalog_changed`] has not told yet.
pub fn catalog_is_known() -> bool {
    !CATALOG_CHANGED.get()
}

/// The tables whose alterations [`sources_changed`] tells.
pub fn watch(sources: impl Iterator<Item = pg_sys::Oid>) {
    WATCHED.with_borrow_mut(|watched| {
        watched.clear();
        watched.extend(sources);
    });
}

/// As [`watch`], beside those that are watched already.
pub fn watch_also(tables: impl Iterator<Item = pg_sys::Oid>) {
    WATCHED.with_borrow_mut(|watched| watched.extend(tables));
}

/// True, once, if some source was altered.
pub fn sources_changed() -> bool {
    SOURCES_CHANGED.replace(false)
}

/// True if some source was altered and nobody has asked yet.
pub fn sources_altered() -> bool {
    SOURCES_CHANGED.get()
}

/// True, once, if a foreign server or user mapping changed.
pub fn servers_changed() -> bool {
    SERVERS_CHANGED.replace(false)
}

#[pg_guard]
unsafe extern "C-unwind" fn on_syscache(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    SERVERS_CHANGED.set(true);
}

#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: i32, _arg: pg_sys::Datum) {
    super::reading::note_overdue();
    strikes::end_process();
    if let Some(database) = MINE.get() {
        database.detach(AFTER.get());
        database.wake_waiters();
        shared::wake_launcher();
    }
}

/// The postmaster ends all processes: an immediate shutdown, or another process crashed. Whatever is at work is not to blame.
unsafe extern "C-unwind" fn quit(signal: i32) {
    strikes::end_process();
    // SAFETY: the handler that is in place of this one in every background worker.
    unsafe { signals::SignalHandlerForCrashExit(signal) };
}

/// Serves signals: SIGTERM ends the process here, SIGHUP reads the configuration.
pub fn serve_interrupts() {
    pgrx::check_for_interrupts!();
    // SAFETY: flags and calls of this process' main thread, outside of a transaction.
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
        if !pg_sys::IsTransactionState() {
            pg_sys::AcceptInvalidationMessages();
        }
    }
}

/// Who we are to a target: this cluster, on this timeline, and this database.
///
/// The timeline tells a promoted copy (a base backup started as a test system, an old primary brought back) from the cluster
/// that it was copied from: such a one must wait until the owner falls silent, or be told to adopt. A copy that was not
/// promoted is told by its [`place`].
pub fn incarnation() -> String {
    // SAFETY: reads values of shared memory; a worker runs only after recovery, which the timeline's getter asserts.
    let timeline = unsafe { pg_sys::GetWALInsertionTimeLine() };
    format!("{}/{timeline}", catalog::identity())
}

/// Where this server runs: which file of which start of which machine its pg_control is. None if the system does not tell.
///
/// Two servers that run at the same time never have the same, however they were copied: one postmaster at most runs in a data
/// directory. It outlives a restart of the server and of its container, but not one of the machine, which cannot be told from
/// that of another with a copy of the disk.
pub fn place() -> Option<String> {
    // Every process of PostgreSQL works in the data directory; the file is written in place.
    let control = std::fs::metadata("global/pg_control").ok()?;
    Some(format!("{}/{}/{}", boot()?, control.dev(), control.ino()))
}

/// Which start of which machine this is.
pub fn boot() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// This database as people find it: what a control document says of who wrote it.
pub fn called() -> String {
    let mut host = [0u8; 256];
    // SAFETY: at most so many bytes are written there, and the last one stays 0.
    unsafe { libc::gethostname(host.as_mut_ptr().cast(), host.len() - 1) };
    let host = CStr::from_bytes_until_nul(&host).unwrap_or_default().to_string_lossy();
    // SAFETY: reads a setting of the server.
    let port = unsafe { pg_sys::PostPortNumber };
    format!("pg_fanout, database {} at {host}:{port}", database_name())
}

/// The name of this database.
pub fn database_name() -> String {
    transaction(|| {
        // SAFETY: a catalog look-up within a transaction; a palloc'd C string.
        unsafe {
            let name = pg_sys::get_database_name(pg_sys::MyDatabaseId);
            if name.is_null() { String::new() } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
        }
    })
    .unwrap_or_default()
}

fn pin(name: &CStr, value: &CStr) {
    // SAFETY: both are C strings; a setting that this version lacks would raise, so the list has only those of all.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// Becomes the role that may only keep our own tables: from here on our SQL runs as nobody in particular.
fn become_worker_role() -> bool {
    transaction(|| {
        let name = CString::from(c"fanout_worker");
        // SAFETY: a catalog look-up within a transaction.
        unsafe { pg_sys::get_role_oid(name.as_ptr(), true) }
    })
    .is_ok_and(|role| {
        if role == pg_sys::InvalidOid {
            return false;
        }
        // SAFETY: outside of a transaction: what an abort goes back to is this role.
        // As within a security-definer function: SET ROLE and SET SESSION AUTHORIZATION are refused for good.
        unsafe { pg_sys::SetUserIdAndSecContext(role, pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32) };
        true
    })
}

fn installed() -> bool {
    transaction(|| {
        // SAFETY: a catalog look-up within a transaction.
        let extension = unsafe { pg_sys::get_extension_oid(c"pg_fanout".as_ptr(), true) };
        let sync = catalog::own_relation(c"sync");
        CATALOG.set(sync);
        extension != pg_sys::InvalidOid && sync != pg_sys::InvalidOid
    })
    .unwrap_or(false)
}

/// Objects of another version may be other than what we read and write: nothing is delivered until they are of ours. Writers
/// go on, their changes wait in the journal.
fn await_version() {
    let mut told = false;
    while let Ok(Some(why)) = transaction(version::difference) {
        if !told {
            failure(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("pg_fanout delivers nothing: {why}"),
            )
            .hint(version::HINT)
            .warn();
        }
        told = true;
        if shared::databases().any(|other| other.state() == WorkerState::WaitingForSlot) {
            leave(WorkerState::WaitingForSlot);
        }
        let events = (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32;
        // SAFETY: MyLatch is this process's.
        unsafe {
            pg_sys::WaitLatch(pg_sys::MyLatch, events, settings::heartbeat_ms(), event(Wait::Worker));
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
        serve_interrupts();
    }
}

fn leave(after: WorkerState) -> ! {
    if after == WorkerState::None {
        // There are no syncs any more, or they are not ours.
        if let Some(database) = MINE.get() {
            strikes::remove(database.oid());
        }
    }
    AFTER.set(after);
    // on_exit frees the slot.
    signals::exit(0)
}

/// Main function of a worker; its argument is the OID of its database.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn fanout_worker_main(argument: pg_sys::Datum) {
    let oid = pg_sys::Oid::from(argument.value() as u32);
    // SAFETY: the usual start of a background worker. SIGTERM is served by Postgres' own handler, so that a statement or a
    // wait for a lock ends at once: nothing is lost by that, what is not acknowledged is delivered again.
    unsafe {
        // By default the allocator raises this to the size of the largest block that was ever freed, and keeps what is below:
        // a second backlog would grow by being copied, and take half as much again as the first.
        #[cfg(target_env = "gnu")]
        for bound in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
            libc::mallopt(bound, LARGE_BLOCK);
        }
        signals::pqsignal(libc::SIGTERM, Some(signals::die));
        signals::pqsignal(libc::SIGHUP, Some(signals::SignalHandlerForConfigReload));
        signals::pqsignal(libc::SIGQUIT, Some(quit));
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(oid, pg_sys::InvalidOid, 0);
        let Some(database) = shared::database_of(oid) else { signals::exit(0) };
        MINE.set(Some(database));
        pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(0));
        database.attach();
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::FOREIGNSERVEROID as i32,
            Some(on_syscache),
            pg_sys::Datum::from(0),
        );
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::USERMAPPINGOID as i32,
            Some(on_syscache),
            pg_sys::Datum::from(0),
        );
        super::reading::register();
        for (name, value) in PINNED.iter().chain(crate::document::OUTPUT) {
            pin(name, value);
        }
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        pin(c"transaction_timeout", c"0");
        if database.holds.load(std::sync::atomic::Ordering::SeqCst) > 0 {
            leave(WorkerState::Wanted);
        }
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, c"starting".as_ptr());
    }
    await_version();
    if !installed() || !become_worker_role() {
        leave(WorkerState::None);
    }
    let Some(database) = MINE.get() else { leave(WorkerState::None) };
    strikes::open(oid);
    let commits = database.commits();
    match Worker::start(database) {
        Ok(worker) if worker.is_idle_for_good() => finish(database, commits),
        Ok(mut worker) => {
            log!("pg_fanout: worker of database \"{}\" at work", database_name());
            match worker.run() {
                Ok(()) if worker.is_idle_for_good() => finish(database, commits),
                Ok(()) => leave(WorkerState::WaitingForSlot),
                Err(failed) => give_up(&failed.to_string()),
            }
        }
        Err(failed) => give_up(&failed.to_string()),
    }
}

/// Nothing to do: leaves, unless somebody made a sync meanwhile.
fn finish(database: &Database, commits: u64) -> ! {
    // A commit since we looked asked nobody, because we were still here.
    leave(if database.commits() == commits { WorkerState::None } else { WorkerState::Wanted })
}

fn give_up(why: &str) -> ! {
    warning!("pg_fanout: the worker starts anew: {why}");
    if let Some(database) = MINE.get() {
        database.failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    leave(WorkerState::Wanted)
}
