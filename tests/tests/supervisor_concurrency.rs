//! Two operations at once: each pair has one outcome (docs/wrenn.md, "Two at once"). On a machine in small.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sys::process::Process;
use wrenn_tests::follow::Followed;
use wrenn_tests::host::TestHost;
use wrenn_tests::program::LIMIT;
use wrenn_tests::{Output, Value, json, kernel, program};

wrenn_tests::on_a_toy![
    of_two_pauses_at_once_the_second_is_a_conflict,
    a_resume_that_comes_just_before_a_pause_calls_nothing_back,
    a_command_or_a_copy_whose_sandbox_is_paused_removed_or_dies_ends_and_says_why,
    a_command_runs_on_through_a_snapshot,
    a_command_asked_for_during_a_pause_waits_for_it_and_is_a_conflict,
    a_removal_during_a_resume_waits_for_it_and_removes,
    a_template_that_is_used_made_or_removed_is_not_taken_away_from_under_anybody,
    gc_passes_over_what_somebody_is_at_work_on,
    sixteen_callers_at_once_get_what_they_ask_for,
];

/// A verb on the sandbox that is its second word, stopped at this step. `restore` undoes the verb.
fn stopped_at(host: &TestHost, verb: &[&str], step: &str, restore: &[&str]) -> Followed {
    let args = if verb[0] == "create" { [&verb[..1], &verb[2..]].concat() } else { verb.to_vec() };
    Followed::stopped_at(
        step,
        || Followed::wrenn(host.roots(), &args, verb[1]),
        || host.note(&host.wrenn(restore.iter().copied()).run().success().reply()),
    )
}

fn of_two_pauses_at_once_the_second_is_a_conflict(host: &TestHost) {
    host.create("twice");
    let first = stopped_at(host, &["pause", "twice"], "launch.snapshot", &["resume", "twice"]);
    let waited = host.wrenn(["pause", "twice", "--wait", "0.2"]).run().status_is(7).reply();
    assert_eq!(waited["error"]["code"], "wire.locked", "it does not wait for ever");
    thread::scope(|scope| {
        let second = scope.spawn(|| host.wrenn(["pause", "twice"]).run());
        assert_eq!(first.end(), Some(0));
        let second = second.join().expect("ended").status_is(4).reply();
        assert_eq!(second["error"]["code"], "wrenn.state", "{second}");
    });
    assert_eq!(host.wrenn(["get", "twice"]).run().success().reply()["state"], "paused");
}

/// A verb on this sandbox that has come as far as its lock, which somebody else has.
fn waiting<'a>(
    host: &TestHost,
    scope: &'a thread::Scope<'a, '_>,
    verb: &str,
    id: &str,
) -> thread::ScopedJoinHandle<'a, Output> {
    let lock = format!("locks/{id}.op");
    let who = || {
        let all = kernel::processes_of(host.roots().dir()).into_iter();
        let has = |pid: i32| kernel::descriptors(pid).iter().any(|file| file.ends_with(&lock));
        all.filter(|(pid, _)| has(*pid)).count()
    };
    let (before, program) = (who(), host.wrenn([verb, id]));
    let started = scope.spawn(|| program.run());
    let deadline = Instant::now() + LIMIT;
    while who() == before {
        assert!(Instant::now() < deadline, "{verb} never comes");
        thread::sleep(Duration::from_millis(1));
    }
    started
}

fn a_resume_that_comes_just_before_a_pause_calls_nothing_back(host: &TestHost) {
    let sandbox = host.create("eager");
    sandbox.sh("kept=eager;");
    host.step("there is nothing to wake");
    let refused = host.wrenn(["resume", "eager"]).run().status_is(4).reply();
    assert_eq!(refused["error"]["code"], "wrenn.state", "{refused}");
    sandbox.pause();
    sandbox.resume();
    host.step("both wait for their turn, and whose it is first is chance");
    for _ in 0..6 {
        let turn = sys::lock::exclusive(&host.roots().run().join("locks/eager.op"), LIMIT).expect("the lock");
        let (resumed, paused) = thread::scope(|scope| {
            let resume = waiting(host, scope, "resume", "eager");
            let pause = waiting(host, scope, "pause", "eager");
            drop(turn);
            (resume.join().expect("ended"), pause.join().expect("ended"))
        });
        assert_eq!(paused.success().reply()["state"], "paused");
        if resumed.status == Some(4) {
            assert_eq!(resumed.reply()["error"]["code"], "wrenn.state", "{}", resumed.text());
            assert_eq!(sandbox.document()["state"], "paused");
            sandbox.resume();
        } else {
            host.note(&resumed.success().reply());
            assert_eq!(sandbox.document()["state"], "running");
        }
        assert_eq!(sandbox.sh("cat /mem/kept /kept"), "eager\neager");
    }
}

/// A command, or a copy, that has no end of its own.
struct Endless(Child);

impl Endless {
    fn start(host: &TestHost, id: &str, what: &str) -> Self {
        let from = format!("{id}:/endless");
        let to = host.roots().dir().join(format!("{id}-copy"));
        let to = to.to_str().expect("UTF-8");
        let args: Vec<&str> = match what {
            "exec" => vec!["exec", id, "--json", "--", "sleep", "1000000"],
            "download" => vec!["cp", &from, to],
            _ => vec!["cp", "/dev/zero", &from],
        };
        let mut command = Command::new(program::path("wrenn"));
        command.args(args).env("WRENN_ROOT", host.root()).env("WRENN_RUN", host.roots().run());
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let endless = Self(child.expect("wrenn"));
        let deadline = Instant::now() + LIMIT;
        // Nothing tells when another process is connected.
        while !kernel::descriptors(endless.0.id() as i32).iter().any(|file| file.contains("socket:")) {
            assert!(Instant::now() < deadline, "{what} never begins");
            thread::sleep(Duration::from_millis(2));
        }
        endless
    }

    /// Its exit status and its error, once it has ended.
    fn ended(self) -> (Option<i32>, Value) {
        let process = Process::of_pid(self.0.id() as i32);
        if let Ok(process) = process {
            assert!(process.wait(Duration::from_secs(20)).expect("a pidfd"), "it goes on for ever");
        }
        let output = self.0.wait_with_output().expect("its output");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let last: Value = parsed(text.lines().last().unwrap_or_default());
        (output.status.code(), last["error"].clone())
    }
}

fn parsed(line: &str) -> Value {
    line.parse().unwrap_or_default()
}

fn a_command_or_a_copy_whose_sandbox_is_paused_removed_or_dies_ends_and_says_why(host: &TestHost) {
    for what in ["exec", "download", "upload"] {
        let sandbox = host.create("busy");
        let ended = |because: &dyn Fn()| {
            let endless = Endless::start(host, "busy", what);
            because();
            endless.ended()
        };
        host.step(&format!("{what}, paused"));
        let (status, error) = ended(&|| drop(sandbox.pause()));
        assert_eq!((status, &error["code"]), (Some(4), &json!("wrenn.paused")), "{error}");
        sandbox.resume();
        host.step(&format!("{what}, its VMM dies"));
        let (status, error) = ended(&|| sandbox.end("vm"));
        assert_eq!((status, &error["code"]), (Some(8), &json!("guest.vm_gone")), "{error}");
        sandbox.resume();
        host.step(&format!("{what}, removed"));
        let (status, error) = ended(&|| drop(host.wrenn(["rm", "busy"]).run().success()));
        assert_eq!((status, &error["code"]), (Some(4), &json!("wrenn.removed")), "{error}");
        let left = kernel::list(host.roots().dir());
        assert!(left.iter().all(|name| !name.contains("copy")), "half a file is none: {left:?}");
    }
}

fn a_command_runs_on_through_a_snapshot(host: &TestHost) {
    let sandbox = host.create("through");
    sandbox.sh("kept=now;");
    let mut endless = Endless::start(host, "through", "exec");
    let vm = sandbox.document()["vm"]["pid"].clone();
    host.wrenn(["snapshot", "through", "busy"]).run().success();
    let document = sandbox.document();
    assert_eq!((&document["state"], &document["vm"]["pid"]), (&json!("running"), &vm));
    assert!(endless.0.try_wait().expect("its status").is_none(), "the command goes on");
    sandbox.sh("kept=later;");
    let copy = host.create_from("copy", "busy", &[]);
    assert_eq!(copy.sh("cat /mem/kept /kept"), "now\nnow", "memory and disk of the moment");
    assert_eq!(sandbox.sh("cat /mem/kept /kept"), "later\nlater");
    host.step("the pause after it needs only what has changed since");
    let paused = sandbox.pause();
    assert_eq!(paused["snapshot"]["kind"], "diff", "{}", paused["snapshot"]);
    assert_eq!(endless.ended().0, Some(4));
    sandbox.resume();
    assert_eq!(sandbox.sh("cat /mem/kept /kept"), "later\nlater");
    host.step("a snapshot may leave it paused");
    let made = host.wrenn(["snapshot", "through", "still", "--stay-paused"]).run().success().reply();
    assert_eq!(made["state"], "paused", "{made}");
    let other = host.create_from("other", "still", &[]);
    assert_eq!(other.sh("cat /mem/kept /kept"), "later\nlater");
}

fn a_command_asked_for_during_a_pause_waits_for_it_and_is_a_conflict(host: &TestHost) {
    host.create("wait");
    let pause = stopped_at(host, &["pause", "wait"], "launch.snapshot", &["resume", "wait"]);
    let early = host.wrenn(["exec", "wait", "--wait", "0.2", "--", "true"]).run().status_is(7).reply();
    assert_eq!(early["error"]["code"], "wire.locked");
    thread::scope(|scope| {
        let command = scope.spawn(|| host.wrenn(["exec", "wait", "--", "true"]).run());
        assert_eq!(pause.end(), Some(0));
        let refused = command.join().expect("ended").status_is(4).reply();
        assert_eq!(refused["error"]["code"], "wrenn.state");
    });
}

fn a_removal_during_a_resume_waits_for_it_and_removes(host: &TestHost) {
    let sandbox = host.create("leave");
    sandbox.pause();
    let resume = stopped_at(host, &["resume", "leave"], "launch.restore", &["pause", "leave"]);
    host.note(&sandbox.document());
    thread::scope(|scope| {
        let removal = scope.spawn(|| host.wrenn(["rm", "leave"]).run());
        assert_eq!(resume.end(), Some(0), "the resume comes to its end");
        assert_eq!(removal.join().expect("ended").success().reply()["state"], "removed");
    });
    host.assert_clean();
}

fn a_template_that_is_used_made_or_removed_is_not_taken_away_from_under_anybody(host: &TestHost) {
    let sandbox = host.create("source");
    sandbox.sh("kept=shared;");
    host.step("created from while it is made: waited for");
    let made = ["snapshot", "source", "t/base"];
    let made = stopped_at(host, &made, "launch.snapshot", &["template", "rm", "t/base"]);
    let early = host.wrenn(["create", "--template", "t/base", "--wait", "0.2"]).run().status_is(7).reply();
    assert_eq!(early["error"]["code"], "wire.locked");
    let copy = thread::scope(|scope| {
        let copy = scope.spawn(|| host.create_from("copy", "t/base", &[]));
        assert_eq!(made.end(), Some(0));
        copy.join().expect("created")
    });
    assert_eq!(copy.sh("cat /mem/kept /kept"), "shared\nshared");

    host.step("removed while sandboxes stand on it, or are about to");
    let used = host.wrenn(["template", "rm", "t/base"]).run().status_is(4).reply();
    assert_eq!(used["error"]["code"], "store.template_in_use");
    assert!(used["error"]["message"].as_str().is_some_and(|text| text.contains("copy")), "{used}");
    host.wrenn(["rm", "copy"]).run().success();
    let create = ["create", "next", "--id", "next", "--template", "t/base"];
    let create = stopped_at(host, &create, "launch.restore", &["rm", "next"]);
    host.wrenn(["template", "rm", "t/base"]).run().status_is(4);
    assert_eq!(create.end(), Some(0));
    host.note(&host.wrenn(["get", "next"]).run().success().reply());
    host.wrenn(["rm", "next"]).run().success();

    host.step("created from while it is removed: it was there, or it was not");
    for _ in 0..8 {
        thread::scope(|scope| {
            let create = scope.spawn(|| host.wrenn(["create", "--id", "race", "--template", "t/base"]).run());
            let removed = host.wrenn(["template", "rm", "t/base"]).run();
            let created = create.join().expect("ended");
            match (created.status, removed.status) {
                (Some(0), Some(4)) => {
                    host.note(&created.reply());
                    host.wrenn(["rm", "race"]).run().success();
                }
                (Some(3), Some(0)) => {
                    host.wrenn(["snapshot", "source", "t/base"]).run().success();
                }
                other => panic!("{other:?}: {} {}", created.text(), removed.text()),
            }
        });
    }
    let names = kernel::list(host.root().join("images/t"));
    assert_eq!(names, ["base"], "nothing beside it");
}

fn gc_passes_over_what_somebody_is_at_work_on(host: &TestHost) {
    let collect = || host.wrenn(["gc"]).run().success().reply()["report"].clone();
    let passed_over =
        |id: &str| json!([{"done": "passed over", "id": id, "why": "an operation is at work on it"}]);
    for step in ["net.create", "launch.boot", "guest.init"] {
        host.step(&format!("create at {step}"));
        let create = stopped_at(host, &["create", "alone", "--id", "alone"], step, &["rm", "alone"]);
        assert_eq!(collect(), passed_over("alone"));
        assert_eq!(create.end(), Some(0), "{step}");
        host.note(&host.wrenn(["get", "alone"]).run().success().reply());
        host.wrenn(["exec", "alone", "--", "true"]).run().success();
        host.wrenn(["rm", "alone"]).run().success();
    }
    let sandbox = host.create("alone");
    sandbox.sh("kept=mine;");
    for (verb, step, state, restore) in [
        ("pause", "launch.snapshot", "paused", "resume"),
        ("resume", "launch.restore", "running", "pause"),
        ("pause", "cow.remove", "paused", "resume"),
    ] {
        host.step(&format!("{verb} at {step}"));
        let followed = stopped_at(host, &[verb, "alone"], step, &[restore, "alone"]);
        let one = host.wrenn(["reconcile", "alone"]).run().success().reply();
        assert_eq!(one["report"], collect());
        assert_eq!(followed.end(), Some(0), "{verb} {step}");
        let document = sandbox.document();
        assert_eq!(document["state"], state);
        host.note(&document);
    }
    sandbox.resume();
    assert_eq!(sandbox.sh("cat /mem/kept /kept"), "mine\nmine");
}

fn sixteen_callers_at_once_get_what_they_ask_for(host: &TestHost) {
    let live = |caller: usize| {
        for round in 0..2 {
            let id = format!("many-{caller}-{round}");
            let wrenn = |args: &[&str]| host.wrenn(args.iter().copied()).run().success();
            host.note(&wrenn(&["create", "--id", &id, "--wait", "120"]).reply());
            let script = format!("kept={id};");
            wrenn(&["exec", &id, "--", "/bin/sh", "-ec", &script]);
            wrenn(&["pause", &id, "--wait", "120"]);
            host.note(&wrenn(&["resume", &id, "--wait", "120"]).reply());
            let kept = wrenn(&["exec", &id, "--", "/bin/sh", "-ec", "cat /mem/kept /kept"]).text();
            assert_eq!(kept, format!("{id}\n{id}\n"));
            wrenn(&["rm", &id, "--wait", "120"]);
        }
    };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..16).map(|caller| scope.spawn(move || live(caller))).collect();
        // And somebody who tidies up all the time.
        while callers.iter().any(|caller| !caller.is_finished()) {
            host.wrenn(["gc"]).run().success();
        }
    });
    host.assert_clean();
}
