//! What clients are told on their sockets: all of a turn, its end, and nothing of an account.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use poolgate::clock::Clock;
use poolgate_sim::{Account, Fault, Phase};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::{CODEX, responses};
use crate::socket_client::{BETA, Client, connect, create, kinds, pair, said, turns, until};

fn without_sockets(account: &Account) {
    account.fault(Fault::status(404, "{}")).on_handshakes().forever();
}

/// spec §8: the limits in the headers of an error are the pool's, too.
#[tokio::test]
async fn an_error_tells_the_pools_limits_and_no_accounts() {
    let (h, (a, _b)) = Harness::start(|s: &mut Setup| {
        let accounts = [(s.codex("a"), 20.0), (s.codex("b"), 60.0)];
        for (account, percent) in &accounts {
            let hour = Duration::from_hours(1);
            account.window(Duration::from_hours(5), 1e9, percent * 1e7, hour);
            let settings = s.settings(account.name());
            (settings.limit_5h, settings.plan_weight) = (Some(100), Some(1.0));
        }
        s.settings("b").priority = Some(5);
        let [(a, _), (b, _)] = accounts;
        (a, b)
    })
    .await;
    a.fault(Fault::server_error(500)).times(2);
    assert_eq!(h.post(CODEX, &responses("both are known", true)).await.status, 200);
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    a.fault(Fault::error_frame(Phase::Head, 400, "some_code")).turns().times(1);
    let events = client.turn(&create("hi")).await;
    let error = events.last().unwrap();
    assert_eq!((&error["status"], &error["error"]["code"]), (&json!(400), &json!("some_code")));
    assert_eq!(error["headers"]["x-codex-primary-used-percent"], "40.00", "{error}");
    assert_eq!(error["headers"].get("x-codex-credits-balance"), None, "{error}");
    let rows = h.rows("SELECT status FROM requests ORDER BY id").await;
    assert_eq!(rows.last().unwrap(), &["400"], "as over HTTP");
    drop(client);
    h.finish().await;
}

/// spec §6: a policy's refusal is relayed, and its 403 is a 400: who is told of a break asks again.
#[tokio::test]
async fn a_policys_refusal_behind_output_is_told_as_one() {
    for status in [403, 400, 500] {
        let (h, a, _) = pair().await;
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        a.fault(Fault::error_frame(Phase::Output(1), status, "cyber_policy")).turns().times(1);
        let events = client.turn(&create("hi [[events=5]]")).await;
        let error = events.last().unwrap();
        let told = if status == 403 { 400 } else { status };
        assert_eq!((&error["status"], said(&events).as_str()), (&json!(told), "cyber_policy"));
        drop(client);
        h.finish().await;
    }
}

/// spec §6: the account's own trouble behind output, like its quota, stops no client: another serves.
#[tokio::test]
async fn an_accounts_trouble_behind_output_is_told_as_a_break() {
    for (status, code) in
        [(401, "token_expired"), (403, "forbidden_error"), (429, "usage_limit_reached"), (500, "x")]
    {
        let (h, a, _) = pair().await;
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        a.fault(Fault::error_frame(Phase::Output(1), status, code)).turns().times(1);
        let events = client.turn(&create("hi [[events=5]]")).await;
        assert_eq!(said(&events), "upstream_broke", "{status}");
        drop(client);
        h.finish().await;
    }
}

/// spec §6: a policy's 403 goes out as 400.
#[tokio::test]
async fn a_policys_403_is_400_on_a_socket_too() {
    let (h, a, _) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    a.fault(Fault::error_frame(Phase::Head, 403, "content_policy_violation")).turns().times(1);
    let events = client.turn(&create("hi")).await;
    let error = events.last().unwrap();
    assert_eq!(error["status"], 400, "{error}");
    assert_eq!(error["error"]["code"], "content_policy_violation");
    assert_eq!(h.rows("SELECT status FROM requests").await, [["400"]], "spec §10");
    assert_eq!(h.rows("SELECT status FROM attempts").await, [["403"]], "as the upstream told it");
    drop(client);
    h.finish().await;
}

/// spec §7: messages up to 64 MiB.
#[tokio::test]
async fn a_large_event_arrives() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    let events = client.turn(&create("hi [[bytes=20000000]][[events=1]]")).await;
    let texts = events.iter().filter_map(|event| event["delta"].as_str());
    let size: usize = texts.map(str::len).sum();
    assert_eq!((said(&events).as_str(), size), ("completed", 20_000_000));
    drop(client);
    h.finish().await;
}

/// On a socket nothing is cut: whatever becomes of the answer, its end is told.
#[tokio::test]
async fn a_bridged_turn_that_cannot_be_told_is_told_as_broken() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    without_sockets(&a);
    let whole = h.direct(&a, CODEX, &[], &responses("hi [[events=9]]", true)).await.text();
    let inside = whole.find("event: response.completed").unwrap() + 60;
    let mut client = Client::open(&h).await;
    a.fault(Fault::cut(inside)).times(1);
    assert_eq!(said(&client.turn(&create("hi [[events=9]]")).await), "upstream_broke");
    assert_eq!(said(&client.turn(&create("again")).await), "completed");
    drop(client);
    h.finish().await;
}

/// Each turn of one client is answered over HTTP with the next of these: what it is told last, and what
/// its row says.
async fn bridged(answers: &[(&str, &str)]) -> (Vec<Vec<Value>>, Vec<Vec<String>>) {
    let (h, a) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    without_sockets(&a);
    let mut client = Client::open(&h).await;
    let mut told = Vec::new();
    for (kind, body) in answers {
        let headers = vec![("content-type".to_owned(), (*kind).to_owned())];
        let body = (*body).to_owned();
        a.fault(Fault::Status { status: 200, headers, body }).times(1);
        told.push(client.turn(&create("hi")).await);
    }
    drop(client);
    let rows = "SELECT outcome, status, code, output_tokens FROM requests ORDER BY id";
    let rows = h.rows(rows).await;
    h.finish().await;
    (told, rows)
}

/// spec §6: as over HTTP, a body that ends in good order behind its last word is whole.
#[tokio::test]
async fn a_bridged_turns_last_word_counts_without_what_should_follow() {
    let delta = r#"data: {"type":"response.output_text.delta","delta":"a"}"#;
    let done = r#"data: {"type":"response.completed","response":{"id":"r","usage":{"input_tokens":3,"output_tokens":4}}}"#;
    let bodies = ["\n\n", "\n", ""].map(|end| format!("{delta}\n\n{done}{end}"));
    let answers = bodies.each_ref().map(|body| ("text/event-stream", body.as_str()));
    let (told, rows) = bridged(&answers).await;
    for (told, (_, body)) in told.iter().zip(answers) {
        assert_eq!(kinds(told), ["response.output_text.delta", "response.completed"], "{body:?}");
    }
    assert_eq!(rows, [["complete", "200", "NULL", "4"]; 3]);
}

/// What an upstream without sockets answers in one piece is told in events, and its row says the same.
#[tokio::test]
async fn a_bridged_turns_answer_in_one_piece_is_told_in_events() {
    let response = |status: &str| {
        let usage = json!({"input_tokens": 3, "output_tokens": 9});
        json!({"id": "r", "status": status, "output": [{"id": "i"}], "usage": usage}).to_string()
    };
    let completed = response("completed");
    let refused = r#"{"error":{"code":"context_length_exceeded","message":"too long"}}"#;
    let item = "response.output_item.done";
    let cases: [(&str, &[&str], [&str; 2]); 4] = [
        (&completed, &[item, "response.completed"], ["200", "9"]),
        (&response("incomplete"), &[item, "response.incomplete"], ["200", "9"]),
        (refused, &["error"], ["400", "NULL"]),
        // The account is asked once more, and has another answer then.
        (r#"{"hello":[]}"#, &["response.created"], ["200", "4"]),
    ];
    let answers: Vec<_> = cases.iter().map(|(body, ..)| ("application/json", *body)).collect();
    let (told, rows) = bridged(&answers).await;
    for ((told, row), (body, events, [status, output])) in told.iter().zip(&rows).zip(&cases) {
        assert!(kinds(told).starts_with(events), "{body}: {told:?}");
        assert_eq!(row, &["complete", status, "NULL", output], "{body}");
    }
    let whole: Value = serde_json::from_str(&completed).unwrap();
    assert_eq!(told[0].last().unwrap()["response"], whole);
    assert_eq!(told[2].last().unwrap()["status"], 400);
}

/// RFC 6455, 7.1.7: frames that no client sends, and what they are told.
#[tokio::test]
async fn what_is_against_the_protocol_is_told_by_its_code() {
    let (h, _, _) = pair().await;
    let frames: [(&str, &[u8], u16); 3] = [
        ("unmasked", &[0x81, 2, b'h', b'i'], 1002),
        ("an opcode that is none", &[0x83, 0x80, 0, 0, 0, 0], 1002),
        ("no UTF-8", &[0x81, 0x82, 0, 0, 0, 0, 0xff, 0xff], 1007),
    ];
    for (name, frame, code) in frames {
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        client.socket.get_mut().write_all(frame).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap_err(), code, "{name}");
    }
    until("their places are free", || h.app.sockets.is_empty()).await;
    h.finish().await;
}

/// What the drain cuts is told so, and that the gateway comes back.
#[tokio::test]
async fn a_turn_that_the_drain_cuts_ends_with_1012() {
    let (h, a, _) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    a.fault(Fault::stall(Phase::Output(1))).turns().times(1);
    client.send(&create("hi [[events=5]]")).await;
    while client.next().await.unwrap().unwrap()["type"] != "response.output_text.delta" {}
    h.app.draining.cancel();
    h.app.cutting.store(true, Ordering::Relaxed);
    h.app.sockets.abort.cancel();
    assert_eq!(said(&client.rest_of_turn().await), "draining");
    assert_eq!(client.next().await.unwrap().unwrap_err(), 1012);
    h.finish().await;
}

/// multiplexer 9.5; wire §2.4: what a refusal over HTTP says in its head, an error event says in its headers.
#[tokio::test]
async fn an_error_events_headers_count() {
    let (h, a, _) = pair().await;
    let headers = vec![("retry-after".to_owned(), "30".to_owned())];
    let code = "rate_limit_exceeded".to_owned();
    let fault = Fault::ErrorFrame { phase: Phase::Head, status: 429, code, headers };
    a.fault(fault).turns().times(1);
    for (wait, asked) in [(0, vec!["a", "b"]), (25, vec!["b"]), (6, vec!["a"])] {
        h.clock.advance(Duration::from_secs(wait));
        h.sim.clear_journal();
        let mut client = Client::open(&h).await;
        assert_eq!(said(&client.turn(&create("hi")).await), "completed");
        assert_eq!(turns(&h), asked, "after {wait} s more");
    }
    h.finish().await;
}

/// An answer of ours says nothing about the account.
#[tokio::test]
async fn a_warm_up_that_is_answered_here_is_no_success_of_the_account() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    without_sockets(&a);
    let mut client = Client::open(&h).await;
    let mut warm_up = create("");
    warm_up["generate"] = json!(false);
    assert_eq!(said(&client.turn(&warm_up).await), "completed");
    let served = h.app.pool.view(h.clock.now()).accounts[0].served;
    assert_eq!(served, 0);
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    drop(client);
    h.finish().await;
}

/// RFC 6455, 5.5.1.
#[tokio::test]
async fn a_clients_close_is_answered() {
    for busy in [false, true] {
        let (h, a, _) = pair().await;
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        if busy {
            a.fault(Fault::stall(Phase::Output(1))).turns().times(1);
            client.send(&create("hi [[events=9]]")).await;
            while client.next().await.unwrap().unwrap()["type"] != "response.output_text.delta" {}
        }
        client.socket.close(None).await.unwrap();
        let mut last = None;
        while let Some(next) = tokio::time::timeout(PATIENCE, client.socket.next()).await.unwrap() {
            last = Some(next);
        }
        assert!(matches!(last, Some(Ok(Message::Close(_)))), "busy {busy}: {last:?}");
        h.finish().await;
    }
}

#[tokio::test]
async fn a_binary_message_during_a_turn_is_told_by_its_code() {
    let (h, a, _) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    a.fault(Fault::stall(Phase::Output(1))).turns().times(1);
    client.send(&create("hi [[events=9]]")).await;
    until("it is asked", || turns(&h).len() == 1).await;
    client.socket.send(Message::binary(vec![1])).await.unwrap();
    let code = loop {
        if let Err(code) = client.next().await.expect("a close, not a cut") {
            break code;
        }
    };
    assert_eq!(code, 1003);
    h.finish().await;
}

/// RFC 6455, 4.2.1.
#[tokio::test]
async fn a_handshake_that_is_none_is_refused() {
    let (h, _, _) = pair().await;
    let good = [
        ("upgrade", "websocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-version", "13"),
    ];
    let wrong = [
        ("sec-websocket-version", "8"),
        ("sec-websocket-version", ""),
        ("sec-websocket-key", ""),
        ("sec-websocket-key", "bm9uY2U="),
        ("connection", "keep-alive"),
    ];
    for (name, value) in wrong {
        let mut headers = good.to_vec();
        headers.retain(|(known, _)| *known != name);
        headers.push((name, value));
        let got = h.get(CODEX, &headers).await;
        assert_eq!((got.status.as_u16(), got.code()), (400, "bad_handshake"), "{name}: {value}");
        assert_eq!(got.headers["sec-websocket-version"], "13");
    }
    connect(&h, &[BETA]).await.unwrap();
    h.finish().await;
}

/// 500 here, 10,000 with `make soak`, each as soon as the one before has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_socket_takes_turn_after_turn() {
    let count = if std::env::var_os("POOLGATE_SOAK").is_some() { 10_000 } else { 500 };
    for bridged in [false, true] {
        let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
        if bridged {
            without_sockets(&a);
        }
        let mut client = Client::open(&h).await;
        for n in 0..count {
            let events = client.turn(&create("hi")).await;
            assert_eq!(said(&events), "completed", "{n} {:?}", events.last().map(Value::to_string));
        }
        assert_eq!(h.outcomes().await, [("complete".to_owned(), count)]);
        drop(client);
        h.finish().await;
    }
}

/// reliability AUTH-4: the turn under way ends as a stream over HTTP does, and its socket behind it.
#[tokio::test]
async fn a_turn_of_a_revoked_key_ends_and_so_does_its_socket() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.fault(Fault::stall(Phase::Output(2))).turns().times(1);
    let mut client = Client::open(&h).await;
    client.send(&create("hi [[events=9]]")).await;
    while client.next().await.unwrap().unwrap()["type"] != "response.output_text.delta" {}
    h.revoke_key().await;
    let events = client.rest_of_turn().await;
    assert_eq!(
        events.last().unwrap()["response"]["error"]["code"],
        "invalid_api_key",
        "{events:?}"
    );
    assert_eq!(client.next().await, Some(Err(1008)));
    until("its account's socket is closed", || a.open_sockets() == 0).await;
    assert_eq!(h.outcomes().await, [("interrupted".to_owned(), 1)]);
    h.finish().await;
}

/// reliability AUTH-4: nor does a turn wait any longer that has no output yet.
#[tokio::test]
async fn a_turn_of_a_revoked_key_waits_for_nothing() {
    let headers = vec![("retry-after".to_owned(), "30".to_owned())];
    let code = "rate_limit_exceeded".to_owned();
    let limited = Fault::ErrorFrame { phase: Phase::Head, status: 429, code, headers };
    let waits: fn(&Harness) -> bool = |h| h.app.pool.line().waiting() == 1;
    let is_asked: fn(&Harness) -> bool = |h| turns(h).len() == 1;
    let cases = [
        ("an account that rests", limited, waits),
        ("output", Fault::stall(Phase::Head), is_asked),
    ];
    let refused = async |(name, fault, is_waiting): (&str, _, fn(&Harness) -> bool)| {
        let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
        let rests = matches!(fault, Fault::ErrorFrame { .. });
        a.fault(fault).turns().times(1);
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        if rests {
            assert_eq!(said(&client.turn(&create("hi")).await), "accounts_unavailable");
        }
        client.send(&create("hi")).await;
        until(name, || is_waiting(&h)).await;
        h.revoke_key().await;
        let told = client.rest_of_turn().await;
        let error = told.last().unwrap();
        assert_eq!(
            (said(&told).as_str(), &error["status"]),
            ("invalid_api_key", &json!(401)),
            "{name}"
        );
        assert_eq!(client.next().await, Some(Err(1008)), "{name}");
        assert_eq!(turns(&h), ["a"], "{name}: once");
        let rows = h.rows("SELECT outcome, status, code FROM requests ORDER BY id").await;
        assert_eq!(rows.last().unwrap(), &["refused", "401", "invalid_api_key"], "{name}");
        h.finish().await;
    };
    join_all(cases.map(refused)).await;
}

/// reliability §9: a turn has an end like any request, and its client's socket stays.
#[tokio::test]
async fn a_turn_that_takes_too_long_ends_and_its_socket_stays() {
    let (h, a) = Harness::start(|s: &mut Setup| {
        // Enough for its first output on a busy machine.
        s.raw.limits.request_timeout_s = Some(4);
        s.codex("a")
    })
    .await;
    a.fault(Fault::stall(Phase::Output(2))).turns().times(1);
    let mut client = Client::open(&h).await;
    let events = client.turn(&create("hi [[events=9]]")).await;
    assert_eq!(
        events.last().unwrap()["response"]["error"]["code"],
        "upstream_timeout",
        "{events:?}"
    );
    let rows = h.rows("SELECT outcome, code FROM requests").await;
    assert_eq!(rows, [["interrupted", "upstream_timeout"]]);
    until("the stalled socket is closed", || a.open_sockets() == 0).await;
    assert_eq!(said(&client.turn(&create("again")).await), "completed");
    h.finish().await;
}
