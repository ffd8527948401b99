//! What a key's pools have left, for clients.

use std::sync::Arc;

use poolgate_core::account::{AccountId, Kind, Surface, patterns_meet};
use poolgate_core::availability::{Account as Facts, Ask, Reason, availability};
use poolgate_core::limits::Limits;
use poolgate_core::units::Timestamp;

use super::{Account, Pool};
use crate::store::ClientKeyRow;

/// The subscription whose limits the clients of a surface know.
pub const fn subscription(surface: Surface) -> Kind {
    match surface {
        Surface::Responses | Surface::Compact | Surface::Chat => Kind::Codex,
        Surface::Messages | Surface::CountTokens => Kind::Claude,
    }
}

impl Pool {
    /// The account, unless it can be given no such work now. Whoever is only busy, or does not serve
    /// this model for a moment, is none to be left.
    pub fn able(&self, id: AccountId, ask: Ask<'_>, now: Timestamp) -> Option<Arc<Account>> {
        self.with(id, |live| match availability(&live.facts, ask, now) {
            Ok(_) | Err(Reason::Busy | Reason::Probing { .. } | Reason::Model { .. }) => {
                Some(Arc::clone(&live.account))
            }
            Err(_) => None,
        })?
    }

    /// Of the accounts of that kind that may serve the key. `None`: there are none, or nothing is known of
    /// them.
    pub fn limits(&self, key: &ClientKeyRow, kind: Kind, now: Timestamp) -> Option<Limits> {
        let state = self.state.lock();
        // Gateways of API keys alone need not look further.
        if !state.live.iter().any(|live| live.facts.kind == kind) {
            return None;
        }
        let members = state.members(&key.pools);
        let serves =
            |account: &&Facts| account.kind == kind && shares_a_model(&account.models, &key.models);
        Limits::of(state.candidates(&members).into_iter().filter(serves), kind, now)
    }
}

/// Of two lists of patterns, of which an empty one allows all.
fn shares_a_model(one: &[String], other: &[String]) -> bool {
    let met = |one: &String| other.iter().any(|other| patterns_meet(one, other));
    one.is_empty() || other.is_empty() || one.iter().any(met)
}
