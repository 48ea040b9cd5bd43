//! What a test has for itself.

use crate::database::{Refusal, Session, stack_port};
use crate::engine::Engine;
use crate::environment::variable;
use crate::keyspace::Keyspace;
use crate::second::Second;
use serde_json::{Value, json};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Tests that stop servers must not run beside others.
static SERVERS: RwLock<()> = RwLock::new(());

// Held, never read.
#[allow(dead_code)]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
    /// On a server that no other test knows of.
    Elsewhere,
}

/// A database of its own with the extension and its servers, and a tag that no other test's names contain.
///
/// Dropped with all that carries the tag: the database, indices of both engines, keys of Redis.
pub struct World {
    /// Part of the database's name, of each index and of each key.
    pub tag: String,
    /// A connection.
    pub db: Session,
    roles: Vec<String>,
    /// Further databases.
    copies: Vec<String>,
    /// Of the server.
    port: u16,
    // Last, so that it is released when everything else is gone.
    _turn: Turn,
}

impl World {
    /// A world for a test that stops nothing.
    pub fn new(name: &str) -> Self {
        let turn = Turn::Shared(SERVERS.read().unwrap_or_else(|poisoned| poisoned.into_inner()));
        Self::furnished(name, turn)
    }

    /// A world for a test that stops servers: no other test runs meanwhile.
    pub fn alone(name: &str) -> Self {
        let turn = Turn::Alone(SERVERS.write().unwrap_or_else(|poisoned| poisoned.into_inner()));
        Self::furnished(name, turn)
    }

    /// A world on a server of the test's own, which has to outlive it.
    pub fn on(server: &Second, name: &str) -> Self {
        let mut world = Self::empty(name, server.port(), "", Turn::Elsewhere);
        furnish(&mut world.db);
        world
    }

    /// As [`World::alone`], with all of the database in a tablespace that has to outlive it.
    pub fn alone_in(tablespace: &str, name: &str) -> Self {
        let turn = Turn::Alone(SERVERS.write().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let mut world = Self::empty(name, stack_port(), &format!("TABLESPACE {tablespace}"), turn);
        furnish(&mut world.db);
        world
    }

    fn furnished(name: &str, turn: Turn) -> Self {
        let mut world = Self::empty(name, stack_port(), "", turn);
        furnish(&mut world.db);
        world
    }

    /// A database without the extension.
    pub fn bare(name: &str) -> Self {
        let turn = Turn::Shared(SERVERS.read().unwrap_or_else(|poisoned| poisoned.into_inner()));
        Self::empty(name, stack_port(), "", turn)
    }

    fn empty(name: &str, port: u16, more: &str, turn: Turn) -> Self {
        // A database's name holds 63 bytes.
        let name: String = name.chars().take(48).collect();
        let tag = format!("{name}_{:06x}", fastrand::u32(..1 << 24));
        Session::connect_at(port, "postgres").exec(&format!("CREATE DATABASE t_{tag} {more}"));
        let db = Session::connect_at(port, &format!("t_{tag}"));
        World { tag, db, roles: Vec::new(), copies: Vec::new(), port, _turn: turn }
    }

    /// The name of the database.
    pub fn database(&self) -> String {
        format!("t_{}", self.tag)
    }

    /// Another connection.
    pub fn connect(&self) -> Session {
        Session::connect_at(self.port, &self.database())
    }

    /// Replaces [`World::db`] by a new connection, after the server or the backend went away.
    pub fn reconnect(&mut self) {
        self.db = self.connect();
    }

    /// A new role that may log in, and a connection as that role. Gone with the world.
    pub fn role(&mut self, name: &str) -> (String, Session) {
        let role = format!("{name}_{}", self.tag.rsplit('_').next().unwrap_or_default());
        self.db.exec(&format!("CREATE ROLE {role} LOGIN"));
        self.roles.push(role.clone());
        let session = Session::try_connect_at(self.port, &self.database(), Some(&role))
            .unwrap_or_else(|error| panic!("cannot connect as {role}: {error}"));
        (role, session)
    }

    /// A copy of the database as it is now, and a connection to it. Gone with the world.
    pub fn copy(&mut self) -> Session {
        let (original, copy) = (self.database(), format!("{}_copy", self.database()));
        // Nobody may be connected to what is copied; the worker has to know that by itself.
        self.db = Session::connect_at(self.port, "postgres");
        self.db.exec(&format!("CREATE DATABASE {copy} TEMPLATE {original}"));
        self.reconnect();
        self.copies.push(copy.clone());
        Session::connect_at(self.port, &copy)
    }

    /// A further database with the extension and its servers, and a connection to it. Gone with the world.
    pub fn another(&mut self) -> Session {
        let database = format!("{}_{}", self.database(), self.copies.len());
        Session::connect_at(self.port, "postgres").exec(&format!("CREATE DATABASE {database}"));
        self.copies.push(database.clone());
        let mut session = Session::connect_at(self.port, &database);
        furnish(&mut session);
        session
    }

    /// The name of this test's index for a table.
    pub fn index_name(&self, table: &str) -> String {
        format!("{table}_{}", self.tag)
    }

    /// What this test's keys for a table begin with.
    pub fn key_prefix(&self, table: &str) -> String {
        format!("{}:{table}:", self.tag)
    }

    /// Calls `fanout.index_table()`; `more` are further arguments such as `, on_reject => 'delete'`. Returns the sync.
    pub fn index_table(&mut self, table: &str, engine: &Engine, more: &str) -> String {
        let index = self.index_name(table);
        let server = engine.server;
        self.db.value(&format!("SELECT fanout.index_table('{table}', server => '{server}', index => '{index}'{more})"))
    }

    /// Calls `fanout.cache_table()` with the key `<prefix>${id}`; `more` are further arguments. Returns the sync.
    pub fn cache_table(&mut self, table: &str, more: &str) -> String {
        let key = format!("{}${{id}}", self.key_prefix(table));
        self.cache_table_by(table, &key, more)
    }

    /// Calls `fanout.cache_table()` with a key template.
    pub fn cache_table_by(&mut self, table: &str, key: &str, more: &str) -> String {
        self.db.value(&format!("SELECT fanout.cache_table('{table}', server => 'cache', key => '{key}'{more})"))
    }

    /// Waits until all that is committed has arrived.
    pub fn wait(&mut self, sync: &str) {
        if let Err(error) = self.try_wait(sync, "60s") {
            let status = self.db.try_rows("SELECT * FROM fanout.status");
            panic!("fanout.wait('{sync}'): {error}\nfanout.status: {status:?}");
        }
    }

    /// As [`World::wait`], with another timeout and the error if there is one.
    pub fn try_wait(&mut self, sync: &str, timeout: &str) -> Result<(), Refusal> {
        self.db.try_exec(&format!("SELECT fanout.wait('{sync}', '{timeout}')"))
    }

    /// Ends the worker of the database, in order. Another one is started.
    pub fn end_worker(&mut self) {
        self.db.exec(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND backend_type = 'pg_fanout worker'",
        );
    }

    /// A document of this test's index for a table. It has to be there.
    pub fn document(&self, engine: &Engine, table: &str, id: &str) -> Value {
        let document = engine.document(&self.index_name(table), id);
        document.unwrap_or_else(|| panic!("there is no document {id} of \"{table}\""))
    }

    /// The ids of the documents of this test's index for a table that a query finds, in order.
    pub fn hits(&self, engine: &Engine, table: &str, query: &Value) -> Vec<String> {
        let body = json!({"size": 1000, "_source": false, "query": query});
        let found = engine.ask("POST", &format!("/{}/_search", self.index_name(table)), Some(body));
        let id = |hit: &Value| hit["_id"].as_str().unwrap_or_default().to_owned();
        let mut ids: Vec<String> = found["hits"]["hits"].as_array().into_iter().flatten().map(id).collect();
        ids.sort();
        ids
    }

    /// A column of `fanout.status`; NULL is `NULL`.
    pub fn status(&mut self, sync: &str, column: &str) -> String {
        self.db.value(&format!("SELECT {column} FROM fanout.status WHERE sync = '{sync}'"))
    }
}

/// The extension and a foreign server for each target.
fn furnish(db: &mut Session) {
    if let Err(error) = db.try_exec("CREATE EXTENSION pg_fanout") {
        panic!("{error}; `make test` builds and installs the extension before it runs the tests");
    }
    let (opensearch, elasticsearch) = (variable("OPENSEARCH_URL"), variable("ES_URL"));
    let redis = variable("REDIS_URL");
    db.exec(&format!(
        "CREATE SERVER search FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url '{opensearch}');
         CREATE SERVER es FOREIGN DATA WRAPPER fanout_elasticsearch OPTIONS (url '{elasticsearch}');
         CREATE SERVER cache FOREIGN DATA WRAPPER fanout_redis OPTIONS (url '{redis}')"
    ));
}

impl Drop for World {
    fn drop(&mut self) {
        if std::env::var_os("PG_TEST_KEEP").is_some() {
            println!("kept: database {}", self.database());
            return;
        }
        // Not `expect`: a panic while one is under way would abort the run and hide the first.
        let database = self.database();
        let roles = std::mem::take(&mut self.roles);
        let mut databases = std::mem::take(&mut self.copies);
        databases.push(database);
        let (tag, port) = (self.tag.clone(), self.port);
        let outcome = std::panic::catch_unwind(move || {
            let mut postgres = Session::connect_at(port, "postgres");
            for database in databases {
                postgres.exec(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)"));
            }
            for role in roles {
                postgres.exec(&format!("DROP ROLE {role}"));
            }
            Engine::opensearch().clean(&tag);
            Engine::elasticsearch().clean(&tag);
            Keyspace::open().clean(&tag);
        });
        if outcome.is_err() && !std::thread::panicking() {
            panic!("what the test made could not be removed: see above");
        }
    }
}
