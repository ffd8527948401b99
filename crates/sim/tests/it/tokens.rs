//! Sign-ins: expiry, rotation, reuse, revocation.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use poolgate_sim::{Account, Kind, Scenario, Sim};
use serde_json::{Value, json};

use crate::client::{Answer, Ask, say};

async fn refresh(sim: &Sim, kind: Kind, token: &str) -> Answer {
    let (path, client_id) = match kind {
        Kind::Codex => ("/oauth/token", "app_EMoamEEZ73f0CkXaXp7hrann"),
        _ => ("/v1/oauth/token", "9d1c250a-e61b-44d9-88ed-5944d1962f5e"),
    };
    let form = json!({
        "grant_type": "refresh_token", "client_id": client_id, "refresh_token": token,
    });
    Ask::post(sim.url() + path, &form).send().await.unwrap()
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

#[tokio::test]
async fn a_refresh_token_works_once() {
    let sim = Sim::start(Scenario::default()).await.unwrap();
    let accounts: [Account; 2] = [sim.codex("alice"), sim.claude("carol")];
    for account in accounts {
        account.expire_access_token();
        assert_eq!(say(&account, "hi").await.status, 401);
        let first = account.refresh_token();
        let answer = refresh(&sim, account.kind(), &first).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["access_token"], account.credential());
        assert_eq!(answer.json()["refresh_token"], account.refresh_token());
        assert_ne!(account.refresh_token(), first);
        assert_eq!(say(&account, "hi").await.status, 200);

        let again = refresh(&sim, account.kind(), &first).await;
        let (status, code) = if account.kind() == Kind::Codex {
            (401, again.json()["error"]["code"].clone())
        } else {
            (400, again.json()["error"].clone())
        };
        assert_eq!(again.status, status);
        assert!(code == "refresh_token_reused" || code == "invalid_grant", "{code}");
        account.revoke();
        assert_eq!(say(&account, "hi").await.status, 401);
        let revoked = refresh(&sim, account.kind(), &account.refresh_token()).await;
        assert_ne!(revoked.status, 200);
    }
    let calls = sim.journal().into_iter().filter(|entry| entry.path.ends_with("oauth/token"));
    let names: Vec<_> = calls.filter_map(|entry| entry.account).collect();
    assert_eq!(names, ["alice", "alice", "alice", "carol", "carol", "carol"]);
}

#[tokio::test]
async fn a_refresh_token_used_twice_ends_the_sign_in_if_told_so() {
    let sim = Sim::start(Scenario::default()).await.unwrap();
    let alice = sim.codex("alice");
    alice.revoke_on_reuse();
    let first = alice.refresh_token();
    assert_eq!(refresh(&sim, Kind::Codex, &first).await.status, 200);
    assert_eq!(say(&alice, "hi").await.status, 200);
    assert_eq!(refresh(&sim, Kind::Codex, &first).await.status, 401);
    assert_eq!(say(&alice, "hi").await.status, 401, "what came of it is dead too");
    assert_ne!(refresh(&sim, Kind::Codex, &alice.refresh_token()).await.status, 200);
    alice.renew();
    assert_eq!(say(&alice, "hi").await.status, 200, "a new sign-in is not");
}

#[tokio::test]
async fn codex_tokens_carry_the_claims_codex_reads() {
    let sim = Sim::start(Scenario::default()).await.unwrap();
    let alice = sim.codex("alice");
    alice.plan("pro").renew();
    let file: Value = serde_json::from_str(&alice.auth_json()).unwrap();
    assert_eq!(file["auth_mode"], "chatgpt");
    assert_eq!(file["tokens"]["account_id"], alice.account_id());
    let id = claims(file["tokens"]["id_token"].as_str().unwrap());
    assert_eq!(id["email"], "alice@example.invalid");
    let access = claims(file["tokens"]["access_token"].as_str().unwrap());
    let auth = &access["https://api.openai.com/auth"];
    assert_eq!(auth["chatgpt_plan_type"], "pro");
    assert_eq!(auth["chatgpt_account_id"], alice.account_id());
    assert!(access["exp"].as_i64() > access["iat"].as_i64());
}

#[tokio::test]
async fn access_tokens_expire_with_the_clock() {
    let sim = Sim::start(Scenario::default()).await.unwrap();
    let carol = sim.claude("carol");
    let file: Value = serde_json::from_str(&carol.credentials_json()).unwrap();
    assert!(file["claudeAiOauth"]["expiresAt"].as_i64().unwrap() > 1_000_000_000_000);
    assert_eq!(say(&carol, "hi").await.status, 200);
    sim.advance(std::time::Duration::from_hours(8));
    assert_eq!(say(&carol, "hi").await.status, 401);
}
