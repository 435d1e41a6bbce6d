//! A process that stands still.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No thread takes longer to notice that it was stopped, however slow the machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Stops a process, and returns once it does nothing any more: each of its threads stops when it next looks, and the sender
/// of the signal does not wait for that.
///
/// # Panics
/// When there is no such process, or one of its threads goes on.
pub fn hold(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("it is there");
    let deadline = Instant::now() + LIMIT;
    while !is_still(pid) {
        assert!(Instant::now() < deadline, "pid {pid} was stopped and goes on");
        std::thread::yield_now();
    }
}

fn is_still(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.map(|thread| fs::read_to_string(thread.path().join("stat"))).all(|stat| match stat {
        // Stopped, traced, or at its end.
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim().starts_with(['T', 't', 'Z', 'X'])),
        Err(_) => true,
    })
}
