//! Every surface answers as its upstream would, byte for byte.

use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::harness::{Harness, Setup};
use crate::requests::{CODEX, chat, messages, responses};

#[tokio::test]
async fn answers_are_relayed_byte_for_byte() {
    let (h, [key, akey]) =
        Harness::start(|s: &mut Setup| [s.openai("key"), s.anthropic("akey")]).await;
    let version = [("anthropic-version", "2023-06-01")];
    let cases: [(&str, _, &[(&str, &str)], Value); 7] = [
        ("/v1/responses", &key, &[], responses("hi [[events=20]]", true)),
        ("/v1/responses", &key, &[], responses("hi", false)),
        ("/v1/chat/completions", &key, &[], chat("hi [[bytes=200000]]", true)),
        ("/v1/chat/completions", &key, &[], chat("hi", false)),
        ("/v1/messages", &akey, &version, messages("hi", true)),
        ("/v1/messages?beta=true", &akey, &version, messages("hi [[bytes=300000]]", false)),
        ("/v1/messages/count_tokens", &akey, &version, messages("hi", false)),
    ];
    let count = i64::try_from(cases.len()).unwrap();
    for (path, account, headers, body) in cases {
        let want = h.direct(account, path, headers, &body).await;
        let got = h.post_with(path, headers, &body).await;
        assert_eq!((got.status, got.cut), (want.status, false), "{path}: {}", got.text());
        assert_eq!(got.body, want.body, "{path}");
        assert_eq!(got.headers["content-type"], want.headers["content-type"]);
    }
    assert_eq!(h.outcomes().await, [("complete".to_owned(), count)]);
    h.finish().await;
}

#[tokio::test]
async fn codex_accounts_serve_both_prefixes_streaming_and_not() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let want = h.direct(&a, CODEX, &[], &responses("hi", true)).await;
    for path in ["/v1/responses", CODEX, "/backend-api/codex/v1/responses/"] {
        let got = h.post(path, &responses("hi", true)).await;
        assert_eq!(got.body, want.body, "{path}");
    }
    let sdk = json!({"model": "gpt-5.5", "input": "hi", "temperature": 1, "user": "me"});
    let plain = h.post("/v1/responses", &sdk).await;
    assert_eq!(plain.status, 200, "{}", plain.text());
    assert_eq!(plain.json()["output"][0]["content"][0]["text"], "You said: hi");
    assert_eq!(plain.headers["content-type"], "application/json");
    assert_eq!(h.outcomes().await, [("complete".to_owned(), 4)]);
    h.finish().await;
}

#[tokio::test]
async fn compaction_by_its_old_path() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let body = json!({"model": "gpt-5.5", "input": [], "instructions": "be brief"});
    let want = h.direct(&a, "/backend-api/codex/responses/compact", &[], &body).await;
    for path in ["/v1/responses/compact", "/backend-api/codex/responses/compact"] {
        let got = h.post(path, &body).await;
        assert_eq!((got.status, &got.body), (want.status, &want.body), "{path}: {}", got.text());
    }
    h.finish().await;
}

#[tokio::test]
async fn a_compressed_body_arrives_as_it_was_sent() {
    let (h, _) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.openai("key"))
    })
    .await;
    let body = responses("packed", true).to_string();
    let mut encoder = ZstdEncoder::new(Vec::new());
    encoder.write_all(body.as_bytes()).await.unwrap();
    encoder.shutdown().await.unwrap();
    let packed = encoder.into_inner();
    let bearer = format!("Bearer {}", h.key);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("content-encoding", "zstd"),
    ];
    let got = h.send(http::Method::POST, CODEX, &headers, packed.into()).await;
    assert!(got.text().contains("You said: packed"), "{}", got.text());
    let entry = h.sim.journal().pop().unwrap();
    assert_eq!(entry.content_encoding.as_deref(), Some("zstd"));
    assert_eq!(entry.text(), body);
    h.finish().await;
}

/// RFC 1952, 2.2: what an upstream reads as one text is read as one here.
#[tokio::test]
async fn a_body_of_several_gzip_members_is_one() {
    let (h, a) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    let body = responses("packed", true).to_string();
    let (first, second) = body.split_at(body.len() / 2);
    let mut packed = Vec::new();
    for part in [first, second] {
        let mut encoder = GzipEncoder::new(&mut packed);
        encoder.write_all(part.as_bytes()).await.unwrap();
        encoder.shutdown().await.unwrap();
    }
    let bearer = format!("Bearer {}", h.key);
    let headers = [("authorization", bearer.as_str()), ("content-encoding", "gzip")];
    for (rest, want) in [(&b""[..], 200), (b"junk", 400)] {
        let packed = [&packed, rest].concat();
        let got = h.send(http::Method::POST, "/v1/responses", &headers, packed.into()).await;
        assert_eq!(got.status, want, "{}", got.text());
    }
    assert_eq!(a.name(), h.asked().pop().unwrap());
    h.finish().await;
}

#[tokio::test]
async fn tokens_are_counted_in_every_dialect() {
    let (h, _) =
        Harness::start(|s: &mut Setup| (s.codex("a"), s.openai("key"), s.claude("c"))).await;
    // The simulator reports 8 + bytes of the text / 4.
    let text = "0123456789abcdef";
    let cases = [
        ("/v1/responses", responses(text, true)),
        ("/v1/responses", responses(text, false)),
        ("/v1/chat/completions", chat(text, false)),
        ("/v1/messages", messages(text, true)),
        ("/v1/messages", messages(text, false)),
    ];
    for (path, body) in &cases {
        assert_eq!(h.post(path, body).await.status, 200, "{path}");
    }
    let rows = h.rows("SELECT input_tokens, output_tokens FROM requests").await;
    let want = vec![vec!["12".to_owned(), "7".to_owned()]; cases.len()];
    assert_eq!(rows, want);
    h.finish().await;
}

#[tokio::test]
async fn codexs_own_events_stay_behind_v1() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let own = "event: codex.turn\ndata: {\"type\":\"codex.turn\"}\n\n";
    let clean = h.direct(&a, CODEX, &[], &responses("hi", true)).await.text();
    let stream = format!("{own}{clean}");
    let fault = || poolgate_sim::Fault::Status {
        status: 200,
        headers: vec![("content-type".into(), "text/event-stream".into())],
        body: stream.clone(),
    };
    a.fault(fault()).times(1);
    assert_eq!(h.post("/v1/responses", &responses("hi", true)).await.text(), clean);
    a.fault(fault()).times(1);
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.text(), stream);
    h.finish().await;
}
