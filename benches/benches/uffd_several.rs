//! Several VMs of one template: served by one process, side by side, against a process for each.
//!
//! - all of memory, loaded ahead: from the first handshake until the last VM has everything, and what the servers take of
//!   the host's memory then, the image aside;
//! - the working set asked for page by page, by all VMs at once: the median of a fault and the time of the slowest VM.
//!
//! Rounds alternate, and the best of each counts: what else the machine does only ever adds.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use wire::Value;
use wrenn_benches::handlers::Handler;
use wrenn_benches::vmm::{Seen, Work, connect, content, measure, register};
use wrenn_benches::{MEMORY, run, write_image};

const ROUNDS: usize = 5;

fn main() -> ExitCode {
    run(compare)
}

fn compare() {
    let home = tempfile::Builder::new().prefix("bs-").tempdir().expect("a directory");
    let image = home.path().join("memory");
    write_image(&image);
    println!("VMs of {} MiB; one process for all | a process for each", MEMORY >> 20);
    for vms in [1, 2, 4] {
        let ways = [1, vms].map(|servers| Way { image: &image, home: home.path(), servers, vms });
        let mut loaded = [(Duration::MAX, 0); 2];
        let mut asked = [(Duration::MAX, Duration::MAX); 2];
        for _ in 0..ROUNDS {
            for (index, way) in ways.iter().enumerate() {
                loaded[index] = loaded[index].min(way.loaded());
                asked[index] = asked[index].min(way.asked());
            }
        }
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let [one, each] = loaded;
        println!("{vms}: all loaded           {:8.1} ms  | {:8.1} ms", ms(one.0), ms(each.0));
        println!("{vms}: memory of servers    {:8} KiB | {:8} KiB", one.1, each.1);
        let [one, each] = asked;
        println!("{vms}: slowest working set  {:8.1} ms  | {:8.1} ms", ms(one.0), ms(each.0));
        println!("{vms}: median of a fault    {:8.2} us  | {:8.2} us", us(one.1), us(each.1));
    }
}

/// So many VMs, served by so many processes.
struct Way<'a> {
    image: &'a Path,
    home: &'a Path,
    servers: usize,
    vms: usize,
}

impl Way<'_> {
    fn start(&self, prefetch: &str) -> Vec<(Handler, i32)> {
        let clients = format!("clients:={}", self.vms / self.servers);
        let source = format!("source.raw={}", self.image.display());
        let server = |index: usize| {
            let home: PathBuf = self.home.join(index.to_string());
            std::fs::create_dir_all(&home).expect("a directory");
            let handler = Handler::wrenn(&[&source, prefetch, &clients], &home);
            let listening: Value = serde_json::from_str(&handler.listening).expect("its event");
            (handler, listening["server_pid"].as_i64().expect("a pid") as i32)
        };
        (0..self.servers).map(server).collect()
    }

    /// All of memory: how long, and the servers' own memory then, in KiB.
    fn loaded(&self) -> (Duration, u64) {
        let mut servers = self.start("prefetch=all");
        let vms: Vec<_> = (0..self.vms).map(|_| register()).collect();
        let began = Instant::now();
        let connected = vms
            .iter()
            .enumerate()
            .map(|(index, (memory, uffd))| connect(&servers[index % self.servers].0.socket, memory, uffd));
        let _streams: Vec<_> = connected.collect();
        for _ in 0..self.vms / self.servers {
            for (server, _) in &mut servers {
                let line = server.said("\"prefetched\"");
                assert!(line.contains("\"complete\":true"), "{line}");
            }
        }
        let took = began.elapsed();
        for (memory, _) in &vms {
            assert_eq!(memory.load(MEMORY - 1), content(MEMORY - 1));
        }
        let taken = servers.iter().map(|(_, pid)| own_memory(*pid)).sum();
        // They have given this process all of its memory: told to end, they let it live.
        drop(servers);
        (took, taken)
    }

    /// The working set of each: the time of the slowest VM, and the median of a fault.
    fn asked(&self) -> (Duration, Duration) {
        let servers = self.start("prefetch=none");
        let seen: Vec<Seen> = std::thread::scope(|scope| {
            let vms: Vec<_> = (0..self.vms)
                .map(|index| {
                    let socket = &servers[index % self.servers].0.socket;
                    scope.spawn(move || measure(socket, Work::Set, 1))
                })
                .collect();
            vms.into_iter().map(|vm| vm.join().expect("a VMM")).collect()
        });
        let mut medians: Vec<_> = seen.iter().map(|seen| seen.median).collect();
        medians.sort_unstable();
        (seen.iter().map(|seen| seen.total).max().unwrap_or_default(), medians[medians.len() / 2])
    }
}

/// What a process takes of memory beside the image's pages: what it has written, and its page tables.
fn own_memory(pid: i32) -> u64 {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).expect("of a process that runs");
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).expect("a field");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("in KiB")
    };
    let rollup = read("smaps_rollup");
    field(&rollup, "Private_Dirty:") + field(&rollup, "Shared_Dirty:") + field(&read("status"), "VmPTE:")
}
