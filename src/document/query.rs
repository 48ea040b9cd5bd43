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
    /// It is recursive.
    pub recursive: bool,
    /// How many more times than there are CTEs one is mentioned, but for what makes one recursive.
    pub mentions: usize,
    /// It uses a row as a whole: which columns that has, what it yields does not tell.
    pub whole_rows: bool,
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

/// Words that a date or a time may be written with, and that stand for another one as time passes.
const CLOCK_WORDS: &[(&str, &str)] =
    &[("now", "'now'"), ("today", "'today'"), ("tomorrow", "'tomorrow'"), ("yesterday", "'yesterday'")];

/// The text of the one SELECT in `text`, without a semicolon. An ERROR that names the argument if it is anything else.
///
/// Whatever it is then put into, it cannot end that: a statement that was parsed alone has balanced parentheses.
pub fn only_select(argument: &str, text: &str) -> String {
    let refuse = |why: &str| -> ! {
        failure(PgSqlErrorCode::ERRCODE_SYNTAX_ERROR, format!("\"{argument}\" must be one SELECT statement"))
            .detail(format!("{why}."))
            .hint("Give the text of a single SELECT or WITH … SELECT, for example 'SELECT id, name FROM product'.")
            .raise()
    };
    let Ok(c_text) = CString::new(text) else { refuse("It contains a NUL character") };
    // SAFETY: parses a C string; the parse tree is palloc'd and read within this call.
    let (count, tag, location, length) = named(argument, TRY_IT, || unsafe {
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

/// What a text of SQL has to be, where PostgreSQL itself gives no hint.
pub const TRY_IT: &str = "Try it by itself: as this role it has to be a SELECT that runs.";

/// Runs `work`, whose ERRORs are about an argument of the user's: they are told with its name, and with `hint` where they have
/// none.
pub fn named<T>(argument: &str, hint: &str, work: impl FnOnce() -> T + std::panic::UnwindSafe) -> T {
    let (argument, otherwise) = (argument.to_owned(), hint.to_owned());
    PgTryBuilder::new(work)
        .catch_others(move |error| match error {
            pg_sys::panic::CaughtError::PostgresError(report) | pg_sys::panic::CaughtError::ErrorReport(report) => {
                let mut told =
                    failure(report.sql_error_code(), format!("\"{argument}\" can't be used: {}", report.message()));
                if let Some(detail) = report.detail() {
                    told = told.detail(detail);
                }
                told.hint(report.hint().unwrap_or(&otherwise)).raise()
            }
            other => other.rethrow(),
        })
        .execute()
}

/// Parses and rewrites a statement and tells what it is. Raises what PostgreSQL raises.
pub fn describe(sql: &str, parameters: &[pg_sys::Oid]) -> Described {
    let text = sql;
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
            // Without places in the text since version 17, unless asked for.
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            let tree = pg_sys::nodeToStringWithLocations(source.query_list.cast());
            #[cfg(not(any(feature = "pg17", feature = "pg18")))]
            let tree = pg_sys::nodeToString(source.query_list.cast());
            let printed = CStr::from_ptr(tree).to_string_lossy();
            Described {
                columns: columns(source.resultDesc),
                reads: relations(&printed),
                volatile: (0..length(source.query_list)).any(|n| {
                    pg_sys::contain_volatile_functions((*(*source.query_list).elements.add(n)).ptr_value.cast())
                }),
                locks: printed.contains(":hasForUpdate true"),
                clock: CLOCKS
                    .iter()
                    .find(|(mark, _)| printed.contains(mark))
                    .map(|&(_, name)| name)
                    .or_else(|| clock_literal(text, &printed)),
                recursive: printed.contains(":cterecursive true"),
                mentions: printed
                    .matches(":rtekind 6 ")
                    .count()
                    .saturating_sub(printed.matches("{COMMONTABLEEXPR ").count())
                    .saturating_sub(printed.matches(":self_reference true").count()),
                whole_rows: printed.contains(":varattno 0 "),
            }
        }
    })
}

/// The tables in a query's range tables, as often as they stand there. What the plan depends on is more: a constant of type
/// regclass names a table without reading it.
fn relations(printed: &str) -> Vec<pg_sys::Oid> {
    const RELATION: &str = ":rtekind 0 :relid ";
    let oid = |(at, _): (usize, &str)| printed[at + RELATION.len()..].split(' ').next()?.parse::<u32>().ok();
    printed.match_indices(RELATION).filter_map(oid).map(pg_sys::Oid::from).collect()
}

/// The word of [`CLOCK_WORDS`] that a literal of the query is made of, where it is read as a date or a time. Such a literal
/// is a constant when the query was parsed: it becomes another one each time that the query is parsed anew.
fn clock_literal(text: &str, printed: &str) -> Option<&'static str> {
    /// A literal that becomes text and is read as something else when the query runs.
    const READ_LATER: &str = "{COERCEVIAIO :arg ";
    const CONSTANT: &str = "{CONST :consttype ";
    printed.match_indices(CONSTANT).find_map(|(at, _)| {
        let rest = &printed[at + CONSTANT.len()..];
        let type_oid: u32 = rest.split(' ').next()?.parse().ok()?;
        let place: usize = rest.split(":location ").nth(1)?.split(' ').next()?.parse().ok()?;
        let word = clock_word(literal(text.get(place..)?)?)?;
        (printed[..at].ends_with(READ_LATER) || tells_time(pg_sys::Oid::from(type_oid))).then_some(word)
    })
}

/// What stands between the quotes of the string at the beginning of `text`.
fn literal(text: &str) -> Option<&str> {
    let quote = text.find(['\'', '$'])?;
    let rest = &text[quote..];
    // 'now', E'now', U&'now'; $$now$$, $a$now$a$. Before the quote stands a letter or two at most.
    let end = match rest.strip_prefix('$') {
        Some(tag) => tag.find('$')? + 2,
        None => 1,
    };
    let (opening, rest) = rest.split_at(end);
    (quote <= 2).then(|| rest.find(opening).map(|end| &rest[..end]))?
}

/// The first of [`CLOCK_WORDS`] in it.
fn clock_word(literal: &str) -> Option<&'static str> {
    let words = literal.split(|character: char| !character.is_ascii_alphabetic());
    let known = |word: &str| CLOCK_WORDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    words.into_iter().find_map(known).map(|&(_, name)| name)
}

/// Whether values of the type are, or are made of, dates or times of day.
fn tells_time(type_oid: pg_sys::Oid) -> bool {
    match type_oid {
        pg_sys::DATEOID | pg_sys::TIMEOID | pg_sys::TIMETZOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => true,
        _ => {
            // SAFETY: look-ups of the type cache on the main thread, which answer 0 where there is no such type.
            let within = unsafe {
                let base = pg_sys::getBaseType(type_oid);
                [
                    if base == type_oid { pg_sys::InvalidOid } else { base },
                    pg_sys::get_element_type(type_oid),
                    pg_sys::get_range_subtype(type_oid),
                    pg_sys::get_multirange_range(type_oid),
                ]
            };
            within.into_iter().any(|part| part != pg_sys::InvalidOid && tells_time(part))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_found_however_they_are_quoted() {
        for (text, expected) in [
            ("'now'::date", Some("now")),
            ("E'now' AS a", Some("now")),
            ("U&'now'", Some("now")),
            ("$$now$$", Some("now")),
            ("$a$now$a$::date", Some("now")),
            ("17 + 'now'", None),
            ("'now", None),
            ("true", None),
        ] {
            assert_eq!(literal(text), expected, "{text}");
        }
    }

    #[test]
    fn words_that_tell_another_time_each_day_are_found() {
        for text in ["now", " NOW ", "Today 10:00", "{2020-01-01,tomorrow}", "[yesterday,infinity)"] {
            assert!(clock_word(text).is_some(), "{text}");
        }
        for text in ["2020-01-01", "infinity", "epoch", "nowhere", "allballs", ""] {
            assert_eq!(clock_word(text), None, "{text}");
        }
    }
}
