//! One error type, classified by what the caller can do about it.

use std::fmt;

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as it matters for what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No connection could be made: nothing was sent.
    Unreachable,
    /// No reply in time: the outcome is unknown, the target may still be at it.
    Timeout,
    /// The connection broke after the request was (partly) sent: the outcome is unknown.
    ConnectionLost,
    /// As [`ErrorKind::ConnectionLost`], though a small request went through right after: it may be the size. The outcome is
    /// unknown.
    Cut,
    /// 429 or 503; a Redis that is loading, out of memory or busy.
    Overloaded,
    /// Any other 5xx: the outcome is unknown.
    ServerError,
    /// 401, 403; NOAUTH, WRONGPASS, NOPERM.
    Unauthorized,
    /// 413, or over the byte bound of the target.
    TooLarge,
    /// 400 for the request as a whole.
    BadRequest,
    /// 404 where something was expected to be.
    NotFound,
    /// Something of that name exists and was not made by us, or was changed by another at the same time.
    Conflict,
    /// The reply could not be understood or does not fit what was asked: the outcome is unknown.
    Protocol,
    /// TLS material, certificate verification, or configuration.
    TlsOrConfig,
    /// The search engine answered, but not with all shards, or gave up before the end.
    Incomplete,
    /// The job was not started because the senders are being stopped: nothing was sent.
    Stopped,
    /// A bug in this crate, caught: the outcome is unknown.
    Panicked,
}

/// What the caller does with a batch that failed as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryClass {
    /// Try again later, with rows read anew; for ever.
    Transient,
    /// Somebody has to change something: show the reason, try again slowly, drop nothing.
    Blocked,
    /// Halve the batch; a single document for which it stays so is rejected.
    Split,
    /// The same request will fail again.
    Permanent,
}

impl ErrorKind {
    /// What to do with a batch that failed with this.
    pub fn retry_class(self) -> RetryClass {
        match self {
            ErrorKind::Unreachable
            | ErrorKind::Timeout
            | ErrorKind::ConnectionLost
            | ErrorKind::Cut
            | ErrorKind::Overloaded
            | ErrorKind::ServerError
            | ErrorKind::Protocol
            | ErrorKind::Incomplete
            | ErrorKind::Stopped
            | ErrorKind::Panicked => RetryClass::Transient,
            ErrorKind::Unauthorized | ErrorKind::Conflict | ErrorKind::TlsOrConfig => RetryClass::Blocked,
            ErrorKind::TooLarge | ErrorKind::BadRequest => RetryClass::Split,
            ErrorKind::NotFound => RetryClass::Permanent,
        }
    }

    /// Whether the target may have done what was asked, now or later.
    pub fn outcome_unknown(self) -> bool {
        matches!(
            self,
            ErrorKind::Timeout
                | ErrorKind::ConnectionLost
                | ErrorKind::Cut
                | ErrorKind::ServerError
                | ErrorKind::Protocol
                | ErrorKind::Panicked
        )
    }
}

/// An error of a target. Its text never holds a secret; it may hold the target's own reason, which can quote a document.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    status: Option<u16>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Longest text that is kept of a target's reason, in bytes.
pub const MAX_REASON_BYTES: usize = 2048;

impl Error {
    /// An error with a message for the user: lower case, no full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: bounded(message.into()), status: None, source: None }
    }

    /// Adds the error that caused this one.
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.source = Some(source.into());
        self
    }

    /// Adds the HTTP status.
    pub fn with_status(mut self, status: u16) -> Error {
        self.status = Some(status);
        self
    }

    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The HTTP status, if one came back.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// The text, at most about [`MAX_REASON_BYTES`] long, without its cause.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// See [`ErrorKind::retry_class`].
    pub fn retry_class(&self) -> RetryClass {
        self.kind.retry_class()
    }

    /// See [`ErrorKind::outcome_unknown`]. With a 503 too: a proxy may have given up on a node that goes on.
    pub fn outcome_unknown(&self) -> bool {
        self.kind.outcome_unknown() || self.status == Some(503)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Cuts at a character boundary, and says so with an ellipsis.
pub(crate) fn bounded(mut text: String) -> String {
    if text.len() > MAX_REASON_BYTES {
        let mut end = MAX_REASON_BYTES - '…'.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}
