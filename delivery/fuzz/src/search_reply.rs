//! Replies to searches and scans.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| delivery::fuzzing::search_reply(data));
