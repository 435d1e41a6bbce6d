//! What is refused, with which status, and what becomes of clients that do not go on.

use std::io::Write;
use std::time::{Duration, Instant};

use wrenn_tests::{Roots, Value, json};

use crate::server::{Agent, Server, write_state};

#[test]
fn an_error_has_the_status_of_its_kind_and_the_body_of_every_reply() {
    let roots = Roots::new();
    let server = Server::on(&roots);
    write_state(&roots, "idle", "stopped");
    for (method, target, body, status, code) in [
        ("GET", "/", json!(null), 404, "serve.path"),
        ("GET", "/v1/sandboxes/", json!(null), 404, "serve.path"),
        ("PUT", "/v1/sandboxes", json!(null), 405, "serve.method"),
        ("POST", "/v1/openapi.json", json!(null), 405, "serve.method"),
        ("GET", "/v1/snapshots/%ff", json!(null), 400, "wire.field"),
        ("GET", "/v1/sandboxes/absent", json!(null), 404, "store.no_sandbox"),
        ("GET", "/v1/sandboxes/Bad", json!(null), 400, "wire.field"),
        ("GET", "/v1/sandboxes/idle?bogus=1", json!(null), 400, "wire.usage"),
        ("POST", "/v1/sandboxes/idle/pause", json!(null), 409, "wrenn.state"),
        ("POST", "/v1/sandboxes/idle/resume", json!({"timeout_s": "x"}), 400, "wire.field"),
        ("POST", "/v1/sandboxes/idle/exec", json!({"cmd": ["true"]}), 409, "wrenn.state"),
        ("POST", "/v1/sandboxes/idle/exec", json!({"cmd": ["true"], "stdin": true}), 400, "wire.field"),
        ("POST", "/v1/sandboxes", json!([1]), 400, "wire.not_an_object"),
        ("POST", "/v1/sandboxes", json!({"spec": {"template": "absent"}}), 404, "store.no_template"),
        ("POST", "/v1/sandboxes?memory=x", json!({}), 400, "wire.usage"),
        ("POST", "/v1/snapshots", json!({"id": "idle", "name": "Bad"}), 400, "wire.field"),
        ("GET", "/v1/snapshots/team/absent", json!(null), 404, "store.no_template"),
        ("GET", "/v1/sandboxes/idle/files", json!(null), 400, "wire.field"),
        ("GET", "/v1/sandboxes/idle/files?path=/x", json!(null), 409, "wrenn.state"),
        ("PUT", "/v1/sandboxes/idle/files?path=/x", json!("content"), 409, "wrenn.state"),
    ] {
        let response = server.call(method, target, &body);
        assert_eq!(response.header("content-type"), Some("application/json"), "{method} {target}");
        assert_eq!(response.code(status), code, "{method} {target}");
    }
    let refused = server.call("POST", "/v1/sandboxes/idle/pause", &json!({"mine": 1e2, "id": "other"}));
    let reply = refused.status_is(409).json();
    assert_eq!((&reply["mine"], &reply["id"]), (&json!(1e2), &json!("idle")), "the request comes back");
    let carried = json!({"error": {"kind": "exhausted", "code": "a.b", "tool": "t", "verb": "v"}});
    assert_eq!(server.call("POST", "/v1/sandboxes/idle/resume", &carried).code(507), "a.b");
    server.stop();
}

#[test]
fn a_connection_is_kept_after_a_refusal_and_a_head_has_no_body() {
    let roots = Roots::new();
    let server = Server::on(&roots);
    let mut client = server.client();
    assert_eq!(client.call("GET", "/nowhere", b"").code(404), "serve.path");
    client.send("HEAD", "/v1/sandboxes", b"");
    let head = client.head();
    assert_eq!((head.status, head.header("allow")), (405, Some("POST, GET")));
    client.call("GET", "/v1/sandboxes", b"").status_is(200);
    assert_eq!(client.call("POST", "/v1/sandboxes", &vec![b' '; (1 << 20) + 1]).code(413), "serve.too_large");
    server.stop();
}

#[test]
fn clients_that_do_not_go_on_are_let_go_and_keep_nobody_from_being_answered() {
    let roots = Roots::new();
    let agent = Agent::start();
    let server = Server::on(&roots);
    agent.as_sandbox(&roots, "mine");
    let started = Instant::now();
    let mut heads: Vec<_> = (0..40).map(|_| server.client()).collect();
    for client in &heads {
        client.stream().write_all(b"GET /v1/sandboxes HTTP/1.1\r\nHost:").unwrap();
    }
    let mut bodies: Vec<_> = (0..40).map(|_| server.client()).collect();
    for client in &bodies {
        let begun = b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{";
        client.stream().write_all(begun).unwrap();
    }
    // It takes nothing of what its command says.
    let mut deaf = server.client();
    deaf.send("POST", "/v1/sandboxes/mine/exec", br#"{"cmd": ["yes"]}"#);
    assert_eq!(deaf.head().status, 200);
    let pid = deaf.event().unwrap()["pid"].as_u64().unwrap();
    server.get("/v1/sandboxes").status_is(200);
    assert!(started.elapsed() < Duration::from_secs(20), "others are answered meanwhile");

    assert!(heads.iter_mut().all(super::client::Client::is_closed));
    for client in &mut bodies {
        assert_eq!(client.response().code(408), "serve.late");
    }
    let gone = || !std::path::Path::new(&format!("/proc/{pid}")).exists();
    while !gone() {
        assert!(started.elapsed() < Duration::from_secs(90), "the command that nobody listens to still runs");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(started.elapsed() > Duration::from_secs(25), "not before their time");
    let _: Value = server.get("/v1/sandboxes/mine").status_is(200).json();
    server.stop();
}
