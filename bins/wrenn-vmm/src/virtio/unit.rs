//! A virtio device as a whole: registers, queues, interrupt, and the kind of device behind them.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::Device;
use super::interrupt::{Interrupt, Reason};
use super::ring::{Broken, Outcome, QUEUE_SIZE, Ring};
use super::state::{DeviceState, SavedQueue};
use crate::memory::GuestMemory;

/// Features of every device.
const COMMON: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A device. vCPUs reach it through its registers, the io thread through its queues, the API while both stand still.
pub struct Unit {
    /// Apart from the lock: a vCPU that handles an interrupt need not wait for the io thread.
    pub interrupt: Arc<Interrupt>,
    /// One a queue: the driver's notifications.
    pub kicks: Vec<EventFd>,
    pub(super) memory: GuestMemory,
    yielding: Arc<AtomicBool>,
    live: Mutex<Live>,
}

/// What is behind the lock.
pub(super) struct Live {
    pub device: Box<dyn Device>,
    pub status: u32,
    pub device_features_page: u32,
    pub driver_features_page: u32,
    pub driver_features: u64,
    pub queue_select: u32,
    /// As the driver sets them.
    pub registers: Vec<QueueState>,
    /// As the device works on them, from `DRIVER_OK` to the reset. `None`: the driver did not set it up.
    pub queues: Vec<Option<Queue>>,
}

impl Unit {
    /// A device as it is after a reset.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new(
        device: Box<dyn Device>,
        interrupt: Arc<Interrupt>,
        memory: GuestMemory,
        yielding: Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let kicks = (0..device.queues()).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<Result<_, _>>()?;
        Ok(Self { interrupt, kicks, memory, yielding, live: Mutex::new(Live::new(device)) })
    }

    /// The device, while nobody else uses it.
    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on a queue, if there is one. On the io thread.
    pub fn serve(&self, queue: usize) {
        let mut live = self.live();
        match live.process(queue, &self.memory, &self.yielding) {
            Ok(outcome) => {
                if outcome.interrupt {
                    self.interrupt.signal(Reason::Queue);
                }
                if outcome.again {
                    self.kick(queue);
                }
            }
            Err(broken) => self.ask_for_reset(&mut live, &broken),
        }
    }

    /// Works on all queues, and interrupts for what the driver may not have heard of. On the io thread.
    pub fn serve_all(&self) {
        self.interrupt.repeat();
        for queue in 0..self.kicks.len() {
            self.serve(queue);
        }
    }

    /// Has the io thread look at a queue.
    pub fn kick(&self, queue: usize) {
        if let Some(kick) = self.kicks.get(queue) {
            // Fails only where the counter is full: then it is readable as it is.
            let _ = kick.write(1);
        }
    }

    /// The device cannot go on with this driver.
    pub(super) fn ask_for_reset(&self, live: &mut Live, broken: &Broken) {
        log::warn!("virtio device {}: {broken}; it needs a reset", live.device.kind());
        live.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.interrupt.signal(Reason::Config);
    }

    /// Everything about the device. While the io thread is parked.
    ///
    /// # Errors
    /// When what it has been given cannot be brought to the disk.
    pub fn save(&self) -> std::io::Result<DeviceState> {
        let live = self.live();
        live.device.flush()?;
        let queues = live.registers.iter().zip(&live.queues);
        Ok(DeviceState {
            kind: live.device.kind(),
            status: live.status,
            device_features_page: live.device_features_page,
            driver_features_page: live.driver_features_page,
            driver_features: live.driver_features,
            queue_select: live.queue_select,
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.generation(),
            queues: queues
                .map(|(set, queue)| SavedQueue::from(&queue.as_ref().map_or(*set, Queue::state)))
                .collect(),
            own: live.device.save(),
        })
    }

    /// Puts everything back. While the io thread is parked.
    ///
    /// # Errors
    /// What about the state cannot be.
    pub fn restore(&self, state: &DeviceState) -> Result<(), String> {
        let mut live = self.live();
        if state.kind != live.device.kind() {
            return Err(format!("device {} is saved where device {} is", state.kind, live.device.kind()));
        }
        if state.queues.len() != live.registers.len() {
            return Err(format!(
                "device {} has {} queues, not {}",
                state.kind,
                live.registers.len(),
                state.queues.len()
            ));
        }
        live.status = state.status;
        live.device_features_page = state.device_features_page;
        live.driver_features_page = state.driver_features_page;
        live.driver_features = state.driver_features;
        live.queue_select = state.queue_select;
        live.registers = state.queues.iter().map(|queue| queue.registers(QUEUE_SIZE)).collect();
        if live.is_running() {
            if !live.features_fit() {
                return Err(format!("device {} has not the features that the driver took", state.kind));
            }
            live.start(&self.memory).map_err(|broken| format!("device {}: {broken}", state.kind))?;
        }
        live.device.restore(&state.own)?;
        self.interrupt.restore(state.interrupt_status, state.config_generation);
        Ok(())
    }
}

impl Live {
    fn new(device: Box<dyn Device>) -> Self {
        let mut live = Self {
            device,
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            queue_select: 0,
            registers: Vec::new(),
            queues: Vec::new(),
        };
        live.reset();
        live
    }

    /// All features that the device offers.
    pub fn features(&self) -> u64 {
        COMMON | self.device.features()
    }

    /// Whether what the driver took is what it was offered.
    pub fn features_fit(&self) -> bool {
        self.driver_features & !self.features() == 0 && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    /// Whether there is a driver that wants the device to work.
    pub fn is_running(&self) -> bool {
        let bad = VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET;
        let good = VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FEATURES_OK;
        self.status & (bad | good) == good
    }

    /// Takes the queues as the driver set them up.
    pub fn start(&mut self, memory: &GuestMemory) -> Result<(), Broken> {
        let event_idx_enabled = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.registers.len());
        for registers in &self.registers {
            queues.push(if registers.ready {
                let queue = Queue::try_from(QueueState { event_idx_enabled, ..*registers })?;
                if !queue.is_valid(memory) {
                    return Err(Broken("a queue is not in memory".into()));
                }
                Some(queue)
            } else {
                None
            });
        }
        self.device
            .start(self.driver_features)
            .map_err(|error| Broken(format!("it does not start: {error}")))?;
        self.queues = queues;
        Ok(())
    }

    /// Forgets driver and queues.
    pub fn reset(&mut self) {
        self.device.reset();
        self.status = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        let count = self.device.queues();
        self.registers =
            vec![QueueState { max_size: QUEUE_SIZE, size: QUEUE_SIZE, ..QueueState::default() }; count];
        self.queues = vec![None; count].into_iter().map(|_: Option<()>| None).collect();
    }

    fn process(
        &mut self,
        index: usize,
        memory: &GuestMemory,
        yielding: &AtomicBool,
    ) -> Result<Outcome, Broken> {
        let running = self.is_running();
        let Some(queue) = self.queues[index].as_mut().filter(|_| running) else {
            return Ok(Outcome::default());
        };
        let mut ring = Ring::new(queue, memory, yielding);
        self.device.process(index, &mut ring)?;
        ring.finish()
    }
}
