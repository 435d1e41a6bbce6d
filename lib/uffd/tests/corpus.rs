//! What fuzzing has to hold, of every trace that is kept in fuzz/corpus, of each of them cut short, and with each byte changed.

#[path = "../../../fuzz/src/replay.rs"]
mod replay;
#[path = "../../../fuzz/src/traces.rs"]
mod targets;

use replay::replay;

#[test]
fn traces_of_the_corpus_are_refused_or_told_and_drawn() {
    replay("trace", targets::trace);
}
