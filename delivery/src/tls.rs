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

/// Whether TLS itself is why: a certificate that is not accepted, a version not spoken. That stays so until somebody
/// changes something; a connection that breaks off in the handshake is another matter.
pub(crate) fn refused(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            return true;
        }
        // Both show the source of what they wrap, not what they wrap. RedisError wraps in an Arc.
        let wrapped: Option<&(dyn Error + 'static)> = match error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
            Some(shared) => Some(&**shared),
            None => match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
                Some(inner) => Some(inner),
                None => None,
            },
        };
        if wrapped.is_some_and(refused) {
            return true;
        }
        next = error.source();
    }
    false
}

/// How many certificates a PEM text holds; `None` if any of them is not valid.
pub(crate) fn count_certificates(pem: &str) -> Option<usize> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(pem.as_bytes()).try_fold(0, |count, certificate| certificate.ok().map(|_| count + 1))
}
