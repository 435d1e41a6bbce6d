//! `GET /health`: that the agent answers, and which one it is.

use http::{Response, StatusCode};
use serde_json::json;

use super::{Body, Reply};

pub fn get() -> Result<Response<Body>, Reply> {
    Ok(super::json(StatusCode::OK, &json!({"version": env!("CARGO_PKG_VERSION")})))
}
