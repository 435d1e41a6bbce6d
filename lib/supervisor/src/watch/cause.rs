//! Why a VM is gone.

use std::time::Duration;

use sys::process::Process;
use wire::Document;

/// How long a page server's guardian may take to say how the server ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// What has died first, of a running sandbox that has lost its VMM, its page server or both. When one goes the other
/// does, within a moment and in either order: a guardian stops a VMM whose page server died, and a page server whose VMM
/// died may have left before that has ended.
pub fn of(document: &Document) -> String {
    let process = |section: &str| document.process(section).ok();
    let (Some(vmm), server) = (process("vm"), process("uffd")) else {
        return "its document names no VMM".to_owned();
    };
    if sys::process::boot_id().is_ok_and(|boot| boot != vmm.boot_id) {
        return "the host was restarted".to_owned();
    }
    let server = server.filter(|server| !server.is_alive());
    match server.filter(|_| vmm.is_alive() || died(document)) {
        Some(Process { pid, .. }) => format!("its page server (pid {pid}) is gone"),
        None => format!("its VMM (pid {}) is gone", vmm.pid),
    }
}

fn died(document: &Document) -> bool {
    uffd::died(document, PATIENCE).unwrap_or_else(|error| {
        log::info!("how the page server ended is not known: {error}");
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{Value, json};

    fn document(vm: &Value, uffd: Option<&Value>) -> Document {
        Document::from_value(json!({"vm": vm, "uffd": uffd})).unwrap()
    }

    #[test]
    fn the_reason_names_what_has_died() {
        let me = Process::current().unwrap();
        let named = |pid: i32, boot: &str| json!({"pid": pid, "start_time": me.start_time, "boot_id": boot});
        let alive = named(me.pid, &me.boot_id);
        // The same start time, another process.
        let dead = named(1, &me.boot_id);
        assert_eq!(of(&document(&dead, None)), "its VMM (pid 1) is gone");
        assert_eq!(of(&document(&dead, Some(&alive))), "its VMM (pid 1) is gone");
        assert_eq!(of(&document(&alive, Some(&dead))), "its page server (pid 1) is gone");
        assert_eq!(of(&document(&dead, Some(&dead))), "its VMM (pid 1) is gone", "nobody says that it died");
        assert_eq!(of(&document(&named(1, "another"), None)), "the host was restarted");
        assert_eq!(of(&Document::new()), "its document names no VMM");
    }
}
