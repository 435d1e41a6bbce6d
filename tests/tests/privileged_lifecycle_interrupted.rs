//! A snapshot that is interrupted while it is being written leaves the earlier one usable, whichever program is killed. In
//! the lab: docs/lifecycle.md.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};

use wrenn_tests::dump::DumpWatch;
use wrenn_tests::host::TestHost;
use wrenn_tests::json;
use wrenn_tests::sandbox::{Counter, Sandbox};

wrenn_tests::on_every_vmm![
    privileged_a_dump_whose_vmm_is_killed_leaves_the_earlier_pause,
    privileged_a_dump_whose_asker_is_killed_leaves_the_guest_and_the_earlier_pause,
];
mod with_a_page_server {
    use super::*;
    wrenn_tests::on_every_vmm_like_firecracker![
        privileged_a_dump_whose_page_server_is_killed_leaves_the_earlier_pause
    ];
}

const MACHINE: [&str; 4] = ["--memory", "160", "--disk", "256"];
const MIB: u64 = 1 << 20;
/// What changes from one pause to the next: long enough in the writing to be interrupted.
const CHANGED: u64 = 28 * MIB;
/// How much of a dump may be written when it is interrupted: the file is just there, has begun, is nearly whole.
const POINTS: [u64; 3] = [0, MIB, CHANGED * 3 / 4];

fn privileged_a_dump_whose_vmm_is_killed_leaves_the_earlier_pause(host: &TestHost) {
    let sandbox = host.boot("torn-vmm", &MACHINE);
    let paused = Paused::new(host, &sandbox);
    for bytes in POINTS {
        paused.interrupt(bytes, |paused, _| paused.sandbox.end("vm"));
        paused.falls_back();
    }
}

fn privileged_a_dump_whose_page_server_is_killed_leaves_the_earlier_pause(host: &TestHost) {
    let sandbox = host.boot("torn-server", &MACHINE);
    let paused = Paused::new(host, &sandbox);
    for bytes in POINTS {
        paused.interrupt(bytes, |paused, _| paused.sandbox.end("uffd"));
        paused.falls_back();
    }
}

fn privileged_a_dump_whose_asker_is_killed_leaves_the_guest_and_the_earlier_pause(host: &TestHost) {
    let sandbox = host.boot("torn-asker", &MACHINE);
    let paused = Paused::new(host, &sandbox);
    for bytes in POINTS {
        // The supervisor, which does the work of wrenn-launch itself: the guest is given back as it was.
        let (sums, count) = paused.interrupt(bytes, |_, asker| asker.kill().expect("killed"));
        paused.gc("running");
        paused.counter.counts_on(count);
        assert_eq!(sums, paused.look(), "the guest goes on as it was");
        paused.sandbox.end("vm");
        paused.falls_back();
    }
    host.step("wrenn-launch itself, in a pipe");
    let document = paused.sandbox.document();
    let launch = |verb: &str| host.program("wrenn-launch").args([verb, "-"]);
    let mut frozen = launch("pause").stdin(document.to_string()).run().success().reply();
    let watch = DumpWatch::new(&paused.dir());
    frozen["snapshot"] = json!({"dir": paused.dir().join("gen-9999"), "kind": "full"});
    let request = host.roots().dir().join("request");
    std::fs::write(&request, frozen.to_string()).expect("a request");
    let mut asker = launch("snapshot");
    let asker =
        asker.command().stdin(std::fs::File::open(request).expect("the request")).stdout(Stdio::null());
    let mut asker = asker.spawn().expect("wrenn-launch");
    assert!(watch.written(MIB, || asker.try_wait().expect("its status").is_some()).is_some(), "interrupted");
    asker.kill().expect("killed");
    asker.wait().expect("its status");
    // The VMM goes on writing what nobody wants; its base is not known any more, so that no Diff can follow. (Or could at
    // all, of a VMM that has none.)
    let mut next = frozen.clone();
    next["snapshot"] =
        json!({"dir": paused.dir().join("gen-9998"), "kind": "diff", "parent": document["vm"]["base"]});
    let refused = launch("snapshot").stdin(next.to_string()).run();
    let (status, code) = if host.vmm.diffs() { (4, "launch.base") } else { (5, "launch.no_diffs") };
    let refused = refused.status_is(status).reply();
    assert_eq!(refused["error"]["code"], code, "{refused}");
    paused.sandbox.end("vm");
    paused.falls_back();
}

/// A sandbox that runs and has been paused before.
struct Paused<'a> {
    host: &'a TestHost,
    sandbox: &'a Sandbox<'a>,
    counter: Counter<'a>,
    /// Its checksums and its count at the pause.
    sums: String,
    count: u64,
}

impl<'a> Paused<'a> {
    fn new(host: &'a TestHost, sandbox: &'a Sandbox<'a>) -> Self {
        sandbox.mount_memory();
        sandbox.fill("/mem/a", (CHANGED / MIB) as u32);
        sandbox.fill("/random", 4);
        let counter = sandbox.start_counting();
        let mut paused = Self { host, sandbox, counter, sums: String::new(), count: 0 };
        (paused.sums, paused.count) = (paused.look(), paused.counter.now());
        sandbox.pause();
        sandbox.resume();
        paused
    }

    fn dir(&self) -> std::path::PathBuf {
        self.host.root().join("sandboxes").join(&self.sandbox.id)
    }

    fn look(&self) -> String {
        self.sandbox.sh("md5sum /mem/a; md5sum /mem/b 2>/dev/null || echo none
                         dd if=/random bs=1M iflag=direct status=none | md5sum")
    }

    /// Changes memory and disk, begins a pause, and does this to it once so much of the dump is written. Gives the
    /// checksums and the count before.
    fn interrupt(&self, bytes: u64, how: impl Fn(&Self, &mut Child)) -> (String, u64) {
        self.sandbox.sh(
            "cp /mem/a /mem/b; dd if=/dev/urandom of=/mem/b bs=64k seek=9 count=9 conv=notrunc status=none
                         dd if=/dev/urandom of=/random bs=64k seek=9 count=9 conv=notrunc,fsync status=none",
        );
        let (sums, count) = (self.look(), self.counter.now());
        assert_ne!(sums, self.sums);
        self.host.step(&format!("a dump is interrupted once {} KiB are written", bytes >> 10));
        let watch = DumpWatch::new(&self.dir());
        let mut asker = self.host.wrenn(["pause", &self.sandbox.id]);
        let asker = asker.command().stdin(Stdio::null()).stdout(Stdio::null());
        let mut asker = asker.spawn().expect("wrenn");
        let reached = watch.written(bytes, || asker.try_wait().expect("its status").is_some());
        assert!(reached.is_some(), "a pause was over before {bytes} bytes were written");
        how(self, &mut asker);
        let status = asker.wait().expect("its status");
        assert!(!status.success(), "a pause succeeded that was interrupted at {bytes} bytes");
        (sums, count)
    }

    /// `wrenn gc` finds the sandbox to be in this state, and afterwards there is no generation but the earlier one.
    fn gc(&self, state: &str) {
        self.host.wrenn(["gc"]).run().success();
        assert_eq!(self.sandbox.document()["state"], state);
        let names = wrenn_tests::kernel::list(self.dir()).into_iter();
        let generations: BTreeSet<_> = names.filter(|name| name.starts_with("gen-")).collect();
        assert_eq!(generations, BTreeSet::from(["gen-0001".to_owned()]));
    }

    /// The earlier pause is what there is, it is whole, and the sandbox comes back from it as it was.
    fn falls_back(&self) {
        self.gc("paused");
        assert_eq!(self.host.leftovers(), BTreeSet::new(), "a paused sandbox is only files");
        let dir = format!("dir={}", self.dir().join("gen-0001").display());
        self.host.program("wrenn-snap").args(["verify", &dir]).run().success();
        self.sandbox.resume();
        self.counter.counts_on(self.count);
        assert_eq!(self.look(), self.sums, "as it was at the earlier pause");
    }
}
