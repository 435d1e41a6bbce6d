//! What a verb is given to work with.

use std::io::Write;

use serde_json::Value;

use crate::tool::{Options, Tool, Verb};
use crate::{Document, Error, Fields, Host, Id, Kind, Undo};

/// One call of a verb.
pub struct Call<'a> {
    /// The request, which becomes the reply.
    pub document: &'a mut Document,
    /// The roots.
    pub host: &'a Host,
    /// Where each step pushes how to take it back.
    pub undo: &'a mut Undo,
    /// The program.
    pub tool: &'static Tool,
    /// The verb.
    pub verb: &'static Verb,
    /// `--undo`, `--wait`.
    pub options: Options,
    pub(crate) events: &'a mut Events<'a>,
    pub(crate) emitted: bool,
}

/// Where a verb's events go as it works. An error says that nobody takes them any more.
pub type Events<'a> = dyn FnMut(&Value) -> Result<(), Error> + 'a;

/// What a verb that succeeded leaves to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The document.
    Document,
    /// Nothing more: it has printed events or a command's output itself, and ends with this exit status.
    Streamed(u8),
}

impl Call<'_> {
    /// The fields as this tool sees them.
    pub fn fields(&self) -> Fields<'_> {
        self.document.fields(self.tool.section)
    }

    /// The sandbox's id, which must be there.
    ///
    /// # Errors
    /// `invalid` naming `id`.
    pub fn id(&self) -> Result<Id, Error> {
        self.document.id()?.ok_or_else(|| Error::field("id", "missing; wants [a-z0-9][a-z0-9-]{0,40}"))
    }

    /// Puts a result where this tool's results go when it has a section of its own there, at the top level otherwise
    /// (wrenn-snap used alone and in a pause).
    pub fn answer(&mut self, name: &str, value: impl Into<Value>) {
        if self.document.get(self.tool.section).is_some_and(Value::is_object) {
            self.document.set(&format!("{}.{name}", self.tool.section), value);
        } else {
            self.document.set(name, value);
        }
    }

    /// Tells one event, in a program as a line on stdout: `{"event": name, "at": now, …fields}`.
    ///
    /// # Errors
    /// `peer` when nobody takes it any more.
    pub fn emit(&mut self, event: &str, fields: Value) -> Result<(), Error> {
        self.emitted = true;
        (self.events)(&crate::event(event, fields))
    }
}

/// An event: `{"event": name, "at": now, …fields}`.
pub fn event(name: &str, fields: Value) -> Value {
    let mut event = crate::Map::new();
    event.insert("event".into(), name.into());
    event.insert("at".into(), crate::timestamp().into());
    if let Value::Object(fields) = fields {
        event.extend(fields);
    }
    Value::Object(event)
}

/// Prints a value as one line and flushes.
pub(crate) fn print_line(value: &Value, pretty: bool) -> Result<(), Error> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    let mut text = text.map_err(|error| Error::new(Kind::Internal, "wire.print", error.to_string()))?;
    text.push('\n');
    print_out(&text)
}

/// Prints text as it is and flushes.
pub(crate) fn print_out(text: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| {
        Error::new(Kind::Peer, "wire.reply_lost", "the reply cannot be delivered").detail(error)
    })
}
