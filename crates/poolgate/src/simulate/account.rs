//! An account as its provider sees it: the true windows, to the unit.
//!
//! A 5-hour window opens at the first use after the last one ended and lasts five hours; the weekly
//! one resets at fixed times. A turn is charged when it is accepted, and refused when any window has
//! not all of it left, so that no window ever gives more than it holds.

use std::time::Duration;

use poolgate_core::account::Kind;
use poolgate_core::quota::{FIVE_HOURS, Reading, WEEK};
use poolgate_core::units::{Fraction, Timestamp};

use super::scenario::{LaneSpec, Member};

#[derive(Clone, Debug)]
pub struct Upstream {
    kind: Kind,
    lanes: Vec<Lane>,
}

/// The two windows of one limit.
#[derive(Clone, Debug)]
struct Lane {
    spec: LaneSpec,
    /// `None`: no 5-hour window is open.
    ends_at: Option<Timestamp>,
    used_short: f64,
    used_weekly: f64,
    week_ends_at: Timestamp,
    /// Taken by others in the present week.
    outside: f64,
    resets: Resets,
}

/// What weekly resets have found, in units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Resets {
    /// What the weeks that ended had held for the pool: others' use is left out.
    pub held: f64,
    pub unused: f64,
}

/// A turn that was not taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Spent {
    /// The furthest reset of the windows that have too little left.
    pub until: Timestamp,
    /// As the refusal's headers say it: those windows are full.
    pub readings: Vec<Reading>,
}

impl Upstream {
    pub fn new(member: &Member, start: Timestamp) -> Self {
        let lane = |spec: &LaneSpec| Lane {
            ends_at: None,
            used_short: 0.0,
            used_weekly: spec.used * spec.weekly,
            week_ends_at: seconds(start.plus(spec.first_reset)),
            outside: 0.0,
            resets: Resets::default(),
            spec: spec.clone(),
        };
        Self { kind: member.kind, lanes: member.lanes.iter().map(lane).collect() }
    }

    pub fn take(&mut self, lane: usize, units: f64, now: Timestamp) -> Result<(), Spent> {
        let lane_index = lane;
        let lane = &mut self.lanes[lane_index];
        lane.roll(now);
        let short = lane.used_short + units > lane.spec.five_hour;
        let weekly = lane.used_weekly + units > lane.spec.weekly;
        if !short && !weekly {
            lane.charge(units, now);
            return Ok(());
        }
        let ends_at = lane.ends_at.filter(|_| short);
        let until = ends_at.max(Some(lane.week_ends_at).filter(|_| weekly)).unwrap_or(now);
        let mut readings = self.readings(now);
        let limit = &self.lanes[lane_index].spec.limit;
        for reading in readings.iter_mut().filter(|r| r.limit == *limit) {
            if (reading.length == FIVE_HOURS && short) || (reading.length == WEEK && weekly) {
                reading.used = Some(Fraction::ONE);
            }
        }
        Err(Spent { until, readings })
    }

    /// Someone beside the gateway spends up to `units` of the ordinary limit.
    pub fn take_outside(&mut self, units: f64, now: Timestamp) {
        let lane = &mut self.lanes[0];
        lane.roll(now);
        let left = (lane.spec.five_hour - lane.used_short).min(lane.spec.weekly - lane.used_weekly);
        let units = units.min(left);
        if units > 0.0 {
            lane.charge(units, now);
            lane.outside += units;
        }
    }

    /// What an answer's headers or the usage endpoint report.
    pub fn readings(&mut self, now: Timestamp) -> Vec<Reading> {
        let kind = self.kind;
        let of = |lane: &mut Lane| {
            lane.roll(now);
            let reading = |length, used, held, resets_at| Reading {
                limit: lane.spec.limit.clone(),
                length,
                used: rounded(kind, used / held),
                resets_at,
            };
            [
                reading(FIVE_HOURS, lane.used_short, lane.spec.five_hour, lane.ends_at),
                reading(WEEK, lane.used_weekly, lane.spec.weekly, Some(lane.week_ends_at)),
            ]
        };
        self.lanes.iter_mut().flat_map(of).collect()
    }

    /// Of all limits, up to `now`.
    pub fn resets(&mut self, now: Timestamp) -> Resets {
        self.lanes.iter_mut().fold(Resets::default(), |sum, lane| {
            lane.roll(now);
            Resets { held: sum.held + lane.resets.held, unused: sum.unused + lane.resets.unused }
        })
    }
}

impl Lane {
    fn roll(&mut self, now: Timestamp) {
        while self.week_ends_at <= now {
            self.resets.held += self.spec.weekly - self.outside;
            self.resets.unused += self.spec.weekly - self.used_weekly;
            (self.used_weekly, self.outside) = (0.0, 0.0);
            self.week_ends_at = self.week_ends_at.plus(WEEK);
        }
        if self.ends_at.is_some_and(|at| at <= now) {
            (self.ends_at, self.used_short) = (None, 0.0);
        }
    }

    fn charge(&mut self, units: f64, now: Timestamp) {
        self.used_short += units;
        self.used_weekly += units;
        debug_assert!(self.used_short <= self.spec.five_hour * (1.0 + 1e-9), "{self:?}");
        debug_assert!(self.used_weekly <= self.spec.weekly * (1.0 + 1e-9), "{self:?}");
        self.ends_at.get_or_insert(seconds(now).plus(FIVE_HOURS));
    }
}

/// Codex reports whole percents, Claude fractions of two decimals: the nearest one, both.
fn rounded(kind: Kind, share: f64) -> Option<Fraction> {
    match kind {
        Kind::Claude => Fraction::from_share((share * 100.0).round() / 100.0),
        _ => Fraction::from_percent((share * 100.0).round()),
    }
}

/// Resets are told in whole seconds.
const fn seconds(at: Timestamp) -> Timestamp {
    Timestamp(at.0 - at.0.rem_euclid(1000))
}

/// Five-hour windows that can touch an interval of this length: they begin at least five hours apart.
pub fn windows_within(length: Duration) -> f64 {
    (length.as_secs_f64() / FIVE_HOURS.as_secs_f64()).ceil() + 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::scenario::tests::member;

    const START: Timestamp = Timestamp(1_793_577_600_000);

    fn at(hours: f64) -> Timestamp {
        START.plus(Duration::from_secs_f64(hours * 3600.0))
    }

    fn used(upstream: &mut Upstream, hours: f64) -> [(f64, Option<Timestamp>); 2] {
        let readings = upstream.readings(at(hours));
        [0, 1].map(|i| (readings[i].used.unwrap().percent(), readings[i].resets_at))
    }

    #[test]
    fn windows_open_at_the_first_use_and_reset() {
        // 100 units in 5 hours, 800 in a week that ends after 30 hours, nothing spent.
        let mut account = Upstream::new(&member("codex", 30.0), START);
        assert_eq!(used(&mut account, 1.0), [(0.0, None), (0.0, Some(at(30.0)))]);
        account.take(0, 40.4, at(2.0)).unwrap();
        assert_eq!(used(&mut account, 3.0), [(40.0, Some(at(7.0))), (5.0, Some(at(30.0)))]);
        let spent = account.take(0, 60.0, at(6.0)).unwrap_err();
        assert_eq!(spent.until, at(7.0));
        let told: Vec<_> = spent.readings.iter().map(|r| r.used.unwrap().percent()).collect();
        assert_eq!(told, [100.0, 5.0], "the window that lacks it is told as full");
        account.take(0, 60.0, at(7.0)).expect("a new window");
        assert_eq!(used(&mut account, 30.0), [(0.0, None), (0.0, Some(at(198.0)))]);
        assert_eq!(account.resets(at(30.0)), Resets { held: 800.0, unused: 800.0 - 100.4 });
    }

    #[test]
    fn the_week_outlasts_the_window() {
        let mut account = Upstream::new(&member("claude", 100.0), START);
        for window in 0..8 {
            account.take(0, 100.0, at(f64::from(window) * 6.0)).unwrap();
        }
        assert_eq!(account.take(0, 1.0, at(60.0)).unwrap_err().until, at(100.0));
    }

    #[test]
    fn others_take_only_what_is_left() {
        let mut account = Upstream::new(&member("claude", 100.0), START);
        account.take(0, 70.126, at(1.0)).unwrap();
        account.take_outside(50.0, at(2.0));
        assert_eq!(used(&mut account, 3.0)[0], (100.0, Some(at(6.0))));
        assert!((account.resets(at(100.0)).held - (800.0 - 29.874)).abs() < 1e-9);
    }

    #[test]
    fn windows_that_touch_an_interval() {
        for (hours, want) in [(1, 2.0), (5, 2.0), (6, 3.0), (20, 5.0)] {
            let got: f64 = windows_within(Duration::from_hours(hours));
            assert!((got - want).abs() < 1e-9, "{hours} hours: {got}");
        }
    }
}
