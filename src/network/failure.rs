//! A target's failure as a PostgreSQL error.

use delivery::{Error, ErrorKind};
use pgrx::prelude::*;

use crate::error::failure;

/// What was asked of whom, for the message.
pub struct Asked<'a> {
    /// The foreign server.
    pub server: &'a str,
    /// The index, or nothing for Redis.
    pub index: Option<&'a str>,
}

/// Raises what became of a request. The target's own reason goes into DETAIL.
pub fn raise(asked: &Asked, error: &Error) -> ! {
    let server = asked.server;
    let (code, message, hint) = match error.kind() {
        ErrorKind::Unreachable => (
            PgSqlErrorCode::ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
            format!("could not connect to server \"{server}\""),
            "Check the option \"url\" of the server, and that it is running.".to_owned(),
        ),
        ErrorKind::Timeout => (
            PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
            format!("server \"{server}\" gave no answer in time"),
            "The option \"request_timeout\" of the server is the bound.".to_owned(),
        ),
        ErrorKind::ConnectionLost | ErrorKind::Cut => (
            PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
            format!("the connection to server \"{server}\" was lost"),
            String::new(),
        ),
        ErrorKind::Overloaded => (
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
            format!("server \"{server}\" is overloaded"),
            "Try again later.".to_owned(),
        ),
        ErrorKind::Unauthorized if error.status() == Some(403) => (
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("server \"{server}\" does not permit this to the user mapping's credentials"),
            String::new(),
        ),
        ErrorKind::Unauthorized => (
            PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
            format!("server \"{server}\" refused the credentials of the user mapping"),
            format!("ALTER USER MAPPING FOR … SERVER {server} changes them."),
        ),
        ErrorKind::TooLarge => (
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("the request is too large for server \"{server}\""),
            String::new(),
        ),
        ErrorKind::BadRequest => (
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            match asked.index {
                Some(_) => format!("server \"{server}\" refused the search"),
                None => format!("server \"{server}\" refused the command"),
            },
            String::new(),
        ),
        ErrorKind::NotFound => (
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            match asked.index {
                Some(index) => format!("index \"{index}\" does not exist on server \"{server}\""),
                None => format!("server \"{server}\" does not have what was asked for"),
            },
            "SELECT * FROM fanout.status shows whether the index of a sync has been made.".to_owned(),
        ),
        ErrorKind::Incomplete => (
            PgSqlErrorCode::ERRCODE_FDW_ERROR,
            match asked.index {
                Some(index) => format!("the search in \"{index}\" did not cover all of the index"),
                None => format!("the answer of server \"{server}\" is not whole"),
            },
            "Part of a result is never returned as if it were all: see the health of the engine's shards.".to_owned(),
        ),
        ErrorKind::TlsOrConfig => (
            PgSqlErrorCode::ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
            format!("server \"{server}\" can't be used as it is configured"),
            "Check the options of the server and of the user mapping.".to_owned(),
        ),
        ErrorKind::Protocol => (
            PgSqlErrorCode::ERRCODE_PROTOCOL_VIOLATION,
            format!("the answer of server \"{server}\" was not understood"),
            "Check that the option \"url\" leads to a target of the right kind.".to_owned(),
        ),
        _ => (PgSqlErrorCode::ERRCODE_FDW_ERROR, format!("server \"{server}\" failed"), String::new()),
    };
    let mut raised = failure(code, message).detail(error.to_string());
    if !hint.is_empty() {
        raised = raised.hint(hint);
    }
    raised.raise()
}
