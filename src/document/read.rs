//! Reading rows as documents, through SPI.
//!
//! Raw SPI rather than pgrx's: rows come by the thousand, and a document is handed on as the bytes that row_to_json made.

use super::source::Source;
use crate::capture::image;
use pgrx::pg_sys;
use std::ffi::CStr;

/// Prepared statements of a source, planned as its owner; freed when dropped.
pub struct Plans {
    by_key: pg_sys::SPIPlanPtr,
    by_block: pg_sys::SPIPlanPtr,
    addresses_by_block: pg_sys::SPIPlanPtr,
}

impl Drop for Plans {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: kept plans, freed once.
            unsafe {
                pg_sys::SPI_freeplan(self.by_key);
                pg_sys::SPI_freeplan(self.by_block);
                pg_sys::SPI_freeplan(self.addresses_by_block);
            }
        }
    }
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
        let _session = Session::open();
        let prepare = |sql: &CStr, types: &[pg_sys::Oid]| {
            // SAFETY: sql and types live for the call; the kept plan belongs to us.
            unsafe {
                let plan = pg_sys::SPI_prepare(sql.as_ptr(), types.len() as i32, types.as_ptr().cast_mut());
                if plan.is_null() {
                    let result = pg_sys::SPI_result;
                    pgrx::error!("cannot prepare a statement of pg_fanout: SPI result {result}");
                }
                pg_sys::SPI_keepplan(plan);
                plan
            }
        };
        Self {
            by_key: prepare(&source.by_key, &source.key_arrays),
            by_block: prepare(&source.by_block, &[pg_sys::TIDOID, pg_sys::TIDOID]),
            addresses_by_block: prepare(&source.addresses_by_block, &[pg_sys::TIDOID, pg_sys::TIDOID]),
        }
    }

    /// Reads the rows at these addresses and calls `visit` with each row's own address and its document.
    ///
    /// A row may come whose address is not among those asked for (equal to an operator, not in its bytes): the caller
    /// compares. Gives the slots whose address is not of the source's layout: nothing was asked for them.
    pub fn read_keys(
        &self,
        source: &Source,
        addresses: &[(u32, &[u8])],
        mut visit: impl FnMut(&[u8], &[u8]),
    ) -> Vec<u32> {
        let mut malformed = Vec::new();
        let mut columns: Vec<Vec<pg_sys::Datum>> = vec![Vec::new(); source.keys];
        for &(slot, address) in addresses {
            let Some(images) = image::columns(address, source.storages.len()) else {
                malformed.push(slot);
                continue;
            };
            // A key column that is NULL matches no row.
            if images[..source.keys].iter().any(Option::is_none) {
                continue;
            }
            let datums: Option<Vec<pg_sys::Datum>> = images[..source.keys]
                .iter()
                .zip(&source.storages)
                .map(|(bytes, &storage)| image::to_datum(storage, (*bytes)?))
                .collect();
            match datums {
                None => malformed.push(slot),
                Some(datums) => columns.iter_mut().zip(datums).for_each(|(column, datum)| column.push(datum)),
            }
        }
        let mut arrays: Vec<pg_sys::Datum> = Vec::with_capacity(columns.len());
        for (column, &storage) in columns.iter_mut().zip(&source.storages) {
            // SAFETY: the datums are of this type; its alignment is looked up beside them.
            unsafe {
                let (mut length, mut by_value, mut align) = (0, false, 0);
                pg_sys::get_typlenbyvalalign(storage.type_oid, &mut length, &mut by_value, &mut align);
                let array = pg_sys::construct_array(
                    column.as_mut_ptr(),
                    column.len() as i32,
                    storage.type_oid,
                    length.into(),
                    by_value,
                    align,
                );
                arrays.push(pg_sys::Datum::from(array));
            }
        }
        execute(self.by_key, &mut arrays, source, |address, document| {
            if let Some(document) = document {
                visit(address, document);
            }
        });
        malformed
    }

    /// Reads the rows in blocks `from..to` of the source and of each of its partitions.
    pub fn read_blocks(&self, source: &Source, from: u32, to: u32, mut visit: impl FnMut(&[u8], &[u8])) -> usize {
        execute_on_blocks(self.by_block, source, from, to, |address, document| {
            if let Some(document) = document {
                visit(address, document);
            }
        })
    }

    /// Reads only the addresses of the rows in one block.
    pub fn read_addresses(&self, source: &Source, block: u32, mut visit: impl FnMut(&[u8])) -> usize {
        execute_on_blocks(self.addresses_by_block, source, block, block + 1, |address, _| visit(address))
    }
}

fn execute_on_blocks(
    plan: pg_sys::SPIPlanPtr,
    source: &Source,
    from: u32,
    to: u32,
    visit: impl FnMut(&[u8], Option<&[u8]>),
) -> usize {
    let mut bounds = [from, to].map(|block| {
        let mut tid = Box::new(pg_sys::ItemPointerData::default());
        pgrx::itemptr::item_pointer_set_all(&mut tid, block, 0);
        tid
    });
    let mut arguments = [pg_sys::Datum::from(&raw mut *bounds[0]), pg_sys::Datum::from(&raw mut *bounds[1])];
    execute(plan, &mut arguments, source, visit)
}

fn execute(
    plan: pg_sys::SPIPlanPtr,
    arguments: &mut [pg_sys::Datum],
    source: &Source,
    mut visit: impl FnMut(&[u8], Option<&[u8]>),
) -> usize {
    let _session = Session::open();
    // SAFETY: the plan was prepared with as many parameters; the tuple table lives until the session ends, and each
    // tuple has the address columns and then a json value.
    unsafe {
        let result = pg_sys::SPI_execute_plan(plan, arguments.as_mut_ptr(), std::ptr::null(), true, 0);
        if result != pg_sys::SPI_OK_SELECT as i32 {
            pgrx::error!("a statement of pg_fanout did not run: SPI result {result}");
        }
        let table = &*pg_sys::SPI_tuptable;
        let count = pg_sys::SPI_processed as usize;
        let mut address = Vec::new();
        for row in 0..count {
            let tuple = *table.vals.add(row);
            address.clear();
            for (column, &storage) in source.storages.iter().enumerate() {
                let mut null = false;
                let datum = pg_sys::heap_getattr(tuple, column as i32 + 1, table.tupdesc, &mut null);
                image::put_datum(&mut address, storage, datum, null);
            }
            let mut null = false;
            let datum = pg_sys::heap_getattr(tuple, source.storages.len() as i32 + 1, table.tupdesc, &mut null);
            if null {
                visit(&address, None);
                continue;
            }
            let original: *mut pg_sys::varlena = datum.cast_mut_ptr();
            let json = pg_sys::pg_detoast_datum_packed(original);
            let document = std::slice::from_raw_parts(
                pgrx::varlena::vardata_any(json).cast::<u8>(),
                pgrx::varlena::varsize_any_exhdr(json),
            );
            visit(&address, Some(document));
            if json != original {
                pg_sys::pfree(json.cast());
            }
        }
        count
    }
}
