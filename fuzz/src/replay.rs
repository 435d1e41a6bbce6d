//! The corpora, for tests: each input, each of them cut short, and with each byte changed.

use std::fs;
use std::path::Path;

/// Gives a target every input of its corpus, and what is near it.
pub fn replay(name: &str, target: fn(&[u8])) {
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
