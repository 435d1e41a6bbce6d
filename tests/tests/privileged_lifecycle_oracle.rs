//! Memory is exact: at every pause, by the tools and their pipes alone, the paused guest's memory as its VMM's process
//! holds it is what `wrenn-snap unpack` gives. In the lab: docs/lifecycle.md.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wrenn_tests::host::TestHost;
use wrenn_tests::memory::{self, GuestMemory};
use wrenn_tests::{Value, json, kernel};

wrenn_tests::on_every_vmm_and_2_vcpus![privileged_every_page_of_every_generation_is_what_the_guest_had];

const MEMORY_MIB: usize = 160;

fn privileged_every_page_of_every_generation_is_what_the_guest_had(host: &TestHost) {
    let mut life = Life::boot(host, "oracle");
    life.sh("mkdir -p /mem; mount -t tmpfs -o size=60m none /mem
             dd if=/dev/urandom of=/mem/a bs=1M count=24 status=none");
    life.freeze("full");
    life.sleep();

    life.wake("all");
    life.change(2);
    life.freeze("diff");
    life.go_on();

    // The same VM goes on: its next Diff is relative to that one, and memory has been discarded since.
    life.change(3);
    life.balloon(24);
    life.freeze("diff");
    life.sleep();

    // Almost everything is still lazy when the next pause comes.
    life.wake("none");
    life.sh("dd if=/dev/urandom of=/mem/b bs=64k count=10 status=none");
    life.freeze("diff");
    life.go_on();

    life.balloon(0);
    life.sh("dd if=/dev/zero of=/mem/zeros bs=1M count=20 status=none; rm /mem/b");
    life.change(5);
    life.freeze("diff");
    life.sleep();

    life.wake("none");
    life.balloon(20);
    life.change(6);
    life.freeze("diff");
    life.go_on();

    life.balloon(10);
    life.sh("rm /mem/zeros; dd if=/dev/urandom of=/mem/c bs=1M count=8 status=none");
    life.freeze("full");
    life.go_on();

    for generation in 8..=9 {
        life.change(generation);
        life.freeze("diff");
        life.go_on();
    }
    life.balloon(0);
    life.change(10);
    let memory = [life.freeze("diff")];
    let sum = life.sleep_with_sum();

    host.step("the whole chain merged is the same memory");
    let merged = host.root().join("merged");
    let dir = life.document["snapshot"]["dir"].as_str().expect("dir").to_owned();
    let fields = [format!("dir={dir}"), format!("out={}", merged.display())];
    host.program("wrenn-snap").args([&["merge".to_owned()], &fields[..]].concat()).run().success();
    life.assert_unpacks("merged", &memory, &merged);

    host.step("and so is a template, and what is launched from it");
    let template = life.template("moment");
    life.assert_unpacks("template", &memory, &template);
    let mut clone = Life::launch(host, "clone", &template);
    assert_eq!(clone.sh("cat /mem/a | md5sum"), sum);
    clone.change(11);
    clone.freeze("diff");
    clone.destroy();
    life.destroy();
    host.assert_clean();
}

/// A sandbox without the supervisor: its document, and the pipes of the README, one program after the other.
struct Life<'a> {
    host: &'a TestHost,
    document: Value,
    dir: PathBuf,
    generation: u32,
}

type Step = (&'static str, &'static str, &'static [&'static str]);

const FREEZE: [Step; 4] = [
    ("wrenn-launch", "pause", &[]),
    ("wrenn-launch", "snapshot", &[]),
    ("wrenn-uffd", "stats", &[]),
    ("wrenn-snap", "pack", &[]),
];
const SLEEP: [Step; 4] = [
    ("wrenn-launch", "stop", &[]),
    ("wrenn-uffd", "stop", &[]),
    ("wrenn-net", "remove", &[]),
    ("wrenn-cow", "remove", &[]),
];

impl<'a> Life<'a> {
    fn boot(host: &'a TestHost, id: &str) -> Self {
        let root = host.root();
        let mut life = Self::new(host, id, &root.join("images/minimal/rootfs.ext4"));
        life.document["kernel"] = json!(root.join("kernels/vmlinux"));
        life.document["initrd"] = json!(root.join("kernels/initrd"));
        life.pipe(&[
            ("wrenn-cow", "create", &[]),
            ("wrenn-net", "create", &[]),
            ("wrenn-launch", "boot", &[]),
            ("wrenn-guest", "ready", &[]),
            ("wrenn-guest", "init", &[]),
        ]);
        life
    }

    fn launch(host: &'a TestHost, id: &str, template: &Path) -> Self {
        let mut life = Self::new(host, id, &template.join("rootfs.ext4"));
        life.document["snapshot"] = json!({"dir": template});
        life.pipe(&[("wrenn-cow", "create", &[])]);
        life.thaw("all");
        life
    }

    fn new(host: &'a TestHost, id: &str, rootfs: &Path) -> Self {
        let dir = host.root().join("sandboxes").join(id);
        std::fs::create_dir_all(&dir).expect("the sandbox's directory");
        let spec =
            json!({"vcpus": host.vcpus, "memory_mib": MEMORY_MIB, "disk_mib": 256, "vmm": host.vmm.name()});
        Self { host, document: json!({"id": id, "spec": spec, "rootfs": rootfs}), dir, generation: 0 }
    }

    fn pipe(&mut self, steps: &[Step]) {
        let page_server = self.host.vmm.page_server();
        for (program, verb, arguments) in steps.iter().filter(|step| page_server || step.0 != "wrenn-uffd") {
            let text = self.document.to_string();
            let run = self.host.program(program).args([verb, "-"]).args(*arguments).stdin(text).run();
            self.document = run.success().reply();
            self.host.note(&self.document);
        }
    }

    fn sh(&self, script: &str) -> String {
        let run = self.host.program("wrenn-guest").args(["exec", "-", &format!("cmd=set -e; {script}")]);
        let exec = run.stdin(self.document.to_string()).run().success().reply()["exec"].take();
        assert_eq!(exec["exit_code"], 0, "{script}: {exec}");
        exec["stdout"].as_str().expect("stdout").trim_end().to_owned()
    }

    /// Overwrites and zeroes memory in places that are others in every generation.
    fn change(&self, generation: u32) {
        self.sh(&format!(
            "dd if=/dev/urandom of=/mem/a bs=100k seek={} count=9 conv=notrunc status=none
             dd if=/dev/zero of=/mem/a bs=100k seek={} count=7 conv=notrunc status=none
             dd if=/dev/urandom of=/mem/{generation} bs=1k count=50 status=none",
            generation * 17,
            generation * 11 + 60
        ));
    }

    /// Sets the balloon, and waits until the guest has given or taken.
    fn balloon(&mut self, mib: i64) {
        let free =
            |life: &Self| life.sh("grep MemFree /proc/meminfo | tr -dc 0-9").parse::<i64>().expect("KiB");
        self.await_memory();
        let before = free(self);
        let was = self.document["balloon"]["amount_mib"].as_i64().unwrap_or(0);
        self.document["balloon"] = json!({"amount_mib": mib});
        self.pipe(&[("wrenn-launch", "balloon", &[])]);
        let wanted = (mib - was) * 1024 * 3 / 4;
        let deadline = Instant::now() + Duration::from_secs(60);
        while (before - free(self) - wanted) * wanted.signum() < 0 {
            assert!(
                Instant::now() < deadline,
                "balloon {was} to {mib} MiB: {} of {before} KiB free",
                free(self)
            );
        }
    }

    /// Where the VMM reads its memory by itself, a balloon that takes pages which are still missing would be undone.
    fn await_memory(&self) {
        let pid = self.document["vm"]["pid"].as_i64().expect("vm.pid") as i32;
        let deadline = Instant::now() + Duration::from_secs(120);
        let missing = || kernel::descriptors(pid).iter().any(|file| file.contains("userfaultfd"));
        while !self.host.vmm.page_server() && missing() {
            assert!(Instant::now() < deadline, "memory is still missing");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The first half of a pause, and the oracle. Gives the memory. Afterwards the VM is paused.
    fn freeze(&mut self, kind: &str) -> Vec<u8> {
        let kind = if kind == "diff" { self.host.vmm.later_kind() } else { kind };
        self.generation += 1;
        let next = self.dir.join(format!("gen-{:04}", self.generation));
        let before = self.document["vm"]["base"].as_str().map(PathBuf::from);
        self.document["snapshot"] = json!({"dir": next, "kind": kind});
        if let Some(parent) = &before {
            self.document["snapshot"]["parent"] = json!(parent);
        }
        self.pipe(&FREEZE[..1]);
        let pid = self.document["vm"]["pid"].as_i64().expect("vm.pid") as i32;
        let guest = GuestMemory::of(pid, MEMORY_MIB << 20);
        // In every other generation the VMM dumps pages that nobody has asked for yet.
        let seen_before = (self.generation % 2 == 1).then(|| guest.read());
        self.pipe(&FREEZE[1..]);
        let mut seen = guest.read();
        // The snapshot is complete in itself: the one before it is not needed.
        if let Some(parent) = before.filter(|parent| parent.starts_with(&self.dir)) {
            std::fs::remove_dir_all(parent).expect("the generation before");
        }
        let what =
            format!("generation {} ({kind}), {}", self.generation, self.document["snapshot"]["blocks"]);
        let memory = seen.swap_remove(self.assert_unpacks(&what, &seen, &next));
        if let Some(before) = seen_before {
            assert!(
                before.contains(&memory),
                "generation {}: a paused guest's memory stands still",
                self.generation
            );
        }
        self.host.step(&format!("{what}: exact"));
        memory
    }

    /// Finds one of these memories to be what the snapshot holds. Gives which.
    fn assert_unpacks(&self, what: &str, memory: &[Vec<u8>], dir: &Path) -> usize {
        let plain = dir.join("memory-ranges");
        if plain.is_file() {
            return memory::find(what, memory, &plain);
        }
        let raw = self.host.root().join("unpacked");
        let fields = [format!("dir={}", dir.display()), format!("raw={}", raw.display())];
        self.host.program("wrenn-snap").args([&["unpack".to_owned()], &fields[..]].concat()).run().success();
        memory::find(what, memory, &raw)
    }

    /// Lets the paused VM go on.
    fn go_on(&mut self) {
        self.pipe(&[("wrenn-launch", "resume", &[])]);
    }

    /// The second half of a pause.
    fn sleep(&mut self) {
        self.pipe(&SLEEP);
    }

    /// The same, after a look into the guest that leaves its memory as it was frozen: the look is at a copy.
    fn sleep_with_sum(&mut self) -> String {
        self.sleep();
        self.wake("all");
        let sum = self.sh("cat /mem/a | md5sum");
        // That life is thrown away: the pause it came from is still whole.
        let frozen = self.document["cow"]["frozen"].clone();
        self.pipe(&[
            ("wrenn-launch", "stop", &[]),
            ("wrenn-uffd", "stop", &[]),
            ("wrenn-net", "remove", &[]),
        ]);
        let snapshot =
            self.document.as_object_mut().and_then(|map| map.remove("snapshot")).expect("snapshot");
        self.pipe(&[("wrenn-cow", "remove", &[])]);
        self.document["snapshot"] = snapshot;
        self.document["cow"]["file"] = frozen;
        sum
    }

    fn wake(&mut self, prefetch: &'static str) {
        self.pipe(&[("wrenn-cow", "restore", &[])]);
        self.thaw(prefetch);
    }

    fn thaw(&mut self, prefetch: &'static str) {
        self.pipe(&[("wrenn-net", "create", &[])]);
        if self.host.vmm.page_server() {
            self.document["uffd"] = json!({"detach": true, "prefetch": prefetch});
            self.pipe(&[("wrenn-uffd", "serve", &[]), ("wrenn-launch", "restore", &[])]);
        } else {
            self.restore_from_file();
        }
        self.pipe(&[
            ("wrenn-launch", "resume", &[]),
            ("wrenn-guest", "ready", &[]),
            ("wrenn-guest", "init", &[]),
        ]);
    }

    /// The VMM opens all of the memory as one file, which nobody needs any more then.
    fn restore_from_file(&mut self) {
        let dir = Path::new(self.document["snapshot"]["dir"].as_str().expect("snapshot.dir")).to_owned();
        if !dir.join("memfile.header").is_file() {
            return self.pipe(&[("wrenn-launch", "restore", &[])]);
        }
        let raw = self.dir.join("memory");
        self.document["snapshot"]["raw"] = json!(raw);
        self.pipe(&[("wrenn-snap", "unpack", &[]), ("wrenn-launch", "restore", &[])]);
        std::fs::remove_file(raw).expect("the memory's file");
        self.document["snapshot"].as_object_mut().expect("snapshot").remove("raw");
    }

    fn template(&mut self, name: &str) -> PathBuf {
        let out = self.host.root().join("images").join(name);
        let rootfs = self.host.root().join("flat");
        self.document["cow"]["out"] = json!(rootfs);
        self.document["snapshot"]["rootfs"] = json!(rootfs);
        self.document["snapshot"]["out"] = json!(out);
        self.pipe(&[("wrenn-cow", "flatten", &[]), ("wrenn-snap", "template", &[])]);
        out
    }

    fn destroy(mut self) {
        self.pipe(&[
            ("wrenn-launch", "stop", &[]),
            ("wrenn-uffd", "stop", &[]),
            ("wrenn-net", "remove", &[]),
            ("wrenn-cow", "delete", &[]),
            ("wrenn-snap", "delete", &[]),
        ]);
        std::fs::remove_dir_all(&self.dir).expect("the sandbox's directory");
    }
}
