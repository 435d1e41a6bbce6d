//! Finding the extent of a random address in an image of 100 000 extents, against the original's way: walking the
//! records backwards.

use std::fs;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use snap::header::{Header, Record};
use snap::pack::{Kind, Mode, Pack, pack};
use snap::{Checked, Content, Image};
use uuid::Uuid;

const EXTENTS: u64 = 100_000;
const BLOCK: u64 = 4096;

fn lookup(criterion: &mut Criterion) {
    let home = tempfile::tempdir().unwrap();
    let build = Uuid::from_u128(1);
    // Every other block is zeros: no two extents can be one.
    let records: Vec<_> = (0..EXTENTS)
        .map(|n| match n % 2 {
            0 => Record { offset: n * BLOCK, length: BLOCK, build, storage_offset: n / 2 * BLOCK },
            _ => Record { offset: n * BLOCK, length: BLOCK, build: Uuid::nil(), storage_offset: 0 },
        })
        .collect();
    let header = Header {
        block_size: BLOCK,
        size: EXTENTS * BLOCK,
        generation: 0,
        build,
        base_build: build,
        records: records.clone(),
    };
    fs::write(home.path().join("memfile.header"), header.to_bytes()).unwrap();
    let diff = fs::File::create(home.path().join(format!("memfile.{build}"))).unwrap();
    diff.set_len(EXTENTS / 2 * BLOCK).unwrap();
    let image = Image::open(home.path()).unwrap();
    assert_eq!(image.extents().len() as u64, EXTENTS);

    let mut random = 1_u64;
    let mut address = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 20) % (EXTENTS * BLOCK)
    };
    let mut group = criterion.benchmark_group("extent of an address, 100 000 extents");
    group.bench_function("Image::extent_at", |b| b.iter(|| black_box(image.extent_at(address()).offset)));
    let mut at = 0;
    group.bench_function("Image::next_extent, in address order", |b| {
        b.iter(|| at = black_box(image.next_extent(at)).map_or(0, |extent| extent.offset));
    });
    group.bench_function("walking the records backwards", |b| {
        b.iter(|| {
            let at = address();
            black_box(records.iter().rev().find(|record| record.offset <= at).map(|record| record.offset))
        });
    });
    group.finish();
}

/// What it costs to check 256 KiB against their checksum, beside copying them to where they are loaded.
fn check(criterion: &mut Criterion) {
    const RUN: usize = 256 << 10;
    const RUNS: usize = 256;
    let home = tempfile::tempdir().unwrap();
    let raw = home.path().join("raw");
    fs::write(&raw, vec![7; RUN * RUNS]).unwrap();
    let dir = home.path().join("packed");
    let request = Pack { mode: Mode::Inplace, ..Pack::new(raw, &dir, Kind::Full) };
    let mut undo = wire::Undo::default();
    pack(&request, &mut undo).unwrap();
    undo.commit();
    let image = Image::open_checked(&dir).unwrap();
    let Content::Data(bytes) = image.extent_at(0).content else { panic!("stored") };
    let mut group = criterion.benchmark_group("loading 256 KiB");
    let (mut next, mut scratch) = ((0..RUNS).cycle(), Vec::new());
    group.bench_function("Image::check_run", |b| {
        b.iter(|| {
            let checked = image.check_run((next.next().unwrap() * RUN) as u64, &mut scratch);
            assert!(matches!(checked, Checked::Good(range) if range.end - range.start == RUN as u64));
        });
    });
    let mut target = vec![0; RUN];
    group.bench_function("a copy of them", |b| {
        b.iter(|| {
            let start = next.next().unwrap() * RUN;
            black_box(&mut target).copy_from_slice(&bytes[start..start + RUN]);
        });
    });
    group.finish();
}

criterion_group!(benches, lookup, check);
criterion_main!(benches);
