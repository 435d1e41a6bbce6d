//! A VMM from a snapshot.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;

use wrenn_tests::json;

use crate::bench::{Bench, error};

#[test]
fn a_restore_loads_state_and_memory_from_anywhere_and_stays_paused() {
    let Some(bench) = Bench::new() else { return };
    let dir = bench.file("gen-1");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("snapfile"), "its state").unwrap();
    fs::write(bench.file("memory"), "its memory").unwrap();
    let mut document = json!({"id": "sb-1", "rootfs": bench.file("disk"), "snapshot": {"dir": dir}});
    error(bench.with("restore", &document), 2, "launch.no_memory");
    document["snapshot"]["raw"] = json!(bench.file("memory"));
    let restored = bench.with("restore", &document).success().reply();
    assert_eq!(bench.json("loaded.json"), json!({"state": "its state", "memory": "its memory"}));
    assert_eq!((&restored["vm"]["state"], &restored["vm"]["base"]), (&json!("paused"), &json!(dir)));
    let load = bench.requests().into_iter().find(|request| request[1] == "/snapshot/load").unwrap();
    assert_eq!((&load[2]["track_dirty_pages"], &load[2]["resume_vm"]), (&json!(true), &json!(false)));
    let _ = bench.with("stop", &restored).success();
    bench.assert_clean();

    // A compact file under the same name is not all of the memory.
    fs::write(dir.join("memfile"), "some of it").unwrap();
    fs::write(dir.join("memfile.header"), "a header").unwrap();
    document["snapshot"] = json!({"dir": dir});
    error(bench.with("restore", &document), 2, "launch.no_memory");
    fs::remove_file(dir.join("memfile.header")).unwrap();
    let _ = bench.with("restore", &document).success();
    assert_eq!(bench.json("loaded.json")["memory"], "some of it");
}

#[test]
fn a_restore_from_a_page_server_hands_the_vmm_its_socket() {
    let Some(bench) = Bench::new() else { return };
    let dir = bench.file("gen-1");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("snapfile"), "its state").unwrap();
    let socket = bench.file("uffd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        text
    });
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let start: u64 = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let mut document = json!({"id": "sb-1", "rootfs": bench.file("disk"), "snapshot": {"dir": dir},
        "uffd": {"pid": std::process::id(), "start_time": start, "boot_id": boot_id.trim(), "socket": socket}});
    let restored = bench.with("restore", &document).success().reply();
    assert_eq!(server.join().unwrap(), "the handshake");
    let _ = bench.with("stop", &restored).success();
    document["uffd"]["start_time"] = json!(start + 1);
    error(bench.with("restore", &document), 3, "launch.no_page_server");
    bench.assert_clean();
}

#[test]
fn a_load_that_fails_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let dir = bench.file("gen-1");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("snapfile"), "its state").unwrap();
    fs::write(dir.join("memfile"), "its memory").unwrap();
    let document = json!({"id": "sb-1", "rootfs": bench.file("disk"), "snapshot": {"dir": dir}});
    for (order, code) in
        [("refuse /snapshot/load bad magic", "launch.api"), ("die /snapshot/load", "launch.died")]
    {
        bench.order(order);
        error(bench.with("restore", &document), 8, code);
        bench.assert_clean();
        assert_eq!(fs::read_to_string(dir.join("memfile")).unwrap(), "its memory");
    }
}
