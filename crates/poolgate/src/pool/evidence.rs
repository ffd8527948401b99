//! What becomes known about an account: windows, outcomes, credentials.
//!
//! When the account thereby becomes unable to serve, requests that still wait for its head are told
//! to go elsewhere; streams that run are left to finish.

use std::time::Duration;

use poolgate_core::account::AccountId;
use poolgate_core::availability::state;
use poolgate_core::outcome::{Attempt, Outcome};
use poolgate_core::quota::{Limit, Reading, Source};
use poolgate_core::units::{Fraction, Timestamp};
use tokio_util::sync::CancellationToken;

use super::{Live, Pool, SessionKey};

/// A snapshot older than this does not say that a window is spent now.
const FRESH: Duration = Duration::from_mins(10);

/// Resets that bear on a refusal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resets {
    /// Of the ordinary window that is spent, the furthest one, by readings under ten minutes old.
    pub spent_until: Option<Timestamp>,
    /// Of a model family's window that is spent.
    pub family_spent_until: Option<Timestamp>,
    /// The nearest of any ordinary window.
    pub nearest: Option<Timestamp>,
}

impl Live {
    /// Applies `change`, and tells waiting requests if the account can serve no longer.
    fn learn<T>(&mut self, now: Timestamp, change: impl FnOnce(&mut Self) -> T) -> T {
        let was_able = state(&self.facts, now).is_ok();
        let result = change(self);
        if was_able && state(&self.facts, now).is_err() {
            std::mem::replace(&mut self.interrupt, CancellationToken::new()).cancel();
        }
        result
    }
}

impl Pool {
    /// What an answer's headers or events say about the account's windows.
    pub fn observe(&self, id: AccountId, readings: &[Reading], source: Source, now: Timestamp) {
        self.with(id, |live| {
            // Whatever the answer says, the account has been heard of.
            live.facts.probing_until = None;
            if !readings.is_empty() {
                live.learn(now, |live| {
                    live.unsaved |= live.facts.quota.merge(readings, source, now);
                });
            }
        });
    }

    /// What an attempt came to.
    pub fn settle(&self, id: AccountId, outcome: Outcome, attempt: Attempt<'_>) {
        self.with(id, |live| {
            let stop = live.facts.health.stop;
            live.learn(attempt.now, |live| outcome.apply(&mut live.facts.health, attempt));
            live.unsaved_stop |= live.facts.health.stop != stop;
            live.counters.served += u64::from(outcome == Outcome::Served);
        });
        if outcome == Outcome::Served {
            self.freed.notify_waiters();
        }
    }

    /// The request turned out to be at fault: what it did to the accounts it went through is undone.
    pub fn take_back(&self, ids: &[AccountId], outcome: Outcome, since: Timestamp) {
        for id in ids {
            self.with(*id, |live| live.facts.health.take_back(outcome, since));
        }
        self.freed.notify_waiters();
    }

    pub fn note_failover(&self, id: AccountId) {
        self.with(id, |live| live.counters.failovers += 1);
    }

    /// The credential came, went, or was replaced.
    pub fn credential_changed(&self, id: AccountId, usable: bool, now: Timestamp) {
        self.with(id, |live| {
            live.learn(now, |live| live.facts.has_credential = usable);
            if usable {
                let stop = live.facts.health.stop;
                live.facts.health.logged_in();
                live.unsaved_stop |= live.facts.health.stop != stop;
            }
        });
        self.freed.notify_waiters();
    }

    /// Remembers which account holds the state behind a response.
    pub fn own(&self, response: SessionKey, account: AccountId, at: Timestamp) {
        self.state.lock().owners.settle(response, account, 0, at);
    }

    pub fn resets(&self, id: AccountId, now: Timestamp) -> Resets {
        self.with(id, |live| {
            let quota = &live.facts.quota;
            let fresh = |at: Timestamp| now <= at.plus(FRESH);
            let spent = |family: bool| {
                let windows = quota.windows().iter();
                let windows = windows.filter(|w| (w.limit != Limit::Ordinary) == family);
                let full =
                    windows.filter(|w| w.used_at(now) == Fraction::ONE && fresh(w.observed_at));
                full.filter_map(|w| w.resets_at).max()
            };
            let ahead = quota.ordinary().filter_map(|w| w.resets_at).filter(|at| *at > now);
            Resets {
                spent_until: spent(false),
                family_spent_until: spent(true),
                nearest: ahead.min(),
            }
        })
        .unwrap_or_default()
    }
}
