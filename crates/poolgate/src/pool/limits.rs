//! What a key's pools have left, for clients.

use poolgate_core::account::{AccountId, Kind, Surface};
use poolgate_core::availability::state;
use poolgate_core::limits::Limits;
use poolgate_core::units::Timestamp;

use super::Pool;

/// The subscription whose limits the clients of a surface know.
pub const fn subscription(surface: Surface) -> Kind {
    match surface {
        Surface::Responses | Surface::Compact | Surface::Chat => Kind::Codex,
        Surface::Messages | Surface::CountTokens => Kind::Claude,
    }
}

impl Pool {
    /// Whether an account can be given ordinary work now.
    pub fn is_able(&self, id: AccountId, now: Timestamp) -> bool {
        self.with(id, |live| state(&live.facts, now).is_ok()) == Some(true)
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
