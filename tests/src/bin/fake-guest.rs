//! A VMM with Firecracker's API and a guest inside, without a virtual machine: what the supervisor does with a sandbox can
//! be looked at on any machine where root may make network namespaces.
//!
//! Its memory is real: 4 KiB in every 64 are filled at boot, a dump writes what is there, and a load takes the memory from
//! the page server through a userfaultfd. Its guest is an agent at the guest's address, in the namespace that it was
//! started in: it answers `/health`, `/init`, and every command with an end, `hold` only once there is a file `release` in
//! the run directory. The file `orders` there, if any, has lines of `refuse PATH TEXT`, `die PATH` and `hang PATH`: what calls
//! of the API to do wrong. It is read anew for each call.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};
use sys::uffd::{Memory, Uffd};

const PAGE: usize = 4096;
const AGENT: &str = "169.254.0.21:49983";

struct Fake {
    dir: PathBuf,
    vm: Mutex<Vm>,
}

struct Vm {
    state: &'static str,
    size: usize,
    memory: Option<Memory>,
    uffd: Option<Uffd>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let socket = args.iter().skip_while(|arg| *arg != "--api-sock").nth(1).expect("--api-sock");
    let socket = PathBuf::from(socket);
    let dir = socket.parent().expect("a socket in a directory").to_owned();
    println!("fake-guest: hello from the console");
    let vm = Vm { state: "Not started", size: 32 << 20, memory: None, uffd: None };
    let fake = Arc::new(Fake { dir: dir.clone(), vm: Mutex::new(vm) });
    std::thread::spawn(move || agent(&dir));
    for stream in UnixListener::bind(&socket).expect("the socket").incoming().flatten() {
        let fake = fake.clone();
        std::thread::spawn(move || fake.serve(stream));
    }
}

impl Fake {
    fn serve(&self, mut stream: UnixStream) {
        while let Some(request) = Request::read(&mut stream) {
            let answer = self.answer(&request);
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    /// Does what is ordered for this call. Returns the text to refuse with.
    fn obey(&self, path: &str) -> Option<String> {
        let orders = fs::read_to_string(self.dir.join("orders")).unwrap_or_default();
        for order in orders.lines() {
            let mut words = order.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("refuse"), Some(at), text) if at == path => {
                    return Some(text.unwrap_or_default().to_owned());
                }
                (Some("die"), Some(at), None) if at == path => {
                    println!("fake-guest: dying at {path} as ordered");
                    std::process::exit(3);
                }
                (Some("hang"), Some(at), None) if at == path => loop {
                    std::thread::park();
                },
                (Some("refuse" | "die" | "hang"), Some(_), _) => {}
                _ => panic!("what is {order:?}?"),
            }
        }
        None
    }

    fn answer(&self, request: &Request) -> String {
        if let Some(text) = self.obey(&request.path) {
            return with_body(400, &json!({"fault_message": text}));
        }
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut vm = self.vm.lock().unwrap();
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/") => return with_body(200, &json!({"id": "fake", "state": vm.state})),
            ("GET", "/version") => return with_body(200, &json!({"firecracker_version": "1.16.1-fake"})),
            ("GET", "/balloon/statistics") => {
                return with_body(200, &json!({"target_mib": 0, "actual_mib": 0}));
            }
            ("PUT", "/machine-config") => {
                vm.size = body["mem_size_mib"].as_u64().expect("a size") as usize * (1 << 20);
            }
            ("PUT", "/actions") => vm.boot(),
            ("PATCH", "/vm") => vm.state = if body["state"] == "Paused" { "Paused" } else { "Running" },
            ("PUT", "/snapshot/create") => {
                vm.dump(text(&body["mem_file_path"]).as_ref(), text(&body["snapshot_path"]).as_ref());
            }
            ("PUT", "/snapshot/load") => {
                let backend = &body["mem_backend"];
                vm.load(text(&body["snapshot_path"]).as_ref(), text(&backend["backend_path"]).as_ref());
            }
            _ => {}
        }
        "HTTP/1.1 204 \r\nServer: Firecracker API\r\n\r\n".into()
    }
}

impl Vm {
    fn boot(&mut self) {
        let memory = Memory::map(self.size, false).expect("memory");
        for page in (0..self.size / PAGE).step_by(16) {
            (0..PAGE).for_each(|at| memory.store(page * PAGE + at, (page / 16 + at) as u8));
        }
        self.memory = Some(memory);
        self.state = "Running";
    }

    /// Every page that holds anything; the others are holes.
    fn dump(&self, raw: &Path, state: &Path) {
        let memory = self.memory.as_ref().expect("memory");
        let file = File::create(raw).expect("a file for the memory");
        file.set_len(self.size as u64).expect("its size");
        let mut bytes = [0; PAGE];
        for page in (0..self.size).step_by(PAGE) {
            memory.read(page, &mut bytes);
            if bytes != [0; PAGE] {
                file.write_all_at(&bytes, page as u64).expect("a page");
            }
        }
        fs::write(state, json!({"size": self.size}).to_string()).expect("the state");
    }

    fn load(&mut self, state: &Path, server: &Path) {
        let state: Value = serde_json::from_str(&fs::read_to_string(state).expect("the state")).unwrap();
        self.size = state["size"].as_u64().expect("a size") as usize;
        let memory = Memory::map(self.size, false).expect("memory");
        let uffd = Uffd::create().expect("a userfaultfd");
        uffd.register(&memory, 0, self.size).expect("registered");
        let region = json!([{"base_host_virt_addr": memory.address(), "size": self.size, "offset": 0,
                             "page_size": PAGE, "page_size_kib": PAGE}]);
        let server = UnixStream::connect(server).expect("the page server");
        sys::fdpass::send(&server, region.to_string().as_bytes(), &[uffd.as_fd()]).expect("the handshake");
        (self.memory, self.uffd, self.state) = (Some(memory), Some(uffd), "Paused");
    }
}

/// The guest: an agent at its address, which is on the loopback interface of the slot's namespace here.
fn agent(dir: &Path) {
    for args in [&["address", "add", "169.254.0.21/32", "dev", "lo"][..], &["link", "set", "lo", "up"]] {
        let status = Command::new("ip").args(args).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").status();
        assert!(status.is_ok_and(|status| status.success()), "ip {args:?}");
    }
    for stream in TcpListener::bind(AGENT).expect("the guest's address").incoming().flatten() {
        let dir = dir.to_owned();
        std::thread::spawn(move || converse(stream, &dir));
    }
}

fn converse(mut stream: TcpStream, dir: &Path) {
    while let Some(request) = Request::read(&mut stream) {
        let answer = match request.path.as_str() {
            "/health" => with_body(200, &json!({"version": "fake"})),
            "/init" => {
                let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
                let identity = json!({"hostname": asked["hostname"], "machineId": asked["machineId"],
                                      "clock": asked["timestamp"], "reseeded": true});
                with_body(200, &identity)
            }
            "/process.Process/Start" => return command(&mut stream, &request.body, dir),
            _ => with_body(404, &json!({"code": "not_found", "message": request.path})),
        };
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// The stream of one command, in Connect's envelopes.
fn command(stream: &mut TcpStream, request: &[u8], dir: &Path) {
    let asked: Value = serde_json::from_slice(&request[5..]).expect("a message");
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/connect+json\r\nConnection: close\r\n\r\n";
    let envelope = |flags: u8, message: &Value| {
        let text = message.to_string();
        [&[flags][..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
    };
    let start = envelope(0, &json!({"event": {"start": {"pid": 7}}}));
    let _ = stream.write_all(&[head.as_bytes(), &start].concat());
    if asked.to_string().contains("hold") {
        await_file(dir, "release");
    }
    let end = envelope(0, &json!({"event": {"end": {"exited": true, "status": "exit status 0"}}}));
    let _ = stream.write_all(&[end, envelope(2, &json!({}))].concat());
}

fn await_file(dir: &Path, name: &str) {
    let watch = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    watch.add_watch(dir, AddWatchFlags::IN_CREATE).unwrap();
    while !dir.join(name).exists() {
        watch.read_events().unwrap();
    }
}

/// One request of HTTP/1.1.
struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
}

impl Request {
    /// The next one. `None` at the end, and for what is none.
    fn read(stream: &mut impl Read) -> Option<Self> {
        let head = until(stream, b"\r\n\r\n")?;
        let head = String::from_utf8(head).ok()?;
        let mut words = head.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let field = |name: &str| {
            let value = |line: &str| Some(line.split_once(':')?.1.trim().to_owned());
            head.lines().find(|line| line.to_ascii_lowercase().starts_with(name)).and_then(value)
        };
        let body = if field("transfer-encoding:").is_some() {
            chunks(stream)?
        } else {
            exactly(stream, field("content-length:").map_or(Some(0), |length| length.parse().ok())?)?
        };
        Some(Self { method, path, body })
    }
}

fn chunks(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = String::from_utf8(until(stream, b"\r\n")?).ok()?;
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        body.extend(exactly(stream, length)?);
        until(stream, b"\r\n")?;
        if length == 0 {
            return Some(body);
        }
    }
}

fn until(stream: &mut impl Read, end: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        bytes.extend(exactly(stream, 1)?);
    }
    Some(bytes)
}

fn exactly(stream: &mut impl Read, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

fn with_body(status: u16, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!("HTTP/1.1 {status} \r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}
