//! Statements that must hold for any input, not just for the rows of a table.

use std::time::Duration;

use poolgate_core::account::{AccountId, Caps, Kind, Speaks, Surface};
use poolgate_core::availability::{Account, Ask, Fit, Reason, availability, last_reason};
use poolgate_core::choose::{Choice, choose};
use poolgate_core::health::{Cause, Health, Stop};
use poolgate_core::outcome::{Attempt, Outcome};
use poolgate_core::quota::{FIVE_HOURS, Limit, Quota, Reading, Source, WEEK};
use poolgate_core::strategy::{Pick, Strategy as Rule};
use poolgate_core::units::{Fraction, Timestamp};
use proptest::prelude::*;

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const ASK: Ask<'static> = Ask { surface: Surface::Responses, model: "m", gate: None };

prop_compose! {
    fn readings()(
        short in 0.0..=110.0_f64,
        weekly in 0.0..=110.0_f64,
        short_reset in -3600_i64..18_000,
        weekly_reset in -3600_i64..604_800,
    ) -> Vec<Reading> {
        let reading = |length, used, reset: i64| Reading {
            limit: Limit::Ordinary,
            length,
            used: Fraction::from_percent(used),
            resets_at: Some(Timestamp(NOW.0 + reset * 1000)),
        };
        vec![reading(FIVE_HOURS, short, short_reset), reading(WEEK, weekly, weekly_reset)]
    }
}

prop_compose! {
    fn an_account(id: i64)(
        readings in proptest::option::of(readings()),
        paused in prop::bool::weighted(0.1),
        cooling in proptest::option::weighted(0.2, 1_u64..600),
        errors in 0_u32..6,
        priority in 0..2_i32,
        weight in prop::sample::select(vec![1.0, 5.0, 10.0]),
        in_flight in 0_u32..4,
        max_in_flight in 0_u32..4,
        age_minutes in 0_u64..300,
        probing in proptest::option::weighted(0.2, 1_u64..120),
        stop in proptest::option::weighted(0.1, prop::sample::select(Stop::ALL.to_vec())),
        model_missing in prop::bool::weighted(0.1),
    ) -> Account {
        let mut quota = Quota::default();
        let seen_at = NOW.minus(Duration::from_mins(age_minutes));
        quota.merge(&readings.unwrap_or_default(), Source::Poll, seen_at);
        let mut health = Health::default();
        (0..errors).for_each(|_| health.error(NOW, NOW));
        if let Some(seconds) = cooling {
            health.block(Cause::Rate, NOW.plus(Duration::from_secs(seconds)), NOW);
        }
        health.stop = stop;
        if model_missing {
            health.model_missing(ASK.model, NOW);
        }
        let probing_until = probing.map(|seconds| NOW.plus(Duration::from_secs(seconds)));
        Account {
            id: AccountId(id),
            priority,
            weight,
            max_in_flight,
            paused,
            quota,
            health,
            in_flight,
            probing_until,
            ..blank()
        }
    }
}

fn pool() -> impl Strategy<Value = Vec<Account>> {
    (1_i64..6).prop_flat_map(|n| (0..n).map(an_account).collect::<Vec<_>>())
}

fn any_strategy() -> impl Strategy<Value = Rule> {
    prop::sample::select(Rule::ALL.to_vec())
}

proptest! {
    #[test]
    fn never_chooses_an_account_that_availability_refuses(
        pool in pool(),
        strategy in any_strategy(),
        seed in any::<u64>(),
        turn in any::<u64>(),
        home in proptest::option::of(0_i64..6),
        tried in prop::collection::vec((0_i64..6).prop_map(AccountId), 0..3),
    ) {
        let accounts: Vec<&Account> = pool.iter().collect();
        let choice = Choice {
            ask: ASK, strategy, rebalance_threshold: Some(5.0), owner: None,
            home: home.map(AccountId), tried: &tried, turn, seed, now: NOW,
        };
        let chosen = choose(&accounts, &choice);
        prop_assert_eq!(chosen, choose(&accounts, &choice), "equal input, equal answer");
        let able = |a: &Account| !tried.contains(&a.id) && availability(a, ASK, NOW).is_ok();
        match chosen {
            Ok(chosen) => prop_assert!(pool.iter().any(|a| a.id == chosen.id && able(a))),
            Err(_) if strategy == Rule::Single => prop_assert!(!able(&pool[0])),
            Err(_) => prop_assert!(!pool.iter().any(able), "someone could"),
        }
    }

    #[test]
    fn more_remaining_never_ranks_lower_under_least_used(
        a in an_account(1), percent in 0.0..100.0_f64, more in 0.0..50.0_f64,
    ) {
        let with = |used: f64| {
            let mut account = a.clone();
            account.quota = Quota::default();
            let reading = Reading {
                limit: Limit::Ordinary,
                length: WEEK,
                used: Fraction::from_percent(used),
                resets_at: Some(NOW.plus(Duration::from_hours(24))),
            };
            account.quota.merge(&[reading], Source::Poll, NOW);
            Pick { ask: ASK, turn: 0, seed: 0, now: NOW }.score(Rule::LeastUsed, &account)
        };
        prop_assert!(with(percent) >= with(percent + more));
    }

    /// Within the two hours in which nothing goes stale; some at the same instant. Resets jitter by
    /// less than a minute.
    #[test]
    fn readings_of_one_source_and_one_reset_commute(
        seen in prop::collection::vec((0.0..100.0_f64, 0_u64..4, 0_i64..25), 1..6),
        source in prop::sample::select(vec![Source::Answer, Source::Poll]),
        shift in 0_usize..6,
    ) {
        let merged = |order: &[(f64, u64, i64)]| {
            let mut quota = Quota::default();
            for (used, at, jitter) in order {
                let reading = Reading {
                    limit: Limit::Ordinary,
                    length: FIVE_HOURS,
                    used: Fraction::from_percent(*used),
                    resets_at: Some(Timestamp(NOW.plus(FIVE_HOURS).0 + jitter * 1000)),
                };
                quota.merge(&[reading], source, NOW.plus(Duration::from_mins(at * 30)));
            }
            let window = quota.five_hour().expect("one window").clone();
            (window.used, window.observed_at)
        };
        let mut rotated = seen.clone();
        rotated.rotate_left(shift % seen.len());
        prop_assert_eq!(merged(&seen), merged(&rotated));
        rotated.reverse();
        prop_assert_eq!(merged(&seen), merged(&rotated));
    }

    /// Whatever went wrong before, short of what only a person can mend: a request that then went
    /// well, and a poll that shows room, leave nothing standing.
    #[test]
    fn good_fresh_evidence_beats_older_bad_evidence(
        bad in prop::collection::vec((any_bad(), 0_u64..1000), 0..8),
        used in 90.0..100.0_f64,
    ) {
        let mut account = blank();
        let strikes = bad.iter().filter(|(outcome, _)| *outcome == Outcome::Strike).count();
        prop_assume!(strikes < 3);
        for (outcome, second) in &bad {
            let now = NOW.plus(Duration::from_secs(*second));
            let at = Attempt { ask: ASK, sent_at: now, now, refreshed: true };
            outcome.apply(&mut account, at);
            account.quota.merge(&[weekly(used)], Source::Answer, now);
        }
        let now = NOW.plus(Duration::from_secs(1001));
        Outcome::Served.apply(&mut account, Attempt { ask: ASK, sent_at: now, now, refreshed: false });
        account.quota.merge(&[weekly(5.0)], Source::Poll, now);
        prop_assert_eq!(availability(&account, ASK, now), Ok(Fit::Ready));
    }

    /// The other way round: what went well before says nothing about what goes wrong now.
    #[test]
    fn older_good_evidence_never_ends_newer_bad_evidence(bad in any_bad(), later in 1_u64..900) {
        let mut account = blank();
        let at = |second| NOW.plus(Duration::from_secs(second));
        bad.apply(&mut account, Attempt { ask: ASK, sent_at: NOW, now: at(1), refreshed: true });
        let before = account.health.clone();
        let late = Attempt { ask: ASK, sent_at: NOW, now: at(1 + later), refreshed: false };
        Outcome::Served.apply(&mut account, late);
        account.health.quota_is_left(NOW);
        prop_assert_eq!(account.health, before);
    }

    /// Every reason not to choose that has an end is over when it ends, unless another one goes on.
    #[test]
    fn a_reason_ends_when_it_says(account in an_account(1)) {
        let mut now = NOW;
        for _ in 0..12 {
            let Err(reason) = availability(&account, ASK, now) else { return Ok(()) };
            let Some(until) = reason.until() else { return Ok(()) };
            prop_assert!(now < until, "{:?} is over already", reason);
            now = until;
            prop_assert_ne!(availability(&account, ASK, now).err(), Some(reason));
        }
        prop_assert!(false, "reasons without end: {:?}", account);
    }

    /// Who waits for the last of an account's reasons waits once.
    #[test]
    fn behind_its_last_reason_an_account_serves(account in an_account(1)) {
        let Some(until) = last_reason(&account, ASK, NOW).and_then(Reason::until) else {
            return Ok(());
        };
        prop_assume!(!account.paused && account.health.stop.is_none());
        let then = availability(&account, ASK, until);
        let is_soon = matches!(then, Ok(_) | Err(Reason::Busy | Reason::Probing { .. }));
        prop_assert!(is_soon, "{:?}", then);
    }
}

fn any_bad() -> impl Strategy<Value = Outcome> {
    let until = (1_i64..100_000).prop_map(|seconds| Timestamp(NOW.0 + 1_000_000 + seconds * 1000));
    prop_oneof![
        until.clone().prop_map(|until| Outcome::QuotaSpent { until: Some(until) }),
        until.clone().prop_map(|until| Outcome::RateLimited { until }),
        until.prop_map(|until| Outcome::ModelLimited { until }),
        prop::sample::select(vec![
            Outcome::QuotaSpent { until: None },
            Outcome::Strike,
            Outcome::ModelMissing,
            Outcome::Overloaded,
            Outcome::UpstreamError,
            Outcome::Lost,
            Outcome::Broke,
            Outcome::TokenAway,
            Outcome::TokenRefused { permanent: false },
        ]),
    ]
}

fn weekly(used: f64) -> Reading {
    Reading {
        limit: Limit::Ordinary,
        length: WEEK,
        used: Fraction::from_percent(used),
        resets_at: Some(NOW.plus(WEEK)),
    }
}

fn blank() -> Account {
    Account {
        id: AccountId(1),
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
