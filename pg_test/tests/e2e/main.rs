//! The end-to-end tests: one module a subject. How to run them: see the head of `src/lib.rs`.

mod harness;
