//! Images: the internal representation of an address's columns as bytes, and back.
//!
//! Text would depend on the writer's settings (DateStyle, TimeZone, extra_float_digits …), and two values that are equal
//! to an operator may still be two addresses (numeric 1.0 and 1.00, citext 'a' and 'A'). The internal representation is
//! both exact and cheap. The worker turns it back into a datum and prints that under its own, pinned settings.

use crate::journal::format::{Layout, Orphan, put_column, take_column};
use pgrx::pg_sys;
use rustc_hash::FxHasher;
use std::hash::Hasher;

/// How a column's type is stored (pg_type.typlen, typbyval).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// The column's type.
    pub type_oid: pg_sys::Oid,
    /// Bytes of a value; -1 a varlena, -2 a C string.
    pub length: i16,
    /// The datum is the value itself.
    pub by_value: bool,
}

impl Storage {
    /// How a type is stored. Within a transaction.
    pub fn of(type_oid: pg_sys::Oid) -> Self {
        let (mut length, mut by_value) = (0, false);
        // SAFETY: a catalog look-up on the main thread that fills two locals.
        unsafe { pg_sys::get_typlenbyval(type_oid, &mut length, &mut by_value) };
        Self { type_oid, length, by_value }
    }
}

/// The signature of address columns of these types, in this order.
pub fn layout(columns: impl IntoIterator<Item = Storage>) -> Layout {
    let mut hasher = FxHasher::default();
    let mut count = 0;
    for column in columns {
        hasher.write_u32(column.type_oid.to_u32());
        count += 1;
    }
    let hash = hasher.finish();
    Layout { signature: (hash ^ (hash >> 32)) as u32, columns: count }
}

/// A by-value datum as a signed number of its declared width, so that one value has one image.
fn number(datum: pg_sys::Datum, length: i16) -> i64 {
    let raw = datum.value() as i64;
    match length {
        1 => i64::from(raw as i8),
        2 => i64::from(raw as i16),
        4 => i64::from(raw as i32),
        _ => raw,
    }
}

/// Appends the image of one column's value.
///
/// # Safety
/// `datum` must be a valid value of a type stored as `storage` says, unless `null`.
#[inline]
pub unsafe fn put_datum(out: &mut Vec<u8>, storage: Storage, datum: pg_sys::Datum, null: bool) {
    if null {
        put_column(out, None);
    } else if storage.by_value {
        let number = number(datum, storage.length);
        let zigzag = ((number << 1) ^ (number >> 63)) as u64;
        let bytes = zigzag.to_le_bytes();
        put_column(out, Some(&bytes[..8 - zigzag.leading_zeros() as usize / 8]));
    } else {
        // SAFETY: the caller vouches that the datum points to a value of this storage; a varlena is detoasted first, and
        // the slice lives only until put_column has copied it.
        unsafe {
            let pointer: *mut u8 = datum.cast_mut_ptr();
            match storage.length {
                -1 => {
                    let flat = pg_sys::pg_detoast_datum_packed(pointer.cast());
                    let bytes = std::slice::from_raw_parts(
                        pgrx::varlena::vardata_any(flat).cast::<u8>(),
                        pgrx::varlena::varsize_any_exhdr(flat),
                    );
                    put_column(out, Some(bytes));
                    if flat.cast() != pointer {
                        pg_sys::pfree(flat.cast());
                    }
                }
                -2 => put_column(out, Some(std::ffi::CStr::from_ptr(pointer.cast()).to_bytes())),
                length => put_column(out, Some(std::slice::from_raw_parts(pointer, length as usize))),
            }
        }
    }
}

/// Turns one column's image back into a datum, palloc'd in the current memory context where it is by reference.
/// None if the bytes cannot be of this storage.
pub fn to_datum(storage: Storage, bytes: &[u8]) -> Option<pg_sys::Datum> {
    if storage.by_value {
        let mut word = [0u8; 8];
        word.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let zigzag = u64::from_le_bytes(word);
        let number = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
        return Some(pg_sys::Datum::from(number as usize));
    }
    let header = match storage.length {
        -1 => 4,
        -2 => 0,
        length if length as usize == bytes.len() => 0,
        _ => return None,
    };
    // SAFETY: a fresh allocation, large enough for header, bytes and a C string's terminator.
    unsafe {
        let pointer: *mut u8 = pg_sys::palloc0(header + bytes.len() + 1).cast();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer.add(header), bytes.len());
        if storage.length == -1 {
            pgrx::set_varsize_4b(pointer.cast(), (header + bytes.len()) as i32);
        }
        Some(pg_sys::Datum::from(pointer))
    }
}

/// Splits an address into the images of its columns. None if it is malformed, or stands for no row.
pub fn columns(mut address: &[u8], count: usize) -> Option<Vec<Option<&[u8]>>> {
    if Orphan::of(address).is_some() {
        return None;
    }
    let columns = (0..count).map(|_| take_column(&mut address)).collect::<Option<Vec<_>>>()?;
    address.is_empty().then_some(columns)
}
