//! A row as a JSON document, byte for byte as `row_to_json()` prints it (json.c), which looks each column's type up for each
//! row, takes the row apart column by column, and escapes text a byte at a time.
//!
//! What is common is printed here; a value of any other type is what `to_json()` says, so that casts to json, composite types
//! and the like come out as ever.

use super::source::{name, valid};
use super::statements::Form;
use crate::error::failure;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::ffi::CStr;

/// The size of the largest document, that of the largest value in PostgreSQL (MaxAllocSize of memutils.h).
const MOST: usize = 0x3fff_ffff;

/// How the columns after the address become a document.
pub struct Encoder {
    /// How many columns the address has.
    addresses: usize,
    /// None: one column is the document.
    fields: Option<Vec<Field>>,
    /// The document of the row that was encoded last.
    text: Vec<u8>,
}

struct Field {
    /// What stands before the value: a comma but for the first, the name, and a colon.
    before: Vec<u8>,
    kind: Kind,
}

/// How a value is printed, by its type or by what its domain is over.
enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    /// The text of the type's output function, unless that is no number: NaN and the infinities are strings.
    Number(pg_sys::FmgrInfo),
    Text,
    /// An array of texts.
    Texts(pg_sys::FmgrInfo),
    /// A string of what the type's output function says.
    Printed(pg_sys::FmgrInfo),
    /// A date or a time with one, in ISO 8601; this type.
    Moment(pg_sys::Oid),
    Json,
    /// The text of the type's output function is JSON.
    Jsonb(pg_sys::FmgrInfo),
    /// What `to_json()` says.
    Other(pg_sys::FmgrInfo),
}

impl Encoder {
    /// For rows of these columns: an address, and what the form says. What it looks up lives as long as the current context.
    ///
    /// # Safety
    /// On the main thread, within a transaction; `rows` is a descriptor.
    pub unsafe fn of(rows: pg_sys::TupleDesc, addresses: usize, form: Form) -> Self {
        // SAFETY: as the caller promises; the numbers are those of columns that there are, from 1; names are palloc'd.
        unsafe {
            let (first, last) = (addresses as i32 + 1, (*rows).natts);
            let field = |number| {
                let mut before = if number == first { Vec::new() } else { b",".to_vec() };
                push_string(&mut before, &name(pg_sys::SPI_fname(rows, number)));
                before.push(b':');
                Field { before, kind: Kind::of(pg_sys::SPI_gettypeid(rows, number)) }
            };
            let fields = match form {
                Form::Fields => Some((first..=last).map(field).collect()),
                Form::Whole if first == last && pg_sys::SPI_gettypeid(rows, last) == pg_sys::JSONOID => None,
                Form::Whole => pgrx::error!("a statement of pg_fanout yields no document"),
            };
            Self { addresses, fields, text: Vec::new() }
        }
    }

    /// The document of a row; None if there is none. Raises for text that is not UTF-8, and for a document that is too large.
    ///
    /// # Safety
    /// On the main thread; the slot holds all columns of a row of the descriptor that this was made for. What is allocated is left
    /// to the current context, and the document is good only as long as that and the slot.
    pub unsafe fn encode(&mut self, slot: *mut pg_sys::TupleTableSlot) -> Option<&[u8]> {
        // SAFETY: as the caller promises.
        let value = |column: usize| unsafe {
            let column = self.addresses + column;
            (!*(*slot).tts_isnull.add(column)).then(|| *(*slot).tts_values.add(column))
        };
        let Some(fields) = &mut self.fields else {
            // SAFETY: it was looked that this is json.
            return value(0).map(|datum| valid(unsafe { bytes(datum) }).as_bytes());
        };
        let text = &mut self.text;
        text.clear();
        text.push(b'{');
        for (column, field) in fields.iter_mut().enumerate() {
            text.extend_from_slice(&field.before);
            match value(column) {
                // SAFETY: a value of the column's type.
                Some(datum) => unsafe { field.kind.push(text, datum) },
                None => text.extend_from_slice(b"null"),
            }
            check_size(text, 0);
        }
        text.push(b'}');
        Some(text)
    }
}

/// Raises if a document is larger than any value of PostgreSQL, as row_to_json() would; `more` is what is to be added. Beyond it, memory
/// could give out, which Rust ends the process for.
fn check_size(text: &[u8], more: usize) {
    if text.len() + more > MOST {
        failure(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, "the document is larger than 1 GB")
            .hint("Leave out what is not searched: columns => '{id,name}'.")
            .raise();
    }
}

impl Kind {
    /// # Safety
    /// On the main thread, within a transaction; the type exists.
    unsafe fn of(type_oid: pg_sys::Oid) -> Self {
        // SAFETY: as the caller promises; the functions are those of types that are built in.
        unsafe {
            match pg_sys::getBaseType(type_oid) {
                pg_sys::BOOLOID => Self::Bool,
                pg_sys::INT2OID => Self::Int2,
                pg_sys::INT4OID => Self::Int4,
                pg_sys::INT8OID => Self::Int8,
                base @ (pg_sys::NUMERICOID | pg_sys::FLOAT4OID | pg_sys::FLOAT8OID) => Self::Number(output(base)),
                pg_sys::TEXTOID | pg_sys::VARCHAROID => Self::Text,
                pg_sys::TEXTARRAYOID | pg_sys::VARCHARARRAYOID => Self::Texts(to_json(type_oid)),
                base @ (pg_sys::UUIDOID | pg_sys::BPCHAROID) => Self::Printed(output(base)),
                base @ (pg_sys::DATEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID) => Self::Moment(base),
                pg_sys::JSONOID => Self::Json,
                base @ pg_sys::JSONBOID => Self::Jsonb(output(base)),
                _ => Self::Other(to_json(type_oid)),
            }
        }
    }

    /// # Safety
    /// As for [`Encoder::encode`]; the datum is of the type that this was made for.
    unsafe fn push(&mut self, out: &mut Vec<u8>, datum: pg_sys::Datum) {
        // SAFETY: as the caller promises.
        unsafe {
            match self {
                Self::Bool => out.extend_from_slice(if datum.value() as u8 == 0 { b"false" } else { b"true" }),
                Self::Int2 => push_int(out, (datum.value() as i16).into()),
                Self::Int4 => push_int(out, (datum.value() as i32).into()),
                Self::Int8 => push_int(out, datum.value() as i64),
                Self::Number(output) => match printed(output, datum) {
                    number @ ([b'0'..=b'9', ..] | [b'-', b'0'..=b'9', ..]) => out.extend_from_slice(number),
                    other => push_string(out, valid(other)),
                },
                Self::Text => {
                    let text = bytes(datum);
                    check_size(out, text.len());
                    push_string(out, valid(text));
                }
                Self::Texts(to_json) => {
                    if !push_texts(out, datum) {
                        push_call(out, to_json, datum);
                    }
                }
                Self::Printed(output) => push_string(out, valid(printed(output, datum))),
                Self::Moment(type_oid) => {
                    // MAXDATELEN of datetime.h, and a byte.
                    let mut text = [0; 129];
                    pg_sys::JsonEncodeDateTime(text.as_mut_ptr(), datum, *type_oid, std::ptr::null());
                    out.push(b'"');
                    out.extend_from_slice(CStr::from_ptr(text.as_ptr()).to_bytes());
                    out.push(b'"');
                }
                Self::Json => out.extend_from_slice(valid(bytes(datum)).as_bytes()),
                Self::Jsonb(output) => out.extend_from_slice(valid(printed(output, datum)).as_bytes()),
                Self::Other(to_json) => push_call(out, to_json, datum),
            }
        }
    }
}

/// A type's output function.
unsafe fn output(type_oid: pg_sys::Oid) -> pg_sys::FmgrInfo {
    let (mut function, mut varlena) = (pg_sys::InvalidOid, false);
    let mut info = pg_sys::FmgrInfo::default();
    // SAFETY: catalog look-ups on the main thread that fill locals; the type is built in.
    unsafe {
        pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut varlena);
        pg_sys::fmgr_info(function, &mut info);
    }
    info
}

/// `to_json()` for an argument of that type, which it learns from the expression that calls it.
unsafe fn to_json(type_oid: pg_sys::Oid) -> pg_sys::FmgrInfo {
    let function = pg_sys::Oid::from(pg_sys::F_TO_JSON);
    let (none, explicit) = (pg_sys::InvalidOid, pg_sys::CoercionForm::COERCE_EXPLICIT_CALL);
    let mut info = pg_sys::FmgrInfo::default();
    // SAFETY: nodes of the current context, on the main thread.
    unsafe {
        let argument = pg_sys::makeNullConst(type_oid, -1, none);
        let arguments = pg_sys::lappend(std::ptr::null_mut(), argument.cast());
        let call = pg_sys::makeFuncExpr(function, pg_sys::JSONOID, arguments, none, none, explicit);
        pg_sys::fmgr_info(function, &mut info);
        info.fn_expr = call.cast();
    }
    info
}

/// What an output function says.
unsafe fn printed<'a>(output: &mut pg_sys::FmgrInfo, datum: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: the function is that of the datum's type, and gives a C string of the current context.
    unsafe { CStr::from_ptr(pg_sys::OutputFunctionCall(output, datum)).to_bytes() }
}

/// Appends what `to_json()` says.
unsafe fn push_call(out: &mut Vec<u8>, to_json: &mut pg_sys::FmgrInfo, datum: pg_sys::Datum) {
    // SAFETY: made for the datum's type; gives json.
    let json = unsafe { bytes(pg_sys::FunctionCall1Coll(to_json, pg_sys::InvalidOid, datum)) };
    out.extend_from_slice(valid(json).as_bytes());
}

/// What a varlena holds.
unsafe fn bytes<'a>(datum: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: the datum is a varlena; it, or its copy in the current context, outlives the use.
    unsafe {
        let flat = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
        std::slice::from_raw_parts(
            pgrx::varlena::vardata_any(flat).cast::<u8>(),
            pgrx::varlena::varsize_any_exhdr(flat),
        )
    }
}

/// Appends an array of texts. False, and nothing is appended, if it has more than one dimension.
unsafe fn push_texts(out: &mut Vec<u8>, datum: pg_sys::Datum) -> bool {
    let (mut elements, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
    // SAFETY: the datum is an array of varlenas that are aligned as int is; both results have `count` items.
    unsafe {
        let array: *mut pg_sys::ArrayType = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast();
        if (*array).ndim > 1 {
            return false;
        }
        let align = pg_sys::TYPALIGN_INT as std::ffi::c_char;
        pg_sys::deconstruct_array(array, (*array).elemtype, -1, false, align, &mut elements, &mut nulls, &mut count);
        out.push(b'[');
        for at in 0..count as usize {
            if at > 0 {
                out.push(b',');
            }
            if *nulls.add(at) {
                out.extend_from_slice(b"null");
            } else {
                push_string(out, valid(bytes(*elements.add(at))));
            }
        }
        out.push(b']');
    }
    true
}

fn push_int(out: &mut Vec<u8>, number: i64) {
    // A Vec takes whatever is written.
    let _ = serde_json::to_writer(out, &number);
}

/// Appends a JSON string. serde_json escapes what escape_json() of json.c does, and as that does.
fn push_string(out: &mut Vec<u8>, text: &str) {
    // A Vec takes whatever is written.
    let _ = serde_json::to_writer(out, text);
}
