//! What no two servers may read differently is refused, by whoever writes it and however it arrives:
//! with a 4xx in the caller's dialect, a closed connection, and nothing sent upstream.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use poolgate_sim::Fault;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::responses;
use crate::wire::{Got, Raw};

/// After the request line and a Host; what follows is a second request that must not be served.
const SMUGGLED: &str = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

fn post(fields: &str, body: &str) -> String {
    format!("POST /v1/messages HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}{SMUGGLED}")
}

#[rustfmt::skip]
fn corpus() -> Vec<(&'static str, String, (u16, &'static str))> {
    let bad = (400, "bad_request");
    let long = "a".repeat(9 << 10);
    let head = |line: &str| format!("{line}\r\nHost: a\r\n\r\n");
    vec![
        ("a length beside chunked",     post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), bad),
        ("chunked beside a length",     post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), bad),
        ("a length twice",              post("Content-Length: 2\r\nContent-Length: 2\r\n", "{}"),       bad),
        ("two lengths",                 post("Content-Length: 2\r\nContent-Length: 9\r\n", "{}"),       bad),
        ("a list of lengths",           post("Content-Length: 2, 2\r\n", "{}"),                         bad),
        ("a signed length",             post("Content-Length: +2\r\n", "{}"),                           bad),
        ("a length of 20 digits",       post("Content-Length: 99999999999999999999\r\n", "{}"),         bad),
        ("zeros before a length",       post("Content-Length: 002\r\n", "{}"),                          bad),
        ("gzip, chunked",               post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),      bad),
        ("chunked twice",               post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), bad),
        ("another coding",              post("Transfer-Encoding: identity\r\n", ""),                    bad),
        ("a space before the colon",    post("Content-Length : 2\r\n", "{}"),                           bad),
        ("a folded line",               post("X: a\r\n b\r\n", ""),                                     bad),
        ("a bare CR",                   post("X: a\rContent-Length: 2\r\n", "{}"),                      bad),
        ("a bare LF",                   post("X: a\nContent-Length: 2\r\n", "{}"),                      bad),
        ("a NUL",                       post("X: a\0b\r\n", ""),                                        bad),
        ("a control character",         post("X: a\x01\r\n", ""),                                       bad),
        ("no Host",                     "GET /v1/messages HTTP/1.1\r\n\r\n".to_owned(),                 bad),
        ("two Hosts",                   post("Host: b\r\n", ""),                                        bad),
        ("an odd Host",                 "GET /v1/messages HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned(),    bad),
        ("a URL of another host",       head("GET http://b/v1/messages HTTP/1.1"),                      bad),
        ("a path that is not ASCII",    head("GET /v1/m\u{e4} HTTP/1.1"),                               bad),
        ("CONNECT",                     head("CONNECT a:443 HTTP/1.1"),             (405, "method_not_allowed")),
        ("TRACE",                       head("TRACE /v1/messages HTTP/1.1"),        (405, "method_not_allowed")),
        ("a target over 8 KiB",         head(&format!("GET /{long} HTTP/1.1")),     (414, "target_too_long")),
        ("a target without an end",     format!("GET /{}", long.repeat(4)),         (414, "target_too_long")),
        ("a head over 32 KiB",          post(&format!("X: {}\r\n", long.repeat(4)), ""), (431, "head_too_large")),
        ("101 fields",                  post(&"X: y\r\n".repeat(101), ""),          (431, "head_too_large")),
        ("HTTP/0.9",                    "GET /v1/messages\r\n\r\n".to_owned(),                          bad),
        ("no HTTP at all",              "\x16\x03\x01\x02\x00\r\n\r\n".to_owned(),                      bad),
    ]
}

/// The corpus of request smuggling. hyper alone serves several of these as if nothing were wrong: a
/// length beside chunked, the same length twice, zeros before it, another coding before chunked, a bare
/// LF.
#[tokio::test]
async fn ambiguous_requests_are_refused_once() {
    let (h, _) = Harness::start(|s: &mut Setup| s.claude("a")).await;
    for (name, bytes, want) in corpus() {
        for slowly in [false, true] {
            let mut raw = Raw::connect(&h).await;
            if slowly {
                let (first, second) = bytes.split_at(bytes.len() / 2 - (bytes.len() / 2) % 2);
                raw.write(first).await;
                raw.0.flush().await.unwrap();
                tokio::task::yield_now().await;
                raw.write(second).await;
            } else {
                raw.write(&bytes).await;
            }
            let all = raw.rest().await;
            let got = Got::read(&all).unwrap_or_else(|| panic!("{name}: no answer"));
            assert_eq!((got.status, got.code()), want, "{name}: {got:?}");
            assert!(got.head.contains("connection: close"), "{name}: {}", got.head);
            let answers = String::from_utf8_lossy(&all).matches("HTTP/1.1 ").count();
            assert_eq!(answers, 1, "{name}: what follows is not served");
            if bytes.contains("POST /v1/messages") {
                let body: Value = serde_json::from_str(&got.body).unwrap();
                assert_eq!(
                    (&body["type"], &body["error"]["code"]),
                    (&"error".into(), &want.1.into())
                );
            }
        }
    }
    assert!(h.sim.journal().is_empty(), "nothing was sent upstream");
    h.finish().await;
}

/// PATH-1: there is one spelling of each path, and no other is made into it.
#[tokio::test]
async fn paths_have_one_spelling() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    for path in [
        "/v1%2fresponses",
        "/v1/responses%00",
        "/v1/%72esponses",
        "/v1%5cresponses",
        "/v1\\responses",
        "/v1/../v1/responses",
        "/v1/%2e%2e/v1/responses",
        "/v1/./responses",
        "/v1//responses",
        "//v1/responses",
        "/v1/responses;x=1",
        "/v1/responses//",
        "/V1/responses",
        "/api/admin/../admin/status",
        "/api/admin//status",
        "/api/admin/status/",
    ] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\
             Connection: close\r\nContent-Length: 0\r\n\r\n",
            h.key
        );
        let got = Raw::ask(&h, request).await.unwrap();
        assert_eq!((got.status, got.code()), (404, "unknown_path"), "{path}");
    }
    h.finish().await;
}

/// Good requests pass through the same door: one after the other on a connection, pipelined, in bodies
/// of any shape, byte by byte.
#[tokio::test]
async fn good_requests_are_served_however_they_arrive() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let body = responses("hi", false).to_string();
    let (a, b) = body.split_at(7);
    let start = format!("POST /v1/responses HTTP/1.1\r\nHost: a\r\nx-api-key: {}\r\n", h.key);
    let plain = format!("{start}Content-Length: {}\r\n\r\n{body}", body.len());
    let chunked = format!(
        "{start}Transfer-Encoding: chunked\r\n\r\n{:x};ext=1\r\n{a}\r\n{:X}\r\n{b}\r\n0\r\nTrailer: dropped\r\n\r\n",
        a.len(),
        b.len()
    );
    let last = "GET /healthz HTTP/1.0\r\n\r\n";
    let all = format!("{plain}{chunked}\r\n{plain}{last}");
    for step in [usize::MAX, 1000, 17] {
        let mut raw = Raw::connect(&h).await;
        let (mut reader, mut writer) = raw.0.split();
        let write = async {
            for part in all.as_bytes().chunks(step.min(all.len())) {
                writer.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let read = async {
            let mut text = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut text).await.unwrap();
            String::from_utf8(text).unwrap()
        };
        let ((), text) = tokio::time::timeout(PATIENCE, async { tokio::join!(write, read) })
            .await
            .expect("in time");
        let answers = text.matches("HTTP/1.1 200").count() + text.matches("HTTP/1.0 200").count();
        assert_eq!(answers, 4, "{step}: {text}");
        assert_eq!(text.matches("You said: hi").count(), 3, "{step}: {text}");
        assert!(text.ends_with("ok\n"), "{step}");
    }
    assert_eq!(h.asked().len(), 9);
    h.finish().await;
}

#[tokio::test]
async fn chunks_that_do_not_add_up_end_the_connection() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    for body in ["5\nhello\r\n0\r\n\r\n", "3\r\nhello\r\n0\r\n\r\n", "zz\r\n", "5 \r\nhello\r\n"] {
        let request = format!(
            "POST /v1/responses HTTP/1.1\r\nHost: a\r\nx-api-key: {}\r\nTransfer-Encoding: chunked\r\n\r\n\
             {body}{SMUGGLED}",
            h.key
        );
        let mut raw = Raw::connect(&h).await;
        raw.write(request).await;
        let all = String::from_utf8(raw.rest().await).unwrap();
        assert!(!all.contains("200"), "{body:?}: {all}");
        assert!(all.is_empty() || all.contains("body_incomplete"), "{body:?}: {all}");
    }
    assert!(h.asked().is_empty());
    h.finish().await;
}

/// A client that asks first is told to go on, or refused before it sends anything.
#[tokio::test]
async fn a_client_may_ask_before_it_sends() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let body = responses("hi", false).to_string();
    let ask = |key: &str| {
        format!(
            "POST /v1/responses HTTP/1.1\r\nHost: a\r\nx-api-key: {key}\r\nExpect: 100-continue\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
    };
    let mut raw = Raw::connect(&h).await;
    raw.write(ask(&h.key)).await;
    raw.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    raw.write(&body).await;
    assert_eq!(Got::read(&raw.rest().await).unwrap().status, 200);
    let mut raw = Raw::connect(&h).await;
    raw.write(ask("pg-nobody")).await;
    let refused = String::from_utf8(raw.rest().await).unwrap();
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    h.finish().await;
}

/// An answer before the body has come leaves no room for a second reading of it.
#[tokio::test]
async fn an_early_answer_closes_what_it_did_not_read() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    for (length, closes) in [(1000, false), (1 << 20, true)] {
        let mut raw = Raw::connect(&h).await;
        let body = " ".repeat(length);
        let start = "POST /v1/nothing HTTP/1.1\r\nHost: a\r\nContent-Length:";
        raw.write(format!("{start} {length}\r\n\r\n")).await;
        raw.write(&body).await;
        raw.write("GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let all = String::from_utf8(raw.rest().await).unwrap();
        assert!(all.contains("unknown_path"), "{length}: {all}");
        assert_eq!(all.contains("ok\n"), !closes, "{length}: {all}");
    }
    h.finish().await;
}

/// spec §6: a cut must not look complete. HTTP/1.0, which nginx speaks unless it is told otherwise, knows no
/// end of an answer but that of its connection.
#[tokio::test]
async fn over_http_1_0_a_cut_is_a_reset_and_an_end_is_none() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let ask = async |text: &str| {
        let mut stream = TcpStream::connect(h.url.trim_start_matches("http://")).await.unwrap();
        let (body, key) = (responses(text, true).to_string(), &h.key);
        let head = format!("x-api-key: {key}\r\nContent-Length: {}\r\n\r\n", body.len());
        let request = format!("POST /v1/responses HTTP/1.0\r\n{head}{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let end = stream.read_to_end(&mut all).await;
        (String::from_utf8(all).unwrap(), end.map_err(|error| error.kind()))
    };
    let (whole, end) = ask("hi").await;
    assert!(end.is_ok() && whole.contains("response.completed"), "{end:?}: {whole}");
    a.fault(Fault::cut(1500)).times(1);
    let (cut, end) = ask("hi").await;
    assert!(cut.starts_with("HTTP/1.0 200") && cut.contains("upstream_broke"), "{cut}");
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    h.finish().await;
}

fn h2_client() -> Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

#[tokio::test]
async fn http_2_has_the_same_bounds() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let client = h2_client();
    let long = "a".repeat(9 << 10);
    let get = |path: &str| Request::builder().method(Method::GET).uri(format!("{}{path}", h.url));
    let mut many = get("/healthz");
    for n in 0..101 {
        many = many.header(format!("x-{n}"), "y");
    }
    for (name, request, status) in [
        ("good", get("/healthz"), 200),
        ("another Host", get("/healthz").header("host", "other"), 400),
        ("a long target", get(&format!("/{long}")), 414),
        ("many fields", many, 431),
        ("TRACE", get("/healthz").method(Method::TRACE), 405),
    ] {
        let response = client.request(request.body(Full::default()).unwrap()).await.unwrap();
        assert_eq!(response.status(), status, "{name}");
        response.into_body().collect().await.unwrap();
    }
    let large = get("/healthz").header("x", long.repeat(5)).body(Full::default()).unwrap();
    let refused = client.request(large).await;
    assert!(refused.is_err() || refused.is_ok_and(|response| response.status() == 431));
    drop(client);
    h.finish().await;
}

/// RFC 9110, 9.3.2: as GET, without the body; clients take one for a broken protocol.
#[tokio::test]
async fn head_has_no_body_over_http_2() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let client = h2_client();
    for path in ["/healthz", "/v1/models", "/nothing"] {
        let ask = async |method| {
            let request = Request::builder().method(method).uri(format!("{}{path}", h.url));
            let request = request.header("x-api-key", &h.key).body(Full::default()).unwrap();
            let (head, body) = client.request(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            (head.status, head.headers.get("content-length").cloned(), body.len())
        };
        let (status, length, body) = ask(Method::GET).await;
        assert!(body > 0, "{path}");
        assert_eq!(ask(Method::HEAD).await, (status, length, 0), "{path}");
    }
    drop(client);
    h.finish().await;
}

/// Taking requests back is cheap for a client and work for us (CVE-2023-44487).
#[tokio::test]
async fn a_client_that_takes_back_all_it_asks_is_closed() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.fault(poolgate_sim::Fault::stall(poolgate_sim::Phase::Head)).forever();
    let client = h2_client();
    let warm = Request::get(format!("{}/healthz", h.url)).body(Full::default()).unwrap();
    client.request(warm).await.unwrap().into_body().collect().await.unwrap();
    let body = responses("hi", true).to_string();
    let mut failed = false;
    for _ in 0..150 {
        let request = Request::post(format!("{}/v1/responses", h.url))
            .header("x-api-key", &h.key)
            .body(Full::new(Bytes::from(body.clone())))
            .unwrap();
        let before = h.sim.journal().len();
        let mut pending = Box::pin(client.request(request));
        let reached = h.sim.wait_for(move |all| all.len() > before, Duration::from_secs(5));
        tokio::select! {
            answer = &mut pending => { failed |= answer.is_err(); }
            reached = reached => assert!(reached),
        }
        if failed {
            break;
        }
    }
    assert!(failed, "150 requests were taken back on one connection");
    drop(client);
    h.finish().await;
}
