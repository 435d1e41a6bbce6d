//! `wrenn-net gc`: this root's slots that nobody keeps go, half-made ones too; with the host's last slot its table.

use std::time::Duration;

use wire::{Call, Error as WireError, Host, Id, Kind, Reply, Value, json};

use crate::state::State;
use crate::{Owner, host, nft, remove};

/// Longer than a pipe that makes a sandbox takes: between two of its programs nobody holds the sandbox's lock.
const MIN_AGE_S: u64 = 60;

pub(crate) fn run(call: &mut Call) -> Result<Reply, WireError> {
    let keep = call.document.find::<Vec<Id>>("keep")?.unwrap_or_default();
    let min_age = Duration::from_secs(call.document.find("min_age_s")?.unwrap_or(MIN_AGE_S));
    host::check_privilege()?;

    let (mut removed, mut left, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for state in State::all()? {
        let Some(owner) = state.owner.as_ref().filter(|owner| owner.tag() == call.host.tag()) else {
            continue;
        };
        let mut entry = json!({"slot": state.slot.number(), "id": owner.id().as_str()});
        match collect(&state, owner, &keep, min_age, call.host) {
            Ok(None) => removed.push(entry),
            Ok(Some(why)) => {
                entry["why"] = why.into();
                left.push(entry);
            }
            Err(error) => errors.push(error),
        }
    }
    let table = release_host();
    errors.extend(table.as_ref().err().cloned());
    WireError::all(errors)?;
    call.document.set("removed", Value::Array(removed));
    call.document.set("left", Value::Array(left));
    call.document.set("host_table", table?);
    Ok(Reply::Document)
}

/// Removes the slot, or says why it stays.
fn collect(
    state: &State,
    owner: &Owner,
    keep: &[Id],
    min_age: Duration,
    host: &Host,
) -> Result<Option<&'static str>, WireError> {
    if keep.contains(owner.id()) {
        return Ok(Some("kept"));
    }
    if state.file.as_ref().is_some_and(|file| file.age < min_age) {
        return Ok(Some("young"));
    }
    let Some(_locks) = lock(host, owner.id())? else { return Ok(Some("locked")) };
    // Under the lock: it may have been removed, and the slot taken again, since it was listed.
    remove::remove(state.slot, owner)?;
    Ok(None)
}

/// The sandbox's locks, the supervisor's and the tools'. `None` when somebody works on it.
fn lock(host: &Host, id: &Id) -> Result<Option<[sys::lock::Lock; 2]>, WireError> {
    let take = |name: String| match host.lock(&name, Duration::ZERO) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind == Kind::Timeout => Ok(None),
        Err(error) => Err(error),
    };
    Ok(match (take(format!("{id}.op"))?, take(id.to_string())?) {
        (Some(operation), Some(tool)) => Some([operation, tool]),
        _ => None,
    })
}

/// Removes the host's table when no slot of any root is left. Returns whether it is still there.
fn release_host() -> Result<bool, WireError> {
    let _lock = host::lock()?;
    if State::all()?.is_empty() {
        nft::remove_host_table()?;
        return Ok(false);
    }
    Ok(nft::has_host_table()?)
}
