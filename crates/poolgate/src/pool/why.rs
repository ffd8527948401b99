//! Who would serve a request now, and why not the others; nothing is reserved by asking.

use poolgate_core::availability::{Reason, slots};
use poolgate_core::choose::Choice;
use poolgate_core::explain::explain;
use poolgate_core::units::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Pool, Wish};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Why {
    pub model: String,
    pub surface: String,
    pub strategy: String,
    /// The account, if any; for a strategy that draws lots, one draw.
    pub chosen: Option<String>,
    pub because: String,
    pub accounts: Vec<WhyAccount>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhyAccount {
    pub name: String,
    /// `ready`, `probe`, or the reason why not.
    pub verdict: String,
    /// When the reason ends, in milliseconds since the Unix epoch.
    pub until: Option<i64>,
    pub priority: i32,
    pub score: Option<f64>,
    /// Most attempts at the same time, allowed or learnt; any number: absent.
    #[serde(default)]
    pub concurrency: Option<u32>,
}

impl Pool {
    pub fn why(&self, wish: &Wish<'_>, now: Timestamp) -> Why {
        let state = self.state.lock();
        let members = state.members(wish.pools);
        let candidates = state.candidates(&members);
        let choice = Choice {
            ask: wish.ask,
            strategy: members.strategy,
            rebalance_threshold: members.rebalance_threshold,
            owner: None,
            home: None,
            tried: wish.tried,
            turn: state.turn(wish, &members),
            seed: wish.seed,
            now,
        };
        let explanation = explain(&candidates, &choice);
        let name = |id| {
            let live = state.live.iter().find(|live| live.facts.id == id);
            live.map(|live| live.account.name.clone()).unwrap_or_default()
        };
        let account = |verdict: &poolgate_core::explain::Verdict| WhyAccount {
            name: name(verdict.id),
            verdict: verdict.name().into(),
            until: verdict.fit.err().and_then(Reason::until).map(|at| at.0),
            priority: verdict.priority,
            score: verdict.score,
            concurrency: candidates.iter().find(|a| a.id == verdict.id).and_then(|a| slots(a)),
        };
        Why {
            model: wish.ask.model.to_owned(),
            surface: wish.ask.surface.name().into(),
            strategy: members.strategy.name().into(),
            chosen: explanation.chosen.ok().map(|chosen| name(chosen.id)),
            because: match explanation.chosen {
                Ok(chosen) => chosen.because.name().into(),
                Err(refusal) => refusal.name().into(),
            },
            accounts: explanation.verdicts.iter().map(account).collect(),
        }
    }
}
