//! The guardian: the server's parent. It notices the server's death and stops the VMM rather than let it hang.
//!
//! `serve` in the foreground is the guardian itself and prints the server's events; a detached guardian writes them to the
//! log. It knows the VMM by pid, start time and boot id, which the server tells in `connected`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};
use sys::process::{Process, any_readable};

use crate::Error;
use crate::config::Config;
use crate::control::refusal;
use crate::role::{SERVER, program};
use crate::socket;

/// A server and what is known of its VMM.
pub(crate) struct Guardian {
    child: Child,
    server: Process,
    pipe: io::PipeReader,
    read: Vec<u8>,
    config: Config,
    vmm: Option<Process>,
    told: bool,
    ended: bool,
}

/// An event of the server: its name and its other fields.
pub(crate) struct Event {
    pub name: String,
    pub fields: Map<String, Value>,
}

/// How a server ended.
pub(crate) struct Ending {
    /// What went wrong, if it did not end as it should.
    pub error: Option<wire::Error>,
    /// The VMM that had to be stopped.
    pub stopped: Option<i32>,
}

impl Guardian {
    /// Starts a server.
    pub fn start(config: Config, log: Stdio) -> Result<Self, Error> {
        let program = program()?;
        let failed = |source| Error::io("start", &program)(source);
        let (pipe, writer) = io::pipe().map_err(failed)?;
        let mut command = Command::new(&program);
        command.arg(SERVER).arg(config.to_json().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = sys::detach::spawn(command, vec![writer.into()]).map_err(failed)?;
        // It cannot have ended unnoticed: nobody has waited for it yet. A zombie has a start time all the same.
        let pid = child.id() as i32;
        let server = Process::of_pid(pid)
            .or_else(|_| Ok(Process { pid, start_time: 0, boot_id: sys::process::boot_id()? }))
            .map_err(failed)?;
        Ok(Self { child, server, pipe, read: Vec::new(), config, vmm: None, told: false, ended: false })
    }

    /// The server's next event; `None` when it has ended. A signal to this process is passed on to the server, once.
    pub fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return self.event(&line).map(Some);
            }
            self.wait()?;
            let mut buffer = [0; 4096];
            match self.pipe.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => self.read.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::io("listen to", "the page server")(source)),
            }
        }
    }

    /// Waits until the server says something, or ends.
    fn wait(&mut self) -> Result<(), Error> {
        loop {
            let signals = sys::signals::fd().filter(|_| !self.told);
            let fds: Vec<_> = [self.pipe.as_fd()].into_iter().chain(signals).collect();
            if any_readable(&fds).map_err(Error::io("listen to", "the page server"))?[0] {
                return Ok(());
            }
            if sys::signals::pending().is_some() {
                self.terminate();
            }
        }
    }

    /// Asks the server to end.
    pub fn terminate(&mut self) {
        self.told = true;
        let _ = self.server.signal(Signal::SIGTERM);
    }

    fn event(&mut self, line: &[u8]) -> Result<Event, Error> {
        let strange = || Error::Protocol { what: String::from_utf8_lossy(line).trim().to_owned() };
        let Ok(Value::Object(mut fields)) = serde_json::from_slice(line) else { return Err(strange()) };
        let name = match fields.shift_remove("event") {
            Some(Value::String(name)) => name,
            _ => return Err(strange()),
        };
        if let Some(peer) = peer(&fields) {
            self.vmm = Some(peer);
        }
        match name.as_str() {
            "failed" => self.ended = true,
            "closed" => {
                self.ended = true;
                if fields.get("vmm").and_then(Value::as_str) != Some("abandoned") {
                    self.vmm = None;
                }
            }
            _ => {}
        }
        Ok(Event { name, fields })
    }

    /// Waits for the server's end, stops a VMM it left behind, and clears up if it could not do so itself.
    pub fn conclude(mut self, failed: Option<wire::Error>) -> Ending {
        let how = match self.child.wait() {
            Ok(status) => match (status.code(), status.signal()) {
                (_, Some(signal)) => format!("signal {signal}"),
                (code, _) => format!("exit status {}", code.unwrap_or(-1)),
            },
            Err(error) => error.to_string(),
        };
        let mut error = failed;
        if !self.ended {
            error.get_or_insert_with(|| Error::Died { how }.into());
            self.clear_up();
        }
        let mut stopped = None;
        if let Some(vmm) = self.vmm.take().filter(Process::is_alive) {
            match vmm.end(Duration::ZERO) {
                Ok(()) => stopped = Some(vmm.pid),
                Err(source) => {
                    let failed =
                        Error::Io { doing: "stop the VMM", path: vmm.pid.to_string().into(), source };
                    error = Some(match error {
                        Some(error) => error.absorb(failed.into()),
                        None => failed.into(),
                    });
                }
            }
        }
        if let (Some(error), Some(pid)) = (&mut error, stopped) {
            error.detail.push(format!("the VMM, pid {pid}, was stopped, as it would have hung"));
        }
        self.ended = true;
        self.told = true;
        Ending { error, stopped }
    }

    /// Removes the names that a dead server left.
    fn clear_up(&self) {
        for path in [&self.config.paths.socket, &self.config.paths.control] {
            if sys::listener::connect(path, Duration::ZERO)
                .is_err_and(|error| error.kind() != io::ErrorKind::TimedOut)
            {
                let _ = socket::remove(path);
            }
        }
    }
}

/// A guardian that is given up (nobody reads its events any more) takes its server along, and a VMM that would hang.
impl Drop for Guardian {
    fn drop(&mut self) {
        if self.ended && self.told {
            return;
        }
        self.terminate();
        while let Ok(Some(_)) = self.next() {}
        let _ = self.child.wait();
        if let Some(vmm) = self.vmm.take().filter(Process::is_alive) {
            let _ = vmm.end(Duration::ZERO);
        }
    }
}

/// The error of a `failed` event.
pub(crate) fn failure(fields: &Map<String, Value>) -> wire::Error {
    refusal(fields.get("error").unwrap_or(&Value::Null))
}

fn peer(fields: &Map<String, Value>) -> Option<Process> {
    Some(Process {
        pid: fields.get("peer_pid")?.as_i64()? as i32,
        start_time: fields.get("peer_start_time")?.as_u64()?,
        boot_id: fields.get("peer_boot_id")?.as_str()?.to_owned(),
    })
}

/// The detached guardian. `caller` is the pipe to whoever started it: one line, the server's first event.
pub(crate) fn run(config: Config, caller: OwnedFd) -> ExitCode {
    let mut caller = Some(File::from(caller));
    let log = config.paths.log.clone();
    let mut failed = None;
    let ending = match Guardian::start(config, Stdio::inherit()) {
        Err(error) => Ending { error: Some(error.into()), stopped: None },
        Ok(mut guardian) => {
            loop {
                match guardian.next() {
                    Ok(Some(event)) => {
                        say(&event.name, &Value::Object(event.fields.clone()));
                        if event.name == "failed" {
                            failed = Some(failure(&event.fields));
                        }
                        if let Some(mut caller) = caller.take()
                            && tell(&mut caller, &event.name, Value::Object(event.fields)).is_err()
                        {
                            // Nobody will ever know of this server.
                            guardian.terminate();
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        failed = Some(error.into());
                        guardian.terminate();
                        break;
                    }
                }
            }
            guardian.conclude(failed)
        }
    };
    if let Some(pid) = ending.stopped {
        say("vmm_stopped", &json!({"pid": pid, "reason": "its page server ended while pages were missing"}));
    }
    match ending.error {
        None => {
            if ending.stopped.is_none() {
                let _ = socket::remove(&log);
            }
            ExitCode::SUCCESS
        }
        Some(error) => {
            say("failed", &json!({ "error": error.to_json("wrenn-uffd", "serve") }));
            if let Some(mut caller) = caller {
                let _ = tell(&mut caller, "failed", json!({"error": error.to_json("wrenn-uffd", "serve")}));
            }
            ExitCode::from(error.kind.status())
        }
    }
}

fn tell(caller: &mut File, event: &str, mut fields: Value) -> io::Result<()> {
    fields["event"] = event.into();
    caller.write_all(format!("{fields}\n").as_bytes())
}

/// A line of the log.
fn say(event: &str, fields: &Value) {
    eprintln!("{} {event} {fields}", wire::timestamp());
}
