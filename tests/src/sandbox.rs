//! One sandbox, as the supervisor's user sees it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sys::process::Process;

use crate::host::TestHost;
use crate::program::LIMIT;
use crate::{Value, kernel};

/// A sandbox of a test's host.
#[derive(Debug)]
pub struct Sandbox<'a> {
    host: &'a TestHost,
    /// Its id.
    pub id: String,
}

impl<'a> Sandbox<'a> {
    /// The sandbox of that id on this host, whether or not it is there yet.
    pub fn new(host: &'a TestHost, id: &str) -> Self {
        Self { host, id: id.to_owned() }
    }

    /// Its document.
    ///
    /// # Panics
    /// When there is none.
    pub fn document(&self) -> Value {
        self.verb("get")
    }

    /// Runs a shell script in the guest, which must succeed. Gives what it printed, without the end of its last line.
    ///
    /// # Panics
    /// When it fails.
    pub fn sh(&self, script: &str) -> String {
        let output = self.host.wrenn(["exec", &self.id, "--", "/bin/sh", "-ec", script]).run().success();
        output.text().trim_end().to_owned()
    }

    /// A verb of the supervisor's on it, which must succeed. Gives the document.
    ///
    /// # Panics
    /// When it fails.
    pub fn verb(&self, verb: &str) -> Value {
        self.host.wrenn([verb, &self.id]).run().success().reply()
    }

    /// Pauses it. Gives the document.
    ///
    /// # Panics
    /// When that fails.
    pub fn pause(&self) -> Value {
        let document = self.verb("pause");
        assert_eq!(document["state"], "paused", "{document}");
        document
    }

    /// Resumes it. Gives the document.
    ///
    /// # Panics
    /// When that fails.
    pub fn resume(&self) -> Value {
        let document = self.verb("resume");
        assert_eq!(document["state"], "running", "{document}");
        self.host.note(&document);
        document
    }

    /// Ends the process of this section of its document (`vm`, `uffd`) with SIGKILL, and waits until it is gone. A page server
    /// goes with its guardian.
    ///
    /// # Panics
    /// When there is none.
    pub fn end(&self, section: &str) {
        let pid = self.document()[section]["pid"].as_i64().expect("a pid");
        let process = Process::of_pid(pid as i32).expect("a process");
        let servers = if section == "uffd" { kernel::children(process.pid) } else { Vec::new() };
        std::iter::once(process)
            .chain(servers)
            .for_each(|process| process.end(Duration::ZERO).expect("ended"));
    }

    /// Waits until the VMM has all of the guest's memory, where it reads that by itself: until its userfaultfd is gone.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn await_memory(&self) {
        if self.host.vmm.page_server() {
            return;
        }
        let pid = self.document()["vm"]["pid"].as_i64().expect("a pid") as i32;
        let deadline = Instant::now() + LIMIT;
        // No other process is told when a descriptor is closed.
        while kernel::descriptors(pid).iter().any(|file| file.contains("userfaultfd")) {
            assert!(Instant::now() < deadline, "{}: memory is still missing", self.id);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Makes a directory in the guest's memory.
    pub fn mount_memory(&self) {
        self.sh("mkdir -p /mem; mount -t tmpfs -o size=120m none /mem");
    }

    /// Fills a file of the guest's with this many MiB of random bytes. Gives its checksum.
    pub fn fill(&self, path: &str, mib: u32) -> String {
        self.sh(&format!("dd if=/dev/urandom of={path} bs=1M count={mib} status=none; sync"));
        self.sum(path)
    }

    /// Overwrites and zeroes parts of /mem/a, which has this many MiB, and of /random on the disk, which has at least four, in
    /// places that are others for each number; a file of its own in /mem, too. Gives what [`look`](Self::look) does.
    pub fn change(&self, number: u32, mib: u32) -> String {
        let at = |step: u32, places: u32| number * step % places;
        let places = mib * 10 - 10;
        self.sh(&format!(
            "dd if=/dev/urandom of=/mem/a bs=100k seek={} count=9 conv=notrunc status=none
             dd if=/dev/zero of=/mem/a bs=100k seek={} count=7 conv=notrunc status=none
             dd if=/dev/urandom of=/mem/{} bs=1k count=90 status=none
             dd if=/dev/urandom of=/random bs=64k seek={} count=3 conv=notrunc,fsync status=none",
            at(17, places),
            at(11, places),
            at(1, 4),
            at(5, 60),
        ));
        self.look()
    }

    /// Checksums of all that [`change`](Self::change) changes, the disk's past the guest's memory.
    pub fn look(&self) -> String {
        self.sh("cd /mem; for file in a [0-9]; do [ ! -f $file ] || md5sum $file; done
                 dd if=/random bs=1M iflag=direct status=none | md5sum")
    }

    /// The checksum of a file of the guest's. (Against corruption, not against anybody: the quickest there is.)
    pub fn sum(&self, path: &str) -> String {
        self.sh(&format!("md5sum <{path}"))
    }

    /// The checksum of a file on the disk itself, past the guest's memory.
    pub fn sum_on_disk(&self, path: &str) -> String {
        self.sh(&format!("dd if={path} bs=1M iflag=direct status=none | md5sum"))
    }

    /// Finds the guest's clock near this host's.
    ///
    /// # Panics
    /// When it is not.
    pub fn assert_clock(&self) {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
        let before = now();
        let guest: u64 = self.sh("date +%s").parse().expect("seconds");
        let near = before.saturating_sub(2)..=now() + 2;
        assert!(near.contains(&guest), "{}: {guest} in the guest, {before} here", self.id);
    }

    /// The counter of this pid, left in the sandbox that this one comes from.
    pub fn counter(&'a self, pid: &str) -> Counter<'a> {
        Counter { sandbox: self, pid: pid.to_owned() }
    }

    /// Leaves a process counting in the guest: in its own memory, and telling in a file where it is.
    pub fn start_counting(&'a self) -> Counter<'a> {
        let script = "mkdir -p /mem/count; cat >/mem/count/run <<'EOF'
n=0
while :; do n=$((n + 1)); echo $n >/mem/count/new; mv /mem/count/new /mem/count/now; usleep 100000; done
EOF
        setsid sh /mem/count/run >/dev/null 2>&1 </dev/null & echo $!";
        let counter = Counter { sandbox: self, pid: self.sh(script) };
        counter.counts_on(0);
        counter
    }
}

/// A process in the guest that counts.
#[derive(Debug)]
pub struct Counter<'a> {
    sandbox: &'a Sandbox<'a>,
    /// Its pid in the guest.
    pub pid: String,
}

impl<'a> Counter<'a> {
    /// The same process in a clone of the sandbox.
    pub fn seen_in(&self, clone: &'a Sandbox<'a>) -> Counter<'a> {
        Counter { sandbox: clone, pid: self.pid.clone() }
    }

    /// Where it is.
    ///
    /// # Panics
    /// When it is gone.
    pub fn now(&self) -> u64 {
        let script = format!("grep -q /mem/count/run /proc/{}/cmdline && cat /mem/count/now", self.pid);
        self.sandbox.sh(&script).parse().expect("a number")
    }

    /// Finds the same process counting on from there: never behind it, and getting ahead of it. Gives where it is.
    ///
    /// # Panics
    /// When it is not.
    pub fn counts_on(&self, from: u64) -> u64 {
        let wait = format!(
            "n=0; for try in $(seq 600); do
                 read n </mem/count/now || n=0
                 [ ${{first:=$n}} -ge {from} ] || break
                 [ $n -le {from} ] || break
                 usleep 50000
             done 2>/dev/null; echo $n"
        );
        let reached: u64 = self.sandbox.sh(&wait).parse().expect("a number");
        assert!(reached > from, "the count stands at {reached}, after {from}");
        let now = self.now();
        assert!(now >= reached, "the count went back from {reached} to {now}");
        now
    }
}
