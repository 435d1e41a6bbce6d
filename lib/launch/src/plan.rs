//! What the child half of a start is told: where to be, what to see, what to become.

use std::path::{Path, PathBuf};

use wire::{Document, Value, json};

/// The plan of one VMM, passed from the starting program to its child as JSON.
#[derive(Debug, PartialEq)]
pub(crate) struct Plan {
    /// Network namespace to join.
    pub netns: Option<PathBuf>,
    /// Directory inside the child's own mount namespace that all files appear in.
    pub workdir: PathBuf,
    /// Files, devices and directories that appear in it: (source on the host, name).
    pub shown: Vec<(PathBuf, String)>,
    /// Program (a name in the working directory) and its arguments.
    pub command: Vec<String>,
}

impl Plan {
    pub fn to_json(&self) -> Value {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        json!({
            "netns": self.netns.as_deref().map(text),
            "workdir": text(&self.workdir),
            "shown": self.shown.iter().map(|(from, name)| json!([text(from), name])).collect::<Vec<_>>(),
            "command": self.command,
        })
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, wire::Error> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| wire::Error::usage(format!("no plan: {error}")))?;
        let plan = Document::from_value(value)?;
        let shown = plan.need::<Vec<Value>>("shown")?;
        let pair = |value: &Value| {
            Some((PathBuf::from(value.get(0)?.as_str()?), value.get(1)?.as_str()?.to_owned()))
        };
        Ok(Self {
            netns: plan.find("netns")?,
            workdir: plan.need("workdir")?,
            shown: shown
                .iter()
                .map(pair)
                .collect::<Option<_>>()
                .ok_or_else(|| wire::Error::field("shown", "must hold pairs of source and name"))?,
            command: plan.need("command")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_arrives_as_it_was_sent() {
        let mut plan = Plan {
            netns: Some("/run/netns/wrenn-ns-7".into()),
            workdir: "/tmp/wrenn-vm".into(),
            shown: vec![("/dev/dm-0".into(), "rootfs.ext4".into()), ("/run/ä b".into(), "run".into())],
            command: vec!["firecracker".into(), "--id".into(), "sb-1".into()],
        };
        assert_eq!(Plan::parse(plan.to_json().to_string().as_bytes()).unwrap(), plan);
        plan.netns = None;
        assert_eq!(Plan::parse(plan.to_json().to_string().as_bytes()).unwrap(), plan);
        assert!(Plan::parse(b"").is_err());
    }
}
