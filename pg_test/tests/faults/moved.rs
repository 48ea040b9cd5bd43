//! Rows whose documents move, to another routing, index or key, and that are deleted: nothing is left where they were.

use crate::postgres::worker;
use crate::proxied::{Proxies, in_step_again};
use pg_test::proxy::Fault;
use pg_test::{Engine, World, assert_in_step};

/// What becomes of the rows whose number modulo 10 is the place in the list, which stands for #. They begin in tenant 1.
const FATES: [&[&str]; 10] = [
    // In one transaction, in two, after one that was rolled back.
    &["BEGIN; SELECT move(#, 2); SELECT gone(#); COMMIT"],
    &["SELECT move(#, 2)", "SELECT gone(#)"],
    &["BEGIN; SELECT move(#, 2); SELECT gone(#); ROLLBACK", "SELECT move(#, 3)", "SELECT gone(#)"],
    // Beside a savepoint that is rolled back: with the move, a second one, the deletion.
    &["BEGIN; SAVEPOINT a; SELECT move(#, 2); ROLLBACK TO a; SELECT gone(#); COMMIT"],
    &["BEGIN; SELECT move(#, 2); SAVEPOINT a; SELECT move(#, 3); ROLLBACK TO a; SELECT gone(#); COMMIT"],
    &["BEGIN; SELECT move(#, 2); SAVEPOINT a; SELECT gone(#); ROLLBACK TO a; COMMIT"],
    &["SELECT move(#, 2)", "BEGIN; SAVEPOINT a; SELECT gone(#); ROLLBACK TO a; SELECT move(#, 3); COMMIT"],
    // There and back, and made again elsewhere.
    &["BEGIN; SELECT move(#, 2); SELECT move(#, 1); COMMIT"],
    &["BEGIN; SELECT gone(#); SELECT made(#, 2); SELECT move(#, 3); SELECT gone(#); SELECT made(#, 2); COMMIT"],
    &["SELECT move(#, 2)", "BEGIN; SELECT gone(#); SELECT made(#, 3); COMMIT", "SELECT move(#, 1)", "SELECT gone(#)"],
];

/// Rows of tenant 1, and syncs whose routing, index and key they say.
fn parcels(world: &mut World) -> [String; 3] {
    world.db.exec(
        "CREATE TABLE parcel (id int PRIMARY KEY, tenant int NOT NULL, at date NOT NULL);
         CREATE FUNCTION made(rest int, n int) RETURNS void LANGUAGE sql AS
         'INSERT INTO parcel SELECT i * 10 + rest, n, make_date(2024, n, 5) FROM generate_series(0, 4) AS i';
         CREATE FUNCTION move(rest int, n int) RETURNS void LANGUAGE sql AS
         'UPDATE parcel SET tenant = n, at = make_date(2024, n, 5) WHERE id % 10 = rest';
         CREATE FUNCTION gone(rest int) RETURNS void LANGUAGE sql AS 'DELETE FROM parcel WHERE id % 10 = rest'",
    );
    let key = format!("{}${{tenant}}:${{id}}", world.key_prefix("parcel"));
    let shards = r#"settings => '{"number_of_shards": 5}'"#;
    [
        world.index_table(
            "parcel",
            &Engine::opensearch(),
            &format!(", name => 'os', routing => '${{tenant}}', {shards}"),
        ),
        world.index_table("parcel", &Engine::elasticsearch(), ", name => 'es', period => '${at:month}'"),
        world.cache_table_by("parcel", &key, ", name => 'redis'"),
    ]
}

fn begin(world: &mut World, syncs: &[String]) {
    world.db.exec("DELETE FROM parcel; SELECT made(rest, 1) FROM generate_series(0, 9) AS rest");
    syncs.iter().for_each(|sync| assert_in_step(world, sync));
}

#[test]
fn of_rows_that_move_and_go_nothing_is_left() {
    let mut world = World::alone("moved");
    let proxies = Proxies::before(&mut world);
    let syncs = parcels(&mut world);
    // Each transaction is delivered before the next; all at once; while the targets are away, and the worker ends too.
    for (settled, away) in [(true, false), (false, false), (false, true)] {
        begin(&mut world, &syncs);
        if away {
            for proxy in proxies.all() {
                proxy.plan(|_| Fault::Reset);
                proxy.refuse(true);
            }
        }
        let most = FATES.iter().map(|steps| steps.len()).max().unwrap_or_default();
        for step in 0..most {
            for (rest, steps) in FATES.iter().enumerate() {
                if let Some(sql) = steps.get(step) {
                    world.db.exec(&sql.replace('#', &rest.to_string()));
                }
            }
            if settled {
                syncs.iter().for_each(|sync| assert_in_step(&mut world, sync));
            }
            if away {
                let pid = worker(&mut world);
                world.db.exec(&format!("SELECT pg_terminate_backend({pid}, 10000)"));
            }
        }
        proxies.calm();
        syncs.iter().for_each(|sync| in_step_again(&mut world, sync));
        let left = world.db.value("SELECT string_agg(DISTINCT id % 10 || ' in ' || tenant, ', ') FROM parcel");
        assert_eq!(left, "5 in 2, 6 in 3, 7 in 1, 8 in 2");
    }
}
