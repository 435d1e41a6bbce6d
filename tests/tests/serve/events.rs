//! The stream of states.

use std::fs;

use wrenn_tests::{Roots, Value, json};

use crate::client::Client;
use crate::server::{Server, write_state};

fn reader(server: &Server) -> Client {
    let mut client = server.client();
    client.send("GET", "/v1/events", b"");
    let head = client.head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("application/x-ndjson")));
    client
}

/// What the next line says: `id state`.
fn next(client: &mut Client) -> String {
    let event = client.event().expect("an event");
    assert_eq!(event["event"], "state", "{event}");
    assert!(event["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{event}");
    format!("{} {}", event["id"].as_str().unwrap(), event["state"].as_str().unwrap())
}

#[test]
fn every_reader_is_told_what_there_is_and_then_every_change() {
    let roots = Roots::new();
    write_state(&roots, "one", "running");
    write_state(&roots, "two", "paused");
    let server = Server::on(&roots);
    let mut readers: Vec<_> = (0..30).map(|_| reader(&server)).collect();
    for reader in &mut readers {
        assert_eq!([next(reader), next(reader)], ["one running", "two paused"]);
    }
    write_state(&roots, "one", "running");
    write_state(&roots, "one", "pausing");
    readers.iter_mut().for_each(|reader| assert_eq!(next(reader), "one pausing", "what stays is not told"));
    write_state(&roots, "three", "creating");
    readers.iter_mut().for_each(|reader| assert_eq!(next(reader), "three creating"));
    let mut late = reader(&server);
    assert_eq!(
        [next(&mut late), next(&mut late), next(&mut late)],
        ["one pausing", "three creating", "two paused"]
    );
    readers.push(late);
    fs::remove_dir_all(roots.root().join("sandboxes/two")).unwrap();
    readers.iter_mut().for_each(|reader| assert_eq!(next(reader), "two removed"));
    // A reader that goes away is nobody's loss.
    readers.truncate(3);
    write_state(&roots, "two", "creating");
    readers.iter_mut().for_each(|reader| assert_eq!(next(reader), "two creating"));
    let stopped = std::thread::spawn(|| server.stop());
    for reader in &mut readers {
        let last = reader.event().unwrap();
        assert_eq!((&last["event"], &last["why"]), (&json!("closed"), &json!("the server ends")));
        assert!(reader.event().is_none());
    }
    stopped.join().unwrap();
}

#[test]
fn a_reader_that_is_far_behind_is_let_go_and_the_others_are_not() {
    let roots = Roots::new();
    let server = Server::on(&roots);
    let (mut slow, mut quick) = (reader(&server), reader(&server));
    let seen = std::thread::spawn(move || {
        let mut last = String::new();
        while last != "one last" {
            last = next(&mut quick);
        }
    });
    for n in 0..20_000 {
        write_state(&roots, "one", &format!("s{n}"));
    }
    write_state(&roots, "one", "last");
    seen.join().unwrap();
    let events: Vec<Value> = std::iter::from_fn(|| slow.event()).collect();
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["why"]),
        (&json!("closed"), &json!("too slow a reader")),
        "{}",
        events.len()
    );
    server.stop();
}
