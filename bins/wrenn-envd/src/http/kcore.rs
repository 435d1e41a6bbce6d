//! Where guest physical memory lies in /proc/kcore. /dev/mem is closed to RAM (STRICT_DEVMEM) on stock kernels;
//! /proc/kcore, the kernel's memory as an ELF core file, lets root read every page through the direct map.

/// A piece of the file that holds RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Byte offset in /proc/kcore.
    pub offset: u64,
    pub bytes: u64,
}

/// A PT_LOAD segment whose physical address is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    physical: u64,
    bytes: u64,
    offset: u64,
}

/// How much of the file the headers may take; the kernel writes a handful of segments.
pub const HEADERS: usize = 64 * 1024;

/// The ELF header's size, and a program header's (elf(5), 64 bit).
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;
/// What the kernel writes for memory that is not RAM by physical address (vmalloc, vmemmap).
const NO_ADDRESS: u64 = u64::MAX;

/// The pieces of /proc/kcore that hold the System RAM of /proc/iomem, each byte of RAM once. `headers` is the
/// file's beginning.
///
/// # Errors
/// What is wrong with either text, in words.
pub fn pieces(headers: &[u8], iomem: &str) -> Result<Vec<Piece>, String> {
    let segments = segments(headers).ok_or("/proc/kcore is not a 64-bit ELF core file")?;
    let ram = system_ram(iomem);
    if ram.iter().all(|&(start, end)| start == 0 && end <= 1) {
        return Err("/proc/iomem shows no System RAM (only root sees the addresses)".into());
    }
    let mut pieces = Vec::new();
    for (start, end) in ram {
        let mut at = start;
        while at < end {
            let covering =
                segments.iter().filter(|s| s.physical <= at && at < s.physical.saturating_add(s.bytes));
            match covering.max_by_key(|s| s.physical.saturating_add(s.bytes)) {
                Some(segment) => {
                    let until = segment.physical.saturating_add(segment.bytes).min(end);
                    let into = at.saturating_sub(segment.physical);
                    pieces.push(Piece {
                        offset: segment.offset.saturating_add(into),
                        bytes: until.saturating_sub(at),
                    });
                    at = until;
                }
                // Memory the direct map leaves out; go on where it begins again.
                None => {
                    at = segments.iter().map(|s| s.physical).filter(|&next| next > at).min().unwrap_or(end)
                }
            }
        }
    }
    if pieces.is_empty() { Err("/proc/kcore maps no System RAM".into()) } else { Ok(pieces) }
}

fn segments(headers: &[u8]) -> Option<Vec<Segment>> {
    const ELF64_LITTLE: &[u8] = b"\x7fELF\x02\x01";
    if !headers.starts_with(ELF64_LITTLE) || headers.len() < HEADER {
        return None;
    }
    let table = usize::try_from(u64_at(headers, 32)?).ok()?;
    let (size, count) = (usize::from(u16_at(headers, 54)?), usize::from(u16_at(headers, 56)?));
    if size < PROGRAM_HEADER {
        return None;
    }
    let mut segments = Vec::new();
    for at in 0..count {
        let header = headers.get(table.checked_add(at.checked_mul(size)?)?..)?.get(..PROGRAM_HEADER)?;
        let physical = u64_at(header, 24)?;
        if u32::from_le_bytes(header.get(..4)?.try_into().ok()?) == PT_LOAD && physical != NO_ADDRESS {
            segments.push(Segment { physical, bytes: u64_at(header, 32)?, offset: u64_at(header, 8)? });
        }
    }
    Some(segments)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.get(..8)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.get(..2)?.try_into().ok()?))
}

/// The ranges of RAM, start and end (not included). Indented lines lie inside the range above them.
fn system_ram(iomem: &str) -> Vec<(u64, u64)> {
    let range = |line: &str| {
        let (start, end) = line.strip_suffix(" : System RAM")?.split_once('-')?;
        let (start, last) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        Some((start, last.checked_add(1)?))
    };
    iomem.lines().filter(|line| !line.starts_with(' ')).filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A core file's headers with PT_LOAD segments of (physical, bytes, offset), after one PT_NOTE.
    fn core(segments: &[(u64, u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
        bytes[54..56].copy_from_slice(&(PROGRAM_HEADER as u16).to_le_bytes());
        bytes[56..58].copy_from_slice(&(segments.len() as u16 + 1).to_le_bytes());
        let mut header = |kind: u32, (physical, size, offset): (u64, u64, u64)| {
            let mut entry = [0; PROGRAM_HEADER];
            entry[..4].copy_from_slice(&kind.to_le_bytes());
            entry[8..16].copy_from_slice(&offset.to_le_bytes());
            entry[24..32].copy_from_slice(&physical.to_le_bytes());
            entry[32..40].copy_from_slice(&size.to_le_bytes());
            bytes.extend_from_slice(&entry);
        };
        header(4, (0, 0x1000_0000, 0));
        segments.iter().for_each(|&segment| header(PT_LOAD, segment));
        bytes
    }

    const IOMEM: &str = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n\
                         000f0000-000fffff : System ROM\n00100000-0fffffff : System RAM\n\
                         \x20 01000000-01ffffff : Kernel code\nc0000000-ffffffff : PCI Bus 0000:00\n";

    #[test]
    fn each_byte_of_ram_is_read_once_though_kernel_text_is_mapped_twice() {
        let core = core(&[
            (NO_ADDRESS, 1 << 45, 0x9000),           // vmalloc
            (0x0100_0000, 0x0100_0000, 0x5000_0000), // kernel text
            (0x1000, 0x9_e000, 0x3000),              // low RAM, rounded to pages
            (0x10_0000, 0x0ff0_0000, 0x10_2000),     // the rest
        ]);
        let pieces = pieces(&core, IOMEM).unwrap();
        assert_eq!(
            pieces,
            [Piece { offset: 0x3000, bytes: 0x9_e000 }, Piece { offset: 0x10_2000, bytes: 0x0ff0_0000 },]
        );
    }

    #[test]
    fn gaps_in_the_map_are_passed_over() {
        let core = core(&[(0x10_0000, 0x1000, 0x2000), (0x20_0000, 0x0fe0_0000, 0x4000)]);
        let pieces = pieces(&core, IOMEM).unwrap();
        let read: u64 = pieces.iter().map(|piece| piece.bytes).sum();
        assert_eq!((pieces.len(), read), (2, 0x1000 + 0x0fe0_0000));
    }

    #[test]
    fn texts_that_say_nothing_are_refused() {
        let good = core(&[(0, 1 << 30, 0x1000)]);
        assert!(pieces(&good, "00000000-00000000 : System RAM\n").unwrap_err().contains("root"));
        assert!(pieces(&good, "").is_err());
        assert!(pieces(&core(&[]), IOMEM).is_err());
        for length in 0..good.len() {
            assert!(pieces(&good[..length], IOMEM).is_err(), "{length}");
        }
    }
}
