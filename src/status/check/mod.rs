//! `fanout.check()`: finds what is wrong with settings, worker, permissions, triggers and targets, and says what to do.

mod source;
mod surroundings;
mod target;

use crate::catalog::acting::privileged;
use crate::catalog::admin::owns;
use crate::catalog::{self, Phase, Sync, ours};
use crate::error::failure;
use pgrx::prelude::*;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    Warning,
    Error,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Error => "error",
        }
    }
}

/// What was found of one thing.
struct Finding {
    item: &'static str,
    object: String,
    status: Status,
    detail: String,
    hint: Option<String>,
}

/// The findings so far, all of one object.
struct Findings {
    object: String,
    list: Vec<Finding>,
    /// Servers that did not answer, and as whom they were asked: nobody waits for them again.
    silent: Vec<(String, pg_sys::Oid)>,
}

impl Findings {
    fn add(&mut self, item: &'static str, status: Status, detail: impl Into<String>, hint: Option<String>) {
        self.list.push(Finding { item, object: self.object.clone(), status, detail: detail.into(), hint });
    }

    fn ok(&mut self, item: &'static str, detail: impl Into<String>) {
        self.add(item, Status::Ok, detail, None);
    }

    fn warning(&mut self, item: &'static str, detail: impl Into<String>, hint: impl Into<String>) {
        self.add(item, Status::Warning, detail, Some(hint.into()));
    }

    fn error(&mut self, item: &'static str, detail: impl Into<String>, hint: impl Into<String>) {
        self.add(item, Status::Error, detail, Some(hint.into()));
    }
}

/// Whether a version is before another: by its numbers, so far as the other has some. One without numbers is not.
fn older(version: &str, than: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        text.split('.').map_while(|part| part.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).collect()
    };
    let (version, than) = (numbers(version), numbers(than));
    !version.is_empty() && version.as_slice() < &than[..than.len().min(version.len())]
}

/// Looks for what is wrong: one row a check, with what to do. What concerns a sync is shown to its owner and to members of
/// pg_monitor; source and target are looked at for the owner only, with the owner's rights.
#[pg_extern(schema = "fanout", volatile, parallel_unsafe, requires = ["bootstrap"])]
#[allow(clippy::type_complexity)]
fn check(
    sync: default!(Option<&str>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(item, String),
        name!(object, String),
        name!(status, String),
        name!(detail, String),
        name!(hint, Option<String>),
    ),
> {
    let syncs: Vec<Sync> = match sync {
        Some(name) => {
            let sync = catalog::get(name);
            if !super::may_watch(&sync) {
                failure(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("permission denied for sync {name}"))
                    .detail("To check a sync takes to be its owner, or a member of pg_monitor.")
                    .raise();
            }
            vec![sync]
        }
        None => ours(privileged(catalog::all)).into_iter().filter(super::may_watch).collect(),
    };
    let mut findings = Findings { object: "server".into(), list: Vec::new(), silent: Vec::new() };
    surroundings::check(&mut findings, &syncs);
    for sync in &syncs {
        pgrx::check_for_interrupts!();
        findings.object = format!("sync {}", sync.name);
        source::state(&mut findings, sync);
        if sync.phase == Phase::Drop {
            // Nothing of it has to be right but the way to its target.
            continue;
        }
        let readable = source::check(&mut findings, sync);
        if owns(sync) {
            target::check(&mut findings, sync, readable);
        }
    }
    let rows: Vec<_> = findings
        .list
        .into_iter()
        .map(|finding| {
            (finding.item.to_owned(), finding.object, finding.status.as_str().to_owned(), finding.detail, finding.hint)
        })
        .collect();
    TableIterator::new(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (version, than, expected) in [
            ("2.18.0", "2.19", true),
            ("2.19.0", "2.19", false),
            ("2.19", "2.19.1", false),
            ("10.0.0", "9.5", false),
            ("6.2.14", "7.0", true),
            ("7.10.2-SNAPSHOT", "7.10", false),
            ("7.9.3-SNAPSHOT", "7.10", true),
            ("0.1.0", "0.2.0", true),
            ("", "7.0", false),
            ("serverless", "7.0", false),
        ] {
            assert_eq!(older(version, than), expected, "{version} {than}");
        }
    }
}
