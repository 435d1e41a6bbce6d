//! Snapshot templates: copies of one moment that live on apart. In the lab: docs/lifecycle.md.

use std::collections::BTreeSet;
use std::thread;

use wrenn_tests::Value;
use wrenn_tests::host::TestHost;
use wrenn_tests::sandbox::Sandbox;

wrenn_tests::on_every_vmm_and_2_vcpus![privileged_sandboxes_of_one_template_share_a_moment_and_nothing_else];

fn privileged_sandboxes_of_one_template_share_a_moment_and_nothing_else(host: &TestHost) {
    let source = host.boot("source", &["--memory", "192", "--disk", "512"]);
    source.mount_memory();
    let memory = source.fill("/mem/random", 16);
    let disk = source.fill("/random", 16);
    let counter = source.start_counting();
    let count = counter.now();

    host.step("snapshot a running sandbox, which goes on");
    let made = host.wrenn(["snapshot", "source", "team/warm"]).run().success().reply();
    assert!(
        made["template_bytes"].as_u64().is_some_and(|bytes| bytes > 32 << 20),
        "{}",
        made["template_bytes"]
    );
    counter.counts_on(count);
    source.sh("echo after >/after; echo after >/mem/after");

    host.step("three sandboxes from it at once");
    let ids = ["clone-a", "clone-b", "clone-c"];
    let clones: Vec<Sandbox> = thread::scope(|scope| {
        let launched = ids.map(|id| scope.spawn(move || host.create_from(id, "team/warm", &[])));
        launched.into_iter().map(|clone| clone.join().expect("launched")).collect()
    });
    let own = |path: [&str; 2]| {
        let of = |sandbox: &Sandbox| sandbox.document()[path[0]][path[1]].to_string();
        let all: BTreeSet<_> = clones.iter().chain([&source]).map(of).collect();
        assert_eq!(all.len(), 4, "each has its own {}.{}: {all:?}", path[0], path[1]);
    };
    for path in [["net", "host_ip"], ["net", "netns"], ["cow", "device"], ["cow", "file"], ["vm", "pid"]] {
        own(path);
    }
    if host.vmm.page_server() {
        own(["uffd", "socket"]);
    }
    for clone in &clones {
        assert_eq!(clone.sum("/mem/random"), memory, "{}: the memory of the moment", clone.id);
        assert_eq!(clone.sum_on_disk("/random"), disk, "{}: the disk of the moment", clone.id);
        counter.seen_in(clone).counts_on(count);
        assert_eq!(
            clone.sh("ls /after /mem/after 2>/dev/null | wc -l"),
            "0",
            "{}: what came later",
            clone.id
        );
        assert_eq!(clone.sh("hostname"), clone.id);
        clone.assert_clock();
    }

    host.step("each writes its own");
    for clone in &clones {
        clone.sh(&format!("echo {0} >/mem/own; echo {0} >/own; sync", clone.id));
    }
    for clone in &clones {
        assert_eq!(clone.sh("cat /mem/own /own"), format!("{0}\n{0}", clone.id));
    }
    let random: BTreeSet<_> =
        clones.iter().map(|clone| clone.sh("head -c 16 /dev/urandom | md5sum")).collect();
    assert_eq!(random.len(), 3, "no two draw the same random numbers");
    assert_eq!(source.sh("ls /mem/own /own 2>/dev/null | wc -l"), "0");

    host.step("a template of one of them");
    let count = counter.seen_in(&clones[1]).now();
    host.wrenn(["snapshot", "clone-b", "second"]).run().success();
    let grandchild = host.create_from("grandchild", "second", &[]);
    assert_eq!(grandchild.sh("cat /mem/own /own; hostname"), "clone-b\nclone-b\ngrandchild");
    assert_eq!(grandchild.sum("/mem/random"), memory);
    assert_eq!(grandchild.sum_on_disk("/random"), disk);
    counter.seen_in(&grandchild).counts_on(count);
    grandchild.pause();
    grandchild.resume();
    assert_eq!(grandchild.sum("/mem/random"), memory);

    host.step("a template's name is taken once, and fixes vcpus and memory");
    let count = counter.seen_in(&clones[2]).now();
    assert_eq!(host.wrenn(["snapshot", "clone-c", "team/warm"]).run().status, Some(4));
    counter.seen_in(&clones[2]).counts_on(count);
    let more = host.wrenn(["create", "--id", "more", "--template", "second", "--memory", "256"]).run();
    assert_eq!(more.status, Some(2), "{}", more.stderr);
    let listed = host.wrenn(["template", "ls"]).run().success().reply();
    let names: BTreeSet<_> =
        listed["templates"].as_array().into_iter().flatten().filter_map(|t| t["name"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["minimal", "second", "team/warm"]));
    host.wrenn(["rm", "grandchild"]).run().success();
    let meta = host.wrenn(["template", "get", "second"]).run().success().reply();
    assert_eq!(meta["template"]["meta"]["memory_mib"], Value::from(192), "{meta}");
}
