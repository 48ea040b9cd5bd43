//! The library's version and that of the extension's objects: between an upgrade of the package and ALTER EXTENSION … UPDATE
//! they differ.

/// This library's.
pub const LIBRARY: &str = env!("CARGO_PKG_VERSION");

/// What puts an end to it.
pub const HINT: &str = "Run ALTER EXTENSION pg_fanout UPDATE in this database; if the library is the older one, install the \
                        package of the extension's version, and restart the server.";

/// How the two differ; None if they do not, or if the extension is gone. Within a transaction.
pub fn difference() -> Option<String> {
    let installed: Option<String> =
        super::first("SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'pg_fanout'", &[]).ok().flatten();
    let installed = installed.filter(|installed| installed != LIBRARY)?;
    Some(format!("the library is of version {LIBRARY}, the extension of version {installed}"))
}
