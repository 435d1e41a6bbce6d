//! Cloud Hypervisor 53.

mod saved;
#[cfg(test)]
mod tests;
mod workdir;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wire::{Id, Value, json};

use super::{Abilities, Driver, Dump, Load, Place, Program, RAW};
use crate::api::{Api, Request};
use crate::machine::Machine;
use crate::runfiles::{RUN, RunFiles};
use crate::section::State;
use crate::{Error, WORKDIR};
use saved::Saved;

/// A call that only configures answers within milliseconds; under emulation, within seconds.
const SHORT: Duration = Duration::from_secs(30);
/// A boot reads the kernel, a load the state. Both share the host with all that start beside them.
const START: Duration = Duration::from_secs(120);
/// A pause waits up to 30 s for the disk, and for its vCPUs without a limit of its own.
const PAUSE: Duration = Duration::from_secs(60);
/// A dump writes all of memory, however slow the disk; so does a load read it that is not lazy.
const DUMP: Duration = Duration::from_secs(900);

/// The first version whose restored memory arrives on demand and then completes itself, and which refuses a snapshot
/// before. Older ones ignore what they do not know: version 51 and older would read all memory at once, 52 would write
/// snapshots with holes.
const LEAST: u64 = 53;

/// The directory that the VMM restores from, in its working directory.
const RESTORE: &str = "restore";

/// Its files' names in a snapshot's directory, which are fixed.
const CONFIG: &str = "config.json";
const STATE: &str = "state.json";
const MEMORY: &str = "memory-ranges";

pub(crate) struct CloudHypervisor;

static PROGRAM: Program = Program {
    name: "cloud-hypervisor",
    place: Place::Variable("WRENN_CLOUD_HYPERVISOR"),
    hint: "releases: https://github.com/cloud-hypervisor/cloud-hypervisor/releases",
};

impl Driver for CloudHypervisor {
    fn name(&self) -> &'static str {
        PROGRAM.name
    }

    fn program(&self) -> &Program {
        &PROGRAM
    }

    fn arguments(&self, _: &Id, socket: &Path) -> Vec<String> {
        // Its log goes to stderr: warnings. At the next level it would hold every request.
        vec!["--api-socket".into(), format!("path={}", socket.display())]
    }

    fn abilities(&self) -> Abilities {
        Abilities { diffs: false, page_server: false }
    }

    fn state_files(&self) -> &'static [&'static str] {
        &[CONFIG, STATE]
    }

    fn memory_file(&self) -> &'static str {
        MEMORY
    }

    fn disk_place(&self, dir: &Path) -> Result<PathBuf, Error> {
        let saved = Saved::read(dir)?;
        let disk = saved.disk()?;
        workdir::check(dir, disk)?;
        Ok(disk.into())
    }

    fn examine(&self, load: &Load) -> Result<(), Error> {
        let saved = Saved::read(load.dir.path())?;
        // A file cut short would be read as zeros, or end the VMM at its first missing page.
        saved.check_memory(&load.memory.0.path().join(&load.memory.1))?;
        saved.config(load.tap.as_deref()).map(drop)
    }

    fn version(&self, api: &mut Api) -> Result<String, Error> {
        let answer = get(api, "say its version", "vmm.ping")?;
        Ok(answer.get("version").and_then(Value::as_str).unwrap_or("unknown").to_owned())
    }

    fn boot(&self, api: &mut Api, machine: &Machine) -> Result<(), Error> {
        self.check_version(api)?;
        put(api, "take the machine", "vm.create", Some(configuration(machine)), SHORT)?;
        put(api, "boot", "vm.boot", None, START)
    }

    fn load(&self, api: &mut Api, load: &Load, root: &Path) -> Result<(), Error> {
        self.check_version(api)?;
        // State and memory must lie in one directory, under these names. Ours is in the VMM's own tmpfs: it ends with it.
        let dir = Path::new(WORKDIR).join(RESTORE);
        let ours = root.join(dir.strip_prefix("/").unwrap_or(&dir));
        let config = Saved::read(load.dir.path())?.config(load.tap.as_deref())?;
        fs::create_dir(&ours).map_err(Error::io("make", &ours))?;
        fs::write(ours.join(CONFIG), config.to_string()).map_err(Error::io("write", ours.join(CONFIG)))?;
        for (name, target) in [(STATE, load.dir.file(STATE)), (MEMORY, load.memory.0.file(&load.memory.1))] {
            symlink(target, ours.join(name)).map_err(Error::io("link", ours.join(name)))?;
        }
        let (mode, limit) = if load.lazy { ("OnDemand", START) } else { ("Copy", DUMP) };
        let body = json!({"source_url": url(&dir), "memory_restore_mode": mode});
        put(api, "load the snapshot", "vm.restore", Some(body), limit)
    }

    fn state(&self, api: &mut Api) -> Result<State, Error> {
        let what = "say its state";
        match info(api, what)?.get("state").and_then(Value::as_str) {
            Some("Running") => Ok(State::Running),
            Some("Paused") => Ok(State::Paused),
            other => Err(Error::Protocol { what: what.into(), why: format!("its state is {other:?}") }),
        }
    }

    fn pause(&self, api: &mut Api) -> Result<(), Error> {
        let mut pause = || put(api, "pause", "vm.pause", None, PAUSE);
        let done = pause();
        // Its disk busy for too long, the VM says that it runs while its vCPUs stand still, and cannot be resumed: only
        // paused once more and then resumed.
        if matches!(done, Err(Error::Api { .. })) && pause().is_ok() {
            self.resume(api)?;
        }
        done
    }

    fn resume(&self, api: &mut Api) -> Result<(), Error> {
        match self.state(api)? {
            State::Running => Ok(()),
            State::Paused => put(api, "resume", "vm.resume", None, PAUSE),
        }
    }

    fn snapshot(&self, api: &mut Api, dump: &Dump) -> Result<(), Error> {
        let body = json!({"destination_url": url(&dump.dir.itself())});
        // Not interruptible: a VMM left alone with it would go on writing to a path that means something else by then.
        let request = Request {
            interruptible: false,
            ..Request::new("write the snapshot", "PUT", "/api/v1/vm.snapshot", Some(body), DUMP)
        };
        api.call(request).map_err(|error| match error {
            Error::Api { fault, .. } if fault.contains("memory restore is still in progress") => Error::Lazy,
            other => other,
        })?;
        // Two of the three are written without a look at how much of them was, and none is synced.
        let (memory, raw) = (dump.dir.path().join(MEMORY), dump.dir.path().join(RAW));
        Saved::read(dump.dir.path())?.check_memory(&memory)?;
        File::open(&memory).and_then(|file| file.sync_all()).map_err(Error::io("sync", &memory))?;
        fs::rename(&memory, &raw).map_err(Error::io("rename", memory))
    }

    fn set_balloon(&self, api: &mut Api, mib: u64) -> Result<(), Error> {
        let what = "set the balloon";
        // It takes any size.
        let memory_mib = number(&info(api, what)?, what, &["config", "memory", "size"])? >> 20;
        if mib > memory_mib {
            return Err(Error::Balloon { mib, memory_mib });
        }
        put(api, what, "vm.resize", Some(json!({"desired_balloon": mib << 20})), SHORT)
    }

    fn balloon(&self, api: &mut Api) -> Result<(u64, u64), Error> {
        let what = "say the balloon's size";
        let info = info(api, what)?;
        let memory = number(&info, what, &["config", "memory", "size"])?;
        let target = number(&info, what, &["config", "balloon", "size"])?;
        let actual = memory.saturating_sub(number(&info, what, &["memory_actual_size"])?);
        Ok((target >> 20, actual >> 20))
    }
}

impl CloudHypervisor {
    fn check_version(&self, api: &mut Api) -> Result<(), Error> {
        let version = self.version(api)?;
        match version.split('.').next().and_then(|major| major.parse::<u64>().ok()) {
            Some(major) if major >= LEAST => Ok(()),
            _ => Err(Error::Version {
                vmm: self.name(),
                version,
                lacks: "does not complete memory that was restored on demand",
                least: LEAST,
            }),
        }
    }
}

/// The machine in Cloud Hypervisor's words. What is left out has its defaults.
fn configuration(machine: &Machine) -> Value {
    let mut payload = json!({"kernel": machine.kernel, "cmdline": machine.cmdline});
    if let Some(initrd) = &machine.initrd {
        payload["initramfs"] = json!(initrd);
    }
    let mut config = json!({
        // Nested is on by default: guests would have virtualisation of their own.
        "cpus": {"boot_vcpus": machine.vcpus, "max_vcpus": machine.vcpus, "nested": false},
        // Shared: of a memfd it knows the holes, and leaves them out of a snapshot.
        "memory": {"size": machine.memory_mib << 20, "shared": true},
        "payload": payload,
        // A type that is guessed keeps the guest from its first sector; a serial number that is made up changes with the
        // host's device.
        "disks": [{"id": "rootfs", "path": machine.disk, "image_type": "Raw", "serial": "rootfs"}],
        "balloon": {"id": "balloon", "size": 0, "deflate_on_oom": true, "free_page_reporting": true},
        "rng": {"id": "rng", "src": "/dev/urandom"},
        "serial": serial(),
        "console": {"mode": "Off"},
    });
    if let Some(net) = &machine.net {
        config["net"] = json!([{"id": "eth0", "tap": net.tap, "mac": net.guest_mac}]);
    }
    config
}

/// The guest's console. On a socket Cloud Hypervisor keeps the last MiB for whoever connects; to a file or a terminal it
/// writes without a bound, and where it cannot, the guest's writers wait for ever.
fn serial() -> Value {
    json!({"mode": "Socket", "socket": Path::new(WORKDIR).join(RUN).join(RunFiles::CONSOLE_SOCKET)})
}

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn info(api: &mut Api, what: &str) -> Result<Value, Error> {
    get(api, what, "vm.info")
}

fn get(api: &mut Api, what: &str, action: &str) -> Result<Value, Error> {
    api.call(Request::new(what, "GET", &format!("/api/v1/{action}"), None, SHORT))
}

fn put(api: &mut Api, what: &str, action: &str, body: Option<Value>, limit: Duration) -> Result<(), Error> {
    api.call(Request::new(what, "PUT", &format!("/api/v1/{action}"), body, limit)).map(drop)
}

fn number(value: &Value, what: &str, path: &[&str]) -> Result<u64, Error> {
    let found = path.iter().try_fold(value, |value, name| value.get(name)).and_then(Value::as_u64);
    found.ok_or_else(|| Error::Protocol { what: what.into(), why: format!("no {}", path.join(".")) })
}
