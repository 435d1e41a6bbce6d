//! Loop devices: a file as a block device. Attached in one call (LOOP_CONFIGURE, Linux 5.8), always with autoclear, so
//! that the kernel counts the users and detaches the file when the last one goes.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};

/// How many bytes a label may have: the kernel keeps 64, the last of them NUL.
pub const LABEL_MAX: usize = 63;

// include/uapi/linux/loop.h
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// How often a free number that somebody else was quicker to take is asked for again.
const ATTEMPTS: u32 = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; LABEL_MAX + 1],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl Info {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

/// A loop device, held open: while this lives the kernel does not detach its file.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    number: u32,
}

/// How to attach a file.
#[derive(Debug, Clone, Copy)]
pub struct Attach<'a> {
    /// Refuse writes.
    pub read_only: bool,
    /// Go past the page cache, where the file system can; the kernel falls back to the page cache by itself.
    pub direct_io: bool,
    /// Whose it is, at most [`LABEL_MAX`] bytes: the kernel only keeps it.
    pub label: &'a str,
}

/// What is attached to a loop device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Device and inode of the file.
    pub file: FileId,
    /// Where in the file the device begins, and its length if not up to the file's end (0).
    pub window: (u64, u64),
    /// Writes are refused.
    pub read_only: bool,
    /// Detached when the last user goes.
    pub autoclear: bool,
    /// Past the page cache.
    pub direct_io: bool,
    /// Whose it is.
    pub label: String,
}

/// What file it is, by whatever name: its file system's device number and its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: (u64, u64),
    inode: u64,
}

impl FileId {
    /// The identity of an open file.
    ///
    /// # Errors
    /// What `fstat(2)` said.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { device: (major(metadata.dev()), minor(metadata.dev())), inode: metadata.ino() })
    }
}

/// A loop device with a file attached, as sysfs tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// N of /dev/loopN.
    pub number: u32,
    /// The file's path; a file that has no name any more has ` (deleted)` behind its last one.
    pub backing: PathBuf,
}

impl LoopDevice {
    /// Attaches `backing` to a free loop device, which is made if there is none.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES` or `EPERM` where loop devices cannot be had; `EBUSY` when others were quicker 64 times;
    /// `EINVAL` from a kernel before 5.8; what attaching said.
    pub fn attach(backing: &File, how: Attach<'_>) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let mut flags = LO_FLAGS_AUTOCLEAR;
        if how.read_only {
            flags |= LO_FLAGS_READ_ONLY;
        }
        if how.direct_io {
            flags |= LO_FLAGS_DIRECT_IO;
        }
        let mut info = Info { flags, ..Info::EMPTY };
        let label = how.label.as_bytes();
        info.file_name
            .get_mut(..label.len())
            .filter(|to| to.len() <= LABEL_MAX)
            .ok_or(Errno::ENAMETOOLONG)?
            .copy_from_slice(label);
        let config = Config { fd: backing.as_raw_fd() as u32, block_size: 0, info, reserved: [0; 8] };
        let mut pause = Duration::from_micros(100);
        for _ in 0..ATTEMPTS {
            // SAFETY: GET_FREE takes no argument and returns a number or an error.
            let number =
                Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) })? as u32;
            let file = open(number, !how.read_only)?;
            // SAFETY: `config` is laid out as the kernel's struct (its size is checked above), lives through the call
            // and is only read; both descriptors in it are open.
            match Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), LOOP_CONFIGURE as _, &config) }) {
                Ok(_) => return Ok(Self { file, number }),
                // Somebody else got the same number and was quicker. The kernel has nothing to wait on.
                Err(Errno::EBUSY) => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(Errno::EBUSY.into())
    }

    /// Opens /dev/loopN, read-only.
    ///
    /// # Errors
    /// What `open(2)` said: `ENXIO` while it is being detached, `ENOENT` when there is none.
    pub fn open(number: u32) -> io::Result<Self> {
        Ok(Self { file: open(number, false)?, number })
    }

    /// What is attached. `None` when nothing is.
    ///
    /// # Errors
    /// What LOOP_GET_STATUS64 said.
    pub fn status(&self) -> io::Result<Option<Status>> {
        let mut info = Info::EMPTY;
        // SAFETY: `info` is laid out as the kernel's struct (its size is checked above) and lives through the call.
        match Errno::result(unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_GET_STATUS64 as _, &mut info) })
        {
            Err(Errno::ENXIO) => return Ok(None),
            other => other?,
        };
        let label = info.file_name.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(Some(Status {
            file: FileId { device: decode(info.device), inode: info.inode },
            window: (info.offset, info.size_limit),
            read_only: info.flags & LO_FLAGS_READ_ONLY != 0,
            autoclear: info.flags & LO_FLAGS_AUTOCLEAR != 0,
            direct_io: info.flags & LO_FLAGS_DIRECT_IO != 0,
            label: String::from_utf8_lossy(label).into_owned(),
        }))
    }

    /// Detaches the file: now, or when the last user goes.
    ///
    /// # Errors
    /// What LOOP_CLR_FD said, except that nothing was attached.
    pub fn detach(&self) -> io::Result<()> {
        // SAFETY: CLR_FD takes no argument.
        match Errno::result(unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_CLR_FD as _) }) {
            Ok(_) | Err(Errno::ENXIO) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// /dev/loopN.
    pub fn path(&self) -> PathBuf {
        node(self.number)
    }

    /// Major and minor number, as device-mapper takes them: `7:3`.
    ///
    /// # Errors
    /// What `fstat(2)` said.
    pub fn device_number(&self) -> io::Result<String> {
        let number = self.file.metadata()?.rdev();
        Ok(format!("{}:{}", major(number), minor(number)))
    }
}

/// The loop devices that have a file attached.
///
/// # Errors
/// What reading /sys/block said.
pub fn bound() -> io::Result<Vec<Bound>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok());
        // A device that is detached meanwhile, or has nothing attached, has no such file.
        if let Some(number) = number
            && let Some(backing) = backing(&entry.path())
        {
            found.push(Bound { number, backing });
        }
    }
    found.sort_by_key(|bound| bound.number);
    Ok(found)
}

/// The loop device of these device numbers (`7:3`), if it is one and has a file attached.
pub fn by_device_number(numbers: &str) -> Option<Bound> {
    let dir = std::fs::canonicalize(Path::new("/sys/dev/block").join(numbers)).ok()?;
    let number = dir.file_name()?.to_str()?.strip_prefix("loop")?.parse().ok()?;
    Some(Bound { number, backing: backing(&dir)? })
}

impl Bound {
    /// /dev/loopN.
    pub fn path(&self) -> PathBuf {
        node(self.number)
    }
}

fn backing(sys: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let mut path = std::fs::read(sys.join("loop/backing_file")).ok()?;
    if path.last() == Some(&b'\n') {
        path.pop();
    }
    (!path.is_empty()).then(|| std::ffi::OsString::from_vec(path).into())
}

fn node(number: u32) -> PathBuf {
    format!("/dev/loop{number}").into()
}

/// Opens the device, making its node where neither devtmpfs nor udev does.
fn open(number: u32, write: bool) -> io::Result<File> {
    let path = node(number);
    let opened = OpenOptions::new().read(true).write(write).open(&path);
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let numbers = std::fs::read_to_string(format!("/sys/block/loop{number}/dev"))?;
    let parse = |text: &str| text.trim().parse::<u64>().map_err(io::Error::other);
    let (major, minor) = numbers.split_once(':').ok_or(Errno::ENXIO)?;
    let device = makedev(parse(major)?, parse(minor)?);
    match mknod(&path, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, device) {
        Ok(()) | Err(Errno::EEXIST) => OpenOptions::new().read(true).write(write).open(&path),
        Err(errno) => Err(errno.into()),
    }
}

/// The kernel's `huge_encode_dev`, which differs from the C library's `makedev`.
fn decode(device: u64) -> (u64, u64) {
    ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_decoded_as_the_kernel_encodes_them() {
        assert_eq!(decode(259 << 8 | 5), (259, 5));
        assert_eq!(decode(8 << 8 | 0x34 | 0x12 << 20), (8, 0x1234));
    }
}
