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
use crate::served::Served;
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
    let named = process.map(std::slice::from_ref).unwrap_or_default();
    match control::ask(&paths.control, process, &Request::Stop { force }, PATIENCE) {
        Ok(Ok(answer)) => {
            let guardian = process_of(&answer["service"]);
            let of_it = process_of(&answer["server"]).into_iter().chain(guardian.clone());
            for process in of_it {
                if !ended(&process)? {
                    kill(paths, guardian.as_slice())?;
                    break;
                }
            }
        }
        // The socket is a later service's: the one that is meant is gone, or gone astray.
        Ok(Err(refused)) if refused.code == NOT_RUNNING => return kill(paths, named),
        Ok(Err(refused)) => return Err(refused),
        // It was leaving already: its VMM is gone.
        Err(Failure::NotRunning { .. }) => kill(paths, named)?,
        Err(silent @ Failure::NoAnswer { .. }) => {
            let guardians = if named.is_empty() { guardians(&paths.control) } else { named.to_vec() };
            let depends = served(paths, &guardians).map(|served| served.iter().any(|it| it.vmm.is_alive()));
            // Where it cannot be known whether a VMM would hang, one may.
            if !force && !depends.is_ok_and(|depends| !depends) {
                return Err(silent.into());
            }
            log::warn!("{}; killing it", Error::from(silent));
            kill(paths, &guardians)?;
        }
        Err(other) => return Err(other.into()),
    }
    clear(paths)
}

/// Ends services that do not answer, and their VMMs. A guardian that is told does all of it; one that does not either is
/// killed, and then its server, orphaned, stops the VMMs. Where both are stuck they are stopped here.
fn kill(paths: &Paths, guardians: &[Process]) -> Result<(), Error> {
    for guardian in guardians.iter().filter(|guardian| !is_me(guardian)) {
        guardian.signal(Signal::SIGTERM).map_err(failed("stop pid", guardian))?;
    }
    let mut stuck = Vec::new();
    for guardian in guardians {
        if !ended(guardian)? {
            stuck.push(guardian);
        }
    }
    let of_these = |name: &Process| guardians.is_empty() || guardians.contains(name);
    let left = served(paths, guardians).unwrap_or_else(|error| {
        log::warn!("cannot see which VMMs are served: {}", Error::from(error));
        Vec::new()
    });
    for guardian in stuck {
        guardian.end(Duration::ZERO).map_err(failed("stop pid", guardian))?;
        // No answer: it was leaving, or is stuck too.
        let asked = control::ask(&paths.control, Some(guardian), &Request::Stop { force: true }, PATIENCE);
        if !matches!(asked, Err(Failure::NoAnswer { .. })) {
            for (server, _) in servers(&paths.control).into_iter().filter(|(_, name)| name == guardian) {
                ended(&server)?;
            }
        }
    }
    let mut killed = false;
    for (server, _) in servers(&paths.control).into_iter().filter(|(_, name)| of_these(name)) {
        server.end(Duration::ZERO).map_err(failed("stop pid", &server))?;
        killed = true;
    }
    // A server that has left by itself has given those that were complete their memory back.
    for it in left.iter().filter(|it| killed || !it.is_complete()) {
        it.vmm.end(Duration::ZERO).map_err(failed("stop the VMM, pid", &it.vmm))?;
    }
    Ok(())
}

/// The VMMs of these services.
fn served(paths: &Paths, guardians: &[Process]) -> Result<Vec<Served>, Failure> {
    let servers = servers(&paths.control);
    let servers = servers.into_iter().filter(|(_, name)| guardians.contains(name));
    let mut served = Vec::new();
    for process in guardians.iter().cloned().chain(servers.map(|(server, _)| server)) {
        let path = format!("/proc/{}/fd", process.pid);
        served.extend(Served::by(&process).map_err(Failure::io("look into", path))?);
    }
    Ok(served)
}

/// The services that the servers at this socket belong to.
fn guardians(control: &Path) -> Vec<Process> {
    let mut names = Vec::new();
    for (_, name) in servers(control) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The servers at this socket, by their command lines, and the services they belong to.
fn servers(control: &Path) -> Vec<(Process, Process)> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let service = |line: &[u8]| {
        let mut words =
            line.split(|&byte| byte == 0).map(|word| std::str::from_utf8(word).unwrap_or_default());
        let is_server = words.nth(1) == Some(SERVER);
        let config = Config::from_json(words.next().filter(|_| is_server)?).ok()?;
        words.next().and_then(name_of).filter(|_| config.paths.control == control)
    };
    let found = pids.filter_map(|pid| {
        let process = Process::of_pid(pid).ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((process, service(&line)?))
    });
    found.collect()
}

/// Waits for a process's end, and says whether it came. Ours may be the guardian: a `serve` in the foreground that is being
/// undone.
fn ended(process: &Process) -> Result<bool, Error> {
    Ok(is_me(process) || process.wait(ENDING).map_err(failed("wait for pid", process))?)
}

fn is_me(process: &Process) -> bool {
    process.pid == std::process::id() as i32
}

/// Names what an error was about.
fn failed(doing: &'static str, process: &Process) -> impl FnOnce(std::io::Error) -> Error {
    let path = process.pid.to_string().into();
    move |source| Failure::Io { doing, path, source }.into()
}

/// Removes the server's files, all of them, unless somebody listens there: then they are not what is left of a server.
fn clear(paths: &Paths) -> Result<(), Error> {
    for path in [&paths.socket, &paths.control] {
        socket::check_unused(path)?;
    }
    let files = [&paths.socket, &paths.control, &paths.removed, &paths.log];
    let all = files.into_iter().map(|path| socket::remove(path)).chain([paths.forget_lists()]);
    Error::all(all.filter_map(Result::err).map(Error::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn where_somebody_listens_who_is_no_page_server_nothing_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let paths = Paths {
            socket: at("s.sock"),
            control: at("s.ctl"),
            removed: at("s.removed"),
            log: at("s.log"),
            own: false,
        };
        let other = UnixListener::bind(&paths.control).unwrap();
        std::fs::write(&paths.log, "precious").unwrap();
        assert_eq!(clear(&paths).unwrap_err().code, "uffd.in_use");
        assert!(paths.control.exists() && paths.log.exists());
        drop(other);
        clear(&paths).unwrap();
        assert!(!paths.control.exists() && !paths.log.exists());
    }
}
