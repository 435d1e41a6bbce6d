//! Commands and files, with the agent itself as the guest. No privilege is needed.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use sys::process::Process;
use wrenn_tests::{Roots, Value, json};

use crate::client::Client;
use crate::server::{self, Agent, Server};

struct Bench {
    roots: Roots,
    server: Server,
    _agent: Agent,
}

impl Bench {
    fn new() -> Self {
        let roots = Roots::new();
        let agent = Agent::start();
        agent.as_sandbox(&roots, "mine");
        Self { server: Server::on(&roots), roots, _agent: agent }
    }

    fn start(&self, request: &Value) -> Client {
        let mut client = self.server.client();
        client.send("POST", "/v1/sandboxes/mine/exec", request.to_string().as_bytes());
        let head = client.head();
        assert_eq!((head.status, head.header("content-type")), (200, Some("application/x-ndjson")));
        client
    }

    fn exec(&self, request: &Value) -> Vec<Value> {
        let mut client = self.start(request);
        let events = std::iter::from_fn(|| client.event()).collect();
        // The connection goes on.
        client.call("GET", "/v1/sandboxes/mine", b"").status_is(200);
        events
    }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_commands_events_are_those_of_the_command_line() {
    let bench = Bench::new();
    let script = r"printf a; printf '\377' >&2; cat; exit 3";
    let over_socket = bench.exec(&json!({"cmd": ["sh", "-c", script], "input": "hello"}));
    let output = bench.roots.program("wrenn").args([
        "exec",
        "mine",
        "input=hello",
        "--json",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let on_stdout = output.run().status_is(3).replies();
    let same = |events: &[Value]| -> Vec<Value> {
        let mut events = events.to_vec();
        for event in &mut events {
            event.as_object_mut().unwrap().retain(|key, _| key != "at" && key != "pid");
        }
        events.sort_by_key(|event| event["event"].to_string());
        events
    };
    // Output may come in one piece or two.
    let text =
        |events: &[Value]| -> String { events.iter().filter_map(|event| event["text"].as_str()).collect() };
    assert_eq!((text(&over_socket), text(&on_stdout)), ("ahello".into(), "ahello".into()));
    let rest = |events: &[Value]| -> Vec<Value> {
        same(events).into_iter().filter(|event| event.get("text").is_none()).collect()
    };
    assert_eq!(rest(&over_socket), rest(&on_stdout));
    assert_eq!(over_socket.last().unwrap()["exit_code"], 3);
    assert_eq!(over_socket[0]["event"], "start");
    bench.server.stop();
}

#[test]
fn a_commands_input_may_be_any_bytes_and_what_cannot_run_is_a_status() {
    let bench = Bench::new();
    let events = bench.exec(&json!({"cmd": ["od", "-An", "-tx1"], "input_base64": "AP/+"}));
    assert_eq!(events[1]["text"], " 00 ff fe\n");
    let call = |request: Value| bench.server.call("POST", "/v1/sandboxes/mine/exec", &request);
    assert_eq!(call(json!({"cmd": ["/nonexistent"]})).status, 404);
    assert_eq!(call(json!({"cmd": ["cat"], "input": "a", "input_base64": "YQ=="})).code(400), "wire.field");
    assert_eq!(call(json!({"cmd": ["cat"], "input_base64": "%"})).code(400), "wire.field");
    let events = bench.exec(&json!({"cmd": ["sleep", "600"], "timeout_s": 0.2}));
    assert_eq!(events.last().unwrap()["error"]["kind"], "timeout", "{events:?}");
    bench.server.stop();
}

#[test]
fn a_command_whose_client_goes_away_is_ended_talkative_or_silent() {
    let bench = Bench::new();
    for script in ["exec yes", "exec sleep 600"] {
        let mut client = bench.start(&json!({"cmd": ["sh", "-c", script]}));
        let pid = client.event().unwrap()["pid"].to_string();
        let process = PathBuf::from("/proc").join(pid);
        assert!(process.exists(), "the guest is this machine");
        drop(client);
        wait_until(&format!("{script} still runs"), || !process.exists());
    }
    bench.server.stop();
}

#[test]
fn commands_are_ended_by_the_servers_end() {
    let bench = Bench::new();
    let mut client = bench.start(&json!({"cmd": ["sleep", "600"]}));
    let process = PathBuf::from("/proc").join(client.event().unwrap()["pid"].to_string());
    let mut events = bench.server.client();
    events.send("GET", "/v1/events", b"");
    assert_eq!(events.head().status, 200);
    let stopped = std::thread::spawn(|| bench.server.stop());
    let last = client.event().unwrap();
    assert_eq!((&last["event"], &last["error"]["code"]), (&json!("failed"), &json!("wire.interrupted")));
    assert!(client.event().is_none() && client.is_closed());
    let last = std::iter::from_fn(|| events.event()).last().unwrap();
    assert_eq!(last["event"], "closed");
    stopped.join().unwrap();
    wait_until("the command still runs", || !process.exists());
}

#[test]
fn files_go_in_and_out_as_they_are() {
    let bench = Bench::new();
    let content: Vec<u8> =
        (0..3_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let inside = bench.roots.dir().join("a file&b");
    let target = format!(
        "/v1/sandboxes/mine/files?path={}",
        inside.to_str().unwrap().replace(' ', "%20").replace('&', "%26")
    );
    let done = bench.server.client().call("PUT", &target, &content).status_is(200).json();
    assert_eq!(done, json!({"id": "mine", "path": inside, "copied_bytes": content.len()}));
    assert!(fs::read(&inside).unwrap() == content, "what arrived is what was sent");
    let back = bench.server.get(&target).status_is(200);
    assert_eq!(back.header("content-length"), Some(content.len().to_string().as_str()));
    assert!(back.body == content, "what came back is what is there");
    fs::remove_file(&inside).unwrap();
    assert_eq!(bench.server.get(&target).code(404), "guest.refused");
    bench.server.stop();
}

#[test]
fn an_upload_that_breaks_off_is_not_taken_for_whole() {
    let bench = Bench::new();
    let inside = bench.roots.dir().join("file");
    let client = bench.server.client();
    let target = format!("/v1/sandboxes/mine/files?path={}", inside.display());
    let head = format!("PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhalf");
    std::io::Write::write_all(&mut client.stream(), head.as_bytes()).unwrap();
    // The agent writes what it gets.
    wait_until("nothing arrives", || fs::read(&inside).is_ok_and(|content| content == b"half"));
    drop(client);
    // Nothing holds the server up, and a later upload replaces it.
    bench.server.client().call("PUT", &target, b"all of it").status_is(200);
    bench.server.stop();
    assert_eq!(fs::read_to_string(&inside).unwrap(), "all of it");
}

#[test]
fn a_file_copy_ends_when_its_vm_goes() {
    let roots = Roots::new();
    // An agent that falls silent, as one does whose VM is no more: nobody closes its connections.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut vm = Command::new("sleep").arg("600").spawn().unwrap();
    let process = Process::of_pid(vm.id() as i32).unwrap();
    server::write(
        &roots,
        &json!({"id": "mine", "state": "running", "guest": {"url": format!("http://{}", silent.local_addr().unwrap())},
                "vm": {"pid": process.pid, "start_time": process.start_time, "boot_id": process.boot_id}}),
    );
    let server = Server::on(&roots);
    let (mut down, mut up) = (server.client(), server.client());
    down.send("GET", "/v1/sandboxes/mine/files?path=/x", b"");
    up.send("PUT", "/v1/sandboxes/mine/files?path=/x", b"content");
    let _connections = [silent.accept().unwrap(), silent.accept().unwrap()];
    vm.kill().unwrap();
    vm.wait().unwrap();
    for client in [&mut down, &mut up] {
        assert_eq!(client.response().code(502), "guest.vm_gone");
    }
    server.stop();
}
