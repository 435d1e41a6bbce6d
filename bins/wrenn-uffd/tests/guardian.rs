//! A VMM whose pages can no longer be served is stopped and reported, never left hanging.

mod common;

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{Bench, Foreground, PAGE, Vmm, await_end, greet, parent_of, server_of, snapshot};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sys::uffd::{Memory, Uffd};

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

#[test]
fn a_server_without_a_vmm_ends_with_its_guardian() {
    let bench = Bench::new(64);
    let server = server_of(&bench.detached(&[]));
    parent_of(&server).signal(Signal::SIGKILL).unwrap();
    await_end(&server);
    assert!(!bench.run("uffd.ctl").exists());
}

#[test]
fn a_server_leaves_with_its_vmm_and_leaves_nothing() {
    let bench = Bench::new(64);
    let document = bench.detached(&[]);
    let (server, guardian) = (server_of(&document), parent_of(&server_of(&document)));
    let vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    vmm.kill();
    await_end(&server);
    await_end(&guardian);
    assert_eq!(fs::read_dir(bench.path("run/vm")).unwrap().count(), 0);
}

/// What a server in the foreground says to a bad handshake.
fn refusal(bench: &Bench, greeting: impl FnOnce(&Bench)) -> Value {
    let mut server = Foreground::start(bench, &[]);
    greeting(bench);
    let failed = server.until("failed")["error"].clone();
    let status = server.child.wait().unwrap().code();
    assert_eq!(status, Some(if failed["kind"] == "timeout" { 7 } else { 8 }));
    assert!(!bench.run("uffd.sock").exists());
    failed
}

#[test]
fn a_bad_handshake_is_refused_with_the_reason() {
    let bench = Bench::new(64);
    let socket = bench.run("uffd.sock");
    let region =
        json!([{"base_host_virt_addr": 4096, "size": 4096, "offset": 0, "page_size": 4096}]).to_string();
    let cut = &region[..20];
    let say = |text: &str| {
        let error =
            refusal(&bench, |_| UnixStream::connect(&socket).unwrap().write_all(text.as_bytes()).unwrap());
        assert_eq!(error["code"], "uffd.handshake");
        error["message"].as_str().unwrap().to_owned()
    };
    assert!(say(cut).contains("is cut short"));
    assert!(say(&region).contains("without the userfaultfd's descriptor"));
    assert!(say("{}").contains("is not an array"));
    assert!(say("hello").contains("is not JSON"));
    // A connection that is held open has a limit in time.
    let late = refusal(&bench, |_| greet(&socket, cut.as_bytes(), None));
    assert_eq!((&late["kind"], &late["code"]), (&json!("timeout"), &json!("uffd.handshake_late")));
}

#[test]
fn who_only_looks_whether_the_socket_is_there_is_no_vmm() {
    let bench = Bench::new(64);
    bench.detached(&[]);
    for _ in 0..5 {
        drop(UnixStream::connect(bench.run("uffd.sock")).unwrap());
    }
    assert_eq!(bench.stats()["state"], "listening");
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 0 64 image"), "same");
}

#[test]
fn a_vmm_with_more_memory_than_the_image_is_stopped() {
    let bench = Bench::new(64);
    let mut server = Foreground::start(&bench, &[]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 65);
    // At once: however much it claims to have, nothing is made for it.
    let failed = server.event();
    let error = &failed["error"];
    assert_eq!((&error["kind"], &error["code"]), (&json!("corrupt"), &json!("uffd.image_short")), "{failed}");
    assert!(error["detail"][0].as_str().unwrap().contains("was stopped"), "{error}");
    vmm.child.wait().unwrap();
    assert_eq!(server.child.wait().unwrap().code(), Some(9));
}

#[test]
fn a_source_shorter_than_its_header_says_is_refused_when_it_is_opened() {
    let bench = Bench::new(1);
    let diff = snapshot(&bench.path("snap"), 64);
    fs::File::options().write(true).open(diff).unwrap().set_len(63 * PAGE as u64).unwrap();
    for detach in ["detach:=true", "detach:=false"] {
        let reply = bench.verb(&["serve", "id=vm", "source.dir=snap", detach]);
        assert_eq!(reply.status(), 9);
        reply.error("corrupt", "snap.diff_short");
    }
    assert!(!bench.path("run/vm").exists());
}

#[test]
fn a_vmm_of_another_user_is_refused_and_the_next_one_served() {
    if !nix::unistd::geteuid().is_root() {
        return wrenn_tests::skip::here("needs root, to become somebody else");
    }
    let bench = Bench::new(64);
    // Where another user can reach it, as the test's own directory is closed to him.
    let socket = std::env::temp_dir().join(format!("wu-{}.sock", std::process::id()));
    let socket = socket.as_path();
    let mut server = Foreground::start(&bench, &[&format!("socket={}", socket.display())]);
    assert_eq!(fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    // Somebody opens what was private.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
    let script =
        "import socket,sys;s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);s.send(b'[]');s.recv(1)";
    let mut other = Command::new("python3")
        .args(["-c", script])
        .arg(socket)
        .uid(65534)
        .gid(65534)
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let warning = server.until("warning");
    assert!(warning["message"].as_str().unwrap().contains("user 65534"), "{warning}");
    other.wait().unwrap();
    let mut vmm = Vmm::start(socket, 64);
    assert_eq!(vmm.ask("check 0 64 image"), "same");
    vmm.kill();
    server.until("closed");
    server.child.wait().unwrap();
}

#[test]
fn a_handshake_in_pieces_with_a_late_descriptor_is_taken() {
    let bench = Bench::new(64);
    bench.detached(&[]);
    let memory = Memory::map(64 * PAGE, false).unwrap();
    let Ok(uffd) = Uffd::create() else {
        return wrenn_tests::skip::here("no userfaultfd for this user");
    };
    uffd.register(&memory, 0, memory.len()).unwrap();
    let message = json!([{"base_host_virt_addr": memory.address(), "size": memory.len(), "offset": 0,
                          "page_size_kib": PAGE}]);
    let message = message.to_string();
    let (first, second) = message.split_at(17);
    let mut stream = UnixStream::connect(bench.run("uffd.sock")).unwrap();
    stream.write_all(first.as_bytes()).unwrap();
    assert_eq!(bench.stats()["state"], "handshake", "the verbs are answered meanwhile");
    sys::fdpass::send(&stream, second.as_bytes(), &[uffd.as_fd()]).unwrap();
    let mut bytes = [0; PAGE];
    memory.read(3 * PAGE, &mut bytes);
    assert!(bytes == common::content(3));
    bench.await_complete();
}
