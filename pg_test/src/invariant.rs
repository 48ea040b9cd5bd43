//! The invariant: the target equals the table.

use crate::database::Session;
use crate::engine::Engine;
use crate::keyspace::Keyspace;
use crate::world::World;
use serde_json::Value;
use std::collections::BTreeMap;

/// A sync as the catalog describes it.
struct Sync {
    kind: String,
    source: String,
    server: String,
    target: String,
    key_columns: Vec<String>,
    address_columns: Vec<String>,
    format: String,
    options: Value,
    /// Of the nodes, if it is a Redis Cluster.
    cluster: Option<String>,
}

/// One row, or one document.
struct Entry {
    /// Its id, or its Redis key. None for a row whose key has characters that are escaped.
    name: Option<String>,
    value: Value,
}

/// Waits, and then compares every row of the sync's source with every document of its target, both ways: nothing
/// missing, nothing extra, nothing different.
pub fn assert_in_step(world: &mut World, sync: &str) {
    world.wait(sync);
    let found = differences(world, sync);
    if found.is_empty() {
        return;
    }
    // What is late and what is lost are different faults; whoever looks into this wants to know which it is.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let later = differences(world, sync).len();
    let status = world.db.try_rows(&format!("SELECT * FROM fanout.status WHERE sync = '{sync}'"));
    panic!(
        "\"{sync}\" is not in step, {} differences (five seconds later: {later}), among them:\n{}\nfanout.status: {status:?}",
        found.len(),
        found.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("\n")
    );
}

/// In what a target differs from its table now: one line for each row or document.
pub fn differences(world: &mut World, sync: &str) -> Vec<String> {
    // A connection of its own: the documents are made under these settings, whatever the test has set.
    let mut reader = world.connect();
    reader.exec(
        "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET bytea_output = 'hex';
         SET extra_float_digits = 1; SET search_path = public",
    );
    let sync = find(&mut reader, sync);
    let rows = expected(&mut reader, &sync);
    compare(&sync.key_columns, rows, found(&sync))
}

fn find(db: &mut Session, name: &str) -> Sync {
    let row = db.value(&format!(
        "SELECT json_build_array(kind, source::text, server, target, to_json(key_columns), to_json(address_columns),
                coalesce(options->>'format', 'json'), options,
                (SELECT url.option_value FROM pg_foreign_server, pg_options_to_table(srvoptions) AS url,
                        pg_options_to_table(srvoptions) AS cluster
                 WHERE srvname = server AND url.option_name = 'url' AND cluster.option_name = 'cluster'))
         FROM fanout.sync WHERE name = '{name}'"
    ));
    let row: Value = serde_json::from_str(&row).expect("JSON from json_build_array");
    let text = |i: usize| row[i].as_str().unwrap_or_default().to_owned();
    let list = |i: usize| {
        let items = row[i].as_array().into_iter().flatten();
        items.map(|item| item.as_str().unwrap_or_default().to_owned()).collect()
    };
    Sync {
        kind: text(0),
        source: text(1),
        server: text(2),
        target: text(3),
        key_columns: list(4),
        address_columns: list(5),
        format: text(6),
        options: row[7].clone(),
        cluster: row[8].as_str().map(str::to_owned),
    }
}

/// The rows as the documents should be.
fn expected(db: &mut Session, sync: &Sync) -> Vec<Entry> {
    let document = if sync.kind == "cache" && sync.format == "hash" {
        // A hash has no NULL: the field is missing.
        "(SELECT json_object_agg(key, value) FROM json_each_text(row_to_json(t)) WHERE value IS NOT NULL)"
    } else {
        "row_to_json(t)"
    };
    let option = |name: &str| sync.options[name].as_str();
    let from = match (option("document"), option("predicate")) {
        (Some(query), _) => format!("({query}\n)"),
        (None, Some(predicate)) => format!("(SELECT * FROM {} WHERE {predicate}\n)", sync.source),
        (None, None) => sync.source.clone(),
    };
    let document = match sync.options["fields"].as_object() {
        Some(fields) => {
            let fields = fields.iter().map(|(field, column)| {
                format!("t.{} AS {}", quoted(column.as_str().unwrap_or_default()), quoted(field))
            });
            format!("(SELECT row_to_json(d) FROM (SELECT {}) AS d)", fields.collect::<Vec<_>>().join(", "))
        }
        None if sync.options["document_column"] == true => "t.document".to_owned(),
        None => document.to_owned(),
    };
    let columns = sync.address_columns.iter().map(|column| {
        // Not a cast to text, which takes the blanks off a char(n).
        let column = quoted(column);
        format!("CASE WHEN t.{column} IS NOT NULL THEN format('%s', t.{column}) END")
    });
    let columns = columns.collect::<Vec<_>>().join(", ");
    let rows = db.rows(&format!("SELECT {document}::text, to_json(ARRAY[{columns}])::text FROM {from} AS t"));
    let entries = rows.into_iter().map(|row| {
        let json = |i: usize| -> Value {
            serde_json::from_str(row[i].as_deref().unwrap_or("null")).expect("JSON from row_to_json")
        };
        let address = json(1);
        let texts: Vec<Option<&str>> = address.as_array().into_iter().flatten().map(Value::as_str).collect();
        Entry { name: name(sync, &texts), value: json(0) }
    });
    entries.collect()
}

/// The id or Redis key of a row, if none of its characters needs escaping.
fn name(sync: &Sync, address: &[Option<&str>]) -> Option<String> {
    let plain = |text: &str| {
        !text.is_empty() && text.len() < 50 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let texts: Vec<&str> = address.iter().map(|text| text.filter(|text| plain(text))).collect::<Option<_>>()?;
    if sync.kind == "index" {
        return Some(texts[..sync.key_columns.len()].join(":"));
    }
    let mut key = sync.target.clone();
    for (column, text) in sync.address_columns.iter().zip(texts) {
        key = key.replace(&format!("${{{column}}}"), text);
    }
    Some(key)
}

/// What the target holds.
fn found(sync: &Sync) -> Vec<Entry> {
    if sync.kind == "index" {
        let documents = Engine::behind(&sync.server).documents(&sync.target);
        return documents.into_iter().map(|it| Entry { name: Some(it.id), value: it.source }).collect();
    }
    // All keys of a template begin with what stands before its first column.
    let prefix = sync.target.split("${").next().unwrap_or_default();
    let mut redis = sync.cluster.as_deref().map_or_else(Keyspace::open, Keyspace::of_cluster);
    let pairs = if sync.format == "hash" { redis.hashes(prefix) } else { redis.json(prefix) };
    pairs.into_iter().map(|(key, value)| Entry { name: Some(key), value }).collect()
}

/// Rows and documents are matched by the values of the key columns, which every document contains: so this needs to
/// know nothing about how ids are escaped.
fn compare(key_columns: &[String], rows: Vec<Entry>, documents: Vec<Entry>) -> Vec<String> {
    let key = |value: &Value| -> String {
        Value::Array(key_columns.iter().map(|column| value[column].clone()).collect()).to_string()
    };
    let mut differences = Vec::new();
    let mut held: BTreeMap<String, Entry> = BTreeMap::new();
    for document in documents {
        let name = document.name.clone().unwrap_or_default();
        if let Some(twin) = held.insert(key(&document.value), document) {
            differences.push(format!("twice: the same row as \"{name}\" and as \"{}\"", twin.name.unwrap_or_default()));
        }
    }
    for row in rows {
        let key = key(&row.value);
        match held.remove(&key) {
            None => differences.push(format!("missing: {}", row.value)),
            Some(document) if document.value != row.value => {
                differences.push(format!("different: row {} but document {}", row.value, document.value));
            }
            Some(document) if row.name.is_some() && document.name != row.name => {
                differences.push(format!("misnamed: {:?} should be {:?}", document.name, row.name));
            }
            Some(_) => {}
        }
    }
    for document in held.into_values() {
        differences.push(format!("extra: {} {}", document.name.unwrap_or_default(), document.value));
    }
    differences
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entries(values: &[(&str, Value)]) -> Vec<Entry> {
        let entries = values.iter().map(|(name, value)| Entry { name: Some((*name).into()), value: value.clone() });
        entries.collect()
    }

    fn compared(rows: &[(&str, Value)], documents: &[(&str, Value)]) -> Vec<String> {
        compare(&["id".into()], entries(rows), entries(documents))
    }

    #[test]
    fn equal_sides_have_no_differences_in_whatever_order() {
        let (one, two) = (("1", json!({"id": 1, "a": null})), ("2", json!({"id": 2})));
        assert_eq!(compared(&[one.clone(), two.clone()], &[two, one]), Vec::<String>::new());
    }

    #[test]
    fn each_kind_of_difference_is_told() {
        let row = ("1", json!({"id": 1, "a": 1}));
        let cases = [
            (vec![row.clone()], vec![], "missing"),
            (vec![], vec![row.clone()], "extra"),
            (vec![row.clone()], vec![("1", json!({"id": 1, "a": 2}))], "different"),
            (vec![row.clone()], vec![("1", json!({"id": 1}))], "different"),
            (vec![row.clone()], vec![("x1", row.1.clone())], "misnamed"),
            (vec![row.clone()], vec![("1", row.1.clone()), ("01", row.1.clone())], "twice"),
        ];
        for (rows, documents, kind) in cases {
            let differences = compared(&rows, &documents);
            assert!(differences.iter().any(|it| it.starts_with(kind)), "{kind}: {differences:?}");
        }
    }
}
