//! A reservation of an account for one attempt.

use std::sync::Arc;

use poolgate_core::account::{AccountId, Surface};
use poolgate_core::availability::Ask;

use super::{Account, Pool, SessionKey};

/// What a request wants of the pool.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub pools: &'a [String],
    pub ask: Ask<'a>,
    pub session: Option<SessionKey>,
    /// The response whose state the request refers to.
    pub owner: Option<SessionKey>,
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

/// Given back when dropped, however the attempt ended.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    pub account: Arc<Account>,
    /// The request's turn began on another account.
    pub moved: bool,
    counted: bool,
}

impl Lease {
    pub(super) fn new(pool: Arc<Pool>, account: Arc<Account>, moved: bool, counted: bool) -> Self {
        Self {
            pool,
            account,
            moved,
            counted,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.counted {
            self.pool.give_back(self.account.id);
        }
    }
}
