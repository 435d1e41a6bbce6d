//! A page that the image does not give any more is nobody's zeros, and nobody waits for it for ever.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Bench, Foreground, LIMIT, PAGE, Vmm, await_end, content, server_of, service_of, snapshot};
use nix::sys::signal::Signal;
use serde_json::Value;
use snap::pack::{Kind, Mode, Pack, pack};
use uffd::trace::{self, Trace};
use wrenn_tests::kernel::poisons;
use wrenn_tests::skip;

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

fn cut(file: &Path, pages: usize) {
    File::options().write(true).open(file).unwrap().set_len((pages * PAGE) as u64).unwrap();
}

/// A snapshot of 640 pages in the directory `snap`, with checksums, of which page 72 was changed afterwards. Gives its build.
fn changed(bench: &Bench) -> String {
    let (raw, dir) = (bench.path("memory"), bench.path("snap"));
    fs::write(&raw, (0..640).flat_map(content).collect::<Vec<_>>()).unwrap();
    let request = Pack { mode: Mode::Inplace, ..Pack::new(raw, &dir, Kind::Full) };
    let mut undo = wire::Undo::default();
    let build = pack(&request, &mut undo).unwrap().header.build.to_string();
    undo.commit();
    // Pages 71 to 74 lie between zeros: they have one checksum.
    let diff = File::options().write(true).open(dir.join(format!("memfile.{build}"))).unwrap();
    diff.write_all_at(&[0xee], (72 * PAGE + 9) as u64).unwrap();
    build
}

#[test]
fn a_page_of_a_diff_cut_short_is_poisoned_and_named_and_all_others_go_on() {
    if !poisons() {
        return skip::here("this kernel cannot poison pages");
    }
    let bench = Bench::new(1);
    let diff = snapshot(&bench.path("snap"), 64);
    let words = ["serve", "id=vm", "source.dir=snap", "prefetch=none", "trace=trace"];
    let mut server = Foreground::of(&bench, &words);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 1 2 image"), "same");
    cut(&diff, 40);
    assert_eq!(vmm.ask("probe 50"), "unreadable");
    let poisoned = server.until("poisoned");
    assert_eq!(poisoned["offset"], 50 * PAGE);
    assert_eq!(poisoned["build_offset"], 50 * PAGE);
    assert_eq!(poisoned["build"], "11111111-1111-1111-1111-111111111111");
    assert!(poisoned["path"].as_str().unwrap().ends_with("memfile.11111111-1111-1111-1111-111111111111"));
    assert_eq!(vmm.ask("probe 50"), "unreadable", "it stays so");
    assert_eq!(vmm.ask("check 2 40 image"), "same");
    let stats = bench.stats();
    assert_eq!((&stats["poisoned"], &stats["complete"]), (&1.into(), &false.into()));
    assert_eq!(stats["missing_bytes"], (64 - 40 + 1) * PAGE);
    // The second time the kernel needed nobody.
    assert_eq!(stats["answers"]["poison"], 1);
    let answered = stats["answers"].as_object().unwrap().values().map(|count| count.as_u64().unwrap());
    assert_eq!(stats["faults"], answered.sum::<u64>());
    // What the VMM discards is its own again.
    assert_eq!(vmm.ask("discard 50 1"), "Ok(())");
    assert_eq!(vmm.ask("check 50 51 zero"), "same");
    assert_eq!(bench.stats()["poisoned"], 0);
    // Who touches one has SIGBUS.
    vmm.tell("touch 51");
    let status = vmm.child.wait().unwrap();
    assert!(status.signal() == Some(Signal::SIGBUS as i32) || status.code() == Some(101), "{status}");
    assert_eq!(server.until("poisoned")["offset"], 51 * PAGE);
    let closed = server.until("closed");
    assert_eq!((&closed["vmm"], &closed["answers"]["poison"]), (&"gone".into(), &2.into()));
    assert!(server.child.wait().unwrap().success());
    let trace = Trace::parse(&fs::read(bench.path("trace")).unwrap()).unwrap();
    let poisoned = trace.records.iter().filter(|record| record.kind == trace::Kind::Poison);
    let places: Vec<_> = poisoned.map(|record| (record.offset, record.length)).collect();
    assert_eq!(places, [50, 51].map(|page| ((page * PAGE) as u64, PAGE as u64)));
}

#[test]
fn what_differs_from_its_checksum_is_poisoned_where_that_is_asked_for() {
    if !poisons() {
        return skip::here("this kernel cannot poison pages");
    }
    let bench = Bench::new(1);
    let build = changed(&bench);
    for (verify, prefetch) in [(true, "none"), (true, "all"), (false, "all")] {
        let words = [format!("verify:={verify}"), format!("prefetch={prefetch}")];
        let mut server = Foreground::of(&bench, &["serve", "id=vm", "source.dir=snap", &words[0], &words[1]]);
        let mut vmm = Vmm::start(&bench.run("uffd.sock"), 640);
        assert_eq!(vmm.ask("check 0 71 image"), "same", "{words:?}");
        assert_eq!(vmm.ask("check 75 640 image"), "same", "{words:?}");
        match verify {
            true => {
                assert_eq!(vmm.ask("probe 73"), "unreadable", "{words:?}");
                let poisoned = server.until("poisoned");
                assert_eq!(poisoned["offset"], 73 * PAGE, "{poisoned}");
                assert_eq!(poisoned["build"], build);
                assert_eq!(vmm.ask("probe 71"), "unreadable", "{words:?}");
                assert_eq!(bench.stats()["poisoned"], 2);
            }
            // Nobody has looked.
            false => assert_ne!(vmm.ask("check 71 75 image"), "same"),
        }
        vmm.kill();
        server.until("closed");
        server.child.wait().unwrap();
    }
}

#[test]
fn loading_ahead_poisons_nothing_and_warns_once() {
    if !poisons() {
        return skip::here("this kernel cannot poison pages");
    }
    let bench = Bench::new(1);
    let diff = snapshot(&bench.path("snap"), 2000);
    let words = ["serve", "id=vm", "source.dir=snap", "prefetch=all"];
    let mut server = Foreground::of(&bench, &words);
    cut(&diff, 1000);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 2000);
    let warning = server.until("warning");
    assert_eq!(warning["offset"], 1000 * PAGE, "{warning}");
    let prefetched = server.event();
    assert_eq!((&prefetched["event"], &prefetched["complete"]), (&"prefetched".into(), &false.into()));
    assert_eq!(prefetched["pages"], 1000);
    assert_eq!(bench.stats()["poisoned"], 0);
    assert_eq!(vmm.ask("check 0 1000 image"), "same");
    assert_eq!(vmm.ask("probe 1500"), "unreadable");
    assert_eq!(bench.stats()["poisoned"], 1);
    vmm.kill();
    server.until("closed");
    server.child.wait().unwrap();
}

#[test]
fn a_poisoned_page_stays_so_for_the_next_server_and_an_image_that_is_whole_again_serves_the_others() {
    if !poisons() {
        return skip::here("this kernel cannot poison pages");
    }
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 1 2 image"), "same");
    let whole = fs::read(bench.raw()).unwrap();
    cut(&bench.raw(), 40);
    assert_eq!(vmm.ask("probe 51"), "unreadable");
    fs::write(bench.raw(), whole).unwrap();
    server_of(&document).end(Duration::ZERO).unwrap();
    assert_eq!(vmm.ask("check 52 64 image"), "same");
    assert_eq!(vmm.ask("probe 51"), "unreadable");
    assert_eq!(bench.stats()["poisoned"], 1);
    bench.on("stop", &document, &["force:=true"]).success();
    await_end(&service_of(&document));
    await_end(&vmm.process);
}

/// Lets the VMM ask for this page, which is lost, on a kernel that cannot poison it. Gives the error that the server ends with.
fn stops(server: &mut Foreground, mut vmm: Vmm, page: usize) -> Value {
    vmm.tell(&format!("probe {page}"));
    vmm.tell(&format!("check {page} {} zero", page + 1));
    let error = server.until("failed")["error"].clone();
    vmm.await_stop();
    assert_eq!(server.child.wait().unwrap().code(), Some(9));
    assert_eq!(error["code"], "uffd.image_lost", "{error}");
    error
}

#[test]
fn where_the_kernel_cannot_poison_the_vmm_is_stopped_and_the_error_names_the_page() {
    if poisons() {
        return skip::here("this kernel can poison pages");
    }
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &["prefetch=none"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 1 2 image"), "same");
    cut(&bench.raw(), 2);
    let error = stops(&mut server, vmm, 31);
    assert!(error["message"].as_str().unwrap().contains("for offset 126976: "), "{error}");
    assert!(error["message"].as_str().unwrap().contains("cut short"), "{error}");
}

#[test]
fn where_the_kernel_cannot_poison_a_diff_cut_short_or_changed_is_named_with_its_build() {
    if poisons() {
        return skip::here("this kernel can poison pages");
    }
    let bench = Bench::new(1);
    let diff = snapshot(&bench.path("snap"), 64);
    let mut server = Foreground::of(&bench, &["serve", "id=vm", "source.dir=snap", "prefetch=none"]);
    let vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    cut(&diff, 40);
    let error = stops(&mut server, vmm, 51);
    let named = "at offset 208896, build 11111111-1111-1111-1111-111111111111 cannot be read";
    assert!(error["message"].as_str().unwrap().contains(named), "{error}");

    fs::remove_dir_all(bench.path("snap")).unwrap();
    let build = changed(&bench);
    for prefetch in ["prefetch=none", "prefetch=all"] {
        let words = ["serve", "id=vm", "source.dir=snap", "verify:=true", prefetch];
        let mut server = Foreground::of(&bench, &words);
        let mut vmm = Vmm::start(&bench.run("uffd.sock"), 640);
        assert_eq!(vmm.ask("check 0 71 image"), "same", "{prefetch}");
        assert_eq!(vmm.ask("check 75 640 image"), "same", "{prefetch}");
        let error = stops(&mut server, vmm, 73);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("for offset 299008: ") && message.contains(&build), "{error}");
        assert!(message.contains("differs from its checksum"), "{error}");
    }
}

#[test]
fn where_the_kernel_cannot_poison_loading_ahead_harms_nobody_and_a_detached_service_says_what_stopped_its_vmm()
 {
    if poisons() {
        return skip::here("this kernel can poison pages");
    }
    let bench = Bench::new(1);
    let diff = snapshot(&bench.path("snap"), 2000);
    let words = ["serve", "id=vm", "source.dir=snap", "prefetch=all", "detach:=true"];
    let document = bench.verb(&words).success();
    cut(&diff, 1000);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 2000);
    assert_eq!(vmm.ask("check 0 1000 image"), "same");
    let deadline = Instant::now() + LIMIT;
    while bench.stats()["prefetch"]["done"] != true {
        assert!(Instant::now() < deadline, "it loads for ever");
    }
    let stats = bench.stats();
    assert_eq!((&stats["complete"], &stats["missing_bytes"]), (&false.into(), &(1000 * PAGE).into()));
    vmm.tell("check 1500 1501 zero");
    vmm.await_stop();
    await_end(&service_of(&document));
    let log = fs::read_to_string(bench.run("uffd.log")).unwrap();
    assert!(log.contains("uffd.image_lost") && log.contains("vmm_stopped"), "{log}");
    assert!(!log.contains("restarted"), "another server would not fare better: {log}");
    bench.on("stats", &document, &[]).error("not_found", "uffd.not_running");
    bench.on("stop", &document, &[]).success();
    assert!(!bench.path("run/vm").exists());
}

#[test]
fn where_the_kernel_cannot_poison_a_service_of_several_vmms_stops_one_and_goes_on() {
    if poisons() {
        return skip::here("this kernel can poison pages");
    }
    let bench = Bench::new(64);
    let whole = fs::read(bench.raw()).unwrap();
    let mut server = Foreground::start(&bench, &["prefetch=none", "clients:=3"]);
    let mut vmms: Vec<_> = (0..2).map(|_| Vmm::start(&bench.run("uffd.sock"), 64)).collect();
    for vmm in &mut vmms {
        assert_eq!(vmm.ask("check 1 2 image"), "same");
    }
    let (mut other, mut stopped) = (vmms.pop().unwrap(), vmms.pop().unwrap());
    cut(&bench.raw(), 40);
    stopped.tell("probe 51");
    let left = server.until("left");
    assert_eq!((&left["error"]["code"], &left["vmm"]), (&"uffd.image_lost".into(), &"stopped".into()));
    assert_eq!(left["peer_pid"], stopped.process.pid);
    stopped.await_stop();
    assert_eq!(other.ask("check 2 40 image"), "same", "it asks for none that is lost");
    fs::write(bench.raw(), whole).unwrap();
    let mut next = Vmm::start(&bench.run("uffd.sock"), 64);
    for vmm in [&mut other, &mut next] {
        assert_eq!(vmm.ask("check 0 64 image"), "same");
    }
    for vmm in [other, next] {
        vmm.kill();
        assert_eq!(server.until("left")["vmm"], "gone");
    }
    assert_eq!(server.until("closed")["came"], 3);
    assert!(server.child.wait().unwrap().success());
}
