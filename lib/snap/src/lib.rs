//! Memory images: a VMM's raw memory file packed into a snapshot directory (a header and diff files), and back.
#![forbid(unsafe_code)]

pub mod directory;
mod error;
pub mod header;
mod image;
mod removed;

pub use error::Error;
pub use header::Header;
pub use image::{Content, Extent, Image};
pub use removed::{Removed, RemovedFault};
