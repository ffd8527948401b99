//! `poolgate doctor` finds what is wrong, says what to do, and changes nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use poolgate::config::RawAccount;
use poolgate::config::{Config, RawConfig};
use poolgate::sealing::MasterKey;
use poolgate::store::{Origin, Store};
use poolgate_core::health::Stop;
use poolgate_core::units::Timestamp;
use poolgate_sim::{Account, Scenario, Sim};
use serde_json::Value;
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;

use crate::cli::run;
use crate::harness::{Harness, Setup};

const AT: Timestamp = Timestamp(1);

/// Whether it succeeded, and what it printed.
async fn doctor(dir: &Path, more: &[&str]) -> (bool, Value) {
    let output = run(dir, &[&["doctor", "--json"], more].concat(), "").await;
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.success(), report)
}

/// Grade and words about something, the worst first.
fn found(report: &Value, about: &str) -> Vec<(String, String)> {
    let text = |check: &Value, field: &str| check[field].as_str().unwrap_or_default().to_owned();
    let checks = report["checks"].as_array().unwrap();
    let mut found: Vec<_> = checks
        .iter()
        .filter(|check| check["about"] == about)
        .map(|check| (text(check, "grade"), text(check, "found")))
        .collect();
    found.sort_by_key(|(grade, _)| grade == "ok");
    found
}

/// Every file below `dir`: its mode and content.
fn files(dir: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let (path, mode) = {
            let entry = entry.unwrap();
            (entry.path(), entry.metadata().unwrap().permissions().mode())
        };
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.display().to_string(), (mode, std::fs::read(&path).unwrap()));
        }
    }
    all
}

/// A data directory as a gateway leaves it, with one account of the simulator.
struct Installation {
    _sim: Sim,
    dir: tempfile::TempDir,
    upstream: Account,
    store: Store,
}

impl Installation {
    async fn new() -> Self {
        let sim = Sim::start(Scenario::default()).await.unwrap();
        let upstream = sim.codex("a");
        upstream.own_port().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let raw = RawConfig { data_dir: Some(dir.path().to_owned()), ..RawConfig::default() };
        poolgate::vault::unlock(&Config::resolve(raw).unwrap(), &store).await.unwrap();
        let (_, client) = poolgate::keys::generate("k".into(), vec![], vec![], None).unwrap();
        store.add_client_key(&client, AT).await.unwrap();
        let auth_file = dir.path().join("auth.json");
        poolgate::files::create_private(&auth_file, upstream.auth_json().as_bytes()).unwrap();
        let account = RawAccount {
            name: "a".into(),
            kind: "codex".into(),
            auth_file: Some(auth_file),
            base_url: Some(format!("{}/backend-api/codex", upstream.url())),
            token_url: Some(format!("{}/oauth/token", upstream.url())),
            ..RawAccount::default()
        };
        store.add_account(&account, Origin::Cli, AT).await.unwrap();
        Self { _sim: sim, dir, upstream, store }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn set_mode(&self, name: &str, mode: u32) {
        std::fs::set_permissions(self.path(name), PermissionsExt::from_mode(mode)).unwrap();
    }

    async fn stop(&self, stop: Stop) {
        let id = self.store.accounts().await.unwrap()[0].id;
        self.store.set_stop(id, Some(stop)).await.unwrap();
    }

    async fn sql(&self, sql: &'static str) {
        let options = SqliteConnectOptions::new().filename(self.path("poolgate.db"));
        let database = SqlitePool::connect_with(options).await.unwrap();
        sqlx::query(sql).execute(&database).await.unwrap();
        database.close().await;
    }

    /// Runs it on what lies there, with nothing open.
    async fn doctor(self, more: &[&str]) -> (bool, Value) {
        self.store.close().await;
        doctor(self.dir.path(), more).await
    }
}

#[tokio::test]
async fn all_is_well_beside_a_running_gateway() {
    let (h, _) = Harness::start(|s: &mut Setup| (s.codex("a"), s.claude("c"), s.openai("k"))).await;
    let data = h.app.config.data_dir.clone();
    let (well, report) = doctor(&data, &["--url", &h.url]).await;
    assert!(well, "{report}");
    assert_eq!((&report["problems"], &report["warnings"]), (&0.into(), &0.into()), "{report}");
    for (about, words) in [
        ("database", "sound"),
        ("master key", "the right one"),
        ("gateway", "running"),
        ("account a", "its token is good for"),
        ("account c", "its token is good for"),
        ("account k", "its API key is there"),
        ("clock", "agrees"),
        (&h.sim.url(), "can be reached, for a, c, k"),
    ] {
        let [(grade, text)] = &found(&report, about)[..] else { panic!("{about}: {report}") };
        assert!(grade == "ok" && text.contains(words), "{about}: {text}");
    }
    let sent = h.sim.journal();
    assert!(!sent.is_empty() && sent.iter().all(|e| e.account.is_none()), "without a credential");
    let text = run(&data, &["doctor", "--url", &h.url], "").await;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("ok       database: sound") && text.ends_with("All is well.\n"),
        "{text}"
    );
    h.finish().await;
}

#[tokio::test]
async fn an_empty_directory_is_no_problem_and_stays_empty() {
    let dir = tempfile::tempdir().unwrap();
    let (well, report) = doctor(dir.path(), &[]).await;
    assert!(well, "{report}");
    assert_eq!(found(&report, "accounts")[0].0, "warning");
    assert!(files(dir.path()).is_empty(), "{:?}", files(dir.path()).keys());
}

#[tokio::test]
async fn it_changes_nothing() {
    let place = Installation::new().await;
    place.stop(Stop::NeedsLogin).await;
    place.store.close().await;
    let before = files(place.dir.path());
    let (well, report) = doctor(place.dir.path(), &[]).await;
    assert!(!well, "{report}");
    let after = files(place.dir.path());
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert!(before == after, "a file has changed");
}

#[tokio::test]
#[rustfmt::skip]
async fn each_trouble_is_found_with_what_to_do() {
    type Break = fn(&Installation);
    let cases: [(&str, &str, Break, &str, &str); 11] = [
        ("the sign-in is gone", "account a", |p| std::fs::remove_file(p.path("auth.json")).unwrap(), "problem", "No such file"),
        ("it is cut short", "account a", |p| std::fs::write(p.path("auth.json"), "{").unwrap(), "problem", "not a JSON object"),
        ("others can read it", "account a", |p| p.set_mode("auth.json", 0o644), "problem", "open to everybody"),
        ("its group can", "account a", |p| p.set_mode("auth.json", 0o640), "warning", "open to its group"),
        ("others can read the key", "data directory", |p| p.set_mode("master.key", 0o604), "problem", "open to everybody"),
        ("the key is gone", "master key", |p| std::fs::remove_file(p.path("master.key")).unwrap(), "problem", "is missing"),
        ("it is another", "master key", |p| {
            std::fs::write(p.path("master.key"), MasterKey::generate().unwrap()).unwrap();
        }, "problem", "not the one"),
        ("it is none", "master key", |p| std::fs::write(p.path("master.key"), "x").unwrap(), "problem", "base64"),
        ("the upstream is away", "upstream", |p| p.upstream.refuse_connections(), "problem", "refused"),
        ("the configuration", "configuration", |p| std::fs::write(p.path("poolgate.toml"), "listen = 7").unwrap(), "problem", "listen"),
        ("a pool", "pool p", |p| std::fs::write(p.path("poolgate.toml"), "[[pool]]\nname = 'p'\nmembers = ['a', 'b']\n").unwrap(), "warning", "named b"),
    ];
    for (name, about, break_it, grade, words) in cases {
        let place = Installation::new().await;
        let about = if about == "upstream" { place.upstream.url() } else { about.to_owned() };
        break_it(&place);
        let (well, report) = place.doctor(&[]).await;
        let (got, text) = found(&report, &about).first().cloned().unwrap_or_default();
        assert!(got == grade && text.contains(words), "{name}: {report}");
        assert_eq!(well, grade != "problem", "{name}: exit status");
        let told = report["checks"].as_array().unwrap().iter().find(|c| c["found"] == text.as_str());
        assert!(told.is_some_and(|check| check["advice"].is_string()), "{name}: {report}");
    }
}

#[tokio::test]
async fn a_broken_database_is_found() {
    let place = Installation::new().await;
    place.store.close().await;
    let path = place.path("poolgate.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[4096..middle].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let (well, report) = doctor(place.dir.path(), &["--offline"]).await;
    assert!(!well);
    assert_eq!(found(&report, "database")[0].0, "problem", "{report}");
}

#[tokio::test]
async fn what_stopped_an_account_is_told() {
    for (stop, words) in [
        (Stop::NeedsLogin, "refused for good"),
        (Stop::Disabled, "disabled"),
        (Stop::Deactivated, "deactivated"),
    ] {
        let place = Installation::new().await;
        place.stop(stop).await;
        let (well, report) = place.doctor(&["--offline"]).await;
        let found = found(&report, "account a");
        assert!(!well && found[0].1.contains(words), "{report}");
        assert!(found[1].1.contains("its token is good"), "{report}");
    }
}

/// As after a downgrade.
#[tokio::test]
async fn an_account_whose_settings_cannot_be_read_is_told() {
    for (origin, advice) in [("cli", "account remove a"), ("config", "restart the gateway")] {
        let place = Installation::new().await;
        place.sql(r#"UPDATE accounts SET settings = '{"of_tomorrow":1}'"#).await;
        if origin == "config" {
            place.sql("UPDATE accounts SET origin = 'config'").await;
        }
        let (well, report) = place.doctor(&["--offline"]).await;
        assert!(!well && found(&report, "accounts").is_empty(), "there is one: {report}");
        let [(grade, words)] = &found(&report, "account a")[..] else { panic!("{report}") };
        assert!(grade == "problem" && words.contains("unknown field `of_tomorrow`"), "{words}");
        let checks = report["checks"].as_array().unwrap();
        let told = checks.iter().find(|check| check["about"] == "account a").unwrap();
        assert!(told["advice"].as_str().unwrap().contains(advice), "{told}");
    }
}

/// Its requests find nobody, which nothing else tells.
#[tokio::test]
async fn a_key_for_a_pool_that_is_gone_is_found() {
    let place = Installation::new().await;
    let (_, lost) =
        poolgate::keys::generate("lost".into(), vec!["gone".into()], vec![], None).unwrap();
    place.store.add_client_key(&lost, AT).await.unwrap();
    let (well, report) = place.doctor(&["--offline"]).await;
    let (grade, words) = &found(&report, "client key lost")[0];
    assert!(well && grade == "warning" && words.contains("no pool gone"), "{report}");
    assert!(found(&report, "client key k").is_empty(), "{report}");
}
