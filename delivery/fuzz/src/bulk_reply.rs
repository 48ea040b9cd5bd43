//! Replies to bulk requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| delivery::fuzzing::bulk_reply(data));
