//! Many connections that write at the same time.

use pg_test::{Dice, Engine, Session, World, assert_in_step, on_each_engine};
use std::thread;

const CONNECTIONS: u64 = 8;
const TRANSACTIONS: u64 = 120;

on_each_engine!(concurrent_writers_end_in_step);

fn concurrent_writers_end_in_step(world: &mut World, engine: &Engine) {
    world.db.exec(
        "CREATE TABLE account (id int PRIMARY KEY, tenant text NOT NULL, n int NOT NULL, note text);
         INSERT INTO account SELECT i, 't' || i % 5, 0 FROM generate_series(1, 300) AS i",
    );
    let index = world.index_table("account", engine, "");
    let cache = world.cache_table_by("account", &format!("{}:${{tenant}}:account:${{id}}", world.tag), "");
    let mut dice = Dice::new();
    let writers: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (session, dice) = (world.connect(), dice.fork());
            thread::spawn(move || write(session, dice))
        })
        .collect();
    let committed: u64 = writers.into_iter().map(|writer| writer.join().expect("a writer without errors")).sum();
    assert!(committed > CONNECTIONS * TRANSACTIONS / 10, "only {committed} transactions were committed");
    assert_in_step(world, &index);
    assert_in_step(world, &cache);
}

/// Random transactions. Deadlocks and duplicate keys are the application's affair; anything else is a failure.
fn write(mut session: Session, mut dice: Dice) -> u64 {
    let mut committed = 0;
    for _ in 0..TRANSACTIONS {
        match transaction(&mut session, &mut dice) {
            Ok(true) => committed += 1,
            Ok(false) => {}
            Err(error) => {
                assert!(matches!(error.code.as_str(), "40P01" | "23505"), "a writer met: {error}");
                session.exec("ROLLBACK");
            }
        }
    }
    committed
}

fn transaction(session: &mut Session, dice: &mut Dice) -> Result<bool, pg_test::Refusal> {
    if dice.once_in(3) {
        session.try_exec(&change(dice))?;
        return Ok(true);
    }
    session.try_exec("BEGIN")?;
    let mut depth = 0;
    for _ in 0..1 + dice.below(8) {
        match dice.below(6) {
            0 => {
                depth += 1;
                session.try_exec(&format!("SAVEPOINT s{depth}"))?;
            }
            1 if depth > 0 => {
                session.try_exec(&format!("ROLLBACK TO s{depth}"))?;
            }
            2 if depth > 0 => {
                session.try_exec(&format!("RELEASE s{depth}"))?;
                depth -= 1;
            }
            _ => session.try_exec(&change(dice))?,
        }
    }
    let keep = !dice.once_in(4);
    session.try_exec(if keep { "COMMIT" } else { "ROLLBACK" })?;
    Ok(keep)
}

fn change(dice: &mut Dice) -> String {
    let id = 1 + dice.below(400);
    match dice.below(8) {
        0 => format!(
            "INSERT INTO account VALUES ({id}, 't{}', 1) ON CONFLICT (id) DO UPDATE SET n = account.n + 1",
            id % 5
        ),
        1 => format!("DELETE FROM account WHERE id = {id}"),
        2 => format!("UPDATE account SET id = {} WHERE id = {id}", 1 + dice.below(400)),
        3 => format!("UPDATE account SET tenant = 't{}' WHERE id = {id}", dice.below(5)),
        4 => format!("UPDATE account SET n = n + 1 WHERE id BETWEEN {id} AND {}", id + dice.below(10)),
        5 => {
            format!("INSERT INTO account SELECT {id}, 'new', 7 WHERE NOT EXISTS (SELECT FROM account WHERE id = {id})")
        }
        _ => format!("UPDATE account SET n = n + 1, note = repeat('x', {}) WHERE id = {id}", dice.below(50)),
    }
}
