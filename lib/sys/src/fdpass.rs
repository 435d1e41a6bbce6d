//! Descriptors passed over Unix sockets (SCM_RIGHTS), and who is at the other end (SO_PEERCRED, SO_PEERPIDFD).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt::PeerCredentials,
};

use crate::process::{Process, readable};

/// How many descriptors one message can bring (`SCM_MAX_FD`): with room for all of them, none is ever cut off, and none
/// gets lost in between.
const ROOM: usize = 253;

/// One piece of a stream.
#[derive(Debug)]
pub struct Received {
    /// How many bytes it brought. 0 means that the peer has closed its end.
    pub bytes: usize,
    /// The descriptors that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Reads what the socket has into `buffer`, with the descriptors that came along.
///
/// # Errors
/// What `recvmsg(2)` said.
pub fn receive(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = nix::cmsg_space!([i32; ROOM]);
    let mut pieces = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just put these descriptors into this process for us, nobody else owns them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(Received { bytes: message.bytes, fds })
}

/// Sends `bytes`, of which there must be at least one, and copies of `fds` with them. Returns how many bytes went out;
/// the descriptors went with the first.
///
/// # Errors
/// What `sendmsg(2)` said.
pub fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let pieces = [IoSlice::new(bytes)];
    Ok(sendmsg::<()>(socket.as_raw_fd(), &pieces, control, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Whether something that was sent has not been read at the other end yet.
///
/// # Errors
/// What `ioctl(2)` said.
pub fn is_unread(socket: &UnixStream) -> io::Result<bool> {
    nix::ioctl_read_bad!(outq, libc::TIOCOUTQ, libc::c_int);
    let mut bytes = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int.
    unsafe { outq(socket.as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes > 0)
}

/// Who is at the other end of a socket, as of the moment it connected (or, seen from the client, listened).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its pid, 0 when it lives in a pid namespace that cannot be seen from here.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
}

/// Who is at the other end.
///
/// # Errors
/// What `getsockopt(2)` said.
pub fn peer(socket: &UnixStream) -> io::Result<Peer> {
    let credentials = getsockopt(socket, PeerCredentials)?;
    Ok(Peer { pid: credentials.pid(), uid: credentials.uid() })
}

/// The process at the other end. `None` when it has ended: whoever has its pid by now is not taken for it; also when it
/// lives in a pid namespace that cannot be seen from here. Before Linux 6.5, which have no `SO_PEERPIDFD`, also when it has
/// closed its end: an open one is all that tells there that it still has its pid.
///
/// # Errors
/// What `getsockopt(2)` or `poll(2)` said.
pub fn peer_process(socket: &UnixStream) -> io::Result<Option<Process>> {
    let pidfd = match peer_pidfd(socket) {
        Err(Errno::ENOPROTOOPT) => None,
        // It was collected already.
        Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => return Ok(None),
        pidfd => Some(pidfd?),
    };
    let Ok(process) = Process::of_pid(peer(socket)?.pid) else { return Ok(None) };
    // Asked after the pid was looked up: who has not ended by now had it then.
    let ended = match &pidfd {
        Some(pidfd) => readable(pidfd, Duration::ZERO)?,
        None => is_closed(socket)?,
    };
    Ok((!ended).then_some(process))
}

/// A descriptor of the process at the other end.
fn peer_pidfd(socket: &UnixStream) -> Result<OwnedFd, Errno> {
    let mut raw: libc::c_int = -1;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes, which is what there is, and the size back.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut raw).cast(),
            &raw mut size,
        )
    };
    Errno::result(done)?;
    // SAFETY: the kernel has just put this descriptor into this process for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Whether the other end is closed.
fn is_closed(socket: &UnixStream) -> io::Result<bool> {
    // POLLHUP, which needs no asking for.
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    Ok(fds[0].any() == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_descriptor_arrives_with_its_bytes_and_works() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        assert_eq!(send(&here, b"hello", &[writer.as_fd()]).unwrap(), 5);
        drop(writer);
        let mut buffer = [0; 16];
        let received = receive(&there, &mut buffer).unwrap();
        assert_eq!((&buffer[..received.bytes], received.fds.len()), (&b"hello"[..], 1));
        std::fs::File::from(received.fds.into_iter().next().unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn what_was_sent_is_unread_until_it_is_read() {
        let (here, there) = UnixStream::pair().unwrap();
        assert!(!is_unread(&here).unwrap());
        send(&here, b"hello", &[]).unwrap();
        assert!(is_unread(&here).unwrap());
        receive(&there, &mut [0; 16]).unwrap();
        assert!(!is_unread(&here).unwrap());
    }

    #[test]
    fn as_many_descriptors_as_a_message_can_bring_are_received_and_none_leaks() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&here, b"x", &[writer.as_fd(); ROOM]).unwrap();
        drop(writer);
        assert_eq!(receive(&there, &mut [0; 16]).unwrap().fds.len(), ROOM);
        let mut rest = Vec::new();
        // Returns only when every copy of the writing end is closed.
        reader.read_to_end(&mut rest).unwrap();
    }

    #[test]
    fn the_process_at_the_other_end_of_ones_own_socket_is_oneself() {
        let (here, there) = UnixStream::pair().unwrap();
        assert_eq!(peer_process(&here).unwrap(), Some(Process::current().unwrap()));
        assert!(!is_closed(&here).unwrap());
        drop(there);
        assert!(is_closed(&here).unwrap());
    }

    #[test]
    fn the_peer_of_ones_own_socket_is_oneself() {
        let (here, _there) = UnixStream::pair().unwrap();
        let me = Peer { pid: std::process::id() as i32, uid: nix::unistd::geteuid().as_raw() };
        assert_eq!(peer(&here).unwrap(), me);
    }
}
