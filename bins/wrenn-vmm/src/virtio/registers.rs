//! The MMIO transport: a device's registers as its driver sees them (virtio 1.2, 4.2.2), version 2.

use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::*;
use virtio_queue::QueueState;

use super::unit::{Live, Unit};
use crate::bus::BusDevice;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// Without legacy.
const VERSION: u32 = 2;
/// Where the configuration space starts.
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

/// The registers of a device, on the bus.
pub struct Registers(pub Arc<Unit>);

impl BusDevice for Registers {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            let config = self.0.live().device.config();
            for (byte, index) in data.iter_mut().zip(offset as usize..) {
                *byte = config.get(index).copied().unwrap_or(0);
            }
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = self.0.read(offset as u32).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.0.live().device.write_config(offset, data);
        } else if let Ok(data) = <[u8; 4]>::try_from(data) {
            self.0.write(offset as u32, u32::from_le_bytes(data));
        }
    }
}

impl Unit {
    fn read(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            _ => self.live().read(register),
        }
    }

    fn write(&self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            // KVM takes these itself. One of another width gets here.
            VIRTIO_MMIO_QUEUE_NOTIFY => self.kick(value as usize),
            VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => self.live().write(register, value),
        }
    }

    /// The driver moves on (2.1, 3.1.1), or starts over.
    fn set_status(&self, value: u32) {
        let mut live = self.live();
        if value == 0 {
            live.reset();
            self.interrupt.acknowledge(u32::MAX);
            return;
        }
        // The driver may not take back what it said, nor what the device said.
        let mut new = live.status | value & !VIRTIO_CONFIG_S_NEEDS_RESET;
        let added = new & !live.status;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !live.features_fit() {
            new &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        live.status = new;
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 && live.is_running() {
            match live.start(&self.memory) {
                // Buffers may be there already, and a tap's frames.
                Ok(()) => (0..self.kicks.len()).for_each(|queue| self.kick(queue)),
                Err(broken) => self.ask_for_reset(&mut live, &broken),
            }
        }
    }
}

impl Live {
    fn read(&self, register: u32) -> u32 {
        let queue = self.registers.get(self.queue_select as usize);
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.kind(),
            VIRTIO_MMIO_DEVICE_FEATURES => page(self.features(), self.device_features_page),
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| u32::from(queue.max_size)),
            VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready)),
            VIRTIO_MMIO_STATUS => self.status,
            // No shared memory region has any length (4.2.2).
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            VIRTIO_MMIO_SHM_BASE_LOW | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_page = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_page = value,
            VIRTIO_MMIO_DRIVER_FEATURES if self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 => {
                let features = &mut self.driver_features;
                match self.driver_features_page {
                    0 => set_low(features, value),
                    1 => set_high(features, value),
                    _ => {}
                }
            }
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            _ => self.write_queue(register, value),
        }
    }

    fn write_queue(&mut self, register: u32, value: u32) {
        let (index, running) = (self.queue_select as usize, self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0);
        let Some(queue) = self.registers.get_mut(index) else { return };
        match register {
            VIRTIO_MMIO_QUEUE_READY if value == 0 => {
                queue.ready = false;
                self.queues[index] = None;
            }
            // What the device works with stays as it is.
            _ if running => {}
            VIRTIO_MMIO_QUEUE_READY => queue.ready = true,
            _ => set_queue(queue, register, value),
        }
    }
}

fn set_queue(queue: &mut QueueState, register: u32, value: u32) {
    match register {
        // What is no size is refused at the start.
        VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
        VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.desc_table, value),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.desc_table, value),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.avail_ring, value),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.avail_ring, value),
        VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used_ring, value),
        VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used_ring, value),
        _ => {}
    }
}

/// Half of a 64-bit register; others are zero.
fn page(value: u64, page: u32) -> u32 {
    match page {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(register: &mut u64, value: u32) {
    *register = *register & !0xffff_ffff | u64::from(value);
}

fn set_high(register: &mut u64, value: u32) {
    *register = *register & 0xffff_ffff | u64::from(value) << 32;
}
