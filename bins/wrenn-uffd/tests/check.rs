//! `wrenn-uffd check`: a right server passes every scenario, whoever wrote it, and each wrong one fails the scenario that
//! is about its fault, in time.

mod wrong;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wrong::Fault;

#[test]
#[ignore = "a part that other tests start"]
fn server() {
    wrong::serve();
}

/// What `check` said.
struct Said {
    status: i32,
    lines: Vec<Value>,
    log: String,
    took: Duration,
}

fn check(words: &[&str], server: &[&str]) -> Said {
    let started = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn-uffd"));
    command.arg("check").args(words).arg("--").args(server).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Said { status: output.status.code().unwrap(), lines, log, took: started.elapsed() }
}

/// `check` against a server of [`wrong`], with these scenarios or all.
fn check_wrong(fault: Fault, scenarios: Option<&[&str]>, timeout: f64) -> Said {
    let program = std::env::current_exe().unwrap();
    let fault = format!("WRONG={}", fault.name());
    let server = [
        "env",
        &fault,
        "SOCKET={socket}",
        "MEMORY={memory}",
        program.to_str().unwrap(),
        "--exact",
        "server",
        "--ignored",
        "--nocapture",
    ];
    let timeout = format!("timeout_s:={timeout}");
    let scenarios = scenarios.map(|names| format!("scenarios:={}", json!(names)));
    let words: Vec<_> = std::iter::once(timeout.as_str()).chain(scenarios.as_deref()).collect();
    check(&words, &server)
}

impl Said {
    /// Each scenario's result.
    fn results(&self) -> BTreeMap<&str, &Value> {
        let scenarios = self.lines.iter().filter(|line| line["event"] == "scenario");
        scenarios.map(|line| (line["name"].as_str().unwrap(), line)).collect()
    }

    /// Every scenario has passed, or was skipped for want of huge pages.
    fn all_passed(&self) {
        for (name, line) in self.results() {
            match line["result"].as_str().unwrap() {
                "passed" => {}
                "skipped" => {
                    assert!(name.starts_with("huge-"), "{line}");
                    wrenn_tests::skip::here(format!("{name}: {}", line["reason"]));
                }
                _ => panic!("{line}"),
            }
        }
        let summary = self.lines.last().unwrap();
        assert_eq!((&summary["event"], &summary["failed"]), (&"summary".into(), &0.into()));
        assert_eq!(self.status, 0, "{}", self.log);
    }

    /// This scenario has failed, for a reason that says this.
    fn failed(&self, name: &str, saying: &str) {
        let results = self.results();
        let line = results[name];
        assert_eq!(line["result"], "failed", "{line}");
        assert!(line["reason"].as_str().unwrap().contains(saying), "{line}");
        assert_eq!(self.status, 8, "a failure is a peer's: {}", self.log);
    }

    fn passed(&self, name: &str) {
        assert_eq!(self.results()[name]["result"], "passed", "{}", self.results()[name]);
    }
}

/// A limit that no machine is too slow for, be it emulated and busy.
const PATIENT: &str = "timeout_s:=60";

/// What has this fault passes a scenario that is not about it, if it is given time.
fn is_right_otherwise(fault: Fault) {
    check_wrong(fault, Some(&["content"]), 60.0).passed("content");
}

/// Whether this user may have a userfaultfd at all.
fn is_possible() -> bool {
    let skip =
        |error: &std::io::Error| wrenn_tests::skip::here(format!("no userfaultfd for this user: {error}"));
    sys::uffd::Uffd::create().inspect_err(skip).is_ok()
}

#[test]
fn our_server_passes_every_scenario_from_a_raw_file() {
    if !is_possible() {
        return;
    }
    let program = env!("CARGO_BIN_EXE_wrenn-uffd");
    let said = check(&[PATIENT], &[program, "serve", "source.raw={memory}", "socket={socket}"]);
    said.all_passed();
    assert!(said.results().len() >= 35);
    assert!(said.results().values().all(|line| line["must"].as_str().is_some_and(|must| !must.is_empty())));
}

#[test]
fn our_server_passes_every_scenario_on_demand_from_a_snapshot() {
    if !is_possible() {
        return;
    }
    let program = env!("CARGO_BIN_EXE_wrenn-uffd");
    let words = [program, "serve", "source.dir={dir}", "socket={socket}", "prefetch=none"];
    check(&[PATIENT, "seed:=2"], &words).all_passed();
}

#[test]
fn a_small_server_that_does_everything_right_passes_every_scenario() {
    if is_possible() {
        check_wrong(Fault::None, None, 60.0).all_passed();
    }
}

#[test]
fn a_server_that_ignores_discards_is_told_which_page_it_brought_back() {
    if !is_possible() {
        return;
    }
    let said = check_wrong(
        Fault::IgnoresRemove,
        Some(&[
            "content",
            "discard-written",
            "discard-mixed",
            "discard-all",
            "discard-unloaded",
            "discard-storm",
        ]),
        60.0,
    );
    said.passed("content");
    for name in ["discard-written", "discard-mixed", "discard-all", "discard-unloaded"] {
        said.failed(name, "found the image's content, expected zeros: it was discarded");
    }
    said.failed("discard-storm", "it was discarded");
}

#[test]
fn a_server_that_answers_faults_before_the_discards_read_with_them_brings_pages_back() {
    if !is_possible() {
        return;
    }
    let names = ["discard-mixed", "discard-all", "discard-before-fault", "discard-after-fault"];
    let said = check_wrong(Fault::FaultsFirst, Some(&names), 10.0);
    said.passed("discard-mixed");
    said.passed("discard-all");
    said.failed("discard-before-fault", "found the image's content, expected zeros: it was discarded");
    said.failed("discard-after-fault", "found the image's content, expected zeros: it was discarded");
}

#[test]
fn a_server_that_never_wakes_who_waits_for_a_page_that_is_there_is_found_in_time() {
    if !is_possible() {
        return;
    }
    is_right_otherwise(Fault::NeverWakes);
    let said = check_wrong(Fault::NeverWakes, Some(&["present-page"]), 2.0);
    said.failed(
        "present-page",
        "not done within 2 s; waiting: a read of page 77 (1 faults wait, 0 of them unread)",
    );
    assert!(said.took < Duration::from_secs(20));
}

#[test]
fn a_server_that_gives_up_at_eagain_leaves_faults_unanswered() {
    if !is_possible() {
        return;
    }
    // Whether the discard is still under way when the server has read of it is the kernel's to say.
    is_right_otherwise(Fault::GivesUp);
    let tries = (0..40).map(|_| check_wrong(Fault::GivesUp, Some(&["faults-behind-discard"]), 2.0));
    let failed = |said: &Said| said.results()["faults-behind-discard"]["result"] == "failed";
    let said = tries.into_iter().find(failed).expect("a try in which it met the discard");
    said.failed("faults-behind-discard", "not done within 2 s; waiting: a read of page");
}

#[test]
fn a_server_that_copies_wrong_content_is_told_which_page() {
    if !is_possible() {
        return;
    }
    // It takes a page whose first half is zero for one of zeros.
    let said = check_wrong(Fault::WrongContent, Some(&["content", "killed-in-handshake"]), 10.0);
    said.failed("content", "found zeros, expected the image's content");
    said.passed("killed-in-handshake");
    // It reckons every region's content from the beginning of the image.
    let said =
        check_wrong(Fault::WrongOffset, Some(&["content", "regions-gap", "regions-order", "offset"]), 10.0);
    said.passed("content");
    for name in ["regions-gap", "regions-order", "offset"] {
        said.failed(name, "of the image)");
    }
}

#[test]
fn a_server_that_never_answers_fails_every_scenario_and_holds_up_nobody() {
    if !is_possible() {
        return;
    }
    let said = check_wrong(Fault::NeverAnswers, None, 0.5);
    let results = said.results();
    for (name, line) in &results {
        if !name.starts_with("huge-") {
            assert_eq!(line["result"], "failed", "{line}");
        }
    }
    assert!(said.took < Duration::from_secs(8) * results.len() as u32);
}

#[test]
fn a_server_that_goes_on_without_its_vmm_is_found_and_so_is_one_that_spins() {
    if !is_possible() {
        return;
    }
    is_right_otherwise(Fault::Stays);
    let said = check_wrong(Fault::Stays, Some(&["killed-in-fault", "handshake-never"]), 2.0);
    said.failed("killed-in-fault", "the server neither ended nor served another VMM");
    said.failed("handshake-never", "the server neither ended nor served another VMM");
    check_wrong(Fault::Spins, Some(&["killed-in-fault"]), 2.0).failed("killed-in-fault", "and spins");
}

#[test]
fn a_server_that_makes_up_what_its_source_lacks_is_found() {
    if !is_possible() {
        return;
    }
    let said = check_wrong(Fault::MakesUp, Some(&["source-short", "source-cut"]), 10.0);
    said.failed("source-short", "found zeros, expected the image's content");
    said.failed("source-cut", "found zeros, expected the image's content");
}

#[test]
fn a_server_that_dies_and_leaves_its_vmm_waiting_is_not_waited_for() {
    if !is_possible() {
        return;
    }
    let said = check_wrong(Fault::Dies, Some(&["content"]), 60.0);
    said.failed("content", "and left its VMM waiting");
    assert!(said.took < Duration::from_secs(30));
}

#[test]
fn a_server_that_does_not_start_or_never_listens_is_said_to() {
    if !is_possible() {
        return;
    }
    let one = "scenarios:=[\"content\"]";
    check(&[one], &["false"]).failed("content", "ended with exit status: 1 before it listened");
    check(&[one, "timeout_s:=1"], &["sleep", "60"]).failed("content", "no socket within 1 s");
    // Only the end of what it wrote is read, however much that is.
    let talkative = "truncate -s 1T /proc/self/fd/1; echo its last words; exit 1";
    let said = check(&[one], &["sh", "-c", talkative]);
    assert!(said.results()["content"]["log"].as_str().unwrap().ends_with("last words"), "{:?}", said.lines);
    let said = check(&[one], &["/nonexistent/server"]);
    assert_eq!((said.status, &said.lines[0]["error"]["code"]), (3, &json!("uffd.io")), "{}", said.log);
}

#[test]
fn the_scenarios_are_listed_with_what_must_hold_and_one_that_is_not_is_refused_by_name() {
    let said = check(&["--list"], &[]);
    assert_eq!(said.status, 0, "{}", said.log);
    assert!(said.lines.iter().all(|line| line["event"] == "scenario" && line["must"].is_string()));
    assert!(said.results().contains_key("discard-storm") && said.results().contains_key("handshake-never"));
    let said = check(&["scenarios:=[\"contents\"]"], &["true"]);
    assert_eq!(said.status, 2);
    assert!(said.lines[0]["error"]["message"].as_str().unwrap().contains("\"contents\""));
    let said = check(&["timeout_s:=0"], &["true"]);
    assert_eq!(said.status, 2);
}

#[test]
fn nothing_of_a_server_is_left_and_interrupting_leaves_nothing_either() {
    if !is_possible() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_wrenn-uffd"))
        .args(["check", "--", "sh", "-c", "sleep 600 & echo $! $$ > pids; mv pids started; wait"])
        .current_dir(dir.path())
        .env("TMPDIR", dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = dir.path().join("started");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !started.exists() {
        assert!(Instant::now() < deadline, "the server was never started");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pids = std::fs::read_to_string(&started).unwrap();
    let of = |pid: &str| sys::process::Process::of_pid(pid.parse().unwrap());
    let processes: Vec<_> = pids.split_whitespace().filter_map(|pid| of(pid).ok()).collect();
    assert_eq!(processes.len(), 2);
    let check = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(check, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(processes.iter().all(|process| !process.is_alive()));
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["started"]);
}

#[test]
fn a_check_that_is_killed_takes_its_server_along() {
    if !is_possible() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_wrenn-uffd");
    let mut child = Command::new(program)
        .args(["check", "scenarios:=[\"handshake-never\"]", "--", program, "serve"])
        .args(["source.raw={memory}", "socket={socket}"])
        .env("TMPDIR", dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let log = || {
        let attempt = std::fs::read_dir(dir.path()).unwrap().flatten().next()?;
        std::fs::read_to_string(attempt.path().join("log")).ok()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    let listening = loop {
        assert!(Instant::now() < deadline, "the server never listened");
        let text = log().unwrap_or_default();
        match text.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok()) {
            Some(event) => break event,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let server = sys::process::Process::of_pid(listening["pid"].as_i64().unwrap() as i32).unwrap();
    let has_vmm = || {
        let path = format!("/proc/{0}/task/{0}/children", child.id());
        let children = std::fs::read_to_string(path).unwrap_or_default();
        children.split_whitespace().any(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.contains("--vmm"))
        })
    };
    while !has_vmm() {
        assert!(Instant::now() < deadline, "the VMM was never started");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(server.wait(Duration::from_secs(30)).unwrap(), "the server goes on");
    while std::fs::read_dir(dir.path()).unwrap().next().is_some() {
        assert!(Instant::now() < deadline, "its files stay");
        std::thread::sleep(Duration::from_millis(5));
    }
}
