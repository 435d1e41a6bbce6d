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
    // The first thing that any of them does.
    let seen = clones.iter().map(Seen::of).collect();
    Seen::assert_own(&clones, seen);
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
    }

    host.step("each writes its own");
    for clone in &clones {
        clone.sh(&format!("echo {0} >/mem/own; echo {0} >/own; sync", clone.id));
    }
    for clone in &clones {
        assert_eq!(clone.sh("cat /mem/own /own"), format!("{0}\n{0}", clone.id));
    }
    assert_eq!(source.sh("ls /mem/own /own 2>/dev/null | wc -l"), "0");

    host.step("a template of one of them");
    let count = counter.seen_in(&clones[1]).now();
    host.wrenn(["snapshot", "clone-b", "second"]).run().success();
    let grandchild = host.create_from("grandchild", "second", &[]);
    assert_eq!(grandchild.sh("cat /mem/own /own; hostname"), "clone-b\nclone-b\ngrandchild");
    assert_eq!(grandchild.sum("/mem/random"), memory);
    assert_eq!(grandchild.sum_on_disk("/random"), disk);
    counter.seen_in(&grandchild).counts_on(count);
    let (machine_id, first) = (grandchild.sh("cat /etc/machine-id"), Seen::of(&grandchild));
    assert!(clones.iter().all(|clone| clone.sh("cat /etc/machine-id") != machine_id), "{machine_id}");
    grandchild.pause();
    grandchild.resume();
    let again = Seen::of(&grandchild);
    assert_ne!(first.random, again.random);
    assert_eq!(
        (again.machine_id, again.hostname),
        (machine_id, grandchild.id.clone()),
        "who sleeps stays who he is"
    );
    grandchild.assert_clock();
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

    host.step("a copy that cannot become itself does not run");
    clones[2].sh("rm /etc/machine-id; mkdir /etc/machine-id");
    host.wrenn(["snapshot", "clone-c", "third"]).run().success();
    let before = host.traces();
    let refused = host.wrenn(["create", "--id", "double", "--template", "third"]).run().status_is(8).reply();
    assert_eq!(refused["error"]["code"], "guest.identity", "{refused}");
    assert!(refused["error"]["message"].as_str().is_some_and(|text| text.contains("machineId")), "{refused}");
    assert_eq!(host.traces(), before, "nothing of it is left");
    assert!(!host.ids().contains(&"double".to_owned()));
    assert_eq!(clones[2].sh("hostname"), "clone-c", "and who it was to be a copy of runs");
}

/// Who a guest is, as seen inside.
struct Seen {
    random: String,
    machine_id: String,
    hostname: String,
}

impl Seen {
    fn of(sandbox: &Sandbox) -> Self {
        let seen = sandbox.sh("head -c 16 /dev/urandom | md5sum; cat /etc/machine-id; hostname");
        let mut lines = seen.lines().map(str::to_owned);
        let mut next = || lines.next().expect("a line");
        Self { random: next(), machine_id: next(), hostname: next() }
    }

    /// Each of these is itself, and the documents say so.
    fn assert_own(sandboxes: &[Sandbox], seen: Vec<Self>) {
        for (sandbox, seen) in sandboxes.iter().zip(&seen) {
            assert_eq!(seen.hostname, sandbox.id);
            assert_eq!(sandbox.document()["guest"]["machine_id"], seen.machine_id, "{}", sandbox.id);
            sandbox.assert_clock();
        }
        for what in [|seen: &Self| seen.random.clone(), |seen: &Self| seen.machine_id.clone()] {
            let all: BTreeSet<_> = seen.iter().map(what).collect();
            assert_eq!(all.len(), seen.len(), "no two have the same: {all:?}");
        }
    }
}
