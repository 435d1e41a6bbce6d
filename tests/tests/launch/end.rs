//! Stop, wait, and whose a process is.

use std::fs;
use std::process::Command;

use wrenn_tests::{Roots, json, kernel};

use crate::bench::{Bench, error, pid};

#[test]
fn stop_ends_the_vmm_and_is_content_when_it_is_gone() {
    let Some(bench) = Bench::new() else { return };
    let booted = bench.boot();
    let stopped = bench.with("stop", &booted).success().reply();
    assert!(stopped.get("vm").is_none());
    assert!(!kernel::is_alive(pid(&booted)));
    bench.assert_clean();
    let _ = bench.with("stop", &booted).success();
    let _ = bench.with("stop", &stopped).success();
    let status = bench.with("status", &booted).success().reply();
    assert_eq!(status["vm"]["state"], "gone");
    error(bench.with("pause", &booted), 3, "launch.gone");
}

#[test]
fn an_old_document_cannot_stop_the_next_vmm_of_its_sandbox() {
    let Some(bench) = Bench::new() else { return };
    let old = bench.boot();
    let _ = bench.with("stop", &old).success();
    let new = bench.boot();
    let _ = bench.with("stop", &old).success();
    assert_eq!(bench.with("status", &new).success().reply()["vm"]["state"], "running");
    // Without a section, what carries the sandbox's mark is its VMM: a boot that was killed leaves no section.
    let _ = bench.with("stop", &json!({"id": "sb-2"})).success();
    assert!(kernel::is_alive(pid(&new)));
    let _ = bench.with("stop", &json!({"id": "sb-1"})).success();
    assert!(!kernel::is_alive(pid(&new)));
    bench.assert_clean();
}

#[test]
fn a_document_that_names_somebody_elses_process_harms_nobody() {
    let Some(bench) = Bench::new() else { return };
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", other.id())).unwrap();
    let start: u64 = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    let mut document = bench.boot();
    document["vm"]["pid"] = json!(other.id());
    document["vm"]["start_time"] = json!(start);
    for verb in ["stop", "pause", "status", "wait"] {
        error(bench.with(verb, &document), 4, "launch.foreign");
    }
    assert!(kernel::is_alive(other.id() as i32));
    // Another root's VMM of the same id neither.
    let elsewhere = Roots::new();
    let document = bench.with("stop", &json!({"id": "sb-1"})).success().reply();
    assert!(document.get("vm").is_none());
    let booted = bench.boot();
    let output = elsewhere.program("wrenn-launch").args(["stop", "-"]).stdin(booted.to_string()).run();
    error(output, 4, "launch.foreign");
    elsewhere.program("wrenn-launch").args(["stop", "id=sb-1"]).run().success();
    assert!(kernel::is_alive(pid(&booted)));
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn wait_ends_when_the_vmm_does() {
    let Some(bench) = Bench::new() else { return };
    let booted = bench.boot();
    let waiting = {
        let (launch, document) = (bench.launch("wait").args(["-"]), booted.to_string());
        std::thread::spawn(move || launch.stdin(document).run())
    };
    // It holds no lock: the stop does not wait for it.
    let _ = bench.with("stop", &booted).success();
    let event = waiting.join().unwrap().success().reply();
    assert_eq!(
        (&event["event"], &event["id"], &event["pid"]),
        (&json!("exited"), &json!("sb-1"), &booted["vm"]["pid"])
    );
    assert_eq!(bench.with("wait", &booted).success().reply()["event"], "exited");
}
