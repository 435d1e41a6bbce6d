//! The entropy device (virtio 1.2, 5.4): the host kernel's random bytes.

use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::device::Device;
use super::ring::{Broken, Ring};

/// Bytes a request gets, at most.
const REQUEST: usize = 64 << 10;

/// An entropy device.
#[derive(Debug, Default)]
pub struct Rng;

impl Rng {
    /// An entropy device.
    pub fn new() -> Self {
        Self
    }
}

impl Device for Rng {
    fn kind(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> usize {
        1
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn start(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn process(&mut self, _queue: usize, ring: &mut Ring) -> Result<(), Broken> {
        while let Some(chain) = ring.pop()? {
            let mut bytes = vec![0; chain.writable.len().min(REQUEST)];
            // A driver takes an empty answer for one to ask again after.
            let got = match random(&mut bytes) {
                Ok(()) => chain.writable.write(&bytes),
                Err(error) => {
                    log::error!("no random bytes: {error}");
                    0
                }
            };
            ring.push(chain.head, got as u32)?;
        }
        Ok(())
    }
}

/// Random bytes from getrandom(2).
fn random(mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        // SAFETY: the pointer and the length are those of a slice that lives through the call.
        match unsafe { libc::getrandom(into.as_mut_ptr().cast(), into.len(), 0) } {
            got @ 0.. => into = &mut into[got as usize..],
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}
