//! No secret comes out anywhere: a run of everything at trace level, and every sink searched.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use poolgate::config::ProxyUrl;
use poolgate_sim::{Account, Fault, Kind};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::canary;
use crate::cli::{run, run_with};
use crate::harness::{Harness, PATIENCE, Setup};
use crate::proxies::{Manner, TestProxy};
use crate::requests::{CODEX, chat, messages, responses};

const PASSWORD: &str = "canary\"pass w\\rd/+é";
const WRITTEN: &str = "canary%22pass%20w%5Crd%2F%2B%C3%A9";

fn surfaces() -> [(&'static str, Value); 9] {
    [
        (CODEX, responses("hi", true)),
        ("/v1/responses", responses("hi", true)),
        ("/v1/responses", responses("hi", false)),
        ("/v1/responses/compact", responses("hi", false)),
        ("/v1/chat/completions", chat("hi", true)),
        ("/v1/chat/completions", chat("hi", false)),
        ("/v1/messages", messages("hi", true)),
        ("/v1/messages", messages("hi", false)),
        ("/v1/messages/count_tokens", messages("hi", false)),
    ]
}

/// Whatever an upstream may do, also to say what it was sent.
fn faults(account: &Account) -> Vec<Fault> {
    let token = account.credential();
    let echo = |before: usize| {
        let message = format!("{}{token}", "x".repeat(before));
        json!({"error": {"type": "x", "code": "x", "message": message}}).to_string()
    };
    // The last one stands across the place where messages are cut.
    let echoes = [echo(0), echo(465), token.clone()];
    let mut all = vec![
        Fault::unauthorized(),
        Fault::usage_limit_reached(),
        Fault::forbidden_error(),
        Fault::overloaded_529(),
        Fault::cut_before_output(),
        Fault::cut_after_output(1),
        Fault::error_event_before_output(),
        Fault::error_event_after_output(1),
        Fault::close_before_head(),
        Fault::failed_with("server_error", &token),
        Fault::failed_with("x", &format!("{}{token}", "x".repeat(465))),
    ];
    for status in [400, 401, 402, 403, 404, 429, 500, 503] {
        all.extend(echoes.iter().map(|body| Fault::status(status, body)));
    }
    all
}

async fn ask_everything(h: &Harness) {
    for (path, body) in surfaces() {
        h.post(path, &body).await;
    }
    for path in ["/v1/models", "/backend-api/codex/models?client_version=0.169.0", "/v1/nothing"] {
        h.get(path, &[]).await;
    }
    h.get("/v1/models", &[("anthropic-version", "2023-06-01")]).await;
}

async fn fail_in_every_way(h: &Harness, accounts: &[Account]) {
    for account in accounts {
        let path = match account.kind() {
            Kind::Codex | Kind::Openai => "/v1/responses",
            _ => "/v1/messages",
        };
        let body =
            if path == "/v1/messages" { messages("hi", true) } else { responses("hi", true) };
        for fault in faults(account) {
            account.fault(fault).times(3);
            h.post(path, &body).await;
            account.clear_faults();
            well_again(h).await;
        }
    }
}

async fn well_again(h: &Harness) {
    for account in h.app.store.accounts().await.unwrap() {
        h.app.store.resume(account.id, poolgate::clock::Clock::now(&*h.clock)).await.unwrap();
    }
    h.app.reload().await.unwrap();
}

/// A library of its own, which logs frames at this level.
async fn over_http2(h: &Harness) {
    let client: Client<_, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    for (path, body) in surfaces() {
        let request = Request::post(format!("{}{path}", h.url))
            .header("authorization", format!("Bearer {}", h.key))
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let answer = crate::harness::collect(client.request(request).await.unwrap()).await;
        canary::sink("answers", &answer.body);
    }
}

async fn renew_in_every_way(h: &Harness, accounts: &[Account]) {
    for account in accounts {
        let refresh = account.refresh_token();
        let said = json!({"error": "invalid_request", "error_description": refresh}).to_string();
        let path = if account.kind() == Kind::Codex { "/oauth/token" } else { "/v1/oauth/token" };
        for status in [400, 429, 500, 401] {
            account.expire_access_token();
            account.fault(Fault::status(status, &said)).on(path);
            h.post("/v1/messages", &messages("hi", true)).await;
            h.post(CODEX, &responses("hi", true)).await;
            account.clear_faults();
            // The next request may ask the issuer again.
            h.clock.advance(Duration::from_secs(400));
            h.post("/v1/messages", &messages("hi", true)).await;
            h.post(CODEX, &responses("hi", true)).await;
            well_again(h).await;
        }
    }
}

async fn callers_who_err(h: &Harness) {
    let wrong = "pg-canary-key-of-another-gateway-0123456789abcdef";
    canary::secret("a caller's wrong key", wrong);
    let bearer = format!("Bearer {wrong}");
    let body = || Bytes::from(responses("hi", true).to_string());
    for headers in [
        vec![("authorization", bearer.as_str())],
        vec![("x-api-key", wrong)],
        vec![("authorization", bearer.as_str()), ("x-api-key", h.key.as_str())],
        vec![("x-api-key", h.key.as_str()), ("cookie", "session=canary-cookie-of-a-caller")],
    ] {
        for path in ["/v1/responses", "/v1/messages", "/api/admin/status", "/metrics", "/healthz"] {
            h.send(Method::POST, path, &headers, body()).await;
            h.send(Method::GET, path, &headers, Bytes::new()).await;
        }
    }
    canary::secret("a caller's cookie", "canary-cookie-of-a-caller");
    for body in ["{", "[]", "{\"model\":7}"] {
        h.send(Method::POST, CODEX, &[("x-api-key", &h.key)], Bytes::from(body)).await;
    }
}

async fn a_proxy_in_every_manner(h: &Harness, proxy: &TestProxy) {
    for manner in [
        Manner::Refuses,
        Manner::CannotReach,
        Manner::Closes,
        Manner::Babbles,
        Manner::Hangs,
        Manner::Well,
    ] {
        proxy.is(manner);
        // Idle connections are closed, so that new ones are made.
        h.sim.account("codex").unwrap().fault(Fault::close_before_head()).times(2);
        h.post(CODEX, &responses("hi", true)).await;
        well_again(h).await;
    }
}

async fn every_command(h: &Harness, stored: &Account, proxy: &str) {
    let data = h.app.config.data_dir.clone();
    let base = format!("{}/v1", stored.url());
    let said = |args: &[&str], ok: bool, output: &std::process::Output| {
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), ok, "{args:?}: {error}");
    };
    let add = ["account", "add", "mine", "--kind", "openai", "--key-stdin", "--base-url", &base];
    let add = [&add[..], &["--proxy", proxy]].concat();
    let trace = [("RUST_LOG", "trace")];
    said(&add, true, &run_with(&data, &add, &stored.api_key(), &trace).await);
    said(&add, false, &run_with(&data, &add, &stored.api_key(), &trace).await);
    let commands: [(&[&str], Option<bool>); 21] = [
        (&["account", "list"], Some(true)),
        (&["account", "test", "mine"], Some(true)),
        (&["account", "test", "claude"], None),
        (&["account", "refresh", "mine"], Some(false)),
        (&["account", "refresh", "claude"], None),
        (&["account", "pause", "mine"], Some(true)),
        (&["account", "resume", "mine"], Some(true)),
        (&["account", "proxy", "mine", "--proxy", proxy], Some(true)),
        (&["account", "proxy", "mine", "--proxy", &proxy.replace("http:", "ftp:")], Some(false)),
        (&["account", "test", "nobody"], Some(false)),
        (&["key", "list"], Some(true)),
        (&["key", "revoke", "nobody"], Some(false)),
        (&["status", "--url", &h.url], Some(true)),
        (&["why", "--model", "gpt-5.5", "--url", &h.url], Some(true)),
        (&["explain", "none", "--url", &h.url], Some(false)),
        (&["key-rotate"], Some(true)),
        (&["account", "test", "mine"], Some(true)),
        (&["config", "check"], Some(true)),
        (&["config", "print"], Some(true)),
        (&["account", "list", "--json"], Some(true)),
        (&["account", "remove", "mine"], Some(true)),
    ];
    for (args, ok) in commands {
        let output = run_with(&data, args, "", &trace).await;
        // Its sign-in may have been refused for good by now.
        said(args, ok.unwrap_or(output.status.success()), &output);
    }
    // What is wrong makes it exit with 1; what it says is what matters.
    run_with(&data, &["doctor"], "", &trace).await;
    run_with(&data, &["doctor", "--json"], "", &trace).await;
}

/// A process of its own, which logs JSON at trace level.
async fn a_gateway_of_its_own(h: &Harness, accounts: &str) {
    let dir = h.dir.path().join("other");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("poolgate.toml"), accounts).unwrap();
    let key = run(&dir, &["key", "create", "k", "--json"], "").await;
    let key: Value = serde_json::from_slice(&key.stdout).unwrap();
    let key = key["key"].as_str().unwrap();
    canary::secret("a client key", key);
    let log = dir.join("log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_poolgate"))
        .args(["serve", "--json", "--listen", "127.0.0.1:0", "--data"])
        .arg(&dir)
        .current_dir(&dir)
        .env("HOME", &dir)
        .env("RUST_LOG", "trace")
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let address = async {
        loop {
            let written = std::fs::read_to_string(dir.join("address")).unwrap_or_default();
            if let Ok(address) = written.parse::<std::net::SocketAddr>() {
                return address;
            }
            tokio::task::yield_now().await;
        }
    };
    let address = tokio::time::timeout(PATIENCE, address).await.expect("it starts");
    for (path, body) in surfaces() {
        let headers = [("x-api-key", key), ("content-type", "application/json")];
        let body = Bytes::from(body.to_string());
        let url = format!("http://{address}{path}");
        let answer = h.request(Method::POST, &url, &headers, body).await;
        let answer = crate::harness::collect(answer).await;
        canary::sink("answers of a process", &answer.body);
    }
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    tokio::time::timeout(PATIENCE, child.wait()).await.expect("it drains").unwrap();
    register_keys(&dir);
    canary::sink_files(&dir);
    let size = std::fs::metadata(log).unwrap().len();
    assert!(size > 10_000, "it logs at trace level: {size} bytes");
}

fn register_keys(data: &Path) {
    for (what, file) in [("the master key", "master.key"), ("the operator's token", "admin.token")]
    {
        if let Ok(text) = std::fs::read_to_string(data.join(file)) {
            canary::secret(what, text.trim());
        }
    }
}

/// spec §0 "no leak"; reliability P5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_comes_out_anywhere() {
    canary::listen();
    let mut setup = Setup::new().await;
    setup.raw.limits.connect_timeout_s = Some(1);
    setup.polls = true;
    setup.in_order();
    let accounts = [
        setup.codex("codex"),
        setup.claude("claude"),
        setup.openai("key"),
        setup.anthropic("other"),
    ];
    let stored = setup.sim.openai("stored");
    let proxy = TestProxy::start(&setup.sim.url(), Some(("canary-user", PASSWORD))).await;
    canary::secret("a proxy's password", PASSWORD);
    canary::secret("a proxy's password, as written", WRITTEN);
    canary::secret("a proxy's login", &format!("canary-user:{PASSWORD}"));
    let written = format!("http://canary-user:{WRITTEN}@{}", proxy.address);
    setup.settings("codex").proxy = Some(ProxyUrl::new(&written));
    setup.settings("claude").proxy = Some(ProxyUrl::new(written.replace("http:", "socks5h:")));
    let mut file = String::from("[limits]\nconnect_timeout_s = 1\n");
    for account in &setup.raw.account {
        let mut table = toml::Table::try_from(account).unwrap();
        if let Some(proxy) = table.get_mut("proxy") {
            let scheme = proxy.as_str().unwrap().split("//").next().unwrap().to_owned();
            *proxy = written.replace("http:", &scheme).into();
        }
        file += &format!("[[account]]\n{table}");
    }
    let h = setup.start().await;
    ask_everything(&h).await;
    over_http2(&h).await;
    callers_who_err(&h).await;
    renew_in_every_way(&h, &accounts[..2]).await;
    a_proxy_in_every_manner(&h, &proxy).await;
    fail_in_every_way(&h, &accounts).await;
    ask_everything(&h).await;
    every_command(&h, &stored, &written).await;
    a_gateway_of_its_own(&h, &file).await;
    register_keys(&h.app.config.data_dir);
    canary::secrets_of(&h.sim);
    canary::sink_files(&h.app.config.data_dir);
    let sizes = canary::sizes();
    println!("searched {} bytes in {} sinks", sizes.values().sum::<usize>(), sizes.len());
    println!("{sizes:?}");
    for sink in ["the log", "answers", "commands"] {
        assert!(sizes.get(sink).is_some_and(|size| *size > 4_000), "{sink}: {sizes:?}");
    }
    for file in ["poolgate.db", "log"] {
        assert!(sizes.keys().any(|name| name.ends_with(file)), "{file}: {sizes:?}");
    }
    h.finish().await;
}
