//! Connections to PostgreSQL.

use crate::environment::variable;
use postgres::error::DbError;
use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// An error that PostgreSQL raised, or what it said otherwise: a WARNING, a NOTICE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// SQLSTATE.
    pub code: String,
    /// The message.
    pub message: String,
    /// The DETAIL, empty if there is none.
    pub detail: String,
    /// The HINT, empty if there is none.
    pub hint: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if !self.detail.is_empty() {
            write!(f, " DETAIL: {}", self.detail)?;
        }
        if !self.hint.is_empty() {
            write!(f, " HINT: {}", self.hint)?;
        }
        Ok(())
    }
}

impl Refusal {
    fn of(error: &DbError) -> Self {
        Self {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().unwrap_or_default().to_owned(),
            hint: error.hint().unwrap_or_default().to_owned(),
        }
    }

    /// What libpq calls a lost connection.
    fn lost(message: String) -> Self {
        Self { code: "08006".into(), message, detail: String::new(), hint: String::new() }
    }
}

impl From<postgres::Error> for Refusal {
    fn from(error: postgres::Error) -> Self {
        error.as_db_error().map_or_else(|| Self::lost(format!("{error:?}")), Self::of)
    }
}

/// A connection. Values travel as text: what is compared is what a user would see.
pub struct Session {
    client: Client,
    notices: Arc<Mutex<Vec<Refusal>>>,
}

/// Of the stack's PostgreSQL.
pub(crate) fn stack_port() -> u16 {
    variable("PGPORT").parse().expect("PGPORT is a number")
}

impl Session {
    /// Connects to a database of the server that the environment names, as its user or as `role`.
    pub fn try_connect(database: &str, role: Option<&str>) -> Result<Self, Refusal> {
        Self::try_connect_at(stack_port(), database, role)
    }

    /// As [`Session::try_connect`], to a server at another port.
    pub fn try_connect_at(port: u16, database: &str, role: Option<&str>) -> Result<Self, Refusal> {
        let mut config = Config::new();
        config
            .host(&variable("PGHOST"))
            .port(port)
            .user(role.unwrap_or(&variable("PGUSER")))
            .dbname(database)
            .application_name("pg_test")
            .connect_timeout(Duration::from_secs(10));
        if let Ok(password) = std::env::var("PGPASSWORD") {
            config.password(password);
        }
        let notices = Arc::<Mutex<Vec<Refusal>>>::default();
        let heard = Arc::clone(&notices);
        config.notice_callback(move |notice| {
            heard.lock().unwrap_or_else(PoisonError::into_inner).push(Refusal::of(&notice));
        });
        Ok(Self { client: config.connect(NoTls)?, notices })
    }

    /// What a statement says by NOTICE and WARNING. It must succeed.
    pub fn notices(&mut self, sql: &str) -> Vec<Refusal> {
        let take = |notices: &Mutex<Vec<Refusal>>| {
            std::mem::take(&mut *notices.lock().unwrap_or_else(PoisonError::into_inner))
        };
        take(&self.notices);
        self.exec(sql);
        take(&self.notices)
    }

    /// As [`Session::try_connect`], for connections that nothing should stand in the way of.
    pub fn connect(database: &str) -> Self {
        Self::connect_at(stack_port(), database)
    }

    /// As [`Session::connect`], to a server at another port.
    pub fn connect_at(port: u16, database: &str) -> Self {
        Self::try_connect_at(port, database, None)
            .unwrap_or_else(|error| panic!("cannot connect to {database}: {error}; are the servers of stack/ up?"))
    }

    /// Runs one or more statements.
    pub fn try_exec(&mut self, sql: &str) -> Result<(), Refusal> {
        Ok(self.client.batch_execute(sql)?)
    }

    /// Runs one or more statements that must succeed. Several at once are one transaction.
    pub fn exec(&mut self, sql: &str) {
        self.try_exec(sql).unwrap_or_else(|error| panic!("{error}\nin: {}", shortened(sql)));
    }

    /// Rows of text.
    pub fn try_rows(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Refusal> {
        let messages = self.client.simple_query(sql)?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Rows of text of a query that must succeed.
    pub fn rows(&mut self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.try_rows(sql).unwrap_or_else(|error| panic!("{error}\nin: {}", shortened(sql)))
    }

    /// The first column of all rows; NULL is `NULL`.
    pub fn column(&mut self, sql: &str) -> Vec<String> {
        let first = |row: Vec<Option<String>>| row.into_iter().next().flatten().unwrap_or_else(|| "NULL".into());
        self.rows(sql).into_iter().map(first).collect()
    }

    /// The first column of the only row; NULL is `NULL`.
    pub fn value(&mut self, sql: &str) -> String {
        let column = self.column(sql);
        assert_eq!(column.len(), 1, "one row expected from: {}", shortened(sql));
        column.into_iter().next().unwrap_or_default()
    }

    /// The error of a statement that must fail.
    pub fn refusal(&mut self, sql: &str) -> Refusal {
        match self.try_rows(sql) {
            Ok(rows) => panic!("this should have been refused, but returned {rows:?}: {}", shortened(sql)),
            Err(error) => error,
        }
    }

    /// `COPY … FROM STDIN` with these lines.
    pub fn try_copy_in(&mut self, sql: &str, lines: &str) -> Result<(), Refusal> {
        let mut writer = self.client.copy_in(sql)?;
        writer.write_all(lines.as_bytes()).map_err(|error| Refusal::lost(error.to_string()))?;
        writer.finish()?;
        // The rows are counted before Sync, at which such a COPY commits (the manual, "Extended Query"): what answers after it has
        // been told of a crash in between.
        self.try_exec("")
    }

    /// As [`Session::try_copy_in`], for one that must succeed.
    pub fn copy_in(&mut self, sql: &str, lines: &str) {
        self.try_copy_in(sql, lines).unwrap_or_else(|error| panic!("{error}\nin: {sql}"));
    }

    /// The number of the server's process.
    pub fn pid(&mut self) -> String {
        self.value("SELECT pg_backend_pid()")
    }
}

/// A statement as it appears in a failure: the tests send some that are megabytes long.
fn shortened(sql: &str) -> String {
    match sql.char_indices().nth(500) {
        Some((end, _)) => format!("{} …", &sql[..end]),
        None => sql.to_owned(),
    }
}
