//! Choosing an account and counting the attempt in, as one step under the lock.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use poolgate_core::affinity::Scope;
use poolgate_core::availability::Account as Facts;
use poolgate_core::choose::{Because, Choice, Refusal, choose};
use poolgate_core::units::Timestamp;

use super::{Lease, Members, Pool, State, Wish};

/// A probe that is not back by then is given up, and another may try.
const PROBE_FOR: Duration = Duration::from_mins(2);

impl Pool {
    pub fn lease(self: &Arc<Self>, wish: &Wish<'_>, now: Timestamp) -> Result<Lease, Refusal> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let owner = wish.owner.and_then(|owner| state.owners.home(&owner, now));
        let turn = wish.turn.and_then(|turn| state.owners.home(&turn, now));
        let home = turn.or_else(|| state.homes.home(&wish.session?, now));
        let members = state.members(wish.pools);
        let scope = scope(wish.pools);
        state.turn = state.turn.wrapping_add(1);
        let chosen = {
            let candidates = state.candidates(&members);
            let choice = Choice {
                ask: wish.ask,
                strategy: members.strategy,
                rebalance_threshold: members.rebalance_threshold,
                owner,
                home,
                tried: wish.tried,
                turn: state.turn,
                seed: wish.seed,
                now,
            };
            choose(&candidates, &choice)?
        };
        if let Because::Rebalanced { from } = chosen.because {
            state.homes.evict(from, scope);
            if let Some(moved) = state.moves.remove(&(scope, from)) {
                moved.cancel();
            }
        }
        if let Some(session) = wish.session {
            state.homes.settle(session, chosen.id, scope, now);
        }
        let moves = members
            .rebalance_threshold
            .is_some()
            .then(|| state.moves.entry((scope, chosen.id)).or_default().clone());
        let live = state.live.iter_mut().find(|live| live.facts.id == chosen.id);
        let live = live.expect("chosen from it");
        live.counters.attempts += 1;
        if chosen.probes {
            live.facts.probing_until = Some(now.plus(PROBE_FOR));
        }
        let counted = wish.is_counted();
        if counted {
            live.facts.in_flight += 1;
        }
        Ok(Lease {
            pool: Arc::clone(self),
            account: Arc::clone(&live.account),
            // A turn nobody remembers is taken for this account's, until the account fails.
            moved: wish.turn.is_some()
                && turn.map_or(!wish.tried.is_empty(), |home| home != chosen.id),
            interrupts: [Some(live.interrupt.clone()), moves],
            counted,
        })
    }
}

impl State {
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
