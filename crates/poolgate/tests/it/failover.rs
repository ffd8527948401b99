//! A failing account is left before the client sees a byte; after one, nothing is replayed.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use poolgate_sim::{Account, End, Fault, Garbage, Phase};

use crate::harness::{Harness, Setup};
use crate::requests::{CODEX, chat, messages, responses};

type Make = fn() -> Fault;

/// Ways to fail before output that another account answers for.
const FAULTS: [(&str, Make); 13] = [
    ("429 usage limit", Fault::usage_limit_reached),
    ("429 rate limit", || Fault::rate_limited(Duration::from_mins(5))),
    ("403", Fault::forbidden_error),
    ("401", Fault::unauthorized),
    ("500", || Fault::server_error(500)),
    ("502", || Fault::server_error(502)),
    ("503", || Fault::server_error(503)),
    ("529", Fault::overloaded_529),
    ("cut before output", Fault::cut_before_output),
    ("error event before output", Fault::error_event_before_output),
    ("closed before the head", Fault::close_before_head),
    ("no HTTP at all", || Fault::garbage(Garbage::Socket)),
    ("no events at all", || Fault::garbage(Garbage::Events)),
];

async fn two(s: impl FnOnce(&mut Setup) -> (Account, Account)) -> (Harness, (Account, Account)) {
    Harness::start(|setup: &mut Setup| {
        setup.in_order();
        s(setup)
    })
    .await
}

#[tokio::test]
async fn every_failure_before_output_is_answered_by_another_account() {
    for (name, fault) in FAULTS {
        let (h, (a, b)) = two(|s| (s.codex("a"), s.codex("b"))).await;
        let body = responses("hi", true);
        let want = h.direct(&b, CODEX, &[], &body).await;
        h.sim.clear_journal();
        a.fault(fault()).forever();
        let got = h.post(CODEX, &body).await;
        assert_eq!((got.status.as_u16(), &got.body, got.cut), (200, &want.body, false), "{name}");
        let asked = h.asked();
        assert_eq!(asked.first().map(String::as_str), Some("a"), "{name}: {asked:?}");
        assert_eq!(asked.last().map(String::as_str), Some("b"), "{name}: {asked:?}");
        assert_eq!(h.outcomes().await, [("complete".to_owned(), 1)], "{name}");
        h.finish().await;
    }
}

#[tokio::test]
async fn the_other_dialects_fail_over_too() {
    for (name, fault) in FAULTS {
        let (h, (c, k)) = two(|s| (s.claude("c"), s.anthropic("k"))).await;
        let body = messages("hi", true);
        let want = h.direct(&k, "/v1/messages", &[], &body).await;
        c.fault(fault()).forever();
        let got = h.post("/v1/messages", &body).await;
        assert_eq!((got.status.as_u16(), &got.body), (200, &want.body), "{name}: messages");
        h.finish().await;

        let (h, (a, b)) = two(|s| (s.openai("a"), s.openai("b"))).await;
        let body = chat("hi", false);
        let want = h.direct(&b, "/v1/chat/completions", &[], &body).await;
        a.fault(fault()).forever();
        let got = h.post("/v1/chat/completions", &body).await;
        assert_eq!((got.status.as_u16(), &got.body), (200, &want.body), "{name}: chat JSON");
        h.finish().await;
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_connections_is_left() {
    let mut setup = Setup::new().await;
    setup.in_order();
    let a = setup.sim.codex("a");
    a.own_port().await.unwrap();
    setup.add_codex(&a);
    setup.codex("b");
    let h = setup.start().await;
    a.refuse_connections();
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(h.asked(), ["b"]);
    h.finish().await;
}

/// spec §6: nothing is wrong with the one, and the other is back in a moment.
#[tokio::test]
async fn a_request_that_failed_on_one_account_waits_for_another_that_is_back_soon() {
    let (h, (a, b)) = two(|s| (s.codex("a"), s.codex("b"))).await;
    // The page of an edge: it says nothing about the account.
    let headers = vec![("content-type".to_owned(), "text/html".to_owned())];
    a.fault(Fault::Status { status: 403, headers, body: "<html>".into() }).forever();
    b.fault(Fault::rate_limited(Duration::from_secs(2))).times(1);
    let body = responses("hi", true);
    let got = h.post(CODEX, &body).await;
    assert_eq!((got.status.as_u16(), got.code()), (502, "upstream_error"), "both were in vain");
    let got = h.post(CODEX, &body).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(h.asked(), ["a", "b", "a", "b"]);
    b.fault(Fault::rate_limited(Duration::from_mins(5))).times(1);
    h.post(CODEX, &body).await;
    let got = h.post(CODEX, &body).await;
    assert_eq!((got.status.as_u16(), got.code()), (502, "upstream_error"), "nobody waits for long");
    h.finish().await;
}

/// As near as loopback comes to codex-lb D16.
#[tokio::test]
async fn an_upstream_that_never_answers_is_left() {
    let mut setup = Setup::new().await;
    setup.in_order();
    setup.raw.limits.stream_head_timeout_s = Some(1);
    let a = setup.codex("a");
    setup.codex("b");
    let h = setup.start().await;
    a.fault(Fault::stall(Phase::Head)).forever();
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!(got.status, 200, "{}", got.text());
    h.finish().await;
}

#[tokio::test]
async fn a_hundred_streams_over_four_accounts_of_which_one_fails() {
    for (name, fault) in FAULTS {
        let (h, accounts) = Harness::start(|s: &mut Setup| {
            s.pool("default", &[], "round-robin");
            s.raw.limits.response_create = Some(0);
            ["a", "b", "c", "d"].map(|name| s.codex(name))
        })
        .await;
        let body =
            |i: usize| responses(&format!("request {i:03} [[events=12]] [[gap_ms=2]]"), true);
        let wanted = join_all(
            (0..100).map(async |i| h.direct(&accounts[1], CODEX, &[], &body(i)).await.body),
        );
        let wanted = wanted.await;
        h.sim.clear_journal();
        accounts[0].fault(fault()).forever();
        let got = join_all((0..100).map(async |i| h.post(CODEX, &body(i)).await)).await;
        for (i, (got, want)) in got.iter().zip(&wanted).enumerate() {
            assert_eq!((got.status.as_u16(), got.cut), (200, false), "{name}, {i}: {}", got.text());
            assert_eq!(&got.body, want, "{name}, {i}");
        }
        let mut outputs: HashMap<String, u32> = HashMap::new();
        for entry in h.sim.journal() {
            let text = entry.text();
            if let Some(at) = text.find("request ").filter(|_| entry.output_events_sent > 0) {
                *outputs.entry(text[at..at + 11].to_owned()).or_default() += 1;
            }
        }
        assert_eq!(outputs.len(), 100, "{name}");
        assert!(outputs.values().all(|times| *times == 1), "{name}: replayed after output");
        assert_eq!(h.outcomes().await, [("complete".to_owned(), 100)], "{name}");
        h.finish().await;
    }
}

#[tokio::test]
async fn a_break_after_output_is_cut_and_never_replayed() {
    let cases: [(&str, Make); 3] = [
        ("cut", || Fault::cut_after_output(2)),
        ("cut inside an event", || Fault::cut(1500)),
        ("reset", || Fault::Reset { after_bytes: 1500 }),
    ];
    for (name, fault) in cases {
        let (h, (a, _)) = two(|s| (s.codex("a"), s.codex("b"))).await;
        a.fault(fault()).times(1);
        let got = h.post(CODEX, &responses("hi [[events=9]] [[gap_ms=5]]", true)).await;
        assert_eq!((got.status.as_u16(), got.cut), (200, true), "{name}: {}", got.text());
        assert!(!got.text().contains("response.completed"), "{name}");
        assert_eq!(h.asked(), ["a"], "{name}");
        assert_eq!(h.outcomes().await, [("upstream_broke".to_owned(), 1)], "{name}");
        h.finish().await;
    }
}

#[tokio::test]
async fn a_break_after_output_is_not_replayed_for_a_client_that_does_not_stream_either() {
    let (h, (a, _)) = two(|s| (s.codex("a"), s.codex("b"))).await;
    a.fault(Fault::cut_after_output(2)).times(1);
    let got = h.post(CODEX, &responses("hi [[events=9]]", false)).await;
    assert_eq!((got.status.as_u16(), got.code()), (502, "upstream_broke"), "{}", got.text());
    assert_eq!(h.asked(), ["a"]);
    assert_eq!(h.rows("SELECT outcome FROM attempts").await.concat(), ["upstream_broke"]);
    h.finish().await;
}

#[tokio::test]
async fn an_error_event_after_output_is_relayed_as_it_came() {
    let (h, (c, _)) = two(|s| (s.claude("c"), s.claude("d"))).await;
    c.fault(Fault::error_event_after_output(2)).times(1);
    let got = h.post("/v1/messages", &messages("hi [[events=5]]", true)).await;
    assert_eq!(got.text().matches("event: error").count(), 1, "{}", got.text());
    assert_eq!(h.asked(), ["c"]);
    let rows = h.rows("SELECT code FROM requests").await;
    assert_eq!(
        rows,
        [["overloaded_error"]],
        "spec §10: Anthropic's errors have a type and no code"
    );
    h.finish().await;
}

#[tokio::test]
async fn an_exhausted_pool_says_when_it_resets() {
    let (h, (a, c)) = two(|s| (s.codex("a"), s.claude("c"))).await;
    a.fault(Fault::UsageLimit { resets_in_s: Some(9000) }).forever();
    c.fault(Fault::UsageLimit { resets_in_s: Some(9000) }).forever();
    for round in 0..2 {
        let got = h.post(CODEX, &responses("hi", true)).await;
        assert_eq!(
            (got.status.as_u16(), got.code()),
            (429, "usage_limit_reached"),
            "{}",
            got.text()
        );
        let error = &got.json()["error"];
        assert_eq!(error["type"], "usage_limit_reached");
        let seconds = error["resets_in_seconds"].as_i64().unwrap();
        assert!((8990..=9001).contains(&seconds), "{seconds} in round {round}");
        let got = h.post("/v1/messages", &messages("hi", true)).await;
        assert_eq!(got.json()["error"]["type"], "rate_limit_error", "{}", got.text());
        assert_eq!(got.headers["x-should-retry"], "false");
        assert_eq!(got.headers["anthropic-ratelimit-unified-status"], "rejected");
    }
    assert_eq!(h.asked().len(), 2, "the second round asked nobody");
    h.finish().await;
}

/// sub2api F3, F11.
#[tokio::test]
async fn no_401_or_403_of_an_upstream_reaches_a_client() {
    let cases: [(&str, Make); 2] = [("401", Fault::unauthorized), ("403", Fault::forbidden_error)];
    for (name, fault) in cases {
        let (h, a) = Harness::start(|s: &mut Setup| s.openai("a")).await;
        a.fault(fault()).forever();
        let got = h.post("/v1/responses", &responses("hi", false)).await;
        assert_eq!(got.status, 503, "{name}: {}", got.text());
        h.finish().await;
    }
}

#[tokio::test]
async fn the_requests_own_fault_is_relayed_and_penalises_nobody() {
    let (h, (a, _)) = two(|s| (s.openai("a"), s.openai("b"))).await;
    let body = r#"{"error":{"message":"too long","type":"invalid_request_error","param":"input","code":"context_length_exceeded"}}"#;
    a.fault(Fault::status(400, body)).times(1);
    let got = h.post("/v1/responses", &responses("hi", true)).await;
    assert_eq!((got.status.as_u16(), got.text()), (400, body.to_owned()));
    assert_eq!(h.asked(), ["a"]);
    assert_eq!(h.post("/v1/responses", &responses("hi", true)).await.status, 200);
    assert_eq!(h.asked(), ["a", "a"], "a is as good as before");
    h.finish().await;
}

#[tokio::test]
async fn a_model_unknown_upstream_is_asked_for_once() {
    let (h, _) = two(|s| (s.openai("a"), s.openai("b"))).await;
    let mut body = responses("hi", true);
    body["model"] = "no-such-model".into();
    for _ in 0..2 {
        let got = h.post("/v1/responses", &body).await;
        assert_eq!((got.status.as_u16(), got.code()), (404, "model_not_found"), "{}", got.text());
    }
    assert_eq!(h.asked(), ["a", "b"]);
    h.finish().await;
}

#[tokio::test]
async fn quota_that_runs_out_moves_work_on_and_comes_back() {
    let five_hours = Duration::from_hours(5);
    let (h, (a, b)) = two(|s| (s.codex("a"), s.codex("b"))).await;
    for account in [&a, &b] {
        account.clear_windows();
        account.window(five_hours, 4.0, 0.0, Duration::from_mins(30));
    }
    for _ in 0..7 {
        assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200);
    }
    let got = h.post(CODEX, &responses("hi", true)).await;
    let got = if got.status == 200 { h.post(CODEX, &responses("hi", true)).await } else { got };
    assert_eq!(got.code(), "usage_limit_reached", "{}", got.text());
    h.sim.advance(Duration::from_mins(31));
    h.clock.advance(Duration::from_mins(31));
    assert_eq!(h.post(CODEX, &responses("hi", true)).await.status, 200, "after the reset");
    assert!(h.sim.journal().iter().all(|e| e.end == Some(End::Complete)));
    h.finish().await;
}
