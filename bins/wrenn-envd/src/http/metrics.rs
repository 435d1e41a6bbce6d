//! `GET /metrics`: processor, memory and disk of the guest, under e2b's names.

use std::{
    fs,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use http::{Response, StatusCode};
use serde::Serialize;

use super::{Body, Reply};
use crate::agent::Agent;

#[derive(Serialize)]
struct Metrics {
    /// Seconds since 1970, by the guest's clock.
    ts: u64,
    cpu_count: usize,
    /// Of all processors together, since the last question (the first time: since boot).
    cpu_used_pct: f32,
    /// Bytes.
    mem_total: u64,
    /// Bytes that new programs could not have.
    mem_used: u64,
    /// Bytes of the root file system.
    disk_used: u64,
    disk_total: u64,
}

pub fn get(agent: &Agent) -> Result<Response<Body>, Reply> {
    let failed = |what: &str| Reply::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{what} cannot be read"));
    let stat = fs::read_to_string("/proc/stat").ok();
    let cpu = stat.as_deref().and_then(Cpu::parse).ok_or_else(|| failed("/proc/stat"))?;
    let meminfo = fs::read_to_string("/proc/meminfo").ok();
    let memory = |field| meminfo.as_deref().and_then(|text| kibibytes(text, field));
    let (total, available) =
        memory("MemTotal:").zip(memory("MemAvailable:")).ok_or_else(|| failed("/proc/meminfo"))?;
    let disk = nix::sys::statvfs::statvfs("/").map_err(|error| failed(&format!("/: {error}")))?;
    let metrics = Metrics {
        ts: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        cpu_count: cpu.count,
        cpu_used_pct: agent.cpu.used(cpu),
        mem_total: total,
        mem_used: total.saturating_sub(available),
        disk_used: disk.blocks().saturating_sub(disk.blocks_free()).saturating_mul(disk.fragment_size()),
        disk_total: disk.blocks().saturating_mul(disk.fragment_size()),
    };
    Ok(super::json(StatusCode::OK, &metrics))
}

/// Remembers the last question's counters.
#[derive(Default)]
pub struct CpuMeter(Mutex<Cpu>);

impl CpuMeter {
    /// The share of time not idle between the last sample and this one, in percent.
    fn used(&self, now: Cpu) -> f32 {
        let before = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), now);
        let total = now.total.saturating_sub(before.total);
        let busy = total.saturating_sub(now.idle.saturating_sub(before.idle));
        if total == 0 { 0.0 } else { (busy as f64 * 100.0 / total as f64) as f32 }
    }
}

/// The kernel's counters, in clock ticks, of all processors together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cpu {
    count: usize,
    total: u64,
    idle: u64,
}

impl Cpu {
    /// Reads /proc/stat: the line `cpu` holds user, nice, system, idle, iowait, irq, softirq, steal, …; guest time
    /// is counted in user already.
    fn parse(stat: &str) -> Option<Self> {
        let ticks = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> =
            ticks.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let idle = ticks.get(3)?.checked_add(*ticks.get(4)?)?;
        let numbered =
            |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(char::is_numeric));
        Some(Self { count: stat.lines().filter(numbered).count(), total: ticks.iter().sum(), idle })
    }
}

/// A field of /proc/meminfo, in bytes.
fn kibibytes(meminfo: &str, field: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(field))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 50 0 25 400 25 0 0 0 0 0\n\
                        cpu1 50 0 25 400 25 0 0 0 0 0\nintr 1 2 3\n";

    #[test]
    fn usage_is_of_the_time_since_the_last_question() {
        let meter = CpuMeter::default();
        let first = Cpu::parse(STAT).unwrap();
        assert_eq!(first, Cpu { count: 2, total: 1000, idle: 850 });
        assert_eq!(meter.used(first), 15.0);
        assert_eq!(meter.used(Cpu { count: 2, total: 1100, idle: 900 }), 50.0);
        assert_eq!(meter.used(Cpu { count: 2, total: 1100, idle: 900 }), 0.0);
    }

    #[test]
    fn memory_is_in_bytes_and_text_cut_short_is_none() {
        let meminfo = "MemTotal:         131072 kB\nMemAvailable:   x kB\n";
        assert_eq!(kibibytes(meminfo, "MemTotal:"), Some(128 << 20));
        assert_eq!(kibibytes(meminfo, "MemAvailable:"), None);
        assert_eq!(Cpu::parse("cpu  1 2 3\n"), None);
        assert_eq!(Cpu::parse(""), None);
    }
}
