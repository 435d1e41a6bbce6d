//! One service for several VMMs, one after another.

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Bench, Foreground, Vmm, await_end, server_of, service_of};

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

#[test]
fn as_many_vmms_as_are_wanted_are_served_one_after_another_each_from_the_image() {
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &["prefetch=none", "clients:=3"]);
    for round in 1..=3 {
        let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
        assert_eq!(server.until("connected")["peer_pid"], vmm.process.pid);
        assert_eq!(vmm.ask("discard 3 2"), "Ok(())", "round {round}");
        assert_eq!(vmm.ask("check 3 5 zero"), "same");
        assert_eq!(vmm.ask("check 5 64 image"), "same");
        assert_eq!(bench.stats()["peer_pid"], vmm.process.pid);
        assert_eq!(bench.removed(), [(3, 2)]);
        let pid = vmm.process.pid;
        vmm.kill();
        let left = server.until(if round < 3 { "left" } else { "closed" });
        assert_eq!((&left["vmm"], &left["peer_pid"]), (&"gone".into(), &pid.into()));
        assert_eq!((&left["removed"], &left["missing_bytes"]), (&2.into(), &(3 * 4096).into()));
    }
    assert!(server.child.wait().unwrap().success());
    assert!(!bench.run("uffd.sock").exists());
}

#[test]
fn the_next_vmm_waits_its_turn_and_a_bad_one_ends_nothing() {
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &["prefetch=none", "clients:=0"]);
    let socket = bench.run("uffd.sock");
    let mut first = Vmm::start(&socket, 64);
    assert_eq!(first.ask("check 0 64 image"), "same");
    let mut second = Vmm::start(&socket, 64);
    second.tell("check 0 64 image");
    UnixStream::connect(&socket).unwrap().write_all(b"GET / HTTP/1.1").unwrap();
    let mut too_large = Vmm::start(&socket, 65);
    let mut last = Vmm::start(&socket, 64);
    assert_eq!(first.ask("check 0 64 image"), "same");
    first.kill();
    assert_eq!(second.answer(), "same", "it is its turn");
    second.kill();
    server.until("left");
    server.until("left");
    assert_eq!(server.until("left")["error"]["code"], "uffd.handshake");
    let left = server.until("left");
    assert_eq!((&left["error"]["code"], &left["vmm"]), (&"uffd.image_short".into(), &"stopped".into()));
    too_large.child.wait().unwrap();
    assert_eq!(last.ask("check 0 20 image"), "same");
    bench.verb(&["stop", "id=vm", "force:=true"]).success();
    last.child.wait().unwrap();
    assert_eq!(server.until("closed")["reason"], "stopped");
    server.child.wait().unwrap();
}

#[test]
fn a_server_that_dies_is_followed_with_the_vmm_it_had_and_those_to_come() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none", "clients:=2"]);
    let kill = || server_of(&document).end(Duration::ZERO).unwrap();
    let mut first = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(first.ask("check 0 20 image"), "same");
    kill();
    assert_eq!(first.ask("check 0 64 image"), "same");
    first.kill();
    let mut second = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(second.ask("check 0 20 image"), "same");
    kill();
    assert_eq!(second.ask("check 0 64 image"), "same");
    assert!(!bench.run("uffd.sock").exists(), "nobody else is wanted");
    second.kill();
    await_end(&service_of(&document));
}
