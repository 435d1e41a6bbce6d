//! A machine in small that needs no KVM: it speaks Firecracker's API, has memory that a page server fills and a dirty log,
//! a disk, and a guest with an agent on the slot's network. So a sandbox's whole life goes by on any Linux with root.
//!
//! The guest counts in its memory while it runs, and stands still while it is paused, its agent too.
#![forbid(unsafe_code)]

mod guest;
mod machine;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use machine::Machine;
use serde_json::{Value, json};
use wrenn_tests::recorded::serve;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let after = |flag: &str| args.iter().skip_while(|arg| *arg != flag).nth(1).cloned().unwrap_or_default();
    let listener = UnixListener::bind(PathBuf::from(after("--api-sock"))).expect("the socket");
    println!("toy-vmm: hello from the console");
    let machine = Arc::new(Machine::new());
    guest::start(&machine);
    for stream in listener.incoming().flatten() {
        let machine = machine.clone();
        std::thread::spawn(move || serve(stream, |method, path, body| answer(&machine, method, path, body)));
    }
}

fn answer(machine: &Machine, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let done = match (method, path) {
        ("GET", "/") => return (200, json!({"id": "toy", "state": machine.state()})),
        ("GET", "/version") => return (200, json!({"firecracker_version": "1.16.1-toy"})),
        ("GET", "/balloon/statistics") => return (200, json!({"target_mib": 0, "actual_mib": 0})),
        ("PUT", "/drives/rootfs") => machine.set_disk(&body["path_on_host"]),
        ("PUT", "/actions") => machine.boot(),
        ("PATCH", "/vm") => machine.run(body["state"] == "Resumed"),
        ("PUT", "/snapshot/create") => machine.dump(body),
        ("PUT", "/snapshot/load") => machine.load(body),
        _ => Ok(()),
    };
    match done {
        Ok(()) => (204, Value::Null),
        Err(error) => (400, json!({"fault_message": error.to_string()})),
    }
}
