//! The VMMs that the lifecycle runs on, one after the other.

use std::path::PathBuf;

use crate::program;

/// A VMM that runs sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmm {
    /// Firecracker, where the tester has one.
    Firecracker,
    /// Cloud Hypervisor, where the tester has one.
    CloudHypervisor,
    /// Our own, built beside the other programs: it is always there.
    WrennVmm,
    /// The tests' own machine in small, in Firecracker's place: it needs no KVM that works, and so no lab.
    Toy,
}

impl Vmm {
    /// All that run real guests.
    pub const ALL: [Self; 3] = [Self::Firecracker, Self::CloudHypervisor, Self::WrennVmm];

    /// The name in `spec.vmm`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Firecracker | Self::Toy => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::WrennVmm => "wrenn-vmm",
        }
    }

    /// Its state's name in a snapshot's directory.
    pub fn state_file(self) -> &'static str {
        match self {
            Self::Firecracker | Self::Toy => "snapfile",
            Self::CloudHypervisor => "state.json",
            Self::WrennVmm => "wrenn-vmm.state",
        }
    }

    /// Whether it knows which pages were written: then a second pause is a Diff, else another full dump.
    pub fn diffs(self) -> bool {
        self != Self::CloudHypervisor
    }

    /// The kind of a pause that has an earlier one to stand on.
    pub fn later_kind(self) -> &'static str {
        if self.diffs() { "diff" } else { "full" }
    }

    /// Whether it takes its memory from `wrenn-uffd serve`, else from a plain file.
    pub fn page_server(self) -> bool {
        self != Self::CloudHypervisor
    }

    /// The program.
    ///
    /// # Errors
    /// Why it cannot be used here.
    ///
    /// # Panics
    /// When our own is not built.
    pub fn program(self) -> Result<PathBuf, String> {
        let variable = match self {
            Self::Firecracker => "WRENN_FIRECRACKER",
            Self::CloudHypervisor => "WRENN_CLOUD_HYPERVISOR",
            Self::WrennVmm => return Ok(program::path("wrenn-vmm")),
            Self::Toy => return Ok(program::path("toy-vmm")),
        };
        let path = std::env::var_os(variable).filter(|path| !path.is_empty());
        let path = PathBuf::from(path.ok_or_else(|| format!("{variable} names no {}", self.name()))?);
        if path.is_file() { Ok(path) } else { Err(format!("{variable}: {} is not a file", path.display())) }
    }
}

/// Makes each of these functions a test on every VMM: `fn name(host: &TestHost)` becomes `firecracker::name`,
/// `cloud_hypervisor::name` and `wrenn_vmm::name`.
#[macro_export]
macro_rules! on_every_vmm {
    ($($name:ident),+ $(,)?) => {
        $crate::on_every_vmm_like_firecracker!($($name),+);
        $crate::tests_on!(cloud_hypervisor, CloudHypervisor, 1, $crate::host::TestHost, $($name),+);
    };
}

/// Makes each of these functions a test on the machine in small: `toy::name`.
#[macro_export]
macro_rules! on_a_toy {
    ($($name:ident),+ $(,)?) => { $crate::tests_on!(toy, Toy, 1, $crate::host::TestHost, $($name),+); };
}

/// The same without Cloud Hypervisor: for what is about Diffs, a page server or a log that has the guest's console.
/// `Bench: name, …` does so for a type of the test's own that has a `run` like
/// [`TestHost::run`](crate::host::TestHost::run).
#[macro_export]
macro_rules! on_every_vmm_like_firecracker {
    ($host:ty: $($name:ident),+ $(,)?) => {
        $crate::tests_on!(firecracker, Firecracker, 1, $host, $($name),+);
        $crate::tests_on!(wrenn_vmm, WrennVmm, 1, $host, $($name),+);
    };
    ($($name:ident),+ $(,)?) => { $crate::on_every_vmm_like_firecracker!($crate::host::TestHost: $($name),+); };
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
