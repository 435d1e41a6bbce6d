//! What Cloud Hypervisor has saved of a VM: `config.json`, the machine with all its defaults, and `state.json`, of which
//! only the extent of the memory matters here.

use std::fs;
use std::path::{Path, PathBuf};

use wire::{Value, json};

use super::{CONFIG, STATE, serial};
use crate::{Error, WORKDIR};

/// The two files of one snapshot.
#[derive(Debug)]
pub(super) struct Saved {
    config_path: PathBuf,
    config: Value,
    memory_bytes: u64,
}

impl Saved {
    /// Reads both.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when one is no JSON or lacks what is needed.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let (config_path, state_path) = (dir.join(CONFIG), dir.join(STATE));
        let config = json_file(&config_path)?;
        let memory_bytes = memory_bytes(&json_file(&state_path)?).ok_or_else(|| Error::Corrupt {
            path: state_path,
            why: "does not tell the extent of the memory".into(),
        })?;
        Ok(Self { config_path, config, memory_bytes })
    }

    /// Checks that a file can be all of the memory: the ranges one after the other, with nothing before, between or
    /// behind them.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it has another length.
    pub fn check_memory(&self, path: &Path) -> Result<(), Error> {
        let bytes = fs::metadata(path).map_err(Error::io("examine", path))?.len();
        if bytes == self.memory_bytes {
            return Ok(());
        }
        let why = format!("holds {bytes} bytes; the memory of this snapshot has {}", self.memory_bytes);
        Err(Error::Corrupt { path: path.into(), why })
    }

    /// Where the root disk has to be.
    ///
    /// # Errors
    /// [`Error::Machine`] when there is not just one disk.
    pub fn disk(&self) -> Result<&str, Error> {
        match self.devices("disks") {
            [disk] => disk.get("path").and_then(Value::as_str).ok_or_else(|| Error::Corrupt {
                path: self.config_path.clone(),
                why: "names no file for the disk".into(),
            }),
            _ => Err(self.not_ours("the machine has not one disk, which is what Wrenn restores")),
        }
    }

    /// The machine to restore: the one that was saved, on this sandbox's tap, its consoles where ours are.
    ///
    /// # Errors
    /// [`Error::Machine`] when it cannot have its network interfaces here.
    pub fn config(&self, tap: Option<&str>) -> Result<Value, Error> {
        let mut config = self.config.clone();
        match (self.devices("net"), tap) {
            ([], _) => {}
            ([_], Some(tap)) => config["net"][0]["tap"] = tap.into(),
            // It would make a tap, wherever it is.
            ([_], None) => {
                return Err(
                    self.not_ours("the machine has a network interface, and the document no section net")
                );
            }
            _ => return Err(self.not_ours("the machine has more than one network interface")),
        }
        if let Some(payload) = config.get_mut("payload").and_then(Value::as_object_mut) {
            // Opened at a restore though never read.
            payload.shift_remove("initramfs");
            // Not opened before the guest resets: that is to find nothing, and end the VMM.
            payload.insert("kernel".into(), json!(Path::new(WORKDIR).join("vmlinux")));
        }
        let mode = |config: &Value, name: &str| {
            config.get(name)?.get("mode")?.as_str().filter(|mode| *mode != "Off").map(str::to_owned)
        };
        if mode(&config, "serial").is_some() {
            config["serial"] = serial();
        }
        for name in ["console", "debug_console"] {
            if mode(&config, name).is_some() {
                config[name]["mode"] = "Null".into();
            }
        }
        Ok(config)
    }

    fn devices(&self, kind: &str) -> &[Value] {
        self.config.get(kind).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn not_ours(&self, why: &'static str) -> Error {
        Error::Machine { path: self.config_path.clone(), why }
    }
}

/// The sum of the memory manager's ranges. Its state is a string of JSON within the JSON.
fn memory_bytes(state: &Value) -> Option<u64> {
    let manager = state.get("snapshots")?.get("memory-manager")?.get("snapshot_data")?.get("state")?;
    let manager: Value = serde_json::from_str(manager.as_str()?).ok()?;
    let ranges = manager.get("memory_ranges")?.get("data")?.as_array()?;
    ranges.iter().try_fold(0u64, |sum, range| sum.checked_add(range.get("length")?.as_u64()?))
}

fn json_file(path: &Path) -> Result<Value, Error> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::Corrupt { path: path.into(), why: format!("is not whole JSON: {error}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A snapshot's directory with these contents.
    fn snapshot(config: &Value, ranges: &[(u64, u64)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let ranges: Vec<_> =
            ranges.iter().map(|(gpa, length)| json!({"gpa": gpa, "length": length})).collect();
        let manager = json!({"memory_ranges": {"data": ranges}}).to_string();
        let state = json!({"snapshots": {"memory-manager": {"snapshot_data": {"state": manager}}}});
        fs::write(dir.path().join(CONFIG), config.to_string()).unwrap();
        fs::write(dir.path().join(STATE), state.to_string()).unwrap();
        dir
    }

    fn machine() -> Value {
        json!({
            "memory": {"size": 4096, "shared": true},
            "payload": {"kernel": "/elsewhere/vmlinux", "initramfs": "/tmp/x/initrd", "cmdline": "quiet"},
            "disks": [{"id": "_disk0", "path": "/tmp/x/rootfs.ext4", "serial": "s"}],
            "net": [{"id": "_net1", "tap": "tap-of-old", "mac": "02:00:00:00:00:01", "host_mac": "02:00:00:00:00:02"}],
            "serial": {"mode": "File", "file": "/tmp/x/log"},
            "console": {"mode": "Tty", "iommu": true},
            "unheard-of": [1, 18446744073709551615u64],
        })
    }

    #[test]
    fn the_machine_is_what_it_was_but_for_its_tap_its_consoles_and_what_a_restore_must_not_open() {
        let dir = snapshot(&machine(), &[(0, 4096)]);
        let saved = Saved::read(dir.path()).unwrap();
        assert_eq!(saved.disk().unwrap(), "/tmp/x/rootfs.ext4");
        let mut wanted = machine();
        wanted["payload"] = json!({"kernel": "/tmp/wrenn-vm/vmlinux", "cmdline": "quiet"});
        wanted["net"][0]["tap"] = json!("tap0");
        wanted["serial"] = json!({"mode": "Socket", "socket": "/tmp/wrenn-vm/run/console.sock"});
        wanted["console"]["mode"] = json!("Null");
        assert_eq!(saved.config(Some("tap0")).unwrap(), wanted);
    }

    #[test]
    fn consoles_that_are_off_stay_off_and_what_is_absent_stays_absent() {
        let mut off = machine();
        off["net"] = Value::Null;
        for name in ["serial", "console", "debug_console"] {
            off[name] = json!({"mode": "Off"});
        }
        off["payload"] = json!({"kernel": "/tmp/wrenn-vm/vmlinux"});
        let dir = snapshot(&off, &[(0, 4096)]);
        for tap in [None, Some("tap0")] {
            assert_eq!(Saved::read(dir.path()).unwrap().config(tap).unwrap(), off);
        }
    }

    #[test]
    fn a_machine_that_would_reach_for_what_is_not_its_own_is_refused() {
        let refused = |machine: &Value, tap| {
            let saved = Saved::read(snapshot(machine, &[]).path()).unwrap();
            wire::Error::from(saved.disk().map(drop).and(saved.config(tap).map(drop)).unwrap_err())
        };
        let with = |name: &str, value: Value| {
            let mut machine = machine();
            machine[name] = value;
            machine
        };
        let two = json!([{"path": "/a", "tap": "a"}, {"path": "/b", "tap": "b"}]);
        for (machine, tap, named) in [
            (with("disks", json!([])), Some("tap0"), "one disk"),
            (with("disks", two.clone()), Some("tap0"), "one disk"),
            (with("net", two), Some("tap0"), "more than one network interface"),
            (machine(), None, "no section net"),
        ] {
            let error = refused(&machine, tap);
            assert_eq!((error.kind, error.code.as_str()), (wire::Kind::Invalid, "launch.machine"));
            assert!(error.message.contains(named), "{}", error.message);
        }
        let error = refused(&with("disks", json!([{"id": "x"}])), Some("tap0"));
        assert_eq!((error.kind, error.code.as_str()), (wire::Kind::Corrupt, "launch.corrupt"));
    }

    #[test]
    fn memory_of_any_other_length_than_its_ranges_is_corrupt() {
        let dir = snapshot(&machine(), &[(0, 3 << 20), (4 << 30, 1 << 20)]);
        let saved = Saved::read(dir.path()).unwrap();
        let memory = dir.path().join("memory-ranges");
        let with = |bytes| {
            fs::File::create(&memory).unwrap().set_len(bytes).unwrap();
            saved.check_memory(&memory).map_err(wire::Error::from)
        };
        assert!(with(4 << 20).is_ok());
        for bytes in [0, (4 << 20) - 1, (4 << 20) + 1] {
            let error = with(bytes).unwrap_err();
            assert_eq!((error.kind, error.code.as_str()), (wire::Kind::Corrupt, "launch.corrupt"));
            assert!(error.message.contains("memory-ranges") && error.message.contains("4194304"), "{error}");
        }
        fs::remove_file(&memory).unwrap();
        assert_eq!(wire::Error::from(saved.check_memory(&memory).unwrap_err()).kind, wire::Kind::NotFound);
    }

    #[test]
    fn a_file_cut_short_is_corrupt_wherever_it_is_cut() {
        for name in [CONFIG, STATE] {
            let dir = snapshot(&machine(), &[(0, 4096)]);
            let whole = fs::read(dir.path().join(name)).unwrap();
            for length in 0..whole.len() {
                fs::write(dir.path().join(name), &whole[..length]).unwrap();
                let error = wire::Error::from(Saved::read(dir.path()).unwrap_err());
                assert_eq!((error.kind, error.code.as_str()), (wire::Kind::Corrupt, "launch.corrupt"));
                assert!(error.message.contains(name), "{error}");
            }
        }
        for state in ["{}", "[]", r#"{"snapshots":{"memory-manager":{"snapshot_data":{"state":"{"}}}}"#] {
            let dir = snapshot(&machine(), &[]);
            fs::write(dir.path().join(STATE), state).unwrap();
            assert!(matches!(Saved::read(dir.path()), Err(Error::Corrupt { .. })), "{state}");
        }
        // Ranges whose sum no file can have.
        let dir = snapshot(&machine(), &[(0, u64::MAX), (4096, 1)]);
        assert!(matches!(Saved::read(dir.path()), Err(Error::Corrupt { .. })));
    }
}
