//! Runs the SQL of a Markdown file, so that what a document shows keeps working.
//!
//! Each ```` ```sql ```` block is given to psql, in order. A ```` ```text ```` block that follows one (with nothing but
//! blank lines between) is what psql should have printed: its lines must occur in the output, in that order; a line
//! that is only `…` or `...` stands for anything, and differences in white space do not count.

use crate::engine::Engine;
use crate::environment::variable;
use crate::keyspace::Keyspace;
use std::io::Write;
use std::process::{Command, Stdio};

/// One block of SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The line of the file where its SQL begins.
    pub line: usize,
    /// What to run.
    pub sql: String,
    /// Lines of the output, if the document shows it.
    pub output: Vec<String>,
}

/// The blocks of SQL in a document.
pub fn steps(markdown: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut fence: Option<String> = None;
    // Whether a block of text would belong to the last block of SQL.
    let mut adjacent = false;
    for (number, line) in markdown.lines().enumerate() {
        let trimmed = line.trim();
        match (&fence, trimmed.strip_prefix("```")) {
            (None, Some(language)) => {
                if language == "sql" {
                    steps.push(Step { line: number + 2, sql: String::new(), output: Vec::new() });
                }
                adjacent &= language == "text";
                fence = Some(language.to_owned());
            }
            (Some(language), Some("")) => {
                adjacent = language == "sql";
                fence = None;
            }
            (Some(language), _) => {
                let last = steps.last_mut();
                match (language.as_str(), last) {
                    ("sql", Some(step)) => step.sql.push_str(&format!("{line}\n")),
                    ("text", Some(step)) if adjacent && !trimmed.is_empty() => step.output.push(trimmed.to_owned()),
                    _ => {}
                }
            }
            (None, None) => adjacent &= trimmed.is_empty(),
        }
    }
    steps
}

/// The document with the addresses of its examples replaced by those of the stack.
pub fn on_the_stack(markdown: &str) -> String {
    markdown
        .replace("http://127.0.0.1:9200", &variable("OPENSEARCH_URL"))
        .replace("redis://127.0.0.1:6379/0", &variable("REDIS_URL"))
}

/// Runs the steps of a document in one psql session each, and panics at the first that fails or prints something else.
pub fn run(document: &str, database: &str, steps: &[Step]) {
    assert!(!steps.is_empty(), "{document} has no ```sql block");
    for step in steps {
        let output = psql(database, &step.sql).unwrap_or_else(|error| {
            panic!("the SQL at line {} of {document} fails:\n{}\n{error}", step.line, step.sql)
        });
        if let Some(line) = first_absent(&output, &step.output) {
            panic!("the SQL at line {} of {document} should print the line\n{line}\nbut prints\n{output}", step.line);
        }
    }
}

/// Removes what a document's syncs make: their names are those that a reader sees, so nothing marks them as a test's.
/// Names are taken from the text: a run that ended early left no other trace.
pub fn tidy(markdown: &str) {
    for index in quoted_after(markdown, &["index_table('", "index => '"]) {
        Engine::opensearch().remove(&index);
        Engine::elasticsearch().remove(&index);
    }
    for key in quoted_after(markdown, &["key => '"]) {
        // Without text before its first column a template would be every key.
        if let Some((prefix, _)) = key.split_once("${").filter(|(prefix, _)| !prefix.is_empty()) {
            let mut redis = Keyspace::open();
            redis.remove(prefix);
            redis.remove(&format!("pg_fanout:control:{prefix}"));
        }
    }
}

/// What stands between one of the marks and the next quote, wherever one occurs.
fn quoted_after(text: &str, marks: &[&str]) -> Vec<String> {
    let ends = marks.iter().flat_map(|mark| text.match_indices(mark).map(|(at, mark)| at + mark.len()));
    ends.filter_map(|from| text[from..].split_once('\'')).map(|(name, _)| name.to_owned()).collect()
}

fn psql(database: &str, sql: &str) -> Result<String, String> {
    let mut child = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname", database, "--file=-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run psql: {error}; eval \"$(stack/env)\" puts it into the path"))?;
    let mut stdin = child.stdin.take().expect("a pipe");
    // psql that stops at an error closes the pipe: its message says more than ours would.
    let _ = stdin.write_all(sql.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first expected line that the output does not have after the ones before it.
fn first_absent(output: &str, expected: &[String]) -> Option<String> {
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines = output.lines().map(squeezed);
    let absent = expected
        .iter()
        .filter(|line| !matches!(line.as_str(), "…" | "..."))
        .find(|line| !lines.any(|printed| printed == squeezed(line)));
    absent.cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_blocks_are_taken_in_order_with_the_text_that_follows() {
        let markdown = "# T\n```sql\nSELECT 1;\n```\n\n```text\n ?column?\n\n 1\n```\nwords\n```text\nnot mine\n```\n\
                        ```sh\nmake\n```\n```sql\nSELECT 2;\nSELECT 3;\n```\nwords\n```text\nneither\n```\n";
        assert_eq!(
            steps(markdown),
            [
                Step { line: 3, sql: "SELECT 1;\n".into(), output: vec!["?column?".into(), "1".into()] },
                Step { line: 19, sql: "SELECT 2;\nSELECT 3;\n".into(), output: vec![] },
            ]
        );
    }

    #[test]
    fn expected_lines_must_occur_in_order() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let output = " id | name\n----+------\n  1 | a\n  2 | b\n";
        assert_eq!(first_absent(output, &lines(&["id | name", "…", "2 | b"])), None);
        assert_eq!(first_absent(output, &lines(&["2 | b", "1 | a"])), Some("1 | a".into()));
    }

    #[test]
    fn targets_are_named_by_the_text() {
        let text = "SELECT fanout.index_table('a', index => 'b');\ncache_table('c', key => 'd:${id}')";
        assert_eq!(quoted_after(text, &["index_table('", "index => '"]), ["a", "b"]);
        assert_eq!(quoted_after(text, &["key => '"]), ["d:${id}"]);
    }
}
