//! Statements that must hold for any input, not just for the rows of a table.

use std::time::Duration;

use poolgate_core::account::{AccountId, Caps, Kind, Speaks, Surface};
use poolgate_core::availability::{Account, Ask, availability};
use poolgate_core::choose::{Choice, choose};
use poolgate_core::health::{Cause, Health};
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
    ) -> Account {
        let mut quota = Quota::default();
        quota.merge(&readings.unwrap_or_default(), Source::Poll, NOW);
        let mut health = Health::default();
        (0..errors).for_each(|_| health.error(NOW));
        if let Some(seconds) = cooling {
            health.block(Cause::Rate, NOW.plus(Duration::from_secs(seconds)), NOW);
        }
        Account {
            id: AccountId(id),
            kind: Kind::Codex,
            speaks: Speaks::default(),
            priority,
            plan: None,
            weight,
            caps: Caps::default(),
            models: vec![],
            max_in_flight,
            paused,
            has_credential: true,
            quota,
            health,
            in_flight,
            probing_until: None,
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

    #[test]
    fn readings_of_one_source_and_one_reset_commute(
        used in prop::collection::vec(0.0..100.0_f64, 1..6), shift in 0_usize..6,
    ) {
        let merged = |order: &[f64]| {
            let mut quota = Quota::default();
            for used in order {
                let reading = Reading {
                    limit: Limit::Ordinary,
                    length: FIVE_HOURS,
                    used: Fraction::from_percent(*used),
                    resets_at: Some(NOW.plus(FIVE_HOURS)),
                };
                quota.merge(&[reading], Source::Answer, NOW);
            }
            quota
        };
        let mut rotated = used.clone();
        rotated.rotate_left(shift % used.len());
        prop_assert_eq!(merged(&used), merged(&rotated));
    }
}
