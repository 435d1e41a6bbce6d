//! KVM: the host's side of a virtual machine and of its vCPUs.

mod cpuid;
mod exits;
mod host;
mod msrs;
mod thread;
mod vcpu;
mod vm;

use std::io;

pub use exits::Buses;
pub use host::Host;
pub use thread::Thread;
pub use vcpu::{Vcpu, VcpuState};
pub use vm::{Vm, VmState};

/// Why KVM cannot do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no usable KVM.
    #[error("/dev/kvm cannot be used: {0}")]
    Open(#[source] kvm_ioctls::Error),
    /// The device speaks another API.
    #[error("/dev/kvm speaks API version {0}, not 12")]
    Version(i32),
    /// This kernel's KVM, or this processor, lacks something that cannot be done without.
    #[error("this host's KVM lacks {0}")]
    Lacks(&'static str),
    /// A call failed.
    #[error("{call}: {source}")]
    Call {
        /// Its name in the kernel's documentation.
        call: &'static str,
        /// What it said.
        source: kvm_ioctls::Error,
    },
    /// A register of the saved vCPU does not exist here or cannot have that value.
    #[error("MSR {index:#x} cannot be set to {value:#x} on this host")]
    Msr {
        /// Which.
        index: u32,
        /// Its saved value.
        value: u64,
    },
    /// A saved table is too long or too short.
    #[error("the saved {0} has an impossible size")]
    Size(&'static str),
    /// The vCPU was saved on a faster or slower processor.
    #[error("the guest's TSC runs at {saved} kHz, this host's at {here} kHz and cannot be scaled")]
    Tsc {
        /// The guest's.
        saved: u32,
        /// The host's.
        here: u32,
    },
    /// A vCPU's thread could not be started or has died.
    #[error("vCPU {index}'s thread: {source}")]
    Thread {
        /// Which.
        index: u8,
        /// Why.
        source: io::Error,
    },
    /// A vCPU does not answer: most likely it waits for a page that nobody brings.
    #[error(
        "vCPU {0} does not stop: it may be waiting for a page of memory that the page server does not send"
    )]
    Stuck(u8),
}

/// Names the call that failed.
trait Called<T> {
    fn called(self, call: &'static str) -> Result<T, Error>;
}

impl<T> Called<T> for Result<T, kvm_ioctls::Error> {
    fn called(self, call: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Call { call, source })
    }
}
