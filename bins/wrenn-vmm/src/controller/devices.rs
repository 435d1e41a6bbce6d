//! A machine's devices, opened as it is configured.

use crate::config::Config;
use crate::virtio::{Balloon, Block, Devices, Error, Net, Rng};

/// Opens all of them.
pub fn open(config: &Config) -> Result<Devices, Error> {
    Ok(Devices {
        balloon: config.balloon.as_ref().map(Balloon::new),
        blocks: config.drives.iter().map(Block::open).collect::<Result<_, _>>()?,
        nets: config.nets.iter().map(Net::open).collect::<Result<_, _>>()?,
        rng: config.entropy.as_ref().map(|_| Rng::new()),
    })
}
