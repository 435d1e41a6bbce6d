//! `wrenn watch` beside sandboxes that really run: a disk that fills up, and one that is full; connections from outside. In
//! the lab: docs/lifecycle.md.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use wrenn_tests::host::TestHost;
use wrenn_tests::sandbox::Sandbox;
use wrenn_tests::watching::Watch;
use wrenn_tests::{Value, json, kernel};

wrenn_tests::tests_on!(
    wrenn_vmm,
    WrennVmm,
    1,
    TestHost,
    privileged_a_disk_that_fills_up_is_told_once_by_each_watch,
    privileged_a_full_disk_refuses_writes_reads_exact_and_is_not_paused,
    privileged_a_connection_from_outside_keeps_a_sandbox_awake
);

/// A small disk, of MiB, is filled quickly.
const SMALL: u64 = 48;

fn tool(program: &str, args: &[&str], may_end_with: &[i32]) {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().expect(program);
    let known = output.status.code().is_some_and(|status| may_end_with.contains(&status));
    assert!(known, "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A sandbox whose disk is of [`SMALL`], and its CoW file just large enough for all of it.
fn small<'a>(host: &'a TestHost, id: &str, more: &[&str]) -> Sandbox<'a> {
    let image = host.root().join("images/small/rootfs.ext4");
    fs::create_dir_all(image.parent().expect("a directory")).expect("a template's directory");
    fs::copy(host.root().join("images/minimal/rootfs.ext4"), &image).expect("a copy");
    let path = image.to_str().expect("UTF-8");
    tool("e2fsck", &["-fy", path], &[0, 1]);
    tool("resize2fs", &[path, &format!("{SMALL}M")], &[0]);
    File::options().write(true).open(&image).and_then(|file| file.set_len(SMALL << 20)).expect("its size");
    host.create_from(id, "small", &[&["--memory", "128", "--disk", "0"], more].concat())
}

fn watch(host: &TestHost, more: &[&str]) -> Watch {
    Watch::start(host.wrenn(["watch", "--interval", "0.5"]).args(more))
}

/// Of a sample.
fn percent(sample: &Value) -> f64 {
    let bytes = |field: &str| sample["cow"][field].as_f64().expect("a fill");
    100.0 * bytes("used_bytes") / bytes("total_bytes")
}

fn privileged_a_disk_that_fills_up_is_told_once_by_each_watch(host: &TestHost) {
    let sandbox = small(host, "fill", &[]);
    let metrics = host.roots().dir().join("metrics.prom");
    let mut first = watch(host, &["--metrics", metrics.to_str().expect("UTF-8")]);
    // Every block is written again as it is: chunk by chunk it comes to lie in the CoW file.
    let fill = |mib: u64| {
        host.step(&format!("{mib} MiB of {SMALL} are written"));
        sandbox.sh(&format!("dd if=/dev/vda of=/dev/vda bs=1M count={mib} conv=notrunc status=none; sync"));
    };
    fill(30);
    let sample = first.find("sample", |sample| percent(sample) > 60.0);
    assert!(percent(&sample) < 80.0, "{sample}");
    assert_eq!(first.names(), ["adopted", "ready"], "nothing to tell yet");
    fill(42);
    let alarm = first.until("alarm");
    assert_eq!((&alarm["id"], &alarm["what"]), (&json!("fill"), &json!("cow")));
    assert!(alarm["percent"].as_f64().is_some_and(|percent| (80.0..=100.0).contains(&percent)), "{alarm}");
    fill(47);
    first.find("sample", |sample| percent(sample) > 94.0);
    (0..4).for_each(|_| drop(first.until("sample")));
    assert_eq!(first.names(), ["adopted", "ready", "alarm"], "told once");
    let text = fs::read_to_string(&metrics).expect("the metrics");
    assert!(text.contains("wrenn_watch_events_total{event=\"alarm\"} 1\n"), "{text}");
    first.end(Signal::SIGTERM);
    host.step("the next watch tells it, too");
    let mut next = watch(host, &[]);
    next.until("alarm");
    (0..4).for_each(|_| drop(next.until("sample")));
    assert_eq!(next.names(), ["adopted", "ready", "alarm"]);
    next.end(Signal::SIGTERM);
    host.step("a disk that is full to the last block is paused and wakes as ever");
    let kept = sandbox.fill("/kept", 1);
    sandbox.pause();
    sandbox.resume();
    assert_eq!(sandbox.sum_on_disk("/kept"), kept);
}

fn privileged_a_full_disk_refuses_writes_reads_exact_and_is_not_paused(host: &TestHost) {
    let sandbox = small(host, "full", &[]);
    let kept = sandbox.fill("/kept", 2);
    let usage = || {
        let document = sandbox.document().to_string();
        host.program("wrenn-cow").args(["status", "-"]).stdin(document).run().success().reply()["cow"]
            ["usage"]
            .take()
    };
    let used = 512 * usage()["used_sectors"].as_u64().expect("a fill");
    let paused = sandbox.pause();
    host.step("its CoW file is made shorter: it has room for 2 MiB more");
    let file = paused["cow"]["file"].as_str().expect("a file");
    let shorter = |file: File| file.set_len(used.next_multiple_of(1 << 20) + (2 << 20));
    File::options().write(true).open(file).and_then(shorter).expect("made shorter");
    let vm = sandbox.resume()["vm"]["pid"].clone();
    let mut watch = watch(host, &[]);
    assert_eq!(sandbox.sum_on_disk("/kept"), kept);

    host.step("more is written than it takes");
    let write = "dd if=/dev/urandom of=/more bs=64k count=128 conv=fsync status=none";
    let written = host.wrenn(["exec", "full", "--", "/bin/sh", "-c", write]).run();
    assert_ne!(written.status, Some(0), "the guest is told");
    assert_eq!(usage()["state"], "overflow");
    assert_eq!(watch.until("alarm")["percent"], 100.0);
    fs::write("/proc/sys/vm/drop_caches", "1").expect("nothing of it in this kernel's memory");
    assert_eq!(sandbox.sum_on_disk("/kept"), kept, "what was there is");

    host.step("a pause, and a template, would keep a disk without what the guest has in its memory");
    for verb in [&["pause", "full"][..], &["pause", "full"], &["snapshot", "full", "half"]] {
        let refused = host.wrenn(verb.iter().copied()).run().status_is(6).reply();
        assert_eq!(refused["error"]["code"], "cow.full", "{refused}");
        let document = sandbox.document();
        assert_eq!((&document["state"], &document["vm"]["pid"]), (&json!("running"), &vm), "{document}");
        assert_eq!(sandbox.sum_on_disk("/kept"), kept, "the guest goes on");
    }
    assert!(!host.root().join("images/half").exists());
    watch.end(Signal::SIGTERM);
    host.step("its last pause is what it was");
    sandbox.end("vm");
    sandbox.resume();
    assert_eq!(sandbox.sum_on_disk("/kept"), kept);
}

/// Another machine on this host's network: what it sends is forwarded.
struct Outside;

impl Outside {
    fn new() -> Self {
        let outside = Self;
        for line in [
            "netns add wt-outside",
            "link add wt-out type veth peer name eth0 netns wt-outside",
            "address add 192.0.2.1/30 dev wt-out",
            "link set wt-out up",
            "-n wt-outside address add 192.0.2.2/30 dev eth0",
            "-n wt-outside link set eth0 up",
            "-n wt-outside route add default via 192.0.2.1",
        ] {
            tool("ip", &line.split(' ').collect::<Vec<_>>(), &[0]);
        }
        outside
    }

    /// Connects, says nothing, and stays until it is killed.
    fn connect(&self, address: &str, port: u16) -> Child {
        let script = format!("exec 3<>/dev/tcp/{address}/{port} && echo connected && read -r never");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", "wt-outside", "bash", "-c", &script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bash");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        assert_eq!(line, "connected\n");
        child
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The veth goes with it.
        let _ = Command::new("ip").args(["netns", "delete", "wt-outside"]).status();
    }
}

fn privileged_a_connection_from_outside_keeps_a_sandbox_awake(host: &TestHost) {
    const TIMEOUT: Duration = Duration::from_secs(4);
    const PORT: u16 = 49983;
    // Only a pause of its own doing ends it: a boot takes longer than this.
    let sandbox = host.boot("used", &["--memory", "96", "--disk", "128"]);
    sandbox.pause();
    let woken = host.wrenn(["resume", "used"]).args(["--timeout", "4"]).run().success().reply();
    host.note(&woken);
    let address = woken["net"]["host_ip"].as_str().expect("an address");
    let outside = Outside::new();
    let mut connection = outside.connect(address, PORT);
    // None of this host's own sockets is at its end: only the table of tracked connections has it.
    let octets: Vec<u8> = address.split('.').map(|part| part.parse().expect("an octet")).collect();
    let peer = u32::from_le_bytes(octets.try_into().expect("four octets"));
    let own = fs::read_to_string("/proc/net/tcp").expect("this host's connections");
    assert!(!own.contains(&format!(" {peer:08X}:{PORT:04X} 01 ")), "{own}");
    let mut watch = watch(host, &[]);
    watch.find("sample", |sample| sample["connections"] == 1);
    host.step("a connection is open");
    let until = Instant::now() + 2 * TIMEOUT;
    while Instant::now() < until {
        assert_eq!(watch.until("sample")["connections"], 1);
    }
    assert_eq!(watch.names(), ["adopted", "ready"], "it is in use");
    let modules = fs::read_to_string("/proc/modules").expect("modules");
    assert!(modules.contains("nf_conntrack_netlink "), "the kernel lists them");
    host.step("it ends");
    connection.kill().expect("killed");
    connection.wait().expect("its end");
    let ended = Instant::now();
    watch.until("paused");
    assert!(ended.elapsed() > TIMEOUT - Duration::from_secs(1), "{:?} after", ended.elapsed());
    assert_eq!(kernel::list("/run/netns"), ["wt-outside"]);
}
