//! The kernel's command line.

use linux_loader::cmdline::Cmdline;
use vm_memory::GuestAddress;

use super::Error;
use crate::config::Config;
use crate::layout;
use crate::memory::GuestMemory;
use crate::virtio::Slot;

/// What a kernel is told when the boot source says nothing. (Firecracker's)
pub const DEFAULT: &str =
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";

/// The command line: what the boot source says, that there is no PCI, the root disk, and the devices for kernels with
/// virtio_mmio built in; what the boot source says after ` -- ` stays last. Without its closing zero.
///
/// # Errors
/// When it is too long or cannot be one.
pub fn line(config: &Config, devices: &[Slot]) -> Result<Vec<u8>, Error> {
    let wrong = |error: linux_loader::cmdline::Error| Error::CommandLine(error.to_string());
    let given = config.boot.as_ref().and_then(|boot| boot.boot_args.as_deref()).unwrap_or(DEFAULT);
    let mut line = Cmdline::try_from(given, layout::CMDLINE_MAX).map_err(wrong)?;
    line.insert_str("pci=off").map_err(wrong)?;
    if let Some(root) = config.drives.iter().find(|drive| drive.is_root_device) {
        line.insert_str(if root.is_read_only { "root=/dev/vda ro" } else { "root=/dev/vda rw" })
            .map_err(wrong)?;
    }
    for device in devices {
        line.add_virtio_mmio_device(layout::MMIO_BYTES, GuestAddress(device.base), device.irq, None)
            .map_err(wrong)?;
    }
    Ok(line.as_cstring().map_err(wrong)?.into_bytes())
}

/// Puts it into memory.
///
/// # Errors
/// When there is too little memory.
pub fn write(memory: &GuestMemory, line: &[u8]) -> Result<(), Error> {
    super::write(memory, layout::CMDLINE, &[line, b"\0"].concat(), "the command line")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::{BootSource, Drive, MachineConfig};

    fn config(boot_args: Option<&str>, read_only: Option<bool>) -> Config {
        let drive = |is_read_only| Drive {
            drive_id: "rootfs".into(),
            path_on_host: PathBuf::new(),
            is_root_device: true,
            is_read_only,
            cache_type: Default::default(),
            io_engine: Default::default(),
        };
        Config {
            machine: MachineConfig::default(),
            boot: Some(BootSource {
                kernel_image_path: PathBuf::new(),
                initrd_path: None,
                boot_args: boot_args.map(str::to_owned),
            }),
            drives: read_only.map(drive).into_iter().collect(),
            nets: Vec::new(),
            balloon: None,
            entropy: None,
        }
    }

    #[test]
    fn the_root_disk_and_the_devices_come_before_what_init_is_told() {
        let devices = [Slot { base: 0xc000_0000, irq: 5 }, Slot { base: 0xc000_1000, irq: 6 }];
        let line = line(&config(Some("console=ttyS0 -- quiet"), Some(false)), &devices).unwrap();
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "console=ttyS0 pci=off root=/dev/vda rw virtio_mmio.device=4K@0xc0000000:5 virtio_mmio.device=4K@0xc0001000:6 -- quiet"
        );
    }

    #[test]
    fn without_arguments_a_kernel_gets_firecrackers() {
        let line = line(&config(None, Some(true)), &[]).unwrap();
        assert_eq!(String::from_utf8(line).unwrap(), format!("{DEFAULT} pci=off root=/dev/vda ro"));
    }

    #[test]
    fn a_line_too_long_is_refused() {
        let long = "x".repeat(layout::CMDLINE_MAX);
        assert!(matches!(line(&config(Some(&long), None), &[]), Err(Error::CommandLine(_))));
    }
}
