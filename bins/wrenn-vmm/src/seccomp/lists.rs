//! The system calls of each kind of thread.

use super::Only::{self, Any, NotExecutable, Type};
use super::Thread;

type Call = (i64, Only);

/// ioctls of KVM (linux/kvm.h).
const KVM: Only = Type(0xae);
/// ioctls of terminals and taps (asm-generic/ioctls.h, linux/if_tun.h).
const TAP: Only = Type(b'T' as u64);

/// What every thread does: memory, locks, the log, its own end.
pub(super) const COMMON: &[Call] = &[
    (libc::SYS_brk, Any),
    (libc::SYS_clock_gettime, Any),   // where the clock source has no vDSO
    (libc::SYS_clock_nanosleep, Any), // a bounded lock that is contended
    (libc::SYS_close, Any),
    (libc::SYS_exit, Any),
    (libc::SYS_exit_group, Any),
    (libc::SYS_futex, Any),
    (libc::SYS_getpid, Any),
    (libc::SYS_getrandom, Any), // seeds of hash maps
    (libc::SYS_gettid, Any),
    (libc::SYS_madvise, Any),
    (libc::SYS_mmap, NotExecutable),
    (libc::SYS_mprotect, NotExecutable),
    (libc::SYS_mremap, Any),
    (libc::SYS_munmap, Any),
    (libc::SYS_poll, Any),  // whether an output takes anything
    (libc::SYS_prctl, Any), // names of threads; allocators naming memory
    (libc::SYS_read, Any),
    (libc::SYS_restart_syscall, Any), // the kernel's own, after a stop and a continue
    (libc::SYS_rt_sigaction, Any),    // abort
    (libc::SYS_rt_sigprocmask, Any),
    (libc::SYS_rt_sigreturn, Any),
    (libc::SYS_sched_yield, Any),
    (libc::SYS_sigaltstack, Any), // a thread's end
    (libc::SYS_tgkill, Any),      // kicks, and abort
    (libc::SYS_write, Any),
    (libc::SYS_writev, Any), // a panic's message
];

const CONTROL: &[Call] = &[
    (libc::SYS_accept4, Any),
    (libc::SYS_epoll_ctl, Any), // waking the io thread
    (libc::SYS_fallocate, Any), // holes in memory files
    (libc::SYS_fcntl, Any),
    (libc::SYS_fdatasync, Any), // disks, at a snapshot
    (libc::SYS_fstat, Any),
    (libc::SYS_fsync, Any),
    (libc::SYS_ftruncate, Any),
    (libc::SYS_getsockopt, Any),
    (libc::SYS_ioctl, KVM),
    (libc::SYS_lseek, Any), // where guest memory is not all holes
    (libc::SYS_newfstatat, Any),
    (libc::SYS_openat, Any), // snapshots
    (libc::SYS_ppoll, Any),
    (libc::SYS_pread64, Any),
    (libc::SYS_pwrite64, Any),
    (libc::SYS_recvfrom, Any),
    (libc::SYS_rename, Any),
    (libc::SYS_sendto, Any),
    (libc::SYS_setsockopt, Any),
    (libc::SYS_shutdown, Any),
    (libc::SYS_statx, Any),
    (libc::SYS_timerfd_settime, Any), // the balloon's statistics
    (libc::SYS_unlink, Any),
];

const IO: &[Call] = &[
    (libc::SYS_epoll_ctl, Any),
    (libc::SYS_epoll_pwait, Any),
    (libc::SYS_epoll_wait, Any),
    (libc::SYS_fallocate, Any),
    (libc::SYS_fdatasync, Any),
    (libc::SYS_fsync, Any),
    (libc::SYS_ioctl, TAP), // offloads the guest has agreed to
    (libc::SYS_lseek, Any),
    (libc::SYS_pread64, Any),
    (libc::SYS_preadv, Any),
    (libc::SYS_pwrite64, Any),
    (libc::SYS_pwritev, Any),
    (libc::SYS_readv, Any),
    (libc::SYS_timerfd_settime, Any),
];

const VCPU: &[Call] = &[
    (libc::SYS_ioctl, KVM),
    (libc::SYS_rt_sigpending, Any), // kicks that came
    (libc::SYS_rt_sigtimedwait, Any),
    (libc::SYS_timerfd_settime, Any), // a balloon that the guest resets
];

/// What this kind of thread does besides.
pub(super) fn of(thread: Thread) -> &'static [Call] {
    match thread {
        Thread::Control => CONTROL,
        Thread::Io => IO,
        Thread::Vcpu => VCPU,
    }
}
