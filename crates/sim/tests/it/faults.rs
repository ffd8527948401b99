//! Every scripted misbehaviour, as a client sees it.

use std::time::Duration;

use poolgate_sim::{Account, End, Fault, Garbage, Phase, Scenario, Sim};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::{Ask, PATIENCE, messages_body, say, turn};

async fn sim() -> Sim {
    Sim::start(Scenario::default()).await.unwrap()
}

#[tokio::test]
async fn ready_made_refusals_speak_the_dialect() {
    let sim = sim().await;
    let (alice, carol, key) = (sim.codex("alice"), sim.claude("carol"), sim.openai("key"));
    #[rustfmt::skip]
    let cases: [(&Account, Fault, u16, &str, &str); 11] = [
        (&alice, Fault::usage_limit_reached(), 429, "/error/type", "usage_limit_reached"),
        (&carol, Fault::usage_limit_reached(), 429, "/error/type", "rate_limit_error"),
        (&key, Fault::usage_limit_reached(), 429, "/error/code", "rate_limit_exceeded"),
        (&alice, Fault::forbidden_error(), 403, "/error/code", "forbidden_error"),
        (&carol, Fault::forbidden_error(), 403, "/error/type", "forbidden_error"),
        (&alice, Fault::unauthorized(), 401, "/error/code", "token_expired"),
        (&carol, Fault::unauthorized(), 401, "/error/type", "authentication_error"),
        (&carol, Fault::overloaded_529(), 529, "/error/type", "overloaded_error"),
        (&alice, Fault::server_error(503), 503, "/error/code", "server_error"),
        (&carol, Fault::server_error(500), 500, "/error/type", "api_error"),
        (&alice, Fault::status(418, r#"{"a":"b"}"#), 418, "/a", "b"),
    ];
    for (account, fault, status, pointer, value) in cases {
        let name = format!("{fault:?}");
        account.fault(fault);
        let answer = say(account, "hi").await;
        assert_eq!(answer.status, status, "{name}");
        assert_eq!(answer.json().pointer(pointer), Some(&json!(value)), "{name}");
        assert_eq!(say(account, "hi").await.status, 200, "{name} is over");
    }
    alice.fault(Fault::usage_limit_reached());
    let spent = say(&alice, "hi").await;
    assert_eq!(spent.header("x-codex-primary-used-percent"), "100");
    carol.fault(Fault::rate_limited(Duration::from_millis(1500)));
    assert_eq!(say(&carol, "hi").await.header("retry-after"), "2");
}

#[tokio::test]
async fn faults_hit_where_and_as_often_as_told() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let usage = || async {
        Ask::get(sim.url() + "/backend-api/wham/usage").by(&alice).send().await.unwrap().status
    };
    alice.fault(Fault::server_error(500)).times(2);
    assert_eq!(usage().await, 200, "polls pass by");
    assert_eq!([say(&alice, "").await.status, say(&alice, "").await.status], [500, 500]);
    assert_eq!((say(&alice, "").await.status, alice.pending_faults()), (200, 0));
    alice.fault(Fault::forbidden_error()).forever().on("/backend-api/wham/");
    assert_eq!([usage().await, usage().await, say(&alice, "").await.status], [403, 403, 200]);
    alice.clear_faults();
    assert_eq!(usage().await, 200);
}

#[tokio::test]
async fn cuts_break_off_without_an_end() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let whole = say(&alice, "hi").await.text();

    alice.fault(Fault::cut(100));
    let cut = say(&alice, "hi").await;
    assert_eq!((cut.tidy, cut.text().as_str()), (false, &whole[..100]));
    alice.fault(Fault::Reset { after_bytes: 0 });
    assert!(turn(&alice, "hi").send().await.is_none_or(|answer| !answer.tidy));

    alice.fault(Fault::cut_before_output());
    let cut = say(&alice, "hi").await;
    assert_eq!((cut.tidy, cut.kinds().len()), (false, 2));
    alice.fault(Fault::cut_after_output(3));
    let cut = say(&alice, "hi").await;
    let deltas = cut.kinds().iter().filter(|kind| *kind == "response.output_text.delta").count();
    assert_eq!((cut.tidy, deltas), (false, 3));
    assert!(whole.starts_with(&cut.text()));
    assert!(sim.journal().iter().all(|entry| entry.end.is_some()));
    assert_eq!(sim.journal()[4].output_events_sent, 3);
    assert_eq!(sim.journal()[4].end, Some(End::Fault));

    let key = sim.anthropic("key");
    key.fault(Fault::cut(20));
    let ask = Ask::post(sim.url() + "/v1/messages", &messages_body("hi", false)).by(&key);
    let cut = ask.send().await.unwrap();
    assert_eq!((cut.tidy, cut.body.len()), (false, 20), "less than the declared length");
}

#[tokio::test]
async fn error_events_come_in_the_stream() {
    let sim = sim().await;
    let (alice, carol) = (sim.codex("alice"), sim.claude("carol"));
    alice.fault(Fault::error_event_before_output());
    let failed = say(&alice, "hi").await;
    assert_eq!(failed.kinds(), ["response.created", "response.in_progress", "response.failed"]);
    assert_eq!(failed.events()[2]["response"]["error"]["code"], "server_error");
    alice.fault(Fault::failed_with("rate_limit_exceeded", "Please try again in 1.5s."));
    let failed = say(&alice, "hi").await;
    assert_eq!(failed.events()[2]["response"]["error"]["code"], "rate_limit_exceeded");
    carol.fault(Fault::error_event_after_output(2));
    let failed = say(&carol, "hi").await;
    assert!(failed.tidy);
    assert_eq!(failed.kinds().last().unwrap(), "error");
    let deltas = failed.kinds().iter().filter(|kind| *kind == "content_block_delta").count();
    assert_eq!(deltas, 2);
    carol.fault(Fault::error_event_before_output());
    assert_eq!(say(&carol, "hi").await.kinds(), ["message_start", "error"]);
}

#[tokio::test]
async fn stalls_last_until_the_client_goes() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    for (phase, outputs) in [(Phase::Body, 0), (Phase::Output(2), 2)] {
        sim.clear_journal();
        alice.fault(Fault::stall(phase));
        let asking = tokio::spawn(turn(&alice, "hi").send());
        let stalled = |journal: &[poolgate_sim::Entry]| {
            journal.first().is_some_and(|e| e.bytes_sent > 0 && e.output_events_sent == outputs)
        };
        assert!(sim.wait_for(stalled, PATIENCE).await);
        assert_eq!(sim.journal()[0].end, None);
        asking.abort();
        let gone = |journal: &[poolgate_sim::Entry]| journal[0].end == Some(End::ClientGone);
        assert!(sim.wait_for(gone, PATIENCE).await);
    }
}

#[tokio::test]
async fn garbage_slow_drips_and_closed_doors() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    let whole = say(&alice, "hi").await.body;
    alice.fault(Fault::slow_drip(500, Duration::from_millis(1)));
    assert_eq!(say(&alice, "hi").await.body, whole);
    alice.fault(Fault::garbage(Garbage::Events));
    let junk = say(&alice, "hi").await;
    assert_eq!((junk.status, junk.tidy), (200, true));
    assert!(junk.text().contains("junk"));
    alice.fault(Fault::close_before_head());
    assert!(turn(&alice, "hi").send().await.is_none());
    assert_eq!(sim.journal().last().unwrap().status, None);

    alice.fault(Fault::garbage(Garbage::Socket)).on("/");
    let mut socket = TcpStream::connect(sim.url().trim_start_matches("http://")).await.unwrap();
    let head = format!(
        "GET /backend-api/wham/usage HTTP/1.1\r\nhost: sim\r\nauthorization: Bearer {}\r\n\r\n",
        alice.credential()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes.starts_with(b"\x00\xffSIM"));
}

#[tokio::test]
async fn a_port_of_its_own_can_be_shut_and_opened() {
    let sim = sim().await;
    let alice = sim.codex("alice");
    alice.own_port().await.unwrap();
    let url = alice.url();
    assert_ne!(url, sim.url());
    assert_eq!(say(&alice, "hi").await.status, 200);
    alice.refuse_connections();
    let address = url.trim_start_matches("http://");
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    alice.accept_connections().await.unwrap();
    assert_eq!(alice.url(), url);
    assert_eq!(say(&alice, "hi").await.status, 200);
}
