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
}
