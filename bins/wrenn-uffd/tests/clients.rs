//! One service for several VMMs, side by side and one after another.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Bench, Foreground, LIMIT, PAGE, Vmm, await_end, server_of, service_of};
use serde_json::{Value, json};
use sys::process::Process;
use wrenn_tests::hold::hold;

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

/// The sandbox's document, with this VMM for its VM.
fn document_of(vmm: &Process) -> Value {
    json!({"id": "vm", "vm": {"pid": vmm.pid, "start_time": vmm.start_time, "boot_id": vmm.boot_id},
           "uffd": {}})
}

/// What `stats` says of one VMM, with the pages in its list of discards.
fn stats_of(bench: &Bench, vmm: &Process) -> (Value, Vec<(usize, usize)>) {
    let uffd = bench.on("stats", &document_of(vmm), &[]).success()["uffd"].clone();
    let path = uffd["removed"].as_str().unwrap();
    assert!(path.ends_with(&format!("uffd.removed.{}", vmm.pid)), "{path}");
    (uffd["stats"].clone(), common::ranges(path.as_ref()))
}

#[test]
fn as_many_vmms_as_are_wanted_are_served_one_after_another_each_from_the_image() {
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &["prefetch=none", "clients:=3"]);
    for round in 1..=3 {
        let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
        let connected = server.until("connected");
        assert_eq!((&connected["peer_pid"], &connected["client"]), (&vmm.process.pid.into(), &round.into()));
        assert_eq!(vmm.ask("discard 3 2"), "Ok(())", "round {round}");
        assert_eq!(vmm.ask("check 3 5 zero"), "same");
        assert_eq!(vmm.ask("check 5 64 image"), "same");
        let (stats, removed) = stats_of(&bench, &vmm.process);
        assert_eq!(stats["peer_pid"], vmm.process.pid);
        assert_eq!(removed, [(3, 2)]);
        let pid = vmm.process.pid;
        vmm.kill();
        let left = server.until("left");
        assert_eq!((&left["vmm"], &left["peer_pid"]), (&"gone".into(), &pid.into()));
        assert_eq!((&left["removed"], &left["missing_bytes"]), (&2.into(), &(3 * 4096).into()));
        assert!(!bench.run(&format!("uffd.removed.{pid}")).exists(), "it is of no more use");
    }
    let closed = server.until("closed");
    assert_eq!((&closed["reason"], &closed["came"]), (&"vmm_gone".into(), &3.into()));
    assert!(server.child.wait().unwrap().success());
    assert!(!bench.run("uffd.sock").exists());
}

#[test]
fn vmms_are_served_side_by_side_and_each_has_memory_and_discards_of_its_own() {
    let bench = Bench::new(640);
    let mut server = Foreground::start(&bench, &["prefetch=none", "clients:=0"]);
    let mut vmms: Vec<_> = (0..4).map(|_| Vmm::start(&bench.run("uffd.sock"), 640)).collect();
    for (index, vmm) in vmms.iter_mut().enumerate() {
        assert_eq!(vmm.ask(&format!("discard {} 1", index * 2)), "Ok(())");
    }
    // All four wait for pages at the same time.
    vmms.iter_mut().for_each(|vmm| vmm.tell("check 10 640 image"));
    for (index, vmm) in vmms.iter_mut().enumerate() {
        assert_eq!(vmm.answer(), "same");
        for page in 0..4 {
            let what = if page == index { "zero" } else { "image" };
            assert_eq!(vmm.ask(&format!("check {} {} {what}", page * 2, page * 2 + 1)), "same");
        }
    }
    let all = bench.stats();
    assert_eq!(
        (&all["state"], &all["came"], all["vms"].as_array().unwrap().len()),
        (&"serving".into(), &4.into(), 4)
    );
    let mut missing = 0;
    for (index, vmm) in vmms.iter().enumerate() {
        let (stats, removed) = stats_of(&bench, &vmm.process);
        assert_eq!(removed, [(index * 2, 1)]);
        assert!(all["vms"].as_array().unwrap().iter().any(|vm| vm["peer_pid"] == vmm.process.pid));
        missing += stats["missing_bytes"].as_u64().unwrap();
    }
    assert_eq!(all["missing_bytes"], missing);
    let gone = vmms.pop().unwrap();
    let process = gone.process.clone();
    gone.kill();
    assert_eq!(server.until("left")["peer_pid"], process.pid);
    bench.on("stats", &document_of(&process), &[]).error("not_found", "uffd.not_served");
    let mut pause = document_of(&vmms[0].process);
    pause["snapshot"] = json!({"dir": bench.path("gen"), "raw": bench.path("raw")});
    bench.on("stats", &pause, &[]).success();
    pause.as_object_mut().unwrap().remove("vm");
    bench.on("stats", &pause, &[]).error("invalid", "uffd.which_vm");
    assert_eq!(vmms[0].ask("check 10 640 image"), "same");
    bench.verb(&["stop", "id=vm"]).error("conflict", "uffd.vm_alive");
    bench.verb(&["stop", "id=vm", "force:=true"]).success();
    for mut vmm in vmms {
        vmm.child.wait().unwrap();
        assert_eq!(server.until("left")["vmm"], "stopped");
    }
    assert_eq!(server.until("closed")["reason"], "stopped");
    assert!(server.child.wait().unwrap().success());
    let left: Vec<_> = fs::read_dir(bench.run("")).into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_bad_vmm_or_one_that_says_nothing_holds_nobody_up_and_ends_nothing() {
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &["prefetch=none", "clients:=0"]);
    let socket = bench.run("uffd.sock");
    let silent = UnixStream::connect(&socket).unwrap();
    let mut first = Vmm::start(&socket, 64);
    assert_eq!(first.ask("check 0 64 image"), "same");
    UnixStream::connect(&socket).unwrap().write_all(b"GET / HTTP/1.1").unwrap();
    assert_eq!(server.until("left")["error"]["code"], "uffd.handshake");
    let mut too_large = Vmm::begin(&socket, 65);
    let left = server.until("left");
    assert_eq!((&left["error"]["code"], &left["vmm"]), (&"uffd.image_short".into(), &"stopped".into()));
    too_large.child.wait().unwrap();
    let mut last = Vmm::start(&socket, 64);
    assert_eq!(last.ask("check 0 20 image"), "same");
    let left = server.until("left");
    assert_eq!((&left["error"]["code"], &left["vmm"]), (&"uffd.handshake_late".into(), &"none".into()));
    drop(silent);
    assert_eq!(first.ask("check 0 64 image"), "same");
    assert_eq!(last.ask("check 20 64 image"), "same");
    // Both have all of their memory: they get it back, and live on.
    bench.verb(&["stop", "id=vm"]).success();
    assert_eq!(
        (&server.until("left")["vmm"], &server.until("left")["vmm"]),
        (&"released".into(), &"released".into())
    );
    server.until("closed");
    assert_eq!(first.ask("check 0 64 image"), "same");
    assert_eq!(last.ask("discard 3 1"), "Ok(())");
    assert_eq!(last.ask("check 3 4 zero"), "same");
    server.child.wait().unwrap();
}

#[test]
fn vmms_that_come_while_as_many_as_are_wanted_introduce_themselves_wait_for_their_turn() {
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &["prefetch=none", "clients:=1"]);
    let silent = UnixStream::connect(bench.run("uffd.sock")).unwrap();
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    vmm.tell("check 0 64 image");
    drop(silent);
    assert_eq!(vmm.answer(), "same");
    vmm.kill();
    server.until("closed");
}

#[test]
fn more_vmms_than_there_are_descriptors_for_wait_until_others_have_gone() {
    let bench = Bench::new(64);
    let words = ["serve", "id=vm", "source.raw=memory", "prefetch=none", "clients:=0"];
    // For two: an eighth.
    let mut server = Foreground::from(limited(bench.command(&words), 16 + 7));
    let mut vmms: Vec<_> = (0..2).map(|_| Vmm::start(&bench.run("uffd.sock"), 64)).collect();
    let mut third = Vmm::start(&bench.run("uffd.sock"), 64);
    third.tell("check 0 64 image");
    for vmm in &mut vmms {
        assert_eq!(vmm.ask("check 0 64 image"), "same");
    }
    assert_eq!(bench.stats()["came"], 2);
    vmms.pop().unwrap().kill();
    assert_eq!(third.answer(), "same");
    third.kill();
    vmms.pop().unwrap().kill();
    server.until("left");
}

/// The same command with so many descriptors at most.
fn limited(command: std::process::Command, most: u64) -> std::process::Command {
    let mut limited = std::process::Command::new("prlimit");
    limited.arg(format!("--nofile={most}")).arg(command.get_program()).args(command.get_args());
    limited.current_dir(command.get_current_dir().unwrap());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited
}

#[test]
fn a_server_that_dies_is_followed_with_all_vmms_it_had_and_those_to_come() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none", "clients:=3"]);
    let kill = || server_of(&document).end(Duration::ZERO).unwrap();
    let mut first = Vmm::start(&bench.run("uffd.sock"), 64);
    let mut second = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(first.ask("check 0 20 image"), "same");
    assert_eq!(second.ask("discard 0 20"), "Ok(())");
    kill();
    assert_eq!(first.ask("check 0 64 image"), "same");
    assert_eq!(second.ask("check 0 20 zero"), "same");
    assert_eq!(second.ask("check 20 64 image"), "same");
    // One that dies with its server is let go.
    let server = server_of(&document);
    hold(server.pid);
    let process = first.process.clone();
    first.kill();
    kill();
    let mut third = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(third.ask("check 0 20 image"), "same");
    assert_eq!(second.ask("check 20 64 image"), "same");
    assert!(
        fs::read_to_string(bench.run("uffd.log")).unwrap().lines().any(|line| {
            line.contains(" left ") && line.contains(&format!("\"peer_pid\":{}", process.pid))
        })
    );
    assert!(!bench.run("uffd.sock").exists(), "nobody else is wanted");
    bench.on("restart", &document, &[]).success();
    assert_eq!(third.ask("check 0 64 image"), "same");
    assert_eq!(stats_of(&bench, &second.process).1, [(0, 20)]);
    second.kill();
    third.kill();
    await_end(&service_of(&document));
}

#[test]
fn three_vmms_lose_no_page_and_resurrect_none_while_their_server_is_killed_again_and_again() {
    let bench = Bench::new(3000);
    let document = bench.detached(&["clients:=0"]);
    let mut vmms: Vec<_> = (0..3).map(|_| Vmm::start(&bench.run("uffd.sock"), 3000)).collect();
    vmms.iter_mut().enumerate().for_each(|(index, vmm)| vmm.tell(&format!("storm {}", index + 1)));
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(20));
        let killed = server_of(&document);
        killed.end(Duration::ZERO).unwrap();
        assert_ne!(bench.stats()["server_pid"], killed.pid);
    }
    for mut vmm in vmms {
        let discarded = vmm.calm();
        let (stats, removed) = stats_of(&bench, &vmm.process);
        assert_eq!(stats["restarts"], 12);
        assert_eq!(common::list(&removed), discarded);
        vmm.kill();
    }
    bench.verb(&["stop", "id=vm"]).success();
}

#[test]
fn who_reads_no_events_keeps_no_server_from_being_followed_and_the_service_from_ending() {
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &["prefetch=none"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 0 20 image"), "same");
    // Each is told as an event of half a kilobyte: more than a pipe takes.
    let first = bench.server();
    for _ in 0..200 {
        bench.stats();
    }
    first.end(Duration::ZERO).unwrap();
    assert_eq!(vmm.ask("check 0 64 image"), "same");
    assert_ne!(bench.server(), first);
    let service = Process::of_pid(server.child.id() as i32).unwrap();
    service.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(service.wait(LIMIT).unwrap(), "it waits for somebody to read");
    assert!(!server.child.wait().unwrap().success());
    assert!(!bench.run("uffd.sock").exists());
    assert_eq!(vmm.ask("check 0 64 image"), "same", "it had all of its memory");
}

#[test]
fn a_list_of_discards_goes_with_its_vmm_however_that_ends() {
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none", "clients:=0"]);
    let list = |pid: i32| bench.run(&format!("uffd.removed.{pid}"));
    let vmms: [Vmm; 2] = std::array::from_fn(|_| {
        let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
        assert_eq!(vmm.ask("discard 3 2"), "Ok(())");
        assert_eq!(stats_of(&bench, &vmm.process).1, [(3, 2)]);
        vmm
    });
    let [first, second] = vmms;
    let (pid, other) = (first.process.pid, second.process.pid);
    // With its server, which cannot tell.
    let server = server_of(&document);
    hold(server.pid);
    first.kill();
    server.end(Duration::ZERO).unwrap();
    assert_eq!(stats_of(&bench, &second.process).0["peer_pid"], other);
    assert!(!list(pid).exists() && list(other).exists());
    // With its service.
    fs::remove_file(bench.raw()).unwrap();
    server_of(&document).end(Duration::ZERO).unwrap();
    await_end(&service_of(&document));
    second.await_stop();
    assert!(!list(other).exists());
    // Those that an earlier service has left, which was killed, go when another one begins, or is stopped.
    fs::write(bench.raw(), vec![0; 64 * PAGE]).unwrap();
    fs::write(list(4242), "{}").unwrap();
    fs::write(bench.run("uffd.removed.mine"), "").unwrap();
    let document = bench.detached(&["clients:=0"]);
    assert!(!list(4242).exists());
    fs::write(list(4242), "{}").unwrap();
    bench.on("stop", &document, &[]).success();
    assert!(!list(4242).exists() && bench.run("uffd.removed.mine").exists());
}
