//! What concerns a sync's target, looked at with the owner's rights and credentials.

use super::{Findings, Status, older};
use crate::catalog::{Kind, Phase, Sync, identity, mapping, relation};
use crate::document::as_worker;
use crate::network::{AnyTarget, owners_target};
use crate::repair::Subject;
use crate::repair::attempt::attempt;
use crate::worker::transaction::Class;
use crate::worker::{incarnation, place};
use delivery::ErrorKind;
use delivery::engine::IndexReport;
use delivery::ownership::{Owner, alike};
use pgrx::prelude::*;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The oldest versions that were tested: README, "Tested versions".
const OLDEST: &[(&str, &str)] = &[("OpenSearch", "2.19"), ("Elasticsearch", "7.10"), ("Redis", "7.0")];

/// Looks at the source through the owner's eyes, then at the target.
pub fn check(findings: &mut Findings, sync: &Sync, readable: bool) {
    if readable {
        reading(findings, sync);
    }
    let target = match owners_target(&sync.server, sync.owner) {
        Ok(target) => target,
        Err(failure) => {
            return findings.error(
                "server",
                failure.message(),
                "The worker reaches the server as the sync's owner, who needs USAGE on it.",
            );
        }
    };
    if !reachable(findings, sync, &target) {
        return;
    }
    owner(findings, sync, &target);
    match &target {
        AnyTarget::Engine(engine) => {
            let (index, alias) = (sync.concrete_index(), sync.target.clone());
            let found =
                engine.try_run(move |engine| Ok((engine.index_reports(&index)?, engine.alias_holders(&alias)?)));
            match found {
                Ok((reports, holders)) => indices_are_right(findings, sync, &reports, &holders),
                Err(error) => findings.warning(
                    "index",
                    error.to_string(),
                    "Grant the user of the mapping to look at the index (view_index_metadata).",
                ),
            }
        }
        AnyTarget::Cache(cache) => {
            let policies = cache.try_run(true, |redis| redis.info("memory", "maxmemory_policy")).unwrap_or_default();
            let evicts = |policy: &&String| policy.starts_with("allkeys");
            if let Some(policy) = policies.iter().find(evicts).or(policies.first()) {
                if evicts(&policy) {
                    findings.warning(
                        "eviction",
                        format!("maxmemory-policy is {policy}: Redis may evict any key, which nobody notices"),
                        "Use noeviction or a volatile policy, or have readers take a missing key from the table.",
                    );
                } else {
                    findings.ok("eviction", policy.clone());
                }
            }
        }
    }
}

/// The rows of the first block, read as the worker reads them: rights, policies, and what documents are made of.
fn reading(findings: &mut Findings, sync: &Sync) {
    let subject = match Subject::of(&sync.name).1 {
        Ok(subject) => subject,
        Err(why) => return findings.error("reading", why, "Put it right: the sync goes on by itself."),
    };
    relations(findings, sync);
    let (plans, source) = subject.reading();
    let read = attempt(|| as_worker(sync, || plans.read_blocks(source, 0, 1, |_, _| ())));
    match read {
        Ok(_) => findings.ok("reading", format!("as role {}", crate::server::role_name(sync.owner))),
        Err(failed) if failed.class() == Class::Data => findings.warning(
            "reading",
            format!("a row of the first block cannot be read: {failed}"),
            "Such rows become dead letters: see fanout.dead_letters.",
        ),
        Err(failed) => findings.error(
            "reading",
            format!("role {} cannot read the source: {failed}", crate::server::role_name(sync.owner)),
            "Grant it SELECT on the table and USAGE on its schema; row-level security must not apply to it.",
        ),
    }
}

/// The tables that the sync's query reads: whether changes of each reach the documents.
fn relations(findings: &mut Findings, sync: &Sync) {
    if sync.document_query().is_none() {
        return;
    }
    let unheard = match attempt(|| relation::unheard(sync)) {
        Ok(unheard) => unheard,
        Err(failed) => {
            return findings.error(
                "relations",
                format!("the document query cannot be read: {failed}"),
                "Put right what the text says: the sync goes on by itself.",
            );
        }
    };
    if unheard.is_empty() {
        findings.ok("relations", format!("{} declared", sync.relations.len()));
    }
    for table in unheard {
        findings.warning(
            "relations",
            format!("changes of table {} do not reach the documents: {}", table.table, table.why),
            table.hint,
        );
    }
}

fn reachable(findings: &mut Findings, sync: &Sync, target: &AnyTarget) -> bool {
    let asked = (sync.server.clone(), sync.owner);
    if findings.silent.contains(&asked) {
        findings.error("server", format!("{}: does not answer", sync.server), "See above.");
        return false;
    }
    let found = match target {
        AnyTarget::Engine(engine) => engine.try_run(|engine| engine.probe()).map(|info| {
            let flavor = info.flavor.map_or_else(|| "a search engine".to_owned(), |flavor| format!("{flavor:?}"));
            (flavor, info.version.unwrap_or_default())
        }),
        AnyTarget::Cache(cache) => {
            cache.try_run(true, |redis| redis.probe()).map(|version| ("Redis".to_owned(), version.unwrap_or_default()))
        }
    };
    let server = &sync.server;
    match found {
        Ok((what, version)) => {
            let told = format!("{server}: {what} {version}");
            match OLDEST.iter().find(|(of, oldest)| *of == what && older(&version, oldest)) {
                Some((_, oldest)) => findings.warning(
                    "server",
                    format!("{told}, older than any that pg_fanout was tested with"),
                    format!("Upgrade it to {oldest} or later, or try it out before you rely on it."),
                ),
                None => findings.ok("server", told.trim_end()),
            }
            true
        }
        Err(error) => {
            let hint = match error.kind() {
                ErrorKind::Unauthorized => format!("ALTER USER MAPPING FOR … SERVER {server} changes the credentials."),
                ErrorKind::Unreachable | ErrorKind::Timeout => {
                    format!("Check the option \"url\" of server {server}, the network, and that it is running.")
                }
                ErrorKind::TlsOrConfig => format!("Check the options of server {server}: url, ca, verify."),
                _ => format!("Check that the option \"url\" of server {server} leads to a target of the right kind."),
            };
            findings.error("server", format!("{server}: {error}"), hint);
            findings.silent.push(asked);
            false
        }
    }
}

/// Who the target says that feeds it.
fn owner(findings: &mut Findings, sync: &Sync, target: &AnyTarget) {
    let name = sync.target.clone();
    let found: delivery::Result<Option<Owner>> = match target {
        AnyTarget::Engine(engine) => engine.try_run(move |engine| engine.owner(&name)),
        AnyTarget::Cache(cache) => cache.try_run(true, move |redis| redis.owner(&name)),
    };
    // SAFETY: reads a flag of shared memory.
    let standby = unsafe { pg_sys::RecoveryInProgress() };
    let literal = pgrx::spi::quote_literal(&sync.name);
    match found {
        Err(error) => findings.warning(
            "control",
            error.to_string(),
            "The owner's credentials must be able to read and write the control document.",
        ),
        Ok(None) if sync.phase == Phase::Create => findings.ok("control", "not claimed yet"),
        Ok(None) => findings.warning(
            "control",
            "the control document is gone: the target may have lost what it held",
            "The worker claims it anew with its next heartbeat, and reconciles.",
        ),
        Ok(Some(owner)) if standby => findings.ok("control", format!("fed by {}", owner.by)),
        Ok(Some(owner)) if is_ours(&owner, sync) => findings.ok("control", "fed by this database"),
        Ok(Some(_)) if sync.identity != identity() => findings.ok("control", "fed by another, and this sync is parked"),
        Ok(Some(owner)) => findings.error(
            "control",
            format!("the target is fed by another: {} ({})", owner.by, owner.identity),
            format!("Stop the other, or SELECT fanout.adopt({literal}); if this database is to take over."),
        ),
    }
}

/// Whether the owner is this sync of this server, as far as it says so.
fn is_ours(owner: &Owner, sync: &Sync) -> bool {
    owner.identity == incarnation()
        && alike(owner.place.as_deref(), place().as_deref())
        && alike(owner.sync.as_deref(), Some(&sync.mark()))
}

/// The index of a sync, or each of those that it has.
fn indices_are_right(
    findings: &mut Findings,
    sync: &Sync,
    reports: &BTreeMap<String, IndexReport>,
    holders: &[String],
) {
    let concrete = sync.concrete_index();
    if sync.templates().period.is_none() {
        return index_is_right(findings, sync, &concrete, reports.get(&concrete), holders);
    }
    let prefix = format!("{concrete}-");
    let noted = sync.indices.iter().filter(|index| index.starts_with(&prefix));
    let all: BTreeSet<&String> = reports.keys().chain(noted).collect();
    let mut wrong = Findings { object: findings.object.clone(), list: Vec::new(), silent: Vec::new() };
    for &index in &all {
        index_is_right(&mut wrong, sync, index, reports.get(index), holders);
    }
    wrong.list.retain(|finding| finding.status != Status::Ok);
    if wrong.list.is_empty() {
        findings.ok("index", format!("{} indices", all.len()));
    }
    // What is so with all of them is said once.
    for finding in wrong.list {
        if !findings.list.iter().any(|known| known.item == finding.item && known.detail == finding.detail) {
            findings.list.push(finding);
        }
    }
}

fn index_is_right(
    findings: &mut Findings,
    sync: &Sync,
    index: &String,
    report: Option<&IndexReport>,
    holders: &[String],
) {
    let literal = pgrx::spi::quote_literal(&sync.name);
    let Some(report) = report else {
        return if sync.phase == Phase::Create {
            findings.ok("index", "not made yet");
        } else {
            findings.error(
                "index",
                format!("index \"{index}\" is gone"),
                format!(
                    "It is made and filled again with the next change: SELECT fanout.reconcile({literal}); does it now."
                ),
            );
        };
    };
    let set = |name: &str| report.settings.get(name).and_then(Value::as_str).unwrap_or_default();
    let blocks = ["read_only", "read_only_allow_delete", "write"];
    if !report.ours {
        findings.error(
            "index",
            format!("index \"{index}\" was not made by pg_fanout"),
            "Somebody deleted ours and made another of that name, perhaps by writing to it: delete it.",
        );
    } else if let Some(block) = blocks.iter().find(|block| set(&format!("index.blocks.{block}")) == "true") {
        findings.error(
            "index",
            format!("index \"{index}\" takes no writes: index.blocks.{block} is set"),
            "Engines set read_only_allow_delete when a disk is nearly full: make room, then set it to null.",
        );
    } else if sync.phase == Phase::Live && !holders.contains(index) {
        findings.error(
            "index",
            format!("the alias \"{}\" does not point to index \"{index}\"", sync.target),
            format!("Point it there, or SELECT fanout.resync({literal});"),
        );
    } else {
        findings.ok("index", index.as_str());
    }
    if set("index.translog.durability") == "async" {
        findings.warning(
            "durability",
            "index.translog.durability is async: what the engine has acknowledged can be lost when it crashes",
            format!("Set it to request; after such a crash SELECT fanout.reconcile({literal});"),
        );
    }
    if set("index.refresh_interval") == "-1" {
        findings.warning(
            "refresh",
            "index.refresh_interval is -1: searches see changes only after fanout.wait() or a refresh",
            "Set it to null.",
        );
    }
    if sync.kind == Kind::Index {
        drift(findings, sync, &report.properties, &literal);
    }
}

/// Whether the index has the fields that the source has now.
fn drift(findings: &mut Findings, sync: &Sync, actual: &Map<String, Value>, literal: &str) {
    let body = mapping::index_body(sync);
    let Some(expected) = body.pointer("/mappings/properties").and_then(Value::as_object) else { return };
    let kind = |field: &Value| field.get("type").and_then(Value::as_str).unwrap_or("object").to_owned();
    let (mut missing, mut other) = (Vec::new(), Vec::new());
    for (name, field) in expected {
        match find_field(actual, name) {
            None => missing.push(format!("{name} is missing")),
            Some(found) if kind(found) != kind(field) => {
                other.push(format!("{name} is {} instead of {}", kind(found), kind(field)));
            }
            Some(_) => {}
        }
    }
    // What is missing can be added to the index; what is there as something else cannot be made another.
    let hint = if other.is_empty() && sync.note.is_none() {
        "The worker adds a field as soon as it sees the column: look again in a few seconds. If it stays so, last_error in \
         fanout.status says why."
            .to_owned()
    } else {
        format!("SELECT fanout.resync({literal}); builds the index anew, without downtime.")
    };
    other.extend(missing);
    if other.is_empty() {
        findings.ok("mapping", format!("{} fields", actual.len()));
    } else {
        let differences = other.join(", ");
        findings.warning("mapping", format!("the index has other fields than the source: {differences}"), hint);
    }
}

/// A field by its name; dots are a path.
fn find_field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        find_field(fields.get(first)?.get("properties")?.as_object()?, rest)
    })
}
