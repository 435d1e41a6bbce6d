//! wrenn-launch around a VMM that runs nothing (`fake-vmm`): where the VMM finds itself, what is asked of it, and what is
//! left when anything goes wrong. They need root and /dev/kvm, which the fake VMM does not use.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use wrenn_tests::{Output, Program, Roots, Value, json, kernel, program, skip};

/// Two roots with what a boot needs, all of it under /tmp. What it started is ended with it.
struct Bench {
    roots: Roots,
}

impl Bench {
    /// `None`, and a report, where these tests cannot run.
    fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip::report(test, "needs root, for mount and network namespaces");
            return None;
        }
        if fs::File::options().write(true).open("/dev/kvm").is_err() {
            skip::report(test, "needs a /dev/kvm that can be opened: scripts/lab has one");
            return None;
        }
        let roots = Roots::new();
        for name in ["vmlinux", "initrd", "disk"] {
            fs::write(roots.dir().join(name), format!("this is {name}")).unwrap();
        }
        fs::create_dir_all(roots.run().join("sb-1")).unwrap();
        Some(Self { roots })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.roots.dir().join(name)
    }

    fn run_dir(&self) -> PathBuf {
        self.roots.run().join("sb-1")
    }

    /// What the fake VMM is to do wrong.
    fn order(&self, orders: &str) {
        fs::write(self.run_dir().join("orders"), orders).unwrap();
    }

    fn launch(&self, verb: &str) -> Program {
        self.roots.program("wrenn-launch").args([verb]).env("WRENN_FIRECRACKER", program::path("fake-vmm"))
    }

    /// A verb with a document on its stdin.
    fn with(&self, verb: &str, document: &Value) -> Output {
        self.launch(verb).args(["-"]).stdin(document.to_string()).run()
    }

    fn request(&self) -> Value {
        json!({"id": "sb-1", "kernel": self.file("vmlinux"), "initrd": self.file("initrd"),
               "rootfs": self.file("disk"), "other": 1e2})
    }

    fn boot(&self) -> Value {
        self.with("boot", &self.request()).success().reply()
    }

    fn paused(&self) -> Value {
        let booted = self.boot();
        self.with("pause", &booted).success().reply()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.run_dir().join(name)).unwrap()).unwrap()
    }

    /// The calls that the VMM got: method, path, body.
    fn requests(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.run_dir().join("requests")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Nothing of a VMM is left: no process, no socket, no log.
    #[track_caller]
    fn assert_clean(&self) {
        let left: Vec<_> = kernel::list(self.run_dir())
            .into_iter()
            .filter(|name| !["orders", "seen.json", "requests", "loaded.json"].contains(&name.as_str()))
            .collect();
        assert!(left.is_empty(), "left in the run directory: {left:?}");
        assert_eq!(vmms(self.roots.dir()), [0; 0]);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for pid in vmms(self.roots.dir()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// VMMs whose log is below `dir`.
fn vmms(dir: &Path) -> Vec<i32> {
    let ours = |pid: &i32| kernel::descriptor(*pid, 1).starts_with(&*dir.to_string_lossy());
    kernel::pids().into_iter().filter(|pid| kernel::is_alive(*pid)).filter(ours).collect()
}

fn pid(document: &Value) -> i32 {
    document["vm"]["pid"].as_i64().unwrap() as i32
}

#[track_caller]
fn error(output: Output, status: i32, code: &str) -> Value {
    let reply = output.status_is(status).reply();
    assert_eq!(reply["error"]["code"], code, "{reply}");
    reply["error"].clone()
}

#[test]
fn a_vmm_has_nothing_of_its_caller_and_sees_its_files_under_one_fixed_path() {
    let Some(bench) = Bench::new("a_vmm_has_nothing_of_its_caller") else { return };
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
    let Some(bench) = Bench::new("a_boot_configures_the_machine_of_the_document") else { return };
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
    let Some(bench) = Bench::new("a_vmm_joins_the_network_namespace_of_its_slot") else { return };
    let name = format!("wt-launch-{}", std::process::id());
    if !Command::new("ip").args(["netns", "add", &name]).status().is_ok_and(|status| status.success()) {
        return skip::report("a_vmm_joins_the_network_namespace_of_its_slot", "needs ip netns add");
    }
    let inode =
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(Path::new("/run/netns").join(&name)).unwrap());
    let mut request = bench.request();
    request["net"] = json!({"netns": name, "tap": "tap0", "guest_ip": "169.254.0.21", "tap_ip": "169.254.0.22",
                            "guest_mac": "02:fc:00:00:00:05"});
    let output = bench.with("boot", &request);
    let seen = bench.json("seen.json");
    Command::new("ip").args(["netns", "delete", &name]).status().unwrap();
    output.success();
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
    let Some(bench) = Bench::new("a_run_directory_longer_than_a_socket_address") else { return };
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
    let Some(bench) = Bench::new("a_vmm_that_dies_while_booting") else { return };
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
    let Some(bench) = Bench::new("a_vmm_that_refuses_is_quoted") else { return };
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
    let Some(bench) = Bench::new("what_was_there_before_a_failed_boot") else { return };
    fs::write(bench.run_dir().join("vm.log"), "older\n").unwrap();
    bench.order("die /actions");
    let error = error(bench.with("boot", &bench.request()), 8, "launch.died");
    assert!(!error["detail"].as_array().unwrap().contains(&json!("older")), "{error}");
    assert!(fs::read_to_string(bench.run_dir().join("vm.log")).unwrap().starts_with("older\n"));
}

#[test]
fn a_signal_while_the_vmm_does_not_answer_undoes_the_boot() {
    let Some(bench) = Bench::new("a_signal_while_the_vmm_does_not_answer") else { return };
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
    let Some(bench) = Bench::new("a_boot_whose_reply_nobody_reads") else { return };
    let status = bench.launch("boot").args(["-"]).stdin(bench.request().to_string()).run_unread();
    assert_eq!(status, Some(8));
    bench.assert_clean();
}

#[test]
fn a_second_boot_of_a_sandbox_is_a_conflict_and_leaves_the_first() {
    let Some(bench) = Bench::new("a_second_boot_of_a_sandbox") else { return };
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

#[test]
fn pause_and_resume_may_be_repeated_and_resume_gives_a_failed_documents_vm_back() {
    let Some(bench) = Bench::new("pause_and_resume_may_be_repeated") else { return };
    let booted = bench.boot();
    let paused = bench.with("pause", &booted).success().reply();
    assert_eq!(paused["vm"]["state"], "paused");
    assert_eq!(paused["other"].to_string(), "100.0", "as the test's own JSON writes it");
    let _ = bench.with("pause", &paused).success();
    let state = |document| bench.with("status", document).success().reply()["vm"]["state"].clone();
    assert_eq!(state(&paused), "paused");

    let mut failed = paused.clone();
    failed["error"] = json!({"tool": "wrenn-snap", "verb": "pack", "kind": "exhausted", "code": "snap.x",
                             "message": "full", "detail": [], "retry": false});
    let _ = bench.with("resume", &failed).status_is(6);
    assert_eq!(state(&paused), "paused", "without --undo a failed document is passed through");
    let undone =
        bench.launch("resume").args(["-", "--undo"]).stdin(failed.to_string()).run().success().reply();
    assert_eq!((&undone["vm"]["state"], &undone["error"]["code"]), (&json!("running"), &json!("snap.x")));
    assert_eq!(state(&paused), "running");
    let _ = bench.with("resume", &undone).status_is(6);
    let _ = bench.with("resume", &paused).success();
}

#[test]
fn a_pause_whose_reply_nobody_reads_leaves_the_vm_running() {
    let Some(bench) = Bench::new("a_pause_whose_reply_nobody_reads") else { return };
    let booted = bench.boot();
    let status = bench.launch("pause").args(["-"]).stdin(booted.to_string()).run_unread();
    assert_eq!(status, Some(8));
    assert_eq!(bench.with("status", &booted).success().reply()["vm"]["state"], "running");
}

#[test]
fn a_snapshot_goes_to_fresh_files_of_a_paused_vm() {
    let Some(bench) = Bench::new("a_snapshot_goes_to_fresh_files_of_a_paused_vm") else { return };
    let dir = bench.file("gen-1");
    let mut document = bench.boot();
    document["snapshot"] = json!({"dir": dir, "kind": "full"});
    error(bench.with("snapshot", &document), 4, "launch.state");
    assert!(!dir.exists());
    let _ = bench.with("pause", &document).success();
    let done = bench.with("snapshot", &document).success().reply();
    assert_eq!(done["snapshot"]["raw"], json!(dir.join("memfile.raw")));
    assert_eq!(done["vm"]["base"], json!(dir));
    // All that is not zero was written since the boot; a second full one has no such shortcut.
    let kinds = || -> Vec<_> {
        let dumps = bench.requests().into_iter().filter(|request| request[1] == "/snapshot/create");
        dumps.map(|request| request[2]["snapshot_type"].clone()).collect()
    };
    assert_eq!(kinds(), ["Diff"]);
    let mut again = done.clone();
    again["snapshot"] = json!({"dir": bench.file("gen-2"), "kind": "full"});
    let _ = bench.with("snapshot", &again).success();
    assert_eq!(kinds(), ["Diff", "Full"]);
    assert_eq!(fs::read_to_string(dir.join("memfile.raw")).unwrap(), "the memory");
    assert_eq!(fs::read_to_string(dir.join("snapfile")).unwrap(), "the state");
    error(bench.with("snapshot", &document), 4, "launch.snapshot_exists");
    assert_eq!(fs::read_to_string(dir.join("memfile.raw")).unwrap(), "the memory");
    let mut other = document.clone();
    other["snapshot"] = json!({"dir": "/nonexistent/parent/gen-1", "kind": "full"});
    error(bench.with("snapshot", &other), 3, "launch.io");
}

#[test]
fn a_diff_is_taken_only_against_the_snapshot_that_the_dirty_log_is_relative_to() {
    let Some(bench) = Bench::new("a_diff_is_taken_only_against") else { return };
    let (first, second, third) = (bench.file("gen-1"), bench.file("gen-2"), bench.file("gen-3"));
    let mut document = bench.paused();
    document["snapshot"] = json!({"dir": second, "kind": "diff"});
    error(bench.with("snapshot", &document), 2, "wire.field");
    document["snapshot"]["parent"] = json!(first);
    error(bench.with("snapshot", &document), 4, "launch.base");

    document["snapshot"] = json!({"dir": first, "kind": "full"});
    let mut document = bench.with("snapshot", &document).success().reply();
    // The parent by another name is the same parent.
    std::os::unix::fs::symlink(&first, bench.file("pause")).unwrap();
    document["snapshot"] = json!({"dir": second, "kind": "diff", "parent": bench.file("pause")});
    let mut document = bench.with("snapshot", &document).success().reply();
    let last = bench.requests().pop().unwrap();
    assert_eq!((&last[1], &last[2]["snapshot_type"]), (&json!("/snapshot/create"), &json!("Diff")));
    document["snapshot"] = json!({"dir": third, "kind": "diff", "parent": first});
    error(bench.with("snapshot", &document), 4, "launch.base");
    assert!(!third.exists());
}

#[test]
fn after_a_dump_that_failed_only_a_full_one_is_taken() {
    let Some(bench) = Bench::new("after_a_dump_that_failed") else { return };
    let (first, second) = (bench.file("gen-1"), bench.file("gen-2"));
    // The orders are read at the start, so the refusal is for every dump of this VM but the first of its base.
    let mut document = bench.paused();
    document["snapshot"] = json!({"dir": first, "kind": "full"});
    let mut document = bench.with("snapshot", &document).success().reply();
    document["snapshot"] = json!({"dir": second, "kind": "diff", "parent": first});
    // Taken and then lost: the VMM has forgotten its dirty pages, and the document with the new base never arrived.
    let status = bench.launch("snapshot").args(["-"]).stdin(document.to_string()).run_unread();
    assert_eq!(status, Some(8));
    assert!(!second.exists(), "what was written is removed");
    let error = error(bench.with("snapshot", &document), 4, "launch.base");
    assert!(error["message"].as_str().unwrap().contains("full"), "{error}");
    document["snapshot"] = json!({"dir": second, "kind": "full"});
    let _ = bench.with("snapshot", &document).success();
}

#[test]
fn a_dump_that_finds_no_space_says_so_leaves_nothing_and_the_vm_paused() {
    let Some(bench) = Bench::new("a_dump_that_finds_no_space") else { return };
    bench.order("refuse /snapshot/create Cannot write memory file: No space left on device (os error 28)");
    let mut document = bench.paused();
    let dir = bench.file("gen-1");
    document["snapshot"] = json!({"dir": dir, "kind": "full"});
    error(bench.with("snapshot", &document), 6, "launch.no_space");
    assert!(!dir.exists());
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("rootfs.meta"), "{}").unwrap();
    error(bench.with("snapshot", &document), 6, "launch.no_space");
    assert_eq!(kernel::list(&dir), ["rootfs.meta"]);
    assert_eq!(bench.with("status", &document).success().reply()["vm"]["state"], "paused");
}

#[test]
fn a_restore_loads_state_and_memory_from_anywhere_and_stays_paused() {
    let Some(bench) = Bench::new("a_restore_loads_state_and_memory_from_anywhere") else { return };
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
    let Some(bench) = Bench::new("a_restore_from_a_page_server") else { return };
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
    let Some(bench) = Bench::new("a_load_that_fails_leaves_nothing") else { return };
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

#[test]
fn a_balloon_is_asked_for_and_its_size_told() {
    let Some(bench) = Bench::new("a_balloon_is_asked_for_and_its_size_told") else { return };
    let mut document = bench.boot();
    document["spec"] = json!({"memory_mib": 64});
    let _ = bench.launch("balloon").args(["-", "--mib", "32"]).stdin(document.to_string()).run().success();
    let last = bench.requests().pop().unwrap();
    assert_eq!(last, json!(["PATCH", "/balloon", {"amount_mib": 32}]));
    let status = bench.with("status", &document).success().reply();
    assert_eq!(status["vm"]["balloon"], json!({"target_mib": 7, "actual_mib": 5}));
    assert!(status["vm"]["rss_bytes"].as_u64().unwrap() > 0);
    let output = bench.launch("balloon").args(["-", "amount_mib:=65"]).stdin(document.to_string()).run();
    error(output, 2, "wire.field");
}

#[test]
fn stop_ends_the_vmm_and_is_content_when_it_is_gone() {
    let Some(bench) = Bench::new("stop_ends_the_vmm_and_is_content_when_it_is_gone") else { return };
    let booted = bench.boot();
    let stopped = bench.with("stop", &booted).success().reply();
    assert!(stopped.get("vm").is_none());
    assert!(!kernel::is_alive(pid(&booted)));
    bench.assert_clean();
    let _ = bench.with("stop", &booted).success();
    let _ = bench.with("stop", &stopped).success();
    let status = bench.with("status", &booted).success().reply();
    assert_eq!(status["vm"]["state"], "gone");
    error(bench.with("pause", &booted), 3, "launch.gone");
}

#[test]
fn an_old_document_cannot_stop_the_next_vmm_of_its_sandbox() {
    let Some(bench) = Bench::new("an_old_document_cannot_stop_the_next_vmm") else { return };
    let old = bench.boot();
    let _ = bench.with("stop", &old).success();
    let new = bench.boot();
    let _ = bench.with("stop", &old).success();
    assert_eq!(bench.with("status", &new).success().reply()["vm"]["state"], "running");
    // Without a section, what carries the sandbox's mark is its VMM: a boot that was killed leaves no section.
    let _ = bench.with("stop", &json!({"id": "sb-2"})).success();
    assert!(kernel::is_alive(pid(&new)));
    let _ = bench.with("stop", &json!({"id": "sb-1"})).success();
    assert!(!kernel::is_alive(pid(&new)));
    bench.assert_clean();
}

#[test]
fn a_document_that_names_somebody_elses_process_harms_nobody() {
    let Some(bench) = Bench::new("a_document_that_names_somebody_elses_process") else { return };
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", other.id())).unwrap();
    let start: u64 = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    let mut document = bench.boot();
    document["vm"]["pid"] = json!(other.id());
    document["vm"]["start_time"] = json!(start);
    for verb in ["stop", "pause", "status", "wait"] {
        error(bench.with(verb, &document), 4, "launch.foreign");
    }
    assert!(kernel::is_alive(other.id() as i32));
    // Another root's VMM of the same id neither.
    let elsewhere = Roots::new();
    let document = bench.with("stop", &json!({"id": "sb-1"})).success().reply();
    assert!(document.get("vm").is_none());
    let booted = bench.boot();
    let output = elsewhere.program("wrenn-launch").args(["stop", "-"]).stdin(booted.to_string()).run();
    error(output, 4, "launch.foreign");
    elsewhere.program("wrenn-launch").args(["stop", "id=sb-1"]).run().success();
    assert!(kernel::is_alive(pid(&booted)));
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn wait_ends_when_the_vmm_does() {
    let Some(bench) = Bench::new("wait_ends_when_the_vmm_does") else { return };
    let booted = bench.boot();
    let waiting = {
        let (launch, document) = (bench.launch("wait").args(["-"]), booted.to_string());
        std::thread::spawn(move || launch.stdin(document).run())
    };
    // It holds no lock: the stop does not wait for it.
    let _ = bench.with("stop", &booted).success();
    let event = waiting.join().unwrap().success().reply();
    assert_eq!(
        (&event["event"], &event["id"], &event["pid"]),
        (&json!("exited"), &json!("sb-1"), &booted["vm"]["pid"])
    );
    assert_eq!(bench.with("wait", &booted).success().reply()["event"], "exited");
}

#[test]
fn without_dev_kvm_a_boot_says_what_is_missing() {
    let Some(bench) = Bench::new("without_dev_kvm_a_boot_says_what_is_missing") else { return };
    let script = "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec \"$0\" boot -";
    let mut unshared = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(program::path("wrenn-launch"))
        .env("WRENN_ROOT", bench.roots.root())
        .env("WRENN_RUN", bench.roots.run())
        .env("WRENN_FIRECRACKER", program::path("fake-vmm"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut unshared.stdin.take().unwrap(), bench.request().to_string().as_bytes())
        .unwrap();
    let output = unshared.wait_with_output().unwrap();
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &reply["error"]["code"]), (Some(5), &json!("launch.kvm")));
    assert!(reply["error"]["message"].as_str().unwrap().contains("/dev/kvm"), "{reply}");
    bench.assert_clean();
}

/// (verb, document or what to change in a good request, status, code, what the message names)
#[test]
fn bad_requests_are_refused_before_anything_is_touched() {
    let Some(bench) = Bench::new("bad_requests_are_refused_before_anything_is_touched") else { return };
    let not_a_program = bench.file("disk");
    let vm = json!({"pid": 1, "start_time": 1, "boot_id": "x", "api": "/x"});
    let table = [
        ("boot", json!({"id": null}), 2, "wire.field", "id"),
        ("boot", json!({"id": "../x"}), 2, "wire.field", "id"),
        ("boot", json!({"kernel": null}), 2, "wire.field", "kernel"),
        ("boot", json!({"kernel": 7}), 2, "wire.field", "kernel"),
        ("boot", json!({"kernel": "/nonexistent/vmlinux"}), 3, "launch.file", "/nonexistent/vmlinux"),
        ("boot", json!({"kernel": "/tmp"}), 2, "launch.file", "is a directory"),
        ("boot", json!({"initrd": "/nonexistent/initrd"}), 3, "launch.file", "initrd"),
        ("boot", json!({"rootfs": null}), 2, "wire.field", "cow.device"),
        ("boot", json!({"rootfs": "/nonexistent/disk"}), 3, "launch.file", "rootfs"),
        ("boot", json!({"cow": {"device": "/dev/mapper/nonexistent"}}), 3, "launch.file", "cow.device"),
        ("boot", json!({"cmdline": "a\nb"}), 2, "wire.field", "cmdline"),
        ("boot", json!({"spec": {"vcpus": 0}}), 2, "wire.field", "spec.vcpus"),
        ("boot", json!({"spec": {"vcpus": 33}}), 2, "wire.field", "spec.vcpus"),
        ("boot", json!({"spec": {"vcpus": "two"}}), 2, "wire.field", "spec.vcpus"),
        ("boot", json!({"spec": {"memory_mib": 0}}), 2, "wire.field", "spec.memory_mib"),
        ("boot", json!({"spec": {"memory_mib": 0.5}}), 2, "wire.field", "spec.memory_mib"),
        ("boot", json!({"spec": {"vmm": "qemu"}}), 5, "launch.vmm", "qemu"),
        ("boot", json!({"net": {"netns": "../x"}}), 2, "wire.field", "net.netns"),
        ("boot", json!({"net": {"netns": "wt-nonexistent"}}), 3, "launch.netns", "wt-nonexistent"),
        ("boot", json!({"vmm_path": "/nonexistent/vmm"}), 3, "launch.file", "vmm_path"),
        ("boot", json!({"vmm_path": not_a_program}), 2, "launch.file", "is not a program"),
        ("restore", json!({}), 2, "wire.field", "snapshot.dir"),
        ("restore", json!({"snapshot": {"dir": "/nonexistent/gen"}}), 3, "launch.file", "/nonexistent/gen"),
        ("restore", json!({"snapshot": {"dir": "/tmp"}}), 3, "launch.file", "snapfile"),
        ("pause", json!({}), 2, "wire.field", "pid"),
        ("pause", json!({"vm": {"pid": "one"}}), 2, "wire.field", "vm.pid"),
        ("pause", json!({"vm": vm}), 3, "launch.gone", "sb-1"),
        ("pause", json!({"vm": {"vmm": "qemu"}}), 5, "launch.vmm", "vm.vmm"),
        ("resume", json!({"vm": vm}), 3, "launch.gone", "sb-1"),
        ("snapshot", json!({"vm": vm}), 2, "wire.field", "dir"),
        (
            "snapshot",
            json!({"vm": vm, "snapshot": {"dir": "/x", "kind": "half"}}),
            2,
            "wire.field",
            "snapshot.kind",
        ),
        ("snapshot", json!({"vm": vm, "snapshot": {"dir": "/x", "kind": "full"}}), 3, "launch.gone", "sb-1"),
        ("balloon", json!({"vm": vm}), 2, "wire.field", "amount_mib"),
        ("balloon", json!({"vm": vm, "amount_mib": -1}), 2, "wire.field", "amount_mib"),
        ("status", json!({}), 2, "wire.field", "pid"),
        ("stop", json!({"vm": {"pid": 1}}), 2, "wire.field", "start_time"),
        ("wait", json!({}), 2, "wire.field", "pid"),
    ];
    for (verb, change, status, code, named) in table {
        let mut request = bench.request();
        for (name, value) in change.as_object().unwrap() {
            request[name] = value.clone();
        }
        let output = bench.with(verb, &request);
        assert_eq!(output.status, Some(status), "{verb} {change}: {}", output.text());
        let error = &output.reply()["error"];
        assert_eq!(error["code"], code, "{verb} {change}: {error}");
        assert!(error["message"].as_str().unwrap().contains(named), "{verb} {change}: {error}");
        bench.assert_clean();
    }
    let _ = bench.launch("fly").run().status_is(2);
    let _ = bench.launch("boot").args(["what"]).run().status_is(2);
    // No VMM anywhere.
    let output = bench
        .launch("boot")
        .args(["-"])
        .env("WRENN_FIRECRACKER", "")
        .env("PATH", "/nonexistent")
        .stdin(bench.request().to_string())
        .run();
    let error = error(output, 5, "launch.vmm_absent");
    assert!(error["message"].as_str().unwrap().contains("WRENN_FIRECRACKER"), "{error}");
}

#[test]
fn without_privilege_a_boot_is_refused_with_the_reason_and_nothing_is_left() {
    let Some(bench) = Bench::new("without_privilege_a_boot_is_refused") else { return };
    // All of root's files, none of root's rights over mounts.
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"])
        .arg(program::path("wrenn-launch"))
        .args(["boot", "id=sb-1"])
        .args(["kernel", "initrd"].map(|name| {
            format!("{name}={}", bench.file(name.replace("kernel", "vmlinux").as_str()).display())
        }))
        .arg(format!("rootfs={}", bench.file("disk").display()))
        .env("WRENN_ROOT", bench.roots.root())
        .env("WRENN_RUN", bench.roots.run())
        .env("WRENN_FIRECRACKER", program::path("fake-vmm"))
        .output()
        .unwrap();
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(5), "{reply}");
    assert_eq!(reply["error"]["code"], "launch.child");
    assert!(reply["error"]["message"].as_str().unwrap().contains("private mount namespace"), "{reply}");
    bench.assert_clean();
}
