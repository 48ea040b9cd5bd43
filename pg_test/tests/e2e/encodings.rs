//! Databases whose text need not be UTF-8.

use pg_test::{Engine, Keyspace, Session, World};

/// A database of that encoding with the extension and the servers of `world`.
fn database(world: &mut World, encoding: &str) -> (String, Session) {
    let name = format!("{}_{}", world.database(), encoding.to_lowercase());
    Session::connect("postgres")
        .exec(&format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"));
    let mut db = Session::connect(&name);
    db.exec("CREATE EXTENSION pg_fanout");
    let servers = world.db.rows("SELECT srvname, fdwname, srvoptions[1] FROM pg_foreign_server s JOIN pg_foreign_data_wrapper f ON f.oid = s.srvfdw");
    for server in servers {
        let field = |n: usize| server[n].clone().unwrap_or_default();
        let url = field(2).replace("url=", "");
        db.exec(&format!("CREATE SERVER {} FOREIGN DATA WRAPPER {} OPTIONS (url '{url}')", field(0), field(1)));
    }
    (name, db)
}

#[test]
fn what_is_not_utf8_is_a_dead_letter_and_its_neighbours_arrive() {
    let mut world = World::new("sql_ascii");
    let (name, mut db) = database(&mut world, "SQL_ASCII");
    db.exec(
        "CREATE TABLE word (id text PRIMARY KEY, word text);
         INSERT INTO word VALUES ('a', 'plain'), ('b', convert_from('\\xc3a9'::bytea, 'SQL_ASCII')),
             ('c', convert_from('\\xe9'::bytea, 'SQL_ASCII')), (convert_from('\\xff'::bytea, 'SQL_ASCII'), 'key'),
             (convert_from('\\xfe'::bytea, 'SQL_ASCII'), 'another key')",
    );
    let index = world.index_name("word");
    let prefix = world.key_prefix("word");
    db.exec(&format!(
        "SELECT fanout.index_table('word', server => 'search', index => '{index}', name => 'index');
         SELECT fanout.cache_table('word', server => 'cache', key => '{prefix}${{id}}', name => 'cache')"
    ));
    for sync in ["index", "cache"] {
        db.exec(&format!("SELECT fanout.wait('{sync}', '60s')"));
        let letters = db.rows(&format!("SELECT reason FROM fanout.dead_letters WHERE sync = '{sync}'"));
        assert_eq!(letters.len(), 3, "{letters:?}");
        assert!(
            letters.iter().all(|row| row[0].as_deref().unwrap_or_default().contains("not valid UTF-8")),
            "{letters:?}"
        );
    }
    let documents = Engine::opensearch().documents(&index);
    let words: Vec<_> = documents.iter().map(|document| document.source["word"].as_str().unwrap_or_default()).collect();
    assert_eq!(words.len(), 2, "{words:?}");
    assert!(words.contains(&"plain") && words.contains(&"\u{e9}"), "{words:?}");
    assert_eq!(Keyspace::open().json(&prefix).len(), 2);
    // Put right, they arrive; deleted, they are gone.
    db.exec("UPDATE word SET word = 'plain too' WHERE id = 'c'; DELETE FROM word WHERE word = 'key'");
    db.exec("SELECT fanout.wait('cache', '60s')");
    assert_eq!(Keyspace::open().json(&prefix).len(), 3);
    drop(db);
    Session::connect("postgres").exec(&format!("DROP DATABASE {name} WITH (FORCE)"));
}

#[test]
fn an_encoding_that_is_not_utf8_is_refused() {
    let mut world = World::new("latin1");
    let (name, mut db) = database(&mut world, "LATIN1");
    db.exec("CREATE TABLE word (id int PRIMARY KEY)");
    for call in [
        "SELECT fanout.index_table('word', server => 'search')",
        "SELECT * FROM es_search_index('search', 'word')",
        "SELECT redis_get('cache', 'word')",
    ] {
        let refusal = db.refusal(call);
        assert_eq!(refusal.code, "0A000", "{call}: {refusal}");
        assert!(refusal.message.contains("LATIN1"), "{call}: {refusal}");
    }
    drop(db);
    Session::connect("postgres").exec(&format!("DROP DATABASE {name} WITH (FORCE)"));
}
