//! Stages: one step of many requests has only so much room, and a full one is nobody's fault.

use futures_util::future::join_all;
use http::{Method, Response};
use hyper::body::Incoming;
use poolgate::admission::Bound;
use poolgate::clock::Clock;
use poolgate::config::RawLimits;
use poolgate_sim::{Fault, Phase};
use serde_json::{Value, json};

use crate::admission::{assert_refused, bounded, endless, fill, in_use};
use crate::canary;
use crate::harness::{Harness, PATIENCE, Setup};
use crate::requests::{CODEX, responses};
use crate::socket_client::{Client, chained, create, id, said, until};

/// No account has been charged anything.
fn assert_well(h: &Harness) {
    for account in h.app.pool.view(h.clock.now()).accounts {
        assert_eq!((account.state.as_str(), account.failovers), ("ready", 0), "{}", account.name);
    }
}

/// A request that is under way, until dropped; resolves with its head.
async fn ask(h: &Harness, text: &str) -> Response<Incoming> {
    let bearer = format!("Bearer {}", h.key);
    let (url, body) = (format!("{}{CODEX}", h.url), responses(text, true).to_string());
    h.request(Method::POST, &url, &[("authorization", bearer.as_str())], body.into()).await
}

/// Asks, and leaves as soon as the upstream has been asked.
async fn ask_and_leave(h: &Harness) {
    let before = h.asked().len();
    let asked = h
        .sim
        .wait_for(|all| all.iter().filter(|e| e.method == Method::POST).count() > before, PATIENCE);
    tokio::select! {
        _ = ask(h, "hi") => panic!("nobody answers"),
        asked = asked => assert!(asked),
    }
}

fn creating(one: usize) -> RawLimits {
    RawLimits { response_create: Some(one), ..RawLimits::default() }
}

/// codex-lb H10, H11: a start that takes long holds its place; a response that has been created does
/// not, even before it says anything.
#[tokio::test]
async fn codex_lb_h10_a_full_stage_refuses_and_h11_is_free_again_at_created() {
    let mut setup = Setup::new().await;
    setup.in_order();
    let a = setup.codex("a");
    setup.codex("b");
    setup.raw.limits = RawLimits { drain_timeout_s: Some(5), ..creating(1) };
    let h = setup.start().await;
    a.fault(Fault::stall(Phase::Head)).times(1);
    {
        let mut slow = std::pin::pin!(ask(&h, "slow"));
        let asked = h.sim.wait_for(|all| !all.is_empty(), PATIENCE);
        tokio::select! {
            _ = &mut slow => panic!("nobody answers"),
            asked = asked => assert!(asked),
        }
        let got = h.post_with(CODEX, &[("session-id", "other")], &responses("hi", true)).await;
        assert_refused(&got, "during response_create");
        assert_eq!(h.asked(), ["a"], "neither the same account nor another is asked");
        assert_eq!(h.app.pool.in_flight(), 1, "what it had reserved is given back");
    }
    assert_well(&h);
    until("the place is free", || in_use(&h, Bound::ResponseCreate) == 0).await;
    let rows = "SELECT code, status FROM requests WHERE outcome = 'refused'";
    assert_eq!(h.rows(rows).await, [["proxy_overloaded", "429"]]);
    assert!(h.rows("SELECT * FROM attempts").await.is_empty(), "nothing was attempted");

    a.fault(Fault::stall(Phase::Body)).times(1);
    let silent = async {
        tokio::select! {
            _ = ask(&h, "silent") => panic!("it is held back for two seconds"),
            () = async {
                let created = || h.asked().len() == 2 && in_use(&h, Bound::ResponseCreate) == 0;
                until("created", created).await;
                assert_eq!(h.app.pool.in_flight(), 1, "it still runs");
                assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
            } => {}
        }
    };
    silent.await;
    let running = endless(&h).await;
    assert_eq!(h.post(CODEX, &responses("hi", false)).await.status, 200);
    drop(running);
    h.finish().await;
}

/// spec §9: what never says that it has been created cannot hold a place until it does.
#[tokio::test]
async fn spec_9_an_answer_in_one_piece_holds_no_place_while_it_is_generated() {
    let mut setup = Setup::new().await;
    let a = setup.openai("a");
    setup.codex("b");
    setup.settings("a").max_concurrency = Some(1);
    setup.settings("b").priority = Some(2); // behind the key's 1
    setup.raw.limits = RawLimits { drain_timeout_s: Some(5), ..creating(1) };
    let h = setup.start().await;
    a.fault(Fault::stall(Phase::Head)).times(1);
    let whole = responses("slow", false);
    {
        let mut slow = std::pin::pin!(h.post("/v1/responses", &whole));
        let asked = h.sim.wait_for(|all| !all.is_empty(), PATIENCE);
        tokio::select! {
            _ = &mut slow => panic!("nobody answers"),
            asked = asked => assert!(asked),
        }
        assert_eq!(h.asked(), ["a"]);
        assert_eq!(in_use(&h, Bound::ResponseCreate), 0);
        let got = h.post_with(CODEX, &[("session-id", "other")], &responses("hi", true)).await;
        assert_eq!(got.status, 200, "{}", got.text());
        assert_eq!(h.asked(), ["a", "b"]);
    }
    h.finish().await;
}

/// codex-lb H12: however a start ends, a hundred times, its place comes back, once.
#[tokio::test]
async fn codex_lb_h12_a_hundred_starts_that_fail_leave_the_stage_as_it_was() {
    let limits = RawLimits { stream_head_timeout_s: Some(1), ..creating(2) };
    let (h, a) = bounded(limits).await;
    for round in 0..25 {
        a.fault(Fault::status(400, r#"{"error":{"message":"no"}}"#)).times(1);
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 400);
        a.fault(Fault::cut_before_output()).times(1);
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 502);
        a.fault(Fault::stall(Phase::Head)).times(1);
        if round == 0 {
            assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 504, "timed out");
        } else {
            ask_and_leave(&h).await;
        }
        let done = h.post(CODEX, &responses("hi", round % 2 == 0)).await;
        assert_eq!(done.status, 200, "{}", done.text());
        until("nothing is held", || in_use(&h, Bound::ResponseCreate) == 0).await;
    }
    let all = fill(&h, Bound::ResponseCreate);
    assert_eq!(all.len(), 2, "neither leaked nor given back twice");
    assert_refused(&h.post(CODEX, &responses("hi", true)).await, "during response_create");
    drop(all);
    h.finish().await;
}

async fn opened(h: &Harness) -> Client {
    let mut client = Client::open(h).await;
    client.next().await.unwrap().unwrap();
    client
}

fn assert_shed(events: &[Value], by: &str) {
    let last = events.last().unwrap();
    assert_eq!(
        (&last["status"], &last["error"]["code"]),
        (&json!(429), &json!("proxy_overloaded"))
    );
    assert_eq!(last["headers"]["retry-after"], "5");
    assert!(last["error"]["message"].as_str().unwrap().contains(by), "{last}");
}

/// codex-lb H13: on an open socket a full stage is an event, and the socket stays; one that is being
/// opened is refused before its upgrade.
#[tokio::test]
async fn codex_lb_h13_a_full_stage_on_a_socket_is_an_event_and_the_socket_stays() {
    canary::listen();
    let limits = RawLimits { upstream_websocket_connect: Some(1), ..creating(1) };
    let (h, a) = bounded(limits).await;
    let mut client = opened(&h).await;
    a.close_sockets(1000);
    until("its leg is gone", || a.open_sockets() == 0).await;
    let connecting = fill(&h, Bound::UpstreamWebsocketConnect);
    assert_shed(&client.turn(&create("hi")).await, "during upstream_websocket_connect");
    let (status, body) =
        crate::socket_client::connect(&h, &[crate::socket_client::BETA]).await.err().unwrap();
    assert_eq!((status, &body["error"]["code"]), (429, &json!("proxy_overloaded")));
    drop(connecting);
    let first = client.turn(&create("hi")).await;
    assert_eq!(said(&first), "completed");

    let creates = fill(&h, Bound::ResponseCreate);
    assert_shed(&client.turn(&chained("more", &id(&first))).await, "during response_create");
    drop(creates);
    assert_eq!(
        said(&client.turn(&chained("more", &id(&first))).await),
        "completed",
        "its leg stays"
    );
    assert_well(&h);
    let lines = canary::logged();
    let line = lines.lines().find(|line| line.contains("stage=\"response_create\"")).unwrap();
    assert!(line.contains("scope=\"websocket\"") && !line.contains("lane="), "{line}");
    drop(client);
    h.finish().await;
}

/// codex-lb H14: compaction by its path or by its trigger has a stage of its own.
#[tokio::test]
async fn codex_lb_h14_a_full_compaction_stage_leaves_ordinary_responses_alone() {
    let limits = RawLimits { compact_response_create: Some(1), ..RawLimits::default() };
    let (h, _) = bounded(limits).await;
    let held = fill(&h, Bound::CompactResponseCreate);
    let old = json!({"model": "gpt-5.5", "input": []});
    let mut new = responses("hi", true);
    new["input"].as_array_mut().unwrap().push(json!({"type": "compaction_trigger"}));
    let calls = [("/v1/responses/compact", &old), (CODEX, &new)];
    for (path, body) in calls {
        assert_refused(&h.post(path, body).await, "during compact_response_create");
    }
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    drop(held);
    let creates = fill(&h, Bound::ResponseCreate);
    for (path, body) in calls {
        assert_eq!(h.post(path, body).await.status, 200, "{path}");
    }
    assert_eq!(in_use(&h, Bound::CompactResponseCreate), 0);
    drop(creates);
    h.finish().await;
}

/// codex-lb H16: what waits for its turn on a socket holds nothing.
#[tokio::test]
async fn codex_lb_h16_turns_behind_another_on_a_socket_hold_no_place() {
    let (h, a) = bounded(creating(2)).await;
    let (mut busy, mut other) = (opened(&h).await, opened(&h).await);
    a.fault(Fault::stall(Phase::Head)).turns().times(1);
    for _ in 0..4 {
        busy.send(&create("slow")).await;
    }
    for _ in 0..3 {
        assert_eq!(said(&busy.rest_of_turn().await), "bad_question");
    }
    assert_eq!(in_use(&h, Bound::ResponseCreate), 1);
    assert_eq!(said(&other.turn(&create("hi")).await), "completed");
    drop((busy, other));
    until("nothing is held", || in_use(&h, Bound::ResponseCreate) == 0).await;
    h.finish().await;
}

/// codex-lb H17: a warm-up goes on without a place, and the request behind it takes one as ever.
#[tokio::test]
async fn codex_lb_h17_a_warm_up_that_meets_a_full_stage_goes_on() {
    let (h, _) = bounded(creating(1)).await;
    let mut client = opened(&h).await;
    let held = fill(&h, Bound::ResponseCreate);
    let mut warm_up = create("");
    warm_up["generate"] = json!(false);
    let warmed = client.turn(&warm_up).await;
    assert_eq!(said(&warmed), "completed");
    assert_eq!(h.app.admission.level(Bound::ResponseCreate).refused, 0);
    drop(held);
    assert_eq!(said(&client.turn(&chained("hi", &id(&warmed))).await), "completed");
    assert_eq!(h.outcomes().await, [("complete".to_owned(), 1)]);
    drop(client);
    h.finish().await;
}

/// codex-lb 6.3: only who begins a flight takes a place; when there is none the account is not at
/// fault, and no other one is asked instead.
#[tokio::test]
async fn spec_9_a_refresh_takes_one_place_for_all_who_wait_for_it() {
    let mut setup = Setup::new().await;
    setup.in_order();
    let a = setup.codex("a");
    setup.codex("b");
    setup.raw.limits =
        RawLimits { drain_timeout_s: Some(5), token_refresh: Some(1), ..RawLimits::default() };
    let h = setup.start().await;
    let calls = || h.sim.journal().iter().filter(|e| e.path.ends_with("/token")).count();
    a.expire_access_token();
    let held = fill(&h, Bound::TokenRefresh);
    assert_refused(&h.post(CODEX, &responses("hi", true)).await, "during token_refresh");
    assert_eq!((h.asked(), calls()), (vec!["a".to_owned()], 0));
    assert_well(&h);
    drop(held);
    let body = responses("hi", true);
    let all = join_all((0..20).map(|_| h.post(CODEX, &body)));
    assert!(all.await.into_iter().all(|answer| answer.status == 200));
    assert_eq!(calls(), 1);
    assert_eq!(h.app.admission.level(Bound::TokenRefresh).refused, 1);
    assert!(!h.asked().contains(&"b".to_owned()));
    h.finish().await;
}
