//! The handshake, against page servers of every manner.

use super::*;
use std::io::{PipeReader, PipeWriter};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use std::os::fd::AsFd;
use sys::uffd::{Event, Events, Filled, Uffd};
use vm_memory::bitmap::Bitmap;

/// What a server does with its connection once it has the handshake.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Manner {
    Keeps,
    Closes,
}

pub(super) struct Server {
    path: PathBuf,
    thread: JoinHandle<()>,
    stop: PipeWriter,
    _dir: tempfile::TempDir,
}

impl Server {
    /// `None`, with a reason on stderr, where this user may have no userfaultfd.
    pub fn start(image: Vec<u8>, manner: Manner) -> Option<Self> {
        if let Err(error) = Uffd::create() {
            assert!(
                matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS)),
                "{error}"
            );
            wrenn_tests::skip::here(format!("needs a userfaultfd: {error}"));
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uffd.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (end, stop) = std::io::pipe().unwrap();
        let thread = std::thread::spawn(move || serve(&listener, &image, manner, &end));
        Some(Self { path, thread, stop, _dir: dir })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Once nobody touches the memory any more.
    pub fn end(self) {
        drop(self.stop);
        self.thread.join().unwrap();
    }
}

fn serve(listener: &UnixListener, image: &[u8], manner: Manner, end: &PipeReader) {
    let (socket, _) = listener.accept().unwrap();
    let mut buffer = [0; 4096];
    let received = sys::fdpass::receive(&socket, &mut buffer).unwrap();
    let regions: Value = serde_json::from_slice(&buffer[..received.bytes]).unwrap();
    assert_eq!(regions[0]["size"], image.len());
    assert_eq!(
        (&regions[0]["offset"], &regions[0]["page_size"], &regions[0]["page_size_kib"]),
        (&Value::from(0), &Value::from(4096), &Value::from(4096))
    );
    let base = regions[0]["base_host_virt_addr"].as_u64().unwrap();
    let uffd = Uffd::from_fd(received.fds.into_iter().next().unwrap()).unwrap();
    let _kept = (manner == Manner::Keeps).then_some(socket);
    let mut removed = vec![false; image.len() / 4096];
    let mut events = Events::new();
    while wait(end, &uffd) {
        let mut faults = Vec::new();
        uffd.drain(&mut events, |event| match event {
            Event::Fault { address, .. } => faults.push(address / PAGE * PAGE),
            Event::Remove { start, end } => {
                removed[((start - base) / PAGE) as usize..((end - base) / PAGE) as usize].fill(true)
            }
            other => panic!("{other:?}"),
        })
        .unwrap();
        for address in faults {
            let page = ((address - base) / PAGE) as usize;
            let content = if removed[page] { &[0; 4096][..] } else { &image[page * 4096..][..4096] };
            match uffd.copy(address, content) {
                Filled::Bytes(4096) => {}
                Filled::Exists | Filled::Again => uffd.wake(address, PAGE).unwrap(),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Waits for a fault; `false` when it is over.
fn wait(end: &PipeReader, uffd: &Uffd) -> bool {
    let mut fds = [PollFd::new(end.as_fd(), PollFlags::POLLIN), PollFd::new(uffd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::NONE).unwrap();
    fds[0].any() == Some(false)
}

fn image() -> Vec<u8> {
    (0..MIB / PAGE).flat_map(|page| [page as u8; 4096]).collect()
}

#[test]
fn every_page_is_the_servers_until_it_is_discarded() {
    let Some(server) = Server::start(image(), Manner::Keeps) else { return };
    let ram = Ram::served(MIB, server.path()).unwrap();
    let byte = |page: u64| ram.memory().read_obj::<u8>(GuestAddress(page * PAGE + 9)).unwrap();
    assert_eq!([byte(0), byte(255), byte(77)], [0, 255, 77]);
    // Pages that were touched and pages that were not.
    ram.discard().discard(76 * PAGE, 3 * PAGE).unwrap();
    assert_eq!([byte(75), byte(76), byte(77), byte(78), byte(79)], [75, 0, 0, 0, 79]);
    drop(ram);
    server.end();
}

#[test]
fn a_full_fetches_what_was_never_touched_and_a_diff_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory");
    let Some(server) = Server::start(image(), Manner::Keeps) else { return };
    let mut ram = Ram::served(MIB, server.path()).unwrap();
    ram.memory().write_slice(&[0; 4096], GuestAddress(4 * PAGE)).unwrap();
    ram.discard().discard(9 * PAGE, PAGE).unwrap();
    ram.note_written(Some(&pages(&[], MIB)));
    assert_eq!(ram.dump(Kind::Diff, &path).unwrap().bytes, 2 * PAGE);
    let mut expected = image();
    expected[4 * 4096..][..4096].fill(0);
    expected[9 * 4096..][..4096].fill(0);
    let mut applied = image();
    apply(&path, &mut applied);
    assert!(applied == expected);
    ram.dump(Kind::Full, &path).unwrap();
    assert!(std::fs::read(&path).unwrap() == expected);
    drop(ram);
    server.end();
}

#[test]
fn a_page_that_counts_as_written_and_never_came_is_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory");
    let Some(server) = Server::start(image(), Manner::Keeps) else { return };
    let mut ram = Ram::served(MIB, server.path()).unwrap();
    // As a disk leaves it that failed before it wrote: marked, not touched.
    ram.memory().iter().for_each(|region| region.bitmap().mark_dirty(20 << 12, 40 << 12));
    ram.memory().write_slice(&[7], GuestAddress(30 * PAGE)).unwrap();
    ram.discard().discard(40 * PAGE, 2 * PAGE).unwrap();
    ram.note_written(Some(&pages(&[], MIB)));
    assert_eq!(ram.dump(Kind::Diff, &path).unwrap().bytes, 40 * PAGE);
    let mut expected = image();
    expected[30 * 4096] = 7;
    expected[40 * 4096..42 * 4096].fill(0);
    let mut applied = image();
    apply(&path, &mut applied);
    assert!(applied == expected);
    drop(ram);
    server.end();
}

#[test]
fn a_server_that_is_not_there_or_does_not_listen_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("uffd.sock");
    let refused = || Ram::served(MIB, &path).err().expect("nobody is there").to_string();
    let named = format!("Cannot reach the page server at {}: ", path.display());
    assert_eq!(refused(), format!("{named}No such file or directory (os error 2)"));
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(refused(), format!("{named}Connection refused (os error 111)"));
}

#[test]
fn a_server_that_never_accepts_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("uffd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    // The backlog takes one; the next has to wait.
    let _first = UnixStream::connect(&path).unwrap();
    let error = Ram::served(MIB, &path).err().expect("it is given up").to_string();
    assert!(error.contains("(os error 11)"), "{error}");
}

/// Touches memory that a server was offered, lets `leave` have the server leave, and returns once the touch has.
fn touched(leave: impl FnOnce(UnixListener)) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("uffd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let ram = Ram::served(MIB, &path).unwrap();
    let watch = ram.watch().unwrap().expect("there is a server");
    std::thread::scope(|scope| {
        scope.spawn(|| ram.memory().read_obj::<u8>(GuestAddress(5 * PAGE)).unwrap());
        leave(listener);
    });
    watch.gone()
}

#[test]
fn who_waits_for_a_server_that_left_without_the_memory_is_let_go_and_told() {
    if let Err(error) = Uffd::create() {
        return wrenn_tests::skip::here(format!("needs a userfaultfd: {error}"));
    }
    assert!(touched(drop), "it never accepted");
    assert!(touched(|listener| drop(listener.accept().unwrap())), "it accepted and did not read");
}

#[test]
fn a_server_may_close_the_connection_once_it_has_the_memory() {
    for manner in [Manner::Closes, Manner::Keeps] {
        let Some(server) = Server::start(image(), manner) else { return };
        let ram = Ram::served(MIB, server.path()).unwrap();
        let watch = ram.watch().unwrap().expect("there is a server");
        let byte = |page: u64| ram.memory().read_obj::<u8>(GuestAddress(page * PAGE)).unwrap();
        assert_eq!([byte(5), byte(200)], [5, 200]);
        assert!(!watch.gone());
        assert_eq!(byte(7), 7, "the watch's end changes nothing");
        server.end();
    }
}
