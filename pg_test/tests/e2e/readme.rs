//! README.md and the documents in docs/ do what they say.

use pg_test::{World, readme};
use std::path::Path;

fn works_as_it_is_written(path: &Path) {
    let markdown = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let markdown = readme::on_the_stack(&markdown);
    readme::tidy(&markdown);
    let world = World::bare("readme");
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    readme::run(&name, &world.database(), &readme::steps(&markdown));
    drop(world);
    readme::tidy(&markdown);
}

#[test]
fn the_tour_works_as_it_is_written() {
    works_as_it_is_written(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")));
}

/// Each of docs/ that has a block of SQL, in a database of its own.
#[test]
fn the_documents_work_as_they_are_written() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry of docs/").path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let has_sql = std::fs::read_to_string(path).is_ok_and(|markdown| !readme::steps(&markdown).is_empty());
        if has_sql {
            works_as_it_is_written(path);
        }
    }
}
