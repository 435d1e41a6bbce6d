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
mod interrupt;
mod logger;
mod names;
mod partial;
mod progress;
mod run;
mod schema;
mod tail;
mod time;
mod tool;
mod undo;

pub use call::{Call, Events, Reply, event};
pub use document::Document;
pub use error::{Error, Fault, Kind};
pub use fields::{Fields, FromField};
pub use host::Host;
pub use interrupt::{Interest, check_interrupt, unless, unless_given_up};
pub use names::{Id, TemplateName};
pub use partial::{parse_partial, partial};
pub use progress::Progress;
pub use run::{main, run};
pub use serde_json::{Map, Value, json};
pub use tail::last_lines;
pub use time::{ms, now_ms, parse_timestamp, timestamp, timestamp_at};
pub use tool::{Failed, Field, Finished, Input, LockOf, Options, Tool, Type, Verb};
pub use undo::Undo;
