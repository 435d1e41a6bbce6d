//! The kernel's command line.

use wire::Id;

use crate::machine::Net;

/// Firecracker takes 2048 bytes and appends its devices and `pci=off`.
const MAX_BYTES: usize = 1800;

/// What a guest is booted with when the document has no `cmdline`.
///
/// `reboot=k panic=1`: a guest that reboots or panics ends its VMM. The `i8042` words spare the kernel half a second of
/// looking for a mouse. `root=` is for a kernel without an initramfs; the one of scripts/image mounts that disk by itself.
/// The agent sets up `eth0` from `ip=`, whose form is the kernel's own (Documentation/admin-guide/nfs/nfsroot.rst).
pub(crate) fn default(id: &Id, net: Option<&Net>) -> String {
    let mut words = vec![
        "console=ttyS0 quiet reboot=k panic=1 i8042.noaux i8042.nomux i8042.dumbkbd".to_owned(),
        "root=/dev/vda rw".to_owned(),
    ];
    if let Some(net) = net {
        let (guest, gateway) = (net.guest_ip, net.tap_ip);
        words.push(format!("ip={guest}::{gateway}:255.255.255.252:{id}:eth0:off"));
    }
    words.join(" ")
}

/// Refuses what the VMM would refuse later, or what would end up as something else.
pub(crate) fn check(cmdline: &str) -> Result<(), wire::Error> {
    let wrong = |what: &str| Err(wire::Error::field("cmdline", what));
    if cmdline.len() > MAX_BYTES {
        return wrong(&format!("is {} bytes long; at most {MAX_BYTES} fit", cmdline.len()));
    }
    if !cmdline.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return wrong("must be printable ASCII");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_is_in_the_form_the_kernel_defined() {
        let id = Id::new("sb-1").unwrap();
        let net = Net {
            netns: "/run/netns/x".into(),
            tap: "tap0".into(),
            guest_mac: "02:fc:00:00:00:05".into(),
            guest_ip: "169.254.0.21".parse().unwrap(),
            tap_ip: "169.254.0.22".parse().unwrap(),
        };
        let with = default(&id, Some(&net));
        assert!(with.ends_with(" ip=169.254.0.21::169.254.0.22:255.255.255.252:sb-1:eth0:off"), "{with}");
        assert!(!default(&id, None).contains("ip="));
        assert!(check(&with).is_ok());
    }

    #[test]
    fn a_command_line_that_a_vmm_cannot_take_is_refused() {
        assert!(check(&"x".repeat(MAX_BYTES + 1)).is_err());
        assert!(check("a\nb").is_err());
        assert!(check("ä").is_err());
    }
}
