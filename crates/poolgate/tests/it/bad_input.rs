//! Bad input gets a clear error in the caller's dialect with a stable code, and reaches no upstream.

use bytes::Bytes;
use http::Method;

use crate::harness::{Harness, Setup};
use crate::requests::responses;
use crate::wire::{Got, Raw};

struct Row {
    name: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    want: (u16, &'static str),
}

fn row(name: &'static str, body: impl Into<Vec<u8>>, status: u16, code: &'static str) -> Row {
    Row { name, path: "/v1/responses", headers: vec![], body: body.into(), want: (status, code) }
}

async fn zstd(bytes: &[u8]) -> Vec<u8> {
    use tokio::io::AsyncWriteExt;
    let mut encoder = async_compression::tokio::write::ZstdEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

#[rustfmt::skip]
async fn rows() -> Vec<Row> {
    let good = responses("hi", true).to_string();
    let deep = format!("{{\"model\":\"gpt-5.5\",\"input\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let many: String = (0..10_000).map(|n| format!("\"{n}\":0,")).collect();
    let many = format!("{{{many}\"model\":\"gpt-5.5\"}}");
    let bomb = zstd(&vec![b' '; 64 << 20]).await;
    let mut cut = zstd(good.as_bytes()).await;
    cut.truncate(cut.len() / 2);
    let with = |row: Row, headers: &[(&'static str, &'static str)]| Row { headers: headers.to_vec(), ..row };
    let at = |path, row: Row| Row { path, ..row };
    vec![
        row("empty", "", 400, "empty_body"),
        row("truncated", &good.as_bytes()[..good.len() - 3], 400, "invalid_json"),
        row("not JSON", "hello", 400, "invalid_json"),
        row("a list", "[]", 400, "invalid_json"),
        row("not UTF-8", b"{\"model\":\"\xff\"}".to_vec(), 400, "invalid_json"),
        row("a field twice", r#"{"model":"a","model":"b"}"#, 400, "invalid_json"),
        row("a field twice inside", r#"{"model":"gpt-5.5","input":"hi","client_metadata":{"a":1,"a":2}}"#, 400, "invalid_json"),
        row("10,000 fields", many, 400, "json_too_many_fields"),
        row("10,000 deep", deep, 400, "json_too_deep"),
        row("no model", "{}", 400, "missing_model"),
        row("model is a number", r#"{"model":5}"#, 400, "invalid_field"),
        row("stream is text", r#"{"model":"gpt-5.5","stream":"yes"}"#, 400, "invalid_field"),
        row("unknown model", r#"{"model":"gpt-0"}"#, 404, "model_not_found"),
        with(row("zstd bomb", bomb, 413, "payload_too_large"), &[("content-encoding", "zstd")]),
        with(row("zstd cut", cut, 400, "invalid_content_encoding"), &[("content-encoding", "zstd")]),
        with(row("gzip that is none", "xxxx", 400, "invalid_content_encoding"), &[("content-encoding", "gzip")]),
        with(row("unknown coding", "x", 415, "unsupported_content_encoding"), &[("content-encoding", "br")]),
        with(row("wrong content type", "a=b", 415, "unsupported_content_type"), &[("content-type", "application/x-www-form-urlencoded")]),
        with(row("no key", good.clone(), 401, "invalid_api_key"), &[("authorization", "")]),
        with(row("unknown key", good.clone(), 401, "invalid_api_key"), &[("authorization", "Bearer pg-nobody")]),
        with(row("two keys", good.clone(), 400, "conflicting_credentials"), &[("x-api-key", "pg-other")]),
        at("/v1/unknown", row("unknown path", good.clone(), 404, "unknown_path")),
        at("/backend-api/ps/mcp", row("Codex's other calls", "{}", 404, "unknown_path")),
        at("/v1/models", row("wrong method", "{}", 405, "method_not_allowed")),
        at("/v1/messages", row("no such account kind", r#"{"model":"claude-opus-5"}"#, 404, "no_fitting_account")),
    ]
}

#[tokio::test]
async fn each_is_refused_with_its_code_and_sent_nowhere() {
    let (h, _) = Harness::start(|s: &mut Setup| {
        let account = s.openai("a");
        s.settings("a").models = vec!["gpt-5*".into()];
        account
    })
    .await;
    let bearer = format!("Bearer {}", h.key);
    for Row { name, path, headers, body, want } in rows().await {
        let mut all =
            vec![("authorization", bearer.as_str()), ("content-type", "application/json")];
        for (name, value) in headers {
            all.retain(|(known, _)| *known != name);
            if !value.is_empty() {
                all.push((name, value));
            }
        }
        let got = h.send(Method::POST, path, &all, Bytes::from(body)).await;
        assert_eq!((got.status.as_u16(), got.code()), want, "{name}: {}", got.text());
        let json = got.json();
        let error = &json["error"];
        if path == "/v1/messages" {
            assert_eq!(
                (&json["type"], error["type"].is_string()),
                (&"error".into(), true),
                "{name}"
            );
        } else {
            assert_eq!(error["code"], want.1, "{name}");
            assert!(error["type"].is_string() && error["message"].is_string(), "{name}: {json}");
        }
        assert_eq!(got.headers["content-type"], "application/json", "{name}");
    }
    assert!(h.sim.journal().is_empty(), "nothing was sent upstream");
    assert_eq!(
        h.post("/v1/responses", &responses("hi", true)).await.status,
        200,
        "and all is well"
    );
    h.finish().await;
}

/// By its length: whoever sends on meanwhile may find the connection closed, and not the answer.
#[tokio::test]
async fn a_body_of_200_mib_is_refused_before_it_comes() {
    let (h, _) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    let mut raw = Raw::connect(&h).await;
    let (key, length) = (&h.key, 200 << 20);
    let head = format!("Host: a\r\nx-api-key: {key}\r\nContent-Length: {length}\r\n\r\n");
    raw.write(format!("POST /v1/responses HTTP/1.1\r\n{head}")).await;
    raw.write(vec![b' '; 1 << 20]).await;
    let got = Got::read(&raw.rest().await).expect("an answer");
    assert_eq!((got.status, got.code()), (413, "payload_too_large"));
    assert!(h.sim.journal().is_empty());
    h.finish().await;
}

#[tokio::test]
async fn a_body_longer_than_it_said_or_never_ending_is_refused_early() {
    let mut setup = Setup::new().await;
    setup.openai("a");
    setup.raw.limits.body_max_bytes = Some(1000);
    let h = setup.start().await;
    let key = h.key.clone();
    let headers = [("x-api-key", key.as_str())];
    let got = h.send(Method::POST, "/v1/responses", &headers, vec![b' '; 1001].into()).await;
    assert_eq!((got.status.as_u16(), got.code()), (413, "payload_too_large"));
    assert!(h.sim.journal().is_empty());
    h.finish().await;
}
