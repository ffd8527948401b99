use super::*;
use crate::account::{AccountId, Caps, Speaks};
use crate::health::{Cause, Health, Stop};
use crate::quota::{FIVE_HOURS, Limit, Quota, WEEK};

const NOW: Timestamp = Timestamp(1_795_300_000_000);

fn window(length: Duration, percent: f64, hours: u64) -> Window {
    let resets_at = Some(NOW.plus(Duration::from_hours(hours)));
    let used = Fraction::from_percent(percent).unwrap();
    Window { limit: Limit::Ordinary, length, used, resets_at, observed_at: NOW }
}

/// A Codex account of that weight, with 5h and weekly percent and the hours to their resets.
fn account(weight: f64, five_hour: (f64, u64), weekly: (f64, u64)) -> Account {
    Account {
        id: AccountId(1),
        kind: Kind::Codex,
        speaks: Speaks::default(),
        priority: 0,
        plan: Some(format!("plan {weight}")),
        weight,
        caps: Caps { five_hour: Fraction::ONE, weekly: Fraction::ONE },
        models: vec![],
        max_in_flight: 0,
        paused: false,
        has_credential: true,
        quota: Quota::new(vec![
            window(FIVE_HOURS, five_hour.0, five_hour.1),
            window(WEEK, weekly.0, weekly.1),
        ]),
        health: Health::default(),
        in_flight: 0,
        probing_until: None,
    }
}

fn percents(accounts: &[Account]) -> Option<(f64, f64)> {
    let limits = Limits::of(accounts, Kind::Codex, NOW)?;
    Some((limits.five_hour?.used.percent(), limits.weekly?.used.percent()))
}

#[test]
fn is_the_mean_by_weight_of_what_the_caps_allow() {
    let half_cap = Caps { five_hour: Fraction::from_ppm(500_000), weekly: Fraction::ONE };
    let capped = |percent| Account { caps: half_cap, ..account(1.0, (percent, 1), (0.0, 1)) };
    let no_windows = Account { quota: Quota::default(), ..account(9.0, (0.0, 1), (0.0, 1)) };
    let other = Account { kind: Kind::Claude, ..account(9.0, (90.0, 1), (90.0, 1)) };
    let past = account(1.0, (80.0, 0), (40.0, 1));
    let cases = [
        ("one", vec![account(1.0, (10.0, 1), (20.0, 1))], (10.0, 20.0)),
        (
            "a plan ten times as large counts ten times",
            vec![account(10.0, (0.0, 1), (10.0, 1)), account(1.0, (55.0, 1), (32.0, 1))],
            (5.0, 12.0),
        ),
        ("half of half", vec![capped(25.0)], (50.0, 0.0)),
        ("at its cap it is full", vec![capped(50.0)], (100.0, 0.0)),
        ("beyond its cap too", vec![capped(80.0)], (100.0, 0.0)),
        ("a hair below it is not", vec![capped(49.999)], (99.99, 0.0)),
        (
            "to 0.01 percent",
            vec![account(3.0, (1.0, 1), (0.0, 1)), account(4.0, (0.0, 1), (0.0, 1))],
            (0.43, 0.0),
        ),
        ("empty past its reset", vec![past], (0.0, 40.0)),
        (
            "who told nothing is left out",
            vec![no_windows, account(1.0, (10.0, 1), (20.0, 1))],
            (10.0, 20.0),
        ),
        ("another provider's too", vec![other, account(1.0, (10.0, 1), (20.0, 1))], (10.0, 20.0)),
    ];
    for (name, accounts, want) in cases {
        assert_eq!(percents(&accounts), Some(want), "{name}");
    }
    assert_eq!(percents(&[]), None);
}

#[test]
fn is_spent_when_nobody_has_anything_left_wherever_it_is_missing() {
    let cases = [
        ("one window of one", vec![account(1.0, (100.0, 1), (20.0, 1))], true),
        (
            "one window here and another there",
            vec![account(1.0, (100.0, 1), (20.0, 1)), account(1.0, (20.0, 1), (100.0, 1))],
            true,
        ),
        (
            "somebody has",
            vec![account(1.0, (100.0, 1), (20.0, 1)), account(1.0, (99.0, 1), (99.0, 1))],
            false,
        ),
        ("until it resets", vec![account(1.0, (100.0, 0), (20.0, 1))], false),
    ];
    for (name, accounts, want) in cases {
        let limits = Limits::of(&accounts, Kind::Codex, NOW).unwrap();
        assert_eq!(limits.spent, want, "{name}");
    }
}

/// multiplexer 18.5 #52: who can give nothing neither thins nor fills the pool.
#[test]
fn multiplexer_18_5_52_only_accounts_that_serve_or_will_by_waiting_count() {
    let usable = || account(1.0, (50.0, 1), (50.0, 1));
    let idle = || account(10.0, (0.0, 1), (0.0, 1));
    let stopped = |stop| {
        let mut account = idle();
        account.health.stop = Some(stop);
        account
    };
    let blocked = |cause| {
        let mut account = account(1.0, (0.0, 1), (0.0, 1));
        account.health.block(cause, NOW.plus(FIVE_HOURS), NOW);
        account
    };
    let spent_and = |cause: Option<Cause>, errors| {
        let mut account = account(1.0, (0.0, 1), (100.0, 1));
        if let Some(cause) = cause {
            account.health.block(cause, NOW.plus(FIVE_HOURS), NOW);
        }
        for _ in 0..errors {
            account.health.error(NOW, NOW);
        }
        assert!(!matches!(state(&account, NOW), Err(Reason::Exhausted { .. })));
        account
    };
    let mut twice_blocked = blocked(Cause::Quota);
    twice_blocked.health.block(Cause::Strike(1), NOW.plus(2 * FIVE_HOURS), NOW);
    let cases = [
        ("paused", Account { paused: true, ..idle() }, 50.0),
        ("needs a login", stopped(Stop::NeedsLogin), 50.0),
        ("disabled", stopped(Stop::Disabled), 50.0),
        ("no credential", Account { has_credential: false, ..idle() }, 50.0),
        ("cooling", blocked(Cause::Strike(1)), 25.0),
        ("told to wait", blocked(Cause::Rate), 25.0),
        ("its quota is spent, though no window says so", blocked(Cause::Quota), 75.0),
        ("spent, and struck besides", spent_and(Some(Cause::Strike(1)), 0), 75.0),
        ("spent, and told to wait for longer", spent_and(Some(Cause::Rate), 0), 75.0),
        ("spent, and backing off", spent_and(None, 5), 75.0),
        ("said to be spent, and struck for longer", twice_blocked, 75.0),
        ("a full week fills its 5 hours", account(1.0, (0.0, 1), (100.0, 1)), 75.0),
        (
            "busy",
            Account { max_in_flight: 1, in_flight: 1, ..account(1.0, (0.0, 1), (0.0, 1)) },
            25.0,
        ),
    ];
    for (name, other, want) in cases {
        let got = percents(&[usable(), other]).map(|(five_hour, _)| five_hour);
        assert_eq!(got, Some(want), "{name}");
    }
    let limits = Limits::of(&[usable(), stopped(Stop::Disabled)], Kind::Codex, NOW).unwrap();
    assert_eq!((limits.weight, limits.plan.as_deref()), (1.0, Some("plan 1")));
}

#[test]
fn of_plans_that_weigh_the_same_the_free_one_is_not_told() {
    let of = |plan: &str| {
        let plan = Some(plan.to_owned()).filter(|plan| !plan.is_empty());
        Account { plan, ..account(1.0, (0.0, 1), (0.0, 1)) }
    };
    for (plans, want) in [
        (["plus", "free"], "plus"),
        (["plus", ""], "plus"),
        (["team", "plus"], "plus"),
        (["free", ""], "free"),
    ] {
        let [a, b] = plans.map(of);
        for accounts in [[&a, &b], [&b, &a]] {
            let limits = Limits::of(accounts, Kind::Codex, NOW).unwrap();
            assert_eq!(limits.plan.as_deref(), Some(want), "{plans:?}");
        }
    }
}

/// multiplexer 18.5 #53: the mean of instants does not drift while time passes.
#[test]
fn multiplexer_18_5_53_resets_ahead_are_averaged_and_stay_put() {
    let pool = [
        account(1.0, (0.0, 0), (0.0, 10)),
        account(1.0, (0.0, 2), (0.0, 20)),
        account(3.0, (0.0, 4), (0.0, 20)),
    ];
    let limits = |now| Limits::of(&pool, Kind::Codex, now).unwrap();
    let at = |hours: f64| Some(NOW.plus(Duration::from_secs_f64(hours * 3600.0)));
    let first = limits(NOW);
    assert_eq!(first.five_hour.unwrap().resets_at, at(3.5), "what is past is skipped");
    assert_eq!(first.weekly.unwrap().resets_at, at(18.0));
    assert_eq!(limits(NOW.plus(Duration::from_secs(1))), first);
    let none = [account(1.0, (0.0, 0), (0.0, 0))];
    assert_eq!(Limits::of(&none, Kind::Codex, NOW).unwrap().weekly.unwrap().resets_at, None);
}

#[test]
fn warns_by_use_and_time() {
    let share = |percent, length: Duration, passed: f64| Share {
        used: Fraction::from_percent(percent).unwrap(),
        length,
        resets_at: Some(NOW.plus(length.mul_f64(1.0 - passed))),
    };
    let cases = [
        (share(100.0, FIVE_HOURS, 0.1), Standing::Rejected),
        (share(90.0, FIVE_HOURS, 0.73), Standing::Warning),
        (share(90.0, FIVE_HOURS, 0.7), Standing::Allowed),
        (share(89.0, FIVE_HOURS, 0.9), Standing::Allowed),
        (share(75.0, WEEK, 0.61), Standing::Warning),
        (share(50.0, WEEK, 0.36), Standing::Warning),
        (share(25.0, WEEK, 0.16), Standing::Warning),
        (share(25.0, WEEK, 0.14), Standing::Allowed),
        (Share { resets_at: None, ..share(99.0, WEEK, 0.5) }, Standing::Allowed),
    ];
    for (share, want) in cases {
        assert_eq!(share.standing(NOW), want, "{share:?}");
    }
}

const MONTH: Duration = Duration::from_hours(720);

/// Of a free plan, which has a monthly window alone.
fn monthly(percent: f64, hours: u64) -> Account {
    let quota = Quota::new(vec![window(MONTH, percent, hours)]);
    Account { quota, ..account(1.0, (0.0, 1), (0.0, 1)) }
}

/// multiplexer 10.2: the total weight is of all, so an account has all of a window that it has not.
#[test]
fn who_has_no_such_window_has_all_of_it_left() {
    let plus = |five_hour, weekly| account(1.0, (five_hour, 1), (weekly, 1));
    let at_cap = |mut account: Account| {
        account.caps = Caps { five_hour: Fraction::from_ppm(500_000), ..account.caps };
        account
    };
    let heavy = Account { weight: 3.0, ..monthly(10.0, 100) };
    let cases = [
        ("plain", vec![plus(20.0, 40.0), monthly(10.0, 100)], (10.0, 25.0), false),
        ("by weight", vec![plus(100.0, 40.0), heavy], (25.0, 32.5), false),
        ("one spent", vec![plus(100.0, 40.0), monthly(10.0, 100)], (50.0, 55.0), false),
        ("the other spent", vec![plus(20.0, 40.0), monthly(100.0, 100)], (60.0, 70.0), false),
        ("both spent", vec![plus(100.0, 40.0), monthly(100.0, 100)], (100.0, 100.0), true),
        ("one capped", vec![at_cap(plus(60.0, 40.0)), monthly(10.0, 100)], (50.0, 25.0), false),
        (
            "both capped",
            vec![
                at_cap(plus(60.0, 40.0)),
                Account {
                    caps: Caps { weekly: Fraction::from_ppm(800_000), ..monthly(0.0, 1).caps },
                    ..monthly(80.0, 100)
                },
            ],
            (100.0, 70.0),
            true,
        ),
    ];
    for (name, accounts, want, spent) in cases {
        assert_eq!(percents(&accounts), Some(want), "{name}");
        let limits = Limits::of(&accounts, Kind::Codex, NOW).unwrap();
        assert_eq!(limits.spent, spent, "{name}");
    }
    let alone = Limits::of(&[monthly(10.0, 100)], Kind::Codex, NOW).unwrap();
    assert_eq!(alone.five_hour, None, "nobody has one");
}

/// Lengths are of a plan: a window of the pool is told as that of most of it, whoever is listed first.
#[test]
fn the_length_of_the_greater_weight_is_told_and_its_resets_alone() {
    let week = |weight| account(weight, (0.0, 1), (40.0, 50));
    let month = |weight| Account { weight, ..monthly(10.0, 500) };
    let rounded = |minutes, hours| {
        let quota = Quota::new(vec![window(Duration::from_mins(minutes), 40.0, hours)]);
        Account { quota, ..week(1.0) }
    };
    let past = Account { quota: Quota::new(vec![window(WEEK, 40.0, 0)]), ..week(2.0) };
    let cases = [
        ("the heavier", vec![week(2.0), month(1.0)], WEEK, Some(50)),
        ("the other one heavier", vec![week(1.0), month(2.0)], MONTH, Some(500)),
        ("together", vec![month(2.0), week(1.5), week(1.5)], WEEK, Some(50)),
        ("of equals the shorter", vec![month(1.0), week(1.0)], WEEK, Some(50)),
        ("a reset of another length is none of its", vec![past, month(1.0)], WEEK, None),
        (
            "what differs by a rounding is one length",
            vec![rounded(10_080, 40), rounded(10_079, 60), month(1.5)],
            Duration::from_mins(10_079),
            Some(50),
        ),
    ];
    for (name, mut accounts, length, hours) in cases {
        let resets_at = hours.map(|hours| NOW.plus(Duration::from_hours(hours)));
        for order in ["as listed", "the other way round"] {
            let told = Limits::of(&accounts, Kind::Codex, NOW).unwrap().weekly.unwrap();
            assert_eq!((told.length, told.resets_at), (length, resets_at), "{name}, {order}");
            accounts.reverse();
        }
    }
}
