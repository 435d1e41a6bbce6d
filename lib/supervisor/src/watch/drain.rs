//! `wrenn watch --drain`: which sandboxes were paused on their own since the last call.

use store::Sandboxes;
use wire::{Call, Document, Error, Host, Id, Kind, Options, Reply, Value, json};

use super::expire::MARK;
use crate::sandbox::Sandbox;

/// Each is told once: its mark goes, under its operation lock, and comes back if the reply cannot be delivered.
pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let mut told: Vec<(String, String)> = Vec::new();
    for id in Sandboxes::of(call.host).ids()? {
        match take(call.host, &id, call.options) {
            Ok(Some(at)) => {
                let (host, options, mark) = (call.host.clone(), call.options, at.clone());
                told.push((id.to_string(), at));
                call.undo.push(format!("that {id} was told"), move || put_back(&host, id, options, &mark));
            }
            Ok(None) => {}
            // The next call tells it.
            Err(error) if error.kind == Kind::Timeout => log::info!("{id}: {error}"),
            Err(error) => log::warn!("{id}: {error}"),
        }
        wire::check_interrupt()?;
    }
    let ids: Vec<&str> = told.iter().map(|(id, _)| id.as_str()).collect();
    let sandboxes: Vec<Value> = told.iter().map(|(id, at)| json!({"id": id, "at": at})).collect();
    call.document.set("ids", json!(ids));
    call.document.set("sandboxes", sandboxes);
    Ok(Reply::Document)
}

/// Takes the mark of a sandbox that was paused on its own. Gives when it was.
fn take(host: &Host, id: &Id, options: Options) -> Result<Option<String>, Error> {
    // Most have none: no lock for them.
    match Sandboxes::of(host).load(id) {
        Ok(document) if paused_at(&document).is_some() => {}
        Ok(_) | Err(store::Error::NoSandbox { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let _lock = host.lock(&format!("{id}.op"), options.wait)?;
    let mut sandbox = Sandbox::load(host, id.clone(), options)?;
    let at = paused_at(&sandbox.document);
    if at.is_some() {
        sandbox.document.remove(MARK);
        sandbox.save()?;
    }
    Ok(at)
}

/// When the sandbox was paused on its own: the first pause that was published after the mark was set is that of the mark.
fn paused_at(document: &Document) -> Option<String> {
    let text = |field| document.get(field).and_then(Value::as_str);
    let (mark, paused) = (text(MARK)?, text("pause.at")?);
    // Both have one form, in which later is greater. A clock set back in between would hide it: then the state tells.
    (paused >= mark || text("state") == Some("paused")).then(|| paused.to_owned())
}

fn put_back(host: &Host, id: Id, options: Options, at: &str) -> Result<(), Error> {
    let _lock = host.lock(&format!("{id}.op"), options.wait)?;
    let mut sandbox = match Sandbox::load(host, id, options) {
        // Removed meanwhile: nobody needs to know.
        Err(error) if error.kind == Kind::NotFound => return Ok(()),
        sandbox => sandbox?,
    };
    sandbox.document.set(MARK, at);
    sandbox.save()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_was_paused_on_its_own_when_its_pause_is_as_young_as_the_mark() {
        let at = |value: Value| paused_at(&Document::from_value(value).unwrap());
        let early = "2026-11-22T01:00:00.000Z";
        let late = "2026-11-22T01:00:05.000Z";
        let paused = json!({"state": "paused", "expired_at": early, "pause": {"at": late}});
        assert_eq!(at(paused).as_deref(), Some(late));
        let woken = json!({"state": "running", "expired_at": early, "pause": {"at": late}});
        assert_eq!(at(woken).as_deref(), Some(late), "woken since, and not told yet");
        let under_way = json!({"state": "pausing", "expired_at": late, "pause": {"at": early}});
        assert_eq!(at(under_way), None, "the pause is an older one");
        assert_eq!(at(json!({"state": "paused", "pause": {"at": late}})), None, "by somebody, or told");
        assert_eq!(at(json!({"state": "running", "expired_at": late})), None);
    }
}
