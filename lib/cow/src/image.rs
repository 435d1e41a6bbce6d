//! The image: what a disk is before anything is written to it. Never changed, shared by all disks over it.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::exceptions::SECTOR;

/// An image that can be a disk's origin.
#[derive(Debug)]
pub struct Image {
    /// As it was given.
    pub path: PathBuf,
    /// Opened read-only.
    pub file: File,
    /// Its size in bytes, a multiple of 512: the size of the disk too.
    pub bytes: u64,
}

impl Image {
    /// Opens and checks it.
    ///
    /// # Errors
    /// When it is not there, not a file, or of a size that a block device cannot have.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Image { path: path.to_owned(), source };
        // Opening a device or a FIFO may have effects or wait: looked at first.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(Error::ImageKind { path: path.to_owned() });
        }
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return Err(Error::ImageSize { path: path.to_owned(), bytes });
        }
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    /// Opens it and checks that it still has the size that a disk was made over.
    ///
    /// # Errors
    /// As [`Image::open`]; when its size is another.
    pub fn open_again(path: &Path, expected: Option<u64>) -> Result<Self, Error> {
        let image = Self::open(path)?;
        match expected {
            Some(expected) if expected != image.bytes => {
                Err(Error::ImageChanged { path: path.to_owned(), found: image.bytes, expected })
            }
            _ => Ok(image),
        }
    }
}
