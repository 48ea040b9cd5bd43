//! The JSON form of a column: what `to_json` prints, unless its field takes something else.
//!
//! The form follows the field, whether that is ours or the user's: a range is an object of bounds in a field of ranges and
//! its text in a keyword. SQL is made here; it runs with any search_path, so every name in it is qualified.

use super::field::{self, Element, bottom, range, type_name, within};
use crate::server::quoted;
use pgrx::pg_sys;
use serde_json::Value;
use std::ffi::CStr;

/// The least and the greatest day of a lower bound, then of an upper one: what engines can read, and no range is empty.
const DAYS: [&str; 4] = ["0001-01-01", "9999-12-30", "0001-01-02", "9999-12-31"];

/// The same for numbers.
const NUMBERS: [&str; 4] = ["-1.7e308", "1.6e308", "-1.6e308", "1.7e308"];

/// Digits of a numeric type whose values are never too long to be read as numbers.
const NUMBER_DIGITS: i32 = 900;

/// The SQL expression of type json for a column (`column` is SQL, of this type) that goes into this field of an index.
/// None if the form is that of `to_json`.
pub fn json_expression(column: &str, Element { type_oid, modifier }: Element, field: &Value) -> Option<String> {
    let kind = field.get("type").and_then(Value::as_str).unwrap_or("object");
    let column = format!("({column})");
    of_type(&column, type_oid, kind, 0).or_else(|| {
        // Within an array it stays as it is: what is done to each element by itself costs the array its shape.
        let element = field::base(Element { type_oid, modifier });
        let long = field::precision_and_scale(element.modifier).is_none_or(|(precision, _)| precision > NUMBER_DIGITS);
        (element.type_oid == pg_sys::NUMERICOID && long).then(|| number(&column))
    })
}

/// A number, or the text of one that is too long to be read: engines refuse numbers of more than 1000 characters.
fn number(value: &str) -> String {
    format!(
        "CASE WHEN pg_catalog.abs({value}) OPERATOR(pg_catalog.<) 1e600 AND pg_catalog.scale({value}) \
         OPERATOR(pg_catalog.<=) 300 THEN pg_catalog.to_json({value}) ELSE pg_catalog.to_json({value}::pg_catalog.text) END"
    )
}

fn of_type(value: &str, type_oid: pg_sys::Oid, kind: &str, depth: usize) -> Option<String> {
    let element = bottom(type_oid, -1);
    if element.type_oid == type_oid {
        return of_element(value, type_oid, kind, depth);
    }
    let inner = within(Element { type_oid, modifier: -1 })?;
    // SAFETY: a catalog look-up on the main thread.
    if unsafe { pg_sys::get_element_type(type_oid) } == pg_sys::InvalidOid {
        // A domain has the form of what it is over.
        return of_type(value, inner.type_oid, kind, depth);
    }
    let name = format!("__fanout_e{depth}");
    let each = of_type(&name, inner.type_oid, kind, depth + 1)?;
    Some(list(value, &each, &name))
}

/// A JSON array of each of the values that an array or a multirange holds.
fn list(value: &str, each: &str, name: &str) -> String {
    format!(
        "CASE WHEN {value} IS NOT NULL THEN (SELECT coalesce(pg_catalog.json_agg({each}), '[]'::pg_catalog.json) \
         FROM pg_catalog.unnest({value}) AS __fanout_u ({name})) END"
    )
}

fn of_element(value: &str, type_oid: pg_sys::Oid, kind: &str, depth: usize) -> Option<String> {
    let strings = matches!(kind, "keyword" | "text" | "wildcard" | "match_only_text" | "constant_keyword");
    let numbers = matches!(
        kind,
        "byte" | "short" | "integer" | "long" | "unsigned_long" | "half_float" | "float" | "double" | "scaled_float"
    );
    if range(type_oid).is_some() {
        return kind.ends_with("_range").then(|| of_range(value, type_oid, depth));
    }
    let json = |expression: String| Some(format!("pg_catalog.to_json({expression})"));
    match type_oid {
        pg_sys::NUMERICOID if strings => json(format!("{value}::pg_catalog.text")),
        pg_sys::JSONOID | pg_sys::JSONBOID if strings => json(format!("{value}::pg_catalog.text")),
        pg_sys::MONEYOID if numbers => json(format!("{value}::pg_catalog.numeric")),
        pg_sys::INTERVALOID if numbers => json(format!("EXTRACT(epoch FROM {value})")),
        pg_sys::BYTEAOID if kind == "binary" => {
            json(format!("pg_catalog.translate(pg_catalog.encode({value}, 'base64'), E'\\n', '')"))
        }
        pg_sys::CIDROID if kind == "ip_range" => Some(network(value)),
        pg_sys::INETOID if kind == "ip_range" => Some(network(&format!("pg_catalog.network({value})"))),
        pg_sys::CIDROID if kind == "ip" => json(format!("pg_catalog.host({value})")),
        pg_sys::POINTOID if kind == "geo_point" => {
            Some(format!("CASE WHEN {value} IS NOT NULL THEN {} END", coordinates(value)))
        }
        pg_sys::POINTOID if kind == "geo_shape" => Some(format!(
            "CASE WHEN {value} IS NOT NULL THEN pg_catalog.json_build_object('type', 'Point', 'coordinates', {}) END",
            coordinates(value)
        )),
        _ => of_extension(value, type_oid, kind, strings),
    }
}

fn coordinates(point: &str) -> String {
    format!("pg_catalog.json_build_array({point}[0], {point}[1])")
}

/// A network. Engines refuse a prefix of an IPv4 address in IPv6 clothes.
fn network(value: &str) -> String {
    format!(
        "CASE WHEN {value} OPERATOR(pg_catalog.<<=) '::ffff:0:0/96'::pg_catalog.inet \
         THEN pg_catalog.json_build_object('gte', pg_catalog.host({value}), \
         'lte', pg_catalog.host(pg_catalog.broadcast({value}))) ELSE pg_catalog.to_json({value}) END"
    )
}

fn of_extension(value: &str, type_oid: pg_sys::Oid, kind: &str, strings: bool) -> Option<String> {
    match type_name(type_oid).as_str() {
        "hstore" if strings => Some(format!("pg_catalog.to_json({value}::pg_catalog.text)")),
        // Their text is a JSON array.
        "vector" | "halfvec" if !strings => Some(format!("{value}::pg_catalog.text::pg_catalog.json")),
        "geometry" | "geography" if matches!(kind, "geo_shape" | "geo_point") => {
            Some(geojson(value, &quoted(&schema(type_oid))))
        }
        _ => None,
    }
}

/// PostGIS: longitude and latitude, which is all that engines know, in forms that GeoJSON has. What is empty is null: engines
/// refuse it.
fn geojson(value: &str, gis: &str) -> String {
    let value = format!("({value}::{gis}.geometry)");
    let lines = format!("CASE WHEN {gis}.st_hasarc({value}) THEN {gis}.st_curvetoline({value}) ELSE {value} END");
    format!(
        "CASE WHEN NOT {gis}.st_isempty({value}) THEN {gis}.st_asgeojson(\
         CASE WHEN {gis}.st_srid({value}) OPERATOR(pg_catalog.=) ANY ('{{0,4326}}'::pg_catalog.int4[]) THEN {lines} \
         ELSE {gis}.st_transform({lines}, 4326) END)::pg_catalog.json END"
    )
}

/// The schema of an extension's type: its functions are there too.
fn schema(type_oid: pg_sys::Oid) -> String {
    // SAFETY: a syscache tuple is valid until it is released; the name is copied.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::TYPEOID as i32,
            pg_sys::Datum::from(type_oid.to_u32() as usize),
        );
        if tuple.is_null() {
            return String::new();
        }
        let form: *const pg_sys::FormData_pg_type = pg_sys::GETSTRUCT(tuple).cast();
        let name = pg_sys::get_namespace_name((*form).typnamespace);
        pg_sys::ReleaseSysCache(tuple);
        if name.is_null() { String::new() } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
    }
}

/// A range as the engines want it: its bounds by name. Empty is null; a missing bound is left out; a bound that engines can't
/// read is replaced by the last that they can.
fn of_range(value: &str, type_oid: pg_sys::Oid, depth: usize) -> String {
    let single = match type_oid {
        pg_sys::INT4MULTIRANGEOID => pg_sys::INT4RANGEOID,
        pg_sys::INT8MULTIRANGEOID => pg_sys::INT8RANGEOID,
        pg_sys::NUMMULTIRANGEOID => pg_sys::NUMRANGEOID,
        pg_sys::DATEMULTIRANGEOID => pg_sys::DATERANGEOID,
        pg_sys::TSMULTIRANGEOID => pg_sys::TSRANGEOID,
        pg_sys::TSTZMULTIRANGEOID => pg_sys::TSTZRANGEOID,
        _ => type_oid,
    };
    if single != type_oid {
        let name = format!("__fanout_e{depth}");
        return list(value, &of_range(&name, single, depth + 1), &name);
    }
    let (lower, upper) = (format!("pg_catalog.lower({value})"), format!("pg_catalog.upper({value})"));
    let bounds = match type_oid {
        // Of integers and of days PostgreSQL makes [a,b) of any range.
        pg_sys::INT4RANGEOID | pg_sys::INT8RANGEOID => format!("'gte', {lower}, 'lt', {upper}"),
        pg_sys::DATERANGEOID => {
            let (from, to) = clamped(value, &lower, &upper, DAYS.map(|day| format!("'{day}'::pg_catalog.date")));
            format!("'gte', {from}, 'lt', {to}")
        }
        pg_sys::NUMRANGEOID => {
            let (from, to) = clamped(value, &lower, &upper, NUMBERS.map(str::to_owned));
            let largest = format!("greatest(pg_catalog.abs({from}), pg_catalog.abs({to}))");
            // Closer than doubles can tell apart: without its bounds the range would be empty, which engines refuse.
            let near = format!(
                "({to} OPERATOR(pg_catalog.-) {from}) OPERATOR(pg_catalog.<=) ({largest} OPERATOR(pg_catalog.*) 1e-9) \
                 OR {largest} OPERATOR(pg_catalog.<) 1e-300"
            );
            open_or_closed(value, &near, &from, &to)
        }
        _ => {
            let instants = type_oid == pg_sys::TSTZRANGEOID;
            let name = if instants { "timestamptz" } else { "timestamp" };
            let zone = if instants { "+00" } else { "" };
            let days = DAYS.map(|day| format!("'{day} 00:00{zone}'::pg_catalog.{name}"));
            let (from, to) = clamped(value, &lower, &upper, days);
            // Engines keep milliseconds.
            let near =
                format!("({to} OPERATOR(pg_catalog.-) {from}) OPERATOR(pg_catalog.<) '3 ms'::pg_catalog.interval");
            open_or_closed(value, &near, &moment(&from, instants), &moment(&to, instants))
        }
    };
    format!(
        "CASE WHEN NOT pg_catalog.isempty({value}) \
         THEN pg_catalog.json_strip_nulls(pg_catalog.json_build_object({bounds})) END"
    )
}

/// Both bounds within limits (least and greatest of the lower one, of the upper one), NULL where there is none.
fn clamped(value: &str, lower: &str, upper: &str, limits: [String; 4]) -> (String, String) {
    let [low_least, low_greatest, high_least, high_greatest] = limits;
    (
        format!(
            "(CASE WHEN NOT pg_catalog.lower_inf({value}) THEN greatest(least({lower}, {low_greatest}), {low_least}) END)"
        ),
        format!(
            "(CASE WHEN NOT pg_catalog.upper_inf({value}) THEN greatest(least({upper}, {high_greatest}), {high_least}) END)"
        ),
    )
}

fn open_or_closed(value: &str, near: &str, from: &str, to: &str) -> String {
    format!(
        "CASE WHEN pg_catalog.lower_inc({value}) OR {near} THEN 'gte' ELSE 'gt' END, {from}, \
         CASE WHEN pg_catalog.upper_inc({value}) OR {near} THEN 'lte' ELSE 'lt' END, {to}"
    )
}

/// A moment with all its digits: what is missing at the end, engines would round up.
fn moment(value: &str, instant: bool) -> String {
    if instant {
        format!("pg_catalog.to_char(pg_catalog.timezone('UTC', {value}), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    } else {
        format!("pg_catalog.to_char({value}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US')")
    }
}
