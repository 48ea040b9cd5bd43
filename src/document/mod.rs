//! From addresses to documents: reading rows as they are now.

mod backend;
mod encode;
pub mod query;
mod read;
mod source;
pub mod statements;

pub use backend::{OUTPUT, as_of_now, as_worker};
pub use read::{Plans, Related, twice};
pub use source::{Source, Unreadable};
