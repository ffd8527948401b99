//! Token rotation over processes: two gateways share sign-in files, and one is killed at every step of
//! a rotation. The simulated issuer gives each refresh token one use, and ends a sign-in whose token
//! is used twice.
//!
//! 50 kills here, 500 with `make soak`.

use std::path::Path;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use poolgate::keys::generate;
use poolgate::store::Store;
use poolgate_sim::{Account, End, Entry, Fault, Kind, Phase};
use serde_json::Value;

use crate::canary;
use crate::harness::{PATIENCE, Setup};
use crate::kill::{Gateway, search, start};
use crate::requests::{CODEX, messages, responses};

type Http = Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>;

fn is_token(entry: &Entry) -> bool {
    entry.path.ends_with("/token")
}

/// A gateway's folder under `dir`, with the accounts of `setup`. Returns its port and a client key.
async fn prepare(setup: &Setup, dir: &Path) -> (u16, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut file = format!("listen = \"127.0.0.1:{port}\"\n");
    file += &format!("data_dir = '{}'\n", dir.join("data").display());
    file += "[limits]\nproxy_http = 0\nresponse_create = 0\n";
    for account in &setup.raw.account {
        file += "[[account]]\n";
        file += &toml::to_string(account).unwrap();
    }
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("poolgate.toml"), file).unwrap();
    let (key, new) = generate("test".into(), vec![], vec![], None).unwrap();
    canary::secret("a client key", &key);
    let store = Store::open(&dir.join("data")).await.unwrap();
    store.add_client_key(&new, poolgate_core::units::Timestamp(0)).await.unwrap();
    store.close().await;
    (port, key)
}

/// Asks for an answer of this kind of account; `None`: the connection broke.
async fn ask(http: &Http, url: &str, key: &str, kind: Kind) -> Option<u16> {
    let (path, body) = match kind {
        Kind::Codex => (CODEX, responses("hi", true)),
        _ => ("/v1/messages", messages("hi", true)),
    };
    let request = Request::post(format!("{url}{path}"))
        .header("x-api-key", key)
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
    let response = http.request(request).await.ok()?;
    let status = response.status().as_u16();
    response.into_body().collect().await.ok()?;
    Some(status)
}

/// spec §2; codex-lb G11; reliability P4.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_in_two_processes_make_one_token_call_for_each_file() {
    let mut setup = Setup::new().await;
    let accounts = [setup.codex("a"), setup.claude("c")];
    let dirs = ["one", "two"].map(|name| setup.dir.path().join(name));
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    let mut gateways = Vec::new();
    for dir in &dirs {
        let (port, key) = prepare(&setup, dir).await;
        gateways.push((start(dir, port).await, key));
    }
    for account in &accounts {
        account.revoke_on_reuse();
        account.expire_access_token();
    }
    let (http, gateways) = (&http, &gateways);
    let all = join_all((0..1000).map(async |i| {
        let (gateway, key) = &gateways[i % 2];
        ask(http, &gateway.url, key, accounts[i / 2 % 2].kind()).await
    }));
    let statuses = all.await;
    let good = statuses.iter().filter(|status| **status == Some(200)).count();
    assert_eq!(good, 1000, "{statuses:?}");
    let journal = setup.sim.journal();
    let calls: Vec<_> = journal.iter().filter(|e| is_token(e)).map(|e| &e.account).collect();
    assert_eq!(calls.len(), 2, "one for each account: {calls:?}");
    for dir in &dirs {
        search(dir, &setup.sim);
    }
}

/// When the process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// An upstream has refused the old token.
    Refused,
    /// The issuer was asked, and has not exchanged the token.
    Asked,
    /// It has, and its answer never leaves it: what only the issuer could save is lost.
    Exchanged,
    /// Its answer is on the way, or has just arrived.
    Answered,
    /// Its answer is written down for the first time, and not yet where it belongs.
    Kept,
    /// The new token is used for the first time.
    Used,
    Served,
}

const STEPS: [Step; 7] = [
    Step::Refused,
    Step::Asked,
    Step::Exchanged,
    Step::Answered,
    Step::Kept,
    Step::Used,
    Step::Served,
];

impl Step {
    fn is_reached(self, all: &[Entry]) -> bool {
        let token = || all.iter().filter(|e| is_token(e));
        let after = || {
            let first = token().map(|e| e.sequence).min();
            // Polls of usage, the other account's too, come at any time.
            let answers = all
                .iter()
                .filter(|e| e.path.ends_with("/responses") || e.path.ends_with("/messages"));
            answers.filter(move |e| first.is_some_and(|first| e.sequence > first))
        };
        match self {
            Self::Refused => all.iter().any(|e| e.status == Some(401)),
            Self::Asked => token().next().is_some(),
            Self::Exchanged => token().any(|e| e.status == Some(200)),
            Self::Answered | Self::Kept => token().any(|e| e.end == Some(End::Complete)),
            Self::Used => after().any(|e| e.status == Some(200)),
            // A late 401 to the old token is complete as well, and says nothing of the new one.
            Self::Served => after().any(|e| e.status == Some(200) && e.end == Some(End::Complete)),
        }
    }

    /// A process that dies here may have lost tokens that it never had in safe hands.
    fn may_lose(self) -> bool {
        matches!(self, Self::Exchanged | Self::Answered)
    }
}

struct World {
    setup: Setup,
    http: Http,
    key: String,
    port: u16,
}

impl World {
    /// Kills the gateway at `step` of a rotation of `account`.
    async fn kill_at(&self, step: Step, account: &Account, gateway: &mut Gateway) {
        let token = if account.kind() == Kind::Codex { "/oauth/token" } else { "/v1/oauth/token" };
        match step {
            // Never exchanged, however late the kill comes.
            Step::Refused | Step::Asked => drop(account.fault(Fault::stall(Phase::Head)).on(token)),
            Step::Exchanged => drop(account.fault(Fault::stall(Phase::Body)).on(token)),
            _ => {}
        }
        self.setup.sim.clear_journal();
        account.expire_access_token();
        let url = gateway.url.clone();
        let clients: FuturesUnordered<_> =
            (0..8).map(|_| ask(&self.http, &url, &self.key, account.kind())).collect();
        let kill = async {
            let reached = |all: &[Entry]| step.is_reached(all);
            if step == Step::Kept {
                let id = if account.kind() == Kind::Codex { 1 } else { 2 };
                let copy = self.setup.dir.path().join(format!("data/credentials/{id}.rescued"));
                while !copy.exists() && !Step::Used.is_reached(&self.setup.sim.journal()) {
                    tokio::task::yield_now().await;
                }
            } else {
                let seen = self.setup.sim.wait_for(reached, PATIENCE).await;
                assert!(seen, "{step:?} is never reached");
            }
            gateway.child.start_kill().unwrap();
            gateway.child.wait().await.unwrap();
        };
        tokio::join!(clients.collect::<Vec<_>>(), kill);
        account.clear_faults();
    }

    async fn state(&self, gateway: &Gateway, account: &Account) -> (String, String) {
        let token = self.setup.dir.path().join("data/admin.token");
        let token = std::fs::read_to_string(token).unwrap();
        let request = Request::get(format!("{}/api/admin/status", gateway.url))
            .header("authorization", format!("Bearer {}", token.trim()))
            .body(Full::default())
            .unwrap();
        let body = self.http.request(request).await.unwrap().into_body().collect().await.unwrap();
        let status: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
        let accounts = status["accounts"].as_array().unwrap();
        let found = accounts.iter().find(|a| a["name"] == account.name()).unwrap();
        let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
        (text("state"), text("problem"))
    }

    /// Whether the account serves again by itself; `false`: it says that it needs a sign-in.
    async fn recovers(&self, gateway: &Gateway, account: &Account) -> bool {
        let end = async {
            loop {
                match ask(&self.http, &gateway.url, &self.key, account.kind()).await {
                    Some(200) => return true,
                    _ if self.state(gateway, account).await.0 == "needs_login" => return false,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        tokio::time::timeout(PATIENCE * 2, end).await.expect("it serves, or says why not")
    }
}

/// spec §2; reliability P3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_step_of_a_rotation_it_loses_no_account_that_it_could_keep() {
    let rounds = if std::env::var_os("POOLGATE_SOAK").is_some() { 500 } else { 50 };
    let mut setup = Setup::new().await;
    let (codex, claude) = (setup.codex("a"), setup.claude("c"));
    codex.revoke_on_reuse();
    claude.revoke_on_reuse();
    let dir = setup.dir.path().to_owned();
    let (port, key) = prepare(&setup, &dir).await;
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    let world = World { setup, http, key, port };
    let mut gateway = start(&dir, world.port).await;
    let mut ends = STEPS.map(|_| (0, 0));
    for round in 0..rounds {
        // A dead holder's lock of Claude Code's kind takes ten seconds to go stale: fewer of those.
        let account = if round % 25 == 7 { &claude } else { &codex };
        let at = round % STEPS.len();
        let step = STEPS[at];
        world.kill_at(step, account, &mut gateway).await;
        gateway = start(&dir, world.port).await;
        if world.recovers(&gateway, account).await {
            assert_ne!(step, Step::Exchanged, "an answer nobody has cannot be used");
            ends[at].0 += 1;
        } else {
            let (_, problem) = world.state(&gateway, account).await;
            assert!(step.may_lose(), "round {round}: lost at {step:?}: {problem}");
            let code =
                if account.kind() == Kind::Codex { "refresh_token_" } else { "invalid_grant" };
            assert!(problem.contains(code), "{problem}");
            account.renew();
            let path = dir.join(format!("{}.json", account.name()));
            let document = if account.kind() == Kind::Codex {
                account.auth_json()
            } else {
                account.credentials_json()
            };
            std::fs::write(path, document).unwrap();
            let back = async { while !world.recovers(&gateway, account).await {} };
            tokio::time::timeout(PATIENCE, back).await.expect("a new sign-in is taken up");
            ends[at].1 += 1;
        }
    }
    for (step, (kept, told)) in STEPS.iter().zip(ends) {
        println!("{step:?}: {kept} recovered, {told} said that they need a sign-in");
    }
    search(&dir, &world.setup.sim);
}
