//! Many sandboxes at once, by many callers. In the lab: docs/lifecycle.md.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use wrenn_tests::host::TestHost;
use wrenn_tests::sandbox::Sandbox;

wrenn_tests::on_every_vmm![privileged_a_crowd_lives_and_goes_while_gc_runs];

/// How many sandboxes, and how many callers at once. `WRENN_TEST_CROWD=50,16` asks for others.
const CROWD: (usize, usize) = (6, 6);

/// Under emulation they all share one processor.
const MACHINE: [&str; 6] = ["--memory", "96", "--disk", "128", "--ready-timeout", "900"];

fn privileged_a_crowd_lives_and_goes_while_gc_runs(host: &TestHost) {
    let (sandboxes, callers) = crowd();
    let source = host.boot("source", &MACHINE);
    source.sh("echo shared >/shared");
    host.wrenn(["snapshot", "source", "crowd"]).run().success();

    let crowd: Vec<Sandbox> = (0..sandboxes).map(|n| Sandbox::new(host, &format!("crowd-{n}"))).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let gc = scope.spawn(|| collect_until(host, &over));
        let _ends = Ends(&over);
        let all = |what: &str, verb: &(dyn Fn(&Sandbox) + Sync)| {
            let started = Instant::now();
            at_once(callers, &crowd, verb);
            host.step(&format!(
                "{what}: {sandboxes} by {callers} in {:.1} s",
                started.elapsed().as_secs_f64()
            ));
        };
        all("created", &|sandbox| {
            // Every fourth boots, the others are copies of one moment.
            if boots(sandbox) {
                host.boot(&sandbox.id, &MACHINE);
            } else {
                host.create_from(&sandbox.id, "crowd", &["--ready-timeout", "900"]);
            }
        });
        all("used", &|sandbox| {
            let own = sandbox.sh(&format!(
                "echo {0} >/own; mkdir -p /mem; mount -t tmpfs none /mem; echo {0} >/mem/own; hostname",
                sandbox.id
            ));
            assert_eq!(own, sandbox.id);
        });
        all("paused", &|sandbox| drop(sandbox.pause()));
        all("resumed", &|sandbox| drop(sandbox.resume()));
        all("looked at", &|sandbox| {
            let shared = if boots(sandbox) { "" } else { "\nshared" };
            let seen = sandbox.sh("cat /own /mem/own; cat /shared 2>/dev/null || true");
            assert_eq!(seen, format!("{0}\n{0}{shared}", sandbox.id));
        });
        assert_eq!(host.faults(), [""; 0]);
        all("removed", &|sandbox| drop(sandbox.verb("rm")));
        over.store(true, Ordering::Relaxed);
        gc.join().expect("gc");
    });
    host.wrenn(["rm", "source"]).run().success();
    host.assert_clean();
    assert_eq!(host.faults(), [""; 0]);
}

fn crowd() -> (usize, usize) {
    let Ok(asked) = std::env::var("WRENN_TEST_CROWD") else { return CROWD };
    let numbers = asked.split_once(',').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.expect("WRENN_TEST_CROWD: two numbers, 50,16")
}

fn boots(sandbox: &Sandbox) -> bool {
    let number = sandbox.id.rsplit('-').next().and_then(|number| number.parse::<usize>().ok());
    number.expect("crowd-N").is_multiple_of(4)
}

/// Does this to all of them, by so many callers, each taking the next that is left.
fn at_once(callers: usize, crowd: &[Sandbox], verb: &(dyn Fn(&Sandbox) + Sync)) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..callers {
            scope.spawn(|| {
                while let Some(sandbox) = crowd.get(next.fetch_add(1, Ordering::Relaxed)) {
                    verb(sandbox);
                }
            });
        }
    });
}

/// `wrenn gc`, one after the other: of sandboxes that are at work or alive it must not touch anything.
fn collect_until(host: &TestHost, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let report = host.wrenn(["gc"]).run().success().reply()["report"].take();
        let touched = |entry: &&wrenn_tests::Value| entry["done"] != "passed over";
        let touched: Vec<_> = report.as_array().expect("a report").iter().filter(touched).collect();
        assert!(touched.is_empty(), "{touched:?}");
    }
}

/// Also when a caller panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
