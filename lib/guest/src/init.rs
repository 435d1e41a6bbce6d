//! `wrenn-guest init`: environment, user and time, after boot and after every resume.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use wire::{Call, Map, Reply, Value};

use crate::{Agent, Error};

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let agent = Agent::of(call.document)?;
    let document = &call.document;
    let env: Vec<(String, String)> = document.find("spec.env")?.unwrap_or_default();
    let mut env: Map<String, Value> = env.into_iter().map(|(name, value)| (name, value.into())).collect();
    let mut body = Map::new();
    if let Some(id) = document.id()? {
        body.insert("hostname".into(), id.as_str().into());
        env.entry("WRENN_SANDBOX_ID").or_insert_with(|| id.as_str().into());
    }
    if let Some(template) = document.find::<String>("spec.template")? {
        env.entry("WRENN_TEMPLATE").or_insert_with(|| template.into());
    }
    body.insert("envVars".into(), env.into());
    body.insert(
        "defaultUser".into(),
        document.find::<String>("spec.user")?.unwrap_or_else(|| "root".into()).into(),
    );
    if let Some(workdir) = document.find::<String>("spec.workdir")? {
        body.insert("defaultWorkdir".into(), workdir.into());
    }
    if let Some(token) = document.find::<String>("guest.token")? {
        body.insert("accessToken".into(), token.into());
    }
    // Clones of one snapshot share their random number generator's state until somebody stirs it.
    body.insert("entropy".into(), BASE64.encode(entropy()?).into());
    let now = wire::timestamp();
    body.insert("timestamp".into(), now.clone().into());
    agent.post("init", "/init", None, &body.into())?;
    call.document.set("guest.url", agent.url());
    call.document.set("guest.initialised_at", now);
    Ok(Reply::Document)
}

fn entropy() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    let path = "/dev/urandom";
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|source| Error::File { path: path.into(), what: "read", source })?;
    Ok(bytes)
}
