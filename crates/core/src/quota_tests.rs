use super::*;

const NOW: Timestamp = Timestamp(1_000_000_000);

#[expect(clippy::unnecessary_wraps, reason = "resets are optional wherever it is used")]
fn at(minutes: i64) -> Option<Timestamp> {
    Some(Timestamp(NOW.0 + minutes * 60_000))
}

fn reading(used: Option<f64>, resets_at: Option<Timestamp>) -> Reading {
    Reading {
        limit: Limit::Ordinary,
        length: FIVE_HOURS,
        used: used.and_then(Fraction::from_percent),
        resets_at,
    }
}

fn quota_seen(used: f64, resets_at: Option<Timestamp>, seen_at: Timestamp) -> Quota {
    let mut quota = Quota::default();
    quota.merge(&[reading(Some(used), resets_at)], Source::Poll, seen_at);
    quota
}

/// Seen an hour ago.
fn quota(used: f64, resets_at: Option<Timestamp>) -> Quota {
    quota_seen(used, resets_at, NOW.minus(Duration::from_hours(1)))
}

#[test]
fn used_means_used() {
    // sub2api C1 and C12: 1 is one percent, never 99 and never the whole.
    let quota = quota(1.0, at(60));
    assert_eq!(quota.five_hour().map(|w| w.used_at(NOW).percent()), Some(1.0));
}

#[test]
#[rustfmt::skip]
fn merges() {
    use Source::{Answer, Poll};
    let cases = [
        ("rises",                          Answer, reading(Some(50.0), at(60)),  50.0, at(60)),
        ("multiplexer 18.2 #18: a late header does not lower",   Answer, reading(Some(10.0), at(60)),  40.0, at(60)),
        ("a poll lowers",                  Poll,   reading(Some(10.0), at(60)),  10.0, at(60)),
        ("sub2api R15: a moved reset lowers",  Answer, reading(Some(10.0), at(300)), 10.0, at(300)),
        ("jitter is no move",              Answer, reading(Some(10.0), at(61)),  40.0, at(60)),
        ("headers never move it back",     Answer, reading(Some(10.0), at(10)),  40.0, at(60)),
        ("a window that is over fills no other", Answer, reading(Some(95.0), at(-2)), 40.0, at(60)),
        ("a poll may say that it is over", Poll,   reading(Some(95.0), at(-2)),  95.0, at(-2)),
        ("one that runs may",              Answer, reading(Some(95.0), at(10)),  95.0, at(60)),
        ("a reset out of reach is none",   Answer, reading(Some(50.0), at(361)), 50.0, at(60)),
        ("nor is it for a poll",           Poll,   reading(Some(10.0), at(361)), 10.0, at(60)),
        ("a poll may move it back",        Poll,   reading(Some(10.0), at(10)),  10.0, at(10)),
        ("a missing reset is kept",        Answer, reading(Some(41.0), None),    41.0, at(60)),
        ("multiplexer 18.2 #19: a missing share is kept",  Answer, reading(None, at(300)),       40.0, at(300)),
    ];
    for (name, source, reading, used, resets_at) in cases {
        let mut quota = quota(40.0, at(60));
        quota.merge(&[reading], source, NOW);
        let window = quota.five_hour().expect("the window");
        assert_eq!((window.used.percent(), window.resets_at), (used, resets_at), "{name}");
        assert_eq!(window.observed_at, NOW, "{name}: observed");
    }
}

#[test]
fn a_passed_reset_empties_the_window_and_lets_it_fall() {
    let mut quota = quota(99.0, at(-1));
    assert_eq!(quota.five_hour().map(|w| w.used_at(NOW)), Some(Fraction::ZERO));
    quota.merge(&[reading(Some(3.0), at(299))], Source::Answer, NOW);
    assert_eq!(quota.five_hour().map(|w| w.used.percent()), Some(3.0));
}

#[test]
fn what_is_consumed_after_a_reset_counts_though_no_new_one_is_named() {
    for source in [Source::Answer, Source::Poll] {
        let mut quota = quota(99.0, at(-1));
        quota.merge(&[reading(None, None)], source, NOW);
        assert_eq!(quota.five_hour().map(|w| w.used_at(NOW)), Some(Fraction::ZERO), "nothing new");
        quota.merge(&[reading(Some(3.0), None)], source, NOW);
        let seen = |quota: &Quota| {
            quota.five_hour().map(|w| (w.used_at(NOW).percent(), w.resets_at)).unwrap()
        };
        assert_eq!(seen(&quota), (3.0, None), "{source:?}");
        quota.merge(&[reading(Some(4.0), at(299))], source, NOW);
        assert_eq!(seen(&quota), (4.0, at(299)), "{source:?}: the next one that is named");
    }
}

#[test]
fn a_new_reset_alone_empties_a_window_that_is_over() {
    for source in [Source::Answer, Source::Poll] {
        let mut quota = quota(99.0, at(-1));
        quota.merge(&[reading(None, at(299))], source, NOW);
        let window = quota.five_hour().unwrap();
        assert_eq!(
            (window.used_at(NOW), window.resets_at),
            (Fraction::ZERO, at(299)),
            "sub2api R15"
        );
    }
}

#[test]
fn a_late_answer_empties_no_window_whose_reset_is_unknown() {
    let mut quota = quota(100.0, None);
    quota.merge(&[reading(Some(95.0), at(-1))], Source::Answer, NOW);
    assert_eq!(quota.five_hour().map(|w| w.used_at(NOW)), Some(Fraction::ONE));
    let mut stale = quota_seen(100.0, None, NOW.minus(Duration::from_hours(3)));
    stale.merge(&[reading(Some(5.0), at(0))], Source::Answer, NOW);
    assert_eq!(
        stale.five_hour().map(|w| w.used_at(NOW)),
        Some(Fraction::ZERO),
        "it was tried again"
    );
}

#[test]
fn a_known_reset_out_of_reach_gives_way() {
    let of_a_clock_that_was_ahead = Window {
        limit: Limit::Ordinary,
        length: FIVE_HOURS,
        used: Fraction::from_percent(99.0).unwrap(),
        resets_at: at(10_000),
        observed_at: NOW,
    };
    let mut quota = Quota::new(vec![of_a_clock_that_was_ahead]);
    quota.merge(&[reading(Some(3.0), at(299))], Source::Answer, NOW);
    let window = quota.five_hour().unwrap();
    assert_eq!((window.used.percent(), window.resets_at), (3.0, at(299)));
}

#[test]
fn a_stale_snapshot_gives_way_to_a_header() {
    let resets_at = at(600);
    let mut poisoned = quota_seen(99.0, resets_at, NOW.minus(Duration::from_hours(2)));
    poisoned.merge(&[reading(Some(3.0), resets_at)], Source::Answer, NOW);
    assert_eq!(poisoned.five_hour().map(|w| w.used.percent()), Some(3.0));
}

#[test]
fn windows_are_found_by_length() {
    let mut quota = Quota::default();
    let weekly = Reading { length: WEEK, ..reading(Some(7.0), None) };
    quota.merge(&[weekly, reading(Some(3.0), None)], Source::Answer, NOW);
    assert_eq!(quota.five_hour().map(|w| w.used.percent()), Some(3.0));
    assert_eq!(quota.weekly().map(|w| w.used.percent()), Some(7.0));
}

#[test]
fn a_named_limit_is_not_the_ordinary_one() {
    let mut quota = Quota::default();
    let named = Reading { limit: Limit::Named("codex_x".into()), ..reading(Some(100.0), None) };
    quota.merge(&[named], Source::Answer, NOW);
    assert_eq!(quota.five_hour(), None);
}

#[test]
fn one_windows_reading_leaves_the_other_alone() {
    let mut quota = quota(40.0, at(60));
    let weekly = Reading { length: WEEK, ..reading(Some(7.0), at(9000)) };
    quota.merge(&[weekly], Source::Answer, NOW);
    let five = quota.five_hour().expect("still there");
    assert_eq!((five.used.percent(), five.resets_at), (40.0, at(60)), "multiplexer 18.2 #19");
    assert_eq!(five.observed_at, NOW, "sub2api P13: but the limit has been heard of");
}

#[test]
fn what_carries_no_window_refreshes_nothing() {
    let mut quota = quota(40.0, at(60));
    let before = quota.clone();
    assert_eq!(quota.merge(&[], Source::Answer, NOW), Merged::default());
    let named = Reading { limit: Limit::Named("codex_x".into()), ..reading(Some(1.0), None) };
    quota.merge(&[named], Source::Answer, NOW);
    assert_eq!(quota.five_hour(), before.five_hour(), "multiplexer 18.2 #17");
}

#[test]
fn an_overtaken_poll_changes_nothing() {
    let mut quota = quota_seen(40.0, at(60), NOW);
    let earlier = NOW.minus(Duration::from_secs(5));
    quota.merge(&[reading(Some(10.0), at(10))], Source::Poll, earlier);
    let window = quota.five_hour().expect("the window");
    assert_eq!((window.used.percent(), window.resets_at), (40.0, at(60)));
}

#[test]
#[rustfmt::skip]
fn tells_changes_that_people_can_see() {
    let just = |percent: f64| reading(Some(percent), at(60));
    let cases = [
        ("nothing",                       just(40.0),               false, 0),
        ("rounds alike at 0.01 %",        just(40.004),             true,  0),
        ("rounds differently",            just(40.006),             true,  1),
        ("multiplexer 18.4 #45: a reset only", reading(None, at(90)), true, 1),
        ("a reset that has not moved",    reading(None, at(61)),    false, 0),
    ];
    for (name, reading, changed, seen) in cases {
        let merged = quota(40.0, at(60)).merge(&[reading], Source::Answer, NOW);
        assert_eq!((merged.changed, merged.seen.len()), (changed, seen), "spec §3.6: {name}");
    }
    let first = Quota::default().merge(&[just(0.0)], Source::Poll, NOW);
    assert_eq!(first.seen.len(), 1, "a new window with a reset");
    let empty = Quota::default().merge(&[reading(Some(0.0), None)], Source::Poll, NOW);
    assert_eq!((empty.changed, empty.seen.len()), (true, 0), "nothing to tell of an empty one");
    let mut drifting = quota(40.0, at(60));
    let steps = [40.003, 40.006, 40.009, 40.012].map(|percent| {
        drifting.merge(&[just(percent)], Source::Answer, NOW).seen.len()
    });
    assert_eq!(steps, [0, 1, 0, 0], "once for each step of 0.01 %");
}

#[test]
fn the_long_window_is_the_one_nearest_a_week() {
    let month = Duration::from_hours(720);
    let long = |length: Duration, percent| Reading { length, ..reading(Some(percent), None) };
    let found = |readings: &[Reading]| {
        let mut quota = Quota::default();
        quota.merge(readings, Source::Poll, NOW);
        quota.weekly().map(|w| w.used.percent())
    };
    assert_eq!(found(&[long(month, 9.0)]), Some(9.0), "only a monthly one");
    assert_eq!(found(&[long(month, 9.0), long(WEEK, 7.0)]), Some(7.0));
    assert_eq!(found(&[reading(Some(3.0), None)]), None);
}

#[test]
fn a_list_without_a_limit_ends_it() {
    let named = |name: &str| Limit::Named(name.to_owned());
    let mut quota = quota(40.0, at(60));
    let rows = ["a", "b"].map(|name| Reading { limit: named(name), ..reading(Some(5.0), None) });
    quota.merge(&rows, Source::Poll, NOW);
    let listed = ["b".to_owned()];
    quota.keep_named(&listed, NOW.minus(Duration::from_secs(1)));
    assert_eq!(quota.windows().len(), 3, "a list that was overtaken");
    quota.keep_named(&listed, NOW);
    let left: Vec<&Limit> = quota.windows().iter().map(|w| &w.limit).collect();
    assert_eq!(left, [&Limit::Ordinary, &named("b")], "codex-lb F15");
}

/// spec §3.2: a free account whose month is spent becomes a paid one.
#[test]
#[rustfmt::skip]
fn a_poll_ends_the_windows_that_it_no_longer_names() {
    use Source::{Answer, Poll};
    let month = Duration::from_hours(720);
    let of = |length, used, resets_at| Reading { length, ..reading(used, resets_at) };
    let paid = [of(FIVE_HOURS, Some(3.0), at(299)), of(WEEK, Some(1.0), at(10_000))];
    let other = |r: &Reading| Reading { limit: Limit::Named("codex_x".into()), ..r.clone() };
    let others = paid.each_ref().map(other);
    let cases: [(&str, Source, &[Reading], i64, &[Duration]); 6] = [
        ("a poll names others",           Poll,   &paid,                                0, &[FIVE_HOURS, WEEK]),
        ("it was asked before the last answer", Poll, &paid,                          -61, &[FIVE_HOURS, WEEK, month]),
        ("a header says less than all",   Answer, &paid,                                0, &[FIVE_HOURS, WEEK, month]),
        ("a poll that names no window",   Poll,   &[],                                  0, &[month]),
        ("one that tells a reset only",   Poll,   &[of(FIVE_HOURS, None, at(299))],     0, &[month]),
        ("one that tells of another limit", Poll, &others,                              0, &[month]),
    ];
    for (name, source, readings, minute, want) in cases {
        let mut quota = Quota::default();
        quota.merge(&[of(month, Some(100.0), at(36_000))], Poll, NOW.minus(Duration::from_hours(1)));
        let merged = quota.merge(readings, source, at(minute).unwrap());
        let left: Vec<Duration> = quota.ordinary().map(|w| w.length).collect();
        assert_eq!(left, want, "{name}");
        assert_eq!(merged.changed, left != [month] || readings == others, "{name}: to be saved");
    }
}

#[test]
fn lengths_that_differ_by_a_rounding_are_of_one_window() {
    let minutes = |count, used| Reading {
        length: Duration::from_mins(count),
        ..reading(Some(used), at(9000))
    };
    let mut quota = Quota::default();
    for (readings, want) in [
        ([minutes(299, 3.0), minutes(10_079, 7.0)], [3.0, 7.0]),
        ([minutes(300, 4.0), minutes(10_080, 8.0)], [4.0, 8.0]),
        ([minutes(10_080, 9.0), minutes(299, 5.0)], [5.0, 9.0]),
    ] {
        quota.merge(&readings, Source::Answer, NOW);
        let used: Vec<f64> = quota.windows().iter().map(|w| w.used.percent()).collect();
        assert_eq!(used, want);
    }
    // Stored side by side by an older version.
    let window = |count, used| Window {
        limit: Limit::Ordinary,
        length: Duration::from_mins(count),
        used: Fraction::from_percent(used).unwrap(),
        resets_at: at(9000),
        observed_at: NOW,
    };
    let mut quota = Quota::new(vec![window(299, 100.0), window(300, 4.0), window(360, 9.0)]);
    quota.merge(&[minutes(300, 5.0)], Source::Poll, at(1).unwrap());
    let left: Vec<f64> = quota.windows().iter().map(|w| w.used.percent()).collect();
    assert_eq!(left, [5.0]);
}
