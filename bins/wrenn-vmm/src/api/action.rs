//! What a client can ask for, and what it gets.

use std::path::PathBuf;

use serde_json::Value;

use super::body::{CreateSnapshot, LoadSnapshot, LoggerSettings, MachinePatch, Serial, VmState};
use crate::config::{Balloon, BootSource, Drive, Entropy, MachineConfig, NetworkInterface};

/// What a client asks for.
#[derive(Debug, PartialEq)]
#[allow(missing_docs, reason = "docs/vmm.md has a table of them")]
pub enum Action {
    GetInstance,
    GetVersion,
    GetConfig,
    GetMachine,
    GetBalloon,
    GetBalloonStatistics,
    PutMachine(MachineConfig),
    PatchMachine(MachinePatch),
    PutBootSource(BootSource),
    PutDrive(Drive),
    PutNet(NetworkInterface),
    PutBalloon(Balloon),
    PatchBalloon { amount_mib: u64 },
    PatchBalloonStatistics { interval_s: u64 },
    PutEntropy(Entropy),
    PutSerial(Serial),
    PutLogger(LoggerSettings),
    PutMetrics(PathBuf),
    Start,
    FlushMetrics,
    SendCtrlAltDel,
    PatchVm(VmState),
    CreateSnapshot(CreateSnapshot),
    LoadSnapshot(LoadSnapshot),
}

/// What a client gets for something that went well.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// Status 204.
    Done,
    /// Status 200 and this.
    Value(Value),
}
