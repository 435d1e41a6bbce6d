//! `POST /snapshot/prepare`: everything written reaches the disk before the VM is frozen.

use http::{Response, StatusCode};

use super::{Body, Reply};

pub async fn prepare() -> Result<Response<Body>, Reply> {
    let synced = tokio::task::spawn_blocking(nix::unistd::sync).await;
    synced.map_err(|error| Reply::new(StatusCode::INTERNAL_SERVER_ERROR, format!("sync: {error}")))?;
    Ok(super::done())
}
