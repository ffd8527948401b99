//! The gateway's side: what it knows of its accounts, and the steps of one request over them.
//!
//! The same calls in the same order as `pool::leasing`, `pool::evidence`, `gateway::trial` and
//! `gateway::waiting`, with a virtual clock. What is left out: sockets, tokens and errors other than
//! spent quota, since the world of the simulation has none.

use std::time::Duration;

use poolgate_core::account::{AccountId, Family};
use poolgate_core::affinity::{Affinity, SOFT_FOR};
use poolgate_core::availability::{Account as Facts, Ask, PROBE_FOR};
use poolgate_core::choose::{
    Because, COOLDOWN_WAIT, Choice, Chosen, Later, Patience, Refusal, choose,
};
use poolgate_core::outcome::{Attempt, Evidence, Next, Outcome, Progress, classify, next};
use poolgate_core::poll;
use poolgate_core::quota::{Reading, Source};
use poolgate_core::resets::resets;
use poolgate_core::strategy::Strategy;
use poolgate_core::units::Timestamp;

use super::account::Spent;
use super::random::Random;
use super::scenario::Scenario;

const SESSIONS: usize = 100_000;
/// What a client is told to wait when all accounts are busy.
const BUSY_RETRY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Gateway<'a> {
    scenario: &'a Scenario,
    strategy: Strategy,
    accounts: Vec<Facts>,
    homes: Affinity<usize>,
    turn: u64,
    random: Random,
}

/// A client's request, over all the accounts it may be tried on.
#[derive(Clone, Debug)]
pub struct Request {
    pub session: usize,
    pub model: usize,
    /// When it came.
    pub since: Timestamp,
    tried: Vec<AccountId>,
    progress: Progress,
    patience: Patience,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Index of the account.
    Try(usize),
    /// Ask again then.
    Wait(Timestamp),
    /// The client is told when to come back, if that is known.
    Refuse(Option<Timestamp>),
}

impl Request {
    pub fn new(session: usize, model: usize, since: Timestamp) -> Self {
        let (tried, progress) = (Vec::new(), Progress::default());
        Self { session, model, since, tried, progress, patience: Patience::default() }
    }
}

impl<'a> Gateway<'a> {
    pub fn new(scenario: &'a Scenario, strategy: Strategy, seed: &Random) -> Self {
        let facts = (1..).zip(&scenario.accounts).map(|(id, member)| member.facts(AccountId(id)));
        Self {
            scenario,
            strategy,
            accounts: facts.collect(),
            homes: Affinity::new(SESSIONS, SOFT_FOR),
            turn: 0,
            random: seed.clone(),
        }
    }

    fn ask(&self, model: usize) -> Ask<'a> {
        let model = &self.scenario.models[model];
        Ask { surface: model.surface, model: &model.name, gate: model.gate.as_deref() }
    }

    /// Chooses an account and counts the attempt in.
    pub fn lease(&mut self, request: &mut Request, now: Timestamp) -> Step {
        self.turn = self.turn.wrapping_add(1);
        let home = self.homes.home(&request.session, now);
        let chosen = match self.choose(request, home, now) {
            Ok(chosen) => chosen,
            Err(refusal) => {
                let waited = request.since.until(now);
                let wait = request.patience.until(refusal, waited, now);
                return wait.map_or(Step::Refuse(told(refusal, now)), |until| {
                    // A slot may come free at any moment; a second is soon enough to look again.
                    let soon = now.plus(Duration::from_secs(1));
                    Step::Wait(if refusal == Refusal::Busy { until.min(soon) } else { until })
                });
            }
        };
        if let Because::Rebalanced { from } = chosen.because {
            self.homes.evict(from, 0);
        }
        self.homes.settle(request.session, chosen.id, 0, now);
        let index = usize::try_from(chosen.id.0 - 1).unwrap_or(0);
        let facts = &mut self.accounts[index];
        if chosen.probes {
            facts.probing_until = Some(now.plus(PROBE_FOR));
        }
        facts.in_flight += 1;
        Step::Try(index)
    }

    fn choose(
        &mut self,
        request: &Request,
        home: Option<AccountId>,
        now: Timestamp,
    ) -> Result<Chosen, Refusal> {
        let seed = self.random.next();
        let candidates: Vec<&Facts> = self.accounts.iter().collect();
        let choice = Choice {
            ask: self.ask(request.model),
            strategy: self.strategy,
            rebalance_threshold: self.scenario.rebalance_threshold,
            owner: None,
            home,
            tried: &request.tried,
            turn: self.turn,
            seed,
            now,
        };
        choose(&candidates, &choice)
    }

    /// The account's provider said that its quota is spent. `Some`: enough was tried, and the client
    /// is told this.
    pub fn refused(
        &mut self,
        index: usize,
        request: &mut Request,
        spent: &Spent,
        now: Timestamp,
    ) -> Option<Step> {
        self.observe(index, &spent.readings, Source::Answer, now);
        let ask = self.ask(request.model);
        let facts = &mut self.accounts[index];
        let resets = resets(facts, ask, None, now);
        let family = ask.surface.family();
        let is_openai = family == Family::OpenAi;
        let outcome = classify(&Evidence {
            family,
            status: 429,
            code: "",
            kind: if is_openai { "usage_limit_reached" } else { "rate_limit_error" },
            message: "",
            html: false,
            retry_after: None,
            resets_at: Some(spent.until).filter(|_| is_openai),
            spent_until: resets.spent_until,
            family_spent_until: resets.family_spent_until,
            nearest_reset: resets.nearest,
            now,
        });
        outcome.apply(facts, attempt(ask, now, now));
        facts.in_flight -= 1;
        request.tried.push(facts.id);
        let next = next(outcome, &mut request.progress);
        request.progress.moved();
        if next == Next::Another {
            return None;
        }
        // Nobody else is asked; what the pool as a whole has left is what the client is told.
        let refusal = self.choose(request, None, now).err();
        Some(Step::Refuse(refusal.and_then(|refusal| told(refusal, now))))
    }

    /// A turn that was sent at `sent_at` has ended well.
    pub fn served(
        &mut self,
        index: usize,
        model: usize,
        sent_at: Timestamp,
        readings: &[Reading],
        now: Timestamp,
    ) {
        self.observe(index, readings, Source::Answer, now);
        let ask = self.ask(model);
        let facts = &mut self.accounts[index];
        Outcome::Served.apply(facts, attempt(ask, sent_at, now));
        facts.in_flight -= 1;
    }

    pub fn observe(&mut self, index: usize, readings: &[Reading], source: Source, now: Timestamp) {
        let facts = &mut self.accounts[index];
        facts.probing_until = None;
        facts.quota.merge(readings, source, now);
    }

    /// When the account's usage should be asked for next.
    pub fn poll_at(&self, index: usize) -> Timestamp {
        poll::regular(&self.accounts[index].quota, None).unwrap_or(self.scenario.start)
    }
}

fn attempt(ask: Ask<'_>, sent_at: Timestamp, now: Timestamp) -> Attempt<'_> {
    Attempt { ask, sent_at, now, refreshed: false }
}

/// When the client is told to come back.
fn told(refusal: Refusal, now: Timestamp) -> Option<Timestamp> {
    match refusal {
        Refusal::Busy => Some(now.plus(BUSY_RETRY)),
        Refusal::Later(Later { until, quota: true, .. }) => until,
        Refusal::Later(Later { until, .. }) => Some(until.unwrap_or(now.plus(COOLDOWN_WAIT))),
        _ => None,
    }
}
