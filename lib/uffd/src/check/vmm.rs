//! The VMM's process: plays one scenario's part and says how it went. The verb starts it as `wrenn-uffd --vmm`.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::model::Model;
use super::scenario::Unmet;
use super::stage::Stage;
use super::{find, processes, waits};

/// The whole process. `orders` are those of [`super::attempt`]; descriptor 3 takes what it has to say, 4 ends when the
/// verb does.
pub(crate) fn run(orders: &str) -> ExitCode {
    let pipes = sys::detach::inherited(2).ok().and_then(|pipes| <[_; 2]>::try_from(pipes).ok());
    let orders: Value = serde_json::from_str(orders).unwrap_or_default();
    let scenario = orders["scenario"].as_str().and_then(find);
    let (Some([events, leash]), Some(scenario)) = (pipes, scenario) else {
        eprintln!("wrenn-uffd: --vmm is for wrenn-uffd itself; see wrenn-uffd check --help");
        return ExitCode::from(wire::Kind::Invalid.status());
    };
    let path = |name: &str| PathBuf::from(orders[name].as_str().unwrap_or_default());
    let stage = Arc::new(Stage {
        scenario,
        model: Model { seed: orders["seed"].as_u64().unwrap_or_default() },
        socket: path("socket"),
        server: Mutex::new(vec![orders["server"].as_i64().unwrap_or_default() as i32]),
        source: path("source"),
        limit: Duration::from_millis(orders["limit_ms"].as_u64().unwrap_or_default()),
        events: Mutex::new(File::from(events)),
        is_ready: AtomicBool::new(false),
    });
    let left = stage.clone();
    std::thread::spawn(move || {
        let _ = File::from(leash).read_to_end(&mut Vec::new());
        clean_up(&left);
        std::process::exit(1);
    });
    let watched = stage.clone();
    std::thread::spawn(move || watch(&watched));
    let outcome = match (scenario.play)(&stage) {
        Ok(()) => json!({"passed": true}),
        Err(Unmet::Failed(why)) => json!({ "failed": why }),
        Err(Unmet::Skipped(why)) => json!({ "skipped": why }),
    };
    stage.tell(&outcome);
    // Whatever threads still wait end with the process.
    std::process::exit(0);
}

/// The verb was killed: nothing of the scenario outlives it. (As long as it lives it kills this process first.)
fn clean_up(stage: &Stage) {
    let roots = stage.server.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for process in processes::tree(&roots) {
        let _ = process.signal(Signal::SIGKILL);
    }
    if let Some(dir) = stage.socket.parent() {
        let _ = std::fs::remove_dir_all(dir);
    }
}

/// Gives up when it has taken too long, and says what was waited for.
fn watch(stage: &Stage) {
    std::thread::sleep(stage.limit);
    if stage.is_ready.load(Ordering::SeqCst) {
        return;
    }
    let seconds = stage.limit.as_secs_f64();
    let waits = waits::describe().map_or(String::new(), |waits| format!("; waiting: {waits}"));
    let late = format!("not done within {seconds} s{waits}");
    let why = waits::wrong().map_or(late.clone(), |wrong| format!("{wrong}; and {late}"));
    stage.tell(&json!({ "failed": why }));
    std::process::exit(1);
}
