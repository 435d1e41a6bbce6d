//! A pause can be called back until its generation is published: by `resume`, by a signal. On a machine in small.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use wrenn_tests::follow::Followed;
use wrenn_tests::host::TestHost;
use wrenn_tests::program::LIMIT;
use wrenn_tests::sandbox::Sandbox;
use wrenn_tests::{Value, kernel};

wrenn_tests::on_a_toy![
    resume_calls_a_pause_back_at_every_step_until_it_is_published,
    a_pause_that_is_published_is_finished_and_woken,
    a_signal_calls_a_pause_back_and_a_snapshot_too,
    who_gives_up_calling_a_pause_back_has_asked_for_nothing,
];

/// The steps of the first half, and the kind of the next pause when this one was called back there. Once memory may have
/// been dumped the VMM may have forgotten what had changed.
const FIRST_HALF: [(&str, &str); 4] =
    [("launch.pause", "diff"), ("launch.snapshot", "full"), ("uffd.stats", "full"), ("snap.pack", "full")];

/// A running sandbox with an earlier pause, so that the next one would be a Diff.
fn prepared<'a>(host: &'a TestHost, id: &str) -> Sandbox<'a> {
    let sandbox = host.create(id);
    sandbox.sh("kept=before;");
    sandbox.pause();
    sandbox.resume();
    sandbox
}

fn pause_stopped_at(host: &TestHost, id: &str, step: &str) -> Followed {
    let pause = || Followed::wrenn(host.roots(), &["pause", id], id);
    Followed::stopped_at(step, pause, || host.note(&host.wrenn(["resume", id]).run().success().reply()))
}

fn await_file(path: &Path) {
    let deadline = Instant::now() + LIMIT;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} never comes", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn mark(host: &TestHost, id: &str) -> std::path::PathBuf {
    host.roots().run().join(id).join("recall")
}

/// The guest goes on in the same VM as if nothing had been, and the next pause is exact.
fn goes_on(host: &TestHost, sandbox: &Sandbox, vm: &Value, kept: &str, kind: &str) {
    let document = sandbox.document();
    assert_eq!((&document["state"], &document["vm"]["pid"]), (&Value::from("running"), vm), "{document}");
    assert!(document["op"].is_null(), "{document}");
    assert!(!mark(host, &sandbox.id).exists());
    let count = |sandbox: &Sandbox| sandbox.sh("cat /mem/count/now").parse::<u64>().expect("a number");
    let counted = count(sandbox);
    while count(sandbox) == counted {}
    assert_eq!(sandbox.sh("cat /mem/kept /kept"), format!("{kept}\n{kept}"));
    let generations = kernel::list(host.root().join("sandboxes").join(&sandbox.id));
    assert_eq!(generations.iter().filter(|name| name.starts_with("gen-")).count(), 1, "{generations:?}");
    let paused = sandbox.pause();
    assert_eq!(paused["snapshot"]["kind"], kind, "{}", paused["snapshot"]);
    sandbox.resume();
    assert_eq!(sandbox.sh("cat /mem/kept /kept"), format!("{kept}\n{kept}"));
    assert!(count(sandbox) > counted, "it counts on");
}

fn resume_calls_a_pause_back_at_every_step_until_it_is_published(host: &TestHost) {
    let sandbox = prepared(host, "back");
    for (step, kind) in FIRST_HALF {
        host.step(step);
        sandbox.sh(&format!("kept={step};"));
        let pause = pause_stopped_at(host, "back", step);
        let vm = sandbox.document()["vm"]["pid"].clone();
        let resume = std::thread::scope(|scope| {
            let resume = scope.spawn(|| host.wrenn(["resume", "back", "--timeout", "77"]).run());
            await_file(&mark(host, "back"));
            assert_eq!(pause.end(), Some(4), "the pause is a conflict");
            resume.join().expect("resumed").success().reply()
        });
        assert_eq!((&resume["state"], &resume["vm"]["pid"]), (&Value::from("running"), &vm), "{resume}");
        assert_eq!(resume["spec"]["timeout_s"], 77);
        goes_on(host, &sandbox, &vm, step, kind);
    }
}

fn a_pause_that_is_published_is_finished_and_woken(host: &TestHost) {
    let sandbox = prepared(host, "late");
    for step in ["launch.stop", "net.remove", "publish"] {
        host.step(step);
        sandbox.sh(&format!("kept={step};"));
        let pause = pause_stopped_at(host, "late", step);
        let woken = std::thread::scope(|scope| {
            let resume = scope.spawn(|| host.wrenn(["resume", "late"]).run());
            assert_eq!(pause.end(), Some(0), "the pause comes to its end");
            resume.join().expect("resumed").success().reply()
        });
        host.note(&woken);
        assert_eq!((&woken["state"], woken["uffd"].is_object()), (&Value::from("running"), true), "{woken}");
        assert_eq!(sandbox.sh("cat /mem/kept /kept"), format!("{step}\n{step}"));
        assert!(!mark(host, "late").exists());
    }
}

fn a_signal_calls_a_pause_back_and_a_snapshot_too(host: &TestHost) {
    let sandbox = prepared(host, "signal");
    let steps = FIRST_HALF.map(|(step, kind)| ("pause", step, kind)).into_iter();
    let of_snapshot = [("snapshot", "launch.snapshot", "full"), ("snapshot", "snap.pack", "full")];
    for (verb, step, kind) in steps.chain(of_snapshot) {
        host.step(&format!("{verb} {step}"));
        sandbox.sh(&format!("kept={verb}-{step};"));
        let followed = match verb {
            "pause" => pause_stopped_at(host, "signal", step),
            _ => Followed::stopped_at(
                step,
                || Followed::wrenn(host.roots(), &["snapshot", "signal", "new"], "signal"),
                || drop(host.wrenn(["template", "rm", "new"]).run().success()),
            ),
        };
        let vm = sandbox.document()["vm"]["pid"].clone();
        followed.signal(Signal::SIGTERM);
        assert_eq!(followed.end(), None, "ended by the signal");
        assert!(!host.root().join("images/new").exists());
        goes_on(host, &sandbox, &vm, &format!("{verb}-{step}"), kind);
    }
}

fn who_gives_up_calling_a_pause_back_has_asked_for_nothing(host: &TestHost) {
    let sandbox = prepared(host, "gone");
    let pause = pause_stopped_at(host, "gone", "launch.snapshot");
    let refused = host.wrenn(["resume", "gone", "--wait", "0.2"]).run().status_is(7).reply();
    assert_eq!(refused["error"]["code"], "wire.locked");
    assert_eq!(pause.end(), Some(0), "nobody asks any more");
    // One that was killed leaves its mark: the next pause does not mind.
    sandbox.resume();
    std::fs::write(mark(host, "gone"), "").expect("a mark");
    sandbox.pause();
    assert_eq!(host.leftovers(), std::collections::BTreeSet::new());
}
