//! Before there is a machine: it is configured and started, or loaded.

use std::fs::File;
use std::path::Path;

use super::{Controller, Fault, Vm, devices};
use crate::api::{Action, Answer, LoggerSettings, MachinePatch};
use crate::config::{BootSource, check_arguments};
use crate::console::Console;
use crate::logger;
use crate::machine::Machine;
use crate::memory::Ram;
use crate::metrics;
use crate::output::Output;
use crate::seccomp;
use crate::snapshot;
use crate::virtio::{Block, Net};

impl Controller {
    pub(super) fn act_before(&mut self, action: Action) -> Result<Answer, Fault> {
        self.configured |= says_what_the_machine_is(&action);
        match action {
            Action::PutMachine(machine) => {
                machine.check()?;
                self.config.machine = machine;
            }
            Action::PatchMachine(patch) => self.patch_machine(&patch)?,
            Action::PutBootSource(boot) => {
                check_boot(&boot)?;
                self.config.boot = Some(boot);
            }
            // Files and taps are opened to see that they can be; the machine opens them again when it starts.
            Action::PutDrive(drive) => {
                drop(Block::open(&drive)?);
                self.config.put_drive(drive)?;
            }
            Action::PutNet(mut net) => {
                net.guest_mac = net.guest_mac.map(|mac| mac.to_ascii_lowercase());
                let mut changed = self.config.clone();
                changed.put_net(net.clone())?;
                drop(Net::open(&net)?);
                self.config = changed;
            }
            Action::PutBalloon(balloon) => self.config.balloon = Some(balloon),
            Action::PutEntropy(entropy) => self.config.entropy = Some(entropy),
            Action::PutSerial(serial) => {
                if let Some(path) = &serial.serial_out_path {
                    Output::open(path).map_err(cannot_open("serial output", path))?;
                }
                self.console = serial;
            }
            Action::PutLogger(settings) => set_logger(&settings)?,
            Action::PutMetrics(path) => {
                metrics::write_to(Output::open(&path).map_err(cannot_open("metrics", &path))?);
            }
            Action::Start => {
                self.vm = Some(self.start()?);
                self.confine();
            }
            Action::LoadSnapshot(request) => {
                if self.configured {
                    return Err(Fault::Load(snapshot::LoadError::Configured));
                }
                let vm = Vm::load(request, &self.console).map_err(|error| {
                    // The client gets its answer, then the program ends, and what was half loaded with it.
                    self.failed = Some(error.to_string());
                    Fault::Load(error)
                })?;
                self.vm = Some(vm);
                self.confine();
            }
            _ => return Err(Fault::NotBefore),
        }
        Ok(Answer::Done)
    }

    /// All threads are there: from here on this one needs less.
    fn confine(&mut self) {
        if let Err(error) = seccomp::enter(seccomp::Thread::Control) {
            self.failed = Some(format!("The seccomp filter cannot be set: {error}"));
        }
    }

    fn patch_machine(&mut self, patch: &MachinePatch) -> Result<(), Fault> {
        let mut machine = self.config.machine.clone();
        machine.vcpu_count = patch.vcpu_count.unwrap_or(machine.vcpu_count);
        machine.mem_size_mib = patch.mem_size_mib.unwrap_or(machine.mem_size_mib);
        machine.smt = patch.smt.unwrap_or(machine.smt);
        machine.track_dirty_pages = patch.track_dirty_pages.unwrap_or(machine.track_dirty_pages);
        machine.huge_pages = patch.huge_pages.unwrap_or(machine.huge_pages);
        machine.check()?;
        self.config.machine = machine;
        Ok(())
    }

    /// A machine that runs. If it fails, everything is as it was.
    fn start(&self) -> Result<Vm, Fault> {
        let config = self.config.clone();
        if config.boot.is_none() {
            return Err(Fault::NoKernel);
        }
        config.check()?;
        let console = open_console(self)?;
        let devices = devices::open(&config)?;
        let ram = Ram::fresh(config.machine.memory_bytes()).map_err(Fault::StartMemory)?;
        let machine = Machine::boot(&config, ram.memory().clone(), devices, ram.discard(), Box::new(console));
        let mut vm = Vm::new(machine.map_err(Fault::Start)?, ram, config);
        vm.resume()?;
        Ok(vm)
    }
}

fn says_what_the_machine_is(action: &Action) -> bool {
    matches!(
        action,
        Action::PutMachine(_)
            | Action::PatchMachine(_)
            | Action::PutBootSource(_)
            | Action::PutDrive(_)
            | Action::PutNet(_)
            | Action::PutBalloon(_)
            | Action::PutEntropy(_)
    )
}

fn open_console(controller: &Controller) -> Result<Console, Fault> {
    let settings = &controller.console;
    let path = settings.serial_out_path.as_deref().unwrap_or(Path::new("standard output"));
    Console::open(settings).map_err(cannot_open("serial output", path))
}

fn check_boot(boot: &BootSource) -> Result<(), Fault> {
    check_arguments(boot.boot_args.as_deref().unwrap_or_default())?;
    let path = &boot.kernel_image_path;
    File::open(path).map_err(|source| Fault::Kernel { path: path.clone(), source })?;
    if let Some(path) = &boot.initrd_path {
        File::open(path).map_err(|source| Fault::Initrd { path: path.clone(), source })?;
    }
    Ok(())
}

fn set_logger(settings: &LoggerSettings) -> Result<(), Fault> {
    let open = |path: &std::path::PathBuf| Output::open(path).map_err(cannot_open("log", path));
    logger::set(logger::Settings {
        output: settings.log_path.as_ref().map(open).transpose()?,
        level: settings.level,
        show_level: settings.show_level,
        show_origin: settings.show_log_origin,
    });
    Ok(())
}

fn cannot_open(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Fault + use<> {
    let path = path.to_owned();
    move |source| Fault::Output { what, path, source }
}
