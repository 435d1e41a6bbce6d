//! The host as the kernel tells it, read from /proc and /sys: what our programs say of themselves is not asked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sys::process::Process;

/// What tells one root's traces from another's, and from everybody else's.
#[derive(Debug)]
pub struct Marks {
    /// The directory of both its roots, which is in every path of its own.
    pub dir: PathBuf,
    /// Twelve hexadecimal digits in the names of its kernel objects (`WRENN-<tag>-<id>`, `wrenn:<tag>:<id>`).
    pub tag: String,
    /// Every network slot that a sandbox of its has ever had.
    pub slots: BTreeSet<u64>,
}

/// What the host holds of a root's sandboxes, each thing as one readable line.
pub fn traces(marks: &Marks) -> BTreeSet<String> {
    let slots = marks.slots.iter().filter(|slot| !is_anothers(**slot, &marks.tag));
    let names: Vec<_> = slots.clone().map(|slot| format!("wrenn-ns-{slot}")).collect();
    let addresses: Vec<_> = slots.map(|slot| format!("10.11.{}.{}", slot >> 8, slot & 255)).collect();
    let ours = |line: &String| line.contains(&*marks.dir.to_string_lossy()) || line.contains(&marks.tag);
    let all = [interfaces(), device_mapper(), loops(), cgroups(), mounts()].concat();
    let mut found: BTreeSet<_> = all.into_iter().filter(ours).collect();
    found.extend(dangling_nodes());
    // What a VMM sees under its fixed path is its alone: in our own mount namespace nobody's may ever be seen.
    found.extend(mounts().into_iter().filter(|mount| mount.contains("/tmp/wrenn-vm")));
    found.extend(names.into_iter().filter(|name| list("/run/netns").contains(name)));
    let rules = nftables();
    let in_rules = |address: &String| {
        rules.split(|c: char| !(c.is_ascii_digit() || c == '.')).any(|word| word == address)
    };
    found.extend(addresses.into_iter().filter(in_rules).map(|address| format!("nft {address}")));
    let processes = processes_of(&marks.dir).into_iter();
    found.extend(processes.map(|(pid, line)| format!("process {pid} {line}")));
    found
}

/// Whether a slot has a new tenant of another root's by now.
fn is_anothers(slot: u64, tag: &str) -> bool {
    let alias = text(format!("/sys/class/net/wrenn-v-{slot}/ifalias"));
    !alias.is_empty() && !alias.contains(tag)
}

/// Names in a directory; none when it is not there.
pub fn list(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
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

/// Our nodes of devices that are gone: they do not say whose they were, and nobody may leave one.
fn dangling_nodes() -> Vec<String> {
    let devices = list("/sys/block").into_iter().map(|device| text(format!("/sys/block/{device}/dm/name")));
    let devices: BTreeSet<_> = devices.collect();
    let nodes = list("/dev/mapper").into_iter().filter(|node| node.starts_with("wrenn-"));
    nodes.filter(|node| !devices.contains(node)).map(|node| format!("node {node} of no device")).collect()
}

/// Loop devices that have a file, with that file. (`(deleted)` after it says that only the device holds it.)
fn loops() -> Vec<String> {
    let devices = list("/sys/block").into_iter().filter(|name| name.starts_with("loop"));
    let files = devices.map(|device| text(format!("/sys/block/{device}/loop/backing_file")));
    files.filter(|file| !file.is_empty()).map(|file| format!("loop {file}")).collect()
}

fn mounts() -> Vec<String> {
    let mounts = text("/proc/self/mounts");
    mounts
        .lines()
        .map(|line| format!("mount {}", line.split(' ').take(3).collect::<Vec<_>>().join(" ")))
        .collect()
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

fn nftables() -> String {
    let listed = std::process::Command::new("nft").args(["list", "ruleset"]).output();
    listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
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

/// The children of a process.
pub fn children(parent: i32) -> Vec<Process> {
    let is_child = |pid: &i32| {
        let stat = text(format!("/proc/{pid}/stat"));
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
        fields.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    pids().into_iter().filter(is_child).filter_map(|pid| Process::of_pid(pid).ok()).collect()
}

/// Where a process's descriptor leads.
pub fn descriptor(pid: i32, fd: i32) -> String {
    let link = fs::read_link(format!("/proc/{pid}/fd/{fd}"));
    link.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Where all of a process's descriptors lead.
pub fn descriptors(pid: i32) -> Vec<String> {
    let links = list(format!("/proc/{pid}/fd")).into_iter();
    links.filter_map(|fd| Some(descriptor(pid, fd.parse().ok()?))).collect()
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

/// Whether this kernel knows how to poison a page of another process's memory (UFFDIO_POISON, Linux 6.6).
pub fn poisons() -> bool {
    let release = text("/proc/sys/kernel/osrelease");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(6))
}
