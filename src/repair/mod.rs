//! Looking at both sides: `fanout.explain()` for one row, `fanout.document()`, `fanout.verify()` for all of them.
//!
//! A backend reads rows as the worker does ([`crate::document::as_worker`]) and asks the target with the credentials of the
//! sync's owner, so what it sees is what the worker sees. Only who may act for the owner gets that far.

pub mod attempt;
mod canonical;
mod explain;
mod subject;
mod suspect;
mod verify;

pub use subject::Subject;
