//! Working sets: recorded, combined, loaded first, and dropped when they are another image's.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Bench, Foreground, LIMIT, PAGE, Vmm, await_end, service_of, snapshot};
use serde_json::{Value, json};
use snap::WorkingSet;

const PAGES: usize = 1000;

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

/// A bench with a snapshot in the directory `snap`.
fn bench() -> Bench {
    let bench = Bench::new(1);
    snapshot(&bench.path("snap"), PAGES);
    bench
}

fn file(bench: &Bench) -> PathBuf {
    bench.path("snap/workingset")
}

fn serve(bench: &Bench, more: &[&str]) -> Foreground {
    Foreground::of(bench, &[&["serve", "id=vm", "source.dir=snap"], more].concat())
}

/// Restores, asks for these pages, and ends. What the server says of its recording.
fn record(bench: &Bench, pages: &[usize]) -> Value {
    let mut server = serve(bench, &["record:=true", "prefetch=none"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), PAGES);
    for page in pages {
        vmm.tell(&format!("touch {page}"));
        vmm.answer();
    }
    vmm.kill();
    let recorded = server.until("recorded");
    server.until("closed");
    server.child.wait().unwrap();
    recorded
}

fn bytes(pages: usize) -> Value {
    json!(pages * PAGE)
}

#[test]
fn a_recording_is_what_a_later_restore_loads_first() {
    let bench = bench();
    let pages: Vec<_> = (500..520).chain(7..9).collect();
    assert_eq!(record(&bench, &pages)["set_bytes"], bytes(22));
    let recorded: Value = serde_json::from_slice(&fs::read(file(&bench)).unwrap()).unwrap();
    let range = |first: usize, pages: usize| json!([first * PAGE, pages * PAGE, 1]);
    assert_eq!(recorded["ranges"], json!([range(7, 2), range(500, 20)]));
    assert_eq!(recorded["build"], "11111111-1111-1111-1111-111111111111");

    let words = ["serve", "id=vm", "source.dir=snap", "detach:=true", "prefetch=recorded"];
    let document = bench.verb(&words).success();
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), PAGES);
    let deadline = std::time::Instant::now() + LIMIT;
    while bench.stats()["prefetch"]["done"] != true {
        assert!(std::time::Instant::now() < deadline, "{}", bench.stats());
    }
    assert_eq!(vmm.ask("check 500 520 image"), "same");
    let stats = bench.stats();
    assert_eq!((&stats["faults"], &stats["complete"]), (&0.into(), &false.into()));
    assert_eq!(stats["prefetch"], json!({"of": "recorded", "bytes": 22 * PAGE, "done": true}));
    // Two that the recording knew nothing of.
    assert_eq!(vmm.ask("check 100 101 image"), "same");
    assert_eq!(vmm.ask("check 200 201 image"), "same");
    let mut set = bench.stats()["working_set"].clone();
    assert!(set["ms"].take().as_f64().is_some_and(|ms| ms > 0.0));
    assert_eq!(
        set,
        json!({"runs": 1, "bytes": 22 * PAGE, "loaded_bytes": 22 * PAGE, "late": 0, "missed": 2, "ms": null})
    );
    vmm.kill();
    await_end(&service_of(&document));
}

#[test]
fn while_it_records_it_loads_nothing_ahead_and_then_everything() {
    let bench = bench();
    let mut server = serve(&bench, &["record:=true", "record_ms:=300"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), PAGES);
    assert_eq!(vmm.ask("check 3 5 image"), "same");
    let stats = bench.stats();
    assert_eq!((&stats["prefetched"], &stats["prefetch"]["done"]), (&0.into(), &false.into()));
    let mut seen = [server.until("connected"), server.event(), server.event(), server.event()];
    seen.sort_by_key(|event| event["event"].to_string());
    let names: Vec<_> = seen.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["connected", "prefetched", "recorded", "stats"]);
    assert_eq!((&seen[1]["pages"], &seen[2]["pages"], &seen[2]["runs"]), (&998.into(), &2.into(), &1.into()));
    vmm.kill();
    server.until("closed");
    server.child.wait().unwrap();
}

#[test]
fn what_half_of_the_runs_asked_for_is_kept_and_each_run_tells_what_the_set_was_worth() {
    let bench = bench();
    // One whose writer was killed.
    let left = bench.path("snap/.workingset.1.partial");
    fs::write(&left, "{").unwrap();
    let first = record(&bench, &[10, 11, 12, 300]);
    assert!(!left.exists());
    assert_eq!((&first["runs"], &first["compared"]), (&json!(1), &Value::Null));
    let second = record(&bench, &[10, 11, 12, 400]);
    assert_eq!((&second["runs"], &second["set_bytes"]), (&json!(2), &bytes(5)));
    let compared = &second["compared"];
    assert_eq!(
        (&compared["hit_bytes"], &compared["missed_bytes"], &compared["wasted_bytes"]),
        (&bytes(3), &bytes(1), &bytes(1))
    );
    assert_eq!(compared["hit_rate"], 0.75);
    assert!(compared["estimated_saving_ms"].as_f64().unwrap() > 0.0);
    let third = record(&bench, &[10, 11, 400]);
    assert_eq!(third["set_bytes"], bytes(4), "10, 11, 12 and 400: two of three asked for each");
    let set = WorkingSet::read(&bench.path("snap")).unwrap().unwrap();
    let page = |page: usize| (page * PAGE) as u64;
    let expected = [page(10)..page(13), page(400)..page(401)].into_iter().collect();
    assert_eq!((set.runs, set.likely()), (3, expected));
    assert!(!uffd::workingset::is_wanted(&bench.path("snap")), "three runs are enough");
}

#[test]
fn a_set_that_belongs_to_another_image_or_cannot_be_read_is_not_used_and_begins_anew() {
    let bench = bench();
    record(&bench, &[10, 11]);
    let good = fs::read_to_string(file(&bench)).unwrap();
    for (set, reason) in [
        (good.replace("11111111-", "22222222-"), "belongs to build 22222222-"),
        (good.replace("\"version\":1", "\"version\":9"), "version 9 is not known"),
        (r#"{"ranges":[[0,4096]]}"#.to_owned(), "has no version"),
    ] {
        fs::write(file(&bench), set).unwrap();
        assert!(uffd::workingset::is_wanted(&bench.path("snap")));
        let mut server = serve(&bench, &["prefetch=recorded"]);
        let vmm = Vmm::start(&bench.run("uffd.sock"), PAGES);
        let warning = server.until("warning");
        assert!(warning["message"].as_str().unwrap().contains(reason), "{warning}");
        assert_eq!(server.until("prefetched")["pages"], 0);
        vmm.kill();
        server.until("closed");
        server.child.wait().unwrap();
        assert_eq!(record(&bench, &[70])["runs"], 1, "a new one begins");
    }
}

#[test]
fn what_a_dump_reads_is_no_working_set() {
    let bench = bench();
    let mut server = serve(&bench, &["record:=true"]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), PAGES);
    assert_eq!(vmm.ask("check 0 1000 image"), "same");
    let (dir, raw) = (bench.path("gen-2"), bench.path("gen-2/memfile.raw"));
    fs::create_dir(&dir).unwrap();
    let document = json!({"id": "vm", "snapshot": {"dir": dir, "kind": "full", "raw": raw}});
    bench.on("stats", &document, &[]).success();
    assert!(server.until("warning")["message"].as_str().unwrap().contains("given up"));
    vmm.kill();
    server.until("closed");
    server.child.wait().unwrap();
    assert!(!file(&bench).exists());
}

#[test]
fn servers_that_record_at_once_leave_a_whole_file_of_at_least_one_run() {
    let bench = bench();
    let mut servers: Vec<_> = (0..4)
        .map(|index| {
            let socket = format!("socket=s{index}");
            Foreground::of(&bench, &["serve", &socket, "source.dir=snap", "record:=true", "prefetch=none"])
        })
        .collect();
    let mut vmms: Vec<_> = (0..4).map(|index| Vmm::start(&bench.path(&format!("s{index}")), PAGES)).collect();
    for (index, vmm) in vmms.iter_mut().enumerate() {
        assert_eq!(vmm.ask(&format!("check {} {} image", 10 * index, 10 * index + 5)), "same");
    }
    vmms.into_iter().for_each(Vmm::kill);
    for server in &mut servers {
        server.until("closed");
        server.child.wait().unwrap();
    }
    let set = WorkingSet::read(&bench.path("snap")).unwrap().unwrap();
    // One after the other they have added to each other's; none has half of another's.
    let written: Value = serde_json::from_str(&set.to_json()).unwrap();
    let ranges: Vec<[usize; 3]> = serde_json::from_value(written["ranges"].clone()).unwrap();
    assert!((1..=4).contains(&set.runs) && ranges.len() as u64 == set.runs, "{set:?}");
    assert!(ranges.iter().all(|[start, length, _]| (start / PAGE % 10, length / PAGE) == (0, 5)), "{set:?}");
    let left: Vec<_> =
        fs::read_dir(bench.path("snap")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_window_that_cannot_be_is_refused() {
    let bench = bench();
    for more in
        [&["record:=true", "record_ms:=0"][..], &["record:=true", "record_ms:=60001"], &["record_ms:=5"]]
    {
        let words = [&["serve", "id=vm", "source.dir=snap"], more].concat();
        let error = bench.verb(&words).error("invalid", "wire.field");
        assert!(error["message"].as_str().unwrap().contains("record_ms"), "{error}");
    }
    bench.verb(&["serve", "id=vm", "source.raw=memory", "record:=true"]).error("invalid", "wire.field");
}
