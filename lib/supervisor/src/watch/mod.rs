//! `wrenn watch`: pauses sandboxes that are idle, notices those that die, and takes samples (docs/watch.md).
//!
//! It knows nothing that is not in the documents or the kernel: stopped, killed or upgraded it disturbs no sandbox, and
//! started again it takes all of them up. One thread looks ([`eyes`]) and decides ([`round`]); others work ([`work`]).

mod alarm;
mod cause;
mod drain;
mod expire;
mod eyes;
mod idle;
mod life;
mod metrics;
mod retry;
mod round;
pub mod verbs;
mod work;

use std::path::PathBuf;
use std::time::Duration;

use sys::lock::Lock;
use wire::{Call, Error, Host, Kind, Reply, json};

use round::Watch;

use crate::notify::notify;

/// What becomes of an idle sandbox: the words of `spec.on_expiry`, the default first.
pub const ON_EXPIRY: &[&str] = &["pause", "destroy"];

/// Seconds.
const INTERVAL: f64 = 10.0;
const SHORTEST: f64 = 0.1;
const LONGEST: f64 = 86_400.0;

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    if call.document.find("drain")?.unwrap_or(false) {
        return drain::run(call);
    }
    let interval = interval(call.document.find("interval")?.unwrap_or(INTERVAL))?;
    let metrics: Option<PathBuf> = call.document.find("metrics")?;
    let once: bool = call.document.find("once")?.unwrap_or(false);
    let _alone = alone(call.host)?;
    let mut watch = Watch::new(call, interval, metrics, once)?;
    let begun = watch.begin();
    if begun.is_ok() {
        notify("READY=1");
    }
    let watched = begun.and_then(|()| watch.until_told());
    notify("STOPPING=1");
    watch.finish();
    watched?;
    call.emit("stopped", json!({}))?;
    Ok(Reply::Streamed(0))
}

/// An interval in seconds.
pub fn interval(seconds: f64) -> Result<Duration, Error> {
    if (SHORTEST..=LONGEST).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(Error::field("interval", format!("must be from {SHORTEST} to {LONGEST} seconds, not {seconds}")))
    }
}

/// One watch for each root: the lock is in it.
fn alone(host: &Host) -> Result<Lock, Error> {
    let path = host.root().join("watch.lock");
    let failed = |error: std::io::Error| {
        let message = format!("cannot lock {}", path.display());
        Error::new(Kind::of_io(&error), "watch.lock", message).detail(error)
    };
    std::fs::create_dir_all(host.root()).map_err(failed)?;
    sys::lock::try_exclusive(&path).map_err(failed)?.ok_or_else(|| {
        let message = format!("another watch runs on {}", host.root().display());
        Error::new(Kind::Conflict, "watch.running", message)
    })
}
