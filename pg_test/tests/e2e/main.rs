//! The end-to-end tests: one module a subject. How to run them: see the head of `src/lib.rs`.

mod administration;
mod backfill;
mod cache_functions;
mod cancel;
mod columns;
mod crashes;
mod dead_letters;
mod documents;
mod harness;
mod keys;
mod outages;
mod ownership;
mod partitions;
mod privileges;
mod races;
mod readme;
mod removal;
mod repair;
mod rows;
mod savepoints;
mod search;
mod statements;
mod tables;
mod types;
mod values;
mod writers;
