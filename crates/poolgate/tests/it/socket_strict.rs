//! Clients of `/v1` that speak sockets and know nothing of Codex.

use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::harness::Harness;
use crate::socket_client::{Client, create, kinds};
use crate::socket_upstream::{Upstream, accept, event, gateway, headers, heard, tell};

/// The sockets of a client of `/v1` that asks for nothing of Codex's, and of its account.
async fn opened_strictly() -> (Harness, Client, Upstream) {
    let (h, listener) = gateway("codex").await;
    let url = format!("{}/v1/responses", h.url.replacen("http", "ws", 1));
    let mut request = url.into_client_request().unwrap();
    let bearer = format!("Bearer {}", h.key).parse().unwrap();
    request.headers_mut().insert("authorization", bearer);
    let stream = TcpStream::connect(h.url.strip_prefix("http://").unwrap()).await.unwrap();
    let (client, upstream) = tokio::join!(client_async(request, stream), accept(&listener));
    let (socket, head) = client.unwrap();
    let client = Client { socket, head: head.into_parts().0.headers };
    (h, client, upstream)
}

/// spec §1: without the beta a client of `/v1` is sent none of Codex's own events.
#[tokio::test]
async fn a_strict_socket_hears_no_events_of_codex() {
    let (h, mut client, mut upstream) = opened_strictly().await;
    let windows = json!({"primary": {"used_percent": 40.0, "window_minutes": 300}});
    let limits = json!({"type": "codex.rate_limits", "rate_limits": windows});
    for id in ["resp_1", "resp_2"] {
        client.send(&create("hi")).await;
        heard(&mut upstream).await;
        let metadata = headers("codex.response.metadata", None);
        let other = headers("response.metadata", Some(id));
        let opening = [other, limits.clone(), event("response.created", id), metadata];
        tell(&mut upstream, &opening).await;
        // And one between two turns.
        tell(&mut upstream, &[event("response.completed", id), limits.clone()]).await;
        let events = client.rest_of_turn().await;
        assert_eq!(kinds(&events), ["response.created", "response.completed"]);
    }
    drop((client, upstream));
    h.finish().await;
}

/// spec §8: behind output or before it. Codex is told the same.
#[tokio::test]
async fn an_error_tells_no_accounts_limits() {
    let (h, mut client, mut upstream) = opened_strictly().await;
    let error =
        json!({"code": "context_length_exceeded", "plan_type": "plus", "resets_at": 1_795_555_555});
    let headers = json!({"x-codex-credits-balance": "98765"});
    let bare = json!({"type": "error", "status": 400, "error": error, "headers": headers});
    let mut failed = event("response.failed", "resp_1");
    failed["response"]["error"] = error;
    for (failure, place) in [(bare, ""), (failed, "/response")] {
        for output in [None, Some(json!({"type": "response.output_text.delta", "delta": "a"}))] {
            client.send(&create("hi")).await;
            heard(&mut upstream).await;
            let begun = std::iter::once(event("response.created", "resp_1")).chain(output);
            let events: Vec<_> = begun.chain([failure.clone()]).collect();
            tell(&mut upstream, &events).await;
            let told = client.rest_of_turn().await.pop().unwrap();
            let error = told.pointer(&format!("{place}/error"));
            assert_eq!(error, Some(&json!({"code": "context_length_exceeded"})), "{told}");
            assert!(!told.to_string().contains("98765"), "{told}");
        }
    }
    drop((client, upstream));
    h.finish().await;
}

/// What was withheld until it was certain that it goes on, too.
#[tokio::test]
async fn every_byte_of_a_turn_is_counted() {
    let (h, mut client, mut upstream) = opened_strictly().await;
    let windows = json!({"primary": {"used_percent": 40.0, "window_minutes": 300}});
    let limits = json!({"type": "codex.rate_limits", "rate_limits": windows});
    let created = event("response.created", "resp_1");
    let error =
        json!({"type": "error", "status": 400, "error": {"code": "context_length_exceeded"}});
    let completed = event("response.completed", "resp_2");
    let mut sizes = Vec::new();
    for events in [vec![limits.clone(), created.clone(), error], vec![limits, created, completed]] {
        client.send(&create("hi")).await;
        heard(&mut upstream).await;
        tell(&mut upstream, &events).await;
        let told = client.rest_of_turn().await;
        assert_eq!(told, events[1..]);
        let size: usize = told.iter().map(|event| event.to_string().len()).sum();
        sizes.push([size.to_string(), "1".to_owned()]);
    }
    assert!(h.outcomes().await.iter().all(|(outcome, _)| outcome == "complete"));
    let rows = h.rows("SELECT bytes, first_ms IS NOT NULL FROM requests ORDER BY id").await;
    assert_eq!(rows, sizes);
    drop((client, upstream));
    h.finish().await;
}
