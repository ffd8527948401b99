//! Tokens are renewed when they must be, once, and never lost.

use futures_util::future::join_all;
use poolgate::clock::Clock;
use poolgate_sim::Fault;
use serde_json::{Value, json};

use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::{CODEX, messages, responses};

fn token_calls(h: &Harness) -> usize {
    h.sim.journal().iter().filter(|e| e.path.ends_with("/token")).count()
}

/// spec §6, §11: its upstream's words are kept, and what was not asked is no attempt.
#[tokio::test]
async fn an_api_key_that_is_refused_is_asked_once_and_its_words_are_told() {
    let (h, a) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    let key = a.credential();
    let quoted = format!("{}****{}", &key[..8], &key[key.len() - 4..]);
    let words = format!("Incorrect API key provided: {quoted}.");
    let wrong = json!({"error": {"message": words, "code": "invalid_api_key"}}).to_string();
    a.fault(Fault::status(401, &wrong)).forever();
    let got = h.post("/v1/responses", &responses("hi", true)).await;
    assert!(got.status == 503 && got.text().contains("provided: [removed]."), "{}", got.text());
    assert_eq!(h.rows("SELECT outcome, status FROM attempts").await, [["token_refused", "401"]]);
    let state = h.app.pool.view(h.clock.now()).accounts.remove(0).state;
    assert_eq!((state.as_str(), h.asked()), ("cooling", vec!["a".to_owned()]));
    h.finish().await;
}

/// multiplexer 18.1 #1; codex-lb G6; reliability P4.
#[tokio::test]
async fn a_thousand_requests_that_meet_an_expired_token_make_one_token_call() {
    let (h, (a, c)) = Harness::start(|s: &mut Setup| {
        s.raw.limits.proxy_http = Some(0);
        s.raw.limits.response_create = Some(0);
        (s.codex("a"), s.claude("c"))
    })
    .await;
    a.expire_access_token();
    c.expire_access_token();
    let all = join_all((0..1000).map(async |i| match i % 2 {
        0 => h.post(CODEX, &responses("hi", true)).await.status,
        _ => h.post("/v1/messages", &messages("hi", true)).await.status,
    }));
    assert!(all.await.into_iter().all(|status| status == 200));
    assert_eq!(token_calls(&h), 2, "one for each account");
    h.finish().await;
}

/// multiplexer 18.1 #13.
#[tokio::test]
async fn a_renewed_token_is_in_the_file_before_it_is_used_and_the_rest_of_the_file_is_kept() {
    let mut setup = Setup::new().await;
    let a = setup.codex("a");
    let path = setup.dir.path().join("a.json");
    let mut document: Value = serde_json::from_str(&a.auth_json()).unwrap();
    document["theirs"] = "kept".into();
    std::fs::write(&path, document.to_string()).unwrap();
    let h = setup.start().await;
    a.expire_access_token();
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    let written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(written["tokens"]["access_token"], a.credential());
    assert_eq!(written["tokens"]["refresh_token"], a.refresh_token());
    assert_eq!(written["theirs"], "kept");
    h.finish().await;
}

#[tokio::test]
async fn a_token_about_to_expire_is_renewed_before_the_request() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    h.clock.advance(std::time::Duration::from_secs(3580));
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    assert_eq!(token_calls(&h), 1);
    assert_eq!(h.asked(), ["a"], "no request was refused on the way");
    drop(a);
    h.finish().await;
}

#[tokio::test]
async fn a_token_that_is_due_but_good_is_renewed_beside_the_request() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let first = a.credential();
    h.clock.advance(std::time::Duration::from_secs(3400));
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    let asked = |all: &[poolgate_sim::Entry]| all.iter().any(|e| e.path.ends_with("/token"));
    assert!(h.sim.wait_for(asked, PATIENCE).await);
    let journal = h.sim.journal();
    let call = journal.iter().find(|e| e.path == CODEX).expect("the request");
    assert_eq!(call.header("authorization"), Some(format!("Bearer {first}").as_str()));
    h.finish().await;
}

/// codex-lb D6.
#[tokio::test]
async fn an_account_whose_sign_in_is_gone_needs_a_login_and_the_others_serve() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    a.expire_access_token();
    a.revoke();
    for _ in 0..3 {
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    }
    assert_eq!(token_calls(&h), 1, "a refused refresh token is not tried again");
    let now = poolgate::clock::Clock::now(&*h.clock);
    assert_eq!(h.app.pool.view(now).accounts[0].state, "needs_login");
    h.finish().await;
}

/// spec §6: a second 401 is about the new tokens, and what follows from it outlives the next look at them.
#[tokio::test]
async fn a_renewal_does_not_end_what_its_own_tokens_are_refused_for() {
    let gone = r#"{"error":{"code":"token_revoked","message":"no"}}"#;
    for (fault, want) in
        [(Fault::unauthorized(), "cooling"), (Fault::status(401, gone), "needs_login")]
    {
        let (h, (a, b)) = Harness::start(|s: &mut Setup| {
            s.in_order();
            (s.codex("a"), s.codex("b"))
        })
        .await;
        // Whoever has noticed new tokens of `b` has looked at those of `a`.
        let looked = async || {
            let content = || h.app.pool.accounts()[1].credential.content();
            let before = content();
            b.renew();
            std::fs::write(h.dir.path().join("b.json"), b.auth_json()).unwrap();
            let noticed = async {
                while content() == before {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, noticed).await.expect("the file was noticed");
        };
        looked().await;
        a.fault(fault).forever();
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
        let state = || h.app.pool.view(h.clock.now()).accounts[0].state.clone();
        assert_eq!((state(), token_calls(&h)), (want.into(), 1));
        looked().await;
        looked().await;
        h.sim.clear_journal();
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
        assert_eq!((state(), h.asked()), (want.into(), vec!["b".to_owned()]));
        assert_eq!(token_calls(&h), 0, "{want}");
        h.finish().await;
    }
}

#[tokio::test]
async fn a_token_endpoint_in_trouble_leaves_the_others_alone() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    a.expire_access_token();
    a.fault(Fault::server_error(503)).on("/oauth/token").forever();
    for _ in 0..3 {
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    }
    h.finish().await;
}

#[tokio::test]
async fn a_file_that_breaks_and_comes_back_takes_its_account_along() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let path = h.dir.path().join("a.json");
    let good = std::fs::read(&path).unwrap();
    let until = async |wanted: u16| {
        let reached = async {
            while h.post(CODEX, &responses("hi", true)).await.status != wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("the file was noticed");
    };
    until(200).await;
    std::fs::write(&path, b"{").unwrap();
    until(503).await;
    std::fs::write(&path, good).unwrap();
    until(200).await;
    drop(a);
    h.finish().await;
}

/// A key that its upstream refused rests for 10 min; one that is put in its place is another.
#[tokio::test]
async fn a_new_key_in_the_file_serves_at_once() {
    let (h, a) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    let path = h.dir.path().join("a.key");
    std::fs::write(&path, "sk-mistyped").unwrap();
    let post = async || h.post("/v1/responses", &responses("hi", true)).await.status.as_u16();
    let until = async |wanted: u16| {
        let reached = async {
            while post().await != wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("the file was noticed");
    };
    until(503).await;
    std::fs::write(&path, a.api_key()).unwrap();
    until(200).await;
    h.finish().await;
}

/// A removal and an addition within one look of the running gateway.
#[tokio::test]
async fn an_account_that_was_removed_and_added_again_serves_with_what_it_was_given_last() {
    let (h, [a, b]) = Harness::start(|s: &mut Setup| [s.sim.openai("a"), s.sim.openai("b")]).await;
    let (store, now) = (&h.app.store, poolgate::clock::Clock::now(&*h.clock));
    let add = async |account: &poolgate_sim::Account| {
        let settings = poolgate::config::RawAccount {
            name: "mine".into(),
            kind: "openai".into(),
            base_url: Some(format!("{}/v1", account.url())),
            ..Default::default()
        };
        let id = store.add_account(&settings, poolgate::store::Origin::Cli, now).await.unwrap();
        let place = poolgate::credentials::place(id.unwrap());
        let sealed = h.app.data_key.seal(&place, account.api_key().as_bytes()).unwrap();
        store.put_credential(id.unwrap(), &sealed, now).await.unwrap();
        id.unwrap()
    };
    let served = async || {
        let served = async {
            while h.post("/v1/responses", &responses("hi", true)).await.status != 200 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, served).await.expect("the running gateway noticed");
    };
    let id = add(&a).await;
    served().await;
    store.remove_account(id, now).await.unwrap();
    assert_eq!(add(&b).await, id, "the same row");
    h.app.reload().await.unwrap();
    served().await;
    assert_eq!(h.asked().last().map(String::as_str), Some("b"));
    h.finish().await;
}

/// spec §2: accounts of the file are upserted, whatever there was under the name.
#[tokio::test]
async fn an_account_that_was_stored_and_then_written_in_the_file_serves_from_there() {
    let mut setup = Setup::new().await;
    let a = setup.openai("a");
    let configured = std::mem::take(&mut setup.raw.account);
    let h = setup.start().await;
    let settings = poolgate::config::RawAccount {
        name: "a".into(),
        kind: "openai".into(),
        ..Default::default()
    };
    let (store, now) = (&h.app.store, poolgate::clock::Clock::now(&*h.clock));
    let id = store.add_account(&settings, poolgate::store::Origin::Cli, now).await.unwrap();
    let place = poolgate::credentials::place(id.unwrap());
    let sealed = h.app.data_key.seal(&place, b"sk-old").unwrap();
    store.put_credential(id.unwrap(), &sealed, now).await.unwrap();
    h.app.reload().await.unwrap();

    let mut config = h.app.config.clone();
    config.accounts = configured.into_iter().map(|raw| raw.resolve().unwrap()).collect();
    h.app.reconfigure(&config).await.unwrap();
    assert_eq!(h.post("/v1/responses", &responses("hi", true)).await.status, 200);
    assert_eq!(h.asked(), ["a"]);
    config.accounts.clear();
    h.app.reconfigure(&config).await.unwrap();
    assert_eq!(h.post("/v1/responses", &responses("hi", true)).await.status, 404, "it is gone");
    drop(a);
    h.finish().await;
}
