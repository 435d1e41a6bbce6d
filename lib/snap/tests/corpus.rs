//! What fuzzing has to hold, of every input that is kept in fuzz/corpus, of each of them cut short, and with each byte changed.

use std::fs;
use std::path::Path;

#[path = "../../../fuzz/src/lib.rs"]
mod targets;

/// Every input of a target, and what is near it.
fn replay(name: &str, target: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let mut inputs = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        target(&bytes);
        for cut in 0..bytes.len() {
            target(&bytes[..cut]);
        }
        for at in 0..bytes.len() {
            for change in [1, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                target(&changed);
            }
        }
        inputs += 1;
    }
    assert!(inputs > 3, "{} has a corpus", dir.display());
}

#[test]
fn headers_of_the_corpus_are_refused_or_written_as_they_were_read() {
    replay("header", targets::header);
}

#[test]
fn checksums_of_the_corpus_are_refused_or_written_as_they_were_read() {
    replay("sums", targets::sums);
}

#[test]
fn discarded_ranges_of_the_corpus_are_refused_or_mean_the_same_again() {
    replay("removed", targets::removed);
}

#[test]
fn working_sets_of_the_corpus_are_refused_or_mean_the_same_again() {
    replay("workingset", targets::workingset);
}
