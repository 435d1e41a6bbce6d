//! Bad input is refused as the contract says: by kind, code and status, with the field or path named.

mod common;

use common::Bench;

#[test]
fn bad_input_is_refused_and_touches_nothing() {
    let bench = Bench::new(4);
    let long = format!("socket=/tmp/{}", "x".repeat(110));
    std::fs::write(bench.path("file"), "no image").unwrap();
    std::fs::write(bench.path("taken"), "no socket").unwrap();
    std::fs::create_dir(bench.path("empty")).unwrap();
    std::fs::create_dir(bench.path("torn")).unwrap();
    std::fs::write(bench.path("torn/memfile.header"), [1, 2, 3]).unwrap();
    nix::unistd::mkfifo(&bench.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let serve: &[&str] = &["serve", "id=vm", "detach:=true"];
    let with = |more: &[&'static str]| [serve, more].concat();
    let raw = "source.raw=memory";
    // Words; status, kind, code; what the message names.
    let table: &[(Vec<&str>, i32, &str, &str, &str)] = &[
        (vec![], 2, "invalid", "wire.usage", "no verb"),
        (vec!["srve"], 2, "invalid", "wire.usage", "srve"),
        (vec!["serve", "id=vm"], 2, "invalid", "wire.field", "source"),
        (vec!["serve", raw], 2, "invalid", "wire.field", "socket"),
        (vec!["stats", "x=1"], 2, "invalid", "wire.field", "socket"),
        (vec!["stop", "x=1"], 2, "invalid", "wire.field", "socket"),
        (vec!["serve", "id=../x", raw], 2, "invalid", "wire.field", "id"),
        (vec!["serve", raw, &long], 2, "invalid", "uffd.path", "107"),
        (vec!["stats", "id=vm"], 3, "not_found", "uffd.not_running", "uffd.ctl"),
        (vec!["stats", "control=taken"], 3, "not_found", "uffd.not_running", "taken"),
        (vec!["stop", "control=taken"], 4, "conflict", "uffd.not_a_socket", "taken"),
        (vec!["stop", "id=vm", "force=yes"], 2, "invalid", "wire.field", "force"),
        (vec!["stop", "id=vm", "uffd.pid:=1"], 2, "invalid", "wire.field", "uffd.start_time"),
        (vec!["stop", "id=vm", "uffd.pid=x"], 2, "invalid", "wire.field", "uffd.pid"),
        (with(&["source.dir:=7"]), 2, "invalid", "wire.field", "source.dir"),
        (with(&[raw, "source.dir=empty"]), 2, "invalid", "wire.field", "both dir and raw"),
        (with(&[raw, "prefetch=some"]), 2, "invalid", "wire.field", "prefetch"),
        (with(&[raw, "record:=1"]), 2, "invalid", "wire.field", "record"),
        (with(&[raw, "record:=true"]), 2, "invalid", "wire.field", "record"),
        (with(&[raw, "socket=s", "control=s"]), 2, "invalid", "wire.field", "control"),
        (with(&["source.dir=nowhere"]), 3, "not_found", "snap.io", "nowhere"),
        (with(&["source.dir=empty"]), 3, "not_found", "snap.none", "empty"),
        (with(&["source.dir=torn"]), 9, "corrupt", "snap.header", "torn"),
        (with(&["source.raw=nowhere"]), 3, "not_found", "snap.io", "nowhere"),
        (with(&["source.raw=pipe"]), 2, "invalid", "snap.io", "pipe"),
        (with(&[raw, "trace=pipe"]), 3, "not_found", "uffd.io", "pipe"),
        (with(&[raw, "trace=memory"]), 4, "conflict", "uffd.not_a_trace", "memory"),
        (with(&["source.raw=file"]), 2, "invalid", "snap.field", "raw"),
        (with(&[raw, "socket=nowhere/s"]), 3, "not_found", "uffd.io", "nowhere"),
        (with(&[raw, "socket=taken"]), 4, "conflict", "uffd.not_a_socket", "taken"),
    ];
    for (words, status, kind, code, named) in table {
        let reply = bench.verb(words);
        assert_eq!(reply.status(), *status, "{words:?}: {:?}", reply.lines());
        let error = reply.error(kind, code);
        let text = format!("{} {}", error["message"], error["detail"]);
        assert!(text.contains(named), "{words:?}: {text}");
        assert!(!bench.path("run/vm").exists(), "{words:?} left something");
    }
    assert_eq!(std::fs::read_to_string(bench.path("taken")).unwrap(), "no socket");
    assert_eq!(std::fs::metadata(bench.raw()).unwrap().len(), bench.pages as u64 * 4096);
}

#[test]
fn stop_removes_nothing_that_lies_beside_a_name_where_no_server_was() {
    let bench = Bench::new(4);
    std::fs::write(bench.path("data.log"), "precious").unwrap();
    bench.verb(&["stop", "control=data.ctl"]).success();
    assert_eq!(std::fs::read_to_string(bench.path("data.log")).unwrap(), "precious");
}

#[test]
fn a_part_of_the_program_that_a_user_starts_by_hand_explains_itself() {
    let bench = Bench::new(4);
    for role in ["--server", "--guardian"] {
        let reply = bench.verb(&[role, "{}"]);
        assert_eq!((reply.status(), reply.lines().len()), (2, 0));
    }
}
