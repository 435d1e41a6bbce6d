//! A server's life as its user sees it.

mod common;

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use common::{
    Bench, Foreground, LIMIT, PAGE, Vmm, await_end, connect, content, parent_of, server_of, service_of,
};
use nix::sys::signal::Signal;
use sys::process::Process;
use sys::uffd::Memory;
use uffd::handshake::{Greeting, Handshake};
use uffd::{Engine, Prefetch, Step};
use wrenn_tests::hold::hold;

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

fn page(memory: &Memory, page: usize) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    memory.read(page * PAGE, &mut bytes);
    bytes
}

#[test]
fn in_the_foreground_it_tells_what_happens_from_listening_to_closed() {
    let bench = Bench::new(1000);
    let mut server = Foreground::start(&bench, &[]);
    let vmm = Vmm::start(&bench.run("uffd.sock"), 1000);
    let connected = server.event();
    assert_eq!(connected["event"], "connected");
    assert_eq!((&connected["regions"], &connected["bytes"]), (&1.into(), &(1000 * PAGE).into()));
    assert_eq!(connected["peer_pid"], vmm.process.pid);
    let prefetched = server.event();
    assert_eq!(prefetched["event"], "prefetched");
    assert_eq!((&prefetched["pages"], &prefetched["complete"]), (&1000.into(), &true.into()));
    assert!(prefetched["ms"].as_f64().unwrap() > 0.0);
    assert!(!bench.run("uffd.sock").exists(), "a second VMM has nowhere to connect");
    vmm.kill();
    let closed = server.event();
    assert_eq!(
        (&closed["event"], &closed["reason"], &closed["vmm"]),
        (&"closed".into(), &"vmm_gone".into(), &"gone".into())
    );
    assert_eq!(
        (&closed["copied"], &closed["zeroed"], &closed["removed"]),
        (&800.into(), &200.into(), &0.into())
    );
    assert!(server.child.wait().unwrap().success());
    assert!(!bench.run("uffd.ctl").exists());
}

#[test]
fn detached_it_prints_the_document_once_it_listens_and_keeps_nothing_of_its_caller() {
    let bench = Bench::new(64);
    let mut child = bench
        .command(&["serve", "id=vm", "source.raw=memory", "detach:=true", "prefetch=none"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Both end only when nobody has them open any more, and the server lives on.
    let (mut reply, mut log) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut reply).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(child.wait().unwrap().success(), "{log}");
    let document: serde_json::Value = serde_json::from_str(&reply).unwrap();
    let server = server_of(&document);
    let guardian = parent_of(&server);
    assert!(server.is_alive() && guardian.is_alive());
    for process in [&server, &guardian] {
        let link = |fd: &str| std::fs::read_link(format!("/proc/{}/fd/{fd}", process.pid)).unwrap();
        assert_eq!((link("0"), link("1")), ("/dev/null".into(), "/dev/null".into()));
        assert_eq!(link("2"), bench.run("uffd.log"));
        let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(process.pid))).unwrap();
        assert_ne!(session, nix::unistd::getsid(None).unwrap());
    }
    let (memory, uffd) = connect(&bench.run("uffd.sock"), 64);
    assert!((0..64).all(|index| page(&memory, index) == content(index)));
    drop((memory, uffd));
    let document = bench.on("stop", &document, &["force:=true"]);
    // The VMM is this very process, and it has all of its memory.
    assert!(document.success().get("uffd").is_none());
    assert!(!server.is_alive() && !guardian.is_alive());
    assert!(!bench.run("uffd.sock").exists() && !bench.path("run/vm").exists());
}

#[test]
fn stats_names_every_discard_that_has_returned() {
    let bench = Bench::new(1000);
    let document = bench.detached(&[]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 1000);
    for round in 0..50 {
        assert_eq!(vmm.ask(&format!("discard {} 3", round * 10)), "Ok(())");
        let reply = bench.on("stats", &document, &[]).success();
        assert_eq!(reply["uffd"]["removed"], bench.run("uffd.removed").to_str().unwrap());
        assert_eq!(reply["uffd"]["stats"]["removed"], (round + 1) * 3);
        let expected: Vec<_> = (0..=round).map(|round| (round * 10, 3)).collect();
        assert_eq!(bench.removed(), expected);
    }
    bench.await_complete();
    assert_eq!(vmm.ask("check 3 10 image"), "same");
    assert_eq!(vmm.ask("check 490 493 zero"), "same");
    assert_eq!(vmm.ask("check 493 1000 image"), "same");
    assert_eq!(bench.removed().len(), 50, "what was discarded stays named");
    assert_eq!(bench.stats()["complete"], true);
}

#[test]
fn a_server_is_asked_by_its_document_and_a_document_of_another_time_asks_nobody() {
    let bench = Bench::new(64);
    let old = bench.detached(&[]);
    bench.on("stop", &old, &[]).success();
    bench.on("stop", &old, &[]).success();
    bench.on("stats", &old, &[]).error("not_found", "uffd.not_running");
    let new = bench.detached(&[]);
    bench.on("stats", &old, &[]).error("not_found", "uffd.not_running");
    bench.on("stop", &old, &[]).success();
    assert!(service_of(&new).is_alive(), "it is not the old document's to stop");
    assert_eq!(bench.on("stats", &new, &[]).success()["uffd"]["stats"]["state"], "listening");
    bench.on("stop", &new, &[]).success();
    assert!(!service_of(&new).is_alive());
}

#[test]
fn a_sandbox_that_booted_has_no_server_to_ask_or_to_stop() {
    let bench = Bench::new(64);
    let booted = serde_json::json!({"id": "vm", "vm": {"pid": 1}});
    for verb in ["stats", "stop"] {
        let mut reply = bench.on(verb, &booted, &[]).success();
        reply.as_object_mut().unwrap().remove("timings_ms");
        assert_eq!(reply, booted);
    }
}

#[test]
fn a_vm_that_would_hang_is_not_left_behind() {
    let bench = Bench::new(1000);
    let document = bench.detached(&["prefetch=none"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 1000);
    let error = bench.on("stop", &document, &[]).error("conflict", "uffd.vm_alive");
    assert!(error["message"].as_str().unwrap().contains("4096000 bytes"), "{error}");
    assert_eq!(vmm.ask("check 0 10 image"), "same", "the server goes on");
    bench.on("stop", &document, &["force:=true"]).success();
    await_end(&vmm.process);
    assert!(!vmm.child.wait().unwrap().success());
    assert!(!service_of(&document).is_alive());
}

#[test]
fn a_vm_with_all_its_memory_lives_on_without_its_server() {
    let bench = Bench::new(1000);
    let document = bench.detached(&[]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 1000);
    assert_eq!(vmm.ask("discard 100 50"), "Ok(())");
    bench.await_complete();
    bench.on("stop", &document, &[]).success();
    assert!(!service_of(&document).is_alive());
    assert_eq!(vmm.ask("discard 200 50"), "Ok(())");
    assert_eq!(vmm.ask("check 0 100 image"), "same");
    assert_eq!(vmm.ask("check 100 150 zero"), "same");
    assert_eq!(vmm.ask("check 150 200 image"), "same");
    assert_eq!(vmm.ask("check 200 250 zero"), "same");
    assert_eq!(vmm.ask("check 250 1000 image"), "same");
}

#[test]
fn a_vmm_killed_while_it_waits_for_a_page_ends_its_server_quietly() {
    let bench = Bench::new(1000);
    let mut server = Foreground::start(&bench, &["prefetch=none"]);
    let held = bench.server();
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 1000);
    server.until("connected");
    // With the server held, the fault stays unanswered until the VMM is dead.
    hold(held.pid);
    vmm.tell("touch 3");
    await_waiting(&vmm);
    vmm.kill();
    held.signal(Signal::SIGCONT).unwrap();
    let closed = server.until("closed");
    assert_eq!(closed["reason"], "vmm_gone");
    assert!(server.child.wait().unwrap().success());
}

/// Waits until some thread of the VMM sleeps in the kernel's userfaultfd code.
fn await_waiting(vmm: &Vmm) {
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", vmm.process.pid)).unwrap();
        let waits = |task: std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("wchan")).is_ok_and(|wchan| wchan.contains("userfault"))
        };
        if tasks.flatten().any(waits) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "nobody waits for a page");
        std::thread::yield_now();
    }
}

#[test]
fn a_vmm_that_dies_between_a_fault_and_its_answer_is_gone() {
    let bench = Bench::new(64);
    let listener = UnixListener::bind(bench.path("s")).unwrap();
    let mut vmm = Vmm::start(&bench.path("s"), 64);
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let Greeting::Done(regions, uffd) = Handshake::new(stream, LIMIT).unwrap().advance().unwrap() else {
        panic!("it has said everything")
    };
    let mut engine = Engine::new(uffd, snap::Image::open_raw(&bench.raw()).unwrap(), regions).unwrap();
    vmm.tell("touch 3");
    assert!(sys::process::readable(engine.uffd(), LIMIT).unwrap());
    engine.drain().unwrap();
    assert!(engine.is_asked());
    vmm.kill();
    assert_eq!(engine.serve().unwrap(), Step::Gone);
    engine.plan(Prefetch::All, Vec::new());
    assert_eq!(engine.prefetch(1 << 20).unwrap(), Step::Gone);
}

#[test]
fn a_vmm_killed_while_its_memory_is_loaded_ends_its_server_quietly() {
    let bench = Bench::new(50_000);
    let mut server = Foreground::start(&bench, &[]);
    let vmm = Vmm::start(&bench.run("uffd.sock"), 50_000);
    server.until("connected");
    vmm.kill();
    let closed = server.until("closed");
    assert_eq!(closed["reason"], "vmm_gone");
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_server_that_does_not_answer_is_killed_by_stop() {
    let bench = Bench::new(64);
    let document = bench.detached(&[]);
    let server = server_of(&document);
    let guardian = parent_of(&server);
    hold(server.pid);
    bench.on("stop", &document, &[]).success();
    assert!(!server.is_alive());
    await_end(&guardian);
    assert!(!bench.run("uffd.ctl").exists());
}

#[test]
fn a_server_that_leaves_while_it_is_asked_to_end_is_no_trouble() {
    let bench = Bench::new(64);
    let document = bench.detached(&[]);
    let server = server_of(&document);
    hold(server.pid);
    let path = bench.run("uffd.ctl");
    let path = path.to_str().unwrap();
    let connections = || {
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        sockets.lines().filter(|line| line.ends_with(path)).count()
    };
    let listening = connections();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = std::time::Instant::now();
            while connections() == listening && start.elapsed() < LIMIT {
                std::thread::yield_now();
            }
            server.signal(Signal::SIGKILL).unwrap();
        });
        let stopped = bench.on("stop", &document, &[]);
        assert_eq!(stopped.log(), "");
        stopped.success();
    });
    assert!(!server.is_alive());
    assert!(!bench.run("uffd.ctl").exists());
}

#[test]
fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
    let bench = Bench::new(64);
    let document = bench.detached(&[]);
    bench.verb(&["serve", "id=vm", "source.raw=memory", "detach:=true"]).error("conflict", "uffd.in_use");
    assert!(bench.run("uffd.log").exists(), "the log of the one that listens is gone");
    assert!(server_of(&document).is_alive());
    let guardian = parent_of(&server_of(&document));
    // Neither can clear up: the sockets stay.
    let server = server_of(&document);
    hold(server.pid);
    guardian.signal(Signal::SIGKILL).unwrap();
    server.signal(Signal::SIGKILL).unwrap();
    await_end(&server);
    await_end(&guardian);
    assert!(bench.run("uffd.sock").exists());
    let document = bench.detached(&[]);
    let (memory, _uffd) = connect(&bench.run("uffd.sock"), 64);
    assert!(page(&memory, 1) == content(1));
    bench.await_complete();
    bench.on("stop", &document, &[]).success();
}

#[test]
fn a_reply_that_nobody_reads_leaves_no_server() {
    let bench = Bench::new(64);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = bench
        .command(&["serve", "id=vm", "source.raw=memory", "detach:=true"])
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(8));
    bench.verb(&["stats", "id=vm"]).error("not_found", "uffd.not_running");
    assert!(!bench.path("run/vm").exists());
}

/// A program that is not wrenn-uffd and serves: in process, as the supervisor does.
#[test]
#[ignore = "a part that another test starts"]
fn supervisor() {
    let host = wire::Host::from_env();
    let mut document = wire::Document::new();
    document.set("id", "vm");
    document.set("source.raw", std::env::var("UFFD_IMAGE").expect("a part that another test starts"));
    document.set("detach", true);
    let options = wire::Options::default();
    for _ in 0..3 {
        uffd::TOOL.call("serve", &mut document, &host, options).unwrap();
        let server = server_of(&document.clone().into_value());
        assert!(server.is_alive());
        uffd::TOOL.call("stats", &mut document, &host, options).unwrap();
        assert_eq!(document.need::<String>("uffd.stats.state").unwrap(), "listening");
        uffd::TOOL.call("stop", &mut document, &host, options).unwrap();
        assert!(!server.is_alive() && document.get("uffd").is_none());
    }
}

#[test]
fn another_program_serves_in_process() {
    let bench = Bench::new(4);
    let programs = std::path::Path::new(env!("CARGO_BIN_EXE_wrenn-uffd")).parent().unwrap();
    let supervisor = |path: &std::path::Path| {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "supervisor", "--ignored", "--nocapture"])
            .env("UFFD_IMAGE", bench.raw())
            .env("PATH", path)
            .env("WRENN_ROOT", bench.path("root"))
            .env("WRENN_RUN", bench.path("run"))
            .output()
            .unwrap()
    };
    let found = supervisor(programs);
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let lacks = supervisor(&bench.path("nowhere"));
    assert!(String::from_utf8_lossy(&lacks.stderr).contains("nor in PATH"), "{lacks:?}");
    assert!(!bench.path("run/vm").exists());
}

#[test]
fn told_to_end_in_the_foreground_it_takes_a_vm_that_would_hang_along() {
    let bench = Bench::new(1000);
    let mut server = Foreground::start(&bench, &["prefetch=none"]);
    let vmm = Vmm::start(&bench.run("uffd.sock"), 1000);
    server.until("connected");
    Process::of_pid(server.child.id() as i32).unwrap().signal(Signal::SIGTERM).unwrap();
    let closed = server.until("closed");
    assert_eq!((&closed["reason"], &closed["vmm"]), (&"signal".into(), &"stopped".into()));
    assert!(!vmm.process.is_alive());
    let status = server.child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    assert!(!bench.run("uffd.ctl").exists());
}
