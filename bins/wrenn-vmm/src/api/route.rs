//! From a request to what it asks for.

use serde::de::DeserializeOwned;

use super::body::{ActionBody, ActionType, BalloonPatch, Metrics, StatisticsPatch, Vm};
use super::{Action, Request};
use crate::config::{Drive, NetworkInterface};

/// Why a request asks for nothing. The words are Firecracker's where it has some.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it is")]
pub enum Fault {
    #[error("Invalid request method and/or path: {method} {path}.")]
    Unknown { method: String, path: String },
    #[error("{method} {path} is not supported by wrenn-vmm.")]
    Unsupported { method: String, path: String },
    #[error("GET request cannot have a body.")]
    Body,
    #[error("Empty {0} request.")]
    NoBody(String),
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(#[from] serde_json::Error),
    #[error("The ID cannot be empty.")]
    EmptyId,
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    InvalidId,
    #[error("The id from the path [{path}] does not match the id from the body [{body}]!")]
    OtherId { path: String, body: String },
}

/// What Firecracker has and this VMM has not, by method and first word of the path.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("DELETE", "drives"),
    ("DELETE", "network-interfaces"),
    ("GET", "hotplug"),
    ("GET", "mmds"),
    ("PATCH", "drives"),
    ("PATCH", "hotplug"),
    ("PATCH", "mmds"),
    ("PATCH", "network-interfaces"),
    ("PATCH", "pmem"),
    ("PUT", "cpu-config"),
    ("PUT", "hotplug"),
    ("PUT", "mmds"),
    ("PUT", "pmem"),
    ("PUT", "vsock"),
];

/// What a request asks for.
///
/// # Errors
/// Why it asks for nothing.
pub fn action(request: &Request) -> Result<Action, Fault> {
    let words: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    let method = request.method.as_str();
    match method {
        "GET" if !request.body.is_empty() => return Err(Fault::Body),
        "PUT" | "PATCH" if request.body.is_empty() => return Err(Fault::NoBody(method.into())),
        _ => {}
    }
    let body = request.body.as_slice();
    Ok(match (method, words.as_slice()) {
        ("GET", [""]) => Action::GetInstance,
        ("GET", ["version"]) => Action::GetVersion,
        ("GET", ["vm", "config"]) => Action::GetConfig,
        ("GET", ["machine-config"]) => Action::GetMachine,
        ("GET", ["balloon"]) => Action::GetBalloon,
        ("GET", ["balloon", "statistics"]) => Action::GetBalloonStatistics,
        ("PUT", ["machine-config"]) => Action::PutMachine(json(body)?),
        ("PATCH", ["machine-config"]) => Action::PatchMachine(json(body)?),
        ("PUT", ["boot-source"]) => Action::PutBootSource(json(body)?),
        ("PUT", ["drives", rest @ ..]) => {
            let drive: Drive = json(body)?;
            check_id(rest, &drive.drive_id)?;
            Action::PutDrive(drive)
        }
        ("PUT", ["network-interfaces", rest @ ..]) => {
            let net: NetworkInterface = json(body)?;
            check_id(rest, &net.iface_id)?;
            Action::PutNet(net)
        }
        ("PUT", ["balloon"]) => Action::PutBalloon(json(body)?),
        ("PATCH", ["balloon"]) => Action::PatchBalloon { amount_mib: json::<BalloonPatch>(body)?.amount_mib },
        ("PATCH", ["balloon", "statistics"]) => Action::PatchBalloonStatistics {
            interval_s: json::<StatisticsPatch>(body)?.stats_polling_interval_s,
        },
        ("PUT", ["entropy"]) => Action::PutEntropy(json(body)?),
        ("PUT", ["serial"]) => Action::PutSerial(json(body)?),
        ("PUT", ["logger"]) => Action::PutLogger(json(body)?),
        ("PUT", ["metrics"]) => Action::PutMetrics(json::<Metrics>(body)?.metrics_path),
        ("PUT", ["actions"]) => match json::<ActionBody>(body)?.action_type {
            ActionType::InstanceStart => Action::Start,
            ActionType::FlushMetrics => Action::FlushMetrics,
            ActionType::SendCtrlAltDel => Action::SendCtrlAltDel,
        },
        ("PATCH", ["vm"]) => Action::PatchVm(json::<Vm>(body)?.state),
        ("PUT", ["snapshot", "create"]) => Action::CreateSnapshot(json(body)?),
        ("PUT", ["snapshot", "load"]) => Action::LoadSnapshot(json(body)?),
        (_, [first, rest @ ..]) => {
            let (method, path) = (method.to_owned(), request.path.clone());
            let known = UNSUPPORTED.contains(&(method.as_str(), first))
                || (*first == "balloon" && rest.first() == Some(&"hinting"));
            return Err(if known {
                Fault::Unsupported { method, path }
            } else {
                Fault::Unknown { method, path }
            });
        }
        (_, []) => unreachable!("a path has at least one word, if an empty one"),
    })
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    Ok(serde_json::from_slice(body)?)
}

/// An id stands in the path and in the body.
fn check_id(path: &[&str], body: &str) -> Result<(), Fault> {
    let id = match path {
        [] | [""] => return Err(Fault::EmptyId),
        [id] => *id,
        _ => return Err(Fault::InvalidId),
    };
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(Fault::InvalidId);
    }
    if id != body {
        return Err(Fault::OtherId { path: id.into(), body: body.into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Backend, VmState};

    fn ask(method: &str, path: &str, body: &str) -> Result<Action, String> {
        let request = Request { method: method.into(), path: path.into(), body: body.into() };
        action(&request).map_err(|fault| fault.to_string())
    }

    #[test]
    fn what_the_driver_sends_is_understood() {
        let put = |path, body| ask("PUT", path, body).unwrap();
        assert!(matches!(
            put("/machine-config", r#"{"vcpu_count": 2, "mem_size_mib": 512, "track_dirty_pages": true}"#),
            Action::PutMachine(machine) if machine.vcpu_count == 2 && machine.track_dirty_pages && !machine.smt
        ));
        assert!(matches!(
            put("/drives/rootfs", r#"{"drive_id": "rootfs", "path_on_host": "/d", "is_root_device": false,
                                      "is_read_only": false, "cache_type": "Writeback"}"#),
            Action::PutDrive(drive) if drive.cache_type == crate::config::CacheType::Writeback
        ));
        assert!(matches!(
            put("/serial", r#"{"rate_limiter": {"size": 5, "one_time_burst": 7, "refill_time": 9}}"#),
            Action::PutSerial(serial) if serial.rate_limiter.unwrap().one_time_burst == Some(7)
        ));
        assert!(matches!(
            put("/snapshot/load", r#"{"snapshot_path": "/s", "mem_backend": {"backend_type": "Uffd",
                 "backend_path": "/u"}, "track_dirty_pages": true, "resume_vm": false}"#),
            Action::LoadSnapshot(load) if load.mem_backend.backend_type == Backend::Uffd && load.track_dirty_pages
        ));
        assert_eq!(ask("PATCH", "/vm", r#"{"state": "Paused"}"#), Ok(Action::PatchVm(VmState::Paused)));
        assert_eq!(
            ask("PATCH", "/balloon", r#"{"amount_mib": 9}"#),
            Ok(Action::PatchBalloon { amount_mib: 9 })
        );
        assert_eq!(put("/actions", r#"{"action_type": "InstanceStart"}"#), Action::Start);
        assert_eq!(ask("GET", "/", ""), Ok(Action::GetInstance));
        assert_eq!(ask("GET", "/balloon/statistics", ""), Ok(Action::GetBalloonStatistics));
    }

    #[test]
    fn what_is_wrong_is_said_in_firecrackers_words() {
        for (method, path, body, expected) in [
            ("GET", "/nothing", "", "Invalid request method and/or path: GET /nothing."),
            ("DELETE", "/vm", "", "Invalid request method and/or path: DELETE /vm."),
            (
                "PUT",
                "/drives/a/b",
                r#"{"drive_id": "a", "path_on_host": "/d", "is_root_device": false}"#,
                "API Resource IDs can only contain alphanumeric characters and underscores.",
            ),
            (
                "PUT",
                "/drives/a-b",
                r#"{"drive_id": "a-b", "path_on_host": "/d", "is_root_device": false}"#,
                "API Resource IDs can only contain alphanumeric characters and underscores.",
            ),
            (
                "PUT",
                "/drives/",
                r#"{"drive_id": "a", "path_on_host": "/d", "is_root_device": false}"#,
                "The ID cannot be empty.",
            ),
            (
                "PUT",
                "/network-interfaces/a",
                r#"{"iface_id": "b", "host_dev_name": "t"}"#,
                "The id from the path [a] does not match the id from the body [b]!",
            ),
            ("GET", "/", "x", "GET request cannot have a body."),
            ("PUT", "/vm", "", "Empty PUT request."),
            ("PATCH", "/mmds", "{}", "PATCH /mmds is not supported by wrenn-vmm."),
            (
                "PATCH",
                "/balloon/hinting/start",
                "{}",
                "PATCH /balloon/hinting/start is not supported by wrenn-vmm.",
            ),
            (
                "PUT",
                "/entropy",
                r#"{"rate_limiter": {}}"#,
                "An error occurred when deserializing the json body of a request: unknown field `rate_limiter`, \
              there are no fields at line 1 column 15.",
            ),
            (
                "PUT",
                "/machine-config",
                r#"{"vcpu_count": 1, "mem_size_mib": 5, "huge_pages": "2M"}"#,
                "An error occurred when deserializing the json body of a request: unknown variant `2M`, \
              expected `None` at line 1 column 55.",
            ),
        ] {
            assert_eq!(ask(method, path, body), Err(expected.into()), "{method} {path}");
        }
    }
}
