//! The process that answers this one's page faults: Firecracker's handshake.
//!
//! One message: a JSON array with an object for each region, and with it the userfaultfd. There is no answer. The server
//! may take the end of the connection for the end of the VMM, so the connection stays open.

use std::io;
use std::io::PipeWriter;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MmapAdvise, madvise};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_to, socket};
use nix::sys::socket::{setsockopt, sockopt::SendTimeout};
use nix::sys::time::TimeVal;
use serde::Serialize;
use sys::uffd::Uffd;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{Error, GuestMemory, PAGE};

/// How long the server may take to accept, and to take the message.
const LIMIT_S: i64 = 5;

/// A region of memory in the handshake.
#[derive(Debug, Serialize)]
struct Region {
    base_host_virt_addr: u64,
    size: u64,
    /// In the image.
    offset: u64,
    /// Bytes.
    page_size: u64,
    /// Bytes too: the older name.
    page_size_kib: u64,
}

/// A connection that nothing was said on yet.
pub(super) struct Connected(UnixStream);

/// Reaches the server.
pub(super) fn connect(path: &Path) -> Result<Connected, Error> {
    let connect = || {
        let address = UnixAddr::new(path)?;
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, SendTimeout, &TimeVal::new(LIMIT_S, 0))?;
        connect_to(socket.as_raw_fd(), &address)?;
        Ok(UnixStream::from(socket))
    };
    connect()
        .map(Connected)
        .map_err(|error: nix::Error| Error::Connect { path: path.into(), source: error.into() })
}

impl Connected {
    /// Registers the memory, none of which may have been touched, and hands it over.
    pub fn hand_over(self, memory: &GuestMemory) -> Result<PageServer, Error> {
        let uffd = Uffd::create().map_err(Error::Uffd)?;
        let mut regions = Vec::new();
        let mut offset = 0;
        for (address, size) in ranges(memory)? {
            keep_pages_small(address, size)?;
            // SAFETY: it is guest memory: accessed only by guests, system calls and volatile accesses.
            unsafe { uffd.register_range(address, size) }.map_err(Error::Register)?;
            regions.push(Region {
                base_host_virt_addr: address,
                size,
                offset,
                page_size: PAGE,
                page_size_kib: PAGE,
            });
            offset += size;
        }
        let message = serde_json::to_vec(&regions).map_err(|error| Error::HandOver(error.into()))?;
        let sent = sys::fdpass::send(&self.0, &message, &[uffd.as_fd()]).map_err(Error::HandOver)?;
        if sent != message.len() {
            return Err(Error::HandOver(io::ErrorKind::WriteZero.into()));
        }
        Ok(PageServer { socket: self.0, uffd: Arc::new(uffd) })
    }
}

/// A server that has the memory.
pub(super) struct PageServer {
    socket: UnixStream,
    /// Our own copy: should the server die, missing pages must not turn into zeros.
    uffd: Arc<Uffd>,
}

impl PageServer {
    /// See [`super::Ram::watch`].
    pub fn watch(&self, memory: &GuestMemory) -> Result<Watch, Error> {
        let (end, stop) = io::pipe().map_err(Error::Watch)?;
        let socket = self.socket.try_clone().map_err(Error::Watch)?;
        let ranges = ranges(memory)?;
        let uffd = self.uffd.clone();
        let gone = Arc::new(AtomicBool::new(false));
        let said = gone.clone();
        let watch = move || {
            loop {
                let mut fds = [
                    PollFd::new(socket.as_fd(), PollFlags::empty()),
                    PollFd::new(end.as_fd(), PollFlags::POLLIN),
                ];
                match poll(&mut fds, PollTimeout::NONE) {
                    Err(nix::Error::EINTR) => {}
                    Ok(_) if fds[1].any() != Some(true) => break,
                    _ => return,
                }
            }
            // Closed by a server that has read the message: it may serve all the same.
            if matches!(socket.take_error(), Ok(None)) {
                return;
            }
            said.store(true, Ordering::Release);
            for (address, size) in ranges {
                let _ = uffd.unregister(address, size);
            }
        };
        let thread =
            std::thread::Builder::new().name("page server".into()).spawn(watch).map_err(Error::Watch)?;
        Ok(Watch { gone, stop: Some(stop), thread: Some(thread) })
    }
}

/// Notices a page server that leaves without having taken the memory: the kernel tells a message that was never read by
/// ECONNRESET. Who waits for a page of such a server would wait for ever: they are let go, with zeros, so that they can
/// ask [`Watch::gone`] and give up.
pub struct Watch {
    gone: Arc<AtomicBool>,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Ends the watch. Whether the server left in its time; then the memory is not what it should be.
    pub fn gone(mut self) -> bool {
        self.end();
        self.gone.load(Ordering::Acquire)
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

/// A huge page put together around pages that came would make zeros of those that are missing: older kernels' khugepaged
/// does that where `shmem_enabled` allows it.
fn keep_pages_small(address: u64, size: u64) -> Result<(), Error> {
    let Some(start) = NonNull::new(address as *mut libc::c_void) else { return Ok(()) };
    // SAFETY: the advice changes no content and unmaps nothing.
    match unsafe { madvise(start, size as usize, MmapAdvise::MADV_NOHUGEPAGE) } {
        // A kernel without huge pages does not know the advice.
        Ok(()) | Err(nix::Error::EINVAL) => Ok(()),
        Err(errno) => Err(Error::Register(errno.into())),
    }
}

/// Address in this process, and bytes, of each region.
fn ranges(memory: &GuestMemory) -> Result<Vec<(u64, u64)>, Error> {
    memory
        .iter()
        .map(|region| {
            let start = region.get_host_address(MemoryRegionAddress::new(0));
            start
                .map(|start| (start as u64, region.len()))
                .map_err(|error| Error::Register(io::Error::other(error)))
        })
        .collect()
}
