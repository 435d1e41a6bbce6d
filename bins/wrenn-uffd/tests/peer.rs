//! Who has connected: nobody else is taken for the VMM, and stopped in its place.

mod common;

use std::fs;
use std::process::{Child, Command, Stdio};

use common::{Bench, Foreground, Vmm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wrenn_tests::hold::hold;

const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

/// A process with this pid, which nobody has. `None` when somebody was faster.
fn with_pid(pid: i32) -> Option<Child> {
    (0..200).find_map(|_| {
        fs::write(LAST_PID, (pid - 1).to_string()).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        if child.id() as i32 == pid {
            return Some(child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        None
    })
}

#[test]
fn who_has_the_pid_of_a_vmm_that_is_gone_is_not_taken_for_it() {
    if fs::OpenOptions::new().write(true).open(LAST_PID).is_err() {
        return wrenn_tests::skip::here("needs CAP_CHECKPOINT_RESTORE, to choose a pid");
    }
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &["clients:=0", "prefetch=none"]);
    let guardian = Pid::from_raw(server.child.id() as i32);
    hold(guardian.as_raw());
    let vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    let pid = vmm.process.pid;
    vmm.kill();
    let Some(mut innocent) = with_pid(pid) else {
        kill(guardian, Signal::SIGCONT).unwrap();
        return wrenn_tests::skip::here("others took the pid");
    };
    kill(guardian, Signal::SIGCONT).unwrap();
    let event = server.event();
    bench.verb(&["stop", "id=vm", "force:=true"]).success();
    let lives = innocent.try_wait().unwrap().is_none();
    innocent.kill().unwrap();
    innocent.wait().unwrap();
    assert_eq!((&event["event"], &event["vmm"]), (&"left".into(), &"gone".into()), "{event}");
    assert!(lives, "it was stopped for somebody else");
}

#[test]
fn a_vmm_that_cannot_be_seen_from_here_is_refused_with_the_reason() {
    if !nix::unistd::geteuid().is_root() {
        return wrenn_tests::skip::here("needs root, for a pid namespace");
    }
    let bench = Bench::new(64);
    let mut inside = Command::new("unshare");
    inside.args(["--pid", "--fork", "--kill-child", "--mount-proc", env!("CARGO_BIN_EXE_wrenn-uffd")]);
    inside.args(["serve", "id=vm", "source.raw=memory"]).current_dir(bench.path(""));
    inside.env("WRENN_ROOT", bench.path("root")).env("WRENN_RUN", bench.path("run")).stderr(Stdio::null());
    let mut server = Foreground::from(inside);
    let _vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    let error = server.until("failed")["error"].clone();
    assert_eq!(error["code"], "uffd.handshake");
    assert!(error["message"].as_str().unwrap().contains("cannot be seen from here"), "{error}");
    server.child.wait().unwrap();
}
