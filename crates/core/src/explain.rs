//! Who would serve this, and why not the others: the decision of [`crate::choose`], said for each
//! account.

use crate::account::AccountId;
use crate::availability::{Account, Fit, Reason, availability};
use crate::choose::{Choice, Chosen, Refusal, choose};
use crate::strategy::Pick;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    pub id: AccountId,
    /// How it could be used, or why not.
    pub fit: Result<Fit, Reason>,
    /// The request has failed on it already.
    pub tried: bool,
    /// Serves only when no lower number can.
    pub priority: i32,
    /// What the pool's strategy thinks of it; `None`: the strategy does not score.
    pub score: Option<f64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    pub chosen: Result<Chosen, Refusal>,
    /// In the pool's order.
    pub verdicts: Vec<Verdict>,
}

pub fn explain(accounts: &[&Account], choice: &Choice<'_>) -> Explanation {
    let pick = Pick { ask: choice.ask, turn: choice.turn, seed: choice.seed, now: choice.now };
    let verdict = |account: &&Account| Verdict {
        id: account.id,
        fit: availability(account, choice.ask, choice.now),
        tried: choice.tried.contains(&account.id),
        priority: account.priority,
        score: pick.score(choice.strategy, account),
    };
    Explanation {
        chosen: choose(accounts, choice),
        verdicts: accounts.iter().map(verdict).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Surface;
    use crate::availability::Ask;
    use crate::availability::tests::{NOW, account, later, used};
    use crate::strategy::Strategy;

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
    }
}
