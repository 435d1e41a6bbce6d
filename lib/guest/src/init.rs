//! `wrenn-guest init`: environment, user, time and identity, after boot and after every resume.

use wire::{Call, Document, Error, Map, Reply, Value};

use crate::Agent;
use crate::identity::Identity;

/// How often more a guest is told the time whose agent took too long to hear it.
const TRIES: u32 = 4;

pub(crate) fn run(call: &mut Call) -> Result<Reply, Error> {
    let agent = Agent::of(call.document)?;
    let confirm = call.fields().find::<bool>("confirm")?.unwrap_or(false);
    let mut identity = Identity::of(call.document)?;
    let mut body = defaults(call.document)?;
    let mut tries = 0..TRIES;
    let (now, wrong) = loop {
        let now = identity.ask(&mut body)?;
        let answer = agent.post("init", "/init", None, &body.clone().into())?;
        let answered = wire::now_ms();
        if tries.next().is_none() || !identity.is_late(&answer, answered) {
            break (now, identity.unconfirmed(&answer, answered));
        }
        wire::check_interrupt()?;
    };
    if !wrong.is_empty() {
        let wrong = wrong.join("; ");
        if confirm {
            return Err(crate::Error::Identity { wrong }.into());
        }
        log::info!("the agent at {} does not confirm who it is: {wrong}", agent.url());
    }
    call.document.set("guest.url", agent.url());
    call.document.set("guest.machine_id", identity.machine_id());
    call.document.set("guest.initialised_at", now);
    Ok(Reply::Document)
}

/// Environment, user, directory and token: what the agent keeps for itself.
fn defaults(document: &Document) -> Result<Map<String, Value>, Error> {
    let env: Vec<(String, String)> = document.find("spec.env")?.unwrap_or_default();
    let mut env: Map<String, Value> = env.into_iter().map(|(name, value)| (name, value.into())).collect();
    let mut body = Map::new();
    if let Some(id) = document.id()? {
        env.entry("WRENN_SANDBOX_ID").or_insert_with(|| id.as_str().into());
    }
    if let Some(template) = document.find::<String>("spec.template")? {
        env.entry("WRENN_TEMPLATE").or_insert_with(|| template.into());
    }
    body.insert("envVars".into(), env.into());
    let user = document.find::<String>("spec.user")?.unwrap_or_else(|| "root".into());
    body.insert("defaultUser".into(), user.into());
    if let Some(workdir) = document.find::<String>("spec.workdir")? {
        body.insert("defaultWorkdir".into(), workdir.into());
    }
    if let Some(token) = document.find::<String>("guest.token")? {
        body.insert("accessToken".into(), token.into());
    }
    Ok(body)
}
