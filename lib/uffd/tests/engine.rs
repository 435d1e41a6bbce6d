//! The page server against a VMM that steps it: each interleaving is made to happen, none is waited for.

mod common;

use std::thread;

use common::{
    HUGE, HugePages, PAGE, answer, await_event, content, image, load_all, page, serve_while, served,
    userfaultfd,
};
use sys::uffd::Memory;
use uffd::{Engine, Error, Prefetch, Region, Step};

fn ranges(engine: &Engine) -> Vec<(usize, usize)> {
    let pages = |bytes: u64| bytes as usize / PAGE;
    engine.removed().ranges().map(|range| (pages(range.start), pages(range.end))).collect()
}

#[test]
fn every_page_asked_for_by_several_threads_holds_what_the_image_holds() {
    let Some((memory, mut engine)) = served(512) else { return };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|first| {
                let memory = &memory;
                // Every thread reads all of it, each in another order: most pages are asked for more than once.
                let order = move |index: usize| (index * [1, 3, 5, 7][first] + first * 100) % 512;
                scope.spawn(move || (0..512).all(|index| page(memory, order(index)) == content(order(index))))
            })
            .collect();
        for thread in threads {
            assert!(serve_while(&mut engine, thread));
        }
    });
    let counts = engine.counts();
    assert_eq!((counts.copied + counts.zeroed, engine.missing()), (512, 0));
    // Every fifth page is a hole; stored zeros are copied.
    assert_eq!(counts.zeroed, 103);
}

#[test]
fn all_of_memory_is_loaded_ahead_in_batches_of_any_size() {
    for batch in [1, 3 * PAGE as u64, 64 << 10, 1 << 20] {
        let Some((memory, mut engine)) = served(600) else { return };
        load_all(&mut engine, batch);
        assert_eq!((engine.missing(), engine.counts().faults), (0, 0));
        assert!((0..600).all(|index| page(&memory, index) == content(index)));
        assert_eq!(engine.counts().prefetched, 600);
    }
}

#[test]
fn a_discard_in_the_middle_of_loading_ahead_is_never_undone() {
    let Some((memory, mut engine)) = served(256) else { return };
    // Pages 0 to 99 are there, the rest is not; the discard takes some of both.
    while engine.missing() > 156 * PAGE as u64 {
        engine.prefetch(PAGE as u64).unwrap();
    }
    thread::scope(|scope| {
        let discard = scope.spawn(|| memory.discard(90 * PAGE, 20 * PAGE));
        await_event(&engine);
        // Decided before the discard was read: refused, however often it is tried.
        for _ in 0..3 {
            assert_eq!(engine.prefetch(1 << 20).unwrap(), Step::Again);
        }
        assert!(!discard.is_finished(), "it waits until it is read");
        load_all(&mut engine, 1 << 20);
        discard.join().unwrap().unwrap();
    });
    assert_eq!(ranges(&engine), [(90, 110)]);
    thread::scope(|scope| {
        let read = scope.spawn(|| (0..256).map(|index| page(&memory, index)).collect::<Vec<_>>());
        for (index, bytes) in serve_while(&mut engine, read).into_iter().enumerate() {
            let expected = if (90..110).contains(&index) { [0; PAGE] } else { content(index) };
            assert!(bytes == expected, "page {index}");
        }
    });
}

#[test]
fn a_page_written_discarded_and_asked_for_again_is_zero() {
    let Some((memory, mut engine)) = served(8) else { return };
    thread::scope(|scope| {
        let steps = scope.spawn(|| {
            memory.store(PAGE, 0xaa);
            let before = memory.load(PAGE + 9);
            memory.discard(PAGE, PAGE).unwrap();
            let after = page(&memory, 1);
            memory.store(PAGE + 5, 0xbb);
            (before, after, memory.load(PAGE), memory.load(PAGE + 5))
        });
        let (before, after, first, written) = serve_while(&mut engine, steps);
        assert_eq!(before, content(1)[9]);
        assert!(after == [0; PAGE]);
        assert_eq!((first, written), (0, 0xbb));
    });
    assert_eq!(ranges(&engine), [(1, 2)], "what was discarded stays named, whatever was written since");
}

#[test]
fn discarded_memory_that_is_read_in_order_comes_back_in_few_faults_and_what_was_written_to_it_stays() {
    let Some((memory, mut engine)) = served(1024) else { return };
    load_all(&mut engine, 1 << 20);
    let faults = thread::scope(|scope| {
        let written = scope.spawn(|| {
            memory.discard(0, 1000 * PAGE).unwrap();
            // Out of order: each of these is one fault and one page.
            [700, 90, 305, 307, 999]
                .into_iter()
                .for_each(|index| memory.store(index * PAGE + 7, index as u8));
        });
        serve_while(&mut engine, written);
        assert_eq!((engine.counts().faults, engine.counts().zeroed), (5, 5 + ZEROS_OF_1024));
        let read = scope.spawn(|| (0..1024).map(|index| page(&memory, index)).collect::<Vec<_>>());
        for (index, bytes) in serve_while(&mut engine, read).into_iter().enumerate() {
            let mut expected = if index < 1000 { [0; PAGE] } else { content(index) };
            if [700, 90, 305, 307, 999].contains(&index) {
                expected[7] = index as u8;
            }
            assert!(bytes == expected, "page {index}");
        }
        engine.counts().faults
    });
    assert!(faults < 60, "{faults}");
    assert_eq!(engine.counts().zeroed, 1000 + ZEROS_OF_1024, "every page once");
}

/// The holes among the 1024 pages of an image.
const ZEROS_OF_1024: u64 = 205;

#[test]
fn memory_read_in_order_comes_in_few_faults_and_never_over_pages_that_were_there() {
    let Some((memory, mut engine)) = served(1024) else { return };
    thread::scope(|scope| {
        let written = scope.spawn(|| {
            // Pages that come in no order come alone.
            for index in [512, 40, 43, 900] {
                page(&memory, index);
            }
            memory.store(700 * PAGE, 0xaa);
            memory.discard(300 * PAGE, 10 * PAGE).unwrap();
        });
        serve_while(&mut engine, written);
        assert_eq!((engine.counts().faults, engine.counts().around), (5, 0));
        let read = scope.spawn(|| (0..1024).map(|index| page(&memory, index)).collect::<Vec<_>>());
        for (index, bytes) in serve_while(&mut engine, read).into_iter().enumerate() {
            let mut expected = if (300..310).contains(&index) { [0; PAGE] } else { content(index) };
            if index == 700 {
                expected[0] = 0xaa;
            }
            assert!(bytes == expected, "page {index}");
        }
    });
    let counts = engine.counts();
    // An extent of this image is four pages long.
    assert!(counts.faults < 500, "{}", counts.faults);
    assert_eq!(counts.copied + counts.zeroed, 1024, "no page twice");
    assert!(counts.around > 500, "{}", counts.around);
    assert_eq!(ranges(&engine), [(300, 310)]);
}

#[test]
fn a_discard_over_pages_that_were_and_were_not_there_leaves_their_neighbours() {
    let Some((memory, mut engine)) = served(64) else { return };
    thread::scope(|scope| {
        let steps = scope.spawn(|| {
            for index in [11, 12, 22] {
                page(&memory, index);
            }
            memory.discard(11 * PAGE, 11 * PAGE).unwrap();
            (0..64).map(|index| page(&memory, index)).collect::<Vec<_>>()
        });
        for (index, bytes) in serve_while(&mut engine, steps).into_iter().enumerate() {
            let expected = if (11..22).contains(&index) { [0; PAGE] } else { content(index) };
            assert!(bytes == expected, "page {index}");
        }
    });
    assert_eq!(ranges(&engine), [(11, 22)]);
}

#[test]
fn a_thread_whose_page_was_loaded_ahead_meanwhile_is_woken() {
    let Some((memory, mut engine)) = served(64) else { return };
    thread::scope(|scope| {
        let reader = scope.spawn(|| page(&memory, 33));
        await_event(&engine);
        // Its fault is read, but before it is answered the page comes in with all the others. Such a copy wakes who waits
        // for it; the answer then meets a page that is there.
        engine.drain().unwrap();
        while engine.prefetch(1 << 20).unwrap() == Step::More {}
        assert_eq!(engine.missing(), 0);
        assert_eq!(engine.serve().unwrap(), Step::Done);
        assert!(reader.join().unwrap() == content(33));
    });
    assert_eq!(engine.counts().copied + engine.counts().zeroed, 64, "no page was filled twice");
}

#[test]
fn all_threads_that_wait_for_one_page_get_it() {
    let Some((memory, mut engine)) = served(4) else { return };
    thread::scope(|scope| {
        let readers = [0, 8, 16].map(|at| {
            scope.spawn({
                let memory = &memory;
                move || memory.load(PAGE + at)
            })
        });
        while engine.counts().faults < 3 {
            await_event(&engine);
            engine.drain().unwrap();
        }
        assert_eq!(engine.serve().unwrap(), Step::Done);
        let values = readers.map(|reader| reader.join().unwrap());
        assert_eq!(values, [0, 8, 16].map(|at| content(1)[at]));
    });
}

#[test]
fn faults_that_a_discard_holds_up_are_answered_after_it() {
    let Some((memory, mut engine)) = served(64) else { return };
    thread::scope(|scope| {
        let reader = scope.spawn(|| page(&memory, 3));
        await_event(&engine);
        engine.drain().unwrap();
        // The fault is in hand; a discard of that very page begins before it is answered.
        let discard = scope.spawn(|| memory.discard(3 * PAGE, PAGE));
        await_event(&engine);
        assert_eq!(engine.serve().unwrap(), Step::Again);
        assert!(engine.is_asked() && !discard.is_finished());
        answer(&mut engine);
        assert!(serve_while(&mut engine, reader) == [0; PAGE]);
        discard.join().unwrap().unwrap();
    });
}

#[test]
fn many_discards_at_once_are_all_read_before_anything_is_answered() {
    let Some((memory, mut engine)) = served(400) else { return };
    thread::scope(|scope| {
        // More of them than one read takes.
        let threads: Vec<_> = (0..100)
            .map(|index| {
                scope.spawn({
                    let memory = &memory;
                    move || memory.discard(index * 4 * PAGE, 2 * PAGE)
                })
            })
            .collect();
        while engine.removed_pages() < 200 {
            await_event(&engine);
            engine.drain().unwrap();
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    });
    load_all(&mut engine, 1 << 20);
    assert_eq!(ranges(&engine), (0..100).map(|index| (index * 4, index * 4 + 2)).collect::<Vec<_>>());
    thread::scope(|scope| {
        let read = scope.spawn(|| (0..400).map(|index| page(&memory, index)).collect::<Vec<_>>());
        for (index, bytes) in serve_while(&mut engine, read).into_iter().enumerate() {
            let expected = if index % 4 < 2 { [0; PAGE] } else { content(index) };
            assert!(bytes == expected, "page {index}");
        }
    });
}

#[test]
fn two_regions_with_a_hole_between_them_are_each_at_their_own_offset() {
    let Some(uffd) = userfaultfd() else { return };
    let memory = Memory::map(100 * PAGE, false).unwrap();
    // The VMM's pages 0 to 29 and 60 to 99, of which the second comes first in the image. 30 to 59 are its own.
    let region = |first: usize, pages: usize, offset: usize| Region {
        address: memory.address() + (first * PAGE) as u64,
        size: (pages * PAGE) as u64,
        offset: (offset * PAGE) as u64,
        page_size: PAGE as u64,
    };
    uffd.register(&memory, 0, 30 * PAGE).unwrap();
    uffd.register(&memory, 60 * PAGE, 40 * PAGE).unwrap();
    let mut engine = Engine::new(uffd, image(70), vec![region(0, 30, 40), region(60, 40, 0)]).unwrap();
    engine.plan(Prefetch::All, Vec::new());
    thread::scope(|scope| {
        // From one region through the hole into the other.
        let discard = scope.spawn(|| memory.discard(25 * PAGE, 40 * PAGE));
        serve_while(&mut engine, discard).unwrap();
    });
    load_all(&mut engine, 1 << 20);
    assert_eq!(ranges(&engine), [(0, 5), (65, 70)]);
    thread::scope(|scope| {
        let read = scope.spawn(|| (0..100).map(|index| page(&memory, index)).collect::<Vec<_>>());
        for (index, bytes) in serve_while(&mut engine, read).into_iter().enumerate() {
            let expected = match index {
                0..25 => content(index + 40),
                65.. => content(index - 60),
                _ => [0; PAGE],
            };
            assert!(bytes == expected, "page {index}");
        }
    });
}

#[test]
fn memory_of_huge_pages_is_served_in_huge_pages() {
    let Some(uffd) = userfaultfd() else { return };
    let _pool = match HugePages::reserve(6) {
        Ok(pool) => pool,
        Err(reason) => return wrenn_tests::skip::here(reason),
    };
    let memory = Memory::map(6 * HUGE, true).unwrap();
    uffd.register(&memory, 0, memory.len()).unwrap();
    // The image is made of small pieces: no huge page lies in one of them. The last two have nothing but zeros.
    let file = tempfile::NamedTempFile::new().unwrap();
    let pages = 6 * HUGE / PAGE;
    let stored = |page: usize| page < 4 * HUGE / PAGE && !page.is_multiple_of(5);
    file.as_file().set_len(6 * HUGE as u64).unwrap();
    for page in (0..pages).filter(|&page| stored(page)) {
        std::os::unix::fs::FileExt::write_all_at(file.as_file(), &content(page), (page * PAGE) as u64)
            .unwrap();
    }
    let image = snap::Image::open_raw(file.path()).unwrap();
    let region =
        Region { address: memory.address(), size: 6 * HUGE as u64, offset: 0, page_size: HUGE as u64 };
    let mut engine = Engine::new(uffd, image, vec![region]).unwrap();
    engine.plan(Prefetch::All, Vec::new());
    thread::scope(|scope| {
        // The second on demand, the first and the fifth discarded, the rest ahead.
        let steps = scope.spawn(|| {
            let byte = memory.load(HUGE + 4096 + 8);
            memory.discard(0, HUGE).unwrap();
            memory.discard(4 * HUGE, HUGE).unwrap();
            byte
        });
        let second = HUGE / PAGE + 1;
        assert_eq!(serve_while(&mut engine, steps), if stored(second) { content(second)[8] } else { 0 });
        load_all(&mut engine, 64 << 10);
        let read = scope.spawn(|| (0..pages).map(|index| page(&memory, index)).collect::<Vec<_>>());
        for (index, bytes) in serve_while(&mut engine, read).into_iter().enumerate() {
            let gone = (0..HUGE / PAGE).contains(&index);
            let expected = if !gone && stored(index) { content(index) } else { [0; PAGE] };
            assert!(bytes == expected, "page {index}");
        }
    });
    let huge = HUGE / PAGE;
    assert_eq!(ranges(&engine), [(0, huge), (4 * huge, 5 * huge)]);
    let counts = engine.counts();
    assert_eq!((counts.copied, counts.zeroed, engine.missing()), (3, 3, 0), "pages of 2 MiB");
}

#[test]
fn a_range_that_is_gone_is_passed_over() {
    let Some((memory, mut engine)) = served(64) else { return };
    engine.uffd().unregister(memory.address() + 10 * PAGE as u64, 20 * PAGE as u64).unwrap();
    load_all(&mut engine, 1 << 20);
    assert!((0..10).chain(30..64).all(|index| page(&memory, index) == content(index)));
    assert!((10..30).all(|index| page(&memory, index) == [0; PAGE]), "nothing was written there");
}

#[test]
fn the_neighbours_of_a_range_that_is_gone_get_their_own_content() {
    // In the middle of what is filled at once: ahead, for a reader in order, and zeros for one.
    for way in ["ahead", "fetched", "refilled"] {
        let Some((memory, mut engine)) = served(64) else { return };
        if way == "refilled" {
            load_all(&mut engine, 1 << 20);
            thread::scope(|scope| {
                let discard = scope.spawn(|| memory.discard(0, 64 * PAGE));
                serve_while(&mut engine, discard).unwrap();
            });
        }
        engine.uffd().unregister(memory.address() + 13 * PAGE as u64, 15 * PAGE as u64).unwrap();
        if way == "ahead" {
            load_all(&mut engine, 1 << 20);
        }
        thread::scope(|scope| {
            let mapped: Vec<_> = (0..13).chain(28..64).collect();
            let wanted = mapped.clone();
            let memory = &memory;
            let read =
                scope.spawn(move || wanted.iter().map(|index| page(memory, *index)).collect::<Vec<_>>());
            let bytes = serve_while(&mut engine, read);
            for (index, bytes) in mapped.into_iter().zip(bytes) {
                let expected = if way == "refilled" { [0; PAGE] } else { content(index) };
                assert!(bytes == expected, "{way}: page {index}");
            }
        });
    }
}

#[test]
fn memory_given_back_whole_needs_no_server_any_more() {
    let Some((memory, mut engine)) = served(64) else { return };
    load_all(&mut engine, 1 << 20);
    thread::scope(|scope| {
        // One discard before, one under way while it is given back, one after.
        let before = scope.spawn(|| memory.discard(0, 2 * PAGE));
        serve_while(&mut engine, before).unwrap();
        let during = scope.spawn(|| memory.discard(10 * PAGE, 2 * PAGE));
        await_event(&engine);
        engine.release().unwrap();
        during.join().unwrap().unwrap();
    });
    drop(engine);
    memory.discard(20 * PAGE, 2 * PAGE).unwrap();
    for index in 0..64 {
        let expected = if [0, 1, 10, 11, 20, 21].contains(&index) { [0; PAGE] } else { content(index) };
        assert!(page(&memory, index) == expected, "page {index}");
    }
}

#[test]
fn a_working_set_is_loaded_first_and_alone_if_that_is_what_is_wanted() {
    let Some((memory, mut engine)) = served(64) else { return };
    let bytes = |pages: std::ops::Range<usize>| (pages.start * PAGE) as u64..(pages.end * PAGE) as u64;
    // One range lies past the end of memory: from another VM's recording.
    engine.plan(Prefetch::Recorded, vec![bytes(50..53), bytes(8..9), bytes(1000..1010)]);
    load_all(&mut engine, 1 << 20);
    assert_eq!(engine.missing(), 60 * PAGE as u64);
    assert!([50, 51, 52, 8].into_iter().all(|index| page(&memory, index) == content(index)));
    assert_eq!(engine.counts().faults, 0);
}

#[test]
fn memory_that_reaches_past_the_image_is_refused() {
    let Some(uffd) = userfaultfd() else { return };
    let region =
        Region { address: 0x10_0000, size: 8 * PAGE as u64, offset: PAGE as u64, page_size: PAGE as u64 };
    let Err(error) = Engine::new(uffd, image(8), vec![region]) else { panic!("accepted") };
    assert!(matches!(error, Error::ImageShort { size: 32768, wanted: 36864 }), "{error}");
}
