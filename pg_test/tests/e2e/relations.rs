//! Which tables feed a document: what foreign keys say of it, and what is said of tables that nobody declared.

use crate::refusals::refused;
use pg_test::{World, assert_in_step};

/// Users own products, and write reviews of others.
fn shop(world: &mut World) {
    world.db.exec(
        "CREATE TABLE users (id int PRIMARY KEY, name text);
         CREATE TABLE product (id int PRIMARY KEY, name text, owner_id int REFERENCES users, maker_id int REFERENCES users);
         CREATE TABLE review (id int PRIMARY KEY, product_id int REFERENCES product, author_id int REFERENCES users);
         INSERT INTO users SELECT i, 'user ' || i FROM generate_series(1, 30) AS i;
         INSERT INTO product SELECT i, 'product ' || i, i, 11 + i % 10 FROM generate_series(1, 10) AS i;
         INSERT INTO review SELECT i, 1 + i % 10, 21 + i % 10 FROM generate_series(1, 40) AS i",
    );
}

const PRODUCT: &str = ", document => $$SELECT p.id, p.name, o.name AS owner,
        (SELECT json_agg(u.name ORDER BY r.id) FROM review r JOIN users u ON u.id = r.author_id WHERE r.product_id = p.id) AS authors
    FROM product p LEFT JOIN users o ON o.id = p.owner_id$$";

/// The keys queries of the relations of a table; none where they are the key itself.
fn keys(world: &mut World, sync: &str, source: &str) -> Vec<String> {
    let sql = format!("SELECT keys FROM fanout.relations WHERE sync = '{sync}' AND source = '{source}'::regclass");
    world.db.column(&sql)
}

#[test]
fn ways_of_several_lengths_are_all_followed_or_refused() {
    let mut world = World::new("ways_of_lengths");
    shop(&mut world);
    world.db.exec("ALTER TABLE product DROP COLUMN maker_id; BEGIN");
    let sync = world.cache_table("product", PRODUCT);
    // A review leads to the products that its author owns, too: the query does not join so.
    world.db.exec(&format!("SELECT fanout.related('{sync}', 'review', ways => 'shortest')"));
    world.db.exec("SAVEPOINT a");
    let call = format!("SELECT fanout.related('{sync}', 'users'");
    let refusal = world.db.refusal(&format!("{call})"));
    world.db.exec("ROLLBACK TO a");
    assert_eq!((refusal.code.as_str(), refusal.hint.contains("ways => 'all'")), ("22023", true), "{refusal}");
    assert!(refusal.message.contains("several ways lead from \"users\" to \"product\""), "{refusal}");
    for way in [
        "1: public.users.id = public.product.owner_id",
        "2: public.users.id = public.review.author_id, public.review.product_id = public.product.id",
    ] {
        assert!(refusal.detail.contains(way), "{refusal}");
    }
    // What is proposed covers all of them.
    let statement =
        format!("SELECT DISTINCT statement FROM fanout.propose_relations('{sync}') WHERE source = 'public.users'");
    let statement = world.db.value(&statement);
    assert_eq!(statement, format!("SELECT fanout.related('{sync}', 'public.users', ways => 'all');"));
    assert_eq!(world.db.value(&statement), "2");
    world.db.exec("COMMIT");
    assert_in_step(&mut world, &sync);
    world.db.exec("UPDATE users SET name = 'an owner' WHERE id = 3; UPDATE users SET name = 'an author' WHERE id = 25");
    assert_in_step(&mut world, &sync);
    world.db.exec(
        "UPDATE review SET author_id = 30, product_id = 2 WHERE id = 5; UPDATE users SET name = 'late' WHERE id = 30",
    );
    assert_in_step(&mut world, &sync);
    // Who knows that the query joins by the shortest alone says so.
    world.db.exec(&format!("SELECT fanout.drop_related('{sync}', 'users')"));
    assert_eq!(world.db.value(&format!("{call}, ways => 'shortest')")), "1");
    assert_eq!(
        keys(&mut world, &sync, "users"),
        ["SELECT t1.id FROM changed JOIN public.product AS t1 ON t1.owner_id = changed.id"]
    );
}

#[test]
fn two_foreign_keys_to_a_table_are_both_followed() {
    let mut world = World::new("two_foreign_keys");
    shop(&mut world);
    world.db.exec("BEGIN");
    let sync = world.cache_table(
        "product",
        ", document => 'SELECT p.id, o.name AS owner, m.name AS maker FROM product p
            LEFT JOIN users o ON o.id = p.owner_id LEFT JOIN users m ON m.id = p.maker_id'",
    );
    assert_eq!(world.db.value(&format!("SELECT fanout.related('{sync}', 'users')")), "2");
    world.db.exec("COMMIT");
    assert_in_step(&mut world, &sync);
    world.db.exec("UPDATE users SET name = 'owns' WHERE id = 3; UPDATE users SET name = 'makes' WHERE id = 15");
    assert_in_step(&mut world, &sync);
}

#[test]
fn a_table_that_refers_to_itself_is_followed_as_far_as_the_query_reads_it() {
    let mut world = World::new("parent_category");
    world.db.exec(
        "CREATE TABLE category (id int PRIMARY KEY, parent int REFERENCES category, name text);
         CREATE TABLE product (id int PRIMARY KEY, category_id int REFERENCES category);
         INSERT INTO category VALUES (1, NULL, 'a'), (2, 1, 'b'), (3, 2, 'c');
         INSERT INTO product SELECT i, 1 + i % 3 FROM generate_series(1, 30) AS i; BEGIN",
    );
    let sync = world.cache_table(
        "product",
        ", document => 'SELECT p.id, c.name, u.name AS above FROM product p
            LEFT JOIN category c ON c.id = p.category_id LEFT JOIN category u ON u.id = c.parent'",
    );
    let call = format!("SELECT fanout.related('{sync}', 'category'");
    world.db.exec("SAVEPOINT a");
    refused(&mut world, &format!("{call})"), "22023", "several ways lead from \"category\" to \"product\"");
    world.db.exec("ROLLBACK TO a");
    world.db.exec(&format!("{call}, ways => 'all'); COMMIT"));
    assert_in_step(&mut world, &sync);
    world.db.exec("UPDATE category SET name = 'x' WHERE id = 1; UPDATE category SET name = 'y' WHERE id = 2");
    assert_in_step(&mut world, &sync);
    world.db.exec("UPDATE category SET parent = NULL WHERE id = 3; UPDATE category SET parent = 3 WHERE id = 1");
    assert_in_step(&mut world, &sync);
    // Read once, there is one way.
    world.db.exec("BEGIN");
    let key = format!("{}${{id}}", world.key_prefix("once"));
    let once = world.cache_table_by(
        "product",
        &key,
        ", name => 'once', document => 'SELECT p.id, c.name FROM product p JOIN category c ON c.id = p.category_id'",
    );
    assert_eq!(world.db.value(&format!("SELECT fanout.related('{once}', 'category')")), "1");
    world.db.exec("COMMIT");
    // How far a recursive query goes, no foreign key says.
    world.db.exec("BEGIN");
    let key = format!("{}${{id}}", world.key_prefix("path"));
    let path = world.cache_table_by(
        "product",
        &key,
        ", name => 'path', document => $$SELECT p.id, (WITH RECURSIVE up AS (
                SELECT p.category_id AS id UNION ALL SELECT c.parent FROM category c JOIN up ON c.id = up.id)
            SELECT count(*) FROM up) AS depth FROM product p$$",
    );
    for more in ["", ", ways => 'all'"] {
        world.db.exec("SAVEPOINT a");
        let sql = format!("SELECT fanout.related('{path}', 'category'{more})");
        refused(&mut world, &sql, "22023", "foreign keys do not tell how far a change of \"category\" reaches");
        world.db.exec("ROLLBACK TO a");
    }
    world.db.exec(&format!(
        "SELECT fanout.related('{path}', 'category', columns => '{{id}}', keys => $$WITH RECURSIVE down AS (
             SELECT id FROM changed UNION SELECT c.id FROM category c JOIN down ON c.parent = down.id)
         SELECT p.id FROM product p JOIN down ON p.category_id = down.id$$); COMMIT"
    ));
    assert_in_step(&mut world, &path);
    world.db.exec("UPDATE category SET parent = NULL WHERE id = 2; UPDATE category SET parent = 2 WHERE id = 3");
    assert_in_step(&mut world, &path);
    assert_in_step(&mut world, &once);
}

#[test]
fn tables_that_refer_to_each_other_are_followed() {
    let mut world = World::new("mutual_references");
    world.db.exec(
        "CREATE TABLE department (id int PRIMARY KEY, name text, manager_id int);
         CREATE TABLE employee (id int PRIMARY KEY, name text, department_id int REFERENCES department);
         ALTER TABLE department ADD FOREIGN KEY (manager_id) REFERENCES employee;
         CREATE TABLE project (id int PRIMARY KEY, lead_id int REFERENCES employee);
         INSERT INTO department SELECT i, 'd' || i, NULL FROM generate_series(1, 5) AS i;
         INSERT INTO employee SELECT i, 'e' || i, 1 + i % 5 FROM generate_series(1, 20) AS i;
         UPDATE department SET manager_id = id; INSERT INTO project SELECT i, 6 + i FROM generate_series(1, 10) AS i; BEGIN",
    );
    // The manager of the department of who leads the project: the same table again, by another foreign key.
    let sync = world.cache_table(
        "project",
        ", document => 'SELECT p.id, l.name AS lead, d.name AS department, m.name AS manager FROM project p
            JOIN employee l ON l.id = p.lead_id JOIN department d ON d.id = l.department_id
            JOIN employee m ON m.id = d.manager_id'",
    );
    for statement in world.db.column(&format!("SELECT DISTINCT statement FROM fanout.propose_relations('{sync}')")) {
        world.db.exec(&statement);
    }
    world.db.exec("COMMIT");
    let proposed = format!("SELECT count(*) FROM fanout.propose_relations('{sync}')");
    assert_eq!(world.db.value(&proposed), "0");
    assert_in_step(&mut world, &sync);
    world.db.exec("UPDATE employee SET name = 'leads' WHERE id = 8; UPDATE employee SET name = 'manages' WHERE id = 2");
    assert_in_step(&mut world, &sync);
    world.db.exec(
        "UPDATE department SET name = 'renamed' WHERE id = 4; UPDATE department SET manager_id = 20 WHERE id = 3",
    );
    assert_in_step(&mut world, &sync);
    // Where one of the two is the source.
    world.db.exec("BEGIN");
    let key = format!("{}${{id}}", world.key_prefix("staff"));
    let staff = world.cache_table_by(
        "department",
        &key,
        ", name => 'staff', document => 'SELECT d.id, m.name AS manager,
            (SELECT count(*) FROM employee WHERE department_id = d.id) AS size
            FROM department d LEFT JOIN employee m ON m.id = d.manager_id'",
    );
    let direct = "SELECT fanout.related('staff', 'employee', ways => 'all')";
    assert!(world.db.value(direct).parse::<u32>().expect("a number") >= 2);
    world.db.exec("COMMIT");
    assert_in_step(&mut world, &staff);
    world.db.exec("UPDATE employee SET name = 'm' WHERE id = 2; UPDATE employee SET department_id = 2 WHERE id = 9");
    assert_in_step(&mut world, &staff);
}

#[test]
fn undeclared_tables_are_told_at_once_and_by_check() {
    let mut world = World::new("undeclared_tables");
    shop(&mut world);
    world.db.exec("CREATE TABLE rate (currency text PRIMARY KEY, rate numeric); INSERT INTO rate VALUES ('EUR', 1)");
    let index = world.index_name("product");
    let document =
        "SELECT p.id, o.name AS owner, (SELECT count(*) FROM review WHERE product_id = p.id) AS reviews, r.rate
        FROM product p LEFT JOIN users o ON o.id = p.owner_id CROSS JOIN rate r";
    let said = world.db.notices(&format!(
        "SELECT fanout.index_table('product', server => 'search', index => '{index}', document => '{document}')"
    ));
    let expected = [
        ("public.users", "SELECT fanout.related('product', 'public.users', ways => 'all');"),
        ("public.review", "SELECT fanout.related('product', 'public.review', ways => 'all');"),
        ("public.rate", "Foreign keys do not tell"),
    ];
    let warnings: Vec<_> = said.iter().filter(|notice| notice.code == "01000").collect();
    assert_eq!(warnings.len(), 3, "{said:?}");
    for (table, hint) in expected {
        let message = format!("changes of table {table} do not reach the documents of sync \"product\" yet");
        let warning = warnings.iter().find(|warning| warning.message == message);
        let warning = warning.unwrap_or_else(|| panic!("{table} is not in {said:?}"));
        assert!(warning.hint.starts_with(hint) && !warning.detail.is_empty(), "{warning}");
    }
    world.wait("product");
    let findings = |world: &mut World| {
        world.db.column(
            "SELECT status || ' ' || detail || hint FROM fanout.check('product') WHERE item = 'relations' AND status <> 'ok'",
        )
    };
    let found = findings(&mut world);
    assert_eq!(found.len(), 3, "{found:?}");
    for (table, hint) in expected {
        let told = |finding: &&String| {
            finding.starts_with(&format!("warning changes of table {table} do not reach")) && finding.contains(hint)
        };
        assert_eq!(found.iter().filter(told).count(), 1, "{table}: {found:?}");
    }
    // Each is told until it is declared; a rate belongs to all documents.
    world.db.exec(
        "SELECT fanout.related('product', 'users', ways => 'all'), fanout.related('product', 'review', ways => 'shortest');
         SELECT fanout.related('product', 'rate', columns => '{currency}', keys => 'SELECT id FROM product, changed')",
    );
    assert_eq!(findings(&mut world), Vec::<String>::new());
    let item = "SELECT status || ' ' || detail FROM fanout.check('product') WHERE item = 'relations'";
    assert_eq!(world.db.value(item), "ok 5 declared");
    assert_in_step(&mut world, "product");
    // One that is altered to a query is told as well, and only of what is not declared.
    let said = world.db.notices("SELECT fanout.alter_sync('product', document => 'SELECT p.id, t.n FROM product p, (SELECT count(*) AS n FROM users, pg_class) t')");
    assert!(said.iter().all(|notice| notice.code != "01000"), "{said:?}");
}
