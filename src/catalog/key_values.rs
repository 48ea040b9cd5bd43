//! Arguments declared as `VARIADIC key "any"`: the values of a key, of whatever types the caller has them.

use crate::catalog::acting::acting_as;
use crate::catalog::source::Column;
use crate::catalog::{self, key::type_name};
use crate::document::{OUTPUT, query};
use crate::error::{failure, not_null};
use crate::server::options::text;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::CString;
use std::panic::AssertUnwindSafe;

/// A value that is not NULL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyValue {
    /// A literal or another text: read as an INSERT of the literal would, with the caller's settings.
    Text(String),
    /// A value of another type, printed under the worker's settings, and read under these: the caller's may print what reads
    /// back as something else, or less of it.
    Printed(String),
}

/// The values given for `key`, which is declared `VARIADIC "any"`, from the argument at this place on.
///
/// # Safety
/// `fcinfo` is that of the call under way.
pub unsafe fn given(fcinfo: pg_sys::FunctionCallInfo, place: usize) -> Vec<Option<KeyValue>> {
    // SAFETY: PostgreSQL fills in flinfo and nargs arguments before the call; the types are those that the parser found.
    unsafe {
        let flinfo = (*fcinfo).flinfo;
        let arguments = &(*fcinfo).args.as_slice((*fcinfo).nargs as usize)[place..];
        if pg_sys::get_fn_expr_variadic(flinfo) {
            // VARIADIC ARRAY[…]: the parser takes nothing else than an array there.
            let array = arguments.first().filter(|argument| !argument.isnull).map(|argument| argument.value);
            return elements(not_null("key", array));
        }
        let types = (place..).map(|n| pg_sys::get_fn_expr_argtype(flinfo, n as i32));
        arguments.iter().zip(types).map(|(given, of)| (!given.isnull).then(|| value(of, given.value))).collect()
    }
}

/// # Safety
/// The datum is an array.
unsafe fn elements(array: pg_sys::Datum) -> Vec<Option<KeyValue>> {
    // SAFETY: deconstruct_array palloc's both lists, of `count` elements; what is of variable size points into the array, which
    // lives in the same memory context.
    unsafe {
        let array: *mut pg_sys::ArrayType = pg_sys::pg_detoast_datum(array.cast_mut_ptr()).cast();
        let of = (*array).elemtype;
        let (mut length, mut by_value, mut align) = (0, false, 0);
        pg_sys::get_typlenbyvalalign(of, &mut length, &mut by_value, &mut align);
        let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        pg_sys::deconstruct_array(array, of, length.into(), by_value, align, &mut values, &mut nulls, &mut count);
        (0..count as usize).map(|n| (!*nulls.add(n)).then(|| value(of, *values.add(n)))).collect()
    }
}

/// # Safety
/// The datum is of that type.
unsafe fn value(of: pg_sys::Oid, datum: pg_sys::Datum) -> KeyValue {
    let print = || {
        let (mut function, mut variable) = (pg_sys::InvalidOid, false);
        // SAFETY: the output function of a type takes a datum of it and gives a C string, which is copied.
        unsafe {
            pg_sys::getTypeOutputInfo(of, &mut function, &mut variable);
            text(pg_sys::OidOutputFunctionCall(function, datum))
        }
    };
    if is_text(of) { KeyValue::Text(print()) } else { KeyValue::Printed(pinned(print)) }
}

/// A literal without a type, or a type of PostgreSQL's category of strings.
fn is_text(of: pg_sys::Oid) -> bool {
    let (mut category, mut preferred) = (0, false);
    // SAFETY: a catalog look-up on the main thread.
    unsafe { pg_sys::get_type_category_preferred(of, &mut category, &mut preferred) };
    of == pg_sys::UNKNOWNOID || category as u8 == pg_sys::TYPCATEGORY_STRING
}

/// Runs `work` as the caller, under the settings with which the worker prints values.
fn pinned<T>(work: impl FnOnce() -> T) -> T {
    acting_as(catalog::caller(), || {
        catalog::acting::set(OUTPUT);
        work()
    })
}

/// The value as one of the column's type; an ERROR if it is none.
pub fn input(column: &Column, value: &KeyValue) -> pg_sys::Datum {
    let read = |value: &str| {
        let Ok(value) = CString::new(value) else {
            failure(PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE, "\"key\" contains a NUL character")
                .hint("Text of PostgreSQL has none: leave it out.")
                .raise()
        };
        let hint = format!("Key column \"{}\" is of type {}.", column.name, type_name(column.type_oid));
        let work = AssertUnwindSafe(|| {
            let (mut function, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
            // SAFETY: the input function of a type reads a C string and gives a datum of that type in the current memory
            // context.
            unsafe {
                pg_sys::getTypeInputInfo(column.type_oid, &mut function, &mut parameter);
                pg_sys::OidInputFunctionCall(function, value.as_ptr().cast_mut(), parameter, column.type_modifier)
            }
        });
        query::named("key", &hint, work)
    };
    match value {
        KeyValue::Text(value) => read(value),
        KeyValue::Printed(value) => pinned(|| read(value)),
    }
}
