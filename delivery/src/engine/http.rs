//! One HTTP request, one attempt; what can go wrong, classified.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Method, Response};
use serde::Deserialize;
use tokio::runtime::{Builder, Runtime};
use url::Url;

use super::host::{self, LookUp, Resolver};
use crate::bulk::outgrows_engine;
use crate::config::{Auth, EngineConfig, Flavor};
use crate::error::{Error, ErrorKind, Result};

/// A reply is not read past this: a backend must not run out of memory because of one.
const MAX_REPLY_BYTES: usize = 512 << 20;

/// Connections that are not used for so long are closed: firewalls forget them silently after some minutes.
const IDLE: Duration = Duration::from_secs(55);

/// All but the characters that can't mean anything in a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// A name as a segment of a path.
pub(super) fn segment(name: &str) -> String {
    utf8_percent_encode(name, SEGMENT).to_string()
}

pub(super) const JSON: &str = "application/json";
pub(super) const NDJSON: &str = "application/x-ndjson";

/// A client whose connections live on the thread that asks: a runtime of another thread would cost two switches of context a
/// request. It may be used from several threads, which then take turns.
#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    /// Taken when dropped.
    runtime: Option<Runtime>,
    look_up: Option<LookUp>,
    /// Without a slash at the end.
    nodes: Vec<String>,
    /// The node that is in use: the next one is tried when it can't be reached.
    current: AtomicUsize,
    /// As text and parsed, which takes as long as half of the rest of a request does.
    last_url: Mutex<Option<(String, Url)>>,
    authorization: Option<HeaderValue>,
    pub(super) request_timeout: Duration,
    compress: bool,
    /// As told by the replies' headers.
    pub(super) flavor: OnceLock<Flavor>,
}

pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) version_header: Option<String>,
    pub(super) body: Vec<u8>,
}

pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Begins with a slash, encoded.
    pub(super) path: &'a str,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
    pub(super) timeout: Option<Duration>,
}

impl<'a> Request<'a> {
    pub(super) fn new(method: Method, path: &'a str) -> Request<'a> {
        Request { method, path, content_type: JSON, body: Bytes::new(), timeout: None }
    }

    pub(super) fn json(mut self, body: &serde_json::Value) -> Request<'a> {
        self.body = Bytes::from(body.to_string());
        self
    }
}

impl Http {
    pub(super) fn new(config: &EngineConfig, look_up: Option<LookUp>) -> Result<Http> {
        crate::tls::install_provider();
        let mut builder = Client::builder()
            .user_agent(concat!("pg_fanout/", env!("CARGO_PKG_VERSION")))
            // Where documents and credentials go is decided by the foreign server's options alone.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(Arc::new(Resolver))
            // One attempt: the worker reads the rows anew before it sends again.
            .retry(reqwest::retry::never())
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(30))
            .connect_timeout(config.connect_timeout)
            .timeout(config.request_timeout)
            .pool_idle_timeout(IDLE)
            // Replies too: on a fast network it costs both ends more than it saves.
            .gzip(config.compress);
        let tls = &config.tls;
        if let Some(ca) = &tls.ca_pem {
            let certificates = reqwest::Certificate::from_pem_bundle(ca.as_bytes())
                .map_err(|_| bad_tls("the CA certificate is not valid PEM"))?;
            if certificates.is_empty() {
                return Err(bad_tls("the CA certificate holds no PEM certificate"));
            }
            builder = builder.tls_certs_only(certificates);
        } else if config.urls.iter().all(|url| url.scheme() == "http") {
            // Spares every process the reading of the system's certificates.
            builder = builder.tls_certs_only([]);
        }
        match (&tls.client_cert_pem, &tls.client_key_pem) {
            (Some(certificate), Some(key)) => {
                let pem = format!("{}\n{certificate}", key.expose());
                let identity = reqwest::Identity::from_pem(pem.as_bytes())
                    .map_err(|_| bad_tls("the client certificate or its key is not valid PEM"))?;
                builder = builder.identity(identity);
            }
            (None, None) => {}
            _ => return Err(bad_tls("a client certificate and its key are needed together")),
        }
        if !tls.verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let client = builder
            .build()
            .map_err(|error| bad_tls("the HTTP client can't be set up").with_source(error.without_url()))?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| bad_tls("the HTTP client can't be set up").with_source(error))?;
        Ok(Http {
            client,
            runtime: Some(runtime),
            look_up,
            nodes: config.urls.iter().map(|url| url.as_str().trim_end_matches('/').to_owned()).collect(),
            current: AtomicUsize::new(0),
            last_url: Mutex::new(None),
            authorization: authorization(&config.auth)?,
            request_timeout: config.request_timeout,
            compress: config.compress,
            flavor: config.flavor.map_or_else(OnceLock::new, OnceLock::from),
        })
    }

    /// Sends a request to the current node; to the next ones if no connection can be made (then nothing was sent).
    /// A reply of whatever status is `Ok`.
    pub(super) fn send(&self, request: &Request<'_>) -> Result<Reply> {
        let first = self.current.load(Ordering::Relaxed);
        let mut failure = None;
        for attempt in 0..self.nodes.len() {
            let number = first.wrapping_add(attempt) % self.nodes.len();
            match self.send_to(&self.nodes[number], request) {
                Err(error) if error.kind() == ErrorKind::Unreachable => {
                    self.current.store((number + 1) % self.nodes.len(), Ordering::Relaxed);
                    failure = Some(error);
                }
                Err(error) if error.outcome_unknown() => {
                    self.current.store((number + 1) % self.nodes.len(), Ordering::Relaxed);
                    return Err(error);
                }
                other => return other,
            }
        }
        Err(failure.unwrap_or_else(|| Error::new(ErrorKind::TlsOrConfig, "no URL is configured")))
    }

    /// As [`Http::send`]; a status of 400 and more is an `Err` with the engine's reason.
    pub(super) fn ask(&self, request: &Request<'_>) -> Result<Reply> {
        let reply = self.send(request)?;
        if (200..300).contains(&reply.status) { Ok(reply) } else { Err(refusal(&reply)) }
    }

    fn send_to(&self, node: &str, request: &Request<'_>) -> Result<Reply> {
        let url = self.url(node, request.path)?;
        let shown = format!("{}:{}", url.host_str().unwrap_or(""), url.port_or_known_default().unwrap_or(0));
        let mut headers = HeaderMap::new();
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let mut builder = self.client.request(request.method.clone(), url);
        if !request.body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(request.content_type));
            // Small bodies travel in one packet anyway.
            if self.compress && request.body.len() > 1024 {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                builder = builder.body(gzipped(&request.body)?);
            } else {
                builder = builder.body(request.body.clone());
            }
        }
        if let Some(timeout) = request.timeout {
            builder = builder.timeout(timeout);
        }
        let Some(runtime) = &self.runtime else { return Err(bad_tls("the HTTP client was closed")) };
        let work = async {
            // What happened to idle connections since the last request is looked at first: one that the engine closed must
            // not be taken for this one.
            for _ in 0..2 {
                tokio::task::yield_now().await;
            }
            let response = builder.headers(headers).send().await.map_err(|error| failure(error, &shown))?;
            let status = response.status().as_u16();
            let version_header = self.note_flavor(response.headers());
            let body = read(response, &shown).await?;
            Ok(Reply { status, version_header, body })
        };
        host::run(runtime, self.look_up, work)
    }

    /// The URL of a path, which is often that of the request before.
    fn url(&self, node: &str, path: &str) -> Result<Url> {
        let mut last = self.last_url.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, url)) = &*last
            && known.strip_prefix(node) == Some(path)
        {
            return Ok(url.clone());
        }
        let text = format!("{node}{path}");
        let url = Url::parse(&text)
            .map_err(|error| Error::new(ErrorKind::BadRequest, "the name can't be part of a URL").with_source(error))?;
        *last = Some((text, url.clone()));
        Ok(url)
    }

    /// Both engines name themselves in every reply, refusals too: Elasticsearch since 7.14, OpenSearch since 3.x.
    fn note_flavor(&self, headers: &HeaderMap) -> Option<String> {
        let is_elasticsearch = headers
            .get("x-elastic-product")
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"elasticsearch"));
        if is_elasticsearch {
            let _ = self.flavor.set(Flavor::Elasticsearch);
            return None;
        }
        // "OpenSearch/3.8.0 (opensearch)"
        let text = headers.get("x-opensearch-version")?.to_str().ok()?;
        let _ = self.flavor.set(Flavor::OpenSearch);
        text.strip_prefix("OpenSearch/")?.split(' ').next().map(str::to_owned)
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not waiting for a name server that does not answer.
            runtime.shutdown_background();
        }
    }
}

/// The body of a reply, up to the bound.
async fn read(mut response: Response, node: &str) -> Result<Vec<u8>> {
    let mut body = Vec::with_capacity(response.content_length().map_or(0, |length| length.min(1 << 20) as usize));
    loop {
        let chunk = response.chunk().await.map_err(|error| {
            let kind = if error.is_timeout() { ErrorKind::Timeout } else { ErrorKind::ConnectionLost };
            Error::new(kind, format!("the reply of {node} broke off")).with_source(error.without_url())
        })?;
        let Some(chunk) = chunk else { return Ok(body) };
        if body.len() + chunk.len() > MAX_REPLY_BYTES {
            return Err(Error::new(ErrorKind::Protocol, format!("the reply of {node} is too large")));
        }
        body.extend_from_slice(&chunk);
    }
}

fn bad_tls(message: &str) -> Error {
    Error::new(ErrorKind::TlsOrConfig, message)
}

fn authorization(auth: &Auth) -> Result<Option<HeaderValue>> {
    let text = match auth {
        Auth::None => return Ok(None),
        Auth::Basic { username, password } => {
            format!("Basic {}", base64(format!("{username}:{}", password.expose()).as_bytes()))
        }
        Auth::ApiKey(key) => format!("ApiKey {}", key.expose()),
        Auth::Bearer(token) => format!("Bearer {}", token.expose()),
    };
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| bad_tls("the credentials hold a character that can't be sent in a header"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for n in 0..4 {
            text.push(if n <= chunk.len() { char::from(ALPHABET[(bits >> (18 - 6 * n)) as usize & 63]) } else { '=' });
        }
    }
    text
}

fn gzipped(body: &[u8]) -> Result<Vec<u8>> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 4), flate2::Compression::fast());
    encoder
        .write_all(body)
        .and_then(|()| encoder.finish())
        .map_err(|error| Error::new(ErrorKind::BadRequest, "the body can't be compressed").with_source(error))
}

/// A request that got no reply.
fn failure(error: reqwest::Error, node: &str) -> Error {
    let error = error.without_url();
    let connecting = error.is_connect();
    let refused = crate::tls::refused(&error).map(crate::tls::explain);
    let kind = if error.is_builder() || refused.is_some() {
        ErrorKind::TlsOrConfig
    } else if connecting {
        ErrorKind::Unreachable
    } else if error.is_timeout() {
        ErrorKind::Timeout
    } else {
        ErrorKind::ConnectionLost
    };
    let mut cause: &dyn StdError = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let why = refused.unwrap_or_else(|| cause.to_string());
    let what = match kind {
        ErrorKind::Unreachable => "can't connect to",
        ErrorKind::Timeout => "no reply in time from",
        ErrorKind::ConnectionLost => "lost the connection to",
        _ => "can't talk to",
    };
    Error::new(kind, format!("{what} {node}: {why}")).with_source(error)
}

#[derive(Deserialize)]
struct Refusal {
    error: Option<Cause>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Cause {
    Text(String),
    Object(Box<Detail>),
}

#[derive(Deserialize)]
struct Detail {
    #[serde(rename = "type")]
    kind: Option<String>,
    reason: Option<String>,
    #[serde(default)]
    root_cause: Vec<Detail>,
    caused_by: Option<Box<Detail>>,
    #[serde(default)]
    failed_shards: Vec<FailedShard>,
}

#[derive(Deserialize)]
struct FailedShard {
    reason: Option<Box<Detail>>,
}

impl Detail {
    /// The most telling reason: that of a shard, else the root cause, with what caused it.
    fn text(&self) -> String {
        let shard = self.failed_shards.first().and_then(|shard| shard.reason.as_deref());
        let detail = shard.or(self.root_cause.first()).unwrap_or(self);
        let mut text = detail.own_text();
        let mut cause = detail.caused_by.as_deref().or(self.caused_by.as_deref());
        while let Some(detail) = cause {
            let more = detail.own_text();
            if !text.contains(&more) {
                text.push_str("; caused by ");
                text.push_str(&more);
            }
            cause = detail.caused_by.as_deref();
        }
        text
    }

    fn own_text(&self) -> String {
        match (&self.kind, &self.reason) {
            (Some(kind), Some(reason)) => format!("{kind}: {reason}"),
            (kind, reason) => kind.as_ref().or(reason.as_ref()).cloned().unwrap_or_default(),
        }
    }
}

/// The error's text and its type, as the engine gives them.
fn engine_reason(body: &[u8]) -> (String, String) {
    match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { error: Some(Cause::Object(detail)) }) => (detail.text(), detail.kind.clone().unwrap_or_default()),
        Ok(Refusal { error: Some(Cause::Text(text)) }) => (text, String::new()),
        // Something in between answered: a proxy's page says little, but more than nothing.
        _ => {
            let head = &body[..body.len().min(300)];
            (String::from_utf8_lossy(head).trim().to_owned(), String::new())
        }
    }
}

/// The engine's error type of a refused request; empty if it gave none.
pub(super) fn refusal_type(reply: &Reply) -> String {
    engine_reason(&reply.body).1
}

/// A reply that is not what was asked for.
pub(super) fn refusal(reply: &Reply) -> Error {
    let status = reply.status;
    let (reason, kind_of_error) = engine_reason(&reply.body);
    let kind = match status {
        401 => ErrorKind::Unauthorized,
        403 | 429 if kind_of_error == "cluster_block_exception" => ErrorKind::Overloaded,
        403 => ErrorKind::Unauthorized,
        404 => ErrorKind::NotFound,
        408 => ErrorKind::Timeout,
        409 => ErrorKind::Conflict,
        413 => ErrorKind::TooLarge,
        429 if outgrows_engine(&reason) => ErrorKind::TooLarge,
        429 | 503 => ErrorKind::Overloaded,
        500.. => ErrorKind::ServerError,
        400..500 => ErrorKind::BadRequest,
        300..400 => ErrorKind::TlsOrConfig,
        _ => ErrorKind::Protocol,
    };
    let message = match (status, reason.is_empty()) {
        (300..400, _) => format!("the search engine answered with a redirect (status {status}), which is not followed"),
        (_, true) => format!("the search engine answered with status {status}"),
        (_, false) => format!("the search engine answered with status {status}: {reason}"),
    };
    Error::new(kind, message).with_status(status)
}

/// Parses a reply of ours.
pub(super) fn parsed<'a, T: Deserialize<'a>>(reply: &'a Reply) -> Result<T> {
    serde_json::from_slice(&reply.body).map_err(|error| {
        Error::new(ErrorKind::Protocol, "the search engine's reply is not understood").with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str) -> Error {
        refusal(&Reply { status, version_header: None, body: body.into() })
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("fooba", "Zm9vYmE="),
            ("\u{ff}\u{ff}>", "w7/Dvz4="),
        ] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn refusals_are_classified() {
        use ErrorKind::*;
        for (status, body, kind) in [
            (400, "{}", BadRequest),
            (401, "", Unauthorized),
            (403, "{}", Unauthorized),
            (403, r#"{"error":{"type":"cluster_block_exception"}}"#, Overloaded),
            (405, "", BadRequest),
            (413, "", TooLarge),
            (429, "", Overloaded),
            (
                429,
                r#"{"error":{"type":"rejected_execution_exception","reason":"rejected execution of coordinating operation [coordinating_and_primary_bytes=0, replica_bytes=0, all_bytes=0, coordinating_operation_bytes=52, max_coordinating_and_primary_bytes=51]"}}"#,
                TooLarge,
            ),
            (301, "", TlsOrConfig),
            (502, "<html>bad gateway</html>", ServerError),
            (503, "", Overloaded),
        ] {
            assert_eq!(refused(status, body).kind(), kind, "{status} {body}");
        }
        assert!(refused(503, "").outcome_unknown() && !refused(429, "").outcome_unknown());
    }

    #[test]
    fn the_engines_own_reason_is_kept() {
        let error = refused(
            400,
            r#"{"error":{"root_cause":[{"type":"query_shard_exception","reason":"failed to create query"}],
                "type":"search_phase_execution_exception","reason":"all shards failed","failed_shards":[{"shard":0,
                "reason":{"type":"query_shard_exception","reason":"failed to create query",
                "caused_by":{"type":"number_format_exception","reason":"For input string: \"x\""}}}]},"status":400}"#,
        );
        assert_eq!(
            error.message(),
            "the search engine answered with status 400: query_shard_exception: failed to create query; caused by number_format_exception: For input string: \"x\""
        );
        assert_eq!(
            refused(404, r#"{"error":"alias [x] missing","status":404}"#).message(),
            "the search engine answered with status 404: alias [x] missing"
        );
        assert!(refused(502, "<html>bad gateway</html>").message().ends_with("<html>bad gateway</html>"));
    }

    #[test]
    fn names_are_one_segment() {
        assert_eq!(segment("a/b?c#d%é,*"), "a%2Fb%3Fc%23d%25%C3%A9%2C%2A");
    }
}
