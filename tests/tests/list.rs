//! `wrenn ls`: a table for people, JSON for programs. No privilege is needed.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use nix::pty::openpty;
use wrenn_tests::{Roots, Value, json};

/// A root with sandboxes that are documents alone.
fn root_with_sandboxes() -> Roots {
    let roots = Roots::new();
    let hour_ago = || {
        let date =
            std::process::Command::new("date").args(["-u", "-d", "1 hour ago", "+%FT%T.000Z"]).output();
        String::from_utf8(date.expect("date").stdout).expect("a date").trim().to_owned()
    };
    let sandbox = |id: &str, state: &str, template: &str, metadata: Value| {
        json!({"id": id, "state": state, "metadata": metadata, "created_at": hour_ago(), "last_active_at": hour_ago(),
               "spec": {"template": template, "vcpus": 1, "memory_mib": 512, "vmm": "wrenn-vmm"}})
    };
    for document in [
        sandbox("blue-one", "running", "minimal", json!({"team": "blue", "rank": "1"})),
        sandbox("blue-two", "paused", "team/warm", json!({"team": "blue", "rank": "2"})),
        sandbox("red-one", "paused", "minimal", json!({"team": "red"})),
        json!({"id": "bare", "state": "stopped"}),
    ] {
        let dir = roots.root().join("sandboxes").join(document["id"].as_str().unwrap());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("sandbox.json"), document.to_string()).unwrap();
    }
    roots
}

/// The ids that a listing shows when its reader is a program.
fn ids(roots: &Roots, args: &[&str]) -> Vec<String> {
    let reply = roots.program("wrenn").args(["ls"]).args(args.iter().copied()).run().success().reply();
    let all = reply["sandboxes"].as_array().unwrap().iter();
    all.map(|sandbox| sandbox["id"].as_str().unwrap().to_owned()).collect()
}

/// What a listing prints when its reader is a terminal.
fn on_a_terminal(roots: &Roots, args: &[&str]) -> String {
    let pty = openpty(None, None).expect("a pty");
    let mut program = roots.program("wrenn").args(["ls"]).args(args.iter().copied());
    let command = program.command().stdin(Stdio::null()).stdout(pty.slave).stderr(Stdio::null());
    let mut child = command.spawn().expect("wrenn");
    drop(program); // which holds the other side open
    let mut text = Vec::new();
    // EIO: the last of the other side is closed.
    let _ = fs::File::from(pty.master).read_to_end(&mut text);
    assert!(child.wait().expect("its end").success());
    String::from_utf8(text).expect("text").replace("\r\n", "\n")
}

#[test]
fn a_program_gets_the_documents_and_a_terminal_a_table() {
    let roots = root_with_sandboxes();
    assert_eq!(ids(&roots, &[]), ["bare", "blue-one", "blue-two", "red-one"]);
    let table = on_a_terminal(&roots, &[]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["ID", "STATE", "TEMPLATE", "VMM", "CPUS", "MEMORY", "AGE", "IDLE"], "{table}");
    assert_eq!(lines[1], ["bare", "stopped", "-", "-", "-", "-", "-", "-"]);
    assert_eq!(lines[2][..6], ["blue-one", "running", "minimal", "wrenn-vmm", "1", "512M"]);
    assert_eq!(lines[2][6..], ["1h00m", "1h00m"]);
    assert_eq!(lines[3][..2], ["blue-two", "paused"]);
    assert_eq!(lines[3][6..], ["1h00m", "-"], "what does not run is not idle");
    assert_eq!(lines.len(), 5, "{table}");
    let column = table.find("STATE").unwrap();
    assert!(table.lines().skip(1).all(|line| line.as_bytes()[column - 1] == b' '), "aligned:\n{table}");
}

#[test]
fn a_terminal_gets_json_when_it_is_asked_for() {
    let roots = root_with_sandboxes();
    for args in [&["--json"][..], &["--pretty"], &["--json", "--state", "stopped"]] {
        let printed = on_a_terminal(&roots, args);
        let reply: Value =
            serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
        assert_eq!(reply["sandboxes"][0]["id"], "bare");
    }
}

#[test]
fn filters_leave_what_all_of_them_say() {
    let roots = root_with_sandboxes();
    let table: &[(&[&str], &[&str])] = &[
        (&["--state", "paused"], &["blue-two", "red-one"]),
        (&["--template", "minimal"], &["blue-one", "red-one"]),
        (&["--template", "team/warm"], &["blue-two"]),
        (&["--metadata", "team=blue"], &["blue-one", "blue-two"]),
        (&["--metadata", "team=blue", "--metadata", "rank=2"], &["blue-two"]),
        (&["--metadata", "rank=2", "--state", "running"], &[]),
        (&["--metadata", "team="], &[]),
        (&["--state", "paused", "--template", "minimal", "--metadata", "team=red"], &["red-one"]),
    ];
    for (args, expected) in table {
        assert_eq!(ids(&roots, args), *expected, "{args:?}");
    }
    assert_eq!(on_a_terminal(&roots, &["--state", "stopped"]).lines().count(), 2);
    for (args, named) in [(["--state", "asleep"], "state"), (["--metadata", "novalue"], "metadata")] {
        let refused = roots.program("wrenn").args(["ls"]).args(args).run().status_is(2).reply();
        assert!(refused["error"]["message"].as_str().unwrap().contains(named), "{refused}");
    }
    // A document that cannot be read is not hidden by a filter.
    fs::write(roots.root().join("sandboxes/bare/sandbox.json"), "{").unwrap();
    assert_eq!(ids(&roots, &["--state", "running"]), ["bare", "blue-one"]);
}
