//! Events that tell headers of an answer are no output.

use poolgate_sim::{Fault, Phase};
use serde_json::{Value, json};

use crate::harness::{Answer, Harness, Setup};
use crate::requests::{CODEX, responses};
use crate::socket_client::{Client, create, kinds, pair, said, turns};

const NAMES: [&str; 2] = ["response.metadata", "codex.response.metadata"];

async fn in_order() -> (Harness, poolgate_sim::Account) {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    (h, a)
}

fn told(answer: &Answer) -> Vec<Value> {
    let text = answer.text();
    let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = events.map(|event| serde_json::from_str::<Value>(event).unwrap());
    events.filter(|event| NAMES.contains(&event["type"].as_str().unwrap())).collect()
}

/// spec §6: the commit point is behind them.
#[tokio::test]
async fn an_account_that_fails_behind_headers_is_left() {
    for fault in [
        Fault::error_event_before_output(),
        Fault::failed_with("rate_limit_exceeded", "try again in 90s"),
        Fault::cut_before_output(),
    ] {
        let name = format!("{fault:?}");
        let (h, a) = in_order().await;
        a.fault(fault).forever();
        let got = h.post(CODEX, &responses("hi [[metadata]]", true)).await;
        let text = got.text();
        assert_eq!((got.status.as_u16(), got.cut), (200, false), "{name}: {text}");
        assert!(text.contains("response.completed") && !text.contains("ts-event-a"), "{name}");
        assert_eq!(told(&got).len(), 2, "{name}");
        assert_eq!(h.asked().last().unwrap(), "b", "{name}");
        assert_eq!(h.outcomes().await, [("complete".to_owned(), 1)], "{name}");
        h.finish().await;
    }
}

/// The same on a socket.
#[tokio::test]
async fn a_turn_that_fails_behind_headers_moves() {
    for fault in [
        Fault::error_frame(Phase::Body, 500, "server_error"),
        Fault::error_frame(Phase::Body, 429, "usage_limit_reached"),
        Fault::cut_before_output(),
    ] {
        let name = format!("{fault:?}");
        let (h, a, _) = pair().await;
        let mut client = Client::open(&h).await;
        a.fault(fault).turns().times(2);
        let events = client.turn(&create("hi [[metadata]]")).await;
        assert_eq!(said(&events), "completed", "{name}");
        assert!(!json!(events).to_string().contains("ts-event-a"), "{name}");
        let told: Vec<_> = kinds(&events).into_iter().filter(|k| NAMES.contains(k)).collect();
        assert_eq!(told, NAMES, "{name}");
        assert_eq!(turns(&h).last().unwrap(), "b", "{name}");
        drop(client);
        h.finish().await;
    }
}
