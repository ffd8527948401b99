//! The real service against the simulator, both in this process, on free ports.
//!
//! `Harness::start` runs a closure that adds accounts; `finish` drains the service and checks that
//! nothing was left behind: no attempt counted, no task running, no record unsaved.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use poolgate::app::App;
use poolgate::clock::ShiftedClock;
use poolgate::config::{Config, RawAccount, RawConfig, RawLimits, RawListener, RawPool};
use poolgate::keys::generate;
use poolgate::serve::Server;
use poolgate::store::{KeyLimits, NewClientKey};
use poolgate_sim::{Account, Scenario, Sim};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::canary;

/// Long enough for anything here on a busy machine; reached only by a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Harness {
    pub sim: Sim,
    pub app: Arc<App>,
    pub clock: Arc<ShiftedClock>,
    pub url: String,
    pub key: String,
    pub dir: tempfile::TempDir,
    stop: CancellationToken,
    server: JoinHandle<bool>,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// What the gateway will be started with.
pub struct Setup {
    pub sim: Sim,
    pub dir: tempfile::TempDir,
    pub raw: RawConfig,
    /// Whether usage endpoints are asked; off unless a test is about that.
    pub polls: bool,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// What arrived, up to the end or the break.
    pub body: Bytes,
    /// The body broke off.
    pub cut: bool,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Our stable code, on answers that are ours.
    pub fn code(&self) -> &str {
        self.headers.get("x-poolgate-error").map_or("", |value| value.to_str().unwrap())
    }
}

impl Setup {
    pub async fn new() -> Self {
        if canary::is_on() {
            canary::listen();
        }
        let sim = Sim::start(Scenario::default()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let raw = RawConfig {
            listen: Some("127.0.0.1:0".into()),
            data_dir: Some(dir.path().join("data")),
            workers: Some(2),
            listener: RawListener { drain_delay_s: Some(0), ..RawListener::default() },
            limits: RawLimits { drain_timeout_s: Some(5), ..RawLimits::default() },
            ..RawConfig::default()
        };
        Self { sim, dir, raw, polls: false }
    }

    pub fn codex(&mut self, name: &str) -> Account {
        let account = self.sim.codex(name);
        self.add_codex(&account);
        account
    }

    /// A codex account that the simulator has already.
    pub fn add_codex(&mut self, account: &Account) {
        let name = account.name();
        let base = format!("{}/backend-api/codex", account.url());
        self.sign_in(
            name,
            "codex",
            &account.auth_json(),
            base,
            format!("{}/oauth/token", account.url()),
        );
    }

    pub fn claude(&mut self, name: &str) -> Account {
        let account = self.sim.claude(name);
        let token = format!("{}/v1/oauth/token", account.url());
        self.sign_in(name, "claude", &account.credentials_json(), account.url(), token);
        account
    }

    pub fn openai(&mut self, name: &str) -> Account {
        let account = self.sim.openai(name);
        self.key(name, "openai", &account, format!("{}/v1", account.url()));
        account
    }

    pub fn anthropic(&mut self, name: &str) -> Account {
        let account = self.sim.anthropic(name);
        self.key(name, "anthropic", &account, account.url());
        account
    }

    /// The settings of an account added before.
    pub fn settings(&mut self, name: &str) -> &mut RawAccount {
        self.raw.account.iter_mut().find(|a| a.name == name).expect("added before")
    }

    pub fn pool(&mut self, name: &str, members: &[&str], strategy: &str) {
        self.raw.pool.push(RawPool {
            name: name.into(),
            members: members.iter().map(|&m| m.into()).collect(),
            strategy: Some(strategy.into()),
            rebalance_threshold: None,
        });
    }

    /// The accounts in order, the first one first: tests say which account fails.
    pub fn in_order(&mut self) {
        self.pool("default", &[], "fallback");
    }

    fn sign_in(&mut self, name: &str, kind: &str, document: &str, base: String, token: String) {
        let path = self.dir.path().join(format!("{name}.json"));
        poolgate::files::create_private(&path, document.as_bytes()).unwrap();
        self.raw.account.push(RawAccount {
            name: name.into(),
            kind: kind.into(),
            auth_file: Some(path),
            base_url: Some(base),
            token_url: Some(token),
            ..RawAccount::default()
        });
    }

    fn key(&mut self, name: &str, kind: &str, account: &Account, base: String) {
        let path = self.dir.path().join(format!("{name}.key"));
        poolgate::files::create_private(&path, account.api_key().as_bytes()).unwrap();
        self.raw.account.push(RawAccount {
            name: name.into(),
            kind: kind.into(),
            key_file: Some(path),
            base_url: Some(base),
            ..RawAccount::default()
        });
    }

    pub async fn start(self) -> Harness {
        let mut config = Config::resolve(self.raw).unwrap();
        config.polls = self.polls;
        let clock = Arc::new(ShiftedClock::default());
        let Served { app, url, stop, server } = serve(config, clock.clone()).await;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut harness = Harness {
            sim: self.sim,
            app,
            clock,
            url,
            key: String::new(),
            dir: self.dir,
            stop,
            server,
            client,
        };
        harness.key = harness.new_key("test", &[], &[]).await;
        harness
    }
}

struct Served {
    app: Arc<App>,
    url: String,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<bool>,
}

async fn serve(config: Config, clock: Arc<ShiftedClock>) -> Served {
    let app = App::start(config, clock).await.unwrap();
    let server = Server::bind(Arc::clone(&app)).unwrap();
    let url = format!("http://{}", server.address);
    let stop = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "the service under test is awaited by finish")]
    let server = tokio::spawn(server.run(stop.clone()));
    Served { app, url, stop, server }
}

impl Harness {
    /// Drains, and starts again on the same port with the same data.
    pub async fn restart(self) -> Self {
        let Self { sim, app, clock, url, key, dir, stop, server, client } = self;
        stop.cancel();
        assert!(server.await.unwrap(), "it drains");
        app.store.close().await;
        let mut config = app.config.clone();
        config.listen = url.strip_prefix("http://").unwrap().parse().unwrap();
        drop(app);
        let Served { app, url, stop, server } = serve(config, clock.clone()).await;
        Self { sim, app, clock, url, key, dir, stop, server, client }
    }

    /// A gateway with the accounts that `add` adds.
    pub async fn start<T>(add: impl FnOnce(&mut Setup) -> T) -> (Self, T) {
        let mut setup = Setup::new().await;
        let added = add(&mut setup);
        (setup.start().await, added)
    }

    /// One account, `a`, that serves one request at a time.
    pub async fn one_slot() -> (Self, Account) {
        Self::start(|s: &mut Setup| {
            let a = s.codex("a");
            s.settings("a").max_concurrency = Some(1);
            a
        })
        .await
    }

    /// The one that requests are sent with; known at once.
    pub async fn revoke_key(&self) {
        self.app.store.revoke_client_key("test", poolgate_core::units::Timestamp(1)).await.unwrap();
        self.app.reload().await.unwrap();
    }

    pub async fn new_key(&self, name: &str, pools: &[&str], models: &[&str]) -> String {
        let owned = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect();
        self.keep(generate(name.into(), owned(pools), owned(models), None).unwrap()).await
    }

    pub async fn ending_key(&self, name: &str, at: poolgate_core::units::Timestamp) -> String {
        self.keep(generate(name.into(), vec![], vec![], Some(at)).unwrap()).await
    }

    /// A key with limits of its own.
    pub async fn limited_key(&self, name: &str, limits: KeyLimits) -> String {
        self.limited_key_for(name, &[], limits).await
    }

    pub async fn limited_key_for(&self, name: &str, models: &[&str], limits: KeyLimits) -> String {
        let models = models.iter().map(|&model| model.to_owned()).collect();
        let (key, new) = generate(name.into(), vec![], models, None).unwrap();
        self.keep((key, NewClientKey { limits, ..new })).await
    }

    async fn keep(&self, (key, new): (String, NewClientKey)) -> String {
        assert!(
            self.app.store.add_client_key(&new, poolgate_core::units::Timestamp(0)).await.unwrap()
        );
        self.app.reload().await.unwrap();
        canary::secret("a client key", &key);
        key
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, &[], body).await
    }

    pub async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let key = format!("Bearer {}", self.key);
        let mut all = vec![("authorization", key.as_str()), ("content-type", "application/json")];
        all.extend_from_slice(headers);
        self.send(Method::POST, path, &all, body.to_string().into()).await
    }

    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let key = format!("Bearer {}", self.key);
        let mut all = vec![("authorization", key.as_str())];
        all.extend_from_slice(headers);
        self.send(Method::GET, path, &all, Bytes::new()).await
    }

    /// Exactly these headers.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        let url = format!("{}{path}", self.url);
        let answer = collect(self.request(method, &url, headers, body).await).await;
        canary::sink("answers", format!("{:?}\n", answer.headers).as_bytes());
        canary::sink("answers", &answer.body);
        answer
    }

    /// The same request at the simulator itself, with an account's own credential.
    pub async fn direct(
        &self,
        account: &Account,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Answer {
        let bearer = format!("Bearer {}", account.credential());
        let id = account.account_id();
        let mut all = vec![
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("chatgpt-account-id", id.as_str()),
        ];
        all.extend_from_slice(headers);
        let url = format!("{}{path}", self.sim.url());
        collect(self.request(Method::POST, &url, &all, body.to_string().into()).await).await
    }

    /// To the head of the answer.
    pub async fn request(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> http::Response<Incoming> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).unwrap();
        tokio::time::timeout(PATIENCE, self.client.request(request))
            .await
            .expect("in time")
            .unwrap()
    }

    /// Names of the accounts that were asked for an answer, in order: a request, a turn of a socket,
    /// or a socket that was refused.
    pub fn asked(&self) -> Vec<String> {
        let is_call = |e: &poolgate_sim::Entry| {
            let no_socket = e.method == Method::GET && e.path.ends_with("/responses");
            e.is_turn()
                || (e.method == Method::POST && !e.path.ends_with("/token"))
                || (no_socket && e.status != Some(101))
        };
        self.sim.journal().into_iter().filter(is_call).filter_map(|e| e.account).collect()
    }

    /// Outcomes in the ledger, after everything appended so far has been moved there.
    pub async fn outcomes(&self) -> Vec<(String, i64)> {
        tokio::time::timeout(PATIENCE, self.app.spool.drained()).await.expect("moved in time");
        self.app.store.outcomes().await.unwrap()
    }

    /// Rows of the ledger as text, oldest first.
    pub async fn rows(&self, sql: &'static str) -> Vec<Vec<String>> {
        use sqlx::{Column, Row, TypeInfo, ValueRef};
        self.outcomes().await;
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(self.app.config.data_dir.join("poolgate.db"));
        let db = sqlx::SqlitePool::connect_with(options).await.unwrap();
        let rows = sqlx::query(sql).fetch_all(&db).await.unwrap();
        db.close().await;
        let text = |row: &sqlx::sqlite::SqliteRow, i: usize| {
            let value = row.try_get_raw(row.column(i).ordinal()).unwrap();
            match value.type_info().name() {
                _ if value.is_null() => "NULL".to_owned(),
                "INTEGER" => row.get::<i64, _>(i).to_string(),
                _ => row.get::<String, _>(i),
            }
        };
        rows.iter().map(|row| (0..row.len()).map(|i| text(row, i)).collect()).collect()
    }

    /// Drains, and checks that nothing is left.
    pub async fn finish(self) {
        self.finish_and(|_| {}).await;
    }

    pub async fn finish_and(self, check: impl FnOnce(&App)) {
        drop(self.client);
        self.stop.cancel();
        let clean = tokio::time::timeout(PATIENCE, self.server).await.expect("drains").unwrap();
        assert!(clean, "something was still running at the end of the drain");
        assert_eq!(self.app.pool.in_flight(), 0, "attempts left behind");
        assert_eq!(self.app.tasks.len(), 0, "tasks left behind");
        assert_eq!(self.app.spool.waiting(), 0, "records left behind");
        assert_eq!(self.app.store.integrity().await.unwrap(), "ok");
        check(&self.app);
        self.app.store.close().await;
        if canary::is_on() {
            canary::secrets_of(&self.sim);
            canary::sink_files(&self.app.config.data_dir);
            canary::check();
        }
    }
}

pub async fn collect(response: http::Response<Incoming>) -> Answer {
    let (head, mut body) = response.into_parts();
    let (mut bytes, mut cut) = (Vec::new(), false);
    let read = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                cut = true;
                break;
            };
            bytes.extend(frame.into_data().unwrap_or_default());
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the body ends in time");
    Answer { status: head.status, headers: head.headers, body: bytes.into(), cut }
}
