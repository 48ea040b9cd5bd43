//! Key templates, keys and document ids.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| delivery::fuzzing::key_template(data));
