//! Connections to PostgreSQL.

use crate::environment::variable;
use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use std::io::Write;
use std::time::Duration;

/// An error that PostgreSQL raised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// SQLSTATE.
    pub code: String,
    /// The message.
    pub message: String,
    /// The HINT, empty if there is none.
    pub hint: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if !self.hint.is_empty() {
            write!(f, " HINT: {}", self.hint)?;
        }
        Ok(())
    }
}

impl From<postgres::Error> for Refusal {
    fn from(error: postgres::Error) -> Self {
        match error.as_db_error() {
            Some(error) => Refusal {
                code: error.code().code().to_owned(),
                message: error.message().to_owned(),
                hint: error.hint().unwrap_or_default().to_owned(),
            },
            // What libpq calls a lost connection.
            None => Refusal { code: "08006".into(), message: format!("{error:?}"), hint: String::new() },
        }
    }
}

/// A connection. Values travel as text: what is compared is what a user would see.
pub struct Session {
    client: Client,
}

impl Session {
    /// Connects to a database of the server that the environment names, as its user or as `role`.
    pub fn try_connect(database: &str, role: Option<&str>) -> Result<Self, Refusal> {
        Self::try_connect_at(variable("PGPORT").parse().expect("PGPORT is a number"), database, role)
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
        Ok(Self { client: config.connect(NoTls)? })
    }

    /// As [`Session::try_connect`], for connections that nothing should stand in the way of.
    pub fn connect(database: &str) -> Self {
        Self::try_connect(database, None)
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
        writer.write_all(lines.as_bytes()).map_err(|error| Refusal {
            code: "08006".into(),
            message: error.to_string(),
            hint: String::new(),
        })?;
        writer.finish()?;
        Ok(())
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
