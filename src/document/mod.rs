//! From addresses to documents: reading rows as they are now.

mod read;
mod source;

pub use read::Plans;
pub use source::Source;
