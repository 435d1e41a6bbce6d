//! Guest memory that a descriptor chain names, used where it is: file and socket data go straight in and out.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::{Bitmap, MS};

use crate::memory::GuestMemory;

/// Contiguous guest memory.
pub type Slice<'m> = VolatileSlice<'m, MS<'m, GuestMemory>>;

/// Most iovecs a call takes: `UIO_MAXIOV`.
const IOVECS: usize = 1024;

/// Pieces of guest memory, in the order of the chain. None is empty.
#[derive(Default)]
pub struct Buffers<'m> {
    slices: VecDeque<Slice<'m>>,
    bytes: usize,
}

impl<'m> Buffers<'m> {
    /// Appends a piece.
    pub fn push(&mut self, slice: Slice<'m>) {
        if !slice.is_empty() {
            self.bytes += slice.len();
            self.slices.push_back(slice);
        }
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Takes bytes off the front; `None` when there are fewer.
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.bytes < N {
            return None;
        }
        let mut into = [0; N];
        let mut done = 0;
        while done < N {
            let slice = self.slices.pop_front()?;
            let moved = slice.copy_to(&mut into[done..]);
            done += moved;
            if moved < slice.len() {
                self.slices.push_front(slice.offset(moved).ok()?);
            }
        }
        self.bytes -= N;
        Some(into)
    }

    /// Takes the last byte off.
    pub fn take_last(&mut self) -> Option<Slice<'m>> {
        let (rest, last) = {
            let slice = self.slices.pop_back()?;
            slice.split_at(slice.len() - 1).ok()?
        };
        self.bytes -= 1;
        if !rest.is_empty() {
            self.slices.push_back(rest);
        }
        Some(last)
    }

    /// Copies `data` in, as much as fits. Returns how much that was.
    pub fn write(&self, data: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            let part = &data[done..data.len().min(done + slice.len())];
            slice.copy_from(part);
            done += part.len();
        }
        done
    }

    /// Copies what fits into `into`, from the front. Returns how much that was.
    pub fn read(&self, into: &mut [u8]) -> usize {
        self.slices.iter().fold(0, |done, slice| done + slice.copy_to(&mut into[done..]))
    }

    /// Fills all of it from a file.
    ///
    /// # Errors
    /// What preadv said; `UnexpectedEof` where the file ends.
    pub fn fill_from(&self, file: &File, offset: u64) -> io::Result<()> {
        // How far a failed read came is not known, so all counts as written.
        for slice in &self.slices {
            slice.bitmap().mark_dirty(0, slice.len());
        }
        self.transfer(io::ErrorKind::UnexpectedEof, |vectors, done| {
            let (fd, count) = (file.as_raw_fd(), vectors.len() as libc::c_int);
            // SAFETY: each iovec is a piece of guest memory, mapped as long as `self` borrows it. The guest may use
            // it meanwhile, as it may during any device's access: no Rust reference to it exists.
            unsafe { libc::preadv(fd, vectors.as_ptr(), count, (offset + done) as libc::off_t) }
        })
    }

    /// Writes all of it to a file.
    ///
    /// # Errors
    /// What pwritev said; `WriteZero` where it wrote nothing.
    pub fn drain_to(&self, file: &File, offset: u64) -> io::Result<()> {
        self.transfer(io::ErrorKind::WriteZero, |vectors, done| {
            let (fd, count) = (file.as_raw_fd(), vectors.len() as libc::c_int);
            // SAFETY: as in `fill_from`; the memory is only read.
            unsafe { libc::pwritev(fd, vectors.as_ptr(), count, (offset + done) as libc::off_t) }
        })
    }

    /// Hands all of it to one writev, as one message.
    ///
    /// # Errors
    /// What writev said; `InvalidInput` for more pieces than it takes.
    pub fn send(&self, file: &File) -> io::Result<()> {
        let vectors = self.vectors();
        if vectors.len() > IOVECS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: as in `fill_from`; the memory is only read.
        match unsafe { libc::writev(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn vectors(&self) -> Vec<libc::iovec> {
        let vector = |slice: &Slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        };
        self.slices.iter().map(vector).collect()
    }

    fn transfer(
        &self,
        nothing: io::ErrorKind,
        mut call: impl FnMut(&[libc::iovec], u64) -> libc::ssize_t,
    ) -> io::Result<()> {
        let mut vectors = self.vectors();
        let (mut first, mut done) = (0, 0);
        while first < vectors.len() {
            let end = vectors.len().min(first + IOVECS);
            let mut moved = match call(&vectors[first..end], done) {
                0 => return Err(nothing.into()),
                moved @ 1.. => moved as usize,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                },
            };
            done += moved as u64;
            while first < end && moved >= vectors[first].iov_len {
                moved -= vectors[first].iov_len;
                first += 1;
            }
            if moved > 0 {
                let vector = &mut vectors[first];
                vector.iov_base = vector.iov_base.wrapping_byte_add(moved);
                vector.iov_len -= moved;
            }
        }
        Ok(())
    }
}
