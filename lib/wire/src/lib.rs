//! The contract every program keeps: JSON documents in and out, `path=value` arguments, errors with a kind and an exit
//! status, help and schema from one table of verbs. A program is a [`Tool`]; its `main` is [`main`].
//!
//! No I/O happens here beyond stdin, stdout, stderr and the sandbox's lock.
#![forbid(unsafe_code)]

mod arguments;
mod call;
mod completions;
mod document;
mod error;
mod exact;
mod fields;
mod help;
mod host;
mod logger;
mod names;
mod run;
mod schema;
mod tail;
mod time;
mod tool;
mod undo;

pub use call::{Call, Reply};
pub use document::Document;
pub use error::{Error, Fault, Kind};
pub use fields::{Fields, FromField};
pub use host::Host;
pub use names::{Id, TemplateName};
pub use run::{main, run};
pub use serde_json::{Map, Value, json};
pub use tail::last_lines;
pub use time::{now_ms, parse_timestamp, timestamp};
pub use tool::{Field, Input, LockOf, Options, Tool, Type, Verb};
pub use undo::Undo;

/// Fails if SIGINT or SIGTERM asked this program to end: verbs call it between steps, so that what they have done so
/// far is undone.
///
/// # Errors
/// `timeout`, code `wire.interrupted`.
pub fn check_interrupt() -> Result<(), Error> {
    match sys::signals::pending() {
        None => Ok(()),
        Some(signal) => {
            Err(Error::new(Kind::Timeout, "wire.interrupted", format!("interrupted by signal {signal}"))
                .retry())
        }
    }
}
