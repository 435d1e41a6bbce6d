//! The thin supervisor: it keeps the documents, resolves names to paths, and runs the pipes of docs/wrenn.md by calling the
//! other programs' verbs in process.
#![forbid(unsafe_code)]

mod columns;
mod copy;
mod create;
mod doctor;
mod documents;
mod exec;
mod failed;
mod gc;
mod journal;
mod list;
mod listing;
mod meanwhile;
mod notify;
mod pause;
mod recall;
mod reconcile;
mod resume;
mod rm;
mod sample;
mod sandbox;
mod serve;
mod shutdown;
mod snapshot;
mod table;
mod template;
mod top;
mod watch;

pub use table::TOOL;
