//! wrenn-launch with a real VMM and a guest that counts on its console: no network, no agent, no page server.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wrenn_tests::vmm::Vmm;
use wrenn_tests::{Output, Roots, Value, images, json, kernel, skip};

/// More than the guest has written to when it is dumped.
const MEMORY_MIB: u64 = 128;
/// Under emulation a guest takes its time.
const LIMIT: Duration = Duration::from_secs(120);

/// What the guest does as its pid 1: it counts on the console, five a second, and at 2 it writes the count to its disk
/// and makes sure that it is there. Asked to by its command line, it reboots at 4.
const INIT: &str = r#"#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
exec </dev/console >/dev/console 2>&1
while read -r module; do busybox insmod "/modules/$module"; done </modules/order
count=0
while :; do
    echo "count $count"
    [ $count != 2 ] || { echo "written at $count" | busybox dd of=/dev/vda conv=fsync 2>/dev/null; echo "disk written"; }
    [ $count != 4 ] || ! busybox grep -q wrenn.reboot /proc/cmdline || busybox reboot -f
    count=$((count + 1))
    busybox usleep 200000
done
"#;

wrenn_tests::on_every_vmm_like_firecracker![
    Bench: privileged_a_frozen_guest_goes_on_where_it_was_here_and_from_its_snapshot,
    privileged_a_dump_on_a_full_disk_is_exhausted_and_the_guest_goes_on,
    privileged_a_guest_that_reboots_ends_its_vmm_and_the_wait,
    privileged_a_kernel_that_is_none_is_refused_in_the_vmms_words,
    privileged_a_torn_snapshot_is_refused_and_nothing_is_left,
];

struct Bench {
    roots: Roots,
    vmm: Vmm,
    vcpus: u32,
    kernel: PathBuf,
}

impl Bench {
    /// Runs a test, or says why not.
    fn run(vmm: Vmm, vcpus: u32, _name: &str, test: fn(&Self)) {
        match vmm.program().and_then(|_| images::available()) {
            Ok(()) => test(&Self::new(vmm, vcpus)),
            Err(reason) => skip::here(reason),
        }
    }

    fn new(vmm: Vmm, vcpus: u32) -> Self {
        let image = |name: &str| {
            let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/image")).join(name);
            std::env::var_os("WRENN_IMAGES").map_or(path, |dir| Path::new(&dir).join(name))
        };
        let roots = Roots::new();
        // A later archive's files replace an earlier one's: the image's modules, this test's init.
        let mut initrd = fs::read(image("initrd")).unwrap();
        initrd.extend(archive("init", INIT.as_bytes()));
        fs::write(roots.dir().join("initrd"), initrd).unwrap();
        fs::write(roots.dir().join("disk"), vec![0; 1 << 20]).unwrap();
        let kernel = roots.dir().join("kernel");
        fs::copy(image("kernel"), &kernel).unwrap();
        Self { roots, vmm, vcpus, kernel }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.roots.dir().join(name)
    }

    fn with(&self, verb: &str, arguments: &[&str], document: &Value) -> Output {
        let started = Instant::now();
        let output = self
            .roots
            .program("wrenn-launch")
            .args([verb, "-"])
            .args(arguments)
            .stdin(document.to_string())
            .run();
        eprintln!("{verb} {arguments:?}: {:?}", started.elapsed());
        output
    }

    fn does(&self, verb: &str, document: &Value) -> Value {
        self.with(verb, &[], document).success().reply()
    }

    fn boot(&self, cmdline: &str) -> Value {
        let request = json!({
            "id": "sb-1", "kernel": self.kernel, "initrd": self.file("initrd"), "rootfs": self.file("disk"),
            "spec": {"vcpus": self.vcpus, "memory_mib": MEMORY_MIB, "vmm": self.vmm.name()},
            "cmdline": format!("console=ttyS0 quiet reboot=k panic=1 {cmdline}"),
        });
        self.does("boot", &request)
    }

    fn console(&self) -> String {
        let bytes = fs::read(self.roots.run().join("sb-1/vm.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The numbers counted on the console so far.
    fn counts(&self) -> Vec<u64> {
        let console = self.console();
        // A number whose line is not complete may be half of one.
        let whole = console.rfind('\n').map_or("", |end| &console[..end]);
        whole.lines().filter_map(|line| line.trim().strip_prefix("count ")?.parse().ok()).collect()
    }

    /// Waits until the guest has counted past `count`.
    fn count_past(&self, count: u64) {
        self.until(&format!("a count past {count}"), || {
            self.counts().last().is_some_and(|&last| last > count)
        });
    }

    /// The guest's console is a file that a VMM writes: looking again is all there is.
    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done() {
            assert!(Instant::now() < deadline, "no {what} in {LIMIT:?}; the console: {}", self.console());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let stop = self.roots.program("wrenn-launch").args(["stop", "id=sb-1"]).run();
        if !std::thread::panicking() {
            assert_eq!(stop.status, Some(0));
            assert!(kernel::processes_of(self.roots.dir()).is_empty());
            assert_eq!(kernel::list(self.roots.run().join("sb-1")), [""; 0]);
            assert!(!self.roots.run().join("sb-1").exists());
        }
    }
}

/// A cpio archive ("newc") of one executable file.
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, mode, content) in [(name, 0o100_755, content), ("TRAILER!!!", 0, &[])] {
        let mut entry = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{name}\0",
            // ino, (mode,) uid, gid, nlink, mtime, size, device, special device, length of the name, checksum
            0, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0
        )
        .into_bytes();
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry.extend_from_slice(content);
        entry.resize(entry.len().next_multiple_of(4), 0);
        bytes.extend(entry);
    }
    bytes
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn privileged_a_frozen_guest_goes_on_where_it_was_here_and_from_its_snapshot(bench: &Bench) {
    let (first, second) = (bench.file("gen-1"), bench.file("gen-2"));
    let mut document = bench.boot("");
    bench.count_past(3);
    let disk = fs::read(bench.file("disk")).unwrap();
    assert!(disk.starts_with(b"written at 2\n"), "what the guest has synced is in the file");

    let status = bench.does("status", &document);
    assert_eq!(status["vm"]["state"], "running");
    assert!(text(&status["vm"]["version"]).starts_with(|c: char| c.is_ascii_digit()), "{status}");
    assert!(
        status["vm"]["cpu_ms"].as_u64().unwrap() > 0 && status["vm"]["rss_bytes"].as_u64().unwrap() > 1 << 20
    );

    document = bench.does("pause", &document);
    let frozen = bench.counts();
    document["snapshot"] = json!({"dir": first, "kind": "full"});
    document = bench.does("snapshot", &document);
    let raw = PathBuf::from(text(&document["snapshot"]["raw"]));
    assert_eq!(raw.metadata().unwrap().len(), MEMORY_MIB << 20);
    // What was written since the boot is all there is: a dump of every page is the same, byte for byte.
    document["snapshot"] = json!({"dir": bench.file("gen-all"), "kind": "full"});
    document = bench.does("snapshot", &document);
    let same = fs::read(&raw).unwrap() == fs::read(text(&document["snapshot"]["raw"])).unwrap();
    assert!(same, "the first full snapshot is not all of the memory");
    assert_eq!(bench.counts(), frozen, "nothing is counted while it is frozen");
    assert_eq!(bench.does("status", &document)["vm"]["state"], "paused");

    document = bench.does("resume", &document);
    let last = *frozen.last().unwrap();
    bench.count_past(last + 2);
    document = bench.does("pause", &document);
    document["snapshot"] = json!({"dir": second, "kind": "diff", "parent": bench.file("gen-all")});
    document = bench.does("snapshot", &document);
    let stored = |dir: &Path| dir.join("memfile.raw").metadata().unwrap().blocks() * 512;
    let (full, diff) = (stored(&first) >> 10, stored(&second) >> 10);
    eprintln!("of {MEMORY_MIB} MiB the first full snapshot stores {full} KiB, the diff {diff} KiB");
    assert!(full < MEMORY_MIB << 10, "the first full snapshot has holes");
    assert!(diff < full / 4, "the diff holds what changed, not all");
    let counted = bench.counts();
    assert_eq!(counted, (0..=*counted.last().unwrap()).collect::<Vec<_>>(), "nothing missed, nothing twice");
    bench.does("stop", &document);

    document["snapshot"] = json!({"dir": first, "raw": raw});
    let restored = bench.does("restore", &document);
    assert_eq!(restored["vm"]["state"], "paused");
    assert_ne!(restored["vm"]["pid"], document["vm"]["pid"]);
    assert_eq!(bench.counts(), [0; 0], "a log of its own, and no vCPU runs yet");
    bench.does("resume", &restored);
    bench.count_past(last + 3);
    let counts = bench.counts();
    // The line that was being written when it froze may be cut.
    assert!((last + 1..=last + 2).contains(&counts[0]), "it goes on after {last}, not at {counts:?}");
    assert!(counts.windows(2).all(|pair| pair[1] == pair[0] + 1), "{counts:?}");

    // The balloon takes memory from the guest, and gives it back.
    let actual = || bench.does("status", &restored)["vm"]["balloon"]["actual_mib"].as_u64();
    for mib in [16, 0] {
        let _ = bench.with("balloon", &[&format!("balloon.amount_mib:={mib}")], &restored).success();
        bench.until("balloon of that size", || actual() == Some(mib));
    }
}

fn privileged_a_dump_on_a_full_disk_is_exhausted_and_the_guest_goes_on(bench: &Bench) {
    use nix::mount::{MsFlags, mount, umount};
    let small = bench.file("small");
    fs::create_dir(&small).unwrap();
    mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=8m")).unwrap();
    let mut document = bench.boot("");
    bench.count_past(1);
    document = bench.does("pause", &document);
    document["snapshot"] = json!({"dir": small.join("gen-1"), "kind": "full"});
    let failed = bench.with("snapshot", &[], &document);
    let left = kernel::list(&small);
    umount(&small).unwrap();
    let reply = failed.status_is(6).reply();
    assert_eq!(reply["error"]["code"], "launch.no_space", "{reply}");
    assert_eq!(left, [""; 0]);
    let last = *bench.counts().last().unwrap();
    let _ = bench.with("resume", &["--undo"], &reply).success();
    bench.count_past(last + 1);
}

fn privileged_a_guest_that_reboots_ends_its_vmm_and_the_wait(bench: &Bench) {
    let booted = bench.boot("wrenn.reboot");
    let event = bench.does("wait", &booted);
    assert_eq!((&event["event"], &event["pid"]), (&json!("exited"), &booted["vm"]["pid"]));
    assert_eq!(bench.counts(), [0, 1, 2, 3, 4]);
    assert_eq!(bench.does("status", &booted)["vm"]["state"], "gone");
}

fn privileged_a_kernel_that_is_none_is_refused_in_the_vmms_words(bench: &Bench) {
    let request = json!({"id": "sb-1", "kernel": bench.file("disk"), "rootfs": bench.file("disk"),
                         "spec": {"vmm": bench.vmm.name()}});
    let reply = bench.with("boot", &[], &request).status_is(8).reply();
    assert_eq!(reply["error"]["code"], "launch.api");
    assert!(text(&reply["error"]["message"]).contains("ernel"), "{reply}");
}

fn privileged_a_torn_snapshot_is_refused_and_nothing_is_left(bench: &Bench) {
    let dir = bench.file("gen-1");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join(bench.vmm.state_file()), "no state at all").unwrap();
    fs::write(dir.join("memfile"), vec![0; 1 << 20]).unwrap();
    let request = json!({"id": "sb-1", "rootfs": bench.file("disk"), "snapshot": {"dir": dir}});
    let reply = bench.with("restore", &[], &request).status_is(8).reply();
    assert_eq!(reply["error"]["code"], "launch.api", "{reply}");
    assert!(!bench.roots.run().join("sb-1").exists());
}
