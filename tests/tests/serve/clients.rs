//! Clients that go away, many of them at once, and the server's end, around sandboxes that live.

use std::net::Shutdown;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wrenn_tests::hold::hold;
use wrenn_tests::host::TestHost;
use wrenn_tests::{Value, json};

use crate::client::Client;
use crate::server::Server;

wrenn_tests::on_a_toy![
    a_create_whose_client_goes_away_is_undone,
    a_pause_that_the_servers_end_interrupts_is_given_back,
    other_verbs_go_on_without_their_client,
    sixteen_clients_at_once_are_served,
];

fn server(host: &TestHost) -> Server {
    Server::start(host.program("wrenn").args(["serve"]))
}

fn request(id: &str) -> Value {
    json!({"id": id, "spec": {"memory_mib": 256, "disk_mib": 512}})
}

fn follow(server: &Server) -> Client {
    let mut events = server.client();
    events.send("GET", "/v1/events", b"");
    assert_eq!(events.head().status, 200);
    events
}

/// Waits until the sandbox is in this state.
fn until(events: &mut Client, id: &str, state: &str) {
    while let Some(event) = events.event() {
        if event["id"] == id && event["state"] == state {
            return;
        }
    }
    panic!("{id} is never {state}");
}

fn a_create_whose_client_goes_away_is_undone(host: &TestHost) {
    let server = server(host);
    let mut events = follow(&server);
    // In the middle of it.
    let mut client = server.client();
    client.send("POST", "/v1/sandboxes", request("sv-early").to_string().as_bytes());
    until(&mut events, "sv-early", "creating");
    drop(client);
    until(&mut events, "sv-early", "removed");
    // It still sends, but takes no reply.
    let mut client = server.client();
    client.stream().shutdown(Shutdown::Read).unwrap();
    client.send("POST", "/v1/sandboxes", request("sv-deaf").to_string().as_bytes());
    until(&mut events, "sv-deaf", "running");
    until(&mut events, "sv-deaf", "removed");
    assert_eq!(host.ids(), [""; 0]);
    // One that takes it keeps what it has asked for, though it goes away then.
    let mut client = server.client();
    let created = client.call("POST", "/v1/sandboxes", request("sv-kept").to_string().as_bytes());
    host.note(&created.status_is(201).json());
    drop(client);
    assert!(server.stop().log.contains("the reply could not be delivered"));
    assert_eq!(host.ids(), ["sv-kept"]);
}

fn other_verbs_go_on_without_their_client(host: &TestHost) {
    let sandbox = host.create("sv-on");
    let server = server(host);
    let mut events = follow(&server);
    let mut client = server.client();
    client.send("POST", "/v1/sandboxes/sv-on/pause", b"");
    until(&mut events, "sv-on", "pausing");
    drop(client);
    until(&mut events, "sv-on", "paused");
    server.stop();
    assert_eq!(sandbox.document()["state"], "paused");
}

fn a_pause_that_the_servers_end_interrupts_is_given_back(host: &TestHost) {
    let sandbox = host.create("sv-back");
    sandbox.sh("kept=green; :");
    let server = server(host);
    let mut events = follow(&server);
    let vmm = Pid::from_raw(sandbox.document()["vm"]["pid"].as_i64().unwrap() as i32);
    // So that the pause cannot come to its end first.
    hold(vmm.as_raw());
    let mut client = server.client();
    client.send("POST", "/v1/sandboxes/sv-back/pause", b"");
    until(&mut events, "sv-back", "pausing");
    server.signal(Signal::SIGTERM);
    while events.event().is_some() {}
    kill(vmm, Signal::SIGCONT).unwrap();
    let error = client.response().json()["error"].clone();
    assert_eq!(error["retry"], true, "{error}");
    server.stopped();
    assert_eq!(sandbox.document()["state"], "running");
    assert_eq!(sandbox.sh("cat /mem/kept /kept"), "green\ngreen");
}

fn sixteen_clients_at_once_are_served(host: &TestHost) {
    let server = server(host);
    let life = |n: usize| {
        let id = format!("sv-{n}");
        let mut client = server.client();
        let mut call = |method: &str, path: &str, body: Value, status: u16| {
            // Whoever has read the whole reply finds the lock free.
            let target = format!("/v1/sandboxes{path}?wait=0");
            client.call(method, &target, body.to_string().as_bytes()).status_is(status).json()
        };
        for _ in 0..2 {
            host.note(&call("POST", "", request(&id), 201));
            call("POST", &format!("/{id}/ping"), json!({}), 200);
            assert_eq!(call("POST", &format!("/{id}/pause"), json!({}), 200)["state"], "paused");
            let resumed = call("POST", &format!("/{id}/resume"), json!({}), 200);
            host.note(&resumed);
            assert_eq!(resumed["state"], "running");
            assert_eq!(call("DELETE", &format!("/{id}"), json!({}), 200)["state"], "removed");
        }
    };
    let life = &life;
    std::thread::scope(|scope| (0..16).for_each(|n| drop(scope.spawn(move || life(n)))));
    server.stop();
}
