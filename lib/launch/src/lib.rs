//! VMM processes: started in a sandbox's network namespace and a mount namespace of their own, driven through their API,
//! stopped (docs/wrenn-launch.md).
#![forbid(unsafe_code)]

mod api;
mod balloon;
mod boot;
pub mod child;
mod choose;
mod cmdline;
mod complete;
mod driver;
mod error;
mod handed;
mod machine;
mod owner;
mod pause;
mod plan;
mod restore;
mod resume;
mod runfiles;
mod section;
mod snapshot;
mod start;
mod status;
mod stop;
mod tool;
mod wait;

pub use choose::{Choice, abilities, check_snapshot, choose, vmm_of_snapshot};
pub use complete::await_memory;
pub use driver::Abilities;
pub use error::Error;
pub use owner::find;
pub use section::State;
pub use status::usage;
pub use tool::TOOL;

/// Where a VMM sees its files, in its own mount namespace. Snapshots record it: it never changes. (Cloud Hypervisor's
/// that were taken elsewhere have their root disk in another place.)
pub const WORKDIR: &str = "/tmp/wrenn-vm";
