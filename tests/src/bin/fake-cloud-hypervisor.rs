//! A program that answers as Cloud Hypervisor was recorded to and runs nothing; beside fake-vmm, for what differs.
//!
//! It writes what it sees of its /tmp to `seen.json` in its run directory, every request to `requests`, and those that are
//! not in the recording to `unknown`. The file `orders` there, if any, says what to do wrong: lines of `die PATH`, where
//! PATH is that of a call below /api/v1, or `step NAME`, a step of the recording. As the real one it leaves a lock beside
//! its socket, offers the guest's console on a socket of its own, writes a snapshot's files only where there are none, and
//! has a userfaultfd open while restored memory is on its way: here, until a file `complete` appears.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};
use sys::uffd::Uffd;
use wrenn_tests::recorded::{Recorded, serve};

struct Fake {
    dir: PathBuf,
    recorded: Recorded,
    console: Option<UnixListener>,
    reading: Option<Uffd>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    assert_eq!(args[1], "--api-socket");
    let socket = PathBuf::from(args[2].strip_prefix("path=").expect("a path"));
    let dir = socket.parent().expect("a socket in a directory").to_owned();
    fs::write(dir.join("seen.json"), json!({"args": args, "tmp": below(Path::new("/tmp"))}).to_string())
        .unwrap();
    eprintln!("fake-cloud-hypervisor: hello");
    fs::write(dir.join("api.sock.lock"), "").expect("the lock");
    let listener = UnixListener::bind(&socket).expect("the socket");
    let fake = Fake { dir: dir.clone(), recorded: Recorded::new(), console: None, reading: None };
    let fake = Arc::new(Mutex::new(fake));
    let watched = fake.clone();
    std::thread::spawn(move || complete(&dir, &watched));
    for stream in listener.incoming().flatten() {
        let fake = fake.clone();
        std::thread::spawn(move || {
            serve(stream, |method, path, body| fake.lock().unwrap().answer(method, path, body));
        });
    }
}

/// Once there is a file `complete`, all memory has been read.
fn complete(dir: &Path, fake: &Mutex<Fake>) {
    let watch = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    watch.add_watch(dir, AddWatchFlags::IN_CREATE).unwrap();
    while !dir.join("complete").exists() {
        watch.read_events().unwrap();
    }
    let mut fake = fake.lock().unwrap();
    fake.recorded.complete();
    fake.reading = None;
}

impl Fake {
    fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.append("requests", &json!([method, path, body]));
        let action = path.trim_start_matches("/api/v1/");
        let orders = fs::read_to_string(self.dir.join("orders")).unwrap_or_default();
        for order in orders.lines() {
            match order.split_once(' ') {
                Some(("die", at)) if at == action => {
                    eprintln!("fake-cloud-hypervisor: dying at {action} as ordered");
                    std::process::exit(3);
                }
                Some(("step", step)) => self.recorded.order = Some(step.into()),
                Some(("die", _)) => {}
                _ => panic!("what is {order:?}?"),
            }
        }
        let (status, reply) = self.recorded.answer(method, path, body);
        for unknown in std::mem::take(&mut self.recorded.unknown) {
            self.append("unknown", &unknown);
        }
        match action {
            "vm.create" if status == 204 => self.offer_console(body),
            "vm.restore" if status == 204 => self.restore(body),
            "vm.snapshot" => self.dump(body, status),
            _ => {}
        }
        (status, reply)
    }

    fn append(&self, name: &str, line: &Value) {
        let file = File::options().create(true).append(true).open(self.dir.join(name));
        // In one piece: the test may be reading.
        file.unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn offer_console(&mut self, config: &Value) {
        assert_eq!(config["serial"]["mode"], "Socket");
        let path = config["serial"]["socket"].as_str().expect("a path");
        self.console = Some(UnixListener::bind(path).expect("no socket is there"));
    }

    fn restore(&mut self, body: &Value) {
        let dir = PathBuf::from(body["source_url"].as_str().unwrap().strip_prefix("file://").unwrap());
        let read = |path: &Path| {
            fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let config: Value = serde_json::from_str(&read(&dir.join("config.json"))).unwrap();
        let disk = config["disks"][0]["path"].as_str().unwrap();
        let loaded = json!({
            "config": config,
            "state": read(&dir.join("state.json")).len(),
            "memory": read(&dir.join("memory-ranges")),
            "disk": read(Path::new(disk)),
        });
        fs::write(self.dir.join("loaded.json"), loaded.to_string()).unwrap();
        self.offer_console(&config);
        if body["memory_restore_mode"] == "OnDemand" {
            self.reading = Some(Uffd::create().expect("a userfaultfd"));
        }
    }

    /// One page of memory. A full disk leaves what was written before it was full.
    fn dump(&self, body: &Value, status: u16) {
        let dir = PathBuf::from(body["destination_url"].as_str().unwrap().strip_prefix("file://").unwrap());
        let write = |name: &str, text: &str| {
            let mut file = File::create_new(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            file.write_all(text.as_bytes()).unwrap();
        };
        if status != 204 && !self.recorded.state.starts_with("paused") {
            return;
        }
        write("config.json", &self.recorded.config().to_string());
        let manager = json!({"memory_ranges": {"data": [{"gpa": 0, "length": 4096}]}}).to_string();
        let state = json!({"snapshots": {"memory-manager": {"snapshot_data": {"state": manager}}}});
        write("state.json", &state.to_string());
        write("memory-ranges", &"m".repeat(if status == 204 { 4096 } else { 1 }));
    }
}

/// Every file and directory below a directory, each with how it begins.
fn below(dir: &Path) -> Vec<Value> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let start = if path.is_file() { fs::read(&path).unwrap_or_default() } else { Vec::new() };
        found.push(json!([path, String::from_utf8_lossy(&start[..start.len().min(64)])]));
        if path.is_dir() && !path.ends_with("run") {
            found.extend(below(&path));
        }
    }
    found.sort_by_key(|found| found[0].to_string());
    found
}
