//! The exception store of a persistent dm-snapshot: which chunks of the image were written, and where in the CoW file
//! their content lies. Format: `drivers/md/dm-snap-persistent.c`.
//!
//! ```text
//! chunk 0                 header: u32 magic, u32 valid, u32 version, u32 chunk size in sectors, little-endian
//! chunk 1 + k(E + 1)      metadata area k: E pairs of u64 (old chunk, new chunk), E = chunk bytes / 16
//! ```
//! The chunks between two areas hold data. A pair whose new chunk is 0 ends the list.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes of a chunk, the unit of copying: that of the guest's file system, so that a whole block written never has
/// the old one read.
pub const CHUNK: u64 = 4096;
/// Bytes of a sector, device-mapper's unit.
pub const SECTOR: u64 = 512;
/// Pairs in one metadata area.
pub const PAIRS: u64 = CHUNK / PAIR as u64;

const PAIR: usize = 16;
const MAGIC: u32 = 0x7041_6e53; // "SnAp"
const VERSION: u32 = 1;

/// Why a CoW file is not taken.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the message of each says what it is")]
pub enum StoreError {
    #[error("{0}")]
    Read(#[source] io::Error),
    #[error("it has no header: the magic number is {0:#010x}")]
    Magic(u32),
    #[error("the kernel marked it as no longer valid")]
    Invalid,
    #[error("its format is version {0}, not 1")]
    Version(u32),
    #[error("its chunks have {0} sectors, not 8")]
    ChunkSize(u32),
    #[error("metadata area {0} lies beyond the end of the file")]
    Truncated(u64),
    #[error("exception {index} maps chunk {old}, which the image has not")]
    Old { index: u64, old: u64 },
    #[error("exception {index} points to chunk {new}, which is not a data chunk of the file")]
    New { index: u64, new: u64 },
    #[error("chunk {0} of the image is mapped twice")]
    OldTwice(u64),
    #[error("chunk {0} of the file is used twice")]
    NewTwice(u64),
}

/// What a CoW file is read from.
pub trait ReadAt {
    /// Fills the buffer from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end; what reading said.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// How many bytes there are.
    ///
    /// # Errors
    /// What asking said.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// One chunk of the image that has other content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exception {
    /// Chunk of the image.
    pub old: u64,
    /// Chunk of the CoW file that holds its content.
    pub new: u64,
}

/// Chunks next to each other in the image whose content is next to each other in the CoW file too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Bytes of the image.
    pub image: Range<u64>,
    /// Where in the CoW file their content begins, in bytes.
    pub file: u64,
}

/// Checks the header.
///
/// # Errors
/// What is wrong with it.
pub fn check_header(file: &(impl ReadAt + ?Sized)) -> Result<(), StoreError> {
    let mut header = [0; PAIR];
    if file.size().map_err(StoreError::Read)? < CHUNK {
        return Err(StoreError::Magic(0));
    }
    file.read_at(&mut header, 0).map_err(StoreError::Read)?;
    let [magic, valid, version, sectors] =
        [0, 4, 8, 12].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte])));
    match (magic, valid, version, sectors) {
        (MAGIC, 1, VERSION, 8) => Ok(()),
        (MAGIC, 1, VERSION, other) => Err(StoreError::ChunkSize(other)),
        (MAGIC, 1, other, _) => Err(StoreError::Version(other)),
        (MAGIC, ..) => Err(StoreError::Invalid),
        (other, ..) => Err(StoreError::Magic(other)),
    }
}

/// Reads all exceptions, in the image's order. `origin_bytes` is the size of the image.
///
/// # Errors
/// What is wrong with the file: nothing in it is trusted.
pub fn read(file: &(impl ReadAt + ?Sized), origin_bytes: u64) -> Result<Vec<Exception>, StoreError> {
    check_header(file)?;
    let old_chunks = origin_bytes.div_ceil(CHUNK);
    let new_chunks = file.size().map_err(StoreError::Read)? / CHUNK;
    let mut found: Vec<Exception> = Vec::new();
    let mut area = [0; CHUNK as usize];
    'areas: for number in 0.. {
        let chunk = area_chunk(number);
        if chunk >= new_chunks {
            return Err(StoreError::Truncated(number));
        }
        file.read_at(&mut area, chunk * CHUNK).map_err(StoreError::Read)?;
        for pair in area.chunks_exact(PAIR) {
            let [old, new] = [0, 8]
                .map(|at| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|byte: usize| pair[at + byte])));
            if new == 0 {
                break 'areas;
            }
            let index = found.len() as u64;
            if old >= old_chunks {
                return Err(StoreError::Old { index, old });
            }
            if new >= new_chunks || is_metadata(new) {
                return Err(StoreError::New { index, new });
            }
            // Each chunk of the image can be mapped once: more pairs than that are not read in the hope of an end.
            if index >= old_chunks {
                return Err(StoreError::OldTwice(old));
            }
            found.push(Exception { old, new });
        }
    }
    let twice = |mut chunks: Vec<u64>| {
        chunks.sort_unstable();
        chunks.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
    };
    if let Some(chunk) = twice(found.iter().map(|exception| exception.new).collect()) {
        return Err(StoreError::NewTwice(chunk));
    }
    if let Some(chunk) = twice(found.iter().map(|exception| exception.old).collect()) {
        return Err(StoreError::OldTwice(chunk));
    }
    found.sort_unstable();
    Ok(found)
}

/// The exceptions as runs of at most `limit` bytes each, cut off at the image's end.
pub fn runs(sorted: &[Exception], origin_bytes: u64, limit: u64) -> impl Iterator<Item = Run> {
    let longest = (limit / CHUNK).max(1) as usize;
    let mut rest = sorted;
    std::iter::from_fn(move || {
        let first = *rest.first()?;
        let follows = |(at, exception): &(usize, &Exception)| {
            *at < longest
                && exception.old == first.old + *at as u64
                && exception.new == first.new + *at as u64
        };
        let count = rest.iter().enumerate().take_while(follows).count();
        rest = &rest[count..];
        let start = first.old * CHUNK;
        let end = (start + count as u64 * CHUNK).min(origin_bytes);
        Some(Run { image: start..end, file: first.new * CHUNK })
    })
}

/// How long a CoW file must be so that `bytes` of an image can all be changed: the header, the chunks, a metadata area
/// for every 256 of them, and the area after the last, which the kernel clears as soon as the last one is full.
pub fn file_bytes(bytes: u64) -> u64 {
    let chunks = bytes.div_ceil(CHUNK);
    (1 + chunks + chunks / PAIRS + 1) * CHUNK
}

/// The chunk that metadata area `number` lies in.
fn area_chunk(number: u64) -> u64 {
    1 + number * (PAIRS + 1)
}

fn is_metadata(chunk: u64) -> bool {
    chunk == 0 || (chunk - 1).is_multiple_of(PAIRS + 1)
}
