//! The network device (virtio 1.2, 5.1): a tap of the host.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::net::if_::if_nametoindex;
use sys::tap::{Tap, Tun};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;

use super::Error;
use super::device::Device;
use super::ring::{Broken, Ring};
use crate::config::NetworkInterface;

/// Bytes of `virtio_net_hdr_v1`, which goes before each frame on both sides.
const HEADER: usize = 12;
/// Where in it the number of buffers is that a frame came in.
const NUM_BUFFERS: usize = 10;
/// Bytes of a frame with its header, at most: what segmentation offload passes on at once.
const FRAME: usize = 65562;

const RX: usize = 0;

/// Features of the driver that the tap must know of, in its words (linux/if_tun.h).
const OFFLOADS: [(u32, libc::c_uint); 4] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_UFO, libc::TUN_F_UFO),
];

/// A network interface, attached to its tap.
#[derive(Debug)]
pub struct Net {
    tap: Tap,
    id: String,
    mac: Option<[u8; 6]>,
    /// What tap and device can, beside the MAC.
    features: u64,
    /// Whether a frame may come in several buffers.
    mergeable: bool,
    /// What the tap is yet to be told: the io thread may do that, a vCPU's may not.
    offloads: Option<libc::c_uint>,
    frame: Vec<u8>,
    /// Bytes of the frame that waits for buffers.
    waiting: Option<usize>,
}

impl Net {
    /// Attaches to an interface's tap.
    ///
    /// # Errors
    /// When there is no such tap in the thread's network namespace, somebody else is attached, or the MAC is none.
    pub fn open(interface: &NetworkInterface) -> Result<Self, Error> {
        let (id, name) = (interface.iface_id.clone(), interface.host_dev_name.clone());
        let mac = interface
            .guest_mac
            .as_deref()
            .map(|mac| parse_mac(mac).ok_or_else(|| Error::Mac { id: id.clone(), mac: mac.into() }));
        let mac = mac.transpose()?;
        // Attaching would make it: one without address and peer.
        if if_nametoindex(name.as_str()).is_err() {
            return Err(Error::NoTap { id, tap: name });
        }
        match attach(&name) {
            Ok((tap, features)) => Ok(Self {
                tap,
                id,
                mac,
                features,
                mergeable: false,
                offloads: None,
                frame: vec![0; FRAME],
                waiting: None,
            }),
            Err(source) => Err(Error::Tap { id, tap: name, source }),
        }
    }

    /// Frames for the guest. The tap is read only when there are buffers, so what they do not suffice for waits there.
    fn receive(&mut self, ring: &mut Ring) -> Result<(), Broken> {
        while ring.ready()? {
            let bytes = match self.waiting {
                Some(bytes) => bytes,
                None => match self.tap.file().read(&mut self.frame) {
                    Ok(bytes) => *self.waiting.insert(bytes),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => {
                        log::warn!("network interface {}: the tap cannot be read: {error}", self.id);
                        break;
                    }
                },
            };
            if bytes > HEADER && !self.deliver(bytes, ring)? {
                break;
            }
            self.waiting = None;
        }
        Ok(())
    }

    /// Puts the frame into as many buffers as it needs. `false`: there are too few yet.
    fn deliver(&mut self, bytes: usize, ring: &mut Ring) -> Result<bool, Broken> {
        let most = if self.mergeable { ring.size() } else { 1 };
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < bytes {
            if chains.len() == usize::from(most) {
                log::debug!("network interface {}: a frame of {bytes} bytes is too large", self.id);
                ring.unpop(most);
                return Ok(true);
            }
            match ring.pop()? {
                Some(chain) => {
                    room += chain.writable.len();
                    chains.push(chain);
                }
                None => {
                    ring.unpop(chains.len() as u16);
                    return Ok(false);
                }
            }
        }
        self.frame[NUM_BUFFERS..HEADER].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        let mut rest = &self.frame[..bytes];
        let used: Vec<(u16, u32)> = chains
            .iter()
            .map(|chain| {
                let written = chain.writable.write(rest);
                rest = &rest[written..];
                (chain.head, written as u32)
            })
            .collect();
        ring.push_together(&used)?;
        Ok(true)
    }

    /// Frames of the guest. One that the tap does not take is lost, as on a wire.
    fn transmit(&self, ring: &mut Ring) -> Result<(), Broken> {
        while let Some(chain) = ring.pop()? {
            if (HEADER + 1..=FRAME).contains(&chain.readable.len())
                && let Err(error) = chain.readable.send(self.tap.file())
            {
                log::debug!("network interface {}: a frame is lost: {error}", self.id);
            }
            ring.push(chain.head, 0)?;
        }
        Ok(())
    }
}

/// Attaches to a tap; the features that it makes possible.
fn attach(name: &str) -> io::Result<(Tap, u64)> {
    let tap = Tun::open()?.attach_with_header(name)?;
    fcntl(tap.file(), FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
    tap.set_header_size(HEADER as libc::c_int)?;
    let mut features = 1 << VIRTIO_NET_F_CSUM
        | 1 << VIRTIO_NET_F_GUEST_CSUM
        | 1 << VIRTIO_NET_F_HOST_TSO4
        | 1 << VIRTIO_NET_F_HOST_TSO6
        | 1 << VIRTIO_NET_F_GUEST_TSO4
        | 1 << VIRTIO_NET_F_GUEST_TSO6
        | 1 << VIRTIO_NET_F_MRG_RXBUF;
    // Kernels between 4.14 and the newest take it only in name, some not at all.
    let ufo = 1 << VIRTIO_NET_F_GUEST_UFO | 1 << VIRTIO_NET_F_HOST_UFO;
    match tap.set_offloads(offloads(features | ufo)) {
        Ok(()) => features |= ufo,
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {}
        Err(error) => return Err(error),
    }
    Ok((tap, features))
}

/// Features in the tap's words.
fn offloads(features: u64) -> libc::c_uint {
    let taken = OFFLOADS.iter().filter(|(feature, _)| features & 1 << feature != 0);
    taken.fold(0, |all, (_, flag)| all | flag)
}

/// Six bytes in hexadecimal, with colons between.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

impl Device for Net {
    fn kind(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        self.features | u64::from(self.mac.is_some()) << VIRTIO_NET_F_MAC
    }

    fn queues(&self) -> usize {
        2
    }

    fn config(&self) -> Vec<u8> {
        self.mac.unwrap_or_default().to_vec()
    }

    fn start(&mut self, features: u64) -> io::Result<()> {
        self.mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        self.offloads = Some(offloads(features));
        Ok(())
    }

    fn reset(&mut self) {
        self.waiting = None;
    }

    fn process(&mut self, queue: usize, ring: &mut Ring) -> Result<(), Broken> {
        if let Some(offloads) = self.offloads.take() {
            self.tap.set_offloads(offloads).map_err(|error| Broken(format!("the tap refuses: {error}")))?;
        }
        if queue == RX { self.receive(ring) } else { self.transmit(ring) }
    }

    fn source(&self) -> Option<(BorrowedFd<'_>, usize)> {
        Some((self.tap.file().as_fd(), RX))
    }
}
