//! Reading rows as documents, through SPI.
//!
//! Raw SPI rather than pgrx's: rows come by the thousand, and a document is made of a row straight from the executor.

use super::encode::Encoder;
use super::source::{Repeats, Source, Unreadable};
use super::statements::{Form, Statement};
use crate::capture::image::{self, Storage};
use crate::catalog::key::type_name;
use crate::catalog::{Relation, Sync};
use crate::error::failure;
use crate::journal::format::Layout;
use pgrx::pg_sys;
use pgrx::prelude::*;
use rustc_hash::FxHashSet;
use std::ffi::CString;

/// What is done with each row, its address and its document; false: no more are wanted.
type Visit<'a> = dyn FnMut(&[u8], Option<&[u8]>) -> bool + 'a;

unsafe extern "C-unwind" {
    // Not in pgrx's bindings; catalog/pg_inherits.h.
    fn find_all_inheritors(
        parent: pg_sys::Oid,
        lock: pg_sys::LOCKMODE,
        parents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
}

/// A prepared statement; freed when dropped.
struct Plan {
    plan: pg_sys::SPIPlanPtr,
    form: Form,
    /// The tables that it reads, and what is below them. Not those that are read inside of functions.
    reads: Vec<pg_sys::Oid>,
}

impl Plan {
    /// Parses a statement that yields addresses of these types, and a document.
    fn prepare(Statement { sql, form }: &Statement, types: &[pg_sys::Oid], addresses: &[Storage]) -> Self {
        let _session = Session::open();
        // SAFETY: sql and types live for the call; a plan has one source for each statement; the kept plan belongs to us.
        unsafe {
            let plan = pg_sys::SPI_prepare(sql.as_ptr(), types.len() as i32, types.as_ptr().cast_mut());
            if plan.is_null() {
                let result = pg_sys::SPI_result;
                pgrx::error!("cannot prepare a statement of pg_fanout: SPI result {result}");
            }
            let sources = pg_sys::SPI_plan_get_plan_sources(plan);
            let parsed = (*(*sources).elements).ptr_value.cast::<pg_sys::CachedPlanSource>();
            check_yield((*parsed).resultDesc, addresses, PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH);
            let mut reads = Vec::new();
            for relation in oids((*parsed).relationOids) {
                reads.extend(oids(find_all_inheritors(relation, 0, std::ptr::null_mut())));
            }
            pg_sys::SPI_keepplan(plan);
            Self { plan, form: *form, reads }
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: a kept plan, freed once.
            unsafe {
                pg_sys::SPI_freeplan(self.plan);
            }
        }
    }
}

/// The members of a list of OIDs; none of a null one.
unsafe fn oids(list: *mut pg_sys::List) -> Vec<pg_sys::Oid> {
    // SAFETY: a list of OIDs has as many elements as it says.
    unsafe {
        if list.is_null() {
            return Vec::new();
        }
        (0..(*list).length as usize).map(|at| (*(*list).elements.add(at)).oid_value).collect()
    }
}

/// Prepared statements of a source, planned as its owner.
pub struct Plans {
    by_key: Plan,
    by_block: Option<Plan>,
    addresses_by_block: Plan,
}

/// An SPI session; ended when dropped, by the abort if an error unwinds.
struct Session;

impl Session {
    fn open() -> Self {
        // SAFETY: within a transaction.
        unsafe { pg_sys::SPI_connect() };
        Self
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: connected in open().
            unsafe { pg_sys::SPI_finish() };
        }
    }
}

impl Plans {
    /// Parses the statements of a source. Call it as the sync's owner: names are resolved and rights checked as such.
    pub fn prepare(source: &Source) -> Self {
        let blocks = [pg_sys::TIDOID, pg_sys::TIDOID];
        let statements = &source.statements;
        Self {
            by_key: Plan::prepare(&statements.by_key, &source.key_arrays, &source.storages),
            by_block: statements.by_block.as_ref().map(|sql| Plan::prepare(sql, &blocks, &source.storages)),
            addresses_by_block: Plan::prepare(&statements.addresses_by_block, &blocks, &source.storages),
        }
    }

    /// The tables that documents are made from, and what is below them; not those that are read inside of functions.
    pub fn reads(&self) -> &[pg_sys::Oid] {
        &self.by_key.reads
    }

    /// Reads the rows at these addresses and calls `visit` with each row's own address and its document, until it says that it
    /// wants no more.
    ///
    /// A row may come whose address is not among those asked for (equal to an operator, not in its bytes): the caller
    /// compares. Gives the slots whose address is not of the source's layout: nothing was asked for them.
    pub fn read_keys(
        &self,
        source: &Source,
        addresses: &[(u32, &[u8])],
        mut visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Vec<u32> {
        let (arrays, malformed) = arrays(addresses, &source.storages, source.keys, None);
        execute(&self.by_key, &arrays, &source.key_arrays, source, &mut |address, document| {
            document.is_none_or(|document| visit(address, document))
        });
        malformed
    }

    /// Reads the rows in blocks `from..to` of the source and of each of its partitions. Gives how many there are.
    pub fn read_blocks(&self, source: &Source, from: u32, to: u32, mut visit: impl FnMut(&[u8], &[u8])) -> usize {
        let Some(by_block) = &self.by_block else {
            // Of the rows in these blocks, by their keys: there may be two for one of them, in whichever blocks.
            let mut addresses: Vec<Vec<u8>> = Vec::new();
            let rows = execute_on_blocks(&self.addresses_by_block, source, from, to, &mut |address, _| {
                addresses.push(address.to_vec());
                true
            });
            addresses.sort_unstable();
            addresses.dedup();
            let asked: Vec<(u32, &[u8])> = addresses.iter().map(|address| (0, address.as_slice())).collect();
            let mut seen: FxHashSet<Vec<u8>> = FxHashSet::default();
            self.read_keys(source, &asked, |address, document| {
                // A query may yield a key that only equals that of the row: nothing would ever delete such a document.
                if addresses.binary_search_by(|known| known.as_slice().cmp(address)).is_err() {
                    return true;
                }
                if !seen.insert(address.to_vec()) {
                    twice(source);
                }
                visit(address, document);
                true
            });
            return rows;
        };
        execute_on_blocks(by_block, source, from, to, &mut |address, document| {
            if let Some(document) = document {
                visit(address, document);
            }
            true
        })
    }

    /// Reads only the addresses of the rows in one block.
    pub fn read_addresses(&self, source: &Source, block: u32, mut visit: impl FnMut(&[u8])) -> usize {
        execute_on_blocks(&self.addresses_by_block, source, block, block + 1, &mut |address, _| {
            visit(address);
            true
        })
    }
}

/// A relation's statement, planned as the sync's owner.
pub struct Related {
    plan: Plan,
    storages: Vec<Storage>,
    arrays: Vec<pg_sys::Oid>,
    /// Which columns go as text.
    as_text: Vec<bool>,
    /// Layout of the changed rows' columns.
    pub layout: Layout,
}

impl Related {
    /// Looks the relation's columns up and parses its statement. Within a transaction, as the sync's owner.
    pub fn prepare(sync: &Sync, source: &Source, relation: &Relation) -> Result<Self, Unreadable> {
        let mut storages = Vec::new();
        let mut types = Vec::new();
        let mut casts = Vec::new();
        for column in &relation.columns {
            let gone = || Unreadable::Related(relation.source_name(), column.clone());
            let name = CString::new(column.as_str()).map_err(|_| gone())?;
            // SAFETY: catalog look-ups within a transaction, which answer 0 for what is gone.
            unsafe {
                let number = pg_sys::get_attnum(relation.source, name.as_ptr());
                if number <= 0 {
                    return Err(gone());
                }
                let type_oid = pg_sys::get_atttype(relation.source, number);
                storages.push(Storage::of(type_oid));
                // Of some types there are no arrays, above all of arrays: their values go as text.
                let array = pg_sys::get_array_type(type_oid);
                casts.push((array == pg_sys::InvalidOid).then(|| {
                    super::source::name(pg_sys::format_type_extended(
                        type_oid,
                        -1,
                        pg_sys::FORMAT_TYPE_FORCE_QUALIFY as u16,
                    ))
                }));
                types.push(if array == pg_sys::InvalidOid { pg_sys::TEXTARRAYOID } else { array });
            }
        }
        let sql = super::statements::related(
            sync,
            &source.statements.table,
            &source.key,
            &relation.columns,
            &casts,
            relation.keys.as_deref(),
        );
        let plan = Plan::prepare(&sql, &types, &source.storages);
        let as_text = casts.iter().map(Option::is_some).collect();
        Ok(Self { plan, layout: image::layout(storages.iter().copied()), storages, arrays: types, as_text })
    }

    /// The tables that are read for that, and what is below them.
    pub fn reads(&self) -> &[pg_sys::Oid] {
        &self.plan.reads
    }

    /// Reads the addresses of the rows whose documents the changed rows belong to, until `visit` wants no more.
    ///
    /// False if a changed row is not of the relation's layout.
    pub fn read(&self, source: &Source, changed: &[&[u8]], mut visit: impl FnMut(&[u8]) -> bool) -> bool {
        let asked: Vec<(u32, &[u8])> = changed.iter().map(|address| (0, *address)).collect();
        let (arrays, malformed) = arrays(&asked, &self.storages, self.storages.len(), Some(&self.as_text));
        if malformed.is_empty() {
            execute(&self.plan, &arrays, &self.arrays, source, &mut |address, _| visit(address));
        }
        malformed.is_empty()
    }
}

/// Raises unless the first columns are of these types: a datum taken for another type may point anywhere.
///
/// A table's or view's columns may have other types than when the sync's source was resolved, and so may the address
/// columns that a query makes up.
unsafe fn check_yield(descriptor: pg_sys::TupleDesc, addresses: &[Storage], code: PgSqlErrorCode) {
    for (number, storage) in (1..).zip(addresses) {
        // SAFETY: the caller has a descriptor, or null; which columns it has is looked up in it.
        let found = unsafe {
            if descriptor.is_null() { pg_sys::InvalidOid } else { pg_sys::SPI_gettypeid(descriptor, number) }
        };
        if found != storage.type_oid {
            failure(
                code,
                format!(
                    "column {number} of the key is read as {}, but in the source it is {}",
                    type_name(found),
                    type_name(storage.type_oid)
                ),
            )
            .hint("A document query has to yield the key as the source has it: drop the sync and make it anew.")
            .raise();
        }
    }
}

/// Two rows for one document: which of them it is would be a matter of luck.
pub fn twice(source: &Source) -> ! {
    let (message, hint) = match source.repeats {
        Some(Repeats::Inheritance) => (
            "two of the tables that inherit from each other hold a row of this key",
            "Keep the key unique over all of them, or choose the table by a predicate such as tableoid = 'product'::regclass.",
        ),
        _ => {
            ("the document query yields two rows for one key", "Aggregate, or join only what there is at most one of.")
        }
    };
    failure(PgSqlErrorCode::ERRCODE_CARDINALITY_VIOLATION, message).hint(hint).raise()
}

/// Values of a column, and which of them are NULL.
type Values = (Vec<pg_sys::Datum>, Vec<bool>);

/// The columns of addresses as arrays, one for each of the first `count`. A column that is NULL matches no key: such an address
/// is left out. For a relation it is said which columns go as text; there a NULL is a value as any other. Also gives the slots
/// whose address is not of these storages.
fn arrays(
    addresses: &[(u32, &[u8])],
    storages: &[Storage],
    count: usize,
    relation: Option<&[bool]>,
) -> (Vec<pg_sys::Datum>, Vec<u32>) {
    let mut malformed = Vec::new();
    let mut columns: Vec<Values> = vec![Default::default(); count];
    'addresses: for &(slot, address) in addresses {
        let Some(images) = image::columns(address, storages.len()) else {
            malformed.push(slot);
            continue;
        };
        if relation.is_none() && images[..count].iter().any(Option::is_none) {
            continue;
        }
        let mut row = Vec::with_capacity(count);
        for (bytes, &storage) in images[..count].iter().zip(storages) {
            match bytes {
                None => row.push(None),
                Some(bytes) => match image::to_datum(storage, bytes) {
                    Some(datum) => row.push(Some(datum)),
                    None => {
                        malformed.push(slot);
                        continue 'addresses;
                    }
                },
            }
        }
        for ((datums, nulls), datum) in columns.iter_mut().zip(row) {
            nulls.push(datum.is_none());
            datums.push(datum.unwrap_or_else(pg_sys::Datum::null));
        }
    }
    let array = |(number, ((mut datums, mut nulls), &storage)): (usize, (Values, &Storage))| {
        let mut type_oid = storage.type_oid;
        if relation.is_some_and(|as_text| as_text[number]) {
            let (mut function, mut varlena) = (pg_sys::InvalidOid, false);
            // SAFETY: the output function is that of the datums' type, and gives a C string.
            unsafe {
                pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut varlena);
                for (datum, _) in datums.iter_mut().zip(&nulls).filter(|&(_, &null)| !null) {
                    *datum = pg_sys::cstring_to_text(pg_sys::OidOutputFunctionCall(function, *datum)).into();
                }
            }
            type_oid = pg_sys::TEXTOID;
        }
        let (mut length, mut by_value, mut align) = (0, false, 0);
        let (mut size, mut lower) = (datums.len() as i32, 1);
        // SAFETY: the datums are of this type; its alignment is looked up beside them; one dimension, as many flags as datums.
        unsafe {
            pg_sys::get_typlenbyvalalign(type_oid, &mut length, &mut by_value, &mut align);
            pg_sys::Datum::from(pg_sys::construct_md_array(
                datums.as_mut_ptr(),
                nulls.as_mut_ptr(),
                1,
                &mut size,
                &mut lower,
                type_oid,
                length.into(),
                by_value,
                align,
            ))
        }
    };
    (columns.into_iter().zip(storages).enumerate().map(array).collect(), malformed)
}

fn execute_on_blocks(plan: &Plan, source: &Source, from: u32, to: u32, visit: &mut Visit) -> usize {
    let mut bounds = [from, to].map(|block| {
        let mut tid = Box::new(pg_sys::ItemPointerData::default());
        pgrx::itemptr::item_pointer_set_all(&mut tid, block, 0);
        tid
    });
    let arguments = [pg_sys::Datum::from(&raw mut *bounds[0]), pg_sys::Datum::from(&raw mut *bounds[1])];
    execute(plan, &arguments, &[pg_sys::TIDOID, pg_sys::TIDOID], source, visit)
}

/// Takes rows from the executor, one at a time: rows may be of any size, and no two are held at once.
#[repr(C)]
struct Receiver<'a> {
    base: pg_sys::DestReceiver,
    source: &'a Source,
    form: Form,
    visit: &'a mut Visit<'a>,
    /// Made when it is told what the rows look like.
    encoder: Option<Encoder>,
    address: Vec<u8>,
    rows: usize,
    /// Emptied after each row.
    context: pg_sys::MemoryContext,
}

#[pg_guard]
unsafe extern "C-unwind" fn receive(slot: *mut pg_sys::TupleTableSlot, receiver: *mut pg_sys::DestReceiver) -> bool {
    // SAFETY: `receiver` is the Receiver that execute() passed, and nobody else uses it during the execution; the slot has the
    // columns that start_up() was told of, valid for this call; what is allocated is of no use after it.
    unsafe {
        let receiver = &mut *receiver.cast::<Receiver>();
        let before = pg_sys::MemoryContextSwitchTo(receiver.context);
        let storages = &receiver.source.storages;
        pg_sys::slot_getallattrs(slot);
        let value = |column: usize| (*(*slot).tts_values.add(column), *(*slot).tts_isnull.add(column));
        receiver.address.clear();
        for (column, &storage) in storages.iter().enumerate() {
            let (datum, null) = value(column);
            image::put_datum(&mut receiver.address, storage, datum, null);
        }
        let document = receiver.encoder.as_mut().and_then(|encoder| encoder.encode(slot));
        receiver.rows += 1;
        let more = (receiver.visit)(&receiver.address, document);
        pg_sys::MemoryContextSwitchTo(before);
        pg_sys::MemoryContextReset(receiver.context);
        more
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn start_up(receiver: *mut pg_sys::DestReceiver, _operation: i32, rows: pg_sys::TupleDesc) {
    // SAFETY: `receiver` is the Receiver that execute() passed; the current context lives as long as the execution.
    unsafe {
        let receiver = &mut *receiver.cast::<Receiver>();
        let storages = &receiver.source.storages;
        // The plan may have been made anew just now; then the source will be, too.
        check_yield(rows, storages, PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE);
        receiver.encoder = Some(Encoder::of(rows, storages.len(), receiver.form));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn nothing(_self: *mut pg_sys::DestReceiver) {}

/// Runs a plan and visits its rows until `visit` says that it wants no more. Gives how many it has seen.
fn execute(
    plan: &Plan,
    arguments: &[pg_sys::Datum],
    types: &[pg_sys::Oid],
    source: &Source,
    visit: &mut Visit,
) -> usize {
    let _session = Session::open();
    // SAFETY: the plan was prepared with parameters of these types. The receiver outlives the execution. Its context goes with
    // that of the session.
    unsafe {
        let parameters = pg_sys::makeParamList(arguments.len() as i32);
        let places = (*parameters).params.as_mut_ptr();
        for (number, (&value, &ptype)) in arguments.iter().zip(types).enumerate() {
            let pflags = pg_sys::PARAM_FLAG_CONST as u16;
            *places.add(number) = pg_sys::ParamExternData { value, isnull: false, pflags, ptype };
        }
        let context = pg_sys::AllocSetContextCreateExtended(
            pg_sys::CurrentMemoryContext,
            c"pg_fanout row".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        );
        let mut receiver = Receiver {
            base: pg_sys::DestReceiver {
                receiveSlot: Some(receive),
                rStartup: Some(start_up),
                rShutdown: Some(nothing),
                rDestroy: Some(nothing),
                // Not DestNone, with which SPI takes the rows for discarded.
                mydest: pg_sys::CommandDest::DestTuplestore,
            },
            source,
            form: plan.form,
            visit,
            encoder: None,
            address: Vec::new(),
            rows: 0,
            context,
        };
        let options = pg_sys::SPIExecuteOptions {
            params: parameters,
            read_only: true,
            dest: (&raw mut receiver).cast(),
            ..Default::default()
        };
        let result = pg_sys::SPI_execute_plan_extended(plan.plan, &options);
        if result != pg_sys::SPI_OK_SELECT as i32 {
            pgrx::error!("a statement of pg_fanout did not run: SPI result {result}");
        }
        receiver.rows
    }
}
