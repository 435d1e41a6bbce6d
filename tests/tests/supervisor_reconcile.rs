//! What `reconcile` and `gc` make of what they find: after a reboot, of who was stopped, of what died. On a machine in small.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wrenn_tests::follow::Followed;
use wrenn_tests::hold::hold;
use wrenn_tests::host::TestHost;
use wrenn_tests::sandbox::Sandbox;
use wrenn_tests::{Value, json, kernel};

wrenn_tests::on_a_toy![
    after_a_reboot_what_ran_is_paused_or_stopped_and_what_was_safe_is_finished,
    a_vmm_or_page_server_that_was_stopped_holds_nobody_up_for_ever,
    a_sandbox_whose_vmm_died_is_failed_and_wakes_from_its_last_pause,
    what_a_killed_operation_left_is_settled_by_whoever_comes_next,
    documents_that_are_damaged_or_gone_lose_no_pause_and_hide_no_other,
    a_sandbox_that_there_is_none_of_is_not_settled_but_not_found,
];

fn path(host: &TestHost, id: &str) -> std::path::PathBuf {
    host.root().join("sandboxes").join(id).join("sandbox.json")
}

fn read(host: &TestHost, id: &str) -> Value {
    parsed(&fs::read_to_string(path(host, id)).expect("a document"))
}

fn parsed(text: &str) -> Value {
    text.parse().expect("JSON")
}

fn collect(host: &TestHost) -> Vec<Value> {
    let reply = host.wrenn(["gc"]).run().success().reply();
    reply["report"].as_array().expect("a report").clone()
}

/// Stops everything of a host's sandboxes at once, as when the power goes.
fn power_off(host: &TestHost, ids: &[&str]) {
    for (pid, _) in kernel::processes_of(host.roots().dir()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for id in ids {
        let document = read(host, id).to_string();
        host.program("wrenn-net").args(["remove", "-"]).stdin(document).run().success();
    }
    fs::remove_dir_all(host.roots().run()).expect("an empty WRENN_RUN");
}

/// Has the document speak of another boot, in which these processes had the pids that others have now.
fn of_another_boot(host: &TestHost, id: &str, pid: i32) {
    let mut document = read(host, id);
    for section in ["vm", "uffd", "op"] {
        if document[section].is_object() {
            document[section]["boot_id"] = json!("00000000-0000-0000-0000-000000000000");
            document[section]["pid"] = json!(pid);
        }
    }
    fs::write(path(host, id), document.to_string()).expect("written");
}

fn after_a_reboot_what_ran_is_paused_or_stopped_and_what_was_safe_is_finished(host: &TestHost) {
    let never = host.create("never");
    never.sh("kept=lost;");
    let once = host.create("once");
    once.sh("kept=once;");
    once.pause();
    once.resume();
    once.sh("kept=later;");
    let safe = host.create("safe");
    safe.sh("kept=safe;");
    let rest = host.create("rest");
    rest.sh("kept=rest;");
    rest.pause();
    let pause = Followed::stopped_at(
        "launch.stop",
        || Followed::wrenn(host.roots(), &["pause", "safe"], "safe"),
        || host.note(&host.wrenn(["resume", "safe"]).run().success().reply()),
    );
    pause.kill();
    let half = Followed::stopped_at(
        "launch.restore",
        || Followed::wrenn(host.roots(), &["resume", "rest"], "rest"),
        || drop(host.wrenn(["pause", "rest"]).run().success()),
    );
    host.note(&read(host, "rest"));
    half.kill();
    let ids = ["never", "once", "safe", "rest"];
    power_off(host, &ids);
    let mut stranger = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("sleep");
    for id in ids {
        of_another_boot(host, id, stranger.id() as i32);
    }
    let report = collect(host);
    let done: BTreeSet<_> = report
        .iter()
        .filter_map(|entry| Some((entry["id"].as_str()?.to_owned(), entry["done"].as_str()?.to_owned())))
        .collect();
    let expected = [("never", "stopped"), ("once", "paused"), ("safe", "paused"), ("rest", "paused")];
    assert_eq!(done, expected.map(|(id, state)| (id.to_owned(), state.to_owned())).into(), "{report:?}");
    assert_eq!(collect(host), [json!(null); 0], "once is enough");
    assert!(stranger.try_wait().expect("its state").is_none(), "who has the pid now is left alone");
    stranger.kill().expect("killed");
    stranger.wait().expect("ended");
    assert_eq!(host.leftovers(), BTreeSet::new());
    for (sandbox, kept) in [(&once, "once"), (&safe, "safe"), (&rest, "rest")] {
        sandbox.resume();
        assert_eq!(sandbox.sh("cat /mem/kept /kept"), format!("{kept}\n{kept}"), "{}", sandbox.id);
    }
    let refused = host.wrenn(["resume", "never"]).run().status_is(4).reply();
    assert_eq!(refused["error"]["code"], "wrenn.no_pause");
}

fn stop(host: &TestHost, id: &str, section: &str) -> Pid {
    let mut pid = read(host, id)[section]["pid"].as_i64().expect("a pid") as i32;
    if section == "uffd" {
        // The document names its guardian.
        pid = kernel::children(pid).first().expect("a server").pid;
    }
    hold(pid);
    Pid::from_raw(pid)
}

fn within<T>(limit: Duration, what: &str, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let done = work();
    assert!(started.elapsed() < limit, "{what} took {:?}", started.elapsed());
    done
}

fn a_vmm_or_page_server_that_was_stopped_holds_nobody_up_for_ever(host: &TestHost) {
    let sandbox = host.create("still");
    sandbox.sh("kept=still;");
    sandbox.pause();
    sandbox.resume();
    host.step("a pause of one whose page server is stopped");
    let server = stop(host, "still", "uffd");
    let refused = within(Duration::from_secs(25), "the pause", || host.wrenn(["pause", "still"]).run());
    assert_eq!(refused.reply()["error"]["code"], "uffd.no_answer", "{}", refused.text());
    kill(server, Signal::SIGCONT).expect("it goes on");
    assert_eq!(sandbox.sh("cat /mem/kept /kept"), "still\nstill", "the guest was given back");
    host.step("gc beside one whose VMM is stopped");
    stop(host, "still", "vm");
    stop(host, "still", "uffd");
    assert_eq!(within(Duration::from_secs(10), "gc", || collect(host)), [json!(null); 0]);
    host.step("the removal of it");
    within(Duration::from_secs(40), "rm", || host.wrenn(["rm", "still"]).run().success());
    host.assert_clean();
}

fn failed(host: &TestHost, sandbox: &Sandbox, verb: &[&str]) -> Value {
    sandbox.end("vm");
    let refused = host.wrenn(verb.iter().copied()).run().status_is(4).reply();
    assert_eq!(refused["error"]["code"], "wrenn.failed", "{refused}");
    let document = sandbox.document();
    assert_eq!(document["state"], "failed", "{document}");
    assert_eq!(host.leftovers(), BTreeSet::new(), "what it had is reclaimed");
    document
}

fn a_sandbox_whose_vmm_died_is_failed_and_wakes_from_its_last_pause(host: &TestHost) {
    let sandbox = host.create("fail");
    sandbox.sh("kept=kept;");
    sandbox.pause();
    sandbox.resume();
    for verb in [
        &["exec", "fail", "--", "true"][..],
        &["ping", "fail"],
        &["pause", "fail"],
        &["snapshot", "fail", "t"],
    ] {
        host.step(verb[0]);
        let document = failed(host, &sandbox, verb);
        assert!(
            document["failure"]["reason"].as_str().is_some_and(|text| text.contains("VMM")),
            "{document}"
        );
        assert!(document["failure"]["log"].to_string().contains("hello from the console"), "{document}");
        assert_eq!(collect(host), [json!(null); 0], "gc leaves it as it is");
        let woken = sandbox.resume();
        assert!(woken["failure"].is_null(), "{woken}");
        assert_eq!(sandbox.sh("cat /mem/kept /kept"), "kept\nkept");
    }
    sandbox.pause();
    let never = host.create("never");
    failed(host, &never, &["ping", "never"]);
    let refused = host.wrenn(["resume", "never"]).run().status_is(4).reply();
    assert_eq!(refused["error"]["code"], "wrenn.no_pause");
    assert_eq!(never.document()["state"], "failed");
}

fn what_a_killed_operation_left_is_settled_by_whoever_comes_next(host: &TestHost) {
    let sandbox = host.create("next");
    sandbox.sh("kept=next;");
    let pause = |step: &str| {
        let restore = || host.note(&host.wrenn(["resume", "next"]).run().success().reply());
        let pause = || Followed::wrenn(host.roots(), &["pause", "next"], "next");
        Followed::stopped_at(step, pause, restore).kill();
        assert_eq!(read(host, "next")["state"], "pausing");
    };
    pause("launch.snapshot");
    assert_eq!(sandbox.sh("cat /mem/kept /kept"), "next\nnext", "exec gives the guest back first");
    pause("snap.pack");
    assert_eq!(sandbox.pause()["state"], "paused", "a pause does so too, and pauses it");
    sandbox.resume();
    pause("launch.stop");
    assert_eq!(sandbox.resume()["state"], "running", "a resume finishes the pause, and wakes it");
    assert_eq!(sandbox.sh("cat /mem/kept /kept"), "next\nnext");
    pause("net.remove");
    host.wrenn(["rm", "next"]).run().success();
    host.assert_clean();
}

fn documents_that_are_damaged_or_gone_lose_no_pause_and_hide_no_other(host: &TestHost) {
    let whole = host.create("whole");
    whole.sh("kept=whole;");
    whole.pause();
    let torn = host.create("torn");
    torn.pause();
    let gone = host.create("gone");
    gone.pause();
    let dead = host.create("dead");
    dead.end("vm");
    let saved = fs::read(path(host, "torn")).expect("a document");
    fs::write(path(host, "torn"), &saved[..saved.len() / 2]).expect("torn");
    fs::rename(path(host, "gone"), host.roots().dir().join("document")).expect("moved away");
    let reply = host.wrenn(["gc"]).run().status_is(9).reply();
    let error = reply["error"].to_string();
    assert!(error.contains("torn") && error.contains("gone"), "{error}");
    assert_eq!(dead.document()["state"], "stopped", "the others have had their turn");
    fs::write(path(host, "torn"), saved).expect("mended");
    fs::rename(host.roots().dir().join("document"), path(host, "gone")).expect("moved back");
    assert_eq!(collect(host), [json!(null); 0]);
    for sandbox in [whole, torn, gone] {
        assert_eq!(sandbox.resume()["state"], "running");
    }
}

fn a_sandbox_that_there_is_none_of_is_not_settled_but_not_found(host: &TestHost) {
    let sandbox = host.create("here");
    let reconcile = |id: &'static str| host.wrenn(["reconcile", id]).run();
    let refused = reconcile("heer").status_is(3).reply();
    assert_eq!(refused["error"]["code"], "store.no_sandbox", "{refused}");
    assert_eq!(reconcile("here").success().reply()["report"], json!([]));
    host.step("half of one is something to settle");
    fs::create_dir(host.root().join("sandboxes/half")).expect("what a killed create has left");
    assert_eq!(reconcile("half").success().reply()["report"][0]["done"], "removed");
    reconcile("half").status_is(3);
    sandbox.verb("rm");
    reconcile("here").status_is(3);
}
