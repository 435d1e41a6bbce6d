//! What the whole agent shares: the defaults the host gave it, the processes it runs, the preload's state.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::{
    http::{metrics::CpuMeter, preload::Preload},
    process::Processes,
    users::User,
};

/// Whether this machine is the agent's own to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Pid 1 of a guest: clock, host name and machine id follow the host's `/init`.
    Guest,
    /// A process on somebody's machine: nothing outside this process is touched by `/init`.
    Process,
}

/// The defaults `/init` sets, for every request that does not say otherwise.
#[derive(Clone, Default)]
pub struct Defaults {
    pub env: BTreeMap<String, String>,
    pub user: Option<String>,
    pub workdir: Option<String>,
    pub token: Option<String>,
}

/// The agent's shared state.
pub struct Agent {
    pub role: Role,
    pub processes: Arc<Processes>,
    pub preload: Preload,
    pub cpu: CpuMeter,
    defaults: Mutex<Defaults>,
}

impl Agent {
    /// Starts the reaper and returns the state everything else hangs on. Needs a running runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch for SIGCHLD.
    pub fn start(role: Role) -> io::Result<Arc<Self>> {
        let processes = Arc::new(Processes::default());
        tokio::spawn(crate::process::reaper::run(processes.clone(), crate::process::reaper::watch()?));
        Ok(Arc::new(Self {
            role,
            processes,
            preload: Preload::default(),
            cpu: CpuMeter::default(),
            defaults: Mutex::default(),
        }))
    }

    /// The defaults, locked; never held across an await.
    pub fn defaults(&self) -> MutexGuard<'_, Defaults> {
        self.defaults.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The user a request means: the one it names, else the default one, else the agent's own.
    pub fn user(&self, named: Option<&str>) -> Result<User, UnknownUser> {
        let default = self.defaults().user.clone();
        match named.map(str::to_owned).or(default) {
            Some(name) => User::named(&name).ok_or(UnknownUser(name)),
            None => Ok(User::own()),
        }
    }
}

/// There is no such user in the guest.
#[derive(Debug, thiserror::Error)]
#[error("no such user: {0}")]
pub struct UnknownUser(pub String);
