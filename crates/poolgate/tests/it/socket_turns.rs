//! WebSocket turns over upstreams that have no sockets, that stall, that are interrupted.

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use poolgate::clock::Clock;
use poolgate::store::KeyLimits;
use poolgate_sim::{Account, Fault, Phase};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::canary;
use crate::harness::{Harness, Setup};
use crate::requests::{CODEX, responses};
use crate::socket_client::{
    BETA, Client, chained, connect, connect_to, create, id, kinds, pair, said, turns, until,
};

/// Names of the accounts asked for an answer over HTTP, in order.
fn posts(h: &Harness) -> Vec<String> {
    let journal = h.sim.journal();
    let posts = journal.iter().filter(|entry| entry.method == "POST");
    posts.filter_map(|entry| entry.account.clone()).collect()
}

fn without_sockets(account: &Account) {
    account.fault(Fault::status(404, "{}")).on_handshakes().forever();
}

fn warm_up() -> Value {
    let mut frame = create("");
    frame["generate"] = json!(false);
    frame["input"] = json!([]);
    frame
}

/// codex-lb I12, as Codex does it: a warm-up, a turn that goes on from it, and all of it when that is not known.
#[tokio::test]
async fn an_upstream_without_sockets_is_asked_over_http() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    without_sockets(&a);
    let mut client = Client::open(&h).await;
    let warm = client.turn(&warm_up()).await;
    assert_eq!(kinds(&warm), ["response.created", "response.completed"]);
    assert!(posts(&h).is_empty(), "nothing there could be warmed up");
    let mut told = Vec::new();
    for text in ["hi", "more"] {
        let lost = client.turn(&chained(text, &id(&warm))).await;
        assert_eq!(said(&lost), "previous_response_not_found");
        let events = client.turn(&create(text)).await;
        assert_eq!(said(&events), "completed");
        assert!(kinds(&events).contains(&"response.output_text.delta"), "{events:?}");
        told.extend([lost, events].concat());
    }
    // Of the answers' heads; a look may fall between the turns.
    while told.iter().all(|event| event["type"] != "codex.rate_limits") {
        told.push(client.next().await.unwrap().unwrap());
    }
    let journal = h.sim.journal();
    let handshakes = journal.iter().filter(|entry| entry.method == "GET").count();
    assert_eq!((handshakes, posts(&h).len()), (1, 2), "one handshake, and HTTP from then on");
    let post = journal.iter().find(|entry| entry.method == "POST").unwrap();
    assert_eq!(post.header("openai-beta"), None);
    assert_eq!(post.header("accept"), Some("text/event-stream"));
    assert!(post.header("upgrade").is_none() && post.header("sec-websocket-key").is_none());
    let body: Value = serde_json::from_slice(&post.body).unwrap();
    assert!(body.get("type").is_none() && body["stream"] == true, "{body}");
    assert_eq!(h.outcomes().await, [("complete".to_owned(), 2), ("refused".to_owned(), 2)]);
    drop(client);
    until("everything is given back", || h.app.sockets.is_empty()).await;
    h.finish().await;
}

/// wire 2.4: what the handshake says of a turn is about the first one that is served.
#[tokio::test]
async fn the_handshakes_turn_is_not_told_of_the_next() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    without_sockets(&a);
    let limits = KeyLimits { concurrency: Some(1), requests_per_minute: None };
    let key = h.limited_key("narrow", limits).await;
    let of_a_turn = ["x-codex-turn-state", "x-codex-turn-metadata", "x-codex-window-id"];
    let told = of_a_turn.map(|name| (name, "{\"turn_id\":\"1\"}"));
    let mut client = connect_to(&h.url, &key, &[&[BETA], &told[..]].concat()).await.unwrap();

    let endless = responses("hi [[events=5000]] [[gap_ms=20]]", true).to_string();
    let url = format!("{}{CODEX}", h.url);
    let by_key = [("x-api-key", key.as_str())];
    let mut running = h.request(Method::POST, &url, &by_key, endless.into()).await;
    assert!(running.body_mut().frame().await.unwrap().unwrap().is_data());
    assert_eq!(said(&client.turn(&create("early")).await), "key_concurrency_exceeded");
    drop(running);
    let narrow = h.app.keys.find(&key, h.clock.now()).unwrap();
    until("its place is given back", || narrow.running() == 0).await;

    for text in ["hi", "more"] {
        assert_eq!(said(&client.turn(&create(text)).await), "completed");
    }
    let journal = h.sim.journal();
    let posts: Vec<_> = journal.iter().filter(|entry| entry.method == "POST").skip(1).collect();
    for name in of_a_turn {
        let told: Vec<_> = posts.iter().map(|entry| entry.header(name).is_some()).collect();
        assert_eq!(told, [true, false], "{name}");
    }
    drop(client);
    until("everything is given back", || h.app.sockets.is_empty()).await;
    h.finish().await;
}

/// codex-lb I12: an upstream that keeps responses does not know the one that we have made in its place.
#[tokio::test]
async fn nobody_is_asked_to_go_on_from_a_warm_up_of_ours() {
    let (h, a) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    without_sockets(&a);
    let mut client = connect(&h, &[]).await.unwrap();
    let mut frame = json!({"type": "response.create", "model": "gpt-5.5", "input": "hi"});
    frame["generate"] = json!(false);
    let warm = client.turn(&frame).await;
    assert_eq!(said(&warm), "completed");
    frame["generate"] = json!(true);
    frame["previous_response_id"] = json!(id(&warm));
    assert_eq!(said(&client.turn(&frame).await), "previous_response_not_found");
    assert!(posts(&h).is_empty(), "it could only refuse");
    drop(client);
    h.finish().await;
}

/// codex-lb I9: where the upstream keeps responses, it can go on from them.
#[tokio::test]
async fn a_stored_response_is_gone_on_from_over_http_and_on_another_socket() {
    for bridged in [true, false] {
        let (h, a) = Harness::start(|s: &mut Setup| s.openai("a")).await;
        if bridged {
            without_sockets(&a);
        }
        let frame = json!({"type": "response.create", "model": "gpt-5.5", "input": "hi"});
        let mut client = connect(&h, &[]).await.unwrap();
        let first = client.turn(&frame).await;
        assert_eq!(said(&first), "completed");
        a.close_sockets(1000);
        until("it is closed", || a.open_sockets() == 0).await;
        let mut next = frame.clone();
        next["previous_response_id"] = json!(id(&first));
        let events = client.turn(&next).await;
        let asked = h.sim.journal();
        let asked = asked.last().unwrap();
        let body: Value = serde_json::from_slice(&asked.body).unwrap();
        assert_eq!(body["previous_response_id"], next["previous_response_id"], "{bridged}");
        assert_eq!((asked.method == "POST", asked.is_turn()), (bridged, !bridged));
        if bridged {
            assert_eq!(said(&events), "completed");
        }
        next["previous_response_id"] = json!("resp_nobody");
        assert_eq!(said(&client.turn(&next).await), "previous_response_not_found");
        drop(client);
        h.finish().await;
    }
}

/// codex-lb 5.5: in the form that Codex knows, over HTTP too.
#[tokio::test]
async fn a_stored_response_that_is_lost_is_told_in_one_form_over_http_too() {
    let (h, a) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    without_sockets(&a);
    let code = "previous_response_not_found";
    let param =
        json!({"error": {"type": "invalid_request_error", "param": "previous_response_id"}});
    let named = json!({"error": {"code": code, "message": "m"}});
    let frame = json!({"type": "response.create", "model": "gpt-5.5", "input": "hi"});
    let mut client = connect(&h, &[]).await.unwrap();
    for (status, form) in [(400, &param), (400, &named), (404, &named), (200, &named)] {
        let first = client.turn(&frame).await;
        let mut next = frame.clone();
        next["previous_response_id"] = json!(id(&first));
        a.fault(Fault::status(status, &form.to_string())).times(1);
        let told = client.turn(&next).await.pop().unwrap();
        let told = (&told["type"], &told["status"], &told["error"]["code"]);
        assert_eq!(told, (&json!("error"), &json!(400), &json!(code)), "{status} {form}");
    }
    drop(client);
    h.finish().await;
}

/// codex-lb I9: on the account that made it, however the other one is ranked.
#[tokio::test]
async fn a_stored_response_is_gone_on_from_where_it_was_made() {
    let (h, (a, b)) = Harness::start(|s: &mut Setup| {
        let both = (s.openai("a"), s.openai("b"));
        s.settings("b").priority = Some(5);
        both
    })
    .await;
    let frame = json!({"type": "response.create", "model": "gpt-5.5", "input": "hi"});
    a.fault(Fault::rate_limited(Duration::from_mins(5))).turns().times(1);
    let mut client = connect(&h, &[]).await.unwrap();
    let first = client.turn(&frame).await;
    assert_eq!((said(&first).as_str(), turns(&h).last().unwrap().as_str()), ("completed", "b"));
    h.clock.advance(Duration::from_mins(6));
    let mut other = connect(&h, &[]).await.unwrap();
    assert_eq!(said(&other.turn(&frame).await), "completed");
    assert_eq!(turns(&h).last().unwrap(), "a", "it is the first again");
    b.close_sockets(1000);
    until("it is closed", || b.open_sockets() == 0).await;
    let mut next = frame.clone();
    next["previous_response_id"] = json!(id(&first));
    for client in [&mut client, &mut other] {
        client.turn(&next).await;
        assert_eq!(turns(&h).last().unwrap(), "b");
    }
    drop((client, other));
    h.finish().await;
}

/// A socket's account runs dry, and the next one has no sockets: the client stays where it is.
#[tokio::test]
async fn a_turn_moves_from_a_socket_to_http() {
    let (h, a, b) = pair().await;
    without_sockets(&b);
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    a.fault(Fault::usage_limit_reached()).turns().forever();
    for _ in 0..2 {
        assert_eq!(said(&client.turn(&create("hi, and more")).await), "completed");
    }
    assert_eq!((turns(&h), posts(&h)), (vec!["a".to_owned(); 2], vec!["b".to_owned(); 2]));
    drop(client);
    h.finish().await;
}

/// Before output it is another account's turn, behind output the client is told.
#[tokio::test]
async fn a_bridged_turn_fails_over_and_breaks_like_any_other() {
    for (fault, want) in [
        (Fault::cut_before_output(), "completed"),
        (Fault::usage_limit_reached(), "completed"),
        (Fault::cut_after_output(2), "upstream_broke"),
    ] {
        let (h, a, b) = pair().await;
        for account in [&a, &b] {
            without_sockets(account);
        }
        let mut client = Client::open(&h).await;
        let name = format!("{fault:?}");
        a.fault(fault).times(1);
        assert_eq!(said(&client.turn(&create("hi [[events=9]]")).await), want, "{name}");
        assert_eq!(said(&client.turn(&create("again")).await), "completed", "{name}");
        drop(client);
        h.finish().await;
    }
}

/// codex-lb I5: the client is told of an upstream that says nothing more, and its socket stays.
#[tokio::test]
async fn codex_lb_i5_a_stalled_turn_is_told_and_the_socket_is_usable() {
    for (phase, goes_on) in [
        (Phase::Body, false),
        (Phase::Output(2), false),
        (Phase::Body, true),
        (Phase::Output(2), true),
    ] {
        let mut setup = Setup::new().await;
        let a = setup.codex("a");
        setup.raw.limits.stream_idle_timeout_s = Some(1);
        let h = setup.start().await;
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        let mut frame = create("hi [[events=9]]");
        if goes_on {
            frame["previous_response_id"] = json!(id(&client.turn(&create("first")).await));
        }
        a.fault(Fault::stall(phase)).turns().times(1);
        let events = client.turn(&frame).await;
        assert_eq!(events.last().unwrap()["type"], "response.failed", "{phase:?}, {goes_on}");
        let charged = h.rows("SELECT outcome FROM attempts").await.concat();
        assert_eq!(charged, ["upstream_broke"], "{phase:?}, {goes_on}");
        until("the stalled socket is closed", || a.open_sockets() == 0).await;
        assert_eq!(said(&client.turn(&create("again")).await), "completed", "{phase:?}");
        drop(client);
        h.finish().await;
    }
}

/// codex-lb 1.7: what a client says of the turn under way is its upstream's to understand, byte for byte.
#[tokio::test]
async fn a_turn_may_be_interrupted() {
    let (h, _, _) = pair().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    client.send(&create("hi [[events=60]][[gap_ms=200]]")).await;
    let id = loop {
        let event = client.next().await.unwrap().unwrap();
        if event["type"] == "response.created" {
            break event["response"]["id"].clone();
        }
    };
    let interrupt = json!({"type": "response.interrupt", "response_id": id, "later": [1, 2]});
    client.send(&interrupt).await;
    let end = client.rest_of_turn().await;
    assert_eq!(end.last().unwrap()["response"]["incomplete_details"]["reason"], "interrupted");
    let journal = h.sim.journal();
    let heard = journal.last().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&heard.body).unwrap(), interrupt);
    assert_eq!(said(&client.turn(&create("again")).await), "completed", "the socket stays");
    drop(client);
    h.finish().await;
}

/// Codex takes turn state from the answer's head or an event, and says it in its messages.
#[tokio::test]
async fn turn_state_leads_back_to_its_account_and_to_no_other() {
    let (h, a, b) = pair().await;
    let mut client = Client::open(&h).await;
    let state = client.head["x-codex-turn-state"].to_str().unwrap().to_owned();
    client.next().await.unwrap().unwrap();
    let mut frame = create("hi");
    frame["client_metadata"] = json!({"turn_id": "t", "x-codex-turn-state": state});
    assert_eq!(said(&client.turn(&frame).await), "completed");
    a.fault(Fault::usage_limit_reached()).turns().times(1);
    assert_eq!(said(&client.turn(&frame).await), "completed");
    let journal = h.sim.journal();
    let metadata = |name: &str| {
        let turn = journal.iter().rfind(|e| e.is_turn() && e.account.as_deref() == Some(name));
        let body: Value = serde_json::from_slice(&turn.unwrap().body).unwrap();
        body["client_metadata"].clone()
    };
    assert_eq!(metadata("a"), json!({"turn_id": "t", "x-codex-turn-state": state}));
    assert_eq!(metadata("b"), json!({"turn_id": "t"}), "not its own");
    drop(client);
    // codex-lb I2: another socket of the same turn goes where the state was issued.
    let mut other = connect(&h, &[BETA]).await.unwrap();
    other.next().await.unwrap().unwrap();
    let mut theirs = create("go on");
    let state = other.head["x-codex-turn-state"].to_str().unwrap();
    until("a is spent, and only this one is open", || b.open_sockets() == 1).await;
    theirs["client_metadata"] = json!({"x-codex-turn-state": state});
    assert_eq!(said(&other.turn(&theirs).await), "completed");
    assert_eq!(turns(&h).last().unwrap(), "b");
    drop(other);
    h.finish().await;
}

/// wire 2.4: a handshake's headers are those of the first turn.
#[tokio::test]
async fn the_turn_state_of_a_handshake_is_the_first_turns() {
    let (h, a, _) = pair().await;
    let first = Client::open(&h).await;
    let state = first.head["x-codex-turn-state"].to_str().unwrap();
    let mut client = connect(&h, &[BETA, ("x-codex-turn-state", state)]).await.unwrap();
    client.next().await.unwrap().unwrap();
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    a.fault(Fault::rate_limited(Duration::from_mins(5))).turns().times(1);
    assert_eq!(said(&client.turn(&create("hi, and more")).await), "completed");
    h.clock.advance(Duration::from_mins(6));
    assert_eq!(said(&client.turn(&create("hi, and still more")).await), "completed");
    assert_eq!(turns(&h), ["a", "a", "b", "b"], "it is at home there now");
    drop((first, client));
    h.finish().await;
}

/// codex-lb I2: no turn state is made up where the upstream gives none; the session leads back all the same.
#[tokio::test]
async fn without_turn_state_the_session_leads_back_to_its_account() {
    for bridged in [false, true] {
        let (h, accounts) = Harness::start(|s: &mut Setup| {
            s.pool("default", &[], "round-robin");
            ["a", "b", "c"].map(|name| s.openai(name))
        })
        .await;
        if bridged {
            accounts.iter().for_each(without_sockets);
        }
        for session in ["s-1", "s-1", "s-2", "s-1"] {
            let mut client = connect(&h, &[BETA, ("session-id", session)]).await.unwrap();
            assert!(!client.head.contains_key("x-codex-turn-state"));
            assert_eq!(said(&client.turn(&create("hi")).await), "completed");
        }
        let asked = if bridged { posts(&h) } else { turns(&h) };
        let first = &asked[0];
        assert!([&asked[1], &asked[3]] == [first; 2] && asked[2] != *first, "{bridged}: {asked:?}");
        h.finish().await;
    }
}

/// spec §7: what an upstream says for having no sockets is on record, scrubbed and bounded.
#[tokio::test]
async fn what_is_said_instead_of_a_socket_is_logged() {
    canary::listen();
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let marker = "no sockets are sold here";
    let body = format!("{marker} to {}, {}", a.account_id(), "y".repeat(1 << 16));
    a.fault(Fault::status(426, &body)).on_handshakes().forever();
    let mut client = Client::open(&h).await;
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    let log = canary::logged();
    let line = log.lines().find(|line| line.contains(marker)).expect("it is logged");
    assert!(line.contains("[removed]") && line.len() < 8 << 10, "{line}");
    drop(client);
    h.finish().await;
}

/// spec §9: a turn is admitted like a request, however long its socket has been open.
#[tokio::test]
async fn short_of_memory_turns_are_refused_on_open_sockets() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let mut client = Client::open(&h).await;
    for (percent, want) in [(85, "completed"), (95, "proxy_unavailable"), (70, "completed")] {
        h.app.memory.judge(percent, 100);
        let events = client.turn(&create("hi")).await;
        assert_eq!(said(&events), want, "at {percent}");
        let last = events.last().unwrap();
        if last["type"] == "error" {
            let told = (&last["status"], &last["headers"]["retry-after"]);
            assert_eq!(told, (&json!(503), &json!("5")));
        }
    }
    drop(client);
    h.finish().await;
}

/// codex-lb I2: Codex gives a handshake 15 s and speaks HTTP from then on; a turn may wait for a minute.
#[tokio::test]
async fn a_handshake_does_not_wait_for_longer_than_its_client() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    a.fault(Fault::rate_limited(Duration::from_secs(40))).turns().times(1);
    client.send(&create("hi")).await;
    until("the account is limited", || {
        h.app.pool.view(h.clock.now()).accounts[0].state.starts_with("limited")
    })
    .await;
    let asked = Instant::now();
    let (status, body) = connect(&h, &[BETA]).await.err().unwrap();
    assert_eq!((status, &body["error"]["code"]), (503, &json!("accounts_unavailable")));
    assert!(asked.elapsed() < Duration::from_secs(5), "at once: it is known");
    drop(client);
    until("who waits has left", || h.app.sockets.is_empty()).await;
    h.finish().await;
}
