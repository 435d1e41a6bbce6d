//! What the API does: a machine configured, started or loaded, and then run.

mod before;
mod devices;
mod fault;
mod running;
mod view;

use std::os::fd::BorrowedFd;

use serde_json::json;

use crate::api::{self, Action, Answer, Request, Response, Serial};
use crate::config::Config;
use crate::machine::Exit;
use crate::metrics::{self, METRICS};

pub use fault::Fault;

use running::Vm;

/// Everything behind the API.
pub struct Controller {
    id: String,
    config: Config,
    /// Something was said about the machine: a snapshot, which says it all, can no longer be loaded.
    configured: bool,
    console: Serial,
    vm: Option<Vm>,
    failed: Option<String>,
}

/// Why the program ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest turned the machine off, or reset it.
    ByGuest,
    /// It cannot go on.
    Failed(String),
}

impl Controller {
    /// Nothing is configured yet. `id` is what `GET /` says.
    pub fn new(id: &str) -> Self {
        Self {
            id: id.into(),
            config: Config::default(),
            configured: false,
            console: Serial::default(),
            vm: None,
            failed: None,
        }
    }

    /// Answers a request.
    pub fn handle(&mut self, request: &Request) -> Response {
        METRICS.api_requests.add(1);
        log::info!("{} {}", request.method, request.path);
        let done = api::action(request).map_err(Fault::from).and_then(|action| self.act(action));
        match done {
            Ok(Answer::Done) => Response::answer(None),
            Ok(Answer::Value(value)) => Response::answer(Some(&value)),
            Err(fault) => {
                METRICS.api_faults.add(1);
                log::error!("{} {}: {fault}", request.method, request.path);
                Response::fault(400, &fault.to_string())
            }
        }
    }

    fn act(&mut self, action: Action) -> Result<Answer, Fault> {
        match action {
            Action::GetInstance => Ok(Answer::Value(json!({
                "id": self.id,
                "state": self.vm.as_ref().map_or("Not started", Vm::state),
                "vmm_version": env!("CARGO_PKG_VERSION"),
                "app_name": "wrenn-vmm",
            }))),
            Action::GetVersion => {
                Ok(Answer::Value(json!({"firecracker_version": env!("CARGO_PKG_VERSION")})))
            }
            Action::GetConfig => Ok(Answer::Value(view::config(&self.config()))),
            Action::GetMachine => Ok(Answer::Value(json!(self.config().machine))),
            Action::GetBalloon => {
                let balloon = self.config().balloon.ok_or(Fault::NoBalloon)?;
                Ok(Answer::Value(json!(balloon)))
            }
            Action::FlushMetrics => {
                metrics::flush();
                Ok(Answer::Done)
            }
            action => match &mut self.vm {
                Some(vm) => vm.act(action),
                None => self.act_before(action),
            },
        }
    }

    fn config(&self) -> Config {
        self.vm.as_ref().map_or_else(|| self.config.clone(), Vm::config)
    }

    /// What the program must notice besides requests.
    pub fn events(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.vm.iter().flat_map(|vm| vm.events())
    }

    /// Whether it is over.
    pub fn ended(&self) -> Option<Ended> {
        if let Some(reason) = &self.failed {
            return Some(Ended::Failed(reason.clone()));
        }
        match self.vm.as_ref()?.exit()? {
            Exit::Reset => Some(Ended::ByGuest),
            Exit::Crash(why) => Some(Ended::Failed(why)),
        }
    }
}

#[cfg(test)]
mod tests;
