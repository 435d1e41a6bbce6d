//! Reaping. As pid 1 the agent inherits every orphan, so one place alone waits for children: it hands the exit
//! status to the process it belongs to and lets an orphan's go.

use std::{io, sync::Arc};

use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use super::Processes;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Exited(i32),
    /// A signal's number; real-time ones have no name.
    Killed {
        signal: i32,
        core: bool,
    },
}

/// Watches for SIGCHLD, from now on.
///
/// # Errors
/// When the runtime cannot install its handler.
pub fn watch() -> io::Result<Stream> {
    signal(SignalKind::child())
}

/// Reaps until the agent ends.
pub async fn run(processes: Arc<Processes>, mut children: Stream) {
    while children.recv().await.is_some() {
        reap(&processes);
    }
}

/// Reaps every child that has ended: signals coalesce, so one SIGCHLD may stand for many. False when no child is left.
pub fn reap(processes: &Processes) -> bool {
    // The lock keeps a child that ends at once from being reaped before it is entered.
    let mut running = processes.lock();
    loop {
        let (pid, status) = match wait(WaitOptions::NOHANG) {
            Ok(Some(ended)) => ended,
            Ok(None) => return true,
            Err(_) => return false, // ECHILD: nothing else can be wrong here
        };
        let ended = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Status::Exited(code),
            (_, Some(signal)) => Status::Killed { signal, core: status.as_raw() & CORE_DUMPED != 0 },
            _ => continue, // stopped or continued, which is not asked for
        };
        running.ended(pid.as_raw_nonzero().get().unsigned_abs(), ended);
    }
}

/// The bit of a wait status that says a core was dumped (wait(2), WCOREDUMP).
const CORE_DUMPED: i32 = 0x80;

impl std::fmt::Display for Status {
    /// As Go prints a process state, which is what the field's clients know: "exit status 1", "signal: killed".
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (signal, core) = match *self {
            Self::Exited(code) => return write!(f, "exit status {code}"),
            Self::Killed { signal, core } => (signal, core),
        };
        let name = match signal {
            1 => "hangup",
            2 => "interrupt",
            3 => "quit",
            4 => "illegal instruction",
            5 => "trace/breakpoint trap",
            6 => "aborted",
            7 => "bus error",
            8 => "floating point exception",
            9 => "killed",
            10 => "user defined signal 1",
            11 => "segmentation fault",
            12 => "user defined signal 2",
            13 => "broken pipe",
            14 => "alarm clock",
            15 => "terminated",
            other => return write!(f, "signal: signal {other}"),
        };
        write!(f, "signal: {name}{}", if core { " (core dumped)" } else { "" })
    }
}
