//! Tables that several tests use.

use pg_test::World;

/// A table of products with rows 1 to `rows`.
pub fn products(world: &mut World, rows: u32) {
    world.db.exec(
        "CREATE TABLE product (
             id bigint PRIMARY KEY,
             name text NOT NULL,
             price numeric(10,2),
             tags text[],
             attributes jsonb,
             made timestamptz NOT NULL DEFAULT now(),
             active boolean NOT NULL DEFAULT true
         )",
    );
    more_products(world, 1, rows);
}

/// Adds products with ids `first` to `last`.
pub fn more_products(world: &mut World, first: u32, last: u32) {
    world.db.exec(&format!(
        "INSERT INTO product (id, name, price, tags, attributes)
         SELECT i, 'trail shoe ' || i, i * 1.25, ARRAY['shoe', 'n' || i % 7], jsonb_build_object('size', i % 50)
         FROM generate_series({first}, {last}) AS i"
    ));
}
