//! A snapshot's words for the virtio devices.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

use super::balloon::BalloonState;

/// All devices, in the order of their slots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VirtioState {
    pub(super) devices: Vec<DeviceState>,
}

/// A device: its registers, its queues, and what its kind adds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct DeviceState {
    pub kind: u32,
    pub status: u32,
    pub device_features_page: u32,
    pub driver_features_page: u32,
    pub driver_features: u64,
    pub queue_select: u32,
    pub interrupt_status: u32,
    pub config_generation: u32,
    pub queues: Vec<SavedQueue>,
    pub own: Own,
}

/// What one kind of device has and others have not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Own {
    /// Nothing.
    None,
    /// A balloon's.
    Balloon(Box<BalloonState>),
}

/// A queue: what the driver set, and how far the device is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedQueue {
    pub size: u16,
    pub ready: bool,
    pub next_avail: u16,
    pub next_used: u16,
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
}

impl From<&QueueState> for SavedQueue {
    fn from(state: &QueueState) -> Self {
        Self {
            size: state.size,
            ready: state.ready,
            next_avail: state.next_avail,
            next_used: state.next_used,
            descriptors: state.desc_table,
            avail: state.avail_ring,
            used: state.used_ring,
        }
    }
}

impl SavedQueue {
    /// The queue's registers.
    pub fn registers(&self, max_size: u16) -> QueueState {
        QueueState {
            max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: false,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.avail,
            used_ring: self.used,
        }
    }
}
