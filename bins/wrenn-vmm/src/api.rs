//! Firecracker's HTTP API on a Unix socket: what it is asked, as values.

mod action;
mod body;
mod http;
mod route;
mod server;

pub use action::{Action, Answer};
pub use body::{Backend, LoadSnapshot, LoggerSettings, MachinePatch, NetworkOverride, Serial, VmState};
pub use body::{CreateSnapshot, MemoryBackend, TokenBucket};
pub use http::{Request, Response};
pub use route::{Fault, action};
pub use server::Server;
