//! `wrenn-uffd stop`: ends a server. One that is gone already is success.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use sys::process::Process;
use wire::{Call, Error, Reply};

use crate::Error as Failure;
use crate::config::{Config, Paths};
use crate::control::{self, Request};
use crate::error::NOT_RUNNING;
use crate::orders::{name_of, process_of};
use crate::role::SERVER;
use crate::socket;
use crate::stats::has_none;

/// How long a server may take to answer before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to end once it has agreed, its guardian too.
const ENDING: Duration = Duration::from_secs(10);

/// The verb.
pub fn run(call: &mut Call) -> Result<Reply, Error> {
    if has_none(call) {
        return Ok(Reply::Document);
    }
    let force = call.fields().find::<bool>("force")?.unwrap_or(false);
    end(&Paths::of(call)?, named(call)?.as_ref(), force)?;
    if let Some(id) = call.document.id()? {
        // Somebody else's files in it keep it.
        let _ = std::fs::remove_dir(call.host.run_dir(&id));
    }
    call.document.remove("uffd");
    Ok(Reply::Document)
}

/// The server that the section names.
pub(crate) fn named(call: &Call) -> Result<Option<Process>, Error> {
    call.document.get("uffd.pid").map(|_| call.document.process("uffd")).transpose()
}

/// Ends the server at these paths, if it is the one named, and removes its files.
pub(crate) fn end(paths: &Paths, process: Option<&Process>, force: bool) -> Result<(), Error> {
    let listens = socket::is_socket(&paths.control)?;
    if !listens && process.is_none() && !paths.own {
        // A mere name, and nothing of ours there: whatever lies beside it is somebody else's.
        return Ok(());
    }
    match control::ask(&paths.control, process, &Request::Stop { force }, PATIENCE) {
        Ok(Ok(answer)) => {
            for ending in [&answer["server"], &answer["service"]].into_iter().filter_map(process_of) {
                ended(&ending)?;
            }
        }
        // The socket is a later service's: the one that is meant is gone, or gone astray.
        Ok(Err(refused)) if refused.code == NOT_RUNNING => return kill(paths, process),
        Ok(Err(refused)) => return Err(refused),
        // It was leaving already: its VMM is gone.
        Err(Failure::NotRunning { .. }) => kill(paths, process)?,
        Err(silent @ Failure::NoAnswer { .. }) => {
            log::warn!("{}; killing it", Error::from(silent));
            kill(paths, process)?;
        }
        Err(other) => return Err(other.into()),
    }
    clear(paths)
}

/// Ends a service that does not answer: its guardian is told, so that it starts no other server, and ends the VMM; the
/// server is killed.
fn kill(paths: &Paths, guardian: Option<&Process>) -> Result<(), Error> {
    let failed = |process: &Process| {
        let path = process.pid.to_string().into();
        move |source| Error::from(Failure::Io { doing: "stop pid", path, source })
    };
    if let Some(guardian) = guardian {
        guardian.signal(Signal::SIGTERM).map_err(failed(guardian))?;
    }
    for server in servers(&paths.control, guardian) {
        server.end(Duration::ZERO).map_err(failed(&server))?;
    }
    guardian.map_or(Ok(()), ended)
}

/// The servers of a service, by their command lines.
fn servers(control: &Path, guardian: Option<&Process>) -> Vec<Process> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_one = |line: &[u8]| {
        let mut words =
            line.split(|&byte| byte == 0).map(|word| std::str::from_utf8(word).unwrap_or_default());
        let is_server = words.nth(1) == Some(SERVER);
        let config = words.next().and_then(|word| Config::from_json(word).ok());
        let name = words.next().and_then(name_of);
        is_server
            && config.is_some_and(|config| config.paths.control == control)
            && name.is_some_and(|name| guardian.is_none_or(|guardian| *guardian == name))
    };
    let found = pids.filter_map(|pid| {
        let process = Process::of_pid(pid).ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        is_one(&line).then_some(process)
    });
    found.collect()
}

/// Waits for a process's end. Ours may be the guardian: a `serve` in the foreground that is being undone.
fn ended(process: &Process) -> Result<(), Error> {
    if process.pid == std::process::id() as i32 {
        return Ok(());
    }
    let failed = |source| Failure::Io { doing: "wait for pid", path: process.pid.to_string().into(), source };
    match process.wait(ENDING) {
        Ok(true) => Ok(()),
        Ok(false) => process.end(Duration::ZERO).map_err(|error| failed(error).into()),
        Err(error) => Err(failed(error).into()),
    }
}

/// Removes the server's files, all of them.
fn clear(paths: &Paths) -> Result<(), Error> {
    let sockets = [&paths.socket, &paths.control].map(|path| match socket::is_socket(path) {
        Ok(true) => socket::remove(path),
        other => other.map(drop),
    });
    let files = [&paths.removed, &paths.log].map(|path| socket::remove(path));
    Error::all(sockets.into_iter().chain(files).filter_map(Result::err).map(Error::from))
}
