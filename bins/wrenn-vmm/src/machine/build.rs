//! How a machine comes to be: from a kernel, or as it was saved.

use std::io::Write;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::{Ending, Error, Machine, MachineState};
use crate::boot;
use crate::config::Config;
use crate::kvm::{Buses, Host, Thread, Vcpu, Vm};
use crate::layout;
use crate::legacy::{Keyboard, Line, Power, Serial};
use crate::memory::{Discard, GuestMemory};
use crate::virtio::{Devices, Virtio, VirtioState};

impl Machine {
    /// Loads the kernel. The machine stands still.
    ///
    /// # Errors
    /// When there is no KVM, no kernel, or a device cannot be had.
    pub fn boot(
        config: &Config,
        memory: GuestMemory,
        devices: Devices,
        discard: Arc<dyn Discard>,
        console: Box<dyn Write + Send>,
    ) -> Result<Self, Error> {
        let host = Host::open()?;
        let vm = empty(&host, config, memory.clone())?;
        let mut lines = Vec::new();
        let virtio = attach(&vm, devices, memory.clone(), discard, &mut lines)?;
        let serial = Serial::new(serial_line(&vm, &mut lines)?, console);

        let kernel = boot::load(config, &memory, virtio.slots())?;
        let count = config.machine.vcpu_count;
        let vcpus =
            (0..count).map(|index| Vcpu::new(&host, &vm, index, count)).collect::<Result<Vec<_>, _>>()?;
        boot::enter(&vcpus[0], &memory, &kernel)?;
        Self::assemble(vm, vcpus, virtio, serial, Vec::new())
    }

    /// Puts everything as it was saved, memory aside, which is taken to be so already. The machine stands still.
    ///
    /// # Errors
    /// When the state does not fit the configuration or this host, or a device cannot be had.
    pub fn restore(
        config: &Config,
        state: &MachineState,
        virtio_state: &VirtioState,
        memory: GuestMemory,
        devices: Devices,
        discard: Arc<dyn Discard>,
        console: Box<dyn Write + Send>,
    ) -> Result<Self, Error> {
        state.check(config)?;
        let host = Host::open()?;
        let vm = empty(&host, config, memory.clone())?;
        // An interrupt that was on its way when the machine was saved is in nobody's state: every line is raised once. A
        // driver whose device has nothing to say shrugs.
        let mut lines = Vec::new();
        let virtio = attach(&vm, devices, memory, discard, &mut lines)?;
        virtio.restore(virtio_state)?;
        let serial =
            Serial::restore(&state.serial, serial_line(&vm, &mut lines)?, console).map_err(Error::State)?;

        let restore = |(index, state)| Vcpu::restore(&host, &vm, index, state);
        let vcpus = (0..).zip(&state.vcpus).map(restore).collect::<Result<Vec<_>, _>>()?;
        vm.restore(&state.vm)?;
        Self::assemble(vm, vcpus, virtio, serial, lines)
    }

    fn assemble(
        vm: Vm,
        vcpus: Vec<Vcpu>,
        virtio: Virtio,
        serial: Serial,
        lines: Vec<EventFd>,
    ) -> Result<Self, Error> {
        let ending = Arc::new(Ending::new().map_err(Error::Event)?);
        let serial = Arc::new(Mutex::new(serial));
        let mut buses = Buses::default();
        buses.ports.insert(layout::SERIAL_PORT, serial.clone());
        buses.ports.insert(layout::I8042_PORT, Arc::new(Mutex::new(Keyboard::new(ending.clone()))));
        buses.ports.insert(layout::POWER_PORT, Arc::new(Mutex::new(Power::new(ending.clone()))));
        virtio.attach(&mut buses.memory);
        let buses = Arc::new(buses);
        let start = |vcpu| Thread::start(vcpu, buses.clone(), ending.clone());
        let vcpus = vcpus.into_iter().map(start).collect::<Result<_, _>>()?;
        Ok(Self { vcpus, virtio, serial, lines, ending, running: false, vm })
    }
}

/// A machine without vCPUs and devices. Where writes are logged, they are from the first on.
fn empty(host: &Host, config: &Config, memory: GuestMemory) -> Result<Vm, Error> {
    let vm = Vm::new(host, memory)?;
    vm.log_dirty(config.machine.track_dirty_pages)?;
    Ok(vm)
}

/// Connects the devices with KVM; what raises their interrupts is kept in `lines` too.
fn attach(
    vm: &Vm,
    devices: Devices,
    memory: GuestMemory,
    discard: Arc<dyn Discard>,
    lines: &mut Vec<EventFd>,
) -> Result<Virtio, Error> {
    let mut irq = |gsi| {
        let event = vm.irq(gsi)?;
        lines.push(event.try_clone()?);
        Ok(event)
    };
    let mut notify = |event: &EventFd, address, value| vm.notify(event, address, value);
    Ok(Virtio::new(devices, memory, discard, &mut irq, &mut notify)?)
}

fn serial_line(vm: &Vm, lines: &mut Vec<EventFd>) -> Result<Line, Error> {
    let event = vm.irq(layout::SERIAL_IRQ).map_err(Error::Event)?;
    lines.push(event.try_clone().map_err(Error::Event)?);
    Ok(Line::new(event))
}
