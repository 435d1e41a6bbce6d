//! Pages that the image does not give any more. Nobody is told that they are zeros: where the kernel can poison a page who
//! asks for it has SIGBUS, elsewhere serving ends with an error and whoever waits is told nothing.

mod common;

use std::io;
use std::thread;

use common::{HUGE, HugePages, PAGE, await_event, load_all, page, userfaultfd, write_image};
use nix::errno::Errno;
use sys::uffd::Memory;
use tempfile::NamedTempFile;
use uffd::{Engine, Error, Prefetch, Region, Step};
use wrenn_tests::{kernel, skip};

/// Serves `memory` from an image that has holes, or one that has none and holds sevens, of which what lies behind `end` is
/// cut off behind the engine's back.
fn cut_short(memory: &Memory, page_size: usize, holes: bool, end: usize) -> Option<Engine> {
    let uffd = userfaultfd()?;
    let file = NamedTempFile::new().unwrap();
    match holes {
        true => write_image(file.as_file(), memory.len() / PAGE),
        false => std::fs::write(file.path(), vec![7; memory.len()]).unwrap(),
    }
    let image = snap::Image::open_raw(file.path()).unwrap();
    uffd.register(memory, 0, memory.len()).unwrap();
    let (address, size) = (memory.address(), memory.len() as u64);
    let region = Region { address, size, offset: 0, page_size: page_size as u64 };
    let engine = Engine::new(uffd, image, vec![region]).unwrap();
    file.as_file().set_len(end as u64).unwrap();
    Some(engine)
}

/// Two threads wait for the byte at `asked`, in a page that the image gives up to `lost` alone.
fn nobody_is_told_zeros(memory: &Memory, mut engine: Engine, asked: usize, lost: usize) {
    let missing = engine.missing();
    thread::scope(|scope| {
        let read = || memory.write_out(asked, 1, io::pipe().unwrap().1);
        let readers = [scope.spawn(read), scope.spawn(read)];
        // Both wait before either is answered.
        while engine.uffd().waiting().unwrap().faults < 2 {
            thread::yield_now();
        }
        engine.drain().unwrap();
        let served = engine.serve();
        match kernel::poisons() {
            true => {
                served.unwrap();
                for reader in readers {
                    let refused = reader.join().unwrap().unwrap_err();
                    assert_eq!(refused.raw_os_error(), Some(Errno::EFAULT as i32), "{refused}");
                }
                let poisoned: Vec<_> = engine.poisoned().iter().map(|page| page.offset).collect();
                assert_eq!((poisoned, engine.poisoned_pages()), (vec![lost as u64], 1));
            }
            false => {
                let Err(Error::ImageLost { page, .. }) = served else { panic!("{served:?}") };
                assert_eq!(page.offset, lost as u64);
                // Now their VMM would be stopped.
                assert_eq!(engine.uffd().waiting().unwrap().faults, 2);
                assert!(readers.iter().all(|reader| !reader.is_finished()), "they have been told something");
                assert_eq!(engine.poisoned_pages(), 0);
                engine.uffd().unregister(memory.address(), memory.len() as u64).unwrap();
            }
        }
    });
    assert_eq!((engine.missing(), engine.removed_pages()), (missing, 0));
}

#[test]
fn a_page_that_is_lost_is_lost_for_all_who_wait_for_it_and_never_zeros() {
    for memory in [Memory::map(16 * PAGE, false).unwrap(), Memory::map_shared(16 * PAGE).unwrap()] {
        let Some(engine) = cut_short(&memory, PAGE, true, 8 * PAGE) else { return };
        nobody_is_told_zeros(&memory, engine, 11 * PAGE, 11 * PAGE);
    }
}

#[test]
fn a_page_that_is_lost_but_has_come_meanwhile_is_lost_for_nobody() {
    if !kernel::poisons() {
        return skip::here("this kernel cannot poison pages, nor say which are there");
    }
    let memory = Memory::map(4 * PAGE, false).unwrap();
    let Some(mut engine) = cut_short(&memory, PAGE, false, PAGE) else { return };
    thread::scope(|scope| {
        let reader = scope.spawn(|| page(&memory, 2));
        await_event(&engine);
        engine.uffd().copy_quietly(memory.address() + 2 * PAGE as u64, &[9; PAGE]);
        engine.drain().unwrap();
        let served = engine.serve();
        engine.uffd().unregister(memory.address(), memory.len() as u64).unwrap();
        assert_eq!(served.unwrap(), Step::Done);
        assert_eq!((reader.join().unwrap(), engine.poisoned_pages()), ([9; PAGE], 0));
    });
    assert_eq!(engine.missing(), 3 * PAGE as u64);
}

#[test]
fn a_huge_page_of_which_a_part_is_lost_is_lost_whole() {
    let _pool = match HugePages::reserve(2) {
        Ok(pool) => pool,
        Err(reason) => return skip::here(reason),
    };
    // One that lies ready in the image, which the kernel copies, and one that is put together.
    for holes in [false, true] {
        let memory = Memory::map(2 * HUGE, true).unwrap();
        let end = HUGE + 301 * PAGE;
        let Some(engine) = cut_short(&memory, HUGE, holes, end) else { return };
        nobody_is_told_zeros(&memory, engine, HUGE + 9, end);
    }
}

#[test]
fn what_was_cut_off_the_image_behind_our_back_is_not_loaded_as_zeros() {
    let memory = Memory::map(64 * PAGE, false).unwrap();
    let Some(mut engine) = cut_short(&memory, PAGE, false, 16 * PAGE) else { return };
    engine.plan(Prefetch::All, Vec::new());
    load_all(&mut engine, 64 << 10);
    // It waits until somebody asks for it.
    assert_eq!((engine.missing(), engine.poisoned_pages()), (48 * PAGE as u64, 0));
    assert!((0..16).all(|index| page(&memory, index) == [7; PAGE]));
}
