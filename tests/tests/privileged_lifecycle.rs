//! A sandbox's life by the supervisor, on real parts, checked by content from inside the guest and by /proc and /sys
//! outside. In the lab: docs/lifecycle.md.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use wrenn_tests::host::TestHost;
use wrenn_tests::sandbox::Sandbox;
use wrenn_tests::{Value, json, kernel};

wrenn_tests::on_every_vmm_and_2_vcpus![
    privileged_commands_run_with_output_status_environment_and_user,
    privileged_a_paused_sandbox_is_only_files_and_comes_back_exact,
    privileged_a_second_pause_stores_what_changed_and_zeroed_memory_stays_zero,
    privileged_memory_is_exact_under_the_balloon,
    privileged_what_lives_on_holds_nothing_of_its_caller,
    privileged_a_second_root_is_untouched_by_the_first,
];

const MIB: u64 = 1 << 20;

fn privileged_commands_run_with_output_status_environment_and_user(host: &TestHost) {
    let more = ["--memory", "256", "--env", "GREETING=hello  you", "--metadata", "owner=test"];
    let sandbox = host.boot("commands", &more);
    let run = |args: &[&str]| host.wrenn(["exec", "commands"]).args(args).run();

    host.step("output, and the two streams apart");
    let both = run(&["--", "/bin/sh", "-c", "echo out; echo err >&2; exit 7"]).status_is(7);
    assert_eq!((both.text().as_str(), both.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(run(&["--", "echo", "$HOME", "a  b", "*"]).success().text(), "$HOME a  b *\n", "no shell");
    assert_eq!(run(&["--", "/bin/sh", "-c", "kill -9 $$"]).status, Some(128 + 9));
    let bytes =
        run(&["--", "/bin/sh", "-c", "dd if=/dev/urandom of=/bytes bs=1k count=300 status=none; cat /bytes"]);
    let bytes = bytes.success().stdout;
    assert_eq!(bytes.len(), 300 * 1024);
    assert_eq!(sandbox.sum("/bytes"), md5(&bytes), "bytes arrive as they are");

    host.step("environment and user");
    assert_eq!(sandbox.sh("echo \"$GREETING\""), "hello  you");
    assert_eq!(
        run(&["--env", "MORE=1", "--", "/bin/sh", "-c", "echo $GREETING $MORE"]).text(),
        "hello you 1\n"
    );
    assert_eq!(sandbox.sh("id -un; id -u"), "root\n0");
    let user = run(&["--user", "user", "--", "/bin/sh", "-c", "id -un; id -u; pwd; touch /etc/no"]);
    assert_eq!(user.text(), "user\n1000\n/home/user\n");
    assert_ne!(user.status, Some(0), "a user may not write to /etc");

    host.step("events, files, and what the guest was made with");
    let events = run(&["--json", "--", "echo", "hi"]).success().replies();
    let names: Vec<_> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(names, ["start", "stdout", "end"]);
    let file = host.roots().dir().join("file");
    std::fs::write(&file, &bytes).expect("a file");
    let path = file.to_str().expect("text");
    host.wrenn(["cp", path, "commands:/root/in"]).run().success();
    assert_eq!(sandbox.sum("/root/in"), md5(&bytes));
    let out = host.roots().dir().join("out");
    host.wrenn(["cp", "commands:/root/in", out.to_str().expect("text")]).run().success();
    assert!(std::fs::read(out).expect("a copy") == bytes);
    assert_eq!(sandbox.sh("nproc; hostname"), format!("{}\ncommands", host.vcpus));
    let kib: u64 = sandbox.sh("grep MemTotal /proc/meminfo | tr -dc 0-9").parse().expect("KiB");
    assert!((200 * 1024..=256 * 1024).contains(&kib), "{kib} KiB of memory");
    assert_eq!(sandbox.document()["metadata"], json!({"owner": "test"}));

    host.step("what is not there");
    for (args, status) in [
        (&["exec", "commands", "--", "/no/such"][..], 3),
        (&["exec", "nobody", "--", "true"], 3),
        (&["pause", "nobody"], 3),
        (&["resume", "commands"], 4),
        (&["create", "--id", "commands"], 4),
        (&["create", "--id", "other", "--template", "no-such"], 3),
    ] {
        let refused = host.wrenn(args.iter().copied()).run();
        assert_eq!(refused.status, Some(status), "{}: {}", refused.line, refused.stderr);
    }
    assert_eq!(host.ids(), ["commands"]);
}

fn privileged_a_paused_sandbox_is_only_files_and_comes_back_exact(host: &TestHost) {
    let sandbox = host.create("life");
    sandbox.mount_memory();
    let memory = sandbox.fill("/mem/random", 32);
    let disk = sandbox.fill("/random", 32);
    let counter = sandbox.start_counting();
    let count = counter.now();
    let running = sandbox.document();
    for kind in ["dm", "interface", "loop", "process", "wrenn-ns-"] {
        let held = host.traces();
        assert!(
            held.iter().any(|trace| trace.starts_with(kind)),
            "a running sandbox has its {kind}: {held:?}"
        );
    }

    host.step("pause");
    let paused = sandbox.pause();
    assert_eq!(paused["snapshot"]["kind"], "full");
    assert_eq!(host.leftovers(), BTreeSet::new(), "a paused sandbox is only files");
    for pid in [&running["vm"]["pid"], &running["uffd"]["pid"]].into_iter().filter_map(Value::as_i64) {
        assert!(!kernel::is_alive(pid as i32), "process {pid}");
    }
    let generation = verified(host, &paused);
    let exec = host.wrenn(["exec", "life", "--", "true"]).run();
    assert_eq!(exec.status, Some(4), "{}", exec.stderr);

    host.step("resume");
    sandbox.resume();
    counter.counts_on(count);
    assert_eq!(sandbox.sum("/mem/random"), memory);
    assert_eq!(sandbox.sum_on_disk("/random"), disk);
    sandbox.assert_clock();
    assert!(Path::new(&generation).is_dir(), "the last pause stays while the sandbox runs");

    host.step("the VM dies, and the sandbox comes back as it was paused");
    sandbox.sh("echo later >/later; sync");
    sandbox.end("vm");
    sandbox.resume();
    counter.counts_on(count);
    assert_eq!(sandbox.sh("ls /later 2>/dev/null || echo none"), "none", "the disk is that of the pause too");
    assert_eq!(sandbox.sum_on_disk("/random"), disk);
}

fn privileged_a_second_pause_stores_what_changed_and_zeroed_memory_stays_zero(host: &TestHost) {
    let sandbox = host.create("diff");
    sandbox.mount_memory();
    sandbox.fill("/mem/random", 32);
    sandbox.fill("/random", 32);
    let counter = sandbox.start_counting();
    sandbox.pause();
    sandbox.resume();

    host.step("change memory, zero memory, change the disk");
    sandbox.sh("dd if=/dev/urandom of=/mem/random bs=1M seek=4 count=4 conv=notrunc status=none
                dd if=/dev/zero of=/mem/random bs=1M seek=16 count=8 conv=notrunc status=none
                dd if=/dev/urandom of=/random bs=1M seek=8 count=4 conv=notrunc,fsync status=none");
    let (memory, disk) = (sandbox.sum("/mem/random"), sandbox.sum_on_disk("/random"));
    let count = counter.now();

    host.step("pause");
    let paused = sandbox.pause();
    assert_eq!(paused["snapshot"]["kind"], host.vmm.later_kind(), "{}", paused["snapshot"]);
    assert_eq!(paused["snapshot"]["generation"], 1);
    let dir = verified(host, &paused);
    let build = paused["snapshot"]["build"].as_str().expect("a build");
    let stored = kernel::stored_bytes(&Path::new(&dir).join(format!("memfile.{build}")));
    // 4 MiB of memory and as much page cache, and what a running kernel writes on its own.
    host.step(&format!("the diff takes {:.1} MiB", stored as f64 / MIB as f64));
    assert!((8 * MIB..48 * MIB).contains(&stored), "{stored} bytes stored");
    let zeroed = paused["snapshot"]["blocks"]["zero"].as_u64().expect("blocks.zero");
    assert!(zeroed >= 8 * MIB / 4096, "8 MiB were zeroed, {zeroed} blocks are");

    host.step("resume");
    sandbox.resume();
    counter.counts_on(count);
    assert_eq!(sandbox.sum("/mem/random"), memory);
    assert_eq!(sandbox.sum_on_disk("/random"), disk);
    let zeros = "dd if=/mem/random bs=1M skip=16 count=8 status=none | tr -d '\\0' | wc -c";
    assert_eq!(sandbox.sh(zeros), "0", "what was zeroed is zero");
}

fn privileged_memory_is_exact_under_the_balloon(host: &TestHost) {
    let sandbox = host.create("balloon");
    sandbox.mount_memory();
    let memory = sandbox.fill("/mem/random", 32);
    // Pages that were used and are free again are what a balloon takes first, and what must not come back.
    sandbox.sh("dd if=/dev/urandom of=/mem/gone bs=1M count=32 status=none; rm /mem/gone");
    let counter = sandbox.start_counting();
    sandbox.pause();
    sandbox.resume();
    assert_eq!(sandbox.sum("/mem/random"), memory);

    host.step("inflate");
    let (before, after) = inflate(host, &sandbox, 24);
    assert!(
        after + 12 * MIB < before,
        "what the guest gives back is the host's again: {before} to {after} bytes"
    );
    assert_eq!(sandbox.sum("/mem/random"), memory);
    let count = counter.now();
    host.step("pause with the balloon inflated");
    verified(host, &sandbox.pause());
    sandbox.resume();
    counter.counts_on(count);
    assert_eq!(sandbox.sum("/mem/random"), memory);

    host.step("inflate and deflate, and use what came back");
    inflate(host, &sandbox, 24);
    balloon(host, &sandbox, 0);
    sandbox.sh("dd if=/dev/zero of=/mem/again bs=1M count=32 status=none");
    assert_eq!(sandbox.sh("tr -d '\\0' </mem/again | wc -c"), "0");
    assert_eq!(sandbox.sum("/mem/random"), memory);
    let count = counter.now();
    verified(host, &sandbox.pause());
    sandbox.resume();
    counter.counts_on(count);
    assert_eq!(sandbox.sum("/mem/random"), memory);
    assert_eq!(sandbox.sh("tr -d '\\0' </mem/again | wc -c"), "0");
}

fn privileged_what_lives_on_holds_nothing_of_its_caller(host: &TestHost) {
    // Every run of a program here reads both of its pipes to their end, so a process that held one would be noticed
    // anyway; this says by name which it would be.
    let sandbox = host.create("alone");
    sandbox.pause();
    let document = sandbox.resume();
    let ours = kernel::session(std::process::id() as i32);
    let page_server = host.vmm.page_server().then_some("uffd");
    for section in [Some("vm"), page_server].into_iter().flatten() {
        let pid = document[section]["pid"].as_i64().expect("a pid") as i32;
        assert!(kernel::is_alive(pid), "{section}");
        assert_ne!(kernel::session(pid), ours, "{section} is in a session of its own");
        assert_eq!(kernel::descriptor(pid, 0), "/dev/null", "{section}: stdin");
        for fd in [1, 2] {
            let at = kernel::descriptor(pid, fd);
            let log = host.roots().run().join("alone");
            assert!(
                at == "/dev/null" || Path::new(&at).starts_with(log),
                "{section}: descriptor {fd} is {at}"
            );
        }
    }
    let cut = Instant::now();
    let cut_off = host.wrenn(["get", "alone"]).run_unread();
    assert_eq!(cut_off, Some(8), "nobody reads the reply");
    assert!(cut.elapsed() < Duration::from_secs(30));
}

fn privileged_a_second_root_is_untouched_by_the_first(host: &TestHost) {
    let other = host.another();
    let mine = host.create("mine").document();
    let theirs = other.create("theirs");
    theirs.mount_memory();
    let counter = theirs.start_counting();
    let (count, held) = (counter.now(), other.traces());
    assert_ne!(mine["net"]["host_ip"], theirs.document()["net"]["host_ip"]);

    host.step("an id that is another root's cannot be had, and asking harms nobody");
    let taken = host.wrenn(["create", "--id", "theirs"]).run().status_is(4).reply();
    assert_eq!(taken["error"]["code"], "cow.exists", "a device's name is the host's");
    assert_eq!(host.ids(), ["mine"]);
    let count = counter.counts_on(count);

    host.step("gc and shutdown of the first");
    for (program, verb) in [("wrenn", "gc"), ("wrenn-net", "gc"), ("wrenn-cow", "gc")] {
        host.program(program).args([verb]).run().success();
    }
    host.wrenn(["shutdown", "--destroy"]).run().success();
    assert_eq!(host.ids(), [""; 0]);
    let count = counter.counts_on(count);
    assert_eq!(other.traces(), held, "all that the other has is there");

    host.step("the other pauses and resumes as if alone");
    theirs.pause();
    theirs.resume();
    counter.counts_on(count);
    other.remove_all();
}

/// Finds the pause complete: the link leads to it and its checksums hold. Gives its directory.
fn verified(host: &TestHost, paused: &Value) -> String {
    let dir = paused["snapshot"]["dir"].as_str().expect("snapshot.dir").to_owned();
    let id = paused["id"].as_str().expect("id");
    let link = host.root().join("sandboxes").join(id).join("pause");
    assert_eq!(link.canonicalize().ok(), Path::new(&dir).canonicalize().ok(), "the last complete pause");
    host.program("wrenn-snap").args(["verify", &format!("dir={dir}")]).run().success();
    for file in ["rootfs.cow", "rootfs.meta", "memfile.header"] {
        assert!(Path::new(&dir).join(file).is_file(), "{file} in {dir}");
    }
    assert!(!Path::new(&dir).join("memfile.raw").exists(), "no raw memory is left in {dir}");
    dir
}

fn balloon(host: &TestHost, sandbox: &Sandbox, mib: u32) {
    let document = sandbox.document().to_string();
    host.program("wrenn-launch")
        .args(["balloon", "-", "--mib", &mib.to_string()])
        .stdin(document)
        .run()
        .success();
}

/// Inflates the balloon, and waits until the guest has given up most of it. Gives the VMM's resident bytes before and
/// after.
fn inflate(host: &TestHost, sandbox: &Sandbox, mib: u32) -> (u64, u64) {
    let pid = sandbox.document()["vm"]["pid"].as_i64().expect("a pid");
    sandbox.await_memory();
    let resident = || {
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("the VMM");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
    };
    let free = || sandbox.sh("grep MemFree /proc/meminfo | tr -dc 0-9").parse::<u64>().expect("KiB");
    let (resident_before, free_before) = (resident(), free());
    balloon(host, sandbox, mib);
    let deadline = Instant::now() + Duration::from_secs(60);
    while free() + u64::from(mib) * 1024 * 3 / 4 > free_before {
        assert!(
            Instant::now() < deadline,
            "the guest gives nothing back: {} of {free_before} KiB free",
            free()
        );
    }
    (resident_before, resident())
}

fn md5(bytes: &[u8]) -> String {
    let mut command = std::process::Command::new("md5sum");
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("md5sum");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), bytes).expect("written");
    String::from_utf8(child.wait_with_output().expect("done").stdout).expect("text").trim_end().to_owned()
}
