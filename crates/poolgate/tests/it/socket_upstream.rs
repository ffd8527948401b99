//! Upstreams scripted message by message: what the simulator does not do.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, accept_async};

use crate::harness::{Harness, PATIENCE, Setup};
use crate::socket_client::{BETA, Client, connect, connect_to, create, id, kinds, said, until};

pub type Upstream = WebSocketStream<TcpStream>;

/// A gateway with one account, and where its upstream is expected.
pub async fn gateway(kind: &str) -> (Harness, TcpListener) {
    gateway_with(kind, |_| ()).await
}

async fn gateway_with(kind: &str, change: impl FnOnce(&mut Setup)) -> (Harness, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut setup = Setup::new().await;
    let account = if kind == "codex" { setup.codex("a") } else { setup.openai("a") };
    let base = format!("http://127.0.0.1:{port}/backend-api/codex");
    setup.settings(account.name()).base_url = Some(base);
    change(&mut setup);
    (setup.start().await, listener)
}

pub async fn accept(listener: &TcpListener) -> Upstream {
    let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
    accept_async(accepted.expect("it connects").unwrap().0).await.unwrap()
}

/// The next message that reaches it.
pub async fn heard(upstream: &mut Upstream) -> Value {
    loop {
        let next = tokio::time::timeout(PATIENCE, upstream.next()).await.expect("in time");
        if let Message::Text(text) = next.unwrap().unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

/// The same with a client's socket, and its account's.
async fn opened() -> (Harness, TcpListener, Client, Upstream) {
    let (h, listener) = gateway("codex").await;
    let (client, upstream) = tokio::join!(Client::open(&h), accept(&listener));
    (h, listener, client, upstream)
}

pub fn event(kind: &str, id: &str) -> Value {
    json!({"type": kind, "response": {"id": id, "object": "response", "output": []}})
}

/// It tells headers of an answer, of `response` if it says of which.
pub fn headers(kind: &str, response: Option<&str>) -> Value {
    let mut event = json!({"type": kind, "headers": {"openai-model": "gpt-5.5"}});
    if let Some(response) = response {
        event["response_id"] = json!(response);
    }
    event
}

/// All at once.
pub async fn tell(upstream: &mut Upstream, events: &[Value]) {
    for event in events {
        upstream.feed(Message::text(event.to_string())).await.unwrap();
    }
    upstream.flush().await.unwrap();
}

/// codex-lb 5.7: stale events are dropped.
#[tokio::test]
async fn what_is_still_said_of_a_failed_turn_is_not_the_next_ones() {
    let (h, _listener, mut client, mut upstream) = opened().await;
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
    let (h, listener, mut client, mut upstream) = opened().await;
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
    let (h, _listener, mut client, mut upstream) = opened().await;
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
    let (h, _listener, mut client, mut upstream) = opened().await;
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
    let (h, _listener, mut client, mut upstream) = opened().await;
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

/// multiplexer 18.4 #51.
#[tokio::test]
async fn multiplexer_18_4_51_a_handshake_that_a_drain_overtakes_is_refused() {
    let (h, listener) = gateway("codex").await;
    let (app, url, key) = (Arc::clone(&h.app), h.url.clone(), h.key.clone());
    let asked = tokio::sync::Notify::new();
    let upstream = async {
        let (stream, _) = listener.accept().await.unwrap();
        asked.notify_one();
        app.draining.cancelled().await;
        let mut upstream = accept_async(stream).await.unwrap();
        let rest = async { while let Some(Ok(_)) = upstream.next().await {} };
        tokio::time::timeout(PATIENCE, rest).await.expect("its socket is closed");
    };
    let drain = async {
        asked.notified().await;
        h.finish().await;
    };
    let (refused, (), ()) = tokio::join!(connect_to(&url, &key, &[BETA]), upstream, drain);
    let (status, body) = refused.err().unwrap();
    assert_eq!((status, &body["error"]["code"]), (503, &json!("draining")));
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
    let (h, _listener, mut client, mut upstream) = opened().await;
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

/// spec §6: nor does a failure behind output, or what an upstream quotes of a key.
#[tokio::test]
async fn what_a_failed_turn_tells_of_an_account_is_cut_out() {
    let (h, _listener, mut client, mut upstream) = opened().await;
    let text = json!({"type": "response.output_text.delta", "delta": "a"});
    let key = h.app.pool.accounts()[0].credential.identifiers().remove(0);
    let quoted = format!("{}****{}", &key[..8], &key[key.len() - 4..]);
    let message = format!("in org-9aXbYcZd0123456789abcdef by {quoted}\n*** Begin");
    let told = json!({"code": "context_length_exceeded", "message": message});
    let error = json!({"type": "error", "status": 400, "error": told});
    let mut failed = event("response.failed", "resp_1");
    failed["response"]["error"] = told;
    for (failure, place) in [(error, "/error/message"), (failed, "/response/error/message")] {
        for output in [&[][..], std::slice::from_ref(&text)] {
            client.send(&create("hi")).await;
            heard(&mut upstream).await;
            let begun = event("response.created", "resp_1");
            tell(&mut upstream, &[&[begun][..], output, std::slice::from_ref(&failure)].concat())
                .await;
            let events = client.rest_of_turn().await;
            let last = events.last().unwrap();
            assert_eq!(
                last.pointer(place),
                Some(&json!("in [removed] by [removed]\n*** Begin")),
                "{last}"
            );
        }
    }
    drop((client, upstream));
    h.finish().await;
}

/// codex-lb 1.7.
#[tokio::test]
async fn a_turn_may_be_interrupted_before_its_first_event() {
    let (h, _listener, mut client, mut upstream) = opened().await;
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    client.send(&json!({"type": "response.interrupt"})).await;
    assert_eq!(heard(&mut upstream).await["type"], "response.interrupt");
    tell(&mut upstream, &[event("response.completed", "resp_1")]).await;
    assert_eq!(said(&client.rest_of_turn().await), "completed");
    drop((client, upstream));
    h.finish().await;
}

/// spec §7: what a key may ask for holds for whatever an upstream would take for a turn.
#[tokio::test]
async fn a_turn_in_disguise_does_not_reach_the_turn_under_way() {
    let (h, _listener, mut client, mut upstream) = opened().await;
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    let turn = r#","model":"gpt-other","input":[]}"#;
    for disguised in [
        r#"{"type":"response\u002ecreate""#,
        r#"{"type":"response.interrupt","type":"response.create""#,
        r#"{"t\u0079pe":"response.create","type":"response.interrupt""#,
        r#"{ "type":"response.creat\u0065""#,
    ] {
        client.socket.send(Message::text(format!("{disguised}{turn}"))).await.unwrap();
        assert_eq!(said(&client.rest_of_turn().await), "bad_question", "{disguised}");
    }
    client.send(&json!({"type": "response.interrupt"})).await;
    assert_eq!(heard(&mut upstream).await["type"], "response.interrupt", "the first that arrives");
    tell(&mut upstream, &[event("response.completed", "resp_1")]).await;
    assert_eq!(said(&client.rest_of_turn().await), "completed");
    drop((client, upstream));
    h.finish().await;
}

/// More than the two ends' buffers hold.
#[tokio::test]
async fn what_an_upstream_does_not_take_is_not_piled_up() {
    let (h, _listener, mut client, mut upstream) = opened().await;
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

/// multiplexer 9.5; codex-lb 5.7: a leg that has reached its limit, whatever it tells first, has not taken the turn.
#[tokio::test]
async fn a_limit_told_behind_the_accounts_own_limits_exchanges_the_leg() {
    let (h, listener, mut client, mut upstream) = opened().await;
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    let windows = json!({"primary": {"used_percent": 40.0, "window_minutes": 300}});
    let limits = json!({"type": "codex.rate_limits", "rate_limits": windows});
    let metadata = ["response.metadata", "codex.response.metadata"].map(|kind| headers(kind, None));
    let first = [&[limits][..], &metadata].concat();
    let error = json!({"code": "websocket_connection_limit_reached", "message": "too old"});
    let end = json!({"type": "error", "status": 400, "error": error});
    tell(&mut upstream, &[&first[..], &[end]].concat()).await;
    let mut upstream = accept(&listener).await;
    heard(&mut upstream).await;
    let turn = ["response.created", "response.completed"].map(|kind| event(kind, "resp_1"));
    tell(&mut upstream, &[&first[..], &turn].concat()).await;
    let events = client.rest_of_turn().await;
    let all = [&first[..], &turn].concat();
    let (told, all) = (kinds(&events), kinds(&all));
    assert_eq!(told[told.len() - all.len()..], all, "nothing is lost, and nothing told twice");
    assert_eq!(told.iter().filter(|kind| kind.ends_with("metadata")).count(), 2);
    assert_eq!(h.outcomes().await, [("complete".to_owned(), 1)]);
    drop((client, upstream));
    h.finish().await;
}

/// codex-lb 5.7: what tells headers names its response at the top.
#[tokio::test]
async fn headers_of_the_turn_before_are_not_told_in_the_next() {
    let (h, _listener, mut client, mut upstream) = opened().await;
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    let first = ["response.created", "response.completed"].map(|kind| event(kind, "resp_1"));
    tell(&mut upstream, &first).await;
    client.rest_of_turn().await;
    client.send(&create("more")).await;
    heard(&mut upstream).await;
    let late = |kind| headers(kind, Some("resp_1"));
    let (own, codex) = ("response.metadata", "codex.response.metadata");
    let second = [
        late(own),
        late(codex),
        headers(own, Some("resp_2")),
        late(own),
        event("response.created", "resp_2"),
        late(own),
        headers(codex, Some("resp_2")),
        event("response.completed", "resp_2"),
    ];
    tell(&mut upstream, &second).await;
    let told = client.rest_of_turn().await;
    let told: Vec<&Value> = told.iter().filter(|e| e["type"] != "codex.rate_limits").collect();
    let want = [&second[2], &second[4], &second[6], &second[7]];
    assert_eq!(told, want);
    drop((client, upstream));
    h.finish().await;
}

/// Who gives all responses one name is served all the same.
#[tokio::test]
async fn responses_of_one_name_are_each_their_own() {
    let (h, _listener, mut client, mut upstream) = opened().await;
    for _ in 0..3 {
        client.send(&create("hi")).await;
        heard(&mut upstream).await;
        let turn = ["response.created", "response.completed"].map(|kind| event(kind, "resp_1"));
        tell(&mut upstream, &turn).await;
        let events = client.rest_of_turn().await;
        assert_eq!(kinds(&events), ["response.created", "response.completed"]);
    }
    drop((client, upstream));
    h.finish().await;
}

/// codex-lb 1.7: what is said while a turn waits for its account is said to that account.
#[tokio::test]
async fn a_turn_may_be_interrupted_while_it_waits() {
    let (h, listener) = gateway_with("codex", |s| s.settings("a").max_concurrency = Some(1)).await;
    let (mut first, mut busy) = tokio::join!(Client::open(&h), accept(&listener));
    let (mut second, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    first.send(&create("hi")).await;
    heard(&mut busy).await;
    second.send(&create("hi too")).await;
    until("it waits", || h.app.pool.line().waiting() == 1).await;
    second.send(&json!({"type": "response.interrupt"})).await;
    second.send(&create("and another")).await;
    assert_eq!(said(&second.rest_of_turn().await), "bad_question", "both have been heard");
    tell(&mut busy, &[event("response.completed", "resp_1")]).await;
    assert_eq!(said(&first.rest_of_turn().await), "completed");
    assert_eq!(heard(&mut upstream).await["type"], "response.create");
    assert_eq!(heard(&mut upstream).await["type"], "response.interrupt");
    tell(&mut upstream, &[event("response.completed", "resp_2")]).await;
    assert_eq!(said(&second.rest_of_turn().await), "completed");
    // spec §10: the one that came too early has its row.
    let rows = h.rows("SELECT outcome, code, model FROM requests WHERE status = 400").await;
    assert_eq!(rows, [["refused", "bad_question", "gpt-5.5"]]);
    drop((first, second, busy, upstream));
    h.finish().await;
}

/// spec §10: a row says what became of the request.
#[tokio::test]
async fn a_turn_that_fails_behind_output_is_not_complete() {
    let (h, _listener, mut client, mut upstream) = opened().await;
    let text = json!({"type": "response.output_text.delta", "delta": "a"});
    for code in ["server_error", "content_policy_violation"] {
        client.send(&create("hi")).await;
        heard(&mut upstream).await;
        let mut failed = event("response.failed", code);
        failed["response"]["error"] = json!({"code": code, "message": "no"});
        tell(&mut upstream, &[event("response.created", code), text.clone(), failed]).await;
        client.rest_of_turn().await;
    }
    let rows = h.rows("SELECT outcome, code FROM requests ORDER BY id").await;
    let want = [["upstream_broke", "server_error"], ["complete", "content_policy_violation"]];
    assert_eq!(rows, want);
    drop((client, upstream));
    h.finish().await;
}

/// spec §7: pings keep no socket open; who is asked answers them.
#[tokio::test]
async fn pings_are_answered_and_do_not_keep_a_socket() {
    let at_once = |s: &mut Setup| s.raw.limits.socket_idle_timeout_s = Some(1);
    let (h, listener) = gateway_with("codex", at_once).await;
    let (client, upstream) = tokio::join!(Client::open(&h), accept(&listener));
    let mut client = client.socket;
    let (mut answered, mut pings) = (0, tokio::time::interval(Duration::from_millis(50)));
    let closed = loop {
        tokio::select! {
            _ = pings.tick() => client.send(Message::Ping("?".into())).await.unwrap_or_default(),
            said = client.next() => match said.unwrap().unwrap() {
                Message::Pong(text) => answered += usize::from(text == "?"),
                Message::Close(frame) => break frame.unwrap(),
                other => assert!(other.is_text(), "{other}"),
            }
        }
    };
    assert_eq!(u16::from(closed.code), 1001);
    assert!(answered > 5, "{answered}");
    drop((client, upstream));
    h.finish().await;
}

/// spec §7: a message of 64 MiB, either way.
#[tokio::test]
async fn a_turn_may_be_as_large_as_a_message() {
    let (h, listener) = gateway("codex").await;
    let (mut client, upstream) = tokio::join!(Client::open(&h), accept(&listener));
    let any_size = WebSocketConfig::default().max_frame_size(None).max_message_size(None);
    let upstream = upstream.into_inner();
    let mut upstream =
        WebSocketStream::from_raw_socket(upstream, Role::Server, Some(any_size)).await;
    let room = (64 << 20) - create("").to_string().len();
    let frame = create(&"x".repeat(room));
    let (events, ()) = tokio::join!(client.turn(&frame), async {
        let body = heard(&mut upstream).await;
        assert_eq!(body["input"], frame["input"]);
        tell(&mut upstream, &[event("response.completed", "resp_1")]).await;
    });
    assert_eq!(said(&events), "completed");
    drop((client, upstream));
    h.finish().await;
}

/// multiplexer 18.4 #41: a turn with output is finished, whatever becomes of its account meanwhile.
#[tokio::test]
async fn a_turn_with_output_is_finished_on_a_paused_account() {
    let (h, _listener, mut client, mut upstream) = opened().await;
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    let text = json!({"type": "response.output_text.delta", "delta": "a"});
    tell(&mut upstream, &[event("response.created", "resp_1"), text]).await;
    for _ in 0..2 {
        client.next().await.unwrap().unwrap();
    }
    let account = h.app.pool.accounts().remove(0);
    h.app.store.pause(account.id).await.unwrap();
    h.app.reload().await.unwrap();
    tell(&mut upstream, &[event("response.completed", "resp_1")]).await;
    assert_eq!(said(&client.rest_of_turn().await), "completed");
    while let Some(Ok(_)) = upstream.next().await {}
    assert_eq!(said(&client.turn(&create("again")).await), "no_accounts", "the client stays");
    drop((client, upstream));
    h.finish().await;
}
