//! Peers that misbehave.

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
