//! A gateway without sockets: the decisions of the core, driven through virtual time against
//! upstreams that are what they are.
//!
//! Whether a request that failed could have been served is asked of the upstreams' true state, never
//! of what the core believes.

use std::time::Duration;

use poolgate_core::account::{AccountId, Caps, Family, Kind, Speaks, Surface};
use poolgate_core::affinity::{Affinity, SOFT_FOR};
use poolgate_core::availability::{Account, Ask};
use poolgate_core::choose::{Choice, Later, Refusal, choose};
use poolgate_core::gate::Gate;
use poolgate_core::health::Health;
use poolgate_core::outcome::{Attempt, Evidence, Next, Outcome, Progress, classify, next};
use poolgate_core::quota::{Quota, Reading, Source};
use poolgate_core::resets::resets;
use poolgate_core::strategy::Strategy;
use poolgate_core::units::Timestamp;

use crate::truth::{Reply, SPARK, SPARK_LIMIT, Truth};

/// A Monday, midnight.
pub const START: Timestamp = Timestamp(1_800_230_400_000);
const WAIT: Duration = Duration::from_mins(1);
const PROBE_FOR: Duration = Duration::from_mins(2);
const CAP: f64 = 99.0;

pub struct World {
    pub now: Timestamp,
    pub accounts: Vec<Account>,
    pub truths: Vec<Truth>,
    pub served: u32,
    /// Failed while nobody could have served it.
    pub failed_rightly: u32,
    strategy: Strategy,
    gate: Gate,
    homes: Affinity<u64>,
    choices: u64,
}

/// `LCG` of Knuth's MMIX: the same traffic in every run.
pub struct Dice(pub u64);

impl Dice {
    /// Evenly among `0..sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

impl World {
    pub fn new(strategy: Strategy) -> Self {
        let owned = |text: &str| vec![text.to_owned()];
        let gate = Gate {
            id: "spark".into(),
            aliases: owned(SPARK_LIMIT),
            models: owned("*spark*"),
            plans: owned("pro"),
        };
        Self {
            now: START,
            accounts: Vec::new(),
            truths: Vec::new(),
            served: 0,
            failed_rightly: 0,
            strategy,
            gate,
            homes: Affinity::new(1000, SOFT_FOR),
            choices: 0,
        }
    }

    pub fn add(&mut self, size: f64, spark: bool) -> usize {
        let index = self.accounts.len();
        self.accounts.push(Account {
            id: AccountId(i64::try_from(index).expect("few")),
            kind: Kind::Codex,
            speaks: Speaks::default(),
            priority: 0,
            plan: Some(if spark { "pro" } else { "plus" }.into()),
            weight: size,
            caps: Caps::default(),
            models: vec![],
            max_in_flight: 0,
            paused: false,
            has_credential: true,
            quota: Quota::default(),
            health: Health::default(),
            in_flight: 0,
            probing_until: None,
        });
        self.truths.push(Truth::new(size, spark));
        index
    }

    /// An answer that was not the account's, or a bug on the other side.
    pub fn poison(&mut self, index: usize, reading: &Reading) {
        let now = self.now;
        self.accounts[index].quota.merge(std::slice::from_ref(reading), Source::Answer, now);
    }

    /// One request from its start to its end; returns who served it.
    ///
    /// # Panics
    /// It failed, and somebody could have served it.
    pub fn request(&mut self, model: &str, session: u64) -> Option<usize> {
        let began = self.now;
        let mut tried: Vec<AccountId> = Vec::new();
        let mut progress = Progress::default();
        let mut again: Option<usize> = None;
        loop {
            let index = match again.take().map_or_else(|| self.choose(model, session, &tried), Ok) {
                Ok(index) => index,
                Err(Refusal::Later(Later { untried_until: Some(at), .. }))
                    if self.now < at && at <= began.plus(WAIT) =>
                {
                    self.now = at;
                    continue;
                }
                Err(refusal) => return self.fail(model, &format!("{refusal:?}")),
            };
            let outcome = self.attempt(index, model, &progress);
            if outcome == Outcome::Served {
                self.served += 1;
                return Some(index);
            }
            match next(outcome, &mut progress) {
                Next::Again => again = Some(index),
                Next::Another => {
                    tried.push(self.accounts[index].id);
                    progress.moved();
                }
                end => return self.fail(model, &format!("{outcome:?}: {end:?}")),
            }
        }
    }

    fn choose(&mut self, model: &str, session: u64, tried: &[AccountId]) -> Result<usize, Refusal> {
        self.choices += 1;
        let ask = Ask { surface: Surface::Responses, model, gate: gate_of(&self.gate, model) };
        let choice = Choice {
            ask,
            strategy: self.strategy,
            rebalance_threshold: Some(20.0),
            owner: None,
            home: self.homes.home(&session, self.now),
            tried,
            turn: self.choices,
            seed: self.choices,
            now: self.now,
        };
        let all: Vec<&Account> = self.accounts.iter().collect();
        let chosen = choose(&all, &choice)?;
        self.homes.settle(session, chosen.id, 0, self.now);
        let index = usize::try_from(chosen.id.0).expect("an index");
        if chosen.probes {
            self.accounts[index].probing_until = Some(self.now.plus(PROBE_FOR));
        }
        Ok(index)
    }

    fn attempt(&mut self, index: usize, model: &str, progress: &Progress) -> Outcome {
        let now = self.now;
        let reply = self.truths[index].ask(model, now);
        let account = &mut self.accounts[index];
        account.probing_until = None;
        if let Reply::Served(told) | Reply::Spent(told) = &reply {
            account.quota.merge(told, Source::Answer, now);
        }
        let ask = Ask { surface: Surface::Responses, model, gate: gate_of(&self.gate, model) };
        let outcome = judge(&reply, account, ask, now);
        let refreshed = progress.refreshed;
        outcome.apply(account, Attempt { ask, sent_at: now, now, refreshed });
        outcome
    }

    fn fail(&mut self, model: &str, why: &str) -> Option<usize> {
        let now = self.now;
        let able: Vec<usize> = (0..self.truths.len())
            .filter(|&index| self.truths[index].could_serve(model, CAP, now))
            .collect();
        let hours = START.until(now).as_secs_f64() / 3600.0;
        assert!(
            able.is_empty(),
            "{model} failed in hour {hours:.2} ({why}), though {able:?} could have served it: {:#?}",
            able.iter().map(|&index| &self.accounts[index]).collect::<Vec<_>>(),
        );
        self.failed_rightly += 1;
        None
    }
}

fn gate_of<'a>(gate: &'a Gate, model: &str) -> Option<&'a Gate> {
    (model == SPARK).then_some(gate)
}

fn judge(reply: &Reply, account: &Account, ask: Ask<'_>, now: Timestamp) -> Outcome {
    let (status, code, message) = match reply {
        Reply::Served(_) => return Outcome::Served,
        Reply::Spent(_) => (429, "usage_limit_reached", "The usage limit has been reached"),
        Reply::Deactivated => (403, "account_deactivated", ""),
        Reply::NoSuchModel => (400, "", "The model is not supported with this plan"),
        Reply::Unavailable => (503, "", ""),
    };
    let known = resets(account, ask, None, now);
    classify(&Evidence {
        family: Family::OpenAi,
        status,
        code,
        kind: "",
        message,
        html: false,
        retry_after: None,
        resets_at: None,
        spent_until: known.spent_until,
        family_spent_until: known.family_spent_until,
        nearest_reset: known.nearest,
        now,
    })
}
