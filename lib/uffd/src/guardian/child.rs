//! The server's process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use sys::listener::Listener;
use sys::process::Process;

use super::Vm;
use crate::Error;
use crate::channel::{self, Channel};
use crate::config::Config;
use crate::orders::{Given, Handed, Orders};
use crate::role::{SERVER, program};

/// A server that runs.
pub(super) struct Server {
    pub child: Child,
    pub process: Process,
    pub channel: Channel,
    pub started: Instant,
    /// How many pages had been filled then.
    pub filled: u64,
}

impl Server {
    /// Starts one on what there is.
    pub fn start(
        config: &Config,
        (name, image): (&Process, &str),
        (restarts, came, filled): (u64, u64, u64),
        (control, socket): (&Listener, Option<&Listener>),
        vms: &[Vm],
    ) -> Result<Self, Error> {
        let program = program()?;
        let failed = |source| Error::io("start", &program)(source);
        let again = || {
            let copy = |fd: &OwnedFd| fd.try_clone();
            let listening = |listener: &Listener| listener.socket.as_fd().try_clone_to_owned();
            let (channel, theirs) = channel::pair()?;
            let handed =
                |vm: &Vm| Ok(Handed { uffd: copy(&vm.handed.uffd)?, state: copy(&vm.handed.state)? });
            let given = Given {
                channel: theirs,
                control: listening(control)?,
                socket: socket.map(listening).transpose()?,
                vms: vms.iter().map(handed).collect::<io::Result<_>>()?,
            };
            let (config, name, image) = (config.clone(), name.clone(), image.to_owned());
            let orders = Orders { config, name, image, restarts, came, given };
            let (words, keep) = orders.into_parts();
            let mut command = Command::new(&program);
            command.arg(SERVER).args(words);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
            let child = sys::detach::spawn(command, keep)?;
            // It cannot have ended unnoticed: nobody has waited for it yet. A zombie has a start time all the same.
            let pid = child.id() as i32;
            let process = Process::of_pid(pid).or_else(|_| {
                Ok::<_, io::Error>(Process { pid, start_time: 0, boot_id: sys::process::boot_id()? })
            })?;
            Ok(Self { child, process, channel, started: Instant::now(), filled })
        };
        again().map_err(failed)
    }

    /// Waits for its end, and says how it was, and whether all was well.
    pub fn how(&mut self) -> (String, bool) {
        match self.child.wait() {
            Ok(status) => match (status.code(), status.signal()) {
                (_, Some(signal)) => (format!("signal {signal}"), false),
                (code, _) => (format!("exit status {}", code.unwrap_or(-1)), status.success()),
            },
            Err(error) => (error.to_string(), false),
        }
    }
}
