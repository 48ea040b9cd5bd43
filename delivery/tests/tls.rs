//! TLS: who is trusted, who is shown a certificate, and what a refusal looks like. The servers are threads of this test.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use delivery::config::{EngineConfig, Flavor, RedisConfig, Tls};
use delivery::engine::Engine;
use delivery::keyspace::RedisTarget;
use delivery::{Error, ErrorKind};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

const CA: &str = include_str!("certificates/ca.pem");
const CLIENT: &str = include_str!("certificates/client.pem");
const CLIENT_KEY: &str = include_str!("certificates/client.key");

/// Serves TLS and gives `reply` to whatever is said, each time; the port.
fn serve(reply: &'static [u8], wants_certificate: bool) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = if wants_certificate {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(CA.as_bytes()).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let certificate = CertificateDer::from_pem_slice(include_bytes!("certificates/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("certificates/server.key")).unwrap();
    let config = Arc::new(builder.with_single_cert(vec![certificate], key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let config = config.clone();
            std::thread::spawn(move || {
                let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream.unwrap());
                let mut buffer = [0; 4096];
                while matches!(stream.read(&mut buffer), Ok(read) if read > 0) {
                    if stream.write_all(reply).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

fn engine(tls: &Tls, wants_certificate: bool) -> Result<Option<Flavor>, Error> {
    const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 45\r\nconnection: close\r\n\r\n{\"version\":{\"distribution\":\"opensearch\"    }}";
    let port = serve(REPLY, wants_certificate);
    let mut config = EngineConfig::new(&[format!("https://127.0.0.1:{port}")]).unwrap();
    config.tls = tls.clone();
    Ok(Engine::new(&config)?.probe()?.flavor)
}

fn redis(tls: &Tls, wants_certificate: bool) -> Result<(), Error> {
    // Refuses everything; to be refused by command one must have got through TLS.
    let port = serve(b"-NOPERM as the test wants\r\n-NOPERM\r\n", wants_certificate);
    let mut config = RedisConfig::new(&format!("rediss://127.0.0.1:{port}")).unwrap();
    config.tls = tls.clone();
    RedisTarget::connect(&config).map(|_| ())
}

fn trusting() -> Tls {
    Tls { ca_pem: Some(CA.into()), ..Tls::default() }
}

#[test]
fn only_the_given_authority_is_trusted() {
    assert_eq!(engine(&trusting(), false).unwrap(), Some(Flavor::OpenSearch));
    redis(&trusting(), false).unwrap();
    let error = engine(&Tls::default(), false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TlsOrConfig, "{error}");
    let error = redis(&Tls::default(), false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TlsOrConfig, "{error}");
}

#[test]
fn verification_can_be_turned_off() {
    let tls = Tls { verify: false, ..Tls::default() };
    assert_eq!(engine(&tls, false).unwrap(), Some(Flavor::OpenSearch));
    redis(&tls, false).unwrap();
}

#[test]
fn a_certificate_is_shown_to_who_asks() {
    let tls = Tls { client_cert_pem: Some(CLIENT.into()), client_key_pem: Some(CLIENT_KEY.into()), ..trusting() };
    assert_eq!(engine(&tls, true).unwrap(), Some(Flavor::OpenSearch));
    redis(&tls, true).unwrap();
    assert_eq!(engine(&trusting(), true).unwrap_err().kind(), ErrorKind::TlsOrConfig);
}

#[test]
fn bad_pem_is_an_error_that_does_not_quote_it() {
    for tls in [
        Tls { ca_pem: Some("hunter2".into()), ..Tls::default() },
        Tls { client_key_pem: Some("hunter2".into()), client_cert_pem: Some("hunter2".into()), ..trusting() },
        Tls { client_key_pem: Some(CLIENT_KEY.into()), ..trusting() },
    ] {
        for error in [engine(&tls, false).unwrap_err(), redis(&tls, false).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::TlsOrConfig, "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }
}
