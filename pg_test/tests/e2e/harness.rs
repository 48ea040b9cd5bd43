//! What the tests stand on, tried without the extension.

use pg_test::{Engine, Keyspace, World, readme};
use serde_json::json;

#[test]
fn every_document_of_an_index_is_read() {
    let world = World::bare("harness_index");
    for engine in [Engine::opensearch(), Engine::elasticsearch()] {
        let index = world.index_name("product");
        engine.ask("PUT", &format!("/{index}"), Some(json!({})));
        for id in 0..20 {
            engine.ask("PUT", &format!("/{index}/_doc/{id}"), Some(json!({"id": id})));
        }
        engine.refresh(&index);
        let documents = engine.documents(&index);
        let mut ids: Vec<u32> = documents.iter().map(|it| it.id.parse().expect("a number")).collect();
        ids.sort();
        assert_eq!(ids, (0..20).collect::<Vec<_>>(), "{}", engine.name);
        engine.clean(&world.tag);
        assert!(!engine.exists(&index), "{}", engine.name);
    }
}

#[test]
fn keys_with_the_prefix_are_read_and_no_others() {
    let world = World::bare("harness_keys");
    let mut redis = Keyspace::open();
    let prefix = world.key_prefix("product");
    redis.set(&format!("{prefix}1"), r#"{"id":1}"#);
    redis.set(&format!("{prefix}*"), r#"{"id":2}"#);
    redis.set(&format!("x{prefix}3"), r#"{"id":3}"#);
    assert_eq!(
        redis.json(&prefix),
        [(format!("{prefix}*"), json!({"id": 2})), (format!("{prefix}1"), json!({"id": 1}))]
    );
    redis.clean(&world.tag);
    assert!(redis.keys(&prefix).is_empty());
}

#[test]
fn the_sql_of_a_document_is_run_by_psql() {
    let world = World::bare("harness_readme");
    let markdown = "```sql\nCREATE TABLE t (a int);\nINSERT INTO t VALUES (7);\n```\n```sql\nSELECT a FROM t;\n```\n\
                    ```text\n a\n---\n 7\n```\n";
    readme::run("x.md", &world.database(), &readme::steps(markdown));
}

#[test]
#[should_panic(expected = "the SQL at line 2 of x.md fails")]
fn sql_of_a_document_that_fails_is_named_by_its_line() {
    let world = World::bare("harness_readme_error");
    readme::run("x.md", &world.database(), &readme::steps("```sql\nSELECT 1;\nSELECT nonsense;\n```\n"));
}
