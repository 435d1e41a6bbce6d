//! A program that speaks Firecracker's API and runs nothing: what `wrenn-launch` does around a VMM can be looked at on
//! any machine, and made to fail at any call.
//!
//! At its start it writes what it sees of its surroundings to `seen.json` in its run directory, and every request it
//! gets as a line to `requests`. The file `orders` there, if any, says what to do wrong: lines of `die PATH`,
//! `hang PATH`, `refuse PATH TEXT`, where PATH is that of a call, or `start` for the moment before it listens.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

struct Fake {
    dir: PathBuf,
    orders: String,
    state: Mutex<&'static str>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let after = |flag: &str| args.iter().skip_while(|arg| *arg != flag).nth(1).cloned().unwrap_or_default();
    let socket = PathBuf::from(after("--api-sock"));
    let dir = socket.parent().expect("a socket in a directory").to_owned();
    fs::write(dir.join("seen.json"), surroundings(&args).to_string()).expect("seen.json");
    println!("fake-vmm: hello from the console");
    let orders = fs::read_to_string(dir.join("orders")).unwrap_or_default();
    let fake = Arc::new(Fake { dir, orders, state: Mutex::new("Not started") });
    fake.obey("start");
    let listener = UnixListener::bind(&socket).expect("the socket");
    for stream in listener.incoming().flatten() {
        let fake = fake.clone();
        std::thread::spawn(move || fake.serve(stream));
    }
}

impl Fake {
    /// Does what is ordered for this moment. Returns the text to refuse with.
    fn obey(&self, moment: &str) -> Option<String> {
        for order in self.orders.lines() {
            let mut words = order.splitn(3, ' ');
            let (verb, at, text) = (words.next(), words.next(), words.next());
            if at != Some(moment) {
                continue;
            }
            match verb {
                Some("die") => {
                    println!("fake-vmm: dying at {moment} as ordered");
                    std::process::exit(3);
                }
                Some("hang") => loop {
                    std::thread::park();
                },
                Some("refuse") => return Some(text.unwrap_or_default().to_owned()),
                _ => panic!("what is {order:?}?"),
            }
        }
        None
    }

    fn serve(&self, mut stream: UnixStream) {
        let mut bytes = Vec::new();
        loop {
            while let Some((method, path, body, used)) = request(&bytes) {
                bytes.drain(..used);
                let mut log =
                    File::options().create(true).append(true).open(self.dir.join("requests")).unwrap();
                writeln!(log, "{}", json!([method, path, body])).unwrap();
                let answer = self.answer(&method, &path, &body);
                stream.write_all(answer.as_bytes()).unwrap();
            }
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            }
        }
    }

    fn answer(&self, method: &str, path: &str, body: &Value) -> String {
        if let Some(text) = self.obey(path) {
            // As Firecracker: what the refused dump had written stays.
            if path == "/snapshot/create" {
                fs::write(body["mem_file_path"].as_str().unwrap(), "torn").unwrap();
            }
            return with_body(400, &json!({"fault_message": text}));
        }
        let mut state = self.state.lock().unwrap();
        match (method, path) {
            ("GET", "/") => return with_body(200, &json!({"id": "fake", "state": *state})),
            ("GET", "/version") => return with_body(200, &json!({"firecracker_version": "1.16.1-fake"})),
            ("GET", "/balloon/statistics") => {
                return with_body(200, &json!({"target_mib": 7, "actual_mib": 5}));
            }
            ("PUT", "/actions") => *state = "Running",
            ("PATCH", "/vm") if body["state"] == "Paused" => *state = "Paused",
            ("PATCH", "/vm") => *state = "Running",
            ("PUT", "/snapshot/create") => {
                fs::write(body["snapshot_path"].as_str().unwrap(), "the state").unwrap();
                fs::write(body["mem_file_path"].as_str().unwrap(), "the memory").unwrap();
            }
            ("PUT", "/snapshot/load") => {
                let read = |path: &Value| fs::read_to_string(path.as_str().unwrap()).unwrap_or_default();
                let backend = &body["mem_backend"];
                let memory = match backend["backend_type"].as_str() {
                    Some("File") => read(&backend["backend_path"]),
                    _ => {
                        let mut server =
                            UnixStream::connect(backend["backend_path"].as_str().unwrap()).unwrap();
                        server.write_all(b"the handshake").unwrap();
                        String::new()
                    }
                };
                let loaded = json!({"state": read(&body["snapshot_path"]), "memory": memory});
                fs::write(self.dir.join("loaded.json"), loaded.to_string()).unwrap();
                *state = "Paused";
            }
            _ => {}
        }
        "HTTP/1.1 204 \r\nServer: Firecracker API\r\n\r\n".into()
    }
}

fn with_body(status: u16, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} \r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The first request in these bytes, and how many of them it takes.
fn request(bytes: &[u8]) -> Option<(String, String, Value, usize)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).expect("a head in ASCII");
    let mut words = text.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |length| length.trim().parse().expect("a length"));
    let body = bytes.get(head..head + length)?;
    let body =
        if body.is_empty() { Value::Null } else { serde_json::from_slice(body).expect("a body in JSON") };
    Some((method, path, body, head + length))
}

/// What a program can see of where it was put.
fn surroundings(args: &[String]) -> Value {
    let link =
        |path: &str| fs::read_link(path).map(|to| to.to_string_lossy().into_owned()).unwrap_or_default();
    let fds: Vec<_> = names(Path::new("/proc/self/fd"))
        .into_iter()
        .map(|fd| json!([fd, link(&format!("/proc/self/fd/{fd}"))]))
        // The descriptor that the listing itself needs is gone by now.
        .filter(|fd| fd[1] != "")
        .collect();
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let session = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(3)).unwrap();
    let files: Vec<_> = names(Path::new("/tmp/wrenn-vm"))
        .into_iter()
        .map(|name| {
            let path = Path::new("/tmp/wrenn-vm").join(&name);
            let start = File::open(&path).map(|file| {
                let mut start = String::new();
                let _ = file.take(64).read_to_string(&mut start);
                start
            });
            json!([name, start.unwrap_or_default()])
        })
        .collect();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim();
    json!({
        "args": args,
        "fds": fds,
        "session": session,
        "pid": std::process::id(),
        "env": std::env::vars().map(|(name, value)| json!([name, value])).collect::<Vec<_>>(),
        "cwd": std::env::current_dir().unwrap(),
        "net": link("/proc/self/ns/net"),
        "mnt": link("/proc/self/ns/mnt"),
        "tmp": names(Path::new("/tmp")),
        "tmp_mode": fs::metadata("/tmp").unwrap().mode() & 0o7777,
        "files": files,
        "blocked": line("SigBlk:"),
        "umask": line("Umask:"),
    })
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
