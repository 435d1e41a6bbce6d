//! Whose a VMM is: a mark in its environment, which the kernel keeps for as long as the process lives.

use std::fs;
use std::io;

use nix::errno::Errno;
use sys::process::Process;
use wire::{Host, Id};

/// The environment variable that carries the mark. It is all the environment a VMM has.
pub(crate) const VARIABLE: &str = "WRENN_OWNER";

/// The mark of this sandbox's VMM under this root.
pub(crate) fn mark(host: &Host, id: &Id) -> String {
    format!("wrenn:{}:{id}", host.tag())
}

/// The mark of a process, `None` when it has none, is gone, or may not be looked at.
pub(crate) fn of_pid(pid: i32) -> Option<String> {
    of_environment(&fs::read(format!("/proc/{pid}/environ")).ok()?)
}

/// Whether a process has no environment any more: from the moment it begins to end its memory is no longer its own, and
/// it reads empty (before Linux 6.12) or as no process.
pub(crate) fn is_ending(pid: i32) -> bool {
    match fs::read(format!("/proc/{pid}/environ")) {
        Ok(bytes) => bytes.is_empty(),
        Err(error) => {
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
        }
    }
}

fn of_environment(bytes: &[u8]) -> Option<String> {
    bytes
        .split(|&byte| byte == 0)
        .find_map(|entry| entry.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"="))
        .map(|mark| String::from_utf8_lossy(mark).into_owned())
}

/// Every VMM of this root that runs, with or without a document: what a `gc` compares with the documents.
///
/// It costs one small read for each process of the host. Processes that this user may not look at are not ours.
pub fn find(host: &Host) -> Vec<(Id, Process)> {
    let ours = format!("wrenn:{}:", host.tag());
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // The process first, its mark second: a pid that changes hands in between is seen by the start time.
        let process = Process::of_pid(pid).ok()?;
        let mark = of_pid(pid)?;
        let id = Id::new(mark.strip_prefix(&ours)?).ok()?;
        process.is_alive().then_some((id, process))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_variable_is_a_mark() {
        assert_eq!(of_environment(b"A=1\0WRENN_OWNER=wrenn:ab:sb-1\0").as_deref(), Some("wrenn:ab:sb-1"));
        assert_eq!(of_environment(b"XWRENN_OWNER=wrenn:ab:sb-1\0WRENN_OWNERS=1\0"), None);
        assert_eq!(of_environment(b""), None);
    }

    #[test]
    fn another_root_has_another_mark() {
        let id = Id::new("sb-1").unwrap();
        let mark = |root| mark(&Host::new(root, "/run/x"), &id);
        assert_ne!(mark("/nonexistent/a"), mark("/nonexistent/b"));
    }
}
