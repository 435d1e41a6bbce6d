//! Shared parts of the tests: the built programs run as a user runs them, and the host seen by other eyes than theirs.
//!
//! - [`program`]: one run of one program, bounded in time, with its status, replies and log.
//! - [`host`]: roots of the test's own with sandboxes on them, and a clean end; [`vmm`]: on every VMM there is.
//! - [`sandbox`]: one sandbox, as the supervisor's user sees it.
//! - [`kernel`]: what the host holds, asked of /proc and /sys alone.
//! - [`dump`]: a dump as it is being written, to interrupt it.
//! - [`follow`], [`killing`]: the supervisor followed step by step, and whoever is killed at every step.
//! - [`hold`]: a process stopped where it is.
//! - [`watching`]: the daemon, and what it tells.
//! - [`memory`]: the oracle, a guest's memory as its VMM holds it.
//! - [`pages`]: an image of such memory, to serve and to pack.
//! - [`recorded`]: Cloud Hypervisor's API as it was recorded, where there is no Cloud Hypervisor.
//! - [`skip`]: a test that cannot run here says so.
#![forbid(unsafe_code)]

pub mod dump;
pub mod follow;
pub mod hold;
pub mod host;
pub mod images;
pub mod kernel;
pub mod killing;
pub mod memory;
pub mod pages;
pub mod program;
pub mod recorded;
pub mod sandbox;
pub mod skip;
pub mod vmm;
pub mod watching;

pub use program::{Output, Program, Roots};
pub use serde_json::{Value, json};

/// Every program of the toolkit that keeps the contract of documents.
pub const PROGRAMS: [&str; 7] =
    ["wrenn-snap", "wrenn-uffd", "wrenn-cow", "wrenn-net", "wrenn-launch", "wrenn-guest", "wrenn"];
