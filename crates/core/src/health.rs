//! What past outcomes still forbid: cooldowns, strikes, consecutive errors, and the stops only a
//! person can end.
//!
//! A block starts at some time, and only evidence from a request sent *after* that may end it early:
//! answers overtake each other. Blocks extend and never shorten otherwise. Those of different causes
//! stand side by side, since each has an end of its own: a 403 beneath spent quota still cools, and
//! a served request that spends another limit says nothing of this one. What the quota windows
//! already say is not written down here a second time.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::concurrency::Concurrency;
use crate::gate::REST_AFTER_QUOTA_ERROR;
use crate::outcome::Outcome;
use crate::refresh::Fault;
use crate::units::Timestamp;

/// Strikes are counted for so long from the first one.
const STRIKES_WITHIN: Duration = Duration::from_hours(3);
/// Models of which an account keeps something. Their names are the clients' own.
const MODELS_KEPT: usize = 256;
/// How long a model that an upstream does not know is not asked for there.
const MODEL_MISSING_FOR: Duration = Duration::from_mins(30);
const STRIKE_COOLDOWN: Duration = Duration::from_mins(10);
/// A refused connection, a name or a certificate does not mend within seconds.
const UNREACHABLE_FOR: Duration = Duration::from_mins(10);
pub const STRIKES_ALLOWED: u32 = 3;

/// Why an account takes no work until a person acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// By us, after evidence that traffic only makes it worse.
    Disabled,
    /// The credential was refused for good.
    NeedsLogin,
    /// The provider said so.
    Deactivated,
}

impl Stop {
    pub const ALL: [Self; 3] = [Self::Disabled, Self::NeedsLogin, Self::Deactivated];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::NeedsLogin => "needs_login",
            Self::Deactivated => "deactivated",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The provider said the quota is spent, without naming a window we could read.
    Quota,
    /// Too many requests; nothing to do with quota.
    Rate,
    /// `OpenAI 403 temporary cooldown (n/3)`.
    Strike(u32),
    /// 401 that a refresh did not cure.
    Credential,
    /// Its token is no longer good, and could not be renewed for a reason that may pass.
    Renewal,
    /// No connection can be made to where it is served.
    Unreachable,
}

impl Cause {
    /// Strikes are of one kind, whichever it was.
    fn is_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }

    /// For people. `provider`: whose 403 a strike was.
    pub fn text(self, provider: &str) -> String {
        match self {
            Self::Quota => "its quota is spent".into(),
            Self::Rate => "told to wait".into(),
            Self::Strike(n) => {
                format!("{provider} 403 temporary cooldown ({n}/{STRIKES_ALLOWED})")
            }
            Self::Credential => "its credential is refused".into(),
            Self::Renewal => "its token could not be renewed".into(),
            Self::Unreachable => "its upstream cannot be reached".into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub cause: Cause,
    pub since: Timestamp,
    pub until: Timestamp,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub stop: Option<Stop>,
    /// At most one of each kind of cause. Those that are over may still be among them.
    blocks: Vec<Block>,
    /// Consecutive errors that were the account's or its upstream's fault.
    pub errors: u32,
    pub last_error_at: Timestamp,
    /// When the last of them was counted.
    error_counted_at: Timestamp,
    strikes: u32,
    first_strike_at: Timestamp,
    last_strike_at: Timestamp,
    /// How much of it may run at the same time.
    pub concurrency: Concurrency,
    /// Models that this account cannot serve for a while.
    models: BTreeMap<String, ModelBlock>,
}

/// What a request has cost an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Of its last attempt there.
    pub outcome: Outcome,
    /// Counted as errors, of all its attempts there.
    pub errors: u32,
}

/// Why an account cannot serve one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelCause {
    /// The upstream does not know it.
    Missing,
    /// The limit that governs it is spent.
    Quota,
    /// No room for it at the moment.
    Overload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelBlock {
    /// Of what ends last.
    pub cause: ModelCause,
    pub since: Timestamp,
    pub until: Timestamp,
    /// The end of its overload, maybe beneath what ends later.
    pub overloaded_until: Timestamp,
    /// How often in a row it was overloaded; lengthens the cooldown.
    times: u32,
    /// When the last of them was counted.
    counted_at: Timestamp,
}

impl Health {
    /// As stored: nothing is known but what stopped it.
    pub fn stored(stop: Option<Stop>) -> Self {
        Self { stop, ..Self::default() }
    }

    /// Blocks the account until `until`; an older block of this kind that lasts longer stays.
    pub fn block(&mut self, cause: Cause, until: Timestamp, now: Timestamp) {
        self.blocks.retain(|block| now < block.until);
        let block = Block { cause, since: now, until };
        match self.blocks.iter_mut().find(|block| block.cause.is_like(cause)) {
            Some(known) if known.until >= until => {}
            Some(known) => *known = block,
            None => self.blocks.push(block),
        }
    }

    /// What blocks ordinary work now: of several blocks the one that ends last.
    pub fn blocked(&self, now: Timestamp) -> Option<Block> {
        self.last_of(|block| block, now)
    }

    /// The provider has said that the quota is spent; another block may last longer.
    pub fn is_out_of_quota(&self, now: Timestamp) -> bool {
        self.blocks.iter().any(|block| block.cause == Cause::Quota && now < block.until)
    }

    /// The same as [`Self::blocked`] for a gated request: of spent quota it waits for the rest only, since what is spent
    /// is not its own.
    pub fn blocked_gated(&self, now: Timestamp) -> Option<Block> {
        let rested = |block: Block| match block.cause {
            Cause::Quota => {
                let rest = block.since.plus(REST_AFTER_QUOTA_ERROR);
                Block { until: block.until.min(rest), ..block }
            }
            _ => block,
        };
        self.last_of(rested, now)
    }

    fn last_of(&self, view: impl Fn(Block) -> Block, now: Timestamp) -> Option<Block> {
        let running = self.blocks.iter().map(|block| view(*block)).filter(|b| now < b.until);
        running.max_by_key(|block| block.until)
    }

    /// Ends the blocks of which this is true.
    fn end(&mut self, ends: impl Fn(&Block) -> bool) {
        self.blocks.retain(|block| !ends(block));
    }

    /// A 403 that says neither what nor how long. Two cool, the third within three hours disables:
    /// the provider has seen something it does not like, and more of it makes things worse.
    ///
    /// A 403 to a request sent before the present cooldown began belongs to the same strike. Who is
    /// struck now and then for a whole day is not disabled: the count begins anew.
    pub fn strike(&mut self, sent_at: Timestamp, now: Timestamp) {
        let until = now.plus(STRIKE_COOLDOWN);
        let cooling = |b: &&mut Block| b.cause.is_like(Cause::Strike(0)) && now < b.until;
        if let Some(block) = self.blocks.iter_mut().find(cooling)
            && sent_at < block.since
        {
            block.until = block.until.max(until);
            return;
        }
        if self.strikes == 0 || now > self.first_strike_at.plus(STRIKES_WITHIN) {
            (self.strikes, self.first_strike_at) = (0, now);
        }
        self.strikes += 1;
        self.last_strike_at = now;
        if self.strikes >= STRIKES_ALLOWED {
            self.stop = Some(Stop::Disabled);
        }
        self.block(Cause::Strike(self.strikes), until, now);
    }

    /// A request sent at `sent_at` failed. One that was sent before the last error was counted is of
    /// the same incident: a reset that cuts eight streams is one error.
    pub fn error(&mut self, sent_at: Timestamp, now: Timestamp) {
        if self.errors == 0 || self.error_counted_at <= sent_at {
            self.errors = self.errors.saturating_add(1);
            self.error_counted_at = now;
        }
        self.last_error_at = now;
    }

    /// The same request failed the same way on others: it was at fault, and what it cost this account
    /// at or after `since` is undone.
    pub fn take_back(&mut self, charge: Charge, since: Timestamp) {
        self.errors = self.errors.saturating_sub(charge.errors);
        match charge.outcome {
            Outcome::Strike if since <= self.last_strike_at => {
                if self.strikes >= STRIKES_ALLOWED && self.stop == Some(Stop::Disabled) {
                    self.stop = None;
                }
                self.strikes = self.strikes.saturating_sub(1);
                self.end(|b| b.cause.is_like(Cause::Strike(0)) && since <= b.since);
            }
            Outcome::RateLimited { .. } => {
                self.end(|b| b.cause == Cause::Rate && since <= b.since);
                self.concurrency.take_back();
            }
            _ => {}
        }
    }

    /// A connect failed while the network worked (see [`crate::network`]).
    pub fn unreachable(&mut self, durable: bool, now: Timestamp) {
        self.error(now, now);
        if durable {
            self.block(Cause::Unreachable, now.plus(UNREACHABLE_FOR), now);
        }
    }

    /// End of the error backoff: min(300, 30·2^(n−3)) s from the third consecutive error.
    pub fn backoff_until(&self) -> Option<Timestamp> {
        let past = self.errors.checked_sub(3)?;
        let seconds = 30_u64.saturating_mul(1 << past.min(10)).min(300);
        Some(self.last_error_at.plus(Duration::from_secs(seconds)))
    }

    /// A request sent at `sent_at` came back well. What happened after it was sent stands: answers
    /// overtake each other.
    pub fn success(&mut self, sent_at: Timestamp) {
        self.gated_success(sent_at);
        self.quota_is_left(sent_at);
    }

    /// The same of a request that spends a limit of its own: the account is well, and its ordinary
    /// quota may still be spent.
    pub fn gated_success(&mut self, sent_at: Timestamp) {
        if self.last_error_at <= sent_at {
            self.errors = 0;
        }
        self.end(|block| block.cause != Cause::Quota && block.since <= sent_at);
        if self.last_strike_at <= sent_at {
            self.strikes = 0;
        }
    }

    /// A usage poll asked at `asked_at` found every window below its cap: nobody waits for Thursday
    /// because of one stale number. It says nothing about rates, strikes or the credential.
    pub fn quota_is_left(&mut self, asked_at: Timestamp) {
        self.end(|block| block.cause == Cause::Quota && block.since <= asked_at);
    }

    /// An operator vouches for the account.
    pub fn resume(&mut self) {
        *self = Self::default();
    }

    /// The wall clock was set back by `by`: pauses of ours keep the length they had left. Resets that
    /// the provider named are points in time, and stay.
    pub fn set_back(&mut self, by: Duration) {
        for block in &mut self.blocks {
            block.since = block.since.minus(by);
            if block.cause != Cause::Quota {
                block.until = block.until.minus(by);
            }
        }
        for block in self.models.values_mut() {
            block.since = block.since.minus(by);
            block.counted_at = block.counted_at.minus(by);
            block.overloaded_until = block.overloaded_until.minus(by);
            if block.cause != ModelCause::Quota {
                block.until = block.until.minus(by);
            }
        }
        let (errors, strikes) = (
            [&mut self.last_error_at, &mut self.error_counted_at],
            [&mut self.first_strike_at, &mut self.last_strike_at],
        );
        for at in errors.into_iter().chain(strikes) {
            *at = at.minus(by);
        }
        self.concurrency.set_back(by);
    }

    /// A fresh credential ends what the old one caused. `refused`: what its issuer had said of that.
    pub fn logged_in(&mut self, refused: Option<Fault>) {
        let ends = match self.stop {
            Some(Stop::NeedsLogin) => true,
            Some(Stop::Deactivated) => refused == Some(Fault::Deactivated),
            Some(Stop::Disabled) | None => false,
        };
        if ends {
            self.stop = None;
        }
        self.end(|block| matches!(block.cause, Cause::Credential | Cause::Renewal));
    }

    /// The upstream says that this account has no such model.
    pub fn model_missing(&mut self, model: &str, now: Timestamp) {
        let until = now.plus(MODEL_MISSING_FOR);
        let block = ModelBlock { until, ..ModelBlock::new(ModelCause::Missing, now) };
        *self.model(model, ModelCause::Missing, now) = block;
    }

    /// The model's own limit is spent here until then.
    pub fn block_model(&mut self, model: &str, until: Timestamp, now: Timestamp) {
        let block = self.model(model, ModelCause::Quota, now);
        block.extend(ModelCause::Quota, until, now);
        // Said again: what was seen of its windows in between stands against it no more.
        block.since = now;
    }

    /// Capacity is short for this model here: 5 s · 2^n, at most 60 s. Of requests sent before the
    /// last time was counted it is the same time.
    pub fn overloaded(&mut self, model: &str, sent_at: Timestamp, now: Timestamp) {
        let block = self.model(model, ModelCause::Overload, now);
        if block.times == 0 || block.counted_at <= sent_at {
            (block.times, block.counted_at) = (block.times + 1, now);
        }
        let seconds = 5_u64.saturating_mul(1 << (block.times - 1).min(6)).min(60);
        block.overloaded_until = now.plus(Duration::from_secs(seconds));
        block.extend(ModelCause::Overload, block.overloaded_until, now);
    }

    fn model(&mut self, model: &str, cause: ModelCause, now: Timestamp) -> &mut ModelBlock {
        if self.models.len() >= MODELS_KEPT && !self.models.contains_key(model) {
            self.make_room(now);
        }
        self.models.entry(model.to_owned()).or_insert_with(|| ModelBlock::new(cause, now))
    }

    /// Of those that stand, names that nobody knows go first: a client can make up any number of them.
    fn make_room(&mut self, now: Timestamp) {
        self.models.retain(|_, block| now < block.until);
        if self.models.len() >= MODELS_KEPT {
            let worth = |block: &ModelBlock| (block.cause != ModelCause::Missing, block.until);
            let least = self.models.iter().min_by_key(|(_, block)| worth(block));
            let name = least.map(|(name, _)| name.clone()).unwrap_or_default();
            self.models.remove(&name);
        }
    }

    /// The model answered well here, to a request sent at `sent_at`.
    pub fn model_served(&mut self, model: &str, sent_at: Timestamp) {
        if self.models.get(model).is_some_and(|block| block.since <= sent_at) {
            self.models.remove(model);
        }
    }

    pub fn model_block(&self, model: &str, now: Timestamp) -> Option<ModelBlock> {
        self.models.get(model).copied().filter(|block| now < block.until)
    }
}

impl ModelBlock {
    fn new(cause: ModelCause, now: Timestamp) -> Self {
        Self { cause, since: now, until: now, overloaded_until: now, times: 0, counted_at: now }
    }

    fn extend(&mut self, cause: ModelCause, until: Timestamp, now: Timestamp) {
        if self.until < until {
            (self.cause, self.since, self.until) = (cause, now, until);
        }
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
