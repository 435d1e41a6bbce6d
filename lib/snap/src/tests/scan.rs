use std::io::Write;

use super::*;

/// That only looks for what is not zero.
fn scan<'a>(input: &'a Input<'a>, spans: &'a Spans) -> Scan<'a> {
    Scan {
        what: "testing",
        input,
        spans,
        block_size: 4096,
        parent: None,
        expect: Expect::Nothing,
        sums: false,
        punch: None,
        append: None,
    }
}

#[test]
fn zero_is_zero_to_the_last_byte() {
    for length in [0, 1, 127, 128, 129, 4096] {
        let mut bytes = vec![0; length];
        assert!(is_zero(&bytes), "{length}");
        for at in [0, length / 2, length.saturating_sub(1)].into_iter().filter(|at| *at < length) {
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes), "{length} with a byte at {at}");
            bytes[at] = 0;
        }
    }
}

#[test]
fn several_threads_find_what_one_would() {
    // Enough for four threads: 80 MiB of which every fifth chunk of three pages is not zero.
    let pages = 20 << 10;
    let full = |page: u64| (page / 3).is_multiple_of(5);
    let mut raw = tempfile::NamedTempFile::new().unwrap();
    for page in 0..pages {
        let mut bytes = [0; 4096];
        bytes[(page % 4096) as usize] = u8::from(full(page));
        raw.write_all(&bytes).unwrap();
    }
    let spans = Spans::full(raw.as_file(), raw.path(), pages * 4096).unwrap();
    let input = Input::File { file: raw.reopen().unwrap(), path: raw.path(), size: pages * 4096 };
    let runs = scan(&input, &spans).run().unwrap().runs;
    assert!(
        runs.windows(2).all(|pair| pair[0].range.end == pair[1].range.start && pair[0].fate != pair[1].fate)
    );
    let mut page = 0;
    for run in runs {
        while page * 4096 < run.range.end {
            assert_eq!(run.fate == Fate::Stored, full(page), "page {page}");
            page += 1;
        }
    }
    assert_eq!(page, pages);
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let raw = tempfile::NamedTempFile::new().unwrap();
    raw.as_file().set_len(64 << 20).unwrap();
    let spans = {
        // Spans of the file as it was: all data.
        let mut full = tempfile::NamedTempFile::new().unwrap();
        full.write_all(&vec![1; 64 << 20]).unwrap();
        Spans::full(full.as_file(), full.path(), 64 << 20).unwrap()
    };
    raw.as_file().set_len(32 << 20).unwrap();
    let input = Input::File { file: raw.reopen().unwrap(), path: raw.path(), size: 64 << 20 };
    let error = scan(&input, &spans).run().unwrap_err();
    assert_eq!(error.kind, wire::Kind::Corrupt, "{error}");
}
