//! Peers that misbehave.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

/// A server that accepts connections, reads nothing and never answers.
///
/// The kernel completes the handshakes of a listening socket by itself, so no thread is needed.
pub struct BlackHole {
    listener: TcpListener,
}

impl BlackHole {
    /// Listens on a free port of loopback.
    pub fn open() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").expect("a free port") }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.listener.local_addr().expect("an address").to_string()
    }
}

/// A search engine that tells its version to whoever asks, and knows nothing else.
pub struct OldEngine {
    address: String,
}

impl OldEngine {
    /// Listens on a free port of loopback, until the process ends.
    pub fn open(version: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                let root = lines.next().is_some_and(|line| line.starts_with("GET / "));
                lines.find(String::is_empty);
                let (status, body) = if root {
                    ("200 OK", format!(r#"{{"version": {{"number": "{version}"}}}}"#))
                } else {
                    ("404 Not Found", "{}".to_owned())
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nx-elastic-product: Elasticsearch\r\n"
                );
                let reply = format!("{head}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                let _ = (&stream).write_all(reply.as_bytes());
            }
        });
        Self { address }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }
}
