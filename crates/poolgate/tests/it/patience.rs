//! Clients that are slow, silent, greedy or many: each costs what the limits say, and nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use poolgate::config::{RawLimits, RawListener};
use poolgate_sim::End;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::harness::{Harness, PATIENCE, Setup};
use crate::process::Place;
use crate::requests::{CODEX, responses};
use crate::wire::{Got, Raw};

async fn start(listener: RawListener, limits: RawLimits) -> Harness {
    let mut setup = Setup::new().await;
    setup.codex("a");
    setup.raw.listener = RawListener { drain_delay_s: Some(0), ..listener };
    setup.raw.limits = RawLimits { drain_timeout_s: Some(5), ..limits };
    setup.start().await
}

fn post(h: &Harness, length: usize) -> String {
    format!(
        "POST {CODEX} HTTP/1.1\r\nHost: a\r\nx-api-key: {}\r\nContent-Length: {length}\r\n\r\n",
        h.key
    )
}

/// Slowloris: the clock runs from the first byte, not from the last one.
#[tokio::test]
async fn a_head_has_its_time_and_a_quiet_connection_more() {
    let listener =
        RawListener { head_timeout_s: Some(1), keep_alive_s: Some(30), ..RawListener::default() };
    let h = start(listener, RawLimits::default()).await;
    let mut quiet = Raw::connect(&h).await;
    quiet.write("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    quiet.until("ok\n").await;
    let mut slow = Raw::connect(&h).await;
    slow.write("POST /v1/messages HTTP/1.1\r\nHost: a\r\n").await;
    let began = tokio::time::Instant::now();
    let mut trickle = tokio::time::interval(Duration::from_millis(100));
    let (mut reader, mut writer) = slow.0.into_split();
    let mut all = Vec::new();
    let read = reader.read_to_end(&mut all);
    let dribble = async {
        loop {
            trickle.tick().await;
            let _ = writer.write_all(b"X: y\r\n").await;
        }
    };
    tokio::select! {
        () = dribble => unreachable!(),
        read = tokio::time::timeout(PATIENCE, read) => { let _ = read.expect("it is closed"); }
    }
    let got = Got::read(&all).expect("an answer");
    assert_eq!((got.status, got.code()), (408, "head_timeout"), "{got:?}");
    assert!(got.body.contains("\"type\":\"error\""), "in its dialect: {}", got.body);
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
    quiet.write("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    quiet.until("ok\n").await;
    drop(quiet);
    h.finish().await;
}

#[tokio::test]
async fn who_never_says_a_word_is_closed() {
    let listener =
        RawListener { head_timeout_s: Some(1), keep_alive_s: Some(1), ..RawListener::default() };
    let h = start(listener, RawLimits::default()).await;
    let mut mute = Raw::connect(&h).await;
    assert!(mute.rest().await.is_empty());
    h.finish().await;
}

#[tokio::test]
async fn a_body_may_not_pause_or_trickle() {
    let limits = RawLimits { body_idle_timeout_s: Some(1), ..RawLimits::default() };
    let h = start(RawListener::default(), limits).await;
    let mut paused = Raw::connect(&h).await;
    paused.write(post(&h, 1000)).await;
    paused.write("{").await;
    let got = Got::read(&paused.rest().await).expect("an answer");
    assert_eq!((got.status, got.code()), (408, "body_timeout"), "{got:?}");
    assert!(got.head.contains("connection: close"));
    h.finish().await;
}

#[tokio::test]
async fn a_connection_has_its_last_request() {
    let listener = RawListener { requests_per_connection: Some(3), ..RawListener::default() };
    let h = start(listener, RawLimits::default()).await;
    let mut raw = Raw::connect(&h).await;
    raw.write("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(5)).await;
    let all = String::from_utf8(raw.rest().await).unwrap();
    assert_eq!(all.matches("ok\n").count(), 3, "{all}");
    h.finish().await;
}

#[tokio::test]
async fn an_address_has_its_share_of_connections() {
    let listener = RawListener { connections_per_address: Some(3), ..RawListener::default() };
    let h = start(listener, RawLimits::default()).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut raw = Raw::connect(&h).await;
        raw.write("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
        raw.until("ok\n").await;
        open.push(raw);
    }
    let mut fourth = Raw::connect(&h).await;
    assert!(fourth.rest().await.is_empty(), "it is closed");
    drop(open.pop());
    let again = async { while Raw::ask(&h, "GET /healthz HTTP/1.0\r\n\r\n").await.is_none() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("there is room again");
    drop(open);
    h.finish().await;
}

/// As many connections as there may be: an idle one makes room.
#[tokio::test]
async fn idle_connections_make_room() {
    let listener = RawListener { connections: Some(2), ..RawListener::default() };
    let h = start(listener, RawLimits::default()).await;
    let mut busy = Raw::connect(&h).await;
    let body = responses("hi [[events=100000]] [[gap_ms=20]]", true).to_string();
    busy.write(post(&h, body.len())).await;
    busy.write(&body).await;
    busy.until("output_text.delta").await;
    let mut idle = Raw::connect(&h).await;
    idle.write("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    idle.until("ok\n").await;
    let got = Raw::ask(&h, "GET /healthz HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!(got.status, 200);
    assert!(idle.rest().await.is_empty(), "the idle one was closed");
    busy.until("output_text.delta").await;
    drop(busy);
    h.finish().await;
}

/// An endless answer to a client that does not read: what waits for it stays bounded, and in the end it
/// is cut off and its upstream left.
async fn never_reads(h: &Harness) {
    let gone = h.sim.wait_for(|all| all.iter().any(|e| e.end == Some(End::ClientGone)), PATIENCE);
    assert!(gone.await, "the upstream goes on");
    let entry = h.sim.journal().into_iter().find(|e| e.end == Some(End::ClientGone)).unwrap();
    // The kernel's own buffers on both connections are most of it.
    assert!(entry.bytes_sent < 24 << 20, "{} bytes were taken from the upstream", entry.bytes_sent);
    let freed = async {
        while h.app.pool.in_flight() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("the lease is given back");
}

fn endless() -> String {
    responses("hi [[events=400]] [[bytes=40000000]]", true).to_string()
}

fn impatient() -> RawListener {
    RawListener { write_timeout_s: Some(1), ..RawListener::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_is_cut_off() {
    let h = start(impatient(), RawLimits::default()).await;
    let mut raw = Raw::connect(&h).await;
    let body = endless();
    raw.write(post(&h, body.len())).await;
    raw.write(&body).await;
    never_reads(&h).await;
    drop(raw);
    h.finish().await;
}

/// Its connection lives: another stream is read. Only this one is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_is_a_stream_of_http_2() {
    let h = start(impatient(), RawLimits::default()).await;
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .http2_initial_stream_window_size(64 << 10)
        .http2_initial_connection_window_size(16 << 20)
        .build_http();
    let url = format!("{}{CODEX}", h.url);
    let request = Request::builder()
        .method(Method::POST)
        .uri(&url)
        .header("x-api-key", &h.key)
        .body(Full::new(Bytes::from(endless())))
        .unwrap();
    let response = client.request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    never_reads(&h).await;
    let health = format!("{}/healthz", h.url).parse().unwrap();
    let other = client.get(health).await.unwrap();
    assert_eq!(other.status(), 200, "on the same connection");
    let ended = response.into_body().collect().await;
    assert!(ended.is_err(), "a cut must not look complete");
    drop(client);
    h.finish().await;
}

/// From `most` on nothing is taken on; health is always told.
/// codex-lb H15.
#[tokio::test]
async fn codex_lb_h15_short_of_memory_it_refuses_before_it_begins() {
    let listener = RawListener { memory_max_bytes: Some(1 << 20), ..RawListener::default() };
    let h = start(listener, RawLimits::default()).await;
    let refused = async {
        loop {
            let got = h.post("/v1/messages", &responses("hi", true)).await;
            if got.status == 503 {
                return got;
            }
        }
    };
    let got = tokio::time::timeout(PATIENCE, refused).await.expect("it is noticed");
    assert_eq!(
        (got.code(), &got.headers["retry-after"]),
        ("proxy_unavailable", &"5".parse().unwrap())
    );
    assert_eq!(got.json()["type"], "error");
    assert_eq!(h.get("/readyz", &[]).await.status, 200);
    h.finish().await;
}

/// From 80 % of it no sockets are opened; what else asks for an upgrade is an ordinary request.
#[tokio::test]
async fn codex_lb_h15_sockets_are_refused_before_requests() {
    let h = start(RawListener::default(), RawLimits::default()).await;
    h.app.memory.judge(85, 100);
    let socket = [("connection", "upgrade"), ("upgrade", "websocket")];
    let got = h.get(CODEX, &socket).await;
    assert_eq!((got.status.as_u16(), got.code()), (503, "proxy_unavailable"));
    assert_eq!(got.headers["retry-after"], "5");
    let h2c = [("connection", "upgrade"), ("upgrade", "h2c")];
    assert_eq!(h.get("/v1/usage", &h2c).await.status, 200);
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    h.app.memory.judge(70, 100);
    assert_eq!(h.get(CODEX, &socket).await.code(), "bad_handshake", "it is looked at again");
    h.finish().await;
}

/// A process with few descriptors goes on by itself when they are back.
#[tokio::test]
async fn descriptors_that_run_out_come_back() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let settings = "listener.drain_delay_s = 0\nlistener.connections = 40\nworkers = 1\n";
    let place = Place::new(&setup, settings).await;
    let mut gateway = place.limited("ulimit -n 48");
    gateway.says("serving").await;
    let mut open = Vec::new();
    for _ in 0..60 {
        let mut raw = Raw::to(&place.address).await;
        raw.write("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
        open.push(raw);
    }
    let warned = |log: &str| log.contains("could not be accepted") || log.contains("idle ones");
    let noticed = async {
        while !warned(&gateway.log()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.expect("it runs out");
    // Those that wait are served in the end, since idle ones make room.
    for mut raw in open {
        raw.until("ok\n").await;
    }
    assert_eq!(place.get("/readyz").await.unwrap().status, 200);
    gateway.signal("TERM").await;
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_is_a_websocket() {
    let h = start(impatient(), RawLimits::default()).await;
    let url = format!("{}{CODEX}", h.url.replacen("http", "ws", 1));
    let mut request = url.into_client_request().unwrap();
    let bearer = format!("Bearer {}", h.key);
    request.headers_mut().insert("authorization", bearer.parse().unwrap());
    let stream = Raw::connect(&h).await.0;
    let (mut socket, _) = client_async(request, stream).await.unwrap();
    let mut turn: serde_json::Value = serde_json::from_str(&endless()).unwrap();
    turn["type"] = "response.create".into();
    socket.send(Message::text(turn.to_string())).await.unwrap();
    let asked = |all: &[poolgate_sim::Entry]| all.iter().any(poolgate_sim::Entry::is_turn);
    assert!(h.sim.wait_for(asked, PATIENCE).await);
    let ended = async {
        while !h.app.sockets.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("it is cut off");
    let turns = h.sim.journal().into_iter().filter(poolgate_sim::Entry::is_turn);
    assert!(turns.map(|entry| entry.bytes_sent).all(|bytes| bytes < 24 << 20));
    assert_eq!(h.app.pool.in_flight(), 0);
    drop(socket);
    h.finish().await;
}

/// An upstream that never ends its answer, and counts what is taken of it.
async fn endless_upstream() -> (String, Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let text = "x".repeat(60_000);
    let event = format!(
        "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\"delta\":\"{text}\"}}\n\n"
    );
    let chunk = Bytes::from(format!("{:x}\r\n{event}\r\n", event.len()));
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (counted, chunk) = (Arc::clone(&counted), chunk.clone());
            tokio::spawn(async move {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                            transfer-encoding: chunked\r\n\r\n";
                assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
                stream.write_all(head.as_bytes()).await.unwrap();
                while stream.write_all(&chunk).await.is_ok() {
                    counted.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    (url, sent)
}

/// Fifty clients that read nothing: each costs what its buffers hold, and the process stays small.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_readers_that_stop_cost_their_buffers() {
    let mut setup = Setup::new().await;
    let (base, sent) = endless_upstream().await;
    setup.openai("a");
    setup.settings("a").base_url = Some(base);
    let settings = "listener.drain_delay_s = 0\nlistener.write_timeout_s = 60\n\
                    limits.drain_timeout_s = 1\n";
    let place = Place::new(&setup, settings).await;
    let mut gateway = place.start("gateway", &[]).await;
    let before = gateway.resident();
    let body = responses("hi", true).to_string();
    let mut stalled = Vec::new();
    for _ in 0..50 {
        let mut raw = Raw::to(&place.address).await;
        raw.write(format!(
            "POST /v1/responses HTTP/1.1\r\nHost: a\r\nx-api-key: {}\r\nContent-Length: {}\r\n\r\n{body}",
            place.key,
            body.len()
        ))
        .await;
        raw.until("HTTP/1.1 200").await;
        stalled.push(raw);
    }
    // Nothing moves any more.
    let mut last = (0, 0);
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    let still = async {
        while last.1 < 10 {
            looks.tick().await;
            let now = sent.load(Ordering::Relaxed);
            last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        }
    };
    tokio::time::timeout(PATIENCE, still).await.expect("the upstreams are held back");
    let grown = gateway.resident().saturating_sub(before);
    println!(
        "{} KiB of memory and {} KiB in all for each stalled stream",
        grown / 50 / 1024,
        last.0 / 50 / 1024
    );
    // What hyper reads at once stays in memory while any part of it waits.
    assert!(grown / 50 < 3 << 20, "{} KiB for each stalled stream", grown / 50 / 1024);
    drop(stalled);
    gateway.signal("TERM").await;
    gateway.ended().await;
}
