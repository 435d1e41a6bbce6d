//! The guest's end: everything gets a chance to stop, everything written reaches the disk, then the kernel restarts
//! or powers off. VMMs take a restart as the end (`reboot=k`).

use std::{
    io,
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Pid, sync},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::log::say;

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

/// Stops everything and the kernel. Returns only when even that is refused.
pub fn stop(mode: RebootMode) -> ExitCode {
    say!("the guest stops");
    let _ = kill(Pid::from_raw(-1), Signal::SIGTERM); // refused when there is nothing else: fine
    if let Err(error) = wait_for_children() {
        say!("waiting for processes: {error}");
    }
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

/// Reaps until nothing is left or the grace is over. The runtime and its handlers are gone by now, so SIGCHLD is
/// taken from a descriptor.
fn wait_for_children() -> nix::Result<()> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;
    let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let until = Instant::now() + GRACE;
    loop {
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(nix::sys::wait::WaitStatus::StillAlive) => break,
                Err(nix::errno::Errno::ECHILD) => return Ok(()),
                _ => (),
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let mut polled =
            [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&children), nix::poll::PollFlags::POLLIN)];
        let timeout = nix::poll::PollTimeout::try_from(left).unwrap_or(nix::poll::PollTimeout::ZERO);
        match nix::poll::poll(&mut polled, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => while let Ok(Some(_)) = children.read_signal() {},
            Err(error) => return Err(error),
        }
    }
}
