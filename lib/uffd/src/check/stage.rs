//! What a scenario's VMM is given to play with.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sys::fdpass;
use sys::uffd::Uffd;

use super::model::Model;
use super::processes::Held;
use super::scenario::{Scenario, Unmet};
use super::vm::Vm;

/// The VMM's surroundings.
pub(crate) struct Stage {
    pub scenario: &'static Scenario,
    pub model: Model,
    pub socket: PathBuf,
    /// The server's processes that are known: the one that was started, and the one that listens.
    pub server: Mutex<Vec<i32>>,
    /// The file that memory's content lies in.
    pub source: PathBuf,
    pub limit: Duration,
    pub events: Mutex<File>,
    /// It is the verb that ends this process now.
    pub is_ready: AtomicBool,
}

impl Stage {
    /// Tells the verb something.
    pub fn tell(&self, line: &Value) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody listens: then nobody waits for this either.
        let _ = events.write_all(format!("{line}\n").as_bytes());
    }

    /// Connects to the server. A socket that is not listening yet is tried again: nobody announces that it does.
    pub fn connect(&self) -> Result<UnixStream, Unmet> {
        let deadline = Instant::now() + self.limit;
        let stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error)
                    if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(Unmet::failed(format!("cannot connect: {error}"))),
            }
        };
        // Who listens need not be who was started.
        let listening = fdpass::peer(&stream)?.pid;
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if listening > 0 && !server.contains(&listening) {
            server.push(listening);
        }
        drop(server);
        self.tell(&json!({ "server": listening }));
        Ok(stream)
    }

    /// Maps memory, connects, and sends the handshake as Firecracker does.
    pub fn meet(&self) -> Result<Vm, Unmet> {
        self.meet_with(&["page_size", "page_size_kib"])
    }

    /// As [`Stage::meet`], naming the size of a page by these keys.
    pub fn meet_with(&self, page_size: &[&str]) -> Result<Vm, Unmet> {
        let vm = Vm::new(self)?;
        let mut stream = self.connect()?;
        send(&mut stream, vm.message(page_size).as_bytes(), Some(&vm.uffd))?;
        Ok(vm.over(stream))
    }

    /// Sends the handshake to a server that stands still: nothing is loaded or answered yet.
    pub fn meet_held(&self) -> Result<(Vm, Held), Unmet> {
        let vm = Vm::new(self)?;
        let mut stream = self.connect()?;
        let held = self.hold()?;
        send(&mut stream, vm.message(&["page_size", "page_size_kib"]).as_bytes(), Some(&vm.uffd))?;
        Ok((vm.over(stream), held))
    }

    /// Stops the server until the value goes.
    pub fn hold(&self) -> Result<Held, Unmet> {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Held::stop(&server, self.limit)
            .map_err(|error| Unmet::failed(format!("the server cannot be stopped for a moment: {error}")))
    }

    /// Says that it is the server's turn now, and does nothing any more.
    pub fn ready(&self) -> ! {
        self.is_ready.store(true, Ordering::SeqCst);
        self.tell(&json!({"ready": true}));
        loop {
            std::thread::park();
        }
    }
}

/// Sends a piece of a handshake, with the userfaultfd or without.
pub(crate) fn send(stream: &mut UnixStream, bytes: &[u8], uffd: Option<&Uffd>) -> io::Result<()> {
    let fds: Vec<_> = uffd.iter().map(|uffd| uffd.as_fd()).collect();
    let sent = fdpass::send(stream, bytes, &fds)?;
    stream.write_all(&bytes[sent..])
}
