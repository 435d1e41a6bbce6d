//! The block device (virtio 1.2, 5.2): a file or block device of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::Error;
use super::buffers::Buffers;
use super::device::Device;
use super::ring::{Broken, Chain, QUEUE_SIZE, Ring};
use crate::config::{CacheType, Drive};

/// Bytes of a sector: the unit of capacities and addresses, whatever the disk's own is.
const SECTOR: u64 = 512;
/// Pieces of a request, at most: with header and status it fits into a queue.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;

/// A disk, opened.
#[derive(Debug)]
pub struct Block {
    file: File,
    id: String,
    sectors: u64,
    read_only: bool,
    flush: bool,
}

/// Why a request did not succeed.
enum Failed {
    /// The host could not.
    Host(io::Error),
    /// The guest should not have asked.
    Refused,
    /// There is no such request.
    Unsupported,
}

impl Block {
    /// Opens a disk.
    ///
    /// # Errors
    /// When the file cannot be opened as the drive wants it, or is no disk.
    pub fn open(drive: &Drive) -> Result<Self, Error> {
        let (id, path) = (drive.drive_id.clone(), drive.path_on_host.clone());
        let opened =
            OpenOptions::new().read(true).write(!drive.is_read_only).open(&path).and_then(|mut file| {
                let kind = file.metadata()?.file_type();
                let disk = kind.is_file() || kind.is_block_device();
                // Where a block device ends, its length does not say.
                Ok((if disk { Some(file.seek(SeekFrom::End(0))?) } else { None }, file))
            });
        match opened {
            Ok((Some(bytes), file)) => {
                if bytes % SECTOR != 0 {
                    log::warn!("drive {id}: the guest does not see its last {} bytes", bytes % SECTOR);
                }
                let flush = drive.cache_type == CacheType::Writeback;
                Ok(Self { file, id, sectors: bytes / SECTOR, read_only: drive.is_read_only, flush })
            }
            Ok((None, _)) => Err(Error::NoDisk { id, path }),
            Err(source) => Err(Error::Drive { id, path, source }),
        }
    }

    /// Does a request. Returns how many bytes were written to the driver.
    fn serve(&self, mut chain: Chain) -> Result<u32, Broken> {
        let Some(status) = chain.writable.take_last() else {
            return Err(Broken("a request has no place for its status".into()));
        };
        let Some(header) = chain.readable.take::<16>() else {
            return Err(Broken("a request has no header".into()));
        };
        let (code, written) = match self.transfer(&header, &chain) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Failed::Host(error)) => {
                log::error!("drive {}: a request failed: {error}", self.id);
                (VIRTIO_BLK_S_IOERR, 0)
            }
            Err(Failed::Refused) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Failed::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        status.copy_from(&[code as u8]);
        Ok(written as u32 + 1)
    }

    /// The part of a request between header and status.
    fn transfer(&self, header: &[u8; 16], chain: &Chain) -> Result<usize, Failed> {
        let (&kind, header) = header.split_first_chunk().ok_or(Failed::Unsupported)?;
        let (_, &sector) = header.split_last_chunk().ok_or(Failed::Unsupported)?;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes(kind) {
            VIRTIO_BLK_T_IN => {
                let offset = self.offset(sector, &chain.writable)?;
                chain.writable.fill_from(&self.file, offset)?;
                Ok(chain.writable.len())
            }
            VIRTIO_BLK_T_OUT if self.read_only => Err(Failed::Refused),
            VIRTIO_BLK_T_OUT => {
                let offset = self.offset(sector, &chain.readable)?;
                chain.readable.drain_to(&self.file, offset)?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => {
                if self.flush {
                    self.file.sync_data()?;
                }
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
                for (to, from) in id.iter_mut().zip(self.id.bytes()) {
                    *to = from;
                }
                Ok(chain.writable.write(&id))
            }
            _ => Err(Failed::Unsupported),
        }
    }

    /// Where on the disk a transfer of all of `buffers` starts. It must be of whole sectors and end on the disk too.
    fn offset(&self, sector: u64, buffers: &Buffers) -> Result<u64, Failed> {
        let bytes = buffers.len() as u64;
        match sector.checked_add(bytes / SECTOR) {
            Some(end) if end <= self.sectors && bytes.is_multiple_of(SECTOR) => Ok(sector * SECTOR),
            _ => Err(Failed::Refused),
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl Device for Block {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let only_if = |condition: bool, feature: u32| u64::from(condition) << feature;
        1 << VIRTIO_BLK_F_SEG_MAX
            | only_if(self.flush, VIRTIO_BLK_F_FLUSH)
            | only_if(self.read_only, VIRTIO_BLK_F_RO)
    }

    fn queues(&self) -> usize {
        1
    }

    fn config(&self) -> Vec<u8> {
        // capacity, size_max, seg_max
        [&self.sectors.to_le_bytes()[..], &0_u32.to_le_bytes(), &SEGMENTS.to_le_bytes()].concat()
    }

    fn start(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn process(&mut self, _queue: usize, ring: &mut Ring) -> Result<(), Broken> {
        while let Some(chain) = ring.pop()? {
            let head = chain.head;
            ring.push(head, self.serve(chain)?)?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_all() }
    }
}
