//! What a server saw, as its operator sees it.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{Bench, Foreground, PAGE, Vmm};
use serde_json::{Value, json};

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn stats_tell_how_long_faults_waited_and_what_they_got() {
    let bench = Bench::new(1000);
    let mut server = Foreground::start(&bench, &["prefetch=none"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 1000);
    assert_eq!(bench.stats()["latency_us"], Value::Null);
    // Scattered, every third: 333 faults on 67 holes among others.
    for page in (0..999).step_by(3) {
        vmm.tell(&format!("touch {page}"));
        vmm.answer();
    }
    assert_eq!(vmm.ask("discard 300 30"), "Ok(())");
    assert_eq!(vmm.ask("touch 309"), "touched 0");
    let stats = bench.stats();
    let answers = json!({"image": 266, "zero": 67, "refill": 1, "exists": 0, "unmapped": 0, "poison": 0});
    assert_eq!(stats["answers"], answers);
    assert_eq!((&stats["faults"], &stats["rereads"]), (&json!(334), &json!(1)));
    assert_eq!(
        (&stats["copied_bytes"], &stats["zeroed_bytes"], &stats["removed_bytes"]),
        (&json!(266 * PAGE), &json!(68 * PAGE), &json!(30 * PAGE))
    );
    let latency = |name: &str| stats["latency_us"][name].as_f64().unwrap();
    assert!(0.1 < latency("p50") && latency("p50") <= latency("p99") && latency("p99") <= latency("max"));
    vmm.kill();
    let closed = server.until("closed");
    assert_eq!((&closed["answers"], &closed["latency_us"]), (&stats["answers"], &stats["latency_us"]));
    server.child.wait().unwrap();
}

#[test]
fn a_trace_holds_every_fault_and_discard_and_all_that_was_loaded_ahead() {
    let bench = Bench::new(1000);
    let mut server = Foreground::start(&bench, &["trace=trace"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 1000);
    bench.await_complete();
    assert_eq!(vmm.ask("discard 100 50"), "Ok(())");
    assert_eq!(vmm.ask("touch 120"), "touched 0");
    let stats = bench.stats();
    vmm.kill();
    server.until("closed");
    server.child.wait().unwrap();

    let bytes = std::fs::read(bench.path("trace")).unwrap();
    let mode = std::fs::metadata(bench.path("trace")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let trace = uffd::trace::Trace::parse(&bytes).unwrap();
    assert_eq!(trace.records.len() as u64, number(&stats["trace_records"]));
    let mut there = [false; 1000];
    for record in &trace.records {
        let (first, pages) = (record.offset as usize / PAGE, record.length as usize / PAGE);
        match record.kind {
            uffd::trace::Kind::Remove => assert_eq!((first, pages), (100, 50)),
            uffd::trace::Kind::Refill => assert_eq!((first, pages), (120, 1)),
            _ => there[first..first + pages].iter_mut().for_each(|page| {
                assert!(!*page, "filled twice: {record:?}");
                *page = true;
            }),
        }
    }
    assert_eq!(there, [true; 1000]);

    let report = bench.verb(&["report", "trace=trace", "svg=faults.svg"]).success()["report"].clone();
    assert_eq!(report["memory_bytes"], 1000 * PAGE);
    assert_eq!(report["faults"]["by_kind"]["refill"], 1);
    assert_eq!(report["faults"]["count"], stats["faults"]);
    assert_eq!(number(&report["ahead"]["rest"]["bytes"]), number(&stats["prefetched"]) * PAGE as u64);
    let svg = std::fs::read_to_string(bench.path("faults.svg")).unwrap();
    assert!(svg.contains("fault: discarded before (1)") && svg.contains("discarded (1)"), "{svg}");
    let early = bench.verb(&["report", "trace=trace", "until_ms:=0.000001"]).success();
    assert_eq!(early["report"]["faults"]["count"], 0);
}

#[test]
fn what_is_no_trace_is_refused_before_a_picture_is_touched() {
    let bench = Bench::new(1);
    std::fs::write(bench.path("svg"), "precious").unwrap();
    bench.verb(&["report", "trace=memory", "svg=svg"]).error("corrupt", "uffd.trace");
    bench.verb(&["report", "trace=none", "svg=svg"]).error("not_found", "uffd.io");
    bench.verb(&["report", "trace=memory", "until_ms:=0"]).error("invalid", "wire.field");
    assert_eq!(std::fs::read_to_string(bench.path("svg")).unwrap(), "precious");
    bench.verb(&["serve", "id=vm", "source.raw=memory", "trace=no/such"]).error("not_found", "uffd.io");
    assert!(!bench.run("uffd.ctl").exists());
}
