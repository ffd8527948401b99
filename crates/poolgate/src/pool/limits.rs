//! What a key's pools have left, for clients.

use std::sync::Arc;

use poolgate_core::account::{AccountId, Kind, Surface};
use poolgate_core::availability::{Ask, Reason, availability};
use poolgate_core::limits::Limits;
use poolgate_core::units::Timestamp;

use super::{Account, Pool};

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

    /// Of the pools' accounts of that kind. `None`: there are none, or nothing is known of them.
    pub fn limits(&self, pools: &[String], kind: Kind, now: Timestamp) -> Option<Limits> {
        let state = self.state.lock();
        // Gateways of API keys alone need not look further.
        if !state.live.iter().any(|live| live.facts.kind == kind) {
            return None;
        }
        Limits::of(state.candidates(&state.members(pools)), kind, now)
    }
}
