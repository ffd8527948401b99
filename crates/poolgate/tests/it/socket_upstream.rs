//! Upstreams scripted message by message: what the simulator does not do.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};

use crate::harness::{Harness, PATIENCE, Setup};
use crate::socket_client::{BETA, Client, connect, create, id, kinds, said};

type Upstream = WebSocketStream<TcpStream>;

/// A gateway with one account, and where its upstream is expected.
async fn gateway(kind: &str) -> (Harness, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut setup = Setup::new().await;
    let account = if kind == "codex" { setup.codex("a") } else { setup.openai("a") };
    let base = format!("http://127.0.0.1:{port}/backend-api/codex");
    setup.settings(account.name()).base_url = Some(base);
    (setup.start().await, listener)
}

async fn accept(listener: &TcpListener) -> Upstream {
    let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
    accept_async(accepted.expect("it connects").unwrap().0).await.unwrap()
}

/// The next message that reaches it.
async fn heard(upstream: &mut Upstream) -> Value {
    loop {
        let next = tokio::time::timeout(PATIENCE, upstream.next()).await.expect("in time");
        if let Message::Text(text) = next.unwrap().unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

fn event(kind: &str, id: &str) -> Value {
    json!({"type": kind, "response": {"id": id, "object": "response", "output": []}})
}

/// All at once.
async fn tell(upstream: &mut Upstream, events: &[Value]) {
    for event in events {
        upstream.feed(Message::text(event.to_string())).await.unwrap();
    }
    upstream.flush().await.unwrap();
}

/// codex-lb 5.7: stale events are dropped.
#[tokio::test]
async fn what_is_still_said_of_a_failed_turn_is_not_the_next_ones() {
    let (h, listener) = gateway("codex").await;
    let (mut client, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    let error = json!({"type": "error", "status": 500, "error": {"code": "server_error"}});
    let failed = event("response.failed", "resp_1");
    tell(&mut upstream, &[event("response.created", "resp_1"), error, failed]).await;
    heard(&mut upstream).await;
    let second = ["response.created", "response.completed"].map(|kind| event(kind, "resp_2"));
    tell(&mut upstream, &second).await;
    let events = client.rest_of_turn().await;
    assert_eq!((said(&events).as_str(), id(&events).as_str()), ("completed", "resp_2"));
    drop((client, upstream));
    h.finish().await;
}

/// What an upstream says to an interruption that came too late names no turn.
#[tokio::test]
async fn an_error_behind_an_interrupted_turn_is_not_the_next_ones() {
    let (h, listener) = gateway("codex").await;
    let (mut client, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    tell(&mut upstream, &[event("response.created", "resp_1")]).await;
    client.send(&json!({"type": "response.interrupt"})).await;
    heard(&mut upstream).await;
    tell(&mut upstream, &[event("response.completed", "resp_1")]).await;
    client.rest_of_turn().await;
    client.send(&create("second")).await;
    heard(&mut upstream).await;
    let late = json!({"type": "error", "status": 400, "error": {"code": "no_active_response"}});
    tell(&mut upstream, &[late]).await;
    let mut upstream = accept(&listener).await;
    heard(&mut upstream).await;
    let second = ["response.created", "response.completed"].map(|kind| event(kind, "resp_2"));
    tell(&mut upstream, &second).await;
    let events = client.rest_of_turn().await;
    assert_eq!((said(&events).as_str(), id(&events).as_str()), ("completed", "resp_2"));
    drop((client, upstream));
    h.finish().await;
}

/// multiplexer 9.5; spec §6: an error before output is judged, however large it is and whatever was
/// passed on before it.
#[tokio::test]
async fn a_refusal_behind_a_large_opening_is_the_requests_own() {
    let (h, listener) = gateway("codex").await;
    let (mut client, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    let long = "x".repeat(70_000);
    let mut opening = event("response.created", "resp_1");
    opening["response"]["instructions"] = json!(long);
    let error = json!({"type": "error", "status": 400,
        "error": {"code": "context_length_exceeded", "message": long}});
    for events in [vec![opening, error.clone()], vec![error.clone()], vec![error]] {
        client.send(&create("hi")).await;
        heard(&mut upstream).await;
        tell(&mut upstream, &events).await;
        assert_eq!(said(&client.rest_of_turn().await), "context_length_exceeded");
    }
    client.send(&create("it was nothing of the account's")).await;
    heard(&mut upstream).await;
    tell(&mut upstream, &[event("response.completed", "resp_9")]).await;
    assert_eq!(said(&client.rest_of_turn().await), "completed");
    drop((client, upstream));
    h.finish().await;
}

/// multiplexer 9.5; spec §8: an account's quota behind output is nobody's business.
#[tokio::test]
async fn a_failure_behind_output_tells_nothing_of_an_account() {
    let (h, listener) = gateway("codex").await;
    let (mut client, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    let mut failed = event("response.failed", "resp_1");
    failed["response"]["error"] = json!({"code": "insufficient_quota", "plan_type": "pro"});
    let text = json!({"type": "response.output_text.delta", "delta": "a"});
    tell(&mut upstream, &[event("response.created", "resp_1"), text, failed]).await;
    let events = client.rest_of_turn().await;
    assert_eq!(said(&events), "upstream_broke");
    assert!(!json!(events).to_string().contains("plan_type"));
    drop((client, upstream));
    h.finish().await;
}

/// multiplexer 18.4 #45; spec §7 [seed]: exchanged for the pool's, even when unchanged.
#[tokio::test]
async fn limits_between_turns_are_exchanged_too() {
    let (h, listener) = gateway("codex").await;
    let (mut client, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    let limits = json!({"type": "codex.rate_limits", "rate_limits": {"primary":
        {"used_percent": 40.0, "window_minutes": 300, "reset_after_seconds": 600}}});
    for _ in 0..2 {
        tell(&mut upstream, std::slice::from_ref(&limits)).await;
        let told = client.next().await.unwrap().unwrap();
        assert_eq!(told["type"], "codex.rate_limits");
    }
    drop((client, upstream));
    h.finish().await;
}

/// RFC 6455, 4.1.
#[tokio::test]
async fn a_socket_that_was_not_asked_for_is_none() {
    let (h, listener) = gateway("codex").await;
    let answer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        assert!(stream.read(&mut head).await.unwrap() > 0);
        let upgrade = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                       Connection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n";
        stream.write_all(upgrade.as_bytes()).await.unwrap();
        stream
    };
    let (refused, _stream) = tokio::join!(connect(&h, &[BETA]), answer);
    assert_eq!(refused.err().unwrap().0, 502);
    h.finish().await;
}

/// spec §8: neither the limits of a gateway behind this one, nor events its clients have not asked for.
#[tokio::test]
async fn another_gateways_limits_are_not_told() {
    let (h, listener) = gateway("openai").await;
    let (mut client, mut upstream) = tokio::join!(connect(&h, &[BETA]), accept(&listener));
    let client = client.as_mut().ok().unwrap();
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    let limits = json!({"type": "codex.rate_limits", "rate_limits":
        {"primary": {"used_percent": 77.0, "window_minutes": 300}}});
    let rest = ["response.created", "response.completed"].map(|kind| event(kind, "resp_1"));
    tell(&mut upstream, &[&[limits][..], &rest].concat()).await;
    let events = client.rest_of_turn().await;
    assert_eq!(kinds(&events), ["response.created", "response.completed"]);
    drop(upstream);
    h.finish().await;
}

/// spec §6: relayed with the secrets scrubbed, as over HTTP.
#[tokio::test]
async fn a_refusal_inside_a_stream_names_no_account() {
    let (h, listener) = gateway("codex").await;
    let (mut client, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    let account = h.app.pool.accounts().remove(0);
    let named = account.credential.identifiers();
    assert!(named.len() >= 2, "a token and an id");
    let message = format!("{} may not", named.join(" and "));
    let error = json!({"type": "error", "status": 400,
        "error": {"type": "invalid_request_error", "code": "some_code", "message": message}});
    tell(&mut upstream, &[event("response.created", "resp_1"), error]).await;
    let events = client.rest_of_turn().await;
    let error = events.last().unwrap();
    assert_eq!(error["error"]["message"], "[removed] and [removed] may not", "{error}");
    assert_eq!(error["error"]["code"], "some_code");
    drop((client, upstream));
    h.finish().await;
}

/// codex-lb 1.7.
#[tokio::test]
async fn a_turn_may_be_interrupted_before_its_first_event() {
    let (h, listener) = gateway("codex").await;
    let (mut client, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    client.send(&json!({"type": "response.interrupt"})).await;
    assert_eq!(heard(&mut upstream).await["type"], "response.interrupt");
    tell(&mut upstream, &[event("response.completed", "resp_1")]).await;
    assert_eq!(said(&client.rest_of_turn().await), "completed");
    drop((client, upstream));
    h.finish().await;
}

/// More than the two ends' buffers hold.
#[tokio::test]
async fn what_an_upstream_does_not_take_is_not_piled_up() {
    let (h, listener) = gateway("codex").await;
    let (mut client, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    tell(&mut upstream, &[event("response.created", "resp_1")]).await;
    let steer = json!({"type": "response.steer", "text": "y".repeat(1 << 20)});
    for _ in 0..32 {
        client.send(&steer).await;
    }
    let told = client.rest_of_turn().await;
    assert_eq!(said(&told), "bad_question", "{told:?}");
    drop((client, upstream));
    h.finish().await;
}

/// Of a turn over HTTP: the client goes on at once, and is told of nothing behind it.
#[tokio::test]
async fn a_bridged_turn_ends_with_its_last_event_though_its_body_does_not() {
    let (h, listener) = gateway("codex").await;
    let answer = async |stream: &mut TcpStream| {
        let (mut head, mut size) = (vec![0; 1 << 16], 0);
        while !head[..size].windows(4).any(|end| end == b"\r\n\r\n") {
            size += stream.read(&mut head[size..]).await.unwrap();
        }
        let text = if head.starts_with(b"GET") {
            "HTTP/1.1 426 -\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
        } else {
            let (created, completed) =
                (event("response.created", "resp_1"), event("response.completed", "resp_1"));
            let body = format!("data: {created}\n\ndata: {completed}\n\ndata: [DONE]\n\n");
            let head = "content-type: text/event-stream\r\ntransfer-encoding: chunked";
            format!("HTTP/1.1 200 -\r\n{head}\r\n\r\n{:x}\r\n{body}\r\n", body.len())
        };
        stream.write_all(text.as_bytes()).await.unwrap();
    };
    let upstream = async {
        let mut unended = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            answer(&mut stream).await;
            unended.push(stream);
        }
    };
    let client = async {
        let mut client = Client::open(&h).await;
        for _ in 0..3 {
            let events = client.turn(&create("hi")).await;
            assert_eq!(kinds(&events), ["response.created", "response.completed"]);
        }
    };
    tokio::select! {
        () = client => {}
        () = upstream => {}
    }
    h.finish().await;
}
