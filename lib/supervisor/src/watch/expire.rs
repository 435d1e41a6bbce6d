//! The end of an idle sandbox's time to live.

use wire::{Document, Error};

use super::work::Outcome;
use crate::sandbox::Sandbox;
use crate::{pause, rm, sample};

/// When the watch began to pause the sandbox. With `pause.at` it says, in one document and across any crash, that it did.
pub const MARK: &str = "expired_at";

/// Whether a sandbox is removed rather than paused when its time is over.
pub fn destroys(document: &Document) -> bool {
    document.get("spec.on_expiry").is_some_and(|word| word == "destroy")
}

/// Pauses a running sandbox, or removes it if `spec.on_expiry` says so, unless it was used since `seen`. `tell` is called
/// when it was not.
pub fn expire(sandbox: &mut Sandbox, seen: &Document, tell: impl FnOnce()) -> Outcome {
    match is_idle(&sandbox.document, seen) {
        Ok(true) => tell(),
        Ok(false) => return Outcome::Active,
        Err(error) => return Outcome::NotExpired(error),
    }
    let destroys = destroys(&sandbox.document);
    let done = if destroys { rm::remove(sandbox) } else { pause(sandbox) };
    match done {
        Ok(()) if destroys => Outcome::Removed,
        // It is paused and safe. What of its life could not be reclaimed, `gc` will.
        Err(error) if sandbox.state() == "paused" => {
            log::warn!("{}: {error}", sandbox.id);
            Outcome::Paused
        }
        Ok(()) => Outcome::Paused,
        Err(error) => Outcome::NotExpired(error),
    }
}

/// `exec`, `cp`, `ping` and `resume` change `last_active_at` under the lock that is held here, before they connect; what
/// is connected is seen in the kernel.
fn is_idle(document: &Document, seen: &Document) -> Result<bool, Error> {
    let same = |field| document.get(field) == seen.get(field);
    let same = same("last_active_at") && same("vm.pid") && same("vm.start_time") && same("spec.timeout_s");
    Ok(same && sample::connections(document)? == 0)
}

fn pause(sandbox: &mut Sandbox) -> Result<(), Error> {
    sandbox.document.set(MARK, wire::timestamp());
    let paused = pause::pause(sandbox);
    if paused.is_err() && sandbox.state() == "running" {
        sandbox.document.remove(MARK);
        if let Err(error) = sandbox.save() {
            log::warn!("{}: {error}", sandbox.id);
        }
    }
    paused
}
