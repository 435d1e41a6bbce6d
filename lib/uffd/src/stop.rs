//! `wrenn-uffd stop`: ends a server. One that is gone already is success.

use std::time::Duration;

use sys::process::Process;
use wire::{Call, Error, Reply};

use crate::Error as Failure;
use crate::config::Paths;
use crate::control::{Client, Request};
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
    let client = match (Client::connect(&paths.control), process) {
        (Err(silent @ Failure::NoAnswer { .. }), Some(process)) => {
            log::warn!("{}; killing it", Error::from(silent));
            kill(process)?;
            return clear(paths);
        }
        (client, _) => client?,
    };
    if let (Some(client), Some(process)) = (&client, process)
        && client.server != *process
    {
        // The socket is a later server's: the one that is meant is gone, or gone astray.
        return kill(process);
    }
    let Some(client) = client else {
        process.map_or(Ok(()), kill)?;
        return clear(paths);
    };
    match client.ask(&paths.control, Request::Stop { force }, PATIENCE) {
        Ok(Err(refused)) => return Err(refused),
        Ok(Ok(answer)) => {
            let guardian = &answer["guardian"];
            let guardian = Process {
                pid: guardian["pid"].as_i64().unwrap_or_default() as i32,
                start_time: guardian["start_time"].as_u64().unwrap_or_default(),
                boot_id: guardian["boot_id"].as_str().unwrap_or_default().to_owned(),
            };
            ended(&client.server)?;
            // Ours may be the guardian: a `serve` in the foreground that is being undone.
            if guardian.pid != std::process::id() as i32 {
                ended(&guardian)?;
            }
        }
        // It was leaving already: its VMM is gone.
        Err(Failure::NotRunning { .. }) => ended(&client.server)?,
        Err(silent) => {
            log::warn!("{}; killing it", Error::from(silent));
            kill(&client.server)?;
        }
    }
    clear(paths)
}

fn ended(process: &Process) -> Result<(), Error> {
    let failed = |source| Failure::Io { doing: "wait for pid", path: process.pid.to_string().into(), source };
    match process.wait(ENDING) {
        Ok(true) => Ok(()),
        Ok(false) => kill(process),
        Err(error) => Err(failed(error).into()),
    }
}

fn kill(process: &Process) -> Result<(), Error> {
    let failed = |source| Failure::Io { doing: "stop pid", path: process.pid.to_string().into(), source };
    process.end(Duration::ZERO).map_err(|error| failed(error).into())
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
