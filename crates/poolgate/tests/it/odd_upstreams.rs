//! Upstreams as there are others in the world, which the simulator is not: connections that were closed a
//! moment ago, encodings that nobody asked for, errors in odd clothes, streams without their last words.

use std::sync::Arc;
use std::time::Duration;

use async_compression::tokio::write::{DeflateEncoder, GzipEncoder, ZlibEncoder};
use http::Method;
use http_body_util::BodyExt;
use poolgate::clock::Clock;
use poolgate_sim::Fault;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::{CODEX, chat, responses};

/// One account of the simulator after the other.
async fn two() -> (Harness, poolgate_sim::Account) {
    Harness::start(|s: &mut Setup| {
        s.in_order();
        let a = s.openai("a");
        s.openai("b");
        a
    })
    .await
}

fn answer(status: u16, kind: &str, body: &str) -> Fault {
    let headers = vec![("content-type".to_owned(), kind.to_owned())];
    Fault::Status { status, headers, body: body.to_owned() }
}

/// The next request on a connection: its head and body.
pub async fn heard(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    loop {
        let mut part = [0; 4096];
        let read = stream.read(&mut part).await.ok().filter(|read| *read > 0)?;
        text.extend_from_slice(&part[..read]);
        let text = String::from_utf8_lossy(&text);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() >= length.parse().unwrap() {
            return Some(text.into_owned());
        }
    }
}

/// A gateway with one account, whose upstream does on each connection what `serve` does.
pub async fn with<S: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream, usize) -> S + Send + Sync + 'static,
) -> Harness {
    with_settings(|_| {}, serve).await
}

async fn with_settings<S: Future<Output = ()> + Send + 'static>(
    set: impl FnOnce(&mut Setup),
    serve: impl Fn(TcpStream, usize) -> S + Send + Sync + 'static,
) -> Harness {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut setup = Setup::new().await;
    setup.openai("a");
    setup.settings("a").base_url = Some(format!("http://127.0.0.1:{port}/v1"));
    set(&mut setup);
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    tokio::spawn(async move {
        for n in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, n));
        }
    });
    setup.start().await
}

/// RFC 9112, 9.3.1: most servers close what is idle after a few seconds, and the next request may be on its
/// way by then.
#[tokio::test]
async fn a_kept_connection_that_is_gone_costs_nobody_anything() {
    let body = r#"{"id":"resp_1","output":[]}"#;
    let served = format!(
        "HTTP/1.1 200 -\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let h = with(move |mut stream, n| {
        let served = served.clone();
        async move {
            assert!(heard(&mut stream).await.is_some());
            stream.write_all(served.as_bytes()).await.unwrap();
            // Each connection serves once, and is gone as the next request comes.
            let _ = heard(&mut stream).await;
            if n % 2 == 0 {
                // Unread bytes make it a reset.
                stream.set_zero_linger().unwrap();
            }
        }
    })
    .await;
    for n in 0..6 {
        let got = h.post("/v1/responses", &responses("hi", false)).await;
        assert_eq!(got.status, 200, "request {n}: {}", got.text());
    }
    assert_eq!(h.outcomes().await, [("complete".to_owned(), 6)]);
    assert!(h.rows("SELECT outcome FROM attempts").await.is_empty(), "nobody failed");
    h.finish().await;
}

/// spec §6: a client of a socket waits for 15 s in all. Of a part nothing counts but its status.
#[tokio::test]
async fn a_refusal_that_never_ends_is_left_for_another_account() {
    let others = |setup: &mut Setup| {
        setup.in_order();
        setup.openai("b");
    };
    let spent = r#"{"error":{"code":"insufficient_quota","type":"insufficient_quota"}}"#;
    for (body, want) in [(&spent[..20], "rate_limited"), (spent, "quota_spent")] {
        let never = move |mut stream: TcpStream, _| async move {
            heard(&mut stream).await.unwrap();
            let head =
                "HTTP/1.1 429 -\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n";
            stream.write_all(&[head, body].concat().into_bytes()).await.unwrap();
            // Until it is left.
            assert!(heard(&mut stream).await.is_none());
        };
        let h = with_settings(others, never).await;
        let question = responses("hi", false);
        let asked = h.post("/v1/responses", &question);
        let answer = tokio::time::timeout(Duration::from_secs(8), asked).await;
        assert_eq!(answer.expect("not only when all of it could be here").status, 200);
        let rows = h.rows("SELECT outcome, status FROM attempts").await;
        assert_eq!(rows, [[want, "429"]], "{body}");
        h.finish().await;
    }
}

/// spec §6, RFC 9110, 12.5.3: what cannot be read can be neither judged nor scrubbed.
#[tokio::test]
async fn an_encoding_that_nobody_asked_for_hides_no_secret() {
    let h = with(|mut stream, _| async move {
        let request = heard(&mut stream).await.unwrap();
        assert!(request.contains("\r\naccept-encoding: identity\r\n"), "{request}");
        let bearer = request.lines().find_map(|line| line.strip_prefix("authorization: "));
        let error = json!({"error": {"code": "odd", "message": format!("no {}", bearer.unwrap())}});
        let mut encoder = GzipEncoder::new(Vec::new());
        encoder.write_all(error.to_string().as_bytes()).await.unwrap();
        encoder.shutdown().await.unwrap();
        let body = encoder.into_inner();
        let head = format!(
            "HTTP/1.1 400 -\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    })
    .await;
    let got = h.post("/v1/responses", &responses("hi", true)).await;
    assert_eq!((got.status.as_u16(), got.headers.get("content-encoding")), (400, None));
    assert_eq!(got.json(), json!({"error": {"code": "odd", "message": "no Bearer [removed]"}}));
    h.finish().await;
}

/// spec §6: whose account it is, a key does not say, but the headers beside the error that quotes it do.
#[tokio::test]
async fn an_error_does_not_name_the_organization_that_its_headers_name() {
    let message = "Rate limit reached for organization Acme-corp-7h2k1 in project proj-9 on tokens";
    let error = json!({"error": {"code": "odd", "type": "odd", "message": message}}).to_string();
    let text = r#"{"type":"response.output_text.delta","delta":"a"}"#;
    let in_stream =
        format!("data: {text}\n\ndata: {}\n\n", error.replacen('{', r#"{"type":"error","#, 1));
    for (status, kind, body) in
        [(400, "application/json", error), (200, "text/event-stream", in_stream)]
    {
        let answer = format!(
            "HTTP/1.1 {status} -\r\ncontent-type: {kind}\r\nopenai-project: proj-9\r\n\
             openai-organization: acme-corp-7h2k1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let h = with(move |mut stream, _| {
            let answer = answer.clone();
            async move {
                heard(&mut stream).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        let got = h.post("/v1/responses", &responses("hi", true)).await;
        assert_eq!(got.status.as_u16(), status);
        assert!(got.text().contains("organization [removed] in project proj-9"), "{}", got.text());
        h.finish().await;
    }
}

/// spec §6: nor does an error in a stream, in however many pieces it comes.
#[tokio::test]
async fn an_error_that_comes_in_pieces_hides_no_secret() {
    let delta = r#"{"type":"response.output_text.delta","delta":"a"}"#;
    let chunk = r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a"}}]}"#;
    for (path, text, kind) in
        [("/v1/responses", delta, "error"), ("/v1/chat/completions", chunk, "")]
    {
        let h = with(move |mut stream, _| async move {
            let request = heard(&mut stream).await.unwrap();
            let bearer = request.lines().find_map(|line| line.strip_prefix("authorization: "));
            let message = format!("no {}", bearer.unwrap());
            let error = json!({"error": {"code": "odd", "message": message}, "type": kind});
            stream.set_nodelay(true).unwrap();
            let head = "HTTP/1.1 200 -\r\ncontent-type: text/event-stream\r\n\r\n";
            let all = format!("{head}data: {text}\n\ndata: {error}\n\n");
            for byte in all.bytes() {
                stream.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        })
        .await;
        let body = if kind.is_empty() { chat("hi", true) } else { responses("hi", true) };
        let got = h.post(path, &body).await.text();
        assert!(got.contains("no Bearer [removed]"), "{got}");
        h.finish().await;
    }
}

/// spec §8: nor what an answer tells of an account, nor its tokens; and what was flushed goes on.
#[tokio::test]
async fn an_answer_in_an_encoding_that_nobody_asked_for_is_read_all_the_same() {
    let limits = r#"{"type":"codex.rate_limits","rate_limits":{"primary":{"used_percent":77.7}}}"#;
    let created = "data: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\n";
    let text = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
    let done = r#"{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":3,"output_tokens":4}}}"#;
    let first = format!("{created}data: {limits}\n\n{text}");
    let second = format!("data: {done}\n\n");
    let seen = Arc::new(Notify::new());
    let (told, (one, two)) = (Arc::clone(&seen), (first, second.clone()));
    let compatible = |s: &mut Setup| s.settings("a").kind = "compatible".into();
    let h = with_settings(compatible, move |mut stream, _| {
        let (seen, one, two) = (Arc::clone(&told), one.clone(), two.clone());
        async move {
            heard(&mut stream).await.unwrap();
            let head = "HTTP/1.1 200 -\r\ncontent-type: text/event-stream\r\n\
                        content-encoding: gzip\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut encoder = GzipEncoder::new(stream);
            encoder.write_all(one.as_bytes()).await.unwrap();
            encoder.flush().await.unwrap();
            seen.notified().await;
            encoder.write_all(two.as_bytes()).await.unwrap();
            encoder.shutdown().await.unwrap();
        }
    })
    .await;
    let bearer = format!("Bearer {}", h.key);
    let headers = [("authorization", bearer.as_str()), ("accept-encoding", "gzip")];
    let url = format!("{}/v1/responses", h.url);
    let body = responses("hi", true).to_string().into();
    let got = h.request(Method::POST, &url, &headers, body).await;
    assert_eq!(got.headers().get("content-encoding"), None);
    let mut body = got.into_body();
    let mut all = String::new();
    while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.expect("in time") {
        all += std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap();
        if all.contains("output_text") {
            seen.notify_one();
        }
    }
    assert_eq!(all, [created, text, second.as_str()].concat());
    h.outcomes().await;
    let rows = h.rows("SELECT outcome, input_tokens, output_tokens FROM requests").await;
    assert_eq!(rows, [["complete", "3", "4"]]);
    h.finish().await;
}

/// RFC 9110, 8.4.1.2: some send it without the head that it should have.
#[tokio::test]
async fn a_deflated_answer_is_read_with_its_head_and_without() {
    let body = r#"{"id":"r","output":[],"usage":{"input_tokens":3,"output_tokens":4}}"#;
    let (mut bare, mut whole) = (DeflateEncoder::new(vec![]), ZlibEncoder::new(vec![]));
    bare.write_all(body.as_bytes()).await.unwrap();
    whole.write_all(body.as_bytes()).await.unwrap();
    let ((), ()) = tokio::try_join!(bare.shutdown(), whole.shutdown()).unwrap();
    for encoded in [bare.into_inner(), whole.into_inner()] {
        let h = with(move |mut stream, _| {
            let encoded = encoded.clone();
            async move {
                heard(&mut stream).await.unwrap();
                let head = "HTTP/1.1 200 -\r\ncontent-type: application/json\r\n\
                            content-encoding: deflate\r\n\r\n";
                stream.write_all(head.as_bytes()).await.unwrap();
                for byte in encoded {
                    stream.write_all(&[byte]).await.unwrap();
                }
            }
        })
        .await;
        let got = h.post("/v1/responses", &responses("hi", false)).await;
        assert_eq!((got.status.as_u16(), got.text().as_str()), (200, body));
        h.outcomes().await;
        let rows = h.rows("SELECT outcome, input_tokens, output_tokens FROM requests").await;
        assert_eq!(rows, [["complete", "3", "4"]]);
        h.finish().await;
    }
}

/// Of one that nobody here can read, and of one that is none, nothing goes on.
#[tokio::test]
async fn an_answer_in_an_encoding_that_cannot_be_read_is_a_failed_attempt() {
    for encoding in ["br", "gzip, gzip", "gzip", "zstd", "deflate"] {
        for kind in ["text/event-stream", "application/json"] {
            let (h, a) = two().await;
            let headers = [("content-type", kind), ("content-encoding", encoding)];
            let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let body = "data: {\"type\":\"response.completed\"}\n\n".to_owned();
            a.fault(Fault::Status { status: 200, headers: headers.into(), body }).times(2);
            let got = h.post("/v1/responses", &responses("hi", true)).await;
            assert_eq!(got.status, 200, "{encoding}: {}", got.text());
            assert_eq!(got.headers.get("content-encoding"), None, "{encoding}");
            assert_eq!(h.asked().last().unwrap(), "b", "{encoding}, {kind}");
            assert_eq!(h.outcomes().await, [("complete".to_owned(), 1)], "{encoding}");
            h.finish().await;
        }
    }
}

/// spec §1: errors have the shape that the client's dialect parses, whoever made them.
#[tokio::test]
async fn a_page_instead_of_an_error_is_not_shown() {
    let (h, a) = two().await;
    let page = "<html><script>alert(1)</script></html>";
    for (kind, body) in [("text/html", page), ("text/plain", "no"), ("application/json", "")] {
        a.fault(answer(404, kind, body)).times(1);
        let got = h.post("/v1/responses", &responses("hi", true)).await;
        assert_eq!(got.status, 404);
        assert_eq!(got.headers["content-type"], "application/json");
        assert!(got.json()["error"]["message"].as_str().unwrap().contains("404"), "{kind}");
    }
    h.finish().await;
}

/// spec §6: three equal texts are the upstreams' own; an outage is answered by an edge, for all accounts alike.
#[tokio::test]
async fn three_pages_are_an_outage_and_no_fault_of_the_request() {
    for body in ["<html>ray", "no backend", ""] {
        let (h, accounts) = Harness::start(|s: &mut Setup| {
            s.in_order();
            let accounts = ["a", "b", "c"].map(|n| s.codex(n));
            s.openai("key");
            s.settings("key").priority = Some(1);
            accounts
        })
        .await;
        for account in &accounts {
            let page =
                if body.is_empty() { String::new() } else { format!("{body} {}", account.name()) };
            account.fault(answer(502, "text/html", &page)).forever();
        }
        let mut served = None;
        for post in 1..=3 {
            let got = h.post("/v1/responses", &responses("hi", true)).await;
            if got.status == 200 {
                served = Some(post);
                break;
            }
            assert_eq!((got.status.as_u16(), got.code()), (502, "upstream_error"), "{body}");
        }
        assert!(served.is_some(), "{body:?}: three errors in a row rest an account");
        assert_eq!(h.asked().last().map(String::as_str), Some("key"), "{body}");
        h.finish().await;
    }
}

/// spec §6: an error in a stream, as `OpenRouter` tells it, which ends the choice in the same chunk.
#[tokio::test]
async fn a_chat_that_fails_in_a_chunk_has_failed() {
    let path = "/v1/chat/completions";
    let text = r#"data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"}}]}"#;
    let failed = r#"data: {"id":"c","error":{"code":"server_error","message":"gone"},"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}"#;
    let (h, a) = two().await;
    a.fault(answer(200, "text/event-stream", &format!("{failed}\n\ndata: [DONE]\n\n"))).times(2);
    let got = h.post(path, &chat("hi", true)).await;
    assert!(got.status == 200 && !got.text().contains("gone"), "{}", got.text());
    assert_eq!(h.asked(), ["a", "a", "b"], "before output, somebody else serves");
    let whole = format!("{text}\n\n{failed}\n\ndata: [DONE]\n\n");
    a.fault(answer(200, "text/event-stream", &whole)).times(1);
    assert_eq!(h.post(path, &chat("again", true)).await.text(), whole);
    h.outcomes().await;
    let rows = h.rows("SELECT outcome, code FROM requests ORDER BY id").await;
    assert_eq!(rows, [["complete", "NULL"], ["upstream_broke", "server_error"]]);
    h.finish().await;
}

/// spec §6: one classification, whatever the status says.
#[tokio::test]
async fn a_failure_that_says_200_is_one() {
    for body in [
        r#"{"error":{"code":"insufficient_quota","message":"no"}}"#,
        r#"{"id":"r","object":"response","status":"failed","error":{"code":"server_is_overloaded","message":"no"},"output":[]}"#,
    ] {
        for stream in [true, false] {
            let (h, a) = two().await;
            a.fault(answer(200, "application/json", body)).times(1);
            let got = h.post("/v1/responses", &responses("hi", stream)).await;
            let asked = h.asked();
            assert_eq!((got.status.as_u16(), asked), (200, vec!["a".into(), "b".into()]), "{body}");
            h.finish().await;
        }
    }
    let (h, a) = two().await;
    let body = r#"{"error":{"code":"context_length_exceeded","message":"no"}}"#;
    a.fault(answer(200, "application/json", body)).times(1);
    let got = h.post("/v1/responses", &responses("hi", false)).await;
    assert_eq!(got.json()["error"]["code"], "context_length_exceeded", "{}", got.text());
    assert_eq!(h.asked(), ["a"]);
    h.finish().await;
}

/// spec §6: what is wrong with the request is wrong everywhere, and is told in the upstream's words.
#[tokio::test]
async fn an_image_that_cannot_be_read_is_the_requests_fault_inside_a_stream_too() {
    for stream in [true, false] {
        let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
        a.fault(Fault::failed_with("invalid_image_url", "cannot be downloaded")).times(1);
        let got = h.post(CODEX, &responses("hi", stream)).await;
        assert!(got.text().contains("invalid_image_url"), "{}", got.text());
        assert_eq!(got.status, if stream { 200 } else { 400 });
        assert_eq!(h.asked(), ["a"], "once");
        assert_eq!(h.post(CODEX, &responses("hi", stream)).await.status, 200);
        assert_eq!(h.app.pool.view(h.clock.now()).accounts[0].state, "ready");
        h.finish().await;
    }
}

/// spec §6: limited, not broken, in the words of those who give their codes as numbers.
#[tokio::test]
async fn a_number_for_a_code_is_a_status() {
    let (h, a) = two().await;
    let body = "data: {\"error\":{\"code\":429,\"message\":\"slow down\"}}\n\n";
    a.fault(answer(200, "text/event-stream", body)).times(1);
    assert_eq!(h.post("/v1/chat/completions", &chat("hi", true)).await.status, 200);
    assert_eq!(h.asked(), ["a", "b"], "a is asked once");
    assert_eq!(h.rows("SELECT outcome FROM attempts").await.concat(), ["rate_limited"]);
    h.finish().await;
}

/// A stream that ends in good order behind its last word is whole, though no empty line ends that, or
/// nobody says `[DONE]`; one that ends before is not.
#[tokio::test]
async fn a_last_word_counts_without_what_should_follow() {
    let text = r#"data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#;
    let stop = r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    let cases = [
        (format!("{text}\n\n{stop}\n\n"), "complete"),
        (format!("{text}\n\n{stop}"), "complete"),
        (format!("{text}\n\ndata: [DONE]"), "complete"),
        (format!("{text}\n\n"), "upstream_broke"),
        (format!("{text}\n\n{}", &stop[..stop.len() - 2]), "upstream_broke"),
    ];
    for (body, want) in cases {
        let (h, a) = two().await;
        a.fault(answer(200, "text/event-stream", &body)).times(1);
        let got = h.post("/v1/chat/completions", &chat("hi", true)).await;
        assert_eq!(got.cut, want != "complete", "{body}");
        assert_eq!(h.outcomes().await, [(want.to_owned(), 1)], "{body}");
        h.finish().await;
    }
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let created = r#"data: {"type":"response.created","response":{"id":"r"}}"#;
    let done = r#"data: {"type":"response.completed","response":{"id":"r","output":[],"usage":{"input_tokens":3,"output_tokens":4}}}"#;
    let body = format!("event: message\n{created}\n\nevent: message\n{done}\n");
    for stream in [true, false] {
        a.fault(answer(200, "text/event-stream", &body)).times(1);
        let got = h.post(CODEX, &responses("hi", stream)).await;
        assert_eq!((got.status.as_u16(), got.cut), (200, false), "{}", got.text());
    }
    let rows = h.rows("SELECT outcome, output_tokens FROM requests").await;
    assert_eq!(rows, [["complete", "4"], ["complete", "4"]]);
    h.finish().await;
}

/// Asked for again it would cost again.
#[tokio::test]
async fn a_stream_under_another_name_is_one() {
    let text = r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}"#;
    for (kind, begin) in [("application/json", ""), ("text/plain", ": hi\n\n"), ("", "event: x\n")]
    {
        let (h, a) = two().await;
        let body = format!("{begin}data: {text}\n\ndata: [DONE]\n\n");
        a.fault(answer(200, kind, &body)).times(1);
        let got = h.post("/v1/chat/completions", &chat("hi", true)).await;
        assert_eq!((got.text(), got.cut), (body, false), "{kind}");
        assert_eq!(got.headers["content-type"], "text/event-stream");
        assert_eq!(h.asked(), ["a"], "{kind}");
        assert_eq!(h.outcomes().await, [("complete".to_owned(), 1)], "{kind}");
        h.finish().await;
    }
}

/// spec §6: behind output too, where nobody else can answer any more.
#[tokio::test]
async fn what_a_failure_behind_output_tells_of_an_account_is_cut_out() {
    let (h, a) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    let org = "org-9aXbYcZd0123456789abcdef";
    let begun = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
    let error = format!(r#"{{"code":"server_error","message":"in {org} by {}"}}"#, a.credential());
    let failed = format!(r#"{{"type":"response.failed","response":{{"id":"r","error":{error}}}}}"#);
    a.fault(answer(200, "text/event-stream", &format!("{begun}data: {failed}\n\n"))).times(1);
    let text = h.post("/v1/responses", &responses("hi", true)).await.text();
    assert!(text.starts_with(begun) && text.contains("in [removed] by [removed]"), "{text}");
    h.finish().await;
}

/// What thinks for longer than an answer is withheld, is known by its first bytes all the same.
#[tokio::test]
async fn a_stream_under_another_name_is_one_however_late_it_begins() {
    let text = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
    let done = "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\"}}\n\n";
    let h = with(move |mut stream, _| async move {
        heard(&mut stream).await.unwrap();
        let head = "HTTP/1.1 200 -\r\ncontent-type: application/json\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2200)).await;
        stream.write_all([text, done].concat().as_bytes()).await.unwrap();
    })
    .await;
    let got = h.post("/v1/responses", &responses("hi", true)).await;
    assert_eq!((got.text(), got.cut), ([text, done].concat(), false));
    assert_eq!(got.headers["content-type"], "text/event-stream");
    h.finish().await;
}

/// reliability §9: what has to be whole before it can go on is held up to a bound, and what breaks behind
/// output is told.
#[tokio::test]
async fn an_event_without_an_end_is_a_break() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let begun = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
    let line = format!("data: {}\n", "x".repeat(1000));
    let body = begun.to_owned() + &line.repeat((66 << 20) / line.len());
    a.fault(answer(200, "text/event-stream", &body)).times(1);
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert!(got.cut && got.body.len() < 1000, "{} bytes", got.body.len());
    assert!(got.text().starts_with(begun) && got.text().contains("upstream_broke"));
    assert_eq!(h.outcomes().await, [("upstream_broke".to_owned(), 1)]);
    h.finish().await;
}

/// reliability §9: the whole request has an end, also when comments keep its stream alive.
#[tokio::test]
async fn a_stream_that_only_lives_ends_with_its_request() {
    let settings = |setup: &mut Setup| setup.raw.limits.request_timeout_s = Some(1);
    let h = with_settings(settings, |mut stream, _| async move {
        heard(&mut stream).await.unwrap();
        let head = "HTTP/1.1 200 -\r\ncontent-type: text/event-stream\r\n\r\n";
        let text = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
        stream.write_all([head, text].concat().as_bytes()).await.unwrap();
        while stream.write_all(b": still here\n\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let got = h.post("/v1/responses", &responses("hi", true)).await;
    let text = got.text();
    assert!(got.cut && text.contains(": still here"), "{text}");
    let (_, last) = text.rsplit_once("event: response.failed").expect("it is told");
    assert!(last.contains("\"upstream_timeout\""), "{last}");
    let rows = h.rows("SELECT outcome, code FROM requests").await;
    assert_eq!(rows, [["interrupted", "upstream_timeout"]]);
    assert!(h.rows("SELECT outcome FROM attempts").await.is_empty(), "the account was well");
    h.finish().await;
}

/// spec §4: only an answer proves an account well.
#[tokio::test]
async fn a_stream_that_says_nothing_until_the_deadline_has_served_nobody() {
    let settings = |setup: &mut Setup| setup.raw.limits.request_timeout_s = Some(1);
    let h = with_settings(settings, |mut stream, _| async move {
        heard(&mut stream).await.unwrap();
        let head = "HTTP/1.1 200 -\r\ncontent-type: text/event-stream\r\n\r\n";
        // So much is not withheld, whatever it is.
        let text = ": still here\n\n".repeat(6000);
        stream.write_all([head, &text].concat().as_bytes()).await.unwrap();
        while stream.write_all(b": still here\n\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let got = h.post("/v1/responses", &responses("hi", true)).await;
    assert!(got.cut && got.text().contains("\"upstream_timeout\""), "{}", got.body.len());
    assert_eq!(h.outcomes().await, [("interrupted".to_owned(), 1)]);
    assert_eq!(h.app.pool.view(h.clock.now()).accounts[0].served, 0);
    h.finish().await;
}
