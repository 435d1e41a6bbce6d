use super::*;
use proptest::prelude::*;

#[test]
fn ranges_that_touch_become_one() {
    let set: Ranges = [0x2000..0x3000, 0..0x1000, 0x1000..0x2000, 0x5000..0x6000, 7..7].into_iter().collect();
    assert_eq!(set.ranges().collect::<Vec<_>>(), [0..0x3000, 0x5000..0x6000]);
    assert_eq!(set.to_json(), r#"{"ranges":[[0,12288],[20480,4096]]}"#);
}

#[test]
fn what_is_no_list_of_ranges_is_refused_with_the_reason() {
    for (text, reason) in [
        ("", "not JSON"),
        ("{}", "no array"),
        ("[[0]]", "range 0 is [0]"),
        ("[[0,4096],[-1,2]]", "range 1 is [-1,2]"),
        ("[[18446744073709551615,2]]", "range 0"),
        (r#"{"ranges":[["0",1]]}"#, "range 0"),
    ] {
        let fault = Ranges::parse(text.as_bytes()).expect_err(text);
        assert!(fault.to_string().contains(reason), "{text}: {fault}");
    }
}

proptest! {
    #[test]
    fn a_set_holds_exactly_what_was_put_in(ranges in proptest::collection::vec((0u64..200, 0u64..30), 0..40), within in (0u64..230, 0u64..230)) {
        let mut model = [false; 240];
        let mut set = Ranges::new();
        for (start, length) in ranges {
            set.insert(start..start + length);
            model[start as usize..(start + length) as usize].fill(true);
        }
        for (offset, &inside) in model.iter().enumerate() {
            prop_assert_eq!(set.contains(offset as u64), inside);
        }
        prop_assert_eq!(set.bytes(), model.iter().filter(|inside| **inside).count() as u64);
        let ranges: Vec<_> = set.ranges().collect();
        prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", ranges);
        prop_assert_eq!(&Ranges::parse(set.to_json().as_bytes()).unwrap(), &set);

        let within = within.0.min(within.1)..within.0.max(within.1);
        let mut clipped = [false; 240];
        for range in set.clipped(within.clone()) {
            clipped[range.start as usize..range.end as usize].fill(true);
        }
        for (offset, &inside) in clipped.iter().enumerate() {
            prop_assert_eq!(inside, model[offset] && within.contains(&(offset as u64)));
        }
    }
}
