//! Targets as foreign servers: what a server and a user mapping may say, and what `delivery` makes of it.

pub mod options;
mod validator;

use crate::error::{Failure, failure};
use delivery::config::{Auth, Secret, ServerConfig, Tls};
use options::{Options, Place};
use pgrx::{FromDatum, PgSqlErrorCode, pg_sys};
use std::ffi::CString;

/// What speaks at the other end of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    /// Elasticsearch or OpenSearch (`fanout_elasticsearch`).
    Engine,
    /// Redis (`fanout_redis`).
    Redis,
}

impl ServerKind {
    /// The foreign data wrapper of such servers.
    pub fn wrapper(self) -> &'static str {
        match self {
            ServerKind::Engine => "fanout_elasticsearch",
            ServerKind::Redis => "fanout_redis",
        }
    }

    fn of_wrapper(name: &str) -> Option<Self> {
        [ServerKind::Engine, ServerKind::Redis].into_iter().find(|kind| kind.wrapper() == name)
    }
}

struct Server {
    oid: pg_sys::Oid,
    kind: ServerKind,
    options: Options,
}

/// Reads a server from the catalog cache.
fn server(name: &str) -> Result<Server, Failure> {
    let missing = || {
        failure(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, format!("server \"{name}\" does not exist")).hint(
            "CREATE SERVER … FOREIGN DATA WRAPPER fanout_elasticsearch (or fanout_redis) OPTIONS (url '…') makes one.",
        )
    };
    let c_name = CString::new(name).map_err(|_| missing())?;
    // SAFETY: catalog look-ups on the main thread; the structs and lists are palloc'd in the current memory context and
    // copied before it goes away.
    let (oid, wrapper, options) = unsafe {
        let server = pg_sys::GetForeignServerByName(c_name.as_ptr(), true);
        if server.is_null() {
            return Err(missing());
        }
        let wrapper = pg_sys::GetForeignDataWrapper((*server).fdwid);
        let list = pgrx::PgList::<pg_sys::DefElem>::from_pg((*server).options);
        let options = list
            .iter_ptr()
            .map(|element| (options::text((*element).defname), options::text(pg_sys::defGetString(element))))
            .collect();
        ((*server).serverid, options::text((*wrapper).fdwname), options)
    };
    let kind = ServerKind::of_wrapper(&wrapper).ok_or_else(|| {
        failure(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("server \"{name}\" is not one that pg_fanout can use"),
        )
        .detail(format!("Its foreign data wrapper is \"{wrapper}\"."))
        .hint("Use a server of fanout_elasticsearch or fanout_redis.")
    })?;
    Ok(Server { oid, kind, options })
}

/// Fails unless the server is of the kind that `purpose` (such as "an index") needs.
pub fn expect_kind(server_name: &str, kind: ServerKind, purpose: &str) -> Result<(), Failure> {
    let server = server(server_name)?;
    if server.kind == kind {
        return Ok(());
    }
    Err(failure(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, format!("server \"{server_name}\" can't hold {purpose}"))
        .detail(format!("Its foreign data wrapper is \"{}\".", server.kind.wrapper()))
        .hint(format!("Name a server of \"{}\".", kind.wrapper())))
}

/// Fails unless `user` has USAGE on the server.
pub fn check_usage(server_name: &str, user: pg_sys::Oid) -> Result<(), Failure> {
    may_use(server(server_name)?.oid, server_name, user)
}

/// As [`check_usage`], of a server whose OID is known.
pub fn may_use(server: pg_sys::Oid, server_name: &str, user: pg_sys::Oid) -> Result<(), Failure> {
    if role_exists(user) && has_usage(server, user) {
        return Ok(());
    }
    let role = role_name(user);
    Err(failure(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("permission denied for foreign server {server_name}"),
    )
    .detail(format!("Role \"{role}\" has no USAGE on it."))
    .hint(format!("GRANT USAGE ON FOREIGN SERVER {} TO {};", quoted(server_name), quoted(&role))))
}

fn role_exists(role: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up by key on the main thread.
    unsafe {
        pg_sys::SearchSysCacheExists(
            pg_sys::SysCacheIdentifier::AUTHOID as i32,
            role.into(),
            pg_sys::Datum::null(),
            pg_sys::Datum::null(),
            pg_sys::Datum::null(),
        )
    }
}

#[cfg(feature = "pg15")]
fn has_usage(server: pg_sys::Oid, user: pg_sys::Oid) -> bool {
    // SAFETY: a privilege look-up on the main thread for a server that was just read.
    let answer = unsafe { pg_sys::pg_foreign_server_aclcheck(server, user, pg_sys::ACL_USAGE as pg_sys::AclMode) };
    answer == pg_sys::AclResult::ACLCHECK_OK
}

#[cfg(not(feature = "pg15"))]
fn has_usage(server: pg_sys::Oid, user: pg_sys::Oid) -> bool {
    // SAFETY: a privilege look-up on the main thread for a server that was just read.
    let answer = unsafe {
        pg_sys::object_aclcheck(pg_sys::ForeignServerRelationId, server, user, pg_sys::ACL_USAGE as pg_sys::AclMode)
    };
    answer == pg_sys::AclResult::ACLCHECK_OK
}

/// The name of a role, or its OID if it was dropped.
pub fn role_name(role: pg_sys::Oid) -> String {
    // SAFETY: a catalog look-up on the main thread; with `noerr` it answers null for a role that is gone.
    let name = unsafe { options::text(pg_sys::GetUserNameFromId(role, true)) };
    if name.is_empty() { role.to_u32().to_string() } else { name }
}

/// An identifier as SQL text needs it.
pub fn quoted(identifier: &str) -> String {
    let Ok(c_identifier) = CString::new(identifier) else { return String::from("\"\"") };
    // SAFETY: a C string in, a C string (the same or palloc'd) out, copied at once.
    unsafe { options::text(pg_sys::quote_identifier(c_identifier.as_ptr())) }
}

/// How many sender threads the server's options ask for.
pub fn senders(server_name: &str) -> Result<Option<usize>, Failure> {
    options::senders(&server(server_name)?.options)
}

/// What `delivery` needs to talk to the server as `user`: the server's options, and the credentials of the user's
/// mapping, else of PUBLIC's, else none; and the server's OID. `user` needs USAGE on the server.
pub fn config(server_name: &str, user: pg_sys::Oid) -> Result<(pg_sys::Oid, ServerConfig), Failure> {
    let server = server(server_name)?;
    may_use(server.oid, server_name, user)?;
    let mapping = user_mapping(server.oid, user);
    options::check(server.kind, Place::UserMapping, &mapping)?;
    let given = options::credentials(&mapping)?;
    let present = |tls: &mut Tls| {
        tls.client_cert_pem = given.client_cert.map(str::to_owned);
        tls.client_key_pem = given.client_key.map(Secret::from);
    };
    match server.kind {
        ServerKind::Engine => {
            let mut config = options::engine_config(&server.options)?;
            present(&mut config.tls);
            config.auth = match (given.username, given.password, given.api_key, given.bearer_token) {
                (Some(username), Some(password), _, _) => {
                    Auth::Basic { username: username.to_owned(), password: Secret::from(password) }
                }
                (_, _, Some(key), _) => Auth::ApiKey(Secret::from(key)),
                (_, _, _, Some(token)) => Auth::Bearer(Secret::from(token)),
                _ => Auth::None,
            };
            Ok((server.oid, ServerConfig::Engine(config)))
        }
        ServerKind::Redis => {
            let mut config = options::redis_config(&server.options)?;
            present(&mut config.tls);
            config.username = given.username.map(str::to_owned);
            config.password = given.password.map(Secret::from);
            Ok((server.oid, ServerConfig::Redis(config)))
        }
    }
}

/// True if two servers have a URL in common: then they are one, under two names.
pub fn lead_to_one_place(one: &str, other: &str) -> bool {
    let address = |name: &str| {
        let server = server(name)?;
        match server.kind {
            ServerKind::Engine => options::engine_config(&server.options).map(ServerConfig::Engine),
            ServerKind::Redis => options::redis_config(&server.options).map(ServerConfig::Redis),
        }
    };
    // One that is gone, or has a URL of no use, leads nowhere.
    address(one).is_ok_and(|one| address(other).is_ok_and(|other| one.leads_where(&other)))
}

/// The options of the user's mapping, else of PUBLIC's; empty if there is neither (GetUserMapping would raise).
fn user_mapping(server: pg_sys::Oid, user: pg_sys::Oid) -> Options {
    for owner in [user, pg_sys::InvalidOid] {
        // SAFETY: a syscache look-up by key on the main thread; the tuple is released after its options were copied.
        unsafe {
            let cache = pg_sys::SysCacheIdentifier::USERMAPPINGUSERSERVER as i32;
            let tuple = pg_sys::SearchSysCache2(cache, owner.into(), server.into());
            if tuple.is_null() {
                continue;
            }
            let mut is_null = false;
            let attribute = pg_sys::Anum_pg_user_mapping_umoptions as pg_sys::AttrNumber;
            let datum = pg_sys::SysCacheGetAttr(cache, tuple, attribute, &mut is_null);
            let items = Vec::<Option<String>>::from_datum(datum, is_null);
            pg_sys::ReleaseSysCache(tuple);
            return options::parse(items.into_iter().flatten().flatten());
        }
    }
    Options::new()
}
