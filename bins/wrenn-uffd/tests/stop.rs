//! `stop` of a service that does not answer: no VMM is left hanging, and none is stopped unasked.

mod common;

use std::fs;
use std::time::Duration;

use common::{Bench, Serving, Vmm, await_end, service_of, serving};
use nix::sys::signal::Signal;
use wrenn_tests::hold::hold;

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

fn a_stuck_guardian_is_stopped(more: &str) {
    let Serving { bench, document, server, guardian, vmm } = serving(&[more]);
    hold(guardian.pid);
    bench.on("stop", &document, &["force:=true"]).success();
    assert!(!guardian.is_alive() && !server.is_alive());
    assert!(vmm.process.wait(Duration::ZERO).unwrap(), "the VMM was left to hang");
    assert!(!bench.path("run/vm").exists());
}

#[test]
fn the_only_vmm_of_a_stuck_guardian_is_stopped() {
    a_stuck_guardian_is_stopped("clients:=1");
}

#[test]
fn a_vmm_of_several_of_a_stuck_guardian_is_stopped() {
    a_stuck_guardian_is_stopped("clients:=0");
}

#[test]
fn the_vmm_of_a_stuck_guardian_that_has_all_its_memory_lives_on() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=all"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    bench.await_complete();
    hold(service_of(&document).pid);
    bench.on("stop", &document, &[]).success();
    assert!(!service_of(&document).is_alive());
    assert_eq!(vmm.ask("discard 0 8"), "Ok(())");
    assert_eq!(vmm.ask("check 8 64 image"), "same");
}

#[test]
fn a_server_that_does_not_answer_is_stopped_by_its_path_alone_with_all_it_has_and_not_unasked() {
    let Serving { bench, document, server, guardian, mut vmm } = serving(&[]);
    hold(server.pid);
    let control = format!("control={}", bench.run("uffd.ctl").display());
    bench.verb(&["stop", &control]).error("timeout", "uffd.no_answer");
    bench.on("stop", &document, &[]).error("timeout", "uffd.no_answer");
    server.signal(Signal::SIGCONT).unwrap();
    assert_eq!(vmm.ask("check 20 40 image"), "same");
    hold(server.pid);
    bench.verb(&["stop", &control, "force:=true"]).success();
    assert!(!guardian.is_alive() && !server.is_alive());
    vmm.await_stop();
    assert_eq!(fs::read_dir(bench.path("run/vm")).unwrap().count(), 0);
}

#[test]
fn where_server_and_guardian_are_stuck_the_vmm_is_stopped_too() {
    let Serving { bench, server, guardian, vmm, .. } = serving(&[]);
    hold(server.pid);
    hold(guardian.pid);
    bench.verb(&["stop", "id=vm", "force:=true"]).success();
    assert!(!guardian.is_alive() && !server.is_alive());
    vmm.await_stop();
}

#[test]
fn a_server_that_does_not_answer_and_whose_vmm_is_gone_is_stopped_unforced() {
    let Serving { bench, document, server, guardian, vmm } = serving(&[]);
    hold(server.pid);
    vmm.kill();
    bench.on("stop", &document, &[]).success();
    assert!(!server.is_alive());
    await_end(&guardian);
    assert!(!bench.path("run/vm").exists());
}
