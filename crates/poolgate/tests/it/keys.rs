//! Who is served, and with what.

use std::time::Duration;

use futures_util::future::{join, join_all};
use http::Method;
use poolgate::clock::Clock;
use poolgate_sim::{End, Fault, Phase};

use crate::harness::{Harness, PATIENCE, Setup, collect};
use crate::requests::{CODEX, chat, responses};
use crate::socket_client::until;

#[tokio::test]
async fn both_header_forms_are_accepted_on_every_path() {
    let (h, _) = Harness::start(|s: &mut Setup| (s.openai("a"), s.anthropic("b"))).await;
    let (bearer, key) = (format!("Bearer {}", h.key), h.key.clone());
    let forms = [("authorization", bearer.as_str()), ("x-api-key", key.as_str())];
    for path in ["/v1/chat/completions", "/v1/responses"] {
        for form in forms {
            let body = if path.ends_with("responses") {
                responses("hi", false)
            } else {
                chat("hi", false)
            };
            let got = h.send(Method::POST, path, &[form], body.to_string().into()).await;
            assert_eq!(got.status, 200, "{path} {}", form.0);
        }
    }
    let both = h.send(Method::GET, "/v1/models", &forms, bytes::Bytes::new()).await;
    assert_eq!(both.status, 200, "the same key twice is one key");
    h.finish().await;
}

#[tokio::test]
async fn a_key_is_held_to_its_models_and_pools() {
    let (h, _) = Harness::start(|s: &mut Setup| {
        s.pool("first", &["a"], "fallback");
        s.pool("second", &["b"], "fallback");
        (s.openai("a"), s.openai("b"))
    })
    .await;
    let limited = h.new_key("limited", &["second"], &["gpt-5*"]).await;
    let headers = [("x-api-key", limited.as_str())];
    let send = async |body: serde_json::Value| {
        h.send(Method::POST, "/v1/responses", &headers, body.to_string().into()).await
    };
    assert_eq!(send(responses("hi", true)).await.status, 200);
    assert_eq!(h.asked(), ["b"]);
    let mut other = responses("hi", true);
    other["model"] = "o4".into();
    let got = send(other).await;
    assert_eq!((got.status.as_u16(), got.code()), (403, "model_not_allowed"));
    let models = h.send(Method::GET, "/v1/models", &headers, bytes::Bytes::new()).await.json();
    let ids: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert!(!ids.is_empty() && ids.iter().all(|id| id.starts_with("gpt-5")), "{ids:?}");
    h.finish().await;
}

#[tokio::test]
async fn a_revoked_key_is_refused_within_a_second_or_two() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    assert!(
        h.app.store.revoke_client_key("test", poolgate_core::units::Timestamp(1)).await.unwrap()
    );
    let refused = async {
        while h.post(CODEX, &responses("hi", true)).await.status != 401 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("the running gateway noticed");
    h.finish().await;
}

/// reliability AUTH-4: within five seconds of the revocation, though the upstream says nothing.
#[tokio::test]
async fn a_running_stream_of_a_revoked_key_ends() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.fault(Fault::stall(Phase::Output(2))).times(1);
    let bearer = format!("Bearer {}", h.key);
    let body = responses("hi [[events=9]]", true).to_string();
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let url = format!("{}{CODEX}", h.url);
    let answer = h.request(Method::POST, &url, &headers, body.into()).await;
    assert_eq!(answer.status(), 200);
    h.revoke_key().await;
    let answer = collect(answer).await;
    assert!(answer.cut && answer.text().contains("invalid_api_key"), "{}", answer.text());
    assert!(!answer.text().contains("response.completed"));
    assert!(h.sim.wait_for(|all| all[0].end == Some(End::ClientGone), PATIENCE).await);
    assert_eq!(h.outcomes().await, [("interrupted".to_owned(), 1)]);
    h.finish().await;
}

/// reliability AUTH-4: whatever a request waits for, it waits no longer than its key is valid.
#[tokio::test]
async fn a_request_of_a_revoked_key_waits_for_nothing() {
    let waits: fn(&Harness) -> bool = |h| h.app.pool.line().waiting() == 1;
    let is_asked: fn(&Harness) -> bool = |h| !h.sim.journal().is_empty();
    let cases = [
        ("an account that rests", true, Fault::rate_limited(Duration::from_secs(30)), waits),
        ("a head", true, Fault::stall(Phase::Head), is_asked),
        ("an answer put together", false, Fault::stall(Phase::Output(2)), is_asked),
    ];
    let refused = async |(name, stream, fault, is_waiting): (&str, _, _, fn(&Harness) -> bool)| {
        let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
        let rests = matches!(fault, Fault::RateLimited { .. });
        a.fault(fault).times(1);
        let body = responses("hi [[events=9]]", stream);
        if rests {
            assert_eq!(h.post(CODEX, &body).await.status, 503);
        }
        let revoked = async {
            until(name, || is_waiting(&h)).await;
            h.revoke_key().await;
        };
        let (got, ()) = join(h.post(CODEX, &body), revoked).await;
        assert_eq!((got.status.as_u16(), got.code()), (401, "invalid_api_key"), "{name}");
        assert_eq!(h.asked(), ["a"], "{name}: once");
        let rows = h.rows("SELECT outcome, status, code FROM requests ORDER BY id").await;
        assert_eq!(rows.last().unwrap(), &["refused", "401", "invalid_api_key"], "{name}");
        h.finish().await;
    };
    join_all(cases.map(refused)).await;
}

/// reliability AUTH-4: also when its account is there at once. The key ends by its date, and with it the
/// account's rest: whoever waits looks every other second besides, and a revocation may take longer to be read.
#[tokio::test]
async fn nobody_is_asked_for_a_revoked_key() {
    let (mut h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let soon = h.clock.now().plus(Duration::from_secs(20));
    h.key = h.ending_key("soon", soon).await;
    a.fault(Fault::rate_limited(Duration::from_secs(30))).times(1);
    let body = responses("hi", true);
    assert_eq!(h.post(CODEX, &body).await.status, 503);
    let ended = async {
        until("it waits", || h.app.pool.line().waiting() == 1).await;
        h.clock.advance(Duration::from_secs(31));
        h.app.pool.line().freed();
    };
    let (got, ()) = join(h.post(CODEX, &body), ended).await;
    assert_eq!((got.status.as_u16(), got.code()), (401, "invalid_api_key"));
    assert_eq!(h.asked(), ["a"], "before it ended");
    h.finish().await;
}

#[tokio::test]
async fn wrong_keys_are_slowed_down_and_good_ones_are_not() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let wrong = [("x-api-key", "pg-nobody")];
    let mut slowed = None;
    // More than a second's worth, however fast they come.
    for _ in 0..2000 {
        let got = h.send(Method::GET, "/v1/models", &wrong, bytes::Bytes::new()).await;
        match got.status.as_u16() {
            401 => {}
            429 => {
                slowed = Some(got);
                break;
            }
            status => panic!("{status}: {}", got.text()),
        }
    }
    let slowed = slowed.expect("fifty within a second");
    assert_eq!(
        (slowed.code(), &slowed.headers["retry-after"]),
        ("too_many_unknown_keys", &"5".parse().unwrap())
    );
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200, "from the same address");
    h.finish().await;
}
