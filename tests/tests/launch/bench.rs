//! Two roots, a fake VMM, and what a boot needs.

use std::fs;
use std::path::{Path, PathBuf};

use wrenn_tests::{Output, Program, Roots, Value, json, kernel, program, skip};

/// Two roots with what a boot needs, all of it under /tmp. What it started is ended with it.
pub struct Bench {
    pub roots: Roots,
}

impl Bench {
    /// `None`, and a report, where these tests cannot run.
    pub fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip::here("needs root, for mount and network namespaces");
            return None;
        }
        if fs::File::options().write(true).open("/dev/kvm").is_err() {
            skip::here("needs a /dev/kvm that can be opened: scripts/lab has one");
            return None;
        }
        let roots = Roots::new();
        for name in ["vmlinux", "initrd", "disk"] {
            fs::write(roots.dir().join(name), format!("this is {name}")).unwrap();
        }
        fs::create_dir_all(roots.run().join("sb-1")).unwrap();
        Some(Self { roots })
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.roots.dir().join(name)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.roots.run().join("sb-1")
    }

    /// What the fake VMM is to do wrong.
    pub fn order(&self, orders: &str) {
        fs::write(self.run_dir().join("orders"), orders).unwrap();
    }

    pub fn launch(&self, verb: &str) -> Program {
        let launch = self.roots.program("wrenn-launch").args([verb]);
        launch
            .env("WRENN_FIRECRACKER", program::path("fake-vmm"))
            .env("WRENN_CLOUD_HYPERVISOR", program::path("fake-cloud-hypervisor"))
    }

    /// A verb with a document on its stdin.
    pub fn with(&self, verb: &str, document: &Value) -> Output {
        self.launch(verb).args(["-"]).stdin(document.to_string()).run()
    }

    pub fn request(&self) -> Value {
        json!({"id": "sb-1", "kernel": self.file("vmlinux"), "initrd": self.file("initrd"),
               "rootfs": self.file("disk"), "other": 1e2})
    }

    pub fn boot(&self) -> Value {
        self.with("boot", &self.request()).success().reply()
    }

    pub fn paused(&self) -> Value {
        let booted = self.boot();
        self.with("pause", &booted).success().reply()
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.run_dir().join(name)).unwrap()).unwrap()
    }

    /// The calls that the VMM got: method, path, body.
    pub fn requests(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.run_dir().join("requests")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Nothing of a VMM is left: no process, no socket, no log.
    #[track_caller]
    pub fn assert_clean(&self) {
        let left: Vec<_> = kernel::list(self.run_dir())
            .into_iter()
            .filter(|name| !["orders", "seen.json", "requests", "loaded.json"].contains(&name.as_str()))
            .collect();
        assert!(left.is_empty(), "left in the run directory: {left:?}");
        assert_eq!(vmms(self.roots.dir()), [0; 0]);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for pid in vmms(self.roots.dir()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// VMMs whose log is below `dir`.
pub fn vmms(dir: &Path) -> Vec<i32> {
    let ours = |pid: &i32| kernel::descriptor(*pid, 1).starts_with(&*dir.to_string_lossy());
    kernel::pids().into_iter().filter(|pid| kernel::is_alive(*pid)).filter(ours).collect()
}

pub fn pid(document: &Value) -> i32 {
    document["vm"]["pid"].as_i64().unwrap() as i32
}

#[track_caller]
pub fn error(output: Output, status: i32, code: &str) -> Value {
    let reply = output.status_is(status).reply();
    assert_eq!(reply["error"]["code"], code, "{reply}");
    reply["error"].clone()
}
