//! Searching from SQL: `es_search()`, `es_search_index()`, `es_count()` and `es_rows()`.
//!
//! All are VOLATILE: they read what is outside of the database and changes by itself, and a STABLE scalar would be run by
//! the planner to estimate with. PARALLEL RESTRICTED: the clients live in the leader.

mod body;
mod cursor;
mod json;
mod jsonb;
mod known;
mod planner;
mod rows;
mod scope;
mod visitor;

use delivery::engine::{Hit, SearchReply, SearchResponse, TotalRelation};
use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error::{failure, not_null};
use crate::network::{self, Asked};
use body::{Arguments, Refusal, Search};
use json::{JsonText, Jsonb};
use scope::{Place, place_named, place_of, refuse_row_security, sync_named};

extension_sql_file!(
    "../../sql/search.sql",
    name = "search",
    requires = [es_search, es_search_index, es_count, rows::es_rows]
);

type Hits = TableIterator<
    'static,
    (
        name!(rank, i32),
        name!(score, Option<f64>),
        name!(id, String),
        name!(source, Option<Jsonb>),
        name!(highlight, Option<Jsonb>),
        name!(sort, Option<Jsonb>),
        name!(total, Option<i64>),
        name!(total_exact, Option<bool>),
        name!(cursor, Option<String>),
    ),
>;

// pgrx reads the columns out of the signature: neither may be shortened.
#[allow(clippy::too_many_arguments, clippy::type_complexity)]
#[pg_extern(volatile, parallel_restricted, cost = 10000, support = planner::search_support)]
fn es_search(
    index: Option<&str>,
    query: default!(Option<String>, "NULL"),
    dsl: default!(Option<JsonText>, "NULL"),
    filter: default!(Option<JsonText>, "NULL"),
    fields: default!(Option<Vec<Option<String>>>, "NULL"),
    size: default!(Option<i32>, 10),
    after: default!(Option<String>, "NULL"),
    sort: default!(Option<JsonText>, "NULL"),
    highlight: default!(Option<Vec<Option<String>>>, "NULL"),
    source: default!(Option<bool>, true),
    min_score: default!(Option<f64>, "NULL"),
    options: default!(Option<JsonText>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(rank, i32),
        name!(score, Option<f64>),
        name!(id, String),
        name!(source, Option<Jsonb>),
        name!(highlight, Option<Jsonb>),
        name!(sort, Option<Jsonb>),
        name!(total, Option<i64>),
        name!(total_exact, Option<bool>),
        name!(cursor, Option<String>),
    ),
> {
    let known = sync_named(index);
    refuse_row_security(&known.sync);
    let arguments =
        gather(query, dsl, filter, fields, not_null("size", size), after, sort, highlight, source, min_score, options);
    hits(&place_of(&known), &arguments)
}

// pgrx reads the columns out of the signature: neither may be shortened.
#[allow(clippy::too_many_arguments, clippy::type_complexity)]
#[pg_extern(volatile, parallel_restricted, cost = 10000, support = planner::search_support)]
fn es_search_index(
    server: Option<&str>,
    index: Option<&str>,
    query: default!(Option<String>, "NULL"),
    dsl: default!(Option<JsonText>, "NULL"),
    filter: default!(Option<JsonText>, "NULL"),
    fields: default!(Option<Vec<Option<String>>>, "NULL"),
    size: default!(Option<i32>, 10),
    after: default!(Option<String>, "NULL"),
    sort: default!(Option<JsonText>, "NULL"),
    highlight: default!(Option<Vec<Option<String>>>, "NULL"),
    source: default!(Option<bool>, true),
    min_score: default!(Option<f64>, "NULL"),
    options: default!(Option<JsonText>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(rank, i32),
        name!(score, Option<f64>),
        name!(id, String),
        name!(source, Option<Jsonb>),
        name!(highlight, Option<Jsonb>),
        name!(sort, Option<Jsonb>),
        name!(total, Option<i64>),
        name!(total_exact, Option<bool>),
        name!(cursor, Option<String>),
    ),
> {
    let arguments =
        gather(query, dsl, filter, fields, not_null("size", size), after, sort, highlight, source, min_score, options);
    hits(&place_named(server, index), &arguments)
}

#[pg_extern(volatile, parallel_restricted, cost = 10000)]
fn es_count(
    index: Option<&str>,
    query: default!(Option<String>, "NULL"),
    dsl: default!(Option<JsonText>, "NULL"),
    filter: default!(Option<JsonText>, "NULL"),
    fields: default!(Option<Vec<Option<String>>>, "NULL"),
    options: default!(Option<JsonText>, "NULL"),
) -> i64 {
    let known = sync_named(index);
    refuse_row_security(&known.sync);
    let place = place_of(&known);
    let arguments = gather(query, dsl, filter, fields, 0, None, None, None, None, None, options);
    let search = body::compose_count(&arguments, &place.scope).unwrap_or_else(|refusal| refuse(refusal));
    read(&place, &send(&place, search)).total.map_or(0, |(total, _)| total as i64)
}

/// A caller's arguments, JSON as text.
#[allow(clippy::too_many_arguments)]
fn gather(
    query: Option<String>,
    dsl: Option<JsonText>,
    filter: Option<JsonText>,
    fields: Option<Vec<Option<String>>>,
    size: i32,
    after: Option<String>,
    sort: Option<JsonText>,
    highlight: Option<Vec<Option<String>>>,
    source: Option<bool>,
    min_score: Option<f64>,
    options: Option<JsonText>,
) -> Arguments {
    let text = |json: JsonText| json.0;
    Arguments {
        query,
        dsl: dsl.map(text),
        filter: filter.map(text),
        fields,
        size,
        after,
        sort: sort.map(text),
        highlight,
        source: source.unwrap_or(true),
        source_fields: Vec::new(),
        min_score,
        options: options.map(text),
    }
}

fn hits(place: &Place, arguments: &Arguments) -> Hits {
    let search = body::compose(arguments, &place.scope).unwrap_or_else(|refusal| refuse(refusal));
    let cursors = (!search.order.is_empty()).then(|| cursor::Encoder::new(&search.order));
    let reply = send(place, search);
    let SearchResponse { hits, total, .. } = read(place, &reply);
    let count = total.map(|(count, _)| count as i64);
    let exact = total.map(|(_, relation)| relation == TotalRelation::Equal);
    let mut tamed = 0;
    let rows: Vec<_> = (1..)
        .zip(hits)
        .map(|(rank, hit)| {
            let Hit { id, score, source, highlight, sort, .. } = hit;
            let mut altered = false;
            let mut jsonb = |json| {
                let (jsonb, tamed) = Jsonb::of(json);
                altered |= tamed;
                jsonb
            };
            let cursor = cursors.as_ref().zip(sort).map(|(cursors, values)| cursors.encode(values.get()));
            let row =
                (rank, score, id.into_owned(), source.map(&mut jsonb), highlight.map(&mut jsonb), sort.map(&mut jsonb));
            tamed += u32::from(altered);
            (row.0, row.1, row.2, row.3, row.4, row.5, count, exact, cursor)
        })
        .collect();
    if tamed > 0 {
        notice!(
            "{tamed} of the hits have what jsonb can't hold: U+0000 and halves of surrogate pairs are shown as U+FFFD, numbers \
             beyond numeric as strings"
        );
    }
    TableIterator::new(rows)
}

/// What a reply says, or an ERROR.
fn read<'a>(place: &Place, reply: &'a SearchReply) -> SearchResponse<'a> {
    let response = reply.read().and_then(|response| match response.shards_total {
        // No shard was asked: a pattern that matches nothing.
        0 => Err(delivery::Error::new(delivery::ErrorKind::NotFound, "no index of that name was found")),
        _ => Ok(response),
    });
    response.unwrap_or_else(|error| raise(place, &error))
}

/// Runs a search and raises its failure. A visitor's text that turns out too much for the engine is tried with half of it.
fn send(place: &Place, mut search: Search) -> SearchReply {
    // A cancelled statement can't reach into a request that is under way: the engine and the thread learn beforehand when
    // to give up by themselves. Later than the statement, which is to end with its own error.
    // SAFETY: a setting, read on the main thread.
    let statement_timeout = u64::try_from(unsafe { pg_sys::StatementTimeout }).unwrap_or(0);
    let mut bound = None;
    if statement_timeout > 0 {
        search.limit_time(statement_timeout + 100);
        let patience = std::time::Duration::from_millis(statement_timeout + 500);
        bound = Some(patience.min(place.target.config.request_timeout));
    }
    let outcome = place.target.try_run(|engine| {
        let mut halvings = 0;
        loop {
            match engine.search(Some(&place.index), search.body(halvings).as_bytes(), bound) {
                Err(error) if search.has_text() && halvings < visitor::MAX_HALVINGS && too_many_clauses(&error) => {
                    halvings += 1;
                }
                outcome => return outcome,
            }
        }
    });
    outcome.unwrap_or_else(|error| raise(place, &error))
}

fn raise(place: &Place, error: &delivery::Error) -> ! {
    network::raise(&Asked { server: &place.target.server, index: Some(&place.index) }, error)
}

fn too_many_clauses(error: &delivery::Error) -> bool {
    let reason = error.message().to_ascii_lowercase();
    [
        "too_many_clauses",
        "too_many_nested_clauses",
        "maxclausecount",
        "max_clause_count",
        "too many clauses",
        "too many nested clauses",
    ]
    .iter()
    .any(|known| reason.contains(known))
}

fn refuse(refusal: Refusal) -> ! {
    let Refusal { message, detail, hint } = refusal;
    let mut raised = failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message);
    if let Some(detail) = detail {
        raised = raised.detail(detail);
    }
    if let Some(hint) = hint {
        raised = raised.hint(hint);
    }
    raised.raise()
}
