//! An agent of the test's own, and a client that shares no code with it: HTTP over a socket, JSON, and protobuf
//! encoded by hand from e2b's field numbers.
#![allow(dead_code, missing_docs)] // each test binary uses its part

pub mod http;
pub mod rpc;
pub mod wire;

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

/// A running agent; it ends with the test.
pub struct Agent {
    child: Child,
    pub address: SocketAddr,
}

impl Agent {
    /// Starts one on a free port, which it prints.
    pub fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_wrenn-envd"))
            .args(["--port", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.trim().rsplit(' ').next().expect("an address");
        let address = address.parse().unwrap_or_else(|error| panic!("{line:?}: {error}"));
        Self { child, address }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A line of /proc/PID/status in KiB: `VmHWM` is the most memory it ever held.
    pub fn memory_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the agent runs");
        let line = status.lines().find(|line| line.starts_with(field)).expect("a known field");
        line.split_whitespace().nth(1).and_then(|value| value.parse().ok()).expect("a number")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill(); // gone already: fine
        let _ = self.child.wait();
    }
}

/// Whether the test may become other users; if not, it reports itself as skipped.
pub fn root_or_skip() -> bool {
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    if !root {
        wrenn_tests::skip::here("only root can become another user");
    }
    root
}
