//! Of the accounts that may serve a request, which one should?
//!
//! The pipeline: availability, hard owner, affinity, priority, strategy. The order of `accounts` is
//! the pool's; ties go to the first. Equal input and seed give an equal answer, so that a decision
//! can be replayed.

use crate::account::AccountId;
use crate::availability::{Account, Ask, Fit, Reason, availability};
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
    AllTried,
    /// The account that owns the request's state cannot serve now.
    Owner { reason: Option<Reason> },
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
            Self::AllTried => "it failed on each",
            Self::Owner { .. } => "the owner of its state cannot",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Later {
    /// The earliest known end of anyone's reason.
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
    let able: Vec<(&Account, Fit)> = accounts
        .iter()
        .zip(fits)
        .filter(|(a, _)| !choice.tried.contains(&a.id))
        .filter_map(|(a, fit)| Some((*a, (*fit).ok()?)))
        .collect();
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
    let open: Vec<&Account> =
        able.iter().map(|(a, _)| *a).filter(|a| a.priority == first).collect();
    let id = pick.among(choice.strategy, &open, accounts).id;
    Ok(Chosen { id, because: Because::Strategy, probes: probes(id) })
}

/// Least-used only: the account to move to when weekly used(home) − used(best) > threshold /
/// weight(home), in percent points.
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
    let weekly = |a: &Account| a.quota.weekly().map_or(0.0, |w| w.used_at(choice.now).percent());
    let behind = weekly(home) - weekly(best);
    (best.id != home.id && behind > threshold / home.weight).then_some(best.id)
}

fn choose_owner(
    accounts: &[&Account],
    fits: &[Result<Fit, Reason>],
    owner: AccountId,
    choice: &Choice<'_>,
) -> Result<Chosen, Refusal> {
    let Some(at) = accounts.iter().position(|a| a.id == owner) else {
        return Err(Refusal::Owner { reason: None });
    };
    match fits[at] {
        Ok(_) if choice.tried.contains(&owner) => Err(Refusal::AllTried),
        Ok(fit) => Ok(Chosen { id: owner, because: Because::Owner, probes: fit == Fit::Probe }),
        Err(Reason::Busy) => Err(Refusal::Busy),
        Err(reason) => Err(Refusal::Owner { reason: Some(reason) }),
    }
}

/// Why nobody: the most hopeful of the reasons.
fn refusal(accounts: &[&Account], fits: &[Result<Fit, Reason>], choice: &Choice<'_>) -> Refusal {
    let sooner = |a: Option<Timestamp>, b: Option<Timestamp>| match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let (mut fit, mut not_allowed, mut missing) = (0, 0, 0);
    let (mut busy, mut tried) = (false, false);
    let mut later: Option<Later> = None;
    for (account, fit_or_reason) in accounts.iter().zip(fits) {
        match *fit_or_reason {
            Err(Reason::Unfit) => continue,
            Err(Reason::NotAllowed) => not_allowed += 1,
            // Whoever probes will be back in a moment, one way or the other.
            Err(Reason::Busy | Reason::Probing { .. }) => busy = true,
            Err(Reason::Paused | Reason::Stopped(_) | Reason::Unavailable) => {}
            Err(Reason::Model { missing: true, .. }) => missing += 1,
            Err(reason) => {
                let known =
                    later.unwrap_or(Later { until: None, untried_until: None, quota: true });
                let untried = reason.until().filter(|_| !choice.tried.contains(&account.id));
                later = Some(Later {
                    until: sooner(known.until, reason.until()),
                    untried_until: sooner(known.untried_until, untried),
                    quota: known.quota && reason.is_quota(),
                });
            }
            Ok(_) => tried = true,
        }
        fit += 1;
    }
    match later {
        _ if fit == 0 => Refusal::Unfit,
        _ if busy => Refusal::Busy,
        _ if tried => Refusal::AllTried,
        Some(later) => Refusal::Later(later),
        None if missing > 0 => Refusal::ModelMissing,
        None if not_allowed == fit => Refusal::ModelNotAllowed,
        None => Refusal::Operator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{Kind, Surface};
    use crate::availability::tests::{NOW, account, later, used};
    use crate::health::{Cause, Stop};

    fn choice(strategy: Strategy) -> Choice<'static> {
        Choice {
            ask: Ask { surface: Surface::Responses, model: "gpt-5.5", gate: None },
            strategy,
            rebalance_threshold: None,
            owner: None,
            home: None,
            tried: &[],
            turn: 0,
            seed: 1,
            now: NOW,
        }
    }

    fn pick(accounts: &[Account], choice: &Choice<'_>) -> Result<i64, Refusal> {
        choose(&accounts.iter().collect::<Vec<_>>(), choice).map(|chosen| chosen.id.0)
    }

    fn with(mut account: Account, change: impl FnOnce(&mut Account)) -> Account {
        change(&mut account);
        account
    }

    #[test]
    #[rustfmt::skip]
    fn chooses() {
        use Strategy::{Fallback, Headroom, LeastUsed};
        let second = |a| with(a, |a| a.priority = 1);
        let spent = used(1, 10.0, 100.0);
        let home = |strategy, id| Choice { home: Some(AccountId(id)), ..choice(strategy) };
        let owner = |id| Choice { owner: Some(AccountId(id)), ..choice(Headroom) };
        let cases = [
            ("most left",               vec![used(1, 5.0, 60.0), used(2, 5.0, 20.0)], choice(LeastUsed), Ok(2)),
            ("a tie goes to the first", vec![used(1, 5.0, 20.0), used(2, 5.0, 20.0)], choice(LeastUsed), Ok(1)),
            ("weight counts",           vec![used(1, 5.0, 20.0), with(used(2, 5.0, 60.0), |a| a.weight = 5.0)], choice(LeastUsed), Ok(2)),
            ("home before score",       vec![used(1, 5.0, 60.0), used(2, 5.0, 20.0)], home(LeastUsed, 1), Ok(1)),
            ("a spent home is left",    vec![spent.clone(), used(2, 5.0, 20.0)],      home(LeastUsed, 1), Ok(2)),
            ("fallback: no home",       vec![used(1, 5.0, 60.0), used(2, 5.0, 20.0)], home(Fallback, 2),  Ok(1)),
            ("the key comes second",    vec![second(account(1)), used(2, 98.0, 98.0)], choice(Headroom),  Ok(2)),
            ("the key when all else is spent", vec![second(account(2)), spent.clone()], choice(Headroom), Ok(2)),
            ("owner only",              vec![account(1), account(2)],                 owner(2),           Ok(2)),
            ("tried is skipped",        vec![account(1), account(2)], Choice { tried: &[AccountId(1)], ..choice(Fallback) }, Ok(2)),
        ];
        for (name, accounts, choice, want) in cases {
            assert_eq!(pick(&accounts, &choice), want, "{name}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn refuses() {
        let claude = with(account(1), |a| a.kind = Kind::Claude);
        let paused = with(account(1), |a| a.paused = true);
        let broken = with(account(2), |a| a.health.stop = Some(Stop::NeedsLogin));
        let cooling = with(account(3), |a| a.health.block(Cause::Rate, later(9), NOW));
        let full = with(account(4), |a| { a.max_in_flight = 1; a.in_flight = 1; });
        let other = with(account(5), |a| a.models = vec!["o4".into()]);
        let spent = used(6, 100.0, 10.0);
        let wait = |seconds, quota| {
            let at = Some(later(seconds));
            Refusal::Later(Later { until: at, untried_until: at, quota })
        };
        let missing = with(account(7), |a| a.health.model_missing("gpt-5.5", NOW));
        let cases = [
            ("nobody",          vec![],                                Refusal::Unfit),
            ("wrong kind",      vec![claude],                          Refusal::Unfit),
            ("other models",    vec![other.clone()],                   Refusal::ModelNotAllowed),
            ("unknown model",   vec![missing, other.clone()],          Refusal::ModelMissing),
            ("operator",        vec![paused.clone(), broken.clone()],  Refusal::Operator),
            ("soonest",         vec![cooling.clone(), spent.clone()],  wait(9, false)),
            ("all quota",       vec![spent.clone(), paused, other],    wait(3600, true)),
            ("busy wins",       vec![full, spent, broken],             Refusal::Busy),
        ];
        for (name, accounts, want) in cases {
            assert_eq!(pick(&accounts, &choice(Strategy::Headroom)), Err(want), "{name}");
        }
        let tried = Choice { tried: &[AccountId(1)], ..choice(Strategy::Headroom) };
        assert_eq!(pick(&[account(1), cooling], &tried), Err(Refusal::AllTried));
        let owner = Choice { owner: Some(AccountId(6)), ..choice(Strategy::Headroom) };
        let reason = Some(Reason::Exhausted { until: Some(later(3600)) });
        assert_eq!(pick(&[account(1), used(6, 100.0, 10.0)], &owner), Err(Refusal::Owner { reason }));
    }

    #[test]
    fn rebalance_moves_a_session_that_fell_behind_its_plans_share() {
        let rebalanced = |weight: f64, home_used: f64| {
            let home = with(used(1, 5.0, home_used), |a| a.weight = weight);
            let accounts = [home, with(used(2, 5.0, 10.0), |a| a.weight = weight)];
            let choice = Choice {
                home: Some(AccountId(1)),
                rebalance_threshold: Some(20.0),
                ..choice(Strategy::LeastUsed)
            };
            choose(&accounts.iter().collect::<Vec<_>>(), &choice).unwrap().because
        };
        let moved = Because::Rebalanced { from: AccountId(1) };
        // 2 points at weight 10, 4 at weight 5, 20 at weight 1.
        for (weight, points) in [(10.0, 2.0), (5.0, 4.0), (1.0, 20.0)] {
            assert_eq!(rebalanced(weight, 10.0 + points), Because::Home, "weight {weight}");
            assert_eq!(rebalanced(weight, 10.5 + points), moved, "weight {weight}");
        }
    }

    #[test]
    fn single_is_the_first_or_nobody() {
        let accounts = [with(account(1), |a| a.paused = true), account(2)];
        assert_eq!(pick(&accounts, &choice(Strategy::Single)), Err(Refusal::Operator));
        assert_eq!(pick(&[account(1), account(2)], &choice(Strategy::Single)), Ok(1));
    }

    #[test]
    fn round_robin_takes_turns_and_skips_the_unable() {
        let accounts = [account(1), used(2, 100.0, 0.0), account(3)];
        let turns = (0..6)
            .map(|turn| pick(&accounts, &Choice { turn, ..choice(Strategy::RoundRobin) }).unwrap());
        assert_eq!(turns.collect::<Vec<_>>(), [1, 3, 3, 1, 3, 3]);
    }
}
