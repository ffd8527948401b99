//! Secrets at rest: another master key at any moment, and keys from elsewhere than a file.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use poolgate::config::{Config, RawConfig};
use poolgate::sealing::MasterKey;
use poolgate::store::Store;
use poolgate::vault;
use poolgate_sim::Account;
use tokio::process::Command;
use tokio::time::Instant;

use crate::cli::{json, run, run_with};
use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::responses;

async fn add_stored(data: &Path, account: &Account) {
    let base = format!("{}/v1", account.url());
    let add = ["account", "add", "mine", "--kind", "openai", "--key-stdin", "--base-url", &base];
    let output = run(data, &add, &account.api_key()).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn works(data: &Path, env: &[(&str, &str)]) -> Result<(), String> {
    let output = run_with(data, &["account", "test", "mine"], "", env).await;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// spec §11.
#[tokio::test]
async fn the_master_key_is_changed_beside_a_running_gateway() {
    let (h, a) = Harness::start(|s: &mut Setup| s.sim.openai("a")).await;
    let data = h.app.config.data_dir.clone();
    add_stored(&data, &a).await;
    let before = std::fs::read_to_string(data.join("master.key")).unwrap();
    let rotated = json(&data, &["key-rotate"]).await;
    assert_ne!(rotated["old_fingerprint"], rotated["new_fingerprint"]);
    assert_ne!(std::fs::read_to_string(data.join("master.key")).unwrap(), before);
    assert!(!data.join("master.key.new").exists());
    works(&data, &[]).await.expect("a command that starts now");
    let served = async {
        while h.post("/v1/responses", &responses("hi", true)).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.expect("the gateway that runs goes on");
    std::fs::write(data.join("master.key"), before).unwrap();
    let refused = works(&data, &[]).await.unwrap_err();
    let new = rotated["new_fingerprint"].as_str().unwrap();
    let old = rotated["old_fingerprint"].as_str().unwrap();
    assert!(refused.contains(new) && refused.contains(old), "{refused}");
    h.finish().await;
}

/// spec §11. 40 kills here, 400 with `make soak`.
#[tokio::test]
async fn killed_anywhere_in_a_rotation_what_is_stored_still_opens() {
    let rounds = if std::env::var_os("POOLGATE_SOAK").is_some() { 400 } else { 40 };
    let dir = tempfile::tempdir().unwrap();
    let raw = RawConfig { data_dir: Some(dir.path().to_owned()), ..RawConfig::default() };
    let config = Config::resolve(raw).unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let sealed = vault::unlock(&config, &store).await.unwrap().seal("x", b"token").unwrap();
    let rotate = || {
        Command::new(env!("CARGO_BIN_EXE_poolgate"))
            .args(["key-rotate", "--data"])
            .arg(dir.path())
            .env("HOME", dir.path())
            .env_remove("POOLGATE_CONFIG")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    let began = Instant::now();
    assert!(rotate().wait().await.unwrap().success());
    let whole = began.elapsed();
    let (mut killed, mut changed) = (0, 0);
    for round in 0..rounds {
        let before = store.master_key().await.unwrap();
        let mut child = rotate();
        // Later and later, up to its usual end.
        let at = whole.mul_f64(f64::from(round) / f64::from(rounds)) + Duration::from_millis(1);
        if tokio::time::timeout(at, child.wait()).await.is_err() {
            child.kill().await.unwrap();
            killed += 1;
        }
        changed += u32::from(store.master_key().await.unwrap() != before);
        let key = vault::unlock(&config, &store).await.expect("whichever key fits is found");
        assert_eq!(key.open("x", &sealed).unwrap(), b"token", "round {round}");
    }
    println!("{killed} of {rounds} were killed, {changed} had changed the key");
    assert!(killed > 0, "none was still running");
    assert_eq!(store.integrity().await.unwrap(), "ok");
}

/// spec §11.
#[tokio::test]
async fn a_key_from_the_environment_or_systemd_is_changed_by_the_operator() {
    let (h, a) = Harness::start(|s: &mut Setup| s.sim.openai("a")).await;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let [one, two] = [(); 2].map(|()| MasterKey::generate().unwrap().trim().to_owned());
    let new_file = data.join("next.key");
    poolgate::files::create_private(&new_file, two.as_bytes()).unwrap();
    let new_file = new_file.to_str().unwrap();
    let base = format!("{}/v1", a.url());
    let add = ["account", "add", "mine", "--kind", "openai", "--key-stdin", "--base-url", &base];
    let old_only = [("POOLGATE_MASTER_KEY", one.as_str())];
    let both = [old_only[0], ("POOLGATE_MASTER_KEY_NEW", two.as_str())];
    assert!(run_with(data, &add, &a.api_key(), &old_only).await.status.success());
    assert!(!data.join("master.key").exists(), "no key of its own");

    let needs = run_with(data, &["key-rotate"], "", &old_only).await;
    assert!(!needs.status.success());
    assert!(String::from_utf8_lossy(&needs.stderr).contains("--new-key-file"));
    works(data, &both).await.expect("both, before");
    let rotate = ["key-rotate", "--new-key-file", new_file];
    let rotated = run_with(data, &rotate, "", &old_only).await;
    let said = String::from_utf8_lossy(&rotated.stdout).into_owned();
    assert!(rotated.status.success() && said.contains("into POOLGATE_MASTER_KEY before"), "{said}");
    works(data, &both).await.expect("both, after");
    assert!(works(data, &old_only).await.unwrap_err().contains("expected fingerprint"));

    let credentials = data.join("credentials-of-systemd");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("poolgate.key"), &two).unwrap();
    let systemd = [("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())];
    works(data, &systemd).await.expect("the same key from systemd");
    std::fs::write(credentials.join("poolgate.key"), &one).unwrap();
    assert!(works(data, &systemd).await.is_err());
    std::fs::write(credentials.join("poolgate.key.new"), &two).unwrap();
    works(data, &systemd).await.expect("whichever of the two fits");
    h.finish().await;
}
