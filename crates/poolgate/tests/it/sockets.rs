//! WebSocket turns, with a real client, against the simulator's sockets.

use std::time::Duration;

use futures_util::SinkExt;
use http::Method;
use poolgate_sim::{Fault, Garbage, Phase};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Harness, Setup};
use crate::requests::CODEX;
use crate::socket_client::{
    BETA, Client, chained, connect, create, id, kinds, pair, said, sockets, turns, until,
};

/// multiplexer 18.4 #43, #44, #46; codex-lb I1.
#[tokio::test]
async fn turns_go_one_after_the_other_over_one_socket_of_the_account() {
    let (h, _, _) = pair().await;
    let mut client = Client::open(&h).await;
    assert!(client.head.contains_key("x-codex-turn-state"), "codex-lb I2");
    let first = client.next().await.unwrap().unwrap();
    assert_eq!(first["type"], "codex.rate_limits", "before any turn");
    assert_eq!(first["limit_name"], "codex");
    let mut warm_up = create("");
    warm_up["generate"] = json!(false);
    let events = client.turn(&warm_up).await;
    let want =
        ["codex.rate_limits", "response.created", "response.in_progress", "response.completed"];
    assert_eq!(kinds(&events), want);
    let events = client.turn(&chained("hi", &id(&events))).await;
    assert_eq!((said(&events).as_str(), kinds(&events)[0]), ("completed", "codex.rate_limits"));
    assert!(events[0].get("credits").is_none(), "not the account's own: {}", events[0]);
    assert_eq!(events[0]["limit_name"], "codex");
    let events = client.turn(&chained("more", &id(&events))).await;
    assert_eq!(said(&events), "completed");
    assert_eq!((sockets(&h), turns(&h)), (1, vec!["a".to_owned(); 3]));
    assert_eq!(h.outcomes().await, [("complete".to_owned(), 2)], "a warm-up has no row");
    drop(client);
    until("everything is given back", || h.app.sockets.is_empty()).await;
    h.finish().await;
}

/// multiplexer 18.4 #47.
#[tokio::test]
async fn multiplexer_18_4_47_the_beta_is_set_when_absent_and_kept_when_given() {
    let (h, _, _) = pair().await;
    let other = ("openai-beta", "responses_websockets=2027-01-01");
    let old = ("openai-beta", "responses=experimental");
    for (headers, want) in [(vec![], BETA.1), (vec![other], other.1), (vec![old], BETA.1)] {
        connect(&h, &headers).await.unwrap();
        let journal = h.sim.journal();
        assert_eq!(journal.last().unwrap().header("openai-beta"), Some(want));
    }
    h.finish().await;
}

/// RFC 9110, 7.8: a client may offer more than one protocol.
#[tokio::test]
async fn a_socket_among_other_offers_is_one() {
    let (h, _, _) = pair().await;
    let mut client = connect(&h, &[BETA, ("upgrade", "h2c, websocket")]).await.unwrap();
    client.next().await.unwrap().unwrap();
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    drop(client);
    until("everything is given back", || h.app.sockets.is_empty()).await;
    h.finish().await;
}

/// multiplexer 9.1: a refusal is a plain HTTP answer.
#[tokio::test]
async fn whoever_is_refused_is_not_upgraded() {
    let (h, a, b) = pair().await;
    let stranger = [("authorization", "Bearer pg-nobody")];
    let (status, body) = connect(&h, &stranger).await.err().unwrap();
    assert_eq!((status, &body["error"]["code"]), (401, &json!("invalid_api_key")));
    a.fault(Fault::usage_limit_reached()).forever();
    b.fault(Fault::usage_limit_reached()).forever();
    let (status, body) = connect(&h, &[BETA]).await.err().unwrap();
    assert_eq!((status, &body["error"]["type"]), (429, &json!("usage_limit_reached")));
    assert!(h.app.sockets.is_empty());
    h.finish().await;
}

#[tokio::test]
async fn an_account_that_opens_no_socket_is_left_for_the_next() {
    for fault in
        [Fault::usage_limit_reached(), Fault::forbidden_error(), Fault::close_before_head()]
    {
        let (h, a, b) = pair().await;
        a.fault(fault).forever();
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        assert_eq!(said(&client.turn(&create("hi")).await), "completed");
        assert_eq!((turns(&h), b.open_sockets()), (vec!["b".to_owned()], 1));
        drop(client);
        h.finish().await;
    }
}

/// codex-lb I6.
#[tokio::test]
async fn codex_lb_i6_a_turn_that_fails_before_output_is_replayed_elsewhere() {
    for fault in [
        Fault::error_frame(Phase::Head, 429, "usage_limit_reached"),
        Fault::error_event_before_output(),
        Fault::close_frame(Phase::Head, 1011),
        Fault::close_frame(Phase::Body, 1012),
        Fault::cut_before_output(),
        Fault::garbage(Garbage::Events),
    ] {
        let (h, a, _) = pair().await;
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        let name = format!("{fault:?}");
        a.fault(fault).turns().times(2);
        let events = client.turn(&create("hi")).await;
        assert_eq!(said(&events), "completed", "{name}");
        let created = kinds(&events).iter().filter(|kind| **kind == "response.created").count();
        assert_eq!((created, turns(&h).pop().unwrap()), (1, "b".to_owned()), "{name}");
        let next = client.turn(&chained("more", &id(&events))).await;
        assert_eq!(said(&next), "completed", "{name}: it goes on there");
        drop(client);
        h.finish().await;
    }
}

/// What only the socket that is gone could go on from is asked for again, in full.
#[tokio::test]
async fn a_turn_whose_socket_is_gone_is_asked_for_in_full() {
    let (h, a, _) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    let first = client.turn(&create("hi")).await;
    a.fault(Fault::close_frame(Phase::Head, 1011)).turns().times(1);
    let lost = client.turn(&chained("more", &id(&first))).await;
    let error = &lost.last().unwrap()["error"];
    assert_eq!(error["code"], "previous_response_not_found");
    assert_eq!(error["param"], "previous_response_id");
    assert_eq!(lost.last().unwrap()["status"], 400);
    assert_eq!(said(&client.turn(&create("hi, and more")).await), "completed");
    drop(client);
    h.finish().await;
}

/// codex-lb I4.
#[tokio::test]
async fn codex_lb_i4_an_upstream_that_closes_between_turns_leaves_the_client_connected() {
    let (h, a, _) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    let first = client.turn(&create("hi")).await;
    a.close_sockets(1000);
    until("it is closed", || a.open_sockets() == 0).await;
    assert_eq!(
        said(&client.turn(&chained("more", &id(&first))).await),
        "previous_response_not_found"
    );
    assert_eq!(said(&client.turn(&create("all of it")).await), "completed");
    assert_eq!((sockets(&h), a.open_sockets()), (2, 1));
    drop(client);
    h.finish().await;
}

/// multiplexer 18.4 #41 on sockets: an idle leg of an account that is paused goes, the client stays.
#[tokio::test]
async fn multiplexer_18_4_41_the_leg_of_an_unable_account_is_dropped_when_idle() {
    let (h, a, b) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    let first = client.turn(&create("hi")).await;
    let id_of_a = h.app.pool.accounts().iter().find(|one| one.name == "a").unwrap().id;
    h.app.store.pause(id_of_a).await.unwrap();
    h.app.reload().await.unwrap();
    until("its socket is closed", || a.open_sockets() == 0).await;
    let mut events = client.turn(&chained("more", &id(&first))).await;
    assert_eq!(said(&events), "previous_response_not_found");
    events = client.turn(&create("all of it")).await;
    assert_eq!((said(&events).as_str(), b.open_sockets()), ("completed", 1));
    drop(client);
    h.finish().await;
}

#[tokio::test]
async fn a_break_behind_output_is_told_and_the_socket_stays() {
    for fault in [
        Fault::cut_after_output(2),
        Fault::close_frame(Phase::Output(2), 1011),
        Fault::error_event_after_output(2),
        Fault::error_frame(Phase::Output(2), 500, "server_error"),
    ] {
        let (h, a, b) = pair().await;
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        let name = format!("{fault:?}");
        a.fault(fault).turns().times(1);
        let events = client.turn(&create("hi [[events=9]]")).await;
        assert_ne!(said(&events), "completed", "{name}");
        assert_eq!(turns(&h), ["a"], "{name}: nothing is asked twice");
        assert_eq!(said(&client.turn(&create("again")).await), "completed", "{name}");
        assert_eq!(b.open_sockets(), 0);
        drop(client);
        h.finish().await;
    }
}

#[tokio::test]
async fn a_spent_pool_says_so_as_codex_reads_it() {
    let (h, a, b) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    for account in [&a, &b] {
        account.fault(Fault::UsageLimit { resets_in_s: Some(9000) }).turns().forever();
        account.fault(Fault::UsageLimit { resets_in_s: Some(9000) }).forever();
    }
    let events = client.turn(&create("hi")).await;
    let error = events.last().unwrap();
    assert_eq!((&error["type"], &error["status"]), (&json!("error"), &json!(429)));
    assert_eq!(error["error"]["type"], "usage_limit_reached");
    assert!(error["error"]["resets_in_seconds"].as_i64().unwrap() > 8900, "{error}");
    assert!(error["headers"]["x-codex-primary-used-percent"].is_string(), "{error}");
    drop(client);
    h.finish().await;
}

#[tokio::test]
async fn what_is_no_turn_is_refused_and_costs_nothing() {
    let (h, a, _) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    for (frame, code) in [
        ("{", "invalid_json"),
        (r#"{"type":"response.cancel"}"#, "bad_question"),
        (r#"{"type":"response.create"}"#, "missing_model"),
        (
            r#"{"type":"response.create","model":"gpt-5.5","input":[],"client_metadata":{"a":1,"a":2}}"#,
            "invalid_json",
        ),
    ] {
        client.socket.send(Message::text(frame)).await.unwrap();
        let event = client.next().await.unwrap().unwrap();
        assert_eq!(
            (&event["type"], &event["error"]["code"]),
            (&json!("error"), &json!(code)),
            "{frame}"
        );
    }
    assert!(turns(&h).is_empty(), "codex-lb I3");
    a.fault(Fault::slow_drip(400, Duration::from_millis(50))).turns().times(1);
    client.send(&create("hi")).await;
    client.send(&create("me too")).await;
    assert_eq!(said(&client.rest_of_turn().await), "bad_question", "one turn at a time");
    assert_eq!(said(&client.rest_of_turn().await), "completed");
    assert_eq!(turns(&h), ["a"]);
    client.socket.send(Message::binary(vec![1])).await.unwrap();
    while let Some(next) = client.next().await {
        if let Err(code) = next {
            assert_eq!(code, 1003);
            break;
        }
    }
    h.finish().await;
}

/// codex-lb 1.7: an interruption may cross with the end of its turn, or with its refusal. An error said to it would be
/// taken for the next turn's.
#[tokio::test]
async fn what_comes_too_late_for_its_turn_is_answered_by_nothing() {
    let (h, _, _) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    for kind in ["response.interrupt", "response.steer"] {
        client.send(&json!({"type": kind})).await;
        let events = client.turn(&create("second")).await;
        assert_eq!(said(&events), "completed", "{kind}");
    }
    assert_eq!(said(&client.turn(&json!({"type": "session.update"})).await), "bad_question");
    assert_eq!(turns(&h), ["a"; 3], "and no upstream hears of it");
    drop(client);
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    assert_eq!(said(&client.turn(&json!({"type": "response.create"})).await), "missing_model");
    client.send(&json!({"type": "response.interrupt"})).await;
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    drop(client);
    h.finish().await;
}

/// A turn is a request: what bounds one bounds the other.
#[tokio::test]
async fn a_message_holds_no_more_than_a_body_may() {
    let (h, _) = Harness::start(|s: &mut Setup| {
        s.raw.limits.body_max_bytes = Some(1000);
        s.codex("a")
    })
    .await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    client.send(&create(&"x".repeat(2000))).await;
    let code = loop {
        if let Err(code) = client.next().await.expect("not a cut") {
            break code;
        }
    };
    assert_eq!(code, 1009);
    assert_eq!(turns(&h), ["a"]);
    h.finish().await;
}

/// codex-lb I3, spec §7.
#[tokio::test]
async fn a_message_that_is_too_large_ends_the_socket_with_a_reason() {
    let (h, _, _) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    // The head of a text message of 65 MiB.
    let head = [&[0x81, 0xff][..], &(65_u64 << 20).to_be_bytes(), &[1, 2, 3, 4]].concat();
    // What is sent behind it must not cut the socket before the reason has come.
    for size in [0, 65 << 20] {
        if size > 0 {
            client = Client::open(&h).await;
            client.next().await.unwrap().unwrap();
        }
        client.socket.get_mut().write_all(&head).await.unwrap();
        client.socket.get_mut().write_all(&vec![0; size]).await.unwrap();
        let code = loop {
            if let Err(code) = client.next().await.expect("not a cut") {
                break code;
            }
        };
        assert_eq!(code, 1009, "with {size} bytes");
    }
    drop(client);
    until("its place is free", || h.app.sockets.is_empty()).await;
    h.finish().await;
}

/// codex-lb I3: a turn that is refused before it reaches an account has its row, as over HTTP.
#[tokio::test]
async fn a_refused_turn_has_its_row() {
    let (h, _, _) = pair().await;
    let key = h.new_key("other", &[], &["gpt-other"]).await;
    let mut client = Client::at(&h.url, &key).await;
    client.next().await.unwrap().unwrap();
    assert_eq!(said(&client.turn(&create("hi")).await), "model_not_allowed");
    assert_eq!(h.outcomes().await, [("refused".to_owned(), 1)]);
    let rows = h.rows("SELECT code, model FROM requests").await;
    assert_eq!(rows[0], ["model_not_allowed", "gpt-5.5"]);
    drop(client);
    h.finish().await;
}

/// codex-lb H5, H6: pending turns are never reclaimed.
#[tokio::test]
async fn codex_lb_h5_an_idle_socket_is_given_up_and_one_with_a_turn_is_not() {
    let mut setup = Setup::new().await;
    let a = setup.codex("a");
    setup.raw.limits.socket_idle_timeout_s = Some(1);
    setup.raw.limits.proxy_websocket = Some(1);
    let h = setup.start().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    let (status, body) = connect(&h, &[BETA]).await.err().unwrap();
    assert_eq!((status, &body["error"]["code"]), (429, &json!("proxy_overloaded")), "codex-lb H3");
    a.fault(Fault::slow_drip(400, Duration::from_millis(300))).turns().times(1);
    assert_eq!(said(&client.turn(&create("hi")).await), "completed", "it took longer than 1 s");
    while let Some(Ok(event)) = client.next().await {
        assert_eq!(event["type"], "codex.rate_limits");
    }
    until("its place is free", || h.app.sockets.is_empty() && a.open_sockets() == 0).await;
    Client::open(&h).await;
    h.finish().await;
}

#[tokio::test]
async fn a_revoked_key_ends_its_sockets() {
    let (h, a, _) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    h.revoke_key().await;
    client.send(&create("hi")).await;
    let code = loop {
        match client.next().await.unwrap() {
            Ok(event) => assert_eq!(event["status"], 401, "{event}"),
            Err(code) => break code,
        }
    };
    assert_eq!((code, turns(&h).len()), (1008, 1));
    until("the upstream's is closed", || a.open_sockets() == 0).await;
    h.finish().await;
}

/// codex-lb I13; multiplexer 18.4 #42.
#[tokio::test]
async fn codex_lb_i13_a_drain_ends_idle_sockets_and_waits_for_turns() {
    let (h, a, _) = pair().await;
    let (mut idle, mut busy) = (Client::open(&h).await, Client::open(&h).await);
    for client in [&mut idle, &mut busy] {
        client.next().await.unwrap().unwrap();
    }
    a.fault(Fault::slow_drip(400, Duration::from_millis(50))).turns().times(1);
    busy.send(&create("hi")).await;
    until("the turn is under way", || turns(&h).len() == 1).await;
    let watched = async {
        assert_eq!(idle.next().await.unwrap().unwrap_err(), 1012);
        assert_eq!(said(&busy.rest_of_turn().await), "completed");
        assert_eq!(busy.next().await.unwrap().unwrap_err(), 1012);
    };
    tokio::join!(h.finish(), watched);
}

/// A client that leaves in the middle of a turn takes the upstream's socket along.
#[tokio::test]
async fn nothing_is_left_of_a_client_that_leaves() {
    let (h, a, _) = pair().await;
    for text in ["hi", "hi [[events=9]]"] {
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        a.fault(Fault::stall(if text == "hi" { Phase::Head } else { Phase::Output(2) }))
            .turns()
            .times(1);
        client.send(&create(text)).await;
        let before = turns(&h).len();
        until("it is asked", || turns(&h).len() > before || before > 0).await;
        drop(client);
        until("nothing is left", || h.app.sockets.is_empty() && a.open_sockets() == 0).await;
        assert_eq!(h.app.pool.in_flight(), 0);
    }
    h.finish().await;
}

/// Over HTTP/2, or without a key, there is nothing to upgrade.
#[tokio::test]
async fn a_bad_handshake_is_told() {
    let (h, _, _) = pair().await;
    let got = h.get(CODEX, &[("upgrade", "websocket"), ("connection", "upgrade")]).await;
    assert_eq!((got.status.as_u16(), got.code()), (400, "bad_handshake"));
    let got = h.send(Method::GET, CODEX, &[], "".into()).await;
    assert_eq!(got.status, 405);
    h.finish().await;
}
