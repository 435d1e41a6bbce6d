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
        let virtio = attach(&vm, devices, memory.clone(), discard)?;
        let serial = Serial::new(serial_line(&vm)?, console);

        let kernel = boot::load(config, &memory, virtio.slots())?;
        let count = config.machine.vcpu_count;
        let vcpus =
            (0..count).map(|index| Vcpu::new(&host, &vm, index, count)).collect::<Result<Vec<_>, _>>()?;
        vcpus.first().map(|first| boot::enter(first, &memory, &kernel)).transpose()?;
        Self::assemble(vm, vcpus, virtio, serial)
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
        let virtio = attach(&vm, devices, memory, discard)?;
        virtio.restore(virtio_state)?;

        let restore = |(index, state)| Vcpu::restore(&host, &vm, index, state);
        let vcpus = (0..).zip(&state.vcpus).map(restore).collect::<Result<Vec<_>, _>>()?;
        vm.restore(&state.vm)?;
        // An interrupt that was on its way when the machine was saved is in nobody's state: the devices raise theirs
        // again. This one does so now, when there are interrupt controllers to remember it; virtio's when they are unparked.
        let serial = Serial::restore(&state.serial, serial_line(&vm)?, console).map_err(Error::State)?;
        Self::assemble(vm, vcpus, virtio, serial)
    }

    fn assemble(vm: Vm, vcpus: Vec<Vcpu>, virtio: Virtio, serial: Serial) -> Result<Self, Error> {
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
        Ok(Self { vcpus, virtio, serial, ending, running: false, vm })
    }
}

/// A machine without vCPUs and devices. Where writes are logged, they are from the first on.
fn empty(host: &Host, config: &Config, memory: GuestMemory) -> Result<Vm, Error> {
    let vm = Vm::new(host, memory)?;
    vm.log_dirty(config.machine.track_dirty_pages)?;
    Ok(vm)
}

/// Connects the devices with KVM.
fn attach(
    vm: &Vm,
    devices: Devices,
    memory: GuestMemory,
    discard: Arc<dyn Discard>,
) -> Result<Virtio, Error> {
    let mut notify = |event: &EventFd, address, value| vm.notify(event, address, value);
    Ok(Virtio::new(devices, memory, discard, &mut |gsi| vm.irq(gsi), &mut notify)?)
}

fn serial_line(vm: &Vm) -> Result<Line, Error> {
    vm.irq(layout::SERIAL_IRQ).map(Line::new).map_err(Error::Event)
}
