//! Files mapped into memory, read-only.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Deref;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};

/// A whole file, readable as a slice. Reading it copies nothing.
///
/// A mapped file must keep its length: reading past an end that moved raises SIGBUS. It is for files that are never
/// changed once they have their name (published snapshots) or that belong to this process alone.
#[derive(Debug)]
pub struct Mapping(Option<memmap2::Mmap>);

impl Mapping {
    /// Maps the file as long as it is now. An empty file maps to an empty slice.
    ///
    /// # Errors
    /// What `mmap(2)` said.
    pub fn of(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the map is private to this value and only read through `&[u8]`. That the bytes do not change and the
        // file does not shrink meanwhile is the rule for the files this is used on (see the type's comment).
        unsafe { memmap2::Mmap::map(file) }.map(|map| Self(Some(map)))
    }
}

/// Copies bytes of a mapped file. Unlike reading them, it is an error and no SIGBUS when they cannot be had: because the file
/// was cut short, or its disk fails.
///
/// # Errors
/// `EFAULT`; what `process_vm_readv(2)` said.
pub fn copy(from: &[u8], into: &mut [u8]) -> io::Result<()> {
    let length = from.len().min(into.len());
    let remote = [RemoteIoVec { base: from.as_ptr() as usize, len: length }];
    // Of ourselves: the kernel reads, and meets the fault.
    match process_vm_readv(nix::unistd::getpid(), &mut [IoSliceMut::new(&mut into[..length])], &remote)? {
        done if done == length => Ok(()),
        _ => Err(nix::errno::Errno::EFAULT.into()),
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_off_a_mapped_file_is_an_error_and_the_rest_is_copied() {
        let path = std::env::temp_dir().join(format!("wrenn-mapping-{}", std::process::id()));
        std::fs::write(&path, [7; 8192]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mapping = Mapping::of(&file).unwrap();
        file.set_len(4096).unwrap();
        let mut bytes = [0; 4096];
        copy(&mapping[..4096], &mut bytes).unwrap();
        assert_eq!(bytes, [7; 4096]);
        let error = copy(&mapping[4096..], &mut bytes).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    }
}
