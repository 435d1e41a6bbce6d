//! A machine that was started or loaded.

use std::os::fd::{AsRawFd, BorrowedFd};

use serde_json::json;

use super::{Fault, devices};
use crate::api::{Action, Answer, Backend, CreateSnapshot, LoadSnapshot, Serial, VmState};
use crate::config::Config;
use crate::console::Console;
use crate::machine::{Exit, Machine};
use crate::memory::{Ram, Watch};
use crate::metrics::METRICS;
use crate::snapshot::{CreateError, LoadError, State, state_file};

/// The machine.
pub(super) struct Vm {
    machine: Machine,
    ram: Ram,
    config: Config,
    paused: bool,
}

impl Vm {
    /// A machine that stands still.
    pub fn new(machine: Machine, ram: Ram, config: Config) -> Self {
        Self { machine, ram, config, paused: true }
    }

    pub fn act(&mut self, action: Action) -> Result<Answer, Fault> {
        match action {
            Action::PatchVm(VmState::Paused) => self.pause()?,
            Action::PatchVm(VmState::Resumed) => self.resume()?,
            Action::CreateSnapshot(request) => {
                let created = self.create(&request);
                let count = if created.is_ok() { &METRICS.snapshots } else { &METRICS.snapshot_failures };
                count.add(1);
                created.map_err(Fault::Create)?;
            }
            Action::PatchBalloon { amount_mib } => {
                let balloon = self.machine.balloon().ok_or(Fault::NoBalloon)?;
                balloon.set_target(amount_mib).map_err(Fault::Balloon)?;
            }
            Action::PatchBalloonStatistics { interval_s } => {
                let balloon = self.machine.balloon().ok_or(Fault::NoBalloon)?;
                balloon.set_interval(interval_s).map_err(Fault::Balloon)?;
            }
            Action::GetBalloonStatistics => {
                let balloon = self.machine.balloon().ok_or(Fault::NoBalloon)?;
                return Ok(Answer::Value(json!(balloon.statistics().map_err(Fault::Statistics)?)));
            }
            Action::SendCtrlAltDel => return Err(Fault::NoKeyboard),
            _ => return Err(Fault::NotAfter),
        }
        Ok(Answer::Done)
    }

    pub fn state(&self) -> &'static str {
        if self.paused { "Paused" } else { "Running" }
    }

    /// As it is now.
    pub fn config(&self) -> Config {
        let balloon = self.machine.balloon().map(|balloon| balloon.config());
        Config { balloon, ..self.config.clone() }
    }

    /// What becomes readable when the guest has ended.
    pub fn events(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let event = self.machine.exit_event();
        // SAFETY: the event is open for as long as the machine, which is borrowed.
        std::iter::once(unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) })
    }

    pub fn exit(&self) -> Option<Exit> {
        self.machine.exit()
    }

    fn pause(&mut self) -> Result<(), Fault> {
        self.machine.pause().map_err(|source| Fault::Run { what: "pause", source })?;
        self.paused = true;
        METRICS.pauses.add(1);
        Ok(())
    }

    pub fn resume(&mut self) -> Result<(), Fault> {
        self.machine.resume().map_err(|source| Fault::Run { what: "resume", source })?;
        self.paused = false;
        METRICS.resumes.add(1);
        Ok(())
    }

    /// Writes a snapshot. If it fails the machine is as it was, and the next snapshot misses nothing.
    fn create(&mut self, request: &CreateSnapshot) -> Result<(), CreateError> {
        if !self.paused {
            return Err(CreateError::Running);
        }
        let place = state_file::Place::at(&request.snapshot_path)?;
        // Saving ends what vCPUs have begun, which may write to memory: only then is the log complete.
        let (machine, virtio) = self.machine.save()?;
        let log = self.config.machine.track_dirty_pages.then(|| self.machine.take_dirty()).transpose()?;
        self.ram.note_written(log.as_deref());
        let dumped = self.ram.dump(request.snapshot_type, &request.mem_file_path)?;
        // Last, so that a state that is there has its memory.
        place.write(&State::new(self.config(), machine, virtio))?;
        self.ram.forget_written();
        METRICS.snapshot_bytes.add(dumped.bytes);
        Ok(())
    }

    /// A machine as a snapshot says, paused unless the request wants it to run. Everything that can be refused is
    /// refused before there is a machine.
    pub fn load(request: LoadSnapshot, console: &Serial) -> Result<Self, LoadError> {
        if request.clock_realtime {
            return Err(LoadError::ClockRealtime);
        }
        let mut state: State = state_file::read(&request.snapshot_path)?;
        for change in &request.network_overrides {
            let net = state.config.nets.iter_mut().find(|net| net.iface_id == change.iface_id);
            let net = net.ok_or_else(|| LoadError::NoInterface(change.iface_id.clone()))?;
            net.host_dev_name.clone_from(&change.host_dev_name);
        }
        let State { mut config, machine, virtio, .. } = state;
        config.machine.track_dirty_pages = request.track_dirty_pages;
        config.check()?;
        let bytes = config.machine.memory_bytes();
        let path = &request.mem_backend.backend_path;
        let console = Box::new(Console::open(console).map_err(LoadError::Console)?);
        // A page server can be asked once only: after everything else.
        let (devices, ram) = match request.mem_backend.backend_type {
            Backend::File => {
                let ram = Ram::of_file(bytes, path)?;
                (devices::open(&config)?, ram)
            }
            Backend::Uffd => (devices::open(&config)?, Ram::served(bytes, path)?),
        };
        let watch = ram.watch()?;
        let (memory, discard) = (ram.memory().clone(), ram.discard());
        let machine = Machine::restore(&config, &machine, &virtio, memory, devices, discard, console);
        if watch.is_some_and(Watch::gone) {
            return Err(LoadError::PageServerGone);
        }
        let mut vm = Self::new(machine?, ram, config);
        if request.resume_vm {
            vm.machine.resume()?;
            vm.paused = false;
        }
        METRICS.loads.add(1);
        Ok(vm)
    }
}
