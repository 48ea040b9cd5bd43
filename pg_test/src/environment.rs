//! Where the servers are: the variables that `stack/env` prints.

/// The value of an environment variable that the tests can't do without.
///
/// A test never skips because a server is missing: a green run must mean that everything was run.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: these tests need the servers of stack/. \
             Run `make test`, or: stack/up && eval \"$(stack/env)\" and then cargo test -p pg_test"
        )
    })
}
