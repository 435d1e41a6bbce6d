//! Which discards a pause is told of, when its VM goes on after a snapshot.

mod common;

use common::{Bench, Vmm};
use serde_json::json;

#[test]
#[ignore = "a part that other tests start"]
fn vmm() {
    common::play();
}

#[test]
fn a_discard_that_its_parent_has_seen_is_not_told_again() {
    let bench = Bench::new(100);
    let mut document = bench.detached(&[]);
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 100);
    let generation = |name: &str| {
        let dir = bench.path(name);
        std::fs::create_dir(&dir).unwrap();
        dir
    };
    let (first, second) = (generation("gen-1"), generation("gen-2"));
    assert_eq!(vmm.ask("discard 10 5"), "Ok(())");

    // The first pause: its dump is made, not yet packed.
    document["snapshot"] = json!({"dir": first, "kind": "full", "raw": first.join("memfile.raw")});
    bench.on("stats", &document, &[]).success();
    assert_eq!(bench.removed(), [(10, 5)]);
    std::fs::write(first.join("memfile.header"), b"published").unwrap();

    // The VM goes on. Asking how it does is no snapshot.
    assert_eq!(vmm.ask("discard 40 2"), "Ok(())");
    bench.on("stats", &document, &[]).success();
    assert_eq!(bench.removed(), [(10, 5), (40, 2)]);

    // The next pause is relative to the first.
    assert_eq!(vmm.ask("discard 70 1"), "Ok(())");
    document["snapshot"] =
        json!({"dir": second, "kind": "diff", "parent": first, "raw": second.join("memfile.raw")});
    for _ in 0..2 {
        bench.on("stats", &document, &[]).success();
        assert_eq!(bench.removed(), [(40, 2), (70, 1)], "also when it is asked again");
    }
    // Once more relative to the first: the second failed, its directory is used again.
    assert_eq!(vmm.ask("discard 10 1"), "Ok(())");
    bench.on("stats", &document, &[]).success();
    assert_eq!(bench.removed(), [(10, 1), (40, 2), (70, 1)]);
    std::fs::write(second.join("memfile.header"), b"published").unwrap();
    let third = generation("gen-3");
    document["snapshot"] =
        json!({"dir": third, "kind": "diff", "parent": second, "raw": third.join("memfile.raw")});
    bench.on("stats", &document, &[]).success();
    assert_eq!(bench.removed(), [], "nothing since the second");
}
