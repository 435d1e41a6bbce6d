//! A page that the image does not give any more is nobody's zeros, and nobody waits for it for ever.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use common::{Bench, Foreground, PAGE, Vmm, await_end, content, server_of, service_of, snapshot};
use nix::sys::signal::Signal;
use snap::pack::{Kind, Mode, Pack, pack};
use uffd::trace::{self, Trace};

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

/// Whether this kernel can poison pages of another process's (Linux 6.6).
fn poisons() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 6)
}

fn cut(file: &Path, pages: usize) {
    File::options().write(true).open(file).unwrap().set_len((pages * PAGE) as u64).unwrap();
}

#[test]
fn a_page_of_a_diff_cut_short_is_poisoned_and_named_and_all_others_go_on() {
    if !poisons() {
        return wrenn_tests::skip::here("this kernel cannot poison pages");
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
        return wrenn_tests::skip::here("this kernel cannot poison pages");
    }
    let bench = Bench::new(1);
    let (raw, dir) = (bench.path("memory"), bench.path("snap"));
    fs::write(&raw, (0..640).flat_map(content).collect::<Vec<_>>()).unwrap();
    let request = Pack { mode: Mode::Inplace, ..Pack::new(raw, &dir, Kind::Full) };
    let mut undo = wire::Undo::default();
    let build = pack(&request, &mut undo).unwrap().header.build;
    undo.commit();
    // Pages 71 to 74 lie between zeros: they have one checksum.
    let diff = File::options().write(true).open(dir.join(format!("memfile.{build}"))).unwrap();
    diff.write_all_at(&[0xee], (72 * PAGE + 9) as u64).unwrap();

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
                assert_eq!(poisoned["build"], build.to_string());
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
        return wrenn_tests::skip::here("this kernel cannot poison pages");
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
        return wrenn_tests::skip::here("this kernel cannot poison pages");
    }
    let bench = Bench::new(64);
    let document = bench.detached(&["prefetch=none"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 1 2 image"), "same");
    let whole = fs::read(bench.raw()).unwrap();
    cut(&bench.raw(), 40);
    assert_eq!(vmm.ask("probe 51"), "unreadable");
    fs::write(bench.raw(), whole).unwrap();
    server_of(&document).end(std::time::Duration::ZERO).unwrap();
    assert_eq!(vmm.ask("check 52 64 image"), "same");
    assert_eq!(vmm.ask("probe 51"), "unreadable");
    assert_eq!(bench.stats()["poisoned"], 1);
    bench.on("stop", &document, &["force:=true"]).success();
    await_end(&service_of(&document));
    await_end(&vmm.process);
}

#[test]
fn where_the_kernel_cannot_poison_the_vmm_is_stopped_and_the_error_names_the_page() {
    if poisons() {
        return wrenn_tests::skip::here("this kernel can poison pages");
    }
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &["prefetch=none"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 1 2 image"), "same");
    cut(&bench.raw(), 2);
    vmm.tell("check 31 32 image");
    let error = server.until("failed")["error"].clone();
    assert_eq!(error["code"], "uffd.image_lost");
    assert!(error["message"].as_str().unwrap().contains("at offset 126976"), "{error}");
    vmm.child.wait().unwrap();
    assert_eq!(server.child.wait().unwrap().code(), Some(9));
}
