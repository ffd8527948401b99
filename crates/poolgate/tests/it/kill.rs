//! The process is killed, again and again, under load: every completed request has exactly one row,
//! the interrupted ones are marked, and the database stays sound.
//!
//! 50 times here, 500 with `make soak`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use poolgate::keys::generate;
use poolgate::store::Store;
use poolgate_sim::Sim;
use sqlx::Row;
use tokio::process::{Child, Command};

use crate::canary;
use crate::harness::{PATIENCE, Setup};
use crate::requests::{CODEX, chat, responses};

const CHAT: &str = "/v1/chat/completions";

/// Where processes log when canaries are searched for.
pub const LOG: &str = "log";

/// Searches what processes in `dir` logged and stored for secrets.
pub fn search(dir: &std::path::Path, sim: &Sim) {
    if canary::is_on() {
        canary::secrets_of(sim);
        canary::sink("the log of a process", &std::fs::read(dir.join(LOG)).unwrap());
        canary::sink_files(&dir.join("data"));
        canary::check();
    }
}

/// What processes are started with.
pub struct Installed {
    pub dir: PathBuf,
    pub port: u16,
    pub key: String,
}

/// A configuration with the accounts of `setup` and `more`, and a client key.
pub async fn install(setup: &Setup, more: &str) -> Installed {
    let dir = setup.dir.path().to_owned();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let data = dir.join("data").display().to_string();
    let mut file = format!("listen = \"127.0.0.1:{port}\"\ndata_dir = {data:?}\n");
    file += more;
    for account in &setup.raw.account {
        file += "[[account]]\n";
        file += &toml::to_string(account).unwrap();
    }
    std::fs::write(dir.join("poolgate.toml"), file).unwrap();
    let (key, new) = generate("load".into(), vec![], vec![], None).unwrap();
    canary::secret("a client key", &key);
    let store = Store::open(&dir.join("data")).await.unwrap();
    store.add_client_key(&new, poolgate_core::units::Timestamp(0)).await.unwrap();
    store.close().await;
    Installed { dir, port, key }
}

pub struct Gateway {
    pub child: Child,
    pub url: String,
}

pub async fn start(dir: &std::path::Path, port: u16) -> Gateway {
    let mut command = Command::new(env!("CARGO_BIN_EXE_poolgate"));
    command
        .args(["serve", "--config"])
        .arg(dir.join("poolgate.toml"))
        .env("RUST_LOG", "warn")
        .stdout(Stdio::null())
        .kill_on_drop(true);
    if canary::is_on() {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join(LOG));
        command.env("RUST_LOG", "trace").stderr(log.unwrap());
    }
    let child = command.spawn().unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let ready = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("it starts");
    Gateway { child, url }
}

/// Sends until the gateway dies; the ids of requests whose last event, or whole answer, arrived.
async fn load(url: String, key: String, streams: bool) -> Vec<String> {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut complete = Vec::new();
    loop {
        let (path, body) = if streams {
            (CODEX, responses("hi [[events=6]] [[gap_ms=3]]", true))
        } else {
            (CHAT, chat("hi [[bytes=300]]", false))
        };
        let body = body.to_string();
        let request = Request::post(format!("{url}{path}"))
            .header("x-api-key", &key)
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let Ok(response) = client.request(request).await else {
            return complete;
        };
        let id = response.headers()["x-poolgate-request-id"].to_str().unwrap().to_owned();
        let (mut body, mut seen) = (response.into_body(), Vec::new());
        while let Some(Ok(frame)) = body.frame().await {
            seen.extend(frame.into_data().unwrap_or_default());
        }
        let is_complete = if streams {
            String::from_utf8_lossy(&seen).contains("response.completed")
        } else {
            serde_json::from_slice::<serde_json::Value>(&seen).is_ok()
        };
        if is_complete {
            complete.push(id);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_it_loses_and_doubles_nothing() {
    let rounds = if std::env::var_os("POOLGATE_SOAK").is_some() { 500 } else { 50 };
    let mut setup = Setup::new().await;
    let accounts = [setup.codex("a"), setup.codex("b"), setup.openai("c")];
    let Installed { dir, port, key } = install(&setup, "").await;

    let (mut complete, mut asked) = (Vec::new(), 0);
    for round in 0..rounds {
        let mut gateway = start(&dir, port).await;
        let clients: FuturesUnordered<_> =
            (0..8).map(|n| load(gateway.url.clone(), key.clone(), n % 2 == 0)).collect();
        let clients = clients.collect::<Vec<_>>();
        let kill = async {
            // Anywhere between start-up and steady load.
            let some = 3 + round % 40;
            let many = move |all: &[poolgate_sim::Entry]| all.len() >= some;
            assert!(setup.sim.wait_for(many, PATIENCE).await, "no load in round {round}");
            gateway.child.start_kill().unwrap();
            gateway.child.wait().await.unwrap();
        };
        let (ids, ()) = tokio::join!(clients, kill);
        complete.extend(ids.into_iter().flatten());
        let models = |entry: &&poolgate_sim::Entry| {
            entry.path.ends_with("/responses") || entry.path.ends_with("/completions")
        };
        asked += setup.sim.journal().iter().filter(models).count();
        setup.sim.clear_journal();
    }
    // One clean start and stop moves what the last kill left.
    let mut last = start(&dir, port).await;
    let pid = last.child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let ended = tokio::time::timeout(Duration::from_secs(20), last.child.wait()).await;
    assert!(ended.expect("it drains").unwrap().success());
    check(&dir, &complete, asked, rounds).await;
    search(&dir, &setup.sim);
    drop(accounts);
}

/// `asked`: how many requests the upstreams saw.
async fn check(dir: &std::path::Path, complete: &[String], asked: usize, rounds: usize) {
    let store = Store::open(&dir.join("data")).await.unwrap();
    assert_eq!(store.integrity().await.unwrap(), "ok");
    store.close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.join("data/poolgate.db"));
    let db = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let rows = sqlx::query("SELECT id, outcome FROM requests").fetch_all(&db).await.unwrap();
    assert!(rows.len() >= asked, "{} of {asked} that were sent left a trace", rows.len());
    let mut recorded = HashSet::new();
    let (mut interrupted, mut running) = (0, 0);
    for row in &rows {
        match row.get::<Option<&str>, _>("outcome") {
            Some("complete") => assert!(recorded.insert(row.get::<String, _>("id")), "doubled"),
            Some("interrupted") => interrupted += 1,
            None => running += 1,
            Some(_) => {}
        }
    }
    assert_eq!(running, 0, "every row has an end");
    let unique: HashSet<&String> = complete.iter().collect();
    assert_eq!(unique.len(), complete.len(), "ids are unique");
    let lost = complete.iter().filter(|id| !recorded.contains(*id)).count();
    assert_eq!(lost, 0, "of {} completed requests over {rounds} kills", complete.len());
    assert!(interrupted > 0, "a kill under load interrupts something");
    println!(
        "{} completed, {interrupted} interrupted, 0 lost over {rounds} kills; {asked} were sent",
        complete.len()
    );
}
