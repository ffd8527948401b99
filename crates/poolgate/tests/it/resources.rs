//! What the machine may run out of, or take away for a while, under a process of its own: disk,
//! descriptors, time, the reader of its log.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sqlx::Row;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::canary;
use crate::harness::{PATIENCE, Setup};
use crate::kill::{Installed, LOG, install, search};
use crate::requests::{CODEX, responses};

struct Process {
    child: Child,
    pid: String,
    url: String,
    key: String,
    installed: Installed,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// A text that the simulator answers in so many events, 20 ms apart.
fn slow(events: usize) -> String {
    format!("hi [[events={events}]] [[gap_ms=20]]")
}

impl Process {
    async fn start(setup: &Setup, log: Option<Stdio>) -> Self {
        let installed = install(setup, "").await;
        // A limit on the size of files comes with a signal, which a full disk has not.
        let mut command = Command::new("sh");
        command
            .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_poolgate")])
            .args(["serve", "--config"])
            .arg(installed.dir.join("poolgate.toml"))
            .env("RUST_LOG", if log.is_some() || canary::is_on() { "trace" } else { "warn" })
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let file = std::fs::File::create(installed.dir.join(LOG)).unwrap();
        let child = command.stderr(log.unwrap_or_else(|| file.into())).spawn().unwrap();
        let ready = async {
            while TcpStream::connect(("127.0.0.1", installed.port)).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, ready).await.expect("it starts");
        Self {
            pid: child.id().unwrap().to_string(),
            child,
            url: format!("http://127.0.0.1:{}{CODEX}", installed.port),
            key: installed.key.clone(),
            installed,
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// To the head of the answer.
    async fn ask(&self, text: &str) -> Response<Incoming> {
        let request = Request::post(&self.url).header("x-api-key", &self.key);
        let body = responses(text, true).to_string();
        let sent = self.client.request(request.body(Full::new(Bytes::from(body))).unwrap());
        timeout(PATIENCE, sent).await.expect("an answer in time").unwrap()
    }

    async fn answers(&self, text: &str) {
        let (head, body) = self.ask(text).await.into_parts();
        assert_eq!(head.status, 200);
        assert!(is_complete(body).await);
    }

    /// Asks until somebody answers.
    async fn recovers(&self) {
        let mut last = None;
        let again = async {
            loop {
                let answer = self.ask("hi").await;
                if answer.status() == 200 {
                    return is_complete(answer.into_body()).await;
                }
                last = Some(answer);
            }
        };
        let complete = timeout(PATIENCE, again).await;
        assert!(complete == Ok(true), "it recovers by itself: {last:?}, {}", self.log());
    }

    async fn run(&self, command: &[&str]) {
        let done = Command::new(command[0]).args(&command[1..]).status().await.unwrap();
        assert!(done.success(), "{command:?}");
    }

    /// As `prlimit` writes limits: `--nofile=9`, `--fsize=unlimited`. The soft one alone.
    async fn limit(&self, limit: &str) {
        self.run(&["prlimit", "--pid", &self.pid, &format!("{limit}:")]).await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.installed.dir.join(LOG)).unwrap()
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().count()
    }

    /// Stops it, and counts what it recorded.
    async fn ends_with(mut self, setup: &Setup, want: &[(&str, i64)]) {
        self.run(&["kill", "-TERM", &self.pid]).await;
        let ended = timeout(PATIENCE, self.child.wait()).await.expect("it drains").unwrap();
        assert!(ended.success(), "{ended}");
        let file = self.installed.dir.join("data/poolgate.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
        let db = sqlx::SqlitePool::connect_with(options).await.unwrap();
        let sql =
            "SELECT COALESCE(outcome, 'running') AS o, COUNT(*) AS n FROM requests GROUP BY o";
        let rows = sqlx::query(sql).fetch_all(&db).await.unwrap();
        db.close().await;
        let got: Vec<(String, i64)> = rows.iter().map(|row| (row.get("o"), row.get("n"))).collect();
        let want: Vec<(String, i64)> = want.iter().map(|(o, n)| ((*o).to_owned(), *n)).collect();
        assert_eq!(got, want, "{}", self.log());
        assert!(!self.log().contains("panicked"), "{}", self.log());
        search(&self.installed.dir, &setup.sim);
    }
}

/// Requests that reached the upstream; usage polls are none.
fn asked(setup: &Setup) -> usize {
    setup.sim.journal().iter().filter(|entry| entry.method == http::Method::POST).count()
}

async fn is_complete(mut body: Incoming) -> bool {
    let mut seen = Vec::new();
    while let Some(Ok(frame)) = timeout(PATIENCE, body.frame()).await.expect("it goes on") {
        seen.extend(frame.into_data().unwrap_or_default());
    }
    String::from_utf8_lossy(&seen).contains("response.completed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_and_what_was_running_is_recorded_when_there_is_room() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let gateway = Process::start(&setup, None).await;
    gateway.answers("hi").await;
    let (_, running) = gateway.ask(&slow(40)).await.into_parts();
    gateway.limit("--fsize=1").await;
    let before = asked(&setup);
    for _ in 0..20 {
        let refused = gateway.ask("hi").await;
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.headers()["x-poolgate-error"], "proxy_unavailable");
        assert!(refused.headers().contains_key("retry-after"));
    }
    assert_eq!(asked(&setup), before, "no upstream was asked");
    assert!(is_complete(running).await, "what was admitted goes on");
    gateway.limit("--fsize=unlimited").await;
    gateway.recovers().await;
    gateway.ends_with(&setup, &[("complete", 3)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_free_descriptors_what_is_admitted_goes_on_and_others_wait() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let gateway = Process::start(&setup, None).await;
    let (_, running) = gateway.ask(&slow(60)).await.into_parts();
    let most = gateway.descriptors() + 16;
    gateway.limit(&format!("--nofile={most}")).await;
    let mut idle = Vec::new();
    for _ in 0..60 {
        // The kernel takes them; the gateway cannot.
        idle.push(TcpStream::connect(("127.0.0.1", gateway.installed.port)).await.unwrap());
    }
    let full = async { while gateway.descriptors() < most {} };
    timeout(PATIENCE, full).await.expect("descriptors are used up");
    let mut waiting = Box::pin(gateway.ask("hi"));
    let early = timeout(Duration::from_secs(1), &mut waiting);
    let (early, complete) = tokio::join!(early, is_complete(running));
    assert!(early.is_err(), "nobody could have taken it");
    assert!(complete, "what was admitted goes on");
    drop(idle);
    let (head, body) = waiting.await.into_parts();
    assert_eq!(head.status, 200, "it was only waiting");
    assert!(is_complete(body).await);
    gateway.ends_with(&setup, &[("complete", 2)]).await;
}

/// The next one is served, too: an account is not blamed for what this machine lacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_no_descriptor_is_left_for_is_no_fault_of_the_account() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let gateway = Process::start(&setup, None).await;
    // The client's connection stays; the one to the upstream is still to be made.
    let elsewhere = Request::get(format!("http://127.0.0.1:{}/healthz", gateway.installed.port));
    let (_, body) = gateway
        .client
        .request(elsewhere.body(Full::default()).unwrap())
        .await
        .unwrap()
        .into_parts();
    body.collect().await.unwrap();
    gateway.limit("--nofile=3").await;
    let refused = gateway.ask("hi").await;
    assert_eq!(refused.status(), 502, "{:?}", refused.headers());
    assert_eq!(asked(&setup), 0);
    gateway.limit("--nofile=1024").await;
    gateway.answers("hi").await;
    gateway.ends_with(&setup, &[("complete", 1), ("refused", 1)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_stopped_goes_on() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let gateway = Process::start(&setup, None).await;
    let (_, mut running) = gateway.ask(&slow(30)).await.into_parts();
    gateway.run(&["kill", "-STOP", &gateway.pid]).await;
    // What was on its way arrives, and then nothing.
    while timeout(Duration::from_secs(3), running.frame()).await.is_ok() {}
    gateway.run(&["kill", "-CONT", &gateway.pid]).await;
    assert!(is_complete(running).await, "the stream goes on");
    gateway.answers("hi").await;
    gateway.ends_with(&setup, &[("complete", 2)]).await;
}

/// reliability CRY-4: what a crash leaves behind holds no token, whatever the limit was before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_core_is_dumped() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let gateway = Process::start(&setup, None).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.pid)).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["1", "1", "bytes"]);
    gateway.ends_with(&setup, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_who_reads_the_log() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let (mut log, end) = std::io::pipe().unwrap();
    let gateway = Process::start(&setup, Some(end.into())).await;
    for _ in 0..400 {
        gateway.answers("hi").await;
    }
    let read = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        log.read_to_end(&mut text).map(|_| String::from_utf8_lossy(&text).into_owned()).unwrap()
    });
    gateway.answers("hi").await;
    gateway.ends_with(&setup, &[("complete", 401)]).await;
    let text = timeout(PATIENCE, read).await.expect("the log ends").unwrap();
    assert!(text.len() > 100 << 10, "only {} bytes: a pipe holds 64 KiB", text.len());
    assert!(text.contains("stopped"), "and its last line is there");
    canary::sink("the log of a process", text.as_bytes());
}
