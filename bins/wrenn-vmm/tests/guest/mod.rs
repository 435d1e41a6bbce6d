//! A guest that runs a shell script from its initramfs, on a machine of the test's own.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vmm::config::{BootSource, Config, MachineConfig};
use vmm::machine::{Exit, Machine};
use vmm::memory::Ram;
use vmm::virtio::Devices;

/// Everything takes its time under emulation, and more so beside others.
pub const LIMIT: Duration = Duration::from_secs(180);
/// Memory of every guest, bytes.
pub const MEMORY: u64 = 256 << 20;

/// `target/image/NAME` of this repository.
pub fn image(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/image").join(name)
}

/// What keeps a guest from running here, if anything does.
pub fn missing() -> Option<String> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Some(format!("needs /dev/kvm (scripts/lab has it): {error}"));
    }
    let files = [image("kernel"), image("vmlinuz"), image("initrd"), "/bin/busybox".into()];
    let missing = files.into_iter().find(|path| !path.exists())?;
    Some(format!("needs {} (scripts/image makes the image)", missing.display()))
}

/// What a guest prints.
#[derive(Clone, Default)]
pub struct Console(Arc<(Mutex<String>, Condvar)>);

impl Console {
    /// All of it so far.
    pub fn text(&self) -> String {
        self.0.0.lock().unwrap().clone()
    }

    /// Returns what it says once it says that.
    pub fn wait_for(&self, what: &str) -> String {
        let (text, printed) = &*self.0;
        let guard = text.lock().unwrap();
        let (guard, late) = printed.wait_timeout_while(guard, LIMIT, |text| !text.contains(what)).unwrap();
        assert!(!late.timed_out(), "it does not say {what:?}:\n{guard}");
        guard.clone()
    }

    /// Whether it says nothing for that long.
    pub fn is_silent(&self, time: Duration) -> bool {
        let (text, printed) = &*self.0;
        let guard = text.lock().unwrap();
        let before = guard.len();
        printed.wait_timeout_while(guard, time, |text| text.len() == before).unwrap().1.timed_out()
    }

    /// The lines that begin with this word, without it.
    pub fn lines(&self, word: &str) -> Vec<String> {
        let text = self.text();
        let rest = text.lines().filter_map(|line| line.trim_end().strip_prefix(word)?.strip_prefix(' '));
        rest.map(str::to_owned).collect()
    }
}

impl Write for Console {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.0.lock().unwrap().push_str(&String::from_utf8_lossy(data));
        self.0.1.notify_all();
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An initramfs whose init is this script. `busybox` is all there is.
pub fn initrd(script: &str) -> tempfile::NamedTempFile {
    let mut archive = Vec::new();
    let head = "#!/bin/busybox sh\nbusybox mkdir -p /proc /dev\nbusybox mount -t proc proc /proc\n\
                busybox mount -t devtmpfs dev /dev\nexec </dev/console >/dev/console 2>&1\n";
    entry(&mut archive, "bin", 0o40755, b"");
    entry(&mut archive, "bin/busybox", 0o100_755, &std::fs::read("/bin/busybox").unwrap());
    entry(&mut archive, "init", 0o100_755, format!("{head}{script}\n").as_bytes());
    entry(&mut archive, "TRAILER!!!", 0, b"");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&archive).unwrap();
    file
}

/// A file of a cpio archive. (Linux, Documentation/driver-api/early-userspace/buffer-format.rst)
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let (length, name_length) = (data.len(), name.len() + 1);
    write!(archive, "070701{:08x}{mode:08x}{:016x}{:08x}{:08x}", archive.len(), 0, 1, 0).unwrap();
    write!(archive, "{length:08x}{:032x}{name_length:08x}{:08x}{name}\0", 0, 0).unwrap();
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// What such a guest is.
pub fn config(kernel: &str, initrd: &Path, vcpus: u8, arguments: &str) -> Config {
    Config {
        machine: MachineConfig {
            vcpu_count: vcpus,
            mem_size_mib: MEMORY >> 20,
            track_dirty_pages: true,
            ..MachineConfig::default()
        },
        boot: Some(BootSource {
            kernel_image_path: image(kernel),
            initrd_path: Some(initrd.to_owned()),
            boot_args: Some(format!("console=ttyS0 quiet panic=-1 {arguments}")),
        }),
        drives: Vec::new(),
        nets: Vec::new(),
        balloon: None,
        entropy: None,
    }
}

/// A machine without virtio devices that stands before its first instruction.
pub fn boot(config: &Config, ram: &Ram, console: &Console) -> Machine {
    let console = Box::new(console.clone());
    Machine::boot(config, ram.memory().clone(), Devices::default(), ram.discard(), console).unwrap()
}

/// How the guest ended.
pub fn wait_for_end(machine: &Machine, console: &Console) -> Exit {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(exit) = machine.exit() {
            return exit;
        }
        assert!(Instant::now() < deadline, "it does not end:\n{}", console.text());
        // SAFETY: the event is the machine's, which is borrowed.
        let event = unsafe {
            std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(machine.exit_event()))
        };
        sys::process::readable(&event, deadline.saturating_duration_since(Instant::now())).unwrap();
    }
}
