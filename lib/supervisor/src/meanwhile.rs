//! What became of a sandbox while somebody talked to its guest: why the VM is not there any more.

use store::Sandboxes;
use wire::{Document, Error, Host, Kind, Value};

/// Of a call to a guest whose VM has ended, the reason, if it was asked for. `before` is the document that the call began
/// with.
pub fn explain(host: &Host, before: &Document, error: Error) -> Error {
    let (true, Ok(Some(id))) = (error.code == "guest.vm_gone", before.id()) else { return error };
    let conflict = |code: &str, what: String| Error::new(Kind::Conflict, code, what).detail(&error);
    let removed = || conflict("wrenn.removed", format!("sandbox {id} was removed meanwhile"));
    let now = match Sandboxes::of(host).load(&id) {
        Err(store::Error::NoSandbox { .. }) => return removed(),
        Err(_) => return error,
        Ok(now) => now,
    };
    match now.get("state").and_then(Value::as_str).unwrap_or_default() {
        "destroying" => removed(),
        "pausing" | "paused" => paused(&id, &error),
        // Another life by now: this one was paused.
        "resuming" | "running" if now.get("vm.pid") != before.get("vm.pid") => paused(&id, &error),
        _ => error,
    }
}

fn paused(id: &wire::Id, error: &Error) -> Error {
    let message = format!("sandbox {id} was paused meanwhile; what ran in it goes on when it is resumed");
    Error::new(Kind::Conflict, "wrenn.paused", message).detail(error)
}
