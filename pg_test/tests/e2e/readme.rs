//! The tour in README.md does what it says.

use pg_test::{Engine, Keyspace, World, readme};

#[test]
fn the_tour_works_as_it_is_written() {
    // Its indices and keys have the names that a reader sees, so nothing marks them as this test's.
    tidy();
    let world = World::bare("readme");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let markdown = std::fs::read_to_string(path).expect("README.md");
    readme::run(&world.database(), &readme::steps(&readme::on_the_stack(&markdown)));
    drop(world);
    tidy();
}

fn tidy() {
    let engine = Engine::opensearch();
    for index in ["product", "part", "stock"] {
        engine.remove(index);
    }
    let mut redis = Keyspace::open();
    for prefix in ["product:", "shop:", "pg_fanout:control:product:", "pg_fanout:control:shop:"] {
        redis.remove(prefix);
    }
}
