//! Operations that somebody is killed in, at every step they record, and what must hold after `wrenn gc`.
//!
//! What there is then is looked at with eyes of our own: the kernel, the directories, and what guest and disk have kept.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use serde_json::Value;
use sys::process::Process;

use crate::follow::Followed;
use crate::host::TestHost;
use crate::kernel;
use crate::program::LIMIT;
use crate::vmm::Vmm;

/// What is being done when somebody is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `create` from an image.
    Create,
    /// `create` from a snapshot template.
    Launch,
    /// `pause`.
    Pause,
    /// `resume`.
    Resume,
    /// `snapshot` of a running sandbox.
    Snapshot,
    /// `snapshot` of a paused one.
    SnapshotPaused,
    /// `rm` of a running one.
    Remove,
    /// The pause that `watch` does of one whose time is over.
    Expire,
}

/// Who is killed, by SIGKILL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// `wrenn`, with the tools' verbs that it calls in process; `wrenn watch` where that does it.
    Supervisor,
    /// The VMM; the supervisor goes on.
    Vmm,
    /// The page server and its guardian; the supervisor goes on.
    PageServer,
}

impl Operation {
    /// All that a caller asks for.
    pub const ALL: [Self; 7] = [
        Self::Create,
        Self::Launch,
        Self::Pause,
        Self::Resume,
        Self::Snapshot,
        Self::SnapshotPaused,
        Self::Remove,
    ];

    /// The supervisor's arguments.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Create => &["create", "--id", ID, "--memory", "128", "--disk", "128"],
            Self::Launch => &["create", "--id", ID, "--template", "kill/base"],
            Self::Pause => &["pause", ID],
            Self::Resume => &["resume", ID],
            Self::Snapshot | Self::SnapshotPaused => &["snapshot", ID, "kill/new"],
            Self::Remove => &["rm", ID],
            Self::Expire => &["watch", "--interval", "1"],
        }
    }

    /// The state it begins in; `None` when there is no sandbox yet.
    fn begins_in(self) -> Option<&'static str> {
        match self {
            Self::Create | Self::Launch => None,
            Self::Pause | Self::Snapshot | Self::Remove | Self::Expire => Some("running"),
            Self::Resume | Self::SnapshotPaused => Some("paused"),
        }
    }

    /// The states it may be found in after the supervisor was killed and `gc` has run.
    fn may_end_in(self) -> &'static [Option<&'static str>] {
        match self {
            Self::Create | Self::Launch => &[None, Some("running")],
            Self::Pause | Self::Resume | Self::Expire => &[Some("running"), Some("paused")],
            Self::Snapshot => &[Some("running")],
            Self::SnapshotPaused => &[Some("paused")],
            Self::Remove => &[None],
        }
    }
}

const ID: &str = "kill";

/// A file as it was left: its name, its inode, its length, and when its content was last written.
type Stamp = (String, u64, u64, (i64, i64));

/// A sandbox whose life is cut short again and again.
struct Bench<'a> {
    host: &'a TestHost,
    /// What guest and disk keep now, and what the last pause has.
    kept: String,
    paused: Option<String>,
    /// What the template has.
    template: String,
    runs: usize,
}

/// How often is tried to catch one step. The quickest may be over before anybody has seen that it has begun.
const TRIES: usize = 20;

/// When somebody is killed.
#[derive(Debug, Clone, Copy)]
enum When<'a> {
    /// When so many records have been seen.
    Record(usize),
    /// At this step.
    Step(&'a str),
}

/// Runs an operation again and again; the n-th time `victim` is killed at its n-th record, until it comes to its end before
/// that. Then at those of the steps `through` that were not among these.
///
/// # Panics
/// When something that must hold after `gc` does not, or one of those steps is never seen.
pub fn kill_at_every_step(host: &TestHost, operation: Operation, victim: Victim, through: &[&str]) {
    let mut bench = Bench { host, kept: String::new(), paused: None, template: String::new(), runs: 0 };
    if operation == Operation::Launch {
        bench.bring_to(Some("running"));
        bench.keep("template");
        host.wrenn(["snapshot", ID, "kill/base"]).run().success();
        bench.template = bench.kept.clone();
    }
    let templates = bench.template_files();
    let mut steps = BTreeSet::new();
    for nth in 1.. {
        assert!(nth < 100, "no operation has so many steps: {steps:?}");
        match bench.run(operation, victim, When::Record(nth), &templates) {
            Some(step) => drop(steps.insert(step)),
            None => break,
        }
    }
    for step in through {
        let mut tries = 0..TRIES;
        while !steps.contains(*step) {
            assert!(tries.next().is_some(), "{operation:?} was never seen at {step}, only at {steps:?}");
            steps.extend(bench.run(operation, victim, When::Step(step), &templates));
        }
    }
    bench.bring_to(None);
    bench.remove_template("kill/base");
    host.remove_all();
}

/// One sandbox lives through all of this: in each of these operations the victim is killed at that step.
///
/// # Panics
/// When something that must hold after `gc` does not, or a step is never seen.
pub fn kill_at(host: &TestHost, cases: &[(Operation, Victim, &str)]) {
    let mut bench = Bench { host, kept: String::new(), paused: None, template: String::new(), runs: 0 };
    if cases.iter().any(|(operation, ..)| *operation == Operation::Launch) {
        bench.bring_to(Some("running"));
        bench.keep("template");
        host.wrenn(["snapshot", ID, "kill/base"]).run().success();
        bench.template = bench.kept.clone();
    }
    let templates = bench.template_files();
    for (operation, victim, step) in cases {
        let mut tries = 0..TRIES;
        while bench.run(*operation, *victim, When::Step(step), &templates).as_deref() != Some(step) {
            assert!(tries.next().is_some(), "{operation:?} was never seen at {step}");
        }
    }
    bench.bring_to(None);
    bench.remove_template("kill/base");
    host.remove_all();
}

impl Bench<'_> {
    /// Runs the operation once, and looks at what it left. Gives the step at which somebody was killed.
    fn run(
        &mut self,
        operation: Operation,
        victim: Victim,
        when: When,
        templates: &[Stamp],
    ) -> Option<String> {
        self.bring_to(operation.begins_in());
        self.runs += 1;
        match operation {
            Operation::Create => self.kept = String::new(),
            Operation::Launch => self.kept = self.template.clone(),
            Operation::Resume | Operation::SnapshotPaused => {}
            _ => self.keep(&format!("{operation:?}-{}", self.runs).to_lowercase()),
        }
        let vm = self.document().map(|document| document["vm"]["pid"].clone());
        let step = self.cut_short(operation, victim, when);
        self.host.step(&format!("{operation:?}: {victim:?} killed at {when:?}: {step:?}"));
        self.collect_garbage();
        assert_eq!(self.host.faults(), [""; 0], "with other eyes");
        self.check(operation, victim, vm.unwrap_or_default());
        assert_eq!(self.template_files(), templates, "what templates hold never changes");
        self.remove_template("kill/new");
        step
    }

    fn document(&self) -> Option<Value> {
        let text = fs::read(self.host.root().join("sandboxes").join(ID).join("sandbox.json")).ok()?;
        Some(serde_json::from_slice(&text).expect("a whole document"))
    }

    fn state(&self) -> Option<String> {
        self.document().map(|document| document["state"].as_str().expect("a state").to_owned())
    }

    fn sh(&self, script: &str) -> String {
        let output = self.host.wrenn(["exec", ID, "--", "/bin/sh", "-ec", script]).run().success();
        output.text().trim_end().to_owned()
    }

    /// Has memory and disk keep a word, and a guest that is real random bytes of that moment.
    fn keep(&mut self, word: &str) {
        let mount = "mkdir -p /mem; grep -q ' /mem ' /proc/mounts || mount -t tmpfs none /mem";
        if self.host.vmm == Vmm::Toy {
            self.sh(&format!(
                "kept={word}; {mount}
             echo $kept >/mem/kept; echo $kept >/kept; sync"
            ));
            self.kept = word.to_owned();
        } else {
            let random = "dd if=/dev/urandom bs=256k count=8 status=none";
            self.sh(&format!("{mount}; {{ echo {word}; {random}; }} >/mem/kept; cp /mem/kept /kept; sync"));
            self.kept = self.kept();
        }
    }

    /// What both have kept: the word, or the checksum.
    fn kept(&self) -> String {
        let tell = if self.host.vmm == Vmm::Toy {
            "cat /mem/kept /kept"
        } else {
            "for file in /mem/kept /kept; do md5sum <$file; done"
        };
        let both = self.sh(&format!("echo 3 >/proc/sys/vm/drop_caches; {tell}"));
        let (memory, disk) = both.split_once('\n').unwrap_or((&both, ""));
        assert_eq!(memory, disk, "memory and disk are of one moment");
        memory.to_owned()
    }

    /// Does what it takes to have the sandbox in this state.
    fn bring_to(&mut self, wanted: Option<&str>) {
        let now = self.state();
        let verb = |verb: &str| drop(self.host.wrenn([verb, ID]).run().success());
        match (now.as_deref(), wanted) {
            (now, wanted) if now == wanted => return,
            (Some(_), None) | (Some("stopped" | "failed"), _) => verb("rm"),
            (None, Some(_)) => {
                let vmm = self.host.vmm.name();
                let create = Operation::Create.arguments().iter().copied().chain(["--vmm", vmm]);
                let made = self.host.wrenn(create).run().success().reply();
                self.host.note(&made);
                self.paused = None;
                self.keep("first");
            }
            (Some("paused"), Some("running")) => {
                let woken = self.host.wrenn(["resume", ID]).run().success().reply();
                self.host.note(&woken);
            }
            (Some("running"), Some("paused")) => {
                verb("pause");
                self.paused = Some(self.kept.clone());
            }
            (now, wanted) => panic!("from {now:?} to {wanted:?}"),
        }
        self.bring_to(wanted);
    }

    /// Runs the operation and kills. Gives the step it was at, `None` when it came to its end before.
    fn cut_short(&mut self, operation: Operation, victim: Victim, when: When) -> Option<String> {
        if operation == Operation::Expire {
            // Only a resume gives a new time to live.
            self.host.wrenn(["pause", ID]).run().success();
            self.host.wrenn(["resume", ID, "--timeout", "1"]).run().success();
        }
        let mut program = self.host.wrenn(operation.arguments().iter().copied());
        if operation == Operation::Create {
            program = program.args(["--vmm", self.host.vmm.name()]);
        }
        let mut followed = Followed::start(program.command(), self.host.roots(), ID);
        let mut records = 0;
        let step = loop {
            let step = followed.next_step();
            records += 1;
            let reached = match (when, &step) {
                (_, None) => true,
                (When::Record(nth), _) => records == nth,
                (When::Step(wanted), Some(step)) => step == wanted,
            };
            if reached {
                break step;
            }
        };
        if let Some(document) = followed.document() {
            self.host.note(&document);
        }
        // A daemon does not come to an end.
        if operation == Operation::Expire && step.is_none() {
            followed.kill();
            return None;
        }
        if step.is_some() {
            match victim {
                Victim::Supervisor => {
                    followed.kill();
                    return step;
                }
                Victim::Vmm => self.kill(|line| line.contains("--api-sock")),
                Victim::PageServer => self.kill(|line| line.contains("wrenn-uffd")),
            }
        }
        followed.end();
        step
    }

    fn kill(&self, is_victim: impl Fn(&str) -> bool) {
        let mut all = kernel::processes_of(self.host.roots().dir());
        // A guardian would start its server again.
        all.sort_by_key(|(_, line)| !line.contains("--guardian"));
        for (pid, line) in all {
            if is_victim(&line)
                && let Ok(process) = Process::of_pid(pid)
            {
                process.end(Duration::ZERO).expect("killed, and gone");
            }
        }
    }

    /// Once is enough: the second time there is nothing to do.
    fn collect_garbage(&self) {
        let collect = || self.host.wrenn(["gc"]).run().success().reply();
        let deadline = Instant::now() + LIMIT;
        let mut first = collect();
        // A child that the killed one was just starting has its lock until it is another program.
        while first.to_string().contains("passed over") && Instant::now() < deadline {
            first = collect();
        }
        let second = collect();
        assert_eq!(second["report"], Value::Array(vec![]), "after {}", first["report"]);
        self.host.step(&format!("gc: {}", first["report"]));
    }

    fn check(&mut self, operation: Operation, victim: Victim, vm_before: Value) {
        let document = self.document();
        let state = self.state();
        if let Some(document) = &document {
            assert!(document["op"].is_null(), "nobody is at work: {document}");
        }
        let allowed = operation.may_end_in().contains(&state.as_deref());
        let died = victim != Victim::Supervisor && matches!(state.as_deref(), Some("paused" | "stopped"));
        assert!(allowed || died || state.is_none(), "{operation:?}, {victim:?}: {document:?}");
        if victim == Victim::Supervisor {
            assert!(allowed, "{operation:?} left {state:?}: {document:?}");
        }
        match state.as_deref() {
            None => {
                assert!(
                    matches!(operation, Operation::Create | Operation::Launch | Operation::Remove),
                    "it is gone"
                );
                self.host.assert_clean();
                self.paused = None;
            }
            Some("running") => {
                let vm = &document.unwrap_or_default()["vm"]["pid"];
                assert!(kernel::is_alive(vm.as_i64().expect("a pid") as i32), "its VM runs");
                if matches!(operation, Operation::Snapshot | Operation::Pause) {
                    assert_eq!(*vm, vm_before, "the VM was never taken down");
                }
                if operation != Operation::Create {
                    assert_eq!(self.kept(), self.kept, "nothing is lost");
                }
            }
            Some(rest) => {
                assert_eq!(self.host.leftovers(), BTreeSet::new(), "a sandbox that is {rest} is only files");
                self.check_files();
                if rest == "paused" {
                    self.check_pause(operation, victim);
                }
            }
        }
        let images = self.host.root().join("images");
        let all = kernel::list(&images).into_iter().chain(kernel::list(images.join("kill")));
        let hidden: Vec<_> = all.filter(|name| name.starts_with('.')).collect();
        assert_eq!(hidden, [""; 0], "beside templates there is nothing");
    }

    /// One generation, the link to it, the document.
    fn check_files(&self) {
        let mut names = kernel::list(self.host.root().join("sandboxes").join(ID));
        names.retain(|name| !matches!(name.as_str(), "sandbox.json" | "sandbox.saved" | "pause"));
        assert!(names.len() <= 1 && names.iter().all(|name| name.starts_with("gen-")), "{names:?}");
    }

    /// What is paused verifies, and wakes with what it had.
    fn check_pause(&mut self, operation: Operation, victim: Victim) {
        let link = self.host.root().join("sandboxes").join(ID).join("pause");
        let dir = fs::canonicalize(link).expect("the last pause");
        let dir = format!("dir={}", dir.display());
        self.host.program("wrenn-snap").args(["verify", &dir]).run().success();
        let woken = self.host.wrenn(["resume", ID]).run().success().reply();
        self.host.note(&woken);
        let kept = self.kept();
        let earlier = self.paused.as_ref() == Some(&kept);
        let current = kept == self.kept;
        let lost = victim == Victim::Supervisor || operation == Operation::Resume;
        assert!(current || (earlier && !lost), "{kept} is neither {} nor {:?}", self.kept, self.paused);
        self.kept = kept.clone();
        self.paused = Some(kept);
    }

    /// The files of the template that launches are made from.
    fn template_files(&self) -> Vec<Stamp> {
        let base = self.host.root().join("images/kill/base");
        let stamp = |name: String| {
            let file = fs::metadata(base.join(&name)).expect("a template's file");
            (name, file.ino(), file.len(), (file.mtime(), file.mtime_nsec()))
        };
        // The first launches add what they were seen to ask for, beside what makes the template.
        let names = kernel::list(&base).into_iter().filter(|name| !name.contains("workingset"));
        let mut files: Vec<_> = names.map(stamp).collect();
        files.sort();
        files
    }

    /// Removes a template, if it is there: then it is whole.
    fn remove_template(&self, name: &str) {
        if self.host.root().join("images").join(name).exists() {
            let launched = ["create", "--id", "kill-copy", "--template", name];
            let made = self.host.wrenn(launched).run().success().reply();
            self.host.note(&made);
            self.host.wrenn(["rm", "kill-copy"]).run().success();
            self.host.wrenn(["template", "rm", name]).run().success();
        }
    }
}
