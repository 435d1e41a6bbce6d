//! SIGKILL to whoever is at work on real sandboxes, at the steps of every operation: after `wrenn gc` what always holds
//! (docs/wrenn.md) holds as `scripts/check-host` sees it, and guest and disk have what they had. In the lab: docs/lifecycle.md.
//!
//! One sandbox lives through it all. The usual run takes the most telling steps; `WRENN_TEST_KILLS=all` takes every one.

use std::process::Stdio;
use std::time::{Duration, Instant};

use wrenn_tests::host::TestHost;
use wrenn_tests::killing::Operation::{
    Create, Expire, Launch, Pause, Remove, Resume, Snapshot, SnapshotPaused,
};
use wrenn_tests::killing::Victim::{PageServer, Supervisor, Vmm};
use wrenn_tests::killing::{Operation, Victim, kill_at, kill_at_every_step};
use wrenn_tests::{Program, Value, json};

wrenn_tests::tests_on!(
    wrenn_vmm,
    WrennVmm,
    1,
    TestHost,
    privileged_whoever_is_killed_nothing_is_lost_and_nothing_leaks,
    privileged_whoever_is_killed_between_being_and_not_being_nothing_leaks,
    privileged_a_tool_in_a_pipe_that_is_killed_leaves_what_gc_removes
);
wrenn_tests::tests_on!(
    firecracker,
    Firecracker,
    1,
    TestHost,
    privileged_whoever_is_killed_nothing_is_lost_and_nothing_leaks
);
wrenn_tests::tests_on!(
    cloud_hypervisor,
    CloudHypervisor,
    1,
    TestHost,
    privileged_whoever_is_killed_nothing_is_lost_and_nothing_leaks
);

type Case = (Operation, Victim, &'static str);

/// Of a sandbox that is there, in the order that takes the fewest pauses and resumes from one to the next.
const LIFE: [Case; 12] = [
    (Pause, Supervisor, "launch.snapshot"),
    (Pause, Supervisor, "snap.pack"),
    (Pause, Supervisor, "cow.remove"),
    // A VM that was woken has a page server.
    (Pause, PageServer, "launch.snapshot"),
    (Resume, Supervisor, "launch.restore"),
    (Resume, Supervisor, "guest.init"),
    (Resume, PageServer, "guest.ready"),
    (Resume, Vmm, "guest.ready"),
    (Pause, Vmm, "snap.pack"),
    (Snapshot, Supervisor, "cow.flatten"),
    (Snapshot, Supervisor, "snap.template"),
    (Expire, Supervisor, "launch.snapshot"),
];

/// What the other VMMs do otherwise.
const OTHERS: [Case; 5] = [
    (Pause, Supervisor, "launch.snapshot"),
    (Pause, Supervisor, "cow.remove"),
    (Resume, Supervisor, "launch.restore"),
    (Resume, Vmm, "guest.ready"),
    (Snapshot, Supervisor, "snap.template"),
];

/// Of one that comes to be or goes.
const ENDS: [Case; 5] = [
    (Launch, Supervisor, "guest.ready"),
    (Launch, Vmm, "guest.init"),
    (Launch, PageServer, "launch.resume"),
    (Remove, Supervisor, "net.remove"),
    (Create, Supervisor, "launch.boot"),
];

fn every_kill() -> bool {
    std::env::var("WRENN_TEST_KILLS").is_ok_and(|kills| kills == "all")
}

fn every_step(host: &TestHost, operations: &[Operation]) {
    for &operation in operations {
        kill_at_every_step(host, operation, Supervisor, &[]);
        if !matches!(operation, Remove | SnapshotPaused) {
            kill_at_every_step(host, operation, Vmm, &[]);
        }
        if host.vmm.page_server() && matches!(operation, Pause | Resume | Snapshot | Launch) {
            kill_at_every_step(host, operation, PageServer, &[]);
        }
    }
}

fn privileged_whoever_is_killed_nothing_is_lost_and_nothing_leaks(host: &TestHost) {
    if every_kill() {
        every_step(host, &[Pause, Resume, Snapshot, SnapshotPaused]);
        // Whose victims are the pause's own but for the one who does it.
        kill_at_every_step(host, Expire, Supervisor, &[]);
        return;
    }
    let cases: &[Case] = if host.vmm == wrenn_tests::vmm::Vmm::WrennVmm { &LIFE } else { &OTHERS };
    kill_at(host, cases);
}

fn privileged_whoever_is_killed_between_being_and_not_being_nothing_leaks(host: &TestHost) {
    if every_kill() {
        every_step(host, &[Launch, Create, Remove]);
        return;
    }
    kill_at(host, &ENDS);
}

/// Pipes without the supervisor: their last program is killed as soon as anything of what it does is seen in the kernel, and
/// nobody comes back for what all of them have made.
fn privileged_a_tool_in_a_pipe_that_is_killed_leaves_what_gc_removes(host: &TestHost) {
    let pipes: [&[&str]; 8] = [
        &["wrenn-cow create"],
        &["wrenn-cow create", "wrenn-cow delete"],
        &["wrenn-net create"],
        &["wrenn-net create", "wrenn-net remove"],
        &["wrenn-uffd serve detach:=true"],
        &["wrenn-cow create", "wrenn-net create", "wrenn-launch boot"],
        &["wrenn-cow create", "wrenn-net create", "wrenn-launch boot", "wrenn-launch stop"],
        &["wrenn-cow create", "wrenn-launch boot", "wrenn-launch pause", "wrenn-launch snapshot"],
    ];
    for pipe in pipes {
        host.step(&format!("killed at the end of {}", pipe.join(" | ")));
        let root = host.root();
        let dir = root.join("sandboxes/piped");
        std::fs::create_dir_all(&dir).expect("its directory");
        let mut document = json!({
            "id": "piped", "rootfs": root.join("images/minimal/rootfs.ext4"),
            "spec": {"vmm": host.vmm.name(), "memory_mib": 128, "disk_mib": 128},
            "kernel": root.join("kernels/vmlinux"), "initrd": root.join("kernels/initrd"),
            "source": {"raw": root.join("kernels/vmlinux")},
            "snapshot": {"dir": dir.join("gen-0001"), "kind": "full"},
        });
        let (last, before) = pipe.split_last().expect("a program");
        for program in before {
            document = piped(host, program, &document).run().success().reply();
            host.note(&document);
        }
        cut_short(host, last, &document);
        host.wrenn(["gc"]).run().success();
        // These two give a pipe a minute, as it holds no lock between its programs.
        for tool in ["wrenn-net", "wrenn-cow"] {
            host.program(tool).args(["gc", "min_age_s:=0"]).run().success();
        }
        assert_eq!(host.faults(), [""; 0], "after {}", pipe.join(" | "));
    }
}

/// One program of a pipe: its name, its verb, and fields.
fn piped(host: &TestHost, program: &str, document: &Value) -> Program {
    let mut words = program.split(' ');
    let program = host.program(words.next().expect("a name"));
    program.args(words).args(["-"]).stdin(document.to_string())
}

/// Starts a program on this document and kills it once the kernel holds more or less of it than before, or it has ended.
fn cut_short(host: &TestHost, program: &str, document: &Value) {
    let request = host.roots().dir().join("request");
    std::fs::write(&request, document.to_string()).expect("a request");
    let before = host.traces();
    let mut piped = piped(host, program, document);
    let command = piped.command().stdin(std::fs::File::open(&request).expect("the request"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a program");
    let own = format!("process {} ", child.id());
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().expect("its status").is_none() {
        let mut now = host.traces();
        now.retain(|trace| !trace.starts_with(&own));
        if now != before {
            break;
        }
        assert!(Instant::now() < deadline, "{program} does nothing");
    }
    let _ = child.kill();
    child.wait().expect("its end");
}
