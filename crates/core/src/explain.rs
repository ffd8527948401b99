//! A choice said for each account: what it saw, and what came of it.

use std::collections::BTreeMap;

use crate::account::AccountId;
use crate::availability::{Account, Fit, Reason};
use crate::choose::{Because, Choice, Chosen, Refusal, choose_among, fits};
use crate::strategy::{Parts, Pick, Strategy};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    pub id: AccountId,
    /// How it could be used, or why not.
    pub fit: Result<Fit, Reason>,
    /// The request has failed on it already.
    pub tried: bool,
    /// Serves only when no lower number can.
    pub priority: i32,
    /// What the pool's strategy thinks of it; `None`: the strategy does not score, or it cannot be
    /// used.
    pub score: Option<f64>,
    pub parts: Parts,
}

impl Verdict {
    /// Stable word: `ready`, `probe`, `tried`, or the reason why not.
    pub const fn name(&self) -> &'static str {
        match self.fit {
            Ok(_) if self.tried => "tried",
            Ok(Fit::Ready) => "ready",
            Ok(Fit::Probe) => "probe",
            Err(reason) => reason.name(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    pub chosen: Result<Chosen, Refusal>,
    /// What the strategy was driven by besides what the verdicts say: the seed, or whose turn it was.
    pub draw: Option<u64>,
    /// In the pool's order.
    pub verdicts: Vec<Verdict>,
}

/// The decision of [`crate::choose::choose`], with everything it was made from.
pub fn explain(accounts: &[&Account], choice: &Choice<'_>) -> Explanation {
    let pick = Pick { ask: choice.ask, turn: choice.turn, seed: choice.seed, now: choice.now };
    let fits = fits(accounts, choice);
    let chosen = choose_among(accounts, &fits, choice);
    let verdict = |(account, fit): (&&Account, &Result<Fit, Reason>)| Verdict {
        id: account.id,
        fit: *fit,
        tried: choice.tried.contains(&account.id),
        priority: account.priority,
        score: fit.ok().and_then(|_| pick.score(choice.strategy, account)),
        parts: pick.parts(account),
    };
    Explanation {
        chosen,
        draw: draw(chosen, choice),
        verdicts: accounts.iter().zip(&fits).map(verdict).collect(),
    }
}

fn draw(chosen: Result<Chosen, Refusal>, choice: &Choice<'_>) -> Option<u64> {
    chosen.ok().filter(|chosen| chosen.because == Because::Strategy)?;
    match choice.strategy {
        Strategy::Headroom
        | Strategy::Random
        | Strategy::CapacityWeighted
        | Strategy::RelativeAvailability => Some(choice.seed),
        Strategy::RoundRobin => Some(choice.turn),
        Strategy::LeastUsed
        | Strategy::Fallback
        | Strategy::FillFirst
        | Strategy::SequentialDrain
        | Strategy::ResetDrain
        | Strategy::Single => None,
    }
}

impl Explanation {
    /// Keeps the `most` best: the one chosen, then those that may serve by score, then the others.
    /// Returns how many were left out, by the word for their verdict.
    pub fn keep(&mut self, most: usize) -> BTreeMap<&'static str, u32> {
        let mut left_out = BTreeMap::new();
        if self.verdicts.len() <= most {
            return left_out;
        }
        let chosen = self.chosen.ok().map(|chosen| chosen.id);
        let rank = |v: &Verdict| (Some(v.id) != chosen, v.fit.is_err() || v.tried, v.priority);
        self.verdicts.sort_by(|a, b| {
            let by_score = b.score.unwrap_or(0.0).total_cmp(&a.score.unwrap_or(0.0));
            rank(a).cmp(&rank(b)).then(by_score)
        });
        for verdict in self.verdicts.drain(most..) {
            *left_out.entry(verdict.name()).or_default() += 1;
        }
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Surface;
    use crate::availability::Ask;
    use crate::availability::tests::{NOW, account, later, used};
    use crate::quota::WEEK;

    #[test]
    fn says_for_each_account_what_the_choice_saw() {
        let accounts = [used(1, 5.0, 100.0), used(2, 5.0, 20.0), account(3)];
        let all: Vec<&Account> = accounts.iter().collect();
        let choice = Choice {
            ask: Ask { surface: Surface::Responses, model: "m", gate: None },
            strategy: Strategy::LeastUsed,
            rebalance_threshold: None,
            owner: None,
            home: None,
            tried: &[AccountId(3)],
            turn: 0,
            seed: 0,
            now: NOW,
        };
        let explanation = explain(&all, &choice);
        assert_eq!(explanation.chosen.map(|chosen| chosen.id), Ok(AccountId(2)));
        let [spent, chosen, tried] = explanation.verdicts[..] else { panic!("three accounts") };
        assert_eq!(spent.fit, Err(Reason::Exhausted { until: Some(later(86_400)) }));
        assert!(chosen.score > spent.score);
        assert_eq!((tried.fit, tried.tried), (Ok(Fit::Ready), true));
        let drawn = |strategy| {
            let choice = Choice { strategy, turn: 7, seed: 9, ..choice };
            explain(&all, &choice).draw
        };
        assert_eq!(explanation.draw, None, "spec §5: by score alone");
        assert_eq!(drawn(Strategy::Headroom), Some(9), "spec §5: at random");
        assert_eq!(drawn(Strategy::RoundRobin), Some(7), "spec §5: in turn");
    }

    #[test]
    fn keeps_the_chosen_and_the_best_and_counts_the_rest() {
        let mut accounts: Vec<Account> = (1..=20).map(|id| used(id, 5.0, 40.0)).collect();
        accounts.extend((21..=30).map(|id| used(id, 5.0, 100.0)));
        let best = used(31, 5.0, 1.0);
        accounts.push(best);
        let all: Vec<&Account> = accounts.iter().collect();
        let choice = Choice {
            ask: Ask { surface: Surface::Responses, model: "m", gate: None },
            strategy: Strategy::LeastUsed,
            rebalance_threshold: None,
            owner: None,
            home: Some(AccountId(7)),
            tried: &[],
            turn: 0,
            seed: 0,
            now: NOW,
        };
        let mut explanation = explain(&all, &choice);
        let left_out = explanation.keep(16);
        let kept: Vec<i64> = explanation.verdicts.iter().map(|v| v.id.0).collect();
        assert_eq!((kept.len(), &kept[..3]), (16, [7, 31, 1].as_slice()));
        assert_eq!(left_out, BTreeMap::from([("limited", 10), ("ready", 5)]));
        let (left, until) = explanation.verdicts[1].parts.weekly.expect("a weekly window");
        assert!(left.ppm() == 980_000 && until <= WEEK, "{left:?} {until:?}");
    }
}
