//! `fanout.explain()`: why a row is, or is not, in the target as it should be. `fanout.document()`: what would be sent of it.

use super::attempt::attempt;
use super::subject::{Held, Subject, held};
use crate::capture;
use crate::catalog::acting::privileged;
use crate::catalog::enqueue::address_of;
use crate::catalog::key_values::{KeyValue, given};
use crate::catalog::{self, Kind, Sync, ours, triggers};
use crate::document::{as_of_now, as_worker};
use crate::error::{failure, not_null};
use crate::network::AnyTarget;
use crate::status;
use crate::worker::{Answer, Named, Place, ask, shared};
use pgrx::prelude::*;
use pgrx::{Spi, pg_sys};

/// One fact.
type Fact = (String, String, Option<String>);

/// Why is this row not, or wrongly, in the target? One row a step on the way of a change, and what to do in the last. For the
/// sync's owner: it reads the row and asks the target as that role.
#[pg_extern(sql = r#"
CREATE FUNCTION fanout.explain(sync text, VARIADIC key "any") RETURNS TABLE (step text, state text, detail text)
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn explain(
    sync: Option<&str>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> TableIterator<'static, (name!(step, String), name!(state, String), name!(detail, Option<String>))> {
    let (sync, subject) = Subject::of(not_null("sync", sync));
    // SAFETY: of this call, whose second argument is the first of the key.
    let values = unsafe { given(fcinfo, 1) };
    TableIterator::new(Explanation::new(sync, subject, values).facts)
}

/// The document that the sync would send of a row now; NULL if the row is not there.
#[pg_extern(sql = r#"
CREATE FUNCTION fanout.document(sync text, VARIADIC key "any") RETURNS json
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn document(sync: Option<&str>, fcinfo: pg_sys::FunctionCallInfo) -> Option<String> {
    let (sync, subject) = Subject::of(not_null("sync", sync));
    let subject = subject.unwrap_or_else(|why| {
        failure(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("the source of sync \"{}\" cannot be read", sync.name),
        )
        .detail(why)
        .raise()
    });
    // SAFETY: of this call, whose second argument is the first of the key.
    let address = address_of(&sync, &unsafe { given(fcinfo, 1) });
    let rows = as_of_now(|| as_worker(&sync, || subject.rows(&[&address])));
    let (_, document) = rows.into_iter().next()?;
    // A json value is stored as its text; so a number keeps all its digits.
    String::from_utf8(document).ok()
}

struct Explanation {
    facts: Vec<Fact>,
    /// What to do, the most pressing first.
    advice: Vec<String>,
}

/// What is known of the row.
enum RowSide {
    Present(Vec<u8>),
    Absent,
    /// It cannot be read, or not found by what was given.
    Unknown,
}

impl Explanation {
    fn new(sync: Sync, subject: Result<Subject, String>, values: Vec<Option<KeyValue>>) -> Self {
        let mut this = Self { facts: Vec::new(), advice: Vec::new() };
        this.sync(&sync);
        match subject {
            Err(why) => {
                this.fact("row", "unreadable", Some(why));
                this.advise("Put right what keeps the source from being read: the sync goes on by itself.");
            }
            Ok(subject) => this.row_on(&sync, &subject, &values),
        }
        if this.advice.is_empty() {
            this.advice.push("Nothing: the target holds what the row says.".into());
        }
        let advice = this.advice.join(" ");
        this.fact("advice", "", Some(advice));
        this
    }

    fn fact(&mut self, step: &str, state: &str, detail: Option<String>) {
        self.facts.push((step.to_owned(), state.to_owned(), detail));
    }

    fn advise(&mut self, advice: impl Into<String>) {
        self.advice.push(advice.into());
    }

    fn sync(&mut self, sync: &Sync) {
        let state = status::state(sync);
        let error = status::last_error(sync);
        let literal = pgrx::spi::quote_literal(&sync.name);
        let place = match sync.kind {
            Kind::Index => format!("index \"{}\" on server \"{}\"", sync.target, sync.server),
            Kind::Cache => format!("keys \"{}\" on server \"{}\"", sync.target, sync.server),
        };
        match state.as_str() {
            "paused" => self.advise(format!("The sync is paused: SELECT fanout.resume({literal});")),
            "parked" => self.advise(format!("The sync came with a dump or a copy: SELECT fanout.adopt({literal});")),
            "blocked" => self.advise(format!(
                "The sync is blocked, put this right: {}.",
                error.clone().unwrap_or_default().trim_end_matches('.')
            )),
            "retrying" => self.advise("The target does not answer; it is tried again by itself."),
            "live" | "backfill" | "reconcile" | "creating" | "dropping" | "waiting" => {}
            other => self.advise(format!("No worker serves the sync ({other}): SELECT * FROM fanout.check();")),
        }
        let detail = match error {
            Some(error) if state == "blocked" || state == "retrying" => format!("{place}; {error}"),
            _ => place,
        };
        self.fact("sync", &state, Some(detail));
    }

    fn row_on(&mut self, sync: &Sync, subject: &Subject, values: &[Option<KeyValue>]) {
        let mut address = address_of(sync, values);
        let complete = values.len() == sync.address_columns.len();
        let read = attempt(|| as_of_now(|| as_worker(sync, || subject.rows(&[&address]))));
        let row = match read {
            Err(failed) => {
                self.fact("row", "unreadable", Some(failed.to_string()));
                self.advise("The row cannot be read as a document: put right what the error says.");
                RowSide::Unknown
            }
            Ok(rows) => match rows.into_iter().find(|(own, _)| !complete || *own == address) {
                Some((own, document)) => {
                    address = own;
                    self.fact("row", "present", Some(format!("{} bytes as a document", document.len())));
                    RowSide::Present(document)
                }
                None => {
                    self.fact("row", "absent", Some("no such row is committed, or the sync leaves it out".into()));
                    if complete {
                        RowSide::Absent
                    } else {
                        self.advise(format!(
                            "Give all of ({}): the key in Redis of a deleted row is made from them.",
                            sync.address_columns.join(", ")
                        ));
                        RowSide::Unknown
                    }
                }
            },
        };
        self.capture(sync);
        let Ok(Some(name)) = attempt(|| as_worker(sync, || subject.name(&address))) else {
            self.fact("name", "unknown", Some("the key cannot be written as text".into()));
            return;
        };
        self.fact("name", &name.name, name.index.as_ref().map(|index| format!("in index {index}")));
        let answer = ask(sync.id, &address);
        let waiting = self.worker(sync, &address, answer);
        let dead = self.dead_letter(sync, &address);
        if matches!(row, RowSide::Unknown) && !complete {
            return;
        }
        self.target(sync, subject, &row, &name, waiting, dead);
    }

    /// Whether changes of the row are noted at all.
    fn capture(&mut self, sync: &Sync) {
        let found = triggers::wrong(sync);
        let literal = pgrx::spi::quote_literal(&sync.name);
        if capture::has_captured(sync.id) {
            self.fact("capture", "in this transaction", Some("this transaction has changed rows itself".into()));
            self.advise("COMMIT: a change is delivered after that.");
        } else if found.is_empty() {
            self.fact("capture", "ok", Some("the triggers are there and fire always".into()));
        } else {
            self.fact("capture", "broken", Some(found.join("; ")));
            self.advise(format!(
                "Changes were not captured: SELECT fanout.adopt({literal}); puts the triggers back and reconciles."
            ));
        }
    }

    /// Where the change is with the worker. True if it is still on its way.
    fn worker(&mut self, sync: &Sync, address: &[u8], answer: Option<Answer>) -> bool {
        let stored = privileged(|| {
            ours(Spi::connect(|client| {
                client
                    .select(
                        "SELECT EXISTS (SELECT FROM fanout.pending WHERE sync_id = $1 AND address = fanout.place($2))",
                        Some(1),
                        &[sync.id.into(), address.into()],
                    )?
                    .first()
                    .get_one::<bool>()
            }))
        })
        .unwrap_or(false);
        let (state, detail) = match answer {
            None if stored => ("pending", Some("stored in fanout.pending; no worker answers".to_owned())),
            None => ("unknown", Some("no worker answers".to_owned())),
            Some(Answer { place: Place::Settled, .. }) if stored => {
                ("pending", Some("stored in fanout.pending".to_owned()))
            }
            Some(Answer { place: Place::Settled, .. }) => {
                ("settled", Some("nothing is pending for this row".to_owned()))
            }
            Some(answer) => {
                let state = match answer.place {
                    Place::Queued => "pending",
                    Place::Delayed => "delayed",
                    Place::InFlight => "in flight",
                    _ => "in flight, changed again",
                };
                let waited = (shared::now() - answer.since).max(0) as f64 / 1e6;
                (state, Some(format!("for {waited:.1} s, {} failed attempt(s)", answer.attempts)))
            }
        };
        let waiting = !matches!(state, "settled" | "unknown");
        self.fact("worker", state, detail);
        waiting
    }

    fn dead_letter(&mut self, sync: &Sync, address: &[u8]) -> bool {
        let letter = privileged(|| {
            ours(Spi::connect(|client| -> Result<Option<(String, i32, String)>, pgrx::spi::Error> {
                let found = client.select(
                    "SELECT reason, attempts, last_at::text FROM fanout.dead_letter \
                     WHERE sync_id = $1 AND address = fanout.place($2)",
                    Some(1),
                    &[sync.id.into(), address.into()],
                )?;
                if found.is_empty() {
                    return Ok(None);
                }
                let row = found.first();
                Ok(Some((
                    row.get(1)?.unwrap_or_default(),
                    row.get(2)?.unwrap_or_default(),
                    row.get(3)?.unwrap_or_default(),
                )))
            }))
        });
        let Some((reason, attempts, at)) = letter else {
            self.fact("dead letter", "no", None);
            return false;
        };
        self.fact("dead letter", "yes", Some(format!("{attempts} attempt(s), last at {at}: {reason}")));
        self.advise(format!(
            "The target refused the document: change the row or the index, then SELECT fanout.retry({});",
            pgrx::spi::quote_literal(&sync.name)
        ));
        true
    }

    fn target(&mut self, sync: &Sync, subject: &Subject, row: &RowSide, name: &Named, waiting: bool, dead: bool) {
        let target = match subject.target() {
            Ok(target) => target,
            Err(failure) => {
                self.fact("target", "unknown", Some(failure.message().to_owned()));
                self.advise("The worker cannot use the server either: SELECT * FROM fanout.check();");
                return;
            }
        };
        let found = match held(sync, &target, vec![name.clone()]) {
            Ok(found) => found.into_iter().next().flatten(),
            Err(error) => {
                self.fact("target", "unknown", Some(error.to_string()));
                self.advise("The target does not answer: SELECT * FROM fanout.check();");
                return;
            }
        };
        let ttl = time_to_live(&target, &name.name);
        match &found {
            None => self.fact("target", "absent", None),
            Some(Held { version: Some(version), .. }) => {
                let read = i64::try_from(*version).ok().and_then(status::timestamp);
                let read = read.map(|at| at.to_iso_string()).unwrap_or_default();
                self.fact("target", "present", Some(format!("version {version}: its row was read at {read}")));
            }
            Some(_) => self.fact("target", "present", ttl),
        }
        let literal = pgrx::spi::quote_literal(&sync.name);
        let scanning = !matches!(sync.phase, catalog::Phase::Live);
        let (state, detail) = match (row, &found) {
            (RowSide::Unknown, _) => ("unknown", None),
            (RowSide::Absent, None) => ("same", Some("absent on both sides".to_owned())),
            (RowSide::Absent, Some(_)) => ("extra", Some("the target holds what the table does not".to_owned())),
            (RowSide::Present(_), None) => ("missing", None),
            (RowSide::Present(document), Some(held)) if subject.same(document, held) => ("same", None),
            (RowSide::Present(document), Some(held)) => {
                let members = subject.different_members(document, held);
                ("different", Some(format!("in: {}", members.join(", "))))
            }
        };
        let expires = sync.kind == Kind::Cache && sync.options.get("ttl_ms").is_some();
        self.fact("comparison", state, detail);
        match state {
            "same" | "unknown" => {
                if waiting {
                    self.advise("A change is on its way.");
                }
            }
            _ if dead => {}
            _ if waiting => self.advise(format!("A change is on its way: SELECT fanout.wait({literal});")),
            _ if scanning => self.advise("All rows are on their way: see fanout.progress."),
            "missing" if expires => self.advise(format!(
                "The key has expired or was evicted; it comes back with the next change, or SELECT fanout.enqueue({literal}, …);"
            )),
            _ => self.advise(format!(
                "No change is on its way, so none was seen, or somebody else wrote to the target: SELECT fanout.enqueue({literal}, …); \
                 repairs this row, CALL fanout.verify({literal}, repair => true); all."
            )),
        }
    }
}

fn time_to_live(target: &AnyTarget, name: &str) -> Option<String> {
    let AnyTarget::Cache(cache) = target else { return None };
    let name = name.to_owned();
    match cache.try_run(true, move |redis| redis.ttl_ms(&name)) {
        Ok(Some(Some(left))) => Some(format!("expires in {:.0} s", left as f64 / 1000.0)),
        Ok(Some(None)) => Some("does not expire".into()),
        _ => None,
    }
}
