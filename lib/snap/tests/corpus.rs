//! What fuzzing has to hold, of every input that is kept in fuzz/corpus, of each of them cut short, and with each byte changed.

#[path = "../../../fuzz/src/replay.rs"]
mod replay;
#[path = "../../../fuzz/src/images.rs"]
mod targets;

use replay::replay;

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
