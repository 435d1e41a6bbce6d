//! What differs on Cloud Hypervisor: a snapshot of three files that names the place of its disk, memory that completes
//! itself, and what the VMM leaves behind.

use std::fs;
use std::path::{Path, PathBuf};

use wrenn_tests::{Output, Value, json, kernel, program};

use crate::bench::{Bench, error, pid};

/// The machine of the recording.
fn request(bench: &Bench) -> Value {
    let mut request = bench.request();
    request["spec"] = json!({"vmm": "cloud-hypervisor", "memory_mib": 96});
    request
}

/// What is in a directory, sorted.
fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let mut names = kernel::list(dir);
    names.sort();
    names
}

fn boot(bench: &Bench) -> Value {
    bench.with("boot", &request(bench)).success().reply()
}

fn snapshot(bench: &Bench, document: &Value, name: &str, kind: &str) -> Output {
    let mut document = document.clone();
    document["snapshot"] = json!({"dir": bench.file(name), "kind": kind});
    bench.with("snapshot", &document)
}

/// A snapshot's directory as Cloud Hypervisor's: its disk at this place, one page of memory.
fn saved(bench: &Bench, name: &str, disk: &str) -> PathBuf {
    let dir = bench.file(name);
    fs::create_dir(&dir).unwrap();
    let config = json!({
        "payload": {"kernel": "/elsewhere/vmlinux", "initramfs": "/elsewhere/initrd"},
        "disks": [{"id": "rootfs", "path": disk}],
        "serial": {"mode": "File", "file": "/elsewhere/log"},
    });
    let manager = json!({"memory_ranges": {"data": [{"gpa": 0, "length": 4096}]}}).to_string();
    let state = json!({"snapshots": {"memory-manager": {"snapshot_data": {"state": manager}}}});
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("state.json"), state.to_string()).unwrap();
    fs::write(dir.join("memory-ranges"), "p".repeat(4096)).unwrap();
    dir
}

fn to_restore(bench: &Bench, dir: &Path) -> Value {
    json!({"id": "sb-1", "rootfs": bench.file("disk"), "snapshot": {"dir": dir}})
}

/// Every request was one that the real one knows, and nothing of a VMM is left.
#[track_caller]
fn assert_clean(bench: &Bench) {
    let unknown = fs::read_to_string(bench.run_dir().join("unknown")).unwrap_or_default();
    assert_eq!(unknown, "", "not in the recording");
    let _ = fs::remove_file(bench.run_dir().join("complete"));
    bench.assert_clean();
}

#[test]
fn cloud_hypervisor_boots_and_its_kernel_is_out_of_sight_afterwards() {
    let Some(bench) = Bench::new() else { return };
    let booted = boot(&bench);
    let seen = bench.json("seen.json");
    assert_eq!(
        seen["args"],
        json!(["/tmp/wrenn-vm/cloud-hypervisor", "--api-socket", "path=/tmp/wrenn-vm/run/api.sock"])
    );
    let files: Vec<_> =
        seen["tmp"].as_array().unwrap().iter().map(|file| file[0].as_str().unwrap()).collect();
    let all = ["", "/cloud-hypervisor", "/initrd", "/rootfs.ext4", "/run", "/vmlinux"];
    assert_eq!(files, all.map(|name| format!("/tmp/wrenn-vm{name}")));
    // It would boot them again when the guest resets.
    let workdir = format!("/proc/{}/root/tmp/wrenn-vm", pid(&booted));
    assert_eq!(names(&workdir), ["cloud-hypervisor", "rootfs.ext4", "run"]);
    for name in ["vmlinux", "initrd"] {
        assert_eq!(fs::read_to_string(bench.file(name)).unwrap(), format!("this is {name}"));
    }
    let vm = &booted["vm"];
    assert_eq!((&vm["vmm"], &vm["version"]), (&json!("cloud-hypervisor"), &json!("53.0.0")));
    assert_eq!((&vm["state"], &vm["workdir"]), (&json!("running"), &json!("/tmp/wrenn-vm")));
    assert!(bench.run_dir().join("console.sock").exists());

    let status = bench.with("status", &booted).success().reply();
    assert_eq!(status["vm"]["balloon"], json!({"target_mib": 0, "actual_mib": 0}));
    assert_eq!(status["vm"]["complete"], true);
    let paused = bench.with("pause", &booted).success().reply();
    let paused = bench.with("pause", &paused).success().reply();
    let running = bench.with("resume", &paused).success().reply();
    let _ = bench.with("resume", &running).success();
    let output = bench.launch("balloon").args(["-", "--mib", "97"]).stdin(running.to_string()).run();
    error(output, 2, "wire.field");
    let _ = bench.with("stop", &running).success();
    assert_clean(&bench);
    // A VMM that was killed leaves its sockets and its lock: they are no obstacle.
    for name in ["api.sock.lock", "console.sock"] {
        fs::write(bench.run_dir().join(name), "").unwrap();
    }
    let booted = boot(&bench);
    let _ = bench.with("stop", &booted).success();
    assert_clean(&bench);
}

#[test]
fn cloud_hypervisor_is_taken_before_our_own_vmm_where_there_is_no_firecracker() {
    let Some(bench) = Bench::new() else { return };
    let mut request = request(&bench);
    request["spec"].as_object_mut().unwrap().remove("vmm");
    let launch = |verb: &str, document: &Value| {
        let launch = bench.launch(verb).args(["-"]).stdin(document.to_string());
        launch.env("WRENN_FIRECRACKER", "").env("PATH", "/nonexistent").run()
    };
    let booted = launch("boot", &request).success().reply();
    assert_eq!(booted["vm"]["vmm"], "cloud-hypervisor");
    let _ = launch("stop", &booted).success();
    // Also by a program of the request's own, whose name tells it.
    let path = bench.file("cloud-hypervisor-static");
    fs::copy(program::path("fake-cloud-hypervisor"), &path).unwrap();
    request["vmm_path"] = json!(path);
    let booted = bench.with("boot", &request).success().reply();
    assert_eq!(booted["vm"]["vmm"], "cloud-hypervisor");
}

#[test]
fn a_snapshot_has_the_names_that_pack_knows_and_is_never_a_diff() {
    let Some(bench) = Bench::new() else { return };
    let booted = boot(&bench);
    error(snapshot(&bench, &booted, "gen-1", "full"), 4, "launch.state");
    let paused = bench.with("pause", &booted).success().reply();
    let refused = error(snapshot(&bench, &paused, "gen-1", "diff"), 5, "launch.no_diffs");
    assert!(refused["message"].as_str().unwrap().contains("wrenn-snap pack with a parent"), "{refused}");
    assert!(!bench.file("gen-1").exists());

    let done = snapshot(&bench, &paused, "gen-1", "full").success().reply();
    let dir = bench.file("gen-1");
    assert_eq!(names(&dir), ["config.json", "memfile.raw", "state.json"]);
    assert_eq!(fs::read_to_string(dir.join("memfile.raw")).unwrap(), "m".repeat(4096));
    assert_eq!(
        (&done["snapshot"]["raw"], &done["vm"]["base"]),
        (&json!(dir.join("memfile.raw")), &json!(dir))
    );
    for name in ["config.json", "state.json", "memory-ranges", "memfile.raw"] {
        let dir = bench.file(&format!("has-{name}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(name), "older").unwrap();
        error(snapshot(&bench, &paused, &format!("has-{name}"), "full"), 4, "launch.snapshot_exists");
        assert_eq!(names(&dir), [name]);
    }
    // What it had written when its disk was full goes, the VM stays as it was.
    bench.order("step snapshot, a full disk");
    error(snapshot(&bench, &paused, "gen-2", "full"), 6, "launch.no_space");
    assert!(!bench.file("gen-2").exists());
    bench.order("");
    assert_eq!(bench.with("status", &paused).success().reply()["vm"]["state"], "paused");

    // And it wakes from what it wrote.
    let _ = bench.with("stop", &paused).success();
    let mut document = to_restore(&bench, &dir);
    document["snapshot"]["raw"] = done["snapshot"]["raw"].clone();
    document["net"] = json!({"netns": "wt-nonexistent", "tap": "tap0"});
    error(bench.with("restore", &document), 3, "launch.netns");
    document.as_object_mut().unwrap().remove("net");
    error(bench.with("restore", &document), 2, "launch.machine");
    assert_clean(&bench);
}

#[test]
fn a_restore_shows_the_disk_where_the_snapshot_has_it() {
    let Some(bench) = Bench::new() else { return };
    for (name, place) in [("own", "/tmp/wrenn-vm"), ("first", "/tmp/ch-vm-first/deep"), ("short", "/tmp/x")] {
        let dir = saved(&bench, name, &format!("{place}/root.img"));
        for (memory, template) in [("memory-ranges", false), ("raw", true)] {
            let mut document = to_restore(&bench, &dir);
            if template {
                fs::write(dir.join("meta.json"), json!({"sandbox_dir": place}).to_string()).unwrap();
                fs::write(bench.file("raw"), "r".repeat(4096)).unwrap();
                document["snapshot"]["raw"] = json!(bench.file(memory));
            }
            let restored = bench.with("restore", &document).success().reply();
            let loaded = bench.json("loaded.json");
            assert_eq!(loaded["disk"], "this is disk");
            assert_eq!(loaded["memory"], memory[..1].replace('m', "p").repeat(4096));
            assert_eq!(loaded["config"]["payload"], json!({"kernel": "/tmp/wrenn-vm/vmlinux"}));
            let vm = &restored["vm"];
            assert_eq!((&vm["workdir"], &vm["state"]), (&json!(place), &json!("paused")));
            assert_eq!(vm["base"], json!(dir));
            assert!(!Path::new(place).exists(), "nobody else sees it");
            let seen = bench.json("seen.json");
            let is_kernel = |file: &Value| file[0].as_str().unwrap().ends_with("vmlinux");
            assert!(!seen["tmp"].as_array().unwrap().iter().any(is_kernel), "a reset ends it: {seen}");
            let _ = bench.with("stop", &restored).success();
            assert_clean(&bench);
        }
    }
}

#[test]
fn a_template_that_does_not_tell_its_place_or_is_not_whole_starts_nothing() {
    let Some(bench) = Bench::new() else { return };
    let dir = saved(&bench, "template", "/tmp/first/root.img");
    let meta = |text: &str| fs::write(dir.join("meta.json"), text).unwrap();
    let document = to_restore(&bench, &dir);
    let refused = |status: u8, code: &str, words: &str| {
        let error = error(bench.with("restore", &document), status.into(), code);
        assert!(error["message"].as_str().unwrap().contains(words), "{words}: {error}");
        assert!(!bench.run_dir().join("seen.json").exists(), "{words}: something was started");
        assert_clean(&bench);
    };
    for (text, status, code, words) in [
        (r#"{"vcpus": 1}"#, 2, "launch.sandbox_dir", "must say as sandbox_dir"),
        (r#"{"sandbox_dir": "/tmp"}"#, 2, "launch.sandbox_dir", "/tmp"),
        (r#"{"sandbox_dir": "/tmp/first/../.."}"#, 2, "launch.sandbox_dir", "plain form"),
        (r#"{"sandbox_dir": "/etc"}"#, 2, "launch.sandbox_dir", "below /tmp"),
        (r#"{"sandbox_dir": "/tmp/second"}"#, 9, "launch.corrupt", "/tmp/second"),
        (r#"{"sandbox_dir": "#, 9, "launch.corrupt", "meta.json"),
    ] {
        meta(text);
        refused(status, code, words);
    }
    meta(r#"{"sandbox_dir": "/tmp/first"}"#);
    for (name, text) in [("config.json", "{"), ("state.json", "{}"), ("memory-ranges", "short")] {
        let whole = fs::read(dir.join(name)).unwrap();
        fs::write(dir.join(name), text).unwrap();
        refused(9, "launch.corrupt", name);
        fs::write(dir.join(name), whole).unwrap();
    }
    fs::remove_file(dir.join("memory-ranges")).unwrap();
    refused(2, "launch.no_memory", "wrenn-snap unpack");
    fs::write(dir.join("memory-ranges"), "p".repeat(4096)).unwrap();
    let mut served = document.clone();
    served["uffd"] = json!({"pid": 1, "start_time": 1, "boot_id": "x", "socket": "/x"});
    error(bench.with("restore", &served), 5, "launch.no_server");
    served["lazy"] = json!(false);
    let restored = bench.with("restore", &served).success().reply();
    let _ = bench.with("stop", &restored).success();
    assert_clean(&bench);
}

#[test]
fn memory_that_is_still_on_its_way_is_waited_for_and_the_balloon_kept_still() {
    let Some(bench) = Bench::new() else { return };
    let dir = saved(&bench, "gen-1", "/tmp/wrenn-vm/rootfs.ext4");
    let restored = bench.with("restore", &to_restore(&bench, &dir)).success().reply();
    let complete =
        |document: &Value| bench.with("status", document).success().reply()["vm"]["complete"].clone();
    assert_eq!(complete(&restored), false);
    let balloon =
        |mib: &str| bench.launch("balloon").args(["-", "--mib", mib]).stdin(restored.to_string()).run();
    assert!(error(balloon("16"), 4, "launch.lazy")["retry"].as_bool().unwrap());
    let running = bench.with("resume", &restored).success().reply();
    let _ = balloon("0").success();
    let paused = bench.with("pause", &running).success().reply();
    // It waits, in silence, until the memory is there.
    let requests = bench.requests().len();
    let waiting = {
        let mut document = paused.clone();
        document["snapshot"] = json!({"dir": bench.file("gen-2"), "kind": "full"});
        let launch = bench.launch("snapshot").args(["-"]).stdin(document.to_string());
        std::thread::spawn(move || launch.run())
    };
    while bench.requests().len() == requests {
        std::thread::yield_now();
    }
    assert!(!bench.file("gen-2").exists());
    fs::write(bench.run_dir().join("complete"), "").unwrap();
    let _ = waiting.join().unwrap().success();
    assert_eq!(names(bench.file("gen-2")), ["config.json", "memfile.raw", "state.json"]);
    assert_eq!(complete(&paused), true);
    let _ = bench.with("stop", &paused).success();
    assert_clean(&bench);

    // A VMM that ends meanwhile is told, not waited for.
    let restored = bench.with("restore", &to_restore(&bench, &dir)).success().reply();
    let mut document = restored.clone();
    document["snapshot"] = json!({"dir": bench.file("gen-3"), "kind": "full"});
    let requests = bench.requests().len();
    let launch = bench.launch("snapshot").args(["-"]).stdin(document.to_string());
    let waiting = std::thread::spawn(move || launch.run());
    while bench.requests().len() == requests {
        std::thread::yield_now();
    }
    let signal = nix::sys::signal::Signal::SIGKILL;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid(&restored)), signal).unwrap();
    let refused = waiting.join().unwrap().reply()["error"].clone();
    // By then it may still have been asked for the VM's state.
    let told = [
        json!("the VMM ended while it was to say its state"),
        json!(format!("the VMM of sb-1 (pid {}) has ended", pid(&restored))),
    ];
    assert!(told.contains(&refused["message"]), "{refused}");
    assert!(!bench.file("gen-3").exists());
    let _ = bench.with("stop", &restored).success();
    assert_clean(&bench);
}

#[test]
fn a_cloud_hypervisor_that_refuses_or_dies_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let dir = saved(&bench, "gen-1", "/tmp/wrenn-vm/rootfs.ext4");
    let (boot, restore) = (request(&bench), to_restore(&bench, &dir));
    for (verb, document, order, code, words) in [
        ("boot", &boot, "die vmm.ping", "launch.died", "exit status: 3"),
        ("boot", &boot, "die vm.create", "launch.died", "exit status: 3"),
        ("boot", &boot, "die vm.boot", "launch.died", "exit status: 3"),
        ("boot", &boot, "step boot, a kernel that is none", "launch.api", "Invalid bzImage"),
        ("boot", &boot, "step boot, a locked disk", "launch.api", "already locked"),
        ("restore", &restore, "die vm.restore", "launch.died", "exit status: 3"),
        ("restore", &restore, "step restore, a busy tap", "launch.api", "Device or resource busy"),
    ] {
        bench.order(order);
        let error = error(bench.with(verb, document), 8, code);
        assert!(error["message"].as_str().unwrap().contains(words), "{order}: {error}");
        assert_clean(&bench);
    }
    bench.order("");
    let status = bench.launch("restore").args(["-"]).stdin(restore.to_string()).run_unread();
    assert_eq!(status, Some(8));
    assert_clean(&bench);
    assert_eq!(names(&dir), ["config.json", "memory-ranges", "state.json"]);
}
