//! What each thread may ask of the kernel once a guest runs.
//!
//! A filter holds for the thread that enters it and those it starts later, so the main thread enters its own last. What
//! a filter does not name kills the program, which says what it was.

mod handler;
mod lists;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// The API, snapshots and the machine's control: the main thread, once there is a machine.
    Control,
    /// The devices' queues.
    Io,
    /// A vCPU.
    Vcpu,
}

/// What a call's arguments must be.
#[derive(Debug, Clone, Copy)]
enum Only {
    /// Anything.
    Any,
    /// An ioctl of this type: the second byte of its number (linux/ioctl.h).
    Type(u64),
    /// No executable memory: argument 2 without `PROT_EXEC`.
    NotExecutable,
}

static ENABLED: AtomicBool = AtomicBool::new(false);

/// From here on [`enter`] does something.
///
/// # Errors
/// What setting the signal's handler said.
pub fn enable() -> io::Result<()> {
    handler::install()?;
    ENABLED.store(true, Ordering::Release);
    Ok(())
}

/// Puts the calling thread under its filter, if filters are enabled.
///
/// # Errors
/// What the kernel said.
pub fn enter(thread: Thread) -> io::Result<()> {
    if !ENABLED.load(Ordering::Acquire) {
        return Ok(());
    }
    let program = program(thread).map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

fn program(thread: Thread) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, only) in lists::COMMON.iter().chain(lists::of(thread)) {
        let rules = rules.entry(*call).or_default();
        // A call without rules is allowed whatever its arguments.
        rules.extend(condition(*only)?.map(|condition| SeccompRule::new(vec![condition])).transpose()?);
    }
    SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

fn condition(only: Only) -> Result<Option<SeccompCondition>, seccompiler::BackendError> {
    let (argument, mask, value) = match only {
        Only::Any => return Ok(None),
        Only::Type(kind) => (1, 0xff00, kind << 8),
        Only::NotExecutable => (2, libc::PROT_EXEC as u64, 0),
    };
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_can_be_made() {
        for thread in [Thread::Control, Thread::Io, Thread::Vcpu] {
            assert!(program(thread).unwrap().len() > 20, "{thread:?}");
        }
    }

    #[test]
    fn no_thread_may_start_programs_reach_out_or_look_into_others() {
        let forbidden =
            [libc::SYS_execve, libc::SYS_execveat, libc::SYS_socket, libc::SYS_connect, libc::SYS_ptrace];
        let forbidden =
            [&forbidden[..], &[libc::SYS_process_vm_readv, libc::SYS_fork, libc::SYS_bpf]].concat();
        for thread in [Thread::Control, Thread::Io, Thread::Vcpu] {
            let mut allowed = lists::COMMON.iter().chain(lists::of(thread));
            assert!(!allowed.any(|(call, _)| forbidden.contains(call)), "{thread:?}");
        }
    }

    /// A child process of one thread that enters a filter and calls `act`. Its exit status, and what it said on stderr.
    fn filtered(thread: Thread, act: fn()) -> (i32, String) {
        use std::io::Read;
        use std::os::fd::AsRawFd;
        let (mut reader, writer) = io::pipe().unwrap();
        // SAFETY: the child has this thread alone; it makes system calls and ends by _exit.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                // SAFETY: both descriptors are open; nothing else runs in this process.
                unsafe { libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO) };
                let entered = enable().and_then(|()| enter(thread));
                if entered.is_ok() {
                    act();
                }
                // SAFETY: it ends the process and runs nothing of it.
                unsafe { libc::_exit(if entered.is_ok() { 0 } else { 1 }) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                drop(writer);
                let mut said = String::new();
                reader.read_to_string(&mut said).unwrap();
                match nix::sys::wait::waitpid(child, None).unwrap() {
                    nix::sys::wait::WaitStatus::Exited(_, status) => (status, said),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn opens_a_socket() {
        // SAFETY: three integers, and a new descriptor.
        unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
    }

    fn opens_a_file() {
        drop(std::fs::File::open("/dev/null"));
    }

    fn maps_code() {
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping where the kernel likes.
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    }

    fn works() {
        let many = vec![1u8; 8 << 20];
        drop(many);
        // SAFETY: KVM_CHECK_EXTENSION of no descriptor: EBADF.
        unsafe { libc::ioctl(-1, 0xae03, 0) };
    }

    #[test]
    fn what_a_filter_does_not_name_ends_the_program_which_says_so() {
        for (thread, act, call) in [
            (Thread::Control, opens_a_socket as fn(), "041"),
            (Thread::Vcpu, opens_a_file, "257"),
            (Thread::Io, works, "016"),
            (Thread::Vcpu, maps_code, "009"),
        ] {
            let said = format!(
                "Error: system call {call} is not in this thread's seccomp filter (--no-seccomp runs without)\n"
            );
            assert_eq!(filtered(thread, act), (148, said), "{thread:?}");
        }
        for (thread, act) in
            [(Thread::Control, opens_a_file as fn()), (Thread::Vcpu, works), (Thread::Control, works)]
        {
            assert_eq!(filtered(thread, act), (0, String::new()), "{thread:?}");
        }
    }
}
