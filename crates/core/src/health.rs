//! What past outcomes still forbid: cooldowns, strikes, consecutive errors, and the stops only a
//! person can end.
//!
//! A block starts at some time, and only evidence from a request sent *after* that may end it early:
//! answers overtake each other. Blocks extend and never shorten otherwise. What the quota windows
//! already say is not written down here a second time.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::outcome::Outcome;
use crate::units::Timestamp;

/// Strikes older than this are forgotten.
const STRIKES_WITHIN: Duration = Duration::from_hours(3);
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
    pub block: Option<Block>,
    /// Consecutive errors that were the account's or its upstream's fault.
    pub errors: u32,
    pub last_error_at: Timestamp,
    strikes: u32,
    last_strike_at: Timestamp,
    /// Models that this account cannot serve for a while.
    models: BTreeMap<String, ModelBlock>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelBlock {
    since: Timestamp,
    pub until: Timestamp,
    /// The upstream does not know the model, as opposed to having no room for it.
    pub missing: bool,
    /// How often in a row it was overloaded; lengthens the cooldown.
    times: u32,
}

impl Health {
    /// As stored: nothing is known but what stopped it.
    pub fn stored(stop: Option<Stop>) -> Self {
        Self { stop, ..Self::default() }
    }

    /// Blocks the account until `until`; an older block that lasts longer stays.
    pub fn block(&mut self, cause: Cause, until: Timestamp, now: Timestamp) {
        match &mut self.block {
            Some(block) if block.until >= until => {}
            block => {
                *block = Some(Block { cause, since: now, until });
            }
        }
    }

    /// A 403 that says neither what nor how long. Two cool, the third within three hours disables:
    /// the provider has seen something it does not like, and more of it makes things worse.
    ///
    /// A 403 to a request sent before the present cooldown began belongs to the same strike.
    pub fn strike(&mut self, sent_at: Timestamp, now: Timestamp) {
        let same = matches!(self.block, Some(Block { cause: Cause::Strike(_), since, until })
            if sent_at < since && now < until);
        if !same {
            let fresh = self.strikes > 0 && now <= self.last_strike_at.plus(STRIKES_WITHIN);
            self.strikes = if fresh { self.strikes + 1 } else { 1 };
            self.last_strike_at = now;
        }
        if self.strikes >= STRIKES_ALLOWED {
            self.stop = Some(Stop::Disabled);
        }
        let until = now.plus(STRIKE_COOLDOWN);
        match &mut self.block {
            Some(block) if same => block.until = block.until.max(until),
            _ => self.block(Cause::Strike(self.strikes), until, now),
        }
    }

    pub fn error(&mut self, now: Timestamp) {
        self.errors = self.errors.saturating_add(1);
        self.last_error_at = now;
    }

    /// The same request failed the same way on others: it was at fault, and what it did here at or
    /// after `since` is undone.
    pub fn take_back(&mut self, outcome: Outcome, since: Timestamp) {
        let ours = |block: &Block| block.since >= since;
        match outcome {
            Outcome::UpstreamError | Outcome::Lost => {
                self.errors = self.errors.saturating_sub(1);
            }
            Outcome::Strike => {
                self.strikes = self.strikes.saturating_sub(1);
                self.block = self.block.filter(|block| !ours(block));
            }
            Outcome::QuotaSpent { .. } | Outcome::RateLimited { .. } => {
                self.block = self.block.filter(|block| !ours(block));
            }
            _ => {}
        }
    }

    /// A connect failed while the network worked (see [`crate::network`]).
    pub fn unreachable(&mut self, durable: bool, now: Timestamp) {
        self.error(now);
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
        if self.last_error_at <= sent_at {
            self.errors = 0;
        }
        if self.block.is_some_and(|block| block.since <= sent_at) {
            self.block = None;
        }
        if self.last_strike_at <= sent_at {
            self.strikes = 0;
        }
    }

    /// A usage poll asked at `asked_at` found every window below its cap: nobody waits for Thursday
    /// because of one stale number. It says nothing about rates, strikes or the credential.
    pub fn quota_is_left(&mut self, asked_at: Timestamp) {
        if self.block.is_some_and(|b| b.cause == Cause::Quota && b.since <= asked_at) {
            self.block = None;
        }
    }

    /// An operator vouches for the account.
    pub fn resume(&mut self) {
        *self = Self::default();
    }

    /// A fresh credential ends what the old one caused.
    pub fn logged_in(&mut self) {
        if self.stop == Some(Stop::NeedsLogin) {
            self.stop = None;
        }
        let ended = |block: Block| matches!(block.cause, Cause::Credential | Cause::Renewal);
        if self.block.is_some_and(ended) {
            self.block = None;
        }
    }

    /// The upstream says that this account has no such model.
    pub fn model_missing(&mut self, model: &str, now: Timestamp) {
        self.models.retain(|_, block| now < block.until);
        let until = now.plus(MODEL_MISSING_FOR);
        let block = ModelBlock { since: now, until, missing: true, times: 0 };
        self.models.insert(model.to_owned(), block);
    }

    /// The model's own limit is spent here until then.
    pub fn block_model(&mut self, model: &str, until: Timestamp, now: Timestamp) {
        let block = ModelBlock { since: now, until, missing: false, times: 0 };
        let known = self.models.entry(model.to_owned()).or_insert(block);
        known.extend(until, now);
    }

    /// Capacity is short for this model here: 5 s · 2^n, at most 60 s.
    pub fn overloaded(&mut self, model: &str, now: Timestamp) {
        let fresh = ModelBlock { since: now, until: now, missing: false, times: 0 };
        let block = self.models.entry(model.to_owned()).or_insert(fresh);
        let seconds = 5_u64.saturating_mul(1 << block.times.min(6)).min(60);
        block.times += 1;
        block.extend(now.plus(Duration::from_secs(seconds)), now);
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
    fn extend(&mut self, until: Timestamp, now: Timestamp) {
        if self.until < until {
            (self.since, self.until) = (now, until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn later(seconds: u64) -> Timestamp {
        NOW.plus(Duration::from_secs(seconds))
    }

    /// sub2api F1, F2.
    #[test]
    fn three_strikes_disable() {
        let mut health = Health::default();
        health.strike(NOW, NOW);
        assert_eq!(health.block.map(|b| b.cause), Some(Cause::Strike(1)));
        let text = health.block.map(|b| b.cause.text("OpenAI"));
        assert_eq!(text.as_deref(), Some("OpenAI 403 temporary cooldown (1/3)"));
        health.strike(later(700), later(700));
        assert_eq!((health.stop, health.block.map(|b| b.cause)), (None, Some(Cause::Strike(2))));
        health.strike(later(1400), later(1400));
        assert_eq!(health.stop, Some(Stop::Disabled));
    }

    #[test]
    fn a_strike_cools_for_ten_minutes_and_a_late_one_extends_it() {
        let mut health = Health::default();
        health.strike(NOW, NOW);
        let block = |health: &Health| health.block.map(|b| (b.cause, b.until));
        assert_eq!(block(&health), Some((Cause::Strike(1), later(600))));
        health.strike(NOW.minus(Duration::from_secs(9)), later(60));
        assert_eq!(block(&health), Some((Cause::Strike(1), later(660))), "sent before it began");
        health.strike(later(1), later(70));
        assert_eq!(block(&health), Some((Cause::Strike(2), later(670))), "sent after: another one");
    }

    #[test]
    fn requests_of_one_burst_are_one_strike() {
        let mut health = Health::default();
        for i in 0..5 {
            health.strike(NOW.minus(Duration::from_secs(1)), later(i));
        }
        assert_eq!((health.stop, health.block.map(|b| b.cause)), (None, Some(Cause::Strike(1))));
    }

    #[test]
    fn strikes_are_forgotten_after_three_hours_or_a_success() {
        let mut health = Health::default();
        health.strike(NOW, NOW);
        health.strike(later(700), later(700));
        health.strike(later(700 + 180 * 60 + 1), later(700 + 180 * 60 + 1));
        assert_eq!(health.stop, None, "too long ago");
        health.strike(later(12_300), later(12_300));
        health.success(later(12_301));
        health.strike(later(13_000), later(13_000));
        assert_eq!(health.stop, None, "sub2api F14: a success in between");
        assert_eq!(health.block.map(|b| b.cause), Some(Cause::Strike(1)));
    }

    /// sub2api R10: never shortened. R12: ended by a later success.
    #[test]
    fn only_later_evidence_ends_a_block() {
        let mut health = Health::default();
        health.block(Cause::Rate, later(60), NOW);
        health.success(NOW.minus(Duration::from_secs(1)));
        assert!(health.block.is_some(), "an older answer does not end it");
        health.block(Cause::Rate, later(30), NOW);
        assert_eq!(health.block.map(|b| b.until), Some(later(60)), "nor does a shorter one");
        health.success(later(1));
        assert_eq!(health.block, None);
    }

    #[test]
    fn a_request_at_fault_leaves_no_trace() {
        let mut health = Health::default();
        health.error(NOW);
        health.error(NOW);
        health.take_back(Outcome::UpstreamError, NOW);
        assert_eq!(health.errors, 1);
        health.strike(later(5), later(5));
        health.take_back(Outcome::Strike, later(5));
        assert_eq!(health.block, None);
        health.block(Cause::Rate, later(60), NOW);
        health.take_back(Outcome::RateLimited { until: later(60) }, later(5));
        assert!(health.block.is_some(), "an older block was not this request's");
    }

    #[test]
    fn a_poll_ends_what_an_older_answer_said_of_the_quota_and_nothing_else() {
        let blocked = |cause| {
            let mut health = Health::default();
            health.block(cause, later(600), NOW);
            health
        };
        for (cause, ends) in [(Cause::Quota, true), (Cause::Rate, false), (Cause::Strike(1), false)]
        {
            let mut health = blocked(cause);
            health.quota_is_left(later(5));
            assert_eq!(health.block.is_none(), ends, "spec §4: {cause:?}");
        }
        let mut health = blocked(Cause::Quota);
        health.quota_is_left(NOW.minus(Duration::from_secs(1)));
        assert!(health.block.is_some(), "asked before the block began");
    }

    #[test]
    fn an_older_answer_does_not_end_a_row_of_errors() {
        let mut health = Health::default();
        (0..3).for_each(|_| health.error(NOW));
        health.success(NOW.minus(Duration::from_secs(1)));
        assert_eq!(health.errors, 3);
        health.success(later(1));
        assert_eq!(health.errors, 0);
    }

    /// sub2api F15.
    #[test]
    fn what_cannot_be_reached_counts_as_an_error_and_rests_if_it_will_last() {
        let mut health = Health::default();
        health.unreachable(false, NOW);
        assert_eq!((health.errors, health.block), (1, None));
        health.unreachable(true, NOW);
        let block = health.block.map(|b| (b.cause, b.until));
        assert_eq!((health.errors, block), (2, Some((Cause::Unreachable, later(600)))));
    }

    #[test]
    fn backoff_starts_at_the_third_error() {
        let mut health = Health::default();
        let want = [None, None, Some(30), Some(60), Some(120), Some(240), Some(300), Some(300)];
        for want in want {
            health.error(NOW);
            assert_eq!(health.backoff_until(), want.map(later), "{} errors", health.errors);
        }
        health.success(NOW);
        assert_eq!(health.backoff_until(), None);
    }

    #[test]
    fn overload_cools_one_model_a_little_longer_each_time() {
        let mut health = Health::default();
        for want in [5, 10, 20, 40, 60, 60] {
            health.overloaded("m", NOW);
            assert_eq!(health.model_block("m", NOW).map(|b| b.until), Some(later(want)));
        }
        assert_eq!(health.model_block("other", NOW), None);
        health.model_served("m", NOW.minus(Duration::from_secs(1)));
        assert!(health.model_block("m", NOW).is_some(), "an older answer does not end it");
        health.model_served("m", NOW);
        assert_eq!(health.model_block("m", NOW), None);
        health.block_model("m", later(10), NOW);
        health.block_model("m", later(60), later(5));
        health.model_served("m", later(4));
        let until = health.model_block("m", later(5)).map(|b| b.until);
        assert_eq!(until, Some(later(60)), "sent before it was extended");
    }
}
