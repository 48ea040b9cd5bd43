//! `fanout.index_table()` and `fanout.cache_table()`: check what can be checked, note what is wanted, put the triggers on.
//!
//! Nothing goes over the network here: CREATE TRIGGER holds a lock that writers wait for. The worker makes the target.

use crate::catalog::acting::privileged;
use crate::catalog::key::{check_address_column, check_key, key_columns, type_name};
use crate::catalog::mapping::choice::Choices;
use crate::catalog::naming::{check_index_name, check_sync_name, field_name_problem, index_name_problem};
use crate::catalog::regclass::Regclass;
use crate::catalog::source::{Column, Table};
use crate::catalog::{self, Kind, Phase, Sync, document, identity, ours, relation, require_preloaded, triggers};
use crate::error::{Failure, failure, no_nulls, not_null};
use crate::server::{self, ServerKind};
use delivery::period::Period;
use delivery::template::KeyTemplate;
use pgrx::datum::Interval;
use pgrx::prelude::*;
use pgrx::{JsonB, Spi, default, pg_sys};
use serde_json::{Map, Value, json};

/// The longest time to live: a hundred years, in milliseconds. Redis refuses what overflows its clock.
const LONGEST_TTL_MS: i128 = 100 * 365 * 24 * 3_600_000;

/// What the caller wants.
struct Wanted {
    kind: Kind,
    source: pg_sys::Oid,
    server: String,
    name: Option<String>,
}

/// Keeps an index in step with a table. Returns the sync's name.
#[pg_extern(schema = "fanout")]
#[allow(clippy::too_many_arguments)]
fn index_table(
    source: Option<Regclass>,
    server: Option<String>,
    name: default!(Option<String>, "NULL"),
    index: default!(Option<String>, "NULL"),
    mapping: default!(Option<JsonB>, "NULL"),
    settings: default!(Option<JsonB>, "NULL"),
    search_fields: default!(Option<Vec<Option<String>>>, "NULL"),
    on_reject: default!(Option<String>, "'keep'"),
    columns: default!(Option<Vec<Option<String>>>, "NULL"),
    rename: default!(Option<JsonB>, "NULL"),
    predicate: default!(Option<String>, "NULL"),
    document: default!(Option<String>, "NULL"),
    types: default!(Option<JsonB>, "NULL"),
    aliases: default!(Option<JsonB>, "NULL"),
    routing: default!(Option<String>, "NULL"),
    pipeline: default!(Option<String>, "NULL"),
    period: default!(Option<String>, "NULL"),
) -> String {
    let wanted = wanted(Kind::Index, source, server, name);
    let mut options = Map::new();
    options.insert("on_reject".to_owned(), json!(one_of("on_reject", on_reject, &["keep", "delete"])));
    if let Some(index) = &index
        && let Err(refusal) = check_index_name(index)
    {
        refusal.raise();
    }
    let table = lock_source(&wanted);
    let target = index.unwrap_or_else(|| default_index(&table));
    let key = key_columns(&table);
    let documents = document::Wanted { columns, rename, predicate, document };
    let arguments = IndexArguments { mapping, settings, types, aliases, routing, pipeline, period, documents };
    let (address, fields) = arguments.check(&table, &key, &target, &mut options);
    if let Some(searched) = search_fields {
        let any = options.get("document_column") == Some(&Value::Bool(true));
        options.insert("search_fields".to_owned(), json!(check_search_fields(&fields, any, searched)));
    }
    let name = record(wanted, &table, target, key, address, Value::Object(options));
    relation::warn_of_undeclared(&name);
    name
}

/// What a caller says of an index and of what is in it.
struct IndexArguments {
    mapping: Option<JsonB>,
    settings: Option<JsonB>,
    types: Option<JsonB>,
    aliases: Option<JsonB>,
    routing: Option<String>,
    pipeline: Option<String>,
    period: Option<String>,
    documents: document::Wanted,
}

impl IndexArguments {
    /// Checks it and puts it into the sync's options. Gives the address columns and the fields of the documents.
    fn check(
        self,
        table: &Table,
        key: &[String],
        target: &str,
        options: &mut Map<String, Value>,
    ) -> (Vec<String>, Vec<Column>) {
        catalog::mapping::declare(options, self.mapping, self.settings, self.types);
        if let Some(aliases) = self.aliases {
            let aliases = catalog::mapping::overrides::check_aliases(aliases.0, target);
            options.insert("aliases".to_owned(), Value::Object(aliases));
        }
        if let Some(pipeline) = self.pipeline {
            options.insert("pipeline".to_owned(), json!(check_pipeline(pipeline)));
        }
        let address = index_columns(table, key, self.routing, self.period, options);
        let fields = self.documents.check(table, &address, options);
        check_fields(&fields);
        catalog::mapping::check_field_count(&table.name, &fields, &Value::Object(options.clone()));
        (address, fields)
    }
}

/// Shows the settings, mappings and aliases with which `fanout.index_table()` would create an index, called with the same
/// arguments; refuses what that would refuse of them.
#[pg_extern(schema = "fanout")]
#[allow(clippy::too_many_arguments)]
fn mapping(
    source: Option<Regclass>,
    mapping: default!(Option<JsonB>, "NULL"),
    settings: default!(Option<JsonB>, "NULL"),
    types: default!(Option<JsonB>, "NULL"),
    columns: default!(Option<Vec<Option<String>>>, "NULL"),
    rename: default!(Option<JsonB>, "NULL"),
    predicate: default!(Option<String>, "NULL"),
    document: default!(Option<String>, "NULL"),
    aliases: default!(Option<JsonB>, "NULL"),
    routing: default!(Option<String>, "NULL"),
    pipeline: default!(Option<String>, "NULL"),
    period: default!(Option<String>, "NULL"),
) -> JsonB {
    let table = Table::get(not_null("source", source).0);
    if table.columns.is_empty() {
        failure(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, format!("\"{}\" has no columns", table.name))
            .hint("Name a table whose rows are to be documents.")
            .raise();
    }
    // A plain table shows its mapping though a sync would need a key of it.
    let keyed = document.is_some() || routing.is_some() || period.is_some();
    let key = if keyed { key_columns(&table) } else { Vec::new() };
    let mut options = Map::new();
    let documents = document::Wanted { columns, rename, predicate, document };
    let arguments = IndexArguments { mapping, settings, types, aliases, routing, pipeline, period, documents };
    let (_, mut fields) = arguments.check(&table, &key, &table.name, &mut options);
    let by_query = options.contains_key("document");
    let options = Value::Object(options);
    let choices = Choices::new(&options);
    fields.retain(|column| document::is_mapped(column, by_query, &choices));
    JsonB(catalog::mapping::body(&fields, &options))
}

/// Keeps keys of Redis in step with a table. Returns the sync's name.
#[pg_extern(schema = "fanout")]
#[allow(clippy::too_many_arguments)]
fn cache_table(
    source: Option<Regclass>,
    server: Option<String>,
    key: Option<String>,
    name: default!(Option<String>, "NULL"),
    format: default!(Option<String>, "'json'"),
    ttl: default!(Option<Interval>, "NULL"),
    jitter: default!(Option<f64>, "0.1"),
    columns: default!(Option<Vec<Option<String>>>, "NULL"),
    rename: default!(Option<JsonB>, "NULL"),
    predicate: default!(Option<String>, "NULL"),
    document: default!(Option<String>, "NULL"),
) -> String {
    let wanted = wanted(Kind::Cache, source, server, name);
    let template_text = not_null("key", key);
    let template = key_template(&template_text);
    let mut options = Map::new();
    options.insert("format".to_owned(), json!(one_of("format", format, &["json", "hash"])));
    if let Some(ttl) = ttl {
        options.insert("ttl_ms".to_owned(), json!(ttl_milliseconds(&ttl)));
    }
    options.insert("jitter".to_owned(), json!(check_jitter(not_null("jitter", jitter))));
    let table = lock_source(&wanted);
    let key = key_columns(&table);
    let address = address_columns(&table, &key, &template);
    let documents = document::Wanted { columns, rename, predicate, document };
    documents.check(&table, &address, &mut options);
    let name = record(wanted, &table, template_text, key, address, Value::Object(options));
    relation::warn_of_undeclared(&name);
    name
}

/// The template of the keys of a cache; an ERROR if it is none.
pub fn key_template(text: &str) -> KeyTemplate {
    KeyTemplate::parse(text).unwrap_or_else(|error| {
        failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, "invalid key template")
            .detail(format!("{error}."))
            .hint("For example 'product:${id}': ${column} stands for a column of the table.")
            .raise()
    })
}

/// The value of an argument that has few valid ones; an ERROR if it is another.
pub fn one_of(argument: &str, value: Option<String>, valid: &[&str]) -> String {
    let value = not_null(argument, value);
    if valid.contains(&value.as_str()) {
        return value;
    }
    failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, format!("invalid value for \"{argument}\": \"{value}\""))
        .hint(format!("Valid values: {}.", valid.join(", ")))
        .raise()
}

/// What both functions check before they lock anything.
fn wanted(kind: Kind, source: Option<Regclass>, server: Option<String>, name: Option<String>) -> Wanted {
    require_preloaded();
    require_utf8("be the source of a sync");
    let wanted = Wanted { kind, source: not_null("source", source).0, server: not_null("server", server), name };
    if let Some(name) = &wanted.name
        && let Err(refusal) = check_sync_name(name)
    {
        refusal.raise();
    }
    fits(kind, &wanted.server, &[catalog::caller()]);
    wanted
}

/// Raises unless the server is one for targets of that kind, and each of the roles may use it.
pub fn fits(kind: Kind, server: &str, users: &[pg_sys::Oid]) {
    let (server_kind, purpose) = match kind {
        Kind::Index => (ServerKind::Engine, "an index"),
        Kind::Cache => (ServerKind::Redis, "a cache"),
    };
    let fit = server::expect_kind(server, server_kind, purpose)
        .and_then(|()| users.iter().try_for_each(|&user| server::check_usage(server, user)));
    if let Err(refusal) = fit {
        refusal.raise();
    }
}

/// Targets take and give UTF-8. A database with encoding SQL_ASCII may hold that, and its rows that are not are told one by one.
pub fn require_utf8(what: &str) {
    // SAFETY: reads values of this backend; the name is a static C string.
    let (encoding, name) = unsafe {
        let encoding = pg_sys::GetDatabaseEncoding();
        (encoding, std::ffi::CStr::from_ptr(pg_sys::GetDatabaseEncodingName()).to_string_lossy())
    };
    if ![pg_sys::pg_enc::PG_UTF8, pg_sys::pg_enc::PG_SQL_ASCII].iter().any(|&known| known as i32 == encoding) {
        failure(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, format!("a database with encoding {name} can't {what}"))
            .detail("Documents are UTF-8, and are not converted.")
            .hint("Move it to a database with ENCODING 'UTF8': pg_dump and pg_restore convert it.")
            .raise();
    }
}

/// Checks the source, locks it, and reads it again as it is under the lock.
fn lock_source(wanted: &Wanted) -> Table {
    let check = || {
        let table = Table::get(wanted.source);
        table.check_kind();
        table.check_rights(catalog::caller());
        table
    };
    // Nobody may hold up the writers of a table that is not his to touch: rights first, then the lock.
    check().lock();
    check()
}

fn default_index(table: &Table) -> String {
    let name = table.name.to_lowercase();
    match index_name_problem(&name) {
        None => name,
        Some(problem) => failure(
            PgSqlErrorCode::ERRCODE_INVALID_NAME,
            format!("an index can't be named after table \"{}\": {problem}", table.name),
        )
        .hint("Name it: index => '…'.")
        .raise(),
    }
}

/// Raises unless engines take fields of these names.
pub fn check_fields(fields: &[Column]) {
    for column in fields {
        if let Some(problem) = field_name_problem(&column.name) {
            failure(
                PgSqlErrorCode::ERRCODE_INVALID_NAME,
                format!("column \"{}\" can't be a field of an index: {problem}", column.name),
            )
            .hint("Rename the column, or only its field: rename => '{\"…\": \"…\"}'.")
            .raise();
        }
    }
}

/// Each is a field, a field with a boost (`title^3`), or a subfield of one (`title.keyword`). `any`: which fields there are is
/// not known.
pub fn check_search_fields(known: &[Column], any: bool, fields: Vec<Option<String>>) -> Vec<String> {
    let fields = no_nulls("search_fields", fields);
    if fields.is_empty() {
        failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, "\"search_fields\" names no column")
            .hint("Leave it out to search in all columns of text types.")
            .raise();
    }
    for field in &fields {
        let (name, boost) = match field.split_once('^') {
            Some((name, boost)) => (name, Some(boost)),
            None => (field.as_str(), None),
        };
        if boost.is_some_and(|boost| !boost.parse::<f32>().is_ok_and(|boost| boost.is_finite() && boost > 0.0)) {
            failure(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("invalid boost in search field \"{field}\""),
            )
            .hint("For example 'title^3': the column, \"^\", and a number above zero.")
            .raise();
        }
        let is_known = |name: &str| any || known.iter().any(|field| field.name == name);
        if !is_known(name) && !name.match_indices('.').any(|(at, _)| is_known(&name[..at])) {
            failure(
                PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                format!("column \"{name}\" named in search_fields is no field of the documents"),
            )
            .detail(format!(
                "The fields are: {}.",
                known.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", ")
            ))
            .hint("Name one of these, or a subfield of one as 'title.keyword'.")
            .raise();
        }
    }
    fields
}

/// Milliseconds of an interval, by EXTRACT(epoch)'s rule: a month is 30 days, a year 365.25.
pub fn ttl_milliseconds(ttl: &Interval) -> i64 {
    const DAY_MS: i128 = 24 * 3_600_000;
    let (years, months) = (i128::from(ttl.months() / 12), i128::from(ttl.months() % 12));
    let milliseconds = years * (DAY_MS * 1461 / 4)
        + months * 30 * DAY_MS
        + i128::from(ttl.days()) * DAY_MS
        + i128::from(ttl.micros()).div_euclid(1000);
    if !(1..=LONGEST_TTL_MS).contains(&milliseconds) {
        failure(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "\"ttl\" must be at least a millisecond and at most 100 years",
        )
        .hint("Leave it out to keep keys until their rows are deleted.")
        .raise();
    }
    milliseconds as i64
}

/// The part of a time to live by which expiry is spread; an ERROR if it is none.
pub fn check_jitter(jitter: f64) -> f64 {
    if (0.0..=1.0).contains(&jitter) {
        return jitter;
    }
    failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, "\"jitter\" must be between 0 and 1")
        .hint("0.1 spreads expiry over a tenth of the time to live.")
        .raise()
}

/// The key, then those of the columns that are not part of it.
fn address_with(table: &Table, key: &[String], columns: &[String]) -> Vec<String> {
    let mut address = key.to_vec();
    for column in columns {
        check_address_column(table, column);
        if !address.contains(column) {
            address.push(column.clone());
        }
    }
    address
}

/// The address columns of a cache: the key, then what else the template names.
pub fn address_columns(table: &Table, key: &[String], template: &KeyTemplate) -> Vec<String> {
    let address = address_with(table, key, template.columns());
    if let Some(missing) = key.iter().find(|column| !template.columns().contains(column)) {
        failure(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("the key template doesn't name key column \"{missing}\": two rows could get the same Redis key"),
        )
        .detail(format!("The key of table \"{}\" is ({}).", table.name, key.join(", ")))
        .hint(format!("Put ${{{missing}}} into the template."))
        .raise();
    }
    address
}

/// The name of an ingest pipeline.
pub fn check_pipeline(pipeline: String) -> String {
    if pipeline.is_empty() {
        failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, "\"pipeline\" must not be empty")
            .hint("Leave it out for documents to go through none, or the one of setting index.default_pipeline.")
            .raise();
    }
    pipeline
}

/// The address columns of an index: the key, then what else the routing and the period of its documents are made from. Notes
/// those that are given among the options, and reads those that are there.
pub fn index_columns(
    table: &Table,
    key: &[String],
    routing: Option<String>,
    period: Option<String>,
    options: &mut Map<String, Value>,
) -> Vec<String> {
    for (option, given) in [("routing", routing), ("period", period)] {
        if let Some(template) = given {
            options.insert(option.to_owned(), json!(template));
        }
    }
    let invalid = |argument: &str, error: &dyn std::fmt::Display, hint: &str| -> ! {
        failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, format!("invalid template in \"{argument}\""))
            .detail(format!("{error}."))
            .hint(hint)
            .raise()
    };
    let mut columns = Vec::new();
    if let Some(routing) = options.get("routing").and_then(Value::as_str) {
        let template = KeyTemplate::parse_any(routing).unwrap_or_else(|error| {
            let hint = "For example '${tenant_id}': ${column} stands for a column of the table.";
            invalid("routing", &error, hint)
        });
        columns.extend_from_slice(template.columns());
    }
    if let Some(period) = options.get("period").and_then(Value::as_str) {
        let period = Period::parse(period).unwrap_or_else(|error| {
            let hint = "For example '${placed_at:month}': the column that says when, and year, month, week or day.";
            invalid("period", &error, hint)
        });
        check_period_column(table, period.column());
        columns.push(period.column().to_owned());
    }
    address_with(table, key, &columns)
}

/// Raises unless the column holds dates.
fn check_period_column(table: &Table, name: &str) {
    check_address_column(table, name);
    let Some(column) = table.column(name) else { return };
    // SAFETY: a catalog look-up on the main thread.
    let base = unsafe { pg_sys::getBaseType(column.type_oid) };
    if ![pg_sys::DATEOID, pg_sys::TIMESTAMPOID, pg_sys::TIMESTAMPTZOID].contains(&base) {
        failure(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            format!("column \"{name}\" can't tell a period: it is {}", type_name(column.type_oid)),
        )
        .hint("Name a column of type date, timestamp or timestamptz in \"period\".")
        .raise();
    }
}

/// Notes the sync and puts its triggers on. The source is locked by now.
fn record(
    wanted: Wanted,
    table: &Table,
    target: String,
    key: Vec<String>,
    address: Vec<String>,
    options: Value,
) -> String {
    check_key(table, &key);
    let name = match &wanted.name {
        Some(name) => name.clone(),
        None => default_name(&wanted, table),
    };
    let kind = match wanted.kind {
        Kind::Index => "index",
        Kind::Cache => "cache",
    };
    if let Some(other) = catalog::feeding(&wanted.server, &target, None) {
        refuse_rival(wanted.kind, &wanted.server, &target, &other);
    }
    let owner = catalog::caller();
    let recorded = privileged(|| {
        ours(Spi::connect_mut(|client| -> Result<bool, pgrx::spi::Error> {
            let inserted = client.update(
                "INSERT INTO fanout.sync
                     (name, kind, source, server, target, key_columns, address_columns, owner, options, identity)
                 VALUES ($1, $2, $3::pg_catalog.oid::pg_catalog.regclass, $4, $5, $6, $7,
                         $8::pg_catalog.oid::pg_catalog.regrole, $9, $10)
                 ON CONFLICT DO NOTHING",
                None,
                &[
                    name.clone().into(),
                    kind.into(),
                    table.oid.into(),
                    wanted.server.clone().into(),
                    target.clone().into(),
                    key.into(),
                    address.into(),
                    owner.into(),
                    JsonB(options).into(),
                    identity().into(),
                ],
            )?;
            Ok(inserted.len() == 1)
        }))
    });
    if !recorded {
        taken(&wanted, &name, &target);
    }
    triggers::create(table, &name, None);
    catalog::changed();
    name
}

/// The table's name, unless the other kind of sync of the same table has it.
fn default_name(wanted: &Wanted, table: &Table) -> String {
    let Some(holder) = catalog::find(&table.name) else { return table.name.clone() };
    if holder.source != table.oid || holder.kind == wanted.kind {
        return table.name.clone();
    }
    let suffix = match wanted.kind {
        Kind::Index => "_index",
        Kind::Cache => "_cache",
    };
    let name = format!("{}{suffix}", table.name);
    if let Err(refusal) = check_sync_name(&name) {
        refusal.raise();
    }
    notice!("the sync is named \"{name}\": \"{}\" is another sync of this table", table.name);
    name
}

/// Says which of the two unique keys of `fanout.sync` is taken.
fn taken(wanted: &Wanted, name: &str, target: &str) -> ! {
    if let Some(other) = catalog::feeding(&wanted.server, target, None) {
        refuse_rival(wanted.kind, &wanted.server, target, &other);
    }
    failure(PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT, format!("sync \"{name}\" already exists"))
        .hint("Name this one: name => '…'.")
        .raise()
}

/// Raises: the target is another sync's.
pub fn refuse_rival(kind: Kind, server: &str, target: &str, other: &Sync) -> ! {
    let hint = match kind {
        _ if other.phase == Phase::Drop => "It is being dropped: try again when it is gone from fanout.status.",
        Kind::Index => "Name another: index => '…'; or end that one: fanout.drop_sync().",
        Kind::Cache => "Use another template; or end that one: fanout.drop_sync().",
    };
    fed_by(kind, server, target, other).hint(hint).raise()
}

/// Another sync feeds the target.
pub fn fed_by(kind: Kind, server: &str, target: &str, other: &Sync) -> Failure {
    let what = match kind {
        Kind::Index => format!("index \"{target}\""),
        Kind::Cache => "this key template".to_owned(),
    };
    let refusal = failure(
        PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
        format!("{what} on server \"{server}\" is fed by sync \"{}\" already", other.name),
    );
    if other.server == server {
        return refusal;
    }
    refusal.detail(format!("Servers \"{server}\" and \"{}\" have the same url.", other.server))
}
