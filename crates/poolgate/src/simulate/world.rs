//! The virtual clock, and the sessions that live by it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use poolgate_core::poll::JITTER;
use poolgate_core::quota::Source;
use poolgate_core::strategy::Strategy;
use poolgate_core::units::Timestamp;

use super::account::Upstream;
use super::arrivals::{Demand, Session, Turn};
use super::figures::Figures;
use super::gateway::{Gateway, Request, Step};
use super::random::Random;
use super::scenario::{Scenario, WhenRefused};

/// A user who was told a time comes back within so long after it.
pub const BACK_WITHIN: Duration = Duration::from_mins(2);
/// How often others spend on a shared account.
const OUTSIDE_EVERY: Duration = Duration::from_hours(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The session wants its next turn served, or asks again.
    Ask {
        session: usize,
    },
    End {
        session: usize,
        account: usize,
        sent_at: Timestamp,
    },
    Poll {
        account: usize,
    },
    Outside {
        account: usize,
    },
}

/// Where a session stands.
#[derive(Clone, Debug, Default)]
struct State {
    /// Index of the turn that is wanted next.
    turn: usize,
    /// When that turn would have been wanted if nobody had ever waited.
    planned_at: Timestamp,
    /// Where its cache is, and since when it ages.
    cache: Option<(usize, Timestamp)>,
    /// How often this turn was refused.
    refused: u32,
    /// A request the gateway has not answered yet.
    request: Option<Request>,
}

struct World<'a> {
    scenario: &'a Scenario,
    demand: &'a Demand,
    gateway: Gateway<'a>,
    upstreams: Vec<Upstream>,
    /// Per model, the lane it spends on each account.
    lanes: Vec<Vec<Option<usize>>>,
    states: Vec<State>,
    events: BinaryHeap<Reverse<(Timestamp, u64, Event)>>,
    /// Events of one instant keep the order in which they were made.
    sequence: u64,
    open: usize,
    random: Random,
    figures: Figures,
}

/// Serves `demand` by `strategy`, until the last session has ended.
pub fn run(scenario: &Scenario, demand: &Demand, strategy: Strategy, seed: u64) -> Figures {
    let mut world = World::new(scenario, demand, strategy, &Random::new(seed));
    let end = scenario.end();
    let mut is_over = false;
    while let Some(Reverse((now, _, event))) = world.events.pop() {
        if now > end && !is_over {
            world.count_resets(end);
            is_over = true;
        }
        if is_over && world.open == 0 {
            break;
        }
        world.happen(event, now);
    }
    if !is_over {
        world.count_resets(end);
    }
    world.figures
}

impl<'a> World<'a> {
    #[expect(clippy::cast_precision_loss, reason = "turns")]
    fn new(scenario: &'a Scenario, demand: &'a Demand, strategy: Strategy, seed: &Random) -> Self {
        let state = |session: &Session| State { planned_at: session.starts_at, ..State::default() };
        let figures = Figures {
            wanted: demand.turns().count() as f64,
            wanted_units: demand.units(),
            ..Figures::default()
        };
        let accounts = &scenario.accounts;
        let mut world = Self {
            scenario,
            demand,
            gateway: Gateway::new(scenario, strategy, &seed.fork(100)),
            upstreams: accounts.iter().map(|m| Upstream::new(m, scenario.start)).collect(),
            lanes: scenario.models.iter().map(|model| scenario.lanes(model)).collect(),
            states: demand.sessions.iter().map(state).collect(),
            events: BinaryHeap::new(),
            sequence: 0,
            open: demand.sessions.len(),
            random: seed.fork(101),
            figures,
        };
        for (session, wanted) in demand.sessions.iter().enumerate() {
            world.at(wanted.starts_at, Event::Ask { session });
        }
        for (account, member) in accounts.iter().enumerate() {
            if scenario.poll {
                world.at(scenario.start, Event::Poll { account });
            }
            if member.outside > 0.0 {
                world.at(scenario.start.plus(OUTSIDE_EVERY), Event::Outside { account });
            }
        }
        world
    }

    fn at(&mut self, time: Timestamp, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((time, self.sequence, event)));
    }

    fn happen(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::Ask { session } => self.ask(session, now),
            Event::End { session, account, sent_at } => self.end(session, account, sent_at, now),
            Event::Poll { account } => self.poll(account, now),
            Event::Outside { account } => {
                let units = self.scenario.accounts[account].outside / 24.0;
                self.upstreams[account].take_outside(units, now);
                self.at(now.plus(OUTSIDE_EVERY), event);
            }
        }
    }

    fn turn(&self, session: usize) -> &'a Turn {
        &self.demand.sessions[session].turns[self.states[session].turn]
    }

    fn ask(&mut self, session: usize, now: Timestamp) {
        let model = self.demand.sessions[session].model;
        let waiting = self.states[session].request.take();
        let mut request = waiting.unwrap_or_else(|| Request::new(session, model, now));
        let turn = self.turn(session);
        loop {
            let account = match self.gateway.lease(&mut request, now) {
                Step::Try(account) => account,
                Step::Wait(until) => {
                    self.states[session].request = Some(request);
                    return self.at(until, Event::Ask { session });
                }
                Step::Refuse(told) => return self.refused(session, told, now),
            };
            let units = self.cost(session, account, turn, now);
            let lane = self.lanes[model][account].unwrap_or(0);
            match self.upstreams[account].take(lane, units, now) {
                Ok(()) => return self.begin(session, account, units, now),
                Err(spent) => {
                    self.figures.failed_attempts += 1.0;
                    let enough = self.gateway.refused(account, &mut request, &spent, now);
                    if let Some(Step::Refuse(told)) = enough {
                        return self.refused(session, told, now);
                    }
                }
            }
        }
    }

    /// The first turn of a session finds no cache anywhere, and costs what it costs.
    fn cost(&self, session: usize, account: usize, turn: &Turn, now: Timestamp) -> f64 {
        let lives = self.scenario.user.cache_lives;
        match self.states[session].cache {
            Some((home, since)) if home != account || since.plus(lives) < now => turn.cold,
            _ => turn.warm,
        }
    }

    fn begin(&mut self, session: usize, account: usize, units: f64, now: Timestamp) {
        let turn = self.turn(session);
        self.figures.served += 1.0;
        self.figures.served_units += turn.warm;
        self.figures.cold_units += units - turn.warm;
        let moved = self.states[session].cache.is_some_and(|(home, _)| home != account);
        self.figures.moves += f64::from(u8::from(moved));
        let end = Event::End { session, account, sent_at: now };
        self.at(now.plus(turn.takes), end);
    }

    fn end(&mut self, session: usize, account: usize, sent_at: Timestamp, now: Timestamp) {
        let readings = self.upstreams[account].readings(now);
        let Session { model, turns, .. } = &self.demand.sessions[session];
        self.gateway.served(account, *model, sent_at, &readings, now);
        let state = &mut self.states[session];
        state.cache = Some((account, now));
        state.refused = 0;
        let took = turns[state.turn].takes;
        state.turn += 1;
        match turns.get(state.turn) {
            None => self.open -= 1,
            Some(next) => {
                state.planned_at = state.planned_at.plus(took).plus(next.think);
                self.at(now.plus(next.think), Event::Ask { session });
            }
        }
    }

    /// The user was told that nobody can serve, and when to come back.
    fn refused(&mut self, session: usize, told: Option<Timestamp>, now: Timestamp) {
        self.figures.refusals += 1.0;
        let state = &mut self.states[session];
        state.refused += 1;
        let back = match self.scenario.user.when_refused {
            WhenRefused::GiveUp => None,
            WhenRefused::Wait { patience } => {
                let late = BACK_WITHIN.mul_f64(self.random.unit());
                let back = told.map(|at| at.max(now).plus(late));
                back.filter(|at| state.planned_at.until(*at) <= patience)
            }
            WhenRefused::Retry { after, times } => {
                (state.refused <= times).then_some(now.plus(after))
            }
        };
        match back {
            Some(back) => self.at(back, Event::Ask { session }),
            None => self.give_up(session),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "turns")]
    fn give_up(&mut self, session: usize) {
        let left = self.demand.sessions[session].turns.len() - self.states[session].turn;
        self.figures.lost += left as f64;
        self.open -= 1;
    }

    fn poll(&mut self, account: usize, now: Timestamp) {
        if self.gateway.poll_at(account) <= now {
            let readings = self.upstreams[account].readings(now);
            self.gateway.observe(account, &readings, Source::Poll, now);
        }
        let jitter = JITTER.mul_f64(self.random.unit());
        let next = self.gateway.poll_at(account).max(now).plus(jitter);
        self.at(next, Event::Poll { account });
    }

    fn count_resets(&mut self, end: Timestamp) {
        for upstream in &mut self.upstreams {
            let resets = upstream.resets(end);
            self.figures.reset_units += resets.held;
            self.figures.unused_units += resets.unused;
        }
    }
}
