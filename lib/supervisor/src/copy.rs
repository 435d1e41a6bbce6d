//! `wrenn cp`: copy a file into a sandbox or out of it.

use guest::Agent;
use wire::{Call, Error, Id, Reply};

use crate::exec::active;
use crate::meanwhile;

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let (from, to): (String, String) = (call.document.need("from")?, call.document.need("to")?);
    let ((id, inside), outside, into) = match (inside("from", &from)?, inside("to", &to)?) {
        (None, Some(inside)) => (inside, absolute("from", &from)?, true),
        (Some(inside), None) => (inside, absolute("to", &to)?, false),
        _ => return Err(Error::field("to", "exactly one of from and to must be ID:/path")),
    };
    let document = active(call.host, id, call.options)?;
    let user = match call.document.find::<String>("user")? {
        Some(user) => Some(user),
        None => document.find("spec.user")?,
    };
    let agent = Agent::of(&document)?;
    let copied = if into {
        guest::cp::upload(&agent, &outside, inside, user.as_deref())
    } else {
        guest::cp::download(&agent, inside, &outside, user.as_deref())
    };
    let bytes = copied.map_err(|error| meanwhile::explain(call.host, &document, error.into()))?;
    call.document.set("copied_bytes", bytes);
    Ok(Reply::Document)
}

/// `ID:/path`. What has a slash before its first colon, or no colon, is a file of this host.
fn inside<'a>(field: &str, text: &'a str) -> Result<Option<(Id, &'a str)>, Error> {
    match text.split_once(':') {
        Some((id, path)) if !id.contains('/') => {
            if path.is_empty() {
                return Err(Error::field(field, "wants a path after the colon"));
            }
            let id = Id::new(id).map_err(|error| Error::field(field, error.message))?;
            Ok(Some((id, path)))
        }
        _ => Ok(None),
    }
}

fn absolute(field: &str, path: &str) -> Result<std::path::PathBuf, Error> {
    std::path::absolute(path).map_err(|_| Error::field(field, "must not be empty"))
}
