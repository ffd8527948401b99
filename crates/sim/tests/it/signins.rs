//! Signing in: the page sends the browser back, and a code is good once, for whoever asked for it.

use std::collections::HashMap;

use poolgate_sim::{DevicePoll, Kind, Scenario, Sim};
use serde_json::{Value, json};

use crate::client::{Answer, Ask, say};

const CODEX: &str = "app_EMoamEEZ73f0CkXaXp7hrann";
/// A verifier, and its challenge (RFC 7636, appendix B).
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
const STATE: &str = "0123456789abcdef0123456789abcdef";
const BACK: &str = "http%3A%2F%2Flocalhost%3A1455%2Fauth%2Fcallback";

/// Where the page sends the browser, or the answer that is no redirect.
async fn open(sim: &Sim, redirect: &str) -> Result<HashMap<String, String>, u16> {
    let url = format!(
        "{}/oauth/authorize?response_type=code&client_id={CODEX}&redirect_uri={redirect}\
         &scope=openid%20profile%20email%20offline_access&code_challenge={CHALLENGE}\
         &code_challenge_method=S256&state={STATE}",
        sim.url()
    );
    let answer = Ask::get(url).send().await.unwrap();
    let (to, query) = answer.header("location").split_once('?').ok_or(answer.status)?;
    assert_eq!(to, "http://localhost:1455/auth/callback");
    let pair = |part: &str| part.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned()));
    Ok(query.split('&').filter_map(pair).collect())
}

async fn redeem(sim: &Sim, code: &str, verifier: &str, redirect: &str) -> Answer {
    let form = format!(
        "grant_type=authorization_code&client_id={CODEX}&code={code}\
         &redirect_uri={redirect}&code_verifier={verifier}"
    );
    let ask = Ask::post(sim.url() + "/oauth/token", &json!(null)).body(form.into_bytes());
    ask.with("content-type", "application/x-www-form-urlencoded").send().await.unwrap()
}

#[tokio::test]
async fn a_code_is_good_once_for_whoever_asked_for_it() {
    let sim = Sim::start(Scenario::default()).await.unwrap();
    let (alice, bob) = (sim.codex("alice"), sim.codex("bob"));
    bob.signs_in();
    let back = open(&sim, BACK).await.unwrap();
    assert_eq!(back["state"], STATE);
    let answer = redeem(&sim, &back["code"], VERIFIER, BACK).await;
    assert_eq!(answer.json()["access_token"], bob.credential(), "{}", answer.text());
    assert_eq!(say(&bob, "hi").await.status, 200);
    assert_eq!(redeem(&sim, &back["code"], VERIFIER, BACK).await.status, 400, "used");

    alice.signs_in();
    for (verifier, redirect) in [(CHALLENGE, BACK), (VERIFIER, "http%3A%2F%2Felsewhere")] {
        let code = &open(&sim, BACK).await.unwrap()["code"];
        assert_eq!(redeem(&sim, code, verifier, redirect).await.status, 400);
        assert_eq!(redeem(&sim, code, VERIFIER, BACK).await.status, 400, "spent all the same");
    }
    let code = open(&sim, BACK).await.unwrap()["code"].clone();
    sim.expire_codes();
    assert_eq!(redeem(&sim, &code, VERIFIER, BACK).await.status, 400, "too late");
}

#[tokio::test]
async fn the_page_sends_nobody_elsewhere_and_tells_who_declines() {
    let sim = Sim::start(Scenario::default()).await.unwrap();
    assert_eq!(open(&sim, BACK).await, Err(400), "nobody to sign in");
    sim.codex("alice");
    assert_eq!(open(&sim, "http%3A%2F%2Fevil.example%2Fauth%2Fcallback").await, Err(400));
    sim.declines(Kind::Codex);
    assert_eq!(open(&sim, BACK).await.unwrap()["error"], "access_denied");
}

#[tokio::test]
async fn device_codes_are_answered_as_scripted() {
    let sim = Sim::start(Scenario::default()).await.unwrap();
    let alice = sim.codex("alice");
    let post = async |path: &str, body: Value| {
        Ask::post(sim.url() + "/api/accounts/deviceauth" + path, &body).send().await.unwrap()
    };
    sim.device_codes(1, &[DevicePoll::Pending, DevicePoll::SlowDown]);
    let new = post("/usercode", json!({"client_id": CODEX})).await.json();
    assert_eq!(new["interval"], "1", "seconds, as text");
    let poll = json!({"device_auth_id": new["device_auth_id"], "user_code": new["user_code"]});
    assert_eq!(post("/token", poll.clone()).await.status, 403);
    assert_eq!(post("/token", poll.clone()).await.json()["error"]["code"], "slow_down");
    let granted = post("/token", poll.clone()).await.json();
    let redirect = format!("{}/deviceauth/callback", sim.url());
    let text = |name: &str| granted[name].as_str().unwrap().to_owned();
    let code = text("authorization_code");
    let answer = redeem(&sim, &code, &text("code_verifier"), &redirect).await;
    assert_eq!(answer.json()["access_token"], alice.credential(), "{}", answer.text());
    assert_eq!(post("/token", poll).await.json()["error"]["code"], "deviceauth_expired");
    sim.no_device_codes();
    assert_eq!(post("/usercode", json!({"client_id": CODEX})).await.status, 404);
}
