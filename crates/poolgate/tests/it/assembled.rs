//! Answers put together out of a stream, when the stream says that there is none: its client is told by
//! a status, as by an upstream that does not stream.

use http::HeaderValue;
use poolgate_sim::{Account, Fault};
use serde_json::json;

use crate::harness::{Harness, Setup};
use crate::requests::{CODEX, responses};

async fn two() -> (Harness, Account, Account) {
    let (h, (a, b)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    (h, a, b)
}

fn failed(events: u32, code: &str) -> Fault {
    Fault::ErrorEventAfterOutput { events, code: code.into(), message: "no".into() }
}

/// spec §6: relayed, and nobody's penalty, wherever in the stream it is said.
#[tokio::test]
async fn the_requests_own_fault_has_its_status() {
    let bare = r#"data: {"type":"error","error":{"type":"invalid_request_error","code":"odd","message":"no"}}"#;
    let bare = Fault::Status {
        status: 200,
        headers: vec![("content-type".into(), "text/event-stream".into())],
        body: format!("{bare}\n\n"),
    };
    let cases = [
        (Fault::failed_with("context_length_exceeded", "no"), "context_length_exceeded"),
        (bare, "odd"),
        (failed(2, "invalid_prompt"), "invalid_prompt"),
    ];
    for (fault, code) in cases {
        let (h, a, _) = two().await;
        for _ in 0..4 {
            a.fault(fault.clone()).times(1);
            let got = h.post(CODEX, &responses("hi [[events=5]]", false)).await;
            assert_eq!(
                (got.status.as_u16(), &got.headers["content-type"]),
                (400, &HeaderValue::from_static("application/json"))
            );
            let error = &got.json()["error"];
            assert_eq!((&error["code"], &error["message"]), (&json!(code), &json!("no")));
        }
        assert_eq!(h.post(CODEX, &responses("hi", false)).await.status, 200);
        assert_eq!(h.asked(), ["a"; 5], "{code}: it may go on");
        let rows = h.rows("SELECT status, outcome FROM requests ORDER BY id LIMIT 1").await;
        assert_eq!(rows, [["400", "complete"]]);
        h.finish().await;
    }
}

/// spec §6: the same outcomes as for a client that streams.
#[tokio::test]
async fn an_accounts_trouble_behind_output_is_its_own() {
    let (h, a, _) = two().await;
    a.fault(failed(2, "usage_limit_reached")).times(1);
    let got = h.post(CODEX, &responses("hi [[events=5]]", false)).await;
    assert_eq!((got.status.as_u16(), got.code()), (502, "upstream_broke"), "{}", got.text());
    assert_eq!(h.rows("SELECT outcome FROM attempts").await.concat(), ["quota_spent"]);
    assert_eq!(h.post(CODEX, &responses("hi", false)).await.status, 200);
    assert_eq!(h.asked(), ["a", "b"], "not asked again, and the next goes elsewhere");
    h.finish().await;
}

/// spec §6: before output it is another account's.
#[tokio::test]
async fn before_output_it_fails_over() {
    for code in ["usage_limit_reached", "rate_limit_exceeded", "server_is_overloaded"] {
        let (h, a, _) = two().await;
        a.fault(Fault::failed_with(code, "no")).times(1);
        let got = h.post(CODEX, &responses("hi", false)).await;
        assert_eq!((got.status.as_u16(), h.asked()), (200, vec!["a".into(), "b".into()]), "{code}");
        h.finish().await;
    }
}
