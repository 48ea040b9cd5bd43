//! `fanout.alter_sync()`: everything that makes a sync what it is, changed later, and no more work than that takes.

use crate::capture::image;
use crate::catalog::acting::{acting_for, privileged};
use crate::catalog::admin::{
    ANEW, COMPARED, NEXT_INDEX, captured, expect_new_try, lock, not_ending, not_parked, owned,
};
use crate::catalog::declare::{
    address_columns, check_fields, check_jitter, check_pipeline, check_search_fields, fed_by, fits, index_columns,
    key_template, one_of, refuse_rival, ttl_milliseconds,
};
use crate::catalog::document::{self, Wanted};
use crate::catalog::enqueue::layout;
use crate::catalog::naming::{check_index_name, check_sync_name, former_name};
use crate::catalog::source::Table;
use crate::catalog::{self, Kind, Sync, mapping, ours, relation, triggers};
use crate::error::{failure, no_nulls, not_null};
use crate::server::role_name;
use crate::worker::pace::parse_window;
use crate::worker::shape::Shape;
use crate::worker::store;
use pgrx::datum::Interval;
use pgrx::prelude::*;
use pgrx::{JsonB, Spi, default, pg_sys};
use serde_json::{Map, Value, json};
use std::ffi::CString;

/// What a change costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    /// No document changes.
    Nothing,
    /// Documents change: all are delivered anew.
    Reconcile,
    /// The index itself changes: another is built behind the alias. Or the target is another: that is filled.
    Resync,
}

impl Cost {
    fn as_str(self) -> &'static str {
        match self {
            Cost::Nothing => "nothing",
            Cost::Reconcile => "reconcile",
            Cost::Resync => "resync",
        }
    }
}

/// What can be taken back to its default, and the option that it is kept as; documents are declared as a whole.
const RESETTABLE: &[(&str, &str)] = &[
    ("mapping", "mapping"),
    ("settings", "settings"),
    ("types", "types"),
    ("aliases", "aliases"),
    ("pipeline", "pipeline"),
    ("routing", "routing"),
    ("period", "period"),
    ("search_fields", "search_fields"),
    ("columns", "fields"),
    ("rename", "fields"),
    ("predicate", "predicate"),
    ("document", "document"),
    ("ttl", "ttl_ms"),
    ("backfill_rate", "backfill_rate"),
    ("backfill_window", "backfill_window"),
];

/// Changes a sync: what is NULL stays as it is, what `reset` names goes back to its default. Returns what that takes:
/// `nothing`, `reconcile` (documents change) or `resync` (the index or the target changes: another is filled, then the one of
/// before is removed). With `dry_run` that is all it does.
#[pg_extern(schema = "fanout")]
#[allow(clippy::too_many_arguments)]
fn alter_sync(
    sync: Option<&str>,
    mapping: default!(Option<JsonB>, "NULL"),
    settings: default!(Option<JsonB>, "NULL"),
    search_fields: default!(Option<Vec<Option<String>>>, "NULL"),
    on_reject: default!(Option<String>, "NULL"),
    columns: default!(Option<Vec<Option<String>>>, "NULL"),
    rename: default!(Option<JsonB>, "NULL"),
    predicate: default!(Option<String>, "NULL"),
    document: default!(Option<String>, "NULL"),
    types: default!(Option<JsonB>, "NULL"),
    aliases: default!(Option<JsonB>, "NULL"),
    pipeline: default!(Option<String>, "NULL"),
    routing: default!(Option<String>, "NULL"),
    period: default!(Option<String>, "NULL"),
    format: default!(Option<String>, "NULL"),
    ttl: default!(Option<Interval>, "NULL"),
    jitter: default!(Option<f64>, "NULL"),
    owner: default!(Option<String>, "NULL"),
    server: default!(Option<String>, "NULL"),
    name: default!(Option<String>, "NULL"),
    index: default!(Option<String>, "NULL"),
    key: default!(Option<String>, "NULL"),
    backfill_rate: default!(Option<f64>, "NULL"),
    backfill_window: default!(Option<String>, "NULL"),
    reset: default!(Option<Vec<Option<String>>>, "NULL"),
    dry_run: default!(Option<bool>, "false"),
) -> String {
    let dry_run = not_null("dry_run", dry_run);
    catalog::require_preloaded();
    let before = not_ending(not_parked(owned(not_null("sync", sync))));
    let table = Table::get(before.source);
    let mut after = before.clone();
    let mut options = before.options.as_object().cloned().unwrap_or_default();
    only_for(Kind::Index, &before, "mapping", mapping.is_some());
    only_for(Kind::Index, &before, "settings", settings.is_some());
    only_for(Kind::Index, &before, "types", types.is_some());
    only_for(Kind::Index, &before, "aliases", aliases.is_some());
    only_for(Kind::Index, &before, "pipeline", pipeline.is_some());
    only_for(Kind::Index, &before, "routing", routing.is_some());
    only_for(Kind::Index, &before, "period", period.is_some());
    only_for(Kind::Index, &before, "search_fields", search_fields.is_some());
    only_for(Kind::Index, &before, "on_reject", on_reject.is_some());
    only_for(Kind::Index, &before, "index", index.is_some());
    only_for(Kind::Cache, &before, "key", key.is_some());
    only_for(Kind::Cache, &before, "format", format.is_some());
    only_for(Kind::Cache, &before, "ttl", ttl.is_some());
    only_for(Kind::Cache, &before, "jitter", jitter.is_some());
    let reset = reset_options(reset, &mut options);
    mapping::declare(&mut options, mapping, settings, types);
    if let Some(index) = index {
        if let Err(refusal) = check_index_name(&index) {
            refusal.raise();
        }
        after.target = index;
    }
    if let Some(aliases) = aliases.map(|aliases| aliases.0).or_else(|| options.get("aliases").cloned()) {
        let aliases = mapping::overrides::check_aliases(aliases, &after.target);
        options.insert("aliases".to_owned(), Value::Object(aliases));
    }
    if let Some(pipeline) = pipeline {
        options.insert("pipeline".to_owned(), json!(check_pipeline(pipeline)));
    }
    if on_reject.is_some() {
        options.insert("on_reject".to_owned(), json!(one_of("on_reject", on_reject, &["keep", "delete"])));
    }
    if format.is_some() {
        options.insert("format".to_owned(), json!(one_of("format", format, &["json", "hash"])));
    }
    if let Some(ttl) = ttl {
        options.insert("ttl_ms".to_owned(), json!(ttl_milliseconds(&ttl)));
    }
    if let Some(jitter) = jitter {
        options.insert("jitter".to_owned(), json!(check_jitter(jitter)));
    }
    pace(backfill_rate, backfill_window, &mut options);
    let wanted = Wanted { columns, rename, predicate, document };
    if before.kind == Kind::Index {
        after.address_columns = index_columns(&table, &before.key_columns, routing, period, &mut options);
    }
    if let Some(key) = key.filter(|key| *key != before.target) {
        after.address_columns = address_columns(&table, &before.key_columns, &key_template(&key));
        after.target = key;
    }
    let redeclared =
        documents(wanted, &reset, &after, &table, &mut options, after.address_columns != before.address_columns);
    after.options = Value::Object(options);
    if before.kind == Kind::Index && after.options != before.options {
        let fields = document::columns(&after, &table);
        check_fields(&fields);
        mapping::check_field_count(&table.name, &fields, &after.options);
    }
    if let Some(searched) = search_fields {
        let any = after.options["document_column"] == Value::Bool(true);
        let checked = check_search_fields(&document::columns(&after, &table), any, searched);
        after.options["search_fields"] = json!(checked);
    }
    if let Some(name) = name {
        after.name = new_name(name, &before);
    }
    if let Some(owner) = owner {
        after.owner = new_owner(&owner, &table);
    }
    if let Some(server) = server {
        after.server = server;
    }
    if after.owner != before.owner || after.server != before.server {
        fits(after.kind, &after.server, &[after.owner, catalog::caller()]);
    }
    taken_back(&before, &after);
    let cost = cost(&before, &after);
    announce(&before, &after, cost);
    if !dry_run && after != before {
        store(&before, &after, cost, &table);
        if redeclared {
            relation::warn_of_undeclared(&after.name);
        }
    }
    cost.as_str().to_owned()
}

fn invalid(message: String) -> crate::error::Failure {
    failure(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
}

fn only_for(kind: Kind, sync: &Sync, argument: &str, given: bool) {
    if given && sync.kind != kind {
        let what = if kind == Kind::Index { "an index" } else { "a cache" };
        invalid(format!("\"{argument}\" is for {what}, which sync \"{}\" does not feed", sync.name))
            .hint("Leave it out; fanout.status tells the kind of each sync.")
            .raise();
    }
}

/// Another name for a sync; an ERROR if it can have none such.
fn new_name(name: String, sync: &Sync) -> String {
    if let Err(refusal) = check_sync_name(&name) {
        refusal.raise();
    }
    if name != sync.name && catalog::find(&name).is_some() {
        failure(PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT, format!("sync \"{name}\" already exists"))
            .hint("Give another: name => '…'.")
            .raise();
    }
    name
}

/// Makes the triggers anew, with the sync's new name in them. Open transactions that have written to the tables are waited
/// for, so no change is between the two.
fn rename_triggers(before: &Sync, after: &Sync) {
    let tables = captured(std::slice::from_ref(before));
    for (table, _, relation) in tables {
        let Some(table) = table else { continue };
        table.check_rights(catalog::caller());
        if let Some((name, of)) = triggers::by_hand(&before.name, relation).first() {
            failure(
                PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
                format!("\"name\" can't be changed: trigger \"{name}\" on {of} was put there by hand"),
            )
            .hint("Drop it, and create it anew with the new name of the sync as its argument.")
            .raise();
        }
        triggers::drop_all(&table, &before.name, relation);
        triggers::create(&table, &after.name, relation);
    }
}

/// Takes options back to their defaults; gives their names.
fn reset_options(reset: Option<Vec<Option<String>>>, options: &mut Map<String, Value>) -> Vec<String> {
    let names = no_nulls("reset", reset.unwrap_or_default());
    for name in &names {
        let Some((_, option)) = RESETTABLE.iter().find(|(known, _)| known == name) else {
            let known: Vec<&str> = RESETTABLE.iter().map(|(known, _)| *known).collect();
            invalid(format!("\"{name}\" can't be reset")).hint(format!("Valid are: {}.", known.join(", "))).raise()
        };
        options.remove(*option);
    }
    names
}

fn pace(rate: Option<f64>, window: Option<String>, options: &mut Map<String, Value>) {
    if let Some(rate) = rate {
        if !(rate > 0.0 && rate.is_finite()) {
            invalid("\"backfill_rate\" must be above zero".to_owned())
                .hint("It is in rows a second; reset => '{backfill_rate}' takes the bound away.")
                .raise();
        }
        options.insert("backfill_rate".to_owned(), json!(rate));
    }
    if let Some(window) = window {
        if parse_window(&window).is_none() {
            invalid(format!("invalid value for \"backfill_window\": \"{window}\""))
                .hint("For example '22:00-06:00', in the time zone of the server's log (log_timezone).")
                .raise();
        }
        options.insert("backfill_window".to_owned(), json!(window));
    }
}

/// Declares the documents anew, if anything of them was given or reset, or what a query has to yield beside them changes: then
/// as a whole, out of what was given and what the sync has. False if nothing was.
fn documents(
    wanted: Wanted,
    reset: &[String],
    sync: &Sync,
    table: &Table,
    options: &mut Map<String, Value>,
    readdressed: bool,
) -> bool {
    let given = |name: &str| reset.iter().any(|reset| reset == name);
    let untouched = !readdressed
        && wanted.columns.is_none()
        && wanted.rename.is_none()
        && wanted.predicate.is_none()
        && wanted.document.is_none()
        && !["columns", "rename", "predicate", "document"].iter().any(|name| given(name));
    if untouched {
        return false;
    }
    let mut whole = wanted;
    let by_new_text = whole.document.is_some() || whole.predicate.is_some();
    let by_query = whole.document.is_some();
    let by_rows = whole.columns.is_some() || whole.rename.is_some() || whole.predicate.is_some();
    if !by_query && !by_rows {
        whole.document = options.get("document").and_then(Value::as_str).map(str::to_owned);
    }
    if whole.document.is_none() {
        if let Some(fields) = options.get("fields").and_then(Value::as_object) {
            let chosen = fields.values().filter_map(Value::as_str).map(|column| Some(column.to_owned())).collect();
            let names = fields.iter().filter(|(field, column)| column.as_str() != Some(field));
            let names = names.filter_map(|(field, column)| Some((column.as_str()?.to_owned(), json!(field))));
            if whole.columns.is_none() {
                whole.columns = Some(chosen);
                whole.rename = whole.rename.or_else(|| Some(JsonB(Value::Object(names.collect()))));
            }
        }
        if whole.predicate.is_none() {
            whole.predicate = options.get("predicate").and_then(Value::as_str).map(str::to_owned);
        }
    }
    for option in ["fields", "predicate", "document", "document_column", "search_path"] {
        options.remove(option);
    }
    let check = || whole.check(table, &sync.address_columns, options);
    // A text that the sync has is read where its names were looked up when it was given, and as who gave it.
    if by_new_text {
        check()
    } else {
        acting_for(sync, check)
    };
    true
}

/// The role of that name, if the caller may give it the sync.
fn new_owner(name: &str, table: &Table) -> pg_sys::Oid {
    let c_name = CString::new(name).unwrap_or_default();
    // SAFETY: look-ups on the main thread; the first answers 0 for what is missing.
    let (role, allowed) = unsafe {
        let role = pg_sys::get_role_oid(c_name.as_ptr(), true);
        (role, role != pg_sys::InvalidOid && pg_sys::has_privs_of_role(catalog::caller(), role))
    };
    if role == pg_sys::InvalidOid {
        failure(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, format!("role \"{name}\" does not exist"))
            .hint("Give \"owner\" the name of a role, as \\du lists them.")
            .raise();
    }
    if !allowed {
        failure(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be member of role \"{name}\""))
            .hint("A sync is given to a role that you could be: \"owner\" is who the worker reads as.")
            .raise();
    }
    table.check_rights(role);
    role
}

/// Raises if another sync feeds the target that this one is to have. What it fed itself before, and was not removed yet, it
/// takes back: the number of that.
fn taken_back(before: &Sync, after: &Sync) -> Option<i32> {
    if after.target == before.target && after.server == before.server {
        return None;
    }
    let other = catalog::feeding(&after.server, &after.target, Some(after.id))?;
    if other.successor == Some(after.id) {
        return Some(other.id);
    }
    if after.target != before.target {
        refuse_rival(after.kind, &after.server, &after.target, &other);
    }
    let refusal = fed_by(after.kind, &after.server, &after.target, &other);
    refusal.hint("Name another \"server\", or end that sync: fanout.drop_sync().").raise()
}

/// Whether it gets another target on the same server, so that the one of before is to be removed.
fn is_moved(before: &Sync, after: &Sync) -> bool {
    after.target != before.target && after.server == before.server
}

/// What the change takes. An index is compared as it would be made before and after.
fn cost(before: &Sync, after: &Sync) -> Cost {
    if after.server != before.server || after.target != before.target {
        return Cost::Resync;
    }
    let of_index = |option: &&str| before.options.get(*option) != after.options.get(*option);
    if before.kind == Kind::Index
        && (mapping::index_body(before) != mapping::index_body(after)
            || ["aliases", "routing", "period"].iter().any(of_index))
    {
        return Cost::Resync;
    }
    let of_documents =
        ["types", "pipeline", "fields", "predicate", "document", "document_column", "search_path", "format", "ttl_ms"];
    if of_documents.iter().any(|option| before.options.get(*option) != after.options.get(*option)) {
        return Cost::Reconcile;
    }
    Cost::Nothing
}

fn announce(before: &Sync, after: &Sync, cost: Cost) {
    // NULL before the table was analyzed.
    let rows = match privileged(|| store::extent(before.source)).2 {
        Some(rows) if rows > 0 => format!("about {rows} documents"),
        _ => "all documents".to_owned(),
    };
    let name = &before.name;
    match cost {
        Cost::Nothing if before == after => notice!("nothing of sync \"{name}\" changes"),
        Cost::Nothing => notice!("no document of sync \"{name}\" changes: nothing is delivered anew"),
        Cost::Reconcile => {
            notice!("the documents of sync \"{name}\" change: {rows} are delivered anew (reconcile)")
        }
        Cost::Resync if after.server != before.server => notice!(
            "sync \"{name}\" moves to server \"{}\": {rows} are delivered there; what is on server \"{}\" stays",
            after.server,
            before.server
        ),
        Cost::Resync if is_moved(before, after) && before.kind == Kind::Cache => notice!(
            "the keys of sync \"{name}\" become \"{}\": {rows} are delivered anew; until then those of \"{}\" stay as they are, and \
             after that they are removed",
            after.target,
            before.target
        ),
        Cost::Resync if is_moved(before, after) => notice!(
            "sync \"{name}\" moves to index \"{}\": {rows} are delivered there; until then index \"{}\" serves, and after that it is \
             removed",
            after.target,
            before.target
        ),
        Cost::Resync => {
            notice!("the index of sync \"{name}\" is built anew with {rows} (resync); the old one serves until then")
        }
    }
    if after.owner != before.owner {
        notice!("sync \"{name}\" is read as role \"{}\" from now on", role_name(after.owner));
    }
    if after.name != before.name {
        notice!("sync \"{name}\" is called \"{}\" from now on", after.name);
    }
}

fn store(before: &Sync, after: &Sync, cost: Cost, table: &Table) {
    let readdressed = after.address_columns != before.address_columns;
    if readdressed {
        // No open transaction has captured by the columns of before: what it notes would be taken for addresses of now.
        table.lock();
    }
    let progress = match cost {
        Cost::Nothing => String::new(),
        Cost::Reconcile => format!(", {ANEW}, {COMPARED}"),
        // On another server the target is made as it was made the first time.
        Cost::Resync if before.kind == Kind::Cache || after.server != before.server => {
            format!(", {ANEW}, phase = 'create'")
        }
        Cost::Resync => format!(", {ANEW}, {NEXT_INDEX}"),
    };
    let target = if after.target == before.target {
        ""
    } else {
        // Nothing of the new one is known yet.
        ", claimed = NULL, note = NULL, indices = '{}'"
    };
    let mut shape = before.shape.clone();
    if after.name != before.name {
        shape = shape.map(|known| Shape::without_triggers(before, known));
        rename_triggers(before, after);
    }
    let sql = format!(
        "UPDATE fanout.sync SET options = $2, owner = $3::pg_catalog.oid::pg_catalog.regrole, server = $4,
             address_columns = $5, layout = $6, name = $7, shape = $8, target = $9{progress}{target} WHERE sync_id = $1"
    );
    // The worker may be about to begin with the removal of a target that this one takes back: one of both comes first.
    let claimed = lock(before);
    let taken_back = taken_back(before, after);
    // As of now, and not when the worker comes to it: what is in the journal is of other types than what it will find there.
    let layout = if readdressed { Some(i64::from(image::layout(layout(after)).signature)) } else { before.layout };
    privileged(|| {
        ours(Spi::connect_mut(|client| -> Result<(), pgrx::spi::Error> {
            if let Some(former) = taken_back {
                client.update("DELETE FROM fanout.sync WHERE sync_id = $1", None, &[former.into()])?;
            }
            client.update(
                &sql,
                None,
                &[
                    before.id.into(),
                    JsonB(after.options.clone()).into(),
                    after.owner.into(),
                    after.server.clone().into(),
                    after.address_columns.clone().into(),
                    layout.into(),
                    after.name.clone().into(),
                    shape.map(JsonB).into(),
                    after.target.clone().into(),
                ],
            )?;
            if readdressed {
                // By addresses of before; and what is captured in related tables is the key, no longer an address.
                client.update("DELETE FROM fanout.dead_letter WHERE sync_id = $1", None, &[before.id.into()])?;
                if after.address_columns != after.key_columns {
                    client.update(
                        "UPDATE fanout.relation SET direct = false WHERE sync_id = $1",
                        None,
                        &[before.id.into()],
                    )?;
                }
            }
            Ok(())
        }));
    });
    expect_new_try(after);
    // What was never claimed, nothing was written to.
    if is_moved(before, after) && claimed {
        // One that was never filled serves nobody: an older one does.
        leave_behind(before, after, taken_back.is_none());
    }
    catalog::changed();
}

/// Notes the target that a sync had as one that is to be removed: when the new one is filled, for until then it serves; or at
/// once, if it was itself never filled and an older one serves.
fn leave_behind(before: &Sync, after: &Sync, serves: bool) {
    let mut names = (1..).map(|number| former_name(&before.name, number));
    let name = names.find(|name| catalog::find(name).is_none()).unwrap_or_default();
    privileged(|| {
        ours(Spi::connect_mut(|client| {
            let noted = client.update(
                "INSERT INTO fanout.sync (name, kind, source, server, target, key_columns, address_columns, owner, options, identity,
                     generation, phase, successor, note)
                 SELECT $2, kind, source, server, $3, key_columns, $4, $5::pg_catalog.oid::pg_catalog.regrole, $6, identity,
                     $7, 'drop', w.successor, w.note
                 FROM fanout.sync LEFT JOIN (SELECT $1 AS successor, $8 AS note
                     WHERE $9 AND NOT EXISTS (SELECT FROM fanout.sync AS f WHERE f.successor = $1)) AS w ON true
                 WHERE sync_id = $1",
                None,
                &[
                    before.id.into(),
                    name.into(),
                    before.target.clone().into(),
                    before.address_columns.clone().into(),
                    before.owner.into(),
                    JsonB(before.options.clone()).into(),
                    before.generation.into(),
                    format!("removed when sync \"{}\" is filled anew", after.name).into(),
                    serves.into(),
                ],
            );
            noted.map(drop)
        }));
    });
}
