//! The process-wide TLS provider, and the errors of TLS.

use std::error::Error;
use std::sync::{Arc, OnceLock};

/// Makes ring the provider of rustls, once, when the first client is built: never at load time, when the library may be
/// in a postmaster that will fork.
pub(crate) fn install_provider() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // An error means that somebody installed one before us: as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// What TLS itself has against it: a certificate that is not accepted, a version not spoken. That stays so until somebody
/// changes something; a connection that breaks off in the handshake is another matter.
pub(crate) fn refused<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // Both show the source of what they wrap, not what they wrap. RedisError wraps in an Arc.
        let wrapped: Option<&(dyn Error + 'static)> = match error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
            Some(shared) => Some(&**shared),
            None => match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
                Some(inner) => Some(inner),
                None => None,
            },
        };
        if let Some(found) = wrapped.and_then(refused) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The same in words for who runs the servers; what is rarer, rustls says itself.
pub(crate) fn explain(error: &rustls::Error) -> String {
    use rustls::{AlertDescription, CertificateError as Invalid, Error::*};
    let why = match error {
        InvalidCertificate(Invalid::Expired | Invalid::ExpiredContext { .. }) => "the server's certificate has expired",
        InvalidCertificate(Invalid::NotValidYet | Invalid::NotValidYetContext { .. }) => {
            "the server's certificate is not valid yet"
        }
        InvalidCertificate(Invalid::UnknownIssuer) => {
            "the server's certificate is of an authority that is not trusted (option \"ca\")"
        }
        InvalidCertificate(Invalid::NotValidForName | Invalid::NotValidForNameContext { .. }) => {
            "the server's certificate is for another host"
        }
        AlertReceived(AlertDescription::CertificateExpired) => {
            "the server says that our client certificate has expired"
        }
        AlertReceived(AlertDescription::CertificateRequired) => "the server wants a client certificate",
        _ => return error.to_string(),
    };
    why.to_owned()
}

/// How many certificates a PEM text holds; `None` if any of them is not valid.
pub(crate) fn count_certificates(pem: &str) -> Option<usize> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(pem.as_bytes()).try_fold(0, |count, certificate| certificate.ok().map(|_| count + 1))
}
