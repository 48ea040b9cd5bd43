//! The source of a sync as the worker reads it: address columns, how they are printed, and its statements.

use super::statements::{self, Condition, Statements};
use crate::capture::image::{self, Storage};
use crate::catalog::{self, Sync};
use crate::error::failure;
use crate::journal::format::Layout;
use crate::server::quoted;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::ffi::{CStr, CString};

unsafe extern "C-unwind" {
    // Not in pgrx's bindings; catalog/pg_inherits.h. Also true for a while after the last child has gone.
    fn has_subclass(table: pg_sys::Oid) -> bool;
}

/// Why a source cannot be read. All of them block the sync until somebody changes something.
#[derive(Debug)]
pub enum Unreadable {
    /// The table is gone.
    Table,
    /// A column that the address is made from is gone.
    Column(String),
    /// A column that tells to which documents the rows of a related table belong is gone: table, column.
    Related(String, String),
    /// A key column's type has no equality operator (any more).
    Operator(String),
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Table => write!(out, "the source table does not exist any more; fanout.drop_sync() ends the sync"),
            Self::Column(name) => write!(
                out,
                "column \"{name}\" of the source does not exist any more; drop the sync and make it anew with another key"
            ),
            Self::Related(table, column) => write!(
                out,
                "column \"{column}\" of related table {table} does not exist any more; declare it anew with \
                 fanout.drop_related() and fanout.related()"
            ),
            Self::Operator(name) => write!(out, "the type of key column \"{name}\" has no equality operator"),
        }
    }
}

/// A resolved source.
pub struct Source {
    /// Types of the address columns.
    pub storages: Vec<Storage>,
    /// Their layout.
    pub layout: Layout,
    /// How many of them are the key.
    pub keys: usize,
    /// Array types of the key columns: the parameters of the statement that reads by key.
    pub key_arrays: Vec<pg_sys::Oid>,
    /// How they are compared.
    pub key: Vec<Condition>,
    /// What reads it.
    pub statements: Statements,
    /// What could yield two rows for one key: nothing but the key's index is between them.
    pub repeats: Option<Repeats>,
    outputs: Vec<Output>,
}

/// Where two rows for one key may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeats {
    /// A document query.
    Query,
    /// Tables that inherit from the source: a key is unique in each of them, and not over all.
    Inheritance,
}

/// How a column becomes text.
enum Output {
    Int,
    Text,
    Function(pg_sys::Oid),
}

/// An identifier that the catalog gave.
pub fn name(name: *mut std::ffi::c_char) -> String {
    // SAFETY: a palloc'd C string, or null.
    unsafe { if name.is_null() { String::new() } else { CStr::from_ptr(name).to_string_lossy().into_owned() } }
}

impl Source {
    /// Looks the source of a sync up. Within a transaction.
    pub fn resolve(sync: &Sync) -> Result<Self, Unreadable> {
        // SAFETY: catalog look-ups on the main thread within a transaction.
        unsafe {
            let table = name(pg_sys::get_rel_name(sync.source));
            if table.is_empty() {
                return Err(Unreadable::Table);
            }
            let schema = name(pg_sys::get_namespace_name(pg_sys::get_rel_namespace(sync.source)));
            let mut storages = Vec::new();
            let mut outputs = Vec::new();
            let mut key_arrays = Vec::new();
            let mut conditions = Vec::new();
            for (position, column) in sync.address_columns.iter().enumerate() {
                let column_c = CString::new(column.as_str()).map_err(|_| Unreadable::Column(column.clone()))?;
                let number = pg_sys::get_attnum(sync.source, column_c.as_ptr());
                if number <= 0 {
                    return Err(Unreadable::Column(column.clone()));
                }
                let type_oid = pg_sys::get_atttype(sync.source, number);
                storages.push(Storage::of(type_oid));
                outputs.push(match type_oid {
                    pg_sys::INT2OID | pg_sys::INT4OID | pg_sys::INT8OID => Output::Int,
                    pg_sys::TEXTOID | pg_sys::VARCHAROID => Output::Text,
                    _ => {
                        let (mut function, mut varlena) = (pg_sys::InvalidOid, false);
                        pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut varlena);
                        Output::Function(function)
                    }
                });
                if position < sync.key_columns.len() {
                    let cache = pg_sys::lookup_type_cache(type_oid, pg_sys::TYPECACHE_EQ_OPR as i32);
                    let operator = (*cache).eq_opr;
                    // A domain has an array type of its own, and its operator is that of its base type.
                    let array = pg_sys::get_array_type(type_oid);
                    if operator == pg_sys::InvalidOid || array == pg_sys::InvalidOid {
                        return Err(Unreadable::Operator(column.clone()));
                    }
                    conditions.push(Condition { column: quoted(column), operator: operator_name(operator) });
                    key_arrays.push(array);
                }
            }
            let repeats = if sync.document_query().is_some() {
                Some(Repeats::Query)
            } else {
                let inherited = pg_sys::get_rel_relkind(sync.source) as u8 == b'r' && has_subclass(sync.source);
                inherited.then_some(Repeats::Inheritance)
            };
            let statements = statements::of(sync, &schema, &table, &conditions, repeats, &catalog::mapping::document);
            Ok(Self {
                layout: image::layout(storages.iter().copied()),
                storages,
                keys: sync.key_columns.len(),
                key_arrays,
                statements,
                repeats,
                key: conditions,
                outputs,
            })
        }
    }

    /// The text of an address's columns, by their types' output functions. None if the image is not of this layout.
    pub fn render(&self, address: &[u8]) -> Option<Vec<Option<String>>> {
        let columns = image::columns(address, self.storages.len())?;
        let mut texts = Vec::with_capacity(columns.len());
        for ((bytes, &storage), output) in columns.into_iter().zip(&self.storages).zip(&self.outputs) {
            let Some(bytes) = bytes else {
                texts.push(None);
                continue;
            };
            texts.push(Some(match output {
                Output::Text => valid(bytes).to_owned(),
                Output::Int => {
                    let datum = image::to_datum(storage, bytes)?;
                    (datum.value() as i64).to_string()
                }
                Output::Function(function) => {
                    let datum = image::to_datum(storage, bytes)?;
                    // SAFETY: the layout's signature was compared: the datum is of the type that the function prints.
                    unsafe {
                        let text = pg_sys::OidOutputFunctionCall(*function, datum);
                        let owned = valid(CStr::from_ptr(text).to_bytes()).to_owned();
                        pg_sys::pfree(text.cast());
                        owned
                    }
                }
            }));
        }
        Some(texts)
    }

    /// The image of an address given as text, by the types' input functions, which raise for text that is none of theirs.
    pub fn parse(&self, texts: &[Option<String>]) -> Option<Vec<u8>> {
        if texts.len() != self.storages.len() {
            return None;
        }
        let mut address = Vec::new();
        for (text, &storage) in texts.iter().zip(&self.storages) {
            // SAFETY: the input function is that of the column's type and gives a datum of its storage.
            unsafe {
                match text {
                    None => image::put_datum(&mut address, storage, pg_sys::Datum::from(0), true),
                    Some(text) => {
                        let text = CString::new(text.as_str()).ok()?;
                        let (mut function, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
                        pg_sys::getTypeInputInfo(storage.type_oid, &mut function, &mut parameter);
                        let datum = pg_sys::OidInputFunctionCall(function, text.as_ptr().cast_mut(), parameter, -1);
                        image::put_datum(&mut address, storage, datum, false);
                    }
                }
            }
        }
        Some(address)
    }
}

/// Text of the database as a target takes it. A database with encoding SQL_ASCII may hold anything; what is not UTF-8 there is
/// refused, for two such texts must not become one.
pub fn valid(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_else(|_| {
        failure(PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE, "the row holds text that is not valid UTF-8")
            .raise()
    })
}

/// An operator with its schema: which one it is must not depend on search_path.
unsafe fn operator_name(operator: pg_sys::Oid) -> String {
    // SAFETY: a syscache tuple is valid until it is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::OPEROID as i32,
            pg_sys::Datum::from(operator.to_u32() as usize),
        );
        if tuple.is_null() {
            return "OPERATOR(pg_catalog.=)".into();
        }
        let form: *const pg_sys::FormData_pg_operator = pg_sys::GETSTRUCT(tuple).cast();
        let text = CStr::from_ptr((*form).oprname.data.as_ptr()).to_string_lossy().into_owned();
        let schema = name(pg_sys::get_namespace_name((*form).oprnamespace));
        pg_sys::ReleaseSysCache(tuple);
        format!("OPERATOR({}.{text})", quoted(&schema))
    }
}
