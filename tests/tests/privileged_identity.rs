//! That a copy's random numbers are reseeded as it is told who it is, seen in its kernel. In the lab: docs/lifecycle.md.
//!
//! The kernel has no file that tells when it last took a new key, and numbers that differ between copies prove nothing: they
//! would differ by what little happens before they are drawn. So its own function is watched, by a kprobe.

use wrenn_tests::host::TestHost;

wrenn_tests::tests_on!(
    wrenn_vmm,
    WrennVmm,
    1,
    TestHost,
    privileged_a_copy_that_is_told_who_it_is_takes_a_new_key_for_its_random_numbers
);

/// Calls of /dev/urandom's ioctl with what is asked and what comes of it (linux/random.h), and the taking of a new key.
const WATCH: &str = "mkdir -p /trace; mount -t tracefs none /trace; cd /trace
    echo 'p:asked random_ioctl request=%si:x32' >kprobe_events
    echo 'r:answered random_ioctl status=$retval:s32' >>kprobe_events
    echo 'p:reseeded crng_reseed' >>kprobe_events
    echo 1 >events/kprobes/enable";

const ADD_ENTROPY: &str = "request=0x40085203";
const RESEED: &str = "request=0x5207";

fn privileged_a_copy_that_is_told_who_it_is_takes_a_new_key_for_its_random_numbers(host: &TestHost) {
    let source = host.boot("source", &["--memory", "128", "--disk", "128"]);
    source.sh(WATCH);
    assert!(!source.sh("cat /trace/trace").contains("asked:"), "nobody has asked since");
    host.wrenn(["snapshot", "source", "seed"]).run().success();
    let copy = host.create_from("copy", "seed", &[]);
    let trace = copy.sh("cat /trace/trace");
    // `   init-1       [000] .....    12.345678: asked: (random_ioctl+0x0/0x2a0) request=0x5207`
    let lines = || trace.lines().filter(|line| !line.starts_with('#'));
    let task = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    let agent = lines().find(|line| line.contains(RESEED)).map(task);
    let agent = agent.unwrap_or_else(|| panic!("nobody asks for new random numbers: {trace}"));
    let events: Vec<_> = lines()
        .filter(|line| task(line) == agent)
        .skip_while(|line| !line.contains(ADD_ENTROPY))
        .filter_map(|line| {
            let words = ["asked:", "reseeded:", "answered:"];
            let event = words.into_iter().find(|word| line.contains(word))?;
            let more = [ADD_ENTROPY, RESEED, "status=0"].into_iter().find(|word| line.ends_with(word));
            Some((event, more.unwrap_or_default()))
        })
        .take(5)
        .collect();
    let expected = [
        ("asked:", ADD_ENTROPY),
        ("answered:", "status=0"),
        ("asked:", RESEED),
        ("reseeded:", ""),
        ("answered:", "status=0"),
    ];
    assert_eq!(events, expected, "{trace}");
}
