//! Every surface answers as its upstream would, byte for byte.

use serde_json::{Value, json};

use crate::harness::{Harness, Setup};

fn responses(text: &str, stream: bool) -> Value {
    let input = json!([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}]);
    json!({"model": "gpt-5.5", "stream": stream, "store": false, "input": input})
}

fn chat(text: &str, stream: bool) -> Value {
    json!({"model": "gpt-5.5", "stream": stream, "messages": [{"role": "user", "content": text}]})
}

fn messages(text: &str, stream: bool) -> Value {
    json!({"model": "claude-opus-5", "max_tokens": 99, "stream": stream,
        "messages": [{"role": "user", "content": text}]})
}

#[tokio::test]
async fn answers_are_relayed_byte_for_byte() {
    let (h, accounts) =
        Harness::start(|s: &mut Setup| [s.openai("key"), s.anthropic("akey")]).await;
    let [key, akey] = &accounts;
    let version = [("anthropic-version", "2023-06-01")];
    let cases: [(&str, _, &[(&str, &str)], Value); 6] = [
        (
            "/v1/responses",
            key,
            &[],
            responses("hi [[events=20]]", true),
        ),
        ("/v1/responses", key, &[], responses("hi", false)),
        (
            "/v1/chat/completions",
            key,
            &[],
            chat("hi [[bytes=200000]]", true),
        ),
        ("/v1/chat/completions", key, &[], chat("hi", false)),
        ("/v1/messages", akey, &version, messages("hi", true)),
        (
            "/v1/messages",
            akey,
            &version,
            messages("hi [[bytes=300000]]", false),
        ),
    ];
    for (path, account, headers, body) in cases {
        let want = h.direct(account, path, headers, &body).await;
        let got = h.post_with(path, headers, &body).await;
        assert_eq!(
            (got.status, got.cut),
            (want.status, false),
            "{path}: {}",
            got.text()
        );
        assert_eq!(got.body, want.body, "{path}");
        assert_eq!(got.headers["content-type"], want.headers["content-type"]);
    }
    assert_eq!(h.outcomes().await, [("complete".to_owned(), 6)]);
    h.finish().await;
}

#[tokio::test]
async fn codex_accounts_serve_both_prefixes_streaming_and_not() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let want = h
        .direct(
            &a,
            "/backend-api/codex/responses",
            &[],
            &responses("hi", true),
        )
        .await;
    for path in [
        "/v1/responses",
        "/backend-api/codex/responses",
        "/backend-api/codex/v1/responses/",
    ] {
        let got = h.post(path, &responses("hi", true)).await;
        assert_eq!(got.body, want.body, "{path}");
    }
    let plain = h
        .post(
            "/v1/responses",
            &json!({"model": "gpt-5.5", "input": "hi", "temperature": 1}),
        )
        .await;
    assert_eq!(plain.status, 200, "{}", plain.text());
    assert_eq!(
        plain.json()["output"][0]["content"][0]["text"],
        "You said: hi"
    );
    assert_eq!(plain.headers["content-type"], "application/json");
    assert!(h.asked().iter().all(|name| name == "a"));
    h.finish().await;
}
