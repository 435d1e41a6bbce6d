//! Memory images: a VMM's raw memory file packed into a snapshot directory (a header and diff files), and back.
#![forbid(unsafe_code)]

mod chain;
pub mod delete;
pub mod directory;
mod error;
mod feed;
pub mod header;
mod image;
mod input;
pub mod inspect;
pub mod map;
pub mod merge;
pub mod pack;
mod packing;
mod place;
mod plain;
pub mod prune;
mod ranges;
pub mod rebase;
mod rewrite;
mod scan;
mod spans;
mod store;
mod sums;
pub mod svg;
pub mod template;
pub mod unpack;
pub mod verify;
pub mod workingset;

pub use error::Error;
pub use header::Header;
pub use image::{Checked, Content, Extent, Image, Place};
pub use input::{Raw, Regions};
pub use ranges::{Ranges, RangesFault};
pub use sums::Sums;
pub use workingset::WorkingSet;

/// The program.
pub static TOOL: wire::Tool = wire::Tool {
    name: "wrenn-snap",
    about: "Memory images: raw memory files packed into snapshots, and back",
    section: "snapshot",
    short: "snap",
    verbs: &[
        pack::VERB,
        unpack::VERB,
        merge::VERB,
        rebase::VERB,
        prune::VERB,
        inspect::VERB,
        verify::VERB,
        map::VERB,
        template::VERB,
        delete::VERB,
    ],
};
