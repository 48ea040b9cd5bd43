//! A sync as seen from a backend: rows and documents of both sides.

use crate::catalog::admin::owned;
use crate::catalog::{Kind, Sync, Templates};
use crate::document::{Plans, Source, as_of_now, as_worker};
use crate::error::Failure;
use crate::journal::format::Orphan;
use crate::network::{AnyTarget, owners_target};
use crate::worker::{Called, Named, Naming, hash_fields};
use delivery::engine::{IdPage, Which};
use pgrx::pg_sys;
use std::collections::HashMap;

use super::canonical;

/// Address of a row, and the document that would be sent of it.
pub type Row = (Vec<u8>, Vec<u8>);

/// What the target holds under an id or key.
#[derive(Clone, Debug)]
pub struct Held {
    /// The document as JSON; of a hash, an object of texts.
    pub document: Vec<u8>,
    /// Version in an index.
    pub version: Option<u64>,
}

/// A sync whose both sides can be looked at.
pub struct Subject {
    pub sync: Sync,
    source: Source,
    plans: Plans,
    templates: Templates,
}

impl Subject {
    /// The caller's sync of that name; an ERROR if it is another's. `Err`: why its source cannot be read.
    pub fn of(name: &str) -> (Sync, Result<Subject, String>) {
        let sync = owned(name);
        let subject = Self::resolve(sync.clone());
        (sync, subject)
    }

    fn resolve(sync: Sync) -> Result<Subject, String> {
        let prepared = super::attempt::attempt(|| {
            // Columns must not go between being listed and being asked for.
            // SAFETY: a plain lock request, held until the transaction ends; a table that is gone is noticed after it.
            unsafe { pg_sys::LockRelationOid(sync.source, pg_sys::AccessShareLock as pg_sys::LOCKMODE) };
            as_of_now(|| {
                Source::resolve(&sync).map(|source| {
                    let plans = as_worker(&sync, || Plans::prepare(&source));
                    (source, plans)
                })
            })
        });
        let (source, plans) =
            prepared.map_err(|failed| failed.to_string())?.map_err(|unreadable| unreadable.to_string())?;
        let templates = sync.templates();
        Ok(Subject { sync, source, plans, templates })
    }

    fn naming(&self) -> Naming<'_> {
        Naming { sync: &self.sync, source: &self.source, templates: &self.templates }
    }

    /// Document id or key of an address. Calls output functions: within [`as_worker`].
    pub fn name(&self, address: &[u8]) -> Option<Named> {
        self.naming().name(address)
    }

    /// The address that an id or key stands for; None if it is none of this sync's. Calls input functions, which may raise:
    /// within [`as_worker`].
    pub fn parse(&self, called: Called) -> Option<Vec<u8>> {
        self.naming().parse(called)
    }

    /// A document of the target's listing of which [`Self::parse`] can't tell the address, if it is ours.
    pub fn orphan<'a>(&self, page: &'a IdPage, at: usize) -> Option<Orphan<'a>> {
        self.naming().orphan(page, at)
    }

    /// The rows with the keys of these addresses, each with its own address. Within [`as_worker`].
    pub fn rows(&self, addresses: &[&[u8]]) -> Vec<Row> {
        let asked: Vec<(u32, &[u8])> = addresses.iter().zip(0..).map(|(&address, slot)| (slot, address)).collect();
        let mut rows = Vec::new();
        self.plans.read_keys(&self.source, &asked, |address, document| {
            rows.push((address.to_vec(), document.to_vec()));
            true
        });
        rows
    }

    /// The documents at exactly these addresses, or at others by which they have the same name. Within [`as_worker`].
    pub fn documents(&self, addresses: &[&[u8]]) -> HashMap<Vec<u8>, Vec<u8>> {
        let rows = self.rows(addresses);
        if self.templates.period.is_none() {
            return rows.into_iter().filter(|(address, _)| addresses.contains(&address.as_slice())).collect();
        }
        let named: HashMap<Option<Named>, Vec<u8>> =
            rows.into_iter().map(|(address, document)| (self.name(&address), document)).collect();
        addresses.iter().filter_map(|&it| Some((it.to_vec(), named.get(&self.name(it))?.clone()))).collect()
    }

    /// The glob of the keys of a cache.
    pub fn glob(&self) -> String {
        self.templates.glob()
    }

    /// Both sides of the plans, for what walks through all rows.
    pub fn reading(&self) -> (&Plans, &Source) {
        (&self.plans, &self.source)
    }

    /// The target, with the owner's credentials.
    pub fn target(&self) -> Result<AnyTarget, Failure> {
        owners_target(&self.sync.server, self.sync.owner)
    }

    /// True if the target's copy says what the document says.
    pub fn same(&self, document: &[u8], held: &Held) -> bool {
        canonical::same(&self.as_held(document), &held.document)
    }

    /// The members in which the target's copy differs from the document.
    pub fn different_members(&self, document: &[u8], held: &Held) -> Vec<String> {
        canonical::different_members(&self.as_held(document), &held.document)
    }

    /// The document in the form that the target gives it back.
    fn as_held(&self, document: &[u8]) -> Vec<u8> {
        if self.sync.kind == Kind::Cache && self.sync.options["format"] == "hash" {
            return object(hash_fields(document));
        }
        document.to_vec()
    }
}

fn object(fields: Vec<(String, String)>) -> Vec<u8> {
    let fields = fields.into_iter().map(|(name, value)| (name, serde_json::Value::String(value))).collect();
    serde_json::Value::Object(fields).to_string().into_bytes()
}

/// What the target holds under these ids or keys, in their order; as of now, not as of the last refresh.
pub fn held(sync: &Sync, target: &AnyTarget, names: Vec<Named>) -> delivery::Result<Vec<Option<Held>>> {
    match target {
        AnyTarget::Engine(engine) => {
            let index = sync.concrete_index();
            let documents = engine.try_run(move |engine| {
                let which: Vec<Which> = names.iter().map(Named::which).collect();
                engine.get_many(&index, &which)
            })?;
            Ok(documents
                .into_iter()
                .map(|document| {
                    let document = document?;
                    let text = document.source.map_or_else(|| "{}".to_owned(), |source| source.get().to_owned());
                    Some(Held { document: text.into_bytes(), version: document.version })
                })
                .collect())
        }
        AnyTarget::Cache(cache) if sync.options["format"] == "hash" => {
            let hashes = cache.try_run(true, move |redis| {
                let names: Vec<&str> = names.iter().map(|key| key.name.as_str()).collect();
                redis.hashes(&names)
            })?;
            Ok(hashes
                .into_iter()
                .map(|fields| fields.map(|fields| Held { document: object(fields), version: None }))
                .collect())
        }
        AnyTarget::Cache(cache) => {
            let values = cache.try_run(true, move |redis| {
                let names: Vec<&str> = names.iter().map(|key| key.name.as_str()).collect();
                redis.mget(&names)
            })?;
            Ok(values.into_iter().map(|value| value.map(|document| Held { document, version: None })).collect())
        }
    }
}
