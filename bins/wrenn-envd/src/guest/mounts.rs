//! The file systems every program expects. An initramfs may have mounted some of them before it handed over.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::symlink,
    path::Path,
};

use nix::{
    mount::{MsFlags, mount},
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use crate::log::say;

struct Mount {
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const NO_EXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// In order: /proc tells what is mounted already, /dev comes before what lies in it. 5 is the group tty.
const MOUNTS: [Mount; 7] = [
    Mount { target: "/proc", kind: "proc", flags: NO_EXEC, options: "" },
    Mount { target: "/sys", kind: "sysfs", flags: NO_EXEC, options: "" },
    Mount { target: "/dev", kind: "devtmpfs", flags: MsFlags::MS_NOSUID, options: "mode=0755" },
    Mount {
        target: "/dev/pts",
        kind: "devpts",
        flags: MsFlags::MS_NOSUID,
        options: "gid=5,mode=620,ptmxmode=666",
    },
    Mount { target: "/dev/shm", kind: "tmpfs", flags: NO_DEVICES, options: "mode=1777" },
    Mount { target: "/run", kind: "tmpfs", flags: NO_DEVICES, options: "mode=0755" },
    Mount { target: "/tmp", kind: "tmpfs", flags: NO_DEVICES, options: "mode=1777" },
];

/// What shells expect in /dev and devtmpfs does not make.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what is not mounted yet. One that fails is said and does not keep the agent from serving: it is the only
/// one who can tell.
pub fn mount_all() {
    for wanted in &MOUNTS {
        // /proc itself is mounted when it tells so.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if is_mounted(&mounts, wanted.target) {
            continue;
        }
        let made = if Path::new(wanted.target).is_dir() { Ok(()) } else { fs::create_dir(wanted.target) };
        let mounted = made.and_then(|()| {
            mount(Some(wanted.kind), wanted.target, Some(wanted.kind), wanted.flags, Some(wanted.options))?;
            Ok(())
        });
        if let Err(error) = mounted {
            say!("mounting {}: {error}", wanted.target);
        }
    }
    for (target, link) in LINKS {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => say!("{link}: {error}"),
            _ => (),
        }
    }
}

/// Whether a line `device target type options …` of /proc/self/mounts has the target. Ours hold nothing escaped.
fn is_mounted(mounts: &str, target: &str) -> bool {
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(target))
}

/// Standard input, output and error on the console, where the kernel or the initramfs gave none.
pub fn console() {
    if Path::new("/proc/self/fd/2").exists() {
        return;
    }
    let console = OpenOptions::new().read(true).write(true).open("/dev/console");
    if let Ok(console) = console {
        // With no console at all there is nobody to tell.
        let _ =
            dup2_stdin(&console).and_then(|()| dup2_stdout(&console)).and_then(|()| dup2_stderr(&console));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_whole_target() {
        let mounts = "proc /proc proc rw 0 0\n/dev/vda / ext4 rw 0 0\ndevpts /dev/pts devpts rw 0 0\n";
        assert!(is_mounted(mounts, "/proc") && is_mounted(mounts, "/dev/pts") && is_mounted(mounts, "/"));
        assert!(!is_mounted(mounts, "/dev") && !is_mounted(mounts, "/dev/vda") && !is_mounted("", "/proc"));
    }

    #[test]
    fn what_lies_in_a_mount_comes_after_it() {
        for (at, mount) in MOUNTS.iter().enumerate() {
            let above =
                MOUNTS.iter().position(|other| mount.target.starts_with(&format!("{}/", other.target)));
            assert!(above.is_none_or(|above| above < at), "{}", mount.target);
        }
    }
}
