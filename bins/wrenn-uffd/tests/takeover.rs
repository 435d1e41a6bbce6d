//! A server that dies, or is told to, is followed by another one, and the VM does not notice.

mod common;

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{Bench, Foreground, LIMIT, PAGE, Vmm, await_end, parent_of, server_of, service_of};
use nix::sys::signal::Signal;
use serde_json::Value;
use sys::process::Process;
use wrenn_tests::hold::hold;

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

/// Kills the server of this service.
fn kill_server(document: &Value) -> Process {
    let server = server_of(document);
    server.end(Duration::ZERO).unwrap();
    server
}

/// Lets the VMM do everything at once while `each` happens so often, at random moments, and holds it against its model.
fn storm(bench: &Bench, document: &Value, times: usize, mut each: impl FnMut(usize)) {
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), bench.pages);
    vmm.tell("storm 7");
    let mut random = 88_172_645_463_325_252_u64;
    for time in 0..times {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Some at once, some when much was done.
        std::thread::sleep(Duration::from_micros(random % 30_000));
        each(time);
    }
    let calmed = Instant::now();
    let discarded = vmm.calm();
    assert!(calmed.elapsed() < LIMIT, "somebody waited");
    let stats = bench.on("stats", document, &[]).success()["uffd"]["stats"].clone();
    assert_eq!(stats["restarts"], times);
    assert_eq!(common::list(&bench.removed()), discarded, "the list of what was discarded");
    vmm.kill();
}

#[test]
fn a_server_killed_again_and_again_under_load_loses_no_page_and_resurrects_none() {
    for prefetch in ["prefetch=none", "prefetch=all"] {
        let bench = Bench::new(6000);
        let document = bench.detached(&[prefetch]);
        storm(&bench, &document, 25, |time| {
            let killed = kill_server(&document);
            // It has taken over when it answers; every third is killed before.
            if time % 3 != 0 {
                assert_ne!(bench.stats()["server_pid"], killed.pid);
            }
        });
    }
}

#[test]
fn a_server_told_to_restart_again_and_again_under_load_does_neither() {
    let bench = Bench::new(6000);
    let document = bench.detached(&["prefetch=none"]);
    let mut before = server_of(&document);
    storm(&bench, &document, 15, |time| {
        let reply = bench.on("restart", &document, &[]).success();
        let uffd = &reply["uffd"];
        assert_eq!(uffd["stats"]["restarts"], time + 1);
        assert_ne!(uffd["stats"]["server_pid"], before.pid);
        assert!(uffd["restart_ms"].as_f64().unwrap() > 0.0);
        assert!(!before.is_alive());
        before = server_of(&document);
    });
}

#[test]
fn counters_and_what_was_loaded_go_on_and_the_plan_is_taken_up_where_it_stood() {
    let bench = Bench::new(1000);
    let mut server = Foreground::start(&bench, &["prefetch=all"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 1000);
    server.until("prefetched");
    assert_eq!(vmm.ask("discard 0 10"), "Ok(())");
    assert_eq!(vmm.ask("check 0 10 zero"), "same");
    let before = bench.stats();
    bench.server().end(Duration::ZERO).unwrap();
    let restarted = server.until("restarted");
    assert_eq!((&restarted["reason"], &restarted["restarts"]), (&"signal 9".into(), &1.into()));
    let after = bench.stats();
    for name in
        ["faults", "copied", "zeroed", "prefetched", "removed", "complete", "missing_bytes", "peer_pid"]
    {
        assert_eq!(after[name], before[name], "{name}");
    }
    assert_eq!(restarted["server_pid"], after["server_pid"]);
    vmm.kill();
    assert_eq!(server.until("closed")["vmm"], "gone");
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_vmm_that_introduces_itself_while_its_server_dies_is_served_by_the_next_one() {
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &[]);
    let die = |server: &Process| {
        server.end(Duration::ZERO).unwrap();
        bench.stats()
    };
    let (memory, uffd, message) = common::registered(64);
    let (first, second) = message.split_at(17);
    // Connected, half said, said but for the descriptor: each time the server dies.
    let mut stream = UnixStream::connect(bench.run("uffd.sock")).unwrap();
    die(&bench.server());
    stream.write_all(first).unwrap();
    assert_eq!(die(&bench.server())["state"], "handshake");
    let third = bench.server();
    hold(third.pid);
    sys::fdpass::send(&stream, second, &[uffd.as_fd()]).unwrap();
    // All is said, and the server has not been told.
    assert_eq!(server.until("connected")["peer_pid"], std::process::id());
    let stats = die(&third);
    assert_eq!((&stats["state"], &stats["restarts"]), (&"serving".into(), &3.into()));
    let mut bytes = [0; PAGE];
    memory.read(3 * PAGE, &mut bytes);
    assert!(bytes == common::content(3));
    // This process is the VMM: with all of its memory it is let go.
    bench.await_complete();
}

#[test]
fn a_vm_is_not_given_pages_of_another_image_that_has_taken_the_name() {
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &["prefetch=none"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 0 20 image"), "same");
    let other = bench.path("other");
    fs::write(&other, vec![7; 64 * PAGE]).unwrap();
    fs::rename(&other, bench.raw()).unwrap();
    bench.server().end(Duration::ZERO).unwrap();
    assert_eq!(server.until("failed")["error"]["code"], "uffd.image_replaced");
    vmm.child.wait().unwrap();
    assert_eq!(server.child.wait().unwrap().code(), Some(4));
}

#[test]
fn who_asks_while_nobody_serves_is_answered_by_the_next_one() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 0 1 image"), "same");
    for _ in 0..5 {
        let server = server_of(&document);
        hold(server.pid);
        std::thread::scope(|scope| {
            // Both wait for the one that is held: one has been accepted by nobody, one is told nothing.
            let stats = scope.spawn(|| bench.on("stats", &document, &[]).success());
            let restart = scope.spawn(|| bench.on("restart", &document, &[]).success());
            std::thread::sleep(Duration::from_millis(50));
            server.signal(Signal::SIGKILL).unwrap();
            assert_eq!(stats.join().unwrap()["uffd"]["stats"]["state"], "serving");
            restart.join().unwrap();
        });
    }
    assert_eq!(vmm.ask("check 0 64 image"), "same");
}

#[test]
fn a_server_that_dies_before_any_vmm_has_come_is_followed_too() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none"]);
    kill_server(&document);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 0 10 image"), "same");
    kill_server(&document);
    assert_eq!(vmm.ask("check 0 10 image"), "same");
    bench.on("restart", &document, &[]).success();
    assert_eq!(bench.stats()["restarts"], 3);
    bench.on("stop", &document, &["force:=true"]).success();
    assert!(!service_of(&document).is_alive());
    await_end(&vmm.process);
}

#[test]
fn a_server_that_dies_in_vain_again_and_again_is_given_up_and_its_vmm_stopped() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none"]);
    let service = service_of(&document);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 0 10 image"), "same");
    // The first has served; the next three have not.
    for _ in 0..5 {
        assert!(service.is_alive());
        kill_server(&document);
    }
    await_end(&service);
    await_end(&vmm.process);
    let log = fs::read_to_string(bench.run("uffd.log")).unwrap();
    assert!(log.contains("signal 9, as did the ones before it") && log.contains("vmm_stopped"), "{log}");
    vmm.child.wait().unwrap();
    bench.on("stats", &document, &[]).error("not_found", "uffd.not_running");
}

#[test]
fn when_there_is_nothing_to_start_again_on_the_vmm_is_stopped_and_the_log_says_why() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 0 10 image"), "same");
    fs::remove_file(bench.raw()).unwrap();
    kill_server(&document);
    await_end(&service_of(&document));
    await_end(&vmm.process);
    vmm.child.wait().unwrap();
    let log = fs::read_to_string(bench.run("uffd.log")).unwrap();
    assert!(log.contains("cannot open") && log.contains("vmm_stopped"), "{log}");
    assert!(!bench.run("uffd.ctl").exists());
    bench.on("stop", &document, &[]).success();
    assert!(!bench.path("run/vm").exists());
}

#[test]
fn when_its_program_is_gone_the_vmm_is_stopped_and_the_restart_says_so() {
    let bench = Bench::new(64);
    let program = bench.path("wrenn-uffd");
    fs::copy(env!("CARGO_BIN_EXE_wrenn-uffd"), &program).unwrap();
    let mut command = std::process::Command::new(&program);
    command.args(["serve", "id=vm", "source.raw=memory", "detach:=true", "prefetch=none"]);
    command.env("WRENN_ROOT", bench.path("root")).env("WRENN_RUN", bench.path("run")).env("PATH", "/nowhere");
    let output = command.current_dir(bench.path("")).output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 0 10 image"), "same");
    fs::remove_file(program).unwrap();
    bench.on("restart", &document, &[]).error("internal", "uffd.not_restarted");
    await_end(&service_of(&document));
    await_end(&vmm.process);
    vmm.child.wait().unwrap();
    assert!(fs::read_to_string(bench.run("uffd.log")).unwrap().contains("uffd.no_program"));
}

#[test]
fn a_vm_with_all_its_memory_needs_no_image_to_go_on() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=all"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("discard 8 8"), "Ok(())");
    bench.await_complete();
    fs::remove_file(bench.raw()).unwrap();
    kill_server(&document);
    assert_eq!(vmm.ask("check 8 16 zero"), "same");
    assert_eq!(vmm.ask("discard 0 8"), "Ok(())");
    assert_eq!(vmm.ask("check 0 16 zero"), "same");
    bench.on("stop", &document, &[]).success();
    assert_eq!(vmm.ask("check 16 64 image"), "same");
}

#[test]
fn a_server_whose_guardian_is_killed_goes_on_under_its_name_and_leaves_with_its_vmm() {
    let bench = Bench::new(1000);
    let document = bench.detached(&["prefetch=none"]);
    let (server, guardian) = (server_of(&document), service_of(&document));
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 1000);
    assert_eq!(vmm.ask("check 0 1 image"), "same");
    guardian.end(Duration::ZERO).unwrap();
    assert_eq!(vmm.ask("check 0 1000 image"), "same");
    let asked = wire::Document::from_value(document.clone()).unwrap();
    assert_eq!(uffd::serving(&asked, LIMIT).unwrap(), Some(server.clone()));
    assert_eq!(bench.on("stats", &document, &[]).success()["uffd"]["stats"]["state"], "serving");
    bench.on("restart", &document, &[]).error("conflict", "uffd.no_guardian");
    vmm.kill();
    await_end(&server);
    assert!(!bench.run("uffd.ctl").exists());
    assert_eq!(uffd::serving(&asked, LIMIT).unwrap(), None);
}

#[test]
fn a_server_without_a_guardian_is_stopped_by_the_old_document_also_when_it_does_not_answer() {
    for held in [false, true] {
        let bench = Bench::new(64);
        let document = bench.detached(&["prefetch=none"]);
        let server = server_of(&document);
        let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
        assert_eq!(vmm.ask("check 0 1 image"), "same");
        parent_of(&server).end(Duration::ZERO).unwrap();
        if held {
            hold(server.pid);
        } else {
            bench.on("stop", &document, &[]).error("conflict", "uffd.vm_alive");
        }
        bench.on("stop", &document, &["force:=true"]).success();
        assert!(!server.is_alive());
        await_end(&vmm.process);
        assert!(!bench.path("run/vm").exists());
    }
}

#[test]
fn when_both_are_killed_nobody_serves_and_that_can_be_seen() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none"]);
    let server = server_of(&document);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 0 1 image"), "same");
    service_of(&document).end(Duration::ZERO).unwrap();
    server.end(Duration::ZERO).unwrap();
    let asked = wire::Document::from_value(document.clone()).unwrap();
    assert_eq!(uffd::serving(&asked, LIMIT).unwrap(), None);
    assert!(vmm.process.is_alive(), "to be stopped by who looks");
    bench.on("stop", &document, &[]).success();
    assert!(UnixStream::connect(bench.run("uffd.ctl")).is_err());
}

#[test]
fn a_guardian_killed_while_it_starts_a_server_again_leaves_one_that_serves_or_none() {
    let bench = Bench::new(256);
    for round in 0..6 {
        let document = bench.detached(&["prefetch=none"]);
        let service = service_of(&document);
        let mut vmm = Vmm::start(&bench.run("uffd.sock"), 256);
        assert_eq!(vmm.ask("check 0 10 image"), "same");
        kill_server(&document);
        std::thread::sleep(Duration::from_micros(round * 700));
        service.end(Duration::ZERO).unwrap();
        let asked = wire::Document::from_value(document.clone()).unwrap();
        if uffd::serving(&asked, LIMIT).unwrap().is_some() {
            assert_eq!(vmm.ask("check 0 256 image"), "same", "round {round}");
        }
        vmm.kill();
        bench.on("stop", &document, &["force:=true"]).success();
    }
}

#[test]
fn epochs_outlive_the_server() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("discard 0 1"), "Ok(())");
    let ask = |parent: Option<&str>, dir: &str| {
        let mut asked = document.clone();
        fs::create_dir_all(bench.path(dir)).unwrap();
        asked["snapshot"] = serde_json::json!({"dir": bench.path(dir), "raw": bench.raw()});
        if let Some(parent) = parent {
            asked["snapshot"]["parent"] = bench.path(parent).to_str().into();
        }
        bench.on("stats", &asked, &[]).success();
        bench.removed()
    };
    assert_eq!(ask(None, "gen-1"), [(0, 1)]);
    assert_eq!(vmm.ask("discard 1 2"), "Ok(())");
    kill_server(&document);
    assert_eq!(vmm.ask("discard 5 1"), "Ok(())");
    assert_eq!(ask(Some("gen-1"), "gen-2"), [(1, 2), (5, 1)]);
    kill_server(&document);
    // Asked twice of one frozen VM.
    assert_eq!(ask(Some("gen-1"), "gen-2"), [(1, 2), (5, 1)]);
    assert_eq!(vmm.ask("discard 0 1"), "Ok(())");
    assert_eq!(ask(Some("gen-2"), "gen-3"), [(0, 1)]);
    assert_eq!(ask(None, "gen-4"), [(0, 3), (5, 1)]);
}

#[test]
fn a_vmm_that_no_server_has_heard_of_is_stopped_when_there_will_be_none() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none"]);
    let server = server_of(&document);
    hold(server.pid);
    // It has connected and sent all it has to say.
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    vmm.tell("check 1 2 image");
    fs::remove_file(bench.raw()).unwrap();
    server.end(Duration::ZERO).unwrap();
    await_end(&vmm.process);
    await_end(&service_of(&document));
    let log = fs::read_to_string(bench.run("uffd.log")).unwrap();
    assert!(log.contains("would have hung"), "{log}");
}
