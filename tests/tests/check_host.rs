//! `scripts/check-host` finds nothing where all is well, and each fault that is planted. On a machine in small; what needs
//! device-mapper in the lab.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use wrenn_tests::host::TestHost;
use wrenn_tests::{Value, json};

wrenn_tests::on_a_toy![
    nothing_is_wrong_at_any_point_of_a_life,
    what_is_wrong_with_files_is_found,
    what_is_wrong_with_documents_is_found,
    what_belongs_to_nobody_is_found,
    a_vm_or_page_server_that_is_gone_is_found,
];

wrenn_tests::tests_on!(wrenn_vmm, WrennVmm, 1, TestHost, privileged_devices_that_are_nobodys_are_found);

/// Plants a fault, finds that it is said, and takes it away again.
fn planted(host: &TestHost, said: &str, plant: impl FnOnce() -> Box<dyn FnOnce()>) {
    let undo = plant();
    let faults = host.faults_within(0);
    undo();
    assert!(faults.iter().any(|fault| fault.contains(said)), "{said:?} is not said, but {faults:#?}");
}

fn sandbox(host: &TestHost, id: &str, path: &str) -> PathBuf {
    host.root().join("sandboxes").join(id).join(path)
}

fn wrenn(host: &TestHost, args: &[&str]) {
    host.wrenn(args.iter().copied()).run().success();
}

/// Two sandboxes, one of which runs and one is paused, and a template.
fn populate(host: &TestHost) {
    let source = host.create("asleep");
    wrenn(host, &["snapshot", &source.id, "team/warm"]);
    source.pause();
    host.create_from("awake", "team/warm", &[]);
    assert_eq!(host.faults(), [""; 0], "all is well");
}

fn depopulate(host: &TestHost) {
    assert_eq!(host.faults(), [""; 0], "every fault was taken away");
    host.remove_all();
    wrenn(host, &["template", "rm", "team/warm"]);
    assert_eq!(host.faults(), [""; 0]);
}

fn nothing_is_wrong_at_any_point_of_a_life(host: &TestHost) {
    let well = |when: &str| assert_eq!(host.faults(), [""; 0], "{when}");
    well("before");
    let sandbox = host.create("life");
    well("booted");
    for when in ["the first time", "again"] {
        sandbox.pause();
        well(&format!("paused {when}"));
        sandbox.resume();
        well(&format!("woken {when}"));
        wrenn(host, &["snapshot", "life", "one"]);
        well(&format!("copied {when}"));
        host.create_from("copy", "one", &[]);
        well(&format!("beside a copy {when}"));
        wrenn(host, &["rm", "copy"]);
        wrenn(host, &["template", "rm", "one"]);
    }
    sandbox.end("vm");
    wrenn(host, &["gc"]);
    well("after the death of its VM");
    wrenn(host, &["rm", "life"]);
    well("removed");
}

/// Replaces a file's content, keeping it for later.
fn replaced(path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Box<dyn FnOnce()> {
    let path = path.to_owned();
    let aside = path.parent().unwrap().join("../../aside");
    fs::rename(&path, &aside).expect("aside");
    let mut bytes = fs::read(&aside).expect("bytes");
    change(&mut bytes);
    fs::write(&path, bytes).expect("written");
    Box::new(move || fs::rename(aside, path).expect("put back"))
}

fn moved(path: &Path) -> Box<dyn FnOnce()> {
    let (path, aside) = (path.to_owned(), path.parent().unwrap().join("../../aside"));
    fs::rename(&path, &aside).expect("aside");
    Box::new(move || fs::rename(aside, path).expect("put back"))
}

fn what_is_wrong_with_files_is_found(host: &TestHost) {
    populate(host);
    let generation = fs::canonicalize(sandbox(host, "asleep", "pause")).expect("the last pause");
    let diff = |dir: &Path| {
        let names = wrenn_tests::kernel::list(dir).into_iter();
        let mut builds = names.filter(|name| name.starts_with("memfile.") && name.len() == 44);
        dir.join(builds.next().expect("a diff file"))
    };
    let header = generation.join("memfile.header");
    let (build, cow) = (diff(&generation), generation.join("rootfs.cow"));
    let word = |at: usize, value: u64| {
        move |bytes: &mut Vec<u8>| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes())
    };
    planted(host, "there is no", || moved(&header));
    planted(host, "which no header has", || replaced(&header, |bytes| bytes.push(0)));
    planted(host, "version 2", || replaced(&header, word(0, 2)));
    planted(host, "block size 512", || replaced(&header, word(8, 512)));
    planted(host, "the records end at", || replaced(&header, word(16, 1 << 30)));
    planted(host, "record 0 begins at 4096", || replaced(&header, word(64, 4096)));
    planted(host, "record 0 has a length of 7", || replaced(&header, word(72, 7)));
    planted(host, "which is not there", || moved(&build));
    planted(host, "bytes, ", || replaced(&build, |bytes| bytes.truncate(4095)));
    planted(host, "in no header's use", || {
        let stray = generation.join("memfile.01234567-89ab-cdef-0123-456789abcdef");
        fs::write(&stray, "x").expect("written");
        Box::new(move || fs::remove_file(stray).expect("removed"))
    });
    planted(host, "snapfile", || moved(&generation.join("snapfile")));
    planted(host, "rootfs.cow", || moved(&cow));
    planted(host, "not as long as the disk", || replaced(&cow, |bytes| bytes.truncate(8192)));
    planted(host, "rootfs.meta", || replaced(&generation.join("rootfs.meta"), |bytes| bytes.clear()));
    planted(host, "half-made", || made(generation.join(".memfile.1.partial")));
    planted(host, "half-made", || made(generation.join("memfile.raw")));
    for name in ["sandbox.new", ".sandbox.1.tmp", "live", "gen-0009", "memory-ranges"] {
        planted(host, name, || made(sandbox(host, "asleep", name)));
    }
    planted(host, "nobody's", || made(sandbox(host, "awake", "live/rootfs-2.cow")));
    planted(host, "leads nowhere", || {
        let link = sandbox(host, "asleep", "pause");
        let was = fs::read_link(&link).expect("a link");
        fs::remove_file(&link).expect("removed");
        symlink("gen-0099", &link).expect("linked");
        Box::new(move || {
            fs::remove_file(&link).expect("removed");
            symlink(was, link).expect("linked");
        })
    });
    planted(host, "it has no last pause", || {
        let link = sandbox(host, "asleep", "pause");
        let was = fs::read_link(&link).expect("a link");
        fs::remove_file(&link).expect("removed");
        Box::new(move || symlink(was, link).expect("linked"))
    });
    let template = host.root().join("images/team/warm");
    planted(host, "template team/warm: there is no rootfs.ext4", || moved(&template.join("rootfs.ext4")));
    planted(host, "template team/warm: meta.json", || {
        replaced(&template.join("meta.json"), |bytes| bytes.clear())
    });
    planted(host, "template team/warm", || replaced(&diff(&template), |bytes| bytes.truncate(1)));
    planted(host, "half-made", || made(host.root().join("images/team/.rootfs-x.ext4")));
    planted(host, "half-made", || made(host.root().join("images/.warm.1.partial")));
    depopulate(host);
}

/// A file that is there for a while.
fn made(path: PathBuf) -> Box<dyn FnOnce()> {
    File::create(&path).expect("made");
    Box::new(move || fs::remove_file(path).expect("removed"))
}

/// A document changed for a while.
fn edited(path: PathBuf, change: impl FnOnce(&mut Value)) -> Box<dyn FnOnce()> {
    let was = fs::read(&path).expect("a document");
    let mut document = serde_json::from_slice(&was).expect("JSON");
    change(&mut document);
    fs::write(&path, document.to_string()).expect("written");
    Box::new(move || fs::write(path, was).expect("written"))
}

fn what_is_wrong_with_documents_is_found(host: &TestHost) {
    populate(host);
    let (asleep, awake) = (sandbox(host, "asleep", "sandbox.json"), sandbox(host, "awake", "sandbox.json"));
    let op = json!({"verb": "pause", "step": "snap.pack"});
    planted(host, "pause at snap.pack", || edited(asleep.clone(), |document| document["op"] = op));
    for state in ["pausing", "creating", "nonsense"] {
        planted(host, &format!("in the state {state}"), || {
            edited(asleep.clone(), |document| document["state"] = state.into())
        });
    }
    planted(host, "that of other", || edited(asleep.clone(), |document| document["id"] = "other".into()));
    planted(host, "stopped, though it has a pause", || {
        edited(asleep.clone(), |document| document["state"] = "stopped".into())
    });
    planted(host, "asleep: running, but its VM", || {
        edited(asleep.clone(), |document| document["state"] = "running".into())
    });
    planted(host, "nobody's: process", || {
        edited(awake.clone(), |document| document["state"] = "failed".into())
    });
    planted(host, "nobody's: interface", || {
        edited(awake.clone(), |document| document["state"] = "stopped".into())
    });
    // The same pid at another time, or of another boot, is another process.
    planted(host, "awake: running, but its VM", || {
        edited(awake.clone(), |document| document["vm"]["start_time"] = 1.into())
    });
    planted(host, "awake: its page server", || {
        edited(awake.clone(), |document| document["uffd"]["boot_id"] = "another".into())
    });
    planted(host, "awake: its network namespace", || {
        edited(awake.clone(), |document| document["net"]["slot"] = 31_998.into())
    });
    planted(host, "awake: its disk's file", || {
        edited(awake.clone(), |document| document["cow"]["file"] = "/nonexistent".into())
    });
    planted(host, "asleep: ", || replaced(&asleep, |bytes| bytes.truncate(20)));
    depopulate(host);
}

fn what_belongs_to_nobody_is_found(host: &TestHost) {
    populate(host);
    let (run, tag) = (host.roots().run(), host.roots().marks().tag);
    planted(host, "run/ghost", || {
        let dir = run.join("ghost");
        fs::create_dir(&dir).expect("made");
        Box::new(move || fs::remove_dir(dir).expect("removed"))
    });
    planted(host, "nobody's: ", || {
        let dir = run.join("asleep");
        fs::create_dir(&dir).expect("made");
        Box::new(move || fs::remove_dir(dir).expect("removed"))
    });
    planted(host, "ghost", || {
        let dir = sandbox(host, "ghost", "");
        fs::create_dir(&dir).expect("made");
        Box::new(move || fs::remove_dir(dir).expect("removed"))
    });
    planted(host, "nobody listens on", || {
        let path = run.join("agent.sock");
        drop(UnixListener::bind(&path).expect("bound"));
        Box::new(move || fs::remove_file(path).expect("removed"))
    });
    planted(host, "recall", || made(run.join("awake/recall")));
    let sleeper = |command: &mut Command| -> Child {
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("a process")
    };
    let ended = |mut child: Child| -> Box<dyn FnOnce()> {
        Box::new(move || {
            child.kill().expect("killed");
            child.wait().expect("its end");
        })
    };
    planted(host, "sleep 1000", || {
        ended(sleeper(Command::new("sleep").arg("1000").env("WRENN_OWNER", format!("wrenn:{tag}:awake"))))
    });
    planted(host, "sleep 1001", || {
        let cow = fs::canonicalize(sandbox(host, "asleep", "pause")).expect("a pause").join("rootfs.cow");
        let mut command = Command::new("sleep");
        command.arg("1001").stderr(File::open(cow).expect("the paused disk"));
        ended(sleeper(&mut command))
    });
    let ip = |args: &str| {
        let done = Command::new("ip").args(args.split(' ')).output().expect("ip");
        assert!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
    };
    planted(host, "interface wrenn-v-31997", || {
        ip("link add wrenn-v-31997 type veth peer name wt-31997");
        ip(&format!("link set wrenn-v-31997 alias wrenn:{tag}:ghost"));
        Box::new(move || ip("link del wrenn-v-31997"))
    });
    planted(host, "half-made: slot /run/netns/wrenn-ns-31996", || {
        let path = PathBuf::from("/run/netns/wrenn-ns-31996");
        fs::write(&path, format!("wrenn:{tag}:ghost")).expect("written");
        Box::new(move || fs::remove_file(path).expect("removed"))
    });
    planted(host, "network namespace wrenn-ns-31995, without an interface", || {
        ip("netns add wrenn-ns-31995");
        Box::new(move || ip("netns del wrenn-ns-31995"))
    });
    depopulate(host);
}

fn a_vm_or_page_server_that_is_gone_is_found(host: &TestHost) {
    let source = host.create("first");
    source.end("vm");
    let faults = host.faults_within(0);
    assert!(faults.iter().any(|fault| fault.contains("first: running, but its VM")), "{faults:#?}");
    wrenn(host, &["gc"]);
    assert_eq!(host.faults(), [""; 0]);
    let second = host.create("second");
    second.pause();
    second.resume();
    second.end("uffd");
    let faults = host.faults_within(0);
    assert!(faults.iter().any(|fault| fault.contains("second: its page server")), "{faults:#?}");
    wrenn(host, &["gc"]);
    assert_eq!(host.faults(), [""; 0], "it is paused again");
}

fn privileged_devices_that_are_nobodys_are_found(host: &TestHost) {
    let run = |line: &str| {
        let done = Command::new("sh").args(["-ec", line]).output().expect("sh");
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    };
    let tag = host.roots().marks().tag;
    let sandbox = host.create("mapped");
    assert_eq!(host.faults(), [""; 0], "all is well");
    planted(host, "nobody's: mapped device wrenn-ghost", || {
        run(&format!("dmsetup create wrenn-ghost --uuid WRENN-{tag}-ghost --table '0 8 zero'"));
        Box::new(move || drop(run("dmsetup remove wrenn-ghost")))
    });
    planted(host, "a node of no device", || made("/dev/mapper/wrenn-nothing".into()));
    planted(host, "nobody's: loop device of", || {
        let file = host.root().join("images/minimal/rootfs.ext4.copy");
        fs::write(&file, vec![0; 4096]).expect("written");
        let device = run(&format!("losetup --find --show {}", file.display()));
        Box::new(move || {
            run(&format!("losetup --detach {device}"));
            fs::remove_file(file).expect("removed");
        })
    });
    planted(host, "nobody's: mount on", || {
        let dir = host.roots().run().join("locks");
        run(&format!("mount -t tmpfs none {}", dir.display()));
        Box::new(move || drop(run(&format!("umount {}", dir.display()))))
    });
    planted(host, "guests have no way out", || {
        let rules = run("nft list table ip wrenn");
        run("nft delete table ip wrenn");
        let file = host.roots().dir().join("rules");
        fs::write(&file, rules).expect("written");
        Box::new(move || drop(run(&format!("nft -f {}", file.display()))))
    });
    sandbox.pause();
    assert_eq!(host.faults(), [""; 0], "paused");
    let cow = fs::canonicalize(self::sandbox(host, "mapped", "pause")).expect("a pause").join("rootfs.cow");
    planted(host, "no exception store that is valid", || {
        // The kernel marks an overflown or failed one so.
        replaced(&cow, |bytes| bytes[4] = 0)
    });
}
