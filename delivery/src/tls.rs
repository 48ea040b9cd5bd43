//! The process-wide TLS provider.
