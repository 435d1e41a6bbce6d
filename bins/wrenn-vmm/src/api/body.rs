//! Bodies of requests, beyond those of the configuration itself. Unknown fields are refused.

use std::path::PathBuf;

use serde::Deserialize;

use crate::memory::Kind;

/// `PATCH /machine-config`: what is missing stays.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "as in MachineConfig")]
pub struct MachinePatch {
    pub vcpu_count: Option<u8>,
    pub mem_size_mib: Option<u64>,
    pub smt: Option<bool>,
    pub track_dirty_pages: Option<bool>,
    pub huge_pages: Option<crate::config::HugePages>,
}

/// `PATCH /balloon`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BalloonPatch {
    pub amount_mib: u64,
}

/// `PATCH /balloon/statistics`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatisticsPatch {
    pub stats_polling_interval_s: u64,
}

/// `PUT /serial`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// A file, made where it is missing, or a FIFO; the standard output where it says nothing.
    pub serial_out_path: Option<PathBuf>,
    /// How much the guest may write there; what is more is dropped.
    pub rate_limiter: Option<TokenBucket>,
}

/// How much of something there may be, over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Bytes that the bucket holds. It is full at first. 0: no limit.
    pub size: u64,
    /// Bytes that may be used once, before the bucket's.
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket fills. 0: no limit.
    pub refill_time: u64,
}

/// `PUT /logger`: what is missing stays.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoggerSettings {
    /// A file, made where it is missing, or a FIFO.
    pub log_path: Option<PathBuf>,
    /// Off, Error, Warning, Info, Debug or Trace.
    pub level: Option<crate::logger::Level>,
    /// Whether a line names its level.
    pub show_level: Option<bool>,
    /// Whether a line names the place in the source.
    pub show_log_origin: Option<bool>,
}

/// `PUT /metrics`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {
    pub metrics_path: PathBuf,
}

/// `PUT /actions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ActionBody {
    pub action_type: ActionType,
}

/// What `PUT /actions` does.
#[derive(Debug, Deserialize)]
pub(super) enum ActionType {
    InstanceStart,
    FlushMetrics,
    SendCtrlAltDel,
}

/// `PATCH /vm`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vm {
    pub state: VmState,
}

/// Whether the vCPUs are to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum VmState {
    /// They are not.
    Paused,
    /// They are.
    Resumed,
}

/// `PUT /snapshot/create`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// How much of memory.
    #[serde(default)]
    pub snapshot_type: Kind,
    /// Where the state goes.
    pub snapshot_path: PathBuf,
    /// Where the memory goes.
    pub mem_file_path: PathBuf,
}

/// `PUT /snapshot/load`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadSnapshot {
    /// The state.
    pub snapshot_path: PathBuf,
    /// The memory.
    pub mem_backend: MemoryBackend,
    /// Whether writes are logged from here on.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Whether the vCPUs run at once.
    #[serde(default)]
    pub resume_vm: bool,
    /// Whether the guest's clock is stepped by the time it was down: refused.
    #[serde(default)]
    pub clock_realtime: bool,
    /// Taps of other names.
    #[serde(default)]
    pub network_overrides: Vec<NetworkOverride>,
}

/// Where memory comes from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBackend {
    /// What the path is.
    pub backend_type: Backend,
    /// A memory file, or a page server's socket.
    pub backend_path: PathBuf,
}

/// What memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Backend {
    /// A memory file.
    File,
    /// A page server.
    Uffd,
}

/// Another tap for an interface.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    /// The interface, as the snapshot names it.
    pub iface_id: String,
    /// The tap it gets.
    pub host_dev_name: String,
}
