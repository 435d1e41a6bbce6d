//! Root disks: a private, writable layer over a shared, read-only image, as a dm-snapshot, or as a private copy where
//! there is no device-mapper. One file per verb; what they share:
//!
//! - [`exceptions`]: the format of a CoW file
//! - `device`, `loops`, `owner`: the kernel's part, and whose it is
//! - `live`, `paused`, `new_file`: files
//! - `disk`: the document's section
#![forbid(unsafe_code)]

pub mod create;
mod delete;
mod device;
mod disk;
mod error;
pub mod exceptions;
pub mod flatten;
mod gc;
mod image;
mod inventory;
mod list;
mod live;
mod loops;
mod new_file;
mod owner;
mod paused;
mod remove;
pub mod restore;
mod status;
mod tool;
mod usage;

pub use device::Attached;
pub use disk::{Disk, Kind};
pub use error::Error;
pub use gc::wake_one as wake;
pub use image::Image;
pub use owner::Owner;
pub use status::{check, fill};
pub use tool::TOOL;
pub use usage::{State, Usage};
