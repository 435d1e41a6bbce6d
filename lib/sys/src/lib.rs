//! The kernel's interfaces that Wrenn needs, one file by topic. This is the only library with `unsafe` code:
//! each block says why it holds. Functions return [`std::io::Error`] with the errno as the kernel gave it;
//! the library above gives it a meaning and names the path or object it was about.
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod apart;
pub mod detach;
pub mod dm;
pub mod fdpass;
pub mod listener;
pub mod lock;
pub mod loop_device;
pub mod mapping;
pub mod mountns;
pub mod netns;
pub mod process;
pub mod shared;
pub mod signals;
pub mod sparse;
pub mod tap;
pub mod uffd;
