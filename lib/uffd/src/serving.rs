//! Who serves a sandbox now.

use std::path::PathBuf;
use std::time::Duration;

use sys::process::Process;
use wire::Document;

use crate::Error;
use crate::control::{self, Request};
use crate::orders::process_of;

/// The process that keeps a sandbox's VM served: the guardian that its document names; or, should that have been killed, the
/// server that goes on under its name, asked for at the control socket and waited for at most `limit`. `None` when there is
/// neither, or no answer.
///
/// # Errors
/// `invalid` when the document's section is none.
pub fn serving(document: &Document, limit: Duration) -> Result<Option<Process>, wire::Error> {
    let named = document.process("uffd")?;
    if named.is_alive() {
        return Ok(Some(named));
    }
    let Some(control) = document.find::<PathBuf>("uffd.control")? else { return Ok(None) };
    match control::ask(&control, Some(&named), &Request::Look { vm: None }, limit) {
        Ok(Ok(answer)) => Ok(process_of(&answer["server"])),
        Ok(Err(_)) | Err(Error::NotRunning { .. }) => Ok(None),
        Err(error) => {
            log::warn!("{}", wire::Error::from(error));
            Ok(None)
        }
    }
}
