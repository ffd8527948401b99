//! Windows that fill, refuse and reset.

use std::time::Duration;

use poolgate_sim::{Account, Scenario, Sim};

use crate::client::{Answer, Ask, say};

const FIVE_HOURS: Duration = Duration::from_hours(5);
const WEEK: Duration = Duration::from_hours(7 * 24);

/// A simulator in which an hour takes a second.
async fn fast() -> Sim {
    Sim::start(Scenario { time_scale: 3600.0, ..Scenario::default() }).await.unwrap()
}

fn small(account: &Account) {
    account.window(FIVE_HOURS, 4.0, 2.0, FIVE_HOURS).window(WEEK, 100.0, 0.0, WEEK);
}

#[tokio::test]
async fn codex_fills_and_refuses() {
    let sim = fast().await;
    let alice = sim.codex("alice");
    small(&alice);
    assert_eq!(say(&alice, "hi").await.header("x-codex-primary-used-percent"), "75");
    let last = say(&alice, "hi").await;
    assert_eq!(last.header("x-codex-primary-used-percent"), "100");
    assert_eq!(last.header("x-codex-secondary-used-percent"), "2");
    let spent = say(&alice, "hi").await;
    assert_eq!(spent.status, 429);
    let error = &spent.json()["error"];
    assert_eq!(error["type"], "usage_limit_reached");
    assert_eq!(error["plan_type"], "plus");
    assert_eq!(error["resets_at"].to_string(), spent.header("x-codex-primary-reset-at"));
    assert!((1..=5).contains(&error["resets_in_seconds"].as_i64().unwrap()));
    let usage = Ask::get(sim.url() + "/backend-api/wham/usage").by(&alice);
    let usage = usage.send().await.unwrap().json();
    assert_eq!(usage["rate_limit"]["limit_reached"], true);
}

#[tokio::test]
async fn a_window_has_reset_at_the_instant_it_stated() {
    let sim = fast().await;
    let alice = sim.codex("alice");
    alice.window(FIVE_HOURS, 1.0, 1.0, FIVE_HOURS);
    let spent = say(&alice, "hi").await;
    assert_eq!(spent.status, 429);
    let stated: u64 = spent.json()["error"]["resets_at"].as_u64().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    sim.advance(Duration::from_secs(stated).checked_sub(now).unwrap());
    let fresh = say(&alice, "hi").await;
    assert_eq!(fresh.status, 200);
    let next: u64 = fresh.header("x-codex-primary-reset-at").parse().unwrap();
    assert!((stated + 4..=stated + 5).contains(&next), "five seconds, rounded up, on the phase");
}

#[tokio::test]
async fn claude_fills_and_refuses() {
    let sim = fast().await;
    let carol = sim.claude("carol");
    small(&carol);
    carol.request_cost(2.0);
    let first = say(&carol, "hi").await;
    assert_eq!(first.header("anthropic-ratelimit-unified-5h-utilization"), "1");
    let spent = say(&carol, "hi").await;
    assert_eq!((spent.status, spent.header("x-should-retry")), (429, "true"));
    assert_eq!(spent.json()["error"]["type"], "rate_limit_error");
    assert_eq!(spent.header("anthropic-ratelimit-unified-status"), "rejected");
    assert_eq!(spent.header("anthropic-ratelimit-unified-representative-claim"), "five_hour");
    let retry_after: i64 = spent.header("retry-after").parse().unwrap();
    assert!((1..=5).contains(&retry_after));
    let usage = Ask::get(sim.url() + "/api/oauth/usage").by(&carol).send().await.unwrap().json();
    assert_eq!(usage["five_hour"]["utilization"], 100.0);
    assert!(usage["five_hour"]["resets_at"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn a_test_sets_what_is_used() {
    let sim = fast().await;
    let alice = sim.codex("alice");
    alice.set_used(FIVE_HOURS, 0.125);
    let answer: Answer = say(&alice, "hi").await;
    assert_eq!(answer.header("x-codex-primary-used-percent"), "12.5");
    alice.set_used(WEEK, 1.0);
    let spent = say(&alice, "hi").await;
    assert_eq!(spent.header("x-codex-secondary-used-percent"), "100");
    assert_eq!(
        spent.json()["error"]["resets_at"].to_string(),
        spent.header("x-codex-secondary-reset-at")
    );
    assert_eq!(alice.used(WEEK), Some(1.0));
}
