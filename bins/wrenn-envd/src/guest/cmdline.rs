//! The kernel command line's `ip=`, in the kernel's own form (Documentation/admin-guide/nfs/nfsroot.rst):
//! `ip=<client>:<server>:<gateway>:<netmask>:<hostname>:<device>:<autoconf>[:<dns0>[:<dns1>]]`.

use std::net::Ipv4Addr;

/// What `ip=` asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Cmdline {
    pub address: Ipv4Addr,
    /// Bits of the network part.
    pub prefix: u8,
    pub gateway: Option<Ipv4Addr>,
    pub hostname: Option<String>,
    pub device: String,
    pub dns: Vec<Ipv4Addr>,
}

/// The device when `ip=` names none.
const DEVICE: &str = "eth0";

impl Cmdline {
    /// Finds and reads `ip=`. `None` when there is none, or when it says to configure nothing (`off`, `none`).
    ///
    /// # Errors
    /// The field that is wrong, in words.
    pub fn parse(cmdline: &str) -> Result<Option<Self>, String> {
        // The last one counts, as everywhere on this line.
        let Some(value) = cmdline.split_whitespace().filter_map(|word| word.strip_prefix("ip=")).next_back()
        else {
            return Ok(None);
        };
        if matches!(value, "off" | "none" | "") {
            return Ok(None);
        }
        let fields: Vec<&str> = value.split(':').collect();
        let field = |at: usize| fields.get(at).copied().filter(|field| !field.is_empty());
        let wrong = |what: &str, given: &str| format!("ip={value}: {what} {given:?}");
        let address = |what: &str, at: usize| {
            field(at).map(|given| given.parse::<Ipv4Addr>().map_err(|_| wrong(what, given))).transpose()
        };
        let netmask = address("netmask", 3)?.ok_or_else(|| wrong("no netmask in", value))?;
        Ok(Some(Self {
            address: address("address", 0)?.ok_or_else(|| wrong("no address in", value))?,
            prefix: prefix(netmask).ok_or_else(|| wrong("netmask", &netmask.to_string()))?,
            gateway: address("gateway", 2)?,
            hostname: field(4).map(str::to_owned),
            device: field(5).unwrap_or(DEVICE).to_owned(),
            dns: [address("name server", 7)?, address("name server", 8)?].into_iter().flatten().collect(),
        }))
    }
}

/// The number of leading ones, if nothing but zeros follows.
fn prefix(netmask: Ipv4Addr) -> Option<u8> {
    let bits = netmask.to_bits();
    let ones = bits.leading_ones();
    (ones + bits.trailing_zeros() >= u32::BITS).then_some(ones as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slots_address_is_read_whole() {
        let line =
            "console=ttyS0 ip=169.254.0.21::169.254.0.22:255.255.255.252:sandbox:eth0:off root=/dev/vda rw\n";
        let expected = Cmdline {
            address: Ipv4Addr::new(169, 254, 0, 21),
            prefix: 30,
            gateway: Some(Ipv4Addr::new(169, 254, 0, 22)),
            hostname: Some("sandbox".into()),
            device: "eth0".into(),
            dns: vec![],
        };
        assert_eq!(Cmdline::parse(line), Ok(Some(expected)));
    }

    #[test]
    fn what_may_be_missing_may_be_missing() {
        for none in ["", "quiet", "ip=", "ip=off", "ip=none", "ship=1.2.3.4:::255.0.0.0"] {
            assert_eq!(Cmdline::parse(none), Ok(None), "{none}");
        }
        let short = Cmdline::parse("ip=10.0.0.2:::255.0.0.0").unwrap().unwrap();
        assert_eq!((short.device.as_str(), short.gateway, short.hostname), ("eth0", None, None));
        let dns = Cmdline::parse("ip=10.0.0.2:::255.0.0.0:::off:1.1.1.1:8.8.8.8").unwrap().unwrap();
        assert_eq!(dns.dns, [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)]);
    }

    #[test]
    fn the_last_one_counts() {
        let parsed = Cmdline::parse("ip=10.0.0.2:::255.0.0.0 ip=10.0.0.3:::255.0.0.0").unwrap().unwrap();
        assert_eq!(parsed.address, Ipv4Addr::new(10, 0, 0, 3));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, name) in [
            ("ip=dhcp", "no netmask"),
            ("ip=10.0.0.256:::255.0.0.0", "address \"10.0.0.256\""),
            ("ip=:::255.0.0.0", "no address"),
            ("ip=10.0.0.2::gw:255.0.0.0", "gateway \"gw\""),
            ("ip=10.0.0.2:::255.0.255.0", "netmask \"255.0.255.0\""),
        ] {
            let error = Cmdline::parse(line).unwrap_err();
            assert!(error.contains(name), "{line}: {error}");
        }
    }

    #[test]
    fn prefixes_run_from_none_to_all() {
        assert_eq!(prefix(Ipv4Addr::UNSPECIFIED), Some(0));
        assert_eq!(prefix(Ipv4Addr::BROADCAST), Some(32));
        assert_eq!(prefix(Ipv4Addr::new(255, 255, 255, 254)), Some(31));
    }
}
