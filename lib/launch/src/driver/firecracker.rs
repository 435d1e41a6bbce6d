//! Firecracker 1.16, and what speaks its API: our own wrenn-vmm.

use std::path::Path;
use std::time::Duration;

use wire::{Id, Value, json};

use super::{Abilities, Driver, Dump, Load, Place, Program, RAW};
use crate::Error;
use crate::api::{Api, Request};
use crate::machine::Machine;
use crate::section::State;

/// A call that only configures answers within milliseconds; under emulation, within a second.
const SHORT: Duration = Duration::from_secs(30);
/// A pause waits up to 30 s for each vCPU by itself.
const PAUSE: Duration = Duration::from_secs(60);
/// A load waits for the page server without a limit of its own; a boot reads the kernel. Both share the host with all that
/// start beside them.
const START: Duration = Duration::from_secs(120);
/// A dump writes and syncs all of memory, however slow the disk.
const DUMP: Duration = Duration::from_secs(900);

/// How often the guest tells its memory statistics, seconds. The balloon's size can only be asked for with these on.
const STATISTICS_S: u64 = 5;

/// The guest's console goes to the VMM's log. Without a bound a guest could fill the host's memory with it: this much at
/// once, then this much an hour; the rest is dropped.
const CONSOLE_BURST: u64 = 1 << 20;
const CONSOLE_AN_HOUR: u64 = 64 << 10;

/// A VMM of this API. All that differs is its program, and the name of a state that only it can load.
pub(crate) struct Firecracker {
    program: Program,
    state_files: &'static [&'static str],
}

pub(crate) static FIRECRACKER: Firecracker = Firecracker {
    program: Program {
        name: "firecracker",
        place: Place::Variable("WRENN_FIRECRACKER"),
        hint: "releases: https://github.com/firecracker-microvm/firecracker/releases",
    },
    state_files: &["snapfile"],
};

pub(crate) static WRENN_VMM: Firecracker = Firecracker {
    program: Program {
        name: "wrenn-vmm",
        place: Place::Beside,
        hint: "`cargo build --workspace --bins` makes it",
    },
    state_files: &["wrenn-vmm.state"],
};

impl Driver for Firecracker {
    fn name(&self) -> &'static str {
        self.program.name
    }

    fn program(&self) -> &Program {
        &self.program
    }

    fn arguments(&self, id: &Id, socket: &Path) -> Vec<String> {
        // Its log goes to stdout. At its own level it would hold every request.
        ["--api-sock", &socket.to_string_lossy(), "--id", id.as_str(), "--level", "Warning"]
            .map(str::to_owned)
            .into()
    }

    fn abilities(&self) -> Abilities {
        Abilities { diffs: true, page_server: true }
    }

    fn state_files(&self) -> &'static [&'static str] {
        self.state_files
    }

    fn memory_file(&self) -> &'static str {
        "memfile"
    }

    fn version(&self, api: &mut Api) -> Result<String, Error> {
        let answer = get(api, "say its version", "/version")?;
        Ok(text(&answer, "firecracker_version").unwrap_or("unknown").to_owned())
    }

    fn boot(&self, api: &mut Api, machine: &Machine) -> Result<(), Error> {
        bound_console(api)?;
        put(
            api,
            "take the machine's size",
            "/machine-config",
            json!({"vcpu_count": machine.vcpus, "mem_size_mib": machine.memory_mib, "track_dirty_pages": true}),
        )?;
        let mut boot = json!({"kernel_image_path": machine.kernel, "boot_args": machine.cmdline});
        if let Some(initrd) = &machine.initrd {
            boot["initrd_path"] = json!(initrd);
        }
        put(api, "take the kernel", "/boot-source", boot)?;
        // Writeback: the guest's flush is the host's fsync, so that a full or failing disk is an error in the guest.
        // Not root: the command line says what is root.
        put(
            api,
            "take the disk",
            "/drives/rootfs",
            json!({"drive_id": "rootfs", "path_on_host": machine.disk, "is_root_device": false,
                   "is_read_only": false, "cache_type": "Writeback"}),
        )?;
        if let Some(net) = &machine.net {
            put(
                api,
                "take the network interface",
                "/network-interfaces/eth0",
                json!({"iface_id": "eth0", "host_dev_name": net.tap, "guest_mac": net.guest_mac}),
            )?;
        }
        put(
            api,
            "take the balloon",
            "/balloon",
            json!({"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": STATISTICS_S}),
        )?;
        put(api, "take the entropy device", "/entropy", json!({}))?;
        let body = Some(json!({"action_type": "InstanceStart"}));
        api.call(Request::new("boot", "PUT", "/actions", body, START)).map(drop)
    }

    fn load(&self, api: &mut Api, load: &Load, _: &Path) -> Result<(), Error> {
        bound_console(api)?;
        let (dir, name) = &load.memory;
        // No clock_realtime: a snapshot without a realtime clock (taken where the host's clock is not the TSC) would
        // fail to load, fatally. The agent's /init sets the clock.
        let body = json!({
            "snapshot_path": load.dir.file(self.state_files[0]),
            "mem_backend": {"backend_type": if load.served { "Uffd" } else { "File" }, "backend_path": dir.file(name)},
            "track_dirty_pages": true,
            "resume_vm": false,
        });
        api.call(Request::new("load the snapshot", "PUT", "/snapshot/load", Some(body), START)).map(drop)
    }

    fn state(&self, api: &mut Api) -> Result<State, Error> {
        let what = "say its state";
        let answer = get(api, what, "/")?;
        match text(&answer, "state") {
            Some("Running") => Ok(State::Running),
            Some("Paused") => Ok(State::Paused),
            other => Err(Error::Protocol { what: what.into(), why: format!("its state is {other:?}") }),
        }
    }

    fn pause(&self, api: &mut Api) -> Result<(), Error> {
        let body = Some(json!({"state": "Paused"}));
        api.call(Request::new("pause", "PATCH", "/vm", body, PAUSE)).map(drop)
    }

    fn resume(&self, api: &mut Api) -> Result<(), Error> {
        let body = Some(json!({"state": "Resumed"}));
        api.call(Request::new("resume", "PATCH", "/vm", body, PAUSE)).map(drop)
    }

    fn snapshot(&self, api: &mut Api, dump: &Dump) -> Result<(), Error> {
        let body = json!({
            "snapshot_type": if dump.diff { "Diff" } else { "Full" },
            "snapshot_path": dump.dir.file(self.state_files[0]),
            "mem_file_path": dump.dir.file(RAW),
        });
        // Not interruptible: a VMM left alone with it would go on writing to paths that mean something else by then.
        let request = Request {
            interruptible: false,
            ..Request::new("write the snapshot", "PUT", "/snapshot/create", Some(body), DUMP)
        };
        api.call(request).map(drop)
    }

    fn set_balloon(&self, api: &mut Api, mib: u64) -> Result<(), Error> {
        let body = Some(json!({"amount_mib": mib}));
        api.call(Request::new("set the balloon", "PATCH", "/balloon", body, SHORT)).map(drop)
    }

    fn balloon(&self, api: &mut Api) -> Result<(u64, u64), Error> {
        let what = "say the balloon's size";
        let answer = get(api, what, "/balloon/statistics")?;
        let number = |name: &str| {
            answer
                .get(name)
                .and_then(Value::as_u64)
                .ok_or_else(|| Error::Protocol { what: what.into(), why: format!("no {name} in {answer}") })
        };
        Ok((number("target_mib")?, number("actual_mib")?))
    }
}

/// A VMM older than this setting boots and loads all the same, its log unbounded.
fn bound_console(api: &mut Api) -> Result<(), Error> {
    let bucket = json!({"size": CONSOLE_AN_HOUR, "one_time_burst": CONSOLE_BURST, "refill_time": 3_600_000});
    match put(api, "bound the console", "/serial", json!({"rate_limiter": bucket})) {
        Err(error @ Error::Api { .. }) => {
            log::warn!("the guest's console is not bounded: {error}");
            Ok(())
        }
        other => other,
    }
}

fn get(api: &mut Api, what: &str, path: &str) -> Result<Value, Error> {
    api.call(Request::new(what, "GET", path, None, SHORT))
}

fn put(api: &mut Api, what: &str, path: &str, body: Value) -> Result<(), Error> {
    api.call(Request::new(what, "PUT", path, Some(body), SHORT)).map(drop)
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str()
}
