//! `wrenn-uffd serve`: a server for a VMM, or several.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, PipeReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use wire::{Call, Error, Reply};

use crate::Error as Failure;
use crate::channel::{Event, object};
use crate::config::Config;
use crate::control::refusal;
use crate::guardian::{Ending, Guardian};
use crate::orders::{process_json, process_of};
use crate::role::{GUARDIAN, program};
use crate::stop;

/// How long a detached server may take until it listens.
const LISTENING: Duration = Duration::from_secs(30);

/// How many events may wait for somebody to read them.
const UNREAD: usize = 4096;

/// How long a service that was told to end may take to say so.
const GOING: Duration = Duration::from_secs(3);

/// The verb.
pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let config = Config::of(call)?;
    let detach = call.fields().find::<bool>("detach")?.unwrap_or(false);
    make_directory(call, &config)?;
    match detach {
        true => detached(call, &config),
        false => foreground(call, config),
    }
}

/// Makes the sandbox's own directory if that is where the socket goes.
fn make_directory(call: &mut Call, config: &Config) -> Result<(), Error> {
    let Some(id) = call.document.id()? else { return Ok(()) };
    let dir = call.host.run_dir(&id);
    if config.paths.socket.parent() != Some(&dir) || dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(&dir).map_err(Failure::io("make", &dir))?;
    call.undo.push("the sandbox's directory", move || {
        // Not empty: somebody else is at home there by now.
        let _ = fs::remove_dir(&dir);
        Ok(())
    });
    Ok(())
}

/// Serves until the VMM is gone, and prints what happens. This process is the guardian: in a thread of its own, as somebody
/// may not read what is printed, and a server that dies then is to be followed all the same.
fn foreground(call: &mut Call, config: Config) -> Result<Reply, Error> {
    let failed = |source| Failure::io("start", "a thread")(source);
    let (events, told) = mpsc::sync_channel(UNREAD);
    let (end, ended) = mpsc::channel();
    let (follower, follows) = io::pipe().map_err(failed)?;
    let (prints, printing) = mpsc::channel::<Infallible>();
    let guardian = std::thread::Builder::new().name("guardian".into());
    guardian.spawn(move || guard(config, follower, events, &end, &printing)).map_err(failed)?;
    let printed = told.iter().try_for_each(|event| call.emit(&event.name, Value::Object(event.fields)));
    // If nobody takes them any more, the service ends.
    drop((told, follows));
    let Ended { ending, closed, unread } =
        ended.recv().map_err(|_| Failure::Died { how: "its guardian, too".into() })??;
    printed?;
    if let Some(error) = ending.error {
        return Err(error);
    }
    if unread > 0 {
        let message = format!("{unread} events were dropped, as nobody read them");
        call.emit("warning", json!({ "message": message }))?;
    }
    let mut fields = closed.unwrap_or_default();
    if let Some(pid) = ending.stopped.first() {
        fields.insert("vmm".into(), "stopped".into());
        fields.insert("stopped_pid".into(), (*pid).into());
    }
    call.emit("closed", Value::Object(fields))?;
    drop(prints);
    Ok(Reply::Streamed(0))
}

/// How a service in the foreground has ended.
struct Ended {
    ending: Ending,
    /// The fields of its last event.
    closed: Option<Map<String, Value>>,
    /// How many events could not be told.
    unread: u64,
}

/// Follows a service to its end. Who does not take its events does not hold it up.
fn guard(
    config: Config,
    follower: PipeReader,
    events: SyncSender<Event>,
    end: &mpsc::Sender<Result<Ended, Failure>>,
    printing: &mpsc::Receiver<Infallible>,
) {
    let (mut closed, mut unread) = (None::<Map<String, Value>>, 0);
    let followed = Guardian::start(config, Some(follower)).map(|guardian| {
        guardian.follow(|_, event| {
            match event.name.as_str() {
                // The reply says it.
                "failed" => {}
                "closed" => closed = Some(event.fields),
                _ => unread += u64::from(matches!(events.try_send(event), Err(TrySendError::Full(_)))),
            }
        })
    });
    let told = closed.as_ref().is_some_and(|closed| closed["reason"] != "vmm_gone");
    let ended = followed.map(|ending| Ended { ending, closed, unread });
    drop(events);
    let _ = end.send(ended);
    if told && printing.recv_timeout(GOING) == Err(RecvTimeoutError::Timeout) {
        // The other thread cannot get rid of an event.
        sys::signals::end_by_pending();
        std::process::exit(0);
    }
}

/// Starts a guardian that lives on, and waits until its server listens.
fn detached(call: &mut Call, config: &Config) -> Result<Reply, Error> {
    let program = program()?;
    let failed = |source| Failure::io("start", &program)(source);
    let (log, is_new) = open_log(&config.paths.log).map_err(Failure::io("write", &config.paths.log))?;
    let (pipe, writer) = io::pipe().map_err(failed)?;
    let mut command = Command::new(&program);
    command.arg(GUARDIAN).arg(config.to_json().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut guardian = sys::detach::spawn(command, vec![writer.into()]).map_err(failed)?;
    let mut line = String::new();
    // The line comes in one piece, or the pipe's end.
    let heard = match sys::process::readable(&pipe, LISTENING) {
        Ok(true) => BufReader::new(pipe).read_line(&mut line).map(drop),
        Ok(false) => Err(io::ErrorKind::TimedOut.into()),
        Err(error) => Err(error),
    };
    if heard.is_err() {
        let _ = guardian.kill();
    }
    // Should this program live longer than the guardian, no zombie remains.
    std::thread::spawn(move || guardian.wait());
    heard.map_err(failed)?;

    let event: Value = serde_json::from_str(&line).unwrap_or_default();
    if event["event"] != "listening" {
        if is_new {
            let _ = fs::remove_file(&config.paths.log);
        }
        return Err(match event.get("error") {
            Some(error) => refusal(error),
            None => Failure::Died { how: "before it listened".into() }.into(),
        });
    }
    let strange = || Failure::Protocol { what: line.trim().to_owned() };
    let server = process_of(&event).ok_or_else(strange)?;
    let (paths, process) = (config.paths.clone(), server.clone());
    call.undo.push("the page server", move || stop::end(&paths, Some(&process), true));
    let mut section = object(process_json(&server));
    section.extend(object(json!({"socket": config.paths.socket, "control": config.paths.control,
                                 "removed": config.paths.removed})));
    section.into_iter().for_each(|(name, value)| call.document.set(&format!("uffd.{name}"), value));
    wire::check_interrupt()?;
    Ok(Reply::Document)
}

/// Opens a log to write behind what is there, and says whether there was none: another one may be that of a service which
/// listens there already, or of one that came to grief.
fn open_log(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600);
    match options.create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Ok((options.create_new(false).create(true).open(path)?, false))
        }
        opened => Ok((opened?, true)),
    }
}
