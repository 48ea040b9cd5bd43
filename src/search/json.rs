//! `jsonb` of callers as text, in which numbers keep every digit, and what an engine sent as `jsonb`.

use super::jsonb;

use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{FromDatum, IntoDatum, direct_function_call, direct_function_call_as_datum, pg_sys};
use serde_json::value::RawValue;

/// A `jsonb` argument, as JSON text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonText(pub String);

impl FromDatum for JsonText {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _: pg_sys::Oid) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: the caller promises a jsonb datum; jsonb_out detoasts it itself.
        let text = unsafe { direct_function_call::<&core::ffi::CStr>(pg_sys::jsonb_out, &[Some(datum)]) };
        text.map(|text| JsonText(text.to_string_lossy().into_owned()))
    }
}

/// A `jsonb` result.
pub enum Jsonb {
    /// Its bytes, without the length word's value.
    Encoded(Vec<u8>),
    /// What is left to jsonb_in().
    Text(String),
}

impl Jsonb {
    /// Of what an engine sent. True if something had to be replaced that no jsonb can hold.
    pub fn of(json: &RawValue) -> (Self, bool) {
        if let Some(bytes) = jsonb::encode(json, &mut numeric) {
            return (Self::Encoded(bytes), false);
        }
        match jsonb::tamed(json.get()) {
            Some(text) => (Self::Text(text), true),
            None => (Self::Text(json.get().to_owned()), false),
        }
    }
}

impl IntoDatum for Jsonb {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        match self {
            // SAFETY: palloc gives as many bytes as asked for, or raises; the first four are the length word.
            Self::Encoded(bytes) => Some(unsafe {
                let datum: *mut u8 = pg_sys::palloc(bytes.len()).cast();
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), datum, bytes.len());
                pgrx::set_varsize_4b(datum.cast(), bytes.len() as i32);
                pg_sys::Datum::from(datum)
            }),
            Self::Text(text) => {
                let text = std::ffi::CString::new(text).ok()?;
                // SAFETY: jsonb_in takes a NUL-terminated text and copies what it needs.
                unsafe { direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(text.as_ptr().into())]) }
            }
        }
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::JSONBOID
    }
}

/// Appends what numeric_in() makes of a number; raises where it does.
fn numeric(number: &str, out: &mut Vec<u8>) {
    let Ok(text) = std::ffi::CString::new(number) else { return };
    let arguments = [Some(text.as_ptr().into()), pg_sys::InvalidOid.into_datum(), (-1_i32).into_datum()];
    // SAFETY: numeric_in takes a NUL-terminated text and gives a numeric with a length word of four bytes.
    unsafe {
        if let Some(datum) = direct_function_call_as_datum(pg_sys::numeric_in, &arguments) {
            let varlena: *mut pg_sys::varlena = datum.cast_mut_ptr();
            out.extend_from_slice(std::slice::from_raw_parts(varlena.cast(), pgrx::varsize_4b(varlena)));
            pg_sys::pfree(varlena.cast());
        }
    }
}

macro_rules! is_jsonb {
    ($rust:ty) => {
        // SAFETY: the SQL type is the one whose representation FromDatum and IntoDatum above read and make.
        unsafe impl SqlTranslatable for $rust {
            const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!($rust);
            const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
            const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("jsonb"));
            const RETURN_SQL: Result<ReturnsRef, ReturnsError> = Ok(ReturnsRef::One(SqlMappingRef::literal("jsonb")));
        }
    };
}
is_jsonb!(JsonText);
is_jsonb!(Jsonb);

// SAFETY: as FromDatum.
unsafe impl<'fcx> ArgAbi<'fcx> for JsonText {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the SQL signature says jsonb. NULL is asked for as an Option, which does not come here.
        unsafe { arg.unbox_arg_using_from_datum() }.unwrap_or_else(|| JsonText("null".to_owned()))
    }
}

// SAFETY: as IntoDatum.
unsafe impl BoxRet for Jsonb {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: a datum made for this call.
            Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
            None => fcinfo.return_null(),
        }
    }
}
