//! Redis from SQL: `redis_get()` and its kin, with the caller's user mapping and the server's USAGE.
//!
//! VOLATILE and not STRICT: a NULL argument is an error, not a command left out in silence.

use pgrx::datum::Interval;
use pgrx::prelude::*;

use crate::error::{failure, no_nulls, not_null};
use crate::network::cache_target;

extension_sql_file!(
    "../../sql/cache.sql",
    name = "cache",
    requires = [redis_get, redis_mget, redis_set, redis_del, redis_ttl]
);

#[pg_extern(volatile, parallel_restricted, cost = 1000)]
fn redis_get(server: Option<&str>, key: Option<&str>) -> Option<String> {
    let target = cache_target(not_null("server", server));
    let key = not_null("key", key).to_owned();
    target.run(true, move |redis| redis.get(&key)).map(text)
}

#[pg_extern(volatile, parallel_restricted, cost = 1000)]
fn redis_mget(
    server: Option<&str>,
    keys: Option<Vec<Option<String>>>,
) -> TableIterator<'static, (name!(key, String), name!(value, Option<String>))> {
    let target = cache_target(not_null("server", server));
    let keys = no_nulls("keys", not_null("keys", keys));
    if keys.is_empty() {
        return TableIterator::empty();
    }
    let wanted = keys.clone();
    let values = target.run(true, move |redis| {
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        redis.mget(&wanted)
    });
    TableIterator::new(keys.into_iter().zip(values.into_iter().map(|value| value.map(text))))
}

#[pg_extern(volatile, parallel_unsafe, cost = 1000)]
fn redis_set(server: Option<&str>, key: Option<&str>, value: Option<&str>, ttl: default!(Option<Interval>, "NULL")) {
    let target = cache_target(not_null("server", server));
    let key = not_null("key", key).to_owned();
    let value = not_null("value", value).to_owned();
    let ttl_ms = ttl.map(milliseconds);
    target.run(true, move |redis| redis.set(&key, value.as_bytes(), ttl_ms));
}

#[pg_extern(volatile, parallel_unsafe, cost = 1000)]
fn redis_del(server: Option<&str>, keys: Option<VariadicArray<&str>>) -> i64 {
    let target = cache_target(not_null("server", server));
    let keys = no_nulls("keys", not_null("keys", keys).iter().map(|key| key.map(str::to_owned)).collect());
    if keys.is_empty() {
        return 0;
    }
    // Not repeatable: the count of a second DEL would leave out what the first one deleted.
    let count = target.run(false, move |redis| {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        redis.del(&keys)
    });
    count as i64
}

#[pg_extern(volatile, parallel_restricted, cost = 1000)]
fn redis_ttl(server: Option<&str>, key: Option<&str>) -> Option<Interval> {
    let target = cache_target(not_null("server", server));
    let key = not_null("key", key).to_owned();
    let left = target.run(true, move |redis| redis.ttl_ms(&key)).flatten()?;
    let microseconds = i64::try_from(left).ok().and_then(|left| left.checked_mul(1000));
    microseconds.and_then(|microseconds| Interval::new(0, 0, microseconds).ok())
}

/// A value as text. Redis holds any bytes; PostgreSQL's text doesn't.
fn text(value: Vec<u8>) -> String {
    String::from_utf8(value).ok().filter(|text| !text.contains('\0')).unwrap_or_else(|| {
        failure(PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE, "the value of the key is not text")
            .hint("The functions redis_…() read and write UTF-8 text.")
            .raise()
    })
}

/// A time to live in milliseconds; a month is 30 days, as everywhere in PostgreSQL where it must be a length of time.
fn milliseconds(ttl: Interval) -> u64 {
    let days = i64::from(ttl.months()) * 30 + i64::from(ttl.days());
    let total = days.saturating_mul(86_400_000).saturating_add(ttl.micros() / 1000);
    // Redis adds it to the present time: a bound of ten thousand years keeps that sum within its integers.
    if (1..=315_576_000_000_000).contains(&total) {
        return total.unsigned_abs();
    }
    failure(
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        "argument \"ttl\" must be at least one millisecond, and not over 10000 years",
    )
    .hint("Leave it out for a key without expiry.")
    .raise()
}
