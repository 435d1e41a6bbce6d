//! What only Cloud Hypervisor's sandboxes have to show: lines of pauses and templates, complete in each link; a host that
//! they share with those of other VMMs; and that whoever is killed while one is launched or woken leaves nothing. In the
//! lab: docs/lifecycle.md.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sys::process::Process;
use wrenn_tests::host::TestHost;
use wrenn_tests::sandbox::Sandbox;
use wrenn_tests::vmm::Vmm;
use wrenn_tests::{Value, json, kernel};

wrenn_tests::tests_on!(
    cloud_hypervisor,
    CloudHypervisor,
    1,
    TestHost,
    privileged_ten_templates_of_templates_hold_all_memory,
    privileged_sandboxes_of_every_vmm_live_side_by_side,
    privileged_whoever_is_killed_during_a_launch_leaves_a_clean_host_and_the_template,
    privileged_whoever_is_killed_during_a_resume_or_a_pause_leaves_the_pause
);

const MACHINE: [&str; 4] = ["--memory", "128", "--disk", "256"];
const TEMPLATES: u32 = 10;

/// Pause, resume, pause, template, launch, template, launch, pause, …: each link is taken while the memory of the one
/// before may still be on its way, and the one before is removed.
fn privileged_ten_templates_of_templates_hold_all_memory(host: &TestHost) {
    let mut sandbox = host.boot("chain-0", &MACHINE);
    sandbox.mount_memory();
    sandbox.fill("/mem/a", 24);
    sandbox.fill("/random", 4);
    let pid = sandbox.start_counting().pid;
    for generation in 1..=TEMPLATES {
        let mut sums = sandbox.change(generation, 24);
        if generation % 2 == 1 {
            let count = sandbox.counter(&pid).now();
            sandbox.pause();
            sandbox.resume();
            assert_eq!(sandbox.look(), sums, "generation {generation}, woken");
            sandbox.counter(&pid).counts_on(count);
            sums = sandbox.change(generation + 100, 24);
        }
        let count = sandbox.counter(&pid).now();
        let paused = sandbox.pause();
        assert_eq!(paused["snapshot"]["kind"], "full");
        let stored = paused["snapshot"]["diff"]["bytes"].as_u64().expect("diff.bytes");
        if generation > 1 {
            assert!(stored < 48 << 20, "generation {generation}: {stored} bytes are stored of what changed");
        }
        let name = format!("chain/t{generation}");
        let made = host.wrenn(["snapshot", &sandbox.id, &name]).run().success().reply();
        let dir = PathBuf::from(made["template_dir"].as_str().expect("template_dir"));
        assert_eq!(meta(&dir)["sandbox_dir"], "/tmp/wrenn-vm");
        let next = host.create_from(&format!("chain-{generation}"), &name, &[]);
        assert_eq!(next.look(), sums, "generation {generation}, launched");
        next.counter(&pid).counts_on(count);
        host.step(&format!("generation {generation}: exact; its pause stores {} KiB", stored >> 10));
        // Nothing of the links before is needed.
        host.wrenn(["rm", &sandbox.id]).run().success();
        if generation > 1 {
            host.wrenn(["template", "rm", &format!("chain/t{}", generation - 1)]).run().success();
        }
        sandbox = next;
    }
}

fn meta(template: &Path) -> Value {
    let text = std::fs::read_to_string(template.join("meta.json")).expect("meta.json");
    text.parse().expect("JSON")
}

fn privileged_sandboxes_of_every_vmm_live_side_by_side(host: &TestHost) {
    let vmms: Vec<Vmm> = Vmm::ALL.into_iter().filter(|vmm| vmm.program().is_ok()).collect();
    host.step(&format!("at once, one on each of {vmms:?}"));
    let sandboxes: Vec<_> = at_once(&vmms, |vmm| {
        let sandbox = host.create_on(*vmm, &format!("mixed-{}", vmm.name()), "minimal", &MACHINE);
        sandbox.mount_memory();
        sandbox.fill("/mem/a", 8);
        sandbox.fill("/random", 4);
        sandbox
    });
    let counters: Vec<_> = sandboxes.iter().map(|sandbox| sandbox.start_counting()).collect();
    let sums: Vec<_> = sandboxes.iter().map(Sandbox::look).collect();
    let still = |counts: &[u64]| -> Vec<u64> {
        let now = counters.iter().zip(counts);
        now.map(|(counter, count)| counter.counts_on(*count)).collect()
    };
    let counts = still(&vec![0; vmms.len()]);

    host.step("all pause and wake at once");
    at_once(&sandboxes, |sandbox| {
        let paused = sandbox.pause();
        assert_eq!(paused["snapshot"]["kind"], "full");
        sandbox.resume();
    });
    let counts = still(&counts);
    assert_eq!(sandboxes.iter().map(Sandbox::look).collect::<Vec<_>>(), sums);

    host.step("templates of each, and one clone of each at once");
    at_once(&vmms, |vmm| {
        let (id, name) = (format!("mixed-{}", vmm.name()), format!("warm/{}", vmm.name()));
        host.wrenn(["snapshot", &id, &name]).run().success();
    });
    let clones = at_once(&vmms, |vmm| {
        host.create_on(*vmm, &format!("clone-{}", vmm.name()), &format!("warm/{}", vmm.name()), &[])
    });
    assert_eq!(clones.iter().map(Sandbox::look).collect::<Vec<_>>(), sums);
    let counts = still(&counts);
    for (clone, counter) in clones.iter().zip(&counters) {
        counter.seen_in(clone).counts_on(0);
        assert_eq!(clone.sh("hostname"), clone.id);
    }
    let refused = host.wrenn(["create", "--template", "warm/cloud-hypervisor", "--vmm", "wrenn-vmm"]).run();
    assert_eq!(refused.status, Some(2), "no VMM wakes another's: {}", refused.stderr);

    host.step("one dies, the others do not notice");
    clones[vmms.iter().position(|vmm| *vmm == Vmm::CloudHypervisor).expect("this test's")].end("vm");
    let report = host.wrenn(["gc"]).run().success().reply();
    assert_eq!(report["report"][0]["id"], "clone-cloud-hypervisor", "{report}");
    still(&counts);
    assert_eq!(sandboxes.iter().map(Sandbox::look).collect::<Vec<_>>(), sums);
}

/// Does this with each of them, all at the same time.
fn at_once<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let work = &work;
        let started: Vec<_> = items.iter().map(|item| scope.spawn(move || work(item))).collect();
        started.into_iter().map(|thread| thread.join().expect("done")).collect()
    })
}

/// Whom to kill.
#[derive(Debug, Clone, Copy)]
enum Victim {
    /// The program that was asked.
    Launcher,
    /// The VMM, as soon as it is there.
    Vmm,
}

fn privileged_whoever_is_killed_during_a_launch_leaves_a_clean_host_and_the_template(host: &TestHost) {
    let source = host.boot("source", &MACHINE);
    source.mount_memory();
    let memory = source.fill("/mem/random", 8);
    source.pause();
    let made = host.wrenn(["snapshot", "source", "warm"]).run().success().reply();
    let template = PathBuf::from(made["template_dir"].as_str().expect("template_dir"));
    host.wrenn(["rm", "source"]).run().success();
    let before = files(&template);

    use Victim::{Launcher, Vmm};
    for (victim, step) in [
        (Launcher, "wrenn-cow create"),
        (Launcher, "wrenn-net create"),
        (Launcher, "wrenn-launch restore"),
        (Launcher, "wrenn-launch resume"),
        (Launcher, "wrenn-guest ready"),
        (Launcher, "wrenn-guest init"),
        (Vmm, "wrenn-launch restore"),
        (Vmm, "wrenn-launch resume"),
        (Vmm, "wrenn-guest ready"),
        (Vmm, "wrenn-guest init"),
    ] {
        host.step(&format!("{victim:?} is killed at {step}"));
        let status = interrupt(host, &["create", "--id", "clone", "--template", "warm"], step, victim);
        assert_ne!(status, Some(0), "{victim:?} at {step}");
        if let Launcher = victim {
            assert_eq!(host.ids(), ["clone"], "what is to be cleaned up");
            host.wrenn(["gc"]).run().success();
        }
        assert_eq!(host.ids(), [""; 0], "{victim:?} at {step}");
        host.assert_clean();
        assert_eq!(files(&template), before, "{victim:?} at {step}: the template is untouched");
    }

    host.step("a template that does not say where its disk has to be, or says what cannot be");
    for (name, sandbox_dir, said) in [
        ("mute", Value::Null, "must say as sandbox_dir"),
        ("astray", json!("/etc"), "is not a directory below /tmp"),
        ("up", json!("/tmp/wrenn-vm/../../etc"), "not in its plain form"),
    ] {
        let bad = template.with_file_name(name);
        std::fs::create_dir(&bad).expect("a template's directory");
        for file in kernel::list(&template) {
            std::fs::hard_link(template.join(&file), bad.join(&file)).expect("its files");
        }
        let mut said_now = meta(&template);
        said_now["sandbox_dir"] = sandbox_dir;
        std::fs::remove_file(bad.join("meta.json")).expect("removed");
        std::fs::write(bad.join("meta.json"), said_now.to_string()).expect("meta.json");
        let refused = host.wrenn(["create", "--id", "clone", "--template", name]).run();
        let error = refused.status_is(2).reply()["error"].take();
        assert_eq!(error["code"], "launch.sandbox_dir", "{error}");
        assert_eq!(error["tool"], "wrenn", "refused before anything is made for it: {error}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(said)), "{error}");
        assert_eq!(host.ids(), [""; 0]);
        host.assert_clean();
        std::fs::remove_dir_all(bad).expect("removed");
    }
    let clone = host.create_from("clone", "warm", &[]);
    assert_eq!(clone.sum("/mem/random"), memory);
}

fn privileged_whoever_is_killed_during_a_resume_or_a_pause_leaves_the_pause(host: &TestHost) {
    let sandbox = host.boot("torn", &MACHINE);
    sandbox.mount_memory();
    let memory = sandbox.fill("/mem/random", 8);
    sandbox.pause();
    let generation = host.root().join("sandboxes/torn/gen-0001");
    let before = files(&generation);
    use Victim::{Launcher, Vmm};
    for (victim, step) in [
        (Launcher, "wrenn-cow restore"),
        (Launcher, "wrenn-snap unpack"),
        (Launcher, "wrenn-launch restore"),
        (Launcher, "wrenn-guest ready"),
        (Vmm, "wrenn-launch restore"),
        (Vmm, "wrenn-guest ready"),
    ] {
        host.step(&format!("resume: {victim:?} is killed at {step}"));
        assert_ne!(interrupt(host, &["resume", "torn"], step, victim), Some(0), "{victim:?} at {step}");
        if let Launcher = victim {
            host.wrenn(["gc"]).run().success();
        }
        assert_eq!(sandbox.document()["state"], "paused", "{victim:?} at {step}");
        assert!(host.leftovers().is_empty(), "{victim:?} at {step}: {:?}", host.leftovers());
        assert_eq!(kernel::list(host.root().join("sandboxes/torn/live")), [""; 0], "{victim:?} at {step}");
        assert_eq!(files(&generation), before, "{victim:?} at {step}: the pause is untouched");
    }
    // Once its generation is published a pause can only be finished; up to there the guest is given back.
    for (step, state) in [
        ("wrenn-launch pause", "running"),
        ("wrenn-snap pack", "running"),
        ("wrenn-launch stop", "paused"),
        ("wrenn-cow remove", "paused"),
    ] {
        if sandbox.document()["state"] != "running" {
            sandbox.resume();
        }
        assert_eq!(sandbox.sum("/mem/random"), memory);
        host.step(&format!("pause: the launcher is killed at {step}"));
        interrupt(host, &["pause", "torn"], step, Launcher);
        host.wrenn(["gc"]).run().success();
        assert_eq!(sandbox.document()["state"], state, "{step}");
    }
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
    sandbox.resume();
    assert_eq!(sandbox.sum("/mem/random"), memory);
}

/// Runs the supervisor, and kills the victim once that step has begun. Gives the supervisor's exit status.
fn interrupt(host: &TestHost, args: &[&str], step: &str, victim: Victim) -> Option<i32> {
    let mut program = host.wrenn(args.iter().copied().chain(["--log", "info"]));
    let command = program.command().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("wrenn");
    let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
    let begun = log.by_ref().map_while(Result::ok).any(|line| line.ends_with(step));
    assert!(begun, "{args:?} never came to {step}");
    match victim {
        Victim::Launcher => child.kill().expect("killed"),
        Victim::Vmm => end_vmm(host, &mut child),
    }
    log.map_while(Result::ok).for_each(drop);
    child.wait().expect("its status").code()
}

fn end_vmm(host: &TestHost, launcher: &mut Child) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let is_vmm = |line: &str| line.contains("--api-socket");
    loop {
        let all = kernel::processes_of(host.roots().dir());
        if let Some((pid, _)) = all.iter().find(|(_, line)| is_vmm(line)) {
            let process = Process::of_pid(*pid).expect("a process");
            return process.end(Duration::ZERO).expect("ended");
        }
        assert!(launcher.try_wait().expect("its status").is_none(), "it ended, and there was no VMM");
        assert!(Instant::now() < deadline, "there is no VMM");
    }
}

/// What a directory's files are: which, how long, since when.
fn files(dir: &Path) -> BTreeMap<String, (u64, u64, i64, i64)> {
    let identity = |name: String| {
        let metadata = dir.join(&name).metadata().expect("a file");
        (name, (metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
    };
    kernel::list(dir).into_iter().map(identity).collect()
}
