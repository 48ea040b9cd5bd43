//! A column's type → its field in an index. docs/types.md has the table.
//!
//! Only field types that every engine's core knows, without modules or plug-ins (but for PostGIS), unless somebody chose
//! otherwise. Whatever a document can hold for a column must not make an engine refuse it: hence `ignore_malformed`
//! (infinity, NaN, years BC, points off the globe) and `ignore_above` (a keyword over 32,766 bytes).

use super::choice::{Choices, expand};
use crate::catalog::source::{Column, Table};
use crate::server::options::text;
use pgrx::pg_sys;
use serde_json::{Map, Value, json};

/// Characters; times four bytes it stays under Lucene's bound of 32,766 bytes.
const KEYWORD_CHARACTERS: u32 = 8191;

const DATE_FORMAT: &str = "strict_date_optional_time||strict_date_optional_time_nanos||epoch_millis";

/// The most digits that fit into a `long` whatever they are.
const LONG_DIGITS: i32 = 18;

/// A type and its modifier.
#[derive(Clone, Copy)]
pub struct Element {
    pub type_oid: pg_sys::Oid,
    pub modifier: i32,
}

/// Where a value stands: the JSON form of a column can be made to fit its field, that of an attribute within a composite
/// value can't.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Column,
    Attribute,
}

/// The field for a column.
pub fn field(column: &Column, choices: &Choices) -> Value {
    of_type(column.type_oid, column.type_modifier, choices, Place::Column)
}

fn of_type(mut type_oid: pg_sys::Oid, mut modifier: i32, choices: &Choices, place: Place) -> Value {
    // A choice for the domain goes before one for what it is a domain over.
    loop {
        let element = Element { type_oid, modifier };
        if place == Place::Column
            && let Some(choice) = choices.of(type_oid)
        {
            let bottom = bottom(type_oid, modifier);
            return expand(choice, bottom, || by_rule(bottom, choices, place));
        }
        match within(element) {
            Some(inner) => (type_oid, modifier) = (inner.type_oid, inner.modifier),
            None => return by_rule(element, choices, place),
        }
    }
}

/// What a domain is over, or what an array holds: an engine's field holds one value or several alike. None for any other type.
pub fn within(outer: Element) -> Option<Element> {
    let base = base(outer);
    if base.type_oid != outer.type_oid {
        return Some(base);
    }
    // int2vector and oidvector are arrays by storage but have no array's output for json; they end here too.
    // SAFETY: a catalog look-up on the main thread.
    let element = unsafe { pg_sys::get_element_type(base.type_oid) };
    (element != pg_sys::InvalidOid).then_some(Element { type_oid: element, modifier: base.modifier })
}

/// What a domain is over in the end; any other type is its own base.
pub fn base(domain: Element) -> Element {
    let mut modifier = domain.modifier;
    // SAFETY: a catalog look-up on the main thread; the modifier is a local.
    let type_oid = unsafe { pg_sys::getBaseTypeAndTypmod(domain.type_oid, &mut modifier) };
    Element { type_oid, modifier }
}

/// The type of the values themselves.
pub fn bottom(type_oid: pg_sys::Oid, modifier: i32) -> Element {
    let mut element = Element { type_oid, modifier };
    while let Some(inner) = within(element) {
        element = inner;
    }
    element
}

/// The field for a type that is neither a domain nor an array.
fn by_rule(Element { type_oid, modifier }: Element, choices: &Choices, place: Place) -> Value {
    // Their JSON form within a composite value is their text.
    let text_within = matches!(type_oid, pg_sys::MONEYOID | pg_sys::POINTOID | pg_sys::CIDROID | pg_sys::BYTEAOID);
    if place == Place::Attribute && text_within {
        return keyword();
    }
    match type_oid {
        pg_sys::INT2OID => json!({ "type": "short" }),
        pg_sys::INT4OID => json!({ "type": "integer" }),
        pg_sys::INT8OID => json!({ "type": "long" }),
        pg_sys::FLOAT4OID => lenient("float"),
        pg_sys::NUMERICOID if is_long(modifier) => lenient("long"),
        pg_sys::FLOAT8OID | pg_sys::NUMERICOID | pg_sys::MONEYOID => lenient("double"),
        pg_sys::BOOLOID => json!({ "type": "boolean" }),
        pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID | pg_sys::NAMEOID => full_text(),
        pg_sys::XMLOID | pg_sys::TSVECTOROID => json!({ "type": "text" }),
        pg_sys::DATEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => date("date"),
        pg_sys::INETOID => lenient("ip"),
        pg_sys::CIDROID => json!({ "type": "ip_range" }),
        pg_sys::POINTOID => lenient("geo_point"),
        pg_sys::JSONOID | pg_sys::JSONBOID => open_object(),
        pg_sys::BYTEAOID => json!({ "type": "keyword", "index": false, "doc_values": false }),
        _ => match range(type_oid) {
            Some(_) if place == Place::Attribute => keyword(),
            Some("date_range") => json!({ "type": "date_range", "format": "strict_date_optional_time" }),
            Some(kind) => json!({ "type": kind }),
            None => other(type_oid, modifier, choices, place),
        },
    }
}

/// The engines' type for a range or multirange. Ranges over other types have no counterpart there.
pub fn range(type_oid: pg_sys::Oid) -> Option<&'static str> {
    Some(match type_oid {
        pg_sys::INT4RANGEOID | pg_sys::INT4MULTIRANGEOID => "integer_range",
        pg_sys::INT8RANGEOID | pg_sys::INT8MULTIRANGEOID => "long_range",
        pg_sys::NUMRANGEOID | pg_sys::NUMMULTIRANGEOID => "double_range",
        pg_sys::DATERANGEOID
        | pg_sys::DATEMULTIRANGEOID
        | pg_sys::TSRANGEOID
        | pg_sys::TSMULTIRANGEOID
        | pg_sys::TSTZRANGEOID
        | pg_sys::TSTZMULTIRANGEOID => "date_range",
        _ => return None,
    })
}

/// Types of extensions and of users.
fn other(type_oid: pg_sys::Oid, modifier: i32, choices: &Choices, place: Place) -> Value {
    // SAFETY: a catalog look-up on the main thread.
    let kind = unsafe { pg_sys::get_typtype(type_oid) } as u8;
    if kind == pg_sys::TYPTYPE_COMPOSITE {
        return json!({ "type": "object", "properties": composite(type_oid, choices) });
    }
    match type_name(type_oid).as_str() {
        "citext" => json!({ "type": "text", "fields": { "keyword": {
            "type": "keyword", "ignore_above": KEYWORD_CHARACTERS, "normalizer": "lowercase"
        } } }),
        "hstore" => open_object(),
        "geometry" | "geography" if place == Place::Column => spatial(modifier),
        // Similarity search is by choice: the engines have no field in common for it. What is not looked into fits all.
        "vector" | "halfvec" if place == Place::Column => closed_object(),
        _ => keyword(),
    }
}

/// Types of extensions have no fixed OID; by their names they are recognised in whatever schema they are.
pub fn type_name(type_oid: pg_sys::Oid) -> String {
    // SAFETY: a catalog look-up on the main thread; the C string is palloc'd, and copied at once.
    let name = unsafe { text(pg_sys::format_type_extended(type_oid, -1, 0)) };
    name.rsplit('.').next().unwrap_or_default().trim_matches('"').to_owned()
}

/// The fields of a composite type.
fn composite(type_oid: pg_sys::Oid, choices: &Choices) -> Value {
    // SAFETY: the type is composite, so it has a relation; a type that is being dropped has none.
    let relation = unsafe { pg_sys::get_typ_typrelid(type_oid) };
    let attribute = |column: &Column| {
        (column.name.clone(), of_type(column.type_oid, column.type_modifier, choices, Place::Attribute))
    };
    let fields: Map<String, Value> =
        Table::find(relation).map(|table| table.columns.iter().map(attribute).collect()).unwrap_or_default();
    Value::Object(fields)
}

/// PostGIS: points, by the column's modifier, are points; all else is a shape.
fn spatial(modifier: i32) -> Value {
    // TYPMOD_GET_TYPE of liblwgeom.h, and its POINTTYPE.
    const POINT: i32 = 1;
    let kind = if modifier < 0 { 0 } else { (modifier & 0xFC) >> 2 };
    if kind == POINT { lenient("geo_point") } else { lenient("geo_shape") }
}

/// Precision and scale of a numeric type, if it has them.
pub fn precision_and_scale(modifier: i32) -> Option<(i32, i32)> {
    let given = modifier - pg_sys::VARHDRSZ as i32;
    // numeric_typmod_scale() of numeric.c: eleven bits with a sign.
    (given >= 0).then_some(((given >> 16) & 0xFFFF, ((given & 0x7FF) ^ 1024) - 1024))
}

/// Whether every value of a numeric type with this modifier is an integer that fits.
fn is_long(modifier: i32) -> bool {
    precision_and_scale(modifier).is_some_and(|(precision, scale)| scale <= 0 && precision - scale <= LONG_DIGITS)
}

/// A string as it is.
pub fn keyword() -> Value {
    json!({ "type": "keyword", "ignore_above": KEYWORD_CHARACTERS })
}

/// Words, and the string as it is.
pub fn full_text() -> Value {
    json!({ "type": "text", "fields": { "keyword": keyword() } })
}

/// A date or a time stamp.
pub fn date(kind: &str) -> Value {
    json!({ "type": kind, "format": DATE_FORMAT, "ignore_malformed": true })
}

/// A value that the field can't take is left out of the index; the document has it all the same.
pub fn lenient(kind: &str) -> Value {
    json!({ "type": kind, "ignore_malformed": true })
}

/// An object whose fields become fields of the index as they appear.
pub fn open_object() -> Value {
    json!({ "type": "object", "dynamic": true })
}

/// Anything at all, which no search looks into.
pub fn closed_object() -> Value {
    json!({ "type": "object", "enabled": false })
}
