//! How many documents a core encodes and how many replies it reads; with `REDIS_URL` set, how many SETs a connection
//! does. `cargo bench -p delivery`.

use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

use delivery::bulk::{BulkBuilder, parse_bulk_response};
use delivery::config::RedisConfig;
use delivery::id::document_id;
use delivery::keyspace::{RedisBatch, RedisTarget};
use delivery::template::KeyTemplate;

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
    const SIZE: usize = 2000;
    let document = format!("{{\"name\":\"{}\",\"price\":12.5}}", "trail shoe ".repeat(39));
    println!("documents of {} bytes, batches of {SIZE}", document.len());
    let ids: Vec<String> = (0..SIZE).map(|n| format!("product-{n}")).collect();

    measure("document_id, one column", SIZE, || {
        for id in &ids {
            black_box(document_id(&[Some(id)]));
        }
    });
    let template = KeyTemplate::parse("shop:{${tenant}}:product:${id}").unwrap();
    measure("KeyTemplate::render, two columns", SIZE, || {
        for id in &ids {
            black_box(template.render(&[Some("acme"), Some(id)]));
        }
    });

    let mut spent = BulkBuilder::new("product-fanout-1").finish();
    let mut build = || {
        let mut builder =
            BulkBuilder::reuse("product-fanout-1", std::mem::replace(&mut spent, BulkBuilder::new("").finish()));
        for (slot, id) in ids.iter().enumerate() {
            builder.push_index(slot as u32, id, 1_790_000_000_000_000 + slot as u64, document.as_bytes());
        }
        spent = builder.finish();
    };
    measure("bulk, encoded", SIZE, &mut build);
    build();

    let mut reply = String::from("{\"items\":[");
    for (n, id) in ids.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        write!(reply, "{comma}{{\"index\":{{\"_id\":\"{id}\",\"_seq_no\":{},\"status\":201}}}}", n + 1).unwrap();
    }
    reply.push_str("]}");
    measure("bulk reply, parsed", SIZE, || {
        black_box(parse_bulk_response(reply.as_bytes(), &spent).unwrap());
    });

    let mut batch = RedisBatch::new();
    let mut build = || {
        let mut next = RedisBatch::reuse(std::mem::take(&mut batch));
        for (slot, id) in ids.iter().enumerate() {
            next.push_set(slot as u32, id, &document.as_bytes()[..300], Some(60_000));
        }
        batch = next;
    };
    measure("SET, encoded", SIZE, &mut build);
    build();
    match std::env::var("REDIS_URL") {
        Ok(url) => {
            let mut redis = RedisTarget::connect(&RedisConfig::new(&url).unwrap()).unwrap();
            measure("SET of 300 bytes, sent", SIZE, || {
                black_box(redis.send(&batch).unwrap());
            });
            redis.del(&ids.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        }
        Err(_) => println!("SET, sent: skipped, REDIS_URL is not set"),
    }
}
