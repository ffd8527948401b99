use std::time::Duration;

use super::*;
use crate::quota::{FIVE_HOURS, Limit, Reading, Source, WEEK};

pub const NOW: Timestamp = Timestamp(1_000_000_000);

pub fn later(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

pub fn account(id: i64) -> Account {
    Account {
        id: AccountId(id),
        kind: Kind::Codex,
        speaks: Speaks::default(),
        priority: 0,
        plan: None,
        weight: 1.0,
        caps: Caps::default(),
        models: vec![],
        max_in_flight: 0,
        paused: false,
        has_credential: true,
        quota: Quota::default(),
        health: Health::default(),
        in_flight: 0,
        probing_until: None,
    }
}

/// An account with shares used of the 5-hour and weekly windows, which reset in 1 h and 24 h.
pub fn used(id: i64, five_hour: f64, weekly: f64) -> Account {
    let window = |length, percent, resets_at| Reading {
        limit: Limit::Ordinary,
        length,
        used: Fraction::from_percent(percent),
        resets_at: Some(resets_at),
    };
    let mut account = account(id);
    let readings =
        [window(FIVE_HOURS, five_hour, later(3600)), window(WEEK, weekly, later(86_400))];
    account.quota.merge(&readings, Source::Poll, NOW);
    account
}

const ASK: Ask<'static> = Ask { surface: Surface::Responses, model: "gpt-5.5", gate: None };

fn with(change: impl FnOnce(&mut Account)) -> Account {
    let mut account = account(1);
    change(&mut account);
    account
}

#[test]
fn takes_what_is_allowed_and_no_more_than_was_learnt() {
    let learnt = |allowed, in_flight| {
        with(|account| {
            account.max_in_flight = allowed;
            // Of eight at once two were refused: four are left.
            account.health.concurrency.refused(8, NOW, NOW);
            account.health.concurrency.refused(8, NOW, NOW);
            account.in_flight = in_flight;
        })
    };
    let allowed = |allowed, in_flight| {
        with(|account| (account.max_in_flight, account.in_flight) = (allowed, in_flight))
    };
    let cases = [
        ("any number", allowed(0, 1000), Ok(Fit::Ready)),
        ("allowed", allowed(3, 2), Ok(Fit::Ready)),
        ("as many as allowed", allowed(3, 3), Err(Reason::Busy)),
        ("below what was learnt", learnt(0, 3), Ok(Fit::Ready)),
        ("as many as learnt", learnt(0, 4), Err(Reason::Busy)),
        ("the learnt one is lower", learnt(6, 4), Err(Reason::Busy)),
        ("the allowed one is lower", learnt(2, 2), Err(Reason::Busy)),
    ];
    for (name, account, want) in cases {
        assert_eq!(availability(&account, ASK, NOW), want, "{name}");
        let counting = Ask { surface: Surface::CountTokens, ..ASK };
        let claude = Account { kind: Kind::Claude, ..account };
        assert_eq!(availability(&claude, counting, NOW), Ok(Fit::Ready), "{name}, counting tokens");
    }
}

#[test]
fn says_no_for_one_reason_at_a_time() {
    let cases = [
        ("nothing known", account(1), Ok(Fit::Ready)),
        ("sub2api C12: one percent is no threshold", used(1, 1.0, 1.0), Ok(Fit::Ready)),
        ("99 % is the cap", used(1, 99.0, 20.0), Err(Reason::Capped { until: Some(later(3600)) })),
        (
            "sub2api P6: at 99 % of 100",
            {
                let mut account = used(1, 99.0, 99.0);
                account.caps = Caps { five_hour: Fraction::ONE, weekly: Fraction::ONE };
                account
            },
            Ok(Fit::Ready),
        ),
        (
            "sub2api P7: each window has its own cap",
            {
                let mut account = used(1, 99.5, 60.0);
                let half = Fraction::from_ppm(500_000);
                account.caps = Caps { five_hour: Fraction::ONE, weekly: half };
                account
            },
            Err(Reason::Capped { until: Some(later(86_400)) }),
        ),
        ("sub2api P2: plenty left", used(1, 10.0, 20.0), Ok(Fit::Ready)),
        ("wrong kind", with(|a| a.kind = Kind::Claude), Err(Reason::Unfit)),
        ("codex-lb F3: paused", with(|a| a.paused = true), Err(Reason::Paused)),
        ("no credential", with(|a| a.has_credential = false), Err(Reason::Unavailable)),
        ("other models", with(|a| a.models = vec!["o*".into()]), Err(Reason::NotAllowed)),
        ("this model", with(|a| a.models = vec!["gpt-*".into()]), Ok(Fit::Ready)),
        (
            "stopped",
            with(|a| a.health.stop = Some(Stop::Deactivated)),
            Err(Reason::Stopped(Stop::Deactivated)),
        ),
        (
            "cooling",
            with(|a| a.health.block(Cause::Rate, later(9), NOW)),
            Err(Reason::Cooling { cause: Cause::Rate, until: later(9) }),
        ),
        (
            "cooled",
            with(|a| {
                a.health.block(Cause::Rate, NOW, NOW.minus(Duration::from_secs(5)));
            }),
            Ok(Fit::Ready),
        ),
        (
            "model cooling",
            with(|a| a.health.model_missing("gpt-5.5", NOW)),
            Err(Reason::Model { cause: ModelCause::Missing, until: later(1800) }),
        ),
        ("other model cooling", with(|a| a.health.model_missing("gpt-6", NOW)), Ok(Fit::Ready)),
        (
            "spec §4: three errors",
            with(|a| (0..3).for_each(|_| a.health.error(NOW, NOW))),
            Err(Reason::Backoff { until: later(30) }),
        ),
        (
            "sub2api P3: spent for the week",
            used(1, 20.0, 100.0),
            Err(Reason::Exhausted { until: Some(later(86_400)) }),
        ),
        (
            "sub2api P1: capped",
            used(1, 99.5, 20.0),
            Err(Reason::Capped { until: Some(later(3600)) }),
        ),
        (
            "sub2api R8: both spent, the later reset counts",
            used(1, 100.0, 100.0),
            Err(Reason::Exhausted { until: Some(later(86_400)) }),
        ),
        (
            "full",
            with(|a| {
                a.max_in_flight = 2;
                a.in_flight = 2;
            }),
            Err(Reason::Busy),
        ),
    ];
    for (name, account, want) in cases {
        assert_eq!(availability(&account, ASK, NOW), want, "{name}");
    }
}

/// multiplexer 18.2 #28, sub2api P8, P16.
#[test]
fn a_reset_frees_the_window_by_itself() {
    let account = used(1, 100.0, 10.0);
    assert!(availability(&account, ASK, later(3599)).is_err());
    assert_eq!(availability(&account, ASK, later(3600)), Ok(Fit::Ready));
}

/// sub2api P9–P13, P15, P19. That a timestamp is missing (P12, P14) cannot happen: a window is
/// stored with it or not at all.
#[test]
fn a_stale_snapshot_lets_one_request_find_out() {
    let hours = |n| NOW.plus(Duration::from_hours(n));
    let mut poisoned = account(1);
    let reading = Reading {
        limit: Limit::Ordinary,
        length: WEEK,
        used: Fraction::from_percent(99.0),
        resets_at: Some(hours(100)),
    };
    poisoned.quota.merge(std::slice::from_ref(&reading), Source::Answer, NOW);
    let capped = Err(Reason::Capped { until: Some(hours(100)) });
    let just_before = hours(2).minus(Duration::from_millis(1));
    assert_eq!(availability(&poisoned, ASK, just_before), capped, "P9, P11: fresh: paused");
    assert_eq!(
        availability(&poisoned, ASK, hours(2)),
        Ok(Fit::Probe),
        "P10, P15: exactly 2 h is stale"
    );
    poisoned.probing_until = Some(hours(3));
    let probing = Err(Reason::Probing { until: hours(3) });
    assert_eq!(availability(&poisoned, ASK, hours(2)), probing, "P17: one at a time");
    assert_eq!(availability(&poisoned, ASK, hours(3)), Ok(Fit::Probe), "the lease ends");
    let mut served = poisoned.clone();
    served.quota.merge(std::slice::from_ref(&reading), Source::Answer, hours(3));
    assert_eq!(availability(&served, ASK, hours(3)), capped, "P13, P19: still so: paused again");
    let healed = Reading { used: Fraction::from_percent(5.0), ..reading };
    poisoned.quota.merge(&[healed], Source::Poll, hours(3));
    assert_eq!(availability(&poisoned, ASK, hours(3)), Ok(Fit::Ready), "healed");
}

/// codex-lb F1–F6, F10–F14, Q1–Q6, Q10–Q15.
#[test]
fn gated_models_are_judged_by_their_own_limit() {
    let gate = crate::gate::spark();
    let ask = Ask { model: "gpt-5.3-codex-spark", gate: Some(&gate), ..ASK };
    let spent_for_the_week = || used(1, 20.0, 100.0);
    let row = |mut account: Account, percent: f64, at: Timestamp| {
        let reading = Reading {
            limit: Limit::Named("codex_bengalfox".into()),
            length: FIVE_HOURS,
            used: Fraction::from_percent(percent),
            resets_at: Some(later(9000)),
        };
        account.quota.merge(&[reading], Source::Poll, at);
        account
    };
    let with = |mut account: Account, change: fn(&mut Account)| {
        change(&mut account);
        account
    };
    let blocked = |cause: Cause| {
        let mut account = row(account(1), 10.0, NOW);
        account.health.block(cause, later(5000), NOW);
        account
    };
    let after_rest = later(120);
    assert_eq!(availability(&row(spent_for_the_week(), 10.0, NOW), ask, NOW), Ok(Fit::Ready), "F1");
    assert!(availability(&row(spent_for_the_week(), 10.0, NOW), ASK, NOW).is_err(), "F2");
    let paused = with(row(account(1), 10.0, NOW), |a| a.paused = true);
    assert_eq!(availability(&paused, ask, NOW), Err(Reason::Paused), "F3");
    let rate = blocked(Cause::Rate);
    assert!(availability(&rate, ask, after_rest).is_err(), "F4");
    let quota = blocked(Cause::Quota);
    let resting = Reason::Cooling { cause: Cause::Quota, until: after_rest };
    assert_eq!(availability(&quota, ask, later(119)), Err(resting), "F5: resting");
    assert_eq!(availability(&quota, ask, after_rest), Ok(Fit::Ready), "F5: rested");
    assert!(availability(&quota, ASK, after_rest).is_err(), "F5: ordinary requests wait");
    let failing = with(quota, |a| (0..3).for_each(|_| a.health.error(later(120), later(120))));
    assert!(availability(&failing, ask, after_rest).is_err(), "F6, Q11");
    let renewed = later(86_400);
    assert_eq!(availability(&spent_for_the_week(), ASK, renewed), Ok(Fit::Ready), "F12, Q13");
    let until = Some(later(9000));
    let spent = row(account(1), 100.0, NOW);
    assert_eq!(availability(&spent, ask, NOW), Err(Reason::Exhausted { until }), "Q14");
    assert_eq!(availability(&spent, ASK, NOW), Ok(Fit::Ready), "Q12: nothing ordinary");
    let old = row(account(1), 100.0, NOW.minus(Duration::from_hours(3)));
    assert_eq!(availability(&old, ask, NOW), Ok(Fit::Ready), "Q15: only a fresh row excludes");
    let alias = Reading {
        limit: Limit::Named("GPT-5.3-Codex-Spark".into()),
        length: FIVE_HOURS,
        used: Fraction::from_percent(100.0),
        resets_at: until,
    };
    let mut aliased = row(account(1), 10.0, NOW);
    aliased.quota.merge(&[alias], Source::Poll, NOW);
    assert_eq!(availability(&aliased, ask, NOW), Err(Reason::Exhausted { until }), "F14");
    let never_seen = availability(&spent_for_the_week(), ask, NOW);
    assert_eq!(never_seen, Ok(Fit::Ready), "spec §4: a missing row does not exclude");
    let exempt = with(row(spent_for_the_week(), 10.0, NOW), |a| a.plan = Some("plus".into()));
    assert!(
        availability(&exempt, ask, NOW).is_err(),
        "F10, Q10: exempt plans follow the ordinary rules"
    );
}
