//! Reading rows in a backend as the worker reads them: as the sync's owner, read-only, with the same output.

use crate::catalog::Sync;
use crate::catalog::acting::{acting_for, set};
use pgrx::pg_sys;
use std::ffi::CStr;

/// Settings that change what rows look like, or which of them are seen, and the values under which documents are made.
pub const OUTPUT: &[(&CStr, &CStr)] = &[
    (c"DateStyle", c"ISO, YMD"),
    (c"IntervalStyle", c"postgres"),
    (c"TimeZone", c"UTC"),
    (c"bytea_output", c"hex"),
    (c"xmlbinary", c"base64"),
    (c"extra_float_digits", c"1"),
    (c"lc_monetary", c"C"),
    (c"quote_all_identifiers", c"off"),
    (c"row_security", c"off"),
];

/// Runs `work` as the sync's owner, read-only, with the settings under which the worker makes documents. Whether the caller may act
/// for that role is for the caller to check.
pub fn as_worker<T>(sync: &Sync, work: impl FnOnce() -> T) -> T {
    acting_for(sync, || {
        set(OUTPUT);
        // SAFETY: a flag of this (sub)transaction, put back here or by its abort (AbortSubTransaction in xact.c).
        unsafe {
            let before = pg_sys::XactReadOnly;
            pg_sys::XactReadOnly = true;
            let result = work();
            pg_sys::XactReadOnly = before;
            result
        }
    })
}

/// Runs `work` with a snapshot of this moment; rows are read under that of the statement otherwise, however long ago it began.
pub fn as_of_now<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: pushed and popped in pairs; an abort pops what was pushed in its (sub)transaction (AtSubAbort_Snapshot).
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        let result = work();
        pg_sys::PopActiveSnapshot();
        result
    }
}
