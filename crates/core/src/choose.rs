//! Of the accounts that may serve a request, which one should?
//!
//! The pipeline: availability, hard owner, affinity, priority, strategy. The order of `accounts` is
//! the pool's; ties go to the first. Equal input and seed give an equal answer, so that a decision
//! can be replayed.

use std::cmp::Ordering;
use std::time::Duration;

use crate::account::AccountId;
use crate::availability::{Account, Ask, Reason, availability};
use crate::quota::Window;
use crate::units::Timestamp;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// In proportion to what each account can still give until its windows reset.
    #[default]
    Headroom,
    /// Most weekly quota left, weighted by plan and by how soon it would be lost.
    LeastUsed,
    /// The next one in order, each time.
    RoundRobin,
    Random,
    /// The first one in order; sessions do not stick.
    Fallback,
}

impl Strategy {
    pub const ALL: [Self; 5] = [
        Self::Headroom,
        Self::LeastUsed,
        Self::RoundRobin,
        Self::Random,
        Self::Fallback,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Headroom => "headroom",
            Self::LeastUsed => "least-used",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::Fallback => "fallback",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.name() == name)
    }
}

/// One choice to be made.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    pub ask: Ask<'a>,
    pub strategy: Strategy,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Later {
    /// The earliest known end of anyone's reason.
    pub until: Option<Timestamp>,
    /// The same among accounts this request has not failed on: worth waiting for.
    pub untried_until: Option<Timestamp>,
    /// Only spent quota is at fault.
    pub quota: bool,
}

/// Picks the account for one attempt.
pub fn choose(accounts: &[&Account], choice: &Choice<'_>) -> Result<AccountId, Refusal> {
    if let Some(owner) = choice.owner {
        return choose_owner(accounts, owner, choice);
    }
    let open: Vec<&Account> = accounts
        .iter()
        .copied()
        .filter(|a| !choice.tried.contains(&a.id))
        .filter(|a| availability(a, choice.ask, choice.now).is_ok())
        .collect();
    let Some(first) = open.iter().map(|a| a.priority).min() else {
        return Err(refusal(accounts, choice));
    };
    let sticks = choice.strategy != Strategy::Fallback;
    if let Some(home) = choice
        .home
        .filter(|home| sticks && open.iter().any(|a| a.id == *home))
    {
        return Ok(home);
    }
    let open: Vec<&Account> = open.into_iter().filter(|a| a.priority == first).collect();
    Ok(by_strategy(&open, accounts, choice).id)
}

fn choose_owner(
    accounts: &[&Account],
    owner: AccountId,
    choice: &Choice<'_>,
) -> Result<AccountId, Refusal> {
    let Some(account) = accounts.iter().find(|a| a.id == owner) else {
        return Err(Refusal::Owner { reason: None });
    };
    match availability(account, choice.ask, choice.now) {
        Ok(()) if choice.tried.contains(&owner) => Err(Refusal::AllTried),
        Ok(()) => Ok(owner),
        Err(Reason::Busy) => Err(Refusal::Busy),
        Err(reason) => Err(Refusal::Owner {
            reason: Some(reason),
        }),
    }
}

/// `open` is not empty.
fn by_strategy<'a>(open: &[&'a Account], all: &[&Account], choice: &Choice<'_>) -> &'a Account {
    let (seed, now) = (choice.seed, choice.now);
    let count = u64::try_from(open.len()).unwrap_or(1);
    let nth = |n: u64| open[usize::try_from(n % count).unwrap_or(0)];
    match choice.strategy {
        Strategy::Fallback => open[0],
        Strategy::Random => nth(mix(seed)),
        Strategy::RoundRobin => {
            // Counted over the whole pool, so that an account that drops out does not shift the
            // turn of the others.
            let all_count = u64::try_from(all.len()).unwrap_or(1).max(1);
            let start = usize::try_from(choice.turn % all_count).unwrap_or(0);
            let mut order = all[start..].iter().chain(&all[..start]);
            order
                .find_map(|a| open.iter().find(|o| o.id == a.id))
                .copied()
                .unwrap_or(open[0])
        }
        Strategy::LeastUsed => best(open, |a| least_used_score(a, now)),
        Strategy::Headroom => {
            draw(open, |a| headroom_score(a, now), seed).unwrap_or_else(|| nth(mix(seed)))
        }
    }
}

/// (cap − used) · weight · 168 / max(hours to reset, 1), of the weekly window. An account whose
/// weekly window is unknown counts as unused.
pub fn least_used_score(account: &Account, now: Timestamp) -> f64 {
    let weekly = account.quota.weekly();
    let cap = account.caps.weekly;
    let remaining = weekly.map_or(cap, |w| cap.less(w.used_at(now)));
    let factor = weekly
        .and_then(|w| w.resets_at)
        .filter(|at| now < *at)
        .map_or(1.0, |at| 168.0 / hours(now.until(at)).max(1.0));
    remaining.percent() * account.weight * factor
}

/// A weekly window holds about this many 5-hour windows. A planning figure from public reports; it
/// only has to put the two windows of one account on one scale.
const WEEKLY_IN_FIVE_HOURS: f64 = 8.0;

/// The rate, in 5-hour windows of a weight-1 plan per hour, that the account can keep up until its
/// windows reset; lessened by what is in flight and by recent errors.
pub fn headroom_score(account: &Account, now: Timestamp) -> f64 {
    let rate = |w: &Window| {
        let remaining = w.cap(account.caps).less(w.used_at(now)).share();
        let (units, least) = if w.is_short() {
            (1.0, 0.5)
        } else {
            (WEEKLY_IN_FIVE_HOURS, 1.0)
        };
        let left = w
            .resets_at
            .filter(|at| now < *at)
            .map_or(w.length, |at| now.until(at));
        remaining * units * account.weight / hours(left).max(least)
    };
    let sustainable = account.quota.ordinary().map(rate).min_by(f64::total_cmp);
    let idle = account.weight * WEEKLY_IN_FIVE_HOURS / 168.0;
    let busy = 1.0 + f64::from(account.in_flight) / (4.0 * account.weight);
    let trust = 0.5_f64.powi(i32::try_from(account.health.errors.min(8)).unwrap_or(8));
    sustainable.unwrap_or(idle) / busy * trust
}

fn hours(span: Duration) -> f64 {
    span.as_secs_f64() / 3600.0
}

/// The first of the highest.
fn best<'a>(open: &[&'a Account], score: impl Fn(&Account) -> f64) -> &'a Account {
    let mut best = (open[0], score(open[0]));
    for account in &open[1..] {
        let score = score(account);
        if score.total_cmp(&best.1) == Ordering::Greater {
            best = (account, score);
        }
    }
    best.0
}

/// Draws in proportion to the scores; `None` when all are zero.
fn draw<'a>(
    open: &[&'a Account],
    score: impl Fn(&Account) -> f64,
    seed: u64,
) -> Option<&'a Account> {
    let scores: Vec<f64> = open.iter().map(|a| score(a).max(0.0)).collect();
    let total: f64 = scores.iter().sum();
    if total <= 0.0 {
        return None;
    }
    let mut point = unit(seed) * total;
    for (account, score) in open.iter().zip(&scores) {
        if point < *score {
            return Some(account);
        }
        point -= score;
    }
    // Rounding may leave a hair: the last that has any score takes it.
    open.iter()
        .zip(&scores)
        .rev()
        .find(|(_, score)| **score > 0.0)
        .map(|(account, _)| *account)
}

/// `SplitMix64`: one well-mixed number from a seed.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
fn unit(seed: u64) -> f64 {
    (mix(seed) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Why nobody: the most hopeful of the reasons.
fn refusal(accounts: &[&Account], choice: &Choice<'_>) -> Refusal {
    let sooner = |a: Option<Timestamp>, b: Option<Timestamp>| match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let (mut fit, mut not_allowed, mut missing) = (0, 0, 0);
    let (mut busy, mut tried) = (false, false);
    let mut later: Option<Later> = None;
    for account in accounts {
        match availability(account, choice.ask, choice.now) {
            Err(Reason::Unfit) => continue,
            Err(Reason::NotAllowed) => not_allowed += 1,
            Err(Reason::Busy) => busy = true,
            Err(Reason::Paused | Reason::Stopped(_) | Reason::Unavailable) => {}
            Err(Reason::Model { missing: true, .. }) => missing += 1,
            Err(reason) => {
                let known = later.unwrap_or(Later {
                    until: None,
                    untried_until: None,
                    quota: true,
                });
                let untried = reason
                    .until()
                    .filter(|_| !choice.tried.contains(&account.id));
                later = Some(Later {
                    until: sooner(known.until, reason.until()),
                    untried_until: sooner(known.untried_until, untried),
                    quota: known.quota && reason.is_quota(),
                });
            }
            Ok(()) => tried = true,
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
            ask: Ask {
                surface: Surface::Responses,
                model: "gpt-5.5",
            },
            strategy,
            owner: None,
            home: None,
            tried: &[],
            turn: 0,
            seed: 1,
            now: NOW,
        }
    }

    fn pick(accounts: &[Account], choice: &Choice<'_>) -> Result<i64, Refusal> {
        choose(&accounts.iter().collect::<Vec<_>>(), choice).map(|id| id.0)
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
    fn headroom_spreads_in_proportion() {
        // One 5-hour window of four times the rate of the other.
        let accounts = [used(1, 80.0, 0.0), used(2, 20.0, 0.0)];
        let scores = accounts.each_ref().map(|a| headroom_score(a, NOW));
        assert!(scores[0] < scores[1]);
        let first = (0..10_000)
            .filter(|seed| {
                pick(
                    &accounts,
                    &Choice {
                        seed: *seed,
                        ..choice(Strategy::Headroom)
                    },
                ) == Ok(1)
            })
            .count();
        let share = scores[0] / (scores[0] + scores[1]);
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let got = first as f64 / 10_000.0;
        assert!((got - share).abs() < 0.02, "wanted {share}, got {got}");
    }

    #[test]
    fn round_robin_takes_turns_and_skips_the_unable() {
        let accounts = [account(1), used(2, 100.0, 0.0), account(3)];
        let turns = (0..6).map(|turn| {
            pick(
                &accounts,
                &Choice {
                    turn,
                    ..choice(Strategy::RoundRobin)
                },
            )
            .unwrap()
        });
        assert_eq!(turns.collect::<Vec<_>>(), [1, 3, 3, 1, 3, 3]);
    }

    #[test]
    fn a_failing_account_attracts_less() {
        let well = account(1);
        let failing = with(account(2), |a| a.health.error(NOW));
        assert!(headroom_score(&failing, NOW) < headroom_score(&well, NOW));
    }
}
