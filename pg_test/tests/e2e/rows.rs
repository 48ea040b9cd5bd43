//! `es_rows()`: the rows themselves, in the order of the hits.

use crate::tables::products;
use pg_test::{Engine, World, on_each_engine};

on_each_engine!(rows_come_typed_and_in_rank_order, row_level_security_applies);

fn rows_come_typed_and_in_rank_order(world: &mut World, engine: &Engine) {
    products(world, 50);
    let sync = world.index_table("product", engine, ", search_fields => '{name}'");
    world.wait(&sync);
    let query = format!(
        r#"SELECT id, pg_typeof(price), price FROM es_rows(NULL::product, '{sync}', 'trail', sort => '[{{"price": "desc"}}]', size => 5)"#
    );
    let rows = world.db.rows(&query);
    let ids: Vec<_> = rows.iter().filter_map(|row| row[0].as_deref()).collect();
    assert_eq!(ids, ["50", "49", "48", "47", "46"]);
    assert_eq!(rows[0][1].as_deref(), Some("numeric"));
    // The row is the table's, not the index's: deleted here, it is not found, whatever the index still says.
    world.db.exec("BEGIN; DELETE FROM product WHERE id = 50; UPDATE product SET price = 0 WHERE id = 49");
    let rows = world.db.rows(&query);
    assert!(rows.iter().all(|row| row[0].as_deref() != Some("50")), "{rows:?}");
    let changed = rows.iter().find(|row| row[0].as_deref() == Some("49")).and_then(|row| row[2].clone());
    assert_eq!(changed.as_deref(), Some("0.00"));
    world.db.exec("ROLLBACK");
}

fn row_level_security_applies(world: &mut World, engine: &Engine) {
    products(world, 50);
    let sync = world.index_table("product", engine, ", search_fields => '{name}'");
    world.wait(&sync);
    let (role, mut session) = world.role("shopper");
    let server = engine.server;
    world.db.exec(&format!(
        "ALTER TABLE product ENABLE ROW LEVEL SECURITY;
         CREATE POLICY cheap ON product TO {role} USING (price < 10);
         GRANT SELECT ON product TO {role};
         GRANT USAGE ON FOREIGN SERVER {server} TO {role}"
    ));
    let ids =
        session.column(&format!("SELECT id FROM es_rows(NULL::product, '{sync}', 'trail', size => 50) ORDER BY id"));
    let expected = world.db.column("SELECT id FROM product WHERE price < 10 ORDER BY id");
    assert_eq!(ids, expected);
    // The worker goes on: a policy must not empty the index.
    world.db.exec("UPDATE product SET active = false");
    pg_test::assert_in_step(world, &sync);
}
