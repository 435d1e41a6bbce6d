//! wrenn-vmm: a small VMM that speaks Firecracker's API, for development, CI and trusted guests.
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod bus;
pub mod config;
pub mod layout;
pub mod memory;
pub mod virtio;
