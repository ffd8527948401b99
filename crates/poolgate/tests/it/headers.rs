//! What crosses, on real sockets; the unit tables stand beside the code.

use http::Method;
use poolgate_sim::Fault;

use crate::harness::{Harness, Setup};
use crate::requests::{CODEX, messages, responses};
use crate::socket_client::{BETA, connect};

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

/// multiplexer 18.5 #57, #58: a client's key reaches no upstream, whichever header it comes in; an
/// address that a proxy before us or before the upstream tells of reaches neither side.
#[tokio::test]
async fn neither_a_clients_key_nor_anybodys_address_crosses() {
    let mut setup = Setup::new().await;
    let accounts = [setup.codex("a"), setup.claude("c"), setup.openai("o"), setup.anthropic("n")];
    for (pool, member) in [("pa", "a"), ("pc", "c"), ("po", "o"), ("pn", "n")] {
        setup.pool(pool, &[member], "fallback");
    }
    let h = setup.start().await;
    let address = "203.0.113.7";
    let told = [
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-real-ip",
        "true-client-ip",
        "cf-connecting-ip",
    ];
    let as_told: Vec<_> =
        told.iter().map(|name| ((*name).to_owned(), address.to_owned())).collect();
    let crosses = |headers: &dyn std::fmt::Debug| format!("{headers:?}").contains(address);
    for (pool, account) in ["pa", "pc", "po", "pn"].iter().zip(&accounts) {
        let key = h.new_key(pool, &[pool], &[]).await;
        let (path, body) = match *pool {
            "pa" | "po" => (CODEX, responses("hi", true)),
            _ => ("/v1/messages", messages("hi", true)),
        };
        let bearer = format!("Bearer {key}");
        for (name, value) in [("x-api-key", key.as_str()), ("authorization", bearer.as_str())] {
            let mut headers: Vec<_> = told.iter().map(|name| (*name, address)).collect();
            headers.push((name, value));
            account.fault(Fault::Status {
                status: 400,
                headers: as_told.clone(),
                body: "{}".into(),
            });
            let got = h.send(Method::POST, path, &headers, body.to_string().into()).await;
            assert_eq!(got.status, 400, "{}", got.text());
            assert!(!crosses(&got.headers), "{pool}: {:?}", got.headers);
            let entry = h.sim.journal().pop().unwrap();
            let seen = format!("{:?} {:?}", entry.headers, entry.query);
            assert!(!seen.contains(&key) && !crosses(&entry.headers), "{pool}, {name}: {seen}");
            let (by_key, by_token) = (entry.header("x-api-key"), entry.header("authorization"));
            let own = account.credential();
            let own_bearer = format!("Bearer {own}");
            let want = match *pool {
                "pn" => (Some(own.as_str()), None),
                _ => (None, Some(own_bearer.as_str())),
            };
            assert_eq!((by_key, by_token), want, "{pool}, {name}");
        }
    }
    let headers = told.map(|name| (name, address));
    let client = connect(&h, &[&[BETA], &headers[..]].concat()).await.unwrap();
    let entry = h.sim.journal().pop().unwrap();
    let seen = format!("{:?}", entry.headers);
    assert!(entry.is_socket() && !seen.contains(&h.key) && !crosses(&entry.headers), "{seen}");
    drop(client);
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
