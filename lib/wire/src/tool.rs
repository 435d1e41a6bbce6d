//! A program as a table: its verbs, their fields, what each verb calls.

use std::time::{Duration, Instant};

use crate::call::{Call, Events, Reply, print_line};
use crate::{Document, Error, Host, Id, Kind, Undo, Value, json};

/// One program of the toolkit.
#[derive(Debug)]
pub struct Tool {
    /// The program's name, `wrenn-cow`.
    pub name: &'static str,
    /// What it owns, in one line.
    pub about: &'static str,
    /// Its own section of a sandbox's document.
    pub section: &'static str,
    /// The prefix of its timings: `cow` in `cow.create`.
    pub short: &'static str,
    /// Its verbs, in the order of a sandbox's life.
    pub verbs: &'static [Verb],
}

/// One verb of a program.
#[derive(Debug)]
pub struct Verb {
    /// The verb.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// The fields it reads.
    pub fields: &'static [Field],
    /// The fields it writes.
    pub reply: &'static [Field],
    /// A command line that works when pasted.
    pub example: &'static str,
    /// Whether it waits for requests on stdin when none is given as arguments.
    pub input: Input,
    /// Which lock it holds while it works.
    pub lock: LockOf,
    /// Fields that bare words on the command line fill, in this order.
    pub operands: &'static [&'static str],
    /// The field that takes the words after `--`, as an array.
    pub rest: Option<&'static str>,
    /// The reply as people read it, when stdout is a terminal. `None`, also of the function, for JSON as everywhere else.
    pub show: Option<fn(&Document) -> Option<String>>,
    /// The work.
    pub run: fn(&mut Call) -> Result<Reply, Error>,
}

impl Verb {
    /// A verb that needs a request and holds the sandbox's lock: the usual case, for `..` in a table.
    pub const fn new(
        name: &'static str,
        about: &'static str,
        run: fn(&mut Call) -> Result<Reply, Error>,
    ) -> Self {
        Self {
            name,
            about,
            fields: &[],
            reply: &[],
            example: "",
            input: Input::Requests,
            lock: LockOf::Sandbox,
            operands: &[],
            rest: None,
            show: None,
            run,
        }
    }
}

/// Where a verb's request comes from when there are no arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Stdin, one or many.
    Requests,
    /// Nowhere: the verb needs none, and reads stdin only when told `-`.
    None,
}

/// Which lock a verb holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockOf {
    /// `<run>/locks/<id>`, if the request has an id.
    Sandbox,
    /// `<run>/locks/<id>.op`, the supervisor's own, around those of the tools it calls.
    Operation,
    /// None: the verb runs as long as the VM does, or takes the locks it needs itself.
    None,
}

/// One field of a request or a reply.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Dotted path.
    pub name: &'static str,
    /// Its type.
    pub kind: Type,
    /// Whether it must be there.
    pub required: bool,
    /// What it is, with its unit and its default.
    pub about: &'static str,
    /// The flag that sets it, without dashes.
    pub flag: Option<&'static str>,
}

impl Field {
    /// A field that must be there.
    pub const fn need(name: &'static str, kind: Type, about: &'static str) -> Self {
        Self { name, kind, required: true, about, flag: None }
    }

    /// A field that may be absent.
    pub const fn may(name: &'static str, kind: Type, about: &'static str) -> Self {
        Self { name, kind, required: false, about, flag: None }
    }

    /// The same field, also set by `--flag VALUE` (`--flag` alone for a [`Type::Bool`], `--flag k=v` for an object).
    pub const fn flag(mut self, flag: &'static str) -> Self {
        self.flag = Some(flag);
        self
    }
}

/// Types of fields, as help and schema tell them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Type {
    /// Text.
    String,
    /// A path. Relative ones are taken from the program's working directory.
    Path,
    /// A sandbox's id.
    Id,
    /// A whole number from 0.
    Integer,
    /// A number.
    Number,
    /// true or false.
    Bool,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// An array of strings.
    Strings,
    /// An object whose values are strings.
    Environment,
    /// An array of anything.
    Array,
    /// An object.
    Object,
    /// Anything.
    Any,
}

/// How a verb is called.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Work on a document that carries an error too, and keep the error.
    pub undo: bool,
    /// How long to wait for the sandbox's lock.
    pub wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { undo: false, wait: Duration::from_secs(10) }
    }
}

/// A verb's work, done and not yet committed: while this lives the lock is held; dropped, the work is undone.
#[must_use]
pub struct Finished {
    /// Document or stream.
    pub reply: Reply,
    undo: Undo,
    _lock: Option<sys::lock::Lock>,
}

impl Finished {
    /// The work stays.
    pub fn commit(mut self) {
        self.undo.commit();
    }

    /// The work is taken back.
    pub fn undo(mut self) -> Vec<Error> {
        self.undo.run()
    }
}

/// A verb that did not succeed: everything is undone already.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: Error,
    /// Whether it had told events before: then another one has to say how it ended.
    pub emitted: bool,
}

impl Failed {
    /// The last event of a verb that had told some.
    pub fn event(&self, tool: &Tool, verb: &Verb) -> Value {
        crate::event("failed", json!({"error": self.error.to_json(tool.name, verb.name)}))
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, emitted: false }
    }
}

impl Tool {
    /// The verb of that name.
    ///
    /// # Errors
    /// `invalid` when there is none.
    pub fn verb(&self, name: &str) -> Result<&'static Verb, Error> {
        self.verbs.iter().find(|verb| verb.name == name).ok_or_else(|| {
            let known: Vec<_> = self.verbs.iter().map(|verb| verb.name).collect();
            Error::usage(format!("{}: no verb {name:?}; there are {}", self.name, known.join(", ")))
        })
    }

    /// Runs a verb on a document as the program itself does, and keeps its work: for one program that calls another's
    /// verbs in process. On an error the document is as it was, and so is the host.
    ///
    /// # Errors
    /// The verb's own, with this tool as its origin.
    pub fn call(
        &'static self,
        verb: &str,
        document: &mut Document,
        host: &Host,
        options: Options,
    ) -> Result<(), Error> {
        let done = self
            .verb(verb)
            .map_err(Failed::from)
            .and_then(|verb| self.begin(verb, document, host, options, &mut to_stdout));
        match done {
            Ok(finished) => {
                finished.commit();
                Ok(())
            }
            Err(Failed { mut error, .. }) => {
                error.origin.get_or_insert_with(|| (self.name.to_owned(), verb.to_owned()));
                Err(error)
            }
        }
    }

    /// Runs a verb under its lock, leaving open whether its work stays: for who delivers the reply. On an error the document
    /// is as it was.
    ///
    /// # Errors
    /// The verb's own; everything is undone already.
    pub fn begin(
        &'static self,
        verb: &'static Verb,
        document: &mut Document,
        host: &Host,
        options: Options,
        events: &mut Events,
    ) -> Result<Finished, Failed> {
        let id = document.id()?;
        let lock = id.as_ref().map(|id| lock(host, verb.lock, id, options.wait)).transpose()?.flatten();
        let started = Instant::now();
        let mut work = document.clone();
        let mut undo = Undo::default();
        let mut call = Call {
            document: &mut work,
            host,
            undo: &mut undo,
            tool: self,
            verb,
            options,
            events,
            emitted: false,
        };
        let done = (verb.run)(&mut call);
        let emitted = call.emitted;
        match done {
            Ok(reply) => {
                if id.is_some() && reply == Reply::Document {
                    let ms = crate::ms(started.elapsed());
                    let timings =
                        work.map_mut().entry("timings_ms").or_insert_with(|| crate::Map::new().into());
                    if let Some(timings) = timings.as_object_mut() {
                        timings.insert(format!("{}.{}", self.short, verb.name), ms.into());
                    }
                }
                *document = work;
                Ok(Finished { reply, undo, _lock: lock })
            }
            Err(error) => Err(Failed { error: undo.run().into_iter().fold(error, Error::absorb), emitted }),
        }
    }
}

/// Events of a program go to its stdout.
pub(crate) fn to_stdout(event: &Value) -> Result<(), Error> {
    print_line(event, false)
}

fn lock(host: &Host, of: LockOf, id: &Id, wait: Duration) -> Result<Option<sys::lock::Lock>, Error> {
    let name = match of {
        LockOf::None => return Ok(None),
        LockOf::Sandbox => id.to_string(),
        LockOf::Operation => format!("{id}.op"),
    };
    host.lock(&name, wait).map(Some)
}

impl Host {
    /// Takes the lock `<run>/locks/<name>`, waiting at most `wait`.
    ///
    /// # Errors
    /// `timeout` when somebody else held it all the time; what making the file said.
    pub fn lock(&self, name: &str, wait: Duration) -> Result<sys::lock::Lock, Error> {
        self.lock_by(sys::lock::exclusive, name, wait)
    }

    /// As [`Host::lock`], but together with others who take it so.
    ///
    /// # Errors
    /// As [`Host::lock`].
    pub fn lock_shared(&self, name: &str, wait: Duration) -> Result<sys::lock::Lock, Error> {
        self.lock_by(sys::lock::shared, name, wait)
    }

    fn lock_by(
        &self,
        take: fn(&std::path::Path, Duration) -> std::io::Result<sys::lock::Lock>,
        name: &str,
        wait: Duration,
    ) -> Result<sys::lock::Lock, Error> {
        let dir = self.run().join("locks");
        let path = dir.join(name);
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::TimedOut => Error::new(
                Kind::Timeout,
                "wire.locked",
                format!(
                    "{name} is in use by another operation (waited {} s for {})",
                    wait.as_secs_f64(),
                    path.display()
                ),
            )
            .retry(),
            _ => {
                let kind = Kind::of_io(&error);
                let shown =
                    Error::new(kind, "wire.lock", format!("cannot lock {}", path.display())).detail(&error);
                error.raw_os_error().map_or(shown.clone(), |errno| shown.errno(errno))
            }
        };
        std::fs::create_dir_all(&dir).map_err(failed)?;
        take(&path, wait).map_err(failed)
    }
}
