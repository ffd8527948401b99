//! Sessions stay where their prompt cache is warm.

use std::collections::HashSet;

use futures_util::future::join_all;
use http::Method;
use poolgate_sim::Fault;
use serde_json::json;

use crate::harness::{Harness, Setup};
use crate::requests::{CODEX, messages, responses};
use crate::socket_client::{BETA, connect, create, said, turns};

#[tokio::test]
async fn a_session_stays_on_its_account_and_leaves_it_only_when_it_must() {
    let (h, accounts) =
        Harness::start(|s: &mut Setup| ["a", "b", "c", "d"].map(|name| s.codex(name))).await;
    let headers = [("session-id", "s-1")];
    for i in 0..10 {
        h.post_with(CODEX, &headers, &responses(&format!("turn {i}"), true)).await;
    }
    let homes: HashSet<String> = h.asked().into_iter().collect();
    assert_eq!(homes.len(), 1, "{homes:?}");
    let home = homes.into_iter().next().unwrap();
    let account = accounts.iter().find(|a| a.name() == home).unwrap();
    account.fault(Fault::usage_limit_reached()).times(1);
    h.sim.clear_journal();
    for _ in 0..5 {
        assert_eq!(h.post_with(CODEX, &headers, &responses("more", true)).await.status, 200);
    }
    let asked = h.asked();
    let new_home = asked[1].clone();
    assert_ne!(new_home, home);
    assert!(asked[1..].iter().all(|name| *name == new_home), "{asked:?}");
    h.finish().await;
}

/// multiplexer 18.3 #31.
#[tokio::test]
async fn fifty_concurrent_first_requests_of_one_session_land_on_one_account() {
    let (h, _) = Harness::start(|s: &mut Setup| ["a", "b", "c"].map(|name| s.claude(name))).await;
    let headers = [("x-claude-code-session-id", "one")];
    let body = messages("hi", true);
    join_all((0..50).map(async |_| h.post_with("/v1/messages", &headers, &body).await)).await;
    let asked = h.asked();
    assert_eq!((asked.len(), asked.into_iter().collect::<HashSet<_>>().len()), (50, 1));
    h.finish().await;
}

/// codex-lb I10.
#[tokio::test]
async fn codex_lb_i10_a_response_of_another_key_is_not_gone_on_from() {
    let (h, _) = Harness::start(|s: &mut Setup| s.openai("a")).await;
    let other = format!("Bearer {}", h.new_key("other", &[], &[]).await);
    let mut body = responses("first", false);
    body["store"] = json!(true);
    let id = h.post("/v1/responses", &body).await.json()["id"].as_str().unwrap().to_owned();
    body["previous_response_id"] = json!(id);
    h.sim.clear_journal();
    let headers = [("authorization", other.as_str()), ("content-type", "application/json")];
    let theirs = || h.send(Method::POST, "/v1/responses", &headers, body.to_string().into());
    let got = theirs().await;
    assert_eq!((got.status.as_u16(), got.code()), (400, "previous_response_not_found"));
    let mut frame = body.clone();
    frame["type"] = json!("response.create");
    let mut client = connect(&h, &[BETA, ("authorization", &other)]).await.ok().unwrap();
    assert_eq!(said(&client.turn(&create("hi")).await), "completed");
    assert_eq!(said(&client.turn(&frame).await), "previous_response_not_found");
    assert_eq!(turns(&h).len(), 1, "only the socket's first");
    assert_eq!(h.post("/v1/responses", &body).await.status, 200, "whoever made it may");
    drop(client);
    let h = h.restart().await;
    assert_eq!(h.post("/v1/responses", &body).await.status, 200);
    h.finish().await;
}

#[tokio::test]
async fn a_response_id_leads_to_the_account_that_made_it_even_after_a_restart() {
    let (h, _) = Harness::start(|s: &mut Setup| {
        s.pool("default", &[], "round-robin");
        ["a", "b", "c"].map(|name| s.openai(name))
    })
    .await;
    let mut body = responses("first", false);
    body["store"] = json!(true);
    let id = h.post("/v1/responses", &body).await.json()["id"].as_str().unwrap().to_owned();
    let owner = h.asked().remove(0);
    body["previous_response_id"] = json!(id);
    for _ in 0..4 {
        assert_eq!(h.post("/v1/responses", &body).await.status, 200);
    }
    assert!(h.asked().iter().all(|name| *name == owner), "{:?}", h.asked());
    let rows =
        h.rows("SELECT a.name FROM response_owners o JOIN accounts a ON a.id = o.account_id").await;
    assert_eq!(rows[0], std::slice::from_ref(&owner));
    let h = h.restart().await;
    h.sim.clear_journal();
    for _ in 0..4 {
        assert_eq!(h.post("/v1/responses", &body).await.status, 200);
    }
    assert_eq!(h.asked(), vec![owner.clone(); 4], "the store remembers");
    let id = h.app.pool.accounts().iter().find(|a| a.name == owner).unwrap().id;
    h.app.store.pause(id).await.unwrap();
    h.app.reload().await.unwrap();
    let got = h.post("/v1/responses", &body).await;
    assert_eq!((got.status.as_u16(), got.code()), (503, "state_owner_unavailable"));
    h.finish().await;
}
