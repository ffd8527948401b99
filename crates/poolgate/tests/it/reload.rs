//! The configuration is read again while the gateway runs: whole and right, or not at all.

use poolgate::clock::Clock;
use poolgate::config::RawAccount;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::harness::{PATIENCE, Setup};
use crate::process::{Place, Process};
use crate::requests::{CODEX, responses};
use crate::wire::{Got, Raw};

/// What `poolgate status` says.
async fn status(place: &Place, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_poolgate"))
        .args(["status", "--config"])
        .arg(place.dir.join("cli.toml"))
        .args(args)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Until its JSON is as wanted.
async fn until(place: &Place, wanted: impl Fn(&Value) -> bool) -> Value {
    let look = async {
        loop {
            let value: Value = serde_json::from_str(&status(place, &["--json"]).await).unwrap();
            if wanted(&value) {
                return value;
            }
        }
    };
    timeout(PATIENCE, look).await.expect("in time")
}

async fn ask(place: &Place) -> u16 {
    let body = responses("hi", false).to_string();
    let mut raw = Raw::to(&place.address).await;
    raw.write(format!(
        "POST {CODEX} HTTP/1.1\r\nHost: a\r\nx-api-key: {}\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        place.key,
        body.len()
    ))
    .await;
    Got::read(&raw.rest().await).unwrap().status
}

async fn end(mut gateway: Process) {
    gateway.signal("TERM").await;
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_good_file_is_taken_over_and_a_bad_one_is_told_of() {
    let mut setup = Setup::new().await;
    let place = Place::new(&setup, "listener.drain_delay_s = 0\n").await;
    // The command reads a file of its own, since the gateway's will be broken.
    let data = place.data();
    let data = data.to_str().unwrap();
    let cli = format!("listen = {:?}\ndata_dir = {data:?}\n", place.address);
    std::fs::write(place.dir.join("cli.toml"), cli).unwrap();
    let gateway = place.start("gateway", &[]).await;
    assert_eq!(ask(&place).await, 404, "there is no account");

    // A change of the file is noticed.
    setup.codex("a");
    place.configure(&setup, "listener.drain_delay_s = 0\nworkers = 1\nlimits.proxy_http = 7\n");
    let value =
        until(&place, |value| value["configuration"]["needs_restart"][0] == "workers").await;
    assert_eq!(value["configuration"]["needs_restart"][1], "limits.proxy_http");
    assert_eq!(value["accounts"][0]["name"], "a");
    assert_eq!(ask(&place).await, 200);

    // With two mistakes nothing of it counts, and both are told.
    let accounts = std::mem::take(&mut setup.raw.account);
    place.configure(&setup, "workers = \"x\"\n");
    until(&place, |value| value["configuration"]["error"].is_string()).await;
    let pool = "\n[[pool]]\nname = \"p\"\nstrategy = \"best\"\n";
    place.configure(&setup, pool);
    let both = |value: &Value| {
        let error = value["configuration"]["error"].as_str().unwrap_or_default();
        error.contains("members are missing") && error.contains("\"best\"")
    };
    let value = until(&place, both).await;
    assert_eq!(value["accounts"][0]["name"], "a", "the account stays");
    assert_eq!(ask(&place).await, 200);
    let text = status(&place, &[]).await;
    assert!(text.contains("! the configuration is not in force: "), "{text}");
    let log = gateway.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("not in force")).collect();
    assert!(lines.iter().any(|line| line.contains("best") && line.contains("members")), "{log}");

    // Right again; a signal asks at once.
    setup.raw.account = accounts;
    setup.settings("a").models = vec!["other*".into()];
    place.configure(&setup, "listener.drain_delay_s = 0\n");
    gateway.signal("HUP").await;
    let value = until(&place, |value| value["configuration"]["error"].is_null()).await;
    assert_eq!(value["configuration"]["needs_restart"], serde_json::json!([]));
    assert_eq!(ask(&place).await, 404, "the account may serve only other models");
    end(gateway).await;
}

/// spec §12: validated before the swap, and taken over whole.
#[tokio::test]
async fn a_store_that_takes_nothing_now_is_asked_again() {
    let mut setup = Setup::new().await;
    let settings = "listener.drain_delay_s = 0\n";
    let place = Place::new(&setup, settings).await;
    let cli = format!("listen = {:?}\ndata_dir = {:?}\n", place.address, place.data());
    std::fs::write(place.dir.join("cli.toml"), cli).unwrap();
    let gateway = place.start("gateway", &[]).await;
    let options =
        sqlx::sqlite::SqliteConnectOptions::new().filename(place.data().join("poolgate.db"));
    let db = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let refuse =
        "CREATE TRIGGER busy BEFORE INSERT ON accounts BEGIN SELECT RAISE(ABORT, 'busy'); END";
    sqlx::query(refuse).execute(&db).await.unwrap();
    setup.codex("a");
    place.configure(&setup, &format!("{settings}limits.body_max_bytes = 10\n"));
    until(&place, |value| value["configuration"]["error"].is_string()).await;
    assert_eq!(ask(&place).await, 404, "nothing of it counts, its limits neither");
    sqlx::query("DROP TRIGGER busy").execute(&db).await.unwrap();
    db.close().await;
    // The file does not change any more.
    let value = until(&place, |value| value["configuration"]["error"].is_null()).await;
    assert_eq!(value["accounts"][0]["name"], "a");
    assert_eq!(ask(&place).await, 413);
    end(gateway).await;
}

/// spec §12: an account whose settings cannot be read is left out, and keeps nothing from being taken over.
/// One that serves already goes on as it is.
#[tokio::test]
async fn settings_that_cannot_be_read_stop_no_reload() {
    let mut setup = Setup::new().await;
    setup.openai("a");
    setup.openai("b");
    let b = setup.raw.account.pop().unwrap().resolve().unwrap();
    let h = setup.start().await;
    let states = || {
        let accounts = h.app.pool.view(h.clock.now()).accounts;
        accounts.iter().map(|a| format!("{} {}", a.name, a.state)).collect::<Vec<_>>()
    };
    let ask = async || h.post("/v1/responses", &responses("hi", false)).await.status.as_u16();
    let odd =
        "INSERT INTO accounts (name, origin, settings, created_at) VALUES ('odd', 'cli', '{', 0)";
    h.rows(odd).await;
    let mut config = h.app.config.clone();
    config.accounts.push(b);
    h.app.reconfigure(&config).await.unwrap();
    assert_eq!(states(), ["a ready", "b ready"]);
    assert_eq!(ask().await, 200);

    config.accounts.pop();
    for unread in [
        "UPDATE accounts SET origin = 'cli', settings = json_set(settings, '$.base_url', 'nowhere')
         WHERE name = 'b'",
        "UPDATE accounts SET settings = '{' WHERE name = 'b'",
    ] {
        h.rows(unread).await;
        for (paused, want) in [
            ("UPDATE accounts SET paused = name = 'a'", ["a paused", "b ready"]),
            ("UPDATE accounts SET paused = name = 'b'", ["a ready", "b paused"]),
        ] {
            h.rows(paused).await;
            h.app.reconfigure(&config).await.unwrap();
            assert_eq!(states(), want, "{unread}");
            assert_eq!(ask().await, 200);
        }
    }
    h.rows("UPDATE accounts SET paused = 1").await;
    config.limits.body_max = 10;
    h.rows("DELETE FROM accounts WHERE name = 'b'").await;
    h.app.reconfigure(&config).await.unwrap();
    assert_eq!(states(), ["a paused"]);
    assert_eq!(ask().await, 413);
    h.finish().await;
}

/// spec §2: what was learnt in one place is not known of another, in memory as little as in the store.
#[tokio::test]
async fn an_account_that_is_put_in_another_place_leaves_its_quota_behind() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let h = setup.start().await;
    let windows = || h.app.pool.view(h.clock.now()).accounts[0].windows.len();
    let ask = async || h.post("/v1/responses", &responses("hi", false)).await.status.as_u16();
    assert_eq!((ask().await, windows()), (200, 2));

    let mut config = h.app.config.clone();
    let mut settings = config.accounts.remove(0).raw;
    let mut reconfigure = async |settings: &RawAccount| {
        config.accounts = vec![settings.clone().resolve().unwrap()];
        h.app.reconfigure(&config).await.unwrap();
    };
    settings.priority = Some(7);
    reconfigure(&settings).await;
    assert_eq!(windows(), 2, "it is where it was");

    let there = settings.base_url.clone();
    settings.base_url = Some("http://127.0.0.1:1/elsewhere".into());
    reconfigure(&settings).await;
    assert_eq!(windows(), 0, "nothing is known of what is there");
    settings.base_url = there;
    reconfigure(&settings).await;
    assert_eq!(windows(), 0, "nor does it come back");
    assert_eq!((ask().await, windows()), (200, 2));
    h.finish().await;
}

/// SIGHUP ends a process that does not expect it.
#[tokio::test]
async fn a_hangup_ends_nothing() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let place = Place::new(&setup, "listener.drain_delay_s = 0\n").await;
    let gateway = place.start("gateway", &[]).await;
    let mut stream = Raw::to(&place.address).await;
    let body = responses("hi [[events=20]] [[gap_ms=10]]", true).to_string();
    stream
        .write(format!(
            "POST {CODEX} HTTP/1.1\r\nHost: a\r\nx-api-key: {}\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            place.key,
            body.len()
        ))
        .await;
    stream.until("output_text.delta").await;
    gateway.signal("HUP").await;
    gateway.says("took over the configuration").await;
    let rest = String::from_utf8(stream.rest().await).unwrap();
    assert!(rest.contains("response.completed"), "{rest}");
    end(gateway).await;
}
