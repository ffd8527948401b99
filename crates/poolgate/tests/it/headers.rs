//! What crosses, on real sockets; the unit tables stand beside the code.

use poolgate_sim::Fault;

use crate::harness::{Harness, Setup};
use crate::requests::{CODEX, messages, responses};

#[tokio::test]
async fn an_upstream_sees_the_client_and_the_accounts_own_credential() {
    let (h, (a, c)) = Harness::start(|s: &mut Setup| (s.codex("a"), s.claude("c"))).await;
    let sent = [
        ("user-agent", "codex_exec/0.169.0"),
        ("session-id", "s-1"),
        ("x-codex-window-id", "w:0"),
        ("x-codex-from-tomorrow", "yes"),
        ("chatgpt-account-id", "somebody-else"),
        ("cookie", "secret=1"),
        ("x-forwarded-for", "10.1.2.3"),
    ];
    h.post_with(CODEX, &sent, &responses("hi", true)).await;
    let entry = h.sim.journal().pop().unwrap();
    let seen = |name| entry.header(name);
    assert_eq!(seen("authorization"), Some(format!("Bearer {}", a.credential()).as_str()));
    assert_eq!(seen("chatgpt-account-id"), Some(a.account_id().as_str()));
    assert_eq!(seen("user-agent"), Some("codex_exec/0.169.0"));
    assert_eq!(seen("x-codex-from-tomorrow"), Some("yes"));
    assert_eq!((seen("cookie"), seen("x-forwarded-for")), (None, None));
    assert!(!format!("{:?}", entry.headers).contains(&h.key));

    let beta = [("anthropic-beta", "claude-code-20250219"), ("anthropic-version", "2023-06-01")];
    let got = h.post_with("/v1/messages?beta=true", &beta, &messages("hi", true)).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let entry = h.sim.journal().pop().unwrap();
    assert_eq!(entry.header("anthropic-beta"), Some("claude-code-20250219,oauth-2025-04-20"));
    assert_eq!(entry.query.as_deref(), Some("beta=true"));
    assert_eq!(entry.header("authorization"), Some(format!("Bearer {}", c.credential()).as_str()));
    h.finish().await;
}

#[tokio::test]
async fn a_client_sees_nothing_of_the_account() {
    let (h, (a, c)) = Harness::start(|s: &mut Setup| (s.codex("a"), s.claude("c"))).await;
    let codex = h.post(CODEX, &responses("hi", true)).await;
    let claude = h.post("/v1/messages", &messages("hi", true)).await;
    for got in [codex, claude] {
        for name in got.headers.keys().map(http::HeaderName::as_str) {
            let kept = !name.contains("organization")
                && !name.contains("credits")
                && !name.contains("reset-after")
                && !matches!(name, "set-cookie" | "server" | "cf-ray" | "x-models-etag");
            assert!(kept, "{name}");
        }
        let all = format!("{:?}{}", got.headers, got.text());
        for secret in [a.account_id(), a.credential(), c.credential()] {
            assert!(!all.contains(&secret));
        }
    }
    h.finish().await;
}

/// spec §6: nor in an error inside a stream, in whatever pieces it comes, nor in what follows it.
#[tokio::test]
async fn a_refusal_inside_a_stream_names_no_account() {
    let (h, a) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let id = a.account_id();
    let error = format!(r#"{{"code":"invalid_prompt","message":"{id} may not"}}"#);
    let body = format!(
        "data: {{\"type\":\"error\",\"status\":400,\"error\":{error}}}\n\n\
         data: {{\"type\":\"response.failed\",\"response\":{{\"error\":{error}}}}}\n\n"
    );
    let headers = vec![("content-type".to_owned(), "text/event-stream".to_owned())];
    a.fault(Fault::Status { status: 200, headers, body: body.clone() }).forever();
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!((got.status.as_u16(), got.text()), (200, body.replace(&id, "[removed]")));
    h.finish().await;
}

#[tokio::test]
async fn turn_state_goes_to_the_account_that_issued_it_and_to_no_other() {
    let (h, (a, _)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        (s.codex("a"), s.codex("b"))
    })
    .await;
    let first = h.post(CODEX, &responses("one", true)).await;
    let turn = first.headers["x-codex-turn-state"].to_str().unwrap().to_owned();
    let headers = [("x-codex-turn-state", turn.as_str())];
    h.post_with(CODEX, &headers, &responses("two", true)).await;
    assert_eq!(h.sim.journal().pop().unwrap().header("x-codex-turn-state"), Some(turn.as_str()));
    a.fault(poolgate_sim::Fault::usage_limit_reached()).forever();
    let third = h.post_with(CODEX, &headers, &responses("three", true)).await;
    assert_eq!(third.status, 200);
    let entry = h.sim.journal().pop().unwrap();
    assert_eq!((entry.account.as_deref(), entry.header("x-codex-turn-state")), (Some("b"), None));
    h.finish().await;
}
