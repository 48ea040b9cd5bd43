//! Errors as PostgreSQL users expect them: SQLSTATE, message, DETAIL, HINT.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// An error under construction. Nothing is raised until [`Failure::raise`].
pub struct Failure {
    code: PgSqlErrorCode,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

/// Starts an error with its SQLSTATE and its primary message (lower case, no full stop; never a secret or a row's value).
pub fn failure(code: PgSqlErrorCode, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into(), detail: None, hint: None }
}

impl Failure {
    /// Adds DETAIL: what exactly was found.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds HINT: what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The primary message.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn report(self) -> ErrorReport {
        let mut report = ErrorReport::new(self.code, self.message, "pg_fanout");
        if let Some(detail) = self.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = self.hint {
            report = report.set_hint(hint);
        }
        report
    }

    /// Raises it as an ERROR: ends the statement, does not return.
    pub fn raise(self) -> ! {
        self.report().report(PgLogLevel::ERROR);
        unreachable!("an ERROR does not return")
    }

    /// Sends it as a WARNING.
    pub fn warn(self) {
        self.report().report(PgLogLevel::WARNING);
    }
}

/// The value of an argument that must not be NULL, or an ERROR that names it.
pub fn not_null<T>(argument: &str, value: Option<T>) -> T {
    value.unwrap_or_else(|| {
        failure(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, format!("argument \"{argument}\" must not be NULL"))
            .hint(format!("Give it: {argument} => …. What has a default may be left out."))
            .raise()
    })
}

/// The elements of an argument that is an array, or an ERROR that names it if one is NULL.
pub fn no_nulls(argument: &str, values: Vec<Option<String>>) -> Vec<String> {
    values.into_iter().collect::<Option<_>>().unwrap_or_else(|| {
        failure(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, format!("\"{argument}\" must not hold NULL"))
            .hint("Leave out what is NULL: each element has to be a value.")
            .raise()
    })
}
