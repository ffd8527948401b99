//! Days of traffic, step by step, in virtual time: no request may fail while any account could have
//! served it, by the upstreams' true state.

mod truth;
mod world;

use std::time::Duration;

use poolgate_core::health::Stop;
use poolgate_core::quota::{Limit, Reading, WEEK};
use poolgate_core::strategy::Strategy;
use poolgate_core::units::{Fraction, Timestamp};

use truth::SPARK;
use world::{Dice, START, World};

const MODEL: &str = "gpt-5.5";

fn hour(hours: u64) -> Timestamp {
    START.plus(Duration::from_hours(hours))
}

/// 99 % of a week that resets in five days.
fn poison(now: Timestamp) -> Reading {
    Reading {
        limit: Limit::Ordinary,
        length: WEEK,
        used: Fraction::from_percent(99.0),
        resets_at: Some(now.plus(Duration::from_hours(120))),
    }
}

/// Requests in this hour: quiet nights, work by day, and a burst on three afternoons a week.
fn load(hours: u64) -> u64 {
    let (day, time) = (hours / 24 % 7, hours % 24);
    match time {
        13..=15 if matches!(day, 1 | 3 | 4) => 700,
        8..=18 if day < 5 => 60,
        _ => 12,
    }
}

/// What happens in the fortnight beside the traffic.
struct Fortnight {
    /// Reads 99 % in the night of the second day, and is at a third.
    poisoned: usize,
    /// Cannot answer for two hours on the third morning.
    away: usize,
    /// Is deactivated on the seventh day.
    deactivated: usize,
    /// Has the gated model; its week is spent on the fifth day.
    gated: usize,
}

fn fortnight(strategy: Strategy) -> (World, Fortnight) {
    let mut world = World::new(strategy);
    let cast = Fortnight {
        poisoned: world.add(1.0, false),
        away: world.add(1.0, false),
        deactivated: world.add(1.0, false),
        gated: world.add(5.0, true),
    };
    world.add(1.0, false);
    let mut dice = Dice(7);
    for now in 0..24 * 14 {
        match now {
            26 => {
                let reading = poison(hour(26));
                world.now = hour(26);
                world.poison(cast.poisoned, &reading);
            }
            57 => world.truths[cast.away].out_until = hour(59),
            100 => world.truths[cast.gated].spend_week(0.0, hour(100), 30),
            150 => world.truths[cast.deactivated].deactivated = true,
            _ => {}
        }
        let count = load(now);
        for request in 0..count {
            let at = hour(now).plus(Duration::from_millis(request * 3_600_000 / count));
            world.now = world.now.max(at);
            let model = if dice.roll(40) == 0 { SPARK } else { MODEL };
            world.request(model, dice.roll(25));
        }
    }
    (world, cast)
}

#[test]
fn a_fortnight_loses_no_request_that_anybody_could_have_served() {
    for strategy in Strategy::ALL {
        // The first account or nobody: it does lose what others could serve, as it is meant to.
        if strategy == Strategy::Single {
            continue;
        }
        let (world, cast) = fortnight(strategy);
        let name = strategy.name();
        let stop = world.accounts[cast.deactivated].health.stop;
        assert_eq!(stop, Some(Stop::Deactivated), "{name}");
        assert!(world.served > 10_000, "{name}: {} served", world.served);
        assert!(world.failed_rightly > 100, "{name}: the bursts are more than all can take");
    }
}

/// Two accounts in order: whatever the first can take, it takes.
fn pair() -> World {
    let mut world = World::new(Strategy::Fallback);
    world.add(1.0, true);
    world.add(1.0, false);
    world
}

fn serve(world: &mut World, model: &str) -> Option<usize> {
    world.request(model, 0)
}

#[test]
fn a_poisoned_snapshot_keeps_an_account_out_for_two_hours() {
    let mut world = pair();
    let reading = poison(START);
    world.poison(0, &reading);
    let mut out = 0;
    while serve(&mut world, MODEL) == Some(1) {
        world.now = world.now.plus(Duration::from_mins(1));
        out += 1;
    }
    assert_eq!(out, 120, "minutes");
    assert_eq!(serve(&mut world, MODEL), Some(0), "healed by its own headers");
}

#[test]
fn a_week_is_spent_though_five_hours_are_free() {
    let mut world = pair();
    world.truths[0].spend_week(0.0, START, 30);
    assert_eq!(serve(&mut world, MODEL), Some(1));
    let asked = world.truths[0].asked;
    for minute in (5..30 * 60).step_by(5) {
        world.now = START.plus(Duration::from_mins(minute));
        assert_eq!(serve(&mut world, MODEL), Some(1), "minute {minute}");
    }
    let probes = world.truths[0].asked - asked;
    assert!(probes <= 15, "{probes} probes in 30 h: at most one in two hours");
    world.now = hour(30);
    assert_eq!(serve(&mut world, MODEL), Some(0), "the moment it resets");
}

#[test]
fn a_gated_model_goes_on_while_the_week_is_spent() {
    let mut world = pair();
    world.truths[0].spend_week(0.0, START, 30);
    assert_eq!(serve(&mut world, MODEL), Some(1));
    world.now = START.plus(Duration::from_mins(3));
    for _ in 0..60 {
        assert_eq!(serve(&mut world, SPARK), Some(0), "codex-lb F1");
    }
    assert_eq!(serve(&mut world, SPARK), None, "its own limit is spent");
    assert_eq!(serve(&mut world, MODEL), Some(1), "codex-lb F2");
    world.now = START.plus(Duration::from_mins(5 * 60 + 3));
    assert_eq!(serve(&mut world, SPARK), Some(0), "and comes back by itself");
}

#[test]
fn a_deactivated_account_is_asked_once() {
    let mut world = pair();
    world.truths[0].deactivated = true;
    for _ in 0..50 {
        assert_eq!(serve(&mut world, MODEL), Some(1));
    }
    assert_eq!(world.truths[0].asked, 1);
}

#[test]
fn an_account_that_was_away_is_back_within_its_backoff() {
    let mut world = pair();
    world.truths[0].out_until = hour(2);
    let mut minute = 0;
    while serve(&mut world, MODEL) == Some(1) {
        minute += 1;
        world.now = START.plus(Duration::from_mins(minute));
    }
    assert!((120..=125).contains(&minute), "in minute {minute}: within 300 s of the end");
    // Twice in each request that tries it, and one in five minutes does.
    let asked = world.truths[0].asked;
    assert!(asked < 60, "{asked} calls: it was left alone while away");
}
