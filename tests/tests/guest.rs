//! `wrenn-guest` against the agent itself, run as an ordinary process on this machine. No privilege is needed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use wrenn_tests::{Output, Program, Roots, Value, json, program};

/// A running agent, ended with the test.
struct Agent {
    child: Child,
    url: String,
    roots: Roots,
}

impl Agent {
    fn start() -> Self {
        let mut child = Command::new(program::path("wrenn-envd"))
            .args(["--port", "0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("wrenn-envd");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.split_whitespace().last().expect("an address");
        Self { child, url: format!("guest.url=http://{address}"), roots: Roots::new() }
    }

    fn guest(&self, verb: &str, args: &[&str]) -> Program {
        self.roots.program("wrenn-guest").args([verb, &self.url]).args(args)
    }

    fn run(&self, verb: &str, args: &[&str]) -> Output {
        self.guest(verb, args).run()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ready_tells_the_agents_version() {
    let reply = Agent::start().run("ready", &[]).success().reply();
    assert_eq!(reply["guest"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn output_exit_code_environment_and_directory_are_the_commands() {
    let agent = Agent::start();
    agent.run("init", &["spec.env.FROM_INIT=one", "spec.env.BOTH=init"]).success();
    let script = "printf \"$FROM_INIT $BOTH $PWD\"; printf oops >&2; exit 7";
    let reply = agent.run("exec", &["env.BOTH=exec", "cwd=/usr", "--", "sh", "-c", script]).success().reply();
    let exec = &reply["exec"];
    assert_eq!((exec["stdout"].as_str(), exec["stderr"].as_str()), (Some("one exec /usr"), Some("oops")));
    assert_eq!(exec["exit_code"], 7);
    let text = agent.run("exec", &["cmd=echo $0 | tr a-z A-Z"]).success().reply();
    assert_eq!(text["exec"]["stdout"], "/BIN/SH\n", "a string goes to a shell");
}

#[test]
fn a_command_reads_the_stdin_it_is_given_and_sees_its_end() {
    let agent = Agent::start();
    let input = "line\n".repeat(50_000);
    let request =
        json!({"guest": {"url": agent.url.strip_prefix("guest.url=")}, "stdin": input, "cmd": ["wc", "-c"]});
    let reply =
        agent.roots.program("wrenn-guest").args(["exec"]).stdin(request.to_string()).run().success().reply();
    assert_eq!(reply["exec"]["stdout"].as_str().map(str::trim), Some("250000"));
}

#[test]
fn events_come_in_order_and_the_status_is_the_commands() {
    let agent = Agent::start();
    let output =
        agent.run("exec", &["--json", "--", "sh", "-c", r"printf a; printf '\377' >&2; exit 3"]).status_is(3);
    let text = String::from_utf8(output.stdout).expect("JSON");
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let named = |name: &str| {
        events.iter().find(|event| event["event"] == name).unwrap_or_else(|| panic!("{name}: {text}"))
    };
    assert_eq!(events[0]["event"], "start");
    assert_eq!(named("stdout")["text"], "a");
    assert_eq!(named("stderr")["base64"], "/w==", "what is not UTF-8 is carried exactly");
    assert_eq!(events.last().map(|event| &event["exit_code"]), Some(&json!(3)));
}

#[test]
fn a_command_that_takes_too_long_is_killed() {
    let agent = Agent::start();
    let marker = format!("{}", 300_000 + std::process::id());
    let reply = agent.run("exec", &["timeout_s:=0.3", "--", "sleep", &marker]).status_is(7).reply();
    assert_eq!(reply["error"]["code"], "guest.timeout");
    let left = agent.run("exec", &["--", "pgrep", "-f", &format!("^sleep {marker}")]).success().reply();
    assert_eq!(left["exec"]["stdout"], "", "it must not run on");
}

#[test]
fn files_go_in_and_come_out_byte_for_byte() {
    let agent = Agent::start();
    let path = |name: &str| agent.roots.dir().join(name).to_string_lossy().into_owned();
    let bytes: Vec<u8> = (0..3_000_001_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(path("source"), &bytes).expect("a file");
    let inside = format!("guest:{}", path("dir with space/ü"));
    let sent = agent.run("cp", &[&path("source"), &inside]).success().reply();
    assert_eq!(sent["copied_bytes"], bytes.len());
    agent.run("cp", &[&inside, &path("back")]).success();
    assert_eq!(std::fs::read(path("back")).expect("the copy"), bytes);
}

#[test]
fn bad_input_is_refused_by_name_and_status() {
    let agent = Agent::start();
    let table: &[(&str, &[&str], i32, &str)] = &[
        ("exec", &[], 2, "cmd"),
        ("exec", &["cmd:=5"], 2, "cmd"),
        ("exec", &["cmd:=[]"], 2, "cmd"),
        ("exec", &["timeout_s:=-1", "--", "true"], 2, "timeout_s"),
        ("exec", &["env:=[]", "--", "true"], 2, "env"),
        ("exec", &["--", "/nonexistent/program"], 3, "/nonexistent/program"),
        ("exec", &["cwd=/nonexistent", "--", "true"], 3, "/nonexistent"),
        ("exec", &["user=nobody-knows", "--", "true"], 8, "nobody-knows"),
        ("cp", &["/etc/hostname", "/tmp/x"], 2, "guest:"),
        ("cp", &["guest:/a", "guest:/b"], 2, "guest:"),
        ("cp", &["/nonexistent", "guest:/tmp/x"], 3, "/nonexistent"),
        ("cp", &["/etc", "guest:/tmp/x"], 2, "directory"),
        ("cp", &["guest:/nonexistent", "/tmp/never"], 3, "/nonexistent"),
        ("ready", &["timeout_s:=-1"], 2, "timeout_s"),
        ("init", &["spec.env:=7"], 2, "spec.env"),
        ("frobnicate", &[], 2, "frobnicate"),
    ];
    for (verb, args, status, mentions) in table {
        let reply = agent.run(verb, args).status_is(*status).reply();
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(mentions), "{verb} {args:?}: {message}");
    }
    assert!(!std::path::Path::new("/tmp/never").exists());
}

#[test]
fn an_agent_that_is_not_there_is_waited_for_and_then_named() {
    let roots = Roots::new();
    // Bound and closed again: nobody listens there.
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let url = format!("guest.url=http://{free}");
    let reply =
        roots.program("wrenn-guest").args(["ready", &url, "timeout_s:=0.2"]).run().status_is(7).reply();
    assert_eq!(reply["error"]["code"], "guest.not_ready");
    let reply = roots.program("wrenn-guest").args(["exec", &url, "--", "true"]).run().status_is(8).reply();
    assert_eq!(reply["error"]["code"], "guest.unreachable");
    for (args, mentions) in [(&["ready"][..], "guest.url"), (&["ready", "guest.url=ftp://x"], "ftp://x")] {
        let reply = roots.program("wrenn-guest").args(args).stdin("{}").run().status_is(2).reply();
        assert!(reply["error"]["message"].as_str().is_some_and(|text| text.contains(mentions)), "{reply}");
    }
}
