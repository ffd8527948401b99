//! The account's end of a client's socket: when it is kept, left, and opened again.

use std::time::Duration;

use futures_util::StreamExt;
use poolgate::clock::Clock;
use poolgate_sim::{Account, Fault, Phase};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::admission::endless;
use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::{CODEX, responses};
use crate::socket_client::{
    BETA, Client, chained, connect, create, id, said, sockets, turns, until,
};
use crate::socket_upstream::{accept, event, gateway, heard, tell};

const WEEK: Duration = Duration::from_hours(168);

/// The strategy would choose again whom the handshake has just been left with.
#[tokio::test]
async fn spec_7_the_first_turn_stays_with_the_leg_that_was_opened_for_it() {
    let mut setup = Setup::new().await;
    setup.in_order();
    let a = setup.codex("a");
    setup.codex("b");
    let h = setup.start().await;
    a.fault(Fault::server_error(503)).on_handshakes().forever();
    let mut client = Client::open(&h).await;
    let before = sockets(&h);
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    assert_eq!((sockets(&h), turns(&h)), (before, vec!["b".to_owned()]));
    drop(client);
    h.finish().await;
}

/// Of two the first has refused the handshake, so that the other has the leg.
async fn left_on_the_handshake() -> (Harness, Client, Account) {
    let mut setup = Setup::new().await;
    setup.in_order();
    let (a, b) = (setup.codex("a"), setup.codex("b"));
    setup.settings("a").max_concurrency = Some(1);
    let h = setup.start().await;
    a.fault(Fault::server_error(503)).on_handshakes().times(2);
    let client = Client::open(&h).await;
    (h, client, b)
}

/// Who failed the handshake has not failed the turn.
#[tokio::test]
async fn who_refused_the_handshake_is_asked_when_the_other_fails_the_turn() {
    let (h, mut client, b) = left_on_the_handshake().await;
    b.fault(Fault::error_frame(Phase::Head, 429, "rate_limit_exceeded")).turns().times(1);
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    assert_eq!(turns(&h), ["b", "a"]);
    drop(client);
    h.finish().await;
}

#[tokio::test]
async fn nobody_waits_for_the_leg_of_an_account_that_rests() {
    let (h, mut client, b) = left_on_the_handshake().await;
    let busy = endless(&h).await;
    b.fault(Fault::rate_limited(Duration::from_secs(50))).times(1);
    let other = responses("hi", true);
    let is_resting = || h.app.pool.view(h.clock.now()).accounts[1].state != "ready";
    tokio::select! {
        _ = h.post(CODEX, &other) => panic!("it waits for the first"),
        () = until("the other rests", is_resting) => {}
    }
    drop(busy);
    until("the first is free", || h.app.pool.in_flight() == 0).await;
    let served = tokio::time::timeout(Duration::from_secs(8), client.turn(&create("hi"))).await;
    assert_eq!(said(&served.expect("at once")), "completed");
    drop(client);
    h.finish().await;
}

/// spec §7: whoever alone can serve a turn, or is its home, counts for more than the leg; where nobody is,
/// this strategy takes the first.
#[tokio::test]
async fn only_a_first_turn_that_belongs_elsewhere_leaves_the_leg() {
    for (field, value, want) in [
        ("previous_response_id", None, "a"),
        ("client_metadata", Some(json!({"x-codex-turn-state": "of another socket"})), "a"),
        ("prompt_cache_key", Some(json!("another session")), "a"),
        ("prompt_cache_key", Some(json!("a new session")), "b"),
    ] {
        let (h, (a, _)) = Harness::start(|s: &mut Setup| {
            s.in_order();
            (s.openai("a"), s.openai("b"))
        })
        .await;
        let mut stored = responses("hi", false);
        stored["store"] = json!(true);
        stored["prompt_cache_key"] = json!("another session");
        let stored = h.post("/v1/responses", &stored).await.json()["id"].clone();
        a.fault(Fault::server_error(503)).on_handshakes().times(2);
        let mut client = connect(&h, &[]).await.unwrap();
        let mut frame = create("hi");
        frame[field] = value.unwrap_or(stored);
        client.turn(&frame).await;
        assert_eq!(turns(&h), [want], "{field}");
        drop(client);
        h.finish().await;
    }
}

/// A home that cannot serve would only lead back to who refused.
#[tokio::test]
async fn a_session_whose_home_is_paused_stays_with_the_leg() {
    let (h, (a, ..)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.openai("a"), s.openai("b"), s.openai("c"))
    })
    .await;
    let mut one = responses("hi", false);
    one["prompt_cache_key"] = json!("another session");
    h.rows("UPDATE accounts SET paused = name <> 'c'").await;
    h.app.reload().await.unwrap();
    assert_eq!(h.post("/v1/responses", &one).await.status, 200);
    h.rows("UPDATE accounts SET paused = name = 'c'").await;
    h.app.reload().await.unwrap();
    a.fault(Fault::server_error(503)).on_handshakes().times(2);
    let mut client = connect(&h, &[]).await.unwrap();
    let mut frame = create("hi");
    frame["prompt_cache_key"] = one["prompt_cache_key"].clone();
    client.turn(&frame).await;
    assert_eq!(turns(&h), ["b"]);
    drop(client);
    h.finish().await;
}

#[tokio::test]
async fn spec_10_a_refused_handshake_has_a_row_and_an_opened_one_has_none() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    drop(Client::open(&h).await);
    assert!(h.rows("SELECT * FROM requests").await.is_empty());
    a.fault(Fault::server_error(503)).on_handshakes().forever();
    assert!(connect(&h, &[BETA]).await.is_err());
    let rows = h.rows("SELECT status, outcome, code FROM requests").await;
    assert_eq!(rows, [["502", "refused", "upstream_error"]]);
    h.finish().await;
}

/// spec §4: what keeps an account from ordinary work keeps it from no gated model.
#[tokio::test]
async fn a_gated_models_leg_stays_where_the_ordinary_quota_is_capped() {
    let mut setup = Setup::new().await;
    let a = setup.sim.codex("a");
    a.plan("pro").renew();
    setup.add_codex(&a);
    setup.settings("a").limit_weekly = Some(50);
    a.window(WEEK, 1e9, 4e8, Duration::from_hours(100));
    let h = setup.start().await;
    let mut client = Client::open(&h).await;
    let gated = |mut frame: Value| {
        frame["model"] = json!("gpt-5.3-codex-spark");
        frame
    };
    let first = client.turn(&gated(create("hi"))).await;
    a.set_used(WEEK, 0.6);
    let second = client.turn(&gated(chained("more", &id(&first)))).await;
    assert_eq!(said(&second), "completed");
    a.window(WEEK, 1e9, 6e8, Duration::from_hours(110));
    assert_eq!(h.post(CODEX, &gated(responses("hi", true))).await.status, 200);
    let told = client.next().await.unwrap().unwrap();
    assert_eq!(told["type"], "codex.rate_limits", "it has been looked after since");
    let third = client.turn(&gated(chained("more", &id(&second)))).await;
    assert_eq!(said(&third), "completed");
    assert_eq!(sockets(&h), 1);
    drop(client);
    h.finish().await;
}

/// The same before the first turn: Codex names its model in the handshake.
#[tokio::test]
async fn a_handshake_for_a_gated_model_needs_no_ordinary_quota() {
    let mut setup = Setup::new().await;
    let a = setup.sim.codex("a");
    a.plan("pro").renew();
    setup.add_codex(&a);
    setup.settings("a").limit_weekly = Some(50);
    a.window(WEEK, 1e9, 6e8, Duration::from_hours(100));
    let h = setup.start().await;
    let mut frame = create("hi");
    frame["model"] = json!("gpt-5.3-codex-spark");
    let mut body = frame.clone();
    body.as_object_mut().unwrap().remove("type");
    assert_eq!(h.post(CODEX, &body).await.status, 200, "its windows are known now");
    let (status, _) = connect(&h, &[BETA]).await.err().unwrap();
    assert_eq!(status, 429);
    for named in [
        ("x-codex-routing-hint", "model=gpt-5.3-codex-spark"),
        ("x-codex-turn-metadata", r#"{"turn_id":"t","model":"gpt-5.3-codex-spark"}"#),
    ] {
        let mut client = connect(&h, &[BETA, named]).await.unwrap();
        client.next().await.unwrap().unwrap();
        assert_eq!(said(&client.turn(&frame).await), "completed", "{named:?}");
        let refused = client.turn(&create("an ordinary one")).await;
        assert_eq!(said(&refused), "usage_limit_reached", "{named:?}");
    }
    h.finish().await;
}

/// codex-lb 5.7: an upstream that closes as a turn comes has not taken it.
#[tokio::test]
async fn a_leg_that_closes_as_a_turn_comes_is_opened_again() {
    for fault in [Fault::close_frame(Phase::Head, 1012), Fault::connection_limit()] {
        let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        let first = client.turn(&create("hi")).await;
        let name = format!("{fault:?}");
        a.fault(fault.clone()).turns().times(1);
        assert_eq!(said(&client.turn(&create("hi, and more")).await), "completed", "{name}");
        assert_eq!(sockets(&h), 2, "{name}");
        a.fault(fault).turns().times(1);
        let lost = client.turn(&chained("more", &id(&first))).await;
        assert_eq!(said(&lost), "previous_response_not_found", "{name}");
        let rows = h.rows("SELECT outcome FROM attempts WHERE outcome <> 'request_fault'").await;
        assert!(rows.is_empty(), "{name}: {rows:?}");
        drop(client);
        h.finish().await;
    }
}

/// spec §7, multiplexer 9.7.
/// codex-lb I6; spec §7: nobody else could go on from the turn before.
#[tokio::test]
async fn a_turn_that_goes_on_and_loses_its_leg_is_asked_for_in_full() {
    for fault in [Fault::cut_before_output(), Fault::error_frame(Phase::Body, 500, "server_error")]
    {
        let name = format!("{fault:?}");
        let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
        let mut client = Client::open(&h).await;
        client.next().await.unwrap().unwrap();
        let first = client.turn(&create("hi")).await;
        a.fault(fault).turns().times(2);
        let lost = client.turn(&chained("more", &id(&first))).await;
        assert_eq!(said(&lost), "previous_response_not_found", "{name}");
        drop(client);
        h.finish().await;
    }
}

/// spec §6, §7: a leg speaks with the token that has opened it, whatever has been renewed since.
#[tokio::test]
async fn a_turn_that_renews_the_token_leaves_the_leg_of_the_old_one() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let refused = || {
        a.fault(Fault::error_frame(Phase::Body, 401, "token_expired")).turns().times(1);
    };
    let renewals = || h.sim.journal().iter().filter(|e| e.path.ends_with("/token")).count();
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    refused();
    let first = client.turn(&create("hi")).await;
    assert_eq!((said(&first).as_str(), sockets(&h), renewals()), ("completed", 2, 1));
    let journal = h.sim.journal();
    let opened = journal.iter().rfind(|e| e.is_socket()).unwrap();
    let bearer = format!("Bearer {}", a.credential());
    assert_eq!(opened.header("authorization"), Some(bearer.as_str()));

    refused();
    let lost = client.turn(&chained("more", &id(&first))).await;
    assert_eq!((said(&lost).as_str(), renewals()), ("previous_response_not_found", 2));
    assert_eq!(h.app.pool.view(h.clock.now()).accounts[0].state, "ready");
    assert_eq!(said(&client.turn(&create("all of it")).await), "completed");
    assert_eq!(sockets(&h), 3);
    drop(client);
    h.finish().await;
}

/// spec §9: a place is given back before another is taken.
#[tokio::test]
async fn a_leg_that_is_opened_again_needs_one_place() {
    let (h, a) = Harness::start(|s: &mut Setup| {
        s.raw.limits.response_create = Some(1);
        s.codex("a")
    })
    .await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    client.turn(&create("hi")).await;
    a.fault(Fault::close_frame(Phase::Head, 1012)).turns().times(1);
    assert_eq!(said(&client.turn(&create("more")).await), "completed");
    drop(client);
    h.finish().await;
}

/// spec §7: what answers a handshake with anything but 101 has opened no socket.
#[tokio::test]
async fn a_handshake_answered_with_200_is_refused() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    a.fault(Fault::status(200, "{}")).on_handshakes().forever();
    let (status, _) = connect(&h, &[BETA]).await.err().unwrap();
    assert_eq!(status, 502);
    h.finish().await;
}

#[tokio::test]
async fn a_rebalance_takes_idle_legs_along() {
    let (h, (a, b)) = Harness::start(|s: &mut Setup| {
        s.pool("default", &[], "least-used");
        s.raw.pool[0].rebalance_threshold = Some(20.0);
        (s.codex("a"), s.codex("b"))
    })
    .await;
    let turn = async |session: &str| {
        let got = h.post_with(CODEX, &[("session-id", session)], &responses("hi", true)).await;
        assert_eq!(got.status, 200, "{}", got.text());
        h.asked().pop().unwrap()
    };
    assert_eq!(turn("s-1").await, "a");
    let mut client = connect(&h, &[BETA, ("session-id", "s-1")]).await.unwrap();
    client.next().await.unwrap().unwrap();
    let first = client.turn(&create("hi")).await;
    assert_eq!(a.open_sockets(), 1);
    turn("s-2").await;
    b.set_used(WEEK, 0.05);
    turn("s-2").await;
    a.set_used(WEEK, 0.40);
    turn("s-1").await;
    assert_eq!(turn("s-1").await, "b", "it has moved");
    until("the idle leg is closed", || a.open_sockets() == 0).await;
    let lost = client.turn(&chained("more", &id(&first))).await;
    assert_eq!(said(&lost), "previous_response_not_found");
    assert_eq!(said(&client.turn(&create("all of it")).await), "completed");
    assert_eq!(turns(&h).last().unwrap(), "b");
    drop(client);
    h.finish().await;
}

/// The turn behind the change goes to the other person, over a socket of theirs.
async fn leaves_the_leg_when(change: impl AsyncFnOnce(&Harness, &str)) {
    let mut setup = Setup::new().await;
    let a = setup.codex("a");
    let other = setup.sim.codex("other");
    let h = setup.start().await;
    let mut client = Client::open(&h).await;
    client.next().await.unwrap().unwrap();
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    change(&h, &other.auth_json()).await;
    until("its socket is closed", || a.open_sockets() == 0).await;
    assert_eq!(said(&client.turn(&create("all of it")).await), "completed");
    assert_eq!(turns(&h).last().unwrap(), "other");
    drop(client);
    h.finish().await;
}

/// A sign-in that becomes somebody else's takes over no socket of the one before.
#[tokio::test]
async fn a_leg_of_another_persons_sign_in_is_left() {
    leaves_the_leg_when(async |h, theirs| {
        std::fs::write(h.dir.path().join("a.json"), theirs).unwrap();
    })
    .await;
}

/// The same for an account that is another one by the configuration.
#[tokio::test]
async fn a_leg_of_an_account_that_was_put_elsewhere_is_left() {
    leaves_the_leg_when(async |h, theirs| {
        let file = h.dir.path().join("another.json");
        std::fs::write(&file, theirs).unwrap();
        let mut config = h.app.config.clone();
        let mut settings = config.accounts.remove(0).raw;
        settings.auth_file = Some(file);
        config.accounts = vec![settings.resolve().unwrap()];
        h.app.reconfigure(&config).await.unwrap();
    })
    .await;
}

/// multiplexer 9.5: an upstream that waits for the next turn with its close, or never comes to it.
#[tokio::test]
async fn a_leg_that_takes_no_more_turns_is_left_between_two() {
    let (h, listener) = gateway("codex").await;
    let (mut client, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    let whole = ["response.created", "response.completed"].map(|kind| event(kind, "resp_1"));
    tell(&mut upstream, &whole).await;
    let first = client.rest_of_turn().await;
    let limit = json!({"type": "error", "status": 400, "error":
        {"type": "invalid_request_error", "code": "websocket_connection_limit_reached"}});
    tell(&mut upstream, &[limit]).await;
    let ended = tokio::time::timeout(PATIENCE, upstream.next()).await.expect("it is left");
    assert!(!matches!(ended, Some(Ok(Message::Text(_)))), "{ended:?}");

    let lost = client.turn(&chained("more", &id(&first))).await;
    assert_eq!(said(&lost), "previous_response_not_found");
    let in_full = create("all of it");
    let (all, mut upstream) = tokio::join!(client.turn(&in_full), async {
        let mut upstream = accept(&listener).await;
        heard(&mut upstream).await;
        tell(&mut upstream, &whole).await;
        upstream
    });
    assert_eq!(said(&all), "completed", "the client's socket has stayed");

    // The windows count that an error between turns tells, and nothing else of it.
    let spent = json!({"type": "error", "status": 429, "error": {"type": "usage_limit_reached"},
        "headers": {"x-codex-primary-used-percent": 100, "x-codex-primary-window-minutes": "300",
            "x-codex-primary-reset-after-seconds": "600"}});
    tell(&mut upstream, &[spent]).await;
    let told = client.next().await.unwrap().unwrap();
    assert_eq!(told["rate_limits"]["primary"]["used_percent"], 100.0, "{told}");
    let ended = tokio::time::timeout(PATIENCE, upstream.next()).await.expect("nothing is left");
    assert!(!matches!(ended, Some(Ok(Message::Text(_)))), "{ended:?}");
    let account = &h.app.pool.view(h.clock.now()).accounts[0];
    assert_eq!(account.state, "limited");
    drop(client);
    h.finish().await;
}

/// codex-lb 5.5: whichever way it is said; Codex sends all of it behind one of them (wire 2.4).
#[tokio::test]
async fn a_response_that_the_upstream_has_lost_is_told_in_one_form() {
    let code = "previous_response_not_found";
    let param = json!({"type": "invalid_request_error", "param": "previous_response_id"});
    let failed = json!({"id": "resp_2", "status": "failed", "error": {"code": code}});
    let forms = [
        json!({"type": "error", "status": 400, "error": {"code": code}}),
        json!({"type": "error", "error": {"code": code, "message": "m"}}),
        json!({"type": "error", "code": code, "message": "m", "sequence_number": 0}),
        json!({"type": "error", "status": 400, "error": param}),
        json!({"type": "response.failed", "response": failed}),
    ];
    let (h, listener) = gateway("codex").await;
    let (mut client, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    let whole = ["response.created", "response.completed"].map(|kind| event(kind, "resp_1"));
    for form in &forms {
        client.send(&create("hi")).await;
        heard(&mut upstream).await;
        tell(&mut upstream, &whole).await;
        let first = client.rest_of_turn().await;
        client.send(&chained("more", &id(&first))).await;
        heard(&mut upstream).await;
        tell(&mut upstream, std::slice::from_ref(form)).await;
        let told = client.rest_of_turn().await.pop().unwrap();
        let told = (&told["type"], &told["status"], &told["error"]["code"]);
        assert_eq!(told, (&json!("error"), &json!(400), &json!(code)), "{form}");
    }
    let attempts = h.rows("SELECT DISTINCT outcome FROM attempts WHERE status != 200").await;
    assert_eq!(attempts, [["request_fault"]], "nobody's failure");
    drop((client, upstream));
    h.finish().await;
}

/// codex-lb 5.7: an error that is not certain to be about a turn is not taken for its answer.
#[tokio::test]
async fn a_failure_that_is_told_twice_is_one() {
    let (h, listener) = gateway("codex").await;
    let (mut client, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    let error = json!({"code": "server_error", "message": "m"});
    let failed = json!({"type": "response.failed",
        "response": {"id": "resp_1", "status": "failed", "error": error}});
    let again = json!({"type": "error", "status": 500, "error": error});
    tell(&mut upstream, &[event("response.created", "resp_1"), failed, again]).await;
    // Asked once more there, it is asked on a leg on which nothing is left of the failure.
    heard(&mut upstream).await;
    let mut upstream = accept(&listener).await;
    heard(&mut upstream).await;
    let second = ["response.created", "response.completed"].map(|kind| event(kind, "resp_2"));
    tell(&mut upstream, &second).await;
    let events = client.rest_of_turn().await;
    assert_eq!((said(&events).as_str(), id(&events).as_str()), ("completed", "resp_2"));
    let failures = h.rows("SELECT COUNT(*) FROM attempts WHERE outcome = 'upstream_error'").await;
    assert_eq!(failures, [["1"]]);
    drop((client, upstream));
    h.finish().await;
}

/// The same when it is told between two turns: the next one's error is its own.
#[tokio::test]
async fn a_failure_that_is_told_again_between_two_turns_is_forgotten() {
    let (h, listener) = gateway("codex").await;
    let (mut client, mut upstream) = tokio::join!(Client::open(&h), accept(&listener));
    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    let delta = json!({"type": "response.output_text.delta", "delta": "a"});
    let error = json!({"code": "server_error", "message": "m"});
    let failed = json!({"type": "response.failed",
        "response": {"id": "resp_1", "status": "failed", "error": error}});
    tell(&mut upstream, &[event("response.created", "resp_1"), delta, failed]).await;
    assert_eq!(said(&client.rest_of_turn().await), "upstream_broke");
    let again = json!({"type": "error", "status": 500, "error": error});
    let windows = json!({"primary": {"used_percent": 40.0, "window_minutes": 300}});
    let limits = json!({"type": "codex.rate_limits", "rate_limits": windows});
    tell(&mut upstream, &[again, limits]).await;
    let told = client.next().await.unwrap().unwrap();
    assert_eq!(told["type"], "codex.rate_limits", "the error before it has been heard");

    client.send(&create("hi")).await;
    heard(&mut upstream).await;
    let invalid =
        json!({"type": "invalid_request_error", "code": "invalid_prompt", "message": "m"});
    tell(&mut upstream, &[json!({"type": "error", "status": 400, "error": invalid})]).await;
    assert_eq!(said(&client.rest_of_turn().await), "invalid_prompt", "on the same leg");
    drop((client, upstream));
    h.finish().await;
}
