//! Tap devices: network interfaces whose other end is a file descriptor. Netlink cannot make one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// The device that makes them.
pub const DEVICE: &str = "/dev/net/tun";

/// What a thread needs to have opened to attach to taps: it makes them in the network namespace that the opening
/// thread was in.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Opens [`DEVICE`] in the calling thread's network namespace.
    ///
    /// # Errors
    /// What open said: ENOENT or ENODEV where the tun module is missing.
    pub fn open() -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(DEVICE).map(Self)
    }

    /// Attaches to the tap of that name, made now unless it exists. Without [`Tap::persist`] a tap that was made goes
    /// with the descriptor.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is empty or longer than 15 bytes; otherwise what TUNSETIFF said: EPERM without
    /// CAP_NET_ADMIN, EBUSY when somebody else is attached.
    pub fn attach(self, name: &str) -> io::Result<Tap> {
        self.attach_as(name, libc::IFF_TAP | libc::IFF_NO_PI)
    }

    /// The same, with a `virtio_net_hdr` before each frame, both ways.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    pub fn attach_with_header(self, name: &str) -> io::Result<Tap> {
        self.attach_as(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)
    }

    fn attach_as(self, name: &str, flags: libc::c_int) -> io::Result<Tap> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: ifreq is made of integers and arrays and unions of them: all zeros is a value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: a tun descriptor and a pointer to an ifreq that lives through the call, as TUNSETIFF wants.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
        Ok(Tap(self.0))
    }
}

/// A descriptor attached to a tap: each read takes an Ethernet frame that the interface sends, each write is a frame
/// that it receives.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Lets the interface outlive its descriptors.
    ///
    /// # Errors
    /// What TUNSETPERSIST said.
    pub fn persist(&self) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes a tun descriptor and an integer.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETPERSIST as _, 1) })?;
        Ok(())
    }

    /// Sets how long the header before each frame is, bytes.
    ///
    /// # Errors
    /// What TUNSETVNETHDRSZ said.
    pub fn set_header_size(&self, bytes: libc::c_int) -> io::Result<()> {
        // SAFETY: TUNSETVNETHDRSZ takes a tun descriptor and a pointer to an int, which lives through the call.
        Errno::result(unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const bytes)
        })?;
        Ok(())
    }

    /// Sets what the reader takes unfinished (`TUN_F_…` of linux/if_tun.h): checksums, and frames yet to be segmented.
    ///
    /// # Errors
    /// What TUNSETOFFLOAD said: EINVAL for what the kernel does not know.
    pub fn set_offloads(&self, flags: libc::c_uint) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes a tun descriptor and an integer.
        Errno::result(unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags))
        })?;
        Ok(())
    }

    /// The descriptor.
    pub fn file(&self) -> &File {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_kernel_would_cut_is_refused() {
        let Ok(tun) = Tun::open() else {
            return wrenn_tests::skip::here(format!("there is no {DEVICE} to open"));
        };
        let error = tun.attach("sixteen-letters-").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
