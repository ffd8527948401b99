//! What becomes known about an account: windows, outcomes, credentials.
//!
//! When the account thereby becomes unable to serve, requests that still wait for its head are told
//! to go elsewhere; streams that run are left to finish.

use std::sync::Arc;

use poolgate_core::account::AccountId;
use poolgate_core::availability::{Ask, is_below_caps, state};
use poolgate_core::health::Charge;
use poolgate_core::network::Suspect;
use poolgate_core::outcome::{Attempt, Outcome};
use poolgate_core::quota::{Limit, Reading, Source, Window};
use poolgate_core::refresh::Standing;
use poolgate_core::resets::{Resets, resets};
use poolgate_core::units::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Account, Live, Pool, SessionKey, State, plan_weight};
use crate::credentials::Likeness;
use crate::providers::Usage;

impl Live {
    /// Applies `change`, and tells waiting requests if the account can serve no longer.
    pub(super) fn learn<T>(&mut self, now: Timestamp, change: impl FnOnce(&mut Self) -> T) -> T {
        let was_able = state(&self.facts, now).is_ok();
        let result = change(self);
        if was_able && state(&self.facts, now).is_err() {
            std::mem::replace(&mut self.interrupt, CancellationToken::new()).cancel();
        }
        result
    }

    /// Returns whether anything has become of the credential. Other tokens end what those before caused,
    /// once: what happens after they were seen here is about themselves.
    fn follow_credential(&mut self, now: Timestamp) -> bool {
        let credential = Arc::clone(&self.account.credential);
        let stands = credential.standing(now);
        let has_one = stands.0 != Standing::Unavailable;
        // A reload may have seen it as it was before.
        let had_one =
            self.learn(now, |live| std::mem::replace(&mut live.facts.has_credential, has_one));
        let before = self.stands.replace(stands);
        if before == Some(stands) {
            return had_one != has_one;
        }
        // A pause or a stop of before is ended by other tokens, not by a restart.
        let is_new =
            before.map_or_else(|| credential.is_renewed(), |(_, content)| content != stands.1);
        let stop = self.facts.health.stop;
        self.follow_owner();
        self.learn(now, |live| {
            let health = &mut live.facts.health;
            match stands.0 {
                Standing::Stopped(stop) => {
                    health.stop.get_or_insert(stop);
                }
                Standing::Usable if is_new => {
                    health.logged_in(credential.refused_before());
                }
                Standing::Usable | Standing::Unavailable => {}
            }
        });
        self.unsaved_stop |= self.facts.health.stop != stop;
        true
    }

    /// What was learnt about whoever the credential was before is not about who it may be now.
    fn follow_owner(&mut self) {
        let owner = self.account.credential.owner();
        let likeness = owner.since(std::mem::replace(&mut self.owner, owner));
        if likeness != Likeness::Same {
            self.learnt_plan = None;
            self.facts.plan = self.account.credential.plan();
            let by_plan = plan_weight(self.facts.kind, self.facts.plan.as_deref());
            self.facts.weight = self.plan_weight.unwrap_or(by_plan);
            self.poll_anew();
        }
        if likeness == Likeness::Other {
            self.forget();
        }
    }

    /// `at`: as of when the answer speaks. Returns the windows that now look different.
    fn merge(
        &mut self,
        readings: &[Reading],
        source: Source,
        at: Timestamp,
        now: Timestamp,
    ) -> Vec<Window> {
        // Whatever the answer says, the account has been heard of.
        self.facts.probing_until = None;
        self.heard_at = self.heard_at.max(Some(now));
        if readings.is_empty() {
            return Vec::new();
        }
        self.polls.heard();
        let merged = self.learn(now, |live| live.facts.quota.merge(readings, source, at));
        self.unsaved |= merged.changed;
        merged.seen
    }
}

impl State {
    pub(super) fn live(&mut self, id: AccountId) -> Option<&mut Live> {
        self.live.iter_mut().find(|live| live.facts.id == id)
    }

    /// `None`: the account has left, or stands for somebody else by now.
    fn still(&mut self, account: &Account) -> Option<&mut Live> {
        self.live(account.id).filter(|live| live.account.tenant == account.tenant)
    }

    /// The account's upstream has answered: the network works, so what failed elsewhere counts.
    fn answered(&mut self, account: &Account, now: Timestamp) {
        if self.network.is_quiet() {
            return;
        }
        let hop = account.upstream.first_hop();
        for Suspect { id: suspect, address, durable } in self.network.answered(&hop) {
            // Its place or proxy may have been changed: what failed was the old one.
            let is_there = |live: &&mut Live| live.account.upstream.first_hop() == address;
            if let Some(live) = self.live(suspect).filter(is_there) {
                tracing::info!(account = live.account.name, address, durable, "cannot connect");
                live.learn(now, |live| live.facts.health.unreachable(durable, now));
            }
        }
    }
}

impl Pool {
    /// What an answer's headers or events say about the account's windows; none, if it says nothing.
    pub fn observe(&self, account: &Account, readings: &[Reading], source: Source, now: Timestamp) {
        self.take_over(account, readings, source, now, now);
    }

    fn take_over(
        &self,
        account: &Account,
        readings: &[Reading],
        source: Source,
        at: Timestamp,
        now: Timestamp,
    ) {
        let mut state = self.state.lock();
        state.answered(account, now);
        let Some(live) = state.still(account) else {
            return;
        };
        let was_probed = live.facts.probing_until.is_some();
        let seen = live.merge(readings, source, at, now);
        drop(state);
        if was_probed {
            // Its lease may last for long yet.
            self.line.freed();
        }
        if !seen.is_empty() {
            log(&account.name, source, &seen);
        }
    }

    /// What the usage endpoint said when asked at `asked_at`: it does not know what came after that.
    pub fn polled(&self, account: &Account, usage: &Usage, asked_at: Timestamp, now: Timestamp) {
        self.take_over(account, &usage.readings, Source::Poll, asked_at, now);
        if let Some(live) = self.state.lock().still(account) {
            if let Some(limits) = &usage.limits {
                live.facts.quota.keep_named(limits, asked_at);
                live.unsaved = true;
            }
            if !usage.readings.is_empty() && is_below_caps(&live.facts, now) {
                live.facts.health.quota_is_left(asked_at);
            }
        }
        self.line.freed();
    }

    /// What an attempt came to.
    pub fn settle(&self, account: &Account, outcome: Outcome, attempt: Attempt<'_>) {
        let id = account.id;
        let mut state = self.state.lock();
        if let Some(live) = state.live(id) {
            live.counters.served += u64::from(outcome == Outcome::Served);
        }
        let Some(live) = state.still(account) else {
            return;
        };
        let stop = live.facts.health.stop;
        live.learn(attempt.now, |live| outcome.apply(&mut live.facts, attempt));
        live.unsaved_stop |= live.facts.health.stop != stop;
        if let Outcome::ConnectFailed { durable } = outcome
            && outcome.counts_on(attempt.ask.surface)
        {
            let address = account.upstream.first_hop();
            state.network.failed(Suspect { id, address, durable });
        }
        drop(state);
        if outcome == Outcome::Served {
            self.line.freed();
        }
    }

    /// The request turned out to be at fault: what it did to the accounts it went through is undone.
    pub fn take_back(&self, charges: &[(Arc<Account>, Charge)], since: Timestamp) {
        let mut state = self.state.lock();
        for (account, charge) in charges {
            let Some(live) = state.still(account) else { continue };
            let stop = live.facts.health.stop;
            live.facts.health.take_back(*charge, since);
            live.unsaved_stop |= live.facts.health.stop != stop;
        }
        drop(state);
        self.line.freed();
    }

    pub fn note_failover(&self, id: AccountId) {
        self.with(id, |live| live.counters.failovers += 1);
    }

    /// Somebody else has put another credential in its place: maybe of another account.
    pub fn credential_exchanged(&self, id: AccountId) {
        self.with(id, |live| {
            live.poll_anew();
            live.follow_owner();
        });
        self.polls.notify_one();
    }

    /// Looks at what the account's credential is good for now. Returns whether that has changed.
    pub fn follow_credential(&self, id: AccountId, now: Timestamp) -> bool {
        let has_changed = self.with(id, |live| live.follow_credential(now)).unwrap_or(false);
        if has_changed {
            self.line.freed();
            self.polls.notify_one();
        }
        has_changed
    }

    /// Remembers which account holds the state behind a response.
    pub fn own(&self, response: SessionKey, account: AccountId, at: Timestamp) {
        self.state.lock().owners.settle(response, account, 0, at);
    }

    /// `names`: for anyone, and for the key that made it, which is the later to be forgotten.
    pub fn own_response(&self, names: [SessionKey; 2], account: AccountId, at: Timestamp) {
        let mut state = self.state.lock();
        for name in names {
            state.owners.settle(name, account, 0, at);
        }
    }

    /// Who holds what an earlier response left behind.
    pub fn owner(&self, response: SessionKey, now: Timestamp) -> Option<AccountId> {
        self.state.lock().owners.home(&response, now)
    }

    /// The resets that bear on a refusal of `ask`, which names the limit `active` as spent.
    pub fn resets(
        &self,
        account: &Account,
        ask: Ask<'_>,
        active: Option<&str>,
        now: Timestamp,
    ) -> Resets {
        let mut state = self.state.lock();
        let live = state.still(account);
        live.map(|live| resets(&live.facts, ask, active, now)).unwrap_or_default()
    }
}

/// One line for all windows of one answer that look different.
fn log(account: &str, source: Source, seen: &[Window]) {
    let text = |w: &Window| {
        let hours = w.length.as_secs() / 3600;
        let limit = match &w.limit {
            Limit::Ordinary => "",
            Limit::Named(name) => name,
        };
        let reset = w.resets_at.map_or(0, Timestamp::unix_seconds);
        format!("{limit} {hours}h {:.2} % resets {reset}", w.used.percent()).trim_start().to_owned()
    };
    let windows: Vec<String> = seen.iter().map(text).collect();
    tracing::info!(account, ?source, windows = windows.join(", "), "quota changed");
}
