//! A restart loses nothing: what runs ends, what comes waits, and who is cut is told.

use std::net::TcpListener;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use poolgate::config::RawListener;
use poolgate_sim::{Fault, Phase};

use crate::harness::{PATIENCE, Setup};
use crate::process::Place;
use crate::requests::{CODEX, messages, responses};
use crate::socket_client::{Client as SocketClient, create, until};
use crate::wire::{Got, Raw};

fn request(place: &Place, path: &str, body: &serde_json::Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nx-api-key: {}\r\nContent-Length: {}\r\n\r\n{body}",
        place.address,
        place.key,
        body.len()
    )
}

/// First not ready, still serving; then no new connections; then, when all have ended, the end.
#[tokio::test]
async fn running_streams_end_and_nobody_new_comes() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let place = Place::new(&setup, "listener.drain_delay_s = 1\n").await;
    let mut gateway = place.start("gateway", &[]).await;
    let mut idle = Raw::to(&place.address).await;
    idle.write("GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    idle.until("ready\n").await;
    let mut stream = Raw::to(&place.address).await;
    let body = responses("hi [[events=150]] [[gap_ms=20]]", true);
    stream.write(request(&place, CODEX, &body)).await;
    stream.until("output_text.delta").await;
    gateway.signal("TERM").await;
    let refused = async {
        // Seen by a load balancer before anything is refused.
        while place.get("/readyz").await.unwrap().status != 503 {}
        let served = place.get("/v1/models").await.unwrap();
        assert_eq!(served.status, 200, "{served:?}");
        while place.get("/healthz").await.is_some() {}
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("it stops accepting");
    assert!(setup.sim.journal().iter().any(|e| e.end.is_none()), "the stream still runs");
    assert!(idle.rest().await.is_empty(), "an idle connection is closed");
    let rest = String::from_utf8(stream.rest().await).unwrap();
    assert!(rest.contains("response.completed") && rest.ends_with("0\r\n\r\n"), "{rest}");
    assert_eq!(gateway.ended().await.code(), Some(0));
    let store = poolgate::store::Store::open(&place.data()).await.unwrap();
    assert_eq!(store.outcomes().await.unwrap(), [("complete".to_owned(), 1)]);
    store.close().await;
}

/// In the words of each dialect, and never as if it were the end.
#[tokio::test]
async fn who_is_cut_is_told() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    setup.claude("b");
    let settings = "listener.drain_delay_s = 0\nlimits.drain_timeout_s = 1\n";
    let place = Place::new(&setup, settings).await;
    let mut gateway = place.start("gateway", &[]).await;
    let long = "hi [[events=100000]] [[gap_ms=20]]";
    let mut streams = Vec::new();
    for (path, body, delta, told) in [
        (CODEX, responses(long, true), "output_text.delta", "response.failed"),
        ("/v1/messages", messages(long, true), "text_delta", "event: error"),
    ] {
        let mut stream = Raw::to(&place.address).await;
        stream.write(request(&place, path, &body)).await;
        stream.until(delta).await;
        streams.push((stream, told));
    }
    gateway.signal("TERM").await;
    for (mut stream, told) in streams {
        let rest = String::from_utf8(stream.rest().await).unwrap();
        let (_, last) = rest.rsplit_once(told).unwrap_or_else(|| panic!("no {told}: {rest}"));
        assert!(last.contains("shutting down"), "{last}");
        assert!(!rest.ends_with("0\r\n\r\n"), "a cut must not look complete");
    }
    assert_eq!(gateway.ended().await.code(), Some(1), "not all ended by themselves");
    let store = poolgate::store::Store::open(&place.data()).await.unwrap();
    assert_eq!(store.outcomes().await.unwrap(), [("interrupted".to_owned(), 2)]);
    store.close().await;
}

/// Before there is anything of an answer too, while it is asked for or its question still comes.
#[tokio::test]
async fn who_is_cut_without_an_answer_is_told() {
    let mut setup = Setup::new().await;
    let (a, b) = (setup.codex("a"), setup.claude("b"));
    let settings = "listener.drain_delay_s = 0\nlimits.drain_timeout_s = 1\n";
    let place = Place::new(&setup, settings).await;
    let mut gateway = place.start("gateway", &[]).await;
    let mut socket = SocketClient::at(&format!("http://{}", place.address), &place.key).await;
    socket.next().await.unwrap().unwrap();
    for account in [&a, &b] {
        account.fault(Fault::stall(Phase::Head)).forever();
    }
    a.fault(Fault::stall(Phase::Head)).turns().forever();
    a.fault(Fault::stall(Phase::Head)).on("/backend-api/codex/models").forever();
    socket.send(&create("hi")).await;
    let mut waiting = Vec::new();
    for (path, body) in [
        (CODEX, responses("hi", true)),
        (CODEX, responses("hi", false)),
        ("/v1/messages", messages("hi", true)),
    ] {
        let mut raw = Raw::to(&place.address).await;
        raw.write(request(&place, path, &body)).await;
        waiting.push(raw);
    }
    // A list of models is no request, and has no row.
    let mut list = Raw::to(&place.address).await;
    let (host, key) = (&place.address, &place.key);
    list.write(format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nx-api-key: {key}\r\n\r\n"))
        .await;
    waiting.push(list);
    let mut half = Raw::to(&place.address).await;
    let whole = request(&place, CODEX, &responses("hi", true));
    let (head, body) = whole.split_once("\r\n\r\n").unwrap();
    half.write(format!("{head}\r\nExpect: 100-continue\r\n\r\n")).await;
    // It is being read from then on.
    half.until("100 Continue").await;
    half.write(&body[..body.len() - 1]).await;
    waiting.push(half);
    until("all are asked", || {
        let asked = setup.sim.journal();
        asked.iter().filter(|e| e.is_turn() || e.method == "POST").count() == 4
            && asked.iter().any(|e| e.path.ends_with("/models"))
    })
    .await;
    gateway.signal("TERM").await;
    for mut raw in waiting {
        let got = Got::read(&raw.rest().await).expect("an answer");
        assert_eq!((got.status, got.code()), (503, "draining"), "{got:?}");
        assert!(got.body.contains("shutting down"), "{got:?}");
    }
    assert_eq!(socket.next().await, Some(Err(1012)));
    assert_eq!(gateway.ended().await.code(), Some(1), "not all ended by themselves");
    let store = poolgate::store::Store::open(&place.data()).await.unwrap();
    assert_eq!(store.outcomes().await.unwrap(), [("interrupted".to_owned(), 5)]);
    store.close().await;
}

/// Nothing but the order moves them: their upstream is silent, and on HTTP/2 each is a task of its own.
#[tokio::test]
async fn who_waits_in_silence_is_told_too() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let settings = "listener.drain_delay_s = 0\nlimits.drain_timeout_s = 1\n";
    let place = Place::new(&setup, settings).await;
    let mut gateway = place.start("gateway", &[]).await;
    let silent = responses("hi [[text_gap_ms=60000]]", true);
    let mut plain = Raw::to(&place.address).await;
    plain.write(request(&place, CODEX, &silent)).await;
    plain.until("output_text.delta").await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let stream = Request::post(format!("http://{}{CODEX}", place.address))
        .header("x-api-key", &place.key)
        .body(Full::new(Bytes::from(silent.to_string())))
        .unwrap();
    let mut stream = client.request(stream).await.unwrap().into_body();
    let mut said = String::new();
    let mut next = async |said: &mut String| match stream.frame().await {
        Some(Ok(frame)) => {
            said.push_str(&String::from_utf8_lossy(frame.data_ref().unwrap()));
            true
        }
        Some(Err(_)) => false,
        None => panic!("a cut must not look complete: {said}"),
    };
    while !said.contains("output_text.delta") {
        assert!(next(&mut said).await);
    }
    gateway.signal("TERM").await;
    let rest = String::from_utf8(plain.rest().await).unwrap();
    assert!(rest.contains("shutting down"), "{rest}");
    while next(&mut said).await {}
    assert!(said.contains("shutting down"), "{said}");
    assert_eq!(gateway.ended().await.code(), Some(1));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let place = Place::new(&setup, "").await;
    let mut gateway = place.start("gateway", &[]).await;
    let mut stream = Raw::to(&place.address).await;
    let body = responses("hi [[events=100000]] [[gap_ms=20]]", true);
    stream.write(request(&place, CODEX, &body)).await;
    stream.until("output_text.delta").await;
    gateway.signal("TERM").await;
    gateway.says("draining").await;
    gateway.signal("TERM").await;
    assert_eq!(gateway.ended().await.code(), Some(130));
}

/// A request that was on its way when accepting ended is answered like any other.
#[tokio::test]
async fn a_connection_just_made_is_served() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    setup.raw.listener = RawListener { drain_delay_s: Some(0), ..RawListener::default() };
    let h = setup.start().await;
    let mut raw = Raw::connect(&h).await;
    let finish = h.finish();
    let ask = async {
        raw.write("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
        String::from_utf8(raw.rest().await).unwrap()
    };
    let (text, ()) = tokio::join!(ask, finish);
    assert!(text.ends_with("ok\n"), "{text:?}");
}

/// Asks for new connections all the time, until told to stop; every one must be answered.
async fn knock(place: &Place, stop: &AtomicBool) -> usize {
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        let got = place.get("/healthz").await.expect("no connection is refused or reset");
        assert_eq!(got.status, 200);
        answered += 1;
    }
    answered
}

/// A stream, whole.
async fn stream(place: &Place, body: Bytes, begun: &AtomicUsize) -> bool {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::post(format!("http://{}{CODEX}", place.address))
        .header("x-api-key", &place.key)
        .body(Full::new(body))
        .unwrap();
    let mut body = client.request(request).await.unwrap().into_body();
    let mut seen = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if seen.is_empty() {
            begun.fetch_add(1, Ordering::Relaxed);
        }
        seen.extend(frame.into_data().unwrap_or_default());
    }
    String::from_utf8_lossy(&seen).contains("response.completed")
}

/// 500 streams run while the next process takes over: none is lost, no connection refused, and who
/// comes meanwhile is served while they still run.
async fn takes_over(place: &Place, how: How) {
    let socket = how.socket(place);
    let start = |name: &str, args: &[&str]| match &socket {
        Some(socket) => {
            let stdin = Stdio::from(std::os::fd::OwnedFd::from(socket.try_clone().unwrap()));
            place.spawn(name, args, stdin, &[("LISTEN_FDS", "1")])
        }
        None => place.spawn(name, args, Stdio::null(), &[]),
    };
    let mut old = start("old", &[]);
    old.says("serving").await;
    let begun = AtomicUsize::new(0);
    let body: Bytes = responses("hi [[events=30]] [[gap_ms=100]]", true).to_string().into();
    let streams: FuturesUnordered<_> =
        (0..500).map(|_| stream(place, body.clone(), &begun)).collect();
    let stop = AtomicBool::new(false);
    let change = async {
        while begun.load(Ordering::Relaxed) < 500 {
            tokio::task::yield_now().await;
        }
        let new = start("new", &["--take-over"]);
        new.says("waiting").await;
        old.signal("TERM").await;
        new.says("serving").await;
        let hi = responses("hi", true).to_string().into();
        assert!(stream(place, hi, &AtomicUsize::new(0)).await);
        assert!(!old.log().contains("stopped"), "{}", old.log());
        assert_eq!(old.ended().await.code(), Some(0), "{}", old.log());
        stop.store(true, Ordering::Relaxed);
        new
    };
    let all = async { tokio::join!(streams.collect::<Vec<_>>(), knock(place, &stop), change) };
    let (ended, answered, mut new) =
        tokio::time::timeout(PATIENCE * 2, all).await.expect("in time");
    assert_eq!(ended.iter().filter(|whole| **whole).count(), 500);
    assert!(answered > 10, "{answered}");
    new.signal("TERM").await;
    assert_eq!(new.ended().await.code(), Some(0));
    let store = poolgate::store::Store::open(&place.data()).await.unwrap();
    assert_eq!(store.outcomes().await.unwrap(), [("complete".to_owned(), 501)]);
    store.close().await;
}

#[derive(Clone, Copy)]
enum How {
    ReusePort,
    /// By whoever starts the processes.
    HandedOver,
}

impl How {
    fn socket(self, place: &Place) -> Option<TcpListener> {
        match self {
            Self::ReusePort => None,
            Self::HandedOver => Some(TcpListener::bind(&place.address).unwrap()),
        }
    }
}

const TAKE_OVER: &str =
    "listener.drain_delay_s = 0\nlimits.proxy_http = 0\nlimits.response_create = 0\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_process_shares_the_port() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let settings = format!("{TAKE_OVER}listener.reuse_port = true\n");
    let place = Place::new(&setup, &settings).await;
    takes_over(&place, How::ReusePort).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_process_is_handed_the_socket() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let place = Place::new(&setup, TAKE_OVER).await;
    takes_over(&place, How::HandedOver).await;
}

/// Its records are taken over when it is gone, and what runs here is not taken for its own.
#[tokio::test]
async fn a_process_that_dies_while_it_ends_leaves_its_records_to_the_next() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let place = Place::new(&setup, TAKE_OVER).await;
    let endless = responses("hi [[events=100000]] [[gap_ms=20]]", true);
    let ask = async || {
        let mut stream = Raw::to(&place.address).await;
        stream.write(request(&place, CODEX, &endless)).await;
        stream.until("output_text.delta").await;
        stream
    };
    let mut old = place.start("old", &[]).await;
    let mut left = ask().await;
    old.signal("TERM").await;
    old.says("draining").await;
    let mut new = place.start("new", &["--take-over"]).await;
    let mut kept = ask().await;
    old.signal("KILL").await;
    old.ended().await;
    left.rest().await;
    let store = poolgate::store::Store::open(&place.data()).await.unwrap();
    let running = [(String::new(), 1), ("interrupted".to_owned(), 1)];
    let marked = async {
        while store.outcomes().await.unwrap() != running {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, marked).await.expect("one was left, one still runs");
    kept.until("output_text.delta").await;
    drop(kept);
    new.signal("TERM").await;
    assert_eq!(new.ended().await.code(), Some(0));
    let ended = [("client_left".to_owned(), 1), ("interrupted".to_owned(), 1)];
    assert_eq!(store.outcomes().await.unwrap(), ended);
    store.close().await;
}

/// Said at once, and not found out by a client.
#[tokio::test]
async fn a_socket_that_was_not_handed_over_is_missed() {
    let setup = Setup::new().await;
    let place = Place::new(&setup, "").await;
    let mut gateway = place.spawn("gateway", &[], Stdio::null(), &[("LISTEN_FDS", "1")]);
    assert_eq!(gateway.ended().await.code(), Some(1));
    assert!(gateway.log().contains("StandardInput=socket"), "{}", gateway.log());
}
