//! Snapshots through the API, with a guest that counts: dumps that are lost or killed, snapshots that do not fit.

#[allow(dead_code, reason = "the other tests use all of it")]
mod guest;
mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};
use support::Vmm;
use wrenn_tests::memory::GuestMemory;
use wrenn_tests::skip;

const MEMORY_MIB: usize = 160;

/// Counts for ever, and says with every number whether its memory is still what it was.
const COUNT: &str = "
busybox mkdir /t
busybox mount -t tmpfs t /t
busybox dd if=/dev/urandom of=/t/file bs=64k count=64 2>/dev/null
sum=$(busybox md5sum </t/file)
n=0
while true; do
    [ \"$(busybox md5sum </t/file)\" = \"$sum\" ] && echo tick $n || echo damaged $n
    echo $n >>/t/log
    n=$((n + 1))
    busybox usleep 50000
done";

macro_rules! needs_a_guest {
    () => {
        if let Some(reason) = guest::missing() {
            return skip::here(reason);
        }
    };
}

/// A guest that has counted to three.
fn counting(vcpus: u8) -> Vmm {
    let mut vmm = Vmm::start(&[]);
    let initrd = vmm.path("initrd");
    std::fs::copy(guest::initrd(COUNT).path(), &initrd).unwrap();
    let disk = vmm.path("disk");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let size = json!({"vcpu_count": vcpus, "mem_size_mib": MEMORY_MIB, "track_dirty_pages": true});
    vmm.put("/machine-config", size);
    let kernel = guest::image("kernel");
    let arguments = "console=ttyS0 quiet panic=1 reboot=k";
    let boot = json!({"kernel_image_path": kernel, "initrd_path": initrd, "boot_args": arguments});
    vmm.put("/boot-source", boot);
    let drive = json!({"drive_id": "disk", "path_on_host": disk, "is_root_device": false});
    vmm.put("/drives/disk", drive);
    vmm.put("/actions", json!({"action_type": "InstanceStart"}));
    vmm.wait_for("tick 3\r\n");
    vmm
}

/// The number it has counted to.
fn count(vmm: &Vmm) -> u32 {
    let output = vmm.output();
    assert!(!output.contains("damaged"), "{output}");
    let last =
        output.lines().filter_map(|line| line.trim_end().strip_prefix("tick ")?.parse().ok()).next_back();
    last.unwrap_or_else(|| panic!("it does not count: {output}"))
}

fn goes_on(vmm: &Vmm, from: u32) {
    vmm.wait_for(&format!("tick {}\r\n", from + 3));
    count(vmm);
}

/// The paths of a snapshot's state and memory.
fn at(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{name}.state")), dir.join(format!("{name}.memory")))
}

fn request(kind: &str, (state, memory): &(PathBuf, PathBuf)) -> Value {
    json!({"snapshot_type": kind, "snapshot_path": state, "mem_file_path": memory})
}

/// Pauses it and writes a snapshot. Gives the paused memory as the process holds it.
fn snapshot(vmm: &mut Vmm, kind: &str, to: &(PathBuf, PathBuf)) -> Vec<u8> {
    vmm.set("Paused");
    vmm.put("/snapshot/create", request(kind, to));
    let mut places = GuestMemory::of(vmm.pid(), MEMORY_MIB << 20).read();
    assert_eq!(places.len(), 1);
    places.remove(0)
}

fn load((state, memory): &(PathBuf, PathBuf)) -> Value {
    let backend = json!({"backend_type": "File", "backend_path": memory});
    json!({"snapshot_path": state, "mem_backend": backend, "track_dirty_pages": true, "resume_vm": true})
}

/// `base` with a Diff over it.
fn merged(mut base: Vec<u8>, diff: &Path) -> Vec<u8> {
    let file = File::open(diff).unwrap();
    for range in sys::sparse::data(&file) {
        let range = range.unwrap();
        file.read_exact_at(&mut base[range.start as usize..range.end as usize], range.start).unwrap();
    }
    base
}

fn a_dump_that_is_lost(vcpus: u8) {
    let mut vmm = counting(vcpus);
    let dir = tempfile::tempdir().unwrap();
    let [first, second, third] = ["first", "second", "third"].map(|name| at(dir.path(), name));
    let memory = snapshot(&mut vmm, "Full", &first);
    assert!(std::fs::read(&first.1).unwrap() == memory, "a Full is the memory");

    for lost in 0..3 {
        let from = count(&vmm);
        vmm.set("Resumed");
        goes_on(&vmm, from);
        match lost {
            0 => {}
            // This one succeeds, and nobody keeps it.
            1 => {
                snapshot(&mut vmm, "Diff", &second);
                std::fs::remove_file(&second.1).unwrap();
            }
            // This one fails in its memory, this in its state.
            _ => {
                vmm.set("Paused");
                let nowhere = at(&dir.path().join("nowhere"), "x");
                for paths in [(second.0.clone(), nowhere.1.clone()), (nowhere.0, second.1.clone())] {
                    let said = vmm.ask("PUT", "/snapshot/create", request("Diff", &paths)).unwrap_err();
                    assert!(said.starts_with("Create snapshot error: Cannot write "), "{said}");
                    assert!(said.ends_with("(os error 2)"), "{said}");
                }
                assert_eq!(vmm.get("/")["state"], "Paused");
            }
        }
    }
    let from = count(&vmm);
    vmm.set("Resumed");
    goes_on(&vmm, from);
    // On top of the first: the second was lost.
    let memory = snapshot(&mut vmm, "Diff", &third);
    let whole = merged(std::fs::read(&first.1).unwrap(), &third.1);
    assert!(whole == memory, "a Diff over the snapshot before the lost one is the memory");
    assert_filtered(&vmm);
    let from = count(&vmm);
    vmm.kill();

    std::fs::write(&third.1, &whole).unwrap();
    let mut restored = Vmm::start(&[]);
    restored.put("/snapshot/load", load(&third));
    assert_eq!(restored.get("/")["state"], "Running");
    goes_on(&restored, from);
    assert!(std::fs::read(&third.1).unwrap() == whole, "the memory file is left alone");
    assert_filtered(&restored);
}

/// Every thread of it is under a seccomp filter (mode 2 in /proc/PID/task/TID/status).
fn assert_filtered(vmm: &Vmm) {
    let mut names = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap() {
        let path = task.unwrap().path();
        names.push(support::read(&path.join("comm")).trim().to_owned());
        let status = support::read(&path.join("status"));
        assert!(status.contains("Seccomp:\t2\n"), "{names:?}: {status}");
    }
    names.sort();
    assert!(names.contains(&"io".into()) && names.contains(&"vcpu 0".into()), "{names:?}");
}

#[test]
fn privileged_a_dump_that_is_lost_or_fails_costs_nothing() {
    needs_a_guest!();
    a_dump_that_is_lost(1);
}

#[test]
fn privileged_a_dump_that_is_lost_or_fails_costs_nothing_with_two_vcpus() {
    needs_a_guest!();
    a_dump_that_is_lost(2);
}

#[test]
fn privileged_a_vmm_that_is_killed_while_it_dumps_leaves_the_earlier_snapshot() {
    needs_a_guest!();
    let mut vmm = counting(1);
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| at(dir.path(), name));
    let memory = snapshot(&mut vmm, "Full", &first);
    let from = count(&vmm);
    vmm.set("Resumed");
    goes_on(&vmm, from);
    vmm.set("Paused");

    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    inotify.add_watch(dir.path(), AddWatchFlags::IN_MODIFY).unwrap();
    vmm.send("PUT", "/snapshot/create", &request("Full", &second));
    // Its size is set, then the first pages are written.
    for _ in 0..2 {
        assert!(sys::process::readable(&inotify, Duration::from_secs(60)).unwrap(), "it writes nothing");
        inotify.read_events().unwrap();
    }
    vmm.kill();
    assert!(second.1.exists(), "it was killed while it wrote");
    assert!(!second.0.exists(), "no state appears before its memory is whole");
    assert!(std::fs::read(&first.1).unwrap() == memory);

    let mut restored = Vmm::start(&[]);
    restored.put("/snapshot/load", load(&first));
    goes_on(&restored, from);
}

#[test]
fn privileged_a_snapshot_that_does_not_fit_is_refused_and_ends_the_program() {
    needs_a_guest!();
    let mut vmm = counting(1);
    let dir = tempfile::tempdir().unwrap();
    let good = at(dir.path(), "good");
    let busy = request("Full", &good);
    let said = vmm.ask("PUT", "/snapshot/create", busy).unwrap_err();
    assert_eq!(
        said,
        "Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable \
         while running"
    );
    assert!(!good.0.exists() && !good.1.exists());
    snapshot(&mut vmm, "Full", &good);
    let from = count(&vmm);
    vmm.kill();
    let state = std::fs::read(&good.0).unwrap();
    let bad = at(dir.path(), "bad");

    for (what, change, expected) in changes() {
        std::fs::copy(&good.1, &bad.1).unwrap();
        std::fs::write(&bad.0, &state).unwrap();
        let mut body = load(&bad);
        change(&bad, &mut body);
        let mut vmm = Vmm::start(&[]);
        let said = vmm.ask("PUT", "/snapshot/load", body).expect_err(what);
        assert!(said.starts_with("Load snapshot error: ") && said.contains(expected), "{what}: {said}");
        assert_eq!(vmm.ended().code(), Some(1), "{what}");
        let reason = said.trim_start_matches("Load snapshot error: ");
        assert!(vmm.output().ends_with(&format!("Error: {reason}\n")), "{what}: {}", vmm.output());
        assert!(!vmm.output().contains("tick"), "{what}: it ran");
    }
    let mut restored = Vmm::start(&[]);
    restored.put("/snapshot/load", load(&good));
    goes_on(&restored, from);
}

type Change = fn(&(PathBuf, PathBuf), &mut Value);

/// What is changed about a good snapshot or its request, and what is said of it.
fn changes() -> Vec<(&'static str, Change, &'static str)> {
    vec![
        (
            "a memory file cut short",
            |bad, _| resize(&bad.1, 159 << 20),
            "has 166723584 bytes, the snapshot's memory 167772160",
        ),
        (
            "a longer memory file",
            |bad, _| resize(&bad.1, 161 << 20),
            "has 168820736 bytes, the snapshot's memory 167772160",
        ),
        ("no memory file", |bad, _| std::fs::remove_file(&bad.1).unwrap(), "Cannot open the memory file "),
        ("a state cut short", |bad, _| resize(&bad.0, 1000), "is cut short: 1000 bytes of "),
        (
            "a state of another version",
            |bad, _| write_at(&bad.0, 8, &[9]),
            "has version 9, this wrenn-vmm reads version 1",
        ),
        ("a damaged state", |bad, _| write_at(&bad.0, 200, b"\0\0"), "is damaged: its checksum is "),
        (
            "another memory size",
            |bad, _| edit(&bad.0, "\"mem_size_mib\":160", "\"mem_size_mib\":256"),
            "has 167772160 bytes, the snapshot's memory 268435456",
        ),
        (
            "another number of vCPUs",
            |bad, _| edit(&bad.0, "\"vcpu_count\":1", "\"vcpu_count\":2"),
            "Cannot restore the microVM: the saved state does not fit",
        ),
        (
            "a configuration that cannot be",
            |bad, _| edit(&bad.0, "\"vcpu_count\":1", "\"vcpu_count\":9"),
            "The snapshot's configuration does not fit: The vCPU number is invalid: 9",
        ),
        (
            "a disk that is not there",
            |bad, _| edit(&bad.0, "/disk\",\"is_root_device\"", "/nope\",\"is_root_device\""),
            "No such file or directory (os error 2)",
        ),
        (
            "an interface that it has not",
            |_, body| body["network_overrides"] = json!([{"iface_id": "eth9", "host_dev_name": "tap9"}]),
            "Unknown Network Device: eth9.",
        ),
        (
            "a page server that is not there",
            |bad, body| {
                body["mem_backend"] =
                    json!({"backend_type": "Uffd", "backend_path": bad.0.with_extension("sock")})
            },
            "bad.sock: No such file or directory (os error 2)",
        ),
        (
            "a page server that is no socket",
            |bad, body| body["mem_backend"] = json!({"backend_type": "Uffd", "backend_path": bad.0}),
            "bad.state: Connection refused (os error 111)",
        ),
        (
            "the realtime clock",
            |_, body| body["clock_realtime"] = json!(true),
            "clock_realtime is not supported",
        ),
    ]
}

fn resize(path: &Path, bytes: u64) {
    File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

fn write_at(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// Replaces text in a state's JSON and makes its head fit again.
fn edit(path: &Path, from: &str, to: &str) {
    let bytes = std::fs::read(path).unwrap();
    let json = String::from_utf8(bytes[24..].to_vec()).unwrap();
    assert!(json.contains(from), "{from} is not in {}", json.chars().take(800).collect::<String>());
    let json = json.replacen(from, to, 1).into_bytes();
    let mut edited = bytes[..12].to_vec();
    edited.extend(crc32fast::hash(&json).to_le_bytes());
    edited.extend((json.len() as u64).to_le_bytes());
    edited.extend(json);
    std::fs::write(path, edited).unwrap();
}
