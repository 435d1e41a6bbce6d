//! Where text goes: a file, a FIFO, or what stands behind the standard output. Whoever writes never waits for a reader.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A place for text.
#[derive(Debug)]
pub struct Output(Option<File>);

impl Output {
    /// The standard output.
    pub const STDOUT: Self = Self(None);

    /// A file, made where it is missing and appended to, or a FIFO, whose reader may come later.
    ///
    /// # Errors
    /// What `open(2)` said.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Opened for reading too: a FIFO without a reader can be opened then.
        let file =
            File::options().read(true).append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok(Self(Some(file)))
    }

    /// Writes all of it, unless it would have to wait: then the rest is dropped. Returns how much was written.
    ///
    /// The standard output's description is shared with others, so it is asked rather than made non-blocking. What it
    /// takes then without waiting is 4 KiB if it is a pipe.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for piece in bytes.chunks(4096) {
            let mut fds = [PollFd::new(self.fd(), PollFlags::POLLOUT)];
            let ready = poll(&mut fds, PollTimeout::ZERO) == Ok(1)
                && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT));
            if !ready {
                break;
            }
            let written = match &self.0 {
                Some(file) => (&*file).write(piece),
                None => nix::unistd::write(self.fd(), piece).map_err(Into::into),
            };
            match written {
                Ok(count) if count == piece.len() => done += count,
                Ok(count) => return done + count,
                Err(_) => break,
            }
        }
        done
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Some(file) => file.as_fd(),
            // SAFETY: descriptor 1 stays what it is for as long as the program runs: nobody here closes it, and where it
            // was never open every write fails.
            None => unsafe { BorrowedFd::borrow_raw(libc::STDOUT_FILENO) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_file_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for word in ["one ", "two"] {
            assert_eq!(Output::open(&path).unwrap().write(word.as_bytes()), word.len());
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one two");
    }

    #[test]
    fn a_fifo_that_nobody_reads_is_filled_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let output = Output::open(&path).unwrap();
        let mut written = 0;
        let mut last = 1;
        while last > 0 {
            last = output.write(&[b'x'; 10_000]);
            written += last;
        }
        assert!(written >= 4096, "{written}");
        // A reader that comes late gets what there was room for.
        let mut reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let mut bytes = vec![0; written + 1];
        let mut got = 0;
        while let Ok(count @ 1..) = reader.read(&mut bytes[got..]) {
            got += count;
        }
        assert_eq!(got, written);
    }
}
