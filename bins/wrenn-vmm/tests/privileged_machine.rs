//! Machines with a stock kernel and no virtio devices: boot, pause, save, restore, dirty log, end.

mod guest;

use std::time::Duration;

use guest::{Console, MEMORY, boot, config, image, initrd, wait_for_end};
use vm_memory::{Bytes, GuestAddress};
use vmm::machine::{Exit, Machine, MachineState};
use vmm::memory::Ram;
use vmm::virtio::{Devices, VirtioState};
use wrenn_tests::skip;

/// Counts, and says with every number whether a file's sum is still what it was.
const COUNT: &str = "
busybox dd if=/dev/urandom of=/file bs=64k count=8 2>/dev/null
sum=$(busybox md5sum </file)
n=0
while [ $n -lt 40 ]; do
    [ \"$(busybox md5sum </file)\" = \"$sum\" ] && echo tick $n || echo damaged $n
    n=$((n + 1))
    busybox usleep 50000
done
echo cpus $(busybox nproc)";

/// Reports the test as skipped where it cannot run.
macro_rules! needs_a_guest {
    () => {
        if let Some(reason) = guest::missing() {
            return skip::here(reason);
        }
    };
}

fn content(ram: &Ram) -> Vec<u8> {
    let mut content = vec![0; MEMORY as usize];
    ram.memory().read_slice(&mut content, GuestAddress(0)).unwrap();
    content
}

fn saved(machine: &Machine) -> (MachineState, VirtioState) {
    let (machine, virtio) = machine.save().unwrap();
    let text = (serde_json::to_string(&machine).unwrap(), serde_json::to_string(&virtio).unwrap());
    (serde_json::from_str(&text.0).unwrap(), serde_json::from_str(&text.1).unwrap())
}

/// Copies the pages that KVM says were written.
fn copy_dirty(machine: &Machine, ram: &Ram, copy: &mut [u8]) -> usize {
    let pages = machine.take_dirty().unwrap().concat();
    let dirty = |page: &usize| pages[page / 64] >> (page % 64) & 1 == 1;
    let dirty: Vec<usize> = (0..pages.len() * 64).filter(dirty).collect();
    for page in &dirty {
        let slice = &mut copy[page * 4096..(page + 1) * 4096];
        ram.memory().read_slice(slice, GuestAddress(*page as u64 * 4096)).unwrap();
    }
    dirty.len()
}

/// A stock kernel with the initramfs of the image, which finds no disk and resets by the keyboard controller.
fn stock(kernel: &str, vcpus: u8) {
    let config = config(kernel, &image("initrd"), vcpus, "reboot=k");
    let (ram, console) = (Ram::fresh(MEMORY).unwrap(), Console::default());
    let mut machine = boot(&config, &ram, &console);
    assert!(console.is_silent(Duration::from_millis(100)), "it runs before it is told to");
    machine.resume().unwrap();
    console.wait_for("there is no /dev/vda");
    assert_eq!(wait_for_end(&machine, &console), Exit::Reset);
    machine.pause().unwrap();
    assert!(machine.save().is_err(), "a guest that has ended cannot be saved");
}

#[test]
fn privileged_a_stock_vmlinux_boots_with_one_vcpu_and_resets() {
    needs_a_guest!();
    stock("kernel", 1);
}

#[test]
fn privileged_a_stock_bzimage_boots_with_two_vcpus_and_resets() {
    needs_a_guest!();
    stock("vmlinuz", 2);
}

/// Pauses, saves and restores a guest that counts, several times over, each time into memory that is made of the first
/// copy and the pages that were logged since.
fn lives_on(vcpus: u8, arguments: &str, end: &str) -> (Console, Exit) {
    let initrd = initrd(&format!("{COUNT}\n{end}"));
    let config = config("kernel", initrd.path(), vcpus, arguments);
    let (mut ram, console) = (Ram::fresh(MEMORY).unwrap(), Console::default());
    let mut machine = boot(&config, &ram, &console);
    machine.resume().unwrap();
    console.wait_for("tick 0");
    machine.pause().unwrap();
    machine.take_dirty().unwrap();
    let mut copy = content(&ram);

    for generation in 1..=3 {
        machine.resume().unwrap();
        machine.resume().unwrap(); // twice is once
        console.wait_for(&format!("tick {}", generation * 5));
        machine.pause().unwrap();
        machine.pause().unwrap();
        assert!(console.is_silent(Duration::from_millis(500)), "it runs while it is paused");

        let (state, virtio) = saved(&machine);
        let dirty = copy_dirty(&machine, &ram, &mut copy);
        assert!((10..20_000).contains(&dirty), "{dirty} dirty pages");
        assert_eq!(copy_dirty(&machine, &ram, &mut copy), 0, "the log is empty once it was taken");
        assert!(copy == content(&ram), "the log misses pages in generation {generation}");

        let next = Ram::fresh(MEMORY).unwrap();
        next.memory().write_slice(&copy, GuestAddress(0)).unwrap();
        drop(machine);
        ram = next;
        let restored = Machine::restore(
            &config,
            &state,
            &virtio,
            ram.memory().clone(),
            Devices::default(),
            ram.discard(),
            Box::new(console.clone()),
        );
        machine = restored.unwrap();
        assert!(console.is_silent(Duration::from_millis(100)), "it runs before it is told to");
    }
    machine.resume().unwrap();
    let exit = wait_for_end(&machine, &console);
    let ticks: Vec<String> = (0..40).map(|n: u32| n.to_string()).collect();
    assert_eq!(console.lines("tick"), ticks, "{}", console.text());
    (console, exit)
}

#[test]
fn privileged_a_guest_lives_through_three_restores_and_powers_off() {
    needs_a_guest!();
    let (console, exit) = lives_on(1, "", "busybox poweroff -f");
    assert_eq!((console.lines("cpus"), exit), (vec!["1".into()], Exit::Reset));
}

#[test]
fn privileged_two_vcpus_live_through_three_restores_and_reset() {
    needs_a_guest!();
    let (console, exit) = lives_on(2, "", "busybox reboot -f"); // by the BIOS
    assert_eq!((console.lines("cpus"), exit), (vec!["2".into()], Exit::Reset));
}

#[test]
fn privileged_a_triple_fault_of_one_of_four_vcpus_is_a_crash() {
    needs_a_guest!();
    let initrd = initrd("echo cpus $(busybox nproc)\nbusybox reboot -f");
    let config = config("vmlinuz", initrd.path(), 4, "reboot=t");
    let (ram, console) = (Ram::fresh(MEMORY).unwrap(), Console::default());
    let mut machine = boot(&config, &ram, &console);
    machine.resume().unwrap();
    assert_eq!(wait_for_end(&machine, &console), Exit::Crash("triple fault".into()));
    assert_eq!(console.lines("cpus"), ["4"]);
}
