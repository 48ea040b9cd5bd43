//! pg_fanout: keeps Elasticsearch, OpenSearch and Redis in step with PostgreSQL, and queries them from SQL.
//!
//! The path of a change: [`capture`] → [`journal`] → [`worker`] → [`document`] → the crate `delivery`. See ARCHITECTURE.md.

#[cfg(not(panic = "unwind"))]
compile_error!("pg_fanout must be compiled with panic = \"unwind\": Postgres errors travel as panics");

mod cache;
mod capture;
mod catalog;
mod document;
mod error;
mod journal;
mod network;
mod repair;
mod search;
mod server;
mod settings;
mod status;
mod waits;
mod worker;

use pgrx::prelude::*;

pgrx::pg_module_magic!();

extension_sql_file!("../sql/bootstrap.sql", name = "bootstrap", bootstrap);

extension_sql_file!("../sql/finalize.sql", name = "finalize", finalize);

/// Schema of the administration objects.
#[pg_schema]
mod fanout {}

/// Called by the server when it loads the library.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: globals of the server, read on its main thread.
    let (upgrading, preloading) =
        unsafe { (pg_sys::IsBinaryUpgrade, pg_sys::process_shared_preload_libraries_in_progress) };
    if upgrading {
        return;
    }
    settings::define();
    capture::register();
    if preloading {
        worker::register();
    }
}
