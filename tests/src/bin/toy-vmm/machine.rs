//! Memory, disk, and whether the vCPUs run.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard};

use serde_json::{Value, json};
use sys::uffd::{Memory, Uffd};

const PAGE: usize = 4096;
const PAGES: usize = 256;

/// Where the guest counts.
const COUNTER: usize = 0;
/// Where it keeps what it is told, in memory and on its disk.
const KEPT: usize = PAGE;

/// A machine, its guest included.
pub struct Machine {
    inner: Mutex<Inner>,
    runs: Condvar,
}

/// What a machine is while somebody holds it.
pub struct Inner {
    memory: Memory,
    uffd: Option<Uffd>,
    disk: PathBuf,
    dirty: BTreeSet<usize>,
    state: &'static str,
}

impl Machine {
    pub fn new() -> Self {
        let memory = Memory::map(PAGE * PAGES, false).expect("memory");
        let (disk, dirty) = (PathBuf::new(), BTreeSet::new());
        let inner = Inner { memory, uffd: None, disk, dirty, state: "Not started" };
        Self { inner: Mutex::new(inner), runs: Condvar::new() }
    }

    fn hold(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with it")
    }

    pub fn state(&self) -> &'static str {
        self.hold().state
    }

    /// The machine once its vCPUs run; they stand still when that is dropped and the machine paused.
    pub fn running(&self) -> MutexGuard<'_, Inner> {
        self.runs.wait_while(self.hold(), |inner| inner.state != "Running").expect("nobody panics with it")
    }

    pub fn set_disk(&self, path: &Value) -> io::Result<()> {
        self.hold().disk = path.as_str().unwrap_or_default().into();
        Ok(())
    }

    pub fn boot(&self) -> io::Result<()> {
        self.run(true)
    }

    pub fn run(&self, runs: bool) -> io::Result<()> {
        self.hold().state = if runs { "Running" } else { "Paused" };
        self.runs.notify_all();
        Ok(())
    }

    /// As Firecracker: a Diff holds the pages written since the last dump or load, with holes between them.
    pub fn dump(&self, body: &Value) -> io::Result<()> {
        let mut inner = self.hold();
        let path = |name: &str| PathBuf::from(body[name].as_str().unwrap_or_default());
        let file = File::create_new(path("mem_file_path"))?;
        file.set_len((PAGE * PAGES) as u64)?;
        for page in (0..PAGES).filter(|page| body["snapshot_type"] == "Full" || inner.dirty.contains(page)) {
            let mut bytes = [0; PAGE];
            inner.memory.read(page * PAGE, &mut bytes);
            file.write_all_at(&bytes, (page * PAGE) as u64)?;
        }
        fs::write(path("snapshot_path"), json!({ "disk": inner.disk }).to_string())?;
        inner.dirty.clear();
        Ok(())
    }

    /// Memory arrives from the page server as it is touched.
    pub fn load(&self, body: &Value) -> io::Result<()> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let state: Value = serde_json::from_str(&fs::read_to_string(text(&body["snapshot_path"]))?)?;
        let mut inner = self.hold();
        inner.disk = text(&state["disk"]).into();
        let uffd = Uffd::create()?;
        uffd.register(&inner.memory, 0, inner.memory.len())?;
        let region = json!([{"base_host_virt_addr": inner.memory.address(), "size": inner.memory.len(),
                             "offset": 0, "page_size": PAGE, "page_size_kib": PAGE}]);
        let server = UnixStream::connect(text(&body["mem_backend"]["backend_path"]))?;
        sys::fdpass::send(&server, region.to_string().as_bytes(), &[uffd.as_fd()])?;
        // Kept for ever, as Firecracker does.
        std::mem::forget(server);
        inner.uffd = Some(uffd);
        inner.state = "Paused";
        Ok(())
    }
}

impl Inner {
    fn store(&mut self, offset: usize, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            self.memory.store(at, *byte);
        }
        self.dirty.insert(offset / PAGE);
    }

    fn page(&self, offset: usize) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        self.memory.read(offset, &mut bytes);
        bytes
    }

    pub fn count(&self) -> u64 {
        u64::from_ne_bytes(self.page(COUNTER)[..8].try_into().expect("eight bytes"))
    }

    pub fn tick(&mut self) {
        let next = self.count() + 1;
        self.store(COUNTER, &next.to_ne_bytes());
    }

    /// Keeps a line in memory and on the disk.
    pub fn keep(&mut self, text: &str) {
        let mut bytes = [0; 64];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        self.store(KEPT, &bytes);
        let disk = File::options().write(true).open(&self.disk).expect("the disk");
        disk.write_all_at(&bytes, KEPT as u64).expect("the disk written");
    }

    /// What memory and disk have kept.
    pub fn kept(&self) -> [String; 2] {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
        let mut on_disk = [0; 64];
        let disk = File::open(&self.disk).expect("the disk");
        disk.read_exact_at(&mut on_disk, KEPT as u64).expect("the disk read");
        [text(&self.page(KEPT)[..64]), text(&on_disk)]
    }
}
