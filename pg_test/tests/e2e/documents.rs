//! Documents that are more, or less, than a row: chosen columns, a predicate, a query, and the tables that feed it.

use crate::refusals::refused;
use pg_test::{Dice, Engine, World, assert_in_step, eventually, on_each_engine};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

on_each_engine!(
    a_document_of_eight_tables_follows_each_of_them,
    aggregates_keep_right_as_rows_come_and_go,
    rows_that_leave_the_predicate_leave_the_index,
    columns_are_chosen_and_renamed,
    a_query_by_a_composite_key,
    a_tree_is_followed_by_a_recursive_query,
    rows_that_are_their_own_ancestors_end_a_recursive_query,
    partitions_of_a_related_table_are_followed,
    tables_that_inherit_from_a_related_one_are_followed,
    fields_of_nested_objects_match_together,
    a_relation_that_is_declared_later_misses_nothing,
    two_rows_for_a_key_are_a_dead_letter,
    a_materialized_view_is_followed_by_its_refreshes,
    a_disabled_trigger_of_a_related_table_is_told_and_what_it_missed_is_found,
);

/// Seven tables that feed the documents of `product`, with rows in all.
fn shop(world: &mut World, products: u32) {
    world.db.exec(&format!(
        "CREATE TABLE category (id int PRIMARY KEY, name text NOT NULL);
         CREATE TABLE brand (id int PRIMARY KEY, name text NOT NULL);
         CREATE TABLE product (id bigint PRIMARY KEY, name text, category_id int REFERENCES category ON DELETE SET NULL,
             brand_id int REFERENCES brand ON UPDATE CASCADE);
         CREATE TABLE variant (id int PRIMARY KEY, product_id bigint NOT NULL REFERENCES product ON DELETE CASCADE, sku text);
         CREATE TABLE price (variant_id int REFERENCES variant ON DELETE CASCADE, currency text, amount numeric(10,2),
             PRIMARY KEY (variant_id, currency));
         CREATE TABLE stock (variant_id int PRIMARY KEY REFERENCES variant ON DELETE CASCADE, quantity int);
         CREATE TABLE review (id int PRIMARY KEY, product_id bigint REFERENCES product ON DELETE CASCADE, stars int);
         CREATE TABLE tag (id int PRIMARY KEY, name text NOT NULL);
         CREATE TABLE product_tag (product_id bigint REFERENCES product ON DELETE CASCADE ON UPDATE CASCADE,
             tag_id int REFERENCES tag ON DELETE CASCADE, PRIMARY KEY (product_id, tag_id));
         CREATE INDEX ON product (category_id); CREATE INDEX ON product (brand_id); CREATE INDEX ON variant (product_id);
         CREATE INDEX ON review (product_id); CREATE INDEX ON product_tag (tag_id);
         INSERT INTO category SELECT i, 'category ' || i FROM generate_series(0, 9) AS i;
         INSERT INTO brand SELECT i, 'brand ' || i FROM generate_series(0, 9) AS i;
         INSERT INTO product SELECT i, 'product ' || i, i % 10, i % 10 FROM generate_series(0, {last}) AS i;
         INSERT INTO variant SELECT i, i % {products}, 'sku' || i FROM generate_series(0, 2 * {last}) AS i;
         INSERT INTO price SELECT i, 'EUR', i FROM generate_series(0, 2 * {last}) AS i;
         INSERT INTO stock SELECT i, i % 5 FROM generate_series(0, 2 * {last}) AS i;
         INSERT INTO review SELECT i, i % {products}, i % 6 FROM generate_series(0, {last}) AS i;
         INSERT INTO tag SELECT i, 'tag ' || i FROM generate_series(0, 9) AS i;
         INSERT INTO product_tag SELECT i, i % 10 FROM generate_series(0, {last}) AS i",
        last = products - 1,
    ));
}

const PRODUCT: &str = "document => $$
    SELECT p.id, p.name, c.name AS category, b.name AS brand,
        (SELECT json_agg(json_build_object(''sku'', v.sku, ''stock'', s.quantity,
                    ''prices'', (SELECT json_object_agg(currency, amount ORDER BY currency) FROM price WHERE variant_id = v.id))
                ORDER BY v.id)
            FROM variant v LEFT JOIN stock s ON s.variant_id = v.id WHERE v.product_id = p.id) AS variants,
        r.stars, r.reviews,
        (SELECT json_agg(t.name ORDER BY t.id) FROM product_tag pt JOIN tag t ON t.id = pt.tag_id WHERE pt.product_id = p.id) AS tags
    FROM product p
    LEFT JOIN category c ON c.id = p.category_id
    LEFT JOIN brand b ON b.id = p.brand_id
    LEFT JOIN (SELECT product_id, sum(stars) AS stars, count(*) AS reviews FROM review GROUP BY product_id) r
        ON r.product_id = p.id
    -- a comment at the end $$";

/// Declares all relations that foreign keys suggest.
fn relate(world: &mut World, sync: &str) {
    let statements = world.db.rows(&format!("SELECT DISTINCT statement FROM fanout.propose_relations('{sync}')"));
    for statement in statements {
        world.db.exec(statement[0].as_deref().expect("a statement"));
    }
    let left = world.db.value(&format!("SELECT count(*) FROM fanout.propose_relations('{sync}')"));
    assert_eq!(left, "0", "all tables are declared");
}

fn product_sync(world: &mut World, engine: &Engine) -> String {
    let document = PRODUCT.replace("''", "'");
    world.db.exec("BEGIN");
    let sync = world.index_table("product", engine, &format!(", {document}"));
    relate(world, &sync);
    world.db.exec("COMMIT");
    sync
}

/// A statement that changes one of the tables at random.
fn change(dice: &mut Dice) -> String {
    let (product, few, any) = (dice.below(120), dice.below(10), dice.below(1_000_000));
    let (variant, other) = (dice.below(240), dice.below(120));
    match dice.below(18) {
        0 => format!("UPDATE category SET name = 'c{any}' WHERE id = {few}"),
        1 => format!("UPDATE brand SET name = 'b{any}' WHERE id = {few}"),
        2 => format!("UPDATE brand SET id = {few} + 100 - 2 * (id / 100) * 50 - (id / 100) * {few} WHERE id = {few}"),
        3 => format!("UPDATE product SET category_id = {few}, name = 'p{any}' WHERE id = {product}"),
        4 => format!("DELETE FROM product WHERE id = {product}"),
        5 => format!(
            "INSERT INTO product SELECT {product}, 'new', {few}, min(id) FROM brand ON CONFLICT (id) DO UPDATE SET name = 'again'"
        ),
        6 => format!("UPDATE variant SET product_id = (SELECT min(id) FROM product WHERE id >= {other} % 60) WHERE id = {variant}"),
        7 => format!("DELETE FROM variant WHERE id = {variant}"),
        8 => format!(
            "INSERT INTO variant SELECT {variant}, min(id), 'v{any}' FROM product WHERE id >= {other} % 60 HAVING count(*) > 0
             ON CONFLICT (id) DO UPDATE SET sku = 'again'"
        ),
        9 => format!(
            "INSERT INTO price SELECT id, 'USD', {any} % 1000 FROM variant WHERE id = {variant}
             ON CONFLICT (variant_id, currency) DO UPDATE SET amount = excluded.amount"
        ),
        10 => format!("DELETE FROM price WHERE variant_id = {variant} AND currency = 'EUR'"),
        11 => format!(
            "INSERT INTO stock SELECT id, {few} FROM variant WHERE id = {variant}
             ON CONFLICT (variant_id) DO UPDATE SET quantity = {few}"
        ),
        12 => format!("UPDATE review SET stars = {few} % 6, product_id = (SELECT max(id) FROM product WHERE id < {other}) WHERE id = {product}"),
        13 => format!("DELETE FROM review WHERE id = {product}"),
        14 => format!("UPDATE tag SET name = 't{any}' WHERE id = {few}"),
        15 => format!(
            "INSERT INTO product_tag SELECT p.id, t.id FROM product p, tag t WHERE p.id = {product} AND t.id = {few} ON CONFLICT DO NOTHING"
        ),
        16 => format!("DELETE FROM product_tag WHERE product_id = {product} OR (tag_id = {few} AND product_id % 7 = 0)"),
        _ => format!("UPDATE product SET id = id + 1000 WHERE id = {product} AND NOT EXISTS (SELECT FROM variant WHERE product_id = {product}) AND NOT EXISTS (SELECT FROM review WHERE product_id = {product}) AND NOT EXISTS (SELECT FROM product WHERE id = {product} + 1000)"),
    }
}

fn a_document_of_eight_tables_follows_each_of_them(world: &mut World, engine: &Engine) {
    shop(world, 120);
    let sync = product_sync(world, engine);
    assert_in_step(world, &sync);
    let mut dice = Dice::new();
    for _ in 0..3 {
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let (mut db, mut dice) = (world.connect(), dice.fork());
                std::thread::spawn(move || {
                    for _ in 0..40 {
                        let statements: Vec<String> = (0..1 + dice.below(3)).map(|_| change(&mut dice)).collect();
                        let end = if dice.once_in(5) { "ROLLBACK" } else { "COMMIT" };
                        // A deadlock or a broken foreign key ends the transaction: nothing of it happened then.
                        let _ = db.try_exec(&format!("BEGIN; {}; {end}", statements.join("; ")));
                        let _ = db.try_exec("ROLLBACK");
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
        assert_in_step(world, &sync);
    }
    world.db.exec("TRUNCATE review");
    assert_in_step(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
    // Nothing of ours stays behind on any of the tables.
    world.db.exec(&format!("SELECT fanout.drop_sync('{sync}')"));
    assert_eq!(world.db.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'fanout%'"), "0");
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.relation"), "0");
}

fn aggregates_keep_right_as_rows_come_and_go(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE customer (id int PRIMARY KEY, name text);
         CREATE TABLE orders (id int PRIMARY KEY, customer_id int REFERENCES customer, total numeric, placed date);
         CREATE INDEX ON orders (customer_id);
         INSERT INTO customer SELECT i, 'customer ' || i FROM generate_series(1, 300) AS i;
         INSERT INTO orders SELECT i, 1 + i % 300, i, date '2026-01-01' + i % 100 FROM generate_series(1, 3000) AS i",
    );
    world.db.exec("BEGIN");
    let sync = world.index_table(
        "customer",
        engine,
        ", document => 'SELECT c.id, c.name, count(o.id) AS orders, coalesce(sum(o.total), 0) AS turnover, max(o.placed) AS last_order
            FROM customer c LEFT JOIN orders o ON o.customer_id = c.id GROUP BY c.id'",
    );
    relate(world, &sync);
    world.db.exec("COMMIT");
    assert_in_step(world, &sync);
    world.db.exec("DELETE FROM orders WHERE id % 3 = 0; UPDATE orders SET total = total * 2 WHERE id % 7 = 0");
    world.db.exec("UPDATE orders SET customer_id = 300 - customer_id % 5 WHERE id % 11 = 0");
    world.db.exec("INSERT INTO orders SELECT i, i % 9 + 1, 5, '2027-01-01' FROM generate_series(5000, 5100) AS i");
    assert_in_step(world, &sync);
    let hits = world.db.value(&format!(
        "SELECT count(*) FROM es_search('{sync}', filter => '{{\"range\": {{\"last_order\": {{\"gte\": \"2027-01-01\"}}}}}}')"
    ));
    assert_eq!(hits, "9", "what a query computes is mapped by its type");
}

fn rows_that_leave_the_predicate_leave_the_index(world: &mut World, engine: &Engine) {
    crate::tables::products(world, 400);
    world.db.exec("UPDATE product SET active = id % 4 <> 0");
    let sync = world.index_table("product", engine, ", predicate => 'active AND price < 300'");
    let cache = world.cache_table("product", ", predicate => 'product.active'");
    assert_in_step(world, &sync);
    assert_in_step(world, &cache);
    world
        .db
        .exec("UPDATE product SET active = NOT active WHERE id % 3 = 0; UPDATE product SET price = 299 WHERE id > 380");
    world.db.exec("DELETE FROM product WHERE id % 10 = 0");
    assert_in_step(world, &sync);
    assert_in_step(world, &cache);
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    assert_in_step(world, &sync);
}

fn columns_are_chosen_and_renamed(world: &mut World, engine: &Engine) {
    crate::tables::products(world, 50);
    let sync = world.index_table(
        "product",
        engine,
        ", columns => '{id, name, price}', rename => '{\"name\": \"title\", \"price\": \"list price\"}', search_fields => '{title^2}'",
    );
    assert_in_step(world, &sync);
    let found = world.db.value(&format!("SELECT source FROM es_search('{sync}', 'shoe 7', size => 1)"));
    assert_eq!(found, r#"{"id": 7, "title": "trail shoe 7", "list price": 8.75}"#);
    // A change of a column that is not in the document is delivered all the same, and changes nothing.
    world.db.exec("UPDATE product SET active = false; UPDATE product SET price = 1 WHERE id = 3");
    assert_in_step(world, &sync);
}

fn a_query_by_a_composite_key(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE line (order_id int, number text, article int, PRIMARY KEY (order_id, number));
         CREATE TABLE note (order_id int, number text, note text);
         INSERT INTO line SELECT i / 3, 'n' || i % 3, i FROM generate_series(0, 600) AS i;
         INSERT INTO note SELECT i / 3, 'n' || i % 3, 'note ' || i FROM generate_series(0, 600, 2) AS i",
    );
    world.db.exec("BEGIN");
    let sync = world.index_table(
        "line",
        engine,
        ", document => 'SELECT l.order_id, l.number, l.article, string_agg(n.note, '','' ORDER BY n.note) AS notes
            FROM line l LEFT JOIN note n USING (order_id, number) GROUP BY l.order_id, l.number, l.article'",
    );
    // No foreign key: the columns say it.
    world.db.exec(&format!("SELECT fanout.related('{sync}', 'note', columns => '{{order_id, number}}')"));
    world.db.exec("COMMIT");
    assert_in_step(world, &sync);
    world
        .db
        .exec("UPDATE note SET order_id = order_id + 1 WHERE order_id % 5 = 0; DELETE FROM note WHERE number = 'n2'");
    world
        .db
        .exec("UPDATE line SET number = number || 'x' WHERE order_id < 10; INSERT INTO note VALUES (7, 'n1x', 'late')");
    assert_in_step(world, &sync);
}

fn a_tree_is_followed_by_a_recursive_query(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE node (id int PRIMARY KEY, parent int REFERENCES node, name text);
         INSERT INTO node SELECT i, nullif(i / 4, 0), 'n' || i FROM generate_series(1, 300) AS i",
    );
    world.db.exec("BEGIN");
    let sync = world.index_table(
        "node",
        engine,
        ", document => 'SELECT n.id, n.name, (WITH RECURSIVE up(id, parent, name, depth) AS (
                SELECT id, parent, name, 0 FROM node WHERE id = n.id
                UNION ALL SELECT p.id, p.parent, p.name, up.depth + 1 FROM node p JOIN up ON p.id = up.parent)
            SELECT string_agg(name, '' > '' ORDER BY depth DESC) FROM up) AS path FROM node n'",
    );
    let error = world.db.refusal(&format!("SELECT fanout.related('{sync}', 'node')"));
    assert_eq!(error.code, "22023");
    assert!(error.message.contains("is the source of the sync itself"), "{error:?}");
    world.db.exec("ROLLBACK; BEGIN");
    let sync = world.index_table(
        "node",
        engine,
        ", document => 'SELECT n.id, n.name, (WITH RECURSIVE up(id, parent, name, depth) AS (
                SELECT id, parent, name, 0 FROM node WHERE id = n.id
                UNION ALL SELECT p.id, p.parent, p.name, up.depth + 1 FROM node p JOIN up ON p.id = up.parent)
            SELECT string_agg(name, '' > '' ORDER BY depth DESC) FROM up) AS path FROM node n'",
    );
    assert_eq!(world.db.value(&format!("SELECT source FROM fanout.propose_relations('{sync}')")), "public.node");
    world.db.exec(&format!(
        "SELECT fanout.related('{sync}', 'node', columns => '{{id}}', keys => 'WITH RECURSIVE down(id) AS (
             SELECT id FROM changed UNION SELECT n.id FROM node n JOIN down ON n.parent = down.id) SELECT id FROM down')"
    ));
    world.db.exec("COMMIT");
    assert_in_step(world, &sync);
    world.db.exec("UPDATE node SET name = 'top' WHERE id = 1; UPDATE node SET parent = 2 WHERE id = 40");
    assert_in_step(world, &sync);
    world.db.exec("UPDATE node SET name = 'moved' WHERE id = 2");
    assert_in_step(world, &sync);
}

/// As docs/documents.md shows it.
fn rows_that_are_their_own_ancestors_end_a_recursive_query(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE node (id int PRIMARY KEY, parent int REFERENCES node, name text);
         INSERT INTO node SELECT i, nullif(i / 3, 0), 'n' || i FROM generate_series(1, 60) AS i; BEGIN",
    );
    let sync = world.index_table(
        "node",
        engine,
        ", document => 'SELECT n.id, (WITH RECURSIVE up AS (
                SELECT id, parent, name, 0 AS depth FROM node WHERE id = n.id
                UNION ALL SELECT p.id, p.parent, p.name, depth + 1 FROM node p JOIN up ON p.id = up.parent)
                CYCLE id SET again USING way
            SELECT string_agg(name, '' > '' ORDER BY depth DESC) FROM up WHERE NOT again) AS path FROM node n'",
    );
    world.db.exec(&format!(
        "SELECT fanout.related('{sync}', 'node', columns => '{{id}}', keys => 'WITH RECURSIVE down AS (
             SELECT id FROM changed UNION SELECT n.id FROM node n JOIN down ON n.parent = down.id) SELECT id FROM down'); COMMIT"
    ));
    assert_in_step(world, &sync);
    // The root under its own descendant, a node under itself, and a ring of two.
    for statement in [
        "UPDATE node SET parent = 27 WHERE id = 1",
        "UPDATE node SET parent = 5 WHERE id = 5",
        "UPDATE node SET parent = 8 WHERE id = 2; UPDATE node SET name = 'renamed' WHERE id = 8",
        "UPDATE node SET parent = NULL WHERE id IN (1, 5, 2)",
    ] {
        world.db.exec(statement);
        let begun = Instant::now();
        assert_in_step(world, &sync);
        assert!(begun.elapsed() < Duration::from_secs(10), "{statement}: {:?}", begun.elapsed());
        assert_eq!((world.status(&sync, "state"), world.status(&sync, "last_error")), ("live".into(), "NULL".into()));
    }
}

fn a_relation_that_is_declared_later_misses_nothing(world: &mut World, engine: &Engine) {
    shop(world, 30);
    let sync = world.index_table("product", engine, &format!(", {}", PRODUCT.replace("''", "'")));
    world.wait(&sync);
    // Nobody captures this.
    world.db.exec("UPDATE category SET name = 'unseen'");
    relate(world, &sync);
    assert_in_step(world, &sync);
    world.db.exec("UPDATE category SET name = 'seen'");
    assert_in_step(world, &sync);
    let error = world.db.refusal(&format!("SELECT fanout.related('{sync}', 'category')"));
    assert_eq!(error.code, "42710", "{error:?}");
    assert_eq!(world.db.value(&format!("SELECT fanout.drop_related('{sync}', 'category')")), "1");
    assert_eq!(
        world
            .db
            .value("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'category'::regclass AND tgname LIKE 'fanout%'"),
        "0"
    );
    // A type of a captured column changes: what is pending of the old type says nothing.
    world.db.exec(
        "ALTER TABLE price DROP CONSTRAINT price_variant_id_fkey; ALTER TABLE price ALTER variant_id TYPE bigint",
    );
    world.db.exec("UPDATE price SET amount = amount + 1 WHERE variant_id = 3");
    assert_in_step(world, &sync);
}

fn two_rows_for_a_key_are_a_dead_letter(world: &mut World, engine: &Engine) {
    shop(world, 20);
    world.db.exec("BEGIN");
    let sync = world.index_table(
        "product",
        engine,
        ", document => 'SELECT p.id, p.name, s.quantity FROM product p LEFT JOIN variant v ON v.product_id = p.id
            LEFT JOIN stock s ON s.variant_id = v.id WHERE v.id IS NULL OR v.id < 20 OR v.id = 38'",
    );
    relate(world, &sync);
    world.db.exec("COMMIT");
    world.wait(&sync);
    let row = &world.db.rows("SELECT id, reason FROM fanout.dead_letters")[..];
    assert_eq!(row.len(), 1, "{row:?}");
    assert_eq!(row[0][0].as_deref(), Some("18"));
    assert!(row[0][1].as_deref().unwrap_or_default().contains("yields two rows for one key"), "{row:?}");
    world.db.exec("DELETE FROM variant WHERE id = 38");
    assert_in_step(world, &sync);
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.dead_letters"), "0");
}

fn a_disabled_trigger_of_a_related_table_is_told_and_what_it_missed_is_found(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE brand (id int PRIMARY KEY, name text);
         CREATE TABLE product (id int PRIMARY KEY, brand_id int REFERENCES brand);
         INSERT INTO brand VALUES (1, 'a'), (2, 'b'); INSERT INTO product SELECT i, 1 + i % 2 FROM generate_series(1, 50) AS i",
    );
    let query = "SELECT p.id, b.name FROM product p JOIN brand b ON b.id = p.brand_id";
    let sync = world.index_table("product", engine, &format!(", document => '{query}'"));
    world.db.exec(&format!("SELECT fanout.related('{sync}', 'brand')"));
    assert_in_step(world, &sync);
    world.db.exec("ALTER TABLE brand DISABLE TRIGGER USER");
    eventually("it is told", Duration::from_secs(20), || world.status(&sync, "last_error").contains("not captured"));
    world.db.exec("UPDATE brand SET name = 'unseen' WHERE id = 1");
    let enable = world.db.value(
        "SELECT string_agg(format('ALTER TABLE brand ENABLE ALWAYS TRIGGER %I', tgname), ';') FROM pg_trigger
         WHERE tgrelid = 'brand'::regclass AND NOT tgisinternal",
    );
    world.db.exec(&enable);
    assert_in_step(world, &sync);
    // The word 'today' is no time where it is read as text.
    let sync =
        world.cache_table("product", &format!(", name => 'words', document => $${query} WHERE b.name <> 'today'$$"));
    assert_in_step(world, &sync);
}

fn a_materialized_view_is_followed_by_its_refreshes(world: &mut World, engine: &Engine) {
    crate::tables::products(world, 100);
    world.db.exec(
        "CREATE MATERIALIZED VIEW size AS SELECT (attributes->>'size')::int AS size, count(*) AS products FROM product GROUP BY 1;
         CREATE TABLE label (size int PRIMARY KEY, label text);
         INSERT INTO label SELECT i, 'size ' || i FROM generate_series(0, 60) AS i",
    );
    let refusal = world.db.refusal(&format!("SELECT fanout.index_table('size', server => '{}')", engine.server));
    assert!(refusal.hint.contains("CREATE UNIQUE INDEX"), "{refusal:?}");
    world.db.exec("CREATE UNIQUE INDEX ON size (size)");
    let sync = world.index_table("size", engine, "");
    world.db.exec("BEGIN");
    let labels = world.index_table(
        "label",
        engine,
        ", document => 'SELECT l.size, l.label, s.products FROM label l LEFT JOIN size s USING (size)'",
    );
    world.db.exec(&format!("SELECT fanout.related('{labels}', 'size'); COMMIT"));
    assert_in_step(world, &sync);
    assert_in_step(world, &labels);
    world
        .db
        .exec("DELETE FROM product WHERE id % 50 = 7; UPDATE product SET attributes = '{\"size\": 55}' WHERE id < 20");
    world.db.exec("REFRESH MATERIALIZED VIEW size");
    assert_in_step(world, &sync);
    assert_in_step(world, &labels);
    world.db.exec("DELETE FROM product WHERE id % 7 = 0");
    world.db.exec("REFRESH MATERIALIZED VIEW CONCURRENTLY size");
    assert_in_step(world, &sync);
    assert_in_step(world, &labels);
    world.db.exec("DELETE FROM product WHERE id % 3 = 0; BEGIN; REFRESH MATERIALIZED VIEW size; ROLLBACK");
    assert_in_step(world, &sync);
    world.db.exec(&format!("SELECT fanout.drop_sync('{labels}')"));
}

/// Offers of an item, in a table that has parts: the documents have their sum.
fn offers(world: &mut World, engine: &Engine, tables: &str) -> String {
    world.db.exec(&format!(
        "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item SELECT generate_series(1, 200); {tables};
         INSERT INTO offer SELECT i, 1 + i % 2, i % 200 + 1, i FROM generate_series(1, 600) AS i; BEGIN"
    ));
    let sync = world.index_table(
        "item",
        engine,
        ", document => 'SELECT i.id, (SELECT sum(price) FROM offer WHERE item = i.id) AS total FROM item i'",
    );
    world.db.exec(&format!("SELECT fanout.related('{sync}', 'offer', columns => '{{item}}'); COMMIT"));
    assert_in_step(world, &sync);
    sync
}

fn partitions_of_a_related_table_are_followed(world: &mut World, engine: &Engine) {
    let sync = offers(
        world,
        engine,
        "CREATE TABLE offer (id int, month int, item int, price int, PRIMARY KEY (id, month)) PARTITION BY LIST (month);
         CREATE TABLE offer_1 PARTITION OF offer FOR VALUES IN (1);
         CREATE TABLE offer_2 PARTITION OF offer FOR VALUES IN (2)",
    );
    for statement in [
        "UPDATE offer SET price = price + 1 WHERE id % 7 = 0",
        "UPDATE offer_1 SET price = 1000 WHERE id % 11 = 0; DELETE FROM offer_2 WHERE id % 5 = 0",
        "UPDATE offer SET month = 3 - month, item = 201 - item WHERE id % 13 = 0",
        "CREATE TABLE offer_3 (price int, item int, id int NOT NULL, month int NOT NULL);
         INSERT INTO offer_3 SELECT 7, i, 5000 + i, 3 FROM generate_series(1, 50) AS i;
         ALTER TABLE offer ATTACH PARTITION offer_3 FOR VALUES IN (3)",
        "UPDATE offer_3 SET price = 8 WHERE item < 10; INSERT INTO offer VALUES (9000, 3, 77, 77)",
        "ALTER TABLE offer DETACH PARTITION offer_3",
        "UPDATE offer_3 SET price = 9; INSERT INTO offer VALUES (9001, 2, 78, 78)",
        "TRUNCATE offer_2",
        "DROP TABLE offer_1",
    ] {
        world.db.exec(statement);
        assert_in_step(world, &sync);
    }
}

fn tables_that_inherit_from_a_related_one_are_followed(world: &mut World, engine: &Engine) {
    let sync = offers(
        world,
        engine,
        "CREATE TABLE offer (id int PRIMARY KEY, kind int, item int, price int);
         CREATE TABLE sale (percent int, PRIMARY KEY (id)) INHERITS (offer);
         INSERT INTO sale SELECT 10000 + i, 1, i, 5, 10 FROM generate_series(1, 100) AS i",
    );
    for statement in [
        "UPDATE offer SET price = price + 1 WHERE id % 7 = 0",
        "UPDATE sale SET price = 6 WHERE id % 10 = 0; INSERT INTO sale VALUES (10500, 1, 150, 1, 1); DELETE FROM sale WHERE item = 3",
        "CREATE TABLE rebate (percent int, item int, id int NOT NULL, kind int, price int);
         INSERT INTO rebate SELECT 20, i, 20000 + i, 1, -1 FROM generate_series(1, 50) AS i; ALTER TABLE rebate INHERIT offer",
        "UPDATE rebate SET price = -2 WHERE item < 20",
        "TRUNCATE ONLY offer",
        "ALTER TABLE rebate NO INHERIT offer",
        "DROP TABLE sale",
    ] {
        world.db.exec(statement);
        assert_in_step(world, &sync);
    }
}

fn fields_of_nested_objects_match_together(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE product (id int PRIMARY KEY, name text);
         CREATE TABLE variant (id int PRIMARY KEY, product_id int, color text, size int);
         INSERT INTO product VALUES (1, 'red 42, blue 43'), (2, 'red 43');
         INSERT INTO variant VALUES (10, 1, 'red', 42), (11, 1, 'blue', 43), (20, 2, 'red', 43)",
    );
    let document = "document => 'SELECT p.id, p.name,
        (SELECT json_agg(json_build_object(''color'', v.color, ''size'', v.size) ORDER BY v.id)
         FROM variant v WHERE v.product_id = p.id) AS variants FROM product p'";
    let nested = world.index_table("product", engine, &format!(", types => '{{\"json\": \"nested\"}}', {document}"));
    let flat = world.db.value(&format!(
        "SELECT fanout.index_table('product', server => '{}', name => 'flat', index => 'flat_{}', {document})",
        engine.server, world.tag
    ));
    for sync in [&nested, &flat] {
        world.db.exec(&format!("SELECT fanout.related('{sync}', 'variant', columns => '{{product_id}}')"));
        assert_in_step(world, sync);
        assert_eq!(world.status(sync, "dead_letters"), "0");
    }
    let both =
        json!({"bool": {"filter": [{"term": {"variants.color.keyword": "red"}}, {"term": {"variants.size": 43}}]}});
    let found = |world: &mut World, sync: &str, filter: &Value| {
        world.db.column(&format!("SELECT id FROM es_search('{sync}', filter => '{filter}') ORDER BY id"))
    };
    assert_eq!(found(world, &flat, &both), ["1", "2"], "as objects, a color and a size of different variants match");
    let together = json!({"nested": {"path": "variants", "query": both}});
    assert_eq!(found(world, &nested, &together), ["2"], "nested, they are of one variant");
    assert_eq!(found(world, &nested, &both), Vec::<String>::new(), "and only a nested query looks into them");
    world.db.exec("UPDATE variant SET size = 43 WHERE id = 10");
    assert_in_step(world, &nested);
    assert_eq!(found(world, &nested, &together), ["1", "2"]);
}

/// Each of two tables in the documents of the other: a change of one row is a document of each, and that is all.
#[test]
fn tables_that_feed_each_other_come_to_rest() {
    let mut world = World::new("fed_by_each_other");
    let world = &mut world;
    world.db.exec(
        "CREATE TABLE author (id int PRIMARY KEY, name text, favourite int);
         CREATE TABLE book (id int PRIMARY KEY, title text, author int);
         INSERT INTO author SELECT i, 'author ' || i, i FROM generate_series(1, 100) AS i;
         INSERT INTO book SELECT i, 'book ' || i, i FROM generate_series(1, 100) AS i; BEGIN",
    );
    let authors = world.index_table(
        "author",
        &Engine::opensearch(),
        ", document => 'SELECT a.id, a.name, b.title FROM author a LEFT JOIN book b ON b.id = a.favourite'",
    );
    let books = world.cache_table(
        "book",
        ", document => 'SELECT b.id, b.title, a.name FROM book b LEFT JOIN author a ON a.id = b.author'",
    );
    world.db.exec(&format!(
        "SELECT fanout.related('{authors}', 'book', columns => '{{id}}', keys => 'SELECT a.id FROM changed JOIN author a ON a.favourite = changed.id'),
                fanout.related('{books}', 'author', columns => '{{id}}', keys => 'SELECT b.id FROM changed JOIN book b ON b.author = changed.id');
         COMMIT"
    ));
    let delivered = |world: &mut World| {
        world.db.value("SELECT sum(delivered) FROM fanout.status").parse::<u64>().expect("a number")
    };
    for sync in [&authors, &books] {
        assert_in_step(world, sync);
    }
    let before = delivered(world);
    world.db.exec("UPDATE author SET name = name || '!'; UPDATE book SET title = title || '!'");
    for sync in [&authors, &books] {
        assert_in_step(world, sync);
    }
    let after = delivered(world);
    assert!(after - before <= 400, "{} documents for 200 changed rows", after - before);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(delivered(world), after, "nothing goes round");
    // Moved at once on both sides.
    world.db.exec(
        "UPDATE author SET favourite = 101 - id; UPDATE book SET author = id % 7; DELETE FROM author WHERE id = 3",
    );
    for sync in [&authors, &books] {
        assert_in_step(world, sync);
    }
}

#[test]
fn a_cache_of_a_query_follows_its_template_column() {
    let mut world = World::new("cache_of_a_query");
    let world = &mut world;
    world.db.exec(
        "CREATE TABLE author (id int PRIMARY KEY, name text);
         CREATE TABLE page (id int PRIMARY KEY, site text NOT NULL, author_id int REFERENCES author, body text);
         INSERT INTO author SELECT i, 'author ' || i FROM generate_series(1, 10) AS i;
         INSERT INTO page SELECT i, 'site' || i % 3, 1 + i % 10, 'body' FROM generate_series(1, 200) AS i",
    );
    let key = format!("{}${{site}}:${{id}}", world.key_prefix("page"));
    world.db.exec("BEGIN");
    let sync = world.cache_table_by(
        "page",
        &key,
        ", document => 'SELECT p.id, p.site, json_build_object(''id'', p.id, ''by'', a.name) AS document
            FROM page p JOIN author a ON a.id = p.author_id'",
    );
    relate(world, &sync);
    world.db.exec("COMMIT");
    assert_in_step(world, &sync);
    world
        .db
        .exec("UPDATE page SET site = 'elsewhere' WHERE id % 4 = 0; UPDATE author SET name = 'renamed' WHERE id = 3");
    world.db.exec("UPDATE page SET author_id = NULL WHERE id % 9 = 0; DELETE FROM page WHERE id = 5");
    assert_in_step(world, &sync);
}

#[test]
fn mistakes_in_queries_and_relations_are_told() {
    let mut world = World::new("document_mistakes");
    let world = &mut world;
    shop(world, 5);
    world.db.exec(
        "CREATE TEMP TABLE mine (id bigint);
         CREATE TABLE keyed_by_text (id text PRIMARY KEY);
         CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM product;
         CREATE VIEW seen AS SELECT * FROM product;
         CREATE FUNCTION noisy(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT $1'",
    );
    let create =
        |what: &str| format!("SELECT fanout.index_table('product', server => 'search', index => 'never_made', {what})");
    let cases = [
        ("document => 'SELEC 1'", "42601", "\"document\" can't be used: syntax error"),
        ("document => ''", "42601", "\"document\" must be one SELECT statement"),
        (
            "document => 'SELECT id, name FROM product; DROP TABLE product'",
            "42601",
            "\"document\" must be one SELECT statement",
        ),
        ("document => 'DELETE FROM product RETURNING id, name'", "42601", "\"document\" must be one SELECT statement"),
        (
            "document => 'WITH x AS (DELETE FROM review RETURNING product_id) SELECT product_id AS id, 1 AS one FROM x'",
            "0A000",
            "\"document\" can't be used",
        ),
        ("document => 'SELECT id, name FROM products'", "42P01", "relation \"products\" does not exist"),
        ("document => 'SELECT name FROM product'", "42703", "does not yield column \"id\""),
        ("document => 'SELECT id::int, name FROM product'", "42804", "yields \"id\" as integer"),
        ("document => 'SELECT id FROM product'", "22023", "yields the key and nothing else"),
        ("document => 'SELECT id, name, name FROM product'", "42701", "two columns called \"name\""),
        ("document => 'SELECT id, random() AS r FROM product'", "42P13", "calls a volatile function"),
        ("document => 'SELECT id, noisy(id) AS r FROM product'", "42P13", "calls a volatile function"),
        (
            "document => 'SELECT id, now() - ''2026-01-01'' AS age FROM product'",
            "0A000",
            "depends on the clock: it uses now()",
        ),
        (
            "document => 'SELECT id, name FROM product WHERE current_date > ''2026-01-01'''",
            "0A000",
            "it uses current_date",
        ),
        (
            "document => 'SELECT id, ''now''::timestamptz AS at FROM product'",
            "0A000",
            "depends on the clock: it uses 'now'",
        ),
        (
            "document => 'SELECT id, date ''  Today'' AS day FROM product'",
            "0A000",
            "depends on the clock: it uses 'today'",
        ),
        (
            "document => 'SELECT id, name FROM product WHERE CAST(E''TOMORROW'' AS date) > ''2026-01-01'''",
            "0A000",
            "depends on the clock: it uses 'tomorrow'",
        ),
        (
            "document => 'SELECT id, ''{2026-01-01,yesterday}''::date[] AS days FROM product'",
            "0A000",
            "depends on the clock: it uses 'yesterday'",
        ),
        (
            "document => 'SELECT id, ''[now,)''::tstzrange AS days FROM product'",
            "0A000",
            "depends on the clock: it uses 'now'",
        ),
        (
            "document => 'SELECT id, (SELECT max(x) FROM (VALUES (timestamp $$now$$)) v (x)) AS at FROM product'",
            "0A000",
            "depends on the clock: it uses 'now'",
        ),
        (
            "document => 'SELECT id, ''now''::text::timestamptz AS at FROM product'",
            "0A000",
            "depends on the clock: it uses 'now'",
        ),
        ("predicate => 'date ''today'' > ''2026-01-01'''", "0A000", "depends on the clock: it uses 'today'"),
        ("document => 'SELECT p.id, m.id AS other FROM product p, mine m'", "42P16", "reads temporary table \"mine\""),
        (
            "document => 'SELECT id, name FROM product', predicate => 'true'",
            "22023",
            "\"predicate\" can't be given together",
        ),
        ("predicate => 'price > 3'", "42703", "\"predicate\" can't be used: column \"price\" does not exist"),
        ("predicate => 'true) OR (true'", "42601", "\"predicate\" can't be used: syntax error"),
        ("predicate => 'true); DROP TABLE product; SELECT (true'", "42601", "\"predicate\""),
        ("predicate => 'id'", "42804", "\"predicate\" can't be used: argument of WHERE must be type boolean"),
        ("predicate => 'id IN (SELECT product_id FROM review)'", "0A000", "\"predicate\" reads another table"),
        ("predicate => 'id = (SELECT max(id) FROM product)'", "0A000", "\"predicate\" reads other rows of the source"),
        ("document => 'SELECT id, name FROM product FOR UPDATE'", "0A000", "\"document\" locks rows"),
        ("predicate => 'random() > 0.5'", "42P13", "\"predicate\" calls a volatile function"),
        ("columns => '{id, nope}'", "42703", "column \"nope\" named in columns does not exist"),
        ("columns => '{}'", "22023", "\"columns\" names no column"),
        ("columns => '{id, NULL}'", "22004", "\"columns\" must not hold NULL"),
        ("columns => '{id, name}', rename => '{\"name\": \"id\"}'", "42701", "two columns would be the same field"),
        ("rename => '[]'", "22023", "\"rename\" must be a JSON object"),
        ("rename => '{\"name\": 3}'", "22023", "\"rename\" must give column \"name\" a name"),
        ("rename => '{\"name\": \"_id\"}'", "42602", "can't be a field of an index"),
    ];
    for (what, sqlstate, message) in cases {
        refused(world, &create(what), sqlstate, message);
    }
    assert_eq!(world.db.value("SELECT count(*) FROM fanout.sync"), "0");
    world.db.exec("BEGIN");
    let index = world.index_name("product");
    world.db.exec(&format!(
        "SELECT fanout.index_table('product', server => 'search', index => '{index}',
             document => 'SELECT p.id, p.name, c.n FROM product p, counted c');
         SELECT fanout.index_table('brand', server => 'search', index => '{index}_b');
         COMMIT"
    ));
    let relations = [
        ("'nope', 'brand'", "42704", "sync \"nope\" does not exist"),
        ("NULL, 'brand'", "22004", "argument \"sync\" must not be NULL"),
        ("'product', NULL", "22004", "argument \"source\" must not be NULL"),
        ("'brand', 'product'", "55000", "no other table feeds them"),
        ("'product', 'seen'", "42809", "it is a view"),
        ("'product', 'counted', columns => '{n}'", "22023", "is a materialized view"),
        ("'product', 'keyed_by_text'", "22023", "no foreign key leads from"),
        ("'product', 'product'", "22023", "is the source of the sync itself"),
        ("'product', 'review', columns => '{nope}'", "42703", "column \"nope\" of table \"review\" does not exist"),
        ("'product', 'review', columns => '{id, NULL}'", "22004", "\"columns\" must not hold NULL"),
        ("'product', 'review', columns => '{product_id}', ways => 'all'", "22023", "\"ways\" can't be given together"),
        ("'product', 'review', ways => 'none'", "22023", "invalid value for \"ways\""),
        ("'product', 'review', columns => '{}'", "22023", "\"columns\" names no column"),
        ("'product', 'review', columns => '{id, stars}'", "22023", "\"columns\" must hold the key of \"product\""),
        ("'product', 'keyed_by_text', columns => '{id}'", "42804", "but the relation gives text"),
        ("'product', 'review', keys => 'SELECT 1'", "22023", "\"keys\" needs \"columns\""),
        ("'product', 'review', columns => '{id}', keys => 'SELECT id FROM change'", "42P01", "\"keys\" can't be used"),
        (
            "'product', 'review', columns => '{id}', keys => 'SELECT id, id FROM changed'",
            "22023",
            "but yields 2 column(s)",
        ),
        (
            "'product', 'review', columns => '{id}', keys => 'SELECT id::text FROM changed'",
            "42804",
            "but the relation gives text",
        ),
        (
            "'product', 'review', columns => '{id}', keys => 'DELETE FROM product RETURNING id'",
            "42601",
            "\"keys\" must be one SELECT",
        ),
    ];
    for (what, sqlstate, message) in relations {
        refused(world, &format!("SELECT fanout.related({what})"), sqlstate, message);
    }
    let error = world.db.refusal("SELECT fanout.drop_related('product', 'review')");
    assert_eq!(error.code, "42704", "{error:?}");
}

#[test]
fn a_key_that_is_yielded_as_another_type_blocks_the_sync() {
    let mut world = World::new("key_as_another_type");
    let world = &mut world;
    world.db.exec(
        "CREATE TABLE item (id bigint PRIMARY KEY, name text); INSERT INTO item VALUES (1234567, 'a');
         CREATE TABLE thing (id numeric PRIMARY KEY, name text); INSERT INTO thing VALUES (1234567, 'a');
         CREATE VIEW things AS SELECT id, name FROM thing",
    );
    let item = world.cache_table("item", ", document => 'SELECT id::bigint AS id, name FROM item'");
    let thing = world.cache_table("thing", ", document => 'SELECT id, name FROM things'");
    assert_in_step(world, &item);
    assert_in_step(world, &thing);
    // The number would be taken for the place in memory where the numeric is.
    world.db.exec("ALTER TABLE item ALTER id TYPE numeric; UPDATE item SET name = 'b'");
    world.db.exec(
        "BEGIN; DROP VIEW things; CREATE VIEW things AS SELECT id::bigint AS id, name FROM thing; COMMIT;
         UPDATE thing SET name = 'b'",
    );
    for sync in [item, thing] {
        let error = world.try_wait(&sync, "10s").expect_err("it cannot be read");
        assert_eq!(error.code, "55000", "{error:?}");
        assert!(error.message.contains("is read as bigint, but in the source it is numeric"), "{error:?}");
    }
}

#[test]
fn what_a_function_sets_ends_with_the_reading() {
    let mut world = World::new("settings_of_a_function");
    let world = &mut world;
    world.db.exec(
        "CREATE FUNCTION bend(value text) RETURNS text STABLE LANGUAGE plpgsql AS $$ BEGIN
             PERFORM set_config('TimeZone', 'Asia/Tokyo', false), set_config('extra_float_digits', '-10', false),
                 set_config('default_transaction_read_only', 'on', false);
             RETURN value; END $$;
         CREATE TABLE bent (id int PRIMARY KEY, name text); INSERT INTO bent VALUES (1, 'a');
         CREATE TABLE straight (id int PRIMARY KEY, at timestamptz, number float8)",
    );
    let bent = world.cache_table("bent", ", document => 'SELECT id, bend(name) AS name FROM bent'");
    let straight = world.cache_table("straight", "");
    world.wait(&bent);
    world.db.exec("INSERT INTO straight VALUES (1, '2026-01-01 00:00:00+00', 0.30000000000000004)");
    assert_in_step(world, &straight);
}

/// Items with the sum of what refers to them.
fn items(world: &mut World, more: &str, relation: &str) -> String {
    world.db.exec(
        "CREATE TABLE item (id int PRIMARY KEY, name text); INSERT INTO item SELECT i, 'n' FROM generate_series(1, 500) AS i;
         CREATE TABLE part (id int PRIMARY KEY, item_id int, of text, weight int);
         INSERT INTO part SELECT i, i, i, 1 FROM generate_series(1, 500) AS i; BEGIN",
    );
    let sync = world.cache_table(
        "item",
        &format!(
            ", document => 'SELECT i.id, i.name, (SELECT sum(weight) FROM part p WHERE {more}) AS weight FROM item i'"
        ),
    );
    world.db.exec(&format!("SELECT fanout.related('{sync}', 'part', {relation}); COMMIT"));
    assert_in_step(world, &sync);
    sync
}

#[test]
fn a_related_row_that_the_keys_fail_for_does_not_stop_the_sync() {
    let mut world = World::new("keys_that_fail");
    let world = &mut world;
    let sync = items(world, "p.of = i.id::text", "columns => '{of}', keys => 'SELECT of::int FROM changed'");
    world.db.exec(
        "INSERT INTO part SELECT 1000 + i, 0, CASE i WHEN 70 THEN 'oops' ELSE i::text END, 1 FROM generate_series(1, 100) AS i;
         UPDATE item SET name = 'later' WHERE id = 3",
    );
    assert_in_step(world, &sync);
    assert!(world.status(&sync, "last_error").contains("invalid input syntax"), "it is said");
    world.db.exec("UPDATE part SET of = '7' WHERE of = 'oops'");
    assert_in_step(world, &sync);
}

#[test]
fn a_referring_column_of_another_type_than_the_key_is_looked_up() {
    let mut world = World::new("referring_column_retyped");
    let world = &mut world;
    let sync = items(world, "p.item_id = i.id", "columns => '{item_id}'");
    world.db.exec("ALTER TABLE part ALTER item_id TYPE bigint; UPDATE part SET weight = 2 WHERE id = 3");
    assert_in_step(world, &sync);
    let before: i64 = world.status(&sync, "delivered").parse().expect("a number");
    for weight in 3..6 {
        world.db.exec(&format!("UPDATE part SET weight = {weight} WHERE id = 3"));
        assert_in_step(world, &sync);
    }
    let after: i64 = world.status(&sync, "delivered").parse().expect("a number");
    assert_eq!(after - before, 3, "nothing but its document, each time");
}

#[test]
fn wait_is_refused_where_a_related_table_was_written() {
    let mut world = World::new("wait_after_related");
    let world = &mut world;
    let sync = items(
        world,
        "p.item_id = i.id AND p.of = i.id::text",
        "columns => '{of}', keys => 'SELECT of::int FROM changed'",
    );
    world.db.exec("BEGIN; UPDATE part SET weight = 2 WHERE id = 3");
    let error = world.db.refusal(&format!("SELECT fanout.wait('{sync}')"));
    assert_eq!(error.code, "25001", "{error:?}");
    world.db.exec("ROLLBACK");
}

#[test]
fn a_related_column_may_be_an_array() {
    let mut world = World::new("related_array");
    let world = &mut world;
    world.db.exec(
        "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item SELECT generate_series(1, 100);
         CREATE TABLE offer (id int PRIMARY KEY, items int[], percent int);
         INSERT INTO offer SELECT i, ARRAY[i, i + 1, NULL], i FROM generate_series(1, 100, 7) AS i; BEGIN",
    );
    let sync = world.cache_table(
        "item",
        ", document => 'SELECT i.id, (SELECT max(percent) FROM offer WHERE i.id = ANY (items)) AS percent FROM item i'",
    );
    world.db.exec(&format!(
        "SELECT fanout.related('{sync}', 'offer', columns => '{{items}}', keys => 'SELECT unnest(items) FROM changed'); COMMIT"
    ));
    assert_in_step(world, &sync);
    world.db.exec(
        "UPDATE offer SET percent = 99 WHERE id = 8; UPDATE offer SET items = '{50,51}' WHERE id = 1;
         DELETE FROM offer WHERE id = 15; INSERT INTO offer VALUES (200, NULL, 1), (201, '{}', 2), (202, '{77,78}', 100)",
    );
    assert_in_step(world, &sync);
}

#[test]
fn whatever_the_fields_are_called_and_however_few_there_are() {
    let mut world = World::new("few_fields");
    world.db.exec(
        "CREATE TABLE product (id bigint PRIMARY KEY, price int, name text);
         INSERT INTO product VALUES (1, 10, 'a'), (2, NULL, 'b')",
    );
    let document = |world: &mut World, sync: &str| world.db.value(&format!("SELECT fanout.document('{sync}', 1)"));
    // The names of our own are no names to anything that is the user's.
    for name in ["__fanout_document", "__fanout_q", "a \" 'b"] {
        let rename = format!(", name => 'odd', columns => '{{id}}', rename => $${}$$", json!({"id": name}));
        let sync = world.cache_table("product", &rename);
        assert_eq!(
            serde_json::from_str::<Value>(&document(&mut world, &sync)).expect("JSON"),
            json!({name: 1}),
            "the field {name}"
        );
        world.wait(&sync);
        world.db.exec("SELECT fanout.drop_sync('odd', drop_target => true)");
        eventually("the sync to be gone", Duration::from_secs(30), || {
            world.db.value("SELECT count(*) FROM fanout.sync") == "0"
        });
    }
    let sync = world.cache_table("product", ", columns => '{price}'");
    world.wait(&sync);
    world.db.exec("ALTER TABLE product DROP COLUMN price; UPDATE product SET name = 'c'");
    world.wait(&sync);
    assert_eq!(document(&mut world, &sync), "{}");
    let key = format!("{}1", world.key_prefix("product"));
    assert_eq!(world.db.value(&format!("SELECT redis_get('cache', '{key}')")), "{}");
}

#[test]
fn a_view_that_yields_more_does_so_from_the_next_document_on() {
    let mut world = World::new("view_grows");
    world.db.exec(
        "CREATE TABLE product (id bigint PRIMARY KEY, price int, name text);
         INSERT INTO product SELECT n, n, 'a' FROM generate_series(1, 10) n;
         CREATE VIEW shown AS SELECT id, name FROM product",
    );
    let sync = world.cache_table("product", ", document => 'SELECT * FROM shown'");
    world.wait(&sync);
    world.db.exec(
        "CREATE OR REPLACE VIEW shown AS SELECT id, name, price FROM product; UPDATE product SET name = 'b' WHERE id = 1",
    );
    world.wait(&sync);
    let key = format!("{}1", world.key_prefix("product"));
    assert_eq!(world.db.value(&format!("SELECT redis_get('cache', '{key}')")), r#"{"id":1,"name":"b","price":1}"#);
}

/// Commits what the first statements do in an open transaction when the worker waits for it, because of what the second did.
fn while_the_worker_waits(world: &mut World, first: &str, second: &str) {
    world.db.exec(&format!("BEGIN; {first}"));
    world.connect().exec(second);
    // A transaction sees who waits as it was when it looked first.
    let mut watcher = world.connect();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                 AND backend_type = 'pg_fanout worker' AND wait_event_type = 'Lock'";
    eventually("the worker waits", Duration::from_secs(20), || watcher.value(waits) == "1");
    world.db.exec("COMMIT");
}

#[test]
fn a_table_that_is_truncated_and_filled_again_is_not_taken_for_empty() {
    let mut world = World::new("truncated");
    let world = &mut world;
    world.db.exec(
        "CREATE TABLE country (code text PRIMARY KEY, name text) PARTITION BY LIST (code);
         CREATE TABLE country_a PARTITION OF country FOR VALUES IN ('a');
         INSERT INTO country VALUES ('a', 'A');
         CREATE TABLE product (id bigint PRIMARY KEY, name text, code text);
         INSERT INTO product SELECT n, 'x', 'a' FROM generate_series(1, 20) n;
         CREATE TABLE variant (id bigint PRIMARY KEY, name text);
         INSERT INTO variant SELECT n, 'v' FROM generate_series(1, 20) n;
         CREATE TABLE link (variant_id bigint, product_id bigint);
         INSERT INTO link SELECT n, n FROM generate_series(1, 20) n",
    );
    // Neither country nor link is declared: their changes reach no document, but nothing may be missing because of them.
    let sync = world.cache_table(
        "product",
        ", document => 'SELECT p.id, p.name, c.name AS country, v.name AS variant
                        FROM product p JOIN country c USING (code) JOIN link l ON l.product_id = p.id
                        JOIN variant v ON v.id = l.variant_id'",
    );
    world.db.exec(&format!(
        "SELECT fanout.related('{sync}', 'variant', columns => '{{id}}',
                               keys => 'SELECT l.product_id FROM changed JOIN link l ON l.variant_id = changed.id')"
    ));
    assert_in_step(world, &sync);
    for table in ["country", "country_a"] {
        let again = format!("TRUNCATE {table}; INSERT INTO country VALUES ('a', 'A')");
        while_the_worker_waits(world, &again, "UPDATE product SET name = name || 'y'");
        assert_in_step(world, &sync);
    }
    let again = "TRUNCATE link; INSERT INTO link SELECT n, n FROM generate_series(1, 20) n";
    while_the_worker_waits(world, again, "UPDATE variant SET name = name || 'w'");
    assert_in_step(world, &sync);
}

/// So it is while all rows are read.
#[test]
fn a_backfill_leaves_out_no_row_for_a_table_that_looked_empty() {
    let mut world = World::new("truncated_fill");
    let world = &mut world;
    world.db.exec(
        "CREATE TABLE country (code text PRIMARY KEY, name text); INSERT INTO country VALUES ('a', 'A');
         CREATE TABLE product (id bigint PRIMARY KEY, name text, code text);
         INSERT INTO product SELECT n, 'x', 'a' FROM generate_series(1, 3000) n",
    );
    world.db.exec("BEGIN");
    let query = "SELECT p.id, c.name AS country FROM product p JOIN country c USING (code)";
    let sync = world.cache_table("product", &format!(", document => '{query}'"));
    world.db.exec(&format!("SELECT fanout.alter_sync('{sync}', backfill_rate => 300); COMMIT"));
    eventually("some are read", Duration::from_secs(20), || world.status(&sync, "delivered") != "0");
    let again = "TRUNCATE country; INSERT INTO country VALUES ('a', 'A')";
    while_the_worker_waits(world, again, "SELECT");
    world.db.exec(&format!("SELECT fanout.alter_sync('{sync}', reset => '{{backfill_rate}}')"));
    assert_in_step(world, &sync);
}
