//! A reservation of an account for one attempt.

use std::sync::Arc;

use poolgate_core::account::{AccountId, Surface};
use poolgate_core::availability::Ask;
use poolgate_core::choose::Refusal;
use poolgate_core::units::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Account, Decision, Pool, SessionKey};

/// What a request wants of the pool.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub pools: &'a [String],
    pub ask: Ask<'a>,
    pub session: Option<SessionKey>,
    /// The response whose state the request refers to.
    pub owner: Option<SessionKey>,
    /// Whose socket holds the turns before: no other account can go on from them.
    pub leg: Option<AccountId>,
    /// The turn it belongs to, when a first answer named one: bound to the account that did.
    pub turn: Option<SessionKey>,
    pub tried: &'a [AccountId],
    pub seed: u64,
}

impl Wish<'_> {
    /// Counting tokens takes no slot.
    pub fn is_counted(&self) -> bool {
        self.ask.surface != Surface::CountTokens
    }
}

/// Nobody, and what was seen of each.
#[derive(Debug)]
pub struct Refused {
    pub refusal: Refusal,
    pub decision: Box<Decision>,
}

/// Given back when dropped, however the attempt ended.
#[derive(Debug)]
pub struct Lease {
    pub(super) pool: Arc<Pool>,
    pub account: Arc<Account>,
    /// Why this account; taken by the record of the request.
    pub decision: Option<Box<Decision>>,
    /// The request's turn began on another account.
    pub moved: bool,
    pub(super) interrupts: [Option<CancellationToken>; 2],
    pub(super) counted: bool,
    /// When the attempt that is judged was sent; until then, when it was leased.
    pub sent_at: Timestamp,
    /// It finds out how the account is, and the others wait for that until then.
    pub(super) probing_until: Option<Timestamp>,
}

impl Lease {
    /// Cancelled when a rebalance moves its sessions away.
    pub fn moves(&self) -> Option<CancellationToken> {
        self.interrupts[1].clone()
    }

    /// Resolves when the account has become unable to serve, or its sessions have moved away: a
    /// request that still waits for a head should go elsewhere.
    pub async fn interrupted(&self) {
        let [unable, moved] = &self.interrupts;
        let either = async |token: &Option<CancellationToken>| match token {
            Some(token) => token.cancelled().await,
            None => std::future::pending().await,
        };
        tokio::select! {
            () = either(unable) => {}
            () = either(moved) => {}
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(until) = self.probing_until {
            self.pool.end_probe(self.account.id, until);
        }
        if self.counted {
            self.pool.give_back(self.account.id);
        }
    }
}
