//! The running simulator.

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::account::{Account, Inner};
use crate::answer::memo::Memo;
use crate::clock::Clock;
use crate::journal::{Entry, Journal};
use crate::kind::Kind;
use crate::listener::Listener;
use crate::logins::{DevicePoll, Logins, Person};
use crate::registry::Registry;
use crate::scenario::Scenario;

/// What all requests share.
#[derive(Debug)]
pub struct World {
    pub clock: Clock,
    pub registry: Registry,
    pub logins: Logins,
    pub journal: Arc<Journal>,
    pub answers: Memo,
    pub tasks: Tasks,
    requests: AtomicU64,
    sockets: AtomicU64,
    url: OnceLock<String>,
}

/// The tasks of a simulator; nothing else spawns.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    pub stop: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// The task is to end on `stop`.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }
}

/// For the streams of an h2 connection, which end with it.
impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let stop = self.stop.clone();
        self.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }
}

impl World {
    pub fn url(&self) -> String {
        self.url.get().cloned().unwrap_or_default()
    }

    pub fn next_socket(&self) -> u64 {
        self.sockets.fetch_add(1, Ordering::Relaxed)
    }

    pub fn next_request_id(&self) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        // Spread over all digits, so that ids do not look alike; unique all the same.
        let spread = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!("req_{spread:016x}{number:016x}")
    }
}

/// A simulator. Dropping it closes its sockets and ends its tasks.
#[derive(Debug)]
pub struct Sim {
    world: Arc<World>,
    listener: Listener,
}

impl Sim {
    /// Binds and serves on the current runtime.
    pub async fn start(scenario: Scenario) -> io::Result<Self> {
        let world = Arc::new(World {
            clock: Clock::new(scenario.time_scale),
            registry: Registry::default(),
            logins: Logins::default(),
            journal: Journal::new(scenario.journal),
            answers: Memo::default(),
            tasks: Tasks::default(),
            requests: AtomicU64::new(0),
            sockets: AtomicU64::new(0),
            url: OnceLock::new(),
        });
        let listener = Listener::bind(&world, scenario.listen).await?;
        world.url.get_or_init(|| listener.url());
        let sim = Self { world, listener };
        for spec in &scenario.accounts {
            let account = sim.add(spec.kind, &spec.name);
            spec.apply(&account);
            if spec.own_port {
                account.own_port().await?;
            }
        }
        Ok(sim)
    }

    /// Base URL of every endpoint.
    pub fn url(&self) -> String {
        self.listener.url()
    }

    /// Adds a codex subscription.
    pub fn codex(&self, name: &str) -> Account {
        self.add(Kind::Codex, name)
    }

    /// Adds a claude subscription.
    pub fn claude(&self, name: &str) -> Account {
        self.add(Kind::Claude, name)
    }

    /// Adds an `OpenAI` platform key.
    pub fn openai(&self, name: &str) -> Account {
        self.add(Kind::Openai, name)
    }

    /// Adds an Anthropic platform key.
    pub fn anthropic(&self, name: &str) -> Account {
        self.add(Kind::Anthropic, name)
    }

    fn add(&self, kind: Kind, name: &str) -> Account {
        let account = Arc::new(Inner::new(kind, name, &self.world.clock));
        self.world.registry.add(&account, &self.world.clock);
        self.handle(account)
    }

    fn handle(&self, account: Arc<Inner>) -> Account {
        Account::new(account, Arc::clone(&self.world))
    }

    /// The first account of this name.
    pub fn account(&self, name: &str) -> Option<Account> {
        self.world.registry.find(name).map(|account| self.handle(account))
    }

    /// All accounts, in the order in which they were added.
    pub fn accounts(&self) -> Vec<Account> {
        self.world.registry.all().into_iter().map(|account| self.handle(account)).collect()
    }

    /// Every token and key that was ever given out.
    pub fn credentials(&self) -> Vec<String> {
        self.world.registry.credentials()
    }

    /// Whoever opens the sign-in page of this kind from now on declines.
    pub fn declines(&self, kind: Kind) {
        self.world.logins.seat(kind, Person::Declines);
    }

    /// No code handed out so far is good any longer.
    pub fn expire_codes(&self) {
        self.world.logins.expire_codes();
    }

    /// From now on a device code is to be polled for every `interval_s` seconds, and answered so
    /// before it is granted (5 s, one [`DevicePoll::Pending`]).
    pub fn device_codes(&self, interval_s: u64, answers: &[DevicePoll]) {
        self.world.logins.plan_devices(Some((interval_s, answers)));
    }

    /// From now on there are no device codes.
    pub fn no_device_codes(&self) {
        self.world.logins.plan_devices(None);
    }

    /// Moves the simulator's clock forward by real time: windows reset and tokens expire.
    pub fn advance(&self, by: Duration) {
        self.world.clock.advance(by);
    }

    /// A copy of the journal, the oldest entry first.
    pub fn journal(&self) -> Vec<Entry> {
        self.world.journal.entries()
    }

    pub fn clear_journal(&self) {
        self.world.journal.clear();
    }

    /// Waits until the journal is as wanted; `false`: not within `patience`.
    ///
    /// The predicate runs under the journal's lock at every change: keep it short.
    pub async fn wait_for(&self, is_so: impl FnMut(&[Entry]) -> bool, patience: Duration) -> bool {
        self.world.journal.wait_for(is_so, patience).await
    }

    /// Stops, and waits until every task has ended.
    pub async fn stop(self) {
        let tasks = self.world.tasks.clone();
        drop(self);
        tasks.tracker.close();
        tasks.tracker.wait().await;
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.world.tasks.stop.cancel();
        for account in self.world.registry.all() {
            account.listener.lock().take();
        }
    }
}
