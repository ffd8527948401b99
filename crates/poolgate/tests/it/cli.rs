//! The command line, as a new user meets it.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::canary;
use crate::harness::{Answer, Harness, PATIENCE, Setup};
use crate::process::Place;
use crate::requests::{CODEX, messages, responses};
use crate::wire::Raw;

pub async fn run(data: &Path, args: &[&str], stdin: &str) -> Output {
    run_with(data, args, stdin, &[]).await
}

pub async fn run_with(data: &Path, args: &[&str], stdin: &str, env: &[(&str, &str)]) -> Output {
    let mut child = spawn(data, args, env);
    let mut input = child.stdin.take().unwrap();
    input.write_all(stdin.as_bytes()).await.unwrap();
    drop(input);
    let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = ended.expect("it ends").unwrap();
    // A key that is made is shown, once.
    if !args.starts_with(&["key", "create"]) {
        canary::sink("commands", &output.stdout);
    }
    canary::sink("commands", &output.stderr);
    output
}

fn spawn(data: &Path, args: &[&str], env: &[(&str, &str)]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_poolgate"))
        .args(args)
        .arg("--data")
        .arg(data)
        .env_remove("POOLGATE_CONFIG")
        .env("HOME", data)
        .envs(canary::is_on().then_some(("RUST_LOG", "trace")))
        .envs(env.iter().copied())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .current_dir(data)
        .spawn()
        .unwrap()
}

pub async fn json(data: &Path, args: &[&str]) -> Value {
    let output = run(data, &[args, &["--json"]].concat(), "").await;
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn fails(data: &Path, args: &[&str], words: &str) {
    let output = run(data, args, "").await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains(words), "{args:?}: {error}");
}

#[tokio::test]
async fn mistakes_are_said_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let file = data.join("poolgate.toml");
    let name = file.to_str().unwrap();
    std::fs::write(&file, "listen = \"x\"\n[[pool]]\nname = \"p\"\nstrategy = \"y\"\n").unwrap();
    fails(data, &["account", "test", "x", "--config", name], name).await;
    let doctor = run(data, &["doctor", "--config", name], "").await;
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains(name) && doctor.contains("3 mistake(s):\n  "), "{doctor}");
    assert!(!doctor.contains("\\n"), "{doctor}");
    let check = ["config", "check", "--config", name];
    std::fs::write(&file, "lisen = \"x\"\n[limits]\nproxy_htp = 1\nbody_max_bytes = 0\n").unwrap();
    for part in ["lisen: ", "limits.proxy_htp: ", "limits.body_max_bytes: "] {
        fails(data, &check, part).await;
    }
    std::fs::write(&file, "[tls]\ncert_file = \"no.pem\"\nkey_file = \"no.pem\"\n").unwrap();
    fails(data, &check, "tls.cert_file no.pem").await;
    std::fs::remove_file(&file).unwrap();
    let add = ["account", "add", "x", "--kind", "codx", "--key-stdin"];
    fails(data, &add, "kind \"codx\" is none of").await;
    let add = ["account", "add", "x", "--kind", "codex", "--auth-file", "/nonexistent/auth.json"];
    let added = run(data, &add, "").await;
    let words = String::from_utf8_lossy(&added.stdout).into_owned();
    assert!(added.status.success() && words.contains("before /nonexistent/auth.json"), "{words}");
    let add = ["account", "add", "y", "--kind", "codex", "--auth-file=~/auth.json"];
    let added = run(data, &add, "").await;
    let words = String::from_utf8_lossy(&added.stdout).into_owned();
    assert!(words.contains(&format!("before {}/auth.json", data.display())), "no shell: {words}");
}

/// What needs the data directory alone goes on, and says what is wrong; what needs more does not.
#[tokio::test]
async fn a_mistake_in_the_file_keeps_nobody_from_revoking_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let (home, data) = (dir.path(), dir.path().join("data"));
    let file = home.join("poolgate.toml");
    let command = async |args: &[&str], env: &[(&str, &str)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_poolgate"))
            .args(args)
            .env_remove("POOLGATE_CONFIG")
            .env_remove("POOLGATE_DATA")
            .env("HOME", home)
            .env_remove("XDG_DATA_HOME")
            .envs(env.iter().copied())
            .current_dir(home)
            .output()
            .await
            .unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let good = format!("data_dir = {data:?}\n");
    std::fs::write(&file, &good).unwrap();
    for name in ["k", "l", "m"] {
        assert!(command(&["key", "create", name], &[]).await.0);
    }
    let wrong = format!("{good}[limits]\nproxy_htp = 1\n[[account]]\nname = \"a\"\nkind = \"x\"\n");
    std::fs::write(&file, wrong).unwrap();
    for args in [&["key", "revoke", "k"][..], &["key", "list"], &["account", "list"]] {
        let (is_done, told) = command(args, &[]).await;
        assert!(is_done && told.contains("warning: ") && told.contains("proxy_htp"), "{told}");
    }
    for args in [&["key", "create", "n"][..], &["account", "test", "a"], &["config", "check"]] {
        let (is_done, told) = command(args, &[]).await;
        assert!(!is_done && !told.contains("warning: "), "{args:?}: {told}");
    }
    let (_, told) = command(&["status"], &[]).await;
    assert!(told.contains("warning: ") && told.contains("is this the data directory"), "{told}");

    // Where the data is would be a guess.
    for unclear in ["data_dri = \"/elsewhere\"\n", "data_dir = 3\n", "data_dir = \n"] {
        std::fs::write(&file, unclear).unwrap();
        let (is_done, told) = command(&["key", "revoke", "l"], &[]).await;
        assert!(!is_done && !told.contains("going on"), "{unclear}: {told}");
    }
    let place = ("POOLGATE__DATA_DIR", data.to_str().unwrap());
    assert!(command(&["key", "revoke", "l"], &[place]).await.0);
    assert!(command(&["key", "revoke", "m", "--data", place.1], &[]).await.0);

    // A variable's mistake is said of the variable.
    std::fs::write(&file, &good).unwrap();
    let variable = ("POOLGATE__LIMITS__PROXY_HTTP", "abc");
    let (is_done, told) = command(&["config", "check"], &[variable]).await;
    let words = "POOLGATE__LIMITS__PROXY_HTTP in the environment: limits.proxy_http: ";
    assert!(!is_done && told.contains(words), "{told}");
}

#[tokio::test]
async fn doctor_sees_that_another_gateway_has_the_address() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("poolgate.toml");
    let address = h.url.trim_start_matches("http://");
    std::fs::write(&file, format!("listen = \"{address}\"\n")).unwrap();
    let ask = ["doctor", "--offline", "--config", file.to_str().unwrap()];
    let doctor = run(dir.path(), &ask, "").await;
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains(&format!("something else listens on {address}")), "{doctor}");
    h.finish().await;
}

/// spec §2: an operator may ask an issuer that refused to be asked.
#[tokio::test]
async fn an_operator_renews_a_sign_in_beside_a_running_gateway() {
    let (h, b) = Harness::start(|s: &mut Setup| s.sim.codex("b")).await;
    let dir = h.dir.path().join("data");
    let document = h.dir.path().join("b.json");
    std::fs::write(&document, b.auth_json()).unwrap();
    let base = format!("{}/backend-api/codex", b.url());
    let token = format!("{}/oauth/token", b.url());
    let document = document.to_str().unwrap();
    let add = [
        "account",
        "add",
        "mine",
        "--kind",
        "codex",
        "--import",
        document,
        "--base-url",
        &base,
        "--token-url",
        &token,
    ];
    json(&dir, &add).await;
    let until = async |wanted: u16| {
        let reached = async {
            while h.post("/v1/responses", &responses("hi", true)).await.status != wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("the running gateway noticed");
    };
    until(200).await;
    b.expire_access_token();
    b.fault(poolgate_sim::Fault::status(429, "{}")).on("/oauth/token").times(2);
    until(503).await;
    let output = run(&dir, &["account", "refresh", "mine"], "").await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && said.contains("issuer refuses refresh"), "{said}");
    assert_eq!(json(&dir, &["account", "refresh", "mine"]).await["refreshed"], true);
    until(200).await;
    fails(&dir, &["account", "refresh", "nobody"], "no account named").await;
    h.finish().await;
}

/// A Claude sign-in in a file, with a minute or so left and an issuer that takes its time; and the
/// command's folder.
async fn due_sign_in(setup: &mut Setup) -> (poolgate_sim::Account, PathBuf, PathBuf) {
    let c = setup.claude("c");
    c.fault(poolgate_sim::Fault::slow_drip(16, Duration::from_millis(20))).on("/v1/oauth/token");
    let (data, file) = (setup.dir.path().join("data"), setup.dir.path().join("c.json"));
    std::fs::create_dir(&data).unwrap();
    let mut document: Value = serde_json::from_str(&c.credentials_json()).unwrap();
    let soon = poolgate::clock::Clock::now(&poolgate::clock::SystemClock).0 + 120_000;
    document["claudeAiOauth"]["expiresAt"] = soon.into();
    std::fs::write(&file, document.to_string()).unwrap();
    let (base, token) = (c.url(), format!("{}/v1/oauth/token", c.url()));
    let file_name = file.to_str().unwrap();
    let add = ["account", "add", "c", "--kind", "claude", "--auth-file", file_name];
    json(&data, &[&add[..], &["--base-url", &base, "--token-url", &token]].concat()).await;
    (c, data, file)
}

fn refresh_token_in(file: &Path) -> String {
    let document: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    document["claudeAiOauth"]["refreshToken"].as_str().unwrap().to_owned()
}

fn has_exchanged(all: &[poolgate_sim::Entry]) -> bool {
    all.iter().any(|e| e.path.ends_with("/token") && e.bytes_sent > 0)
}

/// spec §2: a rotated refresh token is durable, whoever had it rotated.
#[tokio::test]
async fn a_command_ends_only_when_the_refresh_that_it_began_has() {
    let mut setup = Setup::new().await;
    let (c, data, file) = due_sign_in(&mut setup).await;
    // The issuer is asked before the command has what it wants.
    c.fault(poolgate_sim::Fault::slow_drip(16, Duration::from_millis(20))).on("/v1/models");
    let before = c.refresh_token();
    assert_eq!(json(&data, &["account", "test", "c"]).await["works"], true);
    assert!(has_exchanged(&setup.sim.journal()), "it was due");
    assert_ne!(c.refresh_token(), before);
    assert_eq!(refresh_token_in(&file), c.refresh_token());
}

/// spec §2.
#[tokio::test]
async fn a_refresh_that_an_operator_breaks_off_is_kept_all_the_same() {
    let mut setup = Setup::new().await;
    let (c, data, file) = due_sign_in(&mut setup).await;
    let child = spawn(&data, &["account", "refresh", "c"], &[]);
    assert!(setup.sim.wait_for(has_exchanged, PATIENCE).await);
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.expect("it ends").unwrap();
    assert!(!output.status.success(), "it says that it was broken off");
    assert_eq!(refresh_token_in(&file), c.refresh_token());
}

#[tokio::test]
async fn accounts_are_added_tested_paused_and_removed() {
    let (h, a) = Harness::start(|s: &mut Setup| s.sim.openai("a")).await;
    let dir = h.dir.path().join("data");
    let base = format!("{}/v1", a.url());
    let add = ["account", "add", "mine", "--kind", "openai", "--key-stdin", "--base-url", &base];
    let output = run(&dir, &add, &a.api_key()).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fails(&dir, &["account", "add", "mine", "--kind", "openai", "--key-env", "K"], "already").await;
    fails(&dir, &["account", "add", "x", "--kind", "codex"], "auth_file").await;
    let listed = json(&dir, &["account", "list"]).await;
    assert_eq!((&listed[0]["name"], &listed[0]["credential"]), (&"mine".into(), &"stored".into()));
    let tested = json(&dir, &["account", "test", "mine"]).await;
    assert_eq!(tested["works"], true, "{tested}");

    let until = async |wanted: u16| {
        let reached = async {
            while h.post("/v1/responses", &responses("hi", true)).await.status != wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("the running gateway noticed");
    };
    until(200).await;
    json(&dir, &["account", "pause", "mine"]).await;
    until(503).await;
    json(&dir, &["account", "resume", "mine"]).await;
    until(200).await;
    json(&dir, &["account", "remove", "mine"]).await;
    until(404).await;
    fails(&dir, &["account", "remove", "mine"], "no account named").await;

    let database = std::fs::read(dir.join("poolgate.db")).unwrap();
    let wal = std::fs::read(dir.join("poolgate.db-wal")).unwrap_or_default();
    let key = a.api_key();
    let holds = |bytes: &[u8]| bytes.windows(key.len()).any(|window| window == key.as_bytes());
    assert!(!holds(&database) && !holds(&wal), "the key is sealed at rest");
    h.finish().await;
}

/// As after a downgrade.
#[tokio::test]
async fn an_account_whose_settings_cannot_be_read_is_listed_paused_and_removed() {
    let (h, _) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    let data = h.app.config.data_dir.clone();
    h.rows(
        r#"INSERT INTO accounts (name, origin, settings, created_at)
           VALUES ('odd', 'cli', '{"of_tomorrow":1}', 0), ('filed', 'config', '{', 0)"#,
    )
    .await;
    let listed = json(&data, &["account", "list"]).await;
    assert_eq!((&listed[0]["name"], &listed[0]["problem"]), (&"a".into(), &Value::Null));
    let odd = serde_json::json!({"name": "odd", "kind": null, "state": "unreadable", "origin": "cli",
        "paused": false, "problem": "unknown field `of_tomorrow`", "credential": null,
        "proxy": null});
    assert_eq!(listed[1], odd);
    let listed = run(&data, &["account", "list"], "").await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    let line = listed.lines().find(|line| line.starts_with("odd ")).unwrap();
    assert!(line.contains("unreadable") && line.ends_with("`of_tomorrow` (cli)"), "{line}");

    fails(&data, &["account", "test", "odd"], "cannot be read: unknown field").await;
    fails(&data, &["account", "remove", "filed"], "stands in the configuration file").await;
    json(&data, &["account", "pause", "odd"]).await;
    assert_eq!(h.rows("SELECT paused FROM accounts WHERE name = 'odd'").await, [["1"]]);
    let paused = json(&data, &["account", "list"]).await;
    assert_eq!((&paused[0]["paused"], &paused[1]["paused"]), (&false.into(), &true.into()));
    let listed = run(&data, &["account", "list"], "").await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("paused, unknown field `of_tomorrow` (cli)"), "{listed}");
    json(&data, &["account", "remove", "odd"]).await;
    fails(&data, &["account", "remove", "odd"], "no account named").await;
    let left = json(&data, &["account", "list"]).await;
    let names: Vec<_> = left.as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["a", "filed"], "nobody else");
    h.finish().await;
}

/// Only `serve` changes the database, and only when nobody else uses it.
#[tokio::test]
async fn a_command_does_not_change_the_database_under_an_older_gateway() {
    let (h, _) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    let data = h.app.config.data_dir.clone();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("poolgate.db"));
    let db = sqlx::SqlitePool::connect_with(options).await.unwrap();
    // As the one before left it.
    let older =
        "DELETE FROM _sqlx_migrations WHERE version = (SELECT MAX(version) FROM _sqlx_migrations)";
    sqlx::query(older).execute(&db).await.unwrap();
    db.close().await;
    fails(&data, &["account", "list"], "restart the gateway with this version first").await;
    fails(&data, &["key", "create", "k"], "restart the gateway with this version first").await;
    h.finish().await;
}

#[tokio::test]
async fn keys_are_made_shown_once_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let made = json(dir.path(), &["key", "create", "laptop"]).await;
    let key = made["key"].as_str().unwrap();
    assert!(key.starts_with("pg-") && key.len() > 40);
    fails(dir.path(), &["key", "create", "laptop"], "already").await;
    fails(dir.path(), &["key", "create", "other", "--pool", "nowhere"], "no pool named").await;
    let listed = json(dir.path(), &["key", "list"]).await;
    assert_eq!((&listed[0]["name"], &listed[0]["valid"]), (&"laptop".into(), &true.into()));
    assert!(!listed.to_string().contains(key), "it is shown once");
    json(dir.path(), &["key", "revoke", "laptop"]).await;
    assert_eq!(json(dir.path(), &["key", "list"]).await[0]["valid"], false);
    fails(dir.path(), &["key", "revoke", "laptop"], "no valid key").await;
}

#[tokio::test]
async fn status_shows_a_running_gateway() {
    let (h, _) = Harness::start(|s: &mut Setup| (s.codex("alice"), s.openai("key"))).await;
    h.post("/v1/responses", &responses("hi", true)).await;
    let data = h.app.config.data_dir.clone();
    let status = json(&data, &["status", "--url", &h.url]).await;
    assert_eq!(status["accounts"][0]["name"], "alice");
    assert_eq!(status["accounts"][0]["windows"][0]["name"], "5h");
    let text = run(&data, &["status", "--url", &h.url], "").await;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("alice") && text.contains("ready"), "{text}");
    fails(&data, &["status", "--url", "http://127.0.0.1:1"], "is it running?").await;
    let refused = h.get("/api/admin/status", &[]).await;
    assert_eq!(refused.status, 401, "a client key is no operator's token");
    assert!(refused.text().contains("admin.token"), "{}", refused.text());
    h.finish().await;
}

#[tokio::test]
async fn why_says_who_would_serve_and_why_not_the_others() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| (s.codex("alice"), s.codex("bob"))).await;
    a.fault(poolgate_sim::Fault::usage_limit_reached()).forever();
    while !h.asked().contains(&"alice".to_owned()) {
        h.post("/v1/responses", &responses("hi", true)).await;
    }
    let data = h.app.config.data_dir.clone();
    let ask = ["why", "--model", "gpt-5.5", "--url", &h.url];
    let why = json(&data, &ask).await;
    assert_eq!(why["chosen"], "bob");
    assert_eq!(why["accounts"][0]["verdict"], "limited");
    assert!(why["accounts"][0]["until"].is_i64() && why["accounts"][1]["score"].is_f64(), "{why}");
    let text = run(&data, &ask, "").await;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.starts_with("bob would serve gpt-5.5"), "{text}");
    let nobody = ["why", "--model", "claude-opus-5", "--url", &h.url, "--json"];
    let nobody = run(&data, &nobody, "").await;
    assert_eq!(nobody.status.code(), Some(1), "nobody would serve");
    let nobody: Value = serde_json::from_slice(&nobody.stdout).unwrap();
    assert_eq!(nobody["because"], "no account of a fitting kind");
    fails(&data, &["why", "--model", "m", "--key", "nobody", "--url", &h.url], "no valid key")
        .await;
    json(&data, &["key", "create", "few", "--model", "gpt-5.5*"]).await;
    h.app.reload().await.unwrap();
    for (model, chosen, because) in [
        ("gpt-5.5", "bob".into(), "strategy"),
        ("gpt-6", Value::Null, "this key may not use the model \"gpt-6\""),
    ] {
        let ask = ["why", "--model", model, "--key", "few", "--url", &h.url, "--json"];
        let told = run(&data, &ask, "").await;
        assert_eq!(told.status.success(), chosen != Value::Null);
        let why: Value = serde_json::from_slice(&told.stdout).unwrap();
        assert_eq!((&why["chosen"], &why["because"]), (&chosen, &because.into()), "{why}");
        assert_eq!(why["accounts"][1]["verdict"], "ready", "they are shown all the same");
    }
    h.finish().await;
}

#[tokio::test]
async fn explain_tells_what_each_choice_saw_and_what_came_of_it() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("alice"), s.codex("bob"))
    })
    .await;
    a.fault(poolgate_sim::Fault::usage_limit_reached()).forever();
    let data = h.app.config.data_dir.clone();
    let id = |got: Answer| got.headers["x-poolgate-request-id"].to_str().unwrap().to_owned();
    let moved = id(h.post("/v1/responses", &responses("hi", true)).await);
    let told = json(&data, &["explain", &moved, "--url", &h.url]).await;
    assert_eq!((&told["outcome"], &told["account"]), (&"complete".into(), &"bob".into()));
    assert_eq!(told["failed"][0]["outcome"], "quota_spent");
    let decisions = told["decisions"].as_array().unwrap();
    assert_eq!((decisions.len(), &decisions[0]["because"]), (2, &"strategy".into()), "{told}");
    assert_eq!(decisions[1]["candidates"][0][1], "limited", "{told}");
    assert_eq!(told["names"][decisions[1]["chosen"].to_string()], "bob", "{told}");
    let text = run(&data, &["explain", &moved, "--url", &h.url], "").await;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("→ quota_spent (429)") && text.contains("> bob"), "{text}");

    let refused = id(h.post("/v1/messages", &messages("hi", true)).await);
    let told = json(&data, &["explain", &refused, "--url", &h.url]).await;
    assert_eq!(told["decisions"][0]["because"], "no account of a fitting kind", "{told}");
    assert_eq!(told["decisions"][0]["candidates"][1][1], "unfit", "{told}");
    fails(&data, &["explain", "0123", "--url", &h.url], "no request of that id").await;
    h.finish().await;
}

/// Decisions are stored with a request's end, which a process that is killed does not write.
#[tokio::test]
async fn explain_tells_on_whom_a_request_was_when_its_process_was_killed() {
    let mut setup = Setup::new().await;
    setup.codex("alice");
    let place = Place::new(&setup, "listener.drain_delay_s = 0\n").await;
    let mut killed = place.start("killed", &[]).await;
    let mut client = Raw::to(&place.address).await;
    let body = responses("hi [[events=100000]] [[gap_ms=20]]", true).to_string();
    client
        .write(format!(
            "POST {CODEX} HTTP/1.1\r\nHost: a\r\nx-api-key: {}\r\nContent-Length: {}\r\n\r\n{body}",
            place.key,
            body.len()
        ))
        .await;
    let begun = client.until("output_text.delta").await;
    let id = begun.lines().find_map(|line| line.strip_prefix("x-poolgate-request-id: ")).unwrap();
    killed.signal("KILL").await;
    killed.ended().await;
    let mut gateway = place.start("gateway", &[]).await;
    let url = format!("http://{}", place.address);
    let (data, ask) = (place.data(), ["explain", id.trim(), "--url", &url]);
    let told = async {
        loop {
            let told = run(&data, &ask, "").await;
            let text = String::from_utf8(told.stdout).unwrap();
            if !text.contains("it is still running") {
                return text;
            }
        }
    };
    let told = tokio::time::timeout(PATIENCE, told).await.expect("the row has an end");
    assert!(
        told.ends_with("its process ended before it did; it was first given to alice\n"),
        "{told}"
    );
    gateway.signal("TERM").await;
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn mistakes_in_the_configuration_come_in_one_list() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("poolgate.toml"),
        "listen = 'x'\n[[account]]\nname = 'a'\nkind = 'b'\n",
    )
    .unwrap();
    let output = run(dir.path(), &["config", "check"], "").await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("2 mistake(s)") && error.contains("listen"), "{error}");
    fails(dir.path(), &["serve"], "mistake").await;
}
