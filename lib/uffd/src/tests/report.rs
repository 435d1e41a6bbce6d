use proptest::prelude::*;

use super::*;
use crate::trace::Header;

const PAGE: u64 = 4096;

fn trace(records: Vec<Record>) -> Trace {
    let connected = Duration::from_secs(1_700_000_000);
    Trace { header: Header { size: 1 << 30, page_size: PAGE, connected, pid: 7 }, records, full: false }
}

fn record(kind: Kind, at_us: u64, page: u64, pages: u64) -> Record {
    let (at, latency) = (Duration::from_micros(at_us), Duration::from_micros(5));
    Record { at, offset: page * PAGE, length: pages * PAGE, latency, kind, write: page == 3 }
}

#[test]
fn a_summary_counts_what_is_in_the_trace() {
    let report = summary(&trace(vec![
        record(Kind::Replay, 10, 0, 3),
        record(Kind::Prefetch, 40, 100, 30),
        record(Kind::Image, 50, 3, 1),
        record(Kind::Image, 99_999, 4, 4),
        record(Kind::Zero, 100_000, 9, 1),
        record(Kind::Remove, 100_000, 3, 2),
        record(Kind::Refill, 2_000_000, 3, 2),
        record(Kind::Poison, 2_000_000, 20, 1),
    ]));
    let faults = &report["faults"];
    assert_eq!((&faults["count"], &faults["pages"], &faults["writes"]), (&json!(5), &json!(4), &json!(2)));
    assert_eq!(
        faults["by_kind"],
        json!({"image": 2, "zero": 1, "refill": 1, "exists": 0, "unmapped": 0, "poison": 1})
    );
    assert_eq!((&faults["first_ms"], &faults["last_ms"]), (&json!(0.05), &json!(2000.0)));
    assert_eq!((&faults["within_100_ms"], &faults["within_1_s"]), (&json!(0.4), &json!(0.6)));
    assert_eq!(report["around_bytes"], 4 * PAGE);
    assert_eq!(
        report["ahead"]["recorded"],
        json!({"count": 1, "bytes": 3 * PAGE, "first_ms": 0.01, "last_ms": 0.015})
    );
    assert_eq!(report["ahead"]["rest"]["bytes"], 30 * PAGE);
    assert_eq!(report["removed"], json!({"count": 1, "bytes": 2 * PAGE}));
    assert_eq!(report["connected_at"], "2023-11-14T22:13:20.000Z");
}

#[test]
fn an_empty_trace_has_a_summary_and_a_picture() {
    let trace = trace(Vec::new());
    let report = summary(&trace);
    assert_eq!((&report["faults"]["count"], &report["faults"]["first_ms"]), (&json!(0), &Value::Null));
    assert!(draw(&trace).contains("0 page faults in 1024 MiB"));
}

#[test]
fn the_picture_has_title_axes_units_and_a_legend_of_what_is_there() {
    let svg = draw(&trace(vec![
        record(Kind::Prefetch, 0, 0, 1000),
        record(Kind::Image, 50_000, 5, 1),
        record(Kind::Image, 50_001, 5, 1),
        record(Kind::Remove, 60_000, 5, 10),
        record(Kind::Poison, 61_000, 7, 1),
    ]));
    for text in [
        "3 page faults in 1024 MiB",
        "time since the VMM connected, ms",
        ">memory, MiB<",
        ">10 µs<",
        "fault: image (2)",
        "discarded (1)",
        "fault: poisoned (1)",
        "loaded ahead (1)",
        "all loaded ahead",
    ] {
        assert!(svg.contains(text), "{text} in {svg}");
    }
    assert!(!svg.contains("unmapped") && svg.trim_end().ends_with("</svg>"));
}

proptest! {
    #[test]
    fn any_trace_has_a_picture_of_a_bounded_size(
        records in prop::collection::vec((0usize..9, any::<u64>(), 0u64..1 << 18, 1u64..1 << 18, any::<u32>()), 0..400)
    ) {
        let records = records.into_iter().map(|(kind, at, page, pages, latency)| Record {
            at: Duration::from_nanos(at),
            latency: Duration::from_nanos(latency.into()),
            ..record(Kind::ALL[kind], 0, page, pages.min((1 << 18) - page))
        });
        let trace = trace(records.collect());
        prop_assert!(draw(&trace).len() < 4 << 20);
        let _ = summary(&trace);
    }
}
