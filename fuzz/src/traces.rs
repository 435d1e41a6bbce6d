//! Of what a page server has written down.

use uffd::report::{draw, summary};
use uffd::trace::{Kind, Trace};

/// A trace is refused with a reason, or its records are about memory that there is, and it can be told and drawn.
pub fn trace(bytes: &[u8]) {
    match Trace::parse(bytes) {
        Err(fault) => assert!(!fault.to_string().is_empty()),
        Ok(trace) => {
            let within = |end: Option<u64>| end.is_some_and(|end| end <= trace.header.size);
            for record in &trace.records {
                assert!(within(record.offset.checked_add(record.length)) && record.kind != Kind::Full);
            }
            let faults = trace.records.iter().filter(|record| record.kind.is_fault()).count();
            let told = summary(&trace);
            assert_eq!(told["faults"]["count"], faults);
            let by_kind = told["faults"]["by_kind"].as_object().unwrap().values();
            assert_eq!(by_kind.map(|count| count.as_u64().unwrap()).sum::<u64>(), faults as u64);
            let drawn = draw(&trace);
            assert!(drawn.len() < 4 << 20 && drawn.trim_end().ends_with("</svg>"));
        }
    }
}
