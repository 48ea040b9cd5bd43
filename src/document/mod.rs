//! From addresses to documents: reading rows as they are now.

pub mod query;
mod read;
mod source;
pub mod statements;

pub use read::{Plans, Related, twice};
pub use source::{Source, Unreadable};
