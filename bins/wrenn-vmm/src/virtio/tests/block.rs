//! Disks.

use std::io::Write;
use std::os::fd::AsRawFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::*;

use super::driver::*;
use crate::config::{CacheType, Drive, IoEngine};
use crate::memory::PAGE;
use crate::virtio::{Block, Devices, Error};

const STATUS: u64 = DATA + 64 * PAGE;
const HEADER: u64 = DATA + 65 * PAGE + 7;

pub fn drive(path: impl Into<std::path::PathBuf>, cache_type: CacheType, is_read_only: bool) -> Drive {
    Drive {
        drive_id: "rootfs".into(),
        path_on_host: path.into(),
        is_root_device: true,
        is_read_only,
        cache_type,
        io_engine: IoEngine::Sync,
    }
}

/// A disk with this content.
pub fn disk(content: &[u8], cache_type: CacheType, read_only: bool) -> (NamedTempFile, Block) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let block = Block::open(&drive(file.path(), cache_type, read_only)).unwrap();
    (file, block)
}

fn host(block: Block) -> Host {
    Host::new(Devices { blocks: vec![block], ..Devices::default() })
}

/// Sectors that differ from one another.
fn pattern(sectors: usize) -> Vec<u8> {
    (0..sectors)
        .flat_map(|sector| (0..512).map(move |byte| (sector * 7 + byte * 3 + byte / 256) as u8))
        .collect()
}

/// Does a request; its status, and how many bytes the device says that it wrote.
fn request(host: &Host, driver: &mut Driver, kind: u32, sector: u64, data: &[Piece]) -> (u32, u32) {
    let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    host.write(HEADER, &header);
    host.write(STATUS, &[0xaa]);
    let pieces = [&[readable(HEADER, 16)], data, &[writable(STATUS, 1)]].concat();
    let written = driver.request(0, &pieces);
    (host.read(STATUS, 1)[0].into(), written)
}

#[test]
fn a_read_scatters_the_disk_into_memory_and_marks_exactly_those_pages() {
    let content = pattern(64);
    let (_file, block) = disk(&content, CacheType::Writeback, false);
    let host = host(block);
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    assert_eq!(driver.config(0, 8), 64_u64.to_le_bytes());
    host.take_dirty();
    let data =
        [writable(DATA + 4000, 200), writable(DATA + 10 * PAGE, 8192), writable(DATA + 20 * PAGE + 1, 312)];
    assert_eq!(request(&host, &mut driver, VIRTIO_BLK_T_IN, 3, &data), (VIRTIO_BLK_S_OK, 8704 + 1));
    host.virtio.park().unwrap();
    let got = [
        host.read(DATA + 4000, 200),
        host.read(DATA + 10 * PAGE, 8192),
        host.read(DATA + 20 * PAGE + 1, 312),
    ];
    assert!(got.concat() == content[3 * 512..20 * 512]);
    let (ring, data) = (&driver.rings[0], DATA / PAGE);
    let driver_wrote = [ring.descriptors / PAGE, ring.avail / PAGE, HEADER / PAGE];
    let dirty: Vec<u64> = host.take_dirty().into_iter().filter(|page| !driver_wrote.contains(page)).collect();
    assert_eq!(dirty, [ring.used_page(), data, data + 1, data + 10, data + 11, data + 20, STATUS / PAGE]);
    assert_eq!(host.read(DATA + 4200, 64), [0; 64], "nothing beside");
}

#[test]
fn a_write_gathers_memory_onto_the_disk_and_nothing_else_changes() {
    let content = pattern(64);
    let (file, block) = disk(&content, CacheType::Writeback, false);
    let host = host(block);
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    let new: Vec<u8> = pattern(5).into_iter().map(|byte| !byte).collect();
    host.write(DATA + 100, &new[..1000]);
    host.write(DATA + 8 * PAGE + 9, &new[1000..]);
    let data = [readable(DATA + 100, 1000), readable(DATA + 8 * PAGE + 9, 5 * 512 - 1000)];
    assert_eq!(request(&host, &mut driver, VIRTIO_BLK_T_OUT, 59, &data), (VIRTIO_BLK_S_OK, 1));
    assert_eq!(request(&host, &mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), (VIRTIO_BLK_S_OK, 1));
    assert!(std::fs::read(file.path()).unwrap() == [&content[..59 * 512], &new].concat());
}

#[test]
fn a_request_of_more_pieces_than_one_system_call_takes_is_done_whole() {
    let content = pattern(3000);
    let (_file, block) = disk(&content, CacheType::Writeback, false);
    let host = host(block);
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    // An indirect table: header, 2500 pieces apart from one another, status.
    let table = DATA + (4 << 20);
    host.write(HEADER, &[0; 16]);
    driver.describe(table, 0, readable(HEADER, 16), Some(1));
    for index in 0..2500 {
        let piece = writable(DATA + (1 << 20) + 1000 * u64::from(index), 512);
        driver.describe(table, index + 1, piece, Some(index + 2));
    }
    driver.describe(table, 2501, writable(STATUS, 1), None);
    let indirect = Piece { address: table, bytes: 2502 * 16, flags: 4 };
    assert_eq!(driver.request(0, &[indirect]), 2500 * 512 + 1);
    for index in 0..2500 {
        assert!(
            host.read(DATA + (1 << 20) + 1000 * index as u64, 512) == content[512 * index..][..512],
            "piece {index}"
        );
    }
    assert_eq!(host.read(STATUS, 1), [0]);
}

#[test]
fn a_request_beyond_the_end_or_of_half_a_sector_fails_and_changes_nothing() {
    let content = pattern(64);
    let (file, block) = disk(&content, CacheType::Writeback, false);
    let host = host(block);
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    for (sector, bytes) in
        [(64, 512), (63, 1024), (0, 511), (u64::MAX, 512), (u64::MAX / 512, 512), (1 << 55, 512)]
    {
        for (kind, data) in
            [(VIRTIO_BLK_T_IN, writable(DATA, bytes)), (VIRTIO_BLK_T_OUT, readable(DATA, bytes))]
        {
            let (status, _) = request(&host, &mut driver, kind, sector, &[data]);
            assert_eq!(status, VIRTIO_BLK_S_IOERR, "{bytes} bytes at {sector}");
        }
    }
    assert!(std::fs::read(file.path()).unwrap() == content);
    assert_eq!(host.read(DATA, 1024), [0; 1024]);
}

#[test]
fn what_the_host_cannot_read_or_write_reaches_the_guest_as_an_error() {
    let memory = memfd_create("disk", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let memory = std::fs::File::from(memory);
    memory.set_len(64 * 512).unwrap();
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let host = host(Block::open(&drive(path, CacheType::Writeback, false)).unwrap());
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    memory.set_len(10 * 512).unwrap();
    // EPERM for every write.
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
    let (status, _) = request(&host, &mut driver, VIRTIO_BLK_T_IN, 8, &[writable(DATA, 8 * 512)]);
    assert_eq!(status, VIRTIO_BLK_S_IOERR, "the file has become shorter");
    let (status, _) = request(&host, &mut driver, VIRTIO_BLK_T_OUT, 0, &[readable(DATA, 512)]);
    assert_eq!(status, VIRTIO_BLK_S_IOERR);
    let (status, _) = request(&host, &mut driver, VIRTIO_BLK_T_IN, 2, &[writable(DATA, 512)]);
    assert_eq!(status, VIRTIO_BLK_S_OK, "the device goes on");
}

#[test]
fn a_read_only_disk_says_so_and_cannot_be_written() {
    let content = pattern(8);
    let (file, block) = disk(&content, CacheType::Unsafe, true);
    let host = host(block);
    let mut driver = host.driver(0);
    assert_ne!(driver.offered() & 1 << VIRTIO_BLK_F_RO, 0);
    driver.start(u64::MAX);
    let (status, _) = request(&host, &mut driver, VIRTIO_BLK_T_OUT, 0, &[readable(DATA, 512)]);
    assert_eq!(status, VIRTIO_BLK_S_IOERR);
    let (status, _) = request(&host, &mut driver, VIRTIO_BLK_T_IN, 7, &[writable(DATA, 512)]);
    assert_eq!(status, VIRTIO_BLK_S_OK);
    assert!(host.read(DATA, 512) == content[7 * 512..]);
    assert!(std::fs::read(file.path()).unwrap() == content);
}

#[test]
fn a_flush_is_offered_by_writeback_only() {
    for (cache_type, offered) in [(CacheType::Writeback, true), (CacheType::Unsafe, false)] {
        let (_file, block) = disk(&pattern(8), cache_type, false);
        let host = host(block);
        let mut driver = host.driver(0);
        assert_eq!(driver.offered() & 1 << VIRTIO_BLK_F_FLUSH != 0, offered);
        assert_eq!(driver.offered() & 1 << VIRTIO_BLK_F_RO, 0);
        driver.start(u64::MAX);
        assert_eq!(request(&host, &mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]).0, VIRTIO_BLK_S_OK);
    }
}

#[test]
fn a_flush_that_the_host_cannot_do_reaches_the_guest_and_keeps_a_snapshot_from_being_made() {
    // A filter holds for the threads that this one starts too.
    sys::netns::on_own_thread(|| {
        let (_file, block) = disk(&pattern(8), CacheType::Writeback, false);
        let (_other, unsafe_block) = disk(&pattern(8), CacheType::Unsafe, false);
        fail([libc::SYS_fsync, libc::SYS_fdatasync]);
        let host = Host::new(Devices { blocks: vec![unsafe_block, block], ..Devices::default() });
        for (slot, status) in [(0, VIRTIO_BLK_S_OK), (1, VIRTIO_BLK_S_IOERR)] {
            let mut driver = host.driver(slot);
            driver.start(u64::MAX);
            assert_eq!(request(&host, &mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]).0, status);
        }
        host.virtio.park().unwrap();
        let error = host.virtio.save().unwrap_err();
        assert!(
            matches!(&error, Error::Flush { source, .. } if source.raw_os_error() == Some(libc::EIO)),
            "{error}"
        );
    });
}

/// From here on these system calls fail in this thread.
fn fail(calls: [i64; 2]) {
    let rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let (others, these) = (SeccompAction::Allow, SeccompAction::Errno(libc::EIO as u32));
    let filter = SeccompFilter::new(rules, others, these, TargetArch::x86_64).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

#[test]
fn the_id_is_the_drives_and_what_is_not_known_is_unsupported() {
    let (_file, block) = disk(&pattern(8), CacheType::Writeback, false);
    let host = host(block);
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    host.write(DATA, &[0xbb; 24]);
    assert_eq!(
        request(&host, &mut driver, VIRTIO_BLK_T_GET_ID, 0, &[writable(DATA, 20)]),
        (VIRTIO_BLK_S_OK, 21)
    );
    assert_eq!(host.read(DATA, 24), [&b"rootfs"[..], &[0; 14], &[0xbb; 4]].concat());
    assert_eq!(
        request(&host, &mut driver, VIRTIO_BLK_T_GET_ID, 0, &[writable(DATA, 4)]),
        (VIRTIO_BLK_S_OK, 5)
    );
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES, 77, u32::MAX] {
        assert_eq!(request(&host, &mut driver, kind, 0, &[]).0, VIRTIO_BLK_S_UNSUPP);
    }
}

#[test]
fn many_requests_at_once_all_find_their_sectors() {
    let content = pattern(512);
    let (file, block) = disk(&content, CacheType::Writeback, false);
    let host = host(block);
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    // Each request copies a sector to where it belongs in reverse order: 40 at a time fit the ring.
    for batch in (0..256).collect::<Vec<u64>>().chunks(40) {
        driver.ask_after(0, batch.len() as u16);
        for &sector in batch {
            let place = DATA + (1 << 20) + sector * 1024;
            let header =
                [&VIRTIO_BLK_T_OUT.to_le_bytes()[..], &[0; 4], &(511 - sector).to_le_bytes()].concat();
            host.write(place, &header);
            host.write(place + 16, &content[sector as usize * 512..][..512]);
            driver.offer(0, &[readable(place, 16), readable(place + 16, 512), writable(place + 700, 1)]);
        }
        driver.kick(0);
        driver.wait(0, batch.len());
    }
    let after = std::fs::read(file.path()).unwrap();
    for sector in 0..256 {
        assert!(after[(511 - sector) * 512..][..512] == content[sector * 512..][..512], "sector {sector}");
    }
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let error = Block::open(&drive(&missing, CacheType::Unsafe, false)).unwrap_err();
    assert!(matches!(&error, Error::Drive { .. }) && error.to_string().contains("missing"), "{error}");
    assert!(matches!(Block::open(&drive("/dev/null", CacheType::Unsafe, false)), Err(Error::NoDisk { .. })));
    assert!(matches!(
        Block::open(&drive(directory.path(), CacheType::Unsafe, true)),
        Err(Error::NoDisk { .. })
    ));
}
