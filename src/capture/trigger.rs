//! The trigger function `fanout.capture('sync')`.
//!
//! It notes the addresses of the row, old and new, and nothing else: no SPI, no table, no network. Whatever is wrong with
//! a sync, the writer's statement goes on.

use super::image::{self, Storage};
use super::transaction;
use crate::catalog;
use crate::error::failure;
use crate::journal::format::{Layout, MAX_ADDRESS};
use pgrx::prelude::*;
use pgrx::{Spi, pg_sys};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

extension_sql!(
    r#"
CREATE FUNCTION fanout.capture() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'fanout_capture_v1';
COMMENT ON FUNCTION fanout.capture() IS
'trigger function: notes for the sync named in its argument that the row changed; AFTER INSERT OR UPDATE OR DELETE … FOR EACH ROW, and AFTER TRUNCATE … FOR EACH STATEMENT';
"#,
    name = "capture",
    requires = ["bootstrap"]
);

/// What one trigger notes.
enum Plan {
    /// The sync is gone, parked or not of this table: nothing.
    Ignore,
    /// The addresses of the row: of the sync `id`, or of its relation `id`. `sync` is reconciled where they cannot be told.
    Addresses { id: i32, sync: i32, layout: Layout, columns: Vec<(i32, Storage)>, skip_null: bool },
    /// The table cannot say its addresses (a column is gone): the whole sync.
    Reconcile { sync: i32 },
}

thread_local! {
    static PLANS: RefCell<FxHashMap<pg_sys::Oid, Rc<Plan>>> = RefCell::default();
    static STALE: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Option<(pg_sys::Oid, Rc<Plan>)>> = const { RefCell::new(None) };
    static SCRATCH: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Called for each relcache invalidation: plans are made anew before the next row.
pub fn forget_plans() {
    STALE.set(true);
}

/// Declares [`fanout_capture_v1`] to the function manager (fmgr.h, PG_FUNCTION_INFO_V1).
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_fanout_capture_v1() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// `fanout.capture()`. The symbol is frozen: catalogs of every release name it.
///
/// # Safety
/// Called by the function manager only.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn fanout_capture_v1(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: fcinfo is valid for the call; context is a TriggerData if its tag says so (CALLED_AS_TRIGGER in trigger.h),
    // and the relation, trigger and tuples in it live until we return.
    unsafe {
        let data = (*fcinfo).context.cast::<pg_sys::TriggerData>();
        if data.is_null() || (*data).type_ != pg_sys::NodeTag::T_TriggerData {
            failure(
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "fanout.capture() can only be called as a trigger",
            )
            .hint("Use it in CREATE TRIGGER … EXECUTE FUNCTION fanout.capture('sync').")
            .raise();
        }
        capture(&*data);
    }
    pg_sys::Datum::from(0)
}

unsafe fn capture(data: &pg_sys::TriggerData) {
    // SAFETY: see fanout_capture_v1; the pointers of a TriggerData are valid during the call.
    unsafe {
        let trigger = &*data.tg_trigger;
        let relation = &*data.tg_relation;
        let plan = plan(trigger, relation);
        let (id, sync, layout, columns, skip_null) = match &*plan {
            Plan::Ignore => return,
            Plan::Reconcile { sync } => return transaction::mark(*sync),
            Plan::Addresses { id, sync, layout, columns, skip_null } => (*id, *sync, *layout, columns, *skip_null),
        };
        if data.tg_event & pg_sys::TRIGGER_EVENT_ROW == 0 || crate::settings::bulk_load() {
            // TRUNCATE, or a statement trigger put there by hand: which rows is not known here. In a bulk load it is not wanted.
            return transaction::mark(sync);
        }
        SCRATCH.with_borrow_mut(|(first, second)| {
            first.clear();
            if encode(first, data.tg_trigtuple, relation.rd_att, columns) || !skip_null {
                note(id, sync, layout, first);
            }
            if data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK == pg_sys::TRIGGER_EVENT_UPDATE {
                second.clear();
                let complete = encode(second, data.tg_newtuple, relation.rd_att, columns);
                if first != second && (complete || !skip_null) {
                    note(id, sync, layout, second);
                }
            }
        });
    }
}

/// Notes one address, whatever its size: of the sync or relation `id`, and if it is too long, all of the sync.
pub fn note(id: i32, sync: i32, layout: Layout, address: &[u8]) {
    if address.len() > MAX_ADDRESS {
        transaction::mark(sync);
    } else {
        transaction::add(id, layout, address);
    }
}

/// False if a column is NULL.
unsafe fn encode(
    out: &mut Vec<u8>,
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
    columns: &[(i32, Storage)],
) -> bool {
    let mut complete = true;
    for &(number, storage) in columns {
        let mut null = false;
        // SAFETY: the tuple is of this descriptor, and plan() took number and storage from it.
        unsafe {
            let datum = pg_sys::heap_getattr(tuple, number, descriptor, &mut null);
            image::put_datum(out, storage, datum, null);
            complete &= !null;
        }
    }
    complete
}

unsafe fn plan(trigger: &pg_sys::Trigger, relation: &pg_sys::RelationData) -> Rc<Plan> {
    if STALE.replace(false) {
        LAST.take();
        PLANS.with_borrow_mut(FxHashMap::clear);
    }
    if let Some(plan) = LAST.with_borrow(|last| match last {
        Some((oid, plan)) if *oid == trigger.tgoid => Some(Rc::clone(plan)),
        _ => None,
    }) {
        return plan;
    }
    let known = PLANS.with_borrow(|plans| plans.get(&trigger.tgoid).cloned());
    let plan = known.unwrap_or_else(|| {
        // SAFETY: as in capture().
        let plan = Rc::new(unsafe { make_plan(trigger, relation) });
        PLANS.with_borrow_mut(|plans| plans.insert(trigger.tgoid, Rc::clone(&plan)));
        plan
    });
    LAST.replace(Some((trigger.tgoid, Rc::clone(&plan))));
    plan
}

unsafe fn make_plan(trigger: &pg_sys::Trigger, relation: &pg_sys::RelationData) -> Plan {
    let ignore = |why: String| {
        failure(PgSqlErrorCode::ERRCODE_WARNING, why)
            .detail("The change was written, but no sync learns of it.")
            .hint("Drop the trigger, or make the sync with fanout.index_table() or fanout.cache_table().")
            .warn();
        Plan::Ignore
    };
    // SAFETY: tgargs has tgnargs C strings; the tuple descriptor has natts attributes.
    unsafe {
        let name = std::ffi::CStr::from_ptr(trigger.tgname).to_string_lossy().into_owned();
        if !matches!(trigger.tgnargs, 1 | 2) {
            return ignore(format!("trigger \"{name}\" names no sync: fanout.capture() takes its name"));
        }
        let argument = |n: usize| std::ffi::CStr::from_ptr(*trigger.tgargs.add(n)).to_string_lossy().into_owned();
        let sync = argument(0);
        // The second argument is the number of a relation of the sync.
        let number = (trigger.tgnargs == 2).then(|| argument(1).parse().unwrap_or(0));
        let Some(captured) = catalog::captured_now(&sync, number) else {
            return ignore(match number {
                None => format!("trigger \"{name}\" names sync \"{sync}\", which does not exist"),
                Some(_) => format!("trigger \"{name}\" names a relation of sync \"{sync}\" that does not exist"),
            });
        };
        if relation.rd_id != captured.source && !descends(relation.rd_id, captured.source) {
            return ignore(format!("trigger \"{name}\" names sync \"{sync}\", which has another source"));
        }
        if captured.identity != catalog::identity() {
            // Parked: adopting it reconciles anyway, and until then nobody would empty the journal.
            return Plan::Ignore;
        }
        let mut columns = Vec::new();
        let descriptor = pgrx::PgTupleDesc::from_pg_copy(relation.rd_att);
        for column in &captured.columns {
            let found = descriptor.iter().find(|attribute| {
                !attribute.attisdropped
                    && std::ffi::CStr::from_ptr(attribute.attname.data.as_ptr()).to_bytes() == column.as_bytes()
            });
            match found {
                None => return Plan::Reconcile { sync: captured.sync },
                Some(attribute) => columns.push((
                    i32::from(attribute.attnum),
                    Storage { type_oid: attribute.atttypid, length: attribute.attlen, by_value: attribute.attbyval },
                )),
            }
        }
        let layout = image::layout(columns.iter().map(|&(_, storage)| storage));
        // A row of a related table that refers to nothing belongs to no document.
        let skip_null = number.is_some() && captured.id == captured.sync;
        Plan::Addresses { id: captured.id, sync: captured.sync, layout, columns, skip_null }
    }
}

/// True if `relation` is a partition or an inheritance child of `source`, at any depth.
fn descends(relation: pg_sys::Oid, source: pg_sys::Oid) -> bool {
    let sql = "WITH RECURSIVE up(relid) AS (\
            SELECT inhparent FROM pg_catalog.pg_inherits WHERE inhrelid OPERATOR(pg_catalog.=) $1 \
            UNION SELECT i.inhparent FROM pg_catalog.pg_inherits i, up WHERE i.inhrelid OPERATOR(pg_catalog.=) up.relid) \
        SELECT pg_catalog.bool_or(relid OPERATOR(pg_catalog.=) $2) FROM up";
    catalog::acting::privileged(|| {
        Spi::connect(|client| client.select(sql, None, &[relation.into(), source.into()])?.first().get_one::<bool>())
    })
    .ok()
    .flatten()
    .unwrap_or(false)
}
