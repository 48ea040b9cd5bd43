//! Queries that users give us: what one is, what it yields, what it reads.

use crate::catalog::source::Column;
use crate::error::failure;
use pgrx::prelude::*;
use pgrx::{Spi, pg_sys};
use std::ffi::{CStr, CString};

/// What a query was found to be.
pub struct Described {
    /// What it yields.
    pub columns: Vec<Column>,
    /// The tables that it reads, also by way of views. Not those that are read inside of functions.
    pub reads: Vec<pg_sys::Oid>,
    /// It calls a volatile function.
    pub volatile: bool,
    /// It locks rows: FOR UPDATE and its kin.
    pub locks: bool,
    /// It asks what time it is: with what.
    pub clock: Option<&'static str>,
}

/// Functions that give another result as time passes, by their OIDs (pg_proc.dat, the same in all versions).
const CLOCKS: &[(&str, &str)] = &[
    (":funcid 1299 ", "now()"),
    (":funcid 2647 ", "transaction_timestamp()"),
    (":funcid 2648 ", "statement_timestamp()"),
    (":funcid 1386 ", "age(timestamp with time zone)"),
    (":funcid 2059 ", "age(timestamp)"),
    // SQLValueFunctionOp of primnodes.h, 0 to 8: the date and time ones.
    ("{SQLVALUEFUNCTION :op 0 ", "current_date"),
    ("{SQLVALUEFUNCTION :op 1 ", "current_time"),
    ("{SQLVALUEFUNCTION :op 2 ", "current_time"),
    ("{SQLVALUEFUNCTION :op 3 ", "current_timestamp"),
    ("{SQLVALUEFUNCTION :op 4 ", "current_timestamp"),
    ("{SQLVALUEFUNCTION :op 5 ", "localtime"),
    ("{SQLVALUEFUNCTION :op 6 ", "localtime"),
    ("{SQLVALUEFUNCTION :op 7 ", "localtimestamp"),
    ("{SQLVALUEFUNCTION :op 8 ", "localtimestamp"),
];

/// The text of the one SELECT in `text`, without a semicolon. An ERROR that names the argument if it is anything else.
///
/// Whatever it is then put into, it cannot end that: a statement that was parsed alone has balanced parentheses.
pub fn only_select(argument: &str, text: &str) -> String {
    let refuse = |why: &str| -> ! {
        failure(PgSqlErrorCode::ERRCODE_SYNTAX_ERROR, format!("\"{argument}\" must be one SELECT statement"))
            .detail(format!("{why}."))
            .raise()
    };
    let Ok(c_text) = CString::new(text) else { refuse("It contains a NUL character") };
    // SAFETY: parses a C string; the parse tree is palloc'd and read within this call.
    let (count, tag, location, length) = named(argument, || unsafe {
        let list = pg_sys::pg_parse_query(c_text.as_ptr());
        if list.is_null() {
            return (0, pg_sys::NodeTag::T_Invalid, 0, 0);
        }
        let first = (*(*list).elements).ptr_value.cast::<pg_sys::RawStmt>();
        ((*list).length, (*(*first).stmt).type_, (*first).stmt_location, (*first).stmt_len)
    });
    match count {
        0 => refuse("It is empty"),
        1 if tag == pg_sys::NodeTag::T_SelectStmt => {}
        1 => refuse("It is another statement"),
        _ => refuse("It is more than one statement"),
    }
    let from = usize::try_from(location).unwrap_or_default();
    let to = if length > 0 { from + length as usize } else { text.len() };
    text.get(from..to).unwrap_or(text).trim().to_owned()
}

/// Runs `work`, whose ERRORs are about a query of the user's: they are told with the name of the argument.
pub fn named<T>(argument: &str, work: impl FnOnce() -> T + std::panic::UnwindSafe) -> T {
    let argument = argument.to_owned();
    PgTryBuilder::new(work)
        .catch_others(move |error| match error {
            pg_sys::panic::CaughtError::PostgresError(report) | pg_sys::panic::CaughtError::ErrorReport(report) => {
                let mut told =
                    failure(report.sql_error_code(), format!("\"{argument}\" can't be used: {}", report.message()));
                if let Some(detail) = report.detail() {
                    told = told.detail(detail);
                }
                if let Some(hint) = report.hint() {
                    told = told.hint(hint);
                }
                told.raise()
            }
            other => other.rethrow(),
        })
        .execute()
}

/// Parses and rewrites a statement and tells what it is. Raises what PostgreSQL raises.
pub fn describe(sql: &str, parameters: &[pg_sys::Oid]) -> Described {
    let sql = CString::new(sql).unwrap_or_default();
    Spi::connect(|_| {
        // SAFETY: within an SPI session; the plan and its source live until that ends, and all that is kept is copied.
        unsafe {
            let plan = pg_sys::SPI_prepare(sql.as_ptr(), parameters.len() as i32, parameters.as_ptr().cast_mut());
            if plan.is_null() {
                let result = pg_sys::SPI_result;
                pgrx::error!("cannot prepare a query: SPI result {result}");
            }
            let sources = pg_sys::SPI_plan_get_plan_sources(plan);
            let source = &*(*(*sources).elements).ptr_value.cast::<pg_sys::CachedPlanSource>();
            let tree = pg_sys::nodeToString(source.query_list.cast());
            let printed = CStr::from_ptr(tree).to_string_lossy();
            Described {
                columns: columns(source.resultDesc),
                reads: oids(source.relationOids),
                volatile: (0..length(source.query_list)).any(|n| {
                    pg_sys::contain_volatile_functions((*(*source.query_list).elements.add(n)).ptr_value.cast())
                }),
                locks: printed.contains(":hasForUpdate true"),
                clock: CLOCKS.iter().find(|(mark, _)| printed.contains(mark)).map(|&(_, name)| name),
            }
        }
    })
}

unsafe fn columns(descriptor: pg_sys::TupleDesc) -> Vec<Column> {
    // SAFETY: the caller has a valid descriptor, or null for a statement without rows.
    unsafe {
        if descriptor.is_null() {
            return Vec::new();
        }
        let descriptor = pgrx::PgTupleDesc::from_pg_copy(descriptor);
        let column = |attribute: &pg_sys::FormData_pg_attribute| Column {
            name: attribute.name().to_owned(),
            type_oid: attribute.atttypid,
            type_modifier: attribute.atttypmod,
            computed: false,
        };
        descriptor.iter().map(column).collect()
    }
}

unsafe fn length(list: *mut pg_sys::List) -> usize {
    // SAFETY: a list, or null for an empty one.
    unsafe { if list.is_null() { 0 } else { (*list).length as usize } }
}

unsafe fn oids(list: *mut pg_sys::List) -> Vec<pg_sys::Oid> {
    // SAFETY: a list of OIDs, or null for an empty one.
    unsafe { (0..length(list)).map(|n| (*(*list).elements.add(n)).oid_value).collect() }
}
