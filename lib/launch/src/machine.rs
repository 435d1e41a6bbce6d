//! The machine that `boot` makes, as the document describes it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use wire::{Document, Id};

use crate::Error;
use crate::cmdline;

/// vCPUs a VMM can have at most (Firecracker's limit).
const MAX_VCPUS: u32 = 32;

/// A machine to boot. The paths are the host's until [`Machine::shown_in`] makes them the VMM's.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    pub vcpus: u32,
    pub memory_mib: u64,
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub cmdline: String,
    pub disk: PathBuf,
    pub net: Option<Net>,
}

/// The guest's network interface.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Net {
    pub netns: PathBuf,
    pub tap: String,
    pub guest_mac: String,
    pub guest_ip: Ipv4Addr,
    pub tap_ip: Ipv4Addr,
}

impl Machine {
    /// The machine of this document, every field and file checked.
    pub fn read(document: &Document, id: &Id) -> Result<Self, wire::Error> {
        let vcpus = document.find("spec.vcpus")?.unwrap_or(1);
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(wire::Error::field("spec.vcpus", format!("must be 1 to {MAX_VCPUS}, not {vcpus}")));
        }
        let memory_mib = document.find("spec.memory_mib")?.unwrap_or(512);
        if memory_mib == 0 {
            return Err(wire::Error::field("spec.memory_mib", "must be at least 1"));
        }
        let net = Net::find(document)?;
        let given = document.find::<String>("cmdline")?;
        let cmdline = given.unwrap_or_else(|| cmdline::default(id, net.as_ref()));
        cmdline::check(&cmdline)?;
        Ok(Self {
            vcpus,
            memory_mib,
            kernel: readable("kernel", document.need("kernel")?)?,
            initrd: document.find("initrd")?.map(|path| readable("initrd", path)).transpose()?,
            cmdline,
            disk: disk(document)?,
            net,
        })
    }

    /// The same machine, its files named as the VMM sees them in its working directory; and which file is to be seen
    /// where.
    pub fn shown_in(self, workdir: &Path) -> (Self, Vec<(PathBuf, PathBuf)>) {
        let seen = Self {
            kernel: workdir.join(KERNEL),
            initrd: self.initrd.as_ref().map(|_| workdir.join(INITRD)),
            disk: workdir.join(DISK),
            ..self.clone()
        };
        let mut shown = vec![(self.disk, seen.disk.clone()), (self.kernel, seen.kernel.clone())];
        shown.extend(self.initrd.zip(seen.initrd.clone()));
        (seen, shown)
    }
}

/// The root disk's name in the working directory. A snapshot records it: it never changes.
pub(crate) const DISK: &str = "rootfs.ext4";
const KERNEL: &str = "vmlinux";
const INITRD: &str = "initrd";

/// The disk's device or file: `cow.device`, or `rootfs` itself where there is no CoW.
pub(crate) fn disk(document: &Document) -> Result<PathBuf, wire::Error> {
    if let Some(path) = document.find::<PathBuf>("cow.device")? {
        return Ok(writable("cow.device", path)?);
    }
    match document.find::<PathBuf>("rootfs")? {
        Some(path) => Ok(writable("rootfs", path)?),
        None => Err(wire::Error::field(
            "cow.device",
            "missing, and rootfs too; wrenn-cow create makes the one, the other is used directly",
        )),
    }
}

impl Net {
    /// The interface that section `net` describes; `None` without that section.
    pub fn find(document: &Document) -> Result<Option<Self>, wire::Error> {
        if document.get("net").is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            netns: netns(document.need("net.netns")?)?,
            tap: document.need("net.tap")?,
            guest_mac: document.need("net.guest_mac")?,
            guest_ip: address(document, "net.guest_ip")?,
            tap_ip: address(document, "net.tap_ip")?,
        }))
    }
}

/// Where a network namespace of this name is.
fn netns(name: String) -> Result<PathBuf, wire::Error> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(wire::Error::field(
            "net.netns",
            format!("must be a name under /run/netns, not {name:?}"),
        ));
    }
    let path = Path::new("/run/netns").join(name);
    if !path.exists() {
        return Err(Error::NoNetns { path }.into());
    }
    Ok(path)
}

fn address(document: &Document, field: &str) -> Result<Ipv4Addr, wire::Error> {
    let text = document.need::<String>(field)?;
    text.parse().map_err(|_| wire::Error::field(field, format!("must be an IPv4 address, not {text:?}")))
}

fn readable(field: &'static str, path: PathBuf) -> Result<PathBuf, Error> {
    let opened = File::open(&path).and_then(|file| file.metadata());
    usable(field, path, opened)
}

fn writable(field: &'static str, path: PathBuf) -> Result<PathBuf, Error> {
    let opened = File::options().read(true).write(true).open(&path).and_then(|file| file.metadata());
    usable(field, path, opened)
}

fn usable(
    field: &'static str,
    path: PathBuf,
    opened: std::io::Result<std::fs::Metadata>,
) -> Result<PathBuf, Error> {
    match opened {
        Ok(metadata) if metadata.is_dir() => {
            Err(Error::File { field, path, what: "is a directory", source: None })
        }
        Ok(_) => Ok(path),
        Err(error) => Err(Error::File { field, path, what: "cannot be opened", source: Some(error) }),
    }
}
