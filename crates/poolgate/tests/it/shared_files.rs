//! A sign-in file that another program uses too.

use std::path::{Path, PathBuf};

use http::Method;
use poolgate::clock::Clock;
use poolgate_sim::{Account, Entry};
use serde_json::{Value, json};

use crate::harness::{Harness, PATIENCE, Setup, collect};
use crate::requests::messages;

/// Another program that speaks Claude Code's lock protocol; it only waits less between its attempts.
struct Writer {
    file: PathBuf,
    lock: PathBuf,
}

impl Writer {
    fn new(file: &Path) -> Self {
        let mut lock = file.parent().unwrap().canonicalize().unwrap().into_os_string();
        lock.push(".lock");
        Self { file: file.to_owned(), lock: lock.into() }
    }

    fn document(&self) -> Value {
        serde_json::from_slice(&std::fs::read(&self.file).unwrap()).unwrap()
    }

    async fn take_lock(&self) {
        let taken = async {
            while std::fs::create_dir(&self.lock).is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, taken).await.expect("the lock is free at times");
    }

    /// Under the lock: renews the sign-in unless `spent` has been replaced already.
    async fn renew(&self, h: &Harness, spent: &str) {
        let mut document = self.document();
        let sign_in = &mut document["claudeAiOauth"];
        if sign_in["accessToken"] != spent {
            return;
        }
        let form = json!({"grant_type": "refresh_token", "refresh_token": sign_in["refreshToken"],
            "client_id": "9d1c250a-e61b-44d9-88ed-5944d1962f5e"});
        let url = format!("{}/v1/oauth/token", h.sim.url());
        let headers = [("content-type", "application/json")];
        let answer = h.request(Method::POST, &url, &headers, form.to_string().into()).await;
        let answer = collect(answer).await;
        assert_eq!(answer.status, 200, "the other program was logged out: {}", answer.text());
        sign_in["accessToken"] = answer.json()["access_token"].clone();
        sign_in["refreshToken"] = answer.json()["refresh_token"].clone();
        document["rounds"] = (document["rounds"].as_i64().unwrap_or(0) + 1).into();
        std::fs::write(&self.file, document.to_string()).unwrap();
    }

    fn release(&self) {
        std::fs::remove_dir(&self.lock).unwrap();
    }
}

fn calls(all: &[Entry]) -> usize {
    all.iter().filter(|e| e.path.ends_with("/token")).count()
}

async fn is_served(h: &Harness) {
    assert_eq!(h.post("/v1/messages", &messages("hi", true)).await.status, 200);
}

/// multiplexer 18.1 #5, #7, #13.
#[tokio::test]
async fn a_writer_of_claude_codes_protocol_and_poolgate_share_a_file_through_twenty_expiries() {
    let mut setup = Setup::new().await;
    let c: Account = setup.claude("c");
    c.revoke_on_reuse();
    let file = setup.dir.path().join("claude/.credentials.json");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    std::fs::write(&file, c.credentials_json()).unwrap();
    setup.settings("c").auth_file = Some(file.clone());
    let h = setup.start().await;
    let writer = Writer::new(&file);
    for round in 0..20 {
        let spent = c.credential();
        c.expire_access_token();
        if round % 2 == 0 {
            // It has the lock before poolgate wants it.
            writer.take_lock().await;
            let other = async {
                let refused = |all: &[Entry]| all.iter().any(|e| e.status == Some(401));
                assert!(h.sim.wait_for(refused, PATIENCE).await);
                writer.renew(&h, &spent).await;
                writer.release();
            };
            tokio::join!(is_served(&h), other);
        } else {
            let other = async {
                assert!(h.sim.wait_for(|all| calls(all) > 0, PATIENCE).await);
                writer.take_lock().await;
                writer.renew(&h, &spent).await;
                writer.release();
            };
            tokio::join!(is_served(&h), other);
        }
        assert_eq!(calls(&h.sim.journal()), 1, "round {round}: one of the two");
        let document = writer.document();
        assert_eq!(document["claudeAiOauth"]["refreshToken"], c.refresh_token(), "round {round}");
        h.sim.clear_journal();
    }
    assert_eq!(writer.document()["rounds"], 10, "ten each, and keys of others are kept");
    assert_eq!(h.app.pool.view(h.clock.now()).accounts[0].state, "ready");
    h.finish().await;
}

/// spec §2: a file that is missing, broken or gone is not fatal, whatever it was at the start.
#[tokio::test]
async fn a_file_may_be_missing_at_the_start_and_go_and_come_back() {
    let mut setup = Setup::new().await;
    let c = setup.claude("c");
    let file = setup.dir.path().join("c.json");
    std::fs::remove_file(&file).unwrap();
    let h = setup.start().await;
    let becomes = async |wanted: &str| {
        let reached = async {
            while h.app.pool.view(h.clock.now()).accounts[0].state != wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never {wanted}"));
    };
    becomes("unavailable").await;
    let good = c.credentials_json();
    for bad in [None, Some("{"), Some("[]"), Some(r#"{"claudeAiOauth":{}}"#)] {
        std::fs::write(&file, &good).unwrap();
        becomes("ready").await;
        is_served(&h).await;
        match bad {
            None => std::fs::remove_file(&file).unwrap(),
            Some(text) => std::fs::write(&file, text).unwrap(),
        }
        becomes("unavailable").await;
        let problem = h.app.pool.view(h.clock.now()).accounts[0].problem.clone();
        assert!(problem.is_some(), "it says why");
    }
    h.finish().await;
}
