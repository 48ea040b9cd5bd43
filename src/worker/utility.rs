//! Statements that cannot go on while a worker is there.
//!
//! * DROP EXTENSION would lock the journal first and the captured tables after it, the other way round than a committing
//!   writer does: a deadlock that the writer may lose. So the captured tables are locked first.
//! * DROP DATABASE, ALTER DATABASE … RENAME or SET TABLESPACE, and CREATE DATABASE … TEMPLATE need the database empty of
//!   other sessions: its worker is sent away and kept away until the transaction ends.
//!
//! One that changes rows without any trigger: REFRESH MATERIALIZED VIEW has the syncs of the view reconciled.
//!
//! And those that subscribe to another server's tables: ours are left out, for what is in them concerns that server alone.

use super::shared::{self, Database, WorkerState};
use crate::catalog::acting::privileged;
use crate::waits::{Wait, event};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

/// How long a statement waits for the worker to be gone; then it goes on and finds out for itself.
const PATIENCE: Duration = Duration::from_secs(5);

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

thread_local! {
    /// Databases from which this transaction keeps the worker away, and whether it drops them.
    static HELD: RefCell<Vec<(&'static Database, bool)>> = const { RefCell::new(Vec::new()) };
}

/// Installs the hook. Called while the library is preloaded.
pub fn register() {
    // SAFETY: hooks are chained as every extension does it, in the postmaster.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(on_utility);
    }
}

/// The transaction ended: workers may come back. Never raises.
pub fn transaction_ended(committed: bool) {
    HELD.with_borrow_mut(|held| {
        if held.is_empty() {
            return;
        }
        for (database, dropped) in held.drain(..) {
            database.holds.fetch_sub(1, SeqCst);
            if dropped && committed {
                database.release();
            }
        }
        shared::wake_launcher();
    });
}

#[pg_guard]
#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn on_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: called by the traffic cop with valid arguments, which are handed on as they are.
    unsafe {
        let node = (*statement).utilityStmt;
        prepare(node);
        // What the statement says is looked up before: afterwards its tree may be gone.
        let refreshed = refreshed(node);
        let subscribes = matches!(
            (*node).type_,
            pg_sys::NodeTag::T_CreateSubscriptionStmt | pg_sys::NodeTag::T_AlterSubscriptionStmt
        );
        match PREVIOUS {
            Some(next) => next(statement, query, read_only, context, parameters, environment, destination, completion),
            None => pg_sys::standard_ProcessUtility(
                statement,
                query,
                read_only,
                context,
                parameters,
                environment,
                destination,
                completion,
            ),
        }
        if subscribes {
            crate::catalog::subscription::leave_out_ours();
        }
        if let Some(view) = refreshed {
            crate::catalog::fed_by(view).into_iter().for_each(crate::capture::mark);
        }
    }
}

/// The materialized view that the statement refreshes.
unsafe fn refreshed(node: *mut pg_sys::Node) -> Option<pg_sys::Oid> {
    // SAFETY: a node's tag says which struct it is; the look-up answers InvalidOid for what is missing.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_RefreshMatViewStmt {
            return None;
        }
        let view = (*node.cast::<pg_sys::RefreshMatViewStmt>()).relation;
        let missing_ok = pg_sys::RVROption::RVR_MISSING_OK;
        let oid = pg_sys::RangeVarGetRelidExtended(view, pg_sys::NoLock as i32, missing_ok, None, std::ptr::null_mut());
        (oid != pg_sys::InvalidOid).then_some(oid)
    }
}

unsafe fn text(text: *const c_char) -> String {
    // SAFETY: a C string of the parse tree, or null.
    unsafe { if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() } }
}

unsafe fn prepare(node: *mut pg_sys::Node) {
    // SAFETY: a node's tag says which struct it is.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropStmt => {
                let statement = &*node.cast::<pg_sys::DropStmt>();
                if statement.removeType == pg_sys::ObjectType::OBJECT_EXTENSION && names_us(statement.objects) {
                    lock_captured_tables();
                    if let Some(database) = shared::database() {
                        send_away(database, false);
                    }
                }
            }
            pg_sys::NodeTag::T_DropdbStmt => {
                hold((*node.cast::<pg_sys::DropdbStmt>()).dbname, true);
            }
            pg_sys::NodeTag::T_RenameStmt => {
                let statement = &*node.cast::<pg_sys::RenameStmt>();
                if statement.renameType == pg_sys::ObjectType::OBJECT_DATABASE {
                    hold(statement.subname, false);
                }
            }
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let statement = &*node.cast::<pg_sys::AlterDatabaseStmt>();
                if option(statement.options, "tablespace").is_some() {
                    hold(statement.dbname, false);
                }
            }
            pg_sys::NodeTag::T_CreatedbStmt => {
                let statement = &*node.cast::<pg_sys::CreatedbStmt>();
                let template = option(statement.options, "template");
                hold(template.unwrap_or(c"template1".as_ptr()), false);
            }
            _ => {}
        }
    }
}

unsafe fn names_us(objects: *mut pg_sys::List) -> bool {
    // SAFETY: DROP EXTENSION has a list of String nodes.
    unsafe {
        pgrx::memcx::current_context(|context| {
            pgrx::list::List::<*mut std::ffi::c_void>::downcast_ptr_in_memcx(objects, context)
                .is_some_and(|list| list.iter().any(|&item| text(value(item.cast())) == "pg_fanout"))
        })
    }
}

/// The text of a String node.
unsafe fn value(node: *mut pg_sys::Node) -> *const c_char {
    // SAFETY: the caller has a String node.
    unsafe { (*node.cast::<pg_sys::String>()).sval }
}

/// A text option of a database statement.
unsafe fn option(options: *mut pg_sys::List, name: &str) -> Option<*const c_char> {
    // SAFETY: such statements have a list of DefElem nodes; the argument of a text option is a String or TypeName node.
    unsafe {
        pgrx::memcx::current_context(|context| {
            let list = pgrx::list::List::<*mut std::ffi::c_void>::downcast_ptr_in_memcx(options, context)?;
            list.iter().map(|&item| item.cast::<pg_sys::DefElem>()).find_map(|element| {
                (text((*element).defname) == name && !(*element).arg.is_null())
                    .then(|| pg_sys::defGetString(element).cast_const())
            })
        })
    }
}

/// Source tables before our own: the order in which writers lock them.
fn lock_captured_tables() {
    let sql = "SELECT DISTINCT t.tgrelid FROM pg_catalog.pg_trigger AS t \
        JOIN pg_catalog.pg_proc AS p ON p.oid OPERATOR(pg_catalog.=) t.tgfoid \
        JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace \
        WHERE n.nspname OPERATOR(pg_catalog.=) 'fanout' AND p.proname OPERATOR(pg_catalog.=) 'capture' ORDER BY 1";
    let tables = privileged(|| {
        Spi::connect(|client| {
            client
                .select(sql, None, &[])?
                .map(|row| Ok(row.get::<pg_sys::Oid>(1)?.unwrap_or(pg_sys::InvalidOid)))
                .collect::<Result<Vec<_>, pgrx::spi::Error>>()
        })
    });
    for table in tables.unwrap_or_default() {
        // SAFETY: waits for the lock as DROP EXTENSION itself would; lock_timeout and cancellation apply.
        unsafe { pg_sys::LockRelationOid(table, pg_sys::AccessExclusiveLock as i32) };
    }
}

unsafe fn hold(name: *const c_char, dropping: bool) {
    // SAFETY: a catalog look-up; without shared memory there is no worker.
    let oid = unsafe { if name.is_null() { pg_sys::InvalidOid } else { pg_sys::get_database_oid(name, true) } };
    let known = shared::databases().find(|database| oid != pg_sys::InvalidOid && database.oid() == oid);
    if let Some(database) = known {
        send_away(database, dropping);
    }
}

/// Sends the worker away and waits until it is gone. The worker is back when the transaction has ended.
fn send_away(database: &'static Database, dropping: bool) {
    database.holds.fetch_add(1, SeqCst);
    HELD.with_borrow_mut(|held| held.push((database, dropping)));
    let began = Instant::now();
    while matches!(database.state(), WorkerState::Running | WorkerState::Starting) && began.elapsed() < PATIENCE {
        let pid = database.pid();
        // SAFETY: SIGTERM to a process of this server, which ends it in order; then a wait that an interrupt ends.
        unsafe {
            if pid > 0 {
                libc::kill(pid, libc::SIGTERM);
            }
            pgrx::check_for_interrupts!();
            let events = (pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32;
            pg_sys::WaitLatch(std::ptr::null_mut(), events, 5, event(Wait::WorkerEnd));
        }
    }
}
