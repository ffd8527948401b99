//! Turns what changed between two looks at the pool into lines for people.

use std::collections::HashMap;

use super::tally::Tally;
use crate::admin::Status;

#[derive(Debug, Default)]
pub struct Watch {
    /// State and failovers of each account, as last seen.
    seen: HashMap<String, (String, u64)>,
}

impl Watch {
    pub fn look(&mut self, status: &Status, tally: &Tally) {
        for account in &status.pool.accounts {
            let now = (account.state.clone(), account.failovers);
            let before = self.seen.insert(account.name.clone(), now);
            let (state, failovers) = before.unwrap_or_else(|| (account.state.clone(), 0));
            let name = &account.name;
            match account.failovers.saturating_sub(failovers) {
                0 => {}
                1 => tally.happened(format!("{name}: its request moved to another account")),
                n => tally.happened(format!("{name}: {n} requests moved to other accounts")),
            }
            if state != account.state {
                let text = if account.state == "ready" { "ready again" } else { &account.state };
                tally.happened(format!("{name} is {text}"));
            }
        }
        tally.note_failovers(status.pool.accounts.iter().map(|account| account.failovers).sum());
    }
}
