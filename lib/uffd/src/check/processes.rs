//! The processes of a server: which they are, holding them still, what they use.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sys::process::Process;

/// These processes and all that descend from them, as of now.
pub(crate) fn tree(roots: &[i32]) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(parent) =
            stat(&format!("/proc/{pid}/stat")).and_then(|fields| fields.get(1)?.parse().ok())
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut left = roots.to_vec();
    while let Some(pid) = left.pop() {
        if !found.contains(&pid) {
            found.push(pid);
            left.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found.into_iter().filter_map(|pid| Process::of_pid(pid).ok()).collect()
}

/// The fields of a `stat` file from the third on; those before may hold anything.
fn stat(path: &str) -> Option<Vec<String>> {
    let text = fs::read_to_string(path).ok()?;
    Some(text[text.rfind(')')? + 1..].split_ascii_whitespace().map(str::to_owned).collect())
}

/// Processor time that these have used.
pub(crate) fn used(processes: &[Process]) -> Duration {
    // Fields 14 and 15 of stat, in hundredths of a second on every Linux (USER_HZ).
    let ticks = |process: &Process| -> u64 {
        let fields = stat(&format!("/proc/{}/stat", process.pid)).unwrap_or_default();
        [11, 12].iter().filter_map(|&index| fields.get(index)?.parse::<u64>().ok()).sum()
    };
    Duration::from_millis(processes.iter().map(ticks).sum::<u64>() * 10)
}

/// How long processes may take to stand still before they are let go on for another try.
const A_WHILE: Duration = Duration::from_millis(200);

/// Processes that stand still until this goes.
#[derive(Debug)]
pub(crate) struct Held(Vec<Process>);

impl Held {
    /// Stops all of a server.
    ///
    /// # Errors
    /// `TimedOut` when one does not stand still; what the kernel said.
    pub fn stop(roots: &[i32], limit: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + limit;
        loop {
            let held = Self(tree(roots));
            for process in &held.0 {
                process.signal(Signal::SIGSTOP)?;
            }
            // A thread stops when it next looks, and nobody is told but the parent. One that waits for its child to become a
            // program (vfork) does not look before that: then both must go on first.
            let patience = deadline.min(Instant::now() + A_WHILE);
            while !held.0.iter().all(is_still) && Instant::now() < patience {
                std::thread::sleep(Duration::from_micros(100));
            }
            if held.0.iter().all(is_still) && tree(roots).len() == held.0.len() {
                return Ok(held);
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        go_on(&self.0);
    }
}

/// Lets these go on.
pub(crate) fn go_on(processes: &[Process]) {
    for process in processes {
        let _ = process.signal(Signal::SIGCONT);
    }
}

/// Whether every thread is stopped, or has ended.
fn is_still(process: &Process) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", process.pid)) else { return true };
    tasks.flatten().all(|task| {
        stat(&task.path().join("stat").to_string_lossy())
            .is_none_or(|fields| matches!(fields[0].as_str(), "T" | "t" | "Z" | "X"))
    })
}
