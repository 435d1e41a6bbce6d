//! `wrenn-guest` against the agent itself, run as an ordinary process on this machine. No privilege is needed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sys::process::Process;
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
fn a_command_whose_output_nobody_reads_is_ended() {
    let agent = Agent::start();
    let marker = format!("unread-{}", std::process::id());
    let script = format!("while :; do echo {marker}; sleep 0.01; done");
    assert_eq!(agent.guest("exec", &["--json", "--", "sh", "-c", &script]).run_unread(), Some(8));
    let pattern = format!("^sh -c .*{marker}");
    let left = agent.run("exec", &["--", "pgrep", "-f", &pattern]).success().reply();
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

/// An agent that answers so many requests with whatever `answer` makes of them, or with 204 and no body, as e2b's does.
fn answering(
    requests: u32,
    mut answer: impl FnMut(Value) -> Option<Value> + Send + 'static,
) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("guest.url=http://{}", listener.local_addr().expect("its address"));
    let served = std::thread::spawn(move || {
        for _ in 0..requests {
            let (stream, _) = listener.accept().expect("a connection");
            let mut reader = BufReader::new(&stream);
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).expect("a head");
                if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = text.trim().parse().expect("a length");
                }
                if line == "\r\n" {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("a body");
            let head = match answer(serde_json::from_slice(&body).expect("JSON")) {
                None => "204 No Content\r\nConnection: close\r\n\r\n".to_owned(),
                Some(body) => {
                    let body = body.to_string();
                    let length = body.len();
                    format!("200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
                }
            };
            (&stream).write_all(format!("HTTP/1.1 {head}").as_bytes()).expect("sent");
        }
    });
    (url, served)
}

/// What an agent answers that did all it was asked to.
fn confirmed(asked: &Value) -> Value {
    json!({"hostname": asked["hostname"], "machineId": asked["machineId"], "clock": asked["timestamp"], "reseeded": true})
}

#[test]
fn a_copy_that_does_not_confirm_who_it_is_is_refused_and_any_other_guest_is_not() {
    type Change = fn(&mut Value);
    let wrong: [(&str, Option<Change>); 8] = [
        ("hostname", None),
        ("hostname", Some(|told| told["hostname"] = json!("source"))),
        ("machineId", Some(|told| told["machineId"] = json!("0".repeat(32)))),
        ("machineId", Some(|told| told["machineId"] = Value::Null)),
        ("clock", Some(|told| told["clock"] = json!("2026-01-02T03:04:05.678Z"))),
        ("clock", Some(|told| told["clock"] = json!("yesterday"))),
        ("reseeded", Some(|told| told["reseeded"] = json!(false))),
        ("hostname", Some(|told| *told = json!(["x".repeat(5000)]))),
    ];
    let roots = Roots::new();
    for confirm in [true, false] {
        for (part, change) in wrong {
            let (url, served) = answering(1, move |asked| {
                change.map(|change| {
                    let mut told = confirmed(&asked);
                    change(&mut told);
                    told
                })
            });
            let args = ["init", &url, "id=copy", &format!("confirm:={confirm}")];
            let output = roots.program("wrenn-guest").args(args).run();
            served.join().expect("asked");
            let reply = output.status_is(if confirm { 8 } else { 0 }).reply();
            if confirm {
                let (code, message) = (&reply["error"]["code"], reply["error"]["message"].as_str().unwrap());
                assert_eq!(code, "guest.identity", "{reply}");
                assert!(message.contains(part) && message.len() < 500, "{part}: {message}");
                assert_eq!(reply["guest"]["initialised_at"], Value::Null, "{reply}");
            } else {
                assert!(reply["guest"]["initialised_at"].is_string(), "{reply}");
            }
        }
    }
}

#[test]
fn a_guest_that_hears_the_time_too_late_is_told_again() {
    let roots = Roots::new();
    // The last one is never told in time, and yet its clock is the host's but for what the telling takes.
    for (slow, requests, late) in [(1, 2, 700), (u32::MAX, 5, 2300)] {
        let mut asked_before = 0;
        let (url, served) = answering(requests, move |asked| {
            asked_before += 1;
            if asked_before <= slow {
                // The clock is set to the time of the asking, and that was a while ago.
                std::thread::sleep(std::time::Duration::from_millis(late));
            }
            Some(confirmed(&asked))
        });
        roots.program("wrenn-guest").args(["init", &url, "id=copy", "--confirm"]).run().success();
        served.join().expect("asked so often");
    }
}

#[test]
fn a_machine_id_is_fresh_unless_the_document_has_one() {
    let roots = Roots::new();
    let init = |args: &[&str]| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (url, served) = answering(1, move |asked| {
            let told = confirmed(&asked);
            sender.send(asked).expect("a listener");
            Some(told)
        });
        let program = roots.program("wrenn-guest").args(["init", &url, "id=copy", "--confirm"]);
        let reply = program.args(args.iter().copied()).run().success().reply();
        served.join().expect("asked");
        let asked = receiver.recv().expect("what was asked");
        assert_eq!(reply["guest"]["machine_id"], asked["machineId"], "{reply}");
        assert_eq!(asked["hostname"], "copy");
        (asked["machineId"].as_str().expect("an id").to_owned(), asked["entropy"].to_string())
    };
    let (first, second) = (init(&[]), init(&[]));
    assert!(first.0 != second.0 && first.1 != second.1, "{first:?} {second:?}");
    assert!(first.0.len() == 32 && first.0.bytes().all(|c| c.is_ascii_hexdigit()), "{first:?}");
    let kept = init(&[&format!("guest.machine_id={}", first.0)]);
    assert!(kept.0 == first.0 && kept.1 != first.1, "{kept:?}");
}

#[test]
fn a_call_to_an_agent_that_says_nothing_ends_with_its_vm() {
    let roots = Roots::new();
    for verb in ["ready", "init", "preload", "exec"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut vm = Command::new("sleep").arg("600").spawn().expect("a process in its place");
        let process = Process::of_pid(vm.id() as i32).expect("its start");
        let document = json!({
            "guest": {"url": format!("http://{}", listener.local_addr().expect("its address"))},
            "vm": {"pid": process.pid, "start_time": process.start_time, "boot_id": process.boot_id},
            "cmd": ["true"],
        });
        let program = roots.program("wrenn-guest").args([verb, "-"]).stdin(document.to_string());
        let called = std::thread::spawn(|| program.run());
        // It asks, and is heard by nobody, as when the VM goes and its network with it.
        let asked = listener.accept().expect("a connection");
        let killed = Instant::now();
        process.end(Duration::ZERO).expect("killed");
        vm.wait().expect("its end");
        let reply = called.join().expect("ended").status_is(8).reply();
        let took = killed.elapsed();
        drop((asked, listener));
        assert_eq!(reply["error"]["code"], "guest.vm_gone", "{verb}: {reply}");
        assert!(took < Duration::from_secs(10), "{verb}: noticed after {took:?}");
        eprintln!("{verb}: noticed after {took:?}");
    }
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
        ("init", &["guest.machine_id=0123"], 2, "guest.machine_id"),
        ("init", &["confirm:=1"], 2, "confirm"),
        // An ordinary process is not the machine it runs on, and says so.
        ("init", &["id=me", "confirm:=true"], 8, "hostname"),
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
