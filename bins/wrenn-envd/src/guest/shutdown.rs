//! The guest's end: everything gets a chance to stop, everything written reaches the disk, then the kernel restarts
//! or powers off. VMMs take a restart as the end (`reboot=k`).

use std::{io, process::ExitCode, time::Duration};

use nix::{
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
    },
    unistd::{Pid, sync},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    log::say,
    process::{Processes, reaper},
};

/// How long processes may take to stop when asked to.
const GRACE: Duration = Duration::from_secs(2);

/// Waits to be asked to stop: SIGTERM and Ctrl-Alt-Del (SIGINT) restart, SIGUSR2 powers off, as busybox's init has it.
///
/// # Errors
/// When the runtime cannot watch for the signals.
pub fn asked() -> io::Result<impl Future<Output = RebootMode>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut power = signal(SignalKind::user_defined2())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => RebootMode::RB_AUTOBOOT,
            _ = interrupt.recv() => RebootMode::RB_AUTOBOOT,
            _ = power.recv() => RebootMode::RB_POWER_OFF,
        }
    })
}

/// Asks everything to stop and gives it a while. The agent goes on reaping and reading what is written: a process
/// whose output nobody takes would not come to its own end.
///
/// # Errors
/// When the runtime cannot watch for SIGCHLD.
pub async fn settle(processes: &Processes) -> io::Result<()> {
    say!("the guest stops");
    let mut children = reaper::watch()?;
    let _ = kill(Pid::from_raw(-1), Signal::SIGTERM); // refused when there is nothing else: fine
    let gone = async { while reaper::reap(processes) && children.recv().await.is_some() {} };
    if tokio::time::timeout(GRACE, gone).await.is_err() {
        say!("some processes did not stop within {GRACE:?}");
    }
    Ok(())
}

/// Ends what is left, and the kernel. Returns only when even that is refused.
pub fn stop(mode: RebootMode) -> ExitCode {
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    sync();
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>) {
        say!("/ stays writable: {error}");
    }
    sync();
    let Err(error) = reboot(mode);
    say!("reboot: {error}");
    ExitCode::FAILURE
}
