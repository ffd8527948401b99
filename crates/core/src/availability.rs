//! Can this account take this request, now? The only place that says no.
//!
//! The answer is derived each time from what is known; nothing stores it. Reasons carry the time
//! they end, where that is known, since the earliest of them becomes the client's `Retry-After`.

use std::time::Duration;

use crate::account::{AccountId, Caps, Kind, Speaks, Surface, model_matches};
use crate::gate::Gate;
use crate::health::{Block, Cause, Health, ModelCause, Stop};
use crate::quota::{Quota, STALE_AFTER, Window};
use crate::resets::is_left_since;
use crate::units::{Fraction, Timestamp};

/// A probe that is not back by then is given up, and another may try.
pub const PROBE_FOR: Duration = Duration::from_mins(2);

/// An account as the decisions see it.
#[derive(Clone, Debug)]
pub struct Account {
    pub id: AccountId,
    pub kind: Kind,
    pub speaks: Speaks,
    pub priority: i32,
    /// In the provider's words; `None`: unknown.
    pub plan: Option<String>,
    /// Relative size of the plan; more than zero.
    pub weight: f64,
    pub caps: Caps,
    /// Patterns of the models it may serve; empty: all.
    pub models: Vec<String>,
    /// Attempts at the same time; zero: any number.
    pub max_in_flight: u32,
    pub paused: bool,
    /// The credential can be read and used.
    pub has_credential: bool,
    pub quota: Quota,
    pub health: Health,
    pub in_flight: u32,
    /// A request is finding out how the account is; until then, or until it is back, others do not
    /// try.
    pub probing_until: Option<Timestamp>,
}

/// What a request asks of an account.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub surface: Surface,
    /// Empty: not named yet, and any will do.
    pub model: &'a str,
    /// The additional limit that governs the model, if any.
    pub gate: Option<&'a Gate>,
}

/// How an account that may serve should be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    Ready,
    /// Its windows say no, but what they say is stale: one request may find out.
    Probe,
}

/// Why not, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its kind does not serve this surface.
    Unfit,
    /// By an operator.
    Paused,
    Stopped(Stop),
    /// No credential to use; ends when the file or the login is back.
    Unavailable,
    /// The model is not enabled here.
    NotAllowed,
    /// The model cannot be served here for a while.
    Model {
        cause: ModelCause,
        until: Timestamp,
    },
    /// The provider's window is spent.
    Exhausted {
        until: Option<Timestamp>,
    },
    /// Our cap of a window is reached.
    Capped {
        until: Option<Timestamp>,
    },
    /// Told to wait, or cooling after a refusal.
    Cooling {
        cause: Cause,
        until: Timestamp,
    },
    /// Too many errors in a row.
    Backoff {
        until: Timestamp,
    },
    /// As many attempts in flight as allowed.
    Busy,
    /// Another request is finding out whether its stale snapshot still holds.
    Probing {
        until: Timestamp,
    },
}

impl Reason {
    /// When it ends by itself. `None`: unknown, or a person must act.
    pub fn until(self) -> Option<Timestamp> {
        match self {
            Self::Model { until, .. }
            | Self::Cooling { until, .. }
            | Self::Backoff { until }
            | Self::Probing { until } => Some(until),
            Self::Exhausted { until } | Self::Capped { until } => until,
            _ => None,
        }
    }

    /// Spent quota, as opposed to trouble: clients show these two differently.
    pub fn is_quota(self) -> bool {
        matches!(
            self,
            Self::Exhausted { .. }
                | Self::Capped { .. }
                | Self::Cooling { cause: Cause::Quota, .. }
                | Self::Model { cause: ModelCause::Quota, .. }
        )
    }

    /// Stable word for logs, status and tests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unfit => "unfit",
            Self::Paused => "paused",
            Self::Stopped(stop) => stop.name(),
            Self::Unavailable => "unavailable",
            Self::NotAllowed => "not_allowed",
            Self::Model { .. } => "model",
            Self::Exhausted { .. } | Self::Cooling { cause: Cause::Quota | Cause::Rate, .. } => {
                "limited"
            }
            Self::Capped { .. } => "capped",
            Self::Cooling { .. } => "cooling",
            Self::Backoff { .. } => "backoff",
            Self::Busy => "busy",
            Self::Probing { .. } => "probing",
        }
    }
}

/// What keeps the account from ordinary work, whatever the request.
pub fn state(account: &Account, now: Timestamp) -> Result<Fit, Reason> {
    trouble(account, None, now)?;
    spent(account, now)
}

/// The provider says that none of the ordinary quota is left, whatever else is wrong.
pub fn is_exhausted(account: &Account, now: Timestamp) -> bool {
    let exhausted = || matches!(spent(account, now), Err(Reason::Exhausted { .. }));
    account.health.is_out_of_quota(now) || exhausted()
}

/// May it serve `ask` now?
pub fn availability(account: &Account, ask: Ask<'_>, now: Timestamp) -> Result<Fit, Reason> {
    if !account.kind.serves(ask.surface, account.speaks) {
        return Err(Reason::Unfit);
    }
    let fits = |pattern: &String| ask.model.is_empty() || model_matches(pattern, ask.model);
    if !account.models.is_empty() && !account.models.iter().any(fits) {
        return Err(Reason::NotAllowed);
    }
    let gate = ask.gate.filter(|gate| gate.governs(account.plan.as_deref()));
    trouble(account, gate, now)?;
    if let Some(reason) = of_model(account, ask, now) {
        return Err(reason);
    }
    let fit = match gate {
        Some(gate) => gated(account, gate, now)?,
        None => spent(account, now)?,
    };
    // Counting tokens spends nothing, and clients send dozens of them at once.
    let counted = ask.surface != Surface::CountTokens;
    if counted && slots(account).is_some_and(|slots| account.in_flight >= slots) {
        return Err(Reason::Busy);
    }
    Ok(fit)
}

/// Of all that keeps the account from serving `ask` for a time, what ends last: [`availability`]
/// names what it comes upon first, and the account is no use before it is rid of all. An end that is
/// unknown may be the furthest away.
pub fn last_reason(account: &Account, ask: Ask<'_>, now: Timestamp) -> Option<Reason> {
    let gate = ask.gate.filter(|gate| gate.governs(account.plan.as_deref()));
    let windows = match gate {
        Some(gate) => gated(account, gate, now),
        None => spent(account, now),
    };
    // Whoever probes will be back in a moment.
    let windows = windows.err().filter(|reason| !matches!(reason, Reason::Probing { .. }));
    let all =
        [cooling(account, gate, now), backoff(account, now), of_model(account, ask, now), windows];
    let end = |reason: &Reason| reason.until().unwrap_or(Timestamp(i64::MAX));
    all.into_iter().flatten().max_by_key(end)
}

/// Attempts at the same time: what an operator allows, and no more than what the upstream was learnt
/// to take. `None`: any number.
pub fn slots(account: &Account) -> Option<u32> {
    let allowed = Some(account.max_in_flight).filter(|allowed| *allowed > 0);
    allowed.into_iter().chain(account.health.concurrency.limit()).min()
}

/// Everything but quota windows.
fn trouble(account: &Account, gate: Option<&Gate>, now: Timestamp) -> Result<(), Reason> {
    if account.paused {
        return Err(Reason::Paused);
    }
    if let Some(stop) = account.health.stop {
        return Err(Reason::Stopped(stop));
    }
    if !account.has_credential {
        return Err(Reason::Unavailable);
    }
    match cooling(account, gate, now).or_else(|| backoff(account, now)) {
        Some(reason) => Err(reason),
        None => Ok(()),
    }
}

fn cooling(account: &Account, gate: Option<&Gate>, now: Timestamp) -> Option<Reason> {
    let blocked = match gate {
        Some(_) => account.health.blocked_gated(now),
        None => account.health.blocked(now),
    };
    blocked.map(|Block { cause, until, .. }| Reason::Cooling { cause, until })
}

fn backoff(account: &Account, now: Timestamp) -> Option<Reason> {
    let until = account.health.backoff_until().filter(|until| now < *until)?;
    Some(Reason::Backoff { until })
}

fn of_model(account: &Account, ask: Ask<'_>, now: Timestamp) -> Option<Reason> {
    let block = account.health.model_block(ask.model, now)?;
    let is_left = || is_left_since(account, ask, block.since, now);
    let (cause, until) = if block.cause == ModelCause::Quota && is_left() {
        (ModelCause::Overload, block.overloaded_until)
    } else {
        (block.cause, block.until)
    };
    (now < until).then_some(Reason::Model { cause, until })
}

/// Only a fresh row of the gated limit that is spent excludes; a missing one does not.
fn gated(account: &Account, gate: &Gate, now: Timestamp) -> Result<Fit, Reason> {
    let spent = |w: &&Window| w.used_at(now) == Fraction::ONE && w.resets_at.is_some();
    match gate.windows(account, now).filter(spent).max_by_key(|w| w.resets_at) {
        Some(w) => Err(Reason::Exhausted { until: w.resets_at }),
        None => Ok(Fit::Ready),
    }
}

/// Every ordinary window that is known leaves room for new work.
pub fn is_below_caps(account: &Account, now: Timestamp) -> bool {
    account.quota.ordinary().all(|w| w.used_at(now) < w.cap(account.caps))
}

/// Of several spent windows the one that resets last decides: until then none of it helps.
///
/// A snapshot two hours old no longer pauses the account. Whoever is being served keeps its snapshot
/// fresh, so only an account that was left alone gets there, and one wrong number would otherwise
/// leave it alone until its reset.
fn spent(account: &Account, now: Timestamp) -> Result<Fit, Reason> {
    let full = |w: &&Window| w.used_at(now) >= w.cap(account.caps);
    let fresh = |w: &&Window| now < w.observed_at.plus(STALE_AFTER);
    // An unknown reset may be the furthest away.
    let last = |w: &&Window| w.resets_at.unwrap_or(Timestamp(i64::MAX));
    if let Some(w) = account.quota.ordinary().filter(full).filter(fresh).max_by_key(last) {
        return Err(if w.used_at(now) == Fraction::ONE {
            Reason::Exhausted { until: w.resets_at }
        } else {
            Reason::Capped { until: w.resets_at }
        });
    }
    if is_below_caps(account, now) {
        return Ok(Fit::Ready);
    }
    match account.probing_until {
        Some(until) if now < until => Err(Reason::Probing { until }),
        _ => Ok(Fit::Probe),
    }
}

#[cfg(test)]
#[path = "availability_tests.rs"]
pub(crate) mod tests;
