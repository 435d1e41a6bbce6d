//! Placeholder documentation, replaced as the crate grows.
#![deny(clippy::undocumented_unsafe_blocks)]
