//! `wrenn watch` and `wrenn top` with sandboxes that run: real disks, networks and page servers, and a VMM with a guest
//! that is none (`fake-guest`). As root, where network namespaces can be made; otherwise skipped.

use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sys::process::Process;
use wrenn_tests::watching::Watch;
use wrenn_tests::{Output, Program, Roots, Value, json, kernel, program, skip};

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A host with a template, and sandboxes that are removed at its end.
struct Host {
    roots: Roots,
}

impl Host {
    /// A host; `None`, reported, where there can be none.
    fn new() -> Option<Self> {
        let roots = Roots::new();
        let images = roots.root().join("images/minimal");
        fs::create_dir_all(&images).unwrap();
        fs::write(images.join("rootfs.ext4"), vec![0; 1 << 20]).unwrap();
        fs::create_dir_all(roots.root().join("kernels")).unwrap();
        fs::write(roots.root().join("kernels/vmlinux"), b"not a kernel").unwrap();
        let probe = roots.program("wrenn-net").args(["create", "id=probe"]).run();
        if probe.status == Some(5) {
            skip::here(probe.reply()["error"]["message"].as_str().unwrap_or_default());
            return None;
        }
        roots.program("wrenn-net").args(["remove", "-"]).stdin(probe.success().stdout).run().success();
        Some(Self { roots })
    }

    fn wrenn(&self, args: &[&str]) -> Program {
        self.roots.program("wrenn").args(args).env("WRENN_FIRECRACKER", program::path("fake-guest"))
    }

    fn does(&self, args: &[&str]) -> Value {
        self.wrenn(args).run().success().reply()
    }

    /// A running sandbox. Its disk is a file of its own: no device-mapper is needed.
    fn create(&self, id: &str, args: &[&str]) -> Value {
        let all = [&["create", "--id", id, "--memory", "32", "cow.kind=clone"], args].concat();
        let document = self.does(&all);
        assert_eq!(document["state"], "running", "{document}");
        document
    }

    fn get(&self, id: &str) -> Value {
        self.does(&["get", id])
    }

    /// What the VMM of this sandbox is to do wrong.
    fn order(&self, id: &str, orders: &str) {
        fs::create_dir_all(self.roots.run().join(id)).unwrap();
        fs::write(self.roots.run().join(id).join("orders"), orders).unwrap();
    }

    fn watch(&self, args: &[&str]) -> Watch {
        Watch::start(self.wrenn(&[&["watch", "--interval", "0.2"], args].concat()))
    }

    fn drain(&self) -> Value {
        let mut drained = self.does(&["watch", "--drain"]);
        for sandbox in drained["sandboxes"].as_array_mut().unwrap() {
            assert!(sandbox["at"].as_str().unwrap().ends_with('Z'), "{sandbox}");
        }
        drained["ids"].take()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for id in kernel::list(self.roots.root().join("sandboxes")) {
            let removed = self.wrenn(&["rm", &id]).run();
            if !std::thread::panicking() {
                let _ = removed.success();
            }
        }
        if !std::thread::panicking() {
            let left = self.roots.program("wrenn-net").args(["list"]).run().success().reply();
            assert_eq!(left["slots"], json!([]));
            assert!(kernel::processes_of(self.roots.dir()).is_empty());
        }
    }
}

fn end(document: &Value, section: &str) {
    let process = Process::of_pid(document[section]["pid"].as_i64().unwrap() as i32).unwrap();
    // A page server goes with its guardian.
    let servers = if section == "uffd" { kernel::children(process.pid) } else { Vec::new() };
    std::iter::once(process).chain(servers).for_each(|process| process.end(Duration::ZERO).unwrap());
}

#[test]
fn an_idle_sandbox_is_paused_told_once_and_wakes_with_its_memory() {
    let Some(host) = Host::new() else { return };
    host.create("idle", &["--timeout", "1"]);
    host.create("forever", &[]);
    assert_eq!(host.drain(), json!([]));
    let mut watch = host.watch(&[]);
    let expired = watch.until("expired");
    assert_eq!((&expired["id"], &expired["idle_s"]), (&json!("idle"), &json!(1)));
    assert_eq!(watch.until("paused")["id"], "idle");
    let paused = host.get("idle");
    assert_eq!(paused["state"], "paused");
    assert!(paused["vm"].is_null() && paused["net"].is_null(), "nothing of it is left on the host: {paused}");
    assert_eq!(host.get("forever")["state"], "running", "a time to live of 0 is for ever");

    // Two at once: each sandbox is told to one of them.
    let drains: Vec<_> = std::thread::scope(|scope| {
        let both: Vec<_> = (0..2).map(|_| scope.spawn(|| host.drain())).collect();
        both.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(drains.contains(&json!([])) && drains.contains(&json!(["idle"])), "{drains:?}");
    assert_eq!(host.drain(), json!([]));

    // Woken, it has a time to live again, and another pause is told again, also by the next watch.
    assert_eq!(host.does(&["resume", "idle"])["state"], "running");
    watch.find("adopted", |event| event["id"] == "idle");
    watch.find("paused", |event| event["id"] == "idle");
    watch.end(Signal::SIGKILL);
    let _next = host.watch(&[]);
    assert_eq!(host.drain(), json!(["idle"]));
    assert_eq!(host.drain(), json!([]));
    assert_eq!(host.does(&["resume", "idle", "--timeout", "0"])["state"], "running");
}

#[test]
fn a_reply_that_nobody_reads_was_not_told() {
    let Some(host) = Host::new() else { return };
    host.create("idle", &["--timeout", "1"]);
    host.watch(&[]).until("paused");
    assert_ne!(host.wrenn(&["watch", "--drain"]).run_unread(), Some(0));
    assert_eq!(host.drain(), json!(["idle"]));
}

#[test]
fn pings_commands_and_open_connections_keep_a_sandbox_awake() {
    let Some(host) = Host::new() else { return };
    let timeout = Duration::from_secs(2);
    let document = host.create("used", &["--timeout", "2"]);
    let mut watch = host.watch(&[]);
    let address = format!("{}:49983", document["net"]["host_ip"].as_str().unwrap());

    // A connection that is open and silent.
    let connection = TcpStream::connect(&address).unwrap();
    watch.find("sample", |sample| sample["connections"] == 1);
    let until = Instant::now() + 2 * timeout;
    while Instant::now() < until {
        assert_eq!(watch.until("sample")["connections"], 1);
    }
    drop(connection);
    watch.find("sample", |sample| sample["connections"] == 0);

    // A command that says nothing.
    let mut command = host.wrenn(&["exec", "used", "--", "hold"]);
    let mut command = command.command().stdout(Stdio::null()).spawn().unwrap();
    watch.find("sample", |sample| sample["connections"] == 1);
    let until = Instant::now() + 2 * timeout;
    while Instant::now() < until {
        watch.until("sample");
    }
    fs::write(host.roots.run().join("used/release"), "").unwrap();
    assert!(command.wait().unwrap().success());

    // Pings.
    for _ in 0..4 {
        let until = Instant::now() + timeout / 2;
        while Instant::now() < until {
            watch.until("sample");
        }
        host.does(&["ping", "used"]);
    }
    assert_eq!(watch.names(), ["adopted", "ready"], "it was never paused");
    let pinged = Instant::now();
    watch.until("paused");
    assert!(pinged.elapsed() > timeout - Duration::from_millis(500), "{:?} after", pinged.elapsed());
}

#[test]
fn a_pause_that_fails_is_told_and_tried_again_and_nothing_is_destroyed() {
    let Some(host) = Host::new() else { return };
    host.create("stubborn", &["--timeout", "1"]);
    host.order("stubborn", "refuse /snapshot/create there is no space");
    let mut watch = host.watch(&[]);
    for attempt in 1..=3 {
        let failed = watch.until("pause_failed");
        assert_eq!(failed["attempt"], attempt);
        let error = &failed["error"];
        assert!(error.to_string().contains("there is no space"), "{error}");
        assert_eq!(host.get("stubborn")["state"], "running");
    }
    host.order("stubborn", "");
    watch.until("paused");
    assert_eq!(host.drain(), json!(["stubborn"]), "told once, and for the pause that was");
}

#[test]
fn a_sandbox_that_is_to_be_destroyed_when_idle_is() {
    let Some(host) = Host::new() else { return };
    host.wrenn(&["create", "--on-expiry", "explode"]).run().status_is(2);
    host.create("brief", &["--timeout", "1", "--on-expiry", "destroy"]);
    let mut watch = host.watch(&[]);
    assert_eq!(watch.until("removed")["id"], "brief");
    host.wrenn(&["get", "brief"]).run().status_is(3);
    assert_eq!(host.drain(), json!([]), "it was not paused");
    let all = watch.end(Signal::SIGTERM);
    let names: Vec<_> = all.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert!(names.ends_with(&["stopped"]) && !names.contains(&"gone"), "{names:?}");
}

#[test]
fn a_vm_that_dies_is_failed_with_its_last_words_and_wakes_from_its_last_pause() {
    let Some(host) = Host::new() else { return };
    host.create("mortal", &[]);
    host.does(&["pause", "mortal"]);
    let running = host.does(&["resume", "mortal"]);
    host.create("other", &[]);
    let mut watch = host.watch(&[]);
    end(&running, "vm");
    let failed = watch.until("failed");
    assert_eq!(failed["id"], "mortal");
    let pid = &running["vm"]["pid"];
    assert_eq!(failed["reason"], format!("its VMM (pid {pid}) is gone"));
    assert_eq!(failed["log"], json!(["fake-guest: hello from the console"]));
    let document = host.get("mortal");
    assert_eq!((&document["state"], &document["failure"]["reason"]), (&json!("failed"), &failed["reason"]));
    for section in ["vm", "net", "uffd"] {
        assert!(document[section].is_null(), "{section} is reclaimed: {document}");
    }
    let slots = host.roots.program("wrenn-net").args(["list"]).run().success().reply();
    assert_eq!(slots["slots"].as_array().unwrap().len(), 1, "the other's: {slots}");
    assert_eq!(host.get("other")["state"], "running");

    let woken = host.does(&["resume", "mortal"]);
    assert!(woken["state"] == "running" && woken["failure"].is_null(), "{woken}");
    watch.find("adopted", |event| event["id"] == "mortal");

    // A page server is followed by another, and goes on without its guardian.
    let guardian = Process::of_pid(woken["uffd"]["pid"].as_i64().unwrap() as i32).unwrap();
    let first = kernel::children(guardian.pid);
    first.iter().for_each(|server| server.end(Duration::ZERO).unwrap());
    let asked = host
        .roots
        .program("wrenn-uffd")
        .args(["stats", "-"])
        .stdin(woken.to_string())
        .run()
        .success()
        .reply();
    assert_eq!(asked["uffd"]["stats"]["restarts"], 1, "{asked}");
    let servers = kernel::children(guardian.pid);
    guardian.end(Duration::ZERO).unwrap();
    watch.find("adopted", |event| event["id"] == "mortal");
    assert_eq!(host.does(&["get", "mortal"])["state"], "running");
    servers.iter().for_each(|server| server.end(Duration::ZERO).unwrap());
    let failed = watch.until("failed");
    assert_eq!(failed["reason"], format!("its page server (pid {}) is gone", guardian.pid));
    let woken = host.does(&["resume", "mortal"]);
    watch.find("adopted", |event| event["id"] == "mortal");

    // The page server's death is its own reason, though the VMM goes with it.
    end(&woken, "uffd");
    let failed = watch.until("failed");
    let pid = &woken["uffd"]["pid"];
    assert_eq!(failed["reason"], format!("its page server (pid {pid}) is gone"));

    // One that was never paused cannot be woken, and says so.
    end(&host.get("other"), "vm");
    watch.find("failed", |event| event["id"] == "other");
    assert_eq!(host.wrenn(&["resume", "other"]).run().status_is(4).reply()["error"]["kind"], "conflict");
}

#[test]
fn what_somebody_else_does_to_a_sandbox_is_no_failure() {
    let Some(host) = Host::new() else { return };
    let mut watch = host.watch(&[]);
    host.create("one", &[]);
    assert_eq!(watch.until("adopted")["id"], "one");
    for _ in 0..3 {
        host.does(&["pause", "one"]);
        let gone = watch.until("gone");
        assert_eq!((&gone["id"], &gone["state"]), (&json!("one"), &json!("paused")));
        host.does(&["resume", "one"]);
        watch.until("adopted");
    }
    host.does(&["rm", "one"]);
    let gone = watch.until("gone");
    assert_eq!((&gone["id"], &gone["state"]), (&json!("one"), &json!("removed")));
    assert!(!watch.names().contains(&"failed"), "{:?}", watch.names());
}

#[test]
fn killed_and_started_again_it_disturbs_nothing_and_knows_all() {
    let Some(host) = Host::new() else { return };
    let document = host.create("steady", &[]);
    let path = host.roots.root().join("sandboxes/steady/sandbox.json");
    let before = fs::read(&path).unwrap();
    for _ in 0..3 {
        let mut watch = host.watch(&[]);
        assert_eq!(watch.names(), ["adopted", "ready"]);
        watch.until("sample");
        watch.end(Signal::SIGKILL);
    }
    // What dies while nobody watches is found.
    assert!(fs::read(&path).unwrap() == before, "its document has changed");
    end(&document, "vm");
    let mut watch = host.watch(&[]);
    let failed = watch.until("failed");
    assert_eq!(failed["id"], "steady");
    assert!(!watch.names().contains(&"adopted"));
}

#[test]
fn killed_in_the_middle_of_a_pause_it_is_made_good_by_the_next() {
    let Some(host) = Host::new() else { return };
    host.create("cut", &["--timeout", "1"]);
    let other = host.create("other", &[]);
    host.order("cut", "hang /snapshot/create");
    let mut watch = host.watch(&[]);
    watch.until("expired");
    while host.get("cut")["op"]["step"] != "launch.snapshot" {
        watch.until("sample");
    }
    // A pause that takes its time keeps nobody from noticing a death.
    end(&other, "vm");
    assert_eq!(watch.until("failed")["id"], "other");
    watch.end(Signal::SIGKILL);
    assert_eq!(host.get("cut")["state"], "pausing");
    host.order("cut", "");
    let mut next = host.watch(&[]);
    let settled = next.until("settled");
    assert_eq!((&settled["id"], &settled["done"]), (&json!("cut"), &json!("running")));
    assert!(settled["why"].as_str().unwrap().contains("pause at launch.snapshot was killed"), "{settled}");
    assert_eq!(host.drain(), json!([]), "that pause never came to be");
    next.until("paused");
    assert_eq!(host.drain(), json!(["cut"]));
}

#[test]
fn there_is_one_watch_for_each_root() {
    let Some(host) = Host::new() else { return };
    let watch = host.watch(&[]);
    let refused = host.wrenn(&["watch", "--once"]).run().status_is(4).reply();
    assert_eq!(refused["error"]["code"], "watch.running");
    let events = watch.end(Signal::SIGTERM);
    assert_eq!(events.last().unwrap()["event"], "stopped");
    let once = host.wrenn(&["watch", "--once"]).run().success().replies();
    let names: Vec<_> = once.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["ready", "stopped"]);
}

#[test]
fn readiness_is_told_to_the_service_manager() {
    let Some(host) = Host::new() else { return };
    let socket = host.roots.dir().join("notify");
    let heard = UnixDatagram::bind(&socket).unwrap();
    heard.set_read_timeout(Some(LIMIT)).unwrap();
    let watch = Watch::start(host.wrenn(&["watch"]).env("NOTIFY_SOCKET", &socket));
    let next = || {
        let mut bytes = [0; 64];
        let count = heard.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    assert_eq!(next(), "READY=1");
    watch.end(Signal::SIGTERM);
    assert_eq!(next(), "STOPPING=1");
}

#[test]
fn the_units_for_systemd_start_verbs_and_flags_that_exist() {
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/systemd");
    let names = kernel::list(units);
    assert_eq!(names, ["wrenn-serve.service", "wrenn-watch.service"]);
    for name in names {
        let text = fs::read_to_string(format!("{units}/{name}")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        assert!(words[0].ends_with("/bin/wrenn"), "{name}: {line}");
        let help = Roots::new().program("wrenn").args([words[1], "--help"]).run().success().text();
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag), "{name}: {flag} is none of {help}");
        }
    }
}

/// CPU time in ms and resident bytes of a process, as /proc tells them.
fn usage(pid: &Value) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks = |index: usize| fields[index - 3].parse::<u64>().unwrap();
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    ((ticks(14) + ticks(15)) * 10, pages * 4096)
}

/// Bytes that the host's end of a slot has received and sent, as /sys tells them.
fn traffic(veth: &Value) -> [u64; 2] {
    ["rx_bytes", "tx_bytes"].map(|name| {
        let path = format!("/sys/class/net/{}/statistics/{name}", veth.as_str().unwrap());
        fs::read_to_string(path).unwrap().trim().parse().unwrap()
    })
}

#[test]
fn samples_say_what_proc_and_sys_say() {
    let Some(host) = Host::new() else { return };
    host.create("sampled", &["--template", "minimal"]);
    host.does(&["pause", "sampled"]);
    let running = host.does(&["resume", "sampled"]);
    let metrics = host.roots.dir().join("wrenn.prom");
    let pid = &running["vm"]["pid"];
    let (before, traffic_before) = (usage(pid), traffic(&running["net"]["veth"]));
    let round = host.wrenn(&["watch", "--once", "--metrics", metrics.to_str().unwrap()]).run().success();
    let (after, traffic_after) = (usage(pid), traffic(&running["net"]["veth"]));
    let events = round.replies();
    let sample = events.iter().find(|event| event["event"] == "sample").unwrap();
    let within = |name: &str, value: &Value, low: u64, high: u64| {
        let value = value.as_u64().unwrap_or_else(|| panic!("{name} in {sample}"));
        assert!((low..=high).contains(&value), "{name}: {low} <= {value} <= {high}");
    };
    within("cpu_ms", &sample["cpu_ms"], before.0, after.0);
    within("rss_bytes", &sample["rss_bytes"], before.1.min(after.1), before.1.max(after.1));
    within("rx", &sample["net"]["rx_bytes"], traffic_before[0], traffic_after[0]);
    within("tx", &sample["net"]["tx_bytes"], traffic_before[1], traffic_after[1]);
    assert_eq!(sample["connections"], 0);
    assert!(sample["cow"].is_null(), "a file of its own has no fill: {sample}");
    within("lazy_bytes", &sample["lazy_bytes"], 0, 32 << 20);

    // The same in Prometheus' form: every line a name, labels and a number.
    let text = fs::read_to_string(&metrics).unwrap();
    let mut values = std::collections::BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(values.insert(name.to_owned(), value.parse::<f64>().unwrap()).is_none(), "{line} twice");
    }
    let of = |name: &str| {
        let key = format!("wrenn_sandbox_{name}{{id=\"sampled\",template=\"minimal\"}}");
        *values.get(&key).unwrap_or_else(|| panic!("no {key} in {text}"))
    };
    assert_eq!(of("cpu_seconds_total"), sample["cpu_ms"].as_f64().unwrap() / 1000.0);
    assert_eq!(of("resident_bytes"), sample["rss_bytes"].as_f64().unwrap());
    assert_eq!(of("network_receive_bytes_total"), sample["net"]["rx_bytes"].as_f64().unwrap());
    assert_eq!(values["wrenn_sandboxes{state=\"running\"}"], 1.0);

    host.does(&["rm", "sampled"]);
    host.wrenn(&["watch", "--once", "--metrics", metrics.to_str().unwrap()]).run().success();
    assert!(!fs::read_to_string(&metrics).unwrap().contains("sampled"), "what is removed disappears");
}

#[test]
fn top_draws_as_many_tables_as_it_is_asked_to() {
    let Some(host) = Host::new() else { return };
    host.create("busy", &[]);
    host.create("paused", &[]);
    host.does(&["pause", "paused"]);
    let output: Output = host.wrenn(&["top", "--interval", "0.2", "--count", "2"]).run().success();
    let text = output.text();
    let tables: Vec<Vec<&str>> = text.trim_end().split("\n\n").map(|table| table.lines().collect()).collect();
    assert_eq!(tables.len(), 2, "{text}");
    for table in &tables {
        assert_eq!(table.len(), 2, "those that run, and no others: {text}");
        let cells: Vec<&str> = table[1].split_whitespace().collect();
        assert_eq!((cells[0], cells[1], cells.len()), ("busy", "minimal", 9), "{text}");
        assert!(cells[2].parse::<f64>().unwrap() < 100.0, "a fake guest is idle: {text}");
        assert!(cells[3].ends_with('M'), "{text}");
    }
    host.wrenn(&["top", "--interval", "0"]).run().status_is(2);
    host.wrenn(&["top", "--count", "0"]).run().status_is(2);
}
