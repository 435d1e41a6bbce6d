//! The child half of a start: the program that becomes the VMM.
//!
//! It is a fresh execution of wrenn-launch, with one thread and nothing of its caller's but a plan (descriptor 3) and a
//! pipe to say why it failed (descriptor 4). That the pipe closes in silence means that the VMM runs.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, setrlimit};
use sys::mountns::{self, Tree};
use wire::json;

use crate::plan::Plan;

/// The hidden verb under which wrenn-launch is its own child half.
pub(crate) const VERB: &str = "--vmm-child";

/// Room for the empty files that others are mounted on, bytes.
const TMPFS_BYTES: u64 = 1 << 20;

/// A VMM opens a few dozen descriptors; Firecracker sizes its table by this limit at every start.
const MAX_DESCRIPTORS: u64 = 2048;

/// Becomes the VMM if these are the command line's words for it; `None` when they are not.
pub fn main(words: impl IntoIterator<Item = std::ffi::OsString>) -> Option<ExitCode> {
    if words.into_iter().next()? != VERB {
        return None;
    }
    let mut fds = sys::detach::inherited(2).unwrap_or_default().into_iter();
    let (Some(plan), Some(report)) = (fds.next(), fds.next()) else {
        eprintln!("wrenn-launch: {VERB} is for wrenn-launch itself");
        return Some(ExitCode::from(wire::Kind::Invalid.status()));
    };
    let (step, error) = become_vmm(plan.into());
    let report = &mut File::from(report);
    let _ = write!(
        report,
        "{}",
        json!({"step": step, "errno": error.raw_os_error(), "message": error.to_string()})
    );
    Some(ExitCode::FAILURE)
}

/// Returns only if it fails: what could not be done, and why.
fn become_vmm(plan: File) -> (String, io::Error) {
    match prepare(plan) {
        Err(failed) => failed,
        Ok(mut command) => {
            let error = command.exec();
            (format!("run {}", command.get_program().display()), error)
        }
    }
}

fn prepare(mut plan: File) -> Result<Command, (String, io::Error)> {
    let failed = |step: String| move |error: io::Error| (step, error);
    let mut bytes = Vec::new();
    plan.read_to_end(&mut bytes).map_err(failed("read the plan".into()))?;
    let plan =
        Plan::parse(&bytes).map_err(|error| ("read the plan".into(), io::Error::other(error.message)))?;

    limit().map_err(failed("set resource limits".into()))?;
    if let Some(path) = &plan.netns {
        let join = || setns(File::open(path)?, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        join().map_err(failed(format!("join the network namespace {}", path.display())))?;
    }
    mountns::enter_private().map_err(failed("make a private mount namespace".into()))?;
    // Taken hold of before /tmp is covered: any of them may lie under it.
    let mut shown = Vec::new();
    for (source, target) in &plan.shown {
        let take = || Ok((Tree::of(source)?, fs::metadata(source)?.is_dir()));
        let (tree, is_dir) = take().map_err(failed(format!("take {}", source.display())))?;
        shown.push((tree, is_dir, target));
    }
    // Nobody else can have planted anything, not even a link, where the files will be.
    mountns::empty_tmpfs(Path::new("/tmp"), TMPFS_BYTES).map_err(failed("mount a fresh /tmp".into()))?;
    for (tree, is_dir, target) in shown {
        let attach = || {
            fs::create_dir_all(target.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
            if is_dir {
                fs::create_dir(target)?
            } else {
                drop(File::create_new(target)?)
            }
            tree.attach(target)
        };
        attach().map_err(failed(format!("show {}", target.display())))?;
    }
    std::env::set_current_dir("/").map_err(failed("change to /".into()))?;
    let (program, arguments) =
        plan.command.split_first().ok_or(("run nothing".into(), io::ErrorKind::InvalidInput.into()))?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

fn limit() -> io::Result<()> {
    // Sockets and snapshots are for their owner alone.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_NOFILE, MAX_DESCRIPTORS, MAX_DESCRIPTORS)?;
    // A core dump of a VMM is a copy of its guest's memory.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}
