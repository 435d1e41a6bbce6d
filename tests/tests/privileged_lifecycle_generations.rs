//! Many pauses of one sandbox: memory that changes in each comes back exact from all of them. In the lab:
//! docs/lifecycle.md.

use wrenn_tests::host::TestHost;
use wrenn_tests::memory::{self, GuestMemory};
use wrenn_tests::sandbox::Sandbox;

// Cloud Hypervisor's long chain is a test of its own.
wrenn_tests::on_every_vmm_like_firecracker![privileged_many_generations_keep_every_checksum];
wrenn_tests::tests_on!(
    wrenn_vmm_2_vcpus,
    WrennVmm,
    2,
    TestHost,
    privileged_many_generations_keep_every_checksum
);

const MEMORY_MIB: usize = 128;

/// More than a chain of diffs grows to before it is merged. `WRENN_TEST_GENERATIONS` asks for another number.
const GENERATIONS: u32 = 12;

/// The oracle, which takes its time, looks at every so manieth.
const ORACLE: u32 = 6;

fn privileged_many_generations_keep_every_checksum(host: &TestHost) {
    let sandbox = host.boot("many", &["--memory", &MEMORY_MIB.to_string(), "--disk", "256"]);
    sandbox.sh("mkdir -p /mem; mount -t tmpfs -o size=60m none /mem
                dd if=/dev/urandom of=/mem/a bs=1M count=16 status=none
                dd if=/dev/urandom of=/random bs=1M count=4 conv=fsync status=none");
    let counter = sandbox.start_counting();
    let mut kinds = Vec::new();
    let asked = std::env::var("WRENN_TEST_GENERATIONS").ok();
    for generation in
        1..=asked.map_or(GENERATIONS, |text| text.parse().expect("WRENN_TEST_GENERATIONS: a number"))
    {
        let sums = sandbox.change(generation, 16);
        let count = counter.now();
        // The VM is frozen before the supervisor freezes it: what is read now is what it will dump.
        let frozen = (generation % ORACLE == 0).then(|| freeze(host, &sandbox));
        let paused = sandbox.pause();
        if let Some(guest) = frozen {
            unpacks_to(host, &paused["snapshot"]["dir"], &guest);
        }
        kinds.push(paused["snapshot"]["kind"].as_str().expect("a kind").to_owned());
        sandbox.resume();
        assert_eq!(sandbox.look(), sums, "generation {generation}");
        counter.counts_on(count);
        host.step(&format!("generation {generation}: exact"));
    }
    assert_eq!(
        kinds.iter().filter(|kind| *kind == "full").count(),
        1,
        "one full, the others diffs: {kinds:?}"
    );
}

/// Freezes the VM and reads its memory.
fn freeze(host: &TestHost, sandbox: &Sandbox) -> Vec<Vec<u8>> {
    let document = sandbox.document();
    let frozen =
        host.program("wrenn-launch").args(["pause", "-"]).stdin(document.to_string()).run().success();
    assert_eq!(frozen.reply()["vm"]["state"], "paused");
    GuestMemory::of(document["vm"]["pid"].as_i64().expect("vm.pid") as i32, MEMORY_MIB << 20).read()
}

/// Finds a pause to hold this memory.
fn unpacks_to(host: &TestHost, dir: &wrenn_tests::Value, memory: &[Vec<u8>]) {
    let (dir, raw) = (dir.as_str().expect("snapshot.dir"), host.root().join("unpacked"));
    let fields = [format!("dir={dir}"), format!("raw={}", raw.display())];
    host.program("wrenn-snap").args([&["unpack".to_owned()], &fields[..]].concat()).run().success();
    memory::find(dir, memory, &raw);
}
