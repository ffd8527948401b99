//! What is wanted, made up from a seed before anything runs: every strategy meets the same sessions.
//!
//! Load: sessions are drawn, one after the other, until the turns of all together cost `load` times
//! what the windows that their model spends can give in the period. Each, or each burst, then begins
//! at a time drawn by hour and weekday.

use std::time::Duration;

use poolgate_core::units::Timestamp;

use super::random::Random;
use super::scenario::{LARGEST_TURN, Listed, Scenario, Traffic};

#[derive(Clone, Debug, Default)]
pub struct Demand {
    /// By the time they begin.
    pub sessions: Vec<Session>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    pub starts_at: Timestamp,
    /// Index into the scenario's models.
    pub model: usize,
    pub turns: Vec<Turn>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// From the end of the turn before; nothing for the first.
    pub think: Duration,
    pub takes: Duration,
    /// Units, where the prompt cache is warm or there is none to find yet.
    pub warm: f64,
    /// Units, where it is cold.
    pub cold: f64,
}

impl Demand {
    pub fn of(scenario: &Scenario, seed: u64) -> Self {
        let cold = scenario.user.cold;
        let mut sessions: Vec<Session> =
            scenario.sessions.iter().map(|listed| listed.session(scenario.start, cold)).collect();
        for (i, traffic) in (1..).zip(&scenario.traffic) {
            let capacity = scenario.capacity(&scenario.models[traffic.model]);
            let wanted = traffic.load * capacity;
            sessions.extend(Source { scenario, traffic }.draw(wanted, &Random::new(seed).fork(i)));
        }
        sessions.sort_by_key(|session| session.starts_at);
        Self { sessions }
    }

    pub fn turns(&self) -> impl Iterator<Item = &Turn> {
        self.sessions.iter().flat_map(|session| &session.turns)
    }

    pub fn units(&self) -> f64 {
        self.turns().map(|turn| turn.warm).sum()
    }
}

impl Listed {
    fn session(&self, start: Timestamp, cold: f64) -> Session {
        let turn = |(i, units): (usize, &f64)| Turn {
            think: if i == 0 { Duration::ZERO } else { self.think },
            takes: self.turn_takes,
            warm: *units,
            cold: units * cold,
        };
        Session {
            starts_at: start.plus(self.starts_after),
            model: self.model,
            turns: self.units.iter().enumerate().map(turn).collect(),
        }
    }
}

struct Source<'a> {
    scenario: &'a Scenario,
    traffic: &'a Traffic,
}

impl Source<'_> {
    fn draw(&self, wanted: f64, seed: &Random) -> Vec<Session> {
        let (mut when, mut what) = (seed.fork(1), seed.fork(2));
        let days = self.days();
        let mut sessions = Vec::new();
        let mut units = 0.0;
        while units < wanted {
            let together = self.time(&days, &mut when);
            for _ in 0..self.traffic.burst {
                let turns = self.turns(wanted - units, &mut what);
                units += turns.iter().map(|turn| turn.warm).sum::<f64>();
                let late = self.traffic.burst_within.mul_f64(when.unit());
                let late = if self.traffic.burst > 1 { late } else { Duration::ZERO };
                let starts_at = together.plus(late);
                if !turns.is_empty() {
                    sessions.push(Session { starts_at, model: self.traffic.model, turns });
                }
            }
        }
        sessions
    }

    /// Turns of one session, of at most about `left` units.
    fn turns(&self, left: f64, random: &mut Random) -> Vec<Turn> {
        let t = self.traffic;
        let count = random.geometric(t.turns);
        let mut units = 0.0;
        let turn = |i| {
            let on_break = random.unit() < t.break_chance;
            let pause = if on_break { t.break_for } else { t.think };
            let think = span(random.exponential(pause.as_secs_f64()));
            let drawn = random.log_normal(t.units, t.units_spread);
            let warm = drawn.min(t.units * LARGEST_TURN);
            Turn {
                think: if i == 0 { Duration::ZERO } else { think },
                takes: span(random.exponential(t.turn_takes.as_secs_f64())),
                warm,
                cold: warm * self.scenario.user.cold,
            }
        };
        (0..count)
            .map(turn)
            .take_while(|turn| {
                let fits = units < left;
                units += turn.warm;
                fits
            })
            .collect()
    }

    /// The share of sessions that each day of the period gets; a last part of a day counts as such.
    fn days(&self) -> Vec<f64> {
        let days = self.scenario.period.as_secs_f64() / 86_400.0;
        let first = weekday(self.scenario.start);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "≤ 366")]
        let whole = days.ceil() as usize;
        (0..whole).map(|day| self.traffic.weekdays[(first + day) % 7]).collect()
    }

    fn time(&self, days: &[f64], random: &mut Random) -> Timestamp {
        let end = self.scenario.end();
        for _ in 0..1000 {
            let day = u64::try_from(random.among(days)).unwrap_or(0);
            let hour = u64::try_from(random.among(&self.traffic.hours)).unwrap_or(0);
            let at = Duration::from_hours(day * 24 + hour) + span(random.unit() * 3600.0);
            let at = self.scenario.start.plus(at);
            if at < end {
                return at;
            }
        }
        // A period without a single hour in which anyone works: any time is as good.
        self.scenario.start.plus(self.scenario.period.mul_f64(random.unit()))
    }
}

/// Days since the last Monday; the epoch was a Thursday.
fn weekday(at: Timestamp) -> usize {
    let days = at.0.div_euclid(86_400_000);
    usize::try_from((days + 3).rem_euclid(7)).unwrap_or(0)
}

/// In whole milliseconds, as the clock counts.
fn span(seconds: f64) -> Duration {
    Duration::from_millis(
        u64::try_from(Duration::from_secs_f64(seconds).as_millis()).unwrap_or(u64::MAX),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::scenario::tests::scenario;

    const TEXT: &str = "days = 14\n[[account]]\nname = 'a'\ncount = 3\n[[traffic]]\nload = 0.8\n\
                        hours = [0,0,0,0,0,0,0,0,0,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0]\n\
                        weekdays = [1,1,1,1,1,0,0]\n";

    #[test]
    fn what_is_wanted_is_the_load() {
        let scenario = scenario(TEXT);
        for seed in 0..5 {
            let demand = Demand::of(&scenario, seed);
            let load = demand.units() / 4800.0;
            assert!((load - 0.8).abs() < 0.002, "seed {seed}: {load}");
            assert!(demand.sessions.is_sorted_by_key(|s| s.starts_at));
            let worst = demand.turns().map(|t| t.warm).fold(0.0, f64::max);
            assert!(worst <= 8.0);
        }
    }

    #[test]
    fn sessions_begin_when_people_work() {
        let scenario = scenario(TEXT);
        let demand = Demand::of(&scenario, 3);
        for session in &demand.sessions {
            let hour = session.starts_at.0.div_euclid(3_600_000).rem_euclid(24);
            assert!((9..11).contains(&hour) && weekday(session.starts_at) < 5);
        }
    }

    #[test]
    fn a_seed_gives_the_same_and_another_differs() {
        let scenario = scenario(TEXT);
        assert_eq!(Demand::of(&scenario, 1).sessions, Demand::of(&scenario, 1).sessions);
        assert_ne!(Demand::of(&scenario, 1).sessions, Demand::of(&scenario, 2).sessions);
    }

    #[test]
    fn bursts_begin_together() {
        let scenario = scenario(&format!("{TEXT}burst = 10\nburst_min = 5\n"));
        let demand = Demand::of(&scenario, 1);
        let close =
            |pair: &[Session]| pair[0].starts_at.until(pair[1].starts_at) < Duration::from_mins(5);
        let near = demand.sessions.windows(2).filter(|pair| close(pair)).count();
        assert!(near * 10 >= demand.sessions.len() * 8, "{near} of {}", demand.sessions.len());
    }
}
