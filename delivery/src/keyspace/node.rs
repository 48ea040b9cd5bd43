//! One Redis server and the connection to it.

use std::fmt;
use std::time::{Duration, Instant};

use redis::{Client, Cmd, Connection, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo};
use redis::{RedisConnectionInfo, RedisError, TlsCertificates, Value};
use url::Url;

use super::batch;
use crate::config::{REDIS_PORT, RedisConfig, database};
use crate::error::{Error, ErrorKind, Result};

/// A connection to a server, made anew by the call after the one in which it broke.
///
/// What a lost connection has sent may still be in the server's hands, so a new connection first ends the one before
/// (`CLIENT KILL ID`), if it meets the same server process (`run_id`). Where ACLs don't allow `CLIENT ID`, `CLIENT KILL`
/// and `INFO`, this is left out: late commands are then possible after a lost connection, until the server notices that it
/// is gone.
pub(super) struct Node {
    client: Client,
    shown: String,
    connect_timeout: Duration,
    request_timeout: Duration,
    /// Whether it is to be a node of a Redis Cluster.
    cluster: bool,
    connection: Option<Connection>,
    /// The connection made last: the server's run id and the client id there.
    last: Option<(String, i64)>,
    version: Option<String>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("server", &self.shown).field("last", &self.last).finish_non_exhaustive()
    }
}

impl Node {
    /// The server at one of the URLs of `config`, or at another node of that cluster. Does not connect yet.
    pub(super) fn new(config: &RedisConfig, url: &Url) -> Result<Node> {
        crate::tls::install_provider();
        let info = connection_info(config, url)?;
        let shown = info.addr().to_string();
        let client = if url.scheme() == "rediss" {
            let tls = &config.tls;
            let client_tls = match (&tls.client_cert_pem, &tls.client_key_pem) {
                (Some(certificate), Some(key)) => Some(redis::ClientTlsConfig {
                    client_cert: certificate.clone().into_bytes(),
                    client_key: key.expose().as_bytes().to_vec(),
                }),
                (None, None) => None,
                _ => return Err(bad_config("a client certificate and its key are needed together")),
            };
            // The library would take an unreadable text for an empty list, and trust nobody.
            if tls.ca_pem.as_deref().is_some_and(|pem| crate::tls::count_certificates(pem).unwrap_or(0) == 0) {
                return Err(bad_config("the CA certificate is not valid PEM"));
            }
            let root_cert = tls.ca_pem.as_ref().map(|pem| pem.clone().into_bytes());
            Client::build_with_tls(info, TlsCertificates { client_tls, root_cert })
        } else {
            Client::open(info)
        };
        let client = client.map_err(|error| bad_config("the Redis client can't be set up").with_source(error))?;
        Ok(Node {
            client,
            shown,
            connect_timeout: config.connect_timeout,
            request_timeout: config.request_timeout,
            cluster: config.cluster,
            connection: None,
            last: None,
            version: None,
        })
    }

    /// One command, one reply.
    pub(super) fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T> {
        let shown = self.shown.clone();
        let connection = self.connection()?;
        command.query(connection).map_err(|error| {
            let error = failure(&error, &shown, true);
            if !matches!(error.kind(), ErrorKind::Unauthorized | ErrorKind::BadRequest | ErrorKind::Overloaded) {
                self.connection = None;
            }
            error
        })
    }

    /// Several commands, several replies, in one go.
    pub(super) fn pipeline<T: FromRedisValue>(&mut self, pipeline: &redis::Pipeline) -> Result<T> {
        let shown = self.shown.clone();
        let connection = self.connection()?;
        pipeline.query(connection).map_err(|error| {
            // Replies that were not read would be taken for those of the next command.
            self.connection = None;
            failure(&error, &shown, true)
        })
    }

    pub(super) fn connection(&mut self) -> Result<&mut Connection> {
        // Not if-let: the borrow would last for the other branch too.
        if self.connection.is_none() {
            let connection = self.open()?;
            return Ok(self.connection.insert(connection));
        }
        self.connection.as_mut().ok_or_else(|| Error::new(ErrorKind::Unreachable, "not connected"))
    }

    fn open(&mut self) -> Result<Connection> {
        let before_sending = |error: &RedisError| failure(error, &self.shown, false);
        let mut connection =
            self.client.get_connection_with_timeout(self.connect_timeout).map_err(|error| before_sending(&error))?;
        connection.set_read_timeout(Some(self.request_timeout)).map_err(|error| before_sending(&error))?;
        connection.set_write_timeout(Some(self.request_timeout)).map_err(|error| before_sending(&error))?;
        let mut optional = |command: &Cmd| -> Result<Option<Value>> {
            match command.query::<Value>(&mut connection) {
                Ok(value) => Ok(Some(value)),
                Err(error) if error.code().is_some_and(is_refusal) => Ok(None),
                Err(error) => Err(failure(&error, &self.shown, false)),
            }
        };
        let info: Option<String> =
            optional(redis::cmd("INFO").arg("server"))?.and_then(|value| redis::from_redis_value(value).ok());
        let field = |name: &str| {
            let text = info.as_deref()?;
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|value| value.trim().to_owned())
        };
        self.check_mode(field("redis_mode").as_deref())?;
        let run_id = field("run_id");
        let client_id = match optional(redis::cmd("CLIENT").arg("ID"))? {
            Some(Value::Int(id)) => Some(id),
            _ => None,
        };
        if let Some((last_run_id, last_client_id)) = &self.last
            && Some(last_run_id) == run_id.as_ref()
        {
            optional(redis::cmd("CLIENT").arg("KILL").arg("ID").arg(last_client_id))?;
        }
        self.version = field("redis_version");
        self.last = run_id.zip(client_id);
        Ok(connection)
    }

    /// Which run of the server this connection is to, if we may know it.
    pub(super) fn run_id(&self) -> Option<&str> {
        self.last.as_ref().map(|(run_id, _)| run_id.as_str())
    }

    /// The id of this connection at the server, if we may know it.
    pub(super) fn client_id(&self) -> Option<i64> {
        self.last.as_ref().map(|(_, id)| *id)
    }

    /// The server's version, if we may know it.
    pub(super) fn version(&self) -> Option<String> {
        self.version.clone()
    }

    /// Sends commands without waiting for their replies.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = self.connection()?.send_packed_command(bytes);
        sent.map_err(|error| failure(&error, &self.shown, true))
    }

    /// The next reply.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Value> {
        // Not req_packed_commands: after a time-out that waits as long for each of the other replies.
        if Instant::now() > deadline {
            return Err(Error::new(ErrorKind::Timeout, format!("no reply in time from {}", self.shown)));
        }
        let connection = self.connection.as_mut();
        let connection = connection.ok_or_else(|| Error::new(ErrorKind::ConnectionLost, "not connected"))?;
        connection.recv_response().map_err(|error| failure(&error, &self.shown, true))
    }

    /// Ends the connection: replies that were not read would be taken for those of the next command.
    pub(super) fn hang_up(&mut self) {
        self.connection = None;
    }

    /// The next command of this connection, and what it begins (`MULTI`), is about a key that is just being moved to this node.
    pub(super) fn asking(&mut self) -> Result<()> {
        self.query(&redis::cmd("ASKING"))
    }

    /// Fails if the server is part of a cluster and the configuration says otherwise, or the other way round.
    fn check_mode(&self, mode: Option<&str>) -> Result<()> {
        let what = match (mode, self.cluster) {
            (Some("cluster"), false) => {
                "is a node of a Redis Cluster, which the option \"cluster\" of the server must say"
            }
            (Some("standalone"), true) => {
                "is not part of a Redis Cluster, as the option \"cluster\" of the server says"
            }
            _ => return Ok(()),
        };
        Err(bad_config(&format!("Redis at {} {what}", self.shown)))
    }
}

/// A refusal of an optional command: forbidden, renamed away, or not known to this server.
fn is_refusal(code: &str) -> bool {
    matches!(code, "NOPERM" | "ERR")
}

fn connection_info(config: &RedisConfig, url: &Url) -> Result<ConnectionInfo> {
    let host = || url.host_str().unwrap_or("").trim_matches(['[', ']']).to_owned();
    let address = match url.scheme() {
        "unix" => {
            let path = percent_encoding::percent_decode_str(url.path()).decode_utf8_lossy();
            ConnectionAddr::Unix(path.into_owned().into())
        }
        "rediss" => ConnectionAddr::TcpTls {
            host: host(),
            port: url.port().unwrap_or(REDIS_PORT),
            insecure: !config.tls.verify,
            tls_params: None,
        },
        _ => ConnectionAddr::Tcp(host(), url.port().unwrap_or(REDIS_PORT)),
    };
    let mut redis = RedisConnectionInfo::default().set_lib_name("pg_fanout", env!("CARGO_PKG_VERSION"));
    if url.scheme() != "unix" {
        let database = database(url).map_err(|error| bad_config(&error.to_string()))?;
        redis = redis.set_db(database);
    }
    if let Some(username) = &config.username {
        redis = redis.set_username(username);
    }
    if let Some(password) = &config.password {
        redis = redis.set_password(password.expose());
    }
    let info =
        address.into_connection_info().map_err(|error| bad_config("the URL can't be used").with_source(error))?;
    Ok(info.set_redis_settings(redis))
}

pub(super) fn bad_config(message: &str) -> Error {
    Error::new(ErrorKind::TlsOrConfig, message)
}

/// `sent`: whether a command of ours may have reached the server.
pub(super) fn failure(error: &RedisError, node: &str, sent: bool) -> Error {
    let refused = crate::tls::refused(error);
    let kind = match error.code() {
        Some(code) if batch::is_denied(code) => ErrorKind::Unauthorized,
        Some(code) if batch::is_passing(code) => ErrorKind::Overloaded,
        Some(_) if sent => ErrorKind::BadRequest,
        Some(_) => ErrorKind::TlsOrConfig,
        None => match error.kind() {
            redis::ErrorKind::AuthenticationFailed => ErrorKind::Unauthorized,
            redis::ErrorKind::InvalidClientConfig => ErrorKind::TlsOrConfig,
            _ if refused.is_some() => ErrorKind::TlsOrConfig,
            _ if !sent => ErrorKind::Unreachable,
            redis::ErrorKind::Io if error.is_timeout() => ErrorKind::Timeout,
            redis::ErrorKind::Io => ErrorKind::ConnectionLost,
            _ => ErrorKind::Protocol,
        },
    };
    // RedisError's own text repeats its category before the detail.
    let reason = match error.code() {
        Some(code) => format!("{code} {}", error.detail().unwrap_or("")).trim_end().to_owned(),
        None => refused.map_or_else(|| error.to_string(), crate::tls::explain),
    };
    let what = match kind {
        ErrorKind::Unreachable => "can't connect to",
        ErrorKind::Timeout => "no reply in time from",
        ErrorKind::ConnectionLost => "lost the connection to",
        ErrorKind::Protocol => "can't understand the reply of",
        ErrorKind::TlsOrConfig => "can't talk to",
        _ => "refused by",
    };
    Error::new(kind, format!("{what} Redis at {node}: {reason}")).with_source(error.clone())
}
