//! The VMMs that the lifecycle runs on, one after the other.

use std::path::PathBuf;

use crate::program;

/// A VMM that runs sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmm {
    /// Firecracker, where the tester has one.
    Firecracker,
    /// Our own, built beside the other programs: it is always there.
    WrennVmm,
}

impl Vmm {
    /// The name in `spec.vmm`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::WrennVmm => "wrenn-vmm",
        }
    }

    /// Its state's name in a snapshot's directory.
    pub fn state_file(self) -> &'static str {
        match self {
            Self::Firecracker => "snapfile",
            Self::WrennVmm => "wrenn-vmm.state",
        }
    }

    /// The program.
    ///
    /// # Errors
    /// Why it cannot be used here.
    ///
    /// # Panics
    /// When our own is not built.
    pub fn program(self) -> Result<PathBuf, String> {
        const VARIABLE: &str = "WRENN_FIRECRACKER";
        if self == Self::WrennVmm {
            return Ok(program::path("wrenn-vmm"));
        }
        let path = std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
        let path = PathBuf::from(path.ok_or_else(|| format!("{VARIABLE} names no firecracker"))?);
        if path.is_file() { Ok(path) } else { Err(format!("{VARIABLE}: {} is not a file", path.display())) }
    }
}

/// Makes each of these functions a test on every VMM: `fn name(host: &TestHost)` becomes `firecracker::name` and
/// `wrenn_vmm::name`. `Bench: name, …` does so for a type of the test's own that has a `run` like
/// [`TestHost::run`](crate::host::TestHost::run).
#[macro_export]
macro_rules! on_every_vmm {
    ($host:ty: $($name:ident),+ $(,)?) => {
        $crate::tests_on!(firecracker, Firecracker, 1, $host, $($name),+);
        $crate::tests_on!(wrenn_vmm, WrennVmm, 1, $host, $($name),+);
    };
    ($($name:ident),+ $(,)?) => { $crate::on_every_vmm!($crate::host::TestHost: $($name),+); };
}

/// As [`on_every_vmm!`], and once more on our own VMM with two vCPUs: `wrenn_vmm_2_vcpus::name`.
#[macro_export]
macro_rules! on_every_vmm_and_2_vcpus {
    ($($name:ident),+ $(,)?) => {
        $crate::on_every_vmm!($($name),+);
        $crate::tests_on!(wrenn_vmm_2_vcpus, WrennVmm, 2, $crate::host::TestHost, $($name),+);
    };
}

/// Makes each of these functions a test in a module of this name, on this VMM with so many vCPUs.
#[macro_export]
macro_rules! tests_on {
    ($module:ident, $vmm:ident, $vcpus:literal, $host:ty, $($name:ident),+) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $(#[test]
            fn $name() {
                let name = concat!(stringify!($module), "::", stringify!($name));
                <$host>::run($crate::vmm::Vmm::$vmm, $vcpus, name, super::$name);
            })+
        }
    };
}
