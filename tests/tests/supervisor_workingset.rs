//! The first launches of a template show the later ones what to load first. On a machine in small.

use std::fs;
use std::path::Path;

use wrenn_tests::Value;
use wrenn_tests::host::TestHost;
use wrenn_tests::sandbox::Sandbox;

wrenn_tests::on_a_toy![the_first_three_launches_of_a_template_record_and_what_comes_after_loads_that_first,];

/// The working set in a snapshot's directory, as it is on disk.
fn set(dir: &Path) -> Option<Value> {
    let text = fs::read(dir.join("workingset")).ok()?;
    Some(serde_json::from_slice(&text).expect("whole whenever it is there"))
}

fn build(host: &TestHost, dir: &Path) -> Value {
    let dir = format!("dir={}", dir.display());
    host.program("wrenn-snap").args(["inspect", &dir]).run().success().reply()["build"].clone()
}

/// What the sandbox's page server says of the set that it loaded.
fn loaded(host: &TestHost, sandbox: &Sandbox) -> Value {
    let document = sandbox.document();
    let control = format!("control={}", document["uffd"]["control"].as_str().expect("a page server"));
    host.program("wrenn-uffd").args(["stats", &control]).run().success().reply()["stats"]["working_set"]
        .clone()
}

fn the_first_three_launches_of_a_template_record_and_what_comes_after_loads_that_first(host: &TestHost) {
    host.create("source");
    host.wrenn(["snapshot", "source", "t/first"]).run().success();
    let template = host.root().join("images/t/first");
    assert_eq!(set(&template), None);
    for runs in 1..=3 {
        let id = format!("launch-{runs}");
        let launched = host.create_from(&id, "t/first", &[]);
        assert_eq!(loaded(host, &launched), Value::Null, "it records");
        // Its server ends with it, and so does the recording.
        host.wrenn(["rm", &id]).run().success();
        let set = set(&template).expect("recorded");
        assert_eq!((&set["runs"], &set["build"]), (&runs.into(), &build(host, &template)));
        assert!(!set["ranges"].as_array().expect("ranges").is_empty());
    }
    let recorded = set(&template);
    let launched = host.create_from("launch-4", "t/first", &[]);
    assert_eq!(loaded(host, &launched)["runs"], 3);
    // A pause has the set of what it was woken from, and so has a template of it.
    host.wrenn(["pause", "launch-4"]).run().success();
    assert_eq!(set(&template), recorded, "three are enough");
    let pause = host.root().join("sandboxes/launch-4/pause");
    let carried = set(&pause).expect("carried");
    assert_eq!((&carried["runs"], &carried["build"]), (&3.into(), &build(host, &pause)));
    assert_eq!(Some(&carried["ranges"]), recorded.as_ref().map(|set| &set["ranges"]));
    host.wrenn(["resume", "launch-4"]).run().success();
    assert_eq!(loaded(host, &launched)["runs"], 3);
    assert_eq!(set(&pause), Some(carried), "a resume records nothing");
    host.wrenn(["snapshot", "launch-4", "t/second"]).run().success();
    let second = set(&host.root().join("images/t/second")).expect("carried");
    assert_eq!(second["runs"], 3);
}
