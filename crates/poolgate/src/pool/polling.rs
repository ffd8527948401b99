//! Which accounts' usage is asked for now, and what is made of the answers.
//!
//! When and why is `poolgate_core::poll`'s; the calls are `jobs::poll`'s. A stale snapshot is checked
//! by a poll before a client's request has to: whoever would have been the first to probe asks for
//! one instead, and waits, or goes elsewhere.

use std::sync::Arc;

use poolgate_core::account::AccountId;
use poolgate_core::gate::Gate;
use poolgate_core::poll::{Failure, Polls, is_polled};
use poolgate_core::units::{Fraction, Timestamp};
use tokio_util::sync::CancellationToken;

use super::{Account, Live, Pool, State, plan_weight};
use crate::credentials::Identity;
use crate::providers::{Profile, Usage};

/// A poll under way. Given back when dropped; one that has not said how it ended has failed.
#[derive(Debug)]
pub struct Polling {
    pool: Arc<Pool>,
    pub account: Arc<Account>,
    asked_at: Timestamp,
    /// Cancelled when the account has left or has another credential: what this poll finds is no
    /// longer about it.
    pub gone: CancellationToken,
    has_ended: bool,
    pub wants_profile: bool,
}

impl Live {
    /// Somebody has seen to the account, or it has another credential.
    pub(super) fn poll_anew(&mut self) {
        self.polls = Polls::fresh();
        self.polled = CancellationToken::new().drop_guard();
        self.end_poll_probe();
    }

    /// Nobody has to wait any longer for what a poll says about a stale snapshot.
    fn end_poll_probe(&mut self) {
        let until = self.poll_probes_until.take();
        if until.is_some() && self.facts.probing_until == until {
            self.facts.probing_until = None;
        }
    }

    fn learn_plan(&mut self, plan: &str) {
        self.learnt_plan = Some(plan.to_owned());
        if self.facts.plan == self.learnt_plan {
            return;
        }
        let by_plan = plan_weight(self.facts.kind, Some(plan));
        self.facts.plan.clone_from(&self.learnt_plan);
        self.facts.weight = self.plan_weight.unwrap_or(by_plan);
        let (account, weight) = (&self.account.name, self.facts.weight);
        tracing::info!(account, plan, weight, "the plan became known");
    }
}

impl State {
    /// Whether a poll finds out about the stale snapshot of `id`, so that no request has to. Others
    /// wait for it from then on.
    pub(super) fn poll_instead(&mut self, id: AccountId, now: Timestamp) -> bool {
        let is_on = self.polls_on;
        let Some(live) = self.live(id).filter(|live| is_on && is_polled(&live.facts)) else {
            return false;
        };
        // Waited for once, and in vain.
        let is_late = live.poll_probes_until.is_some_and(|until| until <= now);
        let until = live.polls.probe(now).filter(|_| !is_late);
        if until.is_some() {
            (live.facts.probing_until, live.poll_probes_until) = (until, until);
            self.polls.notify_one();
        }
        until.is_some()
    }

    /// A request that spends a limit of its own goes to `id`: if nothing is known of that limit
    /// there, it is asked for.
    pub(super) fn poll_for(&mut self, gate: &Gate, id: AccountId, now: Timestamp) {
        let is_on = self.polls_on;
        let Some(live) = self.live(id).filter(|live| is_on && is_polled(&live.facts)) else {
            return;
        };
        let governed = gate.governs(live.facts.plan.as_deref());
        let is_known = gate.windows(&live.facts, now).next().is_some();
        if governed && !is_known && live.polls.miss(now) {
            self.polls.notify_one();
        }
    }
}

impl Pool {
    /// From now on somebody asks for [`Pool::due_polls`].
    pub fn begin_polls(&self) {
        self.state.lock().polls_on = true;
    }

    /// Resolves when an account is to be polled sooner than planned.
    pub async fn poll_wanted(&self) {
        self.polls.notified().await;
    }

    /// Polls under way.
    pub fn polls_running(&self) -> usize {
        self.state.lock().live.iter().filter(|live| live.polls.is_running()).count()
    }

    /// The accounts to ask now, in the pool's order, as long as no more than `at_once` are being asked.
    pub fn due_polls(
        self: &Arc<Self>,
        now: Timestamp,
        at_once: usize,
        mut jitter: impl FnMut() -> Fraction,
    ) -> Vec<Polling> {
        let mut state = self.state.lock();
        let running = state.live.iter().filter(|live| live.polls.is_running()).count();
        let due = state
            .live
            .iter_mut()
            .filter(|live| is_polled(&live.facts) && live.polls.is_due(&live.facts.quota, now));
        due.take(at_once.saturating_sub(running))
            .map(|live| {
                live.polls.begin(now, jitter());
                Polling {
                    pool: Arc::clone(self),
                    account: Arc::clone(&live.account),
                    asked_at: now,
                    gone: live.polled.token().clone(),
                    has_ended: false,
                    wants_profile: live.polls.wants_profile(now),
                }
            })
            .collect()
    }
}

impl Polling {
    /// The usage endpoint answered as it should.
    pub fn answered(&mut self, usage: &Usage, now: Timestamp) {
        if !self.gone.is_cancelled() {
            self.pool.polled(&self.account, usage, self.asked_at, now);
        }
        self.end(|live| {
            live.polls.answered(now);
            if let Some(plan) = &usage.plan {
                live.learn_plan(plan);
            }
        });
    }

    /// Returns whether it is worth a line in the log.
    pub fn failed(&mut self, failure: Failure, now: Timestamp) -> bool {
        self.end(|live| {
            live.polls.failed(failure, now);
            if let Failure::Stopped(stop) = failure {
                live.learn(now, |live| live.facts.health.stop = Some(stop));
                live.unsaved_stop = true;
            }
            live.polls.is_loud()
        })
        .unwrap_or(false)
    }

    pub fn profiled(&self, profile: Profile, now: Timestamp) {
        self.with(|live| {
            live.polls.profiled(now);
            if let Some(plan) = &profile.plan {
                live.learn_plan(plan);
            }
            let credential = &live.account.credential;
            // Whose it is now may not have been asked.
            let is_same = credential.owner() == live.owner;
            if is_same && profile.account_uuid.is_some() {
                credential.learn(Identity {
                    organization: profile.organization_uuid,
                    person: profile.account_uuid,
                    email: profile.email,
                });
            }
        });
    }

    fn end<T>(&mut self, change: impl FnOnce(&mut Live) -> T) -> Option<T> {
        self.has_ended = true;
        let done = self.with(|live| {
            live.polls.end();
            live.end_poll_probe();
            change(live)
        });
        self.pool.line.freed();
        self.pool.polls.notify_one();
        done
    }

    /// `None`: it is about an account that has left, or was seen to meanwhile.
    fn with<T>(&self, change: impl FnOnce(&mut Live) -> T) -> Option<T> {
        self.pool.with(self.account.id, |live| (!self.gone.is_cancelled()).then(|| change(live)))?
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        if !self.has_ended {
            self.failed(Failure::Away, self.asked_at);
        }
    }
}
