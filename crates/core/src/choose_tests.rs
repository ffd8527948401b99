use std::time::Duration;

use super::*;
use crate::account::{Kind, Surface};
use crate::availability::tests::{NOW, account, later, used};
use crate::health::{Cause, Stop};
use crate::quota::{FIVE_HOURS, Limit, Quota, Reading, Source, WEEK, Window};
use crate::units::Fraction;

fn choice(strategy: Strategy) -> Choice<'static> {
    Choice {
        ask: Ask { surface: Surface::Responses, model: "gpt-5.5", gate: None },
        strategy,
        rebalance_threshold: None,
        owner: None,
        home: None,
        tried: &[],
        turn: 0,
        seed: 1,
        now: NOW,
    }
}

fn pick(accounts: &[Account], choice: &Choice<'_>) -> Result<i64, Refusal> {
    choose(&accounts.iter().collect::<Vec<_>>(), choice).map(|chosen| chosen.id.0)
}

fn with(mut account: Account, change: impl FnOnce(&mut Account)) -> Account {
    change(&mut account);
    account
}

#[test]
#[rustfmt::skip]
fn chooses() {
    use Strategy::{Fallback, Headroom, LeastUsed};
    let second = |a| with(a, |a| a.priority = 1);
    let spent = used(1, 10.0, 100.0);
    let home = |strategy, id| Choice { home: Some(AccountId(id)), ..choice(strategy) };
    let owner = |id| Choice { owner: Some(AccountId(id)), ..choice(Headroom) };
    let cases = [
        ("most left",               vec![used(1, 5.0, 60.0), used(2, 5.0, 20.0)], choice(LeastUsed), Ok(2)),
        ("spec §5: a tie goes to the first", vec![used(1, 5.0, 20.0), used(2, 5.0, 20.0)], choice(LeastUsed), Ok(1)),
        ("weight counts",           vec![used(1, 5.0, 20.0), with(used(2, 5.0, 60.0), |a| a.weight = 5.0)], choice(LeastUsed), Ok(2)),
        ("codex-lb E3: home before score", vec![used(1, 5.0, 60.0), used(2, 5.0, 20.0)], home(LeastUsed, 1), Ok(1)),
        ("sub2api S4: a spent home is left", vec![spent.clone(), used(2, 5.0, 20.0)],      home(LeastUsed, 1), Ok(2)),
        ("fallback: no home",       vec![used(1, 5.0, 60.0), used(2, 5.0, 20.0)], home(Fallback, 2),  Ok(1)),
        ("sub2api S2: the key comes second", vec![second(account(1)), used(2, 98.0, 98.0)], choice(Headroom),  Ok(2)),
        ("the key when all else is spent", vec![second(account(2)), spent.clone()], choice(Headroom), Ok(2)),
        ("owner only",              vec![account(1), account(2)],                 owner(2),           Ok(2)),
        ("tried is skipped",        vec![account(1), account(2)], Choice { tried: &[AccountId(1)], ..choice(Fallback) }, Ok(2)),
    ];
    for (name, accounts, choice, want) in cases {
        assert_eq!(pick(&accounts, &choice), want, "{name}");
    }
}

#[test]
#[rustfmt::skip]
fn refuses() {
    let claude = with(account(1), |a| a.kind = Kind::Claude);
    let paused = with(account(1), |a| a.paused = true);
    let broken = with(account(2), |a| a.health.stop = Some(Stop::NeedsLogin));
    let cooling = with(account(3), |a| a.health.block(Cause::Rate, later(9), NOW));
    let full = with(account(4), |a| { a.max_in_flight = 1; a.in_flight = 1; });
    let other = with(account(5), |a| a.models = vec!["o4".into()]);
    let spent = used(6, 100.0, 10.0);
    let wait = |seconds, quota| {
        let at = Some(later(seconds));
        Refusal::Later(Later { until: at, untried_until: at, quota })
    };
    let missing = with(account(7), |a| a.health.model_missing("gpt-5.5", NOW));
    let cases = [
        ("nobody",          vec![],                                Refusal::Unfit),
        ("wrong kind",      vec![claude],                          Refusal::Unfit),
        ("other models",    vec![other.clone()],                   Refusal::ModelNotAllowed),
        ("unknown model",   vec![missing, other.clone()],          Refusal::ModelMissing),
        ("operator",        vec![paused.clone(), broken.clone()],  Refusal::Operator),
        ("soonest",         vec![cooling.clone(), spent.clone()],  wait(9, false)),
        ("all quota",       vec![spent.clone(), paused, other],    wait(3600, true)),
        ("busy wins",       vec![full, spent, broken],             Refusal::Busy),
    ];
    for (name, accounts, want) in cases {
        assert_eq!(pick(&accounts, &choice(Strategy::Headroom)), Err(want), "{name}");
    }
}

/// spec §6: the earliest availability within 60 s is waited for, also where an able account was in vain.
#[test]
fn who_has_failed_on_one_waits_for_another_that_is_back_soon() {
    let cooling =
        |id, seconds: u64| with(account(id), |a| a.health.block(Cause::Rate, later(seconds), NOW));
    let paused = with(account(2), |a| a.paused = true);
    let cases: [(&str, Account, &[AccountId], Option<u64>, bool); 4] = [
        ("another is back soon", cooling(2, 9), &[AccountId(1)], Some(9), true),
        ("another is back too late", cooling(2, 90), &[AccountId(1)], Some(90), false),
        ("it failed there too", cooling(2, 9), &[AccountId(1), AccountId(2)], None, false),
        ("another needs an operator", paused, &[AccountId(1)], None, false),
    ];
    for (name, other, tried, seconds, waits) in cases {
        let tried = Choice { tried, ..choice(Strategy::Headroom) };
        let refusal = pick(&[account(1), other], &tried).unwrap_err();
        assert_eq!(refusal, Refusal::AllTried { untried_until: seconds.map(later) }, "{name}");
        let until = Patience::default().until(refusal, Duration::ZERO, NOW);
        assert_eq!(until.is_some(), waits, "{name}");
    }
}

/// spec §6: it is waited for like anyone, and not by who has failed there.
#[test]
fn an_owner_that_cannot_serve_for_a_moment_is_waited_for() {
    let owned = |tried| Choice { owner: Some(AccountId(1)), tried, ..choice(Strategy::Headroom) };
    let wait = |seconds, untried: bool, quota| {
        let until = Some(later(seconds));
        Refusal::Owner(Some(Later { until, untried_until: until.filter(|_| untried), quota }))
    };
    let cooling = |seconds: u64| {
        let block = |a: &mut Account| a.health.block(Cause::Rate, later(seconds), NOW);
        with(account(1), block)
    };
    let paused = with(cooling(9), |a| a.paused = true);
    let cases: [(&str, Account, &[AccountId], Refusal, Option<u64>); 6] = [
        ("told to wait", cooling(9), &[], wait(9, true, false), Some(9)),
        ("for long", cooling(90), &[], wait(90, true, false), None),
        ("spent", used(1, 100.0, 10.0), &[], wait(3600, true, true), None),
        ("it failed there already", cooling(9), &[AccountId(1)], wait(9, false, false), None),
        ("only an operator can help", paused, &[], Refusal::Owner(None), None),
        ("gone", account(3), &[], Refusal::Owner(None), None),
    ];
    for (name, owner, tried, want, seconds) in cases {
        let refusal = pick(&[owner, account(2)], &owned(tried)).unwrap_err();
        assert_eq!(refusal, want, "{name}");
        let until = Patience::default().until(refusal, Duration::ZERO, NOW);
        let seconds = seconds.map(|seconds| later(seconds).plus(Duration::from_millis(1)));
        assert_eq!(until, seconds, "{name}");
    }
}

/// spec §6: what is told is when an account serves again, not when the first of its reasons ends.
#[test]
#[rustfmt::skip]
fn a_refusal_ends_with_the_last_reason_of_an_account() {
    type Change = fn(&mut Account);
    let gate = crate::gate::spark();
    let cases: [(&str, Account, Change, Option<u64>, bool); 9] = [
        ("the week is spent, and told to wait", used(1, 5.0, 100.0), |a| a.health.block(Cause::Rate, later(5), NOW), Some(86_400), true),
        ("spent for less than it cools",        used(1, 100.0, 5.0), |a| a.health.block(Cause::Strike(1), later(4000), NOW), Some(4000), false),
        ("spent, and failing",                  used(1, 100.0, 5.0), |a| (0..3).for_each(|_| a.health.error(NOW, NOW)), Some(3600), true),
        ("spent, and an end that is unknown",   used(1, 5.0, 100.0), |a| {
            let unknown = a.quota.windows().iter().cloned().map(|w| Window { resets_at: None, ..w });
            a.quota = Quota::new(unknown.collect());
            a.health.block(Cause::Rate, later(5), NOW);
        }, None, true),
        ("this model is spent",                 account(1), |a| a.health.block_model("gpt-5.5", later(900), NOW), Some(900), true),
        ("and overloaded",                      account(1), |a| { a.health.block_model("gpt-5.5", later(900), NOW); a.health.overloaded("gpt-5.5", NOW, NOW); }, Some(900), true),
        ("overloaded for longer",               account(1), |a| { a.health.overloaded("gpt-5.5", NOW, NOW); a.health.block_model("gpt-5.5", later(2), NOW); }, Some(5), false),
        ("this model is spent, and cooling",    account(1), |a| { a.health.block_model("gpt-5.5", later(900), NOW); a.health.block(Cause::Rate, later(5), NOW); }, Some(900), true),
        ("the other way round",                 account(1), |a| { a.health.block_model("gpt-5.5", later(5), NOW); a.health.block(Cause::Rate, later(900), NOW); }, Some(900), false),
    ];
    for (name, account, change, until, quota) in cases {
        let account = with(account, change);
        let until = until.map(later);
        let want = Refusal::Later(Later { until, untried_until: until, quota });
        let choice = choice(Strategy::Headroom);
        assert_eq!(pick(std::slice::from_ref(&account), &choice), Err(want), "{name}");
    }
    let ask = Ask { model: "gpt-5.3-codex-spark", gate: Some(&gate), ..choice(Strategy::Single).ask };
    let gated = Choice { ask, ..choice(Strategy::Headroom) };
    let told = |seconds, quota| {
        let until = Some(later(seconds));
        Err(Refusal::Later(Later { until, untried_until: until, quota }))
    };
    let row = with(with_rows(used(1, 5.0, 100.0), (100.0, 4), None), |a| a.health.block(Cause::Rate, later(5), NOW));
    assert_eq!(pick(&[row], &gated), told(4 * 3600, true), "a gated limit, by its own windows");
    let refused = with(account(1), |a| a.health.block_model(ask.model, later(300), NOW));
    assert_eq!(pick(&[refused], &gated), told(300, true), "a gated limit, by what its upstream said");
}

/// A slot that is freed, or a probe that comes back, helps only who has not failed there.
#[test]
fn waits_for_nobody_it_has_failed_on() {
    let full = |id| with(account(id), |a| (a.max_in_flight, a.in_flight) = (1, 1));
    let probing = |id| {
        let hours_ago = NOW.minus(Duration::from_hours(3));
        with(account(id), |a| {
            let windows = used(id, 10.0, 100.0).quota;
            let old = windows.windows().iter().cloned();
            let old = old.map(|window| Window { observed_at: hours_ago, ..window });
            a.quota = Quota::new(old.collect());
            a.probing_until = Some(later(60));
        })
    };
    let one = [AccountId(1)];
    let anyone = |tried| Choice { tried, ..choice(Strategy::Headroom) };
    let owned = |tried| Choice { owner: Some(AccountId(1)), ..anyone(tried) };
    let in_vain = Refusal::AllTried { untried_until: None };
    let cases = [
        ("busy", full(1), anyone(&[]), Refusal::Busy),
        ("busy, and failed there", full(1), anyone(&one), in_vain),
        ("probing", probing(1), anyone(&[]), Refusal::Busy),
        ("probing, and failed there", probing(1), anyone(&one), in_vain),
        ("a busy owner", full(1), owned(&[]), Refusal::Busy),
        ("a busy owner, and failed there", full(1), owned(&one), in_vain),
        ("a probing owner", probing(1), owned(&[]), Refusal::Busy),
        ("a probing owner, and failed there", probing(1), owned(&one), in_vain),
    ];
    for (name, account, choice, want) in cases {
        assert_eq!(pick(&[account], &choice), Err(want), "{name}");
    }
    assert_eq!(pick(&[full(1), full(2)], &anyone(&one)), Err(Refusal::Busy), "another is busy");
}

/// multiplexer 18.3 #36.
#[test]
fn rebalance_moves_a_session_that_fell_behind_its_plans_share() {
    let rebalanced = |weight: f64, home_used: f64| {
        let home = with(used(1, 5.0, home_used), |a| a.weight = weight);
        let accounts = [home, with(used(2, 5.0, 10.0), |a| a.weight = weight)];
        let choice = Choice {
            home: Some(AccountId(1)),
            rebalance_threshold: Some(20.0),
            ..choice(Strategy::LeastUsed)
        };
        choose(&accounts.iter().collect::<Vec<_>>(), &choice).unwrap().because
    };
    let moved = Because::Rebalanced { from: AccountId(1) };
    // 2 points at weight 10, 4 at weight 5, 20 at weight 1.
    for (weight, points) in [(10.0, 2.0), (5.0, 4.0), (1.0, 20.0)] {
        assert_eq!(rebalanced(weight, 10.0 + points), Because::Home, "weight {weight}");
        assert_eq!(rebalanced(weight, 10.5 + points), moved, "weight {weight}");
    }
}

/// codex-lb E14.
#[test]
fn single_is_the_first_or_nobody() {
    let accounts = [with(account(1), |a| a.paused = true), account(2)];
    assert_eq!(pick(&accounts, &choice(Strategy::Single)), Err(Refusal::Operator));
    assert_eq!(pick(&[account(1), account(2)], &choice(Strategy::Single)), Ok(1));
}

#[test]
fn round_robin_takes_turns_and_skips_the_unable() {
    let accounts = [account(1), used(2, 100.0, 0.0), account(3)];
    let turns = (0..6)
        .map(|turn| pick(&accounts, &Choice { turn, ..choice(Strategy::RoundRobin) }).unwrap());
    assert_eq!(turns.collect::<Vec<_>>(), [1, 3, 3, 1, 3, 3]);
}

/// Accounts of another kind, of a lower priority, or for other models stand between them.
#[test]
fn round_robin_is_even_in_a_mixed_pool() {
    let others: [fn(&mut Account); 3] =
        [|a| a.kind = Kind::Claude, |a| a.priority = 1, |a| a.models = vec!["o4".into()]];
    for other in others {
        let accounts =
            [account(1), with(account(2), other), with(account(3), other), account(4), account(5)];
        let times = |id| {
            let picked = (0..30)
                .map(|turn| pick(&accounts, &Choice { turn, ..choice(Strategy::RoundRobin) }));
            picked.filter(|picked| *picked == Ok(id)).count()
        };
        assert_eq!([1, 4, 5].map(times), [10, 10, 10]);
    }
}

/// An account with a weekly window: percent used, cap in percent, minutes to its reset.
fn weekly(id: i64, used: f64, cap: u32, weight: f64, minutes: u64) -> Account {
    let mut account = account(id);
    let reading = Reading {
        limit: Limit::Ordinary,
        length: WEEK,
        used: Fraction::from_percent(used),
        resets_at: Some(NOW.plus(Duration::from_mins(minutes))),
    };
    account.quota.merge(&[reading], Source::Poll, NOW);
    account.caps.weekly = Fraction::from_ppm(cap * 10_000);
    account.weight = weight;
    account
}

#[test]
#[rustfmt::skip]
fn least_used_compares_what_is_left_to_give() {
    let hour = 60;
    let cases = [
        ("multiplexer 18.3 #34: cap less used, not used",  weekly(1, 40.0, 50, 1.0, 24 * hour), weekly(2, 60.0, 99, 1.0, 24 * hour),  2),
        ("multiplexer 18.3 #35: the heavier plan",         weekly(1, 50.0, 99, 1.0, 24 * hour), weekly(2, 50.0, 99, 10.0, 24 * hour), 2),
        ("multiplexer 18.3 #35: what would be lost first", weekly(1, 50.0, 99, 1.0, 100 * hour), weekly(2, 50.0, 99, 1.0, 2 * hour),  2),
        ("multiplexer 18.3 #35: 5 min count as an hour",   weekly(1, 50.0, 99, 1.0, hour),      weekly(2, 50.0, 99, 1.0, 5),          1),
    ];
    for (name, a, b, want) in cases {
        assert_eq!(pick(&[a, b], &choice(Strategy::LeastUsed)), Ok(want), "{name}");
    }
}

/// Rows of the gated limit: share used and hours to the reset of its 5-hour and weekly windows.
fn with_rows(mut account: Account, five: (f64, u64), week: Option<(f64, u64)>) -> Account {
    let row = |length, (used, hours): (f64, u64)| Reading {
        limit: Limit::Named("codex_bengalfox".into()),
        length,
        used: Fraction::from_percent(used),
        resets_at: Some(NOW.plus(Duration::from_hours(hours))),
    };
    let rows: Vec<Reading> =
        [Some(row(FIVE_HOURS, five)), week.map(|w| row(WEEK, w))].into_iter().flatten().collect();
    account.quota.merge(&rows, Source::Poll, NOW);
    account
}

#[test]
fn gated_requests_are_ranked_by_their_own_limit() {
    let gate = crate::gate::spark();
    let ask =
        Ask { model: "gpt-5.3-codex-spark", gate: Some(&gate), ..choice(Strategy::Single).ask };
    let gated = |strategy| Choice { ask, ..choice(strategy) };
    // The ordinary week is all but spent on A and fresh on B; the limit's own says otherwise.
    let a = with_rows(used(1, 0.0, 98.0), (10.0, 4), None);
    let b = with_rows(used(2, 0.0, 5.0), (60.0, 4), None);
    let pair = [a, b];
    assert_eq!(pick(&pair, &gated(Strategy::LeastUsed)), Ok(1), "codex-lb F8, Q8");
    assert_eq!(pick(&pair, &choice(Strategy::LeastUsed)), Ok(2), "codex-lb F2: ordinary requests");
    let soon = with_rows(weekly(1, 10.0, 99, 1.0, 5 * 24 * 60), (10.0, 1), Some((10.0, 1)));
    let late = with_rows(weekly(2, 10.0, 99, 1.0, 60), (10.0, 1), Some((10.0, 120)));
    let pair = [late, soon];
    assert_eq!(pick(&pair, &gated(Strategy::ResetDrain)), Ok(1), "codex-lb F9, Q9");
    assert_eq!(
        pick(&pair, &choice(Strategy::ResetDrain)),
        Ok(2),
        "codex-lb F9: the other way round"
    );
    let behind = |gate: f64, ordinary: f64| {
        let home = with_rows(used(1, 0.0, ordinary), (5.0, 4), Some((gate, 100)));
        let best = with_rows(used(2, 0.0, 5.0), (5.0, 4), Some((5.0, 100)));
        let home = [home, best];
        let choice = Choice {
            home: Some(AccountId(1)),
            rebalance_threshold: Some(20.0),
            ..gated(Strategy::LeastUsed)
        };
        pick(&home, &choice)
    };
    assert_eq!(behind(60.0, 5.0), Ok(2), "codex-lb Q8: its own week has fallen behind");
    assert_eq!(behind(10.0, 90.0), Ok(1), "codex-lb Q8: the ordinary one is not its own");
    let spent = with_rows(used(1, 0.0, 100.0), (10.0, 4), None);
    let home = Choice { home: Some(AccountId(1)), ..gated(Strategy::LeastUsed) };
    assert_eq!(
        pick(&[spent.clone(), account(2)], &home),
        Ok(1),
        "codex-lb F7, Q7: the home is kept"
    );
    let owner = Choice { owner: Some(AccountId(1)), home: None, ..home };
    assert_eq!(pick(&[spent, account(2)], &owner), Ok(1), "codex-lb Q7: so is the owner");
}

#[test]
#[rustfmt::skip]
fn a_session_keeps_its_home_while_it_can_serve() {
    let other_model = with(account(1), |a| a.health.model_missing("gpt-6", NOW));
    let same_model = with(account(1), |a| a.health.model_missing("gpt-5.5", NOW));
    let limited = with(account(1), |a| a.health.block(Cause::Rate, later(60), NOW));
    let full = with(account(1), |a| { a.max_in_flight = 1; a.in_flight = 1; });
    let paused = with(account(1), |a| a.paused = true);
    let cases = [
        ("sub2api S3: the same account",               account(1),  1),
        ("sub2api S5: limited for another model",      other_model, 1),
        ("limited for this model",                     same_model,  2),
        ("codex-lb E7: rate-limited",                  limited,     2),
        ("sub2api S6: its slots are full",             full,        2),
        ("codex-lb E8 is an owner; a home is no owner", paused,     2),
    ];
    let home = Choice { home: Some(AccountId(1)), ..choice(Strategy::LeastUsed) };
    for (name, first, want) in cases {
        assert_eq!(pick(&[first, used(2, 50.0, 90.0)], &home), Ok(want), "{name}");
    }
}

/// How often each of `accounts` is chosen in 3000 draws.
fn drawn(accounts: &[Account], strategy: Strategy) -> Vec<usize> {
    let mut times = vec![0; accounts.len()];
    for seed in 0..3000 {
        let id = pick(accounts, &Choice { seed, ..choice(strategy) }).unwrap();
        times[usize::try_from(id).unwrap() - 1] += 1;
    }
    times
}

#[test]
fn random_is_even_and_relative_availability_prefers_what_resets_soon() {
    let even = drawn(&[used(1, 90.0, 90.0), account(2), account(3)], Strategy::Random);
    assert!(even.iter().all(|times| (900..1100).contains(times)), "spec §5: {even:?}");
    let soon = weekly(1, 50.0, 99, 1.0, 60);
    let late = weekly(2, 50.0, 99, 1.0, 6 * 24 * 60);
    let uneven = drawn(&[soon, late], Strategy::RelativeAvailability);
    assert!(uneven[0] > 2900, "codex-lb E13: {uneven:?}");
}

#[test]
fn waits_while_someone_is_expected_soon() {
    let cooling = |seconds| {
        let at = Some(later(seconds));
        Refusal::Later(Later { until: at, untried_until: at, quota: false })
    };
    let after = |seconds| Some(later(seconds).plus(Duration::from_millis(1)));
    let tried = Refusal::Later(Later { until: after(5), untried_until: None, quota: false });
    let cases = [
        ("a slot", Refusal::Busy, 3, Some(later(10))),
        ("no slot in time", Refusal::Busy, 10, None),
        ("a short cooldown", cooling(59), 0, after(59)),
        ("a long one", cooling(60), 0, None),
        ("waited before", cooling(59), 30, after(59)),
        ("it failed there already", tried, 0, None),
        ("no hope", Refusal::Operator, 0, None),
    ];
    for (name, refusal, waited, want) in cases {
        let waited_for = Duration::from_secs(waited);
        let until = Patience::default().until(refusal, waited_for, later(waited));
        assert_eq!(until, want, "{name}");
    }
    let mut patience = Patience::default();
    let mut look =
        |refusal, waited| patience.until(refusal, Duration::from_secs(waited), later(waited));
    assert_eq!(look(cooling(30), 0), after(30));
    assert_eq!(look(Refusal::Busy, 30), Some(later(40)), "ten seconds from when it was busy");
    assert_eq!(look(Refusal::Busy, 40), None);
    assert_eq!(look(cooling(55), 41), after(55));
    assert_eq!(look(Refusal::Busy, 55), Some(later(60)), "a minute in all");
    assert_eq!(look(Refusal::Busy, 60), None);
}
