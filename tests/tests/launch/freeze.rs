//! Pause, resume, snapshot, balloon.

use std::fs;

use wrenn_tests::{json, kernel};

use crate::bench::{Bench, error};

#[test]
fn pause_and_resume_may_be_repeated_and_resume_gives_a_failed_documents_vm_back() {
    let Some(bench) = Bench::new() else { return };
    let booted = bench.boot();
    let paused = bench.with("pause", &booted).success().reply();
    assert_eq!(paused["vm"]["state"], "paused");
    assert_eq!(paused["other"].to_string(), "100.0", "as the test's own JSON writes it");
    let _ = bench.with("pause", &paused).success();
    let state = |document| bench.with("status", document).success().reply()["vm"]["state"].clone();
    assert_eq!(state(&paused), "paused");

    let mut failed = paused.clone();
    failed["error"] = json!({"tool": "wrenn-snap", "verb": "pack", "kind": "exhausted", "code": "snap.x",
                             "message": "full", "detail": [], "retry": false});
    let _ = bench.with("resume", &failed).status_is(6);
    assert_eq!(state(&paused), "paused", "without --undo a failed document is passed through");
    let undone =
        bench.launch("resume").args(["-", "--undo"]).stdin(failed.to_string()).run().success().reply();
    assert_eq!((&undone["vm"]["state"], &undone["error"]["code"]), (&json!("running"), &json!("snap.x")));
    assert_eq!(state(&paused), "running");
    let _ = bench.with("resume", &undone).status_is(6);
    let _ = bench.with("resume", &paused).success();
}

#[test]
fn a_pause_whose_reply_nobody_reads_leaves_the_vm_running() {
    let Some(bench) = Bench::new() else { return };
    let booted = bench.boot();
    let status = bench.launch("pause").args(["-"]).stdin(booted.to_string()).run_unread();
    assert_eq!(status, Some(8));
    assert_eq!(bench.with("status", &booted).success().reply()["vm"]["state"], "running");
}

#[test]
fn a_snapshot_goes_to_fresh_files_of_a_paused_vm() {
    let Some(bench) = Bench::new() else { return };
    let dir = bench.file("gen-1");
    let mut document = bench.boot();
    document["snapshot"] = json!({"dir": dir, "kind": "full"});
    error(bench.with("snapshot", &document), 4, "launch.state");
    assert!(!dir.exists());
    let _ = bench.with("pause", &document).success();
    let done = bench.with("snapshot", &document).success().reply();
    assert_eq!(done["snapshot"]["raw"], json!(dir.join("memfile.raw")));
    assert_eq!(done["vm"]["base"], json!(dir));
    // All that is not zero was written since the boot; a second full one has no such shortcut.
    let kinds = || -> Vec<_> {
        let dumps = bench.requests().into_iter().filter(|request| request[1] == "/snapshot/create");
        dumps.map(|request| request[2]["snapshot_type"].clone()).collect()
    };
    assert_eq!(kinds(), ["Diff"]);
    let mut again = done.clone();
    again["snapshot"] = json!({"dir": bench.file("gen-2"), "kind": "full"});
    let _ = bench.with("snapshot", &again).success();
    assert_eq!(kinds(), ["Diff", "Full"]);
    assert_eq!(fs::read_to_string(dir.join("memfile.raw")).unwrap(), "the memory");
    assert_eq!(fs::read_to_string(dir.join("snapfile")).unwrap(), "the state");
    error(bench.with("snapshot", &document), 4, "launch.snapshot_exists");
    assert_eq!(fs::read_to_string(dir.join("memfile.raw")).unwrap(), "the memory");
    let mut other = document.clone();
    other["snapshot"] = json!({"dir": "/nonexistent/parent/gen-1", "kind": "full"});
    error(bench.with("snapshot", &other), 3, "launch.io");
}

#[test]
fn a_diff_is_taken_only_against_the_snapshot_that_the_dirty_log_is_relative_to() {
    let Some(bench) = Bench::new() else { return };
    let (first, second, third) = (bench.file("gen-1"), bench.file("gen-2"), bench.file("gen-3"));
    let mut document = bench.paused();
    document["snapshot"] = json!({"dir": second, "kind": "diff"});
    error(bench.with("snapshot", &document), 2, "wire.field");
    document["snapshot"]["parent"] = json!(first);
    error(bench.with("snapshot", &document), 4, "launch.base");

    document["snapshot"] = json!({"dir": first, "kind": "full"});
    let mut document = bench.with("snapshot", &document).success().reply();
    // The parent by another name is the same parent.
    std::os::unix::fs::symlink(&first, bench.file("pause")).unwrap();
    document["snapshot"] = json!({"dir": second, "kind": "diff", "parent": bench.file("pause")});
    let mut document = bench.with("snapshot", &document).success().reply();
    let last = bench.requests().pop().unwrap();
    assert_eq!((&last[1], &last[2]["snapshot_type"]), (&json!("/snapshot/create"), &json!("Diff")));
    document["snapshot"] = json!({"dir": third, "kind": "diff", "parent": first});
    error(bench.with("snapshot", &document), 4, "launch.base");
    assert!(!third.exists());
}

#[test]
fn after_a_dump_that_failed_only_a_full_one_is_taken() {
    let Some(bench) = Bench::new() else { return };
    let (first, second) = (bench.file("gen-1"), bench.file("gen-2"));
    let mut document = bench.paused();
    document["snapshot"] = json!({"dir": first, "kind": "full"});
    let mut document = bench.with("snapshot", &document).success().reply();
    document["snapshot"] = json!({"dir": second, "kind": "diff", "parent": first});
    // Taken and then lost: the VMM has forgotten its dirty pages, and the document with the new base never arrived.
    let status = bench.launch("snapshot").args(["-"]).stdin(document.to_string()).run_unread();
    assert_eq!(status, Some(8));
    assert!(!second.exists(), "what was written is removed");
    let error = error(bench.with("snapshot", &document), 4, "launch.base");
    assert!(error["message"].as_str().unwrap().contains("full"), "{error}");
    document["snapshot"] = json!({"dir": second, "kind": "full"});
    let _ = bench.with("snapshot", &document).success();
}

#[test]
fn a_dump_that_finds_no_space_says_so_leaves_nothing_and_the_vm_paused() {
    let Some(bench) = Bench::new() else { return };
    bench.order("refuse /snapshot/create Cannot write memory file: No space left on device (os error 28)");
    let mut document = bench.paused();
    let dir = bench.file("gen-1");
    document["snapshot"] = json!({"dir": dir, "kind": "full"});
    error(bench.with("snapshot", &document), 6, "launch.no_space");
    assert!(!dir.exists());
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("rootfs.meta"), "{}").unwrap();
    error(bench.with("snapshot", &document), 6, "launch.no_space");
    assert_eq!(kernel::list(&dir), ["rootfs.meta"]);
    assert_eq!(bench.with("status", &document).success().reply()["vm"]["state"], "paused");
}

#[test]
fn a_balloon_is_asked_for_and_its_size_told() {
    let Some(bench) = Bench::new() else { return };
    let mut document = bench.boot();
    document["spec"] = json!({"memory_mib": 64});
    let _ = bench.launch("balloon").args(["-", "--mib", "32"]).stdin(document.to_string()).run().success();
    let last = bench.requests().pop().unwrap();
    assert_eq!(last, json!(["PATCH", "/balloon", {"amount_mib": 32}]));
    let status = bench.with("status", &document).success().reply();
    assert_eq!(status["vm"]["balloon"], json!({"target_mib": 7, "actual_mib": 5}));
    assert!(status["vm"]["rss_bytes"].as_u64().unwrap() > 0);
    let output = bench.launch("balloon").args(["-", "amount_mib:=65"]).stdin(document.to_string()).run();
    error(output, 2, "wire.field");
}
