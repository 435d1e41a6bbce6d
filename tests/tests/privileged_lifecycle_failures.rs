//! Pauses that fail: the guest is given back, and the next pause is a Full one and exact. In the lab: docs/lifecycle.md.

use std::collections::BTreeSet;
use std::fs::File;

use wrenn_tests::host::TestHost;

wrenn_tests::on_every_vmm![privileged_a_pause_that_finds_the_disk_full_gives_the_guest_back];

fn privileged_a_pause_that_finds_the_disk_full_gives_the_guest_back(outer: &TestHost) {
    let host = outer.on_a_disk_of(2 << 30);
    let sandbox = host.boot("full", &["--memory", "128", "--disk", "256"]);
    sandbox.mount_memory();
    sandbox.fill("/mem/random", 16);
    let counter = sandbox.start_counting();
    sandbox.pause();
    sandbox.resume();
    // A Diff would have to hold this, and every failed pause may make the VMM forget that it has changed.
    sandbox.sh("dd if=/dev/urandom of=/mem/random bs=1M seek=4 count=4 conv=notrunc status=none
                dd if=/dev/zero of=/mem/random bs=1M seek=8 count=4 conv=notrunc status=none; sync");
    let memory = sandbox.sum("/mem/random");
    let mut count = counter.now();
    let files = |dir: &std::path::Path| {
        let generations = wrenn_tests::kernel::list(dir);
        generations.into_iter().filter(|name| name.starts_with("gen-")).collect::<BTreeSet<_>>()
    };
    let dir = host.root().join("sandboxes/full");
    let before = files(&dir);

    host.step("no room for the memory");
    let filler = host.root().join("filler");
    let room = host.free_bytes() - (16 << 20);
    let file = File::create(&filler).expect("a file");
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, room as i64)
        .expect("the disk filled");
    let failed = host.wrenn(["pause", "full"]).run();
    assert_ne!(failed.status, Some(0), "there is no room for this pause");
    assert_eq!(host.wrenn(["get", "full"]).run().success().reply()["state"], "running");
    count = counter.counts_on(count);
    drop(file);
    std::fs::remove_file(&filler).expect("removed");

    // Then a disk that is out of files at one step after the other: at the document, the directory, the VMM's state, its
    // memory, the pack. Each time one more file can be made.
    let mut failed_at = BTreeSet::new();
    let mut pauses = 0;
    let paused = loop {
        assert!(pauses < 16, "a pause needs no more than a few files; failed at {failed_at:?}");
        host.allow_new_files(pauses);
        pauses += 1;
        let output = host.wrenn(["pause", "full"]).run();
        let reply = output.reply();
        if output.status == Some(0) {
            break reply;
        }
        let error = &reply["error"];
        host.step(&format!("room for {} files: {} {}", pauses - 1, error["tool"], error["message"]));
        failed_at.insert(error["tool"].as_str().unwrap_or_default().to_owned());
        if error["tool"] == "wrenn-cow" {
            // The memory is published, and the VM is gone: from here on a pause can only be finished.
            host.allow_new_files(1 << 16);
            host.wrenn(["gc"]).run().success();
            break host.wrenn(["get", "full"]).run().success().reply();
        }
        assert_eq!(host.wrenn(["get", "full"]).run().success().reply()["state"], "running");
        count = counter.counts_on(count);
        assert_eq!(files(&dir), before, "a failed pause leaves no generation");
    };
    assert!(failed_at.contains("wrenn-snap"), "one of them failed while packing: {failed_at:?}");
    assert_eq!(paused["state"], "paused", "{paused}");
    assert_eq!(paused["snapshot"]["kind"], "full", "the VMM may have forgotten its dirty pages");

    host.step("resume");
    sandbox.resume();
    counter.counts_on(count);
    assert_eq!(sandbox.sum("/mem/random"), memory);
    host.remove_all();
}
