//! `fanout.enqueue()`: says by hand that a row changed, for what no trigger sees.

use crate::capture::{enqueue_image, image};
use crate::catalog::acting::privileged;
use crate::catalog::admin::{not_parked, owns};
use crate::catalog::key::type_name;
use crate::catalog::key_values::{KeyValue, given, input};
use crate::catalog::source::{Column, Table};
use crate::catalog::{self, Sync, ours};
use crate::error::{failure, no_nulls, not_null};
use crate::server::quoted;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::{FromDatum, Spi, pg_sys};

/// Enqueues one row: the values of the key columns in their order, or of all address columns. Whether the row exists does
/// not matter: what exists when the worker looks is delivered, what doesn't is deleted from the target.
#[pg_extern(sql = r#"
CREATE FUNCTION fanout.enqueue(sync text, VARIADIC key "any") RETURNS void
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn enqueue(sync: Option<&str>, fcinfo: pg_sys::FunctionCallInfo) {
    let target = Target::of(sync);
    // SAFETY: of this call, whose second argument is the first of the key.
    target.enqueue(&unsafe { given(fcinfo, 1) });
}

/// Enqueues many rows of a sync whose key is one column. Returns how many.
#[pg_extern(schema = "fanout")]
fn enqueue_keys(sync: Option<&str>, keys: Option<Vec<Option<String>>>) -> i64 {
    let target = Target::of(sync);
    if target.sync.key_columns.len() != 1 {
        failure(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("the key of sync \"{}\" is more than one column", target.sync.name),
        )
        .detail(format!("The key is ({}).", target.sync.key_columns.join(", ")))
        .hint("Call fanout.enqueue(sync, key, …) for each row.")
        .raise();
    }
    let keys = no_nulls("keys", not_null("keys", keys));
    let count = keys.len() as i64;
    for key in keys {
        target.enqueue(&[Some(KeyValue::Text(key))]);
    }
    count
}

/// A sync, and its source as it is now.
struct Target {
    sync: Sync,
    table: Table,
    /// The address columns.
    columns: Vec<Column>,
    layout: crate::journal::format::Layout,
}

impl Target {
    fn of(name: Option<&str>) -> Self {
        let sync = not_parked(catalog::get(not_null("sync", name)));
        let table = Table::get(sync.source);
        if !owns(&sync) && !table.readable_by(catalog::caller()) {
            failure(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied for table {}", table.name),
            )
            .hint("Enqueueing takes SELECT on the source, or the role that owns the sync.")
            .raise();
        }
        let columns = address_columns(&sync, &table);
        let layout = image::layout(columns.iter().map(|column| image::Storage::of(column.type_oid)));
        Target { sync, table, columns, layout }
    }

    fn enqueue(&self, values: &[Option<KeyValue>]) {
        check_values(&self.sync, &self.columns, values);
        let datums: Vec<Option<pg_sys::Datum>> = self
            .columns
            .iter()
            .zip(values)
            .map(|(column, value)| value.as_ref().map(|value| input(column, value)))
            .collect();
        if values.len() == self.columns.len() {
            self.note(&datums);
        } else {
            self.look_up(&datums);
        }
    }

    fn note(&self, datums: &[Option<pg_sys::Datum>]) {
        let mut address = Vec::new();
        for (column, datum) in self.columns.iter().zip(datums) {
            let null = datum.is_none();
            // SAFETY: the datum is of the column's type: it comes from the type's input function or from the table.
            unsafe {
                image::put_datum(
                    &mut address,
                    image::Storage::of(column.type_oid),
                    datum.unwrap_or_else(pg_sys::Datum::null),
                    null,
                )
            };
        }
        enqueue_image(self.sync.id, self.layout, &address);
    }

    /// Enqueues the addresses of the rows with this key, as the caller sees them.
    fn look_up(&self, key: &[Option<pg_sys::Datum>]) {
        let selected: Vec<String> = self.columns.iter().map(|column| quoted(&column.name)).collect();
        let conditions: Vec<String> = self
            .columns
            .iter()
            .zip(1..=key.len())
            .map(|(column, number)| format!("{} {} ${number}", quoted(&column.name), equality(column)))
            .collect();
        let sql =
            format!("SELECT {} FROM {} WHERE {}", selected.join(", "), self.table.quoted(), conditions.join(" AND "));
        let args: Vec<DatumWithOid> = self
            .columns
            .iter()
            .zip(key)
            // SAFETY: the datum comes from the input function of this type.
            .map(|(column, datum)| unsafe {
                DatumWithOid::new(datum.unwrap_or_else(pg_sys::Datum::null), column.type_oid)
            })
            .collect();
        let found = ours(Spi::connect(|client| -> Result<usize, pgrx::spi::Error> {
            let rows = client.select(&sql, None, &args)?;
            let count = rows.len();
            for row in rows {
                let mut datums = Vec::with_capacity(self.columns.len());
                for ordinal in 1..=self.columns.len() {
                    datums.push(row.get::<Raw>(ordinal)?.map(|raw| raw.0));
                }
                self.note(&datums);
            }
            Ok(count)
        }));
        if found == 0 {
            failure(
                PgSqlErrorCode::ERRCODE_NO_DATA_FOUND,
                format!("sync \"{}\" needs more than the key of a row that doesn't exist", self.sync.name),
            )
            .detail("Its Redis keys are made from other columns too, and a deleted row can't be asked for them.")
            .hint(format!("Give all of: {}.", self.sync.address_columns.join(", ")))
            .raise();
        }
    }
}

/// A value as it is stored, whatever its type.
struct Raw(pg_sys::Datum);

impl FromDatum for Raw {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _: pg_sys::Oid) -> Option<Self> {
        (!is_null).then_some(Raw(datum))
    }
}

impl pgrx::IntoDatum for Raw {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(self.0)
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::ANYELEMENTOID
    }

    fn is_compatible_with(_: pg_sys::Oid) -> bool {
        true
    }
}

fn address_columns(sync: &Sync, table: &Table) -> Vec<Column> {
    let find = |name: &String| {
        table.column(name).cloned().unwrap_or_else(|| {
            failure(
                PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                format!(
                    "column \"{name}\" of table \"{}\", by which sync \"{}\" knows its rows, does not exist any more",
                    table.name, sync.name
                ),
            )
            .hint("Drop the sync and make it anew.")
            .raise()
        })
    };
    sync.address_columns.iter().map(find).collect()
}

/// Raises unless these can be the values of the key, or of all address columns.
fn check_values(sync: &Sync, columns: &[Column], values: &[Option<KeyValue>]) {
    let keys = sync.key_columns.len();
    if values.len() != columns.len() && values.len() != keys {
        let key = sync.key_columns.join(", ");
        failure(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("\"key\" of sync \"{}\" can't be {} value(s)", sync.name, values.len()),
        )
        .detail(if keys == columns.len() {
            format!("The key is ({key}).")
        } else {
            format!("The key is ({key}), the whole address ({}).", sync.address_columns.join(", "))
        })
        .hint("Give a value for each of these columns, in that order.")
        .raise();
    }
    if let Some((column, _)) = columns.iter().zip(values).take(keys).find(|(_, value)| value.is_none()) {
        failure(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("\"key\" must not hold NULL: it is given for key column \"{}\"", column.name),
        )
        .hint("No row has NULL in its key.")
        .raise();
    }
}

/// The address of the row with these values: those of the key, or of all address columns. What is not given is NULL in it.
/// An ERROR where there are neither so many, or one is none of its column's type.
pub fn address_of(sync: &Sync, values: &[Option<KeyValue>]) -> Vec<u8> {
    let columns = address_columns(sync, &Table::get(sync.source));
    check_values(sync, &columns, values);
    let mut address = Vec::new();
    for (place, column) in columns.iter().enumerate() {
        let datum = values.get(place).and_then(Option::as_ref).map(|value| input(column, value));
        let null = datum.is_none();
        // SAFETY: the datum comes from the input function of the column's type.
        unsafe {
            image::put_datum(
                &mut address,
                image::Storage::of(column.type_oid),
                datum.unwrap_or_else(pg_sys::Datum::null),
                null,
            );
        }
    }
    address
}

/// How a sync's address columns are stored.
pub fn layout(sync: &Sync) -> Vec<image::Storage> {
    let table = Table::get(sync.source);
    address_columns(sync, &table).iter().map(|column| image::Storage::of(column.type_oid)).collect()
}

/// The type's own equality operator, by schema and name: which `=` a search_path finds is the caller's affair.
fn equality(column: &Column) -> String {
    // SAFETY: a look-up in the type cache, whose entries are never freed.
    let operator = unsafe { (*pg_sys::lookup_type_cache(column.type_oid, pg_sys::TYPECACHE_EQ_OPR as i32)).eq_opr };
    if operator == pg_sys::InvalidOid {
        failure(
            PgSqlErrorCode::ERRCODE_UNDEFINED_FUNCTION,
            format!("type {} has no equality operator", type_name(column.type_oid)),
        )
        .detail(format!("Key column \"{}\" is of that type.", column.name))
        .raise();
    }
    let name = privileged(|| {
        ours(Spi::connect(|client| {
            client
                .select(
                    "SELECT pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname) FROM pg_catalog.pg_operator o
                     JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace WHERE o.oid = $1",
                    Some(1),
                    &[operator.into()],
                )?
                .first()
                .get_one::<String>()
        }))
    });
    name.unwrap_or_else(|| "OPERATOR(pg_catalog.=)".to_owned())
}
