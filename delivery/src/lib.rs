//! Delivery of documents to Elasticsearch, OpenSearch and Redis.
//!
//! This crate knows nothing of PostgreSQL: its threads must never call into a Postgres backend. The caller (the worker)
//! builds batches ([`bulk`], [`keyspace`]), hands them to sender threads ([`sender`]), and learns the outcome of every
//! document from the reports that come back. A sender makes exactly one attempt at a job. Whether, when and with what
//! content something is sent again is decided by the caller, who reads the row anew first.

#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod aimd;
pub mod backoff;
pub mod bulk;
pub mod config;
pub mod engine;
pub mod error;
mod escape;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod id;
pub mod keyspace;
pub mod ownership;
pub mod period;
pub mod sender;
pub mod signals;
pub mod template;
mod tls;

pub use error::{Error, ErrorKind, Result, RetryClass};
