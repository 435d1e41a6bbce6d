//! A small page server that shares no code with ours but the system calls: right, or wrong in one way. It is the test binary,
//! started again.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde_json::Value;
use sys::process::Process;
use sys::uffd::{Event, Events, Filled, Uffd};

macro_rules! faults {
    ($($fault:ident $name:literal),* $(,)?) => {
        /// What a server does wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Fault { $($fault),* }

        impl Fault {
            pub fn name(self) -> &'static str {
                match self { $(Self::$fault => $name),* }
            }

            fn from_name(name: &str) -> Self {
                match name { $($name => Self::$fault,)* other => panic!("no fault {other:?}") }
            }
        }
    };
}

faults! {
    None "none",
    IgnoresRemove "ignores-remove",
    FaultsFirst "faults-first",
    NeverWakes "never-wakes",
    GivesUp "gives-up",
    WrongContent "wrong-content",
    WrongOffset "wrong-offset",
    NeverAnswers "never-answers",
    Stays "stays",
    Spins "spins",
    MakesUp "makes-up",
    Dies "dies",
}

struct Region {
    address: u64,
    size: u64,
    offset: u64,
    page: u64,
}

struct Server {
    fault: Fault,
    uffd: Uffd,
    regions: Vec<Region>,
    memory: File,
    vmm: Process,
    exit: OwnedFd,
    /// Pages by address, and whether they were discarded.
    known: HashMap<u64, bool>,
    faults: Vec<u64>,
}

/// Serves one VMM.
pub fn serve() {
    let variable = |name: &str| std::env::var(name).expect("a part that other tests start");
    let fault = Fault::from_name(&variable("WRONG"));
    let memory = File::open(variable("MEMORY")).unwrap();
    let listener = UnixListener::bind(variable("SOCKET")).unwrap();
    let (stream, _) = listener.accept().unwrap();
    if fault == Fault::NeverAnswers {
        loop {
            std::thread::park();
        }
    }
    let vmm = Process::of_pid(sys::fdpass::peer(&stream).unwrap().pid).expect("the VMM has left");
    let exit = vmm.pidfd().unwrap().expect("the VMM has left");
    let patience = if fault == Fault::Stays { Duration::MAX } else { Duration::from_secs(2) };
    let (regions, uffd) = handshake(&stream, patience);
    Server { fault, uffd, regions, memory, vmm, exit, known: HashMap::new(), faults: Vec::new() }.run();
}

fn handshake(stream: &UnixStream, patience: Duration) -> (Vec<Region>, Uffd) {
    stream.set_read_timeout(Some(patience).filter(|&patience| patience < Duration::MAX)).unwrap();
    let (mut text, mut fds) = (Vec::new(), Vec::new());
    let list: Vec<Value> = loop {
        let mut buffer = [0; 4096];
        let received = match sys::fdpass::receive(stream, &mut buffer) {
            // As after SIGSTOP and SIGCONT.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.expect("a late handshake"),
        };
        assert!(received.bytes > 0, "a handshake cut short");
        text.extend_from_slice(&buffer[..received.bytes]);
        fds.extend(received.fds);
        match serde_json::from_slice(&text) {
            Ok(list) if !fds.is_empty() => break list,
            Err(error) if !error.is_eof() => panic!("not JSON: {error}"),
            _ => {}
        }
    };
    let region = |region: &Value| {
        let number = |name: &str| region[name].as_u64();
        Region {
            address: number("base_host_virt_addr").unwrap(),
            size: number("size").unwrap(),
            offset: number("offset").unwrap(),
            page: number("page_size").or(number("page_size_kib")).unwrap(),
        }
    };
    (list.iter().map(region).collect(), Uffd::from_fd(fds.remove(0)).unwrap())
}

impl Server {
    fn run(mut self) {
        let mut events = Events::new();
        loop {
            let mut fds = [
                PollFd::new(self.uffd.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.exit.as_fd(), PollFlags::POLLIN),
            ];
            // A fault that met a discard is tried again: its end is not announced.
            let pause = if self.faults.is_empty() { PollTimeout::NONE } else { PollTimeout::from(1u8) };
            let pause = if self.fault == Fault::Spins { PollTimeout::ZERO } else { pause };
            poll(&mut fds, pause).unwrap();
            let gone = fds[1].any() == Some(true);
            if gone && !matches!(self.fault, Fault::Stays | Fault::Spins) {
                return;
            }
            if gone && self.fault == Fault::Stays {
                std::thread::park();
            }
            self.read(&mut events);
            if self.fault == Fault::Dies && !self.faults.is_empty() {
                std::process::exit(3);
            }
            for address in std::mem::take(&mut self.faults) {
                if !self.answer(address) && self.fault != Fault::GivesUp {
                    self.faults.push(address);
                }
            }
        }
    }

    fn read(&mut self, events: &mut Events) {
        let mut removed = Vec::new();
        let drained = self.uffd.drain(events, |event| match event {
            Event::Fault { address, .. } => self.faults.push(address),
            Event::Remove { start, end } => removed.push(start..end),
            other => panic!("{other:?}"),
        });
        drained.unwrap();
        if self.fault == Fault::FaultsFirst {
            for address in std::mem::take(&mut self.faults) {
                self.answer_when_it_can(address);
            }
        }
        for range in removed.into_iter().filter(|_| self.fault != Fault::IgnoresRemove) {
            let page = self.regions.iter().find(|region| region.has(range.start)).unwrap().page;
            self.known.extend(range.step_by(page as usize).map(|address| (address, true)));
        }
    }

    /// Answers by what was known before the discards that were read with it.
    fn answer_when_it_can(&mut self, address: u64) {
        while !self.answer(address) {
            std::thread::yield_now();
        }
    }

    /// Whether a fault is answered. One that is not has met a discard.
    fn answer(&mut self, address: u64) -> bool {
        let region = self.regions.iter().find(|region| region.has(address)).unwrap();
        let at = (address - region.address) / region.page * region.page;
        let address = region.address + at;
        let mut bytes = vec![0; region.page as usize];
        if self.known.get(&address) != Some(&true) {
            let offset = if self.fault == Fault::WrongOffset { at } else { region.offset + at };
            match self.memory.read_exact_at(&mut bytes, offset) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    if self.fault != Fault::MakesUp {
                        self.vmm.signal(Signal::SIGKILL).unwrap();
                        panic!("the source ends before {offset}");
                    }
                    bytes.fill(0);
                }
                Err(error) => panic!("{error}"),
            }
            if self.fault == Fault::WrongContent && bytes[..bytes.len() / 2].iter().all(|&byte| byte == 0) {
                bytes.fill(0);
            }
        }
        match self.uffd.copy(address, &bytes) {
            Filled::Bytes(_) => {
                self.known.entry(address).or_insert(false);
            }
            Filled::Exists if self.fault == Fault::NeverWakes => {}
            Filled::Exists => self.uffd.wake(address, region.page).unwrap(),
            Filled::Again => return false,
            Filled::Unmapped | Filled::Gone => {}
            Filled::Failed(error) => panic!("{error}"),
        }
        true
    }
}

impl Region {
    fn has(&self, address: u64) -> bool {
        (self.address..self.address + self.size).contains(&address)
    }
}
