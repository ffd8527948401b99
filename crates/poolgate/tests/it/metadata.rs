//! Events that tell headers of an answer: they are no output, name a turn state, and are filtered like heads.

use poolgate_sim::{Fault, Phase};
use serde_json::{Value, json};

use crate::harness::{Answer, Harness, Setup};
use crate::requests::{CODEX, responses};
use crate::socket_client::{BETA, Client, connect, create, kinds, pair, said, turns, until};

const NAMES: [&str; 2] = ["response.metadata", "codex.response.metadata"];
const TURN_STATE: &str = "x-codex-turn-state";

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

/// spec §6, wire §2.4: removed when the account changes, wherever it was told.
#[tokio::test]
async fn a_turn_state_told_by_an_event_goes_to_no_other_account() {
    for text in ["hi [[metadata]]", "hi [[metadata=late]] [[gap_ms=5]]"] {
        let (h, a) = in_order().await;
        let first = h.post(CODEX, &responses(text, true)).await;
        assert_eq!(told(&first)[0]["headers"][TURN_STATE], "ts-event-a", "{text}");
        let mut all_of_it = responses("go on", true);
        all_of_it["client_metadata"] = json!({"turn_id": "t", TURN_STATE: "ts-event-a"});
        let resend = async || {
            let got = h.post_with(CODEX, &[(TURN_STATE, "ts-event-a")], &all_of_it).await;
            assert_eq!(got.status, 200, "{}", got.text());
            let entry = h.sim.journal().pop().unwrap();
            let body: Value = serde_json::from_slice(&entry.body).unwrap();
            let of_body = body["client_metadata"].clone();
            (entry.account.clone().unwrap(), entry.header(TURN_STATE).map(str::to_owned), of_body)
        };
        let own = ("a".to_owned(), Some("ts-event-a".to_owned()), &all_of_it["client_metadata"]);
        let (account, header, body) = resend().await;
        assert_eq!((account, header, &body), own, "{text}");
        a.fault(Fault::usage_limit_reached()).forever();
        assert_eq!(h.post(CODEX, &responses("another", true)).await.status, 200);
        assert_eq!(resend().await, ("b".to_owned(), None, json!({"turn_id": "t"})), "{text}");
        h.finish().await;
    }
}

/// The same on a socket: in the message, and in another's handshake.
#[tokio::test]
async fn a_turn_state_told_on_a_socket_goes_to_no_other_account() {
    let (h, a, b) = pair().await;
    let mut client = Client::open(&h).await;
    let events = client.turn(&create("hi [[metadata]]")).await;
    let event = events.iter().find(|event| event["type"] == NAMES[1]).unwrap();
    let state = event["headers"]["X-Codex-Turn-State"][0].as_str().unwrap();
    a.fault(Fault::usage_limit_reached()).turns().times(1);
    assert_eq!(said(&client.turn(&create("more")).await), "completed");
    let mut all_of_it = create("all of it");
    all_of_it["client_metadata"] = json!({"turn_id": "t", TURN_STATE: state});
    assert_eq!(said(&client.turn(&all_of_it).await), "completed");
    let journal = h.sim.journal();
    let turn = journal.iter().rfind(|entry| entry.is_turn()).unwrap();
    let body: Value = serde_json::from_slice(&turn.body).unwrap();
    assert_eq!(
        (turn.account.as_deref(), &body["client_metadata"]),
        (Some("b"), &json!({"turn_id": "t"}))
    );
    drop(client);
    until("its socket is closed", || b.open_sockets() == 0).await;
    let other = connect(&h, &[BETA, (TURN_STATE, state)]).await.unwrap();
    let journal = h.sim.journal();
    let socket = journal.iter().rfind(|entry| entry.is_socket()).unwrap();
    assert_eq!((socket.account.as_deref(), socket.header(TURN_STATE)), (Some("b"), None));
    drop(other);
    h.finish().await;
}

/// spec §1, wire §0.10: an account's list of models is not the pool's.
#[tokio::test]
async fn headers_in_events_are_filtered_like_those_of_heads() {
    let (h, _a) = in_order().await;
    for text in ["hi [[metadata]]", "hi [[metadata=late]] [[gap_ms=2]]"] {
        let got = h.post(CODEX, &responses(text, true)).await;
        let events = told(&got);
        let plain = json!({TURN_STATE: "ts-event-a", "openai-model": "gpt-5.5"});
        let listed = json!({"X-Codex-Turn-State": ["ts-event-a"], "OpenAI-Model": ["gpt-5.5"]});
        let headers = events.iter().map(|event| &event["headers"]);
        assert!(headers.eq([&plain, &listed]), "{text}: {events:?}");
        let strict = h.post("/v1/responses", &responses(text, true)).await;
        assert!(strict.text().contains("response.completed"));
        assert_eq!(told(&strict), Vec::<Value>::new(), "{text}");
        let whole = h.post(CODEX, &responses(text, false)).await;
        assert_eq!(whole.json()["status"], "completed", "{text}");
    }
    h.finish().await;
}
