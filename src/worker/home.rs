//! The cluster and database that the worker ran in last: pg_upgrade is told by it.
//!
//! pg_upgrade gives the new cluster another system identifier, so that all syncs look as if they came with a dump. But it takes
//! the files of all tables along, and the OIDs of databases, while a dump has only what was declared as configuration:
//! `fanout.home` is not. Where it says that the worker ran under the other identifier in the database of this OID, the database
//! is that one, or a copy of its files. Whether another still feeds the target, the target's control document tells, as it does
//! for any copy. That it was on this machine, since it was started, is asked for because an upgrade is rehearsed on copies, and
//! elsewhere.

use super::process;
use super::transaction::{Failed, transaction};
use crate::catalog::admin::{ANEW, COMPARED, captured};
use crate::catalog::{self, identity};
use pgrx::prelude::*;

/// Makes the syncs of the cluster that this one was before pg_upgrade syncs of this one, and notes where it is now. Ends in an
/// ERROR where writers hold up the locks: then it is tried again.
pub fn settle() -> Result<(), Failed> {
    let (here, boot) = (identity(), process::boot());
    transaction(|| {
        let Some((before, was_on)) = read() else { return note(&here, boot.as_deref()) };
        if (&before, &was_on) == (&here, &boot) {
            return;
        }
        if is_upgraded(&before, &here) && boot.is_some() && was_on == boot {
            take_along(&before, &here);
        }
        note(&here, boot.as_deref());
    })
}

/// Another cluster, and the database of the same OID.
fn is_upgraded(before: &str, here: &str) -> bool {
    let (before, here) = (before.split_once('/'), here.split_once('/'));
    before.zip(here).is_some_and(|(before, here)| before.0 != here.0 && before.1 == here.1)
}

fn read() -> Option<(String, Option<String>)> {
    Spi::connect(|client| {
        let table = client.select("SELECT identity, boot FROM fanout.home", None, &[])?.first();
        Ok::<_, pgrx::spi::Error>(if table.is_empty() { None } else { Some((table.get(1)?, table.get(2)?)) })
    })
    .unwrap_or_else(|error| error!("{error}"))
    .and_then(|(identity, boot)| Some((identity?, boot)))
}

fn note(identity: &str, boot: Option<&str>) {
    let sql = "INSERT INTO fanout.home (identity, boot) VALUES ($1, $2)
        ON CONFLICT (singleton) DO UPDATE SET identity = $1, boot = $2";
    Spi::run_with_args(sql, &[identity.into(), boot.into()]).unwrap_or_else(|error| error!("{error}"));
}

fn take_along(before: &str, here: &str) {
    let syncs = catalog::all().unwrap_or_else(|error| error!("{error}"));
    let syncs: Vec<_> = syncs.into_iter().filter(|sync| sync.identity == before).collect();
    // Until now triggers have noted nothing: whoever has written by one of them must have ended before all is compared.
    for (table, ..) in captured(&syncs) {
        if let Some(table) = table {
            table.lock();
        }
    }
    let sql = format!("UPDATE fanout.sync SET identity = $2, {ANEW}, {COMPARED} WHERE identity = $1");
    Spi::run_with_args(&sql, &[before.into(), here.into()]).unwrap_or_else(|error| error!("{error}"));
    catalog::changed();
    log!("pg_fanout: {} syncs came here with pg_upgrade and go on", syncs.len());
}
