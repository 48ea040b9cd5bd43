//! How many keys a core packs into the journal's format and takes out of it again. `cargo bench -p delivery --bench journal`.
//!
//! The format is the extension's own; it is measured here because it needs nothing of Postgres, as all else here.

#[allow(dead_code)]
#[path = "../../src/journal/format.rs"]
mod format;

use std::hint::black_box;
use std::time::{Duration, Instant};

use format::{Layout, Packer, put_column, unpack};

/// Runs `round`, which does `size` things, for about a second; prints the median rate of its rounds.
fn measure(what: &str, size: usize, mut round: impl FnMut()) {
    let mut rounds = Vec::new();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        let begun = Instant::now();
        round();
        rounds.push(begun.elapsed());
    }
    rounds.sort_unstable();
    println!("{what:<32} {:>12.0}/s", size as f64 / rounds[rounds.len() / 2].as_secs_f64());
}

fn main() {
    const SIZE: usize = 200_000;
    let layout = Layout { signature: 7, columns: 1 };
    let mut addresses = Vec::new();
    for key in 0..SIZE as u64 {
        put_column(&mut addresses, Some(&key.to_le_bytes()));
    }
    measure("bigint keys, packed", SIZE, || {
        let mut packer = Packer::new(|payload| {
            black_box(payload);
        });
        packer.addresses(1, layout, &addresses, SIZE);
        packer.finish();
    });
    // A transaction of one row, as most are.
    measure("transactions of one key, packed", SIZE, || {
        for address in addresses.chunks(9) {
            let mut packer = Packer::new(|payload| {
                black_box(payload);
            });
            packer.addresses(1, layout, address, 1);
            packer.finish();
        }
    });
    let mut payloads = Vec::new();
    let mut packer = Packer::new(|payload| payloads.push(payload.to_vec()));
    packer.addresses(1, layout, &addresses, SIZE);
    packer.finish();
    measure("bigint keys, unpacked", SIZE, || {
        for payload in &payloads {
            unpack(payload, |entry| {
                black_box(entry);
            })
            .expect("it was packed above");
        }
    });
    println!("{:.1} bytes a key", payloads.iter().map(Vec::len).sum::<usize>() as f64 / SIZE as f64);
}
