//! What a machine is made of, in the words of Firecracker's API. It is kept in the snapshot too.

mod check;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use check::{Error, check_arguments};

/// `PUT /machine-config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// 1 to 4.
    pub vcpu_count: u8,
    /// Memory, MiB.
    pub mem_size_mib: u64,
    /// Must be off: the guest sees one thread a core.
    #[serde(default)]
    pub smt: bool,
    /// Whether writes are logged, so that a Diff holds only what changed.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Must be "None".
    #[serde(default)]
    pub huge_pages: HugePages,
}

/// Size of the pages behind guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum HugePages {
    /// 4 KiB.
    #[default]
    None,
}

/// `PUT /boot-source`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// An ELF vmlinux or a bzImage.
    pub kernel_image_path: PathBuf,
    /// The initramfs.
    pub initrd_path: Option<PathBuf>,
    /// The command line; the devices are appended to it.
    pub boot_args: Option<String>,
}

/// `PUT /drives/{drive_id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Name in the API.
    pub drive_id: String,
    /// A file or block device.
    pub path_on_host: PathBuf,
    /// Appends `root=/dev/vda` to the command line, and puts it before the other drives.
    pub is_root_device: bool,
    /// The guest may not write.
    #[serde(default)]
    pub is_read_only: bool,
    /// Whether the guest's flush reaches the disk.
    #[serde(default)]
    pub cache_type: CacheType,
    /// Only "Sync".
    #[serde(default)]
    pub io_engine: IoEngine,
}

/// Whether a guest is offered a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CacheType {
    /// It is not: its fsync does nothing.
    #[default]
    Unsafe,
    /// It is: its flush is the host's fsync.
    Writeback,
}

/// How a disk is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum IoEngine {
    /// pread and pwrite.
    #[default]
    Sync,
}

/// `PUT /network-interfaces/{iface_id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Name in the API.
    pub iface_id: String,
    /// The tap, which must exist.
    pub host_dev_name: String,
    /// The guest's MAC; random where missing.
    pub guest_mac: Option<String>,
}

/// `PUT /balloon`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// Target size, MiB.
    pub amount_mib: u64,
    /// The guest takes memory back when it has no other.
    pub deflate_on_oom: bool,
    /// How often the guest tells its memory statistics, seconds; 0: not at all.
    #[serde(default)]
    pub stats_polling_interval_s: u64,
}

/// `PUT /entropy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {}

/// All of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Config {
    /// CPUs and memory.
    pub machine: MachineConfig,
    /// Kernel.
    pub boot: Option<BootSource>,
    /// Disks, root first.
    pub drives: Vec<Drive>,
    /// Network interfaces.
    pub nets: Vec<NetworkInterface>,
    /// The balloon, if there is one.
    pub balloon: Option<Balloon>,
    /// The entropy device, if there is one.
    pub entropy: Option<Entropy>,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}
