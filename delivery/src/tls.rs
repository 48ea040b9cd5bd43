//! The process-wide TLS provider.

use std::sync::OnceLock;

/// Makes ring the provider of rustls, once, when the first client is built: never at load time, when the library may be
/// in a postmaster that will fork.
pub(crate) fn install_provider() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // An error means that somebody installed one before us: as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
