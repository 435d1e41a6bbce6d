//! What a log is written to is no reason to leave a VMM alone.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::{Bench, Vmm, await_end, parent_of, server_of};
use nix::sys::signal::Signal;

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

#[test]
fn a_log_on_a_full_disk_ends_neither_the_guardian_nor_its_orphaned_server() {
    let bench = Bench::new(64);
    fs::create_dir_all(bench.path("run/vm")).unwrap();
    symlink("/dev/full", bench.run("uffd.log")).unwrap();
    let server = server_of(&bench.detached(&["prefetch=none"]));
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 0 20 image"), "same");
    let guardian = parent_of(&server);
    // It has been told of the VMM, and said so.
    assert_eq!(bench.stats()["state"], "serving");
    guardian.signal(Signal::SIGKILL).unwrap();
    await_end(&guardian);
    // The answer comes when the server knows, and has said, that it is alone.
    bench.verb(&["restart", "id=vm"]).error("conflict", "uffd.no_guardian");
    assert_eq!(vmm.ask("check 20 64 image"), "same");
    vmm.kill();
    await_end(&server);
}
