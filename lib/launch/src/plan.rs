//! What the child half of a start is told: where to be, what to see, what to become.

use std::path::{Path, PathBuf};

use wire::{Document, Value, json};

/// The plan of one VMM, passed from the starting program to its child as JSON.
#[derive(Debug, PartialEq)]
pub(crate) struct Plan {
    /// Network namespace to join.
    pub netns: Option<PathBuf>,
    /// Files, devices and directories that appear in the child's own mount namespace: (source on the host, target below
    /// a /tmp that is empty otherwise).
    pub shown: Vec<(PathBuf, PathBuf)>,
    /// Program (one of the targets) and its arguments.
    pub command: Vec<String>,
}

impl Plan {
    pub fn to_json(&self) -> Value {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        json!({
            "netns": self.netns.as_deref().map(text),
            "shown": self.shown.iter().map(|(from, to)| json!([text(from), text(to)])).collect::<Vec<_>>(),
            "command": self.command,
        })
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, wire::Error> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| wire::Error::usage(format!("no plan: {error}")))?;
        let plan = Document::from_value(value)?;
        let shown = plan.need::<Vec<Value>>("shown")?;
        let pair = |value: &Value| {
            Some((PathBuf::from(value.get(0)?.as_str()?), PathBuf::from(value.get(1)?.as_str()?)))
        };
        Ok(Self {
            netns: plan.find("netns")?,
            shown: shown
                .iter()
                .map(pair)
                .collect::<Option<_>>()
                .ok_or_else(|| wire::Error::field("shown", "must hold pairs of source and target"))?,
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
            shown: vec![
                ("/dev/dm-0".into(), "/tmp/w/rootfs.ext4".into()),
                ("/run/ä b".into(), "/tmp/w/run".into()),
            ],
            command: vec!["/tmp/w/firecracker".into(), "--id".into(), "sb-1".into()],
        };
        assert_eq!(Plan::parse(plan.to_json().to_string().as_bytes()).unwrap(), plan);
        plan.netns = None;
        assert_eq!(Plan::parse(plan.to_json().to_string().as_bytes()).unwrap(), plan);
        assert!(Plan::parse(b"").is_err());
    }
}
