//! `GET /envs`: the environment `/init` set.

use http::{Response, StatusCode};

use super::{Body, Reply};
use crate::agent::Agent;

pub fn get(agent: &Agent) -> Result<Response<Body>, Reply> {
    Ok(super::json(StatusCode::OK, &agent.defaults().env))
}
