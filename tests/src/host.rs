//! A host of the test's own: its two roots with the images in them, and a clean end.

use std::collections::BTreeSet;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;

use crate::kernel::Marks;
use crate::sandbox::Sandbox;
use crate::vmm::Vmm;
use crate::{Program, Roots, Value, images, json, kernel, skip};

/// Two roots, and what tells their traces in the kernel.
#[derive(Debug)]
pub struct TestHost {
    /// The VMM of this run.
    pub vmm: Vmm,
    /// How many vCPUs its sandboxes have.
    pub vcpus: u32,
    roots: Roots,
    slots: Mutex<BTreeSet<u64>>,
    started: Instant,
    disk: Option<PathBuf>,
}

impl TestHost {
    /// Runs a test on a host with this VMM and so many vCPUs, or says why not. Afterwards the host must be as it was before; when the
    /// test panics, everything of it is removed.
    ///
    /// # Panics
    /// When the test does, or leaves something behind.
    pub fn run(vmm: Vmm, vcpus: u32, name: &str, test: fn(&TestHost)) {
        if let Err(reason) = usable(vmm) {
            return skip::here(reason);
        }
        let _turn = turn(name);
        let host = Self::new(vmm, vcpus);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(&host))) {
            host.tell();
            host.sweep();
            resume_unwind(panic);
        }
        let done = catch_unwind(AssertUnwindSafe(|| host.remove_all()));
        host.sweep();
        done.unwrap_or_else(|panic| resume_unwind(panic));
        host.step(&format!("{name} done"));
    }

    fn new(vmm: Vmm, vcpus: u32) -> Self {
        Self::with(vmm, vcpus, Roots::new(), None)
    }

    fn with(vmm: Vmm, vcpus: u32, roots: Roots, disk: Option<PathBuf>) -> Self {
        let host = Self { vmm, vcpus, roots, slots: Mutex::default(), started: Instant::now(), disk };
        let installed = match vmm {
            Vmm::Toy => images::install_toys(&host.root()),
            _ => images::install(&host.root()),
        };
        installed.expect("the images under the test's root");
        host
    }

    /// Another host beside this one, with roots of its own.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::new(self.vmm, self.vcpus)
    }

    /// Another host whose `WRENN_ROOT` is a disk of its own of this size, in memory, that can be filled.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn on_a_disk_of(&self, bytes: u64) -> Self {
        let roots = Roots::new();
        let disk = roots.root();
        std::fs::create_dir(&disk).expect("a directory to mount on");
        let size = format!("size={bytes}");
        mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).expect("a disk");
        Self::with(self.vmm, self.vcpus, roots, Some(disk))
    }

    /// From here on only this many more files can be made on this host's own disk.
    ///
    /// # Panics
    /// When it has none.
    pub fn allow_new_files(&self, more: u64) {
        let disk = self.disk.as_deref().expect("a disk of its own");
        let now = statvfs(disk).expect("its state");
        let limit = format!("nr_inodes={}", now.files() - now.files_free() + more);
        mount(None::<&str>, disk, None::<&str>, MsFlags::MS_REMOUNT, Some(limit.as_str())).expect("a limit");
    }

    /// Bytes that are free where `WRENN_ROOT` is.
    ///
    /// # Panics
    /// When that cannot be told.
    pub fn free_bytes(&self) -> u64 {
        let now = statvfs(&self.root()).expect("its state");
        now.blocks_free() * now.fragment_size()
    }

    /// The two roots.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// `WRENN_ROOT`.
    pub fn root(&self) -> PathBuf {
        self.roots.root()
    }

    /// Says what is being done and how long after the start, for whoever waits or reads a failure.
    pub fn step(&self, what: &str) {
        eprintln!("  {:6.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// One of the programs, on this host.
    pub fn program(&self, name: &str) -> Program {
        let program = self.roots.program(name);
        match self.vmm {
            Vmm::Toy => program.env("WRENN_FIRECRACKER", crate::program::path("toy-vmm")),
            _ => program,
        }
    }

    /// The supervisor.
    pub fn wrenn<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Program {
        self.program("wrenn").args(args)
    }

    /// Boots a sandbox from `minimal`: 256 MiB of memory.
    ///
    /// # Panics
    /// When that fails.
    pub fn create(&self, id: &str) -> Sandbox<'_> {
        self.boot(id, &["--memory", "256", "--disk", "512"])
    }

    /// Boots a sandbox from `minimal`.
    ///
    /// # Panics
    /// When that fails.
    pub fn boot(&self, id: &str, more: &[&str]) -> Sandbox<'_> {
        self.create_from(id, "minimal", &[&["--vcpus", &self.vcpus.to_string()], more].concat())
    }

    /// Boots or launches a sandbox from this template.
    ///
    /// # Panics
    /// When that fails.
    pub fn create_from(&self, id: &str, template: &str, more: &[&str]) -> Sandbox<'_> {
        self.create_on(self.vmm, id, template, more)
    }

    /// The same on another VMM.
    ///
    /// # Panics
    /// When that fails.
    pub fn create_on(&self, vmm: Vmm, id: &str, template: &str, more: &[&str]) -> Sandbox<'_> {
        let args = ["create", "--id", id, "--template", template, "--vmm", vmm.name()];
        let document = self.wrenn(args).args(more).run().success().reply();
        assert_eq!(document["state"], "running", "{document}");
        self.note(&document);
        Sandbox::new(self, id)
    }

    /// The ids of `wrenn ls`.
    ///
    /// # Panics
    /// When that fails.
    pub fn ids(&self) -> Vec<String> {
        let listed = self.wrenn(["ls"]).run().success().reply();
        let all = listed["sandboxes"].as_array().expect("sandboxes");
        all.iter().map(|sandbox| sandbox["id"].as_str().expect("id").to_owned()).collect()
    }

    /// Remembers what tells a sandbox's traces from another's.
    pub fn note(&self, document: &Value) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.extend(document["net"]["slot"].as_u64());
    }

    /// What the kernel holds of this host's sandboxes.
    pub fn traces(&self) -> BTreeSet<String> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut traces = kernel::traces(&Marks { slots, ..self.roots.marks() });
        // The test's own disk is no sandbox's.
        traces.retain(|trace| {
            self.disk.is_none() || trace != &format!("mount tmpfs {} tmpfs", self.root().display())
        });
        traces
    }

    /// What the kernel still holds of them, a moment later: the last of it goes after the last descriptor is closed.
    pub fn leftovers(&self) -> BTreeSet<String> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let traces = self.traces();
            if traces.is_empty() || Instant::now() > deadline {
                return traces;
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Removes every sandbox as a user would, and finds the host as it was.
    ///
    /// # Panics
    /// When it is not.
    pub fn remove_all(&self) {
        for id in self.ids() {
            self.wrenn(["rm", &id]).run().success();
        }
        self.assert_clean();
    }

    /// Finds nothing of this host's sandboxes: not in the kernel, not in the tools' lists, not in `WRENN_RUN` (where
    /// locks stay by contract), not on disk.
    ///
    /// # Panics
    /// When there is something.
    pub fn assert_clean(&self) {
        assert_eq!(self.leftovers(), BTreeSet::new(), "left behind");
        let slots = self.program("wrenn-net").args(["list"]).run().success().reply();
        assert_eq!(slots["slots"], json!([]));
        let disks = self.program("wrenn-cow").args(["list"]).run().success().reply();
        assert_eq!(disks["disks"], json!([]));
        assert_eq!(disks["loops"], json!([]));
        let mut run = kernel::list(self.roots.run());
        run.retain(|name| name != "locks");
        assert_eq!(run, [""; 0], "left in WRENN_RUN");
        assert_eq!(kernel::list(self.root().join("sandboxes")), [""; 0], "left on disk");
    }

    /// What `scripts/check-host` finds wrong, which knows nothing of our code: a line for each. It looks again for some seconds
    /// as long as there is something.
    ///
    /// # Panics
    /// When it cannot look.
    pub fn faults(&self) -> Vec<String> {
        self.faults_within(5)
    }

    /// The same, with so many seconds.
    ///
    /// # Panics
    /// As [`TestHost::faults`].
    pub fn faults_within(&self, seconds: u32) -> Vec<String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/check-host");
        let mut command = std::process::Command::new(script);
        command.args(["--wait", &seconds.to_string()]);
        command.env("WRENN_ROOT", self.root()).env("WRENN_RUN", self.roots.run());
        let output = command.output().expect("scripts/check-host");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let status = output.status.code();
        assert!(
            output.stderr.is_empty() && status == Some(i32::from(!text.is_empty())),
            "check-host: {status:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text.lines().map(str::to_owned).collect()
    }

    /// After a failure: the last lines of every log.
    fn tell(&self) {
        let mut left = vec![self.roots.run()];
        while let Some(dir) = left.pop() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    left.push(path);
                } else if path.extension().is_some_and(|extension| extension == "log") {
                    tail(&path);
                }
            }
        }
    }

    /// Removes what there still is: by our own programs first, then what keeps them from it.
    fn sweep(&self) {
        let try_to = |name: &str, args: &[&str]| {
            let _ = catch_unwind(AssertUnwindSafe(|| self.program(name).args(args).run()));
        };
        if self.leftovers().is_empty() {
            return;
        }
        if self.disk.is_some() {
            self.allow_new_files(1 << 16);
        }
        try_to("wrenn", &["shutdown", "--destroy"]);
        try_to("wrenn", &["gc"]);
        for (pid, _) in kernel::processes_of(self.roots.dir()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        try_to("wrenn-net", &["gc"]);
        try_to("wrenn-cow", &["gc"]);
        for left in self.leftovers() {
            eprintln!("still there after everything: {left}");
        }
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        self.sweep();
        if let Some(disk) = &self.disk {
            let _ = umount2(disk, MntFlags::MNT_DETACH);
        }
    }
}

/// Holds off the same test on another VMM: its sandboxes have the same ids, and an id is taken host-wide.
fn turn(name: &str) -> Flock<File> {
    let test = name.rsplit("::").next().unwrap_or(name);
    let file =
        File::create(std::env::temp_dir().join(format!("wrenn-tests-{test}.lock"))).expect("a lock's file");
    Flock::lock(file, FlockArg::LockExclusive)
        .unwrap_or_else(|(_, errno)| panic!("the lock of {test}: {errno}"))
}

fn tail(path: &Path) {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<_> = text.lines().collect();
    eprintln!("--- {}", path.display());
    lines[lines.len().saturating_sub(30)..].iter().for_each(|line| eprintln!("{line}"));
}

fn usable(vmm: Vmm) -> Result<(), String> {
    if vmm == Vmm::Toy {
        return usable_by_toys();
    }
    if std::env::var_os("WRENN_LAB").is_none() {
        return Err("needs root, device-mapper and KVM: run it by scripts/lab".into());
    }
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".into());
    }
    for device in ["/dev/kvm", "/dev/mapper/control", "/dev/net/tun"] {
        if !Path::new(device).exists() {
            return Err(format!("there is no {device} here"));
        }
    }
    vmm.program()?;
    images::available()
}

/// The launcher opens /dev/kvm, the guest's memory comes by a userfaultfd, and the slot is real.
fn usable_by_toys() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".into());
    }
    let open = |path: &str| File::options().read(true).write(true).open(path);
    for device in ["/dev/kvm", "/dev/net/tun"] {
        open(device).map_err(|error| format!("{device} cannot be opened: {error}"))?;
    }
    sys::uffd::Uffd::create().map_err(|error| format!("no userfaultfd: {error}"))?;
    Ok(())
}
