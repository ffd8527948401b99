//! The handles that serving a request may use; built once, from the configuration.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::clock::Clock;
use crate::config::{Config, Limits};
use crate::credentials::Issuers;
use crate::egress::Egress;
use crate::gates::Gates;
use crate::gateway::{Catalogue, scoped, unscoped};
use crate::keys::Keys;
use crate::ledger::{self, Spool};
use crate::metrics::Metrics;
use crate::pool::{self, OWNED_FOR, Pool};
use crate::reconfigure::{Last, Live};
use crate::sealing::DataKey;
use crate::serve::memory::Memory;
use crate::serve::strangers::Strangers;
use crate::store::{Store, Unread};
use crate::tasks::{Sockets, Tasks};
use crate::vault;

const OWNERS_LOADED: i64 = 100_000;

#[derive(Debug)]
pub struct App {
    /// As the process was started; what may have changed since is asked of `limits`.
    pub config: Config,
    pub clock: Arc<dyn Clock>,
    pub tasks: Tasks,
    /// Cancelled when nobody should come here any more; whoever comes is still served.
    pub leaving: CancellationToken,
    /// Cancelled when no new request is to be taken on; the running ones go on.
    pub draining: CancellationToken,
    /// Answers that still run are to end now.
    pub cutting: AtomicBool,
    pub memory: Memory,
    pub strangers: Strangers,
    live: ArcSwap<Live>,
    /// Two who take over accounts at the same time would each open a new one's credential.
    loading: tokio::sync::Mutex<()>,
    pub configured: Last,
    pub store: Store,
    pub spool: Arc<Spool>,
    pub data_key: Arc<DataKey>,
    pub keys: Keys,
    pub pool: Arc<Pool>,
    pub egress: Egress,
    pub issuers: Issuers,
    pub admission: Arc<Admission>,
    pub metrics: Arc<Metrics>,
    /// Clients' sockets, which outlive the requests that opened them.
    pub sockets: Sockets,
    pub catalogue: Catalogue,
    pub gates: Gates,
    /// SHA-256 of the operator's token, which stands in a file only the operator can read.
    pub admin_token: [u8; 32],
}

impl App {
    /// Opens everything, takes over what an earlier process left, and starts the background jobs.
    pub async fn start(config: Config, clock: Arc<dyn Clock>) -> anyhow::Result<Arc<Self>> {
        let store = Store::open(&config.data_dir).await?;
        let data_key = Arc::new(vault::unlock(&config, &store).await?);
        let configured = vault::seal_settings(&config.accounts, &data_key)?;
        store.sync_config_accounts(&configured, clock.now()).await?;
        let tasks = Tasks::default();
        let dir = config.data_dir.join(ledger::DIR);
        let (max, workers) = (config.limits.spool_max, config.workers);
        let spool = ledger::start(&dir, max, workers, &store, &tasks, clock.clone()).await?;
        // What changes from here on is seen as a change, if it was not loaded.
        let revision = store.revision().await?;
        let app = Self::assemble(config, clock, store, data_key, (tasks, spool)).await?;
        app.load_owners().await?;
        if !app.spool.taken_over.is_cancelled() {
            let job = Arc::clone(&app);
            app.tasks.spawn(async move { job.learn_owners_later().await });
        }
        crate::jobs::start(&app, revision);
        Ok(app)
    }

    /// The same without any background job, for a command that uses the accounts beside a running
    /// gateway. It must not serve.
    pub async fn open(
        config: Config,
        clock: Arc<dyn Clock>,
        store: Store,
    ) -> anyhow::Result<Arc<Self>> {
        let data_key = Arc::new(vault::unlock(&config, &store).await?);
        let background = (Tasks::default(), Arc::new(Spool::unused()));
        Self::assemble(config, clock, store, data_key, background).await
    }

    async fn assemble(
        config: Config,
        clock: Arc<dyn Clock>,
        store: Store,
        data_key: Arc<DataKey>,
        (tasks, spool): (Tasks, Arc<Spool>),
    ) -> anyhow::Result<Arc<Self>> {
        let live = ArcSwap::from_pointee(Live::of(&config));
        let app = Arc::new(Self {
            egress: Egress::new(config.limits.connect_timeout, config.workers)?,
            metrics: Arc::default(),
            admission: Arc::new(Admission::new(&config.limits)),
            sockets: Sockets::default(),
            admin_token: crate::admin::load_token(&config.data_dir)?,
            issuers: Issuers::default(),
            keys: Keys::default(),
            pool: Arc::new(Pool::default()),
            catalogue: Catalogue::default(),
            gates: Gates::builtin(),
            config,
            clock,
            leaving: CancellationToken::new(),
            draining: CancellationToken::new(),
            cutting: AtomicBool::new(false),
            memory: Memory::default(),
            strangers: Strangers::default(),
            live,
            loading: tokio::sync::Mutex::default(),
            configured: Last::default(),
            tasks,
            store,
            spool,
            data_key,
        });
        app.reload().await?;
        Ok(app)
    }

    /// As the configuration is now.
    pub fn limits(&self) -> Limits {
        self.live.load().limits
    }

    /// Takes over what may change without a restart: with an error, nothing of it.
    pub async fn reconfigure(&self, config: &Config) -> anyhow::Result<()> {
        let configured = vault::seal_settings(&config.accounts, &self.data_key)?;
        self.store.sync_config_accounts(&configured, self.clock.now()).await?;
        let _only = self.loading.lock().await;
        let (loaded, unread) = self.load().await?;
        let live = Arc::new(Live::of(config));
        self.live.store(Arc::clone(&live));
        self.pool.replace(loaded, &unread, &live.pools);
        Ok(())
    }

    /// Takes over accounts and keys as the store has them now.
    pub async fn reload(&self) -> anyhow::Result<()> {
        let _only = self.loading.lock().await;
        let (loaded, unread) = self.load().await?;
        self.pool.replace(loaded, &unread, &self.live.load().pools);
        Ok(())
    }

    /// Keys, which count at once, and the accounts; and those that cannot be read.
    async fn load(&self) -> anyhow::Result<(Vec<pool::Loaded>, Vec<Unread>)> {
        self.keys.replace(self.store.client_keys().await?);
        let known = self.pool.begin_reload();
        let dir = self.config.data_dir.join("credentials");
        pool::load(&self.store, &self.data_key, &dir, &known, self.clock.now()).await
    }

    /// Of responses that the process before us has yet to record.
    async fn learn_owners_later(&self) {
        let taken_over = self.spool.taken_over.cancelled();
        if self.tasks.stop.run_until_cancelled(taken_over).await.is_some()
            && let Err(error) = self.load_owners().await
        {
            tracing::warn!(%error, "owners of responses could not be loaded");
        }
    }

    async fn load_owners(&self) -> anyhow::Result<()> {
        let since = self.clock.now().minus(OWNED_FOR);
        for owner in self.store.response_owners(since, OWNERS_LOADED).await? {
            let names = [unscoped(&owner.response), scoped(owner.key_id, &owner.response)];
            self.pool.own_response(names, owner.account, owner.at);
        }
        Ok(())
    }
}
