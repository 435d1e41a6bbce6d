//! The plain HTTP requests: health, metrics, init, tokens, preload, and what is refused.
#![forbid(unsafe_code)]

mod support;

use std::process::Command;

use serde_json::json;
use support::{
    Agent,
    rpc::{Codec, Start},
};

#[test]
fn health_says_which_agent_answers() {
    let agent = Agent::start();
    let response = agent.get("/health");
    assert_eq!(response.status, 200);
    assert_eq!(response.json(), json!({"version": env!("CARGO_PKG_VERSION")}));
}

#[test]
fn metrics_are_this_machines() {
    let agent = Agent::start();
    let metrics = agent.get("/metrics").json();
    let number = |field: &str| metrics[field].as_f64().unwrap_or_else(|| panic!("{field} of {metrics}"));
    let online = std::thread::available_parallelism().unwrap().get() as f64;
    assert!(number("cpu_count") >= online);
    assert!((0.0..=100.0).contains(&number("cpu_used_pct")));
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.lines().next().unwrap().split_whitespace().nth(1).unwrap().parse::<f64>().unwrap();
    assert_eq!(number("mem_total"), total * 1024.0);
    assert!(number("mem_used") > 0.0 && number("mem_used") < number("mem_total"));
    assert!(number("disk_used") <= number("disk_total") && number("disk_total") > 0.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((number("ts") - now).abs() < 5.0);
}

#[test]
fn init_keeps_what_it_does_not_name_and_removes_what_is_empty() {
    let agent = Agent::start();
    assert_eq!(
        agent.post("/init", r#"{"envVars": {"A": "1", "B": "1"}, "defaultWorkdir": "/usr"}"#).status,
        200
    );
    assert_eq!(agent.post("/init", r#"{"envVars": {"B": "2"}, "someOtherAgentsField": [1]}"#).status, 200);
    assert_eq!(agent.post("/init", "").status, 200);
    assert_eq!(agent.get("/envs").json(), json!({"A": "1", "B": "2"}));
    let pwd = || {
        agent.start_process(Codec::Json, &Start { cmd: "pwd", ..Start::default() }).life().out().to_owned()
    };
    assert_eq!(pwd(), "/usr\n");
    assert_eq!(agent.post("/init", r#"{"defaultWorkdir": ""}"#).status, 200);
    assert_ne!(pwd(), "/usr\n");
}

#[test]
fn an_ordinary_process_leaves_the_machine_alone() {
    let agent = Agent::start();
    let name = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let before = (name(), std::fs::read("/etc/machine-id").ok());
    let body = json!({"timestamp": "2001-02-03T04:05:06.789Z", "hostname": "other",
                      "machineId": "0123456789abcdef0123456789abcdef", "entropy": "AAECAw=="});
    let response = agent.post("/init", &body.to_string());
    assert_eq!(response.status, 200);
    assert_eq!((name(), std::fs::read("/etc/machine-id").ok()), before);
    let truth = response.json();
    assert_eq!(truth["hostname"], before.0.trim(), "the answer is what is true, not what was asked for");
    let machine_id = before.1.map(|id| String::from_utf8(id).unwrap().trim().to_owned());
    assert_eq!(truth["machineId"].as_str(), machine_id.as_deref());
    assert_eq!(truth["reseeded"], false);
    let clock = truth["clock"].as_str().unwrap();
    assert!(clock > "2020" && clock.ends_with('Z'), "{clock}");
    let year_2020 = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_577_836_800);
    assert!(std::time::SystemTime::now() > year_2020);
}

#[test]
fn a_token_closes_everything_but_health_and_can_be_changed_by_who_has_it() {
    let agent = Agent::start();
    let with = |token: &str, method: &str, path: &str, body: &str| {
        agent.request(method, path, &[("X-Access-Token", token)], body.as_bytes()).status
    };
    assert_eq!(agent.post("/init", r#"{"accessToken": "secret"}"#).status, 200);
    assert_eq!(agent.get("/health").status, 200);
    for (method, path) in [
        ("GET", "/metrics"),
        ("GET", "/envs"),
        ("GET", "/files?path=/etc/passwd"),
        ("POST", "/files?path=/tmp/never-written"),
        ("POST", "/init"),
        ("GET", "/memory/preload"),
        ("POST", "/snapshot/prepare"),
        ("POST", "/process.Process/List"),
        ("POST", "/filesystem.Filesystem/Stat"),
        ("GET", "/nowhere"),
    ] {
        assert_eq!(agent.request(method, path, &[], b"{}").status, 401, "{method} {path}");
        for wrong in ["", "secre", "secret2", "SECRET"] {
            assert_eq!(with(wrong, method, path, "{}"), 401, "{method} {path} {wrong}");
        }
    }
    assert!(!std::path::Path::new("/tmp/never-written").exists());
    assert_eq!(with("secret", "GET", "/envs", ""), 200);
    // The one who knows the token may say it in the body too, as after a resume.
    assert_eq!(agent.post("/init", r#"{"accessToken": "guess"}"#).status, 401);
    assert_eq!(agent.post("/init", r#"{"accessToken": "secret"}"#).status, 200);
    assert_eq!(with("secret", "POST", "/init", r#"{"accessToken": "next"}"#), 200);
    assert_eq!((with("secret", "GET", "/envs", ""), with("next", "GET", "/envs", "")), (401, 200));
    assert_eq!(with("next", "POST", "/init", r#"{"accessToken": ""}"#), 200);
    assert_eq!(agent.get("/envs").status, 200);
}

#[test]
fn bad_requests_are_refused_whole_and_with_their_reason() {
    let agent = Agent::start();
    for (status, method, path, body, reason) in [
        (404, "GET", "/", "", "nothing is at /"),
        (404, "GET", "/healthz", "", "nothing is at /healthz"),
        (405, "POST", "/health", "", "does not take POST"),
        (405, "DELETE", "/files", "", "does not take DELETE"),
        (400, "POST", "/init", "not json", "/init"),
        (400, "POST", "/init", "[]", "/init"),
        (400, "POST", "/init", r#"{"envVars": {"A": 1}}"#, "/init"),
        (400, "POST", "/init", r#"{"envVars": {"A=B": "1"}}"#, "envVars"),
        (400, "POST", "/init", r#"{"timestamp": "yesterday"}"#, "/init"),
        (400, "POST", "/init", r#"{"defaultUser": "no-such-user"}"#, "defaultUser"),
        (400, "POST", "/init", r#"{"hostname": "a b"}"#, "hostname"),
        (400, "POST", "/init", r#"{"machineId": "0123"}"#, "machineId"),
        (400, "POST", "/init", r#"{"envVars": {"LATE": "1"}, "entropy": "%%"}"#, "entropy"),
        (400, "GET", "/files", "", "path"),
        (400, "GET", "/files?path=", "", "path"),
        (400, "GET", "/files?path=/etc", "", "regular file"),
        (400, "GET", "/files?path=/etc/passwd/x", "", "/etc/passwd/x"),
        (404, "GET", "/files?path=/no/such/file", "", "/no/such/file"),
        (401, "GET", "/files?path=/etc/passwd&username=no-such-user", "", "no-such-user"),
        (400, "POST", "/files", "x", "path"),
        (400, "POST", "/files?path=/usr", "x", "/usr"),
        (401, "POST", "/files?path=/tmp/never-written&username=no-such-user", "x", "no-such-user"),
    ] {
        let response = agent.request(method, path, &[], body.as_bytes());
        assert_eq!(response.status, status, "{method} {path} {body}");
        let error = response.json();
        assert_eq!(error["code"], status);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(reason), "{method} {path} {body}: {message}");
    }
    assert_eq!(agent.get("/envs").json(), json!({}));
}

#[test]
fn a_flood_of_bytes_to_init_is_cut_off() {
    let agent = Agent::start();
    let flood = format!(r#"{{"envVars": {{"A": "{}"}}}}"#, "x".repeat(8 << 20));
    assert_eq!(agent.post("/init", &flood).status, 400);
    assert_eq!(agent.get("/health").status, 200);
}

#[test]
fn snapshot_prepare_syncs_and_says_so() {
    let agent = Agent::start();
    assert_eq!(agent.post("/snapshot/prepare", "").status, 204);
}

#[test]
fn the_preload_is_idle_until_it_is_asked_for() {
    let agent = Agent::start();
    assert_eq!(agent.get("/memory/preload").json(), json!({"state": "idle", "bytes": 0, "total": 0}));
}

/// Where /proc/kcore cannot be read, the answer is the reason; in the lab it reads the lab's own memory.
#[test]
fn privileged_the_preload_touches_all_memory_and_init_resets_it() {
    let agent = Agent::start();
    let started = agent.post("/memory/preload", "");
    assert_eq!(started.status, 202);
    assert_eq!(started.json()["state"], "running");
    let done = loop {
        let state = agent.get("/memory/preload").json();
        if state["state"] != "running" {
            break state;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!(done["bytes"], done["total"]);
    let metrics = agent.get("/metrics").json();
    let (touched, usable) = (done["total"].as_f64().unwrap(), metrics["mem_total"].as_f64().unwrap());
    assert!(touched >= usable, "{touched} of at least {usable}");
    assert_eq!(agent.post("/init", "{}").status, 200);
    assert_eq!(agent.get("/memory/preload").json()["state"], "idle");
}

#[test]
fn the_command_line_says_what_is_wrong_with_it() {
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_wrenn-envd")).args(args).output().unwrap();
    let version = run(&["--version"]);
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        format!("wrenn-envd {}\n", env!("CARGO_PKG_VERSION"))
    );
    assert!(String::from_utf8(run(&["--help"]).stdout).unwrap().contains("--port PORT"));
    for (args, reason) in [
        (&["--port"][..], "--port needs a value"),
        (&["--port", "70000"], "70000"),
        (&["--port=x"], "x: not a port"),
        (&["--host", "nowhere"], "not an IP address"),
        (&["serve"], "unknown argument serve"),
        (&["--as", "0:0"], "--as"),
    ] {
        let refused = run(args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}");
        let message = String::from_utf8(refused.stderr).unwrap();
        assert!(message.contains(reason) && message.contains("Usage:"), "{args:?}: {message}");
    }
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() {
    let agent = Agent::start();
    let port = agent.address.port().to_string();
    let second = Command::new(env!("CARGO_BIN_EXE_wrenn-envd")).args(["--port", &port]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8(second.stderr).unwrap().contains(&port));
}
