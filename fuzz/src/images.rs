//! Of what a snapshot directory holds, beside the memory itself.

use snap::{Header, Ranges, Sums, WorkingSet};
use uuid::Uuid;

/// A header is refused, with a reason, or it covers memory exactly and is written as it was read.
pub fn header(bytes: &[u8]) {
    let (header, faults) = Header::examine(bytes);
    assert!(header.is_some() || !faults.is_empty(), "refused without a reason");
    match Header::parse(bytes) {
        Err(fault) => assert_eq!(faults.first(), Some(&fault)),
        Ok(header) => {
            assert!(faults.is_empty());
            assert_eq!(header.to_bytes(), bytes);
            let all: u64 = header.range(0, header.size).map(|record| record.length).sum();
            assert_eq!(all, header.size);
            for at in [0, header.size / 2, header.size - 1] {
                let record = header.records[header.index_of(at)];
                assert!(record.offset <= at && at < record.end());
            }
            header.builds().iter().for_each(|(build, length)| assert!(!build.is_nil() && *length > 0));
        }
    }
}

/// Checksums are refused, or they are in order and are written as they were read.
pub fn sums(bytes: &[u8]) {
    // A file says whose it is: nothing would be read for another build.
    let build = bytes.get(8..24).and_then(|id| Uuid::from_slice(id).ok()).unwrap_or_default();
    if let Some(sums) = Sums::parse(bytes, build) {
        assert_eq!(sums.to_bytes(build), bytes);
        for at in [0, 4096, u64::MAX] {
            assert!(sums.covering(at).is_none_or(|sum| sum.range.contains(&at)));
        }
    }
}

/// Discarded ranges are refused with a reason, or they are sorted, apart, and mean the same when they are read again.
pub fn removed(bytes: &[u8]) {
    match Ranges::parse(bytes) {
        Err(fault) => assert!(!fault.to_string().is_empty()),
        Ok(removed) => {
            let ranges: Vec<_> = removed.ranges().collect();
            assert!(ranges.iter().all(|range| !range.is_empty()));
            assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            assert!(ranges.iter().all(|range| removed.contains(range.start) && !removed.contains(range.end)));
            assert_eq!(Ranges::parse(removed.to_json().as_bytes()), Ok(removed));
        }
    }
}

/// A working set is refused with a reason, or it means the same when it is read again, and another run can be added.
pub fn workingset(bytes: &[u8]) {
    match WorkingSet::parse(bytes) {
        Err(fault) => assert!(!fault.to_string().is_empty()),
        Ok(mut set) => {
            assert_eq!(WorkingSet::parse(set.to_json().as_bytes()).as_ref(), Ok(&set));
            let likely = set.likely();
            assert!(likely.bytes() <= 256 << 20);
            set.add_run(&likely);
            assert_eq!(WorkingSet::parse(set.to_json().as_bytes()), Ok(set));
        }
    }
}
