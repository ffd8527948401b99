//! Happy paths and refusals of every dialect.

use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
use poolgate_sim::{Account, Scenario, Sim};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::client::{Ask, codex_body, messages_body, say, turn};

async fn sim() -> Sim {
    Sim::start(Scenario::default()).await.unwrap()
}

#[tokio::test]
async fn codex_streams_the_events_codex_needs() {
    let sim = sim().await;
    let answer = say(&sim.codex("alice"), "hi").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    let delta = "response.output_text.delta";
    let kinds = answer.kinds();
    assert_eq!(
        kinds,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            delta,
            delta,
            delta,
            delta,
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let events = answer.events();
    let text: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(text, "You said: hi");
    let done = &events[11]["response"];
    assert_eq!(done["usage"]["total_tokens"], 8 + 4);
    assert_eq!(done["output"][0]["content"][0]["text"], "You said: hi");
    assert!(events.iter().enumerate().all(|(n, event)| event["sequence_number"] == n));
    for name in [
        "x-codex-primary-used-percent",
        "x-codex-secondary-reset-at",
        "x-codex-turn-state",
        "x-models-etag",
        "set-cookie",
        "cf-ray",
        "server",
        "x-request-id",
    ] {
        assert!(!answer.header(name).is_empty(), "{name}");
    }
    assert_eq!(answer.header("x-codex-primary-window-minutes"), "300");
}

#[tokio::test]
async fn answers_do_not_depend_on_the_account() {
    let sim = sim().await;
    let pairs: [[Account; 2]; 3] = [
        [sim.codex("a"), sim.codex("b")],
        [sim.claude("c"), sim.anthropic("d")],
        [sim.openai("e"), sim.openai("f")],
    ];
    for [one, other] in pairs {
        let [one, other] = [say(&one, "same"), say(&other, "same")];
        assert_eq!(one.await.body, other.await.body);
    }
}

#[tokio::test]
async fn codex_refuses_what_the_backend_refuses() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let cases = [
        ("stream", json!(false), "Stream must be set to true"),
        ("store", json!(true), "Store must be set to false"),
        ("store", Value::Null, "Store must be set to false"),
        ("temperature", json!(1), "Unsupported parameter: temperature"),
        ("max_output_tokens", json!(9), "Unsupported parameter: max_output_tokens"),
    ];
    for (field, value, detail) in cases {
        let mut body = codex_body("hi");
        body[field] = value;
        let answer = turn(&alice, "").body(body.to_string().into()).send().await.unwrap();
        assert_eq!((answer.status, answer.json()), (400, json!({"detail": detail})));
    }
    let mut body = codex_body("hi");
    body["model"] = json!("no-such-model");
    let answer = turn(&alice, "").body(body.to_string().into()).send().await.unwrap();
    assert_eq!(answer.status, 400);
    let mismatch = turn(&alice, "hi").without("chatgpt-account-id").with("chatgpt-account-id", "x");
    assert_eq!(mismatch.send().await.unwrap().status, 403);
    let missing = turn(&alice, "hi").without("chatgpt-account-id");
    assert_eq!(missing.send().await.unwrap().status, 401);
}

#[tokio::test]
async fn compressed_bodies_are_read() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let plain = say(&alice, "hi").await.body;
    let body = codex_body("hi").to_string();
    let mut zstd = ZstdEncoder::new(Vec::new());
    zstd.write_all(body.as_bytes()).await.unwrap();
    zstd.shutdown().await.unwrap();
    let mut gzip = GzipEncoder::new(Vec::new());
    gzip.write_all(body.as_bytes()).await.unwrap();
    gzip.shutdown().await.unwrap();
    for (encoding, bytes) in [("zstd", zstd.into_inner()), ("gzip", gzip.into_inner())] {
        let ask = turn(&alice, "").body(bytes).with("content-encoding", encoding);
        assert_eq!(ask.send().await.unwrap().body, plain, "{encoding}");
    }
    let broken = turn(&alice, "hi").with("content-encoding", "zstd");
    assert_eq!(broken.send().await.unwrap().status, 400);
}

#[tokio::test]
async fn opaque_content_is_bound_to_its_account() {
    let sim = sim().await;
    let (alice, bob) = (sim.codex("alice"), sim.codex("bob"));
    let mut body = codex_body("long talk");
    body["input"].as_array_mut().unwrap().push(json!({"type": "compaction_trigger"}));
    let answer = turn(&alice, "").body(body.to_string().into()).send().await.unwrap();
    let events = answer.events();
    let output = events.last().unwrap()["response"]["output"].clone();
    assert_eq!(output.as_array().unwrap().len(), 1);
    assert_eq!(output[0]["type"], "compaction");
    assert!(output[0]["encrypted_content"].as_str().unwrap().contains("alice"));

    let mut next = codex_body("go on");
    next["input"].as_array_mut().unwrap().insert(0, output[0].clone());
    let own = turn(&alice, "").body(next.to_string().into()).send().await.unwrap();
    assert_eq!(own.status, 200);
    let foreign = turn(&bob, "").body(next.to_string().into()).send().await.unwrap();
    assert_eq!(foreign.status, 400);
    assert_eq!(foreign.json()["error"]["code"], "invalid_encrypted_content");

    assert!(!say(&bob, "hi").await.text().contains("encrypted_content"));
    assert!(say(&bob, "[[reason]]").await.text().contains("encrypted_content"));
    let compact = Ask::post(sim.url() + "/backend-api/codex/responses/compact", &codex_body("x"));
    assert_eq!(compact.by(&bob).send().await.unwrap().json()["output"][0]["type"], "compaction");
}

#[tokio::test]
async fn headers_come_in_events_too_where_they_are_asked_for() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let told = ["response.metadata", "codex.response.metadata"];
    let kinds = async |text: &str| -> Vec<String> {
        let events = say(&alice, text).await.events();
        events.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    };
    assert!(!kinds("hi").await.iter().any(|kind| told.contains(&kind.as_str())));
    assert_eq!(kinds("hi [[metadata]]").await[..3], [told[0], told[1], "response.created"]);
    let late = kinds("hi [[metadata=late]]").await;
    assert_eq!(late[late.len() - 3..], [told[0], told[1], "response.completed"]);
    let events = say(&alice, "hi [[metadata]]").await.events();
    assert_eq!(events[0]["headers"]["x-codex-turn-state"], "ts-event-alice");
    assert_eq!(events[1]["headers"]["X-Codex-Turn-State"][0], "ts-event-alice");
}

#[tokio::test]
async fn codex_tells_about_models_usage_and_accounts() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    alice.plan("pro");
    let get = |path: &str| Ask::get(sim.url() + path).by(&alice).send();
    let models = get("/backend-api/codex/models?client_version=0.169.0").await.unwrap();
    assert_eq!(models.header("etag"), models.header("x-models-etag"));
    let slugs = models.json()["models"].clone();
    assert!(slugs.as_array().unwrap().iter().any(|model| model["slug"] == "gpt-5.5"));
    let usage = get("/backend-api/wham/usage").await.unwrap().json();
    assert_eq!(usage["plan_type"], "pro");
    assert_eq!(usage["rate_limit"]["primary_window"]["limit_window_seconds"], 18000);
    assert!(usage["rate_limit"]["primary_window"]["used_percent"].is_i64());
    let accounts = get("/backend-api/wham/accounts/check").await.unwrap().json();
    assert_eq!(accounts["accounts"][0]["id"], alice.account_id());
    assert_eq!(accounts["accounts"][0]["workspace_backend_origin"], "NO_CONSTRAINT");
    assert_eq!(get("/backend-api/ps/plugins/installed").await.unwrap().status, 404);
}

#[tokio::test]
async fn anthropic_streams() {
    let sim = sim().await;
    let answer = say(&sim.claude("carol"), "hi").await;
    let kinds = answer.kinds();
    assert_eq!(kinds.first().unwrap(), "message_start");
    assert_eq!(kinds[kinds.len() - 2..], ["message_delta", "message_stop"]);
    assert_eq!(answer.header("anthropic-ratelimit-unified-status"), "allowed");
    assert_eq!(answer.header("anthropic-ratelimit-unified-5h-utilization"), "0");
    assert!(!answer.header("anthropic-organization-id").is_empty());
}

#[tokio::test]
async fn anthropic_counts_lists_and_refuses() {
    let sim = sim().await;
    let (claude, key) = (sim.claude("carol"), sim.anthropic("key"));
    let whole = Ask::post(sim.url() + "/v1/messages?beta=true", &messages_body("hi", false));
    let whole = whole.with("x-api-key", &key.api_key()).send().await.unwrap().json();
    assert_eq!(whole["content"][0]["text"], "You said: hi");
    assert_eq!(whole["usage"]["output_tokens"], 4);
    let count = Ask::post(sim.url() + "/v1/messages/count_tokens", &messages_body("hi", false));
    assert_eq!(count.by(&key).send().await.unwrap().json(), json!({"input_tokens": 8}));
    let models =
        Ask::get(sim.url() + "/v1/models").by(&key).with("anthropic-version", "2023-06-01");
    assert_eq!(models.send().await.unwrap().json()["data"][0]["type"], "model");

    let without_beta = turn(&claude, "hi").without("anthropic-beta").send().await.unwrap();
    assert_eq!(without_beta.status, 401);
    assert_eq!(without_beta.json()["error"]["type"], "authentication_error");
    let mut body = messages_body("hi", true);
    body["model"] = json!("no-such-model");
    let unknown = turn(&key, "").body(body.to_string().into()).send().await.unwrap();
    assert_eq!(
        (unknown.status, &unknown.json()["error"]["type"]),
        (404, &json!("not_found_error"))
    );
    let profile = Ask::get(sim.url() + "/api/oauth/profile").by(&claude).send().await.unwrap();
    assert_eq!(profile.json()["account"]["uuid"], claude.account_id());
    claude.tier("default_claude_max_20x");
    let profile = Ask::get(sim.url() + "/api/oauth/profile").by(&claude).send().await.unwrap();
    let organization = &profile.json()["organization"];
    assert_eq!(organization["organization_type"], "claude_max");
    assert_eq!(organization["rate_limit_tier"], "default_claude_max_20x");
}

#[tokio::test]
async fn openai_answers_both_its_apis() {
    let sim = sim().await;
    let key = sim.openai("key");
    let mut body = json!({"model": "gpt-5.5", "messages": [{"role": "user", "content": "hi"}]});
    let chat = |body: &Value| Ask::post(sim.url() + "/v1/chat/completions", body).by(&key).send();
    let whole = chat(&body).await.unwrap();
    assert_eq!(whole.json()["choices"][0]["message"]["content"], "You said: hi");
    assert_eq!(whole.header("openai-organization"), "org-key");
    assert_eq!(whole.header("x-ratelimit-limit-requests"), "10000");
    body["stream"] = json!(true);
    let stream = chat(&body).await.unwrap();
    assert!(stream.text().ends_with("data: [DONE]\n\n"));
    assert!(!stream.text().contains("usage"));
    body["stream_options"] = json!({"include_usage": true});
    let events = chat(&body).await.unwrap().events();
    assert_eq!(events.last().unwrap()["usage"]["total_tokens"], 12);
    assert_eq!(events.last().unwrap()["choices"], json!([]));

    let responses = json!({"model": "gpt-5.5", "input": "hi"});
    let responses = Ask::post(sim.url() + "/v1/responses", &responses).by(&key);
    let responses = responses.send().await.unwrap().json();
    assert_eq!(responses["output"][0]["content"][0]["text"], "You said: hi");
    let models = Ask::get(sim.url() + "/v1/models").by(&key).send().await.unwrap().json();
    assert_eq!(models["object"], "list");
    body["model"] = json!("no-such-model");
    let unknown = chat(&body).await.unwrap();
    assert_eq!(
        (unknown.status, &unknown.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
}

#[tokio::test]
async fn strangers_and_misplaced_credentials_get_401() {
    let sim = sim().await;
    let (codex, key) = (sim.codex("alice"), sim.openai("key"));
    let misplaced = Ask::post(sim.url() + "/v1/responses", &codex_body("hi")).by(&codex);
    assert_eq!(misplaced.send().await.unwrap().status, 401);
    let misplaced = Ask::post(sim.url() + "/v1/messages", &messages_body("hi", false)).by(&key);
    let refusal = misplaced.send().await.unwrap();
    assert_eq!(refusal.status, 401);
    assert_eq!(refusal.json()["type"], "error");
    let stranger = Ask::get(sim.url() + "/v1/models").with("authorization", "Bearer nobody");
    let refusal = stranger.send().await.unwrap();
    assert_eq!(refusal.json()["error"]["code"], "invalid_api_key");
}
