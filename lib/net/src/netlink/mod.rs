//! Netlink, blocking: one send, and the kernel's answers are there when it returns. (docs/decisions/003.md)

pub(crate) mod route;
pub(crate) mod socket;

pub(crate) use socket::{Request, Socket};
