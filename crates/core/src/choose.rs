//! Of the accounts that may serve a request, which one should?
//!
//! The pipeline: availability, hard owner, affinity, priority, strategy. The order of `accounts` is
//! the pool's; ties go to the first. Equal input and seed give an equal answer, so that a decision
//! can be replayed.

use std::time::Duration;

use crate::account::AccountId;
use crate::availability::{Account, Ask, Fit, Reason, availability, last_reason};
use crate::health::ModelCause;
use crate::strategy::{Pick, Strategy};
use crate::units::Timestamp;

/// One choice to be made.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    pub ask: Ask<'a>,
    pub strategy: Strategy,
    /// In percent points of a weight-1 plan; see [`Because::Rebalanced`].
    pub rebalance_threshold: Option<f64>,
    /// Only this account has the state the request refers to.
    pub owner: Option<AccountId>,
    /// Where the session's prompt cache is warm.
    pub home: Option<AccountId>,
    /// Accounts this request has already failed on.
    pub tried: &'a [AccountId],
    /// Counts choices; drives round-robin.
    pub turn: u64,
    /// Drives the random strategies.
    pub seed: u64,
    pub now: Timestamp,
}

/// Nobody, and what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No account of a kind that serves this surface.
    Unfit,
    /// No account may serve this model.
    ModelNotAllowed,
    /// Every upstream that was asked says there is no such model.
    ModelMissing,
    /// Accounts could serve, but each has as many attempts in flight as it may.
    Busy,
    /// None can now.
    Later(Later),
    /// Only an operator can help.
    Operator,
    /// Some could serve, but this request has failed on each of them.
    AllTried {
        /// When the first of the others is able again: worth waiting for.
        untried_until: Option<Timestamp>,
    },
    /// The account that owns the request's state cannot serve now; `None`: nor by waiting.
    Owner(Option<Later>),
}

/// Waiting for a slot, when every account that could serve is busy.
pub const BUSY_WAIT: Duration = Duration::from_secs(10);
/// Waiting for a short cooldown to end.
pub const COOLDOWN_WAIT: Duration = Duration::from_mins(1);

/// How long a request goes on waiting: ten seconds for a slot, counted from when nothing but slots
/// was missing; a minute in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long it had waited when a slot was all it wanted; `None`: it wants something else.
    busy_from: Option<Duration>,
}

impl Default for Patience {
    /// A request that has just come.
    fn default() -> Self {
        Self { busy_from: Some(Duration::ZERO) }
    }
}

impl Patience {
    /// Until when a request that has waited for `waited` should go on, if nobody becomes able
    /// before; `None`: the client is told now.
    pub fn until(
        &mut self,
        refusal: Refusal,
        waited: Duration,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let left = now.plus(COOLDOWN_WAIT.saturating_sub(waited));
        let until = match refusal {
            Refusal::Busy => {
                let from = *self.busy_from.get_or_insert(waited);
                let slot = BUSY_WAIT.saturating_sub(waited.saturating_sub(from));
                return Some(now.plus(slot).min(left)).filter(|until| now < *until);
            }
            // A moment past the reason's end, when it surely no longer holds.
            Refusal::Later(Later { untried_until, .. })
            | Refusal::Owner(Some(Later { untried_until, .. }))
            | Refusal::AllTried { untried_until } => {
                untried_until.map(|at| at.max(now).plus(Duration::from_millis(1)))
            }
            _ => None,
        };
        self.busy_from = None;
        until.filter(|end| *end <= left)
    }
}

impl Refusal {
    /// Stable words for people and tests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unfit => "no account of a fitting kind",
            Self::ModelNotAllowed => "the model is enabled on no account",
            Self::ModelMissing => "no upstream knows the model",
            Self::Busy => "all are busy",
            Self::Later(Later { quota: true, .. }) => "all quota is spent",
            Self::Later(_) => "none can right now",
            Self::Operator => "only an operator can help",
            Self::AllTried { .. } => "it failed on each",
            Self::Owner(_) => "the owner of its state cannot",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Later {
    /// When the first of them is rid of all its reasons, as far as that is known.
    pub until: Option<Timestamp>,
    /// The same among accounts this request has not failed on: worth waiting for.
    pub untried_until: Option<Timestamp>,
    /// Only spent quota is at fault.
    pub quota: bool,
}

/// An account for one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub id: AccountId,
    pub because: Because,
    /// Its snapshot is stale: this one attempt finds out how it is, and the others wait for that.
    pub probes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// It alone has the state the request refers to.
    Owner,
    /// The session's prompt cache is warm there.
    Home,
    Strategy,
    /// The session's home has fallen too far behind: all its sessions in this pool move.
    Rebalanced {
        from: AccountId,
    },
}

impl Because {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Home => "affinity",
            Self::Strategy => "strategy",
            Self::Rebalanced { .. } => "rebalance",
        }
    }
}

/// Picks the account for one attempt.
pub fn choose(accounts: &[&Account], choice: &Choice<'_>) -> Result<Chosen, Refusal> {
    choose_among(accounts, &fits(accounts, choice), choice)
}

/// Whether each of them may serve the request, tried or not.
pub fn fits(accounts: &[&Account], choice: &Choice<'_>) -> Vec<Result<Fit, Reason>> {
    accounts.iter().map(|a| availability(a, choice.ask, choice.now)).collect()
}

/// The same as [`choose`], for who has asked for their [`fits`] already.
pub fn choose_among(
    accounts: &[&Account],
    fits: &[Result<Fit, Reason>],
    choice: &Choice<'_>,
) -> Result<Chosen, Refusal> {
    if let Some(owner) = choice.owner {
        return choose_owner(accounts, fits, owner, choice);
    }
    // `single` means the first account or nobody.
    let accounts = match choice.strategy {
        Strategy::Single => &accounts[..accounts.len().min(1)],
        _ => accounts,
    };
    let untried = accounts.iter().zip(fits).filter(|(a, _)| !choice.tried.contains(&a.id));
    // Nearly all are able nearly always: room for them at once, here and below.
    let mut able: Vec<(&Account, Fit)> = Vec::with_capacity(accounts.len());
    able.extend(untried.filter_map(|(a, fit)| Some((*a, (*fit).ok()?))));
    let Some(first) = able.iter().map(|(a, _)| a.priority).min() else {
        return Err(refusal(accounts, fits, choice));
    };
    let probes = |id| able.iter().any(|(a, fit)| a.id == id && *fit == Fit::Probe);
    let pick = Pick { ask: choice.ask, turn: choice.turn, seed: choice.seed, now: choice.now };
    let home = choice.home.filter(|_| choice.strategy.sticks());
    if let Some((home, _)) = able.iter().find(|(a, _)| Some(a.id) == home) {
        let better = rebalance(&able, home, choice, &pick);
        return Ok(match better {
            Some(id) => {
                Chosen { id, because: Because::Rebalanced { from: home.id }, probes: probes(id) }
            }
            None => Chosen { id: home.id, because: Because::Home, probes: probes(home.id) },
        });
    }
    let mut open: Vec<&Account> = Vec::with_capacity(able.len());
    open.extend(able.iter().map(|(a, _)| *a).filter(|a| a.priority == first));
    let in_turn = match choice.strategy {
        Strategy::RoundRobin => in_turn(accounts, fits, first),
        _ => Vec::new(),
    };
    let id = pick.among(choice.strategy, &open, &in_turn).id;
    Ok(Chosen { id, because: Because::Strategy, probes: probes(id) })
}

/// Who would be asked if they were able: an account that never serves such a request has no turn,
/// which the next one would get besides its own.
fn in_turn<'a>(
    accounts: &[&'a Account],
    fits: &[Result<Fit, Reason>],
    priority: i32,
) -> Vec<&'a Account> {
    let unfit = |fit: &Result<Fit, Reason>| matches!(fit, Err(Reason::Unfit | Reason::NotAllowed));
    let fitting = accounts.iter().zip(fits).filter(|(_, fit)| !unfit(fit)).map(|(a, _)| *a);
    fitting.filter(|a| a.priority == priority).collect()
}

/// Least-used only: the account to move to when weekly used(home) − used(best) > threshold /
/// weight(home), in percent points of the limit that the request spends.
fn rebalance(
    able: &[(&Account, Fit)],
    home: &Account,
    choice: &Choice<'_>,
    pick: &Pick<'_>,
) -> Option<AccountId> {
    let threshold = choice.rebalance_threshold.filter(|t| *t > 0.0)?;
    if choice.strategy != Strategy::LeastUsed {
        return None;
    }
    let open: Vec<&Account> =
        able.iter().map(|(a, _)| *a).filter(|a| a.priority == home.priority).collect();
    let best = pick.among(Strategy::LeastUsed, &open, &open);
    let behind = pick.weekly_used(home) - pick.weekly_used(best);
    (best.id != home.id && behind > threshold / home.weight).then_some(best.id)
}

fn choose_owner(
    accounts: &[&Account],
    fits: &[Result<Fit, Reason>],
    owner: AccountId,
    choice: &Choice<'_>,
) -> Result<Chosen, Refusal> {
    let Some(at) = accounts.iter().position(|a| a.id == owner) else {
        return Err(Refusal::Owner(None));
    };
    match fits[at] {
        Ok(_) | Err(Reason::Busy | Reason::Probing { .. }) if choice.tried.contains(&owner) => {
            Err(Refusal::AllTried { untried_until: None })
        }
        Ok(fit) => Ok(Chosen { id: owner, because: Because::Owner, probes: fit == Fit::Probe }),
        Err(Reason::Busy | Reason::Probing { .. }) => Err(Refusal::Busy),
        // These do not pass by waiting.
        Err(
            Reason::Unfit
            | Reason::NotAllowed
            | Reason::Paused
            | Reason::Stopped(_)
            | Reason::Unavailable,
        ) => Err(Refusal::Owner(None)),
        Err(first) => Err(Refusal::Owner(Some(Later::of(accounts[at], first, choice)))),
    }
}

impl Later {
    /// Of an account that `first` keeps from serving for a time: when it is rid of all its reasons.
    fn of(account: &Account, first: Reason, choice: &Choice<'_>) -> Self {
        let last = last_reason(account, choice.ask, choice.now).unwrap_or(first);
        let until = last.until();
        let untried_until = until.filter(|_| !choice.tried.contains(&account.id));
        Self { until, untried_until, quota: last.is_quota() }
    }

    fn or_sooner(self, other: Self) -> Self {
        let sooner = |a: Option<Timestamp>, b: Option<Timestamp>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self {
            until: sooner(self.until, other.until),
            untried_until: sooner(self.untried_until, other.untried_until),
            quota: self.quota && other.quota,
        }
    }
}

/// Why nobody: the most hopeful of the reasons.
fn refusal(accounts: &[&Account], fits: &[Result<Fit, Reason>], choice: &Choice<'_>) -> Refusal {
    let (mut fit, mut not_allowed, mut missing) = (0, 0, 0);
    let (mut busy, mut tried) = (false, false);
    let mut later: Option<Later> = None;
    for (account, fit_or_reason) in accounts.iter().zip(fits) {
        match *fit_or_reason {
            Err(Reason::Unfit) => continue,
            Err(Reason::NotAllowed) => not_allowed += 1,
            // What frees it would not help a request that has failed on it.
            Err(Reason::Busy | Reason::Probing { .. }) if choice.tried.contains(&account.id) => {
                tried = true;
            }
            // Whoever probes will be back in a moment, one way or the other.
            Err(Reason::Busy | Reason::Probing { .. }) => busy = true,
            Err(Reason::Paused | Reason::Stopped(_) | Reason::Unavailable) => {}
            Err(Reason::Model { cause: ModelCause::Missing, .. }) => missing += 1,
            Err(first) => {
                let one = Later::of(account, first, choice);
                later = Some(later.map_or(one, |known| known.or_sooner(one)));
            }
            Ok(_) => tried = true,
        }
        fit += 1;
    }
    match later {
        _ if fit == 0 => Refusal::Unfit,
        _ if busy => Refusal::Busy,
        _ if tried => {
            Refusal::AllTried { untried_until: later.and_then(|later| later.untried_until) }
        }
        Some(later) => Refusal::Later(later),
        None if missing > 0 => Refusal::ModelMissing,
        None if not_allowed == fit => Refusal::ModelNotAllowed,
        None => Refusal::Operator,
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
