//! Running our own SQL as somebody else: who the caller is must not matter to what we keep for ourselves.

use super::Sync;
use pgrx::pg_sys;
use std::ffi::{CStr, CString};

/// Runs `work` as `role` with `search_path` pinned to `pg_catalog, pg_temp`, in a security-restricted context.
///
/// An ERROR inside leaves role and settings to the (sub)transaction abort, which restores both
/// (AbortTransaction in xact.c).
pub fn acting_as<T>(role: pg_sys::Oid, work: impl FnOnce() -> T) -> T {
    acting_with(role, &[(c"search_path", c"pg_catalog, pg_temp")], work)
}

/// As [`acting_as`], with these settings; `search_path` must be one of them.
pub fn acting_with<T>(role: pg_sys::Oid, settings: &[(&CStr, &CStr)], work: impl FnOnce() -> T) -> T {
    let mut caller = pg_sys::InvalidOid;
    let mut context = 0;
    let flags = (pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION) as i32;
    // SAFETY: plain calls into the backend on its main thread; the pointers are to locals that outlive the call.
    let nest_level = unsafe {
        pg_sys::GetUserIdAndSecContext(&mut caller, &mut context);
        pg_sys::SetUserIdAndSecContext(role, context | flags);
        let nest_level = pg_sys::NewGUCNestLevel();
        set(settings);
        nest_level
    };
    let result = work();
    // SAFETY: the nest level is the one opened above; the identity is the one read above.
    unsafe {
        // false: what code of others has set meanwhile is taken back (as VACUUM does after index expressions).
        pg_sys::AtEOXact_GUC(false, nest_level);
        pg_sys::SetUserIdAndSecContext(caller, context);
    }
    result
}

/// Sets what the end of the present nest level takes back.
pub fn set(settings: &[(&CStr, &CStr)]) {
    for (name, value) in settings {
        // SAFETY: C strings, on the main thread.
        unsafe {
            pg_sys::set_config_option(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
        }
    }
}

/// Runs `work` as the sync's owner, with the settings under which its query is planned and read: names are looked up where
/// they were when it was declared, and joins may be of any kind, which reading whole rows by their keys never needs.
pub fn acting_for<T>(sync: &Sync, work: impl FnOnce() -> T) -> T {
    match sync.search_path().and_then(|path| CString::new(path).ok()) {
        None => acting_as(sync.owner, work),
        Some(path) => {
            let settings =
                [(c"search_path", path.as_c_str()), (c"enable_hashjoin", c"on"), (c"enable_mergejoin", c"on")];
            acting_with(sync.owner, &settings, work)
        }
    }
}

/// Runs `work` as the bootstrap superuser: only for our own constant, fully qualified SQL on schema `fanout`.
pub fn privileged<T>(work: impl FnOnce() -> T) -> T {
    acting_as(pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID), work)
}
