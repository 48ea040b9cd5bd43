//! Payloads of the journal.
#![no_main]

#[allow(dead_code)]
#[path = "../../../src/journal/format.rs"]
mod format;

use format::{Entry, Packer, take_column, unpack};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut entries = 0;
    let mut packed = Vec::new();
    let mut packer = Packer::new(|payload: &[u8]| packed.push(payload.to_vec()));
    let read = unpack(data, |entry| {
        entries += 1;
        match entry {
            Entry::Reconcile { sync } => packer.reconcile(sync),
            Entry::Address { sync, layout, address } => {
                let mut rest = address;
                for _ in 0..layout.columns {
                    take_column(&mut rest).expect("as many columns as the layout says");
                }
                assert!(rest.is_empty(), "and nothing after them");
                packer.addresses(sync, layout, address, 1);
            }
        }
    });
    packer.finish();
    if read.is_ok() {
        let mut again = 0;
        for payload in &packed {
            unpack(payload, |_| again += 1).expect("what was packed");
        }
        assert_eq!(entries, again, "what was read is what is written");
    }
});
