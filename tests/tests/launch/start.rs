//! Where a VMM finds itself, what is asked of it, and what is left when it does not start.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use wrenn_tests::{Value, json, kernel, skip};

use crate::bench::{Bench, error, pid};

#[test]
fn a_vmm_has_nothing_of_its_caller_and_sees_its_files_under_one_fixed_path() {
    let Some(bench) = Bench::new() else { return };
    // Run to the end of both its pipes: what it leaves running holds neither.
    let booted = bench.boot();
    let seen = bench.json("seen.json");
    let log = bench.run_dir().join("vm.log");
    assert_eq!(seen["fds"], json!([["0", "/dev/null"], ["1", log], ["2", log]]));
    assert_eq!(seen["session"], seen["pid"].to_string(), "it leads a session of its own");
    assert_eq!(seen["env"].as_array().unwrap().len(), 1, "{}", seen["env"]);
    assert_eq!(seen["env"][0][0], "WRENN_OWNER");
    assert_eq!(
        (&seen["cwd"], &seen["umask"], &seen["blocked"]),
        (&json!("/"), &json!("0077"), &json!("0000000000000000"))
    );
    assert_eq!((&seen["tmp"], &seen["tmp_mode"]), (&json!(["wrenn-vm"]), &json!(0o700)));
    let names: Vec<_> =
        seen["files"].as_array().unwrap().iter().map(|file| file[0].as_str().unwrap()).collect();
    assert_eq!(names, ["firecracker", "initrd", "rootfs.ext4", "run", "vmlinux"]);
    assert_eq!(seen["files"][1][1], "this is initrd");
    assert_eq!(seen["files"][2][1], "this is disk");
    assert_eq!(seen["files"][4][1], "this is vmlinux");
    assert_ne!(seen["mnt"], fs::read_link("/proc/self/ns/mnt").unwrap().to_string_lossy().as_ref());
    assert!(!Path::new("/tmp/wrenn-vm").exists(), "nobody else sees the working directory");

    assert_eq!(booted["vm"]["pid"], seen["pid"]);
    assert_eq!(booted["vm"]["state"], "running");
    assert_eq!(booted["vm"]["version"], "1.16.1-fake");
    assert_eq!(booted["vm"]["api"], json!(bench.run_dir().join("api.sock")));
    assert!(fs::read_to_string(log).unwrap().contains("hello from the console"));
    let _ = bench.with("stop", &booted).success();
    bench.assert_clean();
}

#[test]
fn a_boot_configures_the_machine_of_the_document() {
    let Some(bench) = Bench::new() else { return };
    let mut request = bench.request();
    request["spec"] = json!({"vcpus": 2, "memory_mib": 300});
    request["cmdline"] = json!("console=ttyS0 mine");
    let _ = bench.with("boot", &request).success();
    let requests = bench.requests();
    let body =
        |path: &str| requests.iter().find(|request| request[1] == path).map(|request| request[2].clone());
    assert_eq!(
        body("/machine-config"),
        Some(json!({"vcpu_count": 2, "mem_size_mib": 300, "track_dirty_pages": true}))
    );
    assert_eq!(
        body("/boot-source"),
        Some(json!({"kernel_image_path": "/tmp/wrenn-vm/vmlinux", "boot_args": "console=ttyS0 mine",
                    "initrd_path": "/tmp/wrenn-vm/initrd"}))
    );
    let disk = body("/drives/rootfs").unwrap();
    assert_eq!(
        (&disk["path_on_host"], &disk["cache_type"]),
        (&json!("/tmp/wrenn-vm/rootfs.ext4"), &json!("Writeback"))
    );
    assert!(body("/serial").is_some(), "the console is bounded");
    assert!(body("/network-interfaces/eth0").is_none(), "no section net, no interface");
    let order: Vec<_> = requests.iter().map(|request| request[1].as_str().unwrap()).collect();
    assert_eq!(order.iter().position(|path| *path == "/actions"), Some(order.len() - 2), "{order:?}");
}

#[test]
fn a_vmm_joins_the_network_namespace_of_its_slot() {
    let Some(bench) = Bench::new() else { return };
    let name = format!("wt-launch-{}", std::process::id());
    if !Command::new("ip").args(["netns", "add", &name]).status().is_ok_and(|status| status.success()) {
        return skip::here("needs ip netns add");
    }
    let inode =
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(Path::new("/run/netns").join(&name)).unwrap());
    let mut request = bench.request();
    request["net"] = json!({"netns": name, "tap": "tap0", "guest_ip": "169.254.0.21", "tap_ip": "169.254.0.22",
                            "guest_mac": "02:fc:00:00:00:05"});
    let output = bench.with("boot", &request);
    Command::new("ip").args(["netns", "delete", &name]).status().unwrap();
    output.success();
    let seen = bench.json("seen.json");
    assert_eq!(seen["net"], format!("net:[{inode}]"));
    let requests = bench.requests();
    let interface = requests.iter().find(|request| request[1] == "/network-interfaces/eth0").unwrap();
    assert_eq!(
        interface[2],
        json!({"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "02:fc:00:00:00:05"})
    );
    let boot = requests.iter().find(|request| request[1] == "/boot-source").unwrap();
    let cmdline = boot[2]["boot_args"].as_str().unwrap();
    assert!(cmdline.contains(" ip=169.254.0.21::169.254.0.22:255.255.255.252:sb-1:eth0:off"), "{cmdline}");

    request["net"]["netns"] = json!("wt-launch-gone");
    request["id"] = json!("sb-2");
    error(bench.with("boot", &request), 3, "launch.netns");
}

#[test]
fn a_run_directory_longer_than_a_socket_address_is_no_obstacle() {
    let Some(bench) = Bench::new() else { return };
    let run = bench.file(&"r".repeat(150));
    let launch = |verb, document: &Value| {
        bench
            .launch(verb)
            .args(["-"])
            .env("WRENN_RUN", &run)
            .stdin(document.to_string())
            .run()
            .success()
            .reply()
    };
    let booted = launch("boot", &bench.request());
    let paused = launch("pause", &booted);
    assert_eq!(paused["vm"]["state"], "paused");
    launch("stop", &paused);
    assert_eq!(kernel::list(run.join("sb-1")).len(), 2, "only what the fake VMM wrote for this test is left");
}

#[test]
fn a_vmm_that_dies_while_booting_is_reported_with_its_last_words_and_nothing_is_left() {
    let Some(bench) = Bench::new() else { return };
    for moment in ["start", "/machine-config", "/actions", "/version"] {
        bench.order(&format!("die {moment}"));
        let error = error(bench.with("boot", &bench.request()), 8, "launch.died");
        assert!(error["message"].as_str().unwrap().contains("exit status: 3"), "{moment}: {error}");
        let words = format!("fake-vmm: dying at {moment} as ordered");
        assert!(error["detail"].as_array().unwrap().contains(&json!(words)), "{moment}: {error}");
        bench.assert_clean();
    }
}

#[test]
fn a_vmm_that_refuses_is_quoted_and_nothing_is_left() {
    let Some(bench) = Bench::new() else { return };
    for call in ["/boot-source", "/drives/rootfs", "/entropy", "/actions"] {
        bench.order(&format!("refuse {call} not like this"));
        let error = error(bench.with("boot", &bench.request()), 8, "launch.api");
        assert!(error["message"].as_str().unwrap().contains("not like this"), "{call}: {error}");
        bench.assert_clean();
    }
    // A VMM that does not know this call yet boots all the same.
    bench.order("refuse /serial unknown");
    bench.boot();
}

#[test]
fn what_was_there_before_a_failed_boot_is_there_after_it() {
    let Some(bench) = Bench::new() else { return };
    fs::write(bench.run_dir().join("vm.log"), "older\n").unwrap();
    bench.order("die /actions");
    let error = error(bench.with("boot", &bench.request()), 8, "launch.died");
    assert!(!error["detail"].as_array().unwrap().contains(&json!("older")), "{error}");
    assert!(fs::read_to_string(bench.run_dir().join("vm.log")).unwrap().starts_with("older\n"));
}

#[test]
fn a_signal_while_the_vmm_does_not_answer_undoes_the_boot() {
    let Some(bench) = Bench::new() else { return };
    for moment in ["start", "/actions"] {
        bench.order(&format!("hang {moment}"));
        let mut launch = bench.launch("boot").args(["-"]);
        let mut child = launch
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, bench.request().to_string().as_bytes()).unwrap();
        drop(stdin);
        let seen = if moment == "start" { "seen.json" } else { "requests" };
        wait_for(&bench.run_dir(), |dir| {
            fs::read_to_string(dir.join(seen)).is_ok_and(|text| moment == "start" || text.contains(moment))
        });
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let mut reply = String::new();
        child.stdout.take().unwrap().read_to_string(&mut reply).unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success());
        assert!(reply.contains("interrupted"), "{moment}: {reply}");
        bench.assert_clean();
        fs::remove_file(bench.run_dir().join(seen)).unwrap();
    }
}

/// Waits until a file appears or changes so that `done` holds. (Its writer is not ours to ask.)
fn wait_for(dir: &Path, done: impl Fn(&Path) -> bool) {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    inotify
        .add_watch(dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE)
        .unwrap();
    while !done(dir) {
        inotify.read_events().unwrap();
    }
}

#[test]
fn a_boot_whose_reply_nobody_reads_leaves_no_vmm() {
    let Some(bench) = Bench::new() else { return };
    let status = bench.launch("boot").args(["-"]).stdin(bench.request().to_string()).run_unread();
    assert_eq!(status, Some(8));
    bench.assert_clean();
}

#[test]
fn a_second_boot_of_a_sandbox_is_a_conflict_and_leaves_the_first() {
    let Some(bench) = Bench::new() else { return };
    let booted = bench.boot();
    error(bench.with("boot", &bench.request()), 4, "launch.exists");
    let status = bench.with("status", &booted).success().reply();
    assert_eq!(status["vm"]["state"], "running");
    // The socket that a killed VMM leaves is no obstacle.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid(&booted)), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    let _ = bench.with("wait", &booted).success();
    bench.boot();
}
