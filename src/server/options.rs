//! Which options a server and a user mapping may have, and what their values must look like.
//!
//! No message shows a value: people put secrets in the wrong place.

use crate::error::{Failure, failure};
use crate::server::ServerKind;
use delivery::config::{EngineConfig, RedisConfig};
use pgrx::{PgSqlErrorCode, pg_sys};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::time::Duration;

/// What kind of object carries the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `CREATE SERVER … OPTIONS`.
    Server,
    /// `CREATE USER MAPPING … OPTIONS`.
    UserMapping,
}

/// Options by name.
pub type Options = BTreeMap<String, String>;

/// Most sender threads a server may have.
pub const MAX_SENDERS: i32 = 16;

const ENGINE_SERVER: &[&str] =
    &["url", "flavor", "connect_timeout", "request_timeout", "compress", "senders", "ca", "verify"];
const REDIS_SERVER: &[&str] = &["url", "cluster", "connect_timeout", "request_timeout", "senders", "ca", "verify"];
const ENGINE_MAPPING: &[&str] = &["username", "password", "api_key", "bearer_token", "client_cert", "client_key"];
const REDIS_MAPPING: &[&str] = &["username", "password", "client_cert", "client_key"];

/// Names under which other programs, or people, keep secrets. As a server option each gets the same answer.
const SECRETS: &[&str] =
    &["user", "username", "password", "pass", "passwd", "api_key", "apikey", "token", "bearer_token", "secret", "auth"];

/// The names that are valid here.
pub fn valid_names(kind: ServerKind, place: Place) -> &'static [&'static str] {
    match (kind, place) {
        (ServerKind::Engine, Place::Server) => ENGINE_SERVER,
        (ServerKind::Redis, Place::Server) => REDIS_SERVER,
        (ServerKind::Engine, Place::UserMapping) => ENGINE_MAPPING,
        (ServerKind::Redis, Place::UserMapping) => REDIS_MAPPING,
    }
}

/// Takes apart the `name=value` items of a catalog's option array.
pub fn parse(items: impl IntoIterator<Item = String>) -> Options {
    items
        .into_iter()
        .map(|item| match item.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (item, String::new()),
        })
        .collect()
}

fn invalid(option: &str, expected: impl std::fmt::Display) -> Failure {
    failure(
        PgSqlErrorCode::ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE,
        format!("invalid value for option \"{option}\": {expected}"),
    )
}

/// Checks the whole set of options that an object will have.
pub fn check(kind: ServerKind, place: Place, options: &Options) -> Result<(), Failure> {
    for name in options.keys() {
        check_name(kind, place, name)?;
    }
    match place {
        Place::Server => check_server(kind, options),
        Place::UserMapping => check_user_mapping(options),
    }
}

fn check_name(kind: ServerKind, place: Place, name: &str) -> Result<(), Failure> {
    let valid = valid_names(kind, place);
    if valid.contains(&name) {
        return Ok(());
    }
    let code = PgSqlErrorCode::ERRCODE_FDW_INVALID_OPTION_NAME;
    let in_mapping = valid_names(kind, Place::UserMapping);
    let lower = name.to_lowercase();
    if place == Place::Server && (SECRETS.contains(&lower.as_str()) || in_mapping.contains(&name)) {
        return Err(failure(code, format!("option \"{name}\" belongs in a user mapping, not in a server"))
            .detail("The options of a server can be read by everyone.")
            .hint(format!("CREATE USER MAPPING FOR … SERVER … OPTIONS (…); valid there: {}.", in_mapping.join(", "))));
    }
    if place == Place::UserMapping && valid_names(kind, Place::Server).contains(&name) {
        return Err(failure(code, format!("option \"{name}\" belongs in the server, not in a user mapping"))
            .hint(format!("Valid options of a user mapping: {}.", valid.join(", "))));
    }
    Err(failure(code, format!("invalid option \"{name}\"")).hint(format!("Valid options here: {}.", valid.join(", "))))
}

fn check_server(kind: ServerKind, options: &Options) -> Result<(), Failure> {
    match kind {
        ServerKind::Engine => engine_config(options).map(drop)?,
        ServerKind::Redis => redis_config(options).map(drop)?,
    }
    senders(options).map(drop)
}

/// The engine's configuration from a server's options, without credentials.
pub fn engine_config(options: &Options) -> Result<EngineConfig, Failure> {
    let urls: Vec<&str> = required_url(options, "http://localhost:9200")?.split(',').map(str::trim).collect();
    if urls.iter().any(|url| url.is_empty()) {
        return Err(
            invalid("url", "one of the URLs is empty").hint("Several nodes of one cluster are separated by commas.")
        );
    }
    let mut config = EngineConfig::new(&urls).map_err(refused_url)?;
    config.flavor = options.get("flavor").map(|word| flavor(word)).transpose()?;
    if let Some(bound) = duration(options, "connect_timeout")? {
        config.connect_timeout = bound;
    }
    if let Some(bound) = duration(options, "request_timeout")? {
        config.request_timeout = bound;
    }
    if let Some(compress) = boolean(options, "compress")? {
        config.compress = compress;
    }
    config.tls.ca_pem = pem(options, "ca", "CERTIFICATE")?.map(str::to_owned);
    config.tls.verify = boolean(options, "verify")?.unwrap_or(true);
    Ok(config)
}

/// Redis's configuration from a server's options, without credentials.
pub fn redis_config(options: &Options) -> Result<RedisConfig, Failure> {
    let url = required_url(options, "redis://localhost:6379/0")?;
    let urls: Vec<&str> = url.split(',').map(str::trim).collect();
    let mut config = if boolean(options, "cluster")?.unwrap_or(false) {
        RedisConfig::cluster(&urls)
    } else if urls.len() > 1 && urls.iter().all(|url| url.contains("://")) {
        return Err(invalid("url", "several URLs are those of a Redis Cluster").hint("Add the option cluster 'true'."));
    } else {
        RedisConfig::new(url.trim())
    }
    .map_err(refused_url)?;
    if let Some(bound) = duration(options, "connect_timeout")? {
        config.connect_timeout = bound;
    }
    if let Some(bound) = duration(options, "request_timeout")? {
        config.request_timeout = bound;
    }
    config.tls.ca_pem = pem(options, "ca", "CERTIFICATE")?.map(str::to_owned);
    config.tls.verify = boolean(options, "verify")?.unwrap_or(true);
    Ok(config)
}

/// How many sender threads the server's user asked for.
pub fn senders(options: &Options) -> Result<Option<usize>, Failure> {
    let Some(text) = options.get("senders") else { return Ok(None) };
    match text.trim().parse::<i32>() {
        Ok(number) if (1..=MAX_SENDERS).contains(&number) => Ok(Some(number as usize)),
        _ => Err(invalid("senders", format!("expected a whole number from 1 to {MAX_SENDERS}"))
            .hint("So many threads send to the server at the same time; leave it out for the default.")),
    }
}

fn required_url<'a>(options: &'a Options, example: &str) -> Result<&'a str, Failure> {
    options.get("url").map(String::as_str).ok_or_else(|| {
        failure(PgSqlErrorCode::ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED, "option \"url\" is required")
            .hint(format!("For example OPTIONS (url '{example}')."))
    })
}

/// The client's words never quote the URL.
fn refused_url(error: delivery::config::ConfigError) -> Failure {
    use delivery::config::ConfigError;
    let refusal = invalid("url", &error);
    match error {
        ConfigError::UserInfo => refusal
            .detail("The options of a server can be read by everyone.")
            .hint("CREATE USER MAPPING FOR … SERVER … OPTIONS (username '…', password '…')."),
        _ => refusal.hint("For example 'http://localhost:9200', or 'redis://localhost:6379/0'."),
    }
}

fn flavor(word: &str) -> Result<delivery::config::Flavor, Failure> {
    match word.to_lowercase().as_str() {
        "elasticsearch" => Ok(delivery::config::Flavor::Elasticsearch),
        "opensearch" => Ok(delivery::config::Flavor::OpenSearch),
        _ => Err(invalid("flavor", "expected elasticsearch or opensearch")
            .hint("Without the option the engine is asked what it is.")),
    }
}

/// A length of time, written as in postgresql.conf: a number with a unit, milliseconds without one.
fn duration(options: &Options, name: &str) -> Result<Option<Duration>, Failure> {
    let Some(text) = options.get(name) else { return Ok(None) };
    let expected = || {
        invalid(name, "expected a length of time above zero such as '5s'")
            .hint("Valid units are \"us\", \"ms\", \"s\", \"min\", \"h\" and \"d\"; without a unit: milliseconds.")
    };
    let text = CString::new(text.trim()).map_err(|_| expected())?;
    let mut milliseconds = 0;
    let mut hint = std::ptr::null();
    // SAFETY: a C string and two locals; the function only parses.
    let parsed = unsafe { pg_sys::parse_int(text.as_ptr(), &mut milliseconds, pg_sys::GUC_UNIT_MS as i32, &mut hint) };
    match (parsed, u64::try_from(milliseconds)) {
        (true, Ok(milliseconds)) if milliseconds > 0 => Ok(Some(Duration::from_millis(milliseconds))),
        _ => Err(expected()),
    }
}

fn boolean(options: &Options, name: &str) -> Result<Option<bool>, Failure> {
    let Some(text) = options.get(name) else { return Ok(None) };
    let expected = || {
        invalid(name, "expected true or false")
            .hint("Write it as PostgreSQL does: true, false, on, off, yes, no, 1, 0.")
    };
    let text = CString::new(text.trim()).map_err(|_| expected())?;
    let mut value = false;
    // SAFETY: a C string and a local; the function only parses.
    if unsafe { pg_sys::parse_bool(text.as_ptr(), &mut value) } { Ok(Some(value)) } else { Err(expected()) }
}

/// PEM text. A path would make the server read its files for whoever asks.
fn pem<'a>(options: &'a Options, name: &str, what: &str) -> Result<Option<&'a str>, Failure> {
    let Some(text) = options.get(name) else { return Ok(None) };
    let begins = text.match_indices("-----BEGIN ").any(|(at, _)| {
        text[at..].lines().next().is_some_and(|line| line.trim_end().ends_with(&format!("{what}-----")))
    });
    if begins && text.contains("-----END ") {
        return Ok(Some(text));
    }
    Err(invalid(name, format!("expected PEM text (-----BEGIN … {what}-----)"))
        .hint("Give the text of the file itself: paths are not read."))
}

/// What a user mapping says about who we are, in either kind of target.
pub struct Credentials<'a> {
    pub username: Option<&'a str>,
    pub password: Option<&'a str>,
    pub api_key: Option<&'a str>,
    pub bearer_token: Option<&'a str>,
    pub client_cert: Option<&'a str>,
    pub client_key: Option<&'a str>,
}

/// Reads a user mapping's options; refuses what contradicts itself.
pub fn credentials(options: &Options) -> Result<Credentials<'_>, Failure> {
    let get = |name: &str| options.get(name).map(String::as_str);
    let credentials = Credentials {
        username: get("username"),
        password: get("password"),
        api_key: get("api_key"),
        bearer_token: get("bearer_token"),
        client_cert: pem(options, "client_cert", "CERTIFICATE")?,
        client_key: pem(options, "client_key", "PRIVATE KEY")?,
    };
    for name in ["username", "password", "api_key", "bearer_token"] {
        let Some(value) = get(name) else { continue };
        if value.is_empty() {
            return Err(invalid(name, "it is empty").hint("Leave the option out to log in without it."));
        }
        // A line break would end the HTTP header that carries the value and begin another.
        if name != "password" && value.chars().any(char::is_control) {
            return Err(invalid(name, "it contains a control character")
                .hint("It is one line of text: look for a line break at its end."));
        }
    }
    Ok(credentials)
}

fn check_user_mapping(options: &Options) -> Result<(), Failure> {
    let given = credentials(options)?;
    let code = PgSqlErrorCode::ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE;
    let basic = given.username.is_some() || given.password.is_some();
    if [basic, given.api_key.is_some(), given.bearer_token.is_some()].iter().filter(|yes| **yes).count() > 1 {
        return Err(failure(code, "more than one way to log in is given")
            .hint("Give username and password, or api_key, or bearer_token."));
    }
    if given.username.is_some() && given.password.is_none() {
        return Err(failure(code, "option \"username\" needs option \"password\"")
            .hint("OPTIONS (username '…', password '…')."));
    }
    if given.client_cert.is_some() != given.client_key.is_some() {
        return Err(failure(code, "options \"client_cert\" and \"client_key\" need each other")
            .hint("Give both, as PEM text, or neither."));
    }
    Ok(())
}

/// Reads C text that the server keeps; empty for a null pointer.
///
/// # Safety
/// `text` is null or a C string that lives through the call.
pub unsafe fn text(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as promised by the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
