//! The log of the stack's PostgreSQL.

/// What PostgreSQL writes to its log from now on.
pub struct ServerLog {
    path: String,
    from: usize,
}

impl ServerLog {
    /// From here on.
    pub fn here() -> Self {
        let folder = std::env::var("STACK_DIR").expect("STACK_DIR is set, as stack/env prints it");
        let path = format!("{folder}/log/postgres.log");
        let from = std::fs::metadata(&path).unwrap_or_else(|error| panic!("{path}: {error}")).len() as usize;
        Self { path, from }
    }

    /// What was written since.
    pub fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).expect("the server's log");
        String::from_utf8_lossy(bytes.get(self.from..).unwrap_or_default()).into_owned()
    }

    /// Whether a line has both texts in it.
    pub fn has(&self, one: &str, other: &str) -> bool {
        self.text().lines().any(|line| line.contains(one) && line.contains(other))
    }
}
