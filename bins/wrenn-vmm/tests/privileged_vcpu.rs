//! A vCPU on its thread, with a few bytes of real-mode code instead of a kernel.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm::bus::BusDevice;
use vmm::kvm::{Buses, Error, Host, Thread, Vcpu, VcpuState, Vm};
use vmm::machine::{Ending, Exit};
use vmm::memory::GuestMemory;
use wrenn_tests::skip;

/// Everything takes its time under emulation.
const LIMIT: Duration = Duration::from_secs(60);
/// Where the code is.
const CODE: u64 = 0x1000;
/// Reads port 0x10 and writes what it read to port 0x11, for ever.
const ECHO: &[u8] = &[0xe4, 0x10, 0xe6, 0x11, 0xeb, 0xfa];

/// A device at ports 0x10 and 0x11: a read says that it has begun and waits for a value.
struct Port {
    begun: Sender<()>,
    values: Receiver<u8>,
    written: Sender<u8>,
}

impl BusDevice for Port {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        self.begun.send(()).unwrap();
        data.fill(self.values.recv().unwrap_or_default());
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        self.written.send(data[0]).unwrap();
    }
}

/// A machine with that device and the device's other ends.
struct Bench {
    host: Host,
    vm: Vm,
    memory: GuestMemory,
    buses: Arc<Buses>,
    ending: Arc<Ending>,
    begun: Receiver<()>,
    values: Sender<u8>,
    written: Receiver<u8>,
}

impl Bench {
    fn new(memory: GuestMemory) -> Self {
        let host = Host::open().unwrap();
        let vm = Vm::new(&host, memory.clone()).unwrap();
        let ((begin, begun), (values, taken), (write, written)) = (channel(), channel(), channel());
        let mut buses = Buses::default();
        let port = Port { begun: begin, values: taken, written: write };
        buses.ports.insert(0x10..0x12, Arc::new(Mutex::new(port)));
        let (buses, ending) = (Arc::new(buses), Arc::new(Ending::new().unwrap()));
        Self { host, vm, memory, buses, ending, begun, values, written }
    }

    /// A vCPU that is to begin at `CODE`, from a segment at `base`.
    fn boot(&self, code: &[u8], base: u64) -> Thread {
        self.memory.write_slice(code, GuestAddress(CODE)).unwrap();
        let vcpu = Vcpu::new(&self.host, &self.vm, 0, 1).unwrap();
        let enter = vcpu.enter(|regs, sregs| {
            (sregs.cs.base, sregs.cs.selector) = (base, 0);
            regs.rip = CODE;
        });
        enter.unwrap();
        self.start(vcpu)
    }

    fn start(&self, vcpu: Vcpu) -> Thread {
        Thread::start(vcpu, self.buses.clone(), self.ending.clone()).unwrap()
    }

    fn has_begun(&self) {
        self.begun.recv_timeout(LIMIT).unwrap();
    }

    fn has_written(&self) -> u8 {
        self.written.recv_timeout(LIMIT).unwrap()
    }

    /// How the guest ends.
    fn end(&self) -> Exit {
        let event = std::os::fd::AsRawFd::as_raw_fd(self.ending.event());
        // SAFETY: the event is open for as long as it is borrowed.
        let event = unsafe { std::os::fd::BorrowedFd::borrow_raw(event) };
        assert!(sys::process::readable(&event, LIMIT).unwrap());
        self.ending.exit().unwrap()
    }
}

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 64 << 10), (GuestAddress(1 << 20), 1 << 20)]).unwrap()
}

fn soon() -> Instant {
    Instant::now() + LIMIT
}

/// The guest's RAX: the first register of `struct kvm_regs`.
fn rax(state: &VcpuState) -> u64 {
    let state = serde_json::to_value(state).unwrap();
    let bytes: Vec<u8> = serde_json::from_value(state["regs"].clone()).unwrap();
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

macro_rules! needs_kvm {
    () => {
        if let Err(error) = Host::open() {
            return skip::here(format!("needs KVM (scripts/lab has it): {error}"));
        }
    };
}

#[test]
fn privileged_a_vcpu_that_waits_is_an_error_and_obeys_later() {
    needs_kvm!();
    let bench = Bench::new(memory());
    let vcpu = bench.boot(ECHO, 0);
    vcpu.run().unwrap();
    bench.has_begun();
    let asked = vcpu.pause().unwrap().wait(Instant::now() + Duration::from_millis(300));
    assert!(matches!(asked, Err(Error::Stuck(0))), "{asked:?}");
    vcpu.run().unwrap();
    bench.values.send(7).unwrap();
    assert_eq!(bench.has_written(), 7, "it pauses and runs on, as it was told");
    bench.has_begun();
    // Many orders at once, and none is lost.
    for _ in 0..100 {
        vcpu.run().unwrap();
    }
    let asked = vcpu.pause().unwrap();
    bench.values.send(8).unwrap();
    asked.wait(soon()).unwrap();
    assert!(bench.written.recv_timeout(Duration::from_millis(300)).is_err(), "it runs though it is paused");
}

#[test]
fn privileged_an_access_that_had_begun_is_complete_in_the_saved_state() {
    needs_kvm!();
    let first = Bench::new(memory());
    let vcpu = first.boot(ECHO, 0);
    vcpu.run().unwrap();
    first.has_begun();
    let paused = vcpu.pause().unwrap();
    first.values.send(0x5a).unwrap();
    paused.wait(soon()).unwrap();
    let state = vcpu.save().unwrap().wait(soon()).unwrap().unwrap();
    assert_eq!(rax(&state) & 0xff, 0x5a);
    assert!(first.written.try_recv().is_err(), "saving ran the guest");

    let text = serde_json::to_string(&state).unwrap();
    let state: VcpuState = serde_json::from_str(&text).unwrap();
    let second = Bench::new(first.memory.clone());
    let restored = Vcpu::restore(&second.host, &second.vm, 0, &state).unwrap();
    second.vm.restore(&first.vm.save().unwrap()).unwrap();
    let restored = second.start(restored);
    restored.run().unwrap();
    assert_eq!(second.has_written(), 0x5a);
    second.has_begun();
    assert!(second.written.try_recv().is_err(), "once");
}

#[test]
fn privileged_the_log_holds_exactly_the_pages_that_were_written() {
    needs_kvm!();
    // mov [0x5000], al; mov [0x7fff], ax (two pages); then wait for a value.
    let code = [&[0xa2, 0x00, 0x50, 0xa3, 0xff, 0x7f][..], ECHO].concat();
    let bench = Bench::new(memory());
    bench.vm.log_dirty(true).unwrap();
    let vcpu = bench.boot(&code, 0);
    vcpu.run().unwrap();
    bench.has_begun();
    let paused = vcpu.pause().unwrap();
    bench.values.send(0).unwrap();
    paused.wait(soon()).unwrap();
    let mut dirty = bench.vm.take_dirty().unwrap();
    dirty[0][0] &= !(1 << (CODE / 4096)); // under emulation a page that is executed counts as written
    assert_eq!(dirty, [vec![1 << 5 | 1 << 7 | 1 << 8], vec![0; 4]]);
    assert_eq!(bench.vm.take_dirty().unwrap(), [vec![0], vec![0; 4]]);
    bench.vm.log_dirty(false).unwrap();
    assert!(bench.vm.take_dirty().is_err(), "nothing is logged");
}

#[test]
fn privileged_a_guest_that_cannot_go_on_says_why() {
    needs_kvm!();
    // lidt [0x2000] (zeros: no interrupt has a handler); int3
    let bench = Bench::new(memory());
    let vcpu = bench.boot(&[0x0f, 0x01, 0x1e, 0x00, 0x20, 0xcc], 0);
    vcpu.run().unwrap();
    assert_eq!(bench.end(), Exit::Crash("triple fault".into()));
    // The code is where nothing is.
    let bench = Bench::new(memory());
    let vcpu = bench.boot(&[], 0xd000_0000);
    vcpu.run().unwrap();
    let Exit::Crash(reason) = bench.end() else { panic!("it goes on") };
    assert!(reason.starts_with("KVM internal error 1"), "{reason}");
}

#[test]
fn privileged_a_vcpu_whose_thread_panics_ends_the_machine() {
    needs_kvm!();
    let mut bench = Bench::new(memory());
    bench.begun = channel().1; // nobody hears that a read begins: the device panics
    let vcpu = bench.boot(ECHO, 0);
    vcpu.run().unwrap();
    assert_eq!(bench.end(), Exit::Crash("a vCPU's thread panicked".into()));
    assert!(vcpu.pause().and_then(|asked| asked.wait(soon())).is_err());
}

#[test]
fn privileged_a_register_that_cannot_be_set_is_named() {
    needs_kvm!();
    let bench = Bench::new(memory());
    let vcpu = bench.boot(ECHO, 0);
    let state = vcpu.save().unwrap().wait(soon()).unwrap().unwrap();
    let mut state = serde_json::to_value(&state).unwrap();
    let msrs = state["msrs"].as_array_mut().unwrap();
    assert!(msrs.len() > 20);
    let pat = msrs.iter_mut().find(|msr| msr[0] == 0x277).expect("the page attribute table");
    pat[1] = 0x0202_0202_0202_0202_u64.into(); // a memory type that does not exist
    let state: VcpuState = serde_json::from_value(state).unwrap();
    let other = Bench::new(memory());
    let error = Vcpu::restore(&other.host, &other.vm, 0, &state).err().expect("refused");
    assert_eq!(error.to_string(), "MSR 0x277 cannot be set to 0x202020202020202 on this host");
}
