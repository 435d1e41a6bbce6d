//! What happens at a bad moment: a VMM, a server or a guardian that dies, or stands still, while somebody waits for it.

mod common;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use common::{Bench, Foreground, Serving, Vmm, await_end, server_of, service_of, serving};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::Value;
use sys::process::Process;
use wrenn_tests::hold::hold;

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

#[test]
fn who_asks_as_a_vmm_dies_is_answered_and_the_service_ends() {
    let bench = Bench::new(64);
    for _ in 0..8 {
        let document = bench.detached(&["prefetch=none"]);
        let vmm = Vmm::start(&bench.run("uffd.sock"), 64);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    // Until there is nobody to ask.
                    while bench.verb(&["stats", "id=vm"]).status() == 0 {}
                });
            }
            std::thread::sleep(Duration::from_millis(20));
            vmm.kill();
        });
        await_end(&service_of(&document));
    }
}

#[test]
fn a_vmm_that_ends_while_its_server_is_being_replaced_ends_the_service_as_always() {
    let bench = Bench::new(64);
    for late in [false, true] {
        let document = bench.detached(&["prefetch=none"]);
        let vmm = Vmm::start(&bench.run("uffd.sock"), 64);
        assert_eq!(bench.stats()["state"], "serving");
        let (server, guardian) = (server_of(&document), service_of(&document));
        // The VMM ends before the server is asked to make room, or after it has.
        let held = if late { &guardian } else { &server };
        hold(held.pid);
        let restart = || bench.command(&["restart", "id=vm"]).stdout(Stdio::null()).spawn().unwrap();
        let asks = late.then(restart);
        if late {
            await_end(&server);
        } else {
            // It lies there before the VMM ends.
            let mut stream = UnixStream::connect(bench.run("uffd.ctl")).unwrap();
            stream.write_all(b"{\"verb\":\"restart\"}\n").unwrap();
        }
        vmm.kill();
        held.signal(Signal::SIGCONT).unwrap();
        // Nobody is there any more, and nothing has gone wrong.
        asks.into_iter().for_each(|mut asks| assert_eq!(asks.wait().unwrap().code(), Some(3)));
        await_end(&guardian);
        let log = std::fs::read_to_string(bench.run("uffd.log"));
        assert!(log.is_err(), "late: {late}: {log:?}");
    }
}

#[test]
fn a_vmm_that_hands_itself_over_while_its_service_ends_is_stopped() {
    for clients in ["clients:=1", "clients:=2"] {
        let bench = Bench::new(64);
        let document = bench.detached(&["prefetch=none", clients]);
        let (server, guardian) = (server_of(&document), service_of(&document));
        let mut vmm = Vmm::hesitating(&bench.run("uffd.sock"), 64);
        // The guardian listens to it before the server answers.
        assert_eq!(bench.stats()["state"], "handshake");
        hold(server.pid);
        guardian.signal(Signal::SIGTERM).unwrap();
        let told = || std::fs::read_to_string(format!("/proc/{}/status", server.pid)).unwrap();
        while !told().contains("ShdPnd:\t0000000000004000") {
            std::thread::yield_now();
        }
        vmm.tell("now");
        assert_eq!(vmm.answer(), "connected");
        server.signal(Signal::SIGCONT).unwrap();
        await_end(&guardian);
        assert!(vmm.process.wait(Duration::ZERO).unwrap(), "{clients}: the VMM was left to hang");
        vmm.await_stop();
    }
}

#[test]
fn a_server_that_is_told_to_end_and_whose_guardian_was_killed_stops_its_vmms() {
    for (clients, at_once) in [("clients:=1", false), ("clients:=0", false), ("clients:=1", true)] {
        let Serving { bench, server, guardian, vmm, .. } = serving(&[clients]);
        if at_once {
            guardian.signal(Signal::SIGKILL).unwrap();
        } else {
            hold(server.pid);
            guardian.end(Duration::ZERO).unwrap();
        }
        server.signal(Signal::SIGTERM).unwrap();
        server.signal(Signal::SIGCONT).unwrap();
        await_end(&server);
        assert!(vmm.process.wait(Duration::ZERO).unwrap(), "{clients}: the VMM was left to hang");
        vmm.await_stop();
        assert!(!bench.run("uffd.sock").exists() && !bench.run("uffd.ctl").exists());
    }
}

#[test]
fn hundreds_of_vms_are_all_in_stats_and_outlive_their_server() {
    let bench = Bench::new(1);
    let document = bench.detached(&["clients:=0"]);
    // This process is all of the VMMs: each has its memory before anything can go wrong.
    let connect = |_| common::connect(&bench.run("uffd.sock"), 1);
    let vms: Vec<_> = (0..300).map(connect).collect();
    let all = || {
        let stats = bench.stats();
        assert_eq!((&stats["came"], stats["vms"].as_array().unwrap().len()), (&300.into(), 300));
        stats
    };
    while all()["missing_bytes"] != 0 {}
    server_of(&document).end(Duration::ZERO).unwrap();
    assert_eq!(all()["restarts"], 1);
    assert!(vms.iter().all(|(memory, _)| memory.load(0) == 0), "page 0 is zero");
    bench.verb(&["stop", "id=vm"]).success();
}

#[test]
fn vms_that_have_no_time_keep_nobody_from_an_answer() {
    let bench = Bench::new(1);
    let document = bench.detached(&["clients:=0"]);
    // This process is all of the VMMs: each has its memory before anything can go wrong.
    let vms: Vec<_> = (0..8).map(|_| common::connect(&bench.run("uffd.sock"), 1)).collect();
    while bench.stats()["missing_bytes"] != 0 {}
    let server = server_of(&document);
    let threads: Vec<_> = threads(&server, "vmm-").collect();
    assert_eq!(threads.len(), vms.len());
    // As if each waited for a disk.
    for thread in &threads {
        match ptrace::seize(*thread, ptrace::Options::empty()) {
            Err(Errno::EPERM) => return wrenn_tests::skip::here("may not trace its own server"),
            done => done.unwrap(),
        }
        ptrace::interrupt(*thread).unwrap();
        waitpid(*thread, Some(WaitPidFlag::__WALL)).unwrap();
    }
    // Eight times the patience for one would be more than a verb's.
    let stats = bench.stats();
    let busy = |vm: &Value| vm["state"] == "busy" && vm["peer_pid"] == std::process::id();
    assert!(stats["vms"].as_array().unwrap().iter().all(busy), "{stats}");
    assert_eq!((&stats["missing_bytes"], &stats["complete"]), (&Value::Null, &false.into()));
    bench.verb(&["stop", "id=vm"]).error("timeout", "uffd.no_answer");
    threads.iter().for_each(|thread| ptrace::detach(*thread, None).unwrap());
    assert_eq!(bench.stats()["missing_bytes"], 0);
    bench.verb(&["stop", "id=vm"]).success();
    assert!(vms.iter().all(|(memory, _)| memory.load(0) == 0), "page 0 is zero");
}

/// The threads of this name.
fn threads(process: &Process, name: &str) -> impl Iterator<Item = Pid> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.pid)).unwrap().flatten();
    let threads = threads.filter(move |thread| {
        std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.starts_with(name))
    });
    threads.map(|thread| Pid::from_raw(thread.file_name().to_str().unwrap().parse().unwrap()))
}

#[test]
fn a_vmm_that_dies_before_anybody_hears_it_is_one_of_those_that_came() {
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &["prefetch=none", "clients:=2"]);
    let guardian = Process::of_pid(server.child.id() as i32).unwrap();
    hold(guardian.pid);
    Vmm::start(&bench.run("uffd.sock"), 64).kill();
    guardian.signal(Signal::SIGCONT).unwrap();
    assert_eq!(server.until("left")["vmm"], "gone");
    let mut second = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(second.ask("check 0 64 image"), "same");
    second.kill();
    assert_eq!(server.until("closed")["came"], 2);
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_vmm_that_its_guardian_was_killed_before_hearing_is_stopped_and_others_are_served_on() {
    let Serving { bench, guardian, vmm: mut first, .. } = serving(&["clients:=0"]);
    hold(guardian.pid);
    let mut second = Vmm::start(&bench.run("uffd.sock"), 64);
    second.tell("check 0 64 image");
    // It has said nothing: it is not known whether it is a VMM.
    let silent = UnixStream::connect(bench.run("uffd.sock")).unwrap();
    guardian.end(Duration::ZERO).unwrap();
    second.await_stop();
    assert_eq!(first.ask("check 0 64 image"), "same");
    silent.set_read_timeout(Some(common::LIMIT)).unwrap();
    assert_eq!((&silent).read(&mut [0]).unwrap(), 0, "it is let go");
    assert!(UnixStream::connect(bench.run("uffd.sock")).is_err(), "nobody hears another one");
    first.kill();
}

#[test]
fn the_only_vmm_is_stopped_when_its_guardian_was_killed_before_hearing_it() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none"]);
    let (server, guardian) = (server_of(&document), service_of(&document));
    hold(guardian.pid);
    let vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    guardian.end(Duration::ZERO).unwrap();
    vmm.await_stop();
    await_end(&server);
    assert!(!bench.run("uffd.sock").exists() && !bench.run("uffd.ctl").exists());
    let log = std::fs::read_to_string(bench.run("uffd.log")).unwrap();
    assert!(log.contains("vmm_stopped"), "{log}");
}

#[test]
fn a_vmm_too_many_is_stopped_and_does_not_wait_for_ever() {
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &[]);
    let (_memory, uffd, message) = common::registered(64);
    let mut stream = UnixStream::connect(bench.run("uffd.sock")).unwrap();
    stream.write_all(&message[..9]).unwrap();
    assert_eq!(bench.stats()["state"], "handshake");
    let mut second = Vmm::start(&bench.run("uffd.sock"), 64);
    second.tell("check 0 64 image");
    sys::fdpass::send(&stream, &message[9..], &[uffd.as_fd()]).unwrap();
    let warning = server.until("warning");
    assert_eq!((&warning["peer_pid"], &warning["stopped"]), (&second.process.pid.into(), &true.into()));
    second.child.wait().unwrap();
    server.until("prefetched");
    bench.await_complete();
}

#[test]
fn a_vmm_with_all_of_its_memory_lives_on_however_its_service_ends() {
    let bench = Bench::new(64);
    for signal in [Some(Signal::SIGKILL), Some(Signal::SIGTERM), None] {
        let document = bench.detached(&[]);
        let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
        bench.await_complete();
        let (guardian, server) = (service_of(&document), server_of(&document));
        // Both at once, whichever is heard first.
        hold(guardian.pid);
        guardian.signal(Signal::SIGTERM).unwrap();
        if let Some(signal) = signal {
            server.signal(signal).unwrap();
            await_end(&server);
        }
        guardian.signal(Signal::SIGCONT).unwrap();
        await_end(&guardian);
        assert_eq!(vmm.ask("discard 3 1"), "Ok(())", "{signal:?}");
        assert_eq!(vmm.ask("check 3 4 zero"), "same");
        assert_eq!(vmm.ask("check 4 64 image"), "same");
        vmm.kill();
    }
}

#[test]
fn a_guardian_that_stood_still_goes_on_and_so_do_the_verbs() {
    let Serving { bench, document, guardian, mut vmm, .. } = serving(&["clients:=0"]);
    hold(guardian.pid);
    let asking: Vec<_> = (0..600)
        .map(|_| {
            let mut stream = UnixStream::connect(bench.run("uffd.ctl")).unwrap();
            // The server may have let it go by now: so many it does not keep.
            let _ = stream.write_all(b"{\"verb\":\"look\"}\n");
            stream
        })
        .collect();
    assert_eq!(vmm.ask("check 0 64 image"), "same");
    guardian.signal(Signal::SIGCONT).unwrap();
    assert_eq!(bench.stats()["came"], 1);
    drop(asking);
    let server = server_of(&document);
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid)).unwrap().count();
    assert!(open < 30, "{open} descriptors are open");
    vmm.kill();
}

#[test]
fn servers_that_did_their_work_and_died_were_not_started_in_vain() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none", "clients:=0"]);
    let mut keeps = Vmm::start(&bench.run("uffd.sock"), 64);
    for round in 0..6 {
        let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
        assert_eq!(vmm.ask("check 0 64 image"), "same", "round {round}");
        let gone = vmm.process.clone();
        vmm.kill();
        let here =
            |stats: &Value| stats["vms"].as_array().unwrap().iter().any(|vm| vm["peer_pid"] == gone.pid);
        while here(&bench.stats()) {}
        server_of(&document).end(Duration::ZERO).unwrap();
    }
    assert_eq!(keeps.ask("check 0 64 image"), "same");
    keeps.kill();
}
