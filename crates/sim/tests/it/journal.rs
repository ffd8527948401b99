//! The journal, and that everything ends with the simulator.

use std::time::Duration;

use poolgate_sim::{End, Fault, Phase, Scenario, Sim};

use crate::client::{PATIENCE, say, turn};

#[tokio::test]
async fn an_entry_tells_what_was_asked_and_sent() {
    let sim = Sim::start(Scenario::default()).await.unwrap();
    let alice = sim.codex("alice");
    let ask = turn(&alice, "hi [[events=7]]").with("session-id", "s-1");
    let answer = ask.send().await.unwrap();
    assert!(sim.wait_for(|journal| journal[0].end == Some(End::Complete), PATIENCE).await);
    let entries = sim.journal();
    let [entry] = &entries[..] else { panic!("one entry") };
    assert_eq!(entry.account.as_deref(), Some("alice"));
    assert_eq!((entry.path.as_str(), entry.status), ("/backend-api/codex/responses", Some(200)));
    assert_eq!(entry.header("session-id"), Some("s-1"));
    assert!(entry.text().contains("[[events=7]]"));
    assert_eq!((entry.output_events_sent, entry.bytes_sent), (7, answer.body.len() as u64));
    assert!(entry.ended.unwrap() >= entry.started);
    sim.clear_journal();
    assert!(sim.journal().is_empty());
}

#[tokio::test]
async fn a_client_that_goes_away_is_seen() {
    let sim = Sim::start(Scenario::default()).await.unwrap();
    let alice = sim.codex("alice");
    let asks = ["[[gap_ms=60000]]", "[[first_ms=60000]]", "stall"];
    for text in asks {
        if text == "stall" {
            alice.fault(Fault::stall(Phase::Head));
        }
        sim.clear_journal();
        let asking = tokio::spawn(turn(&alice, text).send());
        assert!(sim.wait_for(|journal| journal.len() == 1, PATIENCE).await, "{text}");
        asking.abort();
        let gone = |journal: &[poolgate_sim::Entry]| journal[0].end == Some(End::ClientGone);
        assert!(sim.wait_for(gone, PATIENCE).await, "{text}");
    }
}

#[tokio::test]
async fn paced_events_are_counted_as_they_go() {
    let sim = Sim::start(Scenario::default()).await.unwrap();
    let carol = sim.claude("carol");
    let asking = tokio::spawn(turn(&carol, "[[events=9]][[gap_ms=2]]").send());
    let some = |journal: &[poolgate_sim::Entry]| {
        journal.first().is_some_and(|entry| entry.output_events_sent >= 3 && entry.end.is_none())
    };
    assert!(sim.wait_for(some, PATIENCE).await);
    assert!(asking.await.unwrap().unwrap().tidy);
    assert!(!sim.wait_for(|journal| journal.len() > 1, Duration::from_millis(1)).await);
}

#[tokio::test]
async fn everything_ends_with_the_simulator() {
    let sim = Sim::start(Scenario::default()).await.unwrap();
    let alice = sim.codex("alice");
    alice.fault(Fault::stall(Phase::Body)).forever();
    let stalled = tokio::spawn(turn(&alice, "hi").send());
    let has_head =
        |journal: &[poolgate_sim::Entry]| journal.first().is_some_and(|entry| entry.bytes_sent > 0);
    assert!(sim.wait_for(has_head, PATIENCE).await);
    tokio::time::timeout(PATIENCE, sim.stop()).await.expect("no task is left");
    let answer = stalled.await.unwrap().expect("the head came before");
    assert!(!answer.tidy);
    assert!(turn(&alice, "hi").send().await.is_none(), "nobody listens");
}

#[tokio::test]
async fn a_scenario_can_come_from_json() {
    let text = r#"{"time_scale": 60, "journal": false, "accounts": [
        {"kind": "codex", "name": "alice", "plan": "pro",
         "windows": [{"length_s": 18000, "capacity": 100, "used": 12, "resets_in_s": 9000}],
         "faults": [{"fault": {"rate_limited": {"retry_after_s": 2}}, "times": 1},
                    {"fault": {"slow_drip": {"bytes": 900, "gap_ms": 1}}, "times": 1}]},
        {"kind": "anthropic", "name": "key", "own_port": true}]}"#;
    let sim = Sim::start(serde_json::from_str(text).unwrap()).await.unwrap();
    let (alice, key) = (sim.account("alice").unwrap(), sim.account("key").unwrap());
    assert_ne!(key.url(), sim.url());
    assert_eq!(say(&key, "hi").await.status, 200);
    let limited = say(&alice, "hi").await;
    assert_eq!((limited.status, limited.header("retry-after")), (429, "2"));
    let dripped = say(&alice, "hi").await;
    assert_eq!(dripped.header("x-codex-primary-used-percent"), "13");
    assert_eq!(dripped.header("x-codex-plan-type"), "pro");
    assert!(sim.journal().is_empty());
}
