//! What one client key may ask for at most, whatever the pool could give.

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use poolgate::store::KeyLimits;
use poolgate_sim::Fault;
use serde_json::json;

use crate::harness::{Answer, Harness, Setup};
use crate::requests::{CODEX, messages, responses};
use crate::socket_client::{Client, chained, create, id, said, until};

async fn both() -> Harness {
    Harness::start(|s: &mut Setup| (s.codex("a"), s.claude("c"))).await.0
}

async fn post(h: &Harness, key: &str, path: &str, body: &serde_json::Value) -> Answer {
    let headers = [("x-api-key", key), ("content-type", "application/json")];
    h.send(Method::POST, path, &headers, body.to_string().into()).await
}

fn refusal(answer: &Answer) -> (u16, &str, &str) {
    let wait = answer.headers.get("retry-after").map_or("", |value| value.to_str().unwrap());
    (answer.status.as_u16(), answer.code(), wait)
}

#[tokio::test]
async fn spec_10_a_key_runs_so_many_requests_at_the_same_time() {
    let h = both().await;
    let limits = KeyLimits { concurrency: Some(1), requests_per_minute: None };
    let key = h.limited_key("narrow", limits).await;
    let url = format!("{}{CODEX}", h.url);
    let headers = [("x-api-key", key.as_str())];
    let endless = responses("hi [[events=5000]] [[gap_ms=20]]", true).to_string();
    let mut running = h.request(Method::POST, &url, &headers, endless.into()).await;
    assert!(running.body_mut().frame().await.unwrap().unwrap().is_data());
    h.app.reload().await.unwrap();

    let hi = responses("hi", true);
    let got = post(&h, &key, CODEX, &hi).await;
    assert_eq!(refusal(&got), (429, "key_concurrency_exceeded", "5"), "a reload forgets nothing");
    assert_eq!(got.json()["error"]["type"], "rate_limit_error");
    let mut socket = Client::at(&h.url, &key).await;
    socket.next().await.unwrap().unwrap();
    let refused = socket.turn(&create("hi")).await;
    let last = refused.last().unwrap();
    assert_eq!(
        (&last["status"], said(&refused).as_str()),
        (&json!(429), "key_concurrency_exceeded")
    );
    // Others are not concerned, and what is no work for an account is not counted.
    assert_eq!(h.post(CODEX, &hi).await.status, 200);
    let counting = messages("hi", false);
    assert_eq!(post(&h, &key, "/v1/messages/count_tokens", &counting).await.status, 200);
    assert_eq!(h.send(Method::GET, "/v1/models", &headers, "".into()).await.status, 200);

    drop(running);
    let now = poolgate_core::units::Timestamp(0);
    let narrow = h.app.keys.find(&key, now).unwrap();
    until("its place is given back", || narrow.running() == 0).await;
    assert_eq!(said(&socket.turn(&create("hi")).await), "completed");
    until("the turn's place is given back", || narrow.running() == 0).await;
    assert_eq!(post(&h, &key, CODEX, &hi).await.status, 200);
    let rows = "SELECT status, account_id FROM requests WHERE code = 'key_concurrency_exceeded'";
    assert_eq!(h.rows(rows).await, [["429", "NULL"], ["429", "NULL"]]);
    assert_eq!(h.app.metrics.key_refusals.read(), [2, 0]);
    drop(socket);
    h.finish().await;
}

#[tokio::test]
async fn spec_10_a_key_begins_so_many_requests_a_minute() {
    let h = both().await;
    let limits = KeyLimits { concurrency: None, requests_per_minute: Some(2) };
    let key = h.limited_key("slow", limits).await;
    let mut socket = Client::at(&h.url, &key).await;
    socket.next().await.unwrap().unwrap();
    let mut warm_up = create("");
    warm_up["generate"] = json!(false);
    let warmed = socket.turn(&warm_up).await;
    assert_eq!(said(&warmed), "completed");
    assert_eq!(said(&socket.turn(&chained("hi", &id(&warmed))).await), "completed");
    h.clock.advance(Duration::from_secs(20));
    assert_eq!(post(&h, &key, CODEX, &responses("hi", true)).await.status, 200);
    assert_eq!(said(&socket.turn(&create("more")).await), "key_rate_exceeded");
    let got = post(&h, &key, "/v1/messages", &messages("hi", true)).await;
    let (status, code, wait) = refusal(&got);
    assert_eq!((status, code), (429, "key_rate_exceeded"));
    assert!(
        (30..=40).contains(&wait.parse::<u32>().unwrap()),
        "{wait} s: when the first is a minute ago"
    );
    assert_eq!(
        (&got.json()["type"], &got.json()["error"]["type"]),
        (&json!("error"), &json!("rate_limit_error"))
    );
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200, "another key");
    h.clock.advance(Duration::from_secs(41));
    assert_eq!(post(&h, &key, "/v1/messages", &messages("hi", true)).await.status, 200);
    let again = post(&h, &key, CODEX, &responses("hi", true)).await;
    assert_eq!(again.code(), "key_rate_exceeded", "what was refused has not counted, what ran has");
    assert_eq!(h.app.metrics.key_refusals.read(), [0, 3]);
    drop(socket);
    h.finish().await;
}

/// spec §7: a turn runs through the same steps as a request over HTTP, which is counted before it is read.
#[tokio::test]
async fn spec_7_a_turn_counts_before_it_is_read_and_one_to_be_sent_again_does_not() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let limits = KeyLimits { concurrency: None, requests_per_minute: Some(2) };
    let key = h.limited_key_for("slow", &["gpt-5*"], limits).await;
    let mut socket = Client::at(&h.url, &key).await;
    socket.next().await.unwrap().unwrap();

    let mut forbidden = create("hi");
    forbidden["model"] = json!("gpt-other");
    let without_model = json!({"type": "response.create", "input": []});
    assert_eq!(said(&socket.turn(&forbidden).await), "model_not_allowed");
    assert_eq!(said(&socket.turn(&without_model).await), "missing_model");
    assert_eq!(said(&socket.turn(&create("hi")).await), "key_rate_exceeded");
    let rows = h.rows("SELECT code, model FROM requests ORDER BY id DESC LIMIT 1").await;
    assert_eq!(rows, [["key_rate_exceeded", "gpt-5.5"]], "its row says what it asked for");
    forbidden["generate"] = json!(false);
    assert_eq!(said(&socket.turn(&forbidden).await), "model_not_allowed", "warm-ups never count");

    h.clock.advance(Duration::from_secs(61));
    let first = socket.turn(&create("hi")).await;
    a.fault(Fault::cut_before_output()).turns().times(1);
    // Its leg is lost with the first, and is not there for the second.
    for _ in 0..2 {
        let lost = socket.turn(&chained("more", &id(&first))).await;
        assert_eq!(said(&lost), "previous_response_not_found");
    }
    assert_eq!(said(&socket.turn(&create("all of it")).await), "completed", "it counts once");
    assert_eq!(said(&socket.turn(&create("more")).await), "key_rate_exceeded");
    drop(socket);
    h.finish().await;
}
