//! The live state of all accounts, behind one short lock.
//!
//! Live truth is here, durable truth in the store. The lock is held for microseconds around a
//! decision and its reservation, never across an `.await`: two requests cannot both take the last
//! slot, and fifty first requests of one session land on one account. Leases exist only in memory,
//! so a crash leaves nothing to repair.

mod clock;
mod decision;
mod evidence;
mod lease;
mod leasing;
mod limits;
pub mod line;
mod load;
mod polling;
mod view;
mod why;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Uri;
use parking_lot::Mutex;
use poolgate_core::account::{AccountId, Kind, Speaks, Surface};
use poolgate_core::affinity::{Affinity, SOFT_FOR, Scope};
use poolgate_core::availability::Account as Facts;
use poolgate_core::health::{Health, Stop};
use poolgate_core::network::Network;
use poolgate_core::poll::Polls;
use poolgate_core::quota::Quota;
use poolgate_core::refresh::Standing;
use poolgate_core::strategy::Strategy;
use poolgate_core::units::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::{DEFAULT_POOL, PoolSpec, Upstream};
use crate::credentials::{Credential, Likeness, Owner};
use crate::store::{Unread, Whereabouts};

use line::Line;

pub use decision::{Candidate, Decision};
pub use lease::{Lease, Refused, Wish};
pub use limits::subscription;
pub use load::{load, plan_weight, resolve};
pub use polling::Polling;
pub use view::{AccountView, DEACTIVATED, DISABLED, PoolView, WindowView};
pub use why::{Why, WhyAccount};

/// Sessions remembered; forgetting one costs a cache miss.
const SESSIONS: usize = 100_000;
/// Two for each response.
const OWNERS: usize = 200_000;
/// State behind a response id is kept by upstreams for at least this long.
pub const OWNED_FOR: Duration = Duration::from_hours(24);

/// A hash of a session's or response's name, scoped by client key.
pub type SessionKey = [u8; 16];

/// Whom an account stands for: somebody else from when it is put in another place, or its credential
/// becomes another person's. What a request finds is about whoever it was sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tenant(u64);

impl Default for Tenant {
    /// One that was never before in this process.
    fn default() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed))
    }
}

/// The unchanging side of an account, shared by all requests on it.
#[derive(Clone, Debug)]
pub struct Account {
    pub id: AccountId,
    pub tenant: Tenant,
    pub name: String,
    pub kind: Kind,
    pub speaks: Speaks,
    /// Patterns of the models it may serve; empty: all.
    pub models: Vec<String>,
    pub upstream: Upstream,
    pub token_url: Option<Uri>,
    pub credential: Arc<Credential>,
}

#[derive(Debug)]
pub struct Pool {
    state: Mutex<State>,
    /// Requests that wait until an account may have become able to serve.
    line: Arc<Line>,
    /// Rung when an account is to be polled now.
    polls: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    live: Vec<Live>,
    pools: HashMap<String, Arc<Members>>,
    homes: Affinity<SessionKey>,
    owners: Affinity<SessionKey>,
    /// Cancelled when a scope's sessions move away from an account.
    moves: HashMap<(Scope, AccountId), CancellationToken>,
    /// Choices made by round-robin: those of other pools or surfaces fall on other accounts, and
    /// must not move on whose turn it is here.
    turns: HashMap<(Scope, Surface), u64>,
    network: Network,
    /// Usage is polled: a stale snapshot may be checked without a client's request.
    polls_on: bool,
    /// The pool's.
    polls: Arc<Notify>,
}

#[derive(Debug)]
struct Live {
    account: Arc<Account>,
    /// Where what is known of it was learnt.
    whereabouts: Whereabouts,
    facts: Facts,
    counters: Counters,
    resumed_at: Option<Timestamp>,
    /// By an operator; `None`: by plan.
    plan_weight: Option<f64>,
    /// Whose the credential was when that was last looked at.
    owner: Owner,
    /// What it was good for then, and which tokens that was about; `None`: not looked at yet.
    stands: Option<(Standing, [u8; 32])>,
    /// As the provider told it, which is newer than what the credential says.
    learnt_plan: Option<String>,
    /// When its upstream last answered anything.
    heard_at: Option<Timestamp>,
    polls: Polls,
    /// Ends the poll under way when the account leaves, or its credential is exchanged.
    polled: DropGuard,
    /// Until when others wait for that poll; see [`Facts::probing_until`].
    poll_probes_until: Option<Timestamp>,
    /// Cancelled when the account becomes unable to serve: requests that still wait for a head go
    /// elsewhere, running streams finish.
    interrupt: CancellationToken,
    /// The quota differs from what the store has.
    unsaved: bool,
    /// The stop differs from what the store has.
    unsaved_stop: bool,
    /// It was saved after a reload began, which may have read the store before that.
    saved_stop: bool,
    /// The stop that the log tells of.
    logged_stop: Option<Stop>,
}

/// Since the process started; for people to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub attempts: u64,
    pub served: u64,
    /// Requests that left this account for another.
    pub failovers: u64,
}

#[derive(Clone, Debug, Default)]
struct Members {
    ids: Vec<AccountId>,
    strategy: Strategy,
    rebalance_threshold: Option<f64>,
}

/// An account as loaded: its shared side, and the facts it starts with.
#[derive(Debug)]
pub struct Loaded {
    pub account: Account,
    pub whereabouts: Whereabouts,
    pub facts: Facts,
    /// When an operator last vouched for it.
    pub resumed_at: Option<Timestamp>,
    /// By an operator; `None`: by plan.
    pub plan_weight: Option<f64>,
}

impl Default for Pool {
    fn default() -> Self {
        let polls = Arc::new(Notify::new());
        let state = State {
            live: Vec::new(),
            pools: HashMap::new(),
            homes: Affinity::new(SESSIONS, SOFT_FOR),
            owners: Affinity::new(OWNERS, OWNED_FOR),
            moves: HashMap::new(),
            turns: HashMap::new(),
            network: Network::default(),
            polls_on: false,
            polls: Arc::clone(&polls),
        };
        Self { state: Mutex::new(state), line: Arc::default(), polls }
    }
}

impl Pool {
    /// Takes over accounts and pools as they are now configured. What was learnt about an account
    /// that stays where it was is kept, unless an operator has resumed it since. Those of `unread` that
    /// are here go on as they were, but for a pause and an operator's word.
    pub fn replace(&self, loaded: Vec<Loaded>, unread: &[Unread], pools: &[PoolSpec]) {
        let mut state = self.state.lock();
        let mut old: HashMap<AccountId, Live> =
            state.live.drain(..).map(|live| (live.facts.id, live)).collect();
        for one in loaded {
            let known = old.remove(&one.facts.id);
            state.live.push(Live::of(one, known));
        }
        for one in unread {
            let Some(mut live) = old.remove(&one.id) else { continue };
            live.follow_unread(one);
            state.live.push(live);
        }
        state.live.sort_by_key(|live| live.facts.id);
        // Of those that have left, requests that wait for a head go elsewhere, as after a pause.
        for live in old.values() {
            live.interrupt.cancel();
        }
        let everyone: Vec<AccountId> = state.live.iter().map(|live| live.facts.id).collect();
        let by_name: HashMap<&str, AccountId> =
            state.live.iter().map(|live| (live.account.name.as_str(), live.facts.id)).collect();
        let mut members: HashMap<String, Arc<Members>> = pools
            .iter()
            .map(|pool| {
                let named =
                    pool.members.iter().filter_map(|name| by_name.get(name.as_str()).copied());
                let all = pool.name == DEFAULT_POOL && pool.members.is_empty();
                let ids = if all { everyone.clone() } else { named.collect() };
                let (strategy, rebalance_threshold) = (pool.strategy, pool.rebalance_threshold);
                (pool.name.clone(), Arc::new(Members { ids, strategy, rebalance_threshold }))
            })
            .collect();
        let of_all = || Arc::new(Members { ids: everyone, ..Members::default() });
        members.entry(DEFAULT_POOL.to_owned()).or_insert_with(of_all);
        state.pools = members;
        drop(state);
        self.line.freed();
        self.polls.notify_one();
    }

    /// Where the session is at home.
    pub fn home(&self, session: SessionKey, now: Timestamp) -> Option<AccountId> {
        self.state.lock().homes.home(&session, now)
    }

    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// The lease that was probing is over, whatever it found.
    fn end_probe(&self, id: AccountId, until: Timestamp) {
        let ended = self.with(id, |live| {
            let ours = live.facts.probing_until == Some(until);
            if ours {
                live.facts.probing_until = None;
            }
            ours
        });
        if ended == Some(true) {
            self.line.freed();
        }
    }

    fn give_back(&self, id: AccountId) {
        self.with(id, |live| {
            live.facts.in_flight = live.facts.in_flight.saturating_sub(1);
        });
        self.line.freed();
    }

    fn with<T>(&self, id: AccountId, change: impl FnOnce(&mut Live) -> T) -> Option<T> {
        let mut state = self.state.lock();
        state.live.iter_mut().find(|live| live.facts.id == id).map(change)
    }

    /// Accounts of the pools, for calls that are not attempts, and whether each works, or will again
    /// without an operator.
    pub fn members(&self, pools: &[String]) -> Vec<(Arc<Account>, bool)> {
        let state = self.state.lock();
        let members = state.members(pools);
        let find = |id: &AccountId| state.live.iter().find(|live| live.facts.id == *id);
        let works = |live: &Live| !live.facts.paused && live.facts.health.stop.is_none();
        let member = |live: &Live| (Arc::clone(&live.account), works(live));
        members.ids.iter().filter_map(find).map(member).collect()
    }

    pub fn accounts(&self) -> Vec<Arc<Account>> {
        self.state.lock().live.iter().map(|live| Arc::clone(&live.account)).collect()
    }

    pub fn account(&self, id: AccountId) -> Option<Arc<Account>> {
        self.with(id, |live| Arc::clone(&live.account))
    }

    /// The accounts as they are before the store is read for [`Self::replace`].
    pub fn begin_reload(&self) -> Vec<Arc<Account>> {
        for live in &mut self.state.lock().live {
            live.saved_stop = false;
        }
        self.accounts()
    }

    /// Attempts running now, on all accounts.
    pub fn in_flight(&self) -> u32 {
        self.state.lock().live.iter().map(|live| live.facts.in_flight).sum()
    }

    /// Quotas that the store does not have yet; they count as saved from here on.
    pub fn take_unsaved_quotas(&self) -> Vec<(AccountId, Quota)> {
        let mut state = self.state.lock();
        let saved = |live: &mut Live| {
            let facts = &live.facts;
            std::mem::take(&mut live.unsaved).then(|| (facts.id, facts.quota.clone()))
        };
        state.live.iter_mut().filter_map(saved).collect()
    }

    /// The same for stops.
    pub fn take_unsaved_stops(&self) -> Vec<(AccountId, Option<Stop>)> {
        let mut state = self.state.lock();
        let saved = |live: &mut Live| {
            let facts = &live.facts;
            if let Some(stop) = facts.health.stop
                && live.unsaved_stop
                && live.logged_stop != Some(stop)
            {
                let (account, stop) = (&live.account.name, stop.name());
                tracing::warn!(account, stop, "an account takes no more work until a person acts");
            }
            live.logged_stop = facts.health.stop;
            live.saved_stop |= live.unsaved_stop;
            std::mem::take(&mut live.unsaved_stop).then_some((facts.id, facts.health.stop))
        };
        state.live.iter_mut().filter_map(saved).collect()
    }

    /// Saving failed: try again later.
    pub fn mark_unsaved(&self, ids: impl Iterator<Item = AccountId>, stops: bool) {
        for id in ids {
            self.with(id, |live| {
                if stops {
                    live.unsaved_stop = true;
                } else {
                    live.unsaved = true;
                }
            });
        }
    }
}

impl Live {
    /// `known`: the same account as it was; what was learnt stays, unless an operator vouches anew.
    fn of(loaded: Loaded, known: Option<Self>) -> Self {
        let Loaded { account, whereabouts, facts, resumed_at, plan_weight } = loaded;
        let windows = facts.quota.windows().iter();
        let fresh = Self {
            heard_at: windows.map(|window| window.observed_at).max(),
            owner: account.credential.owner(),
            stands: None,
            account: Arc::new(account),
            whereabouts,
            facts,
            counters: Counters::default(),
            resumed_at,
            plan_weight,
            learnt_plan: None,
            polls: Polls::fresh(),
            polled: CancellationToken::new().drop_guard(),
            poll_probes_until: None,
            interrupt: CancellationToken::new(),
            unsaved: false,
            unsaved_stop: false,
            saved_stop: false,
            logged_stop: None,
        };
        match known {
            Some(known) => fresh.after(known),
            None => fresh,
        }
    }

    fn after(mut self, known: Self) -> Self {
        Arc::make_mut(&mut self.account).tenant = known.account.tenant;
        let facts = &mut self.facts;
        let vouched = known.resumed_at != self.resumed_at;
        if !vouched {
            let stored = facts.health.stop;
            facts.health = known.facts.health;
            if !known.unsaved_stop && !known.saved_stop {
                facts.health.stop = stored;
            }
            self.unsaved_stop = known.unsaved_stop;
        }
        self.logged_stop = known.logged_stop;
        let (old, new) = (&known.account.credential, &self.account.credential);
        let same = Arc::ptr_eq(old, new);
        let likeness = if self.whereabouts != known.whereabouts {
            Likeness::Other
        } else if same {
            self.owner.since(known.owner)
        } else {
            old.compare(new)
        };
        if same && likeness == Likeness::Same && !vouched {
            (self.polls, self.polled) = (known.polls, known.polled);
            self.poll_probes_until = known.poll_probes_until;
        }
        self.learnt_plan = known.learnt_plan.filter(|_| same && likeness == Likeness::Same);
        if let Some(plan) = &self.learnt_plan {
            facts.plan = Some(plan.clone());
            let by_plan = plan_weight(facts.kind, facts.plan.as_deref());
            facts.weight = self.plan_weight.unwrap_or(by_plan);
        }
        self.stands = known.stands;
        facts.quota = known.facts.quota;
        facts.in_flight = known.facts.in_flight;
        facts.probing_until = known.facts.probing_until;
        (self.counters, self.unsaved, self.heard_at) =
            (known.counters, known.unsaved, known.heard_at);
        if vouched {
            self.unsaved |= facts.quota.forget_spent(facts.caps);
        }
        if facts.paused && !known.facts.paused {
            known.interrupt.cancel();
        } else {
            self.interrupt = known.interrupt;
        }
        if likeness == Likeness::Other {
            self.forget();
        }
        self
    }

    /// Its settings cannot be read: what an operator says of it all the same.
    fn follow_unread(&mut self, one: &Unread) {
        if one.paused && !self.facts.paused {
            std::mem::take(&mut self.interrupt).cancel();
        }
        self.facts.paused = one.paused;
        if self.resumed_at != one.resumed_at {
            self.resumed_at = one.resumed_at;
            self.facts.health = Health::default();
            self.unsaved_stop = false;
            self.unsaved |= self.facts.quota.forget_spent(self.facts.caps);
            self.poll_anew();
        }
    }

    /// The credential has become somebody else's, or the account was put in another place: quota and
    /// troubles are not known there, and requests that still run say nothing of it.
    fn forget(&mut self) {
        Arc::make_mut(&mut self.account).tenant = Tenant::default();
        let facts = &mut self.facts;
        facts.quota = Quota::default();
        facts.health = Health::stored(facts.health.stop);
        // The store may have got the old ones back meanwhile.
        self.unsaved = true;
    }
}

impl State {
    /// Members of all named pools in order, each once; none named: the default pool. The first
    /// pool's rules decide.
    fn members(&self, pools: &[String]) -> Arc<Members> {
        let default = pools.is_empty().then_some(DEFAULT_POOL);
        let names = pools.iter().map(String::as_str).chain(default);
        let mut found = names.filter_map(|name| self.pools.get(name));
        let mut members = found.next().cloned().unwrap_or_default();
        for more in found.flat_map(|members| &members.ids) {
            if !members.ids.contains(more) {
                Arc::make_mut(&mut members).ids.push(*more);
            }
        }
        members
    }
}

#[cfg(test)]
#[path = "pool/tests.rs"]
mod tests;
