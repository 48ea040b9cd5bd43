//! TLS before a server that does not speak it, with a certificate that can be exchanged.

use super::authority;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long each side is listened to before it is the other's turn.
const TURN: Duration = Duration::from_millis(2);

/// Whether the certificate that a front shows is still valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certificate {
    /// For a hundred years.
    Valid,
    /// It was, years ago.
    Expired,
}

struct Shared {
    config: Mutex<Arc<ServerConfig>>,
    /// Goes up with each certificate: connections of the one before are over.
    certificates: AtomicU64,
    connections: AtomicU64,
    stopped: AtomicBool,
}

/// See the module.
pub struct TlsFront {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl TlsFront {
    /// The authority that signed all certificates, PEM text.
    pub const AUTHORITY: &'static str = include_str!("../../certificates/ca.pem");

    /// A certificate of that authority and its key, PEM texts.
    pub const CERTIFICATE: &'static str = include_str!("../../certificates/valid.pem");
    /// See [`Self::CERTIFICATE`].
    pub const KEY: &'static str = include_str!("../../certificates/server.key");

    /// Before the server at this URL or address, with a valid certificate.
    pub fn before(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            config: Mutex::new(config(Certificate::Valid)),
            certificates: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let (target, accepting) = (authority(target), Arc::clone(&shared));
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stopped.load(Ordering::Relaxed) {
                    return;
                }
                accepting.connections.fetch_add(1, Ordering::Relaxed);
                let (Ok(client), Ok(upstream)) = (client, TcpStream::connect(&target)) else { continue };
                let shared = Arc::clone(&accepting);
                // Whichever way it ends, both connections are over.
                thread::spawn(move || serve(client, upstream, &shared));
            }
        });
        Self { address, shared }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Shows this certificate from now on; what is connected is cut off.
    pub fn present(&self, certificate: Certificate) {
        *self.shared.config.lock().unwrap_or_else(PoisonError::into_inner) = config(certificate);
        self.shared.certificates.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections so far, whatever became of them.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn config(certificate: Certificate) -> Arc<ServerConfig> {
    let pem = match certificate {
        Certificate::Valid => TlsFront::CERTIFICATE,
        Certificate::Expired => include_str!("../../certificates/expired.pem"),
    };
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(TlsFront::KEY.as_bytes()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a certificate with its key");
    Arc::new(config)
}

fn serve(client: TcpStream, mut upstream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let certificate = shared.certificates.load(Ordering::Relaxed);
    let config = Arc::clone(&shared.config.lock().unwrap_or_else(PoisonError::into_inner));
    for side in [&client, &upstream] {
        side.set_nodelay(true)?;
        side.set_read_timeout(Some(TURN))?;
    }
    let mut client = StreamOwned::new(ServerConnection::new(config).map_err(std::io::Error::other)?, client);
    let mut buffer = vec![0; 64 * 1024];
    while shared.certificates.load(Ordering::Relaxed) == certificate && !shared.stopped.load(Ordering::Relaxed) {
        if !pass(&mut client, &mut upstream, &mut buffer)? || !pass(&mut upstream, &mut client, &mut buffer)? {
            break;
        }
    }
    Ok(())
}

/// Passes on what there is. False if there will be no more.
fn pass(from: &mut impl Read, to: &mut impl Write, buffer: &mut [u8]) -> std::io::Result<bool> {
    match from.read(buffer) {
        Ok(0) => Ok(false),
        Ok(read) => to.write_all(&buffer[..read]).and_then(|()| to.flush()).map(|()| true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(true),
        Err(error) => Err(error),
    }
}
