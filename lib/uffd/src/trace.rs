//! The trace: a file of what a server did and when, in records of one size (docs/format.md).
//!
//! A fault costs an append to a buffer, and every two thousandth a write of 64 KiB to the page cache.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;

use crate::Error;
use crate::note::note;

/// The first bytes of the file.
pub const MAGIC: [u8; 8] = *b"wrenn-pf";
/// The format's version.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER: usize = 64;
/// Bytes of a record.
pub const RECORD: usize = 32;
/// The most records of a file: 32 MiB.
pub const MOST: u64 = 1 << 20;

/// Bytes that are written at once.
const BUFFER: usize = 64 << 10;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A fault on a page that the image has.
    Image = 1,
    /// A fault on a page that is zeros in the image.
    Zero = 2,
    /// A fault on a page that the VMM had discarded.
    Refill = 3,
    /// A fault on a page that had come meanwhile.
    Exists = 4,
    /// A fault on a page that is no longer mapped.
    Unmapped = 5,
    /// A piece of the working set, loaded ahead.
    Replay = 6,
    /// Anything else that was loaded ahead.
    Prefetch = 7,
    /// The VMM discarded these pages.
    Remove = 8,
    /// A fault on a page that the image does not give: it was poisoned.
    Poison = 9,
    /// The last record of a full file: what came later is not in it.
    Full = 255,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Image,
        Self::Zero,
        Self::Refill,
        Self::Exists,
        Self::Unmapped,
        Self::Replay,
        Self::Prefetch,
        Self::Remove,
        Self::Poison,
        Self::Full,
    ];

    /// Whether somebody waited.
    pub fn is_fault(self) -> bool {
        !matches!(self, Self::Replay | Self::Prefetch | Self::Remove | Self::Full)
    }

    /// Its name in a summary.
    pub fn word(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Zero => "zero",
            Self::Refill => "refill",
            Self::Exists => "exists",
            Self::Unmapped => "unmapped",
            Self::Replay => "replay",
            Self::Prefetch => "prefetch",
            Self::Remove => "remove",
            Self::Poison => "poison",
            Self::Full => "full",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Since the VMM connected: when a fault or discard was read, or loading began.
    pub at: Duration,
    /// Offset into the memory image, in bytes.
    pub offset: u64,
    /// Bytes that were filled or discarded, from `offset` on.
    pub length: u64,
    /// Until it was there: at most 4.29 s, longer ones count as that.
    pub latency: Duration,
    /// What it was.
    pub kind: Kind,
    /// The fault wanted to write.
    pub write: bool,
}

impl Record {
    fn to_bytes(self) -> [u8; RECORD] {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&nanos(self.at).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_le_bytes());
        let latency = u32::try_from(nanos(self.latency)).unwrap_or(u32::MAX);
        bytes[24..28].copy_from_slice(&latency.to_le_bytes());
        bytes[28] = self.kind as u8;
        bytes[29] = u8::from(self.write);
        bytes
    }

    fn parse(bytes: &[u8; RECORD]) -> Result<Self, String> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == bytes[28]);
        let (write, rest) = (bytes[29], &bytes[30..]);
        let record = Self {
            at: Duration::from_nanos(word(0)),
            offset: word(8),
            length: word(16),
            latency: Duration::from_nanos(word(24) & u64::from(u32::MAX)),
            kind: kind.ok_or_else(|| format!("is of kind {}", bytes[28]))?,
            write: write == 1,
        };
        match (write, rest, record.offset.checked_add(record.length)) {
            (0 | 1, [0, 0], Some(_)) => Ok(record),
            (_, _, None) => Err("ends past 64 bits".into()),
            _ => Err("has bits set that mean nothing".into()),
        }
    }
}

/// Whose memory it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Where memory ends in the image, in bytes.
    pub size: u64,
    /// Bytes of a page; of the smallest where there are several.
    pub page_size: u64,
    /// When the VMM connected, since 1970.
    pub connected: Duration,
    /// Its pid.
    pub pid: u32,
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(RECORD as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.page_size.to_le_bytes());
        let connected = u64::try_from(self.connected.as_nanos()).unwrap_or(u64::MAX);
        bytes[32..40].copy_from_slice(&connected.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.pid.to_le_bytes());
        bytes
    }
}

/// Why bytes are no trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TraceFault(String);

/// A trace, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What it is of.
    pub header: Header,
    /// What happened, nearly in order: a record is written when it is over and bears the time when it began.
    pub records: Vec<Record>,
    /// Whether more happened than there was room for.
    pub full: bool,
}

impl Trace {
    /// Reads a file. Where the last record is cut short, the server was killed: the others count.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, TraceFault> {
        let fault = |what: String| Err(TraceFault(what));
        let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return fault(format!("{} bytes are no header, which has {HEADER}", bytes.len()));
        };
        let half = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap_or_default());
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        match (head[..8] == MAGIC, half(8), half(12)) {
            (false, ..) => return fault("it does not begin as a trace does".into()),
            (_, VERSION, size) if size as usize == RECORD => {}
            (_, version, size) => {
                return fault(format!("version {version} with records of {size} bytes is not known"));
            }
        }
        let header = Header {
            size: word(16),
            page_size: word(24),
            connected: Duration::from_nanos(word(32)),
            pid: half(40),
        };
        if !header.page_size.is_power_of_two() || header.size == 0 {
            return fault(format!("memory of {} bytes in pages of {}", header.size, header.page_size));
        }
        let chunks = rest.as_chunks::<RECORD>().0;
        if chunks.len() as u64 > MOST {
            return fault(format!("{} records; at most {MOST} are written", chunks.len()));
        }
        let parsed = chunks.iter().enumerate().map(|(index, chunk)| {
            let wrong = |what| TraceFault(format!("record {index} {what}"));
            let record = Record::parse(chunk).map_err(wrong)?;
            let is_last = index + 1 == chunks.len();
            match record.kind == Kind::Full {
                true if !is_last => Err(wrong("ends the file, and is not the last".into())),
                _ if record.offset + record.length > header.size => {
                    Err(wrong("reaches past the end of memory".into()))
                }
                _ => Ok(record),
            }
        });
        let mut records = parsed.collect::<Result<Vec<_>, _>>()?;
        let full = records.pop_if(|record| record.kind == Kind::Full).is_some();
        Ok(Self { header, records, full })
    }
}

/// A file to write records to. In the thread that serves: a second one would make each of its system calls dearer, as
/// the kernel then counts who uses a descriptor.
#[derive(Debug)]
pub(crate) struct Writer {
    /// `None` once it could not be written.
    file: Option<File>,
    buffer: Vec<u8>,
    written: u64,
}

impl Writer {
    /// Begins the file. A trace that is there is replaced, and nothing else. It is nobody else's to read: it tells what a
    /// guest did.
    pub fn create(path: &Path) -> Result<File, Error> {
        let mut options = File::options();
        // A pipe that nobody reads is not waited for, neither here nor while a VMM waits for its pages.
        options.write(true).create(true).mode(0o600).custom_flags(OFlag::O_NONBLOCK.bits());
        let file = options.open(path).map_err(Error::io("write", path))?;
        if file.metadata().map_err(Error::io("look at", path))?.is_file() {
            let mut head = Vec::new();
            let old = File::open(path).and_then(|old| old.take(MAGIC.len() as u64).read_to_end(&mut head));
            old.map_err(Error::io("read", path))?;
            if !head.is_empty() && head != MAGIC {
                return Err(Error::NotATrace { path: path.to_owned() });
            }
            file.set_len(0).map_err(Error::io("write", path))?;
        }
        Ok(file)
    }

    /// Writes to a file that was begun. When the disk is full, what does not fit is lost, and nothing else.
    pub fn new(file: File, header: Header) -> Self {
        let mut buffer = Vec::with_capacity(BUFFER);
        buffer.extend(header.to_bytes());
        Self { file: Some(file), buffer, written: 0 }
    }

    pub fn push(&mut self, record: Record) {
        let record = match MOST - self.written {
            0 => return,
            1 => Record { kind: Kind::Full, write: false, ..record },
            _ => record,
        };
        self.written += 1;
        self.buffer.extend_from_slice(&record.to_bytes());
        if self.buffer.len() > BUFFER - RECORD {
            self.flush();
        }
    }

    /// Writes what there is so far.
    pub fn flush(&mut self) {
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(&self.buffer)
        {
            note(format_args!("wrenn-uffd: the trace ends here: {error}"));
            self.file = None;
        }
        self.buffer.clear();
    }

    /// How many records there are.
    pub fn records(&self) -> u64 {
        self.written
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The time now, since 1970.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
#[path = "tests/trace.rs"]
mod tests;
