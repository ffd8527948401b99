//! When an account's usage endpoint is asked, and what it means that it did not answer.
//!
//! It is asked an hour after the last data from anywhere, or shortly after the next reset, whichever
//! is sooner; sooner still when somebody needs to know. Being served is as good as being asked, so a
//! busy account is polled at its resets only.
//!
//! Nothing here takes an account out of service but a provider that says it is deactivated, and a
//! sign-in that is refused for good: one outage of a usage endpoint must not stop a pool.

use std::time::Duration;

use crate::availability::Account;
use crate::health::Stop;
use crate::outcome::{Evidence, REAUTH};
use crate::quota::Quota;
use crate::units::{Fraction, Timestamp};

const QUIET: Duration = Duration::from_hours(1);
const AFTER_RESET: Duration = Duration::from_secs(30);
/// So much later at most, that accounts are not asked in step.
pub const JITTER: Duration = Duration::from_mins(1);

/// After one, two, three and more failures in a row.
const BACKOFF: [Duration; 4] = [
    Duration::from_mins(1),
    Duration::from_mins(2),
    Duration::from_mins(4),
    Duration::from_mins(5),
];
/// After a 401 or 403 that does not say what of.
const REFUSED_FOR: Duration = Duration::from_mins(5);
/// A longer `Retry-After` is not believed.
const TOO_OFTEN_AT_MOST: Duration = Duration::from_hours(24);

/// A poll that is to find out whether a stale snapshot still holds is waited for so long.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// An answer this young is not asked for again, whoever wants to know.
const YOUNG: Duration = Duration::from_mins(1);
/// A gated limit that the last answer did not list is not asked for again so soon.
const UNLISTED_FOR: Duration = Duration::from_mins(10);

/// Plans change, seldom.
const PROFILE_FOR: Duration = Duration::from_hours(24);

/// Whether the account is asked at all. Keys have no windows to tell about; and who was paused or
/// stopped, or has no credential, is left alone until somebody has seen to it.
pub fn is_polled(account: &Account) -> bool {
    account.kind.is_subscription()
        && account.has_credential
        && !account.paused
        && account.health.stop.is_none()
}

/// When to ask, by what is known: of the windows, and of when the endpoint last answered. `None`:
/// nothing has been heard yet, so at once.
pub fn regular(quota: &Quota, answered_at: Option<Timestamp>) -> Option<Timestamp> {
    let windows = || quota.windows().iter();
    let heard_at = windows().map(|w| w.observed_at).max().max(answered_at)?;
    let resets = windows().filter_map(|w| w.resets_at).filter(|at| heard_at < *at);
    let reset = resets.min().map(|at| at.plus(AFTER_RESET));
    let quiet = heard_at.plus(QUIET);
    Some(reset.map_or(quiet, |reset| reset.min(quiet)))
}

/// Why a poll brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The token is refused: once more with a renewed one.
    Renew,
    /// Asked too often, which says nothing about the quota.
    TooOften {
        retry_after: Option<Duration>,
    },
    /// Refused, and not said why.
    Refused,
    Stopped(Stop),
    /// Anything else: no answer, or none that can be read.
    Away,
}

/// What a refusal by the usage endpoint means. `renewed`: the token had just been renewed.
///
/// Only a 401 (or the status made for it, 402) deactivates; a 403 never does, whatever it says: an
/// edge in front of the provider answers so to healthy accounts.
pub fn judge(e: &Evidence<'_>, renewed: bool) -> Failure {
    let deactivated = e.is_deactivation() || e.message_has(&["has been deactivated"]);
    let revoked = e.message_has(&["token has been revoked"]);
    match e.status {
        401 if deactivated => Failure::Stopped(Stop::Deactivated),
        402 => Failure::Stopped(Stop::Deactivated),
        401 if !renewed => Failure::Renew,
        403 if revoked && !renewed => Failure::Renew,
        401 if e.says(&REAUTH) => Failure::Stopped(Stop::NeedsLogin),
        401 | 403 => Failure::Refused,
        429 => Failure::TooOften { retry_after: e.retry_after },
        _ => Failure::Away,
    }
}

/// What polling remembers of one account, beside its windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Polls {
    /// When the endpoint last answered as it should.
    answered_at: Option<Timestamp>,
    profiled_at: Option<Timestamp>,
    /// When the poll was sent that is under way.
    running: Option<Timestamp>,
    /// Somebody needs to know now.
    wanted: bool,
    not_before: Timestamp,
    /// In a row.
    failures: u32,
    too_often: u32,
    /// Share of the jitter that the present wait has on top.
    jitter: Fraction,
}

impl Polls {
    /// For an account that is new here, or was seen to: it is asked at once. What is stored of its
    /// windows may be older than it looks, and its plan may be another.
    pub fn fresh() -> Self {
        Self { wanted: true, ..Self::default() }
    }

    pub fn is_due(&self, quota: &Quota, now: Timestamp) -> bool {
        let regular = || {
            let jitter = JITTER.mul_f64(self.jitter.share());
            regular(quota, self.answered_at).is_none_or(|at| at.plus(jitter) <= now)
        };
        self.may_start(now) && (self.wanted || regular())
    }

    fn may_start(&self, now: Timestamp) -> bool {
        self.running.is_none() && self.not_before <= now
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn begin(&mut self, now: Timestamp, jitter: Fraction) {
        (self.running, self.wanted, self.jitter) = (Some(now), false, jitter);
    }

    /// A stale snapshot is to be checked. Returns until when a poll that does so is waited for;
    /// `None`: none may be sent now, or it has not answered in time.
    pub fn probe(&mut self, now: Timestamp) -> Option<Timestamp> {
        if let Some(sent_at) = self.running {
            return Some(sent_at.plus(ANSWERS_WITHIN)).filter(|until| now < *until);
        }
        if !self.may_start(now) || self.answered_within(YOUNG, now) {
            return None;
        }
        self.wanted = true;
        Some(now.plus(ANSWERS_WITHIN))
    }

    /// Nothing is known of a gated limit that a request spends. Returns whether to ask.
    pub fn miss(&mut self, now: Timestamp) -> bool {
        let ask = self.may_start(now) && !self.answered_within(UNLISTED_FOR, now);
        self.wanted |= ask;
        ask
    }

    fn answered_within(&self, span: Duration, now: Timestamp) -> bool {
        self.answered_at.is_some_and(|at| now < at.plus(span))
    }

    pub fn answered(&mut self, now: Timestamp) {
        self.answered_at = Some(now);
        (self.failures, self.too_often) = (0, 0);
    }

    /// The account was heard of in the course of being served.
    pub fn heard(&mut self) {
        self.failures = 0;
    }

    pub fn failed(&mut self, failure: Failure, now: Timestamp) {
        let delay = match failure {
            Failure::TooOften { retry_after } => {
                self.too_often += 1;
                retry_after.unwrap_or(step(self.too_often)).min(TOO_OFTEN_AT_MOST)
            }
            Failure::Refused | Failure::Stopped(_) => REFUSED_FOR,
            Failure::Away | Failure::Renew => {
                self.failures += 1;
                step(self.failures)
            }
        };
        let jitter = (delay / 10).mul_f64(self.jitter.share());
        self.not_before = now.plus(delay).plus(jitter);
    }

    /// The poll is over, and said what it came to before.
    pub fn end(&mut self) {
        self.running = None;
    }

    /// Another failure is worth a line in the log: at the longest delay they have all been told.
    pub fn is_loud(&self) -> bool {
        usize::try_from(self.failures).is_ok_and(|failures| failures < BACKOFF.len())
    }

    pub fn wants_profile(&self, now: Timestamp) -> bool {
        self.profiled_at.is_none_or(|at| at.plus(PROFILE_FOR) <= now)
    }

    pub fn profiled(&mut self, now: Timestamp) {
        self.profiled_at = Some(now);
    }
}

fn step(nth: u32) -> Duration {
    let at = usize::try_from(nth.saturating_sub(1)).unwrap_or(usize::MAX);
    BACKOFF[at.min(BACKOFF.len() - 1)]
}

#[cfg(test)]
#[path = "poll_tests.rs"]
mod tests;
