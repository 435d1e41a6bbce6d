//! What every program does around its verbs: read requests, run the verb under the sandbox's lock, deliver the reply or
//! undo the work, and end with the status of the first error.

use std::io::{BufReader, IsTerminal, Read, Write};
use std::process::ExitCode;

use log::LevelFilter;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::call::{Reply, print_line, print_out};
use crate::tool::{Failed, Tool, Verb, to_stdout};
use crate::{Document, Error, Host, Kind};

/// The whole `main` of a program.
pub fn main(tool: &'static Tool) -> ExitCode {
    if let Err(error) = sys::signals::block() {
        say(&format!("{}: cannot block signals: {error}\n", tool.name));
        return ExitCode::from(Kind::Internal.status());
    }
    let words: Vec<String> = match std::env::args_os().skip(1).map(std::ffi::OsString::into_string).collect()
    {
        Ok(words) => words,
        Err(word) => return refuse(tool, "", &Error::usage(format!("{word:?} is not UTF-8"))),
    };
    let status = run(tool, &words, &Host::from_env());
    sys::signals::end_by_pending();
    status
}

/// Runs one command line, with stdin and stdout as they are.
pub fn run(tool: &'static Tool, words: &[String], host: &Host) -> ExitCode {
    let Some((name, rest)) = words.split_first() else {
        say(&crate::help::tool(tool));
        return refuse(tool, "", &Error::usage("no verb given"));
    };
    match common(tool, name, rest) {
        Some(Ok(text)) => return print_text(&text),
        Some(Err(error)) => return refuse(tool, name, &error),
        None => {}
    }
    let parsed = tool.verb(name).and_then(|verb| Ok((verb, Arguments::parse(tool, verb, rest)?)));
    let (verb, arguments) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return refuse(tool, name, &error),
    };
    if arguments.help {
        return print_text(&crate::help::verb(tool, verb));
    }
    crate::logger::install(tool.name, arguments.log.unwrap_or(LevelFilter::Warn), arguments.log_json);
    ExitCode::from(Program { tool, verb, arguments: &arguments, host }.requests())
}

/// The verbs that every program has.
fn common(tool: &Tool, name: &str, rest: &[String]) -> Option<Result<String, Error>> {
    let line = |value: Value| format!("{value}\n");
    let first = rest.first().map(String::as_str);
    Some(match (name, first) {
        ("--help" | "-h" | "help", None) => Ok(crate::help::tool(tool)),
        ("help", Some(verb)) => tool.verb(verb).map(|verb| crate::help::verb(tool, verb)),
        ("schema", None) => Ok(line(crate::schema::tool(tool))),
        ("schema", Some(verb)) => tool.verb(verb).map(|verb| line(crate::schema::verb(tool, verb))),
        ("version" | "--version" | "-V", _) => {
            Ok(line(json!({"tool": tool.name, "version": env!("CARGO_PKG_VERSION")})))
        }
        ("completions", shell) => crate::completions::script(tool, shell.unwrap_or("")),
        _ => return None,
    })
}

/// Writes to stderr, whether or not somebody reads it: `eprint!` would panic.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn print_text(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(Kind::Peer.status()),
    }
}

/// A command line that no request came of: one `{"error": …}` line.
fn refuse(tool: &Tool, verb: &str, error: &Error) -> ExitCode {
    say(&format!("{}: error: {error}\n", tool.name));
    let _ = print_line(&json!({"error": error.to_json(tool.name, verb)}), false);
    ExitCode::from(error.kind.status())
}

struct Program<'a> {
    tool: &'static Tool,
    verb: &'static Verb,
    arguments: &'a Arguments,
    host: &'a Host,
}

impl Program<'_> {
    /// Works through all requests. Returns the status of the first error.
    fn requests(&self) -> u8 {
        if !self.arguments.reads_stdin(self.verb) {
            return self.request(Document::new()).0;
        }
        let mut status = 0;
        let mut requests =
            serde_json::Deserializer::from_reader(BufReader::new(Stdin)).into_iter::<Box<RawValue>>();
        loop {
            let (this, goes_on) = match requests.next() {
                None => break,
                Some(Ok(raw)) => match crate::exact::parse(raw.get()).map(Document::from_value) {
                    Ok(Ok(document)) => self.request(document),
                    Ok(Err(error)) => (self.fail(None, &error).0, true),
                    Err(error) => (self.fail(None, &not_json(&error)).0, true),
                },
                // Where one request ends and the next begins is not known any more.
                Some(Err(error)) => (self.fail(None, &not_json(&error)).0, false),
            };
            status = if status == 0 { this } else { status };
            if !goes_on || sys::signals::pending().is_some() {
                break;
            }
        }
        status
    }

    /// Works on one request. Returns its status, and whether it makes sense to go on.
    fn request(&self, mut document: Document) -> (u8, bool) {
        self.arguments.apply(&mut document);
        let carried = document.get("error").cloned();
        if let Some(error) = &carried {
            if !self.arguments.options.undo {
                let status = Error::from_json(error).kind.status();
                return (status, self.deliver(&document).is_ok());
            }
            document.remove("error");
        }
        match self.tool.begin(self.verb, &mut document, self.host, self.arguments.options, &mut to_stdout) {
            Ok(finished) => {
                if let Reply::Streamed(status) = finished.reply {
                    finished.commit();
                    return (status, true);
                }
                if let Some(error) = carried {
                    document.set("error", error);
                }
                match self.deliver(&document) {
                    Ok(()) => {
                        finished.commit();
                        (0, true)
                    }
                    // A resource whose document is lost is a leak.
                    Err(lost) => {
                        let lost = finished.undo().into_iter().fold(lost, Error::absorb);
                        log::error!("{lost}");
                        (lost.kind.status(), false)
                    }
                }
            }
            // Events are out already: the last one says how it ended.
            Err(failed) if failed.emitted => {
                log::error!("{}", failed.error);
                let event = failed.event(self.tool, self.verb);
                (failed.error.kind.status(), print_line(&event, false).is_ok())
            }
            Err(Failed { error, .. }) => match carried {
                None => self.fail(Some(document), &error),
                Some(carried) => {
                    let status = error.kind.status();
                    let mut both = Error::from_json(&carried).absorb(error).to_json("", "");
                    keep_unknown(&mut both, &carried);
                    document.set("error", both);
                    (status, self.deliver(&document).is_ok())
                }
            },
        }
    }

    fn fail(&self, document: Option<Document>, error: &Error) -> (u8, bool) {
        log::error!("{error}");
        let mut document = document.unwrap_or_default();
        document.set("error", error.to_json(self.tool.name, self.verb.name));
        (error.kind.status(), self.deliver(&document).is_ok())
    }

    fn deliver(&self, document: &Document) -> Result<(), Error> {
        if let Some(show) = self.verb.show
            && !self.arguments.pretty
            && std::io::stdout().is_terminal()
            && document.get("error").is_none()
            && let Some(text) = show(document)
        {
            return print_out(&text);
        }
        // The map is cloned rather than moved: on a lost reply the document is still wanted for the log.
        print_line(&Value::Object(document.map().clone()), self.arguments.pretty)
    }
}

/// An error may carry fields of somebody else's: they stay.
fn keep_unknown(error: &mut Value, carried: &Value) {
    if let (Some(error), Some(carried)) = (error.as_object_mut(), carried.as_object()) {
        for (key, value) in carried {
            error.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

fn not_json(error: &serde_json::Error) -> Error {
    let kind = if error.is_io() { Kind::Internal } else { Kind::Invalid };
    match sys::signals::pending() {
        Some(signal) => {
            Error::new(Kind::Timeout, "wire.interrupted", format!("interrupted by signal {signal}")).retry()
        }
        None => Error::new(kind, "wire.not_json", format!("the request is not JSON: {error}")),
    }
}

/// Stdin that a signal can interrupt: SIGINT and SIGTERM are blocked, so a plain read would outlast them.
struct Stdin;

impl Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        use std::os::fd::AsFd;
        let stdin = std::io::stdin();
        if let Some(signals) = sys::signals::fd()
            && sys::process::any_readable(&[stdin.as_fd(), signals])?[1]
        {
            sys::signals::pending();
            return Err(std::io::Error::other("interrupted"));
        }
        nix::unistd::read(stdin.as_fd(), buffer).map_err(Into::into)
    }
}
