//! Where a target is and how to talk to it. Debug output and error texts never show a secret.

use std::fmt;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// Why a configuration is refused. Never quotes a value: it might be a secret in the wrong place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not a URL.
    #[error("the URL is not valid: {0}")]
    Url(String),
    /// Another scheme than the target speaks.
    #[error("the URL must begin with {0}")]
    Scheme(String),
    /// `user:password@` in a URL.
    #[error("the URL must not contain a user name or password: these belong in the user mapping")]
    UserInfo,
    /// `?…` or `#…`.
    #[error("the URL must not contain a query or a fragment")]
    QueryOrFragment,
    /// No host.
    #[error("the URL has no host")]
    NoHost,
    /// No URL at all.
    #[error("at least one URL is needed")]
    NoUrl,
    /// The database number of a Redis URL.
    #[error("the path of a Redis URL must be a database number")]
    Database,
    /// The socket's path.
    #[error("a unix URL needs the path of a socket: unix:///run/redis.sock")]
    SocketPath,
    /// A database number other than 0, where there is a cluster.
    #[error("a Redis Cluster has only the database 0")]
    ClusterDatabase,
    /// Nodes with and without TLS.
    #[error("all URLs of a Redis Cluster must begin with the same scheme")]
    ClusterScheme,
}

/// Redis' port where a URL has none.
pub(crate) const REDIS_PORT: u16 = 6379;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

fn checked(text: &str, schemes: &[&str]) -> Result<Url, ConfigError> {
    let url = Url::parse(text.trim()).map_err(|error| ConfigError::Url(error.to_string()))?;
    if !schemes.contains(&url.scheme()) {
        let schemes: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
        return Err(ConfigError::Scheme(schemes.join(" or ")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ConfigError::UserInfo);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(ConfigError::QueryOrFragment);
    }
    Ok(url)
}

/// The database number of a Redis URL; 0 if it has none.
pub(crate) fn database(url: &Url) -> Result<i64, ConfigError> {
    match url.path() {
        "" | "/" => Ok(0),
        path => path.trim_matches('/').parse::<u32>().map(i64::from).map_err(|_| ConfigError::Database),
    }
}

/// A text that is not shown.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(SecretString::from(text.into()))
    }

    pub(crate) fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret::new(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Secret {
        Secret::new(text)
    }
}

/// How a search engine knows us.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Auth {
    /// Not at all.
    #[default]
    None,
    /// User name and password.
    Basic {
        /// The user.
        username: String,
        /// Its password.
        password: Secret,
    },
    /// Elasticsearch API key, in its encoded form (base64 of `id:key`).
    ApiKey(Secret),
    /// A bearer token.
    Bearer(Secret),
}

/// TLS settings. They have effect with `https` and `rediss` only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM certificates to trust instead of the system's.
    pub ca_pem: Option<String>,
    /// PEM certificate chain to present.
    pub client_cert_pem: Option<String>,
    /// PEM private key of that certificate.
    pub client_key_pem: Option<Secret>,
    /// False: accept any certificate. For tests only.
    pub verify: bool,
}

impl Default for Tls {
    fn default() -> Tls {
        Tls { ca_pem: None, client_cert_pem: None, client_key_pem: None, verify: true }
    }
}

/// Which search engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavor {
    /// Elasticsearch.
    Elasticsearch,
    /// OpenSearch.
    OpenSearch,
}

/// A search engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    pub(crate) urls: Vec<Url>,
    /// Credentials.
    pub auth: Auth,
    /// TLS settings.
    pub tls: Tls,
    /// Which engine, if the user said so; else it is found out when it matters.
    pub flavor: Option<Flavor>,
    /// Bound on making a connection. Default 5 s.
    pub connect_timeout: Duration,
    /// Bound on a whole request. Default 60 s.
    pub request_timeout: Duration,
    /// Compress bodies and replies with gzip. Default false: between machines near each other it costs more than it
    /// saves.
    pub compress: bool,
}

impl EngineConfig {
    /// A configuration with defaults, for one or more nodes of one cluster (`http` or `https`, a path is allowed).
    pub fn new<S: AsRef<str>>(urls: &[S]) -> Result<EngineConfig, ConfigError> {
        let urls = urls.iter().map(|url| checked(url.as_ref(), &["http", "https"])).collect::<Result<Vec<Url>, _>>()?;
        if urls.is_empty() {
            return Err(ConfigError::NoUrl);
        }
        if urls.iter().any(|url| url.host_str().is_none_or(str::is_empty)) {
            return Err(ConfigError::NoHost);
        }
        Ok(EngineConfig {
            urls,
            auth: Auth::None,
            tls: Tls::default(),
            flavor: None,
            connect_timeout: CONNECT_TIMEOUT,
            request_timeout: REQUEST_TIMEOUT,
            compress: false,
        })
    }

    /// The nodes.
    pub fn urls(&self) -> &[Url] {
        &self.urls
    }
}

/// A Redis server (or a server that speaks its protocol, as Valkey), or a Redis Cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// One, or of a cluster at least one.
    pub(crate) urls: Vec<Url>,
    pub(crate) cluster: bool,
    /// ACL user; `None` for the default user.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// TLS settings.
    pub tls: Tls,
    /// Bound on making a connection. Default 5 s.
    pub connect_timeout: Duration,
    /// Bound on waiting for one reply. Default 60 s.
    pub request_timeout: Duration,
}

impl RedisConfig {
    /// A configuration with defaults: `redis://host:port/db`, `rediss://…` (TLS) or `unix:///path`.
    pub fn new(url: &str) -> Result<RedisConfig, ConfigError> {
        let url = checked(url, &["redis", "rediss", "unix"])?;
        if url.scheme() == "unix" {
            if url.path().len() < 2 {
                return Err(ConfigError::SocketPath);
            }
        } else {
            if url.host_str().is_none_or(str::is_empty) {
                return Err(ConfigError::NoHost);
            }
            database(&url)?;
        }
        Ok(RedisConfig::at(vec![url], false))
    }

    /// As [`RedisConfig::new`], for a Redis Cluster: `redis` or `rediss` URLs of one or more of its nodes. The others are asked
    /// for, and reached in the same way.
    pub fn cluster<S: AsRef<str>>(urls: &[S]) -> Result<RedisConfig, ConfigError> {
        let urls =
            urls.iter().map(|url| checked(url.as_ref(), &["redis", "rediss"])).collect::<Result<Vec<Url>, _>>()?;
        let first = urls.first().ok_or(ConfigError::NoUrl)?;
        for url in &urls {
            if url.host_str().is_none_or(str::is_empty) {
                return Err(ConfigError::NoHost);
            }
            if database(url)? != 0 {
                return Err(ConfigError::ClusterDatabase);
            }
            if url.scheme() != first.scheme() {
                return Err(ConfigError::ClusterScheme);
            }
        }
        Ok(RedisConfig::at(urls, true))
    }

    fn at(urls: Vec<Url>, cluster: bool) -> RedisConfig {
        RedisConfig {
            urls,
            cluster,
            username: None,
            password: None,
            tls: Tls::default(),
            connect_timeout: CONNECT_TIMEOUT,
            request_timeout: REQUEST_TIMEOUT,
        }
    }

    /// The addresses: more than one only of a cluster.
    pub fn urls(&self) -> &[Url] {
        &self.urls
    }
}

/// A target of either kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerConfig {
    /// Elasticsearch or OpenSearch.
    Engine(EngineConfig),
    /// Redis.
    Redis(RedisConfig),
}

impl ServerConfig {
    /// True if both lead to the same place by what their URLs say: a node in common, or the same database of a Redis. Another
    /// name of the same host is not seen.
    pub fn leads_where(&self, other: &ServerConfig) -> bool {
        match (self, other) {
            (ServerConfig::Engine(one), ServerConfig::Engine(other)) => {
                let root = |url: &Url| url.as_str().trim_end_matches('/').to_owned();
                one.urls.iter().any(|url| other.urls.iter().any(|node| root(url) == root(node)))
            }
            (ServerConfig::Redis(one), ServerConfig::Redis(other)) => {
                let at = |url: &Url| (url.host_str().map(str::to_owned), url.port().unwrap_or(REDIS_PORT));
                let same = |one: &Url, other: &Url| match (one.scheme(), other.scheme()) {
                    ("unix", _) | (_, "unix") => one == other,
                    _ => at(one) == at(other) && database(one) == database(other),
                };
                one.urls.iter().any(|url| other.urls.iter().any(|node| same(url, node)))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_engines() {
        let config = EngineConfig::new(&["http://a:9200", "https://b/es/"]).unwrap();
        assert_eq!(config.urls().len(), 2);
        assert_eq!(EngineConfig::new::<&str>(&[]), Err(ConfigError::NoUrl));
        assert!(matches!(EngineConfig::new(&["redis://a"]), Err(ConfigError::Scheme(_))));
        assert!(matches!(EngineConfig::new(&["http://a?x=1"]), Err(ConfigError::QueryOrFragment)));
        assert!(matches!(EngineConfig::new(&["a:b"]), Err(ConfigError::Scheme(_))));
        assert!(matches!(EngineConfig::new(&["http://"]), Err(ConfigError::Url(_))));
    }

    #[test]
    fn urls_of_redis() {
        for url in ["redis://h", "redis://h:1/2", "rediss://h:6380/", "unix:///run/redis.sock"] {
            RedisConfig::new(url).unwrap();
        }
        assert_eq!(RedisConfig::new("redis://h/x"), Err(ConfigError::Database));
        assert_eq!(RedisConfig::new("redis:///1"), Err(ConfigError::NoHost));
        assert!(matches!(RedisConfig::new("unix:"), Err(ConfigError::SocketPath)));
    }

    #[test]
    fn urls_of_a_cluster() {
        assert_eq!(RedisConfig::cluster(&["redis://a:1", "redis://b/0", "redis://[::1]:7/"]).unwrap().urls().len(), 3);
        assert_eq!(RedisConfig::cluster::<&str>(&[]), Err(ConfigError::NoUrl));
        assert_eq!(RedisConfig::cluster(&["redis://a", "redis:///0"]), Err(ConfigError::NoHost));
        assert_eq!(RedisConfig::cluster(&["redis://a/1"]), Err(ConfigError::ClusterDatabase));
        assert_eq!(RedisConfig::cluster(&["redis://a", "rediss://b"]), Err(ConfigError::ClusterScheme));
        assert!(matches!(RedisConfig::cluster(&["unix:///run/redis.sock"]), Err(ConfigError::Scheme(_))));
    }

    #[test]
    fn urls_that_lead_to_the_same_place() {
        let engine = |urls: &[&str]| ServerConfig::Engine(EngineConfig::new(urls).unwrap());
        let redis = |url| ServerConfig::Redis(RedisConfig::new(url).unwrap());
        assert!(engine(&["http://a:9200", "http://b"]).leads_where(&engine(&["HTTP://B:80/"])));
        assert!(!engine(&["http://a:9200"]).leads_where(&engine(&["http://a:9201"])));
        assert!(!engine(&["http://a/x"]).leads_where(&engine(&["http://a/y"])));
        assert!(redis("redis://h").leads_where(&redis("redis://h:6379/0")));
        assert!(!redis("redis://h/1").leads_where(&redis("redis://h")));
        assert!(redis("unix:///run/redis.sock").leads_where(&redis("unix:///run/redis.sock")));
        assert!(!redis("unix:///run/a").leads_where(&redis("unix:///run/b")));
        let cluster = ServerConfig::Redis(RedisConfig::cluster(&["redis://a:1", "redis://b:1"]).unwrap());
        assert!(cluster.leads_where(&redis("redis://b:1")) && !cluster.leads_where(&redis("redis://c:1")));
        assert!(!engine(&["http://h:6379"]).leads_where(&redis("redis://h")));
    }

    #[test]
    fn no_secret_is_shown() {
        for url in ["http://elastic:hunter2@h", "http://:hunter2@h", "http://hunter2@h"] {
            let error = EngineConfig::new(&[url]).unwrap_err();
            assert_eq!(error, ConfigError::UserInfo);
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
        assert!(!RedisConfig::new("redis://:hunter2@h").unwrap_err().to_string().contains("hunter2"));
        let error = RedisConfig::new("redis://:hunter2@h:port").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let mut config = EngineConfig::new(&["http://h"]).unwrap();
        config.tls.client_key_pem = Some("hunter2".into());
        for auth in [
            Auth::Basic { username: "u".into(), password: "hunter2".into() },
            Auth::ApiKey("hunter2".into()),
            Auth::Bearer("hunter2".into()),
        ] {
            config.auth = auth;
            let shown = format!("{:?} {config:#?}", ServerConfig::Engine(config.clone()));
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn a_changed_secret_is_noticed() {
        let mut config = RedisConfig::new("redis://h").unwrap();
        config.password = Some("a".into());
        let mut other = config.clone();
        assert_eq!(config, other);
        other.password = Some("b".into());
        assert_ne!(config, other);
    }
}
