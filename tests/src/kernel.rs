//! The host as the kernel tells it, read from /proc and /sys: what our programs say of themselves is not asked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What a host holds that a sandbox may leave behind, each thing as one readable line.
///
/// Two of these are compared: taken before a test and after, they must be equal.
pub fn traces(dirs: &[&Path]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    found.extend(interfaces());
    found.extend(names("netns", "/run/netns"));
    found.extend(device_mapper());
    found.extend(names("node", "/dev/mapper"));
    found.extend(loops());
    found.extend(mounts());
    found.extend(cgroups());
    found.extend(nftables());
    for dir in dirs {
        found.extend(processes_of(dir).into_iter().map(|(pid, line)| format!("process {pid} {line}")));
    }
    found
}

/// Names in a directory; none when it is not there.
pub fn list(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn names(what: &str, dir: &str) -> Vec<String> {
    list(dir).into_iter().map(|name| format!("{what} {dir}/{name}")).collect()
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn interfaces() -> Vec<String> {
    let alias = |name: &str| text(format!("/sys/class/net/{name}/ifalias"));
    list("/sys/class/net").iter().map(|name| format!("interface {name} {}", alias(name))).collect()
}

fn device_mapper() -> Vec<String> {
    let devices = list("/sys/block").into_iter().filter(|name| name.starts_with("dm-"));
    let of = |device: &str, what: &str| text(format!("/sys/block/{device}/dm/{what}"));
    devices.map(|device| format!("dm {} {}", of(&device, "name"), of(&device, "uuid"))).collect()
}

/// Loop devices that have a file, with that file. (`(deleted)` after it says that only the device holds it.)
fn loops() -> Vec<String> {
    let devices = list("/sys/block").into_iter().filter(|name| name.starts_with("loop"));
    let files = devices.map(|device| text(format!("/sys/block/{device}/loop/backing_file")));
    files.filter(|file| !file.is_empty()).map(|file| format!("loop {file}")).collect()
}

/// Mounts of every mount namespace that a process is in.
fn mounts() -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut found = BTreeSet::new();
    for pid in pids() {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if seen.insert(namespace) {
            for line in text(format!("/proc/{pid}/mounts")).lines() {
                let words: Vec<_> = line.split(' ').take(3).collect();
                // The place of all named network namespaces, `ip netns`'s and ours, is made once per boot.
                if words.get(1) != Some(&"/run/netns") {
                    found.insert(format!("mount {}", words.join(" ")));
                }
            }
        }
    }
    found
}

fn cgroups() -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(format!("cgroup {}", entry.path().display()));
                left.push(entry.path());
            }
        }
    }
    found
}

/// The host's own table of rules is made once and stays: only what is about one sandbox counts, and that would be an
/// address of the slots'.
fn nftables() -> Vec<String> {
    let Ok(listed) = std::process::Command::new("nft").args(["list", "ruleset"]).output() else {
        return Vec::new();
    };
    let rules = String::from_utf8_lossy(&listed.stdout).into_owned();
    let slot = |line: &&str| {
        line.split(|c: char| !(c.is_ascii_digit() || c == '.')).any(|word| {
            let address = word.starts_with("10.11.") || word.starts_with("10.12.");
            address && !line.contains(&format!("{word}/"))
        })
    };
    rules.lines().filter(slot).map(|line| format!("nft {}", line.trim())).collect()
}

/// Every process id, our own included.
pub fn pids() -> Vec<i32> {
    list("/proc").iter().filter_map(|name| name.parse().ok()).collect()
}

/// Whether a process is there and no zombie.
pub fn is_alive(pid: i32) -> bool {
    let stat = text(format!("/proc/{pid}/stat"));
    stat.rsplit(')')
        .next()
        .and_then(|rest| rest.trim().chars().next())
        .is_some_and(|s| !matches!(s, 'Z' | 'X'))
}

/// Processes that have something to do with what is below `dir`: named in their arguments or environment, open, mapped,
/// or their working directory, with their command lines. The test itself does not count.
pub fn processes_of(dir: &Path) -> Vec<(i32, String)> {
    let dir = dir.to_string_lossy().into_owned();
    let me = std::process::id() as i32;
    let uses = |pid: &i32| {
        let proc = format!("/proc/{pid}");
        let links = list(format!("{proc}/fd")).into_iter().map(|fd| format!("{proc}/fd/{fd}"));
        let links = links.chain([format!("{proc}/cwd"), format!("{proc}/exe")]);
        let mut open = links.filter_map(|link| fs::read_link(link).ok());
        let mentions = |file: &str| {
            let bytes = fs::read(format!("{proc}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(&dir)
        };
        mentions("cmdline")
            || mentions("environ")
            || mentions("maps")
            || open.any(|path| path.to_string_lossy().contains(&dir))
    };
    let others = pids().into_iter().filter(|pid| *pid != me && is_alive(*pid));
    others.filter(uses).map(|pid| (pid, text(format!("/proc/{pid}/cmdline")).replace('\0', " "))).collect()
}

/// Where a process's descriptor leads.
pub fn descriptor(pid: i32, fd: i32) -> String {
    let link = fs::read_link(format!("/proc/{pid}/fd/{fd}"));
    link.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The session a process is in: field 6 of /proc/PID/stat.
pub fn session(pid: i32) -> Option<i32> {
    let stat = text(format!("/proc/{pid}/stat"));
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(3)?.parse().ok()
}

/// Bytes that a file really takes on its disk.
///
/// # Panics
/// When it cannot be looked at.
pub fn stored_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    metadata.blocks() * 512
}
