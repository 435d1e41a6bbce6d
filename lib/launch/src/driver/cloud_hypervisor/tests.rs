//! The driver against the recorded API: what it sends is what the real Cloud Hypervisor was sent, and what it makes of the
//! answers. A request that the recording does not know fails the test.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use wire::{Kind, json};
use wrenn_tests::recorded::{Recorded, serve};

use super::*;
use crate::handed::Handed;
use crate::machine::Net;

/// The VMM of the recording, and a connection to it.
struct Vmm {
    recorded: Arc<Mutex<Recorded>>,
    api: Api,
    dir: tempfile::TempDir,
}

impl Vmm {
    fn start() -> Self {
        let recorded = Arc::new(Mutex::new(Recorded::new()));
        let answer = {
            let recorded = recorded.clone();
            move |method: &str, path: &str, body: &Value| recorded.lock().unwrap().answer(method, path, body)
        };
        Self::answering(recorded, answer)
    }

    fn answering(
        recorded: Arc<Mutex<Recorded>>,
        answer: impl FnMut(&str, &str, &Value) -> (u16, Value) + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || serve(listener.accept().unwrap().0, answer));
        Self { recorded, api: Api::connect(&socket).unwrap(), dir }
    }

    fn running() -> Self {
        let mut vmm = Self::start();
        CloudHypervisor.boot(&mut vmm.api, &machine()).unwrap();
        vmm
    }

    fn paused() -> Self {
        let mut vmm = Self::running();
        CloudHypervisor.pause(&mut vmm.api).unwrap();
        vmm
    }

    /// Restored on demand, paused, its memory on its way.
    fn lazy() -> Self {
        let mut vmm = Self::start();
        let (load, root) = vmm.to_load(true);
        CloudHypervisor.load(&mut vmm.api, &load, &root).unwrap();
        vmm
    }

    /// The next request that it answers fails with this step of the recording.
    fn order(&self, step: &str) {
        self.recorded.lock().unwrap().order = Some(step.into());
    }

    fn state(&mut self) -> State {
        CloudHypervisor.state(&mut self.api).unwrap()
    }

    /// A snapshot's directory, and what stands for the VMM's root.
    fn to_load(&self, lazy: bool) -> (Load, PathBuf) {
        let snapshot = self.dir.path().join("gen-1");
        fs::create_dir(&snapshot).unwrap();
        write_snapshot(&snapshot, &self.recorded.lock().unwrap().config());
        let root = self.dir.path().join("root");
        fs::create_dir_all(root.join("tmp/wrenn-vm")).unwrap();
        let dir = || Handed::dir(&snapshot).unwrap();
        let load = Load {
            dir: dir(),
            memory: (dir(), MEMORY.into()),
            served: false,
            lazy,
            tap: Some("tap0".into()),
        };
        (load, root)
    }

    /// Where to dump to, with what Cloud Hypervisor will have written there.
    fn to_dump(&self, config: &Value) -> (Dump, PathBuf) {
        let path = self.dir.path().join("gen-2");
        fs::create_dir(&path).unwrap();
        write_snapshot(&path, config);
        (Dump { dir: Handed::dir(&path).unwrap(), diff: false }, path)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.recorded.lock().unwrap().unknown, [Value::Null; 0], "not in the recording");
        }
    }
}

/// The files of a snapshot with one page of memory.
fn write_snapshot(dir: &Path, config: &Value) {
    let manager = json!({"memory_ranges": {"data": [{"gpa": 0, "length": 4096}]}}).to_string();
    let state =
        json!({"snapshots": {"memory-manager": {"snapshots": {}, "snapshot_data": {"state": manager}}}});
    fs::write(dir.join(CONFIG), config.to_string()).unwrap();
    fs::write(dir.join(STATE), state.to_string()).unwrap();
    fs::write(dir.join(MEMORY), [7; 4096]).unwrap();
}

/// The machine of the recording.
fn machine() -> Machine {
    let id = Id::new("sb-1").unwrap();
    let net = Net {
        netns: "/run/netns/wrenn-ns-1".into(),
        tap: "tap0".into(),
        guest_mac: "02:fc:00:00:00:05".into(),
        guest_ip: "169.254.0.21".parse().unwrap(),
        tap_ip: "169.254.0.22".parse().unwrap(),
    };
    Machine {
        vcpus: 1,
        memory_mib: 96,
        kernel: "/tmp/wrenn-vm/vmlinux".into(),
        initrd: Some("/tmp/wrenn-vm/initrd".into()),
        cmdline: crate::cmdline::default(&id, Some(&net)),
        disk: "/tmp/wrenn-vm/rootfs.ext4".into(),
        net: Some(net),
    }
}

fn refused<T>(done: Result<T, Error>) -> (Kind, String, String) {
    let error = wire::Error::from(done.err().expect("an error"));
    (error.kind, error.code, error.message)
}

#[test]
fn a_life_from_boot_to_snapshot_is_the_recorded_one() {
    let driver = CloudHypervisor;
    let mut vmm = Vmm::running();
    assert_eq!(driver.version(&mut vmm.api).unwrap(), "53.0.0");
    assert_eq!(vmm.state(), State::Running);
    assert_eq!(driver.balloon(&mut vmm.api).unwrap(), (0, 0));
    driver.set_balloon(&mut vmm.api, 16).unwrap();
    assert_eq!(driver.balloon(&mut vmm.api).unwrap(), (16, 16));
    driver.set_balloon(&mut vmm.api, 0).unwrap();
    driver.resume(&mut vmm.api).unwrap();
    driver.pause(&mut vmm.api).unwrap();
    assert_eq!(vmm.state(), State::Paused);

    let config = vmm.recorded.lock().unwrap().config();
    let (dump, path) = vmm.to_dump(&config);
    driver.snapshot(&mut vmm.api, &dump).unwrap();
    assert_eq!(fs::read(path.join(RAW)).unwrap(), [7; 4096]);
    assert!(!path.join(MEMORY).exists(), "the memory has the name that pack knows");
    driver.resume(&mut vmm.api).unwrap();
    assert_eq!(vmm.state(), State::Running);
}

#[test]
fn machines_without_a_network_and_without_an_initramfs_are_the_recorded_ones() {
    let mut without = machine();
    without.net = None;
    without.cmdline = crate::cmdline::default(&Id::new("sb-1").unwrap(), None);
    CloudHypervisor.boot(&mut Vmm::start().api, &without).unwrap();
    without.initrd = None;
    CloudHypervisor.boot(&mut Vmm::start().api, &without).unwrap();
}

#[test]
fn a_restore_reads_our_copy_of_the_machine_and_the_snapshots_own_state_and_memory() {
    for (lazy, memory) in [(true, "paused, lazy"), (false, "paused")] {
        let mut vmm = Vmm::start();
        let (load, root) = vmm.to_load(lazy);
        assert_eq!(
            CloudHypervisor.disk_place(load.dir.path()).unwrap(),
            Path::new("/tmp/wrenn-vm/rootfs.ext4")
        );
        CloudHypervisor.examine(&load).unwrap();
        CloudHypervisor.load(&mut vmm.api, &load, &root).unwrap();
        assert_eq!(vmm.recorded.lock().unwrap().state, memory);
        assert_eq!(vmm.state(), State::Paused);
        let seen = root.join("tmp/wrenn-vm/restore");
        let read = |name| fs::read(seen.join(name)).unwrap();
        let config: Value = serde_json::from_slice(&read(CONFIG)).unwrap();
        assert!(config["payload"].get("initramfs").is_none(), "{config}");
        assert_eq!(read(MEMORY), [7; 4096]);
        assert_eq!(read(STATE), fs::read(load.dir.path().join(STATE)).unwrap());
    }
}

#[test]
fn a_restored_vm_runs_and_stops_while_its_memory_arrives_and_is_not_dumped_before_it_has() {
    let driver = CloudHypervisor;
    let mut vmm = Vmm::lazy();
    let config = vmm.recorded.lock().unwrap().config();
    let (dump, path) = vmm.to_dump(&config);
    let lazy = |vmm: &mut Vmm| refused(driver.snapshot(&mut vmm.api, &dump));
    assert_eq!((lazy(&mut vmm).0, lazy(&mut vmm).1.as_str()), (Kind::Conflict, "launch.lazy"));
    driver.resume(&mut vmm.api).unwrap();
    assert_eq!(lazy(&mut vmm).1, "launch.lazy");
    driver.set_balloon(&mut vmm.api, 0).unwrap();
    driver.pause(&mut vmm.api).unwrap();
    assert_eq!(vmm.state(), State::Paused);
    assert!(!path.join(RAW).exists());
    vmm.recorded.lock().unwrap().complete();
    driver.snapshot(&mut vmm.api, &dump).unwrap();
    assert!(path.join(RAW).exists());
}

/// (the step of the recording that answers, what is done, kind, code, what the message holds)
#[test]
fn refusals_are_told_in_cloud_hypervisors_words() {
    type Do = fn(&mut Vmm) -> Result<(), Error>;
    let boot: Do = |vmm| CloudHypervisor.boot(&mut vmm.api, &machine());
    let load: Do = |vmm| {
        let (load, root) = vmm.to_load(true);
        CloudHypervisor.load(&mut vmm.api, &load, &root)
    };
    let dump: Do = |vmm| {
        let (dump, _) = vmm.to_dump(&json!({}));
        CloudHypervisor.snapshot(&mut vmm.api, &dump)
    };
    let pause: Do = |vmm| CloudHypervisor.pause(&mut vmm.api);
    let state: Do = |vmm| CloudHypervisor.state(&mut vmm.api).map(drop);
    type Start = fn() -> Vmm;
    let table: &[(&str, Start, Do, Kind, &str, &str)] = &[
        (
            "boot, a kernel that is none",
            Vmm::start,
            boot,
            Kind::Peer,
            "launch.api",
            "boot (500): The VM could not boot: Cannot load the kernel into memory: ",
        ),
        (
            "boot, a busy tap",
            Vmm::start,
            boot,
            Kind::Peer,
            "launch.api",
            "Device or resource busy (os error 16)",
        ),
        (
            "boot, a locked disk",
            Vmm::start,
            boot,
            Kind::Peer,
            "launch.api",
            "/tmp/wrenn-vm/rootfs.ext4: The file is already locked",
        ),
        (
            "boot twice",
            Vmm::running,
            |vmm| put(&mut vmm.api, "boot", "vm.boot", None, SHORT),
            Kind::Peer,
            "launch.api",
            "VM is already created",
        ),
        (
            "restore, a busy tap",
            Vmm::start,
            load,
            Kind::Peer,
            "launch.api",
            "load the snapshot (500): The VM could not be restored: ",
        ),
        (
            "restore, no such directory",
            Vmm::start,
            load,
            Kind::Peer,
            "launch.api",
            "Destination is not a directory",
        ),
        (
            "snapshot, a full disk",
            Vmm::paused,
            dump,
            Kind::Exhausted,
            "launch.no_space",
            "No space left on device (os error 28)",
        ),
        ("snapshot over another", Vmm::paused, dump, Kind::Peer, "launch.api", "File exists (os error 17)"),
        (
            "snapshot while running",
            Vmm::running,
            dump,
            Kind::Peer,
            "launch.api",
            "Trying to snapshot while VM is running",
        ),
        ("pause before create", Vmm::start, pause, Kind::Peer, "launch.api", "VM is not running"),
        (
            "state",
            Vmm::start,
            state,
            Kind::Peer,
            "launch.api",
            "say its state (404): The VM info is not available: VM is not created",
        ),
    ];
    for (step, start, act, kind, code, words) in table {
        let mut vmm = start();
        vmm.order(step);
        let (is_kind, is_code, message) = refused(act(&mut vmm));
        assert_eq!((is_kind, is_code.as_str()), (*kind, *code), "{step}: {message}");
        assert!(message.contains(words), "{step}: {message}");
        assert!(!message.contains("Error from API"), "{step}: {message}");
    }
}

#[test]
fn a_balloon_larger_than_the_guest_is_refused_before_cloud_hypervisor_takes_it() {
    let mut vmm = Vmm::running();
    let (kind, code, message) = refused(CloudHypervisor.set_balloon(&mut vmm.api, 97));
    assert_eq!((kind, code.as_str()), (Kind::Invalid, "launch.balloon"));
    assert!(message.contains("97") && message.contains("96"), "{message}");
}

#[test]
fn a_dump_whose_files_are_not_whole_is_corrupt_though_cloud_hypervisor_said_nothing() {
    let damage: [fn(&Path); 3] = [
        |dir| fs::write(dir.join(STATE), r#"{"snapshots":{"#).unwrap(),
        |dir| fs::write(dir.join(CONFIG), "").unwrap(),
        |dir| fs::write(dir.join(MEMORY), [7; 4095]).unwrap(),
    ];
    for damage in damage {
        let mut vmm = Vmm::paused();
        let config = vmm.recorded.lock().unwrap().config();
        let (dump, path) = vmm.to_dump(&config);
        damage(&path);
        assert_eq!(refused(CloudHypervisor.snapshot(&mut vmm.api, &dump)).1, "launch.corrupt");
        assert!(!path.join(RAW).exists());
    }
}

/// Not recorded: a disk that does not come to rest within Cloud Hypervisor's own 30 s. From its source: vCPUs stand still,
/// the state says Running, a resume is refused.
#[test]
fn a_pause_that_came_half_way_is_taken_back() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let answer = {
        let (log, mut stuck) = (log.clone(), true);
        let mut recorded = Recorded::new();
        recorded.state = "running".into();
        move |method: &str, path: &str, body: &Value| {
            log.lock().unwrap().push(path.rsplit('.').next().unwrap_or_default().to_owned());
            if path.ends_with("vm.pause") && std::mem::take(&mut stuck) {
                return (
                    500,
                    json!([
                        "Error from API",
                        "The VM could not be paused",
                        "timed out draining block requests"
                    ]),
                );
            }
            recorded.answer(method, path, body)
        }
    };
    let mut vmm = Vmm::answering(Arc::new(Mutex::new(Recorded::new())), answer);
    let (kind, code, message) = refused(CloudHypervisor.pause(&mut vmm.api));
    assert_eq!((kind, code.as_str()), (Kind::Peer, "launch.api"));
    assert!(message.contains("timed out draining"), "{message}");
    assert_eq!(*log.lock().unwrap(), ["pause", "pause", "info", "resume"]);
    assert_eq!(vmm.state(), State::Running);
}

#[test]
fn a_version_that_cannot_do_it_is_named_before_anything_is_asked_of_it() {
    for version in ["52.0.0", "9.0.0", "unknown", ""] {
        let answer = move |_: &str, path: &str, _: &Value| {
            assert_eq!(path, "/api/v1/vmm.ping", "nothing else is asked of it");
            (200, json!({"build_version": "v0", "version": version, "pid": 1, "features": []}))
        };
        let mut vmm = Vmm::answering(Arc::new(Mutex::new(Recorded::new())), answer);
        let (load, root) = vmm.to_load(true);
        for done in
            [CloudHypervisor.boot(&mut vmm.api, &machine()), CloudHypervisor.load(&mut vmm.api, &load, &root)]
        {
            let (kind, code, message) = refused(done);
            assert_eq!((kind, code.as_str()), (Kind::Unsupported, "launch.version"));
            assert!(message.contains(version) && message.contains("on demand"), "{message}");
        }
    }
}

#[test]
fn a_request_that_was_never_recorded_is_found_out() {
    let mut vmm = Vmm::start();
    let mut other = machine();
    other.vcpus = 2;
    let (_, code, message) = refused(CloudHypervisor.boot(&mut vmm.api, &other));
    assert_eq!(code, "launch.api");
    assert!(message.contains("not in the recording"), "{message}");
    let unknown = std::mem::take(&mut vmm.recorded.lock().unwrap().unknown);
    assert_eq!((unknown.len(), &unknown[0][1]), (1, &json!("/api/v1/vm.create")));
}
