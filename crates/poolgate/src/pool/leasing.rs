//! Choosing an account and counting the attempt in, as one step under the lock.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use poolgate_core::account::AccountId;
use poolgate_core::affinity::Scope;
use poolgate_core::availability::{Account as Facts, PROBE_FOR};
use poolgate_core::choose::{Because, Choice, Chosen, Refusal};
use poolgate_core::explain::{Explanation, explain};
use poolgate_core::strategy::Strategy;
use poolgate_core::units::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Account, Decision, Lease, Live, Members, Pool, Refused, State, Wish};

impl Pool {
    pub fn lease(self: &Arc<Self>, wish: &Wish<'_>, now: Timestamp) -> Result<Lease, Refused> {
        let (reserved, explanation, strategy) = self.state.lock().reserve(wish, now);
        let chosen = explanation.chosen;
        let decision = Box::new(Decision::new(explanation, strategy, now));
        match (reserved, chosen) {
            (Some(reserved), _) => Ok(Lease {
                pool: Arc::clone(self),
                account: reserved.account,
                decision: Some(decision),
                moved: reserved.moved,
                interrupts: reserved.interrupts,
                counted: wish.is_counted(),
                sent_at: now,
                probing_until: chosen.is_ok_and(|c| c.probes).then(|| now.plus(PROBE_FOR)),
            }),
            (None, Err(refusal)) => Err(Refused { refusal, decision }),
            (None, Ok(_)) => unreachable!("whoever is chosen is reserved"),
        }
    }

    /// What this request is refused with when it may not take an account even if one is able: it
    /// would overtake others.
    pub fn refuse(&self, wish: &Wish<'_>, now: Timestamp) -> Refused {
        let (mut explanation, strategy) = self.look(wish, now);
        let refusal = explanation.chosen.err().unwrap_or(Refusal::Busy);
        explanation.chosen = Err(refusal);
        let decision = Box::new(Decision::new(explanation, strategy, now));
        Refused { refusal, decision }
    }

    /// Why nobody can take this request; `None`: somebody can.
    pub fn lacks(&self, wish: &Wish<'_>, now: Timestamp) -> Option<Refusal> {
        self.look(wish, now).0.chosen.err()
    }

    /// What would be chosen. Nothing is taken or counted.
    fn look(&self, wish: &Wish<'_>, now: Timestamp) -> (Explanation, Strategy) {
        let state = self.state.lock();
        let members = state.members(wish.pools);
        let choice = state.choice(wish, &members, now);
        (wish.heard(explain(&state.candidates(&members), &choice)), members.strategy)
    }
}

impl Wish<'_> {
    /// A turn on a socket does not wait for the account of its leg: its client is told to send all of
    /// it, which others can serve.
    fn heard(&self, mut explanation: Explanation) -> Explanation {
        if let Err(Refusal::Owner(later)) = &mut explanation.chosen
            && self.leg.is_some()
        {
            *later = None;
        }
        explanation
    }
}

struct Reserved {
    account: Arc<Account>,
    moved: bool,
    interrupts: [Option<CancellationToken>; 2],
}

impl State {
    fn reserve(
        &mut self,
        wish: &Wish<'_>,
        now: Timestamp,
    ) -> (Option<Reserved>, Explanation, Strategy) {
        let turn = wish.turn.and_then(|turn| self.owners.home(&turn, now));
        let members = self.members(wish.pools);
        let choice = self.choice(wish, &members, now);
        let explanation = loop {
            let explanation = wish.heard(explain(&self.candidates(&members), &choice));
            match explanation.chosen {
                Ok(chosen) if chosen.probes && self.poll_instead(chosen.id, now) => {}
                _ => break explanation,
            }
        };
        if let (Ok(chosen), Some(gate)) = (explanation.chosen, wish.ask.gate) {
            self.poll_for(gate, chosen.id, now);
        }
        if explanation.chosen.is_ok() && members.strategy == Strategy::RoundRobin {
            *self.turns.entry((scope(wish.pools), wish.ask.surface)).or_default() += 1;
        }
        let reserved = explanation.chosen.ok().map(|chosen| Reserved {
            interrupts: self.settle_session(wish, &members, chosen, now),
            account: self.count_in(wish, chosen, now),
            // A turn nobody remembers is taken for this account's, until the account fails.
            moved: wish.turn.is_some()
                && turn.map_or(!wish.tried.is_empty(), |home| home != chosen.id),
        });
        (reserved, explanation, members.strategy)
    }

    fn choice<'a>(&self, wish: &Wish<'a>, members: &Members, now: Timestamp) -> Choice<'a> {
        let owner = wish.leg.or_else(|| wish.owner.and_then(|owner| self.owners.home(&owner, now)));
        let turn = wish.turn.and_then(|turn| self.owners.home(&turn, now));
        Choice {
            ask: wish.ask,
            strategy: members.strategy,
            rebalance_threshold: members.rebalance_threshold,
            owner,
            home: turn.or_else(|| self.homes.home(&wish.session?, now)),
            tried: wish.tried,
            turn: self.turn(wish, members),
            seed: wish.seed,
            now,
        }
    }

    /// Whose turn it is where accounts take turns.
    pub(super) fn turn(&self, wish: &Wish<'_>, members: &Members) -> u64 {
        if members.strategy != Strategy::RoundRobin {
            return 0;
        }
        self.turns.get(&(scope(wish.pools), wish.ask.surface)).copied().unwrap_or(0)
    }

    /// The session belongs to the chosen account from now on. Returns what interrupts the attempt.
    fn settle_session(
        &mut self,
        wish: &Wish<'_>,
        members: &Members,
        chosen: Chosen,
        now: Timestamp,
    ) -> [Option<CancellationToken>; 2] {
        let scope = scope(wish.pools);
        if let Because::Rebalanced { from } = chosen.because {
            self.homes.evict(from, scope);
            if let Some(moved) = self.moves.remove(&(scope, from)) {
                moved.cancel();
            }
        }
        // What is counted elsewhere leaves the conversation where its cache is warm.
        let moves = |session| wish.is_counted() || self.homes.home(&session, now).is_none();
        if let Some(session) = wish.session.filter(|session| moves(*session)) {
            self.homes.settle(session, chosen.id, scope, now);
        }
        let moves = members
            .rebalance_threshold
            .is_some()
            .then(|| self.moves.entry((scope, chosen.id)).or_default().clone());
        [Some(self.live_mut(chosen.id).interrupt.clone()), moves]
    }

    fn count_in(&mut self, wish: &Wish<'_>, chosen: Chosen, now: Timestamp) -> Arc<Account> {
        let live = self.live_mut(chosen.id);
        live.counters.attempts += 1;
        if chosen.probes {
            live.facts.probing_until = Some(now.plus(PROBE_FOR));
        }
        if wish.is_counted() {
            live.facts.in_flight += 1;
        }
        Arc::clone(&live.account)
    }

    fn live_mut(&mut self, id: AccountId) -> &mut Live {
        let live = self.live.iter_mut().find(|live| live.facts.id == id);
        live.expect("chosen from it under the same lock")
    }

    pub(super) fn candidates(&self, members: &Members) -> Vec<&Facts> {
        let find = |id| self.live.iter().find(|live| live.facts.id == id);
        members.ids.iter().filter_map(|id| find(*id)).map(|live| &live.facts).collect()
    }
}

/// Sessions move together when the same pools placed them.
fn scope(pools: &[String]) -> Scope {
    let mut hasher = DefaultHasher::new();
    pools.hash(&mut hasher);
    hasher.finish()
}
