//! wrenn-vmm: a small VMM that speaks Firecracker's API, for development, CI and trusted guests.
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod api;
pub mod args;
pub mod boot;
pub mod bus;
pub mod config;
pub mod console;
pub mod controller;
pub mod kvm;
pub mod layout;
pub mod legacy;
pub mod logger;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod output;
pub mod run;
pub mod seccomp;
pub mod snapshot;
pub mod virtio;
