use std::os::unix::fs::FileExt;

use super::*;

const RAW: Source = Source::Raw;
const ZERO: Source = Source::Zero;
const PARENT: Source = Source::Parent;
const MIXED: Source = Source::Mixed;

/// A file of `pages` pages with data in some of them.
fn raw(pages: u64, data: &[u64]) -> (tempfile::NamedTempFile, u64) {
    let raw = tempfile::NamedTempFile::new().unwrap();
    raw.as_file().set_len(pages * PAGE).unwrap();
    for page in data {
        raw.as_file().write_all_at(&[1], page * PAGE + 100).unwrap();
    }
    (raw, pages * PAGE)
}

fn in_pages(spans: &[Span]) -> Vec<(u64, u64, Source)> {
    spans.iter().map(|s| (s.range.start / PAGE, s.range.end / PAGE, s.source)).collect()
}

#[test]
fn a_full_files_holes_are_zeros() {
    let (raw, size) = raw(40, &[0, 1, 20, 39]);
    let spans = Spans::full(raw.as_file(), raw.path(), size).unwrap();
    let expected = [(0, 2, RAW), (2, 20, ZERO), (20, 21, RAW), (21, 39, ZERO), (39, 40, RAW)];
    assert_eq!(in_pages(&spans.blocks(PAGE)), expected);
}

#[test]
fn a_diffs_holes_are_the_parents_except_where_memory_was_discarded() {
    let (raw, size) = raw(40, &[10, 11, 30]);
    let removed: Ranges =
        [5 * PAGE..15 * PAGE, 30 * PAGE..31 * PAGE, 39 * PAGE..40 * PAGE].into_iter().collect();
    let spans = Spans::diff(raw.as_file(), raw.path(), size, &removed).unwrap();
    let expected = [
        (0, 5, PARENT),
        (5, 10, ZERO),
        (10, 12, RAW), // discarded, and written again
        (12, 15, ZERO),
        (15, 30, PARENT),
        (30, 31, RAW),
        (31, 39, PARENT),
        (39, 40, ZERO),
    ];
    assert_eq!(in_pages(&spans.blocks(PAGE)), expected);
    let inherited: Vec<_> =
        spans.inherited(3 * PAGE..16 * PAGE).map(|r| (r.start / PAGE, r.end / PAGE)).collect();
    assert_eq!(inherited, [(3, 5), (15, 16)]);
}

#[test]
fn a_huge_block_of_several_sources_is_mixed_only_if_the_parents_pages_are_among_them() {
    // Blocks of 8 pages here.
    let (raw, size) = raw(48, &[2, 16, 17, 18, 19, 20, 21, 22, 23, 25]);
    let removed: Ranges = [24 * PAGE..25 * PAGE, 26 * PAGE..40 * PAGE].into_iter().collect();
    let spans = Spans::diff(raw.as_file(), raw.path(), size, &removed).unwrap();
    let expected = [(0, 8, MIXED), (8, 16, PARENT), (16, 32, RAW), (32, 40, ZERO), (40, 48, PARENT)];
    assert_eq!(in_pages(&spans.blocks(8 * PAGE)), expected);
    let full = Spans::full(raw.as_file(), raw.path(), size).unwrap();
    assert_eq!(in_pages(&full.blocks(8 * PAGE)), [(0, 8, RAW), (8, 16, ZERO), (16, 32, RAW), (32, 48, ZERO)]);
}

#[test]
fn a_file_system_that_hides_holes_is_not_trusted_with_a_diff() {
    // As if lseek had said that all of a sparse file is data.
    let (raw, size) = raw(4096, &[5]);
    let mut spans = Spans::default();
    spans.push(0..size, RAW);
    let refused = spans.check_holes(raw.as_file(), raw.path()).unwrap_err();
    assert!(matches!(refused, Error::Extents { .. }), "{refused}");
}
