//! Memory images: a VMM's raw memory file packed into a snapshot directory (a header and diff files), and back.
#![forbid(unsafe_code)]

pub mod directory;
mod error;
pub mod header;
mod image;
pub mod merge;
pub mod pack;
mod place;
mod removed;
mod scan;
mod spans;
mod store;
pub mod unpack;

pub use error::Error;
pub use header::Header;
pub use image::{Content, Extent, Image};
pub use removed::{Removed, RemovedFault};

/// The program.
pub static TOOL: wire::Tool = wire::Tool {
    name: "wrenn-snap",
    about: "Memory images: raw memory files packed into snapshots, and back",
    section: "snapshot",
    short: "snap",
    verbs: &[pack::VERB, unpack::VERB, merge::VERB],
};
