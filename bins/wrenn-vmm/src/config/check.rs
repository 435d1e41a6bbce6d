//! What a configuration must keep.

use std::collections::HashSet;

use super::{Config, Drive, MachineConfig, NetworkInterface};
use crate::layout;

/// vCPUs at most.
const VCPUS: u8 = 4;
/// Memory at most, MiB.
const MEMORY_MIB: u64 = 128 << 10;
/// Bytes of an interface's name at most (`IFNAMSIZ` with its closing zero).
const NAME_LIMIT: usize = 15;

/// What a configuration does not keep.
#[derive(Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it is")]
pub enum Error {
    #[error("The vCPU number is invalid: {0}, it must be 1 to {VCPUS}.")]
    Vcpus(u8),
    #[error("The memory size (MiB) is invalid: {0}, it must be 1 to {MEMORY_MIB}.")]
    Memory(u64),
    #[error("Simultaneous multithreading is not supported by wrenn-vmm: smt must be false.")]
    Smt,
    #[error("The kernel command line is invalid: it has {0} bytes, with the devices' at most {max}.", max = layout::CMDLINE_MAX - 1)]
    CommandLine(usize),
    #[error("The kernel command line is invalid: it holds a zero byte.")]
    CommandLineZero,
    #[error("A root block device already exists: {0}.")]
    SecondRoot(String),
    #[error("The host device name {0:?} is invalid: it must have 1 to {NAME_LIMIT} bytes.")]
    HostName(String),
    #[error("The MAC address is already in use: {0}.")]
    SameMac(String),
    #[error("The host device is already in use: {0}.")]
    SameHostName(String),
    #[error("The balloon's target of {amount} MiB is more than the memory's {memory} MiB.")]
    Balloon { amount: u64, memory: u64 },
    #[error("There are {0} devices, at most {max} are possible.", max = layout::IRQ_END - layout::MMIO_IRQ)]
    Devices(usize),
}

impl MachineConfig {
    /// # Errors
    /// What it does not keep.
    pub fn check(&self) -> Result<(), Error> {
        match self {
            Self { vcpu_count, .. } if !(1..=VCPUS).contains(vcpu_count) => Err(Error::Vcpus(*vcpu_count)),
            Self { mem_size_mib, .. } if !(1..=MEMORY_MIB).contains(mem_size_mib) => {
                Err(Error::Memory(*mem_size_mib))
            }
            Self { smt: true, .. } => Err(Error::Smt),
            _ => Ok(()),
        }
    }

    /// Memory, bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.mem_size_mib << 20
    }
}

impl Config {
    /// Puts a drive where the one of its id was, or after the others. A root device comes first.
    ///
    /// # Errors
    /// That there is another root device.
    pub fn put_drive(&mut self, drive: Drive) -> Result<(), Error> {
        let other = |other: &&Drive| other.is_root_device && other.drive_id != drive.drive_id;
        if let Some(other) = self.drives.iter().find(other).filter(|_| drive.is_root_device) {
            return Err(Error::SecondRoot(other.drive_id.clone()));
        }
        match self.drives.iter_mut().find(|other| other.drive_id == drive.drive_id) {
            Some(place) => *place = drive,
            None => self.drives.push(drive),
        }
        self.drives.sort_by_key(|drive| !drive.is_root_device);
        Ok(())
    }

    /// Puts an interface where the one of its id was, or after the others.
    ///
    /// # Errors
    /// That another one has its tap or MAC.
    pub fn put_net(&mut self, net: NetworkInterface) -> Result<(), Error> {
        let mut nets = self.nets.clone();
        match nets.iter_mut().find(|other| other.iface_id == net.iface_id) {
            Some(place) => *place = net,
            None => nets.push(net),
        }
        check_nets(&nets)?;
        self.nets = nets;
        Ok(())
    }

    /// Checks all of it, and how the parts fit together.
    ///
    /// # Errors
    /// The first thing that it does not keep.
    pub fn check(&self) -> Result<(), Error> {
        self.machine.check()?;
        check_nets(&self.nets)?;
        if let Some(arguments) = self.boot.as_ref().and_then(|boot| boot.boot_args.as_ref()) {
            check_arguments(arguments)?;
        }
        let memory = self.machine.mem_size_mib;
        if let Some(balloon) = self.balloon.as_ref().filter(|balloon| balloon.amount_mib > memory) {
            return Err(Error::Balloon { amount: balloon.amount_mib, memory });
        }
        let count = self.drives.len()
            + self.nets.len()
            + usize::from(self.balloon.is_some())
            + usize::from(self.entropy.is_some());
        if count > (layout::IRQ_END - layout::MMIO_IRQ) as usize {
            return Err(Error::Devices(count));
        }
        Ok(())
    }
}

/// # Errors
/// That the command line is too long or is not one.
pub fn check_arguments(arguments: &str) -> Result<(), Error> {
    match arguments {
        long if long.len() >= layout::CMDLINE_MAX => Err(Error::CommandLine(long.len())),
        text if text.contains('\0') => Err(Error::CommandLineZero),
        _ => Ok(()),
    }
}

fn check_nets(nets: &[NetworkInterface]) -> Result<(), Error> {
    let (mut macs, mut taps) = (HashSet::new(), HashSet::new());
    for net in nets {
        let tap = &net.host_dev_name;
        if !(1..=NAME_LIMIT).contains(&tap.len()) {
            return Err(Error::HostName(tap.clone()));
        }
        if !taps.insert(tap) {
            return Err(Error::SameHostName(tap.clone()));
        }
        if let Some(mac) = net.guest_mac.as_ref().filter(|mac| !macs.insert(mac.to_ascii_lowercase())) {
            return Err(Error::SameMac(mac.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Balloon, CacheType, IoEngine};

    fn drive(id: &str, root: bool) -> Drive {
        Drive {
            drive_id: id.into(),
            path_on_host: "/d".into(),
            is_root_device: root,
            is_read_only: false,
            cache_type: CacheType::Unsafe,
            io_engine: IoEngine::Sync,
        }
    }

    fn net(id: &str, tap: &str, mac: &str) -> NetworkInterface {
        NetworkInterface { iface_id: id.into(), host_dev_name: tap.into(), guest_mac: Some(mac.into()) }
    }

    #[test]
    fn the_root_device_is_first_and_alone() {
        let mut config = Config::default();
        config.put_drive(drive("a", false)).unwrap();
        config.put_drive(drive("b", true)).unwrap();
        assert_eq!(config.put_drive(drive("c", true)), Err(Error::SecondRoot("b".into())));
        config.put_drive(drive("c", false)).unwrap();
        config.put_drive(Drive { is_read_only: true, ..drive("b", true) }).unwrap();
        let ids: Vec<_> =
            config.drives.iter().map(|drive| (drive.drive_id.as_str(), drive.is_read_only)).collect();
        assert_eq!(ids, [("b", true), ("a", false), ("c", false)]);
        config.put_drive(drive("b", false)).unwrap();
        config.put_drive(drive("c", true)).unwrap();
    }

    #[test]
    fn interfaces_share_neither_mac_nor_tap() {
        let mut config = Config::default();
        config.put_net(net("a", "tap0", "02:FC:00:00:00:05")).unwrap();
        config.put_net(net("a", "tap0", "02:FC:00:00:00:05")).unwrap();
        assert_eq!(
            config.put_net(net("b", "tap1", "02:fc:00:00:00:05")),
            Err(Error::SameMac("02:fc:00:00:00:05".into()))
        );
        assert_eq!(
            config.put_net(net("b", "tap0", "02:fc:00:00:00:06")),
            Err(Error::SameHostName("tap0".into()))
        );
        let long = "wrenn-veth-10000";
        assert_eq!(config.put_net(net("b", long, "02:fc:00:00:00:06")), Err(Error::HostName(long.into())));
        assert_eq!(config.nets.len(), 1);
    }

    #[test]
    fn what_the_machine_cannot_be_is_refused() {
        let machine = MachineConfig::default;
        for (wrong, error) in [
            (MachineConfig { vcpu_count: 0, ..machine() }, Error::Vcpus(0)),
            (MachineConfig { vcpu_count: 5, ..machine() }, Error::Vcpus(5)),
            (MachineConfig { mem_size_mib: 0, ..machine() }, Error::Memory(0)),
            (MachineConfig { mem_size_mib: u64::MAX, ..machine() }, Error::Memory(u64::MAX)),
            (MachineConfig { smt: true, ..machine() }, Error::Smt),
        ] {
            assert_eq!(Config { machine: wrong, ..Config::default() }.check(), Err(error));
        }
        let balloon = Balloon { amount_mib: 129, deflate_on_oom: true, stats_polling_interval_s: 0 };
        let config = Config { balloon: Some(balloon), ..Config::default() };
        assert_eq!(config.check(), Err(Error::Balloon { amount: 129, memory: 128 }));
        let mut config = Config::default();
        (0..20).for_each(|n| config.put_drive(drive(&format!("d{n}"), false)).unwrap());
        assert_eq!(config.check(), Err(Error::Devices(20)));
        assert_eq!(check_arguments(&"x".repeat(2048)), Err(Error::CommandLine(2048)));
    }
}
