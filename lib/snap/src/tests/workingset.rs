use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const BUILD: Uuid = Uuid::from_u128(0x1111);

fn pages(pages: &BTreeSet<u64>) -> Ranges {
    pages.iter().map(|page| page * PAGE..(page + 1) * PAGE).collect()
}

fn set_of(runs: &[BTreeSet<u64>]) -> WorkingSet {
    let mut set = WorkingSet::new(BUILD);
    runs.iter().for_each(|run| set.add_run(&pages(run)));
    set
}

fn likely(set: &WorkingSet) -> BTreeSet<u64> {
    set.likely().ranges().flat_map(|range| range.start / PAGE..range.end / PAGE).collect()
}

#[test]
fn the_file_says_which_of_the_last_runs_asked_for_what() {
    let set = set_of(&[BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 9])]);
    assert_eq!(
        set.to_json(),
        r#"{"version":1,"build":"00000000-0000-0000-0000-000000001111","runs":2,"ranges":[[4096,4096,2],[8192,8192,3],[36864,4096,1]]}"#
    );
}

#[test]
fn a_page_stays_while_half_of_the_runs_ask_for_it() {
    let once = BTreeSet::from([1, 2]);
    let other = BTreeSet::from([2, 3]);
    assert_eq!(likely(&set_of(std::slice::from_ref(&once))), once);
    assert_eq!(likely(&set_of(&[once.clone(), other.clone()])), BTreeSet::from([1, 2, 3]));
    assert_eq!(likely(&set_of(&[once.clone(), other.clone(), other.clone()])), other);
    assert!(likely(&WorkingSet::new(BUILD)).is_empty());
}

#[test]
fn a_set_is_bounded_and_keeps_what_most_runs_asked_for() {
    let all = BTreeSet::from_iter((0..200_000).step_by(2));
    let some = BTreeSet::from_iter((150_000..200_000).step_by(2));
    let set = set_of(&[all, some.clone()]);
    assert_eq!(set.ranges.len(), MOST_RANGES);
    assert!((set.to_json().len() as u64) < LONGEST);
    assert_eq!(WorkingSet::parse(set.to_json().as_bytes()), Ok(set.clone()));
    assert!(likely(&set).is_superset(&some));
    let mut large = WorkingSet::new(BUILD);
    large.add_run(&[0..MOST, 2 * MOST..3 * MOST].into_iter().collect());
    let often: Ranges = std::iter::once(2 * MOST..3 * MOST).collect();
    large.add_run(&often);
    assert_eq!(large.likely(), often);
}

#[test]
fn what_is_no_working_set_is_refused_with_the_reason() {
    let good = r#"{"version":1,"build":"00000000-0000-0000-0000-000000001111","runs":2,"ranges":[[4096,4096,2],[8192,4096,3]]}"#;
    assert!(WorkingSet::parse(good.as_bytes()).is_ok());
    for (from, to, reason) in [
        ("{", "", "not JSON"),
        (r#""version":1,"#, "", "has no version"),
        ("\"version\":1", "\"version\":2", "version 2 is not known"),
        ("00000000-0000", "0", "has no build"),
        ("\"runs\":2", "\"runs\":-2", "runs is -2"),
        ("\"runs\":2", "\"runs\":1", "range 0 is [4096,4096,2]"),
        ("\"ranges\"", "\"rages\"", "has no array of ranges"),
        ("[4096,4096,2]", "[4096,4096]", "range 0 is [4096,4096]"),
        ("[4096,4096,2]", "[4096,0,2]", "range 0"),
        ("[4096,4096,2]", "[4095,4096,2]", "range 0"),
        ("[4096,4096,2]", "[4096,4096,0]", "range 0"),
        ("[4096,4096,2]", "[4096,4096,258]", "range 0"),
        ("[4096,4096,2]", "[4096,8192,2]", "range 1 is [8192,4096,3]"),
        ("[8192,4096,3]", "[18446744073709547520,8192,3]", "range 1"),
    ] {
        let fault = WorkingSet::parse(good.replace(from, to).as_bytes()).unwrap_err().to_string();
        assert!(fault.contains(reason), "{fault}");
    }
    // As an older version wrote it.
    let fault = WorkingSet::parse(br#"{"ranges":[[4096,4096]]}"#).unwrap_err();
    assert_eq!(fault.to_string(), "has no version");
}

proptest! {
    #[test]
    fn it_remembers_as_a_list_of_the_last_eight_runs_does(
        runs in prop::collection::vec(prop::collection::btree_set(0u64..40, 0..25), 0..12)
    ) {
        let set = set_of(&runs);
        prop_assert_eq!(set.runs, runs.len() as u64);
        prop_assert_eq!(&WorkingSet::parse(set.to_json().as_bytes()).unwrap(), &set);
        let last: Vec<_> = runs.iter().rev().take(8).collect();
        let mut model: BTreeMap<u64, u8> = BTreeMap::new();
        for (age, run) in last.iter().enumerate() {
            run.iter().for_each(|page| *model.entry(*page).or_default() |= 1 << age);
        }
        let seen: BTreeMap<u64, u8> = set
            .ranges
            .iter()
            .flat_map(|seen| (seen.range.start / PAGE..seen.range.end / PAGE).map(|page| (page, seen.by)))
            .collect();
        prop_assert_eq!(&seen, &model);
        let half = |page: &u64| last.iter().filter(|run| run.contains(page)).count() * 2 >= last.len();
        let wanted: BTreeSet<u64> = model.into_keys().filter(half).collect();
        prop_assert_eq!(&likely(&set), &wanted);
        if let Some(run) = runs.first() {
            let Compared { hit, missed, wasted } = set.compare(&pages(run));
            let count = |pages: Vec<u64>| pages.len() as u64 * PAGE;
            prop_assert_eq!(hit, count(run.intersection(&wanted).copied().collect()));
            prop_assert_eq!(missed, count(run.difference(&wanted).copied().collect()));
            prop_assert_eq!(wasted, count(wanted.difference(run).copied().collect()));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = WorkingSet::parse(&bytes);
    }
}
