//! `POST /init`: what the host tells a guest after boot and after every resume, answered with what is now true of it.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use buffa_types::google::protobuf::Timestamp;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::Deserialize;

use super::{Body, Reply, auth};
use crate::{
    agent::{Agent, Role},
    guest::identity::{self, Identity, Wanted},
    users::User,
};

/// The longest request taken, in bytes.
const LIMIT: usize = 1 << 20;

/// The request. A field that is absent leaves what it would set as it is; fields of other agents are passed over.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Init {
    /// Added to the default environment.
    env_vars: Option<BTreeMap<String, String>>,
    default_user: Option<String>,
    default_workdir: Option<String>,
    /// The token every later request must carry; empty removes it.
    access_token: Option<String>,
    /// RFC 3339; the guest's clock is set to it.
    timestamp: Option<Timestamp>,
    hostname: Option<String>,
    machine_id: Option<String>,
    /// Base64, mixed into the kernel's random numbers: a guest and its clone must not draw the same.
    entropy: Option<String>,
}

pub async fn post(agent: &Arc<Agent>, request: Request<Incoming>) -> Result<Response<Body>, Reply> {
    let (head, body) = request.into_parts();
    let bytes =
        Limited::new(body, LIMIT).collect().await.map_err(|error| Reply::bad_request(error.to_string()))?;
    let bytes = bytes.to_bytes();
    let init: Init = if bytes.is_empty() {
        Init::default()
    } else {
        // Through a map: a derived struct would take an array too.
        let object: Result<serde_json::Map<_, _>, _> = serde_json::from_slice(&bytes);
        object
            .and_then(|object| serde_json::from_value(object.into()))
            .map_err(|error| Reply::bad_request(format!("/init: {error}")))?
    };
    let known = init.access_token.as_ref().is_some_and(|given| {
        agent.defaults().token.as_ref().is_some_and(|token| auth::same(given.as_bytes(), token.as_bytes()))
    });
    if !known && !auth::allowed(agent, &head.headers) {
        return Ok(auth::refusal());
    }
    let entropy = check(&init)?;

    // Changes start here.
    let identity = match agent.role {
        Role::Guest => identity::become_it(&Wanted {
            hostname: init.hostname.as_deref(),
            machine_id: init.machine_id.as_deref(),
            time: init.timestamp.as_ref(),
            entropy: &entropy,
        }),
        Role::Process => Identity::now(false),
    };
    {
        let mut defaults = agent.defaults();
        defaults.env.extend(init.env_vars.unwrap_or_default());
        set(&mut defaults.user, init.default_user);
        set(&mut defaults.workdir, init.default_workdir);
        set(&mut defaults.token, init.access_token);
    }
    agent.preload.reset();
    Ok(super::json(StatusCode::OK, &identity))
}

/// Refuses what could only be half done, and decodes the entropy.
fn check(init: &Init) -> Result<Vec<u8>, Reply> {
    for name in init.env_vars.iter().flatten().map(|(name, _)| name) {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Reply::bad_request(format!("envVars: {name:?} is no variable name")));
        }
    }
    if let Some(name) = init.default_user.as_deref().filter(|name| !name.is_empty()) {
        User::named(name).ok_or_else(|| Reply::bad_request(format!("defaultUser: no such user: {name}")))?;
    }
    if let Some(name) = init.hostname.as_deref() {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
            return Err(Reply::bad_request(format!("hostname: {name:?} is no host name")));
        }
    }
    let wrong = |id: &&str| id.len() != 32 || !id.bytes().all(|c| c.is_ascii_hexdigit());
    if let Some(id) = init.machine_id.as_deref().filter(wrong) {
        return Err(Reply::bad_request(format!("machineId: {id:?} is not 32 hexadecimal digits")));
    }
    let entropy = init.entropy.as_deref().unwrap_or_default();
    STANDARD.decode(entropy).map_err(|error| Reply::bad_request(format!("entropy: not base64: {error}")))
}

/// Absent keeps, empty removes.
fn set(slot: &mut Option<String>, value: Option<String>) {
    if let Some(value) = value {
        *slot = Some(value).filter(|value| !value.is_empty());
    }
}
