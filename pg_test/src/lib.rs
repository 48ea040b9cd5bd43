//! Client-side end-to-end tests.
