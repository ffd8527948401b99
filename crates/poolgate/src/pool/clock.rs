//! The wall clock was set back. All instants here are wall time, because resets, expiries and what a
//! restart must know are; so pauses that were to end soon would last for as long as it jumped.
//!
//! A clock that is set forward needs nothing: a pause that ends early costs one more attempt, and
//! after a suspended night that is what ought to happen.

use std::time::Duration;

use poolgate_core::network::Network;
use poolgate_core::quota::{Quota, Window};

use super::Pool;

impl Pool {
    pub fn set_back(&self, by: Duration) {
        let mut state = self.state.lock();
        state.network = Network::default();
        for live in &mut state.live {
            live.account.credential.set_back(by);
            live.facts.health.set_back(by);
            live.facts.probing_until = live.facts.probing_until.map(|at| at.minus(by));
            live.poll_probes_until = live.poll_probes_until.map(|at| at.minus(by));
            live.heard_at = live.heard_at.map(|at| at.minus(by));
            // What was observed in the future would be newer than anything that comes; and older than
            // a refusal it stays.
            let windows = live.facts.quota.windows().iter().cloned();
            let seen = windows.map(|w| Window { observed_at: w.observed_at.minus(by), ..w });
            live.facts.quota = Quota::new(seen.collect());
            live.poll_anew();
        }
        drop(state);
        self.line.freed();
        self.polls.notify_one();
    }
}
