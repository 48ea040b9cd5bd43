//! From a foreign server's name to what a request needs, with the caller's rights and the caller's user mapping.

use std::rc::Rc;
use std::sync::Once;

use delivery::config::{EngineConfig, RedisConfig, ServerConfig};
use delivery::engine::Engine;
use delivery::keyspace::RedisTarget;
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::clients::{ClientKey, MAX_CLIENTS};
use super::helper::Caches;
use super::{Asked, raise};
use crate::catalog::declare::require_utf8;
use crate::catalog::kept::Kept;
use crate::error::{Failure, failure};

/// A search engine that the caller may use.
pub struct EngineTarget {
    /// The foreign server.
    pub server: String,
    /// Which client.
    pub key: ClientKey,
    /// Where and how.
    pub config: EngineConfig,
}

/// A Redis that the caller may use.
pub struct CacheTarget {
    /// The foreign server.
    pub server: String,
    /// Which connection.
    pub key: ClientKey,
    /// Where and how.
    pub config: RedisConfig,
}

/// A target of either kind. Shared: its configuration may hold certificates, which nobody copies for each request.
pub enum AnyTarget {
    /// A search engine.
    Engine(Rc<EngineTarget>),
    /// A Redis.
    Cache(Rc<CacheTarget>),
}

/// What was read of a server for a role.
struct Resolved {
    server: pg_sys::Oid,
    target: AnyTarget,
}

thread_local! {
    /// By the server's name and the role. What the role may is asked for anew each time. As few as there are clients: each has
    /// the certificates in it.
    static RESOLVED: Kept<(String, u32), Resolved, MAX_CLIENTS> = Kept::default();
}

fn resolve(server: &str) -> Rc<Resolved> {
    require_utf8("ask a target");
    static REGISTERED: Once = Once::new();
    // SAFETY: called once a backend on its main thread, with a function that lives as long as the process.
    REGISTERED.call_once(|| unsafe {
        use pg_sys::SysCacheIdentifier::{FOREIGNDATAWRAPPEROID, FOREIGNSERVEROID, USERMAPPINGOID};
        for cache in [FOREIGNDATAWRAPPEROID, FOREIGNSERVEROID, USERMAPPINGOID] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(server_changed), pg_sys::Datum::from(0_usize));
        }
    });
    // SAFETY: reads the identity that this statement runs under.
    let user = unsafe { pg_sys::GetUserId() };
    let read = |(server, _): &(String, u32)| resolve_as(server, user).map(|resolved| (resolved, true));
    let resolved = RESOLVED.with(|kept| kept.get((server.to_owned(), user.to_u32()), read));
    resolved
        .and_then(|resolved| crate::server::may_use(resolved.server, server, user).map(|()| resolved))
        .unwrap_or_else(|failure| failure.raise())
}

/// Postgres calls it when a server, a user mapping or a wrapper changed, those of this transaction too.
#[pg_guard]
unsafe extern "C-unwind" fn server_changed(_argument: pg_sys::Datum, _cache: i32, _hash: u32) {
    // Gone at the end of the process.
    let _ = RESOLVED.try_with(Kept::invalidate);
}

fn resolve_as(server: &str, user: pg_sys::Oid) -> Result<Resolved, Failure> {
    let (oid, config) = crate::server::config(server, user)?;
    let (name, key) = (server.to_owned(), ClientKey { server: oid.to_u32(), user: user.to_u32() });
    let target = match config {
        ServerConfig::Engine(config) => AnyTarget::Engine(Rc::new(EngineTarget { server: name, key, config })),
        ServerConfig::Redis(config) => AnyTarget::Cache(Rc::new(CacheTarget { server: name, key, config })),
    };
    Ok(Resolved { server: oid, target })
}

/// The target behind a server as the worker reaches it: with the rights and the user mapping of a sync's owner. Whether the caller
/// may act for that role is for the caller to check.
pub fn owners_target(server: &str, owner: pg_sys::Oid) -> Result<AnyTarget, Failure> {
    resolve_as(server, owner).map(|resolved| resolved.target)
}

impl EngineTarget {
    /// Runs `command` on this thread, in which it can be cancelled. It must not touch Postgres.
    pub fn try_run<T>(&self, command: impl FnOnce(&Engine) -> delivery::Result<T>) -> delivery::Result<T> {
        super::ask(self, command)
    }
}

/// The search engine behind a foreign server, or an ERROR.
pub fn engine_target(server: &str) -> Rc<EngineTarget> {
    match &resolve(server).target {
        AnyTarget::Engine(target) => Rc::clone(target),
        AnyTarget::Cache(_) => wrong_kind(server, "a search engine", "fanout_elasticsearch"),
    }
}

/// The Redis behind a foreign server, or an ERROR.
pub fn cache_target(server: &str) -> Rc<CacheTarget> {
    match &resolve(server).target {
        AnyTarget::Cache(target) => Rc::clone(target),
        AnyTarget::Engine(_) => wrong_kind(server, "a Redis", "fanout_redis"),
    }
}

fn wrong_kind(server: &str, wanted: &str, wrapper: &str) -> ! {
    failure(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, format!("server \"{server}\" is not {wanted}"))
        .hint(format!("Its foreign data wrapper must be {wrapper}."))
        .raise()
}

impl CacheTarget {
    /// Runs `command` on the helper thread. A connection that broke while it was idle is made anew once, if `command` may be
    /// given twice.
    pub fn try_run<T: Send + 'static>(
        &self,
        repeatable: bool,
        command: impl Fn(&mut RedisTarget) -> delivery::Result<T> + Send + 'static,
    ) -> delivery::Result<T> {
        let (key, config) = (self.key, self.config.clone());
        super::request(move |caches: &mut Caches| {
            let first = caches.get(key, &config, RedisTarget::connect).and_then(&command);
            let Err(error) = first else { return first };
            if error.kind() == delivery::ErrorKind::BadRequest {
                return Err(error);
            }
            caches.forget(key);
            if repeatable && error.kind() == delivery::ErrorKind::ConnectionLost {
                return caches.get(key, &config, RedisTarget::connect).and_then(&command);
            }
            Err(error)
        })
    }

    /// As [`CacheTarget::try_run`], and raises its failure.
    pub fn run<T: Send + 'static>(
        &self,
        repeatable: bool,
        command: impl Fn(&mut RedisTarget) -> delivery::Result<T> + Send + 'static,
    ) -> T {
        self.try_run(repeatable, command).unwrap_or_else(|error| {
            if error.message().contains("WRONGTYPE") {
                failure(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, "the key does not hold a string")
                    .detail(error.to_string())
                    .hint(
                        "A hash, a list and the like can't be read as text: a cache with format 'json' holds strings.",
                    )
                    .raise();
            }
            raise(&Asked { server: &self.server, index: None }, &error)
        })
    }
}
