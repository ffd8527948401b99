//! What a pool has left, told as one account would tell it.
//!
//! Clients show the limits that answers carry. One account's would jump with every failover and say
//! nothing of what the pool can still give, so they are told the mean of the pool's accounts, each
//! by its plan's weight, and each counted full at its own cap: at 100 percent nobody serves any more.

use std::time::Duration;

use crate::account::Kind;
use crate::availability::{Account, Reason, is_below_caps, is_exhausted, state};
use crate::quota::{Window, is_same_length};
use crate::units::{Fraction, Timestamp};

/// A visible change is one of this size; see [`crate::quota`].
const VISIBLE: f64 = 1e4;

/// The windows of a pool's accounts of one provider. Equal when nobody could see a difference.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub five_hour: Option<Share>,
    pub weekly: Option<Share>,
    /// Sum of the weights of the accounts counted.
    pub weight: f64,
    /// Of the heaviest of them, in the provider's words; of equals not the free one, in
    /// whatever order they are listed.
    pub plan: Option<String>,
    /// Nobody has anything left: of one window here and of another there, maybe, so that the shares
    /// do not show it.
    pub spent: bool,
}

/// One window of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Of what the caps allow; to 0.01 percent.
    pub used: Fraction,
    /// Of most of the accounts, by weight.
    pub length: Duration,
    /// The mean of their resets that lie ahead, to the second. `None`: none is known.
    pub resets_at: Option<Timestamp>,
}

/// How Claude's clients are told to take a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Allowed,
    /// Soon.
    Warning,
    Rejected,
}

impl Limits {
    /// `None`: no account of that kind has told its windows, so there is nothing to tell.
    pub fn of<'a>(
        accounts: impl IntoIterator<Item = &'a Account>,
        kind: Kind,
        now: Timestamp,
    ) -> Option<Self> {
        let members: Vec<Member<'_>> = accounts
            .into_iter()
            .filter(|account| account.kind == kind)
            .filter_map(|account| Member::of(account, now))
            .collect();
        let heaviest = members.iter().map(|member| member.account).max_by(|a, b| {
            // Many plans weigh the same. Whoever is told of the free one is told to buy another.
            let rank = |account: &Account| match account.plan.as_deref() {
                None => 0,
                Some("free") => 1,
                Some(_) => 2,
            };
            let by_plan = || rank(a).cmp(&rank(b)).then_with(|| b.plan.cmp(&a.plan));
            a.weight.total_cmp(&b.weight).then_with(by_plan)
        })?;
        Some(Self {
            five_hour: share(&members, |account| account.quota.five_hour(), now),
            weekly: share(&members, |account| account.quota.weekly(), now),
            weight: members.iter().map(|member| member.account.weight).sum(),
            plan: heaviest.plan.clone(),
            spent: members.iter().all(|member| member.is_spent(now)),
        })
    }

    pub fn shares(&self) -> impl Iterator<Item = &Share> {
        self.five_hour.iter().chain(&self.weekly)
    }
}

struct Member<'a> {
    account: &'a Account,
    /// The provider says that nothing is left, whatever each of its windows says.
    is_full: bool,
}

impl<'a> Member<'a> {
    /// `None`: it can give nothing, and will not by waiting; or has told nothing.
    fn of(account: &'a Account, now: Timestamp) -> Option<Self> {
        if let Err(
            Reason::Unfit
            | Reason::Paused
            | Reason::Stopped(_)
            | Reason::Unavailable
            | Reason::NotAllowed
            | Reason::Model { .. },
        ) = state(account, now)
        {
            return None;
        }
        // Asked for by itself: an account in trouble may be spent besides, and stays so afterwards.
        let is_full = is_exhausted(account, now);
        account.quota.ordinary().next().is_some().then_some(Self { account, is_full })
    }

    fn is_spent(&self, now: Timestamp) -> bool {
        self.is_full || !is_below_caps(self.account, now)
    }

    /// Of a window that it has not, and others have, all is left: nothing of that kind will stop it.
    /// Unless another of its windows has, since there is nobody whom it serves.
    fn used(&self, window: Option<&Window>, now: Timestamp) -> f64 {
        match window {
            _ if self.is_full => 1.0,
            Some(window) => {
                let used = window.used_at(now).share() / window.cap(self.account.caps).share();
                used.min(1.0)
            }
            None if self.is_spent(now) => 1.0,
            None => 0.0,
        }
    }
}

/// `None`: nobody has that window.
fn share<'a>(
    members: &[Member<'a>],
    window: impl Fn(&'a Account) -> Option<&'a Window>,
    now: Timestamp,
) -> Option<Share> {
    let (mut used, mut weights) = (0.0, 0.0);
    for member in members {
        let weight = member.account.weight;
        used += weight * member.used(window(member.account), now);
        weights += weight;
    }
    let windows =
        || members.iter().filter_map(|one| Some((window(one.account)?, one.account.weight)));
    let length = length(windows())?;
    let (mut ahead, mut ahead_weights) = (0.0, 0.0);
    for (window, weight) in windows().filter(|(window, _)| is_same_length(window.length, length)) {
        if let Some(at) = window.resets_at.filter(|at| *at > now) {
            ahead += weight * seconds(at);
            ahead_weights += weight;
        }
    }
    Some(Share {
        used: visible(used / weights)?,
        length,
        resets_at: (ahead_weights > 0.0).then(|| at_seconds(ahead / ahead_weights)).flatten(),
    })
}

/// That of the greatest weight, whoever is listed first; of equals the shorter. Resets are averaged
/// over it alone: between that of a week and that of a month nothing happens.
fn length<'a>(windows: impl Iterator<Item = (&'a Window, f64)>) -> Option<Duration> {
    let mut lengths: Vec<(Duration, f64)> = Vec::new();
    for (window, weight) in windows {
        match lengths.iter_mut().find(|(length, _)| *length == window.length) {
            Some((_, sum)) => *sum += weight,
            None => lengths.push((window.length, weight)),
        }
    }
    let weight = |of: Duration| -> f64 {
        let same = lengths.iter().filter(|(length, _)| is_same_length(*length, of));
        same.map(|(_, weight)| weight).sum()
    };
    let all = lengths.iter().map(|(length, _)| *length);
    all.max_by(|a, b| weight(*a).total_cmp(&weight(*b)).then(b.cmp(a)))
}

/// Rounded, but never up to everything: that means that nobody serves.
fn visible(used: f64) -> Option<Fraction> {
    let steps = (used * VISIBLE).round();
    let steps = if used < 1.0 { steps.min(VISIBLE - 1.0) } else { steps };
    Fraction::from_share(steps / VISIBLE)
}

#[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
fn seconds(at: Timestamp) -> f64 {
    at.unix_seconds() as f64
}

#[expect(clippy::cast_possible_truncation, reason = "a mean of timestamps is one")]
fn at_seconds(seconds: f64) -> Option<Timestamp> {
    Timestamp::from_unix_seconds(seconds.round() as i64)
}

impl Share {
    /// A warning is due from so much of it used, once so much of its time has passed (CCM, 2026).
    pub fn standing(&self, now: Timestamp) -> Standing {
        const SHORT: [(f64, f64); 1] = [(0.9, 0.72)];
        const LONG: [(f64, f64); 3] = [(0.75, 0.6), (0.5, 0.35), (0.25, 0.15)];
        if self.used == Fraction::ONE {
            return Standing::Rejected;
        }
        let left = self.resets_at.map(|at| now.until(at).as_secs_f64() / self.length.as_secs_f64());
        let passed = left.map_or(0.0, |left| (1.0 - left).clamp(0.0, 1.0));
        let steps: &[(f64, f64)] =
            if self.length <= Duration::from_hours(6) { &SHORT } else { &LONG };
        let warns = |(used, time): &(f64, f64)| self.used.share() >= *used && passed >= *time;
        if steps.iter().any(warns) { Standing::Warning } else { Standing::Allowed }
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
