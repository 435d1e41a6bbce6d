use super::*;

const PAGE: usize = 4096;

/// Memory that waits to be filled, or `None` (which is reported) where this user may not have that.
fn registered(pages: usize) -> Option<(Uffd, Memory)> {
    let memory = Memory::map(pages * PAGE, false).unwrap();
    match Uffd::create() {
        Ok(uffd) => {
            uffd.register(&memory, 0, memory.len()).unwrap();
            Some((uffd, memory))
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS)) => {
            wrenn_tests::skip::here(format!("no userfaultfd for this user: {error}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn events(uffd: &Uffd) -> Vec<Event> {
    let mut seen = Vec::new();
    uffd.drain(&mut Events::new(), |event| seen.push(event)).unwrap();
    seen
}

#[test]
fn a_fault_waits_until_its_page_is_copied() {
    let Some((uffd, memory)) = registered(2) else { return };
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| memory.load(PAGE + 7));
        crate::process::readable(&uffd, std::time::Duration::from_secs(10)).unwrap();
        let address = memory.address() + PAGE as u64;
        assert_eq!(events(&uffd), [Event::Fault { address, write: false }]);
        assert!(matches!(uffd.copy(address, &[0x5a; PAGE]), Filled::Bytes(PAGE)));
        assert_eq!(reader.join().unwrap(), 0x5a);
    });
    assert!(events(&uffd).is_empty());
}

#[test]
fn a_call_that_meets_a_page_that_is_there_tells_how_far_it_came() {
    let Some((uffd, memory)) = registered(4) else { return };
    let base = memory.address();
    assert!(matches!(uffd.copy(base + 2 * PAGE as u64, &[1; PAGE]), Filled::Bytes(PAGE)));
    let source = vec![2; 4 * PAGE];
    assert!(matches!(uffd.copy(base, &source[..]), Filled::Bytes(count) if count == 2 * PAGE));
    assert!(matches!(uffd.copy(base + 2 * PAGE as u64, &source[..2 * PAGE]), Filled::Exists));
    let Some((uffd, memory)) = registered(4) else { return };
    let base = memory.address();
    assert!(matches!(uffd.zero(base + PAGE as u64, PAGE as u64), Filled::Bytes(PAGE)));
    assert!(matches!(uffd.zero(base, 4 * PAGE as u64), Filled::Bytes(PAGE)));
    assert!(matches!(uffd.zero(base + PAGE as u64, PAGE as u64), Filled::Exists));
    assert_eq!(memory.load(0), 0);
}

#[test]
fn while_a_discard_waits_to_be_read_nothing_can_be_filled() {
    let Some((uffd, memory)) = registered(4) else { return };
    let base = memory.address();
    std::thread::scope(|scope| {
        let discard = scope.spawn(|| memory.discard(PAGE, 2 * PAGE));
        crate::process::readable(&uffd, std::time::Duration::from_secs(10)).unwrap();
        assert!(matches!(uffd.copy(base, &[1; PAGE]), Filled::Again));
        assert!(matches!(uffd.zero(base, PAGE as u64), Filled::Again));
        let (start, end) = (base + PAGE as u64, base + 3 * PAGE as u64);
        assert_eq!(events(&uffd), [Event::Remove { start, end }]);
        discard.join().unwrap().unwrap();
    });
    assert!(matches!(uffd.copy(base, &[1; PAGE]), Filled::Bytes(PAGE)));
}

#[test]
fn memory_that_is_not_registered_is_never_filled() {
    let Some((uffd, memory)) = registered(2) else { return };
    let other = Memory::map(PAGE, false).unwrap();
    assert!(matches!(uffd.copy(other.address(), &[1; PAGE]), Filled::Unmapped));
    uffd.unregister(memory.address(), memory.len() as u64).unwrap();
    assert!(matches!(uffd.copy(memory.address(), &[1; PAGE]), Filled::Unmapped));
    assert_eq!(memory.load(0), 0, "a page missing there is the kernel's business again");
}

#[test]
fn a_descriptor_that_is_no_userfaultfd_is_refused() {
    let (reader, _writer) = io::pipe().unwrap();
    let error = Uffd::from_fd(reader.into()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("pipe:"), "{error}");
}

#[test]
fn who_waits_is_counted_whether_read_or_not() {
    let Some((uffd, memory)) = registered(2) else { return };
    let patience = std::time::Duration::from_secs(10);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| memory.load(0));
        crate::process::readable(&uffd, patience).unwrap();
        assert_eq!(uffd.waiting().unwrap(), Waiting { faults: 1, unread: 1 });
        events(&uffd);
        assert_eq!(uffd.waiting().unwrap(), Waiting { faults: 1, unread: 0 });
        // Filled and not woken: the page is there, and its reader still waits.
        assert!(matches!(uffd.copy_quietly(memory.address(), &[7; PAGE]), Filled::Bytes(PAGE)));
        assert_eq!(uffd.waiting().unwrap().faults, 1);
        uffd.wake(memory.address(), PAGE as u64).unwrap();
        assert_eq!(reader.join().unwrap(), 7);
    });
}

#[test]
fn the_kernel_waits_for_pages_as_a_thread_does() {
    let Some((uffd, memory)) = registered(2) else { return };
    let (mut reader, writer) = io::pipe().unwrap();
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| memory.write_out(0, PAGE, &writer));
        crate::process::readable(&uffd, std::time::Duration::from_secs(10)).unwrap();
        events(&uffd);
        assert!(matches!(uffd.copy(memory.address(), &[9; PAGE]), Filled::Bytes(PAGE)));
        assert_eq!(kernel.join().unwrap().unwrap(), PAGE);
    });
    assert!(matches!(uffd.copy(memory.address() + PAGE as u64, &[1; PAGE]), Filled::Bytes(PAGE)));
    assert_eq!(memory.read_in(PAGE, PAGE, &mut reader).unwrap(), PAGE);
    assert_eq!(memory.load(PAGE + 5), 9);
}

#[test]
fn a_forked_copy_has_the_pages_that_are_there_and_zeros_for_the_others() {
    let Some((uffd, memory)) = registered(2) else { return };
    assert!(matches!(uffd.copy(memory.address(), &[3; PAGE]), Filled::Bytes(PAGE)));
    assert_eq!(memory.load_in_fork(8).unwrap(), 3);
    assert_eq!(memory.load_in_fork(PAGE).unwrap(), 0);
    assert!(events(&uffd).is_empty());
}

#[test]
fn memory_given_up_cannot_be_filled_and_its_neighbours_can() {
    let Some((uffd, memory)) = registered(3) else { return };
    memory.give_up(PAGE, PAGE).unwrap();
    let base = memory.address();
    assert!(matches!(uffd.copy(base + PAGE as u64, &[1; PAGE]), Filled::Unmapped));
    assert!(matches!(uffd.copy(base + 2 * PAGE as u64, &[1; PAGE]), Filled::Bytes(PAGE)));
    assert_eq!(memory.load(2 * PAGE), 1);
}
