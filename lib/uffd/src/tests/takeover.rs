//! A server that dies at the worst moments, step by step.

use std::io::Write;
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use sys::uffd::Memory;

use super::*;

const PAGE: usize = 4096;
const PAGES: usize = 64;

/// Memory over an image of ones, and who serves it.
fn served() -> Option<(Memory, Engine, Arc<Image>, Region)> {
    let uffd = Uffd::create()
        .inspect_err(|error| wrenn_tests::skip::here(format!("no userfaultfd for this user: {error}")))
        .ok()?;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[1; PAGES * PAGE]).unwrap();
    let image = Arc::new(Image::open_raw(file.path()).unwrap());
    let memory = Memory::map(PAGES * PAGE, false).unwrap();
    uffd.register(&memory, 0, memory.len()).unwrap();
    let region =
        Region { address: memory.address(), size: memory.len() as u64, offset: 0, page_size: PAGE as u64 };
    let engine = Engine::new(uffd, image.clone(), vec![region]).unwrap();
    Some((memory, engine, image, region))
}

/// The next server on what the first one held, which is dropped: what only it knew is lost.
fn follow(engine: Engine, image: &Arc<Image>, region: Region) -> Engine {
    let state = State::open(engine.state.as_fd().try_clone_to_owned().unwrap()).unwrap().0;
    let uffd = Uffd::from_fd(engine.uffd.as_fd().try_clone_to_owned().unwrap()).unwrap();
    drop(engine);
    Engine::resume(uffd, image.clone(), &[region], state).unwrap()
}

fn await_event(engine: &Engine) {
    assert!(readable(engine.uffd(), Duration::from_secs(20)).unwrap(), "nothing happened");
}

fn answer(engine: &mut Engine, until: impl Fn() -> bool) {
    while !until() {
        readable(engine.uffd(), Duration::from_millis(1)).unwrap();
        engine.drain().unwrap();
        engine.serve().unwrap();
    }
}

#[test]
fn a_discard_that_was_read_and_not_applied_is_applied_by_the_next_server() {
    let Some((memory, engine, image, region)) = served() else { return };
    std::thread::scope(|scope| {
        let discard = scope.spawn(|| memory.discard(8 * PAGE, 4 * PAGE));
        await_event(&engine);
        // It dies between read(2) and the first mark.
        let died = std::panic::catch_unwind(AssertUnwindSafe(|| {
            engine.uffd.drain_into(engine.state.messages(), |_| std::panic::resume_unwind(Box::new(())))
        }));
        assert!(died.is_err());
        discard.join().unwrap().unwrap();
        let mut engine = follow(engine, &image, region);
        assert_eq!(engine.removed_pages(), 4);
        let reader = scope.spawn(|| [7, 8, 11, 12].map(|page| memory.load(page * PAGE)));
        answer(&mut engine, || reader.is_finished());
        assert_eq!(reader.join().unwrap(), [1, 0, 0, 1]);
    });
}

#[test]
fn a_discard_applied_twice_is_applied_once_and_one_applied_before_a_refill_not_again() {
    let Some((memory, mut engine, image, region)) = served() else { return };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            memory.discard(0, PAGE).unwrap();
            memory.store(0, 5);
        });
        answer(&mut engine, || writer.is_finished());
        let mut engine = follow(engine, &image, region);
        assert_eq!((engine.removed_pages(), memory.load(0)), (1, 5), "what was written stays");
        let reader = scope.spawn(|| memory.load(PAGE));
        answer(&mut engine, || reader.is_finished());
        assert_eq!(reader.join().unwrap(), 1);
    });
}

#[test]
fn who_waits_for_a_page_whose_fault_was_read_is_answered_by_the_next_server() {
    let Some((memory, mut engine, image, region)) = served() else { return };
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| memory.load(3 * PAGE));
        await_event(&engine);
        engine.drain().unwrap();
        assert!(engine.is_asked());
        let mut engine = follow(engine, &image, region);
        answer(&mut engine, || reader.is_finished());
        assert_eq!(reader.join().unwrap(), 1);
    });
}

#[test]
fn a_page_that_was_filled_and_not_marked_is_found_there_and_not_filled_again() {
    let Some((memory, engine, image, region)) = served() else { return };
    assert!(matches!(engine.uffd.copy(region.address, &[1; PAGE]), Filled::Bytes(PAGE)));
    memory.store(0, 9);
    let mut engine = follow(engine, &image, region);
    engine.plan(Prefetch::All, Vec::new());
    while engine.prefetch(1 << 20).unwrap() != Step::Done {}
    assert_eq!((engine.missing(), memory.load(0), memory.load(PAGE)), (0, 9, 1));
    std::thread::scope(|scope| {
        // Discarded before it was marked, by a VMM that tells: the news comes first.
        let reader = scope.spawn(|| {
            memory.discard(0, PAGE).unwrap();
            memory.load(0)
        });
        answer(&mut engine, || reader.is_finished());
        assert_eq!(reader.join().unwrap(), 0);
    });
}

#[test]
fn a_refusal_outlives_the_server() {
    let Some((_memory, engine, image, region)) = served() else { return };
    engine.state.set(Counter::Refused, MOVED);
    let mut engine = follow(engine, &image, region);
    assert!(matches!(engine.serve(), Err(Error::Event { .. })));
}
