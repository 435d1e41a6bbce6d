//! The socket itself: whose it is, who may connect.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::Signal;
use wrenn_tests::{Roots, json, skip};

use crate::client::Client;
use crate::server::Server;

#[test]
fn the_socket_is_its_owners_alone_and_goes_at_the_end() {
    let roots = Roots::new();
    let server = Server::on(&roots);
    assert_eq!(server.socket, roots.run().join("agent.sock"));
    let mode = fs::metadata(&server.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(server.get("/v1/sandboxes").status_is(200).json(), json!({"sandboxes": []}));
    server.stop();
}

#[test]
fn a_socket_that_somebody_listens_on_is_refused_and_a_stale_one_replaced() {
    let roots = Roots::new();
    let server = Server::on(&roots);
    let second = || roots.program("wrenn").args(["serve"]);
    let refused = second().run().status_is(4).reply();
    assert_eq!(refused["error"]["code"], "serve.in_use");
    server.get("/v1/sandboxes").status_is(200);
    server.signal(Signal::SIGKILL);
    let socket = server.socket.clone();
    server.ended();
    assert!(UnixStream::connect(&socket).is_err() && socket.exists(), "a stale socket");
    let server = Server::start(second());
    server.get("/v1/sandboxes").status_is(200);
    server.stop();

    fs::write(&socket, "precious").unwrap();
    let refused = second().run().status_is(4).reply();
    assert_eq!(refused["error"]["code"], "serve.not_a_socket");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
}

#[test]
fn a_path_too_long_for_a_socket_is_refused_by_name() {
    let roots = Roots::new();
    let path = roots.dir().join("x".repeat(107));
    let refused = roots.program("wrenn").args(["serve", "--socket"]).args([path]).run().status_is(2).reply();
    let message = refused["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("socket") && message.contains("107"), "{message}");
}

#[test]
fn a_connection_of_another_user_is_closed_unanswered() {
    if !nix::unistd::geteuid().is_root() {
        return skip::here("needs root, to be another user");
    }
    let roots = Roots::new();
    // The path lets everybody through: what is looked at is who connects.
    fs::set_permissions(roots.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let server = Server::on(&roots);
    for path in [&roots.run(), &server.socket] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let curl = |uid: u32| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--unix-socket"]).arg(&server.socket).arg("http://wrenn/v1/sandboxes");
        curl.uid(uid).gid(uid).output()
    };
    let Ok(own) = curl(0) else {
        return skip::here("needs curl, to run as another user");
    };
    assert_eq!(own.stdout, b"{\"sandboxes\":[]}\n");
    let other = curl(65534).unwrap();
    assert_eq!((other.status.success(), other.stdout.len()), (false, 0));
    Client::connect(&server.socket).call("GET", "/v1/sandboxes", b"").status_is(200);
    let log = server.stop().log;
    assert!(log.contains("uid 65534 is neither root nor 0"), "{log}");
}
