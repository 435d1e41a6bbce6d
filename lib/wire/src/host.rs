//! Where a host keeps its things, and whose they are.

use std::hash::Hasher;
use std::path::{Path, PathBuf};

use crate::Id;

/// The two roots that every program honours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    root: PathBuf,
    run: PathBuf,
}

impl Host {
    /// The host of `WRENN_ROOT` (default /var/lib/wrenn: what must survive a reboot) and `WRENN_RUN` (default
    /// /run/wrenn: sockets, locks).
    pub fn from_env() -> Self {
        let path = |name: &str, default: &str| {
            let path =
                std::env::var_os(name).filter(|value| !value.is_empty()).unwrap_or_else(|| default.into());
            std::path::absolute(&path).unwrap_or_else(|_| path.into())
        };
        Self { root: path("WRENN_ROOT", "/var/lib/wrenn"), run: path("WRENN_RUN", "/run/wrenn") }
    }

    /// A host with these roots.
    pub fn new(root: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), run: run.into() }
    }

    /// What must survive a reboot.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Sockets and locks.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// A sandbox's sockets and logs: `<run>/<id>`.
    pub fn run_dir(&self, id: &Id) -> PathBuf {
        self.run.join(id.as_str())
    }

    /// A sandbox's files: `<root>/sandboxes/<id>`.
    pub fn sandbox_dir(&self, id: &Id) -> PathBuf {
        self.root.join("sandboxes").join(id.as_str())
    }

    /// Twelve hexadecimal digits that tell this root's kernel objects from another root's: 48 bits of the FNV-1a hash of
    /// its path.
    pub fn tag(&self) -> String {
        let path = resolved(&self.root);
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        hash.write(path.as_os_str().as_encoded_bytes());
        format!("{:012x}", hash.finish() >> 16)
    }
}

/// The path with what exists of it resolved: two spellings of one root are the same root, also before it is made.
fn resolved(path: &Path) -> PathBuf {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(resolved), _, _) => resolved,
        (Err(_), Some(parent), Some(name)) => resolved(parent).join(name),
        _ => path.to_owned(),
    }
}

/// FNV-1a, 64 bits (the standard library's hasher may change between releases; a kernel object outlives them).
struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_the_same_for_every_release_and_differs_between_roots() {
        let tag = |root: &str| Host::new(root, "/run/x").tag();
        // FNV-1a of "/nonexistent/a" by an independent implementation.
        assert_eq!(tag("/nonexistent/a"), format!("{:012x}", fnv_by_definition(b"/nonexistent/a") >> 16));
        assert_ne!(tag("/nonexistent/a"), tag("/nonexistent/b"));
        assert_eq!(tag("/tmp"), tag("/tmp/."));
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        let root = dir.path().join("link/root");
        let before = tag(root.to_str().unwrap());
        std::fs::create_dir(&root).unwrap();
        assert_eq!(tag(root.to_str().unwrap()), before, "made behind a link");
    }

    fn fnv_by_definition(bytes: &[u8]) -> u64 {
        bytes.iter().fold(14_695_981_039_346_656_037_u128, |hash, &byte| {
            ((hash ^ u128::from(byte)) * 1_099_511_628_211) % (1 << 64)
        }) as u64
    }
}
