//! Firecracker 1.16, and what speaks its API: our own wrenn-vmm.

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use wire::{Id, Value, json};

use super::{Driver, Dump, Load, Memory, Place, Program};
use crate::Error;
use crate::api::{Api, Request};
use crate::machine::Machine;
use crate::section::State;

/// A call that only configures answers within milliseconds; under emulation, within a second.
const SHORT: Duration = Duration::from_secs(30);
/// A pause waits up to 30 s for each vCPU by itself.
const PAUSE: Duration = Duration::from_secs(60);
/// A load waits for the page server without a limit of its own.
const LOAD: Duration = Duration::from_secs(60);
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
    state_file: &'static str,
}

pub(crate) static FIRECRACKER: Firecracker = Firecracker {
    program: Program {
        name: "firecracker",
        place: Place::Variable("WRENN_FIRECRACKER"),
        hint: "releases: https://github.com/firecracker-microvm/firecracker/releases",
    },
    state_file: "snapfile",
};

pub(crate) static WRENN_VMM: Firecracker = Firecracker {
    program: Program {
        name: "wrenn-vmm",
        place: Place::Beside,
        hint: "`cargo build --workspace --bins` makes it",
    },
    state_file: "wrenn-vmm.state",
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
        put(api, "boot", "/actions", json!({"action_type": "InstanceStart"}))
    }

    fn load(&self, api: &mut Api, load: &Load) -> Result<(), Error> {
        bound_console(api)?;
        let (backend, path) = match &load.memory {
            Memory::Served(socket) => ("Uffd", socket),
            Memory::File(file) => ("File", file),
        };
        // No clock_realtime: a snapshot without a realtime clock (taken where the host's clock is not the TSC) would
        // fail to load, fatally. The agent's /init sets the clock.
        let body = json!({
            "snapshot_path": load.state,
            "mem_backend": {"backend_type": backend, "backend_path": path},
            "track_dirty_pages": true,
            "resume_vm": false,
        });
        call(api, request("load the snapshot", "PUT", "/snapshot/load", Some(body), LOAD)).map(drop)
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
        call(api, request("pause", "PATCH", "/vm", body, PAUSE)).map(drop)
    }

    fn resume(&self, api: &mut Api) -> Result<(), Error> {
        let body = Some(json!({"state": "Resumed"}));
        call(api, request("resume", "PATCH", "/vm", body, PAUSE)).map(drop)
    }

    fn snapshot(&self, api: &mut Api, dump: &Dump) -> Result<(), Error> {
        let body = json!({
            "snapshot_type": if dump.diff { "Diff" } else { "Full" },
            "snapshot_path": dump.state,
            "mem_file_path": dump.memory,
        });
        // Not interruptible: a VMM left alone with it would go on writing to paths that mean something else by then.
        let request = Request {
            interruptible: false,
            ..request("write the snapshot", "PUT", "/snapshot/create", Some(body), DUMP)
        };
        call(api, request).map(drop)
    }

    fn set_balloon(&self, api: &mut Api, mib: u64) -> Result<(), Error> {
        let body = Some(json!({"amount_mib": mib}));
        call(api, request("set the balloon", "PATCH", "/balloon", body, SHORT)).map(drop)
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

    fn state_file(&self) -> &'static str {
        self.state_file
    }

    fn memory_file(&self) -> &'static str {
        "memfile"
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

fn request<'a>(
    what: &'a str,
    method: &'static str,
    path: &'a str,
    body: Option<Value>,
    limit: Duration,
) -> Request<'a> {
    Request { what, method, path, body, limit, interruptible: true }
}

fn get(api: &mut Api, what: &str, path: &str) -> Result<Value, Error> {
    call(api, request(what, "GET", path, None, SHORT))
}

fn put(api: &mut Api, what: &str, path: &str, body: Value) -> Result<(), Error> {
    call(api, request(what, "PUT", path, Some(body), SHORT)).map(drop)
}

/// All of Firecracker's errors are status 400; a full disk can only be told from its words, which hold the errno.
fn call(api: &mut Api, request: Request<'_>) -> Result<Value, Error> {
    api.call(request).map_err(|error| match error {
        Error::Api { what, fault, .. } if is_no_space(&fault) => Error::NoSpace { what, fault },
        other => other,
    })
}

fn is_no_space(fault: &str) -> bool {
    [Errno::ENOSPC, Errno::EDQUOT]
        .iter()
        .any(|errno| fault.contains(&format!("(os error {})", *errno as i32)))
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::is_no_space;

    #[test]
    fn a_full_disk_is_told_from_other_refusals() {
        // As Firecracker 1.16 words it.
        assert!(is_no_space(
            "Create snapshot error: Cannot write memory file: Dumping memory to file failed: \
             No space left on device (os error 28)"
        ));
        assert!(!is_no_space("Cannot open /x: No such file or directory (os error 2)"));
    }
}
