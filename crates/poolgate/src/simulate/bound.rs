//! How much work any policy could serve at most.
//!
//! The relaxation: turns may be divided and split over accounts, a cache that could be warm is, caps
//! and readings do not exist, nobody else uses the accounts, and a session goes on whatever happened
//! to its earlier turns. What is kept: a turn whose user thought for longer than caches live costs
//! what a cold one costs, so such turns come last; a turn is served no sooner than it could be wanted and no later
//! than its user's patience allows, by an account that serves its model; an account gives no more
//! than its week holds between two weekly resets; and since its 5-hour windows begin at least five
//! hours apart, no more than *n* + 1 of them in a block of 5 *n* hours. Blocks of 5, 10 and 20 hours,
//! nested, within each week. That is a flow network over hours, and the bound is its largest flow.
//!
//! Every policy's schedule is a flow in it: times are rounded to the generous side, and an hour with a
//! reset in it may draw on both weeks.

use std::collections::BTreeMap;
use std::time::Duration;

use poolgate_core::choose::{BUSY_WAIT, COOLDOWN_WAIT};
use poolgate_core::quota::WEEK;

use super::account::windows_within;
use super::arrivals::Demand;
use super::flow::{Network, UNLIMITED};
use super::scenario::{LaneSpec, Scenario, WhenRefused};
use super::world::BACK_WITHIN;

const HOUR: Duration = Duration::from_hours(1);
/// Hours of the nested blocks; each divides the next.
const BLOCKS: [u64; 3] = [20, 10, 5];
/// The network counts in millionths of a unit.
const FINE: f64 = 1e6;

/// Units, at the cost of a warm cache.
pub fn bound(scenario: &Scenario, demand: &Demand) -> f64 {
    let wanted = wanted(scenario, demand);
    let hours = 1 + wanted.keys().map(|key| key.last).max().unwrap_or(0);
    let mut network = Network::default();
    let (source, sink) = (network.node(), network.node());
    let given: Vec<Vec<Given>> = scenario
        .accounts
        .iter()
        .map(|account| {
            account.lanes.iter().map(|lane| give(lane, hours, &mut network, sink)).collect()
        })
        .collect();
    let mut served: BTreeMap<(usize, u64), usize> = BTreeMap::new();
    let mut sources = [Vec::new(), Vec::new()];
    for (class, cost) in &wanted {
        let node = network.node();
        sources[usize::from(class.is_cold)].push((node, fine(cost.units)));
        for hour in class.first..=class.last {
            let at = *served.entry((class.model, hour)).or_insert_with(|| network.node());
            network.edge(node, at, UNLIMITED);
        }
    }
    for ((model, hour), node) in served {
        let lanes = scenario.lanes(&scenario.models[model]);
        for (account, lane) in given.iter().zip(lanes) {
            let Some(lane) = lane else { continue };
            for give in &account[lane][usize::try_from(hour).unwrap_or(0)] {
                network.edge(node, *give, UNLIMITED);
            }
        }
    }
    // What a unit spent on the cold ones is worth at best.
    let worth = wanted.iter().filter(|(class, _)| class.is_cold).map(|(_, cost)| cost.worth);
    let worth = [1.0, worth.fold(0.0, f64::max)];
    let mut total = 0.0;
    for (sources, worth) in sources.into_iter().zip(worth) {
        for (node, units) in sources {
            network.edge(source, node, units);
        }
        total += coarse(network.largest_flow(source, sink)) * worth;
    }
    total.min(demand.units())
}

/// Turns that may be served in the same hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    /// No policy can find its cache warm.
    is_cold: bool,
    model: usize,
    first: u64,
    last: u64,
}

/// What the turns of a class would spend.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    units: f64,
    /// Work per unit spent, of the turn where it is best.
    worth: f64,
}

fn wanted(scenario: &Scenario, demand: &Demand) -> BTreeMap<Class, Cost> {
    let mut classes: BTreeMap<Class, Cost> = BTreeMap::new();
    for session in &demand.sessions {
        let mut at = session.starts_at;
        for (i, turn) in (1..).zip(&session.turns) {
            at = at.plus(turn.think);
            let wanted_after = scenario.start.until(at);
            let is_cold = i > 1 && turn.think > scenario.user.cache_lives && turn.cold > turn.warm;
            let class = Class {
                is_cold,
                model: session.model,
                first: wanted_after.as_secs() / HOUR.as_secs(),
                last: (wanted_after + patience(scenario, i)).as_secs() / HOUR.as_secs(),
            };
            let spends = if is_cold { turn.cold } else { turn.warm };
            let cost = classes.entry(class).or_default();
            cost.units += spends;
            cost.worth = cost.worth.max(turn.warm / spends);
            at = at.plus(turn.takes);
        }
    }
    classes
}

/// How much later than planned the `i`-th turn of a session may be served, at most.
fn patience(scenario: &Scenario, i: u32) -> Duration {
    // A request waits in the gateway, for one of its reasons and then the other, and rounds up.
    let waits = COOLDOWN_WAIT + BUSY_WAIT + Duration::from_secs(1);
    match scenario.user.when_refused {
        WhenRefused::GiveUp => waits * i,
        WhenRefused::Wait { patience } => patience + (waits + BACK_WITHIN) * i,
        WhenRefused::Retry { after, times } => (after * times + waits * (times + 1)) * i,
    }
}

/// Per hour, the nodes that take what the account gives then.
type Given = Vec<Vec<usize>>;

fn give(lane: &LaneSpec, hours: u64, network: &mut Network, sink: usize) -> Given {
    let mut given = vec![Vec::new(); usize::try_from(hours).unwrap_or(0)];
    let mut from = Duration::ZERO;
    let mut to = lane.first_reset;
    let mut holds = lane.weekly * (1.0 - lane.used);
    while from < HOUR * u32::try_from(hours).unwrap_or(u32::MAX) {
        let week = network.node();
        network.edge(week, sink, fine(holds));
        let mut blocks: BTreeMap<(u64, u64), usize> = BTreeMap::new();
        let last = (to.as_secs().div_ceil(HOUR.as_secs())).min(hours);
        for hour in from.as_secs() / HOUR.as_secs()..last {
            let mut node = week;
            for size in BLOCKS {
                let block = hour / size;
                node = *blocks.entry((size, block)).or_insert_with(|| {
                    let begin = (HOUR * u32::try_from(block * size).unwrap_or(0)).max(from);
                    let end = (HOUR * u32::try_from((block + 1) * size).unwrap_or(0)).min(to);
                    let windows = windows_within(end.saturating_sub(begin));
                    let inner = network.node();
                    network.edge(inner, node, fine(windows * lane.five_hour));
                    inner
                });
            }
            given[usize::try_from(hour).unwrap_or(0)].push(node);
        }
        (from, to, holds) = (to, to + WEEK, lane.weekly);
    }
    given
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "units are positive")]
fn fine(units: f64) -> u64 {
    (units * FINE).ceil() as u64
}

#[expect(clippy::cast_precision_loss, reason = "a bound, and far from 2^53")]
fn coarse(flow: u64) -> f64 {
    flow as f64 / FINE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::scenario::tests::scenario;

    fn bound_of(accounts: &str, sessions: &str, cold: f64) -> f64 {
        let text = format!(
            "days = 7\n{accounts}{sessions}[user]\nafter_refusal = 'give_up'\ncold = {cold}\n"
        );
        let scenario = scenario(&text);
        bound(&scenario, &Demand::of(&scenario, 1))
    }

    #[test]
    fn windows_weeks_and_models_bound_what_can_be_served() {
        // 100 units in 5 hours, 300 in a week; the first week ends after 84 hours, half of it spent.
        let account = "[[account]]\nname = 'a'\nweekly = 300\nweekly_reset_h = 84\n";
        let other = "[[account]]\nname = 'b'\nkind = 'claude'\n";
        let session = |at_h: f64, turns: usize| {
            let units = vec![10.0; turns];
            format!("[[session]]\nat_h = {at_h}\nthink_s = 0\nturn_s = 0\nunits = {units:?}\n")
        };
        let cases = [
            ("little is wanted", session(1.0, 5), account.to_owned(), 50.0),
            (
                "two windows can touch an hour",
                session(1.0, 90),
                account.replace("300", "3000"),
                200.0,
            ),
            ("half a week is left", session(1.0, 90), account.to_owned(), 150.0),
            (
                "the next week is whole",
                session(100.0, 90) + &session(130.0, 90),
                account.to_owned(),
                300.0,
            ),
            ("another kind is no help", session(1.0, 90), format!("{account}{other}"), 150.0),
        ];
        for (name, sessions, accounts, want) in cases {
            let got = bound_of(&accounts, &sessions, 1.0);
            assert!((got - want).abs() < 0.01, "{name}: wanted {want}, got {got}");
        }
        // Five turns, half an hour apart: the first costs 10, the others 20 for the work of 10.
        let slow = session(1.0, 5).replace("think_s = 0", "think_s = 1800");
        let cases = [("3000", 50.0), ("60", 10.0 + 20.0 / 2.0), ("20", 10.0)];
        for (weekly, want) in cases {
            let got = bound_of(&account.replace("300", weekly), &slow, 2.0);
            assert!((got - want).abs() < 0.01, "cold caches, {weekly}: wanted {want}, got {got}");
        }
    }
}
