//! Properties of whole runs. The long forms, on the shipped scenarios in full and on others that are
//! not shipped, run with `make soak`.
#![expect(clippy::float_cmp, reason = "counts, and sums of whole numbers")]

mod unseen;

use std::time::Duration;

use poolgate_core::strategy::Strategy;

use super::figures::Figures;
use super::scenario::Scenario;
use super::scenario::tests::scenario;
use super::{Comparison, Demand, SHIPPED, bound, compare, run};

fn is_soak() -> bool {
    std::env::var_os("POOLGATE_SOAK").is_some()
}

fn shipped() -> impl Iterator<Item = Scenario> {
    SHIPPED.iter().map(|(name, text)| Scenario::parse(name, text).expect(name))
}

/// The same pool and load over fewer days.
fn shortened(mut scenario: Scenario, days: u64) -> Scenario {
    scenario.period = scenario.period.min(Duration::from_hours(24 * days));
    scenario
}

fn compared(scenario: &Scenario, seeds: std::ops::Range<u64>) -> Comparison {
    let demands: Vec<_> = seeds.map(|seed| (seed, Demand::of(scenario, seed))).collect();
    compare(scenario, &Strategy::ALL, &demands)
}

/// Percent points of wanted turns that `headroom` loses more than the best strategy, and its name.
fn behind(comparison: &Comparison) -> (f64, &'static str) {
    let rows = &comparison.strategies;
    let headroom = rows.iter().find(|row| row.strategy == "headroom").expect("it was run");
    let best = rows.iter().min_by(|a, b| a.lost_percent.total_cmp(&b.lost_percent));
    let best = best.expect("there are strategies");
    (headroom.lost_percent - best.lost_percent, best.strategy)
}

#[test]
fn what_is_wanted_is_served_or_lost_and_never_more_than_the_bound() {
    for scenario in shipped().map(|scenario| shortened(scenario, 4)) {
        let demand = Demand::of(&scenario, 11);
        let most = bound(&scenario, &demand);
        for strategy in [Strategy::Headroom, Strategy::LeastUsed, Strategy::Single] {
            let figures: Figures = run(&scenario, &demand, strategy, 11);
            let name = format!("{} by {}", scenario.name, strategy.name());
            assert!(figures.wanted > 100.0 && figures.served > 0.0, "{name}: {figures:?}");
            assert_eq!(figures.wanted, figures.served + figures.lost, "{name}");
            assert!(
                figures.served_units <= most + 1e-6,
                "{name}: {} > {most}",
                figures.served_units
            );
            assert!(figures.unused_units <= figures.reset_units, "{name}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_figures() {
    let scenario = shortened(shipped().next().expect("one is shipped"), 3);
    let figures = |seed| run(&scenario, &Demand::of(&scenario, seed), Strategy::Headroom, seed);
    assert_eq!(figures(1), figures(1));
    assert_ne!(figures(1), figures(2));
}

/// One account with 100 units in 5 hours, and sessions that are written down.
fn listed(user: &str, sessions: &str) -> Figures {
    let text = format!(
        "days = 1\n[[account]]\nname = 'a'\nused = 0\n[user]\ncold = 2\n{user}\n{sessions}"
    );
    let scenario = scenario(&text);
    run(&scenario, &Demand::of(&scenario, 1), Strategy::Headroom, 1)
}

#[test]
fn users_do_what_they_do_after_a_refusal() {
    // The second session finds 5 of 100 units left; the window ends at 6:00.
    let sessions = "[[session]]\nat_h = 1\nunits = [50, 45]\n\
                    [[session]]\nat_h = 3\nunits = [10, 10, 10]\n";
    let cases = [
        ("after_refusal = 'give_up'", 2.0, 3.0, 1.0),
        ("after_refusal = 'wait'\npatience_h = 4", 5.0, 0.0, 1.0),
        ("after_refusal = 'wait'\npatience_h = 2", 2.0, 3.0, 1.0),
        ("after_refusal = 'retry'\nretry_min = 50\nretries = 4", 5.0, 0.0, 4.0),
        ("after_refusal = 'retry'\nretry_min = 50\nretries = 3", 2.0, 3.0, 4.0),
    ];
    for (user, served, lost, refusals) in cases {
        let figures = listed(user, sessions);
        let got = (figures.served, figures.lost, figures.refusals);
        assert_eq!(got, (served, lost, refusals), "{user}");
    }
    // Three hours late after the first refusal, and five more after the second.
    let sessions = sessions.replace("[10, 10, 10]", "[10, 45, 40, 10]");
    for (patience_h, lost) in [(6, 1.0), (9, 0.0)] {
        let user = format!("after_refusal = 'wait'\npatience_h = {patience_h}");
        assert_eq!(listed(&user, &sessions).lost, lost, "patience is for the whole session");
    }
}

#[test]
fn a_cold_cache_costs_more() {
    let session = |think_s: u32| {
        format!("[[session]]\nat_h = 1\nthink_s = {think_s}\nunits = [10, 10, 10]\n")
    };
    let cold = |think_s| listed("cache_min = 5", &session(think_s)).cold_units;
    assert_eq!([cold(299), cold(301)], [0.0, 20.0], "the first turn finds none anyway");
}

#[test]
fn sessions_stay_where_they_are() {
    let scenario = scenario(
        "days = 2\n[[account]]\nname = 'a'\ncount = 4\n[[traffic]]\nload = 0.3\nthink_s = 600\n",
    );
    let demand = Demand::of(&scenario, 3);
    let moves = |strategy| run(&scenario, &demand, strategy, 3).moves;
    let turns = demand.turns().count();
    assert!(moves(Strategy::Headroom) < 10.0, "{} moves", moves(Strategy::Headroom));
    assert!(moves(Strategy::Random) < 10.0 && turns > 200, "{turns} turns");
}

#[test]
fn a_busy_account_is_waited_for_a_little() {
    let both = |turn_s: u32| {
        let session = format!("[[session]]\nat_h = 1\nunits = [1]\nturn_s = {turn_s}\n");
        let text = format!(
            "days = 1\n[[account]]\nname = 'a'\nconcurrency = 1\n\
             [user]\nafter_refusal = 'give_up'\n{session}{session}"
        );
        let scenario = scenario(&text);
        run(&scenario, &Demand::of(&scenario, 1), Strategy::Headroom, 1).served
    };
    assert_eq!([both(8), both(30)], [2.0, 1.0]);
}

#[test]
fn what_others_spend_is_seen_by_polling_or_by_one_refusal() {
    // By 3:30 others have spent the first account's week. At 6:00 what was read then is stale.
    let failed = |poll: bool| {
        let text = format!(
            "days = 1\npoll = {poll}\n[[account]]\nname = 'spent'\nused = 0\nweekly = 100\noutside = 1200\n\
             [[account]]\nname = 'free'\nused = 0\n[[session]]\nat_h = 3.5\nunits = [1]\n\
             [[session]]\nat_h = 6\nunits = [1]\n"
        );
        let scenario = scenario(&text);
        let demand = Demand::of(&scenario, 5);
        run(&scenario, &demand, Strategy::Fallback, 5).failed_attempts
    };
    assert_eq!([failed(true), failed(false)], [0.0, 1.0]);
}

#[test]
fn a_gated_model_goes_on_when_ordinary_quota_is_spent() {
    let text = "days = 0.1\n[[account]]\nname = 'pro'\nplan = 'pro'\nused = 0\n[[account.limit]]\n\
                name = 'codex_spark'\nfive_hour = 100\n\
                [[session]]\nat_h = 0.1\nunits = [100, 50]\n\
                [[session]]\nat_h = 1\nmodel = 'gpt-5.3-codex-spark'\nunits = [30, 30, 30, 30]\n\
                [user]\nafter_refusal = 'give_up'\ncold = 1\n";
    let scenario = scenario(text);
    let figures = run(&scenario, &Demand::of(&scenario, 1), Strategy::Headroom, 1);
    assert_eq!((figures.served, figures.lost), (4.0, 2.0));
}

/// The promise of `docs/routing.md`. Here over one seed and a few days, where chance weighs more;
/// the whole of it with `make soak`.
#[test]
fn headroom_is_near_the_best_on_every_shipped_scenario() {
    let (days, seeds, most) = if is_soak() { (366, 1..6, 2.0) } else { (6, 1..2, 4.0) };
    for scenario in shipped().map(|scenario| shortened(scenario, days)) {
        let (points, best) = behind(&compared(&scenario, seeds.clone()));
        println!("{}: {points:.2} points behind {best}", scenario.name);
        assert!(points <= most, "{}: {points:.2} points behind {best}", scenario.name);
    }
}

/// A month of 400,000 turns over 20 accounts, in under 20 s for one strategy when optimised.
#[test]
fn a_large_pool_is_simulated_in_seconds() {
    if !is_soak() {
        return;
    }
    let scenario = scenario(include_str!("tests/large.toml"));
    let demand = Demand::of(&scenario, 1);
    let turns = demand.turns().count();
    let began = tokio::time::Instant::now();
    let figures = run(&scenario, &demand, Strategy::Headroom, 1);
    let took = began.elapsed();
    println!("{turns} turns over {} accounts in {took:?}", scenario.accounts.len());
    assert!(turns > 400_000 && scenario.accounts.len() == 20, "{turns} turns");
    assert_eq!(figures.served + figures.lost, figures.wanted);
    let most = Duration::from_secs(if cfg!(debug_assertions) { 120 } else { 20 });
    assert!(took < most, "{took:?}");
}
