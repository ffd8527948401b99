//! sockets: handshake, turns and what a socket refuses, against the captured frames.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use poolgate_sim::{End, Scenario, Sim};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Ask, PATIENCE, say};
use crate::socket::{Socket, Stop, chained, create, handshake, warm_up};

const WEEK: Duration = Duration::from_hours(7 * 24);
const HOURS: Duration = Duration::from_hours(5);

async fn sim() -> Sim {
    Sim::start(Scenario::default()).await.unwrap()
}

#[tokio::test]
async fn a_handshake_gives_the_headers_and_no_extension() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    alice.set_used(HOURS, 0.12);
    let socket = Socket::open(&alice).await;
    assert!(socket.header("x-codex-turn-state").starts_with("ts-alice-"));
    assert_eq!(socket.header("x-codex-primary-used-percent"), "12");
    assert_eq!(socket.header("x-codex-secondary-window-minutes"), "10080");
    assert_eq!(socket.header("x-reasoning-included"), "true");
    assert_eq!(socket.header("openai-model"), "gpt-5.5");
    assert!(!socket.header("x-models-etag").is_empty());
    assert!(!socket.head.contains_key("sec-websocket-extensions"));

    let key = sim.openai("key");
    let socket = Socket::open(&key).await;
    assert_eq!(socket.header("openai-organization"), "org-key");
    assert!(!socket.head.contains_key("x-codex-primary-used-percent"));
}

#[tokio::test]
async fn a_handshake_is_refused_for_good_reasons() {
    let sim = sim().await;
    let (alice, key) = (sim.codex("alice"), sim.openai("key"));
    let ask = |account| {
        let request = handshake(account);
        let url = request.uri().to_string().replace("ws://", "http://");
        let mut ask = Ask::get(url);
        for (name, value) in request.headers() {
            ask = ask.with(name.as_str(), value.to_str().unwrap());
        }
        ask
    };
    #[rustfmt::skip]
    let cases = [
        (ask(&alice).without("authorization"),                                     401, "invalid_token"),
        (ask(&alice).without("chatgpt-account-id"),                                401, "invalid_token"),
        (ask(&alice).without("openai-beta"),                                       400, "invalid_websocket_request"),
        (ask(&key).without("openai-beta").with("openai-beta", "responses=v1"),     400, "invalid_websocket_request"),
        (ask(&alice).without("sec-websocket-key"),                                 400, "invalid_websocket_request"),
        (ask(&alice).without("sec-websocket-version"),                             400, "invalid_websocket_request"),
    ];
    for (ask, status, code) in cases {
        let answer = ask.send().await.unwrap();
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (status, Some(code)));
    }
    let other = ask(&alice).without("upgrade").with("upgrade", "h2c").send().await.unwrap();
    assert_eq!(other.status, 426);
    assert_eq!((alice.open_sockets(), key.open_sockets()), (0, 0));
    let beside =
        ask(&key).without("openai-beta").with("openai-beta", "a=b, responses_websockets=1");
    assert_eq!(beside.send().await.unwrap().status, 101);
}

#[tokio::test]
async fn a_turn_has_the_events_of_the_stream_after_the_limits() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    alice.set_used(HOURS, 0.12).set_used(WEEK, 0.34);
    alice.request_cost(0.0);
    let streamed = say(&alice, "hi [[events=3]]").await.events();
    let mut socket = Socket::open(&alice).await;
    let mut turn = socket.say("hi [[events=3]]").await;
    assert_eq!(turn.stop, Stop::Answered);
    let mut limits = turn.events.remove(0);
    for window in ["primary", "secondary"] {
        let window = limits["rate_limits"][window].as_object_mut().unwrap();
        assert!(window.remove("reset_at").unwrap().as_i64() > Some(1_700_000_000));
        assert!(window.remove("reset_after_seconds").unwrap().as_i64() > Some(0));
    }
    let window = |used: f64, minutes: u32| json!({"used_percent": used, "window_minutes": minutes});
    assert_eq!(
        limits,
        json!({
            "type": "codex.rate_limits", "plan_type": "plus",
            "rate_limits": {"allowed": true, "limit_reached": false,
                "primary": window(12.0, 300), "secondary": window(34.0, 10_080)},
            "code_review_rate_limits": null,
            "credits": {"has_credits": false, "unlimited": false, "balance": null},
            "promo": null,
        })
    );
    // The same but for the ids, which are the socket's own.
    let id = turn.response();
    assert_ne!(id, streamed.last().unwrap()["response"]["id"]);
    for event in &mut turn.events {
        if let Some(response) = event.get_mut("response") {
            assert_eq!(response["id"], id.as_str());
            response["id"] = streamed[0]["response"]["id"].clone();
        }
    }
    assert_eq!(turn.events, streamed);
}

#[tokio::test]
async fn a_turn_goes_on_from_a_response_of_its_own_socket_only() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let (mut one, mut two) = (Socket::open(&alice).await, Socket::open(&alice).await);
    let first = one.ask(&warm_up()).await.response();
    let second = one.ask(&chained("hi", &first)).await;
    assert_eq!(second.last()["response"]["previous_response_id"], first.as_str());
    assert_eq!(one.ask(&chained("more", &second.response())).await.stop, Stop::Answered);
    assert_eq!(one.ask(&chained("again", &first)).await.last()["type"], "response.completed");

    let other = two.ask(&warm_up()).await.response();
    assert_ne!(other, first, "the same question, another response");
    let refused = two.ask(&chained("hi", &first)).await;
    assert_eq!(refused.kinds(), ["error"], "no limits before it");
    let mut error = refused.last().clone();
    let headers = error["headers"].take();
    assert_eq!(headers["x-codex-active-limit"], "codex");
    assert!(headers["x-codex-primary-used-percent"].is_string());
    assert!(headers.get("x-codex-turn-state").is_none());
    assert_eq!(
        error,
        json!({"type": "error", "status": 400, "headers": null, "error": {
            "type": "invalid_request_error", "code": "previous_response_not_found",
            "message": format!("Previous response with id {first} not found."),
            "param": "previous_response_id"}})
    );
    assert_eq!(two.say("hi").await.last()["type"], "response.completed", "it stays open");
}

#[tokio::test]
async fn a_warm_up_has_no_output_and_costs_nothing() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    alice.window(HOURS, 2.0, 1.0, HOURS);
    let mut socket = Socket::open(&alice).await;
    let warm = socket.ask(&warm_up()).await;
    let opening = ["codex.rate_limits", "response.created", "response.in_progress"];
    assert_eq!((&warm.kinds()[..3], warm.kinds()[3]), (&opening[..], "response.completed"));
    assert_eq!(warm.last()["response"]["output"], json!([]));
    assert_eq!(alice.used(HOURS), Some(0.5));
    socket.say("hi").await;
    assert_eq!(alice.used(HOURS), Some(1.0));

    let spent = socket.say("hi").await;
    assert_eq!(spent.kinds(), ["error"]);
    let error = spent.last();
    assert_eq!(
        (&error["status"], &error["error"]["type"]),
        (&json!(429), &json!("usage_limit_reached"))
    );
    assert_eq!(error["error"]["plan_type"], "plus");
    assert!(error["error"]["resets_in_seconds"].as_i64() > Some(0));
    assert_eq!(error["headers"]["x-codex-primary-used-percent"], "100");
}

#[tokio::test]
async fn a_key_needs_no_stream_field_and_has_no_limits_event() {
    let sim = sim().await;
    let key = sim.openai("key");
    let mut socket = Socket::open(&key).await;
    let frame = json!({"type": "response.create", "model": "gpt-5.5", "input": "hi"});
    let turn = socket.ask(&frame).await;
    assert_eq!((turn.kinds()[0], turn.outputs()), ("response.created", 4));

    let mut codex = Socket::open(&sim.codex("alice")).await;
    let refused = codex.ask(&frame).await;
    assert_eq!(refused.last()["error"]["message"], "Stream must be set to true");
}

#[tokio::test]
async fn one_answer_at_a_time() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let mut socket = Socket::open(&alice).await;
    socket.send(&create("[[events=3]][[gap_ms=1]][[first_ms=60000]]")).await;
    let refused = socket.say("hi").await;
    assert_eq!(refused.kinds(), ["error"]);
    assert_eq!(refused.last()["error"]["code"], "response_in_progress");

    let mut socket = Socket::open(&alice).await;
    socket.send(&create("[[events=20]][[gap_ms=25]]")).await;
    assert_eq!(socket.event().await.unwrap()["type"], "codex.rate_limits");
    let refused = socket.say("hi").await;
    assert_eq!(refused.last()["type"], "error");
    let rest = socket.listen().await;
    assert_eq!(
        (rest.stop, rest.last()["type"].as_str()),
        (Stop::Answered, Some("response.completed"))
    );
    assert_eq!(refused.outputs() + rest.outputs(), 20, "the answer goes on undisturbed");
}

#[tokio::test]
async fn an_answer_may_be_interrupted() {
    let sim = sim().await;
    let mut socket = Socket::open(&sim.codex("alice")).await;
    socket.send(&create("[[gap_ms=60000]]")).await;
    socket.event().await.unwrap();
    let id = socket.event().await.unwrap()["response"]["id"].as_str().unwrap().to_owned();
    let other = json!({"type": "response.interrupt", "response_id": "resp_other"});
    socket.send(&other).await;
    assert_eq!(socket.event().await.unwrap()["error"]["code"], "response_in_progress");
    let mode = "discard_partial_items";
    socket.send(&json!({"type": "response.interrupt", "response_id": id, "mode": mode})).await;
    let end = socket.listen().await;
    assert_eq!(end.last()["type"], "response.incomplete");
    assert_eq!(end.last()["response"]["incomplete_details"]["reason"], "interrupted");
    assert_eq!(socket.say("hi").await.last()["type"], "response.completed", "it stays open");
}

/// The opening comes at once; only what follows a text is waited for.
#[tokio::test]
async fn a_pause_may_follow_the_texts_alone() {
    let sim = sim().await;
    let mut socket = Socket::open(&sim.codex("alice")).await;
    socket.send(&create("[[text_gap_ms=60000]]")).await;
    let mut id = String::new();
    loop {
        let event = socket.event().await.unwrap();
        match event["type"].as_str() {
            Some("response.created") => id = event["response"]["id"].as_str().unwrap().to_owned(),
            Some("response.output_text.delta") => break,
            _ => {}
        }
    }
    let interrupt = json!({"type": "response.interrupt", "response_id": id, "mode": "keep"});
    socket.send(&interrupt).await;
    let rest = socket.listen().await;
    assert_eq!((rest.outputs(), &rest.last()["type"]), (0, &json!("response.incomplete")));
}

/// As in fixture `codex-chatgpt-tool-turn-ws`.
#[tokio::test]
async fn tools_are_called_one_after_the_other() {
    let sim = sim().await;
    let mut socket = Socket::open(&sim.codex("alice")).await;
    let mut heard = socket.say("[[steps=2]][[say=some words]]").await;
    for number in 1..=2 {
        let end = heard.last();
        let call = end["response"]["output"][0].clone();
        assert_eq!(call["call_id"], format!("call_{number}_of_2"));
        assert_eq!(call["arguments"], r#"{"cmd":"echo 'some words'"}"#);
        let output = "Process exited with code 0\nOutput:\nsome words\n";
        let mut frame = chained("", end["response"]["id"].as_str().unwrap());
        frame["input"] = json!([{"type": "function_call_output", "call_id": call["call_id"],
            "output": output}]);
        heard = socket.ask(&frame).await;
    }
    let said = &heard.last()["response"]["output"][0]["content"][0]["text"];
    assert_eq!(said, "some words");
}

#[tokio::test]
async fn what_is_no_turn_is_refused_or_answered_in_kind() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let mut socket = Socket::open(&alice).await;
    for (frame, code) in [
        ("{\"type\":", "invalid_json"),
        ("[]", "invalid_value"),
        (r#"{"type":"response.interrupt"}"#, "invalid_value"),
    ] {
        socket.ws.send(Message::text(frame)).await.unwrap();
        let refused = socket.listen().await;
        assert_eq!(refused.last()["error"]["code"], code, "{frame}");
        assert_eq!(refused.last()["status"], 400, "{frame}");
    }
    socket.ws.send(Message::Ping("p".into())).await.unwrap();
    let pong = tokio::time::timeout(PATIENCE, socket.ws.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(pong, Message::Pong("p".into()));
    assert_eq!(socket.say("hi").await.stop, Stop::Answered, "it stays open through all of it");
    socket.ws.send(Message::binary(vec![1, 2])).await.unwrap();
    assert_eq!(socket.listen().await.stop, Stop::Closed(1003));
}

#[tokio::test]
async fn the_journal_has_the_socket_and_its_turns() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    drop(Socket::open(&alice).await);
    let mut socket = Socket::open(&alice).await;
    socket.ask(&warm_up()).await;
    socket.say("hi [[events=3]]").await;
    socket.ask(&chained("hi", "resp_other")).await;
    assert!(sim.wait_for(|journal| journal[0].end.is_some(), PATIENCE).await);
    let journal = sim.journal();
    assert_eq!(journal[0].end, Some(End::ClientGone), "it left without a close frame");
    let shake = &journal[1];
    assert_eq!((shake.status, shake.socket, shake.end), (Some(101), Some(1), None));
    assert!(shake.is_socket() && !shake.is_turn());
    let turns: Vec<_> = journal.iter().filter(|entry| entry.is_turn()).collect();
    assert!(turns.iter().all(|turn| turn.socket == Some(1) && turn.path == shake.path));
    assert!(turns.iter().all(|turn| turn.header("openai-beta").is_some()));
    let told = |turn: usize| (turns[turn].status, turns[turn].output_events_sent, turns[turn].end);
    assert_eq!(told(0), (Some(200), 0, Some(End::Complete)));
    assert_eq!(told(1), (Some(200), 3, Some(End::Complete)));
    assert_eq!(told(2), (Some(400), 0, Some(End::Complete)));
    let body: Value = serde_json::from_str(&turns[1].text()).unwrap();
    assert_eq!(body, create("hi [[events=3]]"));

    socket.ws.close(None).await.unwrap();
    assert!(sim.wait_for(|journal| journal[1].end.is_some(), PATIENCE).await);
    assert_eq!(sim.journal()[1].end, Some(End::Complete));
}

#[tokio::test]
async fn without_a_journal_all_is_the_same() {
    let sim = Sim::start(Scenario { journal: false, ..Scenario::default() }).await.unwrap();
    let mut socket = Socket::open(&sim.codex("alice")).await;
    let first = socket.ask(&warm_up()).await.response();
    assert_eq!(socket.ask(&chained("hi", &first)).await.outputs(), 4);
    assert!(sim.journal().is_empty());
    tokio::time::timeout(PATIENCE, sim.stop()).await.expect("sockets end with the simulator");
    assert_eq!(socket.listen().await.stop, Stop::Broken);
}
