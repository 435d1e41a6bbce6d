//! wrenn-launch around a VMM that runs nothing (`fake-vmm`, `fake-cloud-hypervisor`): where the VMM finds itself, what is
//! asked of it, and what is left when anything goes wrong. They need root and /dev/kvm, which the fake VMMs do not use.

mod bench;
mod cloud_hypervisor;
mod end;
mod freeze;
mod refusals;
mod restore;
mod start;
